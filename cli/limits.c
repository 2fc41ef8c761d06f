/* strew status --limits: what base/limits.h says, for who is not to read the source. */
#include "base/limits.h"
#include "cli/cli.h"
#include "cli/json.h"
#include <inttypes.h>
#include <stdio.h>

#define LIMITS(X)                                                                                  \
	X(LIMIT_CONNECTIONS, "of one broker, all kinds")                                           \
	X(LIMIT_LOOKERS, "connections beyond those, which may only look")                          \
	X(LIMIT_SESSIONS, "registered workers and trainers of one broker")                         \
	X(LIMIT_GROUPS, "of workers on a node")                                                    \
	X(LIMIT_MEMBERS, "workers of a group on a node")                                           \
	X(LIMIT_MODELS, "of one broker")                                                           \
	X(LIMIT_RANKS, "trainer ranks of a model")                                                 \
	X(LIMIT_SUBSETS, "of a model's tensors that can be published")                             \
	X(LIMIT_BROKERS, "of an epoch")                                                            \
	X(LIMIT_EPOCHS, "communicators, then a broker starts itself anew")                         \
	X(LIMIT_FRAME_BYTES, "of a message, its header included")                                  \
	X(LIMIT_FIRST_FRAME_BYTES, "the same between brokers, until one has joined")               \
	X(LIMIT_FRAME_FDS, "descriptors of a message")                                             \
	X(LIMIT_MSGPACK_DEPTH, "maps and arrays in one another")                                   \
	X(LIMIT_MSGPACK_VALUES, "values in a message")                                             \
	X(LIMIT_TEXT_BYTES, "of a sentence, its end included")                                     \
	X(LIMIT_NAME_BYTES, "of a tensor's or parameter's name")                                   \
	X(LIMIT_MODEL_BYTES, "of a model's name")                                                  \
	X(LIMIT_OUTBOX_BYTES, "queued for a process that does not read")                           \
	X(LIMIT_OUTBOX_FDS, "descriptors queued for a process that does not read")                 \
	X(LIMIT_BROKER_OUTBOX_BYTES, "queued for a broker that does not read")                     \
	X(LIMIT_OUTBOX_SOURCES, "manifests queued for a broker that does not read")                \
	X(LIMIT_ALLOCATIONS, "of one process")                                                     \
	X(LIMIT_CHUNKS, "of VMM memory of one process")                                            \
	X(LIMIT_ALL_CHUNKS, "of all processes of a broker together")                               \
	X(LIMIT_TENSORS, "of a layout or manifest")                                                \
	X(LIMIT_PARAMETERS, "of a layout")                                                         \
	X(LIMIT_PIECES, "of a layout")                                                             \
	X(LIMIT_BOXES, "of a manifest")                                                            \
	X(LIMIT_COVER_STEPS, "to tell who holds what of a manifest")                               \
	X(LIMIT_SHARED_STEPS, "until no two pieces of a layout write one element")                 \
	X(LIMIT_PARTS_BYTES, "of a layout or manifest on its way")                                 \
	X(LIMIT_ALL_PARTS_BYTES, "of all layouts that are being registered at a broker")           \
	X(LIMIT_REPORT_GROUPS, "groups of an update, and of a report")                             \
	X(LIMIT_HASHES, "of buckets, in a message")                                                \
	X(LIMIT_SLOT_TYPES, "runs of tensors with one dtype in slots")                             \
	X(LIMIT_EVENTS, "updates that a broker remembers")                                         \
	X(LIMIT_READ_BYTES, "of a worker's memory, read at once")                                  \
	X(LIMIT_EXPLAINED, "rows of an answer to explain")                                         \
	X(LIMIT_RINGS, "ways between GPUs without peer access")                                    \
	X(LIMIT_SLOT_BYTES_MIN, "of a slot, at least")                                             \
	X(LIMIT_SLOT_BYTES_MAX, "of a slot, at most")                                              \
	X(LIMIT_SLOTS_MIN, "slots of a broker, at least")                                          \
	X(LIMIT_SLOTS_MAX, "slots of a broker, at most")                                           \
	X(LIMIT_MATCH_STEPS, "to match boxes and pieces, for a plan")                              \
	X(LIMIT_COPIES, "of a compiled plan")                                                      \
	X(LIMIT_SHARDS, "files of a checkpoint")                                                   \
	X(LIMIT_HELLO_MS, "from connecting to hello")                                              \
	X(LIMIT_REGISTER_MS, "from register to its seal")                                          \
	X(LIMIT_CALL_MS, "a call of an agent or trainer, if it says nothing else")                 \
	X(LIMIT_UPDATE_MS, "an update, if it says nothing else")                                   \
	X(LIMIT_UPDATE_MAX_MS, "an update, whatever it says")                                      \
	X(LIMIT_PULL_MS, "at least, for workers to copy out of their twins")                       \
	X(LIMIT_SETTLE_MS, "a commit that was learnt after its lead was lost")                     \
	X(LIMIT_CATCH_MS, "the gate of a group that catches up, once a resume waits")              \
	X(LIMIT_YIELD_MS, "its copies, once an update waits that would leave it DIRTY")            \
	X(LIMIT_READ_MS, "a copy of what an observer reads")                                       \
	X(LIMIT_ACCEPT_PAUSE_MS, "without accepting, when descriptors are short")                  \
	X(LIMIT_RETRY_MIN_MS, "between two tries to join, at first")                               \
	X(LIMIT_RETRY_MAX_MS, "between two tries to join, at most")                                \
	X(LIMIT_LOOKUP_MS, "joining in vain, then the name is looked up again")                    \
	X(LIMIT_PORT_FREE_MS, "for the lead's port to be free")                                    \
	X(LIMIT_GATHER_MS, "for more changes of membership, before an epoch is made")              \
	X(LIMIT_DRAIN_MS, "for kernels to end, behind the abort of a communicator")                \
	X(LIMIT_ALIVE_MS, "between two words of a broker to another")                              \
	X(LIMIT_SILENT_MS, "without one: the broker is given up")                                  \
	X(LIMIT_MISSED_MS, "that scope=all waits for a broker that was lost")                      \
	X(LIMIT_AGAIN_MS, "that it waits for one that starts itself anew")                         \
	X(LIMIT_SUCCEED_MS, "to join in the place of a broker that may have ended")                \
	X(LIMIT_EPOCH_MS, "to join, and to make a communicator")                                   \
	X(LIMIT_BLAME_MIN_MS, "before a broker that spoilt that may join again, at least")         \
	X(LIMIT_BLAME_MAX_MS, "the same, at most")                                                 \
	X(LIMIT_ABORT_MS, "for the abort of a communicator, and for copies to end")                \
	X(LIMIT_JOB_MS, "a job of the mover that has no deadline of its own")                      \
	X(LIMIT_PLAN_MS, "the plans of an update, at least, whatever its deadline")                \
	X(LIMIT_HUNG_MS, "behind the deadline of one that has: then the broker ends")              \
	X(LIMIT_STOP_MS, "a broker's end in order: then it ends without")

static const struct {
	const char *name;
	uint64_t value;
	const char *text;
} limits[] = {
#define LIMIT_ROW(name, text) {#name, name, text},
	LIMITS(LIMIT_ROW)
#undef LIMIT_ROW
};

void status_limits(bool json)
{
	json_t *object = json ? json_object() : NULL;

	for (size_t i = 0; i < sizeof(limits) / sizeof(limits[0]); i++) {
		if (json) {
			json_put(object, limits[i].name, limits[i].value);
		} else {
			printf("%-26s %10" PRIu64 "  %s\n", limits[i].name, limits[i].value,
				limits[i].text);
		}
	}
	if (json) {
		json_line(object);
	}
}
