/* Subsets of what two ranks hold together, at any two of three real brokers. */
#include "base/util.h"
#include "broker/nodes.h"
#include "broker/subset.h"
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>

/* Naming waits for the other rank, so that one of the two does it in a thread. */
struct naming {
	struct trainer *trainer;
	unsigned bits;
	int rc;
	uint32_t subset;
	char text[240];
	pthread_t thread;
};

static void *names_one(void *data)
{
	struct naming *naming = data;
	const char *names[PEER_ROWS];
	size_t n = names_of(naming->trainer->rows, naming->trainer->nrows, naming->bits, names);

	naming->rc = strew_trainer_subset(naming->trainer->trainer, names, n, &naming->subset);
	string_copy(naming->text, sizeof(naming->text), strew_error());
	return NULL;
}

/* Tensors of the scene by their bits, as rank has declared them. */
static unsigned bits_of_rank(const struct scene *scene, uint32_t rank, unsigned tensors)
{
	unsigned bits = 0;

	for (size_t i = 0; i < scene->nheld[rank]; i++) {
		for (unsigned t = 0; t < TENSORS; t++) {
			if (tensors >> t & 1 && scene->held[rank][i].tensor == scene->names[t]) {
				bits |= 1u << i;
			}
		}
	}
	return bits;
}

static void both_name(
	struct scene *scene, const unsigned bits[2], int code, const char *word, uint32_t subset)
{
	struct naming naming[2];

	for (uint32_t i = 0; i < 2; i++) {
		naming[i] = (struct naming){.trainer = &scene->ranks[i], .bits = bits[i]};
		assert_int_equal(pthread_create(&naming[i].thread, NULL, names_one, &naming[i]), 0);
	}
	for (uint32_t i = 0; i < 2; i++) {
		assert_int_equal(pthread_join(naming[i].thread, NULL), 0);
		if (naming[i].rc != code || (code && !strstr(naming[i].text, word))) {
			print_error("%d: %s\n", naming[i].rc, naming[i].text);
		}
		assert_int_equal(naming[i].rc, code);
		assert_true(!code || strstr(naming[i].text, word));
		assert_true(code || naming[i].subset == subset);
	}
}

static void expect_rows(const struct scene *scene, const uint64_t versions[TENSORS])
{
	for (unsigned node = 0; node < NODES; node++) {
		const struct worker *worker = &scene->workers[node];
		uint64_t held[PEER_ROWS] = {0};

		for (size_t i = 0; i < worker->nrows; i++) {
			for (unsigned t = 0; t < TENSORS; t++) {
				if (worker->rows[i].tensor == scene->names[t]) {
					held[i] = versions[t];
				}
			}
		}
		worker_holds_each(worker, held);
	}
}

/* Both ranks publish the subset; the other rows of both are scribbled over. */
static void both_publish(
	struct scene *scene, uint32_t subset, unsigned tensors, uint64_t base, uint64_t number)
{
	for (uint32_t i = 0; i < 2; i++) {
		write_subset(&scene->ranks[i], number, bits_of_rank(scene, i, tensors));
		assert_int_equal(strew_trainer_publish_subset(scene->ranks[i].trainer, subset, base,
					 number, NULL, 0, PATIENCE_MS),
			0);
	}
	for (uint32_t i = 0; i < 2; i++) {
		struct strew_report report;

		trainer_reports(&scene->ranks[i], STREW_OUTCOME_COMMITTED, "", &report);
		assert_int_equal(report.tensors, __builtin_popcount(tensors));
		strew_report_finish(&report);
	}
}

static void test_two_ranks(void **state)
{
	static const unsigned places[][2] = {{0, 1}, {1, 0}, {1, 2}, {1, 1}, {0, 0}};
	/* Of both, of the first rank alone, of the second alone. */
	static const unsigned subsets[] = {1u << BIG | 1u << FIRST, 1u << FIRST, 1u << SECOND,
		1u << HALVES | 1u << SECOND | 1u << FIRST};

	(void)state;
	for (size_t p = 0; p < ARRAY_LEN(places); p++) {
		uint64_t held[TENSORS];
		struct scene scene;
		unsigned bits[2];

		scene_draw(&scene);
		ranks_start(&scene, places[p][0], places[p][1]);
		workers_start(&scene);
		ranks_commit(&scene, ++version);
		for (unsigned i = 0; i < TENSORS; i++) {
			held[i] = version;
		}
		/* One rank has forgotten what it holds of BIG. */
		bits[0] = bits_of_rank(&scene, 0, subsets[0]);
		bits[1] = 0;
		both_name(&scene, bits, -EINVAL, scene.names[BIG], 0);
		for (unsigned s = 0; s < ARRAY_LEN(subsets); s++) {
			for (uint32_t i = 0; i < 2; i++) {
				bits[i] = bits_of_rank(&scene, i, subsets[s]);
			}
			both_name(&scene, bits, 0, "", s + 1);
		}
		for (unsigned turn = 0; turn < 8; turn++) {
			unsigned s = turn % ARRAY_LEN(subsets);

			both_publish(&scene, s + 1, subsets[s], version, version + 1);
			version++;
			for (unsigned i = 0; i < TENSORS; i++) {
				held[i] = subsets[s] >> i & 1 ? version : held[i];
			}
			expect_rows(&scene, held);
		}
		ranks_commit(&scene, ++version);
		workers_hold(&scene, version);
		workers_stop(&scene);
		ranks_stop(&scene);
	}
}

