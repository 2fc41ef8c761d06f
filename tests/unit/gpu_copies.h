/*
 * Random copies and casts in any strides for the tests of executors, and the
 * plain meaning of struct copy to compare them with.
 */
#ifndef UNIT_GPU_COPIES_H
#define UNIT_GPU_COPIES_H

#include "base/util.h"
#include "plan/plan.h"
#include "support/test_main.h"
#include "unit/cast_reference.h"

#define SPACE_BYTES (1u << 20)

static const enum strew_dtype cast_dtypes[] = {STREW_F32, STREW_F16, STREW_BF16};

static inline uint64_t run_in_source(const struct copy *copy)
{
	return copy->from ? copy->run_bytes / (uint64_t)ref_format(copy->to).bytes *
				    (uint64_t)ref_format(copy->from).bytes
			  : copy->run_bytes;
}

static inline void reference(const struct copy *copy, unsigned dim, char *dst, const char *src)
{
	if (dim < copy->ndim) {
		for (uint64_t i = 0; i < copy->extent[dim]; i++) {
			reference(copy, dim + 1, dst + i * copy->dst_stride[dim],
				src + i * copy->src_stride[dim]);
		}
	} else if (copy->from) {
		int from = ref_format(copy->from).bytes, to = ref_format(copy->to).bytes;

		for (uint64_t left = copy->run_bytes; left; left -= (uint64_t)to) {
			ref_cast_at(dst, src, copy->from, copy->to);
			dst += to;
			src += from;
		}
	} else {
		memcpy(dst, src, copy->run_bytes);
	}
}

static inline uint64_t copy_span(const struct copy *copy, uint64_t run, const uint64_t *stride)
{
	for (unsigned k = 0; k < copy->ndim; k++) {
		run += (copy->extent[k] - 1) * stride[k];
	}
	return run;
}

/* Strides from the innermost dimension out, in a random order, with gaps; false if too big. */
static inline bool random_strides(
	const struct copy *copy, uint64_t run, uint64_t unit, uint64_t *ret_stride)
{
	unsigned order[STREW_MAX_DIMS];
	uint64_t stride = run;

	for (unsigned k = 0; k < copy->ndim; k++) {
		unsigned other = (unsigned)test_random_below(k + 1);

		order[k] = order[other];
		order[other] = k;
	}
	for (unsigned k = 0; k < copy->ndim; k++) {
		stride += test_random_below(3) * unit;
		ret_stride[order[k]] = stride;
		stride *= copy->extent[order[k]];
	}
	return copy_span(copy, run, ret_stride) < SPACE_BYTES / 2;
}

/* A cast's addresses and strides are whole elements apart, or (seldom) nothing that is aligned. */
static inline void random_copy(struct copy *copy, bool cast)
{
	do {
		uint64_t unit = 1ull << test_random_below(6), from = unit, to = unit, n;

		memset(copy, 0, sizeof(*copy));
		if (cast) {
			uint64_t a = test_random_below(3), b = (a + 1 + test_random_below(2)) % 3;

			copy->from = cast_dtypes[a];
			copy->to = cast_dtypes[b];
			unit = 1ull << test_random_below(4);
			from = unit * (uint64_t)ref_format(copy->from).bytes;
			to = unit * (uint64_t)ref_format(copy->to).bytes;
		}
		copy->ndim = (uint32_t)test_random_below(STREW_MAX_DIMS + 1);
		n = 1 + test_random_below(copy->ndim > 2 ? 20 : 3000);
		copy->run_bytes = to * n;
		for (unsigned k = 0; k < copy->ndim; k++) {
			copy->extent[k] = 2 + test_random_below(copy->ndim > 2 ? 5 : 70);
		}
		copy->src = from * test_random_below(200);
		copy->dst = to * test_random_below(200);
		if (cast && test_random_below(8) == 0) {
			copy->src += test_random_below(4);
			copy->dst += test_random_below(4);
			from = to = 1;
		}
		if (random_strides(copy, run_in_source(copy), from, copy->src_stride) &&
			random_strides(copy, copy->run_bytes, to, copy->dst_stride)) {
			return;
		}
	} while (true);
}

#endif
