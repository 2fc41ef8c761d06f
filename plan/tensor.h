/*
 * Tensors and boxes: shapes, element counts, strides, and the geometry of
 * N-dimensional rectangles. Pure; everything is checked without overflow.
 */
#ifndef PLAN_TENSOR_H
#define PLAN_TENSOR_H

#include "base/error.h"
#include "strew/types.h"
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct tensor {
	const char *name; /* owned by whatever holds the tensor (a layout's or manifest's arena) */
	enum strew_dtype dtype;
	int ndim;
	uint64_t shape[STREW_MAX_DIMS];
};

/* [start, start + extent) in each of the first ndim dimensions. */
struct box {
	uint64_t start[STREW_MAX_DIMS];
	uint64_t extent[STREW_MAX_DIMS];
};

bool dtype_valid(unsigned dtype);
/* STREW_DTYPE_INVALID if unknown. Accepts strew's names ("bf16") and safetensors' ("BF16",
 * "F8_E4M3"). */
enum strew_dtype dtype_parse(const char *name);

/* Product of the extents, or -ERANGE on overflow. ndim 0 gives 1. */
int dims_count(int ndim, const uint64_t *dims, uint64_t *ret_count);

/* Row-major dense strides in elements. */
void dims_dense(int ndim, const uint64_t *dims, uint64_t *ret_stride);

/*
 * Elements from the first to one past the last that the strided dims touch
 * (0 if any extent is 0). -ERANGE on overflow.
 */
int dims_span(int ndim, const uint64_t *dims, const uint64_t *stride, uint64_t *ret_span);

/* True if no two indices can share an element: sorted by stride, each stride passes the span inside
 * it. */
bool dims_injective(int ndim, const uint64_t *dims, const uint64_t *stride);

/* Name, dtype, ndim, shape within the limits and the size in bytes within 2^62. */
int tensor_check(const struct tensor *tensor, struct error *err);
/* The same for what is no tensor but has the same fields; `what` ("parameter") opens the sentence.
 */
int tensor_check_as(const char *what, const struct tensor *tensor, struct error *err);
uint64_t tensor_bytes(const struct tensor *tensor); /* of a checked tensor */

/* The box lies inside shape; every extent may be 0. */
bool box_inside(int ndim, const uint64_t *shape, const struct box *box);
bool box_empty(int ndim, const struct box *box);
uint64_t box_count(int ndim, const struct box *box); /* elements of a checked box */
/* False, and an untouched *ret, if they do not meet. */
bool box_intersect(int ndim, const struct box *a, const struct box *b, struct box *ret);
/* a minus b as at most 2 * ndim disjoint boxes; returns how many were written. */
int box_subtract(
	int ndim, const struct box *a, const struct box *b, struct box ret[2 * STREW_MAX_DIMS]);

/* "[3, 4096]" into buf, which is returned; for messages. */
const char *dims_format(char *buf, size_t buf_bytes, int ndim, const uint64_t *dims);

#endif
