/* Processes at the broker's Unix socket. */
#include "base/util.h"
#include "fuzz/play.h"
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

struct end *client_connect(void)
{
	struct end *end;
	int pair[2];

	CLAIM(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair) == 0);
	end = play_end(END_CLIENT, pair[1]);
	sockets_accept_next(play.server->listener, pair[0]);
	return end;
}

void client_hello(struct end *end, enum role role)
{
	struct message message;
	struct error err;

	if (!end->page.words) {
		CLAIM(page_create(&end->page, &err) == 0);
	}
	message_init(&message, MSG_HELLO, ++end->serial);
	message.u.hello.protocol = PROTOCOL_VERSION;
	message.u.hello.role = role;
	message.u.hello.pid = 4123;
	message.u.hello.pid_namespace = 42;
	message.fds[0] = fcntl(end->page.fd, F_DUPFD_CLOEXEC, 0);
	message.nfds = 1;
	end_send(end, &message);
}

static void allocation(struct end *end, unsigned kind)
{
	uint64_t *chunk_bytes = malloc(sizeof(*chunk_bytes));
	struct message message;

	CLAIM(chunk_bytes);
	*chunk_bytes = PLAY_MEMORY;
	message_init(&message, MSG_ALLOCATION, end->serial);
	message.u.allocation.kind = 1;
	message.u.allocation.base = 0x10000;
	message.u.allocation.size = PLAY_MEMORY;
	message.u.allocation.chunks = 1;
	message.u.allocation.chunk_bytes = chunk_bytes;
	message.u.allocation.nchunk_bytes = 1;
	message.fds[0] = play_fd(kind);
	message.nfds = 1;
	end_send(end, &message);
}

void blob_tell(struct end *end, const struct blob *blob, enum part_of of)
{
	struct message message;

	message_init(&message, MSG_PART, end->serial);
	message.u.part.of = of;
	message.u.part.bytes = blob->bytes;
	message.u.part.nbytes = blob->len;
	end_send(end, &message);
}

static void seal(struct end *end, const struct blob *blob)
{
	struct message message;

	message_init(&message, MSG_SEAL, end->serial);
	message.u.seal.parts = 1;
	message.u.seal.bytes = blob->len;
	message.u.seal.hash = blob_hash(blob);
	end_send(end, &message);
}

void client_register(struct end *end, struct msg_register reg, const struct blob *layout)
{
	struct message message;

	message_init(&message, MSG_REGISTER, ++end->serial);
	reg.allocations = 1;
	message.u.reg = reg;
	end_send(end, &message);
	allocation(end, FD_WORKER);
	blob_tell(end, layout, PART_LAYOUT);
	seal(end, layout);
}

void client_declare(struct end *end, struct msg_trainer trainer, const struct blob *declared)
{
	struct message message;

	message_init(&message, MSG_TRAINER, ++end->serial);
	trainer.allocations = 1;
	message.u.trainer = trainer;
	end_send(end, &message);
	allocation(end, FD_TRAINER);
	blob_tell(end, declared, PART_DECLARATION);
	seal(end, declared);
}

static void publish(struct end *end, uint64_t version, uint32_t flags, uint32_t subset)
{
	struct message message;

	if (end->page.words) {
		page_store(&end->page, WORD_PUBLISH, ++end->word);
	}
	message_init(&message, MSG_PUBLISH, ++end->serial);
	message.u.publish.version = end->version = version;
	message.u.publish.word = end->word;
	message.u.publish.timeout_ms = 20000;
	message.u.publish.flags = flags;
	message.u.publish.subset = subset;
	end_send(end, &message);
}

void client_publish(struct end *end, uint64_t version)
{
	publish(end, version, 0, 0);
}

void client_subset(struct end *end, uint32_t subset, uint8_t bits)
{
	struct message message;

	message_init(&message, MSG_SUBSET, ++end->serial);
	message.u.subset.subset = subset;
	message.u.subset.tensors = &bits;
	message.u.subset.ntensors = 1;
	end_send(end, &message);
}

void client_open_parts(struct end *end, uint64_t version, uint32_t subset)
{
	publish(end, version, PUBLISH_PARTS, subset);
}

void client_put(struct end *end, uint32_t subset)
{
	struct message message;

	if (end->page.words) {
		page_store(&end->page, WORD_PUBLISH, ++end->word);
	}
	message_init(&message, MSG_PUT, ++end->serial);
	message.u.put.version = end->version;
	message.u.put.word = end->word;
	message.u.put.subset = subset;
	end_send(end, &message);
}

void client_cancel(struct end *end)
{
	struct message message;

	message_init(&message, MSG_CANCEL, ++end->serial);
	message.u.cancel.version = end->version;
	end_send(end, &message);
}

static void check_answer(struct end *end, uint64_t update)
{
	struct message message;

	message_init(&message, MSG_CHECKED, 0);
	message.u.checked.update = update;
	end_send(end, &message);
}

static void hold_answer(struct end *end)
{
	struct message message;

	page_store(&end->page, WORD_READY, ++end->word);
	message_init(&message, MSG_READY, 0);
	message.u.ready.word = end->word;
	end_send(end, &message);
}

void client_heard(struct end *end, const struct message *message)
{
	struct message answer;

	if (message->type == MSG_REPORT) {
		end->outcome = message->u.report.outcome;
	}
	if (!end->automatic || !end->page.words) {
		return;
	}
	/* What it says now is whole: the next piece is the input's. */
	end->cut = 0;
	if (message->type == MSG_CHECK) {
		check_answer(end, message->u.check.update);
	} else if (message->type == MSG_HOLD) {
		hold_answer(end);
	} else if (message->type == MSG_DONE) {
		message_init(&answer, MSG_RESUME, ++end->serial);
		end_send(end, &answer);
	}
}
