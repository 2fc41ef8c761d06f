/*
 * Updates, as a trainer sees them.
 *
 * publish sends and returns. The broker then says OK (taken) or an error (refused: nothing was
 * read, and both waits end with that error), later RELEASED (the memory is free), and REPORT.
 * RELEASED and REPORT count only behind the OK: other ranks of the model publish too, and an
 * update that ended without us is not ours. All are taken whenever anything is read, and kept until
 * the user asks.
 */
#include "agent/public.h"
#include "agent/trainer.h"
#include "base/clock.h"
#include "base/util.h"
#include <errno.h>
#include <string.h>

/* Readable while a wait would tell the user something new. */
void trainer_signal(struct strew_trainer *trainer)
{
	agent_session_signal(&trainer->session, trainer->released || trainer->reported ||
							trainer->refused.code ||
							trainer->parts.refused.code);
}

/* Turns a refusal that has come into what the waits look at. */
void trainer_look(struct strew_trainer *trainer)
{
	struct error err = {0};

	if (!trainer->publish.answered) {
		return;
	}
	if (agent_request_result(&trainer->publish, MSG_OK, &err) == 0) {
		trainer->parts.taken = trainer->parts.open;
	} else if (trainer->parts.taken) {
		/* That part alone; a stale one has crossed the update's end. */
		trainer->parts.refused = err;
		if (err.code == -ESTALE) {
			trainer->parts.refused.code = -ECANCELED;
		}
		trainer->lent = false;
		trainer_signal(trainer);
	} else {
		trainer->refused = err;
		trainer->publishing = trainer->lent = false;
		memset(&trainer->parts, 0, sizeof(trainer->parts));
		trainer_signal(trainer);
	}
	agent_request_clear(&trainer->session, &trainer->publish);
}

void trainer_forget(struct strew_trainer *trainer)
{
	agent_request_clear(&trainer->session, &trainer->publish);
	if (trainer->reported) {
		message_finish(&trainer->report);
	}
	trainer->publishing = trainer->lent = trainer->released = trainer->reported = false;
	memset(&trainer->parts, 0, sizeof(trainer->parts));
	error_clear(&trainer->refused);
	trainer_signal(trainer);
}

static bool is_ours(struct strew_trainer *trainer, uint64_t version)
{
	trainer_look(trainer);
	return trainer->publishing && (!trainer->publish.serial || trainer->parts.taken) &&
	       version == trainer->version;
}

int trainer_handle(void *data, struct message *message, struct error *err)
{
	struct strew_trainer *trainer = data;
	int rc;

	switch (message->type) {
	case MSG_RELEASED:
		if (is_ours(trainer, message->u.released.version) && trainer->lent) {
			trainer->lent = false;
			trainer->released = true;
			trainer->took_ns = clock_ns() - trainer->published_ns;
		}
		break;
	case MSG_REPORT:
		rc = report_check(&message->u.report, err);
		if (rc) {
			return rc;
		}
		if (is_ours(trainer, message->u.report.version) && !trainer->reported) {
			trainer->report = *message;
			trainer->reported = true;
			/* A put that crossed it was never lent, and no RELEASED comes for it. */
			trainer->released = trainer->released || trainer->lent;
			trainer->lent = false;
			/* Moved: nothing is left for the reader to finish. */
			message_init(message, message->type, 0);
		}
		break;
	default:
		return error_set(err, -EPROTO, "the broker sent %s to a trainer",
			message_name(message->type));
	}
	trainer_signal(trainer);
	return 0;
}

