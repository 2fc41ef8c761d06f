/* The worker's public functions of daily life: events, the gate, the state. */
#include "agent/public.h"
#include "agent/worker.h"
#include "base/util.h"
#include <errno.h>

#define LOOK_MS 20 /* between looks at the page: a group that stands is told there alone */

int strew_agent_fd(struct strew_agent *agent)
{
	struct error err = {0};
	int rc;

	if (!agent) {
		return public_return(public_missing(&err), &err);
	}
	rc = agent_session_enter(&agent->session, &err);
	if (rc == 0) {
		rc = agent_session_fd(&agent->session);
		agent_session_leave(&agent->session);
	}
	return public_return(rc, &err);
}

static int agent_dispatch(
	struct strew_agent *agent, struct strew_event *ret_event, struct error *err)
{
	if (!agent->session.threaded) {
		/* That nothing came is no failure, and a lost connection is looked at below. */
		(void)agent_session_step(&agent->session, deadline_in_ms(0), err);
		error_clear(err);
	}
	if (worker_next_event(agent, ret_event)) {
		return 1;
	}
	return agent_session_lost(&agent->session, err);
}

int strew_agent_dispatch(struct strew_agent *agent, struct strew_event *ret_event)
{
	struct error err = {0};
	int rc;

	if (!agent || !ret_event) {
		return public_return(public_missing(&err), &err);
	}
	rc = agent_session_enter(&agent->session, &err);
	if (rc == 0) {
		rc = agent_dispatch(agent, ret_event, &err);
		agent_session_leave(&agent->session);
	}
	return public_return(rc, &err);
}

static int agent_wait(struct strew_agent *agent, uint64_t deadline, struct strew_event *ret_event,
	struct error *err)
{
	while (!worker_next_event(agent, ret_event)) {
		int rc = agent_session_step(&agent->session, deadline, err);

		if (rc == -ETIMEDOUT) {
			return error_set(err, rc, "no event came in time");
		}
		if (rc) {
			return rc;
		}
	}
	return 1;
}

int strew_agent_wait(struct strew_agent *agent, int timeout_ms, struct strew_event *ret_event)
{
	struct error err = {0};
	int rc;

	if (!agent || !ret_event) {
		return public_return(public_missing(&err), &err);
	}
	rc = agent_session_enter(&agent->session, &err);
	if (rc == 0) {
		rc = agent_wait(agent, deadline_in_ms(timeout_ms), ret_event, &err);
		agent_session_leave(&agent->session);
	}
	return public_return(rc, &err);
}

/* Ready and resume are the held gate's, of a registered worker. */
static int check_gate(const struct strew_agent *agent, const char *call, struct error *err)
{
	if (agent->reg.gate == STREW_GATE_LIVE) {
		return error_set(err, -EINVAL,
			"%s belongs to a held gate, and this worker registered with a live one",
			call);
	}
	if (agent->stage != WORKER_REGISTERED) {
		return error_set(err, -EINVAL, "%s: this worker is not registered", call);
	}
	return 0;
}

static int agent_ready(struct strew_agent *agent, void *stream, struct error *err)
{
	struct message message;
	int rc = check_gate(agent, "ready", err);

	if (rc == 0) {
		rc = agent_session_lost(&agent->session, err);
	}
	if (rc) {
		return rc;
	}
	if (agent->resume.serial) {
		return error_set(
			err, -EBUSY, "ready: a resume waits for its answer; call it again");
	}
	/* First the word is queued on the stream: what is said to be coming must be on its way. */
	rc = export_page_write(
		agent->words, agent->set, stream, WORD_READY, agent->ready_count + 1, err);
	if (rc) {
		return rc;
	}
	agent->ready_count++;
	message_init(&message, MSG_READY, 0);
	message.u.ready.word = agent->ready_count;
	rc = agent_session_send(&agent->session, &message, err);
	if (rc == 0) {
		agent->ready = true;
	}
	return rc;
}

