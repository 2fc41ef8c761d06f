/*
 * Packing. A part that fits the current bucket goes whole into it. One that does not, where
 * it would leave much of the bucket empty, or that is longer than a slot, is cut along its
 * outermost dimension longer than 1: each cut takes as many steps of it as the current bucket
 * still has room for, so that only a step that does not fit an empty slot by itself is
 * cut in the next dimension. Any other opens the next bucket.
 *
 * The first buckets are shorter, so that the wire does not wait long for the first
 * gather, and so are the last, so that little is left to scatter when the wire is
 * done: the n-th has 2^n quarters of a slot, none but the last has more than half of
 * what is left.
 */
#include "base/util.h"
#include "plan/cover.h"
#include "plan/tensor_table.h"
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#define RAMP 2 /* buckets until the first of a whole slot; the shortest is slot / 2^RAMP … */
#define RAMP_LEAST_BYTES (8ull << 20) /* … but at least this, for each costs some time too */

/*
 * What may be left empty, as a part of a slot: every bucket costs the wire some 20 us besides its
 * bytes. Llama-3.1-8B, uncut, filled 74 buckets where 64 are enough.
 */
#define LEFT_EMPTY 16

struct packer {
	struct buckets out;
	uint64_t left_bytes; /* of all parts, not packed yet */
	uint64_t full_bytes; /* length at which the last bucket is full */
	bool even;	     /* no ramp */
	size_t cap_entries, cap_buckets;
	uint64_t slot_len_bytes;
	const uint8_t *slot_types;
	const struct tensor *tensor; /* of the box being packed */
	enum strew_dtype dtype;	     /* of it, in the slot */
	uint64_t element_bytes;
	uint32_t box, root;
};

/* True if the next part may go into the last bucket, at *ret_offset; else 0, as in a new one. */
static bool packer_room(const struct packer *packer, uint64_t *ret_offset)
{
	const struct bucket *bucket;
	uint64_t offset;

	*ret_offset = 0;
	if (!packer->out.n) {
		return false;
	}
	bucket = &packer->out.v[packer->out.n - 1];
	offset = align_up(bucket->len_bytes, SLOT_ALIGN);
	if (bucket->root != packer->root || offset >= packer->full_bytes) {
		return false;
	}
	*ret_offset = offset;
	return true;
}

/* full_bytes of the bucket that would be opened now. */
static uint64_t packer_next_full(const struct packer *packer)
{
	uint64_t least = MAX(packer->slot_len_bytes >> RAMP, RAMP_LEAST_BYTES);
	uint64_t full = packer->slot_len_bytes;

	if (packer->even) {
		return full;
	}
	if (packer->out.n < RAMP) {
		full >>= RAMP - packer->out.n;
	}
	if (packer->left_bytes <= 2 * least) {
		full = least * 2; /* the last */
	} else {
		full = MAX(MIN(full, packer->left_bytes / 2), least);
	}
	return MIN(full, packer->slot_len_bytes);
}

static int packer_open_bucket(struct packer *packer, struct error *err)
{
	struct buckets *out = &packer->out;
	int r = plan_grow(&out->v, &packer->cap_buckets, out->n + 1, sizeof(*out->v), err);

	if (r < 0) {
		return r;
	}
	packer->full_bytes = packer_next_full(packer);
	out->v[out->n++] = (struct bucket){.first = out->nentries, .root = packer->root};
	return 0;
}

static int packer_too_many(const struct packer *packer, struct error *err)
{
	return error_set(err, -E2BIG, "tensor %.128s: over %u parts in slots of %" PRIu64 " bytes",
		packer->tensor->name, LIMIT_COPIES, packer->slot_len_bytes);
}

/* The part fits at `offset` of the last bucket. */
static int packer_put(struct packer *packer, const struct box *part, uint64_t len, uint64_t offset,
	struct error *err)
{
	struct buckets *out = &packer->out;
	struct bucket *bucket = &out->v[out->n - 1];
	int r;

	if (out->nentries >= LIMIT_COPIES) {
		return packer_too_many(packer, err);
	}
	r = plan_grow(
		&out->entries, &packer->cap_entries, out->nentries + 1, sizeof(*out->entries), err);
	if (r < 0) {
		return r;
	}
	out->entries[out->nentries++] = (struct bucket_entry){.box = packer->box,
		.part = *part,
		.slot_offset_bytes = offset,
		.dtype = packer->dtype};
	bucket->count++;
	bucket->len_bytes = offset + len;
	packer->left_bytes -= MIN(len, packer->left_bytes);
	return 0;
}

static int pack_part(struct packer *packer, const struct box *part, struct error *err);

/* The outermost dimension longer than 1, ndim: none. */
static int outermost(const struct packer *packer, const struct box *part)
{
	int d = 0;

	while (d < packer->tensor->ndim && part->extent[d] == 1) {
		d++;
	}
	return d;
}

/*
 * So many steps at once end where SLOT_ALIGN does. What lies behind a tensor in memory as it does
 * in a slot then still does so behind a part of it, and goes over the wire in one piece.
 */
static uint64_t even_steps(uint64_t step_bytes)
{
	uint64_t divides = step_bytes & -step_bytes;

	return divides < SLOT_ALIGN ? SLOT_ALIGN / divides : 1;
}

/* How many of the steps that are left go into that room, if not all so that they end evenly. */
static uint64_t steps_in(uint64_t room, uint64_t step_bytes, uint64_t left)
{
	uint64_t n = room / step_bytes;

	return n >= left ? left : n - n % even_steps(step_bytes);
}

