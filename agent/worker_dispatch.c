/*
 * What a worker hears. Checks are answered on the spot; a hold and the end of an update are
 * the user's to know.
 *
 * The story: CHECK (pending) → perhaps HOLD → the user says ready → DONE (not pending any more) →
 * the user's resume is granted. The library never sees the bytes arrive. So if the broker is
 * gone between CHECK and DONE, all it knows is whether the gate was open: with a held gate and
 * no ready, nothing can have been written; else the memory must be doubted. When that broker has
 * ended, its page says for certain whether it had begun to write.
 */
#include "agent/worker.h"
#include "base/util.h"
#include <errno.h>
#include <string.h>

static void push_event(struct strew_agent *agent, const struct strew_event *event)
{
	if (agent->nevents == WORKER_EVENTS) {
		agent->first_event = (agent->first_event + 1) % WORKER_EVENTS;
		agent->nevents--;
	}
	agent->events[(agent->first_event + agent->nevents) % WORKER_EVENTS] = *event;
	agent->nevents++;
	agent_session_signal(&agent->session, true);
}

/* A hold that its user did not take before its update ended would pause the engine for nothing. */
static void drop_hold(struct strew_agent *agent)
{
	size_t last = (agent->first_event + agent->nevents - 1) % WORKER_EVENTS;

	if (agent->nevents && agent->events[last].type == STREW_EVENT_HOLD) {
		agent->nevents--;
	}
}

bool worker_next_event(struct strew_agent *agent, struct strew_event *ret_event)
{
	const struct error *lost = &agent->session.lost;

	if (agent->nevents) {
		*ret_event = agent->events[agent->first_event];
		agent->first_event = (agent->first_event + 1) % WORKER_EVENTS;
		agent->nevents--;
	} else if (lost->code && !agent->lost_told) {
		memset(ret_event, 0, sizeof(*ret_event));
		ret_event->type = STREW_EVENT_LOST;
		ret_event->state = worker_state(agent, &ret_event->version);
		string_copy(ret_event->text, sizeof(ret_event->text), lost->text);
		agent->lost_told = true;
	} else {
		return false;
	}
	agent_session_signal(&agent->session, agent->nevents || (lost->code && !agent->lost_told));
	return true;
}

/* A grant counts from when it was read: a hold that comes behind it is a new one. */
static bool is_ready(const struct strew_agent *agent)
{
	bool granted = agent->resume.answered && agent->resume.answer.type == MSG_OK;

	return agent->ready && !granted;
}

/* Between check and done, may the broker have written? */
static bool doubted(const struct strew_agent *agent)
{
	return agent->pending && !(agent->reg.gate == STREW_GATE_HELD && !is_ready(agent));
}

enum strew_group_state worker_state(const struct strew_agent *agent, uint64_t *ret_version)
{
	const struct page *page = &agent->session.broker_page;
	enum strew_group_state heard = agent->state ? agent->state : STREW_GROUP_FORMING;
	uint64_t state, version;

	*ret_version = agent->version;
	/* The page is ahead of its broker's messages: a group that stands is seen without one. */
	if (page->words && !agent->session.lost.code &&
		page_read_group(page, &state, &version) == 0 && state) {
		heard = (enum strew_group_state)state;
		*ret_version = version;
	}
	if (!agent->pending) {
		return heard;
	}
	if (!agent->session.lost.code) {
		return STREW_GROUP_PENDING;
	}
	if (!doubted(agent)) {
		return heard;
	}
	return agent->reg.apply == STREW_APPLY_DIRECT ? STREW_GROUP_DIRTY : STREW_GROUP_IN_DOUBT;
}

/*
 * That others of the group were missing when this worker registered says nothing of its own memory,
 * and that they have come since is no message: what was passed on to that broker is still true.
 * Behind an update's end it may be that others have committed.
 */
static bool is_untold(
	const struct strew_agent *agent, enum strew_group_state state, uint64_t version)
{
	bool apart = state == STREW_GROUP_FORMING || state == STREW_GROUP_LOST;

	return !agent->state || (apart && !agent->done) ||
	       (state == STREW_GROUP_FORMING && version == 0);
}

void worker_left(const struct strew_agent *agent, uint32_t *ret_state, uint64_t *ret_version)
{
	uint64_t version;
	enum strew_group_state state = worker_state(agent, &version);
	bool torn = state == STREW_GROUP_PENDING || state == STREW_GROUP_DIRTY ||
		    state == STREW_GROUP_IN_DOUBT;

	if (is_untold(agent, state, version) && !torn) {
		state = (enum strew_group_state)agent->reg.state;
		version = agent->reg.version;
	}
	if (agent->pending && state == STREW_GROUP_CURRENT) {
		state = STREW_GROUP_STALE;
	}
	*ret_state = state;
	*ret_version = version;
}

/*
 * Memory that is whole, and was CURRENT when the update began that nobody finished, is in doubt of
 * that one alone.
 */
void worker_found(struct strew_agent *agent, const struct msg_register *before)
{
	bool told = !is_untold(agent, agent->state, agent->version);
	uint32_t heard = told ? (uint32_t)agent->state : before->state;
	uint64_t written = agent->session.written;
	struct msg_register *reg = &agent->reg;

	reg->update = agent->update;
	reg->holds = agent->holds;
	if (!agent->pending) {
		return;
	}
	reg->holds = !doubted(agent)		? HOLDS_NOTHING
		     : !written			? HOLDS_UNKNOWN
		     : written == agent->update ? HOLDS_SOME
						: HOLDS_NOTHING;
	if (reg->holds != HOLDS_NOTHING) {
		return;
	}
	reg->version = told ? agent->version : before->version;
	reg->state = heard == STREW_GROUP_CURRENT    ? STREW_GROUP_IN_DOUBT
		     : heard == STREW_GROUP_IN_DOUBT ? STREW_GROUP_STALE
						     : heard;
}

