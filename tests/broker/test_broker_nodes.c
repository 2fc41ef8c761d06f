/*
 * Two trainer ranks at two of three real brokers, and workers at all of them: who holds
 * what, who is waited for, and what happens when a rank or its broker goes away. Shapes, cuts and
 * names (on which the values depend) are random.
 */
#include "base/clock.h"
#include "base/util.h"
#include "broker/peers.h"
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define NODES 3 /* the lead and two that join */

enum { HALVES, OVERLAP, FIRST, SECOND, BIG, TENSORS };

static struct broker nodes[NODES];
static char address[32];
static uint64_t version;

/* A model that two ranks hold. */
struct scene {
	char names[TENSORS][32];
	struct rows held[2][TENSORS]; /* BIG and HALVES: cut in two */
	size_t nheld[2];
	unsigned ntensors;
	uint64_t overlap; /* rows of OVERLAP that both have; rank 1's are wrong */
	struct trainer ranks[2];
	struct worker workers[NODES];
};

static struct rows cut(const struct scene *scene, unsigned tensor, uint64_t rows, uint64_t cols,
	uint64_t first, uint64_t n)
{
	return (struct rows){scene->names[tensor], STREW_F32, rows, cols, first, n};
}

/* The same for both in every tensor but OVERLAP, FIRST and SECOND. */
static void draw_scene(struct scene *scene)
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
				cut(scene, i, rows, cols, 0, i == FIRST ? rows : at);
		}
		if (i == OVERLAP) {
			scene->overlap = 1 + test_random_below(at);
			at -= scene->overlap;
		}
		if (i != FIRST) {
			at = i == SECOND ? 0 : at;
			scene->held[1][scene->nheld[1]++] =
				cut(scene, i, rows, cols, at, rows - at);
		}
	}
}

struct starting {
	struct trainer *trainer;
	const struct broker *broker;
	struct strew_trainer_options options;
	const struct rows *rows;
	size_t nrows;
	int rc;
	char text[240];
	pthread_t thread;
};

static void *start_thread(void *data)
{
	struct starting *start = data;

	start->rc = trainer_start(
		start->trainer, start->broker, start->options, start->rows, start->nrows);
	string_copy(start->text, sizeof(start->text), strew_error());
	return NULL;
}

/* A seal waits for the other ranks' seals. */
static void start_rank(struct starting *start, struct scene *scene, uint32_t rank, unsigned node)
{
	*start = (struct starting){.trainer = &scene->ranks[rank],
		.broker = &nodes[node],
		.options = {.model = "m", .rank = rank, .ranks = 2},
		.rows = scene->held[rank],
		.nrows = scene->nheld[rank]};
	assert_int_equal(pthread_create(&start->thread, NULL, start_thread, start), 0);
}

static void end_start(struct starting *start, int code, const char *word)
{
	assert_int_equal(pthread_join(start->thread, NULL), 0);
	if (start->rc != code || (code && !strstr(start->text, word))) {
		print_error("%d with \"%s\" was expected; %d: %s\n", code, word, start->rc,
			start->text);
	}
	assert_int_equal(start->rc, code);
	assert_true(!code || strstr(start->text, word));
}

static void start_ranks(struct scene *scene, unsigned first, unsigned second)
{
	struct starting starts[2];

	start_rank(&starts[0], scene, 0, first);
	start_rank(&starts[1], scene, 1, second);
	end_start(&starts[0], 0, "");
	end_start(&starts[1], 0, "");
}

static void stop_ranks(struct scene *scene)
{
	trainer_stop(&scene->ranks[0]);
	trainer_stop(&scene->ranks[1]);
}

/* A replica of its own on each node, with random rows of every tensor. */
static void start_workers(struct scene *scene)
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

static void stop_workers(struct scene *scene)
{
	for (unsigned node = 0; node < NODES; node++) {
		worker_stop(&scene->workers[node]);
	}
}

static void workers_hold(const struct scene *scene, uint64_t number)
{
	for (unsigned node = 0; node < NODES; node++) {
		worker_holds(&scene->workers[node], number);
	}
}

