/*
 * Between two GPUs without peer access bytes go by a ring of buffers in pinned host memory: copies
 * of the one pack a buffer, copies of the other take it apart, and while they do the next buffer is
 * packed. GPUs wait for each other by events, the host for nobody. Made of what gpu.h has, so it
 * knows no backend. Mover only.
 */
#ifndef GPU_BOUNCE_H
#define GPU_BOUNCE_H

#include "gpu/gpu.h"

/*
 * Long enough that a launch and an event cost little beside a buffer (by PCIe it takes some
 * 300 us), and enough of them that neither side waits for the other's.
 */
#define RING_BUFFER_BYTES (16ull << 20)
#define RING_BUFFERS 4u

struct gpu_ring;   /* from one GPU to another */
struct gpu_bounce; /* copies that go by a ring, compiled */

/* Of RING_BUFFERS buffers, each of buffer_bytes, a multiple of SLOT_ALIGN. -ENOMEM as ever. */
int gpu_ring_create(struct gpu_device *from, struct gpu_device *to, uint64_t buffer_bytes,
	struct gpu_ring **ret_ring, struct error *err);
void gpu_ring_destroy(struct gpu_ring *ring); /* NULL is fine; after all that went by it */

/*
 * As gpu_copies_create(): from_bases are the sources' addresses for the ring's first GPU, to_bases
 * the destinations' for its second one. The ring is borrowed.
 */
int gpu_bounce_create(struct gpu_ring *ring, const struct copies *copies,
	const uint64_t *from_bases, const uint64_t *to_bases, size_t nbases,
	struct gpu_bounce **ret_bounce, struct error *err);
void gpu_bounce_destroy(struct gpu_bounce *bounce); /* NULL is fine */

/*
 * Enqueues one range: reads on `out`, a stream of the first GPU, writes on `in`, one of the second.
 * What `in` does next comes behind all of it. What `out` does next comes behind the reading
 * alone.
 */
int gpu_bounce_run(struct gpu_bounce *bounce, size_t range, uint64_t slot_address,
	struct gpu_stream *out, struct gpu_stream *in, struct error *err);

#endif
