/* The mover's thread: how often it looks at words, and what it costs when it waits for nothing. */
#include "base/clock.h"
#include "broker/mover.h"
#include "broker/pace.h"
#include "support/test_main.h"
#include <poll.h>
#include <sched.h>
#include <stdatomic.h>
#include <time.h>

static struct mover *mover;
static struct page page;

static void broken(void *data, const char *text)
{
	(void)data;
	print_error("the mover is broken: %s\n", text);
	fail();
}

static int start(void **state)
{
	struct error err;

	(void)state;
	assert_int_equal(page_create(&page, &err), 0);
	assert_int_equal(mover_create(broken, NULL, &mover, &err), 0);
	return 0;
}

static int finish(void **state)
{
	(void)state;
	mover_destroy(mover);
	page_finish(&page);
	return 0;
}

struct told_job {
	struct job job;
	bool done;
	uint64_t due; /* of it, while it ran */
};

static void run(struct job *job)
{
	((struct told_job *)job)->due = mover_due(mover);
	job->rc = 0;
}

static atomic_bool told;

static void run_until_told(struct job *job)
{
	while (!atomic_load(&told)) {
		sched_yield();
	}
	run(job);
}

static void done(struct job *job)
{
	((struct told_job *)job)->done = true;
}

static void hit(struct watch *watch)
{
	*(uint64_t *)watch->data = clock_ns();
}

/* Reaps, without sleeping, until it is so. */
static void reap_until(const bool *so, const uint64_t *or_this)
{
	uint64_t deadline = deadline_in_ms(10000);

	while (!(so && *so) && !(or_this && *or_this)) {
		mover_reap(mover);
		assert_false(deadline_passed(deadline));
	}
}

static struct watch watch_for(unsigned word, uint64_t value, uint64_t *at)
{
	return (struct watch){.page = &page, .word = word, .value = value, .hit = hit, .data = at};
}

static void test_pace(void **state)
{
	struct pace pace = {0};
	uint64_t now = 1000000, sum = 0, last = 0, ns;

	(void)state;
	/* Nothing has happened yet, nothing is awaited. */
	assert_true(pace_next(&pace, now, false) == PACE_CALLED);
	/* Behind a job it is awake, whether a word is awaited or not, for a moment. */
	pace_stirred(&pace, now);
	assert_true(pace_next(&pace, now, false) == PACE_AWAKE);
	assert_true(pace_next(&pace, now + PACE_AWAKE_NS - 1, true) == PACE_AWAKE);
	/* Behind a word it is so anew. */
	now += PACE_AWAKE_NS - 1;
	pace_stirred(&pace, now);
	assert_true(pace_next(&pace, now + PACE_AWAKE_NS - 1, true) == PACE_AWAKE);
	now += PACE_AWAKE_NS;
	assert_true(pace_next(&pace, now, false) == PACE_CALLED);
	/* A word is seen at most an eighth of what it has taken late, and never more than the most.
	 */
	while ((ns = pace_next(&pace, now + sum, true)) < PACE_SLEEP_MAX_NS) {
		assert_true(ns >= PACE_SLEEP_MIN_NS && ns > last);
		assert_true(ns <= PACE_SLEEP_MIN_NS + sum / 8);
		sum += last = ns;
	}
	assert_true(pace_next(&pace, now + sum, true) == PACE_SLEEP_MAX_NS);
	/* A new one is looked at often again, which keeps nobody awake. */
	pace_watched(&pace);
	assert_true(pace_next(&pace, now + sum, true) == PACE_SLEEP_MIN_NS);
	assert_true(pace_next(&pace, now + sum, true) > PACE_SLEEP_MIN_NS);
	assert_true(pace_next(&pace, now + sum, false) == PACE_CALLED);
}

/* Chains of jobs and words, as updates are; each word is reached before it is asked for, or after.
 */
