/* What the README says is not guaranteed, as it is: who changes that has one sentence to take back.
 */
#include "broker/one.h"
#include "broker/peers.h"
#include "broker/subset.h"
#include <string.h>

static const struct rows rows[] = {
	{"a", STREW_F32, 16, 32, 0, 16}, {"b", STREW_F32, 16, 32, 0, 16}};

static void start(struct worker *worker, struct trainer *trainer, const char *model)
{
	struct strew_agent_options live_direct = {.model = model,
		.gate = STREW_GATE_LIVE,
		.apply = STREW_APPLY_DIRECT,
		.serve_thread = 1};

	assert_int_equal(worker_start(worker, &one_broker, live_direct, rows, 2), 0);
	assert_int_equal(trainer_start(trainer, &one_broker,
				 (struct strew_trainer_options){.model = model}, rows, 2),
		0);
	trainer_commits(trainer, 1);
	worker_holds(worker, 1);
}

/* Nobody asks an engine with a live gate: between two writes it runs on both versions. */
static void test_a_live_gate_mixes_versions(void **state)
{
	static const uint64_t mixture[] = {2, 1};
	struct strew_report report;
	struct strew_event event;
	struct trainer trainer;
	struct worker worker;

	(void)state;
	start(&worker, &trainer, "mixes");
	worker_event(&worker, STREW_EVENT_DONE, STREW_OUTCOME_COMMITTED);
	for (unsigned i = 0; i < 2; i++) {
		assert_int_equal(name_subset(&trainer, 1u << i), i + 1);
	}
	assert_int_equal(strew_trainer_open_parts(trainer.trainer, 2, 0, 0), 0);
	for (unsigned i = 0; i < 2; i++) {
		write_subset(&trainer, 2, 1u << i);
		assert_int_equal(strew_trainer_put(trainer.trainer, i + 1, NULL), 0);
		assert_int_equal(strew_trainer_wait_released(trainer.trainer, PATIENCE_MS), 0);
		if (i == 0) {
			worker_holds_each(&worker, mixture);
			assert_int_equal(strew_agent_dispatch(worker.agent, &event), 0);
		}
	}
	assert_int_equal(strew_trainer_close_parts(trainer.trainer), 0);
	trainer_reports(&trainer, STREW_OUTCOME_COMMITTED, "", &report);
	strew_report_finish(&report);
	worker_holds(&worker, 2);
	trainer_stop(&trainer);
	worker_stop(&worker);
}

/* The allocation lives, so the check of a begin finds nothing changed: what its owner has put there
 * since is written over. */
static void test_memory_that_is_used_again_is_written(void **state)
{
	struct trainer trainer;
	struct worker worker;

	(void)state;
	start(&worker, &trainer, "again");
	memset(worker.memory, 0x11, rows[0].n * rows[0].cols * sizeof(uint32_t));
	trainer_commits(&trainer, 2);
	worker_holds(&worker, 2);
	trainer_stop(&trainer);
	worker_stop(&worker);
}

#define CASE(name) cmocka_unit_test_teardown(name, one_check)

int main(void)
{
	const struct CMUnitTest tests[] = {
		CASE(test_a_live_gate_mixes_versions),
		CASE(test_memory_that_is_used_again_is_written),
	};

	return test_finish(cmocka_run_group_tests(tests, one_start, one_finish), test_fds_at_start);
}
