/* Memory of malloc() on both sides: twins, the copies out of them at commit, and what may go wrong.
 */
#include "base/util.h"
#include "broker/one.h"
#include "broker/peers.h"
#include "gpu/gpu.h"
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

static const struct rows whole[] = {{"w", STREW_F32, 64, 33, 0, 64}, {"x", STREW_I32, 5, 7, 0, 5}};
static const struct rows half[] = {{"w", STREW_F32, 64, 33, 32, 32}, {"x", STREW_I32, 5, 7, 2, 3}};

static int check(void **state)
{
	peers_ordinary = false;
	return one_check(state);
}

static void start_worker(struct worker *worker, const char *model, enum strew_apply apply,
	uint32_t member, uint32_t members, bool ordinary)
{
	struct strew_agent_options options = {.model = model,
		.apply = apply,
		.member = member,
		.members = members,
		.partial = 1,
		.timeout_ms = 3000};

	peers_ordinary = ordinary;
	assert_int_equal(worker_start(worker, &one_broker, options, member ? half : whole, 2), 0);
	peers_ordinary = false;
}

static void start_trainer(struct trainer *trainer, const char *model, const struct rows *rows,
	size_t n, bool ordinary)
{
	struct strew_trainer_options options = {.model = model, .ranks = 1, .timeout_ms = 3000};

	peers_ordinary = ordinary;
	assert_int_equal(trainer_start(trainer, &one_broker, options, rows, n), 0);
	peers_ordinary = false;
}

/* The routes of the model's only group. */
static void expect_routes(const char *model, uint64_t raw, uint64_t pull)
{
	struct message reply;

	broker_status(&one_broker, &reply);
	for (size_t i = 0; i < reply.u.status_reply.ngroups; i++) {
		const struct status_group *group = &reply.u.status_reply.groups[i];

		if (strcmp(group->model, model) == 0) {
			assert_int_equal(group->raw, raw);
			assert_int_equal(group->pull, pull);
			if (pull && !raw) {
				assert_int_equal(group->shadow, 0);
			}
			message_finish(&reply);
			return;
		}
	}
	fail_msg("no group of %s", model);
}

/* Every mixture of twins and exported memory; the guards between rows stay as they were. */
static void test_every_byte_arrives(void **state)
{
	(void)state;
	for (unsigned mix = 0; mix < 16; mix++) {
		enum strew_apply apply = mix & 1 ? STREW_APPLY_STAGED : STREW_APPLY_DIRECT;
		struct worker workers[2];
		struct trainer trainer;
		char model[16];
		uint64_t pull = (mix & 2 ? 2 : 0) + (mix & 4 ? 2 : 0);

		snprintf(model, sizeof(model), "mix%u", mix);
		start_worker(&workers[0], model, apply, 0, 2, mix & 2);
		start_worker(&workers[1], model, apply, 1, 2, mix & 4);
		start_trainer(&trainer, model, whole, 2, mix & 8);
		expect_routes(model, 4 - pull, pull);
		for (uint64_t version = 1; version <= 3; version++) {
			trainer_commits(&trainer, version);
			worker_holds(&workers[0], version);
			worker_holds(&workers[1], version);
		}
		worker_stop(&workers[0]);
		worker_stop(&workers[1]);
		trainer_stop(&trainer);
	}
}

/* A partial update leaves the live bytes of what it does not bring, whatever the twin holds. */
static void test_partial(void **state)
{
	(void)state;
	for (int apply = STREW_APPLY_DIRECT; apply <= STREW_APPLY_STAGED; apply++) {
		const char *model = apply == STREW_APPLY_DIRECT ? "part direct" : "part staged";
		struct strew_report report;
		struct trainer trainer;
		struct worker worker;

		start_worker(&worker, model, (enum strew_apply)apply, 0, 1, true);
		start_trainer(&trainer, model, whole, 1, true);
		assert_int_equal(
			trainer_publish(&trainer, 1, STREW_PUBLISH_PARTIAL, PATIENCE_MS, &report),
			STREW_OUTCOME_COMMITTED);
		strew_report_finish(&report);
		worker_holds_some(&worker, 1, 1);
		worker_stop(&worker);
		trainer_stop(&trainer);
	}
}

