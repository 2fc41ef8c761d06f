/*
 * Updates in parts, as a trainer sees them. The first put is a publish that says so; the later
 * ones, and the end, are requests of their own. An answer that refuses one of these ends that put
 * alone: the update is under way until its report has come.
 */
#include "agent/public.h"
#include "agent/trainer.h"
#include "base/util.h"
#include <errno.h>
#include <string.h>

static int open_parts(struct strew_trainer *trainer, uint64_t version, unsigned flags,
	int timeout_ms, struct error *err)
{
	int rc = trainer_check_publish(trainer, 0, version, flags, timeout_ms, err);

	if (rc) {
		return rc;
	}
	trainer->parts = (struct trainer_parts){
		.open = true, .version = version, .flags = flags, .timeout_ms = timeout_ms};
	return 0;
}

/* What the broker is told of a part that is not the first; the memory is lent if there is one. */
static int send_put(struct strew_trainer *trainer, uint32_t subset, void *stream, struct error *err)
{
	struct message message;
	int rc = subset ? trainer_mark(trainer, stream, err) : 0;

	if (rc) {
		return rc;
	}
	agent_request_begin(&trainer->session, &trainer->publish);
	message_init(&message, MSG_PUT, trainer->publish.serial);
	message.u.put.version = trainer->parts.version;
	message.u.put.word = trainer->word_count;
	message.u.put.subset = subset;
	rc = agent_session_send(&trainer->session, &message, err);
	if (rc) {
		agent_request_clear(&trainer->session, &trainer->publish);
		return rc;
	}
	error_clear(&trainer->parts.refused);
	trainer->lent = subset != 0;
	trainer->released = false;
	trainer_signal(trainer);
	return 0;
}

static int check_put(struct strew_trainer *trainer, struct error *err)
{
	bool begun = trainer->publishing;

	if (!trainer->parts.open) {
		return error_set(err, -EINVAL, "put: no update in parts is open");
	}
	/* Only the waits read; what has come meanwhile counts. */
	(void)agent_session_step(&trainer->session, deadline_in_ms(0), err);
	trainer_look(trainer);
	if ((begun && !trainer->publishing) || trainer->reported) {
		return error_set(err, -ECANCELED, "put: the update has ended; its report says how");
	}
	if (trainer->lent || trainer->publish.serial) {
		return error_set(err, -EBUSY, "put: the part before has not been released yet");
	}
	return agent_session_lost(&trainer->session, err);
}

static int put(struct strew_trainer *trainer, uint32_t subset, void *stream, struct error *err)
{
	const struct trainer_parts *parts = &trainer->parts;
	int rc;

	if (!subset || subset > trainer->subsets_told) {
		return error_set(err, -EINVAL, "put: subset %u was not named", subset);
	}
	rc = check_put(trainer, err);
	if (rc) {
		return rc;
	}
	if (parts->taken) {
		return send_put(trainer, subset, stream, err);
	}
	return trainer_send_publish(trainer, subset, 0, parts->version, stream,
		parts->flags | PUBLISH_PARTS, parts->timeout_ms, err);
}

/* To the broker, closing is a put of no subset, and sentences begin so; a user has called close. */
static int as_close(int rc, struct error *err)
{
	struct error said = *err;

	if (rc < 0 && strncmp(said.text, "put: ", 5) == 0) {
		error_set(err, said.code, "close: %s", said.text + 5);
	}
	return rc;
}

static int close_parts(struct strew_trainer *trainer, struct error *err)
{
	uint64_t deadline = deadline_in_ms(trainer->session.timeout_ms);
	int rc = check_put(trainer, err);

	if (rc == 0 && !trainer->parts.taken) {
		memset(&trainer->parts, 0, sizeof(trainer->parts));
		return error_set(err, -ENOENT, "close: nothing was put; the update is forgotten");
	}
	if (rc == 0) {
		rc = send_put(trainer, 0, NULL, err);
	}
	while (rc == 0 && trainer->publish.serial) {
		rc = agent_session_step(&trainer->session, deadline, err);
		trainer_look(trainer);
	}
	if (rc == 0 && trainer->parts.refused.code) {
		rc = error_set(err, trainer->parts.refused.code, "%s", trainer->parts.refused.text);
		error_clear(&trainer->parts.refused);
		trainer_signal(trainer);
	}
	return as_close(rc, err);
}

