/*
 * What the host and the kernels agree on: descriptors and tiles. A descriptor is a copy of
 * plan/plan.h with addresses filled in, cut into vectors of `width` bytes, or of `width`
 * elements if it is a cast. A tile is a stretch of about equal length of one descriptor: whole
 * rows, or a part of one row. Included by C and by CUDA C; sizes and offsets are alike in both.
 */
#ifndef GPU_SCATTER_H
#define GPU_SCATTER_H

#include <stdint.h>

#define SCATTER_DIMS 6 /* STREW_MAX_DIMS */
#define SCATTER_THREADS 256
#define SCATTER_TILE_VECTORS 2048 /* at most, in a tile */

#define SCATTER_SRC_SLOT                                                                           \
	1u /* src is an offset in the slot, whose address comes with the launch                    \
	    */
#define SCATTER_DST_SLOT 2u

/*
 * Elements in a vector of a cast: 16 bytes of the wider side, or 1. 0 stands for 1 in memory
 * that is not aligned to its elements.
 */
#define SCATTER_CAST_WIDE 4u   /* f32 on one side */
#define SCATTER_CAST_NARROW 8u /* 16 bits on both */
#define SCATTER_CAST(from, to) ((from) | (to) << 8)

/*
 * Division by an extent d >= 2 of numbers n < 2^31 by multiplication (Granlund and
 * Montgomery 1994): with l = ceil(log2 d), magic = ceil(2^(31 + l) / d) and
 * shift = l - 1, n / d is the upper half of n * magic, shifted. magic 0: d is 1.
 */
struct scatter_divisor {
	uint32_t value;
	uint32_t magic;
	uint32_t shift;
	uint32_t unused;
};

struct scatter_dim {
	struct scatter_divisor extent;
	uint64_t src_stride; /* bytes */
	uint64_t dst_stride;
};

struct scatter_descriptor {
	uint64_t src, dst; /* addresses, or offsets in the slot */
	uint32_t width;	   /* 1, 2, 4, 8 or 16 bytes a vector; a cast: 0, 1, 4 or 8 elements */
	uint32_t slot;	   /* SCATTER_SRC_SLOT, SCATTER_DST_SLOT */
	uint32_t ndim;	   /* >= 1; a single run has a dimension of 1 */
	uint32_t cast;	   /* SCATTER_CAST() of dtypes as in gpu/cast.h; 0: bytes */
	struct scatter_divisor vectors;	      /* of one row */
	struct scatter_dim dim[SCATTER_DIMS]; /* outermost first */
};

struct scatter_tile {
	uint32_t descriptor;
	uint32_t row;	 /* of all dimensions, flattened; < 2^31 */
	uint32_t vector; /* first one in the row; 0 if the tile has several rows */
	uint32_t count;	 /* vectors */
};

#endif
