/* Other brokers: those that join a lead, and the lead of one that joins. */
#include "base/util.h"
#include "fuzz/play.h"
#include "plan/subset.h"
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#define LEAD_ID 4711u

static struct end *dial(enum end_kind kind)
{
	struct end *end;
	int pair[2];

	CLAIM(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair) == 0);
	end = play_end(kind, pair[1]);
	sockets_accept_next(play.server->tcp_listener, pair[0]);
	return end;
}

void member_connect(bool automatic)
{
	struct end *end = dial(END_MEMBER);
	struct message message;

	if (!end) {
		return;
	}
	end->automatic = automatic;
	message_init(&message, MSG_JOIN, 1);
	message.u.join.protocol = PROTOCOL_VERSION;
	message.u.join.broker_id = 100 + (uint64_t)(end - play.ends);
	message.u.join.slot_bytes = LIMIT_SLOT_BYTES_MIN;
	string_copy(message.u.join.backend, sizeof(message.u.join.backend), "host");
	string_copy(message.u.join.name, sizeof(message.u.join.name), "member");
	end_send(end, &message);
}

static void member_epoch(struct end *end)
{
	struct end *data = dial(END_DATA);
	struct message message;

	if (data) {
		message_init(&message, MSG_DATA, 0);
		message.u.data.epoch = end->epoch.epoch;
		message.u.data.rank = end->epoch.rank;
		memcpy(message.u.data.token, end->epoch.token, TOKEN_BYTES);
		end_send(data, &message);
	}
	end->ready_in = 2;
}

void member_turn(struct end *end)
{
	struct message message;

	if (end->ready_in && --end->ready_in == 0) {
		message_init(&message, MSG_EPOCH_READY, 0);
		message.u.epoch_ready.epoch = end->epoch.epoch;
		end_send(end, &message);
	}
}

static void member_step(struct end *end, enum message_type type, uint64_t epoch, uint64_t update)
{
	struct message message;

	message_init(&message, type, 0);
	message.u.groups.epoch = epoch;
	message.u.groups.update = update;
	end_send(end, &message);
}

void member_heard(struct end *end, const struct message *message)
{
	const struct msg_decision *decision = &message->u.decision;

	if (message->type == MSG_EPOCH) {
		end->epoch = message->u.epoch;
		end->epoch.brokers = NULL; /* the message's */
	}
	if (!end->automatic) {
		return;
	}
	end->cut = 0;
	switch (message->type) {
	case MSG_EPOCH:
		member_epoch(end);
		break;
	case MSG_BEGIN:
		member_step(end, MSG_ACCEPT, message->u.begin.epoch, message->u.begin.update);
		break;
	case MSG_GO:
		member_step(end, decision->part ? MSG_MOVED : MSG_PREPARED, decision->epoch,
			decision->update);
		break;
	case MSG_COMMIT:
	case MSG_ABORT:
		member_step(end, MSG_APPLIED, decision->epoch, decision->update);
		break;
	default:
		break;
	}
}

static void answer(struct end *end, enum message_type type, uint64_t serial)
{
	struct message message;

	message_init(&message, type, serial);
	end_send(end, &message);
}

void lead_epoch_named(struct end *end, uint32_t ranks)
{
	uint64_t *brokers = calloc(ranks + 2, sizeof(*brokers));
	struct message message;

	CLAIM(brokers);

	message_init(&message, MSG_EPOCH, 0);
	message.u.epoch.epoch = ++end->epoch.epoch;
	message.u.epoch.rank = 1;
	message.u.epoch.ranks = ranks;
	message.u.epoch.carrier = CARRIER_TCP;
	message.u.epoch.slot_bytes = LIMIT_SLOT_BYTES_MIN;
	brokers[0] = LEAD_ID;
	brokers[1] = play.server->broker_id;
	message.u.epoch.brokers = brokers;
	message.u.epoch.nbrokers = ranks;
	end_send(end, &message);
}