int trainer_check_publish(struct strew_trainer *trainer, uint32_t subset, uint64_t version,
	unsigned flags, int timeout_ms, struct error *err)
{
	if (trainer->stage != TRAINER_SEALED) {
		return error_set(err, -EINVAL, "publish: nothing is sealed");
	}
	if (subset > trainer->subsets_told) {
		return error_set(err, -EINVAL, "publish: subset %u was not named", subset);
	}
	if (version == 0 || version == UINT64_MAX) {
		return error_set(err, -EINVAL, "publish: versions are 1 to 2^64 - 2");
	}
	if (flags & ~(STREW_PUBLISH_PARTIAL | STREW_PUBLISH_SCOPE_ALL | STREW_PUBLISH_HASH)) {
		return error_set(err, -EINVAL, "publish: flags 0x%x are unknown", flags);
	}
	if (timeout_ms < 0 || timeout_ms > LIMIT_UPDATE_MAX_MS) {
		return error_set(err, -EINVAL, "publish: a timeout of %d ms, 0 to %d are allowed",
			timeout_ms, LIMIT_UPDATE_MAX_MS);
	}
	/* Only the waits read; what has come meanwhile counts. */
	(void)agent_session_step(&trainer->session, deadline_in_ms(0), err);
	trainer_look(trainer);
	if (trainer->publishing || trainer->lent) {
		return error_set(err, -EBUSY, "publish: version %llu has not been %s yet",
			(unsigned long long)trainer->version,
			trainer->publishing ? "reported" : "released");
	}
	if (trainer->parts.open) {
		return error_set(err, -EBUSY, "publish: version %llu was opened for parts",
			(unsigned long long)trainer->parts.version);
	}
	return agent_session_lost(&trainer->session, err);
}

/* Behind what the stream has queued by now: copies what cannot be mapped, then reaches the word. */
int trainer_mark(struct strew_trainer *trainer, void *stream, struct error *err)
{
	/* Ahead of the word, on the same stream: who sees the word may read the twins. */
	int rc = export_twins_fill(trainer->set, stream, err);

	if (rc == 0) {
		rc = export_page_write(trainer->words, trainer->set, stream, WORD_PUBLISH,
			trainer->word_count + 1, err);
	}
	trainer->word_count += rc == 0;
	return rc;
}

/*
 * A thread that has slept for milliseconds takes some 0.1 to wake, which is much of a short update.
 * So a wait sleeps for less than the last update took, and is awake when this one may end.
 */
#define EARLY_NS 300000u
#define LATE_NS 500000u

static void expect_release(struct strew_trainer *trainer)
{
	struct agent_session *session = &trainer->session;
	uint64_t took = trainer->took_ns;

	trainer->published_ns = clock_ns();
	session->awake_from_ns = trainer->published_ns + (took > EARLY_NS ? took - EARLY_NS : 0);
	session->awake_until_ns = took ? trainer->published_ns + took + LATE_NS : 0;
}

int trainer_send_publish(struct strew_trainer *trainer, uint32_t subset, uint64_t base,
	uint64_t version, void *stream, unsigned flags, int timeout_ms, struct error *err)
{
	struct message message;
	int rc = trainer_mark(trainer, stream, err);

	if (rc) {
		return rc;
	}
	agent_request_begin(&trainer->session, &trainer->publish);
	message_init(&message, MSG_PUBLISH, trainer->publish.serial);
	message.u.publish.version = version;
	message.u.publish.word = trainer->word_count;
	message.u.publish.flags = flags;
	message.u.publish.subset = subset;
	message.u.publish.base = base;
	message.u.publish.timeout_ms = timeout_ms ? (uint32_t)timeout_ms : LIMIT_UPDATE_MS;
	rc = agent_session_send(&trainer->session, &message, err);
	if (rc) {
		agent_request_clear(&trainer->session, &trainer->publish);
		return rc;
	}
	trainer->version = version;
	expect_release(trainer);
	trainer->publishing = trainer->lent = true;
	trainer->released = false;
	error_clear(&trainer->refused);
	trainer_signal(trainer);
	return 0;
}

static int publish(struct strew_trainer *trainer, uint32_t subset, uint64_t base, uint64_t version,
	void *stream, unsigned flags, int timeout_ms)
{
	struct error err = {0};
	int rc;

	if (!trainer) {
		return public_return(public_missing(&err), &err);
	}
	rc = agent_session_enter(&trainer->session, &err);
	if (rc == 0) {
		rc = trainer_check_publish(trainer, subset, version, flags, timeout_ms, &err);
		if (rc == 0) {
			rc = trainer_send_publish(
				trainer, subset, base, version, stream, flags, timeout_ms, &err);
		}
		agent_session_leave(&trainer->session);
	}
	return public_return(rc, &err);
}

int strew_trainer_publish(struct strew_trainer *trainer, uint64_t version, void *stream,
	unsigned flags, int timeout_ms)
{
	return publish(trainer, 0, 0, version, stream, flags, timeout_ms);
}