/* The answer to the first put says whether there is an update to give up. */
static int settle_first(struct strew_trainer *trainer, uint64_t deadline, struct error *err)
{
	int rc = 0;

	while (rc == 0 && !trainer->parts.taken && trainer->publish.serial) {
		rc = agent_session_step(&trainer->session, deadline, err);
		trainer_look(trainer);
	}
	if (rc == 0 && (!trainer->parts.open || trainer->reported)) {
		rc = error_set(err, -ECANCELED, "cancel: the update has ended");
	}
	return rc;
}

static int say_cancel(
	struct strew_trainer *trainer, const char *why, uint64_t deadline, struct error *err)
{
	struct agent_request request = {0};
	struct message message;
	int rc;

	agent_request_begin(&trainer->session, &request);
	message_init(&message, MSG_CANCEL, request.serial);
	message.u.cancel.version = trainer->parts.version;
	(void)string_copy(message.u.cancel.text, sizeof(message.u.cancel.text), why ? why : "");
	rc = agent_session_send(&trainer->session, &message, err);
	if (rc == 0) {
		rc = agent_request_wait(&trainer->session, &request, MSG_OK, deadline, err);
	}
	agent_request_clear(&trainer->session, &request);
	return rc;
}

static int cancel_parts(struct strew_trainer *trainer, const char *why, struct error *err)
{
	uint64_t deadline = deadline_in_ms(trainer->session.timeout_ms);
	int rc;

	if (!trainer->parts.open) {
		return error_set(err, -EINVAL, "cancel: no update in parts is open");
	}
	rc = settle_first(trainer, deadline, err);
	rc = rc ? rc : say_cancel(trainer, why, deadline, err);
	if (trainer->parts.open && !trainer->publishing) {
		/* Whether other ranks had put or not. */
		memset(&trainer->parts, 0, sizeof(trainer->parts));
		rc = agent_session_lost(&trainer->session, err);
		return rc ? rc
			  : error_set(err, -ENOENT,
				    "cancel: nothing was put; the update is forgotten");
	}
	if (rc == -ESTALE) {
		rc = err->code = -ECANCELED;
	}
	return rc;
}

static int null_trainer(void)
{
	struct error err = {0};

	return public_return(public_missing(&err), &err);
}

int strew_trainer_open_parts(
	struct strew_trainer *trainer, uint64_t version, unsigned flags, int timeout_ms)
{
	struct error err = {0};
	int rc;

	if (!trainer) {
		return null_trainer();
	}
	rc = agent_session_enter(&trainer->session, &err);
	if (rc == 0) {
		rc = open_parts(trainer, version, flags, timeout_ms, &err);
		agent_session_leave(&trainer->session);
	}
	return public_return(rc, &err);
}

int strew_trainer_put(struct strew_trainer *trainer, uint32_t subset, void *stream)
{
	struct error err = {0};
	int rc;

	if (!trainer) {
		return null_trainer();
	}
	rc = agent_session_enter(&trainer->session, &err);
	if (rc == 0) {
		rc = put(trainer, subset, stream, &err);
		agent_session_leave(&trainer->session);
	}
	return public_return(rc, &err);
}

int strew_trainer_close_parts(struct strew_trainer *trainer)
{
	struct error err = {0};
	int rc;

	if (!trainer) {
		return null_trainer();
	}
	rc = agent_session_enter(&trainer->session, &err);
	if (rc == 0) {
		rc = close_parts(trainer, &err);
		agent_session_leave(&trainer->session);
	}
	return public_return(rc, &err);
}

int strew_trainer_cancel_parts(struct strew_trainer *trainer, const char *why)
{
	struct error err = {0};
	int rc;

	if (!trainer) {
		return null_trainer();
	}
	rc = agent_session_enter(&trainer->session, &err);
	if (rc == 0) {
		rc = cancel_parts(trainer, why, &err);
		agent_session_leave(&trainer->session);
	}
	return public_return(rc, &err);
}
