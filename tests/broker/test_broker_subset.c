/*
 * Subsets at three real brokers: each tensor has the version that brought it last and no other
 * byte changes, in every replica; who does not hold the base sits out, and who is DIRTY stays so.
 */
#include "base/util.h"
#include "broker/nodes.h"
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

enum { N = 6, PUBLISHED = 4 };

/* The names of those rows whose bits are set. */
static size_t names_of(const struct rows *rows, size_t n, unsigned bits, const char **ret_names)
{
	size_t k = 0;

	for (size_t i = 0; i < n; i++) {
		if (bits >> i & 1) {
			ret_names[k++] = rows[i].tensor;
		}
	}
	return k;
}

static uint32_t name_subset(struct trainer *trainer, unsigned bits)
{
	const char *names[PEER_ROWS];
	size_t n = names_of(trainer->rows, trainer->nrows, bits, names);
	uint32_t subset = 0;
	int rc = strew_trainer_subset(trainer->trainer, names, n, &subset);

	if (rc) {
		print_error("subset 0x%x: %s\n", bits, strew_error());
	}
	assert_int_equal(rc, 0);
	return subset;
}

/* The version's values in the subset's rows; what is not published is no version's. */
static void write_subset(struct trainer *trainer, uint64_t number, unsigned bits)
{
	uint32_t *at = trainer->memory;

	trainer_write(trainer, number);
	for (size_t i = 0; i < trainer->nrows; i++) {
		size_t n = trainer->rows[i].n * trainer->rows[i].cols;

		if (!(bits >> i & 1)) {
			memset(at, 0x3c, n * sizeof(*at));
		}
		at += n + trainer->rows[i].cols;
	}
}

static void publish_subset(struct trainer *trainer, uint32_t subset, unsigned bits, uint64_t base,
	uint64_t number, enum strew_outcome outcome, const char *word,
	struct strew_report *ret_report)
{
	write_subset(trainer, number, bits);
	assert_int_equal(strew_trainer_publish_subset(
				 trainer->trainer, subset, base, number, NULL, 0, PATIENCE_MS),
		0);
	trainer_reports(trainer, outcome, word, ret_report);
	assert_int_equal(ret_report->version, number);
}

static void expect_status(
	const char *model, uint64_t committed, uint32_t subsets, uint32_t subset, uint64_t base)
{
	struct message reply;
	bool found = false;

	broker_status(&nodes[0], &reply);
	for (size_t i = 0; i < reply.u.status_reply.ntrainers; i++) {
		const struct status_trainer *trainer = &reply.u.status_reply.trainers[i];

		if (strcmp(trainer->model, model) == 0) {
			found = true;
			assert_int_equal(trainer->version, committed);
			assert_int_equal(trainer->subsets, subsets);
			assert_int_equal(trainer->subset, subset);
			assert_int_equal(trainer->base, base);
		}
	}
	assert_true(found);
	message_finish(&reply);
}

static void draw_rows(struct rows rows[N], char names[N][16])
{
	for (unsigned i = 0; i < N; i++) {
		uint64_t n = 1 + test_random_below(i == 2 ? 600 : 40);

		snprintf(names[i], 16, "w%u.%06x", i, (unsigned)test_random() & 0xffffff);
		rows[i] = (struct rows){names[i], STREW_F32, n, 1 + test_random_below(150), 0, n};
	}
}

static void start_replicas(
	struct worker workers[NODES], const char *model, const struct rows *rows, unsigned mix)
{
	for (unsigned node = 0; node < NODES; node++) {
		struct strew_agent_options options = {.model = model,
			.replica = node,
			.apply = (mix + node) & 1 ? STREW_APPLY_STAGED : STREW_APPLY_DIRECT};

		peers_ordinary = test_random_below(2);
		assert_int_equal(worker_start(&workers[node], &nodes[node], options, rows, N), 0);
	}
	peers_ordinary = test_random_below(2);
}

