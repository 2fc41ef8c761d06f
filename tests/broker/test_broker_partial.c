/*
 * Versions that leave tensors out (STREW_PUBLISH_PARTIAL): they heal no memory that is wrong in
 * what they do not bring, and every memory that is not.
 */
#include "base/util.h"
#include "broker/catcher.h"
#include "broker/nodes.h"
#include "broker/subset.h"
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>

static const struct rows three[] = {{"a", STREW_F32, 8, 16, 0, 8}, {"b", STREW_F32, 8, 16, 0, 8},
	{"c", STREW_F32, 8, 16, 0, 8}};

static void declare(struct trainer *trainer, const char *model, const struct rows *rows, size_t n)
{
	struct strew_trainer_options options = {.model = model};

	assert_int_equal(trainer_start(trainer, &nodes[0], options, rows, n), 0);
}

/* Another trainer takes the place of one that has gone. */
static void follow(struct trainer *trainer, const char *model, const struct rows *rows, size_t n)
{
	trainer_stop(trainer);
	broker_wait_no_ranks(&nodes[0]);
	declare(trainer, model, rows, n);
}

static void publish(struct trainer *trainer, uint64_t number, enum strew_outcome outcome,
	uint32_t replica, enum strew_outcome of_replica, const char *word)
{
	struct strew_report report;

	assert_int_equal(
		trainer_publish(trainer, number, STREW_PUBLISH_PARTIAL, PATIENCE_MS, &report),
		outcome);
	report_group(&report, replica, of_replica, word);
	strew_report_finish(&report);
}

/* A part of the version, and no more: what was written is DIRTY. */
static void spoil(struct trainer *trainer, struct worker *worker, uint64_t number, unsigned bits,
	unsigned flags)
{
	struct strew_report report;
	uint32_t subset = name_subset(trainer, bits);

	assert_int_equal(strew_trainer_open_parts(trainer->trainer, number, flags, PATIENCE_MS), 0);
	write_subset(trainer, number, bits);
	assert_int_equal(strew_trainer_put(trainer->trainer, subset, NULL), 0);
	assert_int_equal(strew_trainer_wait_released(trainer->trainer, PATIENCE_MS), 0);
	assert_int_equal(strew_trainer_cancel_parts(trainer->trainer, "spoilt"), 0);
	trainer_reports(trainer, STREW_OUTCOME_ABORTED, "", &report);
	strew_report_finish(&report);
	assert_int_equal(strew_agent_resume(worker->agent, PATIENCE_MS), -EUCLEAN);
}

static void start_direct(
	struct worker *worker, const char *model, const struct rows *rows, size_t n)
{
	struct strew_agent_options options = {.model = model,
		.gate = STREW_GATE_HELD,
		.apply = STREW_APPLY_DIRECT,
		.serve_thread = 1};

	assert_int_equal(worker_start(worker, &nodes[0], options, rows, n), 0);
	assert_int_equal(strew_agent_ready(worker->agent, NULL), 0);
}

/* Version 2 has ended after tensor a; version 3 brings c alone, and version 4 everything. */
static void test_dirty_in_other_tensors(void **state)
{
	const uint64_t spoilt[] = {2, 1, 1};
	struct trainer trainer;
	struct worker worker;

	(void)state;
	start_direct(&worker, "dirty", three, 3);
	declare(&trainer, "dirty", three, 3);
	trainer_commits(&trainer, 1);
	spoil(&trainer, &worker, 2, 1, 0);
	worker_holds_each(&worker, spoilt);
	follow(&trainer, "dirty", three + 2, 1);
	publish(&trainer, 3, STREW_OUTCOME_ABORTED, 0, STREW_OUTCOME_SAT_OUT,
		"it is DIRTY, which a partial version does not heal: publish all of its tensors");
	assert_int_equal(strew_agent_resume(worker.agent, PATIENCE_MS), -EUCLEAN);
	worker_holds_each(&worker, spoilt);
	/* Partial by its flag alone: nothing that the group takes is left out. */
	follow(&trainer, "dirty", three, 3);
	publish(&trainer, 4, STREW_OUTCOME_COMMITTED, 0, STREW_OUTCOME_COMMITTED, "");
	assert_int_equal(strew_agent_resume(worker.agent, PATIENCE_MS), 0);
	worker_holds(&worker, 4);
	worker_stop(&worker);
	trainer_stop(&trainer);
}