/* The values of the version; where both ranks have a row, rank 1's is none of it. */
static void write_rank(struct scene *scene, uint32_t rank, uint64_t number)
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

static int publish(struct scene *scene, uint32_t rank, uint64_t number, int timeout_ms)
{
	write_rank(scene, rank, number);
	return strew_trainer_publish(scene->ranks[rank].trainer, number, NULL, 0, timeout_ms);
}

/* Both publish and hear the same; the bytes that went by wire. */
static uint64_t commits(struct scene *scene, uint64_t number)
{
	struct strew_report reports[2];
	uint64_t wire;

	for (uint32_t i = 0; i < 2; i++) {
		assert_int_equal(publish(scene, i, number, PATIENCE_MS), 0);
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

static void join(unsigned node)
{
	broker_start(&nodes[node], (const char *[]){"--join", address, NULL});
}

static int start(void **state)
{
	(void)state;
	free_address(address);
	broker_start(&nodes[0], (const char *[]){"--listen", address, NULL});
	for (unsigned node = 1; node < NODES; node++) {
		join(node);
	}
	broker_wait_brokers(&nodes[0], NODES);
	return 0;
}

static int finish(void **state)
{
	(void)state;
	for (unsigned node = NODES; node-- > 0;) {
		broker_finish(&nodes[node]);
	}
	return 0;
}

/* Between the cases all brokers stand, and nobody is left. */
static int check(void **state)
{
	(void)state;
	broker_wait_brokers(&nodes[0], NODES);
	for (unsigned node = 0; node < NODES; node++) {
		struct message reply;

		broker_status(&nodes[node], &reply);
		assert_int_equal(reply.u.status_reply.epoch > 0, 1);
		for (size_t i = 0; i < reply.u.status_reply.ntrainers; i++) {
			assert_int_equal(reply.u.status_reply.trainers[i].present, 0);
		}
		message_finish(&reply);
	}
	return 0;
}

static void test_every_byte(void **state)
{
	static const unsigned places[][2] = {
		{0, 1}, {1, 0}, {1, 2}, {2, 1}, {1, 1}, {0, 0}, {0, 2}};

	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(places); i++) {
		struct scene scene;

		draw_scene(&scene);
		start_ranks(&scene, places[i][0], places[i][1]);
		start_workers(&scene);
		for (unsigned turn = 0; turn < 4; turn++) {
			assert_true(commits(&scene, ++version) > 0);
			workers_hold(&scene, version);
		}
		stop_workers(&scene);
		stop_ranks(&scene);
	}
}

/* Only what is not there already goes by wire: all ranks and all workers on one node, nothing. */
static void test_all_on_one_node(void **state)
{
	struct scene scene;
	struct rows rows[TENSORS];

	(void)state;
	draw_scene(&scene);
	for (unsigned node = 0; node < NODES; node++) {
		memcpy(rows, scene.held[0], scene.nheld[0] * sizeof(*rows));
		start_ranks(&scene, node, node);
		assert_int_equal(
			worker_start(&scene.workers[0], &nodes[node],
				(struct strew_agent_options){.model = "m"}, rows, scene.nheld[0]),
			0);
		assert_int_equal(commits(&scene, ++version), 0);
		worker_holds(&scene.workers[0], version);
		worker_stop(&scene.workers[0]);
		stop_ranks(&scene);
	}
}

static void test_a_rank_that_does_not_publish(void **state)
{
	static const unsigned places[][2] = {{0, 1}, {1, 0}, {1, 2}};

	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(places); i++) {
		struct scene scene;

		draw_scene(&scene);
		start_ranks(&scene, places[i][0], places[i][1]);
		start_workers(&scene);
		commits(&scene, ++version);
		for (uint32_t rank = 0; rank < 2; rank++) {
			struct strew_report report;
			char word[32];

			snprintf(word, sizeof(word), "rank %u did not publish", 1 - rank);
			assert_int_equal(publish(&scene, rank, version + 1, 200), 0);
			assert_int_equal(
				strew_trainer_wait_released(scene.ranks[rank].trainer, PATIENCE_MS),
				0);
			trainer_reports(&scene.ranks[rank], STREW_OUTCOME_ABORTED, word, &report);
			strew_report_finish(&report);
			workers_hold(&scene, version);
		}
		commits(&scene, ++version);
		workers_hold(&scene, version);
		stop_workers(&scene);
		stop_ranks(&scene);
	}
}