/* Whole versions and random subsets in turn, from each broker, of exported and other memory. */
static void test_each_tensor_has_its_version(void **state)
{
	(void)state;
	for (unsigned mix = 0; mix < 6; mix++) {
		struct worker workers[NODES];
		uint64_t held[PEER_ROWS] = {0}, number = 0;
		unsigned bits[PUBLISHED];
		char names[N][16], model[16];
		struct strew_report report;
		struct trainer trainer;
		struct rows rows[N];

		draw_rows(rows, names);
		snprintf(model, sizeof(model), "mix%u", mix);
		start_replicas(workers, model, rows, mix);
		assert_int_equal(trainer_start(&trainer, &nodes[mix % NODES],
					 (struct strew_trainer_options){.model = model}, rows, N),
			0);
		peers_ordinary = false;
		for (unsigned i = 0; i < PUBLISHED; i++) {
			bits[i] = 1 + (unsigned)test_random_below((1u << N) - 1);
			assert_int_equal(name_subset(&trainer, bits[i]), i + 1);
		}
		expect_status(model, 0, PUBLISHED, 0, 0);
		for (unsigned turn = 0; turn < 12; turn++) {
			unsigned subset = turn ? (unsigned)test_random_below(PUBLISHED + 1) : 1;
			unsigned now = subset ? bits[subset - 1] : (1u << N) - 1;
			uint64_t base = number, bytes = 0;

			number += 1 + test_random_below(3);
			if (subset) {
				publish_subset(&trainer, subset, now, base, number,
					STREW_OUTCOME_COMMITTED, "", &report);
			} else {
				assert_int_equal(
					trainer_publish(&trainer, number, 0, PATIENCE_MS, &report),
					STREW_OUTCOME_COMMITTED);
			}
			for (unsigned i = 0; i < N; i++) {
				held[i] = now >> i & 1 ? number : held[i];
				bytes += now >> i & 1 ? rows[i].n * rows[i].cols * 4 : 0;
			}
			assert_int_equal(report.tensors, __builtin_popcount(now));
			assert_int_equal(report.bytes, bytes);
			assert_true(report.wire_bytes >= bytes);
			strew_report_finish(&report);
			for (unsigned node = 0; node < NODES; node++) {
				worker_holds_each(&workers[node], held);
			}
			expect_status(model, number, PUBLISHED, subset, subset ? base : 0);
		}
		for (unsigned node = 0; node < NODES; node++) {
			worker_stop(&workers[node]);
		}
		trainer_stop(&trainer);
	}
}

static void test_names(void **state)
{
	static const struct rows rows[] = {
		{"a", STREW_F32, 4, 5, 0, 4}, {"b", STREW_F32, 3, 3, 0, 3}};
	const char *unknown = "c";
	struct strew_report report;
	struct trainer trainer;
	struct raw raw;
	uint32_t subset = 99;

	(void)state;
	assert_int_equal(trainer_start(&trainer, &nodes[1],
				 (struct strew_trainer_options){.model = "names"}, rows, 2),
		0);
	assert_int_equal(strew_trainer_subset(trainer.trainer, &unknown, 1, &subset), -ENOENT);
	assert_non_null(strstr(strew_error(), "tensor c was not declared"));
	assert_int_equal(strew_trainer_subset(trainer.trainer, NULL, 0, &subset), -EINVAL);
	assert_non_null(strstr(strew_error(), "without a tensor"));
	assert_int_equal(subset, 99);
	assert_int_equal(
		strew_trainer_publish_subset(trainer.trainer, 1, 0, 1, NULL, 0, 100), -EINVAL);
	assert_int_equal(
		strew_trainer_publish_subset(trainer.trainer, 0, 0, 1, NULL, 0, 100), -EINVAL);
	for (uint32_t i = 1; i <= LIMIT_SUBSETS; i++) {
		assert_int_equal(name_subset(&trainer, 1 + i % 3), i);
	}
	assert_int_equal(strew_trainer_subset(trainer.trainer, NULL, 0, &subset), -E2BIG);
	expect_status("names", 0, LIMIT_SUBSETS, 0, 0);
	/* On a version that was not committed. */
	assert_int_equal(
		strew_trainer_publish_subset(trainer.trainer, 1, 4, 5, NULL, 0, PATIENCE_MS), 0);
	assert_int_equal(strew_trainer_wait_report(trainer.trainer, PATIENCE_MS, &report), -ESTALE);
	assert_non_null(strstr(strew_error(), "version 0 was committed last"));
	trainer_stop(&trainer);
	/* Bits that belong to no tensor, and numbers that are skipped, said by hand. */
	raw_open(&raw, &nodes[0], ROLE_TRAINER);
	{
		static const uint8_t bits[][2] = {{4, 0}, {1, 1}, {1, 0}};
		static const struct {
			uint32_t subset;
			size_t bytes;
			const char *word;
		} bad[] = {{1, 1, "behind the last"}, {1, 2, "in 2 bytes"}, {2, 1, "before"}};
		struct message message;
		struct draft draft;

		draft_trainer(&draft, "raw", 0, rows, 2);
		draft_register(&raw, &draft);
		for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
			message_init(&message, MSG_SUBSET, ++raw.serial);
			message.u.subset.subset = bad[i].subset;
			message.u.subset.tensors = bits[i];
			message.u.subset.ntensors = bad[i].bytes;
			raw_send(&raw, &message);
			raw_expect_error(&raw, -EINVAL, bad[i].word);
		}
		draft_finish(&draft);
	}
	raw_close(&raw);
}

