#include "broker/catcher.h"
#include "base/clock.h"
#include <errno.h>
#include <string.h>

struct place group_place(
	const struct broker *broker, const char *model, uint32_t replica, uint32_t part)
{
	struct place place = {0, 0};
	struct message reply;

	broker_status(broker, &reply);
	for (size_t i = 0; i < reply.u.status_reply.ngroups; i++) {
		const struct status_group *group = &reply.u.status_reply.groups[i];

		if (!strcmp(group->model, model) && group->replica == replica &&
			group->part == part) {
			place = (struct place){group->state, group->version};
		}
	}
	message_finish(&reply);
	return place;
}

void group_wait(const struct broker *broker, const char *model, uint32_t replica, uint32_t part,
	uint32_t state, uint64_t version)
{
	uint64_t deadline = deadline_in_ms(PATIENCE_MS);
	struct place place = group_place(broker, model, replica, part);

	while ((place.state != state || place.version != version) && !deadline_passed(deadline)) {
		sleep_ms(2);
		place = group_place(broker, model, replica, part);
	}
	assert_string_equal(strew_group_state_name((enum strew_group_state)place.state),
		strew_group_state_name((enum strew_group_state)state));
	assert_int_equal(place.version, version);
}

void worker_hears_nothing(struct worker *worker)
{
	struct strew_event event;

	assert_int_equal(strew_agent_wait(worker->agent, WHILE_MS, &event), -ETIMEDOUT);
}

void worker_sits_out(struct worker *worker)
{
	struct strew_event event;

	do {
		assert_int_equal(strew_agent_wait(worker->agent, PATIENCE_MS, &event), 1);
	} while (event.type == STREW_EVENT_HOLD);
	assert_int_equal(event.type, STREW_EVENT_DONE);
	assert_int_equal(event.outcome, STREW_OUTCOME_SAT_OUT);
}

void worker_takes(struct worker *worker, uint64_t version)
{
	worker_event(worker, STREW_EVENT_HOLD, STREW_OUTCOME_NONE);
	assert_int_equal(strew_agent_ready(worker->agent, NULL), 0);
	worker_event(worker, STREW_EVENT_DONE, STREW_OUTCOME_COMMITTED);
	assert_int_equal(strew_agent_resume(worker->agent, PATIENCE_MS), 0);
	worker_is_current(worker, version);
}

void worker_is_current(struct worker *worker, uint64_t version)
{
	enum strew_group_state state;
	uint64_t told;
	int rc = strew_agent_wait_current(worker->agent, PATIENCE_MS);

	if (rc) {
		print_error("%s\n", strew_error());
	}
	assert_int_equal(rc, 0);
	assert_int_equal(strew_agent_state(worker->agent, &state, &told), 0);
	assert_int_equal(state, STREW_GROUP_CURRENT);
	assert_int_equal(told, version);
	assert_int_equal(strew_agent_peek(worker->agent, &state, &told), 0);
	assert_int_equal(state, STREW_GROUP_CURRENT);
	assert_int_equal(told, version);
	worker_holds(worker, version);
}
