/* Two trainer ranks at two of three real brokers: who holds what, and who is waited for. */
#include "base/util.h"
#include "broker/nodes.h"
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static void test_every_byte(void **state)
{
	static const unsigned places[][2] = {
		{0, 1}, {1, 0}, {1, 2}, {2, 1}, {1, 1}, {0, 0}, {0, 2}};

	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(places); i++) {
		struct scene scene;

		scene_draw(&scene);
		ranks_start(&scene, places[i][0], places[i][1]);
		workers_start(&scene);
		for (unsigned turn = 0; turn < 4; turn++) {
			assert_true(ranks_commit(&scene, ++version) > 0);
			workers_hold(&scene, version);
		}
		workers_stop(&scene);
		ranks_stop(&scene);
	}
}

/* Only what is not there already goes by wire: all ranks and all workers on one node, nothing. */
static void test_all_on_one_node(void **state)
{
	struct scene scene;
	struct rows rows[TENSORS];

	(void)state;
	scene_draw(&scene);
	for (unsigned node = 0; node < NODES; node++) {
		memcpy(rows, scene.held[0], scene.nheld[0] * sizeof(*rows));
		ranks_start(&scene, node, node);
		assert_int_equal(
			worker_start(&scene.workers[0], &nodes[node],
				(struct strew_agent_options){.model = "m"}, rows, scene.nheld[0]),
			0);
		assert_int_equal(ranks_commit(&scene, ++version), 0);
		worker_holds(&scene.workers[0], version);
		worker_stop(&scene.workers[0]);
		ranks_stop(&scene);
	}
}

static void test_a_rank_that_does_not_publish(void **state)
{
	static const unsigned places[][2] = {{0, 1}, {1, 0}, {1, 2}};

	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(places); i++) {
		struct scene scene;

		scene_draw(&scene);
		ranks_start(&scene, places[i][0], places[i][1]);
		workers_start(&scene);
		ranks_commit(&scene, ++version);
		for (uint32_t rank = 0; rank < 2; rank++) {
			struct strew_report report;
			char word[32];

			snprintf(word, sizeof(word), "rank %u did not publish", 1 - rank);
			assert_int_equal(rank_publish(&scene, rank, version + 1, 200), 0);
			assert_int_equal(
				strew_trainer_wait_released(scene.ranks[rank].trainer, PATIENCE_MS),
				0);
			trainer_reports(&scene.ranks[rank], STREW_OUTCOME_ABORTED, word, &report);
			strew_report_finish(&report);
			workers_hold(&scene, version);
		}
		ranks_commit(&scene, ++version);
		workers_hold(&scene, version);
		workers_stop(&scene);
		ranks_stop(&scene);
	}
}

static void test_versions_that_differ(void **state)
{
	struct strew_report report;
	struct scene scene;

	(void)state;
	scene_draw(&scene);
	ranks_start(&scene, 0, 1);
	workers_start(&scene);
	ranks_commit(&scene, ++version);
	for (uint32_t rank = 0; rank < 2; rank++) {
		struct strew_trainer *first = scene.ranks[rank].trainer,
				     *second = scene.ranks[1 - rank].trainer;

		/* The first one's is taken before the second one says its own. */
		assert_int_equal(rank_publish(&scene, rank, version + 1, PATIENCE_MS), 0);
		broker_wait_ranks(&nodes[0], 2, "waiting for ranks");
		assert_int_equal(rank_publish(&scene, 1 - rank, version + 2, PATIENCE_MS), 0);
		assert_int_equal(strew_trainer_wait_report(second, PATIENCE_MS, &report), -EINVAL);
		assert_non_null(strstr(strew_error(), "the other ranks version"));
		workers_hold(&scene, version);
		assert_int_equal(rank_publish(&scene, 1 - rank, version + 1, PATIENCE_MS), 0);
		for (uint32_t i = 0; i < 2; i++) {
			trainer_reports(&scene.ranks[i], STREW_OUTCOME_COMMITTED, "", &report);
			strew_report_finish(&report);
		}
		workers_hold(&scene, ++version);
		/* And one that is not above the committed one, from any node. */
		assert_int_equal(rank_publish(&scene, rank, version, PATIENCE_MS), 0);
		assert_int_equal(strew_trainer_wait_report(first, PATIENCE_MS, &report), -ESTALE);
	}
	workers_stop(&scene);
	ranks_stop(&scene);
}

static void test_declarations_that_do_not_agree(void **state)
{
	struct starting starts[2];
	struct scene scene;
	struct rows saved;

	(void)state;
	scene_draw(&scene);
	/* Another number of ranks; the same rank. */
	rank_start(&starts[0], &scene, 0, 1);
	broker_wait_ranks(&nodes[0], 1, "idle");
	starts[1] = (struct starting){.trainer = &scene.ranks[1],
		.broker = &nodes[2],
		.options = {.model = "m", .rank = 2, .ranks = 3},
		.rows = scene.held[1],
		.nrows = scene.nheld[1]};
	rank_starts(&starts[1]);
	assert_int_equal(starts[1].rc, -EINVAL);
	assert_non_null(strstr(starts[1].text, "2 trainer ranks, rank 2 says 3"));
	trainer_stop(&scene.ranks[1]);
	starts[1].options.rank = 0;
	starts[1].options.ranks = 2;
	rank_starts(&starts[1]);
	assert_int_equal(starts[1].rc, -EEXIST);
	assert_non_null(strstr(starts[1].text, "rank 0 is registered already, by a process at"));
	trainer_stop(&scene.ranks[1]);
	rank_start(&starts[1], &scene, 1, 2);
	rank_started(&starts[0], 0, "");
	rank_started(&starts[1], 0, "");
	workers_start(&scene);
	ranks_commit(&scene, ++version);
	workers_hold(&scene, version);
	ranks_stop(&scene);
	/* Another dtype, another shape: everybody hears of which tensor. */
	for (unsigned i = 0; i < 2; i++) {
		saved = scene.held[1][0];
		if (i) {
			scene.held[1][0].cols++;
		} else {
			scene.held[1][0].dtype = STREW_I32;
		}
		rank_start(&starts[0], &scene, 0, 2 * i);
		rank_start(&starts[1], &scene, 1, 1);
		rank_started(&starts[0], -EINVAL, saved.tensor);
		rank_started(&starts[1], -EINVAL, saved.tensor);
		scene.held[1][0] = saved;
		ranks_stop(&scene);
	}
	workers_stop(&scene);
}

#define CASE(name) cmocka_unit_test_teardown(name, nodes_check)

int main(void)
{
	const struct CMUnitTest tests[] = {
		CASE(test_every_byte),
		CASE(test_all_on_one_node),
		CASE(test_a_rank_that_does_not_publish),
		CASE(test_versions_that_differ),
		CASE(test_declarations_that_do_not_agree),
	};

	return test_finish(
		cmocka_run_group_tests(tests, nodes_start, nodes_finish), test_fds_at_start);
}
