#include "base/clock.h"
#include <limits.h>
#include <time.h>

uint64_t clock_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

uint64_t deadline_in_ms(int64_t timeout_ms)
{
	if (timeout_ms < 0) {
		return DEADLINE_NEVER;
	}
	return clock_ns() + (uint64_t)timeout_ms * 1000000u;
}

int deadline_left_ms(uint64_t deadline)
{
	uint64_t now, left_ms;

	if (deadline == DEADLINE_NEVER) {
		return -1;
	}
	now = clock_ns();
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