/* Who never publishes anything else: what it has spoilt it heals, and what it has not. */
static void test_dirty_in_the_same_tensors(void **state)
{
	const uint64_t held[] = {0, 3, 3};
	struct trainer trainer;
	struct worker worker;

	(void)state;
	start_direct(&worker, "same", three, 3);
	declare(&trainer, "same", three + 1, 2);
	for (uint64_t number = 1; number < 3; number++) {
		spoil(&trainer, &worker, number, number, STREW_PUBLISH_PARTIAL);
	}
	publish(&trainer, 3, STREW_OUTCOME_COMMITTED, 0, STREW_OUTCOME_COMMITTED, "");
	assert_int_equal(strew_agent_resume(worker.agent, PATIENCE_MS), 0);
	worker_holds_each(&worker, held);
	worker_stop(&worker);
	trainer_stop(&trainer);
}

/* Played: refuses or takes what is published, at a node where nobody has what it misses. */
static void play(struct trainer *trainer, struct raw *raw, uint64_t number, unsigned flags,
	enum strew_outcome outcome, int code)
{
	struct strew_report report;
	struct message message;

	trainer_write(trainer, number);
	assert_int_equal(
		strew_trainer_publish(trainer->trainer, number, NULL, flags, PATIENCE_MS), 0);
	raw_answer_check(raw, code, code ? "not now" : "");
	raw_expect(raw, MSG_DONE, &message);
	message_finish(&message);
	trainer_reports(trainer, outcome, "", &report);
	strew_report_finish(&report);
}

static void start_played(
	struct draft *draft, struct raw *raw, const char *model, const struct rows *rows, size_t n)
{
	draft_worker(draft, model, rows, n);
	draft->reg.replica = 1;
	raw_open(raw, &nodes[1], ROLE_WORKER);
	draft_register(raw, draft);
}

/* Replica 1 misses version 2 of everything. Version 3 brings c alone. */
static void test_stale_in_other_tensors(void **state)
{
	struct worker sibling, fresh;
	struct trainer trainer;
	struct draft draft;
	struct raw raw;

	(void)state;
	assert_int_equal(worker_start(&sibling, &nodes[2],
				 (struct strew_agent_options){.model = "stale"}, three, 3),
		0);
	start_played(&draft, &raw, "stale", three, 3);
	declare(&trainer, "stale", three, 3);
	play(&trainer, &raw, 1, 0, STREW_OUTCOME_COMMITTED, 0);
	play(&trainer, &raw, 2, 0, STREW_OUTCOME_SAT_OUT, -EBUSY);
	assert_int_equal(group_place(&nodes[1], "stale", 1, 0).state, STREW_GROUP_STALE);
	follow(&trainer, "stale", three + 2, 1);
	publish(&trainer, 3, STREW_OUTCOME_SAT_OUT, 1, STREW_OUTCOME_SAT_OUT,
		"it has missed other tensors' values, which a partial version does not heal");
	assert_int_equal(group_place(&nodes[1], "stale", 1, 0).state, STREW_GROUP_STALE);
	/* Nobody has written to who is new: what its engine has loaded is its own affair. */
	assert_int_equal(
		worker_start(&fresh, &nodes[0],
			(struct strew_agent_options){.model = "stale", .replica = 2}, three, 3),
		0);
	publish(&trainer, 4, STREW_OUTCOME_SAT_OUT, 2, STREW_OUTCOME_COMMITTED, "");
	worker_holds_some(&fresh, 4, 4);
	follow(&trainer, "stale", three, 3);
	play(&trainer, &raw, 5, 0, STREW_OUTCOME_COMMITTED, 0);
	worker_holds(&sibling, 5);
	worker_stop(&fresh);
	raw_close(&raw);
	draft_finish(&draft);
	worker_stop(&sibling);
	trainer_stop(&trainer);
}

