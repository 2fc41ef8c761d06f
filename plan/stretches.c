#include "plan/stretches.h"
#include "base/util.h"
#include "plan/copies.h"
#include "plan/tensor_table.h"
#include <errno.h>
#include <stdlib.h>

static int add_stretch(
	struct stretches *stretches, uint64_t offset, uint64_t len_bytes, struct error *err)
{
	int rc = plan_grow(
		&stretches->v, &stretches->cap, stretches->n + 1, sizeof(*stretches->v), err);

	if (rc == 0) {
		stretches->v[stretches->n++] = (struct stretch){
			.offset = offset, .len_bytes = len_bytes, .space = STRETCH_PACKED};
	}
	return rc;
}

/* An entry, seen from the box that it is a part of. */
struct reach {
	uint64_t bytes;	 /* in the slot */
	bool head, tail; /* one run of the dense box, that has its first, its last element */
};

static struct reach reach_of(const struct manifest *manifest, const struct bucket_entry *entry)
{
	const struct held_box *held = &manifest->boxes[entry->box];
	const struct tensor *tensor = &manifest->tensors[held->tensor];
	uint64_t count = box_count(tensor->ndim, &entry->part);
	uint64_t dense[STREW_MAX_DIMS], first = 0;
	bool run = entry->dtype == tensor->dtype;
	int d = 0;

	dims_dense(tensor->ndim, held->box.extent, dense);
	while (d < tensor->ndim && entry->part.extent[d] == 1) {
		d++;
	}
	/* A part of one dimension, and behind it only whole ones. */
	for (int k = d + 1; k < tensor->ndim; k++) {
		run = run && entry->part.extent[k] == held->box.extent[k];
	}
	for (int k = 0; k < tensor->ndim; k++) {
		first += (entry->part.start[k] - held->box.start[k]) * dense[k];
	}
	return (struct reach){.bytes = count * strew_dtype_size(entry->dtype),
		.head = run && first == 0,
		.tail = run && first + count == box_count(tensor->ndim, &held->box)};
}

/* Does the entry at `i` go on where the one before it ends, at the root as in the slot? */
static bool follows(const struct manifest *manifest, const struct bucket_entry *entry,
	const struct reach *before, const struct reach *reach)
{
	return before->tail && reach->head && entry->box == entry[-1].box + 1 &&
	       manifest->boxes[entry->box].adjacent;
}

/* What is packed before a chain of entries, and then the chain, unless it is too short. */
static int end_chain(struct stretches *stretches, const struct bucket *bucket, uint64_t offset,
	uint64_t end, uint64_t *packed_to, struct error *err)
{
	int rc = 0;

	if (end - offset < stretches->least_bytes) {
		return 0;
	}
	if (offset > *packed_to) {
		rc = add_stretch(stretches, *packed_to, offset - *packed_to, err);
	}
	if (rc == 0) {
		rc = add_stretch(stretches, offset, end - offset, err);
	}
	*packed_to = MIN(align_up(end, SLOT_ALIGN), bucket->len_bytes);
	return rc;
}

static int cut_bucket(struct stretches *stretches, const struct manifest *manifest,
	const struct buckets *buckets, const struct bucket *bucket, struct error *err)
{
	uint64_t packed_to = 0; /* all before is in a stretch */
	uint64_t chain = 0, end = 0;
	struct reach before = {0};
	int rc = 0;

	for (size_t i = bucket->first; i < bucket->first + bucket->count && rc == 0; i++) {
		const struct bucket_entry *entry = &buckets->entries[i];
		struct reach reach = reach_of(manifest, entry);

		if (i > bucket->first && !follows(manifest, entry, &before, &reach)) {
			rc = end_chain(stretches, bucket, chain, end, &packed_to, err);
			chain = entry->slot_offset_bytes;
		}
		end = entry->slot_offset_bytes + reach.bytes;
		before = reach;
	}
	if (rc == 0) {
		rc = end_chain(stretches, bucket, chain, end, &packed_to, err);
	}
	if (rc == 0 && packed_to < bucket->len_bytes) {
		rc = add_stretch(stretches, packed_to, bucket->len_bytes - packed_to, err);
	}
	return rc;
}

