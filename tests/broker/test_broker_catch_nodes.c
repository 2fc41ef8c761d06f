/*
 * Catching up where there are several brokers: who is alone in its replica is the lead's to know,
 * and updates come from elsewhere at any moment.
 */
#include "base/util.h"
#include "broker/catcher.h"
#include "broker/nodes.h"
#include <stdio.h>
#include <string.h>
#include <time.h>

static const struct rows whole[] = {{"w", STREW_F32, 16, 32, 0, 16}};
static const struct rows upper[] = {{"w", STREW_F32, 16, 32, 0, 8}};
static const struct rows lower[] = {{"w", STREW_F32, 16, 32, 8, 8}};

static void start(struct worker *worker, unsigned node, const char *model, uint32_t replica,
	uint32_t part, enum strew_gate gate, const struct rows *rows)
{
	struct strew_agent_options options = {.model = model,
		.replica = replica,
		.part = part,
		.gate = gate,
		.serve_thread = 1,
		.timeout_ms = 5000};

	assert_int_equal(worker_start(worker, &nodes[node], options, rows, 1), 0);
}

/* Stands from now on: the next update finds its gate held. */
static void stand(struct worker *worker)
{
	assert_int_equal(strew_agent_ready(worker->agent, NULL), 0);
}

static void go_on(struct worker *worker, uint64_t number)
{
	worker_event(worker, STREW_EVENT_DONE, STREW_OUTCOME_COMMITTED);
	assert_int_equal(strew_agent_resume(worker->agent, PATIENCE_MS), 0);
	worker_holds(worker, number);
}

static void late_for(struct trainer *trainer, uint64_t number)
{
	struct strew_report report;

	trainer_write(trainer, number);
	assert_int_equal(strew_trainer_publish(trainer->trainer, number, NULL, 0, 500), 0);
	trainer_reports(trainer, STREW_OUTCOME_SAT_OUT, "", &report);
	strew_report_finish(&report);
}

/*
 * Beside replica 0 on node 1: replica 1, whose other group is on node 2, and replica 2, which is
 * one group. Both sit version 2 out; what has a part elsewhere must not be ahead of it.
 */
static void test_a_replica_of_two_nodes(void **state)
{
	struct worker sibling, parts[2], single;
	struct trainer trainer;

	(void)state;
	start(&sibling, 1, "spread", 0, 0, STREW_GATE_LIVE, whole);
	start(&parts[0], 1, "spread", 1, 0, STREW_GATE_HELD, upper);
	start(&parts[1], 2, "spread", 1, 1, STREW_GATE_HELD, lower);
	start(&single, 1, "spread", 2, 0, STREW_GATE_HELD, whole);
	stand(&parts[0]);
	stand(&parts[1]);
	stand(&single);
	assert_int_equal(trainer_start(&trainer, &nodes[0],
				 (struct strew_trainer_options){.model = "spread"}, whole, 1),
		0);
	trainer_commits(&trainer, 1);
	go_on(&parts[0], 1);
	go_on(&parts[1], 1);
	go_on(&single, 1);
	late_for(&trainer, 2);
	worker_sits_out(&single);
	worker_takes(&single, 2);
	for (unsigned part = 0; part < 2; part++) {
		worker_sits_out(&parts[part]);
		worker_hears_nothing(&parts[part]);
		worker_holds(&parts[part], 1);
		assert_int_equal(
			group_place(&nodes[1 + part], "spread", 1, part).state, STREW_GROUP_STALE);
		stand(&parts[part]);
	}
	/* Together they take the next one. */
	stand(&single);
	trainer_commits(&trainer, 3);
	go_on(&parts[0], 3);
	go_on(&parts[1], 3);
	go_on(&single, 3);
	worker_stop(&single);
	worker_stop(&parts[0]);
	worker_stop(&parts[1]);
	worker_stop(&sibling);
	trainer_stop(&trainer);
}