static void test_versions_that_differ(void **state)
{
	struct strew_report report;
	struct scene scene;

	(void)state;
	draw_scene(&scene);
	start_ranks(&scene, 0, 1);
	start_workers(&scene);
	commits(&scene, ++version);
	for (uint32_t rank = 0; rank < 2; rank++) {
		struct strew_trainer *first = scene.ranks[rank].trainer,
				     *second = scene.ranks[1 - rank].trainer;

		/* The first one's is taken before the second one says its own. */
		assert_int_equal(publish(&scene, rank, version + 1, PATIENCE_MS), 0);
		broker_wait_ranks(&nodes[0], 2, "waiting for ranks");
		assert_int_equal(publish(&scene, 1 - rank, version + 2, PATIENCE_MS), 0);
		assert_int_equal(strew_trainer_wait_report(second, PATIENCE_MS, &report), -EINVAL);
		assert_non_null(strstr(strew_error(), "the other ranks version"));
		workers_hold(&scene, version);
		assert_int_equal(publish(&scene, 1 - rank, version + 1, PATIENCE_MS), 0);
		for (uint32_t i = 0; i < 2; i++) {
			trainer_reports(&scene.ranks[i], STREW_OUTCOME_COMMITTED, "", &report);
			strew_report_finish(&report);
		}
		workers_hold(&scene, ++version);
		/* And one that is not above the committed one, from any node. */
		assert_int_equal(publish(&scene, rank, version, PATIENCE_MS), 0);
		assert_int_equal(strew_trainer_wait_report(first, PATIENCE_MS, &report), -ESTALE);
	}
	stop_workers(&scene);
	stop_ranks(&scene);
}

static void test_declarations_that_do_not_agree(void **state)
{
	struct starting starts[2];
	struct scene scene;
	struct rows saved;

	(void)state;
	draw_scene(&scene);
	/* Another number of ranks; the same rank. */
	start_rank(&starts[0], &scene, 0, 1);
	broker_wait_ranks(&nodes[0], 1, "idle");
	starts[1] = (struct starting){.trainer = &scene.ranks[1],
		.broker = &nodes[2],
		.options = {.model = "m", .rank = 2, .ranks = 3},
		.rows = scene.held[1],
		.nrows = scene.nheld[1]};
	start_thread(&starts[1]);
	assert_int_equal(starts[1].rc, -EINVAL);
	assert_non_null(strstr(starts[1].text, "2 trainer ranks, rank 2 says 3"));
	trainer_stop(&scene.ranks[1]);
	starts[1].options.rank = 0;
	starts[1].options.ranks = 2;
	start_thread(&starts[1]);
	assert_int_equal(starts[1].rc, -EEXIST);
	assert_non_null(strstr(starts[1].text, "rank 0 is registered already, by a process at"));
	trainer_stop(&scene.ranks[1]);
	start_rank(&starts[1], &scene, 1, 2);
	end_start(&starts[0], 0, "");
	end_start(&starts[1], 0, "");
	start_workers(&scene);
	commits(&scene, ++version);
	workers_hold(&scene, version);
	stop_ranks(&scene);
	/* Another dtype, another shape: everybody hears of which tensor. */
	for (unsigned i = 0; i < 2; i++) {
		saved = scene.held[1][0];
		if (i) {
			scene.held[1][0].cols++;
		} else {
			scene.held[1][0].dtype = STREW_I32;
		}
		start_rank(&starts[0], &scene, 0, 2 * i);
		start_rank(&starts[1], &scene, 1, 1);
		end_start(&starts[0], -EINVAL, saved.tensor);
		end_start(&starts[1], -EINVAL, saved.tensor);
		scene.held[1][0] = saved;
		stop_ranks(&scene);
	}
	stop_workers(&scene);
}