/* Replica 1 misses versions of c alone, then takes the next; and so does one that takes c alone,
 * whatever it has missed. */
static void test_stale_in_the_same_tensors(void **state)
{
	struct worker sibling;
	struct trainer trainer;
	struct draft draft;
	struct raw raw;

	(void)state;
	for (unsigned i = 0; i < 2; i++) {
		const char *model = i ? "one" : "three";
		size_t takes = i ? 1 : 3;

		assert_int_equal(worker_start(&sibling, &nodes[2],
					 (struct strew_agent_options){.model = model}, three, 3),
			0);
		start_played(&draft, &raw, model, three + 3 - takes, takes);
		declare(&trainer, model, three, 3);
		play(&trainer, &raw, 1, 0, STREW_OUTCOME_COMMITTED, 0);
		if (takes == 1) {
			play(&trainer, &raw, 2, 0, STREW_OUTCOME_SAT_OUT, -EBUSY);
		}
		follow(&trainer, model, three + 2, 1);
		for (uint64_t number = 3; number < 6; number++) {
			play(&trainer, &raw, number, STREW_PUBLISH_PARTIAL, STREW_OUTCOME_SAT_OUT,
				-EBUSY);
		}
		play(&trainer, &raw, 6, STREW_PUBLISH_PARTIAL, STREW_OUTCOME_COMMITTED, 0);
		group_wait(&nodes[1], model, 1, 0, STREW_GROUP_CURRENT, 6);
		raw_close(&raw);
		draft_finish(&draft);
		worker_stop(&sibling);
		trainer_stop(&trainer);
	}
}

/* A broker was away for versions of c alone: its lead knows that they were no more. */
static void test_away_for_the_same_tensors(void **state)
{
	const uint64_t held[] = {1, 1, 3};
	struct worker here, away;
	struct trainer trainer;

	(void)state;
	assert_int_equal(worker_start(&here, &nodes[1],
				 (struct strew_agent_options){.model = "away"}, three, 3),
		0);
	assert_int_equal(
		worker_start(&away, &nodes[2],
			(struct strew_agent_options){.model = "away", .replica = 1}, three, 3),
		0);
	declare(&trainer, "away", three, 3);
	trainer_commits(&trainer, 1);
	follow(&trainer, "away", three + 2, 1);
	broker_stop(&nodes[2], SIGKILL);
	broker_wait_brokers(&nodes[0], NODES - 1);
	publish(&trainer, 2, STREW_OUTCOME_COMMITTED, 0, STREW_OUTCOME_COMMITTED, "");
	node_join(2);
	broker_wait_brokers(&nodes[0], NODES);
	assert_int_equal(strew_agent_reconnect(away.agent, PATIENCE_MS), 0);
	group_wait(&nodes[2], "away", 1, 0, STREW_GROUP_STALE, 1);
	publish(&trainer, 3, STREW_OUTCOME_COMMITTED, 1, STREW_OUTCOME_COMMITTED, "");
	worker_holds_each(&here, held);
	worker_holds_each(&away, held);
	worker_stop(&here);
	worker_stop(&away);
	trainer_stop(&trainer);
}

#define CASE(name) cmocka_unit_test_teardown(name, nodes_check)

int main(void)
{
	const struct CMUnitTest tests[] = {
		CASE(test_dirty_in_other_tensors),
		CASE(test_dirty_in_the_same_tensors),
		CASE(test_stale_in_other_tensors),
		CASE(test_stale_in_the_same_tensors),
		CASE(test_away_for_the_same_tensors),
	};

	test_seed();
	return test_finish(
		cmocka_run_group_tests(tests, nodes_start, nodes_finish), test_fds_at_start);
}