/* A rank that gives up waiting names the same again, and nothing else. */
static void test_a_rank_that_names_late(void **state)
{
	(void)state;
	for (unsigned first = 0; first < 2; first++) {
		static const unsigned other = 1u << FIRST, after = 1u << HALVES;
		struct starting starts[2];
		const char *names[PEER_ROWS];
		uint64_t held[TENSORS];
		struct scene scene;
		uint32_t subset = 0;
		unsigned bits[2];
		size_t n;

		scene_draw(&scene);
		for (uint32_t i = 0; i < 2; i++) {
			starts[i] = (struct starting){.trainer = &scene.ranks[i],
				.broker = &nodes[i ? 1 - first : first],
				.options = {.model = "m",
					.rank = i,
					.ranks = 2,
					.timeout_ms = 1500},
				.rows = scene.held[i],
				.nrows = scene.nheld[i]};
			assert_int_equal(
				pthread_create(&starts[i].thread, NULL, rank_starts, &starts[i]),
				0);
		}
		rank_started(&starts[0], 0, "");
		rank_started(&starts[1], 0, "");
		workers_start(&scene);
		n = names_of(scene.held[0], scene.nheld[0], bits_of_rank(&scene, 0, after), names);
		assert_int_equal(strew_trainer_subset(scene.ranks[0].trainer, names, n, &subset),
			-ETIMEDOUT);
		n = names_of(scene.held[0], scene.nheld[0], bits_of_rank(&scene, 0, other), names);
		assert_int_equal(
			strew_trainer_subset(scene.ranks[0].trainer, names, n, &subset), -EINVAL);
		assert_non_null(strstr(strew_error(), "waits for the other ranks"));
		assert_int_equal(subset, 0);
		for (uint32_t i = 0; i < 2; i++) {
			bits[i] = bits_of_rank(&scene, i, after);
		}
		both_name(&scene, bits, 0, "", 1);
		ranks_commit(&scene, ++version);
		both_publish(&scene, 1, after, version, version + 1);
		for (unsigned i = 0; i < TENSORS; i++) {
			held[i] = after >> i & 1 ? version + 1 : version;
		}
		version++;
		expect_rows(&scene, held);
		workers_stop(&scene);
		ranks_stop(&scene);
	}
}

/* Ranks that do not agree on what they publish, and one that does not come. */
static void test_ranks_that_differ(void **state)
{
	struct strew_report report;
	struct scene scene;
	unsigned bits[2];

	(void)state;
	scene_draw(&scene);
	ranks_start(&scene, 0, 1);
	workers_start(&scene);
	ranks_commit(&scene, ++version);
	for (uint32_t s = 1; s <= 2; s++) {
		for (uint32_t i = 0; i < 2; i++) {
			bits[i] = bits_of_rank(&scene, i, 1u << BIG | s);
		}
		both_name(&scene, bits, 0, "", s);
	}
	for (uint32_t rank = 0; rank < 2; rank++) {
		struct strew_trainer *first = scene.ranks[rank].trainer,
				     *second = scene.ranks[1 - rank].trainer;

		assert_int_equal(
			strew_trainer_publish_subset(first, 1, version, version + 1, NULL, 0, 300),
			0);
		broker_wait_ranks(&nodes[0], 2, "waiting for ranks");
		assert_int_equal(
			strew_trainer_publish_subset(second, 2, version, version + 1, NULL, 0, 300),
			0);
		assert_int_equal(strew_trainer_wait_report(second, PATIENCE_MS, &report), -EINVAL);
		assert_non_null(strstr(strew_error(), "the other ranks subset 1"));
		trainer_reports(
			&scene.ranks[rank], STREW_OUTCOME_ABORTED, "did not publish", &report);
		strew_report_finish(&report);
		workers_hold(&scene, version);
	}
	workers_stop(&scene);
	ranks_stop(&scene);
}

/* A broker that joins later hears of the subsets, and a new lead of those of a rank elsewhere. */
static void test_brokers_that_come_back(void **state)
{
	static const unsigned tensors = 1u << BIG | 1u << SECOND;
	struct starting again;
	struct scene scene;
	unsigned bits[2];

	(void)state;
	scene_draw(&scene);
	ranks_start(&scene, 0, 1);
	for (uint32_t i = 0; i < 2; i++) {
		bits[i] = bits_of_rank(&scene, i, tensors);
	}
	both_name(&scene, bits, 0, "", 1);
	for (unsigned turn = 0; turn < 2; turn++) {
		uint64_t held[TENSORS];

		if (turn) {
			trainer_stop(&scene.ranks[0]);
			assert_int_equal(broker_stop(&nodes[0], SIGKILL), 256 + SIGKILL);
			broker_start(&nodes[0], (const char *[]){"--listen", nodes_address, NULL});
			broker_wait_brokers(&nodes[0], NODES);
			rank_start(&again, &scene, 0, 0);
			rank_started(&again, 0, "");
			assert_int_equal(name_subset(&scene.ranks[0], bits[0]), 1);
		} else {
			assert_int_equal(broker_stop(&nodes[2], SIGTERM), 0);
			broker_wait_brokers(&nodes[0], NODES - 1);
			node_join(2);
			broker_wait_brokers(&nodes[0], NODES);
		}
		workers_start(&scene);
		ranks_commit(&scene, ++version);
		both_publish(&scene, 1, tensors, version, version + 1);
		for (unsigned i = 0; i < TENSORS; i++) {
			held[i] = tensors >> i & 1 ? version + 1 : version;
		}
		version++;
		expect_rows(&scene, held);
		workers_stop(&scene);
	}
	ranks_stop(&scene);
}

#define CASE(name) cmocka_unit_test_teardown(name, nodes_check)

int main(void)
{
	const struct CMUnitTest tests[] = {
		CASE(test_two_ranks),
		CASE(test_a_rank_that_names_late),
		CASE(test_ranks_that_differ),
		CASE(test_brokers_that_come_back),
	};

	return test_finish(
		cmocka_run_group_tests(tests, nodes_start, nodes_finish), test_fds_at_start);
}
