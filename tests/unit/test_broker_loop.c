/* The event loop, each test on io_uring and on epoll. */
#include "base/clock.h"
#include "base/util.h"
#include "broker/loop.h"
#include "support/test_main.h"
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <unistd.h>

#define MANY 1000

struct fixture {
	struct loop *loop;
};

static int set_up(void **state, enum loop_kind kind)
{
	struct fixture *fixture = calloc(1, sizeof(*fixture));
	int rc = loop_create(kind, &fixture->loop);

	if (kind == LOOP_URING && (rc == -EPERM || rc == -ENOSYS || rc == -EACCES)) {
		print_message("SKIP: io_uring is forbidden here\n");
		fixture->loop = NULL;
		rc = 0;
	}
	*state = fixture;
	return rc;
}

static int on_uring(void **state)
{
	return set_up(state, LOOP_URING);
}

static int on_epoll(void **state)
{
	return set_up(state, LOOP_EPOLL);
}

static int tear_down(void **state)
{
	struct fixture *fixture = *state;

	loop_destroy(fixture->loop);
	free(fixture);
	return 0;
}

static struct loop *loop_of(void **state)
{
	struct loop *loop = ((struct fixture *)*state)->loop;

	if (!loop) {
		skip();
	}
	return loop;
}

/* What a callback saw, and what it is to do. */
struct seen {
	struct loop *loop;
	struct loop_source *source, *victim;
	unsigned calls;
	uint32_t events;
	int fd; /* read from, -1: not */
	bool remove_self;
};

static void note(void *data, uint32_t events)
{
	struct seen *seen = data;
	char buf[8];

	seen->calls++;
	seen->events |= events;
	if (seen->fd >= 0) {
		assert_true(read(seen->fd, buf, sizeof(buf)) > 0);
	}
	if (seen->victim) {
		loop_remove(seen->victim);
		seen->victim = NULL;
	}
	if (seen->remove_self) {
		loop_remove(seen->source);
		seen->source = NULL;
	}
}

static void round_now(struct loop *loop)
{
	assert_int_equal(loop_round(loop, clock_ns()), 0);
}

/* Rounds until `seen` was called `calls` times, for at most a second. */
static void rounds_until(struct loop *loop, const struct seen *seen, unsigned calls)
{
	uint64_t deadline = deadline_in_ms(1000);

	while (seen->calls < calls && !deadline_passed(deadline)) {
		unsigned before = seen->calls;

		assert_int_equal(loop_round(loop, deadline), 0);
		assert_true(loop_stirred(loop) || seen->calls == before);
	}
	assert_int_equal(seen->calls, calls);
}

static void pair(int fds[2])
{
	assert_int_equal(
		socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, fds), 0);
}

/* What is left unread is reported again, once a round. */
static void test_levels(void **state)
{
	struct loop *loop = loop_of(state);
	struct seen seen = {.loop = loop, .fd = -1};
	int fds[2];

	pair(fds);
	assert_int_equal(loop_add(loop, fds[0], EPOLLIN, note, &seen, &seen.source), 0);
	round_now(loop);
	assert_int_equal(seen.calls, 0);
	assert_int_equal(write(fds[1], "abc", 3), 3);
	for (unsigned i = 1; i <= 5; i++) {
		rounds_until(loop, &seen, i);
	}
	assert_int_equal(seen.events, EPOLLIN);
	seen.fd = fds[0];
	rounds_until(loop, &seen, 6);
	round_now(loop);
	round_now(loop);
	assert_int_equal(seen.calls, 6);
	loop_remove(seen.source);
	close(fds[0]);
	close(fds[1]);
}

static void test_modify(void **state)
{
	struct loop *loop = loop_of(state);
	struct seen seen = {.loop = loop, .fd = -1};
	int fds[2];

	pair(fds);
	assert_int_equal(loop_add(loop, fds[0], EPOLLIN, note, &seen, &seen.source), 0);
	round_now(loop);
	assert_int_equal(seen.calls, 0);
	assert_int_equal(loop_modify(seen.source, EPOLLIN | EPOLLOUT), 0);
	rounds_until(loop, &seen, 1);
	assert_int_equal(seen.events, EPOLLOUT);
	/* Its request may have completed by now; only what is wanted then counts. */
	assert_int_equal(loop_modify(seen.source, EPOLLIN), 0);
	round_now(loop);
	seen.calls = 0;
	round_now(loop);
	round_now(loop);
	assert_int_equal(seen.calls, 0);
	assert_int_equal(write(fds[1], "a", 1), 1);
	seen.events = 0;
	rounds_until(loop, &seen, 1);
	assert_true(seen.events & EPOLLIN);
	loop_remove(seen.source);
	close(fds[0]);
	close(fds[1]);
}

