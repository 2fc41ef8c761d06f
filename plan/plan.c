/*
 * Every plan is the same walk: for each part of a bucket and each piece that
 * wants some of it, the rectangles that they have in common become copies. What
 * differs is the side that bytes come from: a slot or a trainer's memory.
 *
 * A million boxes of one tensor and a million pieces of it would be looked at for hours, so
 * the walk has a number of steps. One is a look at a part and a piece, of some 10 ns.
 */
#include "plan/plan.h"
#include "base/util.h"
#include "plan/by_tensor.h"
#include "plan/cast.h"
#include "plan/copies.h"
#include "plan/tensor_table.h"
#include "plan/view.h"
#include <errno.h>
#include <stdlib.h>

#define MEMORY_BYTES_MAX (1ull << 62)
#define NO_TENSOR UINT32_MAX
#define RECT_STEPS 8u /* for a rectangle that they have in common */

/* A box in memory: `at` is the byte of its first element, strides are in bytes. */
struct side {
	uint32_t space;
	uint64_t at;
	enum strew_dtype dtype; /* the tensor's; in a slot perhaps another */
	const uint64_t *start;	/* the box's, in the tensor's dimensions */
	uint64_t stride[STREW_MAX_DIMS];
};

/* A worker's pieces, found from the manifest's tensors. */
struct target {
	const struct plan_worker *worker;
	uint32_t *tensor; /* by the manifest's tensor: the layout's, or NO_TENSOR */
	struct by_tensor pieces;
	struct view_map *maps; /* by piece */
	uint64_t *steps;       /* that are left, for all targets together */
};

static void side_of_slot(
	const struct tensor *tensor, const struct bucket_entry *entry, struct side *ret_side)
{
	*ret_side = (struct side){
		.at = entry->slot_offset_bytes, .dtype = entry->dtype, .start = entry->part.start};
	dims_dense(tensor->ndim, entry->part.extent, ret_side->stride);
	for (int i = 0; i < tensor->ndim; i++) {
		ret_side->stride[i] *= strew_dtype_size(entry->dtype);
	}
}

static int side_of_source(const struct tensor *tensor, const struct held_box *held,
	const struct source *source, struct side *ret_side, struct error *err)
{
	uint64_t size = strew_dtype_size(tensor->dtype), span;

	if (dims_span(tensor->ndim, held->box.extent, source->stride, &span) < 0 ||
		span > MEMORY_BYTES_MAX / size ||
		source->offset_bytes > MEMORY_BYTES_MAX - span * size) {
		return error_set(err, -ERANGE,
			"tensor %.128s: the memory of rank %u's box reaches over 2^62 bytes",
			tensor->name, held->rank);
	}
	*ret_side = (struct side){.space = source->memory,
		.at = source->offset_bytes,
		.dtype = tensor->dtype,
		.start = held->box.start};
	for (int i = 0; i < tensor->ndim; i++) {
		ret_side->stride[i] = source->stride[i] * size;
	}
	return 0;
}

/*
 * Strides of dimensions in which a box has one element are never stepped, may
 * be anything, and may wrap here: they cancel out or are dropped.
 */
static uint64_t side_at(const struct side *side, int ndim, const uint64_t *index)
{
	uint64_t at = side->at;

	for (int i = 0; i < ndim; i++) {
		at += (index[i] - side->start[i]) * side->stride[i];
	}
	return at;
}

static int gather_entry(const struct manifest *manifest, const struct bucket_entry *entry,
	const struct source *sources, struct copies *copies, struct error *err)
{
	const struct held_box *held = &manifest->boxes[entry->box];
	const struct tensor *tensor = &manifest->tensors[held->tensor];
	struct copy copy = {0};
	struct side from, to;
	int r;

	if (sources[entry->box].memory == SOURCE_ELSEWHERE) {
		return error_set(err, -EINVAL, "tensor %.128s: rank %u's memory is not known here",
			tensor->name, held->rank);
	}
	r = side_of_source(tensor, held, &sources[entry->box], &from, err);
	if (r < 0) {
		return r;
	}
	side_of_slot(tensor, entry, &to);
	copy.src_space = from.space;
	copy.src = side_at(&from, tensor->ndim, entry->part.start);
	copy.dst = to.at;
	copy.run_bytes = strew_dtype_size(to.dtype);
	copy_set_cast(&copy, from.dtype, to.dtype);
	copy.ndim = (uint32_t)tensor->ndim;
	for (int i = 0; i < tensor->ndim; i++) {
		copy.extent[i] = entry->part.extent[i];
		copy.src_stride[i] = from.stride[i];
		copy.dst_stride[i] = to.stride[i];
	}
	return copies_add(copies, &copy, err);
}

