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

static uint64_t entry_bytes(const struct manifest *manifest, const struct bucket_entry *entry)
{
	const struct tensor *tensor = &manifest->tensors[manifest->boxes[entry->box].tensor];

	return box_count(tensor->ndim, &entry->part) * strew_dtype_size(entry->dtype);
}

static int cut_bucket(struct stretches *stretches, const struct manifest *manifest,
	const struct buckets *buckets, const struct bucket *bucket, struct error *err)
{
	uint64_t packed_to = 0; /* all before is in a stretch */
	int rc = 0;

	for (size_t i = bucket->first; i < bucket->first + bucket->count && rc == 0; i++) {
		const struct bucket_entry *entry = &buckets->entries[i];
		uint64_t offset = entry->slot_offset_bytes;
		uint64_t bytes = entry_bytes(manifest, entry);

		if (bytes < stretches->least_bytes) {
			continue;
		}
		if (offset > packed_to) {
			rc = add_stretch(stretches, packed_to, offset - packed_to, err);
		}
		if (rc == 0) {
			rc = add_stretch(stretches, offset, bytes, err);
		}
		packed_to = MIN(align_up(offset + bytes, SLOT_ALIGN), bucket->len_bytes);
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

/* Is the stretch inside that run, which may be sent from where it lies? */
static bool is_direct(const struct stretch *stretch, uint64_t least_bytes, const struct copy *copy,
	const bool *direct)
{
	return stretch->len_bytes >= least_bytes && !copy->ndim && !copy->from &&
	       direct[copy->src_space] && stretch->offset >= copy->dst &&
	       stretch->offset - copy->dst <= copy->run_bytes &&
	       stretch->len_bytes <= copy->run_bytes - (stretch->offset - copy->dst) &&
	       (copy->src + (stretch->offset - copy->dst)) % STRETCH_ALIGN == 0;
}

/* Adds the part of a run that ends at `end` bytes of it, and takes it off, with `skip` more. */
static int split_run(
	struct copies *kept, struct copy *run, uint64_t end, uint64_t skip, struct error *err)
{
	struct copy head = *run;
	int rc = 0;

	if (end) {
		head.run_bytes = end;
		rc = copies_add(kept, &head, err);
	}
	run->src += end + skip;
	run->dst += end + skip;
	run->run_bytes -= end + skip;
	return rc;
}

/*
 * One bucket. Both lists are ordered by their place in the slot. Adds to `kept` what is left to
 * be gathered.
 */
static int64_t sort_out(struct stretch *stretches, size_t nstretches, uint64_t least_bytes,
	const struct copy *v, size_t n, const bool *direct, struct copies *kept, struct error *err)
{
	int64_t count = 0;
	size_t at = 0;
	int rc = 0;

	for (size_t i = 0; i < n && rc == 0; i++) {
		struct copy rest = v[i];

		while (at < nstretches && stretches[at].offset < rest.dst) {
			at++;
		}
		/* From here on stretches that lie in the run follow each other. */
		for (; at < nstretches && rc == 0 && !rest.ndim &&
			stretches[at].offset - rest.dst < rest.run_bytes;
			at++) {
			struct stretch *stretch = &stretches[at];
			uint64_t before = stretch->offset - rest.dst;

			if (!is_direct(stretch, least_bytes, &rest, direct)) {
				continue;
			}
			stretch->space = rest.src_space;
			stretch->src = rest.src + before;
			count++;
			rc = split_run(kept, &rest, before, stretch->len_bytes, err);
		}
		if (rc == 0 && rest.run_bytes) {
			rc = copies_add(kept, &rest, err);
		}
	}
	copies_end_range(kept);
	return rc ? rc : count;
}

int64_t stretches_send_direct(
	struct stretches *stretches, struct copies *gather, const bool *direct, struct error *err)
{
	struct copies kept;
	int64_t count = 0, some;
	int rc = copies_start(&kept, gather->nranges, err);

	for (size_t i = 0; i < gather->nranges && rc == 0; i++) {
		some = sort_out(stretches->v + stretches->first[i],
			stretches->first[i + 1] - stretches->first[i], stretches->least_bytes,
			gather->v + gather->first[i], gather->first[i + 1] - gather->first[i],
			direct, &kept, err);
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
