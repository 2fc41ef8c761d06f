/*
 * What both ends of the wire hash: every entry of every bucket, where the root sends it from
 * and where others receive it. What lies between entries is not part of any tensor, and may
 * be anything.
 */
#include "base/util.h"
#include "broker/plans_internal.h"
#include <errno.h>
#include <stdlib.h>

/* The buckets of one sum: one, unless there are more than fit in a message. */
size_t hashes_fold(const struct buckets *buckets)
{
	return buckets->n ? (buckets->n + LIMIT_HASHES - 1) / LIMIT_HASHES : 1;
}

size_t hashes_count(const struct buckets *buckets)
{
	return (buckets->n + hashes_fold(buckets) - 1) / hashes_fold(buckets);
}

int hashes_buckets(const struct publication *publication, const struct slot_types *slot_types,
	uint64_t slot_bytes, struct buckets *ret_buckets)
{
	uint8_t *dtypes;
	int rc = slot_types_expand(slot_types, &publication->manifest, &dtypes, NULL);

	if (rc == 0) {
		rc = buckets_make_as(&publication->manifest, dtypes, slot_bytes, publication->roots,
			publication->nroots, ret_buckets, NULL);
		free(dtypes);
	}
	return rc;
}

static uint64_t entry_bytes(const struct manifest *manifest, const struct bucket_entry *entry)
{
	const struct tensor *tensor = &manifest->tensors[manifest->boxes[entry->box].tensor];

	return box_count(tensor->ndim, &entry->part) * strew_dtype_size(entry->dtype);
}

/* Entries and stretches of a bucket are in the order of its slot. */
static size_t add_bucket(const struct manifest *manifest, const struct plan_base *base, size_t k,
	struct gpu_span *spans)
{
	const struct bucket *bucket = &base->buckets.v[k];
	const struct stretch *stretch = base->stretches.v + base->stretches.first[k];

	for (size_t i = 0; i < bucket->count; i++) {
		const struct bucket_entry *entry = &base->buckets.entries[bucket->first + i];
		uint64_t offset = entry->slot_offset_bytes;
		bool in_slot;

		while (offset >= stretch->offset + stretch->len_bytes) {
			stretch++;
		}
		in_slot = stretch->space == STRETCH_PACKED;
		spans[i] = (struct gpu_span){
			.address = in_slot ? offset : stretch->src + (offset - stretch->offset),
			.len_bytes = entry_bytes(manifest, entry),
			.position = (uint64_t)k * base->slot_bytes + offset,
			.sum = (uint32_t)(k / hashes_fold(&base->buckets)),
			.in_slot = in_slot};
	}
	return bucket->count;
}

int plans_hashes(struct plans *plans, const struct publication *publication, struct plan_base *base,
	struct error *err)
{
	const struct buckets *buckets = &base->buckets;
	struct gpu_device *home;
	struct gpu_span *spans;
	size_t *first;
	int rc;

	if (base->hashes) {
		return 0;
	}
	rc = plans_home(plans, NULL, &home, err);
	if (rc) {
		return rc;
	}
	spans = calloc(buckets->nentries + 1, sizeof(*spans));
	first = calloc(buckets->n + 1, sizeof(*first));
	rc = spans && first ? 0 : error_set(err, -ENOMEM, "out of memory");
	for (size_t k = 0; k < buckets->n && rc == 0; k++) {
		first[k + 1] =
			first[k] + add_bucket(&publication->manifest, base, k, spans + first[k]);
	}
	if (rc == 0) {
		rc = gpu_hashes_create(
			home, spans, first, buckets->n, hashes_count(buckets), &base->hashes, err);
	}
	free(spans);
	free(first);
	return rc;
}