int strew_trainer_publish_subset(struct strew_trainer *trainer, uint32_t subset, uint64_t base,
	uint64_t version, void *stream, unsigned flags, int timeout_ms)
{
	struct error err = {0};

	if (!subset) {
		return public_return(
			error_set(&err, -EINVAL, "publish: subsets are numbered from 1 on"), &err);
	}
	return publish(trainer, subset, base, version, stream, flags, timeout_ms);
}

int trainer_wait_released(struct strew_trainer *trainer, uint64_t deadline, struct error *err)
{
	int rc = 0;

	trainer_look(trainer);
	while (trainer->lent && rc == 0) {
		rc = agent_session_step(&trainer->session, deadline, err);
		trainer_look(trainer);
	}
	if (trainer->lent && agent_session_lost(&trainer->session, NULL)) {
		/* Its copies may outlive the connection, but not its process. */
		rc = agent_broker_ended(&trainer->session, deadline, err);
		if (rc == 0) {
			trainer->lent = false;
			rc = agent_session_lost(&trainer->session, err);
		}
	} else if (!trainer->lent) {
		const struct error *refused =
			trainer->refused.code ? &trainer->refused : &trainer->parts.refused;

		rc = refused->code ? error_set(err, refused->code, "%s", refused->text) : 0;
		error_clear(&trainer->parts.refused);
	}
	if (!trainer->lent) {
		trainer->released = false;
		trainer_signal(trainer);
	}
	return rc;
}

int strew_trainer_wait_released(struct strew_trainer *trainer, int timeout_ms)
{
	struct error err = {0};
	int rc;

	if (!trainer) {
		return public_return(public_missing(&err), &err);
	}
	rc = agent_session_enter(&trainer->session, &err);
	if (rc == 0) {
		rc = trainer_wait_released(trainer, deadline_in_ms(timeout_ms), &err);
		agent_session_leave(&trainer->session);
	}
	return public_return(rc, &err);
}

static int trainer_wait_report(struct strew_trainer *trainer, uint64_t deadline,
	struct strew_report *ret_report, struct error *err)
{
	int rc = 0;

	trainer_look(trainer);
	if (!trainer->publishing && !trainer->refused.code) {
		rc = agent_session_lost(&trainer->session, err);
		return rc ? rc : error_set(err, -EINVAL, "no update waits for its report");
	}
	while (trainer->publishing && !trainer->reported && rc == 0) {
		rc = agent_session_step(&trainer->session, deadline, err);
		trainer_look(trainer);
	}
	if (trainer->reported) {
		rc = report_make(&trainer->report.u.report, ret_report, err);
		if (rc == 0) {
			message_finish(&trainer->report);
			trainer->reported = trainer->publishing = false;
			agent_request_clear(&trainer->session, &trainer->publish);
			memset(&trainer->parts, 0, sizeof(trainer->parts));
		}
	} else if (trainer->refused.code) {
		rc = error_set(err, trainer->refused.code, "%s", trainer->refused.text);
		error_clear(&trainer->refused);
	} else if (agent_session_lost(&trainer->session, NULL)) {
		trainer->publishing = false;
		memset(&trainer->parts, 0, sizeof(trainer->parts));
	}
	trainer_signal(trainer);
	return rc;
}

int strew_trainer_wait_report(
	struct strew_trainer *trainer, int timeout_ms, struct strew_report *ret_report)
{
	struct error err = {0};
	int rc;

	if (!trainer || !ret_report) {
		return public_return(public_missing(&err), &err);
	}
	rc = agent_session_enter(&trainer->session, &err);
	if (rc == 0) {
		rc = trainer_wait_report(trainer, deadline_in_ms(timeout_ms), ret_report, &err);
		agent_session_leave(&trainer->session);
	}
	return public_return(rc, &err);
}

int strew_trainer_fd(struct strew_trainer *trainer)
{
	struct error err = {0};
	int rc;

	if (!trainer) {
		return public_return(public_missing(&err), &err);
	}
	rc = agent_session_enter(&trainer->session, &err);
	if (rc == 0) {
		rc = agent_session_fd(&trainer->session);
		agent_session_leave(&trainer->session);
	}
	return public_return(rc, &err);
}