/* Who comes after the base was committed sits out, untouched, until a whole version. */
static void test_who_does_not_hold_the_base(void **state)
{
	struct worker workers[2];
	char names[N][16];
	struct rows rows[N];
	struct strew_report report;
	struct trainer trainer;

	(void)state;
	draw_rows(rows, names);
	assert_int_equal(worker_start(&workers[0], &nodes[0],
				 (struct strew_agent_options){.model = "late"}, rows, N),
		0);
	assert_int_equal(trainer_start(&trainer, &nodes[1],
				 (struct strew_trainer_options){.model = "late"}, rows, N),
		0);
	assert_int_equal(name_subset(&trainer, 5), 1);
	trainer_commits(&trainer, 1);
	for (unsigned node = 0; node < 2; node++) {
		uint64_t held[PEER_ROWS] = {2, 1, 2, 1, 1, 1};

		assert_int_equal(
			worker_start(&workers[1], &nodes[2 * node],
				(struct strew_agent_options){.model = "late",
					.replica = 1,
					.apply = node ? STREW_APPLY_STAGED : STREW_APPLY_DIRECT},
				rows, N),
			0);
		for (unsigned i = 0; i < N; i++) {
			held[i] += 3 * node;
		}
		publish_subset(&trainer, 1, 5, 1 + 3 * node, 2 + 3 * node, STREW_OUTCOME_SAT_OUT,
			"", &report);
		report_group(&report, 0, STREW_OUTCOME_COMMITTED, "");
		report_group(&report, 1, STREW_OUTCOME_SAT_OUT, "only for who is CURRENT");
		strew_report_finish(&report);
		worker_holds_each(&workers[0], held);
		worker_is_poisoned(&workers[1]);
		trainer_commits(&trainer, 3 + 3 * node);
		worker_holds(&workers[1], 3 + 3 * node);
		worker_holds(&workers[0], 3 + 3 * node);
		trainer_commits(&trainer, 4 + 3 * node);
		worker_stop(&workers[1]);
	}
	worker_stop(&workers[0]);
	trainer_stop(&trainer);
}

