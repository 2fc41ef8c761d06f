/*
 * The rings between GPUs of this node that have no peer access (gpu/bounce.h), one for each way.
 * The mover makes them when a plan needs them, and keeps them; anybody may look at what there is.
 */
#ifndef BROKER_RINGS_H
#define BROKER_RINGS_H

#include "gpu/bounce.h"
#include <stdatomic.h>

struct ring {
	struct gpu_ring *gpu;
	uint8_t from[GPU_UUID_BYTES], to[GPU_UUID_BYTES];
	uint64_t bytes; /* of pinned host memory */
};

struct rings {
	struct ring v[LIMIT_RINGS];
	atomic_size_t n; /* only grows, behind what it counts */
};

/* Finds it or makes it, which is logged. -E2BIG, -ENOMEM. */
int rings_get(struct rings *rings, struct gpu_device *from, struct gpu_device *to,
	struct gpu_ring **ret_ring, struct error *err);
void rings_finish(struct rings *rings); /* nothing goes by them any more */

#endif
