/*
 * How long brokers wait for each other and for a communicator: base/limits.h, in an object of its
 * own. A test links a strewd with shorter ones in its place (tests/broker/hasty.c). Nothing here is
 * an option for a user.
 */
#ifndef BROKER_WAITS_H
#define BROKER_WAITS_H

#include <stdint.h>

struct waits {
	uint32_t epoch_ms;     /* LIMIT_EPOCH_MS */
	uint32_t hung_ms;      /* LIMIT_HUNG_MS, of the jobs of an epoch */
	uint32_t blame_min_ms; /* LIMIT_BLAME_MIN_MS */
	uint32_t blame_max_ms; /* LIMIT_BLAME_MAX_MS */
	uint32_t lookup_ms;    /* LIMIT_LOOKUP_MS */
	uint32_t stop_ms;      /* LIMIT_STOP_MS */
};

extern const struct waits waits;

#endif