/* The only rank's share is all of the manifest. */
static void lead_declared(struct end *end, const struct message *declare)
{
	uint64_t *roots = malloc(sizeof(*roots));
	struct message message;

	CLAIM(roots);
	*roots = play.server->broker_id;
	if (end->blob.len) {
		blob_tell(end, &end->blob, PART_MANIFEST);
	}
	message_init(&message, MSG_MANIFEST, 0);
	memcpy(message.u.manifest.model, declare->u.declare.model, LIMIT_MODEL_BYTES);
	message.u.manifest.parts = end->blob.parts;
	message.u.manifest.bytes = end->blob.len;
	message.u.manifest.hash = blob_hash(&end->blob);
	message.u.manifest.roots = roots;
	message.u.manifest.nroots = 1;
	end_send(end, &message);
	answer(end, MSG_DECLARED, declare->serial);
	blob_finish(&end->blob);
}

static void lead_begin(struct end *end, const struct msg_rank_done *done)
{
	const struct model *model = model_find(play.server, done->model, false);
	uint32_t *roots = calloc(1, sizeof(*roots));
	struct message message;

	CLAIM(roots);
	message_init(&message, MSG_BEGIN, 0);
	*roots = 1;
	message.u.begin.epoch = end->epoch.epoch;
	message.u.begin.update = 1000 + done->version;
	memcpy(message.u.begin.model, done->model, LIMIT_MODEL_BYTES);
	message.u.begin.version = done->version;
	message.u.begin.manifest_hash = model && model->publication ? model->publication->hash : 0;
	message.u.begin.slot_bytes = LIMIT_SLOT_BYTES_MIN;
	message.u.begin.timeout_ms = 20000;
	message.u.begin.flags = end->in_parts ? PUBLISH_PARTS : 0;
	message.u.begin.roots = roots;
	message.u.begin.nroots = 1;
	end_send(end, &message);
}

static void lead_ends(struct end *end, enum strew_outcome outcome)
{
	struct message report;

	message_init(&report, MSG_REPORT, end->publish_serial);
	report.u.report.version = end->version;
	report.u.report.outcome = outcome;
	end_send(end, &report);
}

bool lead_fill_chosen(struct message *message, const char *name, uint32_t subset,
	const uint8_t *tensors, size_t n)
{
	const struct model *model = model_find(play.server, name, false);
	struct manifest manifest;
	struct blob blob;
	uint32_t *boxes;
	struct error err;

	if (!model || !model->publication ||
		n != bits_bytes(model->publication->manifest.ntensors) ||
		manifest_choose(&model->publication->manifest, tensors, &manifest, &boxes, &err)) {
		return false;
	}
	free(boxes);
	CLAIM(blob_from_manifest(&manifest, NULL, &blob, &err) == 0);
	manifest_finish(&manifest);
	string_copy(message->u.chosen.model, LIMIT_MODEL_BYTES, name);
	message->u.chosen.manifest_hash = model->publication->hash;
	message->u.chosen.subset = subset;
	message->u.chosen.hash = blob_hash(&blob);
	message->u.chosen.tensors = tensors;
	message->u.chosen.ntensors = n;
	blob_finish(&blob);
	return true;
}

/* The only rank names it, and has it so. */
static void lead_chooses(struct end *end, const struct message *message)
{
	const struct msg_rank_subset *said = &message->u.rank_subset;
	struct message chosen;

	message_init(&chosen, MSG_CHOSEN, 0);
	if (lead_fill_chosen(&chosen, said->model, said->subset, said->tensors, said->ntensors)) {
		end_send(end, &chosen);
		answer(end, MSG_OK, message->serial);
	}
}

