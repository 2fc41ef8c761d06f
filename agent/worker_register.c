/* A worker's coming and going: the layout and the memory are sent once, and taken back once. */
#include "agent/share.h"
#include "agent/worker.h"
#include "base/util.h"
#include <errno.h>
#include <string.h>

/* Only now is it settled in which allocation each parameter lies. */
static int place_parameters(struct strew_agent *agent, struct error *err)
{
	int rc = export_settle(agent->set, err);

	if (rc) {
		return rc;
	}
	if (export_count(agent->set) == 0) {
		return error_set(err, -EINVAL,
			"nothing to register: no parameter has memory; close the agent and declare "
			"in a new one");
	}
	if (export_count(agent->set) > LIMIT_ALLOCATIONS) {
		return error_set(err, -E2BIG, "%zu allocations pass the limit of %u",
			export_count(agent->set), LIMIT_ALLOCATIONS);
	}
	for (size_t i = 0; i < agent->layout.nparameters; i++) {
		struct parameter *parameter = &agent->layout.parameters[i];

		rc = share_locate(agent->set, "parameter", parameter->name, agent->data[i],
			parameter_span_bytes(parameter), &parameter->allocation,
			&parameter->offset_bytes, err);
		if (rc) {
			return rc;
		}
	}
	return 0;
}

static int send_registration(struct strew_agent *agent, uint64_t deadline, struct error *err)
{
	struct message opening;
	struct blob blob = {0};
	int rc = place_parameters(agent, err);

	if (rc == 0 && !agent->layout.sealed) {
		rc = layout_seal(&agent->layout, agent->reg.partial, err);
	}
	if (rc == 0) {
		rc = blob_from_layout(&agent->layout, &blob, err);
	}
	if (rc) {
		return rc;
	}
	agent->reg.allocations = (uint32_t)export_count(agent->set);
	message_init(&opening, MSG_REGISTER, 0);
	opening.u.reg = agent->reg;
	agent->stage = WORKER_OVER;
	rc = share_send(&agent->session, agent->set, &opening, &blob, PART_LAYOUT, deadline,
		&agent->request, err);
	if (rc == 0) {
		agent->stage = WORKER_REGISTERING;
	}
	blob_finish(&blob);
	return rc;
}

static int take_registered(
	struct strew_agent *agent, const struct msg_registered *registered, struct error *err)
{
	if (registered->state < STREW_GROUP_FORMING || registered->state > STREW_GROUP_LOST) {
		return error_set(err, -EPROTO, "registered in state %u", registered->state);
	}
	/* Unless an update ended between the answer and our looking at it. */
	if (!agent->state) {
		agent->state = (enum strew_group_state)registered->state;
		agent->version = registered->version;
	}
	return 0;
}

int worker_register(struct strew_agent *agent, uint64_t deadline, struct error *err)
{
	bool answered;
	int rc;

	if (agent->stage == WORKER_DECLARING) {
		rc = agent_session_lost(&agent->session, err);
		if (rc == 0) {
			rc = send_registration(agent, deadline, err);
		}
		if (rc) {
			return rc;
		}
	}
	if (agent->stage != WORKER_REGISTERING) {
		return error_set(err, -EINVAL, "an agent registers only once");
	}
	rc = agent_request_wait(&agent->session, &agent->request, MSG_REGISTERED, deadline, err);
	answered = agent->request.answered;
	if (rc == 0) {
		rc = take_registered(agent, &agent->request.answer.u.registered, err);
	}
	if (answered) {
		agent->stage = rc ? WORKER_OVER : WORKER_REGISTERED;
		agent->accepted = agent->accepted || rc == 0;
		agent_request_clear(&agent->session, &agent->request);
	}
	return rc;
}

/* The new broker was told what the memory holds, whoever of the group else registers. */
static void begin_again(struct strew_agent *agent)
{
	agent->state = 0;
	agent->version = 0;
	agent->update = agent->reg.update;
	agent->holds = agent->reg.holds;
	agent->done = agent->pending = agent->ready = agent->lost_told = false;
	agent->nevents = 0;
	agent_session_signal(&agent->session, false);
	agent_request_clear(&agent->session, &agent->request);
	agent_request_clear(&agent->session, &agent->resume);
	agent->stage = WORKER_DECLARING;
}

int worker_reconnect(struct strew_agent *agent, uint64_t deadline, struct error *err)
{
	struct msg_register before = agent->reg;
	uint64_t version;
	enum strew_group_state state = worker_state(agent, &version);
	int rc;

	if (!agent->accepted) {
		return error_set(err, -EINVAL, "reconnect: this worker is not registered");
	}
	worker_left(agent, &agent->reg.state, &agent->reg.version);
	rc = agent_session_reopen(&agent->session, deadline, err);
	if (rc) {
		agent->reg = before;
		return rc;
	}
	worker_found(agent, &before);
	begin_again(agent);
	rc = worker_register(agent, deadline, err);
	if (rc) {
		agent_session_lose(&agent->session, rc, err->text);
		agent->state = agent->reg.state ? (enum strew_group_state)agent->reg.state : state;
		agent->version = agent->reg.version;
		agent->lost_told = true;
	}
	return rc;
}

static int send_withdraw(struct strew_agent *agent, struct error *err)
{
	struct message message;
	int rc;

	/* A resume that waits is not answered any more. */
	agent_request_clear(&agent->session, &agent->resume);
	agent_request_begin(&agent->session, &agent->request);
	message_init(&message, MSG_WITHDRAW, agent->request.serial);
	rc = agent_session_send(&agent->session, &message, err);
	if (rc) {
		agent_request_clear(&agent->session, &agent->request);
		return rc;
	}
	agent->stage = WORKER_WITHDRAWING;
	return 0;
}

/* Returns how the broker answered; its silence is the caller's business. */
static int ask_withdraw(struct strew_agent *agent, uint64_t deadline, struct error *err)
{
	int rc = 0;

	if (agent->stage == WORKER_REGISTERING) {
		rc = worker_register(agent, deadline, err);
	}
	if (agent->stage == WORKER_REGISTERED) {
		rc = send_withdraw(agent, err);
	}
	if (agent->stage == WORKER_OVER) {
		return 0; /* refused in the meantime: nothing was registered */
	}
	if (rc) {
		return rc;
	}
	rc = agent_request_wait(&agent->session, &agent->request, MSG_OK, deadline, err);
	if (agent->request.answered) {
		agent->stage = rc ? WORKER_REGISTERED : WORKER_OVER;
		agent_request_clear(&agent->session, &agent->request);
	}
	return rc;
}

int worker_withdraw(struct strew_agent *agent, uint64_t deadline, struct error *err)
{
	int rc;

	agent->accepted = false;
	if (agent->stage == WORKER_DECLARING || agent->stage == WORKER_OVER) {
		return 0;
	}
	rc = agent_session_lost(&agent->session, err);
	if (rc == 0) {
		rc = ask_withdraw(agent, deadline, err);
	}
	/* The broker cannot answer any more; only its process's end says that it writes no more. */
	if (rc && agent_session_lost(&agent->session, NULL)) {
		rc = agent_broker_ended(&agent->session, deadline, err);
		if (rc == 0) {
			agent->stage = WORKER_OVER;
		}
	}
	return rc;
}
