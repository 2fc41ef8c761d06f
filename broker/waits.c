#include "broker/waits.h"
#include "base/limits.h"

const struct waits waits = {.epoch_ms = LIMIT_EPOCH_MS,
	.hung_ms = LIMIT_HUNG_MS,
	.blame_min_ms = LIMIT_BLAME_MIN_MS,
	.blame_max_ms = LIMIT_BLAME_MAX_MS,
	.lookup_ms = LIMIT_LOOKUP_MS,
	.stop_ms = LIMIT_STOP_MS};