/* A trainer rank by hand, at a node that joined. */
static void raw_rank(struct raw *raw, struct scene *scene, unsigned node, struct starting *other)
{
	struct message message;
	struct draft draft;

	draft_trainer(&draft, "m", 1, scene->held[1], 2);
	raw_open(raw, &nodes[node], ROLE_TRAINER);
	draft_send(raw, &draft);
	raw_expect(raw, MSG_DECLARED, &message);
	message_finish(&message);
	draft_finish(&draft);
	end_start(other, 0, "");
}

static void raw_publish(struct raw *raw, uint64_t number, bool done)
{
	static uint64_t word;
	struct message message;

	word++;
	message_init(&message, MSG_PUBLISH, ++raw->serial);
	message.u.publish.version = number;
	message.u.publish.word = word;
	message.u.publish.timeout_ms = PATIENCE_MS;
	if (done) {
		page_store(&raw->page, WORD_PUBLISH, word);
	}
	raw_send(raw, &message);
	raw_expect(raw, MSG_OK, &message);
	message_finish(&message);
}

static void trim(struct scene *scene)
{
	/* Small enough for a draft's memory; rank 0 has the rest. */
	scene->ntensors = scene->nheld[0] = scene->nheld[1] = 2;
	for (unsigned i = 0; i < 2; i++) {
		scene->held[1][i] = cut(scene, i, 8, 16, 4, 4);
		scene->held[0][i] = cut(scene, i, 8, 16, 0, 4);
	}
	scene->overlap = 0;
}

/* The rank's process is gone before its memory was read: the update ends and names it. */
static void test_a_rank_that_dies(void **state)
{
	(void)state;
	for (unsigned step = 0; step < 4; step++) {
		struct strew_agent_options options = {.model = "m",
			.gate = STREW_GATE_HELD,
			.apply = step == 3 ? STREW_APPLY_STAGED : STREW_APPLY_DIRECT};
		struct strew_report report;
		struct starting other;
		struct scene scene;
		struct worker *worker = &scene.workers[0];
		struct raw raw;

		draw_scene(&scene);
		trim(&scene);
		start_rank(&other, &scene, 0, 0);
		raw_rank(&raw, &scene, 1, &other);
		assert_int_equal(worker_start(worker, &nodes[2], options, scene.held[0], 2), 0);
		version++;
		assert_int_equal(publish(&scene, 0, version, PATIENCE_MS), 0);
		broker_wait_ranks(&nodes[0], 2, "waiting for ranks");
		if (step > 0) {
			raw_publish(&raw, version, step > 1);
		}
		if (step > 1) {
			/* The engine does not stand still: not accepted yet, or not prepared. */
			worker_event(worker, STREW_EVENT_HOLD, STREW_OUTCOME_NONE);
		}
		if (step == 3) {
			struct message message;

			/* Its memory was gathered: nobody needs it any more. */
			raw_expect(&raw, MSG_RELEASED, &message);
			message_finish(&message);
			raw_close(&raw);
			assert_int_equal(strew_agent_ready(worker->agent, NULL), 0);
			worker_event(worker, STREW_EVENT_DONE, STREW_OUTCOME_COMMITTED);
			trainer_reports(&scene.ranks[0], STREW_OUTCOME_COMMITTED, "", &report);
		} else {
			raw_close(&raw);
			trainer_reports(&scene.ranks[0], STREW_OUTCOME_ABORTED,
				"trainer rank 1 at node", &report);
			assert_non_null(strstr(report.text, "was lost"));
			worker_is_poisoned(worker);
		}
		strew_report_finish(&report);
		broker_wait_ranks(&nodes[0], 1, "idle");
		/* Until it is declared again there is nothing to publish. */
		assert_int_equal(publish(&scene, 0, version + 1, PATIENCE_MS), 0);
		assert_int_equal(
			strew_trainer_wait_report(scene.ranks[0].trainer, PATIENCE_MS, &report),
			-EBUSY);
		assert_non_null(strstr(strew_error(), "not every rank"));
		worker_stop(worker);
		/* Rank 0 stays; a new rank 1, on another node. */
		start_workers(&scene);
		start_rank(&other, &scene, 1, 1 + step % 2);
		end_start(&other, 0, "");
		commits(&scene, ++version);
		stop_workers(&scene);
		stop_ranks(&scene);
	}
}