int plan_gather(const struct manifest *manifest, const struct buckets *buckets,
	const struct source *sources, uint32_t root, struct copies *ret_copies, struct error *err)
{
	struct copies copies;
	int r = copies_start(&copies, buckets->n, err);

	for (size_t b = 0; b < buckets->n && r == 0; b++) {
		const struct bucket *bucket = &buckets->v[b];
		size_t n = bucket->root == root ? bucket->count : 0;

		for (size_t i = 0; i < n && r == 0; i++) {
			r = gather_entry(manifest, &buckets->entries[bucket->first + i], sources,
				&copies, err);
		}
		copies_end_range(&copies);
	}
	if (r < 0) {
		copies_finish(&copies);
		return r;
	}
	*ret_copies = copies;
	return 0;
}

static void target_finish(struct target *target)
{
	free(target->tensor);
	free(target->maps);
	by_tensor_finish(&target->pieces);
}

static int target_find(struct target *target, const struct manifest *manifest, struct error *err)
{
	const struct layout *layout = target->worker->layout;

	for (size_t i = 0; i < manifest->ntensors; i++) {
		target->tensor[i] = NO_TENSOR;
	}
	for (size_t i = 0; i < layout->ntensors; i++) {
		const struct tensor *tensor = &layout->tensors[i];
		int64_t found = manifest_find(manifest, tensor->name);

		if (found >= 0 && !tensor_same(tensor, &manifest->tensors[found])) {
			return error_set(err, -EINVAL,
				"tensor %.128s: trainer and layout disagree about dtype or shape",
				tensor->name);
		}
		if (found >= 0) {
			target->tensor[found] = (uint32_t)i;
		}
	}
	for (size_t i = 0; i < layout->npieces; i++) {
		const struct piece *piece = &layout->pieces[i];
		const struct tensor *tensor = &layout->tensors[piece->tensor];

		view_map_make(
			tensor->ndim, tensor->shape, piece->ndim, piece->view, &target->maps[i]);
	}
	return 0;
}

/* target_finish() is right after success and failure. */
static int target_make(struct target *target, const struct plan_worker *worker,
	const struct manifest *manifest, uint64_t *steps, struct error *err)
{
	const struct layout *layout = worker->layout;
	int r;

	*target = (struct target){.worker = worker, .steps = steps};
	r = by_tensor_of_pieces(layout, &target->pieces);
	target->tensor = malloc((manifest->ntensors + 1) * sizeof(*target->tensor));
	target->maps = malloc((layout->npieces + 1) * sizeof(*target->maps));
	if (r < 0 || !target->tensor || !target->maps) {
		return error_set(err, -ENOMEM, "out of memory for %zu pieces", layout->npieces);
	}
	return target_find(target, manifest, err);
}

uint64_t plan_parameter_at(
	const struct plan_worker *worker, uint32_t parameter, uint32_t *ret_space)
{
	if (worker->shadow_offset && worker->shadow_offset[parameter] != SHADOW_NONE) {
		*ret_space = worker->shadow_space;
		return worker->shadow_offset[parameter];
	}
	*ret_space = worker->space_base + worker->layout->parameters[parameter].allocation;
	return worker->layout->parameters[parameter].offset_bytes;
}

static int scatter_rect(const struct plan_worker *worker, const struct piece *piece,
	const struct view_map *map, const struct box *rect, const struct side *from,
	struct copies *copies, struct error *err)
{
	const struct tensor *tensor = &worker->layout->tensors[piece->tensor];
	enum strew_dtype dtype = worker->layout->parameters[piece->parameter].dtype;
	uint64_t size = strew_dtype_size(dtype), index[STREW_MAX_DIMS] = {0};
	struct copy copy = {.src_space = from->space, .run_bytes = size, .ndim = (uint32_t)map->n};

	copy_set_cast(&copy, from->dtype, dtype);
	copy.dst =
		plan_parameter_at(worker, piece->parameter, &copy.dst_space) + piece->offset * size;
	for (int k = 0; k < map->n; k++) {
		int v = map->dim[k];

		index[map->owner[k]] += rect->start[v] * map->weight[k];
		copy.dst += (rect->start[v] - piece->box.start[v]) * piece->stride[v] * size;
		copy.extent[k] = rect->extent[v];
		copy.src_stride[k] = from->stride[map->owner[k]] * map->weight[k];
		copy.dst_stride[k] = piece->stride[v] * size;
	}
	copy.src = side_at(from, tensor->ndim, index);
	return copies_add(copies, &copy, err);
}

