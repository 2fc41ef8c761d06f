/* The lead of three real brokers is killed, and started again while they live. */
#include "base/clock.h"
#include "broker/catcher.h"
#include "broker/nodes.h"
#include "gpu/gpu.h"
#include <errno.h>
#include <signal.h>
#include <string.h>

static const char *model; /* of each case its own: brokers remember versions */
static const struct rows whole[] = {{"w", STREW_F32, 16, 32, 0, 16}};

static void start_worker(struct worker *worker, unsigned node, struct strew_agent_options options)
{
	options.model = model;
	options.serve_thread = 1;
	assert_int_equal(worker_start(worker, &nodes[node], options, whole, 1), 0);
}

static void start_trainer(struct trainer *trainer)
{
	assert_int_equal(trainer_start(trainer, &nodes[0],
				 (struct strew_trainer_options){.model = model}, whole, 1),
		0);
}

static void kill_lead(void)
{
	assert_int_equal(broker_stop(&nodes[0], SIGKILL), 256 + SIGKILL);
}

static void start_lead(void)
{
	broker_start(&nodes[0], (const char *[]){"--listen", nodes_address, NULL});
}

static void lead_knows(uint64_t number)
{
	uint64_t deadline = deadline_in_ms(PATIENCE_MS);
	struct message reply;
	uint64_t known;

	do {
		sleep_ms(5);
		broker_status(&nodes[0], &reply);
		known = 0;
		for (size_t i = 0; i < reply.u.status_reply.ntrainers; i++) {
			if (strcmp(reply.u.status_reply.trainers[i].model, model) == 0) {
				known = reply.u.status_reply.trainers[i].version;
			}
		}
		message_finish(&reply);
	} while (known != number && !deadline_passed(deadline));
	assert_int_equal(known, number);
}

/* A broker that has committed version 5 joins when version 2 is under way: it is not committed. */
static void test_later_version_at_a_node(void **state)
{
	struct strew_report report;
	struct worker far, own;
	struct trainer trainer;

	(void)state;
	model = "later";
	start_worker(&far, 1, (struct strew_agent_options){.replica = 1});
	start_trainer(&trainer);
	trainer_commits(&trainer, 5);
	worker_event(&far, STREW_EVENT_DONE, STREW_OUTCOME_COMMITTED);
	/* Neither comes back before the next update has begun. */
	kill(nodes[1].pid, SIGSTOP);
	kill(nodes[2].pid, SIGSTOP);
	kill_lead();
	start_lead();
	trainer_stop(&trainer);
	start_worker(&own, 0, (struct strew_agent_options){.gate = STREW_GATE_HELD});
	start_trainer(&trainer);
	trainer_write(&trainer, 2);
	assert_int_equal(strew_trainer_publish(trainer.trainer, 2, NULL, 0, 2 * PATIENCE_MS), 0);
	worker_event(&own, STREW_EVENT_HOLD, STREW_OUTCOME_NONE);
	kill(nodes[1].pid, SIGCONT);
	kill(nodes[2].pid, SIGCONT);
	lead_knows(5);
	assert_int_equal(strew_agent_ready(own.agent, NULL), 0);
	trainer_reports(&trainer, STREW_OUTCOME_ABORTED,
		"version 2 is not above the committed version 5", &report);
	strew_report_finish(&report);
	worker_event(&own, STREW_EVENT_DONE, STREW_OUTCOME_ABORTED);
	worker_is_poisoned(&own);
	assert_int_equal(trainer_publish(&trainer, 3, 0, PATIENCE_MS, &report), -ESTALE);
	broker_wait_brokers(&nodes[0], NODES);
	group_wait(&nodes[1], model, 1, 0, STREW_GROUP_CURRENT, 5);
	trainer_commits(&trainer, 6);
	worker_holds(&own, 6);
	worker_holds(&far, 6);
	trainer_stop(&trainer);
	worker_stop(&own);
	worker_stop(&far);
}

/* One group is prepared, the gate of another is awaited: the broker has not said prepared, and so
 * knows that nobody has committed. */
