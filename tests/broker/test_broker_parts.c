/*
 * Updates in parts at three real brokers: what is put one after another is committed at once, and
 * a put reads no other tensor. What one rank alone can see.
 */
#include "base/util.h"
#include "broker/nodes.h"
#include "broker/subset.h"
#include <errno.h>
#include <stdio.h>
#include <string.h>

enum { N = 6, PARTS = 3 };

static void draw_rows(struct rows rows[N], char names[N][16])
{
	for (unsigned i = 0; i < N; i++) {
		uint64_t n = 1 + test_random_below(i == 2 ? 600 : 40);

		snprintf(names[i], 16, "w%u.%06x", i, (unsigned)test_random() & 0xffffff);
		rows[i] = (struct rows){names[i], STREW_F32, n, 1 + test_random_below(150), 0, n};
	}
}

/* Every tensor in one of the parts, none of which is empty. */
static void draw_parts(unsigned bits[PARTS])
{
	do {
		memset(bits, 0, PARTS * sizeof(*bits));
		for (unsigned i = 0; i < N; i++) {
			bits[test_random_below(PARTS)] |= 1u << i;
		}
	} while (!bits[0] || !bits[1] || !bits[2]);
}

static void put(struct trainer *trainer, uint32_t subset, unsigned bits, uint64_t number)
{
	int rc;

	write_subset(trainer, number, bits);
	rc = strew_trainer_put(trainer->trainer, subset, NULL);
	rc = rc ? rc : strew_trainer_wait_released(trainer->trainer, PATIENCE_MS);
	if (rc) {
		print_error("put of subset %u: %s\n", subset, strew_error());
	}
	assert_int_equal(rc, 0);
}

static void close_committed(struct trainer *trainer, uint64_t number)
{
	struct strew_report report;

	/* Nothing is read any more. */
	write_subset(trainer, number, 0);
	assert_int_equal(strew_trainer_close_parts(trainer->trainer), 0);
	trainer_reports(trainer, STREW_OUTCOME_COMMITTED, "", &report);
	assert_int_equal(report.version, number);
	assert_int_equal(report.tensors, N);
	strew_report_finish(&report);
}

/* In random order, of random memory, to staged and direct groups at each broker; then a whole one.
 */
static void test_all_parts_are_one_version(void **state)
{
	(void)state;
	for (unsigned mix = 0; mix < 6; mix++) {
		struct worker workers[NODES];
		unsigned bits[PARTS], order;
		char names[N][16], model[16];
		struct trainer trainer;
		struct rows rows[N];
		uint64_t number = 1;

		draw_rows(rows, names);
		draw_parts(bits);
		snprintf(model, sizeof(model), "parts%u", mix);
		for (unsigned node = 0; node < NODES; node++) {
			peers_ordinary = test_random_below(2);
			assert_int_equal(
				worker_start(&workers[node], &nodes[node],
					(struct strew_agent_options){.model = model,
						.replica = node,
						.apply = (mix + node) & 1 ? STREW_APPLY_STAGED
									  : STREW_APPLY_DIRECT},
					rows, N),
				0);
		}
		peers_ordinary = test_random_below(2);
		assert_int_equal(trainer_start(&trainer, &nodes[mix % NODES],
					 (struct strew_trainer_options){.model = model}, rows, N),
			0);
		peers_ordinary = false;
		for (unsigned i = 0; i < PARTS; i++) {
			assert_int_equal(name_subset(&trainer, bits[i]), i + 1);
		}
		trainer_commits(&trainer, number);
		for (unsigned turn = 0; turn < 4; turn++) {
			number += 1 + test_random_below(3);
			order = (unsigned)test_random_below(PARTS);
			assert_int_equal(
				strew_trainer_open_parts(trainer.trainer, number, 0, 0), 0);
			for (unsigned i = 0; i < PARTS; i++) {
				unsigned part = (order + i) % PARTS;

				put(&trainer, part + 1, bits[part], number);
			}
			for (unsigned node = 0; turn == 0 && node < NODES; node++) {
				if ((mix + node) & 1) {
					/* Staged: all has been put, nothing is seen yet. */
					worker_holds(&workers[node], 1);
				}
			}
			close_committed(&trainer, number);
			for (unsigned node = 0; node < NODES; node++) {
				worker_holds(&workers[node], number);
			}
		}
		trainer_commits(&trainer, ++number);
		for (unsigned node = 0; node < NODES; node++) {
			worker_holds(&workers[node], number);
			worker_stop(&workers[node]);
		}
		trainer_stop(&trainer);
	}
}

