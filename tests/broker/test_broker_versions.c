/* Versions only go up, whatever brokers were started again meanwhile, and workers know theirs. */
#include "broker/catcher.h"
#include <errno.h>
#include <signal.h>
#include <string.h>

static const struct rows whole[] = {{"w", STREW_F32, 16, 32, 0, 16}};
static struct broker broker;

static void start_trainer(struct trainer *trainer)
{
	assert_int_equal(trainer_start(trainer, &broker,
				 (struct strew_trainer_options){.model = "m"}, whole, 1),
		0);
}

static void start_again(void)
{
	assert_int_equal(broker_stop(&broker, SIGKILL), 256 + SIGKILL);
	broker_start(&broker, NULL);
}

static void comes_back(struct worker *worker)
{
	if (strew_agent_reconnect(worker->agent, PATIENCE_MS)) {
		fail_msg("%s", strew_error());
	}
}

static void is_at(uint32_t state, uint64_t version)
{
	struct place place = group_place(&broker, "m", 0, 0);

	assert_string_equal(strew_group_state_name((enum strew_group_state)place.state),
		strew_group_state_name((enum strew_group_state)state));
	assert_int_equal(place.version, version);
}

static void is_refused(struct trainer *trainer, uint64_t number)
{
	struct strew_report report;

	assert_int_equal(trainer_publish(trainer, number, 0, PATIENCE_MS, &report), -ESTALE);
}

#define MEMBERS 3

static void start_members(struct worker members[MEMBERS])
{
	for (uint32_t i = 0; i < MEMBERS; i++) {
		assert_int_equal(worker_start(&members[i], &broker,
					 (struct strew_agent_options){.model = "m",
						 .member = i,
						 .members = MEMBERS,
						 .serve_thread = 1},
					 whole, 1),
			0);
	}
}

/* Who comes first hears that the group forms, and no more when it stands. */
static void test_two_restarts(void **state)
{
	(void)state;
	for (unsigned first = 1; first <= MEMBERS; first++) {
		struct worker members[MEMBERS];
		struct trainer trainer;

		start_members(members);
		start_trainer(&trainer);
		trainer_commits(&trainer, 5);
		start_again();
		for (unsigned i = 0; i < first; i++) {
			comes_back(&members[i]);
		}
		is_at(first < MEMBERS ? STREW_GROUP_FORMING : STREW_GROUP_CURRENT,
			first < MEMBERS ? 0 : 5);
		start_again();
		for (unsigned i = MEMBERS; i-- > 0;) {
			comes_back(&members[i]);
		}
		is_at(STREW_GROUP_CURRENT, 5);
		assert_int_equal(strew_trainer_reconnect(trainer.trainer, PATIENCE_MS), 0);
		is_refused(&trainer, 5);
		trainer_commits(&trainer, 6);
		for (unsigned i = 0; i < MEMBERS; i++) {
			worker_holds(&members[i], 6);
			worker_stop(&members[i]);
		}
		trainer_stop(&trainer);
		start_again(); /* it has forgotten the versions */
	}
}

static void plays_member(struct raw *raw, uint64_t holds)
{
	struct draft draft;

	draft_worker(&draft, "m", whole, 1);
	draft.reg.apply = STREW_APPLY_STAGED;
	draft.reg.member = 1;
	draft.reg.members = 2;
	draft.reg.state = holds ? STREW_GROUP_CURRENT : 0;
	draft.reg.version = holds;
	raw_open(raw, &broker, ROLE_WORKER);
	draft_register(raw, &draft);
	draft_finish(&draft);
}

/* Who has lost a sibling in the middle of an update still has the old version, if not the last. */
static void test_survivor(void **state)
{
	struct strew_report report;
	struct trainer trainer;
	struct worker survivor;
	struct message message;
	struct raw sibling;

	(void)state;
	assert_int_equal(
		worker_start(&survivor, &broker,
			(struct strew_agent_options){.model = "m", .members = 2, .serve_thread = 1},
			whole, 1),
		0);
	plays_member(&sibling, 0);
	start_trainer(&trainer);
	trainer_write(&trainer, 5);
	assert_int_equal(strew_trainer_publish(trainer.trainer, 5, NULL, 0, PATIENCE_MS), 0);
	raw_answer_check(&sibling, 0, "");
	trainer_reports(&trainer, STREW_OUTCOME_COMMITTED, "", &report);
	strew_report_finish(&report);
	worker_event(&survivor, STREW_EVENT_DONE, STREW_OUTCOME_COMMITTED);
	raw_expect(&sibling, MSG_DONE, &message);
	message_finish(&message);
	assert_int_equal(strew_trainer_publish(trainer.trainer, 6, NULL, 0, PATIENCE_MS), 0);
	raw_expect(&sibling, MSG_CHECK, &message);
	message_finish(&message);
	raw_close(&sibling);
	trainer_reports(&trainer, STREW_OUTCOME_ABORTED, "", &report);
	strew_report_finish(&report);
	worker_event(&survivor, STREW_EVENT_DONE, STREW_OUTCOME_LOST);
	worker_holds(&survivor, 5);
	start_again();
	comes_back(&survivor);
	plays_member(&sibling, 5);
	is_at(STREW_GROUP_STALE, 5);
	raw_close(&sibling);
	worker_stop(&survivor);
	trainer_stop(&trainer);
}

static int start(void **state)
{
	(void)state;
	broker_start(&broker, NULL);
	return 0;
}

static int finish(void **state)
{
	(void)state;
	broker_finish(&broker);
	return 0;
}

#define CASE(name) cmocka_unit_test_setup_teardown(name, start, finish)

int main(void)
{
	const struct CMUnitTest tests[] = {
		CASE(test_two_restarts),
		CASE(test_survivor),
	};

	return TEST_RUN(tests);
}
