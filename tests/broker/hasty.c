/*
 * What makes strewd_hasty of strewd: it waits less for others (broker/waits.h), so that a test sees
 * what happens behind a deadline. Communicators that are well are made well within it, and an abort
 * has LIMIT_ABORT_MS before the watchdog comes.
 */
#include "broker/hasty.h"
#include "broker/waits.h"

const struct waits waits = {.epoch_ms = HASTY_EPOCH_MS,
	.hung_ms = 7000,
	.blame_min_ms = HASTY_BLAME_MIN_MS,
	.blame_max_ms = HASTY_BLAME_MAX_MS,
	.lookup_ms = 1000};
