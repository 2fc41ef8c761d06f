/*
 * Subsets at three real brokers: each tensor has the version that brought it last and no other
 * byte changes, in every replica; who does not hold the base sits out, and who is DIRTY stays so.
 */
#include "base/clock.h"
#include "base/util.h"
#include "broker/nodes.h"
#include "broker/subset.h"
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

enum { N = 6, PUBLISHED = 4 };

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

static void say_subset(struct raw *raw, uint32_t subset, uint8_t bits)
{
	struct message message;

	message_init(&message, MSG_SUBSET, ++raw->serial);
	message.u.subset.subset = subset;
	message.u.subset.tensors = &bits;
	message.u.subset.ntensors = 1;
	raw_send(raw, &message);
}

static void names_well(struct raw *raw, uint32_t subset, uint8_t bits)
{
	struct message message;

	say_subset(raw, subset, bits);
	raw_expect(raw, MSG_OK, &message);
	assert_int_equal(message.serial, raw->serial);
	assert_int_equal(message.u.ok.value, subset);
	message_finish(&message);
}

static void names_what_stands(struct raw *raw, const uint8_t *bits, uint32_t n)
{
	for (uint32_t i = 1; i <= n; i++) {
		names_well(raw, i, bits[i - 1]);
		say_subset(raw, i, bits[i - 1] ^ 3);
		raw_expect_error(raw, -EEXIST, "has other tensors already");
	}
}

/* The lead that came in the place of another has all of the rank's subsets, without its doing. */
static void wait_subsets(const char *model, uint32_t subsets)
{
	uint64_t deadline = deadline_in_ms(PATIENCE_MS);
	uint32_t found = 0;

	while (found != subsets && !deadline_passed(deadline)) {
		struct message reply;

		broker_status(&nodes[0], &reply);
		for (size_t i = 0; i < reply.u.status_reply.ntrainers; i++) {
			if (strcmp(reply.u.status_reply.trainers[i].model, model) == 0) {
				found = reply.u.status_reply.trainers[i].subsets;
			}
		}
		message_finish(&reply);
		sleep_ms(5);
	}
	assert_int_equal(found, subsets);
}

/* What stands may be named again, and stands: it, and those behind it, also when the lead is lost
 * before it has answered, or refuses. */
static void test_what_stands_is_named_again(void **state)
{
	static const struct rows rows[] = {
		{"a", STREW_F32, 4, 5, 0, 4}, {"b", STREW_F32, 3, 3, 0, 3}};
	static const uint8_t bits[] = {1, 2, 3, 1};
	struct message reply;
	struct draft draft;
	struct raw raw;

	(void)state;
	for (unsigned node = 0; node < 2; node++) {
		draft_trainer(&draft, "again", 0, rows, 2);
		raw_open(&raw, &nodes[node], ROLE_TRAINER);
		draft_register(&raw, &draft);
		draft_finish(&draft);
		for (uint32_t i = 1; i <= 3; i++) {
			names_well(&raw, i, bits[i - 1]);
		}
		names_what_stands(&raw, bits, 3);
		/* They are still there: the fourth is the next one. */
		names_well(&raw, 4, bits[3]);
		expect_status("again", 0, 4, 0, 0);
		if (node == 0) {
			raw_close(&raw);
			broker_wait_no_ranks(&nodes[0]);
		}
	}
	assert_int_equal(kill(nodes[0].pid, SIGSTOP), 0);
	say_subset(&raw, 1, bits[0]);
	broker_status(&nodes[1], &reply); /* it has been read by then */
	message_finish(&reply);
	assert_int_equal(broker_stop(&nodes[0], SIGKILL), 256 + SIGKILL);
	raw_expect_error(&raw, -ECONNRESET, "the lead is gone");
	say_subset(&raw, 1, bits[0]);
	raw_expect_error(&raw, -EBUSY, "not every rank");
	broker_start(&nodes[0], (const char *[]){"--listen", nodes_address, NULL});
	broker_wait_brokers(&nodes[0], NODES);
	wait_subsets("again", 4);
	names_what_stands(&raw, bits, 4);
	expect_status("again", 0, 4, 0, 0);
	raw_close(&raw);
}

/* Who comes after the base was committed, with no sibling on its node, sits out, untouched, until a
 * whole version. */
static void test_who_does_not_hold_the_base(void **state)
{
	struct worker workers[2];
	char names[N][16];
	struct rows rows[N];
	struct strew_report report;
	struct trainer trainer;

	(void)state;
	draw_rows(rows, names);
	assert_int_equal(worker_start(&workers[0], &nodes[1],
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
		CASE(test_what_stands_is_named_again),
		CASE(test_who_does_not_hold_the_base),
		CASE(test_dirty_stays_dirty),
		CASE(test_reconnect),
	};

	return test_finish(
		cmocka_run_group_tests(tests, nodes_start, nodes_finish), test_fds_at_start);
}
