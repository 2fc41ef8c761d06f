#include "broker/rings.h"
#include "base/log.h"
#include "base/util.h"
#include <errno.h>
#include <string.h>

#define NAME_BYTES 48

static void announce(const struct ring *ring)
{
	char from[NAME_BYTES], to[NAME_BYTES], bytes[32];

	log_info("%s and %s have no peer access: bytes from the one to the other go through %s of "
		 "pinned host memory",
		gpu_uuid_format(from, sizeof(from), ring->from),
		gpu_uuid_format(to, sizeof(to), ring->to),
		format_bytes(bytes, sizeof(bytes), ring->bytes));
}

int rings_get(struct rings *rings, struct gpu_device *from, struct gpu_device *to,
	struct gpu_ring **ret_ring, struct error *err)
{
	const uint8_t *source = gpu_device_uuid(from), *target = gpu_device_uuid(to);
	size_t n = atomic_load(&rings->n);
	struct ring *ring = rings->v;
	int rc;

	for (; ring < rings->v + n; ring++) {
		if (memcmp(ring->from, source, GPU_UUID_BYTES) == 0 &&
			memcmp(ring->to, target, GPU_UUID_BYTES) == 0) {
			*ret_ring = ring->gpu;
			return 0;
		}
	}
	if (n == LIMIT_RINGS) {
		return error_set(
			err, -E2BIG, "over %u pairs of GPUs without peer access", LIMIT_RINGS);
	}
	rc = gpu_ring_create(from, to, RING_BUFFER_BYTES, &ring->gpu, err);
	if (rc) {
		char here[NAME_BYTES], there[NAME_BYTES];

		return error_prefix(err, "no way from %s to %s",
			gpu_uuid_format(here, sizeof(here), source),
			gpu_uuid_format(there, sizeof(there), target));
	}
	memcpy(ring->from, source, GPU_UUID_BYTES);
	memcpy(ring->to, target, GPU_UUID_BYTES);
	ring->bytes = RING_BUFFERS * RING_BUFFER_BYTES;
	atomic_store(&rings->n, n + 1);
	announce(ring);
	*ret_ring = ring->gpu;
	return 0;
}

void rings_finish(struct rings *rings)
{
	for (size_t i = 0; i < atomic_load(&rings->n); i++) {
		gpu_ring_destroy(rings->v[i].gpu);
	}
	atomic_store(&rings->n, 0);
}