/* A put that is refused ends itself alone; at the lead, and at a broker that joined. */
static void test_refusals(void **state)
{
	static const struct rows rows[] = {
		{"a", STREW_F32, 9, 5, 0, 9}, {"b", STREW_F32, 3, 30, 0, 3}};
	struct strew_report report;
	struct trainer trainer;
	struct worker worker;

	(void)state;
	for (unsigned node = 0; node < 2; node++) {
		assert_int_equal(worker_start(&worker, &nodes[2],
					 (struct strew_agent_options){.model = "refused"}, rows, 2),
			0);
		assert_int_equal(
			trainer_start(&trainer, &nodes[node],
				(struct strew_trainer_options){.model = "refused"}, rows, 2),
			0);
		for (uint32_t i = 1; i <= 3; i++) {
			assert_int_equal(name_subset(&trainer, i), i);
		}
		assert_int_equal(strew_trainer_put(trainer.trainer, 1, NULL), -EINVAL);
		assert_int_equal(strew_trainer_close_parts(trainer.trainer), -EINVAL);
		/* Opened for nothing. */
		assert_int_equal(strew_trainer_open_parts(trainer.trainer, 1 + node, 0, 0), 0);
		assert_int_equal(strew_trainer_open_parts(trainer.trainer, 1 + node, 0, 0), -EBUSY);
		assert_int_equal(
			strew_trainer_publish(trainer.trainer, 1 + node, NULL, 0, 0), -EBUSY);
		assert_int_equal(strew_trainer_close_parts(trainer.trainer), -ENOENT);
		/* A version that the broker does not take: with the first put. */
		assert_int_equal(strew_trainer_open_parts(trainer.trainer, 1 + node, 0, 0), 0);
		assert_int_equal(strew_trainer_put(trainer.trainer, 4, NULL), -EINVAL);
		put(&trainer, 1, 1, 1 + node);
		assert_int_equal(
			strew_trainer_publish(trainer.trainer, 2 + node, NULL, 0, 0), -EBUSY);
		/* The same, and one that has a tensor of it. */
		for (uint32_t subset = 1; subset <= 3; subset += 2) {
			assert_int_equal(strew_trainer_put(trainer.trainer, subset, NULL), 0);
			assert_int_equal(
				strew_trainer_wait_released(trainer.trainer, PATIENCE_MS), -EINVAL);
			assert_non_null(strstr(strew_error(), "put already"));
			assert_int_equal(strew_trainer_wait_released(trainer.trainer, 0), 0);
		}
		assert_int_equal(strew_trainer_close_parts(trainer.trainer), -EINVAL);
		assert_non_null(strstr(strew_error(), "tensor b is in no part"));
		put(&trainer, 2, 2, 1 + node);
		assert_int_equal(strew_trainer_close_parts(trainer.trainer), 0);
		trainer_reports(&trainer, STREW_OUTCOME_COMMITTED, "", &report);
		strew_report_finish(&report);
		worker_holds(&worker, 1 + node);
		assert_int_equal(strew_trainer_open_parts(trainer.trainer, 1 + node, 0, 0), 0);
		assert_int_equal(strew_trainer_put(trainer.trainer, 1, NULL), 0);
		assert_int_equal(
			strew_trainer_wait_report(trainer.trainer, PATIENCE_MS, &report), -ESTALE);
		assert_int_equal(strew_trainer_put(trainer.trainer, 1, NULL), -EINVAL);
		worker_stop(&worker);
		trainer_stop(&trainer);
		broker_wait_no_ranks(&nodes[0]);
	}
}

/* The deadline is the whole update's, and a version that was given up can be put again. */
static void test_the_trainer_is_late(void **state)
{
	static const struct rows rows[] = {
		{"a", STREW_F32, 90, 5, 0, 90}, {"b", STREW_F32, 3, 30, 0, 3}};
	struct strew_report report;
	struct trainer trainer;
	struct worker workers[2];

	(void)state;
	for (unsigned i = 0; i < 2; i++) {
		assert_int_equal(
			worker_start(&workers[i], &nodes[2 - i],
				(struct strew_agent_options){.model = "late",
					.replica = i,
					.apply = i ? STREW_APPLY_STAGED : STREW_APPLY_DIRECT},
				rows, 2),
			0);
	}
	assert_int_equal(trainer_start(&trainer, &nodes[1],
				 (struct strew_trainer_options){.model = "late"}, rows, 2),
		0);
	assert_int_equal(name_subset(&trainer, 1), 1);
	assert_int_equal(name_subset(&trainer, 2), 2);
	trainer_commits(&trainer, 1);
	assert_int_equal(strew_trainer_open_parts(trainer.trainer, 2, 0, 1500), 0);
	put(&trainer, 1, 1, 2);
	trainer_reports(
		&trainer, STREW_OUTCOME_ABORTED, "rank 0 did not put its next part", &report);
	report_group(&report, 0, STREW_OUTCOME_DIRTY, "");
	report_group(&report, 1, STREW_OUTCOME_ABORTED, "");
	strew_report_finish(&report);
	worker_holds(&workers[1], 1);
	assert_int_equal(strew_trainer_put(trainer.trainer, 2, NULL), -EINVAL);
	assert_int_equal(strew_trainer_open_parts(trainer.trainer, 2, 0, 0), 0);
	put(&trainer, 2, 2, 2);
	put(&trainer, 1, 1, 2);
	assert_int_equal(strew_trainer_close_parts(trainer.trainer), 0);
	trainer_reports(&trainer, STREW_OUTCOME_COMMITTED, "", &report);
	strew_report_finish(&report);
	for (unsigned i = 0; i < 2; i++) {
		worker_holds(&workers[i], 2);
		worker_stop(&workers[i]);
	}
	trainer_stop(&trainer);
}

#define CASE(name) cmocka_unit_test_teardown(name, nodes_check)

int main(void)
{
	const struct CMUnitTest tests[] = {
		CASE(test_all_parts_are_one_version),
		CASE(test_refusals),
		CASE(test_the_trainer_is_late),
	};

	return test_finish(
		cmocka_run_group_tests(tests, nodes_start, nodes_finish), test_fds_at_start);
}