/* A part longer than a slot, or than what is left of one. */
static int pack_cut(struct packer *packer, const struct box *part, struct error *err)
{
	int ndim = packer->tensor->ndim, d = outermost(packer, part), r = 0;
	struct box cut = *part;
	uint64_t end, step;

	if (d == ndim) {
		return error_set(err, -EINVAL,
			"tensor %.128s: an element of %" PRIu64
			" bytes does not fit a slot of %" PRIu64,
			packer->tensor->name, packer->element_bytes, packer->slot_len_bytes);
	}
	if (box_count(ndim, part) * packer->element_bytes / packer->slot_len_bytes > LIMIT_COPIES) {
		return packer_too_many(packer, err);
	}
	cut.extent[d] = 1;
	step = box_count(ndim, &cut) * packer->element_bytes;
	end = part->start[d] + part->extent[d];
	while (cut.start[d] < end && r == 0) {
		uint64_t left = end - cut.start[d], next = packer_next_full(packer), offset;
		uint64_t steps = 0;

		if (packer_room(packer, &offset)) {
			uint64_t room = packer->full_bytes - offset;

			steps = steps_in(room, step, left);
			if (!steps && cut.start[d] == part->start[d]) {
				steps = room / step;
			}
		}
		steps = steps ? steps : steps_in(next, step, left);
		cut.extent[d] = steps ? steps : MAX(MIN(left, next / step), 1);
		r = pack_part(packer, &cut, err);
		cut.start[d] += cut.extent[d];
	}
	return r;
}

/* Does some of it, but not all, fit room that should not be left empty? */
static bool fills(const struct packer *packer, const struct box *part, uint64_t len, uint64_t room)
{
	int d = outermost(packer, part);
	uint64_t step;

	if (packer->even || d == packer->tensor->ndim || len <= room ||
		room <= packer->slot_len_bytes / LEFT_EMPTY) {
		return false;
	}
	step = len / part->extent[d];
	return room / step >= even_steps(step);
}

static int pack_part(struct packer *packer, const struct box *part, struct error *err)
{
	uint64_t len = box_count(packer->tensor->ndim, part) * packer->element_bytes;
	uint64_t offset, room;
	bool open = packer_room(packer, &offset);
	int r;

	room = open ? packer->full_bytes - offset : 0;
	if (len > packer->slot_len_bytes || fills(packer, part, len, room)) {
		return pack_cut(packer, part, err);
	}
	if (!open || len > room) {
		r = packer_open_bucket(packer, err);
		if (r < 0) {
			return r;
		}
		offset = 0;
	}
	return packer_put(packer, part, len, offset, err);
}

static int pack_all(struct packer *packer, const struct manifest *manifest,
	const struct cover *cover, const uint32_t *roots, size_t nroots, struct error *err)
{
	for (size_t i = 0; i < manifest->nboxes; i++) {
		const struct held_box *held = &manifest->boxes[i];
		const struct box *parts;
		size_t n = cover_parts(cover, manifest, i, &parts);

		packer->tensor = &manifest->tensors[held->tensor];
		packer->dtype = packer->tensor->dtype;
		if (packer->slot_types && packer->slot_types[held->tensor]) {
			packer->dtype = packer->slot_types[held->tensor];
		}
		packer->element_bytes = strew_dtype_size(packer->dtype);
		packer->box = (uint32_t)i;
		if (held->rank >= nroots) {
			return error_set(err, -EINVAL,
				"tensor %.128s: held by rank %u, but there are %zu ranks",
				packer->tensor->name, held->rank, nroots);
		}
		packer->root = roots[held->rank];
		for (size_t k = 0; k < n; k++) {
			int r = pack_part(packer, &parts[k], err);

			if (r < 0) {
				return r;
			}
		}
	}
	return 0;
}

static int make(struct packer *packer, const struct manifest *manifest, const uint32_t *roots,
	size_t nroots, struct buckets *ret_buckets, struct error *err)
{
	struct cover cover;
	int r;

	if (!packer->slot_len_bytes) {
		return error_set(err, -EINVAL, "a slot of 0 bytes");
	}
	r = cover_make(manifest, &cover, err);
	if (r < 0) {
		return r;
	}
	r = pack_all(packer, manifest, &cover, roots, nroots, err);
	cover_finish(&cover);
	if (r < 0) {
		buckets_finish(&packer->out);
		return r;
	}
	*ret_buckets = packer->out;
	return 0;
}

int buckets_make(const struct manifest *manifest, uint64_t slot_len_bytes, const uint32_t *roots,
	size_t nroots, struct buckets *ret_buckets, struct error *err)
{
	return buckets_make_as(manifest, NULL, slot_len_bytes, roots, nroots, ret_buckets, err);
}

int buckets_make_as(const struct manifest *manifest, const uint8_t *slot_types,
	uint64_t slot_len_bytes, const uint32_t *roots, size_t nroots, struct buckets *ret_buckets,
	struct error *err)
{
	struct packer packer = {.slot_len_bytes = slot_len_bytes,
		.slot_types = slot_types,
		.left_bytes = manifest_bytes(manifest)};

	return make(&packer, manifest, roots, nroots, ret_buckets, err);
}

int buckets_make_even(const struct manifest *manifest, uint64_t len_bytes, const uint32_t *roots,
	size_t nroots, struct buckets *ret_buckets, struct error *err)
{
	struct packer packer = {.slot_len_bytes = len_bytes, .even = true};

	return make(&packer, manifest, roots, nroots, ret_buckets, err);
}

void buckets_finish(struct buckets *buckets)
{
	free(buckets->entries);
	free(buckets->v);
	*buckets = (struct buckets){0};
}