/* What is ready when it is asked for again is reported, however often it was not asked for. */
static void test_modify_to_what_is_ready(void **state)
{
	struct loop *loop = loop_of(state);
	struct seen seen = {.loop = loop, .fd = -1};
	int fds[2];

	pair(fds);
	assert_int_equal(loop_add(loop, fds[0], 0, note, &seen, &seen.source), 0);
	assert_int_equal(write(fds[1], "a", 1), 1);
	for (unsigned i = 1; i <= 20; i++) {
		round_now(loop);
		assert_int_equal(seen.calls, i - 1);
		assert_int_equal(loop_modify(seen.source, EPOLLIN), 0);
		if (i % 2) { /* twice before the kernel hears of it */
			assert_int_equal(loop_modify(seen.source, 0), 0);
			assert_int_equal(loop_modify(seen.source, EPOLLIN), 0);
		}
		rounds_until(loop, &seen, i);
		assert_int_equal(seen.events, EPOLLIN);
		assert_int_equal(loop_modify(seen.source, 0), 0);
		/* Its request may have completed by now: that is one call more at most. */
		round_now(loop);
		seen.calls = i;
	}
	loop_remove(seen.source);
	close(fds[0]);
	close(fds[1]);
}

/* A callback may remove its own source, and one that is ready in the same round. */
static void test_remove_in_callback(void **state)
{
	struct loop *loop = loop_of(state);
	struct seen seen[2] = {{.loop = loop, .fd = -1}, {.loop = loop, .fd = -1}};
	int fds[2][2];

	for (int i = 0; i < 2; i++) {
		pair(fds[i]);
		assert_int_equal(write(fds[i][1], "a", 1), 1);
		assert_int_equal(
			loop_add(loop, fds[i][0], EPOLLIN, note, &seen[i], &seen[i].source), 0);
	}
	for (int i = 0; i < 2; i++) {
		seen[i].victim = seen[!i].source;
		seen[i].remove_self = true;
	}
	while (seen[0].calls + seen[1].calls == 0) {
		assert_int_equal(loop_round(loop, deadline_in_ms(1000)), 0);
	}
	round_now(loop);
	assert_int_equal(seen[0].calls + seen[1].calls, 1);
	for (int i = 0; i < 2; i++) {
		close(fds[i][0]);
		close(fds[i][1]);
	}
}

/* After remove the file is the caller's alone: closing it is the end that its peer sees. */
static void test_close_after_remove(void **state)
{
	struct loop *loop = loop_of(state);
	struct seen first = {.loop = loop, .fd = -1}, second = {.loop = loop, .fd = -1};
	int fds[2], again[2], was;
	char byte;

	pair(fds);
	assert_int_equal(loop_add(loop, fds[0], EPOLLIN, note, &first, &first.source), 0);
	round_now(loop);
	loop_remove(first.source);
	was = fds[0];
	close(fds[0]);
	assert_int_equal(read(fds[1], &byte, 1), 0);
	close(fds[1]);
	/* The number comes back for another file. */
	pair(again);
	assert_true(again[0] == was || again[1] == was);
	assert_int_equal(loop_add(loop, again[0], EPOLLIN, note, &second, &second.source), 0);
	assert_int_equal(write(again[1], "a", 1), 1);
	rounds_until(loop, &second, 1);
	assert_int_equal(first.calls, 0);
	loop_remove(second.source);
	round_now(loop);
	close(again[0]);
	close(again[1]);
}

static void test_hang_up(void **state)
{
	struct loop *loop = loop_of(state);
	struct seen seen = {.loop = loop, .fd = -1};
	int fds[2];

	pair(fds);
	assert_int_equal(loop_add(loop, fds[0], EPOLLIN, note, &seen, &seen.source), 0);
	round_now(loop);
	close(fds[1]);
	rounds_until(loop, &seen, 1);
	assert_true(seen.events & EPOLLIN);
	assert_true(seen.events & EPOLLHUP);
	loop_remove(seen.source);
	close(fds[0]);
}

static void test_deadline(void **state)
{
	struct loop *loop = loop_of(state);
	uint64_t start = clock_ns();
	unsigned rounds = 0;

	/* A round may end early, for a signal, but nobody spins until the deadline. */
	while (clock_ns() < start + 30000000) {
		assert_int_equal(loop_round(loop, start + 30000000), 0);
		rounds++;
	}
	assert_true(rounds < 10);
	assert_true(clock_ns() - start < 5000000000);
	start = clock_ns();
	assert_int_equal(loop_round(loop, 1), 0); /* long gone */
	assert_false(loop_stirred(loop));
	assert_true(clock_ns() - start < 1000000000);
}