/* The next part, or that all is there; to all replicas, of which those that are out stay so. */
static void lead_goes_on(struct end *end)
{
	uint32_t *replicas = calloc(2, sizeof(*replicas));
	struct message message;

	CLAIM(replicas);
	replicas[1] = 1;
	message_init(&message, MSG_GO, 0);
	message.u.decision.epoch = end->epoch_of_update;
	message.u.decision.update = end->update;
	message.u.decision.replicas = replicas;
	message.u.decision.nreplicas = 2;
	message.u.decision.part = end->part;
	end_send(end, &message);
}

/* Those replicas go on of which no group has said otherwise. */
static void lead_decides(struct end *end, enum message_type type, const struct msg_groups *said)
{
	uint32_t *replicas = calloc(said->ngroups + 1, sizeof(*replicas));
	uint32_t *met = calloc(said->ngroups + 1, sizeof(*met));
	struct message message;

	CLAIM(replicas && met);
	message_init(&message, said->code ? MSG_ABORT : type, 0);
	message.u.decision.epoch = end->epoch_of_update = said->epoch;
	message.u.decision.update = end->update = said->update;
	message.u.decision.part = type == MSG_GO ? end->part : 0;
	message.u.decision.replicas = replicas;
	message.u.decision.met = met;
	for (size_t i = 0; i < said->ngroups; i++) {
		met[message.u.decision.nmet++] = said->groups[i].replica;
		if (said->groups[i].outcome == STREW_OUTCOME_NONE) {
			replicas[message.u.decision.nreplicas++] = said->groups[i].replica;
		}
	}
	end_send(end, &message);
}

static void lead_aborts(struct end *end)
{
	struct message message;

	if (!end->update) {
		lead_ends(end, STREW_OUTCOME_ABORTED);
		return;
	}
	message_init(&message, MSG_ABORT, 0);
	message.u.decision.epoch = end->epoch_of_update;
	message.u.decision.update = end->update;
	end_send(end, &message);
}

static void lead_update(struct end *end, const struct message *message)
{
	const struct msg_rank_publish *publish = &message->u.rank_publish;

	switch (message->type) {
	case MSG_RANK_SUBSET:
		lead_chooses(end, message);
		break;
	case MSG_RANK_PUBLISH:
		end->publish_serial = message->serial;
		end->version = publish->version;
		end->in_parts = publish->flags & PUBLISH_PARTS;
		end->part = end->in_parts ? publish->subset : 0;
		end->update = 0;
		answer(end, MSG_OK, message->serial);
		break;
	case MSG_RANK_PUT:
		end->part = message->u.rank_put.subset;
		answer(end, MSG_OK, message->serial);
		break;
	case MSG_RANK_CANCEL:
		answer(end, MSG_OK, message->serial);
		lead_aborts(end);
		break;
	case MSG_RANK_DONE:
		if (end->update) {
			lead_goes_on(end);
		} else {
			lead_begin(end, &message->u.rank_done);
		}
		break;
	case MSG_ACCEPT:
		lead_decides(end, MSG_GO, &message->u.groups);
		break;
	case MSG_PREPARED:
		lead_decides(end, MSG_COMMIT, &message->u.groups);
		break;
	case MSG_APPLIED:
		lead_ends(end, STREW_OUTCOME_COMMITTED);
		break;
	default:
		break;
	}
}

void lead_heard(struct end *end, const struct message *message)
{
	struct message joined;
	struct error err;

	if (!end->automatic) {
		return;
	}
	end->cut = 0;
	switch (message->type) {
	case MSG_JOIN:
		message_init(&joined, MSG_JOINED, message->serial);
		joined.u.joined.broker_id = LEAD_ID;
		end_send(end, &joined);
		lead_epoch_named(end, 2);
		break;
	case MSG_PART:
		(void)blob_append(&end->blob, &message->u.part, &err);
		break;
	case MSG_DECLARE:
		lead_declared(end, message);
		break;
	case MSG_UNDECLARE:
		answer(end, MSG_OK, message->serial);
		break;
	default:
		lead_update(end, message);
	}
}
