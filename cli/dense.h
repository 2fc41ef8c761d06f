/*
 * Boxes as dense bytes, row by row, so that what lies in different strides can be compared by one
 * number: a box taken out of memory, put into the whole tensor, or cut out of that as a worker has
 * it. Pure; written without plan/'s copies, which put the bytes where they are.
 */
#ifndef CLI_DENSE_H
#define CLI_DENSE_H

#include "plan/tensor.h"

/* A box of a tensor, or of a refinement of its shape. */
struct dense_box {
	int ndim;
	uint64_t shape[STREW_MAX_DIMS]; /* of what it is a box of */
	struct box box;
};

/* Elements of the shape and of the box. False: they pass 64 bits, or the box its shape. */
bool dense_count(const struct dense_box *box, uint64_t *ret_all, uint64_t *ret_in_box);

/* From memory, whose strides are in elements of `size` bytes, to `dense`. */
void dense_take(const struct dense_box *box, const uint64_t *stride, size_t size,
	const unsigned char *memory, unsigned char *dense);
/* From `dense` to its place in the whole. */
void dense_put(
	const struct dense_box *box, size_t size, const unsigned char *dense, unsigned char *whole);
/* The other way, cast where the dtypes differ: between floats (plan/cast.h) alone. */
void dense_cut(const struct dense_box *box, const unsigned char *whole, enum strew_dtype from,
	enum strew_dtype to, unsigned char *dense);

/* As what goes over a wire is hashed (gpu/hash.h), from position 0. */
uint64_t dense_hash(const unsigned char *dense, uint64_t len_bytes);

#endif
