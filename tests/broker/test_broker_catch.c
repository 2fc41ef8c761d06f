/*
 * Groups that have missed a version take it from a sibling at their broker, between updates: who
 * does, who does not, when its gate is asked, and what happens if somebody goes or an update comes.
 */
#include "base/util.h"
#include "broker/catcher.h"
#include "broker/one.h"
#include "broker/subset.h"
#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>

static const struct rows whole[] = {
	{"w", STREW_F32, 16, 32, 0, 16}, {"norm", STREW_F32, 1, 40, 0, 1}};
static const struct rows upper[] = {
	{"w", STREW_F32, 16, 32, 0, 8}, {"norm", STREW_F32, 1, 40, 0, 1}};
static const struct rows lower[] = {
	{"w", STREW_F32, 16, 32, 8, 8}, {"norm", STREW_F32, 1, 40, 0, 1}};

static void start(struct worker *worker, const char *model, uint32_t replica,
	struct strew_agent_options options, const struct rows *rows)
{
	int rc;

	options.model = model;
	options.replica = replica;
	options.timeout_ms = 5000;
	rc = worker_start(worker, &one_broker, options, rows, 2);
	if (rc) {
		print_error("%s\n", strew_error());
	}
	assert_int_equal(rc, 0);
}

static void start_trainer(struct trainer *trainer, const char *model)
{
	int rc = trainer_start(
		trainer, &one_broker, (struct strew_trainer_options){.model = model}, whole, 2);

	if (rc) {
		print_error("%s\n", strew_error());
	}
	assert_int_equal(rc, 0);
}

/* Replica 0 at version 1, and nobody who could publish another one. */
static void start_sibling(struct worker *worker, const char *model)
{
	struct trainer trainer;

	start(worker, model, 0, (struct strew_agent_options){0}, whole);
	start_trainer(&trainer, model);
	trainer_commits(&trainer, 1);
	trainer_stop(&trainer);
}

static const enum strew_apply applies[] = {STREW_APPLY_DIRECT, STREW_APPLY_STAGED};

/* No trainer is left. Its gate is live: nothing is asked of anybody. */
static void test_a_new_engine(void **state)
{
	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(applies); i++) {
		const char *model = i ? "new staged" : "new direct";
		struct worker sibling, late, again;

		start_sibling(&sibling, model);
		start(&late, model, 1, (struct strew_agent_options){.apply = applies[i]}, whole);
		worker_is_current(&late, 1);
		/* Its successor in the same place has nothing again. */
		worker_stop(&late);
		start(&again, model, 1, (struct strew_agent_options){.apply = applies[i]}, whole);
		worker_is_current(&again, 1);
		worker_holds(&sibling, 1);
		worker_stop(&again);
		worker_stop(&sibling);
	}
	assert_true(broker_said(&one_broker,
		"model new staged replica 1 part 0 caught up with version 1 from replica 0 part "
		"0, 2.2 KiB in "));
}

