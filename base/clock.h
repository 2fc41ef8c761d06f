/* Monotonic time and deadlines. A deadline is a point of CLOCK_MONOTONIC in ns; 0 has passed. */
#ifndef BASE_CLOCK_H
#define BASE_CLOCK_H

#include <stdint.h>
#include <time.h>

uint64_t clock_ns(void);

/* The deadline timeout_ms from now. Negative: DEADLINE_NEVER. */
uint64_t deadline_in_ms(int64_t timeout_ms);

/* Milliseconds left, rounded up, for poll(2): 0 when it has passed, -1 for DEADLINE_NEVER. */
int deadline_left_ms(uint64_t deadline);

int deadline_passed(uint64_t deadline);

#define DEADLINE_NEVER UINT64_MAX

/* As calls want it that wait until a point of CLOCK_MONOTONIC. */
static inline struct timespec clock_timespec(uint64_t at_ns)
{
	return (struct timespec){
		.tv_sec = (time_t)(at_ns / 1000000000u), .tv_nsec = (long)(at_ns % 1000000000u)};
}

#endif
