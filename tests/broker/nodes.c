#include "broker/nodes.h"
#include "base/util.h"
#include <stdio.h>
#include <string.h>

struct broker nodes[NODES];
char nodes_address[32];
uint64_t version;

struct rows scene_cut(const struct scene *scene, unsigned tensor, uint64_t rows, uint64_t cols,
	uint64_t first, uint64_t n)
{
	return (struct rows){scene->names[tensor], STREW_F32, rows, cols, first, n};
}

/* The same for both in every tensor but OVERLAP, FIRST and SECOND. */
void scene_draw(struct scene *scene)
{
	memset(scene, 0, sizeof(*scene));
	scene->ntensors = TENSORS;
	for (unsigned i = 0; i < TENSORS; i++) {
		uint64_t rows = 2 + test_random_below(60);
		uint64_t cols = 1 + test_random_below(200);
		uint64_t at;

		snprintf(scene->names[i], sizeof(scene->names[i]), "t%u.%08x", i,
			(unsigned)test_random());
		if (i == BIG) {
			rows += 100; /* several slots of 64 KiB */
			cols += 300;
		}
		at = 1 + test_random_below(rows - 1);
		if (i != SECOND) {
			scene->held[0][scene->nheld[0]++] =
				scene_cut(scene, i, rows, cols, 0, i == FIRST ? rows : at);
		}
		if (i == OVERLAP) {
			scene->overlap = 1 + test_random_below(at);
			at -= scene->overlap;
		}
		if (i != FIRST) {
			at = i == SECOND ? 0 : at;
			scene->held[1][scene->nheld[1]++] =
				scene_cut(scene, i, rows, cols, at, rows - at);
		}
	}
}

void *rank_starts(void *data)
{
	struct starting *start = data;

	start->rc = trainer_start(
		start->trainer, start->broker, start->options, start->rows, start->nrows);
	string_copy(start->text, sizeof(start->text), strew_error());
	return NULL;
}

/* A seal waits for the other ranks' seals. */
void rank_start(struct starting *start, struct scene *scene, uint32_t rank, unsigned node)
{
	*start = (struct starting){.trainer = &scene->ranks[rank],
		.broker = &nodes[node],
		.options = {.model = "m", .rank = rank, .ranks = 2},
		.rows = scene->held[rank],
		.nrows = scene->nheld[rank]};
	assert_int_equal(pthread_create(&start->thread, NULL, rank_starts, start), 0);
}

void rank_started(struct starting *start, int code, const char *word)
{
	assert_int_equal(pthread_join(start->thread, NULL), 0);
	if (start->rc != code || (code && !strstr(start->text, word))) {
		print_error("%d with \"%s\" was expected; %d: %s\n", code, word, start->rc,
			start->text);
	}
	assert_int_equal(start->rc, code);
	assert_true(!code || strstr(start->text, word));
}

void ranks_start(struct scene *scene, unsigned first, unsigned second)
{
	struct starting starts[2];

	rank_start(&starts[0], scene, 0, first);
	rank_start(&starts[1], scene, 1, second);
	rank_started(&starts[0], 0, "");
	rank_started(&starts[1], 0, "");
}

void ranks_stop(struct scene *scene)
{
	trainer_stop(&scene->ranks[0]);
	trainer_stop(&scene->ranks[1]);
	/* A seat is taken until its broker has seen the end, and has told the lead. */
	broker_wait_no_ranks(&nodes[0]);
}