static void test_what_is_known(void **state)
{
	struct strew_agent_options options = {.gate = STREW_GATE_HELD, .apply = STREW_APPLY_STAGED};
	struct worker quick, slow;
	struct trainer trainer;

	(void)state;
	model = "known";
	start_worker(&quick, 1, options);
	options.replica = 1;
	start_worker(&slow, 1, options);
	start_trainer(&trainer);
	assert_int_equal(strew_agent_ready(quick.agent, NULL), 0);
	assert_int_equal(strew_agent_ready(slow.agent, NULL), 0);
	trainer_commits(&trainer, 1);
	assert_int_equal(strew_agent_resume(slow.agent, PATIENCE_MS), 0);
	worker_event(&quick, STREW_EVENT_DONE, STREW_OUTCOME_COMMITTED);
	worker_event(&slow, STREW_EVENT_DONE, STREW_OUTCOME_COMMITTED);
	trainer_write(&trainer, 2);
	assert_int_equal(strew_trainer_publish(trainer.trainer, 2, NULL, 0, 2 * PATIENCE_MS), 0);
	worker_event(&slow, STREW_EVENT_HOLD, STREW_OUTCOME_NONE);
	kill_lead();
	worker_event(&slow, STREW_EVENT_DONE, STREW_OUTCOME_ABORTED);
	worker_event(&quick, STREW_EVENT_DONE, STREW_OUTCOME_ABORTED);
	group_wait(&nodes[1], model, 0, 0, STREW_GROUP_CURRENT, 1);
	group_wait(&nodes[1], model, 1, 0, STREW_GROUP_CURRENT, 1);
	worker_holds(&quick, 1);
	worker_holds(&slow, 1);
	start_lead();
	broker_wait_brokers(&nodes[0], NODES);
	/* Its gate is held still, and the number was not used up. */
	assert_int_equal(strew_agent_ready(slow.agent, NULL), 0);
	assert_int_equal(strew_trainer_reconnect(trainer.trainer, PATIENCE_MS), 0);
	trainer_commits(&trainer, 2);
	worker_holds(&quick, 2);
	worker_holds(&slow, 2);
	trainer_stop(&trainer);
	worker_stop(&quick);
	worker_stop(&slow);
}

static uint64_t takes_apply(struct raw *raw)
{
	struct message message;
	uint64_t update = raw_answer_check(raw, 0, "");

	raw_expect(raw, MSG_APPLY, &message);
	message_finish(&message);
	return update;
}

static void has_applied(struct raw *raw, uint64_t update, uint64_t number)
{
	struct message message;

	message_init(&message, MSG_APPLIED_ROUTE, 0);
	message.u.checked.update = update;
	raw_send(raw, &message);
	raw_expect(raw, MSG_DONE, &message);
	assert_int_equal(message.u.done.outcome, STREW_OUTCOME_COMMITTED);
	assert_int_equal(message.u.done.version, number);
	message_finish(&message);
}

/* A worker copies slowly what the lead before has committed: the next begin waits for that, and an
 * abort of it is answered meanwhile. */
static void test_begin_in_a_commit(void **state)
{
	struct strew_report report;
	struct trainer trainer;
	struct worker own;
	struct draft draft;
	struct raw slow;
	uint64_t update;

	(void)state;
	model = "slow";
	draft_worker(&draft, model, whole, 1);
	draft.allocation.kind = HANDLE_PULL;
	raw_open(&slow, &nodes[1], ROLE_WORKER);
	draft_register(&slow, &draft);
	draft_finish(&draft);
	start_trainer(&trainer);
	trainer_write(&trainer, 1);
	assert_int_equal(strew_trainer_publish(trainer.trainer, 1, NULL, 0, 3 * PATIENCE_MS), 0);
	update = takes_apply(&slow);
	kill_lead();
	start_lead();
	broker_wait_brokers(&nodes[0], NODES);
	start_worker(&own, 0, (struct strew_agent_options){.replica = 1});
	assert_int_equal(strew_trainer_reconnect(trainer.trainer, PATIENCE_MS), 0);
	assert_int_equal(trainer_publish(&trainer, 2, 0, 500, &report), STREW_OUTCOME_ABORTED);
	strew_report_finish(&report);
	broker_wait_brokers(&nodes[0], NODES);
	trainer_write(&trainer, 2);
	assert_int_equal(strew_trainer_publish(trainer.trainer, 2, NULL, 0, PATIENCE_MS), 0);
	broker_wait_ranks(&nodes[0], 1, "accepting");
	/* It has read its lead's words when it has answered the second time. */
	group_wait(&nodes[1], model, 0, 0, STREW_GROUP_PENDING, 0);
	group_wait(&nodes[1], model, 0, 0, STREW_GROUP_PENDING, 0);
	has_applied(&slow, update, 1);
	update = takes_apply(&slow);
	has_applied(&slow, update, 2);
	trainer_reports(&trainer, STREW_OUTCOME_COMMITTED, "", &report);
	assert_int_equal(report.ngroups, 2);
	strew_report_finish(&report);
	worker_holds(&own, 2);
	raw_close(&slow);
	worker_stop(&own);
	trainer_stop(&trainer);
}

#define CASE(name) cmocka_unit_test_teardown(name, nodes_check)

int main(void)
{
	const struct CMUnitTest tests[] = {
		CASE(test_later_version_at_a_node),
		CASE(test_what_is_known),
		CASE(test_begin_in_a_commit),
	};

	return test_finish(
		cmocka_run_group_tests(tests, nodes_start, nodes_finish), test_fds_at_start);
}
