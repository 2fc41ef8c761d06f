/* The mover's thread: how late it sees that a word was reached, and what it costs when it waits for
 * nothing. Lateness says nothing on a busy machine: there these tests skip themselves. */
#include "base/clock.h"
#include "broker/mover.h"
#include "support/test_main.h"
#include <poll.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#define TRIES 20000
#define ENOUGH 50 /* tries that count */

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

struct timed_job {
	struct job job;
	uint64_t ended_ns;
	bool done;
};

static void run(struct job *job)
{
	((struct timed_job *)job)->ended_ns = clock_ns();
}

static void done(struct job *job)
{
	((struct timed_job *)job)->done = true;
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

/* Threads of others take our turns. */
static void skip_if_busy(void)
{
	double load = 0;

	if (getloadavg(&load, 1) != 1 || load > 0.5 * (double)sysconf(_SC_NPROCESSORS_ONLN)) {
		print_message("skipped: the machine is busy, its load is %.1f\n", load);
		skip();
	}
}

/* An update is a chain of jobs and words: the word behind a job is seen while the mover stays
 * awake. */
static void test_a_word_behind_a_job(void **state)
{
	uint64_t best = UINT64_MAX;
	unsigned counted = 0;

	(void)state;
	skip_if_busy();
	page_store(&page, 0, 1);
	for (unsigned i = 0; i < TRIES && counted < ENOUGH; i++) {
		struct timed_job work = {.job = {.run = run, .done = done}};
		uint64_t seen = 0, asked;
		struct watch watch = watch_for(0, 1, &seen);

		mover_submit(mover, &work.job);
		reap_until(&work.done, NULL);
		asked = clock_ns();
		mover_watch(mover, &watch);
		reap_until(NULL, &seen);
		if (asked - work.ended_ns < 15000) {
			counted++;
			best = seen - asked < best ? seen - asked : best;
		}
	}
	if (counted == 0) {
		skip(); /* never on time: nothing was measured */
	}
	assert_in_range(best, 0, 20000);
}

static int by_size(const void *left, const void *right)
{
	uint64_t a = *(const uint64_t *)left, b = *(const uint64_t *)right;

	return (a > b) - (a < b);
}

/* One that has been awaited for long, and is looked at rarely, does not make a new one late. */
static void test_a_word_beside_an_old_one(void **state)
{
	uint64_t never = 0, late[ENOUGH];
	struct watch old = watch_for(1, 1, &never);

	(void)state;
	skip_if_busy();
	mover_watch(mover, &old);
	for (unsigned i = 0; i < ENOUGH; i++) {
		uint64_t seen = 0, asked, reached;
		struct watch watch = watch_for(2, i + 1, &seen);

		poll(NULL, 0, 10); /* long enough for the longest sleep */
		asked = clock_ns();
		mover_watch(mover, &watch);
		/* By now the mover has been woken, has looked, and has gone to sleep again. */
		while (clock_ns() < asked + 100000) {
		}
		reached = clock_ns();
		page_store(&page, 2, i + 1);
		reap_until(NULL, &seen);
		late[i] = seen - reached;
	}
	mover_unwatch(mover, &old);
	assert_int_equal(never, 0);
	qsort(late, ENOUGH, sizeof(late[0]), by_size);
	assert_in_range(late[ENOUGH / 4], 0, 60000);
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
	struct timed_job work = {.job = {.run = run, .done = done}};
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
		cmocka_unit_test_setup_teardown(test_a_word_behind_a_job, start, finish),
		cmocka_unit_test_setup_teardown(test_a_word_beside_an_old_one, start, finish),
		cmocka_unit_test_setup_teardown(
			test_waiting_for_nothing_costs_nothing, start, finish),
	};

	return TEST_RUN(tests);
}