/* Members of other numbers, with a gate that is held: nothing is written before both stand. */
static void test_the_gate(void **state)
{
	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(applies); i++) {
		const char *model = i ? "gate staged" : "gate direct";
		struct strew_agent_options options = {
			.gate = STREW_GATE_HELD, .apply = applies[i], .members = 2};
		struct worker sibling, late[2];
		struct strew_event event;
		int rc;

		start_sibling(&sibling, model);
		for (uint32_t m = 0; m < 2; m++) {
			options.member = m;
			start(&late[m], model, 1, options, m ? lower : upper);
			if (m == 0) {
				/* Nobody is asked to hold for a group that is not whole. */
				worker_hears_nothing(&late[0]);
			}
		}
		/* Both are asked for their memory first, which the second may have answered while
		 * it registered, then to hold. */
		rc = strew_agent_wait(late[0].agent, WHILE_MS, &event);
		assert_true(rc == -ETIMEDOUT || (rc == 1 && event.type == STREW_EVENT_HOLD));
		worker_event(&late[1], STREW_EVENT_HOLD, STREW_OUTCOME_NONE);
		if (rc < 0) {
			worker_event(&late[0], STREW_EVENT_HOLD, STREW_OUTCOME_NONE);
		}
		assert_int_equal(strew_agent_ready(late[0].agent, NULL), 0);
		assert_int_equal(strew_agent_resume(late[0].agent, 300), -ETIMEDOUT);
		for (unsigned m = 0; m < 2; m++) {
			worker_is_poisoned(&late[m]);
		}
		assert_int_equal(group_place(&one_broker, model, 1, 0).state, STREW_GROUP_STALE);
		assert_int_equal(strew_agent_ready(late[1].agent, NULL), 0);
		for (unsigned m = 0; m < 2; m++) {
			worker_event(&late[m], STREW_EVENT_DONE, STREW_OUTCOME_COMMITTED);
			assert_int_equal(strew_agent_resume(late[m].agent, PATIENCE_MS), 0);
			worker_is_current(&late[m], 1);
		}
		/* Two of them to one, as well. */
		worker_stop(&sibling);
		start(&sibling, model, 0, (struct strew_agent_options){0}, whole);
		worker_is_current(&sibling, 1);
		for (unsigned m = 0; m < 2; m++) {
			worker_stop(&late[m]);
		}
		worker_stop(&sibling);
	}
}

/* It was late for version 2, takes it afterwards, and so has the base of a subset above it. */
static void test_one_that_sat_out(void **state)
{
	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(applies); i++) {
		const char *model = i ? "sat staged" : "sat direct";
		struct worker sibling, late;
		struct strew_report report;
		struct trainer trainer;
		uint64_t held[PEER_ROWS] = {2, 3};

		start(&sibling, model, 0, (struct strew_agent_options){0}, whole);
		start(&late, model, 1,
			(struct strew_agent_options){.gate = STREW_GATE_HELD, .apply = applies[i]},
			whole);
		start_trainer(&trainer, model);
		assert_int_equal(name_subset(&trainer, 2), 1);
		trainer_write(&trainer, 2);
		assert_int_equal(strew_trainer_publish(trainer.trainer, 2, NULL, 0, 400), 0);
		trainer_reports(&trainer, STREW_OUTCOME_SAT_OUT, "", &report);
		report_group(&report, 1, STREW_OUTCOME_SAT_OUT, "gate");
		strew_report_finish(&report);
		worker_sits_out(&late);
		worker_is_poisoned(&late);
		worker_takes(&late, 2);
		assert_int_equal(strew_agent_ready(late.agent, NULL), 0);
		write_subset(&trainer, 3, 2);
		assert_int_equal(strew_trainer_publish_subset(
					 trainer.trainer, 1, 2, 3, NULL, 0, PATIENCE_MS),
			0);
		worker_event(&late, STREW_EVENT_DONE, STREW_OUTCOME_COMMITTED);
		trainer_reports(&trainer, STREW_OUTCOME_COMMITTED, "", &report);
		strew_report_finish(&report);
		worker_holds_each(&late, held);
		worker_stop(&late);
		worker_stop(&sibling);
		trainer_stop(&trainer);
	}
}

static void map_draft(const struct draft *draft, uint32_t **ret_memory)
{
	void *memory = mmap(NULL, 65536, PROT_READ | PROT_WRITE, MAP_SHARED, draft->fd, 0);

	assert_true(memory != MAP_FAILED);
	*ret_memory = memory;
}

