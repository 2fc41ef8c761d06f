/* Held gates, and trainers that are gone before, during and after the move. */
#include "base/util.h"
#include "broker/one.h"
#include "broker/peers.h"
#include <errno.h>
#include <signal.h>
#include <string.h>

static const struct rows whole[] = {{"w", STREW_F32, 16, 32, 0, 16}};
static const struct rows other[] = {{"w", STREW_F32, 16, 32, 0, 16}, {"x", STREW_F32, 2, 2, 0, 2}};

static void start_held(struct worker *worker, const char *model, enum strew_apply apply)
{
	struct strew_agent_options options = {
		.model = model, .gate = STREW_GATE_HELD, .apply = apply, .timeout_ms = 3000};
	int rc = worker_start(worker, &one_broker, options, whole, 1);

	if (rc) {
		print_error("%s\n", strew_error());
	}
	assert_int_equal(rc, 0);
}

static void start_trainer(struct trainer *trainer, const char *model, const struct rows *rows,
	size_t nrows, uint32_t ranks)
{
	struct strew_trainer_options options = {.model = model, .ranks = ranks, .timeout_ms = 3000};
	int rc = trainer_start(trainer, &one_broker, options, rows, nrows);

	if (rc) {
		print_error("%s\n", strew_error());
	}
	assert_int_equal(rc, 0);
}

static void publish(struct trainer *trainer, uint64_t version, int timeout_ms)
{
	trainer_write(trainer, version);
	assert_int_equal(strew_trainer_publish(trainer->trainer, version, NULL, 0, timeout_ms), 0);
}

static void resume(struct worker *worker)
{
	int rc = strew_agent_resume(worker->agent, PATIENCE_MS);

	if (rc) {
		print_error("%s\n", strew_error());
	}
	assert_int_equal(rc, 0);
}

static void commit_held(struct worker *worker, struct trainer *trainer, uint64_t version)
{
	struct strew_report report;

	publish(trainer, version, PATIENCE_MS);
	worker_event(worker, STREW_EVENT_HOLD, STREW_OUTCOME_NONE);
	assert_int_equal(strew_agent_ready(worker->agent, NULL), 0);
	worker_event(worker, STREW_EVENT_DONE, STREW_OUTCOME_COMMITTED);
	resume(worker);
	trainer_reports(trainer, STREW_OUTCOME_COMMITTED, "", &report);
	strew_report_finish(&report);
	worker_holds(worker, version);
}

static void test_gates_that_are_not_held(void **state)
{
	(void)state;
	for (int apply = STREW_APPLY_DIRECT; apply <= STREW_APPLY_STAGED; apply++) {
		const char *model = apply == STREW_APPLY_DIRECT ? "late direct" : "late staged";
		struct strew_report report;
		struct trainer trainer;
		struct worker worker;

		start_held(&worker, model, (enum strew_apply)apply);
		start_trainer(&trainer, model, whole, 1, 1);
		publish(&trainer, 1, 300);
		worker_event(&worker, STREW_EVENT_HOLD, STREW_OUTCOME_NONE);
		trainer_reports(&trainer, STREW_OUTCOME_ABORTED, "gate", &report);
		strew_report_finish(&report);
		worker_event(&worker, STREW_EVENT_DONE, STREW_OUTCOME_ABORTED);
		worker_is_poisoned(&worker);
		resume(&worker);
		commit_held(&worker, &trainer, 1);
		/* Ready before anybody asked, and a resume that waits for the end. */
		assert_int_equal(strew_agent_ready(worker.agent, NULL), 0);
		publish(&trainer, 2, PATIENCE_MS);
		worker_event(&worker, STREW_EVENT_DONE, STREW_OUTCOME_COMMITTED);
		trainer_reports(&trainer, STREW_OUTCOME_COMMITTED, "", &report);
		strew_report_finish(&report);
		resume(&worker);
		worker_holds(&worker, 2);
		worker_stop(&worker);
		trainer_stop(&trainer);
	}
}