/* The memory is gone when the worker is to copy: DIRTY, and the worker's process lives. */
static void test_memory_that_cannot_be_written(void **state)
{
	struct strew_agent_options options = {.model = "sealed",
		.gate = STREW_GATE_LIVE,
		.apply = STREW_APPLY_STAGED,
		.members = 1,
		.partial = 1,
		.serve_thread = 1,
		.socket = one_broker.socket};
	struct strew_parameter parameter = {
		.name = "p", .dtype = STREW_F32, .ndim = 2, .shape = {64, 33}};
	struct strew_piece piece = {
		.tensor = "w", .dtype = STREW_F32, .ndim = 2, .shape = {64, 33}};
	size_t len = 64 * 33 * 4;
	struct strew_report report;
	struct strew_agent *agent;
	struct strew_event event;
	struct trainer trainer;
	void *memory;

	(void)state;
	memory = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	assert_true(memory != MAP_FAILED);
	parameter.data = memory;
	assert_int_equal(strew_agent_open(&options, &agent), 0);
	assert_int_equal(strew_agent_declare(agent, &parameter, &piece.parameter), 0);
	assert_int_equal(strew_agent_piece(agent, &piece), 0);
	assert_int_equal(strew_agent_register(agent), 0);
	start_trainer(&trainer, "sealed", whole, 2, true);
	assert_int_equal(mprotect(memory, len, PROT_READ), 0);
	trainer_write(&trainer, 1);
	assert_int_equal(strew_trainer_publish(trainer.trainer, 1, NULL, 0, PATIENCE_MS), 0);
	assert_int_equal(strew_agent_wait(agent, PATIENCE_MS, &event), 1);
	assert_int_equal(event.outcome, STREW_OUTCOME_DIRTY);
	assert_non_null(strstr(event.text, "cannot be written"));
	assert_int_equal(strew_trainer_wait_report(trainer.trainer, PATIENCE_MS, &report), 0);
	report_group(&report, 0, STREW_OUTCOME_DIRTY, "cannot be written");
	strew_report_finish(&report);
	/* A whole update heals it. */
	assert_int_equal(mprotect(memory, len, PROT_READ | PROT_WRITE), 0);
	trainer_commits(&trainer, 2);
	assert_memory_equal(memory, trainer.memory, len);
	/* And memory that was unmapped is found by the check before. */
	assert_int_equal(munmap(memory, len), 0);
	trainer_write(&trainer, 3);
	assert_int_equal(strew_trainer_publish(trainer.trainer, 3, NULL, 0, PATIENCE_MS), 0);
	trainer_reports(&trainer, STREW_OUTCOME_ABORTED, "nobody", &report);
	strew_report_finish(&report);
	strew_agent_close(agent);
	trainer_stop(&trainer);
}

/* A played worker is asked to copy: it is gone, says nothing until the deadline, or says it late.
 */
static void test_workers_that_do_not_copy(void **state)
{
	(void)state;
	for (unsigned mix = 0; mix < 4; mix++) {
		bool silent = mix & 2;
		struct strew_report report;
		struct trainer trainer;
		struct message message;
		struct worker worker;
		struct draft draft;
		struct raw raw;
		uint64_t update;
		char model[16];

		snprintf(model, sizeof(model), "mute%u", mix);
		draft_worker(&draft, model, whole, 2);
		draft.reg.apply = mix & 1 ? STREW_APPLY_STAGED : STREW_APPLY_DIRECT;
		draft.reg.members = 2;
		draft.reg.partial = 1;
		draft.reg.member = 0;
		draft.allocation.kind = HANDLE_PULL;
		raw_open(&raw, &one_broker, ROLE_WORKER);
		draft_register(&raw, &draft);
		start_worker(&worker, model, (enum strew_apply)draft.reg.apply, 1, 2, true);
		start_trainer(&trainer, model, whole, 2, true);
		trainer_write(&trainer, 1);
		assert_int_equal(
			strew_trainer_publish(trainer.trainer, 1, NULL, 0, silent ? 500 : 9000), 0);
		update = raw_answer_check(&raw, 0, "");
		raw_expect(&raw, MSG_APPLY, &message);
		message_finish(&message);
		if (!silent) {
			raw_close(&raw);
		}
		worker_event(&worker, STREW_EVENT_DONE,
			silent ? STREW_OUTCOME_DIRTY : STREW_OUTCOME_LOST);
		assert_int_equal(
			strew_trainer_wait_report(trainer.trainer, PATIENCE_MS, &report), 0);
		report_group(&report, 0, silent ? STREW_OUTCOME_DIRTY : STREW_OUTCOME_LOST,
			silent ? "did not copy" : "is gone");
		strew_report_finish(&report);
		if (silent) {
			/* A word that comes after all changes nothing. */
			raw_expect(&raw, MSG_DONE, &message);
			message_finish(&message);
			message_init(&message, MSG_APPLIED_ROUTE, 0);
			message.u.checked.update = update;
			raw_send(&raw, &message);
			assert_int_equal(broker_group_state(&one_broker, model), STREW_GROUP_DIRTY);
			raw_close(&raw);
		}
		worker_stop(&worker);
		trainer_stop(&trainer);
		draft_finish(&draft);
	}
}

#define CASE(name) cmocka_unit_test_teardown(name, check)

int main(void)
{
	const struct CMUnitTest tests[] = {
		CASE(test_every_byte_arrives),
		CASE(test_partial),
		CASE(test_memory_that_cannot_be_written),
		CASE(test_workers_that_do_not_copy),
	};

	return test_finish(cmocka_run_group_tests(tests, one_start, one_finish), test_fds_at_start);
}