/* What is DIRTY gets a whole set of bytes, and is CURRENT with its siblings' version. */
static void test_dirty_is_healed(void **state)
{
	struct worker sibling;
	struct message message;
	struct draft draft;
	struct raw raw;
	uint32_t *memory;

	(void)state;
	start_sibling(&sibling, "dirty");
	draft_worker(&draft, "dirty", whole, 2);
	draft.reg.replica = 1;
	draft.reg.state = STREW_GROUP_DIRTY;
	draft.reg.version = 1;
	map_draft(&draft, &memory);
	raw_open(&raw, &one_broker, ROLE_WORKER);
	draft_register(&raw, &draft);
	raw_answer_check(&raw, 0, "");
	raw_expect(&raw, MSG_DONE, &message);
	assert_int_equal(message.u.done.state, STREW_GROUP_CURRENT);
	assert_int_equal(message.u.done.version, 1);
	message_finish(&message);
	assert_memory_equal(memory, sibling.memory, 16 * 32 * 4);
	munmap(memory, 65536);
	raw_close(&raw);
	draft_finish(&draft);
	worker_stop(&sibling);
}

/* Another layout, other tensors, or a twin: these wait for the next version. */
static void test_who_is_not_covered(void **state)
{
	static const struct rows other[] = {
		{"w", STREW_F32, 16, 32, 0, 16}, {"x", STREW_F32, 1, 40, 0, 1}};
	struct strew_agent_options partial = {.partial = 1};
	struct worker sibling, workers[3];
	struct trainer trainer;

	(void)state;
	start(&sibling, "covered", 0, (struct strew_agent_options){0}, upper);
	start_trainer(&trainer, "covered");
	trainer_commits(&trainer, 1);
	start(&workers[0], "covered", 1, (struct strew_agent_options){0}, whole);
	start(&workers[1], "covered", 2, partial, other);
	peers_ordinary = true;
	start(&workers[2], "covered", 3, (struct strew_agent_options){0}, upper);
	peers_ordinary = false;
	for (unsigned i = 0; i < 3; i++) {
		worker_hears_nothing(&workers[i]);
		worker_is_poisoned(&workers[i]);
		assert_int_equal(
			group_place(&one_broker, "covered", i + 1, 0).state, STREW_GROUP_STALE);
	}
	assert_true(broker_said(&one_broker,
		"model covered replica 1 part 0 cannot take version 1 from replica 0 part 0: "
		"parameter parameter.0.w: the sibling does not hold all of tensor w"));
	worker_stop(&workers[1]);
	trainer_commits(&trainer, 2);
	worker_is_current(&workers[0], 2);
	worker_is_current(&workers[2], 2);
	/* Out of a twin nothing is taken either: the upper half is in one alone now. */
	worker_stop(&workers[0]);
	worker_stop(&sibling);
	start(&workers[0], "covered", 1, (struct strew_agent_options){0}, upper);
	worker_hears_nothing(&workers[0]);
	worker_is_poisoned(&workers[0]);
	worker_stop(&workers[0]);
	worker_stop(&workers[2]);
	trainer_stop(&trainer);
}

/* Two siblings, of which the first has not all: the other one is asked. */
static void test_the_next_sibling(void **state)
{
	struct worker all, half, late;
	struct trainer trainer;

	(void)state;
	for (unsigned order = 0; order < 2; order++) {
		const char *model = order ? "half first" : "all first";

		start(order ? &half : &all, model, 0, (struct strew_agent_options){0},
			order ? upper : whole);
		start(order ? &all : &half, model, 1, (struct strew_agent_options){0},
			order ? whole : upper);
		start_trainer(&trainer, model);
		trainer_commits(&trainer, 1);
		start(&late, model, 2, (struct strew_agent_options){0}, whole);
		worker_is_current(&late, 1);
		worker_stop(&late);
		worker_stop(&half);
		worker_stop(&all);
		trainer_stop(&trainer);
	}
}

