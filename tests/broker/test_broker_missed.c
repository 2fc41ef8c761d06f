/* scope=all is every group of every node: also of those that were there a moment ago. */
#include "broker/joiner.h"
#include "broker/nodes.h"
#include <errno.h>
#include <signal.h>
#include <string.h>

static const struct rows whole[] = {{"w", STREW_F32, 16, 32, 0, 16}};
static struct trainer trainer;
static struct worker worker;

static void publish_only(unsigned flags, int timeout_ms)
{
	trainer_write(&trainer, ++version);
	assert_int_equal(
		strew_trainer_publish(trainer.trainer, version, NULL, flags, timeout_ms), 0);
}

static void publish_all(enum strew_outcome outcome, const char *word)
{
	struct strew_report report;

	publish_only(STREW_PUBLISH_SCOPE_ALL, PATIENCE_MS);
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
	assert_int_equal(
		worker_start(&worker, &nodes[1],
			(struct strew_agent_options){.model = "m", .apply = STREW_APPLY_DIRECT},
			whole, 1),
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

/* A fourth broker, which is played, on a host of its own. */
static void comes(struct joiner *joiner, struct raw *data)
{
	struct msg_join join = joiner_join();

	join.host_id = 77;
	joiner_joins(joiner, nodes_address, &join);
	joiner_epoch(joiner);
	joiner_data(data, nodes_address, &joiner->epoch, 0);
	joiner_warms(joiner, data);
	joiner_ready(joiner, joiner->epoch.epoch);
	broker_wait_brokers(&nodes[0], NODES + 1);
}

static void goes(struct joiner *joiner, struct raw *data, uint32_t again)
{
	struct message message;

	message_init(&message, MSG_BYE, 0);
	message.u.bye.again = again;
	raw_send(&joiner->raw, &message);
	joiner_ends(joiner);
	raw_close(data);
	raw_close(&joiner->raw);
	broker_wait_brokers(&nodes[0], NODES);
}

/* It has nobody who takes part. */
static void takes_part(struct joiner *joiner)
{
	uint64_t epoch = joiner->epoch.epoch, update;
	struct message message;

	joiner_expect(joiner, MSG_BEGIN, &message);
	update = message.u.begin.update;
	message_finish(&message);
	joiner_answer(joiner, MSG_ACCEPT, epoch, update, NULL, 0);
	joiner_takes(joiner, MSG_GO, update);
	joiner_answer(joiner, MSG_PREPARED, epoch, update, NULL, 0);
	joiner_takes(joiner, MSG_COMMIT, update);
	joiner_answer(joiner, MSG_APPLIED, epoch, update, NULL, 0);
}

/* Who starts itself anew is back in a moment: that is waited for, and others go on meanwhile. */
static void test_starts_itself_anew(void **state)
{
	struct strew_report report;
	struct joiner joiner;
	struct raw data;

	(void)state;
	comes(&joiner, &data);
	goes(&joiner, &data, 1);
	trainer_commits(&trainer, ++version);
	publish_only(STREW_PUBLISH_SCOPE_ALL, PATIENCE_MS);
	assert_int_equal(strew_trainer_wait_report(trainer.trainer, 300, &report), -ETIMEDOUT);
	comes(&joiner, &data);
	takes_part(&joiner);
	trainer_reports(&trainer, STREW_OUTCOME_COMMITTED, "", &report);
	strew_report_finish(&report);
	worker_holds(&worker, version);
	/* An update waits no longer than it may. */
	goes(&joiner, &data, 1);
	publish_only(STREW_PUBLISH_SCOPE_ALL, 300);
	trainer_reports(&trainer, STREW_OUTCOME_ABORTED, "before the deadline", &report);
	strew_report_finish(&report);
	version--;
	comes(&joiner, &data);
	goes(&joiner, &data, 0);
	publish_all(STREW_OUTCOME_COMMITTED, "");
}

/* It has not come back by its time: that is a loss like any. */
static void test_is_late(void **state)
{
	struct strew_report report;
	struct joiner joiner;
	struct raw data;

	(void)state;
	comes(&joiner, &data);
	goes(&joiner, &data, 1);
	publish_only(STREW_PUBLISH_SCOPE_ALL, 2 * LIMIT_AGAIN_MS);
	trainer_reports(&trainer, STREW_OUTCOME_ABORTED, "has not come back", &report);
	strew_report_finish(&report);
	version--;
	assert_true(broker_said(&nodes[0], "started itself anew"));
	comes(&joiner, &data);
	goes(&joiner, &data, 0);
	publish_all(STREW_OUTCOME_COMMITTED, "");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_lost_without_a_word),
		cmocka_unit_test(test_left_in_order),
		cmocka_unit_test(test_several_are_missed),
		cmocka_unit_test(test_starts_itself_anew),
		cmocka_unit_test(test_is_late),
	};

	return test_finish(
		cmocka_run_group_tests(tests, missed_start, missed_finish), test_fds_at_start);
}
