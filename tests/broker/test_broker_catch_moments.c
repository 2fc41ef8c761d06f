/*
 * Catching up, and something that comes in the middle of its copies: the sibling goes, a version is
 * published, or a subset of one.
 */
#include "base/util.h"
#include "broker/catcher.h"
#include "broker/one.h"
#include "broker/subset.h"
#include "gpu/memfd.h"
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

static void start(struct worker *worker, const char *model, uint32_t replica,
	enum strew_apply apply, const struct rows *rows, size_t nrows)
{
	struct strew_agent_options options = {
		.model = model, .replica = replica, .apply = apply, .timeout_ms = 5000};

	assert_int_equal(worker_start(worker, &one_broker, options, rows, nrows), 0);
}

static const enum strew_apply applies[] = {STREW_APPLY_DIRECT, STREW_APPLY_STAGED};

static const struct rows big[] = {
	{"w", STREW_F32, 3000, 1500, 0, 3000}, {"norm", STREW_F32, 1, 40, 0, 1}};

/*
 * The sibling is withdrawn at any moment, and its memory is another's as soon as that is answered.
 * What caught up has all, what did not has nothing, or (direct) says that it is in part.
 */
static void test_the_sibling_goes_at_any_moment(void **state)
{
	unsigned caught = 0, dirty = 0;

	(void)state;
	for (unsigned i = 0; i < 12; i++) {
		enum strew_apply apply = applies[i & 1];
		struct timespec nap = {0, (long)test_random_below(5000000)};
		struct worker sibling, late;
		enum strew_group_state state_heard;
		struct trainer trainer;
		struct place place;

		assert_int_equal(worker_start(&sibling, &one_broker,
					 (struct strew_agent_options){.model = "leaves"}, big, 2),
			0);
		assert_int_equal(trainer_start(&trainer, &one_broker,
					 (struct strew_trainer_options){.model = "leaves"}, big, 2),
			0);
		trainer_commits(&trainer, 2 * i + 1);
		assert_int_equal(worker_start(&late, &one_broker,
					 (struct strew_agent_options){
						 .model = "leaves", .replica = 1, .apply = apply},
					 big, 2),
			0);
		nanosleep(&nap, NULL);
		assert_int_equal(strew_agent_withdraw(sibling.agent), 0);
		memset(sibling.memory, 0x77, sibling.bytes);
		worker_stop(&sibling);
		/* Until it has heard how that ended. */
		do {
			sleep_ms(20);
			assert_int_equal(strew_agent_state(late.agent, &state_heard, NULL), 0);
		} while (state_heard == STREW_GROUP_PENDING);
		place = group_place(&one_broker, "leaves", 1, 0);
		if (place.state == STREW_GROUP_CURRENT) {
			assert_int_equal(place.version, 2 * i + 1);
			worker_holds(&late, 2 * i + 1);
			caught++;
		} else if (place.state == STREW_GROUP_DIRTY) {
			assert_int_equal(apply, STREW_APPLY_DIRECT);
			dirty++;
		} else {
			assert_int_equal(place.state, STREW_GROUP_STALE);
			worker_is_poisoned(&late);
		}
		trainer_commits(&trainer, 2 * i + 2);
		worker_holds(&late, 2 * i + 2);
		worker_stop(&late);
		trainer_stop(&trainer);
	}
	printf("%u of 12 had caught up before, %u were DIRTY\n", caught, dirty);
}

/* More than one slice of the mover's. */
static const struct rows huge[] = {{"w", STREW_F32, 34000, 1024, 0, 34000}};
#define HUGE_BYTES ((uint64_t)34000 * 1024 * 4)

static void draft_huge(struct draft *draft, const char *model, uint32_t replica)
{
	draft_worker(draft, model, huge, 1);
	draft->reg.replica = replica;
	draft->allocation.size = HUGE_BYTES;
	fd_close(&draft->fd);
	assert_int_equal(memfd_create_sealed("huge", HUGE_BYTES, &draft->fd), 0);
}

static bool is_zero(const uint8_t *at)
{
	return at[0] == 0 && memcmp(at, at + 1, HUGE_BYTES - 1) == 0;
}