static int spend(
	const struct target *target, uint64_t steps, const struct tensor *tensor, struct error *err)
{
	if (steps > *target->steps) {
		return error_set(err, -E2BIG,
			"tensor %.96s: its boxes and its pieces are too many to be matched in %u "
			"steps",
			tensor->name, LIMIT_MATCH_STEPS);
	}
	*target->steps -= steps;
	return 0;
}

static int scatter_entry(const struct target *target, uint32_t manifest_tensor,
	const struct box *part, const struct side *from, struct copies *copies, struct error *err)
{
	const struct layout *layout = target->worker->layout;
	uint32_t t = target->tensor[manifest_tensor];
	size_t first, past;
	int r;

	if (t == NO_TENSOR) {
		return 0;
	}
	first = target->pieces.first[t];
	past = target->pieces.first[t + 1];
	r = spend(target, past - first, &layout->tensors[t], err);
	for (size_t i = first; i < past && r == 0; i++) {
		const struct piece *piece = &layout->pieces[target->pieces.items[i]];
		const struct view_map *map = &target->maps[target->pieces.items[i]];
		struct box rects[VIEW_RECTS_MAX];
		int n;

		if (box_empty(piece->ndim, &piece->box)) {
			continue;
		}
		n = view_cut(map, piece->ndim, &piece->box, part, rects);
		r = spend(target, RECT_STEPS * (uint64_t)n, &layout->tensors[t], err);
		for (int k = 0; k < n && r == 0; k++) {
			r = scatter_rect(target->worker, piece, map, &rects[k], from, copies, err);
		}
	}
	return r;
}

/* A bucket's copies to one target, out of its slot or (sources given) out of trainer memory. */
static int scatter_bucket(const struct target *target, const struct manifest *manifest,
	const struct buckets *buckets, size_t b, const struct source *sources,
	struct copies *copies, struct error *err)
{
	const struct bucket *bucket = &buckets->v[b];
	int r = 0;

	for (size_t i = 0; i < bucket->count && r == 0; i++) {
		const struct bucket_entry *entry = &buckets->entries[bucket->first + i];
		const struct held_box *held = &manifest->boxes[entry->box];
		const struct tensor *tensor = &manifest->tensors[held->tensor];
		struct side from;

		if (!sources) {
			side_of_slot(tensor, entry, &from);
		} else if (sources[entry->box].memory == SOURCE_ELSEWHERE) {
			continue;
		} else {
			r = side_of_source(tensor, held, &sources[entry->box], &from, err);
		}
		if (r == 0) {
			r = scatter_entry(target, held->tensor, &entry->part, &from, copies, err);
		}
	}
	return r;
}

static int compile(const struct manifest *manifest, const struct buckets *buckets,
	const struct source *sources, const struct plan_worker *workers, size_t nworkers,
	struct copies *ret_copies, struct error *err)
{
	struct target *targets = calloc(nworkers + 1, sizeof(*targets));
	uint64_t steps = LIMIT_MATCH_STEPS;
	struct copies copies;
	int r = copies_start(&copies, buckets->n, err);

	if (r == 0 && !targets) {
		r = error_set(err, -ENOMEM, "out of memory for %zu workers", nworkers);
	}
	for (size_t w = 0; w < nworkers && r == 0; w++) {
		r = target_make(&targets[w], &workers[w], manifest, &steps, err);
	}
	for (size_t b = 0; b < buckets->n && r == 0; b++) {
		for (size_t w = 0; w < nworkers && r == 0; w++) {
			r = scatter_bucket(
				&targets[w], manifest, buckets, b, sources, &copies, err);
		}
		copies_end_range(&copies);
	}
	for (size_t w = 0; targets && w < nworkers; w++) {
		target_finish(&targets[w]);
	}
	free(targets);
	if (r < 0) {
		copies_finish(&copies);
		return r;
	}
	*ret_copies = copies;
	return 0;
}

int plan_scatter(const struct manifest *manifest, const struct buckets *buckets,
	const struct plan_worker *workers, size_t nworkers, struct copies *ret_copies,
	struct error *err)
{
	return compile(manifest, buckets, NULL, workers, nworkers, ret_copies, err);
}

int plan_local(const struct manifest *manifest, const struct buckets *buckets,
	const struct source *sources, const struct plan_worker *workers, size_t nworkers,
	struct copies *ret_copies, struct error *err)
{
	return compile(manifest, buckets, sources, workers, nworkers, ret_copies, err);
}
