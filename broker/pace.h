/*
 * How often the mover looks at words between its jobs. Behind a job, and behind a word that was
 * reached, it stays awake for a moment: an update is a chain of both, each the answer to the last.
 * Then it looks every few microseconds at first (a stream is usually done within that), and ever
 * more rarely, so that a trainer which computes for seconds after its publish costs no core. A
 * word that is new is looked at often, whatever others have waited for. Pure: the time is handed
 * in.
 */
#ifndef BROKER_PACE_H
#define BROKER_PACE_H

#include "base/util.h"
#include <stdbool.h>
#include <stdint.h>

#define PACE_AWAKE_NS 400000u /* so long may it take to agree on an update */
#define PACE_SLEEP_MIN_NS 5000u
#define PACE_SLEEP_MAX_NS 200000u

struct pace {
	uint64_t awake_until_ns, sleep_ns;
};

#define PACE_AWAKE UINT64_C(0) /* looks again at once */
#define PACE_CALLED UINT64_MAX /* sleeps until it is called */

/* A job has ended, or a word was reached. */
static inline void pace_stirred(struct pace *pace, uint64_t now)
{
	pace->awake_until_ns = now + PACE_AWAKE_NS;
	pace->sleep_ns = 0;
}

/* There is one word more to look at. */
static inline void pace_watched(struct pace *pace)
{
	pace->sleep_ns = 0;
}

/* What to do behind a look at the words: PACE_AWAKE, PACE_CALLED, or for how many ns to sleep.
 * waiting: some word is not reached. */
static inline uint64_t pace_next(struct pace *pace, uint64_t now, bool waiting)
{
	if (now < pace->awake_until_ns) {
		return PACE_AWAKE;
	}
	if (!waiting) {
		return PACE_CALLED;
	}
	pace->sleep_ns = pace->sleep_ns
				 ? MIN(pace->sleep_ns + pace->sleep_ns / 8, PACE_SLEEP_MAX_NS)
				 : PACE_SLEEP_MIN_NS;
	return pace->sleep_ns;
}

#endif