/* The sibling dies in the middle. Returns what the group is then. */
static uint32_t die_between_slices(enum strew_apply apply)
{
	struct draft draft, source;
	struct raw raw, sibling;
	struct message message;
	uint8_t *memory, *from;
	uint32_t state;

	draft_huge(&source, "slices", 0);
	source.reg.state = STREW_GROUP_CURRENT;
	source.reg.version = 1;
	from = mmap(NULL, HUGE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, source.fd, 0);
	draft_huge(&draft, "slices", 1);
	draft.reg.apply = apply;
	memory = mmap(NULL, HUGE_BYTES, PROT_READ, MAP_SHARED, draft.fd, 0);
	assert_true(from != MAP_FAILED && memory != MAP_FAILED);
	memset(from, 0x3c, HUGE_BYTES);
	raw_open(&sibling, &one_broker, ROLE_WORKER);
	draft_register(&sibling, &source);
	raw_open(&raw, &one_broker, ROLE_WORKER);
	draft_register(&raw, &draft);
	raw_answer_check(&raw, 0, "");
	sleep_ms(5);
	raw_close(&sibling);
	raw_expect(&raw, MSG_DONE, &message);
	state = message.u.done.state;
	message_finish(&message);
	if (state == STREW_GROUP_CURRENT) {
		assert_memory_equal(memory, from, HUGE_BYTES);
	} else if (state == STREW_GROUP_STALE) {
		assert_true(is_zero(memory));
	} else {
		assert_int_equal(apply, STREW_APPLY_DIRECT);
		assert_int_equal(state, STREW_GROUP_DIRTY);
		assert_int_equal(memory[0], 0x3c);
		assert_int_equal(memory[HUGE_BYTES - 1], 0);
	}
	munmap(memory, HUGE_BYTES);
	munmap(from, HUGE_BYTES);
	raw_close(&raw);
	draft_finish(&draft);
	draft_finish(&source);
	return state;
}

static void test_the_sibling_dies_between_slices(void **state)
{
	uint32_t direct = 0, staged = 0;

	(void)state;
	/* Whether the end of its connection is seen in time is the machine's affair. */
	for (unsigned i = 0; i < 20 && direct != STREW_GROUP_DIRTY; i++) {
		direct = die_between_slices(STREW_APPLY_DIRECT);
	}
	for (unsigned i = 0; i < 20 && staged != STREW_GROUP_STALE; i++) {
		staged = die_between_slices(STREW_APPLY_STAGED);
	}
	assert_int_equal(direct, STREW_GROUP_DIRTY);
	assert_int_equal(staged, STREW_GROUP_STALE);
}

/* One comes at any moment of the copying: both end with the new version, and it is not kept. */
static void test_a_publish_at_any_moment(void **state)
{
	struct worker sibling, late;
	struct strew_report report;
	struct trainer trainer;
	unsigned caught = 0;

	(void)state;
	start(&sibling, "any", 0, STREW_APPLY_DIRECT, big, 2);
	assert_int_equal(trainer_start(&trainer, &one_broker,
				 (struct strew_trainer_options){.model = "any"}, big, 2),
		0);
	trainer_commits(&trainer, 1);
	trainer_write(&trainer, 2);
	for (uint64_t version = 2; version < 22; version++) {
		struct timespec nap = {0, (long)test_random_below(60000000)};

		start(&late, "any", 1, applies[version & 1], big, 2);
		nanosleep(&nap, NULL);
		caught += group_place(&one_broker, "any", 1, 0).state == STREW_GROUP_CURRENT;
		/* What is new about a version is its number, as writing takes a while. */
		assert_int_equal(
			strew_trainer_publish(trainer.trainer, version, NULL, 0, PATIENCE_MS), 0);
		trainer_reports(&trainer, STREW_OUTCOME_COMMITTED, "", &report);
		assert_int_equal(report.ngroups, 2);
		/* One slice and the copy of a commit are waited for: this update copies more. */
		assert_true(report.wait_s < 0.5 + 2 * (report.move_s + report.commit_s));
		strew_report_finish(&report);
		assert_int_equal(group_place(&one_broker, "any", 1, 0).version, version);
		worker_holds(&late, 2);
		worker_stop(&late);
	}
	printf("%u of 20 had caught up before\n", caught);
	worker_holds(&sibling, 2);
	worker_stop(&sibling);
	trainer_stop(&trainer);
}

