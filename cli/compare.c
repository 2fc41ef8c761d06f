#include "cli/compare.h"
#include "gpu/cast.h"
#include <string.h>

static uint32_t load(const unsigned char *at, size_t bytes)
{
	uint32_t bits = 0;

	memcpy(&bits, at, bytes); /* little-endian, as all hosts of GPUs are */
	return bits;
}

static bool element_same(const unsigned char *source, uint32_t from, size_t from_bytes,
	const unsigned char *memory, uint32_t to, size_t to_bytes)
{
	if (from == to) {
		return memcmp(source, memory, from_bytes) == 0;
	}
	return cast_narrow(cast_widen(load(source, from_bytes), from), to) ==
	       load(memory, to_bytes);
}

/* The next index of the box without its last dimension; false at the end. */
static bool advance(uint64_t *index, int outer, const uint64_t *extent)
{
	for (int d = outer - 1; d >= 0; d--) {
		if (++index[d] < extent[d]) {
			return true;
		}
		index[d] = 0;
	}
	return false;
}

void compare_piece(const struct tensor *tensor, const unsigned char *source,
	const struct piece *piece, const struct parameter *parameter, const unsigned char *memory,
	struct comparison *comparison)
{
	size_t from_bytes = strew_dtype_size(tensor->dtype);
	size_t to_bytes = strew_dtype_size(parameter->dtype);
	uint64_t dense[STREW_MAX_DIMS], index[STREW_MAX_DIMS] = {0};
	int outer = piece->ndim ? piece->ndim - 1 : 0;
	uint64_t run = piece->ndim ? piece->box.extent[outer] : 1;
	uint64_t step = piece->ndim ? piece->stride[outer] : 0;

	dims_dense(piece->ndim, piece->view, dense);
	if (box_empty(piece->ndim, &piece->box)) {
		return;
	}
	do {
		uint64_t number = piece->ndim ? piece->box.start[outer] : 0, at = piece->offset;

		for (int d = 0; d < outer; d++) {
			number += (piece->box.start[d] + index[d]) * dense[d];
			at += index[d] * piece->stride[d];
		}
		comparison->elements += run;
		if (tensor->dtype == parameter->dtype && step == 1 &&
			memcmp(source + number * from_bytes, memory + at * to_bytes,
				run * from_bytes) == 0) {
			continue;
		}
		for (uint64_t i = 0; i < run; i++) {
			if (!element_same(source + (number + i) * from_bytes, tensor->dtype,
				    from_bytes, memory + (at + i * step) * to_bytes,
				    parameter->dtype, to_bytes) &&
				comparison->differ++ == 0) {
				comparison->first = number + i;
			}
		}
	} while (advance(index, outer, piece->box.extent));
}