/* A played worker finds nothing changed, and is asked to hold its gate. */
static void raw_holds(struct raw *raw)
{
	struct message message;

	raw_expect(raw, MSG_CHECK, &message);
	message.type = MSG_CHECKED;
	memset(message.u.checked.text, 0, sizeof(message.u.checked.text));
	message.u.checked.code = WIRE_OK;
	raw_send(raw, &message);
	message_finish(&message);
	raw_expect(raw, MSG_HOLD, &message);
	message_finish(&message);
}

/* While a group waits for its gate: its worker dies, and the next one takes its place. */
static void test_a_worker_leaves_at_the_gate(void **state)
{
	(void)state;
	for (int apply = STREW_APPLY_DIRECT; apply <= STREW_APPLY_STAGED; apply++) {
		const char *model = apply == STREW_APPLY_DIRECT ? "gone direct" : "gone staged";
		struct strew_report report;
		struct trainer trainer;
		struct worker worker;
		struct draft draft;
		struct raw raw;

		draft_worker(&draft, model, whole, 1);
		draft.reg.gate = STREW_GATE_HELD;
		draft.reg.apply = (uint32_t)apply;
		raw_open(&raw, &one_broker, ROLE_WORKER);
		draft_register(&raw, &draft);
		start_trainer(&trainer, model, whole, 1, 1);
		publish(&trainer, 1, PATIENCE_MS);
		raw_holds(&raw);
		raw_close(&raw);
		trainer_reports(&trainer, STREW_OUTCOME_ABORTED, "is gone", &report);
		report_group(&report, 0, STREW_OUTCOME_LOST, "is gone");
		strew_report_finish(&report);
		start_held(&worker, model, (enum strew_apply)apply);
		commit_held(&worker, &trainer, 1);
		worker_stop(&worker);
		trainer_stop(&trainer);
		draft_finish(&draft);
	}
}

static void send_ready(struct raw *raw, uint64_t word)
{
	struct message message;

	message_init(&message, MSG_READY, 0);
	message.u.ready.word = word;
	raw_send(raw, &message);
}

/*
 * The stream gets to its ready word only after the gate was opened again: that is no readiness
 * any more, and the next update waits for the next word.
 */
static void test_a_word_that_comes_after_the_resume(void **state)
{
	(void)state;
	for (int apply = STREW_APPLY_DIRECT; apply <= STREW_APPLY_STAGED; apply++) {
		const char *model = apply == STREW_APPLY_DIRECT ? "word direct" : "word staged";
		struct strew_report report;
		struct trainer trainer;
		struct message message;
		struct draft draft;
		struct raw raw;

		draft_worker(&draft, model, whole, 1);
		draft.reg.gate = STREW_GATE_HELD;
		draft.reg.apply = (uint32_t)apply;
		raw_open(&raw, &one_broker, ROLE_WORKER);
		draft_register(&raw, &draft);
		start_trainer(&trainer, model, whole, 1, 1);
		send_ready(&raw, 1);
		message_init(&message, MSG_RESUME, 70);
		raw_send(&raw, &message);
		raw_expect(&raw, MSG_OK, &message);
		assert_int_equal(message.serial, 70);
		message_finish(&message);
		page_store(&raw.page, WORD_READY, 1);
		publish(&trainer, 1, PATIENCE_MS);
		raw_holds(&raw);
		raw_expect_silence(&raw, 300);
		send_ready(&raw, 2);
		page_store(&raw.page, WORD_READY, 2);
		raw_expect(&raw, MSG_DONE, &message);
		assert_int_equal(message.u.done.outcome, STREW_OUTCOME_COMMITTED);
		message_finish(&message);
		trainer_reports(&trainer, STREW_OUTCOME_COMMITTED, "", &report);
		strew_report_finish(&report);
		raw_close(&raw);
		trainer_stop(&trainer);
		draft_finish(&draft);
	}
}

