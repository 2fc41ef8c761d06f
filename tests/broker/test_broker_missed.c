/* scope=all is every group of every node: also of those that were there a moment ago. */
#include "broker/nodes.h"
#include <signal.h>
#include <string.h>

static const struct rows whole[] = {{"w", STREW_F32, 16, 32, 0, 16}};
static struct trainer trainer;
static struct worker worker;

static void publish_all(enum strew_outcome outcome, const char *word)
{
	struct strew_report report;

	version++;
	trainer_write(&trainer, version);
	assert_int_equal(strew_trainer_publish(trainer.trainer, version, NULL,
				 STREW_PUBLISH_SCOPE_ALL, PATIENCE_MS),
		0);
	trainer_reports(&trainer, outcome, word, &report);
	strew_report_finish(&report);
	if (outcome == STREW_OUTCOME_COMMITTED) {
		worker_holds(&worker, version);
	} else {
		version--;
	}
}

static int missed_start(void **state)
{
	nodes_start(state);
	assert_int_equal(trainer_start(&trainer, &nodes[0],
				 (struct strew_trainer_options){.model = "m"}, whole, 1),
		0);
	assert_int_equal(worker_start(&worker, &nodes[1],
				 (struct strew_agent_options){.model = "m"}, whole, 1),
		0);
	return 0;
}

static int missed_finish(void **state)
{
	worker_stop(&worker);
	trainer_stop(&trainer);
	return nodes_finish(state);
}

static void test_lost_without_a_word(void **state)
{
	(void)state;
	publish_all(STREW_OUTCOME_COMMITTED, "");
	broker_stop(&nodes[2], SIGKILL);
	broker_wait_brokers(&nodes[0], NODES - 1);
	publish_all(STREW_OUTCOME_ABORTED, "which was lost, has not come back");
	/* Who does not ask for all gets what there is. */
	trainer_commits(&trainer, ++version);
	worker_holds(&worker, version);
	publish_all(STREW_OUTCOME_ABORTED, "scope=all");
	node_join(2);
	broker_wait_brokers(&nodes[0], NODES);
	publish_all(STREW_OUTCOME_COMMITTED, "");
}

static void test_left_in_order(void **state)
{
	(void)state;
	assert_int_equal(broker_stop(&nodes[2], SIGTERM), 0);
	broker_wait_brokers(&nodes[0], NODES - 1);
	publish_all(STREW_OUTCOME_COMMITTED, "");
	node_join(2);
	broker_wait_brokers(&nodes[0], NODES);
	publish_all(STREW_OUTCOME_COMMITTED, "");
}

/* Each loss is made good by one that comes, and by no more than one. */
static void test_several_are_missed(void **state)
{
	(void)state;
	broker_stop(&nodes[2], SIGKILL);
	broker_wait_brokers(&nodes[0], NODES - 1);
	node_join(2);
	broker_wait_brokers(&nodes[0], NODES);
	broker_stop(&nodes[2], SIGKILL);
	broker_wait_brokers(&nodes[0], NODES - 1);
	publish_all(STREW_OUTCOME_ABORTED, "has not come back");
	node_join(2);
	broker_wait_brokers(&nodes[0], NODES);
	publish_all(STREW_OUTCOME_COMMITTED, "");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_lost_without_a_word),
		cmocka_unit_test(test_left_in_order),
		cmocka_unit_test(test_several_are_missed),
	};

	return test_finish(
		cmocka_run_group_tests(tests, missed_start, missed_finish), test_fds_at_start);
}
