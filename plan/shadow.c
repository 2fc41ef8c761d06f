/* Staged apply: where parameters lie in a shadow, and the copies that commit it. */
#include "base/util.h"
#include "plan/copies.h"
#include "plan/plan.h"

static int commit_piece(const struct plan_worker *worker, const struct piece *piece,
	struct copies *copies, struct error *err)
{
	const struct parameter *parameter = &worker->layout->parameters[piece->parameter];
	uint64_t size = strew_dtype_size(parameter->dtype);
	struct copy copy = {.run_bytes = size, .ndim = (uint32_t)piece->ndim};

	if (box_empty(piece->ndim, &piece->box)) {
		return 0;
	}
	copy.src_space = worker->shadow_space;
	copy.src = worker->shadow_offset[piece->parameter] + piece->offset * size;
	copy.dst_space = worker->space_base + parameter->allocation;
	copy.dst = parameter->offset_bytes + piece->offset * size;
	for (int i = 0; i < piece->ndim; i++) {
		copy.extent[i] = piece->box.extent[i];
		copy.src_stride[i] = piece->stride[i] * size;
		copy.dst_stride[i] = piece->stride[i] * size;
	}
	return copies_add(copies, &copy, err);
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
			if (manifest_find(manifest, layout->tensors[piece->tensor].name) >= 0) {
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
uint64_t plan_shadow(const struct layout *layout, uint64_t *ret_offset)
{
	uint64_t end = 0;

	for (size_t i = 0; i < layout->nparameters; i++) {
		const struct parameter *parameter = &layout->parameters[i];
		uint64_t start = UINT64_MAX;

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
