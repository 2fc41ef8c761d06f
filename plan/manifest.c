#include "plan/manifest.h"
#include "base/util.h"
#include "plan/cover.h"
#include "plan/tensor_table.h"
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

void manifest_init(struct manifest *manifest)
{
	*manifest = (struct manifest){0};
}

void manifest_finish(struct manifest *manifest)
{
	free(manifest->tensors);
	free(manifest->boxes);
	arena_destroy(manifest->arena);
	name_index_destroy(manifest->tensor_index);
	manifest_init(manifest);
}

static int check_unsealed(const struct manifest *manifest, struct error *err)
{
	if (manifest->sealed) {
		return error_set(err, -EINVAL, "the manifest is sealed");
	}
	return 0;
}

int manifest_add_tensor(struct manifest *manifest, const struct tensor *tensor, uint32_t *ret_index,
	struct error *err)
{
	struct tensor_table table = {&manifest->tensors, &manifest->ntensors,
		&manifest->cap_tensors, &manifest->arena, &manifest->tensor_index};
	int r = check_unsealed(manifest, err);

	return r < 0 ? r : tensor_table_add(&table, tensor, ret_index, err);
}

int manifest_add_box(struct manifest *manifest, const struct held_box *box, struct error *err)
{
	const struct tensor *tensor;
	struct held_box *copy;
	int r = check_unsealed(manifest, err);

	if (r < 0) {
		return r;
	}
	if (box->tensor >= manifest->ntensors) {
		return error_set(err, -EINVAL, "a box of tensor number %u, but there are %zu",
			box->tensor, manifest->ntensors);
	}
	tensor = &manifest->tensors[box->tensor];
	if (box->rank >= LIMIT_RANKS) {
		return error_set(err, -E2BIG,
			"tensor %.128s: a box of rank %u, but at most %u ranks", tensor->name,
			box->rank, LIMIT_RANKS);
	}
	if (!box_inside(tensor->ndim, tensor->shape, &box->box)) {
		char start[56], extent[56], shape[56];

		return error_set(err, -ERANGE,
			"tensor %.64s: a box at %s of extent %s is not inside %s", tensor->name,
			dims_format(start, sizeof(start), tensor->ndim, box->box.start),
			dims_format(extent, sizeof(extent), tensor->ndim, box->box.extent),
			dims_format(shape, sizeof(shape), tensor->ndim, tensor->shape));
	}
	if (manifest->nboxes >= LIMIT_BOXES) {
		return error_set(err, -E2BIG, "tensor %.128s: more than %u boxes", tensor->name,
			LIMIT_BOXES);
	}
	r = plan_grow(&manifest->boxes, &manifest->cap_boxes, manifest->nboxes + 1,
		sizeof(*manifest->boxes), err);
	if (r < 0) {
		return r;
	}
	/* Equal boxes are found by comparing bytes, so the unused dimensions are cleared. */
	copy = &manifest->boxes[manifest->nboxes++];
	*copy = (struct held_box){
		.tensor = box->tensor, .rank = box->rank, .adjacent = box->adjacent};
	for (int i = 0; i < tensor->ndim; i++) {
		copy->box.start[i] = box->box.start[i];
		copy->box.extent[i] = box->box.extent[i];
	}
	return 0;
}

static bool is_dense(int ndim, const struct box *box, const struct source *source)
{
	uint64_t dense[STREW_MAX_DIMS];

	dims_dense(ndim, box->extent, dense);
	for (int d = 0; d < ndim; d++) {
		if (box->extent[d] > 1 && source->stride[d] != dense[d]) {
			return false;
		}
	}
	return true;
}

void manifest_mark_adjacent(struct manifest *manifest, const struct source *sources)
{
	uint64_t end = 0; /* of the box before, and the gap; in its allocation */
	bool dense = false;

	for (size_t i = 0; i < manifest->nboxes; i++) {
		struct held_box *held = &manifest->boxes[i];
		const struct tensor *tensor = &manifest->tensors[held->tensor];
		uint64_t bytes =
			box_count(tensor->ndim, &held->box) * strew_dtype_size(tensor->dtype);
		bool before = dense;

		dense = bytes && is_dense(tensor->ndim, &held->box, &sources[i]);
		held->adjacent = before && dense && held[-1].rank == held->rank &&
				 sources[i - 1].memory == sources[i].memory &&
				 sources[i].offset_bytes == end;
		end = sources[i].offset_bytes + align_up(bytes, SLOT_ALIGN);
	}
}

static int check_held(const struct manifest *manifest, const struct cover *cover, struct error *err)
{
	uint64_t *held = calloc(manifest->ntensors + 1, sizeof(*held));
	int r = 0;

	if (!held) {
		return error_set(err, -ENOMEM, "out of memory for %zu tensors", manifest->ntensors);
	}
	for (size_t i = 0; i < manifest->nboxes; i++) {
		const struct held_box *box = &manifest->boxes[i];
		const struct box *parts;
		size_t n = cover_parts(cover, manifest, i, &parts);

		for (size_t k = 0; k < n; k++) {
			held[box->tensor] +=
				box_count(manifest->tensors[box->tensor].ndim, &parts[k]);
		}
	}
	for (size_t i = 0; i < manifest->ntensors && !r; i++) {
		const struct tensor *tensor = &manifest->tensors[i];
		uint64_t all = tensor_bytes(tensor) / strew_dtype_size(tensor->dtype);
		char text[80];

		if (held[i] != all) {
			r = error_set(err, -EINVAL,
				"tensor %.100s %s: no rank holds %" PRIu64 " of its elements",
				tensor->name, tensor_format(text, sizeof(text), tensor),
				all - held[i]);
		}
	}
	free(held);
	return r;
}

int manifest_seal(struct manifest *manifest, struct error *err)
{
	struct cover cover;
	int r = check_unsealed(manifest, err);

	if (r < 0) {
		return r;
	}
	r = cover_make(manifest, &cover, err);
	if (r < 0) {
		return r;
	}
	r = check_held(manifest, &cover, err);
	cover_finish(&cover);
	if (r == 0) {
		manifest->bytes = manifest_bytes(manifest);
		manifest->sealed = true;
	}
	return r;
}

int64_t manifest_find(const struct manifest *manifest, const char *name)
{
	int64_t found = name_index_find(manifest->tensor_index, name);

	return found < 0 ? -ENOENT : found;
}

uint64_t manifest_bytes(const struct manifest *manifest)
{
	uint64_t bytes = 0;

	if (manifest->sealed) {
		return manifest->bytes;
	}
	for (size_t i = 0; i < manifest->ntensors; i++) {
		bytes += tensor_bytes(&manifest->tensors[i]);
	}
	return bytes;
}
