#include "cli/readback.h"
#include "base/clock.h"
#include "base/util.h"
#include "cli/ask.h"
#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <stdlib.h>
#include <strew/strew.h>
#include <string.h>
#include <sys/mman.h>

#define BUSY_MS 50 /* between two tries while an update is under way */

/* All parts, and the message behind them. */
static int take_parts(
	struct conn *conn, struct blob *blob, struct message *message, struct error *err)
{
	uint64_t deadline = deadline_in_ms(ASK_MS);
	int rc;

	for (;;) {
		rc = conn_receive_wait(conn, deadline, message, err);
		if (rc < 0 || message->type != MSG_PART) {
			break;
		}
		rc = blob_append(blob, &message->u.part, err);
		message_finish(message);
		if (rc < 0) {
			break;
		}
	}
	return rc < 0 ? rc : 0;
}

int readback_next(struct conn *conn, uint64_t after, bool trainers, struct msg_laid_out *ret_said,
	struct blob *ret_blob, struct error *err)
{
	struct message message;
	int rc;

	memset(ret_blob, 0, sizeof(*ret_blob));
	message_init(&message, MSG_LAYOUT, 2);
	message.u.layout.after = after;
	message.u.layout.trainers = trainers;
	rc = conn_send_wait(conn, &message, deadline_in_ms(ASK_MS), err);
	rc = rc < 0 ? rc : take_parts(conn, ret_blob, &message, err);
	if (rc < 0) {
		blob_finish(ret_blob);
		return rc;
	}
	rc = ask_check(&message, MSG_LAID_OUT, err);
	if (rc == 0 && message.u.laid_out.worker) {
		const struct msg_laid_out *said = &message.u.laid_out;

		rc = blob_check(ret_blob, said->parts, said->bytes, said->hash, err);
		if (rc == 0) {
			*ret_said = *said; /* with its list */
			message.u.laid_out.twins = NULL;
			rc = 1;
		}
	}
	if (rc <= 0) {
		blob_finish(ret_blob);
	}
	message_finish(&message);
	return rc;
}

static int copy_out(const struct message *answer, uint64_t bytes, void *to, struct error *err)
{
	void *from;

	if (answer->nfds != 1) {
		return error_set(err, -EPROTO, "the broker sent no memory");
	}
	from = mmap(NULL, bytes, PROT_READ, MAP_SHARED, answer->fds[0], 0);
	if (from == MAP_FAILED) {
		return error_set(err, -errno, "mmap: %s", strerror(errno));
	}
	memcpy(to, from, bytes);
	munmap(from, bytes);
	return 0;
}

/* Nothing else is held by it than what was said at first. */
static int check_version(
	const struct msg_laid_out *said, const struct msg_read_out *now, struct error *err)
{
	if (now->version == said->version && now->state == said->state) {
		return 0;
	}
	return error_set(err, -ESTALE,
		"model %s went from %s at version %" PRIu64 " to %s at version %" PRIu64
		" meanwhile: begin again",
		said->model, strew_group_state_name((enum strew_group_state)said->state),
		said->version, strew_group_state_name((enum strew_group_state)now->state),
		now->version);
}

static int read_stretch(struct conn *conn, const struct msg_laid_out *said,
	const struct msg_read *wanted, void *to, int busy_ms, struct error *err)
{
	uint64_t deadline = deadline_in_ms(busy_ms);
	struct message question, answer;
	int rc;

	for (;;) {
		message_init(&question, MSG_READ, 3);
		question.u.read = *wanted;
		rc = ask(conn, &question, MSG_READ_OUT, &answer, err);
		if (rc != -EBUSY || deadline_passed(deadline)) {
			break;
		}
		poll(NULL, 0, BUSY_MS);
	}
	if (rc) {
		return rc;
	}
	rc = check_version(said, &answer.u.read_out, err);
	rc = rc ? rc : copy_out(&answer, wanted->bytes, to, err);
	message_finish(&answer);
	return rc;
}

int readback_read(struct conn *conn, const struct msg_laid_out *said, uint32_t allocation,
	uint64_t offset, uint64_t bytes, void *to, int busy_ms, struct error *err)
{
	int rc = 0;

	for (uint64_t at = 0; rc == 0 && at < bytes; at += LIMIT_READ_BYTES) {
		struct msg_read wanted = {.worker = said->worker,
			.allocation = allocation,
			.offset = offset + at,
			.bytes = MIN(bytes - at, LIMIT_READ_BYTES)};

		rc = read_stretch(conn, said, &wanted, (unsigned char *)to + at, busy_ms, err);
	}
	return rc;
}