static void test_a_stream_that_is_not_done(void **state)
{
	struct strew_report report;
	struct starting other;
	struct message message;
	struct scene scene;
	struct raw raw;

	(void)state;
	draw_scene(&scene);
	trim(&scene);
	start_rank(&other, &scene, 0, 0);
	raw_rank(&raw, &scene, 1, &other);
	assert_int_equal(publish(&scene, 0, ++version, 300), 0);
	raw_publish(&raw, version, false);
	/* A second one in the middle is refused here. */
	message_init(&message, MSG_PUBLISH, ++raw.serial);
	message.u.publish.version = version;
	raw_send(&raw, &message);
	raw_expect_error(&raw, -EBUSY, "still being published");
	trainer_reports(&scene.ranks[0], STREW_OUTCOME_ABORTED,
		"rank 1 published, but its stream was not done", &report);
	strew_report_finish(&report);
	raw_expect(&raw, MSG_RELEASED, &message);
	message_finish(&message);
	raw_expect(&raw, MSG_REPORT, &message);
	assert_int_equal(message.u.report.outcome, STREW_OUTCOME_ABORTED);
	message_finish(&message);
	/* What is wrong in itself does not get to the lead. */
	message_init(&message, MSG_PUBLISH, ++raw.serial);
	message.u.publish.version = version;
	message.u.publish.flags = 64;
	raw_send(&raw, &message);
	raw_expect_error(&raw, -ENOTSUP, "flag");
	raw_close(&raw);
	trainer_stop(&scene.ranks[0]);
}

/* The whole broker of a rank is killed: idle, or in the middle of an update. */
static void test_a_broker_that_dies(void **state)
{
	(void)state;
	for (unsigned busy = 0; busy < 2; busy++) {
		struct strew_agent_options options = {
			.model = "m", .gate = STREW_GATE_HELD, .apply = STREW_APPLY_DIRECT};
		struct strew_report report;
		struct starting start_again;
		struct scene scene;
		struct worker held;

		draw_scene(&scene);
		start_ranks(&scene, 0, 1);
		if (busy) {
			assert_int_equal(
				worker_start(&held, &nodes[2], options, scene.held[0], 2), 0);
			version++;
			assert_int_equal(publish(&scene, 0, version, PATIENCE_MS), 0);
			assert_int_equal(publish(&scene, 1, version, PATIENCE_MS), 0);
			worker_event(&held, STREW_EVENT_HOLD, STREW_OUTCOME_NONE);
		}
		assert_int_equal(broker_stop(&nodes[1], SIGKILL), 256 + SIGKILL);
		if (busy) {
			trainer_reports(&scene.ranks[0], STREW_OUTCOME_ABORTED,
				"trainer rank 1 at node", &report);
			strew_report_finish(&report);
			worker_is_poisoned(&held);
			worker_stop(&held);
			assert_int_equal(
				strew_trainer_wait_released(scene.ranks[1].trainer, PATIENCE_MS),
				-ECONNRESET);
			assert_int_equal(strew_trainer_wait_report(
						 scene.ranks[1].trainer, PATIENCE_MS, &report),
				-ECONNRESET);
		}
		assert_int_equal(publish(&scene, 1, version + 1, PATIENCE_MS), -ECONNRESET);
		trainer_stop(&scene.ranks[1]);
		broker_wait_brokers(&nodes[0], NODES - 1);
		assert_int_equal(publish(&scene, 0, version + 1, PATIENCE_MS), 0);
		assert_int_equal(
			strew_trainer_wait_report(scene.ranks[0].trainer, PATIENCE_MS, &report),
			-EBUSY);
		/* The broker comes back, and a rank 1 with it. */
		join(1);
		broker_wait_brokers(&nodes[0], NODES);
		start_rank(&start_again, &scene, 1, 1);
		end_start(&start_again, 0, "");
		start_workers(&scene);
		commits(&scene, ++version);
		workers_hold(&scene, version);
		stop_workers(&scene);
		stop_ranks(&scene);
	}
}

