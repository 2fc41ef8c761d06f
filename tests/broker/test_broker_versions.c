/* Versions only go up, whatever brokers were started again meanwhile, and workers know theirs. */
#include "broker/catcher.h"
#include "broker/nodes.h"
#include <errno.h>
#include <signal.h>
#include <string.h>

static const struct rows whole[] = {{"w", STREW_F32, 16, 32, 0, 16}};
static const struct rows halves[2] = {
	{"w", STREW_F32, 16, 32, 0, 8}, {"w", STREW_F32, 16, 32, 8, 8}};
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

static void is_at(uint32_t state, uint64_t number)
{
	struct place place = group_place(&broker, "m", 0, 0);

	assert_string_equal(strew_group_state_name((enum strew_group_state)place.state),
		strew_group_state_name((enum strew_group_state)state));
	assert_int_equal(place.version, number);
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

/* The broker is killed while it waits for a gate: memory is whole, of the version before. */
static void test_killed_while_held(void **state)
{
	struct trainer trainer;
	struct worker worker;

	(void)state;
	assert_int_equal(worker_start(&worker, &broker,
				 (struct strew_agent_options){
					 .model = "m", .gate = STREW_GATE_HELD, .serve_thread = 1},
				 whole, 1),
		0);
	start_trainer(&trainer);
	assert_int_equal(strew_agent_ready(worker.agent, NULL), 0);
	trainer_commits(&trainer, 5);
	worker_event(&worker, STREW_EVENT_DONE, STREW_OUTCOME_COMMITTED);
	assert_int_equal(strew_agent_resume(worker.agent, PATIENCE_MS), 0);
	assert_int_equal(strew_trainer_publish(trainer.trainer, 6, NULL, 0, PATIENCE_MS), 0);
	worker_event(&worker, STREW_EVENT_HOLD, STREW_OUTCOME_NONE);
	start_again();
	assert_int_equal(strew_trainer_reconnect(trainer.trainer, PATIENCE_MS), 0);
	comes_back(&worker);
	is_at(STREW_GROUP_STALE, 5);
	is_refused(&trainer, 3);
	is_refused(&trainer, 5);
	assert_int_equal(strew_agent_ready(worker.agent, NULL), 0);
	trainer_commits(&trainer, 6);
	worker_holds(&worker, 6);
	worker_stop(&worker);
	trainer_stop(&trainer);
}

static void start_ranks(struct trainer ranks[2])
{
	struct starting starts[2];

	for (uint32_t i = 0; i < 2; i++) {
		starts[i] = (struct starting){.trainer = &ranks[i],
			.broker = &broker,
			.options = {.model = "m", .rank = i, .ranks = 2},
			.rows = &halves[i],
			.nrows = 1};
		assert_int_equal(
			pthread_create(&starts[i].thread, NULL, rank_starts, &starts[i]), 0);
	}
	rank_started(&starts[0], 0, "");
	rank_started(&starts[1], 0, "");
}

/* One rank has published when a worker, alone of its group, brings a later version. */
static void test_learnt_between_two_ranks(void **state)
{
	struct trainer first, ranks[2];
	struct worker members[MEMBERS];
	struct strew_report report;

	(void)state;
	start_members(members);
	start_trainer(&first);
	trainer_commits(&first, 5);
	start_again();
	trainer_stop(&first);
	start_ranks(ranks);
	assert_int_equal(strew_trainer_publish(ranks[0].trainer, 2, NULL, 0, PATIENCE_MS), 0);
	comes_back(&members[0]);
	assert_int_equal(strew_trainer_publish(ranks[1].trainer, 2, NULL, 0, PATIENCE_MS), 0);
	for (uint32_t i = 0; i < 2; i++) {
		trainer_reports(&ranks[i], STREW_OUTCOME_ABORTED,
			"version 2 is not above the committed version 5", &report);
		strew_report_finish(&report);
	}
	for (uint32_t i = 1; i < MEMBERS; i++) {
		comes_back(&members[i]);
	}
	is_at(STREW_GROUP_CURRENT, 5);
	for (uint32_t i = 0; i < MEMBERS; i++) {
		worker_holds(&members[i], 5);
		worker_stop(&members[i]);
	}
	trainer_stop(&ranks[0]);
	trainer_stop(&ranks[1]);
}

/* An update of version 2 waits for a gate when a worker, or a broker, brings version 5. */
static void test_learnt_in_an_update(void **state)
{
	struct strew_report report;
	struct worker worker, late;
	struct trainer trainer;

	(void)state;
	assert_int_equal(
		worker_start(&late, &broker,
			(struct strew_agent_options){.model = "m", .replica = 1, .serve_thread = 1},
			whole, 1),
		0);
	start_trainer(&trainer);
	trainer_commits(&trainer, 5);
	start_again();
	assert_int_equal(strew_trainer_reconnect(trainer.trainer, PATIENCE_MS), 0);
	assert_int_equal(worker_start(&worker, &broker,
				 (struct strew_agent_options){
					 .model = "m", .gate = STREW_GATE_HELD, .serve_thread = 1},
				 whole, 1),
		0);
	assert_int_equal(strew_trainer_publish(trainer.trainer, 2, NULL, 0, PATIENCE_MS), 0);
	worker_event(&worker, STREW_EVENT_HOLD, STREW_OUTCOME_NONE);
	comes_back(&late);
	assert_int_equal(strew_agent_ready(worker.agent, NULL), 0);
	trainer_reports(&trainer, STREW_OUTCOME_ABORTED,
		"version 2 is not above the committed version 5", &report);
	strew_report_finish(&report);
	worker_event(&worker, STREW_EVENT_DONE, STREW_OUTCOME_ABORTED);
	worker_is_poisoned(&worker);
	worker_holds(&late, 5);
	is_refused(&trainer, 3);
	trainer_commits(&trainer, 6);
	worker_holds(&worker, 6);
	worker_holds(&late, 6);
	worker_stop(&worker);
	worker_stop(&late);
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
		CASE(test_killed_while_held),
		CASE(test_learnt_between_two_ranks),
		CASE(test_learnt_in_an_update),
	};

	return TEST_RUN(tests);
}
