/*
 * Replicas of two groups on two nodes: one whose other half was lost with its broker is no replica
 * until that half is back. One that was withdrawn is not waited for.
 */
#include "base/util.h"
#include "broker/catcher.h"
#include "broker/nodes.h"
#include <signal.h>
#include <string.h>

static const struct rows whole[] = {{"w", STREW_F32, 16, 32, 0, 16}};
static const struct rows upper[] = {{"w", STREW_F32, 16, 32, 0, 8}};
static const struct rows lower[] = {{"w", STREW_F32, 16, 32, 8, 8}};

#define NOT_BACK "part 1 of replica 0 is not back since its broker was lost"

/* Part 0 on node 1, part 1 on node 2. */
static void start_parts(struct worker parts[2], const char *model)
{
	struct strew_agent_options options = {.model = model, .apply = STREW_APPLY_STAGED};

	assert_int_equal(worker_start(&parts[0], &nodes[1], options, upper, 1), 0);
	options.part = 1;
	assert_int_equal(worker_start(&parts[1], &nodes[2], options, lower, 1), 0);
}

static void declare(struct trainer *trainer, const char *model)
{
	struct strew_trainer_options options = {.model = model};

	assert_int_equal(trainer_start(trainer, &nodes[0], options, whole, 1), 0);
}

static void publish(struct trainer *trainer, uint64_t number, enum strew_outcome outcome,
	enum strew_outcome of_half, const char *word)
{
	struct strew_report report;

	assert_int_equal(trainer_publish(trainer, number, 0, PATIENCE_MS, &report), outcome);
	report_group(&report, 0, of_half, word);
	strew_report_finish(&report);
}

static void lose_node_2(void)
{
	assert_int_equal(broker_stop(&nodes[2], SIGKILL), 256 + SIGKILL);
	broker_wait_brokers(&nodes[0], NODES - 1);
}

static void join_node_2(void)
{
	node_join(2);
	broker_wait_brokers(&nodes[0], NODES);
}

/* Also when its broker is back and its worker is not yet; another replica goes on meanwhile. */
static void test_half_of_it_was_lost(void **state)
{
	struct worker parts[2], other;
	struct trainer trainer;

	(void)state;
	start_parts(parts, "half");
	declare(&trainer, "half");
	trainer_commits(&trainer, 1);
	lose_node_2();
	publish(&trainer, 2, STREW_OUTCOME_ABORTED, STREW_OUTCOME_ABORTED, NOT_BACK);
	assert_int_equal(
		worker_start(&other, &nodes[1],
			(struct strew_agent_options){.model = "half", .replica = 1}, whole, 1),
		0);
	publish(&trainer, 2, STREW_OUTCOME_SAT_OUT, STREW_OUTCOME_SAT_OUT, NOT_BACK);
	join_node_2();
	publish(&trainer, 3, STREW_OUTCOME_SAT_OUT, STREW_OUTCOME_SAT_OUT, NOT_BACK);
	worker_holds(&other, 3);
	worker_holds(&parts[0], 1);
	/* Its broker is lost once more, without a worker: that changes nothing. */
	lose_node_2();
	join_node_2();
	publish(&trainer, 4, STREW_OUTCOME_SAT_OUT, STREW_OUTCOME_SAT_OUT, NOT_BACK);
	assert_int_equal(strew_agent_reconnect(parts[1].agent, PATIENCE_MS), 0);
	trainer_commits(&trainer, 5);
	worker_holds(&other, 5);
	worker_holds(&parts[0], 5);
	worker_holds(&parts[1], 5);
	worker_stop(&parts[0]);
	worker_stop(&parts[1]);
	worker_stop(&other);
	trainer_stop(&trainer);
}

/* From a broker that is there, and with a broker that leaves: nobody waits for that half. */
static void test_half_of_it_was_withdrawn(void **state)
{
	struct worker parts[2];
	struct trainer trainer;

	(void)state;
	start_parts(parts, "gone");
	declare(&trainer, "gone");
	trainer_commits(&trainer, 1);
	assert_int_equal(broker_stop(&nodes[2], SIGTERM), 0);
	broker_wait_brokers(&nodes[0], NODES - 1);
	trainer_commits(&trainer, 2);
	join_node_2();
	assert_int_equal(strew_agent_reconnect(parts[1].agent, PATIENCE_MS), 0);
	trainer_commits(&trainer, 3);
	worker_stop(&parts[1]);
	trainer_commits(&trainer, 4);
	/* It has not been there at the last commit. */
	lose_node_2();
	trainer_commits(&trainer, 5);
	worker_holds(&parts[0], 5);
	join_node_2();
	worker_stop(&parts[0]);
	trainer_stop(&trainer);
}

/* Workers of one part on two nodes: half of those are not that part. */
static void test_one_part_on_two_nodes(void **state)
{
	struct strew_agent_options options = {.model = "wide"};
	struct worker workers[2];
	struct trainer trainer;

	(void)state;
	assert_int_equal(worker_start(&workers[0], &nodes[1], options, upper, 1), 0);
	assert_int_equal(worker_start(&workers[1], &nodes[2], options, lower, 1), 0);
	declare(&trainer, "wide");
	trainer_commits(&trainer, 1);
	lose_node_2();
	publish(&trainer, 2, STREW_OUTCOME_ABORTED, STREW_OUTCOME_ABORTED,
		"part 0 of replica 0 is not back");
	join_node_2();
	assert_int_equal(strew_agent_reconnect(workers[1].agent, PATIENCE_MS), 0);
	trainer_commits(&trainer, 2);
	worker_holds(&workers[0], 2);
	worker_holds(&workers[1], 2);
	worker_stop(&workers[0]);
	worker_stop(&workers[1]);
	trainer_stop(&trainer);
}

#define CASE(name) cmocka_unit_test_teardown(name, nodes_check)

int main(void)
{
	const struct CMUnitTest tests[] = {
		CASE(test_half_of_it_was_lost),
		CASE(test_half_of_it_was_withdrawn),
		CASE(test_one_part_on_two_nodes),
	};

	return test_finish(
		cmocka_run_group_tests(tests, nodes_start, nodes_finish), test_fds_at_start);
}