/* More than one slice, and a small one that is published by itself. */
static const struct rows split[] = {
	{"w", STREW_F32, 34000, 1024, 0, 34000}, {"norm", STREW_F32, 1, 40, 0, 1}};

/* It hears of no outcome that leaves its memory in part. */
static void was_never_dirty(struct worker *worker)
{
	struct strew_event event;

	while (strew_agent_wait(worker->agent, 0, &event) == 1) {
		assert_int_not_equal(event.outcome, STREW_OUTCOME_DIRTY);
		assert_int_not_equal(event.state, STREW_GROUP_DIRTY);
	}
}

/*
 * A subset comes, which would not heal memory that is in part: who copies into live memory may
 * finish first, and then takes the subset as well; who does not takes it from the sibling later.
 */
static void test_a_subset_at_any_moment(void **state)
{
	unsigned took = 0;
	struct worker sibling, late;
	struct strew_report report;
	struct trainer trainer;
	uint32_t subset;

	(void)state;
	start(&sibling, "subset", 0, STREW_APPLY_DIRECT, split, 2);
	assert_int_equal(trainer_start(&trainer, &one_broker,
				 (struct strew_trainer_options){.model = "subset"}, split, 2),
		0);
	subset = name_subset(&trainer, 2);
	trainer_commits(&trainer, 1);
	write_subset(&trainer, 2, 2);
	for (uint64_t version = 2; version < 14; version++) {
		uint64_t held[PEER_ROWS] = {1, 2};
		struct timespec nap = {0, (long)test_random_below(120000000)};

		start(&late, "subset", 1, STREW_APPLY_DIRECT, split, 2);
		nanosleep(&nap, NULL);
		/* What is new about a version is its number, as writing takes a while. */
		assert_int_equal(strew_trainer_publish_subset(trainer.trainer, subset, version - 1,
					 version, NULL, 0, PATIENCE_MS),
			0);
		assert_int_equal(strew_trainer_wait_report(trainer.trainer, 30000, &report), 0);
		took += report.outcome == STREW_OUTCOME_COMMITTED;
		strew_report_finish(&report);
		group_wait(&one_broker, "subset", 1, 0, STREW_GROUP_CURRENT, version);
		was_never_dirty(&late);
		worker_holds_each(&late, held);
		worker_stop(&late);
	}
	printf("%u of 12 took the subset itself\n", took);
	worker_stop(&sibling);
	trainer_stop(&trainer);
}

/* Nor would another model's version heal it. */
static void test_another_model_at_any_moment(void **state)
{
	struct worker sibling, late, others;
	struct trainer trainer, other;

	(void)state;
	start(&sibling, "this", 0, STREW_APPLY_DIRECT, split, 2);
	start(&others, "other", 0, STREW_APPLY_DIRECT, split + 1, 1);
	assert_int_equal(trainer_start(&trainer, &one_broker,
				 (struct strew_trainer_options){.model = "this"}, split, 2),
		0);
	assert_int_equal(trainer_start(&other, &one_broker,
				 (struct strew_trainer_options){.model = "other"}, split + 1, 1),
		0);
	trainer_commits(&trainer, 1);
	for (uint64_t version = 1; version < 9; version++) {
		struct timespec nap = {0, (long)test_random_below(120000000)};

		start(&late, "this", 1, STREW_APPLY_DIRECT, split, 2);
		nanosleep(&nap, NULL);
		trainer_commits(&other, version);
		group_wait(&one_broker, "this", 1, 0, STREW_GROUP_CURRENT, 1);
		was_never_dirty(&late);
		worker_holds(&late, 1);
		worker_stop(&late);
	}
	worker_holds(&others, 8);
	worker_stop(&others);
	worker_stop(&sibling);
	trainer_stop(&other);
	trainer_stop(&trainer);
}

#define CASE(name) cmocka_unit_test_teardown(name, one_check)

int main(void)
{
	const struct CMUnitTest tests[] = {
		CASE(test_a_publish_at_any_moment),
		CASE(test_a_subset_at_any_moment),
		CASE(test_another_model_at_any_moment),
		CASE(test_the_sibling_goes_at_any_moment),
		CASE(test_the_sibling_dies_between_slices),
	};

	test_seed();
	return test_finish(cmocka_run_group_tests(tests, one_start, one_finish), test_fds_at_start);
}