/* More than fit a round or the queue: everybody is called in the end, and equally often. */
static void test_many(void **state)
{
	static struct seen seen[MANY];
	static int fds[MANY];
	struct loop *loop = loop_of(state);
	unsigned done = 0;

	memset(seen, 0, sizeof(seen));
	for (size_t i = 0; i < MANY; i++) {
		fds[i] = eventfd(1, EFD_CLOEXEC | EFD_NONBLOCK);
		assert_true(fds[i] >= 0);
		seen[i] = (struct seen){.loop = loop, .fd = fds[i]};
		assert_int_equal(
			loop_add(loop, fds[i], EPOLLIN, note, &seen[i], &seen[i].source), 0);
	}
	for (int round = 0; round < 10 * MANY && done < MANY; round++) {
		assert_int_equal(loop_round(loop, deadline_in_ms(1000)), 0);
		done = 0;
		for (size_t i = 0; i < MANY; i++) {
			done += seen[i].calls;
		}
	}
	for (size_t i = 0; i < MANY; i++) {
		uint64_t one = 1;

		assert_int_equal(seen[i].calls, 1);
		/* Every third goes while its next completion may be on its way. */
		assert_int_equal(write(fds[i], &one, sizeof(one)), sizeof(one));
		if (i % 3 == 0) {
			loop_remove(seen[i].source);
		}
	}
	for (int round = 0; round < 100; round++) {
		round_now(loop);
	}
	for (size_t i = 0; i < MANY; i++) {
		assert_int_equal(seen[i].calls, i % 3 == 0 ? 1 : 2);
		close(fds[i]);
	}
	/* The rest is left to loop_destroy(). */
}

static void test_signals(void **state)
{
	struct loop *loop = loop_of(state);
	struct seen seen = {.loop = loop, .fd = -1};
	struct signalfd_siginfo info;
	sigset_t set, old;
	int fd;

	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	sigprocmask(SIG_BLOCK, &set, &old);
	fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
	assert_true(fd >= 0);
	assert_int_equal(loop_add(loop, fd, EPOLLIN, note, &seen, &seen.source), 0);
	round_now(loop);
	kill(getpid(), SIGUSR1);
	rounds_until(loop, &seen, 1);
	assert_int_equal(read(fd, &info, sizeof(info)), sizeof(info));
	loop_remove(seen.source);
	close(fd);
	sigprocmask(SIG_SETMASK, &old, NULL);
}

static void add_another(void *data, uint32_t events)
{
	struct seen *seen = data;

	note(seen, events);
	if (!seen[1].source) {
		assert_int_equal(
			loop_add(seen->loop, seen[1].fd, EPOLLIN, note, &seen[1], &seen[1].source),
			0);
	}
}

static void test_add_in_callback(void **state)
{
	struct loop *loop = loop_of(state);
	int fds[2] = {eventfd(1, EFD_CLOEXEC), eventfd(1, EFD_CLOEXEC)};
	struct seen seen[2] = {{.loop = loop, .fd = fds[0]}, {.loop = loop, .fd = fds[1]}};

	assert_int_equal(loop_add(loop, fds[0], EPOLLIN, add_another, seen, &seen[0].source), 0);
	rounds_until(loop, &seen[1], 1);
	assert_int_equal(seen[0].calls, 1);
	loop_remove(seen[0].source);
	loop_remove(seen[1].source);
	close(fds[0]);
	close(fds[1]);
}

static void test_names(void **state)
{
	struct loop *loop;

	(void)state;
	assert_int_equal(loop_create(LOOP_EPOLL, &loop), 0);
	assert_string_equal(loop_name(loop), "epoll");
	assert_string_equal(loop_why(loop), "");
	loop_destroy(loop);
	assert_int_equal(loop_create(LOOP_AUTO, &loop), 0);
	if (strcmp(loop_name(loop), "epoll") == 0) {
		assert_memory_equal(loop_why(loop), "io_uring: ", 10);
	} else {
		assert_string_equal(loop_name(loop), "io_uring");
		assert_string_equal(loop_why(loop), "");
	}
	loop_destroy(loop);
	loop_destroy(NULL);
}

#define BOTH(test)                                                                                 \
	cmocka_unit_test_setup_teardown(test, on_uring, tear_down),                                \
		cmocka_unit_test_setup_teardown(test, on_epoll, tear_down)

int main(void)
{
	const struct CMUnitTest tests[] = {BOTH(test_levels), BOTH(test_modify),
		BOTH(test_modify_to_what_is_ready), BOTH(test_remove_in_callback),
		BOTH(test_close_after_remove), BOTH(test_hang_up), BOTH(test_deadline),
		BOTH(test_many), BOTH(test_signals), BOTH(test_add_in_callback),
		cmocka_unit_test(test_names)};

	return TEST_RUN(tests);
}