/* Brokers come and go; the trainers are not asked again. */
static void test_joining_in_the_middle(void **state)
{
	struct strew_report report;
	struct scene scene;

	(void)state;
	draw_scene(&scene);
	start_ranks(&scene, 0, 1);
	for (unsigned turn = 0; turn < 3; turn++) {
		int ready;

		assert_int_equal(broker_stop(&nodes[2], SIGTERM), 0);
		broker_wait_brokers(&nodes[0], NODES - 1);
		broker_launch(&nodes[2], (const char *[]){"--join", address, NULL}, &ready);
		for (unsigned i = 0; i < 3; i++) {
			/* Nobody has workers yet. */
			version++;
			assert_int_equal(publish(&scene, 0, version, PATIENCE_MS), 0);
			assert_int_equal(publish(&scene, 1, version, PATIENCE_MS), 0);
			for (uint32_t rank = 0; rank < 2; rank++) {
				trainer_reports(&scene.ranks[rank], STREW_OUTCOME_ABORTED,
					"no worker", &report);
				strew_report_finish(&report);
			}
			sleep_ms(20);
		}
		broker_wait_brokers(&nodes[0], NODES);
		close(ready);
		start_workers(&scene);
		for (unsigned i = 0; i < 3; i++) {
			commits(&scene, ++version);
			workers_hold(&scene, version);
		}
		stop_workers(&scene);
	}
	stop_ranks(&scene);
}

/* The lead is killed and comes back: a rank at another broker is declared to it anew. */
static void test_the_lead_is_started_again(void **state)
{
	struct strew_report report;
	struct starting again;
	struct scene scene;

	(void)state;
	draw_scene(&scene);
	start_ranks(&scene, 0, 1);
	for (unsigned turn = 0; turn < 2; turn++) {
		/* Only rank 1 has published when the lead goes away. */
		assert_int_equal(publish(&scene, 1, ++version, PATIENCE_MS), 0);
		assert_int_equal(
			strew_trainer_wait_released(scene.ranks[1].trainer, 100), -ETIMEDOUT);
		assert_int_equal(
			broker_stop(&nodes[0], turn ? SIGTERM : SIGKILL), turn ? 0 : 256 + SIGKILL);
		assert_int_equal(
			strew_trainer_wait_released(scene.ranks[1].trainer, PATIENCE_MS), 0);
		trainer_reports(
			&scene.ranks[1], STREW_OUTCOME_ABORTED, turn ? "" : "the lead at", &report);
		strew_report_finish(&report);
		trainer_stop(&scene.ranks[0]);
		broker_start(&nodes[0], (const char *[]){"--listen", address, NULL});
		broker_wait_brokers(&nodes[0], NODES);
		start_rank(&again, &scene, 0, 0);
		end_start(&again, 0, "");
		start_workers(&scene);
		commits(&scene, ++version);
		workers_hold(&scene, version);
		stop_workers(&scene);
	}
	stop_ranks(&scene);
}

#define CASE(name) cmocka_unit_test_teardown(name, check)

int main(void)
{
	const struct CMUnitTest tests[] = {
		CASE(test_every_byte),
		CASE(test_all_on_one_node),
		CASE(test_a_rank_that_does_not_publish),
		CASE(test_versions_that_differ),
		CASE(test_declarations_that_do_not_agree),
		CASE(test_a_rank_that_dies),
		CASE(test_a_stream_that_is_not_done),
		CASE(test_a_broker_that_dies),
		CASE(test_joining_in_the_middle),
		CASE(test_the_lead_is_started_again),
	};

	return test_finish(cmocka_run_group_tests(tests, start, finish), test_fds_at_start);
}