/*
 * Workers that come with an older version, of a replica that this broker knows nothing of: it may
 * have a group elsewhere. Who has nothing at all is ahead of nobody.
 */
static void test_who_is_not_known(void **state)
{
	static const enum strew_group_state said[] = {STREW_GROUP_CURRENT, STREW_GROUP_STALE};
	struct worker sibling, fresh;
	struct trainer trainer;
	struct draft draft;
	struct raw raw;

	(void)state;
	start(&sibling, 2, "unknown", 0, 0, STREW_GATE_LIVE, whole);
	assert_int_equal(trainer_start(&trainer, &nodes[0],
				 (struct strew_trainer_options){.model = "unknown"}, whole, 1),
		0);
	trainer_commits(&trainer, 5);
	for (unsigned i = 0; i < ARRAY_LEN(said); i++) {
		draft_worker(&draft, "unknown", whole, 1);
		draft.reg.replica = 1;
		draft.reg.state = said[i];
		draft.reg.version = 4;
		raw_open(&raw, &nodes[2], ROLE_WORKER);
		draft_register(&raw, &draft);
		start(&fresh, 2, "unknown", 2, 0, STREW_GATE_LIVE, whole);
		worker_is_current(&fresh, 5);
		raw_expect_silence(&raw, 300);
		assert_int_equal(group_place(&nodes[2], "unknown", 1, 0).state, STREW_GROUP_STALE);
		raw_close(&raw);
		draft_finish(&draft);
		worker_stop(&fresh);
	}
	worker_stop(&sibling);
	trainer_stop(&trainer);
}

/* At a broker that joined a begin comes at any moment; both groups end with its version. */
static void test_a_begin_at_any_moment(void **state)
{
	static const struct rows big[] = {{"w", STREW_F32, 3000, 1000, 0, 3000}};
	struct worker sibling, late;
	struct strew_report report;
	struct trainer trainer;
	unsigned caught = 0;

	(void)state;
	start(&sibling, 1, "any", 0, 0, STREW_GATE_LIVE, big);
	assert_int_equal(trainer_start(&trainer, &nodes[0],
				 (struct strew_trainer_options){.model = "any"}, big, 1),
		0);
	trainer_commits(&trainer, 1);
	trainer_write(&trainer, 2);
	for (uint64_t number = 2; number < 18; number++) {
		struct timespec nap = {0, (long)test_random_below(30000000)};
		struct strew_agent_options options = {.model = "any",
			.replica = 1,
			.apply = number & 1 ? STREW_APPLY_STAGED : STREW_APPLY_DIRECT};

		assert_int_equal(worker_start(&late, &nodes[1], options, big, 1), 0);
		nanosleep(&nap, NULL);
		caught += group_place(&nodes[1], "any", 1, 0).state == STREW_GROUP_CURRENT;
		assert_int_equal(
			strew_trainer_publish(trainer.trainer, number, NULL, 0, PATIENCE_MS), 0);
		trainer_reports(&trainer, STREW_OUTCOME_COMMITTED, "", &report);
		assert_int_equal(report.ngroups, 2);
		strew_report_finish(&report);
		assert_int_equal(group_place(&nodes[1], "any", 1, 0).version, number);
		worker_holds(&late, 2);
		worker_stop(&late);
	}
	printf("%u of 16 had caught up before\n", caught);
	worker_holds(&sibling, 2);
	worker_stop(&sibling);
	trainer_stop(&trainer);
}

#define CASE(name) cmocka_unit_test_teardown(name, nodes_check)

int main(void)
{
	const struct CMUnitTest tests[] = {
		CASE(test_a_replica_of_two_nodes),
		CASE(test_who_is_not_known),
		CASE(test_a_begin_at_any_moment),
	};

	test_seed();
	return test_finish(
		cmocka_run_group_tests(tests, nodes_start, nodes_finish), test_fds_at_start);
}
