#include "gpu/bounce.h"
#include "base/util.h"
#include "plan/bounce.h"
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

struct gpu_ring {
	struct gpu_device *from, *to;
	uint64_t buffer_bytes;
	struct gpu_memory *memory;
	struct gpu_event *filled[RING_BUFFERS];	 /* recorded where it was packed */
	struct gpu_event *drained[RING_BUFFERS]; /* … and where it was taken apart */
};

struct gpu_bounce {
	struct gpu_ring *ring;
	struct gpu_copies *out, *in; /* a range is a load */
	size_t *first, nranges;	     /* loads of each range */
};

int gpu_ring_create(struct gpu_device *from, struct gpu_device *to, uint64_t buffer_bytes,
	struct gpu_ring **ret_ring, struct error *err)
{
	struct gpu_ring *ring = calloc(1, sizeof(*ring));
	int rc;

	if (!ring) {
		return error_set(err, -ENOMEM, "out of memory");
	}
	ring->from = from;
	ring->to = to;
	ring->buffer_bytes = buffer_bytes;
	rc = gpu_alloc_pinned(from, RING_BUFFERS * buffer_bytes, &ring->memory, err);
	for (size_t i = 0; i < RING_BUFFERS && rc == 0; i++) {
		rc = gpu_event_create(from, &ring->filled[i], err);
		rc = rc ? rc : gpu_event_create(to, &ring->drained[i], err);
	}
	if (rc) {
		gpu_ring_destroy(ring);
		return rc;
	}
	*ret_ring = ring;
	return 0;
}

void gpu_ring_destroy(struct gpu_ring *ring)
{
	if (!ring) {
		return;
	}
	for (size_t i = 0; i < RING_BUFFERS; i++) {
		gpu_event_destroy(ring->filled[i]);
		gpu_event_destroy(ring->drained[i]);
	}
	gpu_memory_release(ring->memory);
	free(ring);
}

/* The ring is the space behind the others. */
static int compile(struct gpu_device *device, const struct gpu_ring *ring,
	const struct copies *copies, const uint64_t *bases, size_t nbases,
	struct gpu_copies **ret_copies, struct error *err)
{
	uint64_t *all = calloc(nbases + 1, sizeof(*all));
	int rc;

	if (!all) {
		return error_set(err, -ENOMEM, "out of memory");
	}
	memcpy(all, bases, nbases * sizeof(*all));
	all[nbases] = gpu_memory_address(ring->memory);
	rc = gpu_copies_create(device, copies, all, nbases + 1, ret_copies, err);
	free(all);
	if (rc == 0) {
		gpu_copies_share(*ret_copies, GPU_SHARE_LINK);
	}
	return rc;
}

int gpu_bounce_create(struct gpu_ring *ring, const struct copies *copies,
	const uint64_t *from_bases, const uint64_t *to_bases, size_t nbases,
	struct gpu_bounce **ret_bounce, struct error *err)
{
	struct gpu_bounce *bounce;
	struct bounce plan;
	int rc;

	for (size_t i = 0; i < copies->n; i++) {
		if (copies->v[i].src_space >= nbases || copies->v[i].dst_space >= nbases) {
			return error_set(err, -EINVAL,
				"copy %zu: spaces %" PRIu32 " and %" PRIu32 " of %zu", i,
				copies->v[i].src_space, copies->v[i].dst_space, nbases);
		}
	}
	rc = bounce_make(copies, (uint32_t)nbases, ring->buffer_bytes, RING_BUFFERS, &plan, err);
	if (rc) {
		return rc;
	}
	bounce = calloc(1, sizeof(*bounce));
	rc = bounce ? 0 : error_set(err, -ENOMEM, "out of memory");
	if (rc == 0) {
		bounce->ring = ring;
		bounce->nranges = plan.nranges;
		bounce->first = plan.first;
		plan.first = NULL;
		rc = compile(ring->from, ring, &plan.out, from_bases, nbases, &bounce->out, err);
		rc = rc ? rc
			: compile(ring->to, ring, &plan.in, to_bases, nbases, &bounce->in, err);
	}
	bounce_finish(&plan);
	if (rc) {
		gpu_bounce_destroy(bounce);
		return rc;
	}
	*ret_bounce = bounce;
	return 0;
}

void gpu_bounce_destroy(struct gpu_bounce *bounce)
{
	if (bounce) {
		gpu_copies_destroy(bounce->out);
		gpu_copies_destroy(bounce->in);
		free(bounce->first);
		free(bounce);
	}
}

/* Each wait is for what was enqueued before it, so that no order of uses can make a circle. */
static int run_load(struct gpu_bounce *bounce, size_t load, uint64_t slot_address,
	struct gpu_stream *out, struct gpu_stream *in, struct error *err)
{
	struct gpu_event *filled = bounce->ring->filled[load % RING_BUFFERS];
	struct gpu_event *drained = bounce->ring->drained[load % RING_BUFFERS];
	int rc = gpu_stream_wait(out, drained, err);

	rc = rc ? rc : gpu_copies_run(bounce->out, load, slot_address, out, err);
	rc = rc ? rc : gpu_event_record(filled, out, err);
	rc = rc ? rc : gpu_stream_wait(in, filled, err);
	rc = rc ? rc : gpu_copies_run(bounce->in, load, slot_address, in, err);
	return rc ? rc : gpu_event_record(drained, in, err);
}

int gpu_bounce_run(struct gpu_bounce *bounce, size_t range, uint64_t slot_address,
	struct gpu_stream *out, struct gpu_stream *in, struct error *err)
{
	int rc = 0;

	if (range >= bounce->nranges) {
		return error_set(err, -EINVAL, "range %zu of %zu", range, bounce->nranges);
	}
	for (size_t load = bounce->first[range]; load < bounce->first[range + 1] && rc == 0;
		load++) {
		rc = run_load(bounce, load, slot_address, out, in, err);
	}
	return rc;
}
