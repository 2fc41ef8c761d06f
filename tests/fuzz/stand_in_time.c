#include "base/clock.h"
#include "base/log.h"
#include "fuzz/fuzz.h"
#include "fuzz/stand_ins.h"
#include "ipc/page.h"
#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <time.h>

#define START_NS 1000000000000ull
#define TURN_NS 100u  /* that a look at the clock takes */
#define WAIT_MS 1000u /* that a short wait takes at least, so that long ones are few */

bool (*world_turn)(void);

static uint64_t now_ns = START_NS;
static uint64_t random_state;

void time_pass(uint64_t ms)
{
	now_ns += ms * 1000000u;
}

uint64_t clock_ns(void)
{
	now_ns += TURN_NS;
	return now_ns;
}

uint64_t deadline_in_ms(int64_t timeout_ms)
{
	return timeout_ms < 0 ? DEADLINE_NEVER : clock_ns() + (uint64_t)timeout_ms * 1000000u;
}

int deadline_left_ms(uint64_t deadline)
{
	uint64_t now = clock_ns(), left_ms;

	if (deadline == DEADLINE_NEVER) {
		return -1;
	}
	if (now >= deadline) {
		return 0;
	}
	left_ms = (deadline - now + 999999u) / 1000000u;
	return left_ms > INT_MAX ? INT_MAX : (int)left_ms;
}

int deadline_passed(uint64_t deadline)
{
	return deadline != DEADLINE_NEVER && clock_ns() >= deadline;
}

void stand_ins_reset(void)
{
	now_ns = START_NS;
	random_state = 0;
	sockets_refuse(false);
	sockets_drop();
}

int __real_poll(struct pollfd *fds, nfds_t n, int timeout_ms);
int __wrap_poll(struct pollfd *fds, nfds_t n, int timeout_ms);
int __real_epoll_wait(int epoll, struct epoll_event *events, int max, int timeout_ms);
int __wrap_epoll_wait(int epoll, struct epoll_event *events, int max, int timeout_ms);
int __wrap_nanosleep(const struct timespec *wanted, struct timespec *ret_left);
int __wrap_random_bytes(void *buf, size_t len_bytes);

int __wrap_poll(struct pollfd *fds, nfds_t n, int timeout_ms)
{
	int rc = __real_poll(fds, n, 0);

	for (bool again = true; rc == 0 && again && world_turn && world_turn();) {
		rc = __real_poll(fds, n, 0);
		again = timeout_ms != 0;
	}
	if (rc == 0) {
		/* Whoever else runs here had his turn: what has not come will not. */
		CLAIM(timeout_ms >= 0);
		time_pass(timeout_ms && (unsigned)timeout_ms < WAIT_MS ? WAIT_MS
								       : (unsigned)timeout_ms);
	}
	return rc;
}

int __wrap_epoll_wait(int epoll, struct epoll_event *events, int max, int timeout_ms)
{
	(void)timeout_ms;
	return __real_epoll_wait(epoll, events, max, 0);
}

int __wrap_nanosleep(const struct timespec *wanted, struct timespec *ret_left)
{
	(void)wanted;
	(void)ret_left;
	time_pass(WAIT_MS);
	return 0;
}

int __wrap_random_bytes(void *buf, size_t len_bytes)
{
	unsigned char *p = buf;

	for (size_t i = 0; i < len_bytes; i++) {
		random_state = random_state * 6364136223846793005u + 1442695040888963407u;
		p[i] = (unsigned char)(random_state >> 56);
	}
	return 0;
}

/* For base/log.c: sentences are made, so that what goes into them is looked at, and dropped. */
void log_init(const char *name, enum log_level level)
{
	(void)name;
	(void)level;
}

void log_line(enum log_level level, const char *format, ...)
{
	char line[1024];
	va_list ap;

	(void)level;
	va_start(ap, format);
	vsnprintf(line, sizeof(line), format, ap);
	va_end(ap);
#ifdef FUZZ_LOG
	fprintf(stderr, "[%llu] %s\n", (unsigned long long)(now_ns / 1000000u), line);
#endif
}
