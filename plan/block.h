/*
 * A block: the bytes that a strided box covers, as runs, in a normal form
 * without needless dimensions; and the exact test for bytes that several
 * blocks share. A layout uses it to find pieces that write the same element.
 */
#ifndef PLAN_BLOCK_H
#define PLAN_BLOCK_H

#include "plan/tensor.h"

/* For every index i of extent[0..n): run bytes from lo + sum(i_k * stride[k]). */
struct block {
	uint32_t space;	   /* blocks of different spaces share nothing */
	uint32_t id;	   /* the caller's */
	uint64_t lo, span; /* bytes [lo, lo + span) contain it */
	uint64_t run;
	int n;				 /* dimensions, outermost (largest stride) first */
	uint64_t extent[STREW_MAX_DIMS]; /* >= 2 */
	uint64_t stride[STREW_MAX_DIMS]; /* bytes, at least the span of what is inside */
};

/*
 * The block of `extent` elements of element_bytes at `stride` elements, from
 * byte lo on. The strides must be injective (dims_injective()), no extent 0,
 * and lo + span at most 2^62.
 */
void block_make(int ndim, const uint64_t *extent, const uint64_t *stride, uint64_t element_bytes,
	uint64_t lo, struct block *ret_block);

/*
 * Looks for two blocks that share a byte. Sorts the blocks. Returns 1 and the
 * ids of two (in their order in memory) if there are any, 0 if there are none; -ENOMEM; -E2BIG and
 * the ids of the two at which it gave up, if they are interleaved in ways too irregular to
 * be sure within *steps; what it took is subtracted from them. A step takes some 10 ns.
 */
int blocks_find_shared(
	struct block *blocks, size_t n, uint64_t *steps, uint32_t *ret_a, uint32_t *ret_b);

#endif