/* Gone while the gate of a direct group is awaited: its memory is still to be read. */
static void test_a_trainer_is_gone_before_the_move(void **state)
{
	struct message message;
	struct trainer trainer;
	struct worker worker;
	struct draft draft;
	struct raw raw;

	(void)state;
	start_held(&worker, "before", STREW_APPLY_DIRECT);
	draft_trainer(&draft, "before", 0, whole, 1);
	for (unsigned i = 0; i < 3; i++) {
		raw_open(&raw, &one_broker, ROLE_TRAINER);
		draft_register(&raw, &draft);
		message_init(&message, MSG_PUBLISH, 5);
		message.u.publish.version = 1;
		/* The first one's stream never gets there. */
		message.u.publish.word = i == 0;
		raw_send(&raw, &message);
		raw_expect(&raw, MSG_OK, &message);
		message_finish(&message);
		if (i > 0) {
			worker_event(&worker, STREW_EVENT_HOLD, STREW_OUTCOME_NONE);
		}
		raw_close(&raw);
		if (i > 0) {
			worker_event(&worker, STREW_EVENT_DONE, STREW_OUTCOME_ABORTED);
			resume(&worker);
		}
	}
	worker_is_poisoned(&worker);
	start_trainer(&trainer, "before", whole, 1, 1);
	commit_held(&worker, &trainer, 1);
	trainer_stop(&trainer);
	worker_stop(&worker);
	draft_finish(&draft);
}

/*
 * The trainer's memory was released and it is gone; a staged group still waits for its gate.
 * The update stands, and the next trainer, with other tensors, is declared when it has ended.
 */
static void test_a_trainer_is_gone_after_the_move(void **state)
{
	struct strew_trainer_options options = {.model = "after", .timeout_ms = 200};
	struct strew_report report;
	struct trainer first, next, third;
	struct worker worker;

	(void)state;
	start_held(&worker, "after", STREW_APPLY_STAGED);
	start_trainer(&first, "after", whole, 1, 1);
	publish(&first, 1, PATIENCE_MS);
	worker_event(&worker, STREW_EVENT_HOLD, STREW_OUTCOME_NONE);
	assert_int_equal(strew_trainer_wait_released(first.trainer, PATIENCE_MS), 0);
	trainer_stop(&first);
	assert_int_equal(trainer_start(&next, &one_broker, options, other, 2), -ETIMEDOUT);
	assert_int_equal(strew_agent_ready(worker.agent, NULL), 0);
	worker_event(&worker, STREW_EVENT_DONE, STREW_OUTCOME_COMMITTED);
	resume(&worker);
	worker_holds(&worker, 1);
	/* The timeout took nothing back: the answer is only later. */
	assert_int_equal(strew_trainer_seal(next.trainer), 0);
	/* It hears of its own update only. */
	assert_int_equal(trainer_publish(&next, 1, 0, PATIENCE_MS, &report), -ESTALE);
	commit_held(&worker, &next, 2);
	/* And with nobody in between. */
	publish(&next, 3, PATIENCE_MS);
	worker_event(&worker, STREW_EVENT_HOLD, STREW_OUTCOME_NONE);
	assert_int_equal(strew_trainer_wait_released(next.trainer, PATIENCE_MS), 0);
	trainer_stop(&next);
	assert_int_equal(strew_agent_ready(worker.agent, NULL), 0);
	worker_event(&worker, STREW_EVENT_DONE, STREW_OUTCOME_COMMITTED);
	resume(&worker);
	start_trainer(&third, "after", whole, 1, 1);
	commit_held(&worker, &third, 4);
	trainer_stop(&third);
	worker_stop(&worker);
}

#define CASE(name) cmocka_unit_test_teardown(name, one_check)

int main(void)
{
	const struct CMUnitTest tests[] = {
		CASE(test_gates_that_are_not_held),
		CASE(test_a_worker_leaves_at_the_gate),
		CASE(test_a_word_that_comes_after_the_resume),
		CASE(test_a_trainer_is_gone_before_the_move),
		CASE(test_a_trainer_is_gone_after_the_move),
	};

	return test_finish(cmocka_run_group_tests(tests, one_start, one_finish), test_fds_at_start);
}