/* The broker may speak of an update before register() has looked at its answer. */
static bool registered(const struct strew_agent *agent)
{
	return agent->stage == WORKER_REGISTERING || agent->stage == WORKER_REGISTERED;
}

/* Tells the broker how what it asked for in an update went; rc with its sentence in `found`. */
static int answer(struct strew_agent *agent, enum message_type type, uint64_t update, int rc,
	const struct error *found, struct error *err)
{
	struct message message;

	message_init(&message, type, 0);
	message.u.checked.update = update;
	message.u.checked.code = error_to_wire(rc);
	if (rc) {
		string_copy(message.u.checked.text, sizeof(message.u.checked.text), found->text);
	}
	rc = agent_session_send(&agent->session, &message, err);
	/* A broker that is gone may have said more before it went: read on to the end. */
	return rc == -ECONNRESET ? 0 : rc;
}

/* Is the memory what was registered, and what the engine uses? */
static int verify(const struct strew_agent *agent, struct error *found)
{
	char text[sizeof(found->text)] = "";
	int rc = export_verify(agent->set, found);

	if (rc || !agent->check || !agent->check(agent->check_data, text, sizeof(text))) {
		return rc;
	}
	text[sizeof(text) - 1] = '\0';
	return error_set(found, -ESTALE, "%s", text[0] ? text : "its engine refuses the update");
}

static int on_check(struct strew_agent *agent, const struct msg_check *check, struct error *err)
{
	struct error found = {0};
	int rc;

	agent->pending = registered(agent);
	agent->update = agent->pending ? check->update : agent->update;
	rc = verify(agent, &found);
	return answer(agent, MSG_CHECKED, check->update, rc, &found, err);
}

/* A bit too few would be memory that keeps old bytes in silence. */
static int apply_twins(struct strew_agent *agent, const struct msg_apply *apply, struct error *err)
{
	struct copies copies;
	uint32_t first = 0;
	int rc;

	if (!registered(agent) ||
		(apply->nmissing && apply->nmissing <= agent->layout.ntensors / 8)) {
		return error_set(err, -EINVAL, "apply of a layout that is not registered");
	}
	while (first < export_count(agent->set) && !export_pulls(agent->set, first)) {
		first++;
	}
	rc = plan_apply(
		&agent->layout, first, apply->nmissing ? apply->missing : NULL, &copies, err);
	if (rc == 0) {
		rc = export_twins_apply(agent->set, &copies, err);
		copies_finish(&copies);
	}
	return rc;
}

static int on_apply(struct strew_agent *agent, const struct msg_apply *apply, struct error *err)
{
	struct error found = {0};
	int rc = apply_twins(agent, apply, &found);

	return answer(agent, MSG_APPLIED_ROUTE, apply->update, rc, &found, err);
}

static void on_hold(struct strew_agent *agent, const struct msg_hold *hold)
{
	struct strew_event event = {.type = STREW_EVENT_HOLD, .version = hold->version};

	if (!registered(agent) || agent->reg.gate != STREW_GATE_HELD) {
		return;
	}
	agent->pending = true;
	agent->update = hold->update;
	/* Already ready: the broker knows, and the engine stands. */
	if (!is_ready(agent)) {
		event.state = STREW_GROUP_PENDING;
		push_event(agent, &event);
	}
}

static int on_done(struct strew_agent *agent, const struct msg_done *done, struct error *err)
{
	struct strew_event event = {.type = STREW_EVENT_DONE, .version = done->version};

	if (done->state < STREW_GROUP_FORMING || done->state > STREW_GROUP_LOST ||
		done->outcome > STREW_OUTCOME_LOST) {
		return error_set(err, -EPROTO, "done with outcome %u and state %u", done->outcome,
			done->state);
	}
	agent->pending = false;
	agent->done = true;
	agent->state = (enum strew_group_state)done->state;
	agent->version = done->version;
	agent->update = done->update;
	agent->holds = done->outcome == STREW_OUTCOME_COMMITTED ? HOLDS_ALL
		       : done->state == STREW_GROUP_DIRTY	? HOLDS_UNKNOWN
								: HOLDS_NOTHING;
	page_store(&agent->session.page, WORD_STATE, done->state);
	page_store(&agent->session.page, WORD_VERSION, done->version);
	page_store(&agent->session.page, WORD_UPDATE, done->update);
	event.outcome = (enum strew_outcome)done->outcome;
	event.catching = done->catching;
	event.state = agent->state;
	string_copy(event.text, sizeof(event.text), done->text);
	drop_hold(agent);
	push_event(agent, &event);
	return 0;
}

int worker_handle(void *data, struct message *message, struct error *err)
{
	struct strew_agent *agent = data;

	switch (message->type) {
	case MSG_CHECK:
		return on_check(agent, &message->u.check, err);
	case MSG_APPLY:
		return on_apply(agent, &message->u.apply, err);
	case MSG_HOLD:
		on_hold(agent, &message->u.hold);
		return 0;
	case MSG_DONE:
		return on_done(agent, &message->u.done, err);
	default:
		return error_set(err, -EPROTO, "the broker sent %s to a worker",
			message_name(message->type));
	}
}