int strew_agent_ready(struct strew_agent *agent, void *stream)
{
	struct error err = {0};
	int rc;

	if (!agent) {
		return public_return(public_missing(&err), &err);
	}
	rc = agent_session_enter(&agent->session, &err);
	if (rc == 0) {
		rc = agent_ready(agent, stream, &err);
		agent_session_leave(&agent->session);
	}
	return public_return(rc, &err);
}

static int send_resume(struct strew_agent *agent, struct error *err)
{
	struct message message;
	int rc;

	agent_request_begin(&agent->session, &agent->resume);
	message_init(&message, MSG_RESUME, agent->resume.serial);
	rc = agent_session_send(&agent->session, &message, err);
	if (rc) {
		agent_request_clear(&agent->session, &agent->resume);
	}
	return rc;
}

static int agent_resume(struct strew_agent *agent, uint64_t deadline, struct error *err)
{
	int rc = check_gate(agent, "resume", err);

	if (rc) {
		return rc;
	}
	if (!agent->resume.serial) {
		rc = send_resume(agent, err);
		if (rc) {
			return rc;
		}
	}
	rc = agent_request_wait(&agent->session, &agent->resume, MSG_OK, deadline, err);
	if (rc == 0) {
		agent->ready = false;
	}
	/* After a timeout the request stays under way, and the next call waits for its answer. */
	if (agent->resume.answered || agent_session_lost(&agent->session, NULL)) {
		agent_request_clear(&agent->session, &agent->resume);
	}
	return rc;
}

int strew_agent_resume(struct strew_agent *agent, int timeout_ms)
{
	struct error err = {0};
	int rc;

	if (!agent) {
		return public_return(public_missing(&err), &err);
	}
	rc = agent_session_enter(&agent->session, &err);
	if (rc == 0) {
		rc = agent_resume(agent, deadline_in_ms(timeout_ms), &err);
		agent_session_leave(&agent->session);
	}
	return public_return(rc, &err);
}

int strew_agent_peek(
	const struct strew_agent *agent, enum strew_group_state *ret_state, uint64_t *ret_version)
{
	uint64_t state, version;

	if (!agent) {
		return -EINVAL;
	}
	if (page_read_group(&agent->session.broker_page, &state, &version) || !state) {
		return -EAGAIN;
	}
	if (ret_state) {
		*ret_state = (enum strew_group_state)state;
	}
	if (ret_version) {
		*ret_version = version;
	}
	return 0;
}

static int agent_wait_current(struct strew_agent *agent, uint64_t deadline, struct error *err)
{
	enum strew_group_state state;
	uint64_t version;

	if (agent->stage != WORKER_REGISTERED) {
		return error_set(err, -EINVAL, "wait_current: this worker is not registered");
	}
	while ((state = worker_state(agent, &version)) != STREW_GROUP_CURRENT) {
		uint64_t look = deadline_in_ms(LOOK_MS);
		int rc = agent_session_step(&agent->session, MIN(look, deadline), err);

		if (rc && rc != -ETIMEDOUT) {
			return rc;
		}
		if (rc && deadline_passed(deadline)) {
			return error_set(
				err, -ETIMEDOUT, "the group is %s", strew_group_state_name(state));
		}
	}
	return 0;
}

int strew_agent_wait_current(struct strew_agent *agent, int timeout_ms)
{
	struct error err = {0};
	int rc;

	if (!agent) {
		return public_return(public_missing(&err), &err);
	}
	rc = agent_session_enter(&agent->session, &err);
	if (rc == 0) {
		rc = agent_wait_current(agent, deadline_in_ms(timeout_ms), &err);
		agent_session_leave(&agent->session);
	}
	return public_return(rc, &err);
}

int strew_agent_state(
	struct strew_agent *agent, enum strew_group_state *ret_state, uint64_t *ret_version)
{
	enum strew_group_state state;
	struct error err = {0};
	uint64_t version;
	int rc;

	if (!agent) {
		return public_return(public_missing(&err), &err);
	}
	rc = agent_session_enter(&agent->session, &err);
	if (rc == 0) {
		state = worker_state(agent, &version);
		if (ret_state) {
			*ret_state = state;
		}
		if (ret_version) {
			*ret_version = version;
		}
		agent_session_leave(&agent->session);
	}
	return public_return(rc, &err);
}
