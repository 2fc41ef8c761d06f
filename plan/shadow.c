/* Staged apply: where parameters lie in a shadow, and the copies that commit it. */
#include "base/util.h"
#include "plan/copies.h"
#include "plan/plan.h"
#include "plan/subset.h"

/* The piece's place in its allocation; false if it has no bytes. */
static bool piece_place(const struct layout *layout, const struct piece *piece, uint32_t space_base,
	struct copy *ret_copy)
{
	const struct parameter *parameter = &layout->parameters[piece->parameter];
	uint64_t size = strew_dtype_size(parameter->dtype);
	struct copy copy = {.run_bytes = size, .ndim = (uint32_t)piece->ndim};

	if (box_empty(piece->ndim, &piece->box)) {
		return false;
	}
	copy.src_space = copy.dst_space = space_base + parameter->allocation;
	copy.src = copy.dst = parameter->offset_bytes + piece->offset * size;
	for (int i = 0; i < piece->ndim; i++) {
		copy.extent[i] = piece->box.extent[i];
		copy.src_stride[i] = piece->stride[i] * size;
		copy.dst_stride[i] = piece->stride[i] * size;
	}
	*ret_copy = copy;
	return true;
}

static int commit_piece(const struct plan_worker *worker, const struct piece *piece,
	struct copies *copies, struct error *err)
{
	const struct parameter *parameter = &worker->layout->parameters[piece->parameter];
	uint64_t offset = worker->shadow_offset[piece->parameter];
	struct copy copy;

	if (offset == SHADOW_NONE ||
		!piece_place(worker->layout, piece, worker->space_base, &copy)) {
		return 0;
	}
	copy.src_space = worker->shadow_space;
	copy.src = offset + piece->offset * strew_dtype_size(parameter->dtype);
	return copies_add(copies, &copy, err);
}

int plan_apply(const struct layout *layout, uint32_t first, const uint8_t *missing,
	struct copies *ret_copies, struct error *err)
{
	struct copies copies;
	int r = copies_start(&copies, 1, err);

	for (size_t i = 0; i < layout->npieces && r == 0; i++) {
		const struct piece *piece = &layout->pieces[i];
		struct copy copy;

		if (layout->parameters[piece->parameter].allocation < first ||
			(missing && bits_has(missing, piece->tensor)) ||
			!piece_place(layout, piece, 0, &copy)) {
			continue;
		}
		r = array_grow((void **)&copies.v, &copies.cap, copies.n + 1, sizeof(*copies.v));
		if (r < 0) {
			error_set(err, r, "no memory for %zu copies", copies.n + 1);
			break;
		}
		copy_normalise(&copy);
		copies.v[copies.n++] = copy;
	}
	if (r < 0) {
		copies_finish(&copies);
		return r;
	}
	copies.first[1] = copies.n;
	copies.nranges = 1;
	*ret_copies = copies;
	return 0;
}

int plan_commit(const struct manifest *manifest, const struct plan_worker *workers, size_t nworkers,
	struct copies *ret_copies, struct error *err)
{
	struct copies copies;
	int r = copies_start(&copies, 1, err);

	for (size_t w = 0; w < nworkers && r == 0; w++) {
		const struct layout *layout = workers[w].layout;
		size_t n = workers[w].shadow_offset ? layout->npieces : 0;

		for (size_t i = 0; i < n && r == 0; i++) {
			const struct piece *piece = &layout->pieces[i];

			/* The shadow holds nothing of a tensor that is not published. */
			if (!manifest ||
				manifest_find(manifest, layout->tensors[piece->tensor].name) >= 0) {
				r = commit_piece(&workers[w], piece, &copies, err);
			}
		}
	}
	if (r < 0) {
		copies_finish(&copies);
		return r;
	}
	copies_end_range(&copies);
	*ret_copies = copies;
	return 0;
}

/*
 * A parameter keeps its place within SLOT_ALIGN bytes, so that the copies into
 * the shadow and out of it are as well aligned to each other as they can be.
 * Lengths that pass 64 bits (of layouts that no allocation could hold) stay at the largest number.
 */
uint64_t plan_shadow(const struct layout *layout, const bool *pulled, uint64_t *ret_offset)
{
	uint64_t end = 0;

	for (size_t i = 0; i < layout->nparameters; i++) {
		const struct parameter *parameter = &layout->parameters[i];
		uint64_t start = UINT64_MAX;

		if (pulled && pulled[parameter->allocation] && parameter_span_bytes(parameter)) {
			ret_offset[i] = SHADOW_NONE;
			continue;
		}
		if (end <= UINT64_MAX / 2) {
			start = align_up(end, SLOT_ALIGN) + parameter->offset_bytes % SLOT_ALIGN;
		}
		ret_offset[i] = start;
		if (add_overflows(start, parameter_span_bytes(parameter), &end)) {
			end = UINT64_MAX;
		}
	}
	return end;
}