int stretches_make(const struct manifest *manifest, const struct buckets *buckets,
	uint64_t least_bytes, struct stretches *ret_stretches, struct error *err)
{
	struct stretches stretches = {.nbuckets = buckets->n, .least_bytes = least_bytes};
	int rc = 0;

	stretches.first = calloc(buckets->n + 1, sizeof(*stretches.first));
	if (!stretches.first) {
		return error_set(err, -ENOMEM, "out of memory for %zu buckets", buckets->n);
	}
	for (size_t i = 0; i < buckets->n && rc == 0; i++) {
		rc = cut_bucket(&stretches, manifest, buckets, &buckets->v[i], err);
		stretches.first[i + 1] = stretches.n;
		stretches.longest = MAX(stretches.longest, stretches.n - stretches.first[i]);
	}
	if (rc) {
		stretches_finish(&stretches);
		return rc;
	}
	*ret_stretches = stretches;
	return 0;
}

void stretches_finish(struct stretches *stretches)
{
	free(stretches->v);
	free(stretches->first);
	*stretches = (struct stretches){0};
}

/* One past the last byte that a copy writes. */
static uint64_t copy_end(const struct copy *copy)
{
	uint64_t end = copy->dst + copy->run_bytes;

	for (uint32_t k = 0; k < copy->ndim; k++) {
		end += (copy->extent[k] - 1) * copy->dst_stride[k];
	}
	return end;
}

/* Are these copies all of a stretch, and one piece of a source that may be sent from there? */
static bool is_direct(
	const struct stretch *stretch, const struct copy *v, size_t n, const bool *direct)
{
	if (v[0].dst != stretch->offset ||
		copy_end(&v[n - 1]) != stretch->offset + stretch->len_bytes) {
		return false;
	}
	for (size_t i = 0; i < n; i++) {
		if (v[i].from || v[i].src_space != v[0].src_space ||
			v[i].src - v[0].src != v[i].dst - v[0].dst) {
			return false;
		}
		for (uint32_t k = 0; k < v[i].ndim; k++) { /* short ones at even distances */
			if (v[i].src_stride[k] != v[i].dst_stride[k]) {
				return false;
			}
		}
	}
	return direct[v[0].src_space] && v[0].src % STRETCH_ALIGN == 0;
}

/*
 * One bucket; both lists are ordered by their place in the slot. Copies that continue each other
 * are one, so that one may begin in one stretch and end in the next: then neither is direct.
 */
static int64_t sort_out(const struct stretches *stretches, size_t bucket,
	const struct copies *gather, const bool *direct, struct copies *kept, struct error *err)
{
	size_t at = gather->first[bucket], end = gather->first[bucket + 1];
	bool alone = stretches->first[bucket + 1] - stretches->first[bucket] == 1;
	uint64_t written = 0; /* by the copies so far, up to here */
	int64_t count = 0;
	int rc = 0;

	for (size_t i = stretches->first[bucket]; i < stretches->first[bucket + 1] && rc == 0;
		i++) {
		struct stretch *stretch = &stretches->v[i];
		bool clear = written <= stretch->offset;
		size_t first = at;

		while (at < end && gather->v[at].dst < stretch->offset + stretch->len_bytes) {
			uint64_t past = copy_end(&gather->v[at++]);

			written = MAX(written, past);
		}
		if (clear && at > first &&
			(alone || stretch->len_bytes >= stretches->least_bytes) &&
			is_direct(stretch, gather->v + first, at - first, direct)) {
			stretch->space = gather->v[first].src_space;
			stretch->src = gather->v[first].src;
			count++;
			continue;
		}
		for (; first < at && rc == 0; first++) {
			rc = copies_add(kept, &gather->v[first], err);
		}
	}
	copies_end_range(kept);
	return rc ? rc : count;
}

int64_t stretches_send_direct(
	struct stretches *stretches, struct copies *gather, const bool *direct, struct error *err)
{
	struct copies kept;
	int64_t count = 0;
	int rc = copies_start(&kept, gather->nranges, err);

	for (size_t i = 0; i < gather->nranges && rc == 0; i++) {
		int64_t some = sort_out(stretches, i, gather, direct, &kept, err);

		rc = some < 0 ? (int)some : 0;
		count += some;
	}
	if (rc) {
		copies_finish(&kept);
		for (size_t i = 0; i < stretches->n; i++) {
			stretches->v[i].space = STRETCH_PACKED;
		}
		return rc;
	}
	copies_finish(gather);
	*gather = kept;
	return count;
}