/* A replica of its own on each node, with random rows of every tensor. */
void workers_start(struct scene *scene)
{
	for (unsigned node = 0; node < NODES; node++) {
		struct strew_agent_options options = {.model = "m",
			.replica = node,
			.apply = test_random_below(2) ? STREW_APPLY_STAGED : STREW_APPLY_DIRECT};
		struct rows rows[TENSORS];
		size_t n = 0;

		for (unsigned i = 0; i < scene->nheld[0]; i++) {
			rows[n++] = scene->held[0][i];
		}
		rows[n] = scene->held[1][0];
		for (unsigned i = 0; i < scene->nheld[1]; i++) {
			if (scene->held[1][i].tensor == scene->names[SECOND]) {
				rows[n] = scene->held[1][i];
			}
		}
		n++;
		for (size_t i = 0; i < n; i++) {
			rows[i].first = test_random_below(2) ? 0 : test_random_below(rows[i].rows);
			rows[i].n = rows[i].rows - rows[i].first;
			if (test_random_below(2)) {
				rows[i].n = 1 + test_random_below(rows[i].n);
			}
		}
		assert_int_equal(
			worker_start(&scene->workers[node], &nodes[node], options, rows, n), 0);
	}
}

void workers_stop(struct scene *scene)
{
	for (unsigned node = 0; node < NODES; node++) {
		worker_stop(&scene->workers[node]);
	}
}

void workers_hold(const struct scene *scene, uint64_t number)
{
	for (unsigned node = 0; node < NODES; node++) {
		worker_holds(&scene->workers[node], number);
	}
}

/* The values of the version; where both ranks have a row, rank 1's is none of it. */
static void rank_write(struct scene *scene, uint32_t rank, uint64_t number)
{
	struct trainer *trainer = &scene->ranks[rank];
	uint32_t *at = trainer->memory;

	trainer_write(trainer, number);
	for (size_t i = 0; rank == 1 && i < trainer->nrows; i++) {
		const struct rows *rows = &trainer->rows[i];

		if (rows->tensor == scene->names[OVERLAP]) {
			memset(at, 0x5e, scene->overlap * rows->cols * sizeof(*at));
		}
		at += (rows->n + 1) * rows->cols;
	}
}

int rank_publish(struct scene *scene, uint32_t rank, uint64_t number, int timeout_ms)
{
	rank_write(scene, rank, number);
	return strew_trainer_publish(scene->ranks[rank].trainer, number, NULL, 0, timeout_ms);
}

/* Both publish and hear the same; the bytes that went by wire. */
uint64_t ranks_commit(struct scene *scene, uint64_t number)
{
	struct strew_report reports[2];
	uint64_t wire;

	for (uint32_t i = 0; i < 2; i++) {
		assert_int_equal(rank_publish(scene, i, number, PATIENCE_MS), 0);
	}
	for (uint32_t i = 0; i < 2; i++) {
		assert_int_equal(
			strew_trainer_wait_released(scene->ranks[i].trainer, PATIENCE_MS), 0);
		/* Whoever has it back may write it. */
		memset(scene->ranks[i].memory, 0xee, 4);
	}
	for (uint32_t i = 0; i < 2; i++) {
		trainer_reports(&scene->ranks[i], STREW_OUTCOME_COMMITTED, "", &reports[i]);
		assert_int_equal(reports[i].version, number);
		assert_int_equal(reports[i].tensors, scene->ntensors);
		assert_int_equal(reports[i].ngroups, reports[0].ngroups);
	}
	wire = reports[1].wire_bytes;
	strew_report_finish(&reports[0]);
	strew_report_finish(&reports[1]);
	return wire;
}

void node_join(unsigned node)
{
	broker_start(&nodes[node], (const char *[]){"--join", nodes_address, NULL});
}

int nodes_start(void **state)
{
	(void)state;
	free_address(nodes_address);
	broker_start(&nodes[0], (const char *[]){"--listen", nodes_address, NULL});
	for (unsigned node = 1; node < NODES; node++) {
		node_join(node);
	}
	broker_wait_brokers(&nodes[0], NODES);
	return 0;
}

int nodes_finish(void **state)
{
	(void)state;
	for (unsigned node = NODES; node-- > 0;) {
		broker_finish(&nodes[node]);
	}
	return 0;
}

/* Between the cases all brokers stand, and nobody is left. */
int nodes_check(void **state)
{
	(void)state;
	broker_wait_brokers(&nodes[0], NODES);
	for (unsigned node = 0; node < NODES; node++) {
		broker_wait_no_ranks(&nodes[node]);
	}
	return 0;
}