/* Memory that cannot be written at commit makes the group DIRTY: a subset does not heal it. */
static void test_dirty_stays_dirty(void **state)
{
	static const struct rows rows[] = {
		{"a", STREW_F32, 64, 33, 0, 64}, {"b", STREW_F32, 64, 33, 0, 64}};
	struct strew_report report;
	struct trainer trainer;
	struct worker worker;
	size_t len = (size_t)2 * 65 * 33 * 4;

	(void)state;
	peers_ordinary = true;
	assert_int_equal(
		worker_start(&worker, &nodes[0],
			(struct strew_agent_options){.model = "dirty", .apply = STREW_APPLY_STAGED},
			rows, 2),
		0);
	peers_ordinary = false;
	assert_int_equal(trainer_start(&trainer, &nodes[1],
				 (struct strew_trainer_options){.model = "dirty"}, rows, 2),
		0);
	assert_int_equal(name_subset(&trainer, 3), 1);
	trainer_commits(&trainer, 1);
	/* The pages that lie wholly inside: what malloc() keeps beside them stays as it was. */
	{
		uintptr_t first = align_up((uintptr_t)worker.memory, 4096);
		uintptr_t last = ((uintptr_t)worker.memory + len) & ~(uintptr_t)4095;

		assert_int_equal(mprotect((void *)first, last - first, PROT_READ), 0);
		assert_true(trainer_publish(&trainer, 2, 0, PATIENCE_MS, &report) >= 0);
		report_group(&report, 0, STREW_OUTCOME_DIRTY, "cannot be written");
		strew_report_finish(&report);
		assert_int_equal(broker_group_state(&nodes[0], "dirty"), STREW_GROUP_DIRTY);
		assert_int_equal(mprotect((void *)first, last - first, PROT_READ | PROT_WRITE), 0);
	}
	publish_subset(&trainer, 1, 3, 2, 3, STREW_OUTCOME_ABORTED, "", &report);
	report_group(&report, 0, STREW_OUTCOME_SAT_OUT, "only for who is CURRENT");
	strew_report_finish(&report);
	assert_int_equal(broker_group_state(&nodes[0], "dirty"), STREW_GROUP_DIRTY);
	trainer_commits(&trainer, 3);
	worker_holds(&worker, 3);
	assert_int_equal(broker_group_state(&nodes[0], "dirty"), STREW_GROUP_CURRENT);
	worker_stop(&worker);
	trainer_stop(&trainer);
}

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

/* A rank that gives up waiting names it again, and may think better of it. */
static void test_a_rank_that_names_late(void **state)
{
	(void)state;
	for (unsigned first = 0; first < 2; first++) {
		static const unsigned before = 1u << FIRST, after = 1u << HALVES;
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
		n = names_of(scene.held[0], scene.nheld[0], bits_of_rank(&scene, 0, before), names);
		assert_int_equal(strew_trainer_subset(scene.ranks[0].trainer, names, n, &subset),
			-ETIMEDOUT);
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

/* The broker of a trainer is started again: reconnecting names the subsets anew. */
static void test_reconnect(void **state)
{
	static const struct rows rows[] = {
		{"a", STREW_F32, 9, 5, 0, 9}, {"b", STREW_F32, 3, 30, 0, 3}};
	const uint64_t held[] = {2, 1};
	struct strew_report report;
	struct trainer trainer;
	struct worker worker;
	struct broker alone = {0};

	(void)state;
	broker_start(&alone, NULL);
	assert_int_equal(trainer_start(&trainer, &alone,
				 (struct strew_trainer_options){.model = "again"}, rows, 2),
		0);
	assert_int_equal(name_subset(&trainer, 2), 1);
	assert_int_equal(name_subset(&trainer, 1), 2);
	assert_int_equal(broker_stop(&alone, SIGKILL), 256 + SIGKILL);
	broker_start(&alone, NULL);
	assert_int_equal(strew_trainer_publish(trainer.trainer, 1, NULL, 0, 100), -ECONNRESET);
	assert_int_equal(strew_trainer_reconnect(trainer.trainer, PATIENCE_MS), 0);
	assert_int_equal(worker_start(&worker, &alone,
				 (struct strew_agent_options){.model = "again"}, rows, 2),
		0);
	trainer_commits(&trainer, 1);
	publish_subset(&trainer, 2, 1, 1, 2, STREW_OUTCOME_COMMITTED, "", &report);
	strew_report_finish(&report);
	worker_holds_each(&worker, held);
	worker_stop(&worker);
	trainer_stop(&trainer);
	broker_finish(&alone);
}

#define CASE(name) cmocka_unit_test_teardown(name, nodes_check)

int main(void)
{
	const struct CMUnitTest tests[] = {
		CASE(test_each_tensor_has_its_version),
		CASE(test_names),
		CASE(test_who_does_not_hold_the_base),
		CASE(test_dirty_stays_dirty),
		CASE(test_two_ranks),
		CASE(test_a_rank_that_names_late),
		CASE(test_ranks_that_differ),
		CASE(test_brokers_that_come_back),
		CASE(test_reconnect),
	};

	return test_finish(
		cmocka_run_group_tests(tests, nodes_start, nodes_finish), test_fds_at_start);
}