/* A replica of two groups goes on only as a whole; if it was just started, each by itself. */
static void test_a_replica_of_two_groups(void **state)
{
	struct strew_agent_options held = {.gate = STREW_GATE_HELD};
	struct worker sibling, parts[2], single;
	struct strew_report report;
	struct trainer trainer;

	(void)state;
	start(&sibling, "parts", 0, (struct strew_agent_options){0}, whole);
	start_trainer(&trainer, "parts");
	trainer_commits(&trainer, 1);
	for (uint32_t part = 0; part < 2; part++) {
		held.part = part;
		start(&parts[part], "parts", 1, held, part ? lower : upper);
		worker_takes(&parts[part], 1);
	}
	held.part = 0;
	start(&single, "parts", 2, held, whole);
	worker_takes(&single, 1);
	trainer_write(&trainer, 2);
	assert_int_equal(strew_trainer_publish(trainer.trainer, 2, NULL, 0, 400), 0);
	trainer_reports(&trainer, STREW_OUTCOME_SAT_OUT, "", &report);
	strew_report_finish(&report);
	for (unsigned part = 0; part < 2; part++) {
		worker_sits_out(&parts[part]);
		worker_hears_nothing(&parts[part]);
		worker_holds(&parts[part], 1);
	}
	worker_sits_out(&single);
	worker_takes(&single, 2);
	worker_stop(&single);
	worker_stop(&parts[0]);
	worker_stop(&parts[1]);
	worker_stop(&sibling);
	trainer_stop(&trainer);
}

/* While the gate is awaited the sibling goes: before its bytes were copied there is nothing to be
 * had any more; a shadow that has them all is enough. */
static void test_the_sibling_goes(void **state)
{
	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(applies); i++) {
		const char *model = i ? "gone staged" : "gone direct";
		struct worker sibling, late;

		start_sibling(&sibling, model);
		start(&late, model, 1,
			(struct strew_agent_options){.gate = STREW_GATE_HELD, .apply = applies[i]},
			whole);
		worker_event(&late, STREW_EVENT_HOLD, STREW_OUTCOME_NONE);
		worker_stop(&sibling);
		if (applies[i] == STREW_APPLY_DIRECT) {
			worker_event(&late, STREW_EVENT_DONE, STREW_OUTCOME_ABORTED);
			worker_is_poisoned(&late);
			assert_int_equal(
				group_place(&one_broker, model, 1, 0).state, STREW_GROUP_STALE);
		} else {
			assert_int_equal(strew_agent_ready(late.agent, NULL), 0);
			worker_event(&late, STREW_EVENT_DONE, STREW_OUTCOME_COMMITTED);
			worker_is_current(&late, 1);
		}
		worker_stop(&late);
	}
}

/* A member goes while the gate is awaited, another one comes, and all begins anew. */
static void test_a_member_goes(void **state)
{
	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(applies); i++) {
		const char *model = i ? "left staged" : "left direct";
		struct worker sibling, late;
		struct message message;
		struct draft draft;
		struct raw raw;

		start_sibling(&sibling, model);
		draft_worker(&draft, model, whole, 2);
		draft.reg.replica = 1;
		draft.reg.gate = STREW_GATE_HELD;
		draft.reg.apply = applies[i];
		raw_open(&raw, &one_broker, ROLE_WORKER);
		draft_register(&raw, &draft);
		raw_answer_check(&raw, 0, "");
		raw_expect(&raw, MSG_HOLD, &message);
		message_finish(&message);
		raw_close(&raw);
		group_wait(&one_broker, model, 1, 0, STREW_GROUP_LOST, 0);
		start(&late, model, 1,
			(struct strew_agent_options){.gate = STREW_GATE_HELD, .apply = applies[i]},
			whole);
		worker_takes(&late, 1);
		worker_stop(&late);
		worker_stop(&sibling);
		draft_finish(&draft);
	}
}

