#include "plan/bounce.h"
#include "base/util.h"
#include "plan/cast.h"
#include "plan/copies.h"
#include "plan/tensor_table.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* The load that is being filled, and where its buffer lies. */
struct packing {
	struct bounce *bounce;
	uint32_t ring_space, nbuffers;
	uint64_t buffer_bytes;
	size_t cap_out, cap_in; /* of the lists of ranges */
	uint64_t used;		/* bytes of the open load; 0: it is empty */
};

void bounce_finish(struct bounce *bounce)
{
	copies_finish(&bounce->out);
	copies_finish(&bounce->in);
	free(bounce->first);
	*bounce = (struct bounce){0};
}

/* Is the cast done on the way out? The narrower of its two sides is carried. */
static bool casts_out(const struct copy *copy)
{
	return copy->from && copy->run_bytes < copy_source_run(copy);
}

/* Of one run in a buffer. */
static uint64_t packed_run(const struct copy *copy)
{
	return MIN(copy->run_bytes, copy_source_run(copy));
}

/* Of dimensions from `dim` on. */
static uint64_t packed_bytes(const struct copy *copy, uint32_t dim)
{
	uint64_t bytes = packed_run(copy);

	for (uint32_t k = dim; k < copy->ndim; k++) {
		bytes *= copy->extent[k];
	}
	return bytes;
}

/* Where the next copy begins: aligned, so that vectors are as wide as its ends let them be. */
static uint64_t next_offset(const struct packing *packing)
{
	return align_up(packing->used, SLOT_ALIGN);
}

static uint64_t room(const struct packing *packing)
{
	uint64_t offset = next_offset(packing);

	return offset < packing->buffer_bytes ? packing->buffer_bytes - offset : 0;
}

static int close_range(struct copies *copies, size_t *cap, struct error *err)
{
	int rc = plan_grow(&copies->first, cap, copies->nranges + 2, sizeof(*copies->first), err);

	if (rc == 0) {
		copies_end_range(copies);
	}
	return rc;
}

static int next_load(struct packing *packing, struct error *err)
{
	int rc = close_range(&packing->bounce->out, &packing->cap_out, err);

	rc = rc ? rc : close_range(&packing->bounce->in, &packing->cap_in, err);
	packing->used = 0;
	return rc;
}

/* One that fits, dense and in its own order of dimensions. */
static int place(struct packing *packing, const struct copy *copy, struct error *err)
{
	struct bounce *bounce = packing->bounce;
	uint64_t buffer = bounce->out.nranges % packing->nbuffers * packing->buffer_bytes;
	uint64_t offset = next_offset(packing), stride = packed_run(copy);
	struct copy out = *copy, in = *copy;
	struct copy *plain = casts_out(copy) ? &in : &out;
	int rc;

	out.dst_space = in.src_space = packing->ring_space;
	out.dst = in.src = buffer + offset;
	for (uint32_t k = copy->ndim; k-- > 0;) {
		out.dst_stride[k] = in.src_stride[k] = stride;
		stride *= copy->extent[k];
	}
	plain->from = plain->to = 0;
	plain->run_bytes = packed_run(copy);
	packing->used = offset + stride;
	rc = copies_add(&bounce->out, &out, err);
	return rc ? rc : copies_add(&bounce->in, &in, err);
}

/* A single run, which may be cut anywhere between two elements. */
static int pack_run(struct packing *packing, struct copy copy, struct error *err)
{
	uint64_t size = copy.from ? strew_dtype_size(copy.to) : 1;
	uint64_t from = copy.from ? strew_dtype_size(copy.from) : 1;
	int rc = 0;

	while (copy.run_bytes && rc == 0) {
		/* Room is a multiple of SLOT_ALIGN, so parts end where vectors do. */
		uint64_t n = MIN(room(packing) / MIN(size, from), copy.run_bytes / size);
		struct copy part = copy;

		part.run_bytes = n * size;
		rc = n ? place(packing, &part, err) : next_load(packing, err);
		copy.src += n * from;
		copy.dst += n * size;
		copy.run_bytes -= n * size;
	}
	return rc;
}

/* Without its outermost dimension: what is at that dimension's first index. */
static struct copy at_first(const struct copy *copy)
{
	struct copy inner = *copy;

	inner.ndim--;
	memmove(inner.extent, copy->extent + 1, inner.ndim * sizeof(*inner.extent));
	memmove(inner.src_stride, copy->src_stride + 1, inner.ndim * sizeof(*inner.src_stride));
	memmove(inner.dst_stride, copy->dst_stride + 1, inner.ndim * sizeof(*inner.dst_stride));
	return inner;
}

/* As many indexes of the outermost dimension as fit; of one that is too long in itself, its parts.
 */
static int pack(struct packing *packing, struct copy copy, struct error *err)
{
	uint64_t one = packed_bytes(&copy, 1);
	int rc = 0;

	if (copy.ndim == 0) {
		return pack_run(packing, copy, err);
	}
	while (copy.extent[0] && one && rc == 0) {
		uint64_t n = MIN(room(packing) / one, copy.extent[0]);

		if (n) {
			struct copy part = copy;

			part.extent[0] = n;
			rc = place(packing, &part, err);
		} else if (one <= packing->buffer_bytes) {
			rc = next_load(packing, err);
		} else {
			rc = pack(packing, at_first(&copy), err);
			n = 1;
		}
		copy.extent[0] -= n;
		copy.src += n * copy.src_stride[0];
		copy.dst += n * copy.dst_stride[0];
	}
	return rc;
}

static int pack_all(struct packing *packing, const struct copies *copies, struct error *err)
{
	struct bounce *bounce = packing->bounce;
	int rc = 0;

	for (size_t range = 0; range < copies->nranges && rc == 0; range++) {
		for (size_t i = copies->first[range]; i < copies->first[range + 1] && rc == 0;
			i++) {
			rc = pack(packing, copies->v[i], err);
		}
		if (rc == 0 && packing->used) {
			rc = next_load(packing, err);
		}
		bounce->first[range + 1] = bounce->out.nranges;
	}
	return rc;
}

int bounce_make(const struct copies *copies, uint32_t ring_space, uint64_t buffer_bytes,
	uint32_t nbuffers, struct bounce *ret_bounce, struct error *err)
{
	struct bounce bounce = {.nranges = copies->nranges};
	struct packing packing = {.bounce = &bounce,
		.ring_space = ring_space,
		.nbuffers = nbuffers,
		.buffer_bytes = buffer_bytes};
	int rc;

	bounce.first = calloc(copies->nranges + 1, sizeof(*bounce.first));
	rc = bounce.first ? 0 : error_set(err, -ENOMEM, "out of memory");
	rc = rc ? rc : copies_start(&bounce.out, 0, err);
	rc = rc ? rc : copies_start(&bounce.in, 0, err);
	/* The lists start with room for one number. */
	packing.cap_out = packing.cap_in = 1;
	rc = rc ? rc : pack_all(&packing, copies, err);
	if (rc) {
		bounce_finish(&bounce);
		return rc;
	}
	*ret_bounce = bounce;
	return 0;
}