static void test_jobs_and_words(void **state)
{
	uint64_t never = 0;
	struct watch old = watch_for(1, 1, &never);

	(void)state;
	mover_watch(mover, &old);
	for (uint64_t i = 1; i <= 200; i++) {
		struct told_job work = {.job = {.run = run, .done = done}};
		uint64_t seen = 0;
		struct watch watch = watch_for(2, i, &seen);

		mover_submit(mover, &work.job);
		reap_until(&work.done, NULL);
		if (i % 2) {
			page_store(&page, 2, i);
		}
		mover_watch(mover, &watch);
		if (i % 16 == 0) {
			poll(NULL, 0, 1); /* it has gone to sleep by now */
		}
		page_store(&page, 2, i);
		reap_until(NULL, &seen);
	}
	mover_unwatch(mover, &old);
	assert_int_equal(never, 0);
}

/* Who asks for a word that is there already, or looks while the thread is busy, need not wait for
 * the thread. */
static void test_looking(void **state)
{
	struct told_job work = {.job = {.run = run_until_told, .done = done}};
	uint64_t there = 0, later = 0;
	struct watch first = watch_for(0, 1, &there), second = watch_for(1, 1, &later);

	(void)state;
	atomic_store(&told, false);
	mover_submit(mover, &work.job);
	page_store(&page, 0, 1);
	mover_watch(mover, &first);
	mover_watch(mover, &second);
	mover_reap(mover);
	assert_true(there != 0 && later == 0);
	mover_look(mover);
	mover_reap(mover);
	assert_true(later == 0);
	page_store(&page, 1, 1);
	/* The thread holds the lock for a moment, when it begins. */
	while (!later) {
		mover_look(mover);
		mover_reap(mover);
	}
	assert_false(work.done);
	atomic_store(&told, true);
	reap_until(&work.done, NULL);
}

/* By when a job must have ended: at a time that is given, or so long after it has begun. */
static void test_limits(void **state)
{
	const struct {
		uint64_t due;
		uint32_t limit_ms, ms;
	} cases[] = {{UINT64_MAX / 2, 5000, 0}, {0, 5000, 5000}, {0, 0, LIMIT_JOB_MS}};

	(void)state;
	for (unsigned i = 0; i < 3; i++) {
		struct told_job work = {.job = {.run = run,
						.done = done,
						.due = cases[i].due,
						.limit_ms = cases[i].limit_ms}};
		uint64_t before = clock_ns();

		mover_submit(mover, &work.job);
		reap_until(&work.done, NULL);
		if (cases[i].due) {
			assert_true(work.due == cases[i].due);
		} else {
			uint64_t limit = cases[i].ms * UINT64_C(1000000);

			assert_true(work.due >= before + limit && work.due <= clock_ns() + limit);
		}
		assert_true(mover_due(mover) == UINT64_MAX);
	}
}

static uint64_t cpu_ns(void)
{
	struct timespec at;

	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &at);
	return (uint64_t)at.tv_sec * 1000000000u + (uint64_t)at.tv_nsec;
}

/* Behind a job and a word it falls asleep. */
static void test_waiting_for_nothing_costs_nothing(void **state)
{
	struct told_job work = {.job = {.run = run, .done = done}};
	uint64_t seen = 0, before;
	struct watch watch = watch_for(0, 1, &seen);

	(void)state;
	page_store(&page, 0, 1);
	mover_submit(mover, &work.job);
	mover_watch(mover, &watch);
	reap_until(&work.done, NULL);
	reap_until(NULL, &seen);
	poll(NULL, 0, 20);
	before = cpu_ns();
	poll(NULL, 0, 300);
	assert_in_range(cpu_ns() - before, 0, 30000000);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_pace),
		cmocka_unit_test_setup_teardown(test_jobs_and_words, start, finish),
		cmocka_unit_test_setup_teardown(test_looking, start, finish),
		cmocka_unit_test_setup_teardown(test_limits, start, finish),
		cmocka_unit_test_setup_teardown(
			test_waiting_for_nothing_costs_nothing, start, finish),
	};

	return TEST_RUN(tests);
}