/* It finds that its memory has moved: it is left alone until the next version. */
static void test_a_check_that_fails(void **state)
{
	struct worker sibling;
	struct message message;
	struct draft draft;
	uint64_t update;
	struct raw raw;

	(void)state;
	start_sibling(&sibling, "moved");
	draft_worker(&draft, "moved", whole, 2);
	draft.reg.replica = 1;
	raw_open(&raw, &one_broker, ROLE_WORKER);
	draft_register(&raw, &draft);
	raw_expect(&raw, MSG_CHECK, &message);
	update = message.u.check.update;
	message_finish(&message);
	message_init(&message, MSG_CHECKED, 0);
	message.u.checked.update = update;
	message.u.checked.code = error_to_wire(-EIO);
	string_copy(message.u.checked.text, sizeof(message.u.checked.text), "it has moved");
	raw_send(&raw, &message);
	raw_expect(&raw, MSG_DONE, &message);
	assert_int_equal(message.u.done.outcome, STREW_OUTCOME_ABORTED);
	assert_int_equal(message.u.done.state, STREW_GROUP_STALE);
	assert_non_null(strstr(message.u.done.text, "it has moved"));
	message_finish(&message);
	raw_expect_silence(&raw, 300);
	raw_close(&raw);
	draft_finish(&draft);
	worker_stop(&sibling);
}

/* A publish comes while the gate is awaited: the group takes part in that update instead. */
static void test_a_publish_comes(void **state)
{
	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(applies); i++) {
		const char *model = i ? "comes staged" : "comes direct";
		struct worker sibling, late;
		struct strew_report report;
		struct trainer trainer;

		start(&sibling, model, 0, (struct strew_agent_options){0}, whole);
		start_trainer(&trainer, model);
		trainer_commits(&trainer, 1);
		start(&late, model, 1,
			(struct strew_agent_options){.gate = STREW_GATE_HELD, .apply = applies[i]},
			whole);
		worker_event(&late, STREW_EVENT_HOLD, STREW_OUTCOME_NONE);
		trainer_write(&trainer, 2);
		assert_int_equal(
			strew_trainer_publish(trainer.trainer, 2, NULL, 0, PATIENCE_MS), 0);
		worker_event(&late, STREW_EVENT_DONE, STREW_OUTCOME_ABORTED);
		worker_is_poisoned(&late);
		worker_takes(&late, 2);
		trainer_reports(&trainer, STREW_OUTCOME_COMMITTED, "", &report);
		assert_true(report.wait_s < 2);
		strew_report_finish(&report);
		worker_holds(&sibling, 2);
		worker_stop(&late);
		worker_stop(&sibling);
		trainer_stop(&trainer);
	}
}

/* A group that waits for its gate does not keep the broker from stopping. */
static void test_the_broker_stops(void **state)
{
	struct strew_agent_options options = {.model = "stops"};
	struct worker sibling, late;
	struct broker alone = {0};
	struct trainer trainer;

	(void)state;
	broker_start(&alone, NULL);
	assert_int_equal(worker_start(&sibling, &alone, options, whole, 2), 0);
	assert_int_equal(trainer_start(&trainer, &alone,
				 (struct strew_trainer_options){.model = "stops"}, whole, 2),
		0);
	trainer_commits(&trainer, 1);
	options.replica = 1;
	options.gate = STREW_GATE_HELD;
	assert_int_equal(worker_start(&late, &alone, options, whole, 2), 0);
	worker_event(&late, STREW_EVENT_HOLD, STREW_OUTCOME_NONE);
	assert_int_equal(broker_stop(&alone, SIGTERM), 0);
	worker_is_poisoned(&late);
	worker_stop(&late);
	worker_stop(&sibling);
	trainer_stop(&trainer);
	broker_finish(&alone);
}

#define CASE(name) cmocka_unit_test_teardown(name, one_check)

int main(void)
{
	const struct CMUnitTest tests[] = {
		CASE(test_a_new_engine),
		CASE(test_the_gate),
		CASE(test_one_that_sat_out),
		CASE(test_dirty_is_healed),
		CASE(test_who_is_not_covered),
		CASE(test_the_next_sibling),
		CASE(test_a_replica_of_two_groups),
		CASE(test_the_sibling_goes),
		CASE(test_a_member_goes),
		CASE(test_a_check_that_fails),
		CASE(test_a_publish_comes),
		CASE(test_the_broker_stops),
	};

	test_seed();
	return test_finish(cmocka_run_group_tests(tests, one_start, one_finish), test_fds_at_start);
}
