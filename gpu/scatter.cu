/*
 * The kernel that executes a range of copies, a block to a tile. Measured on an H100: blocks
 * that take several tiles in turn were slower by 2 to 8 %; more than two loads in flight a
 * thread gained nothing on long rows, and cost a quarter on thousands of small pieces, because
 * fewer threads fit; streaming hints made no clear difference. Rows that are short need no
 * more than one division by multiplication a vector and dimension.
 */
#include "scatter.h"

#define IN_FLIGHT 2 /* vectors that a thread loads before it stores the first */
#define RESIDENT 4  /* blocks on a multiprocessor, at least: bounds the registers */

__device__ static inline uint32_t divide(uint32_t n, const struct scatter_divisor &d)
{
	return d.magic ? __umulhi(n, d.magic) >> d.shift : n;
}

/* A part of one row, or one whole row: contiguous on both sides. */
template <typename vector>
__device__ static inline void copy_run(
	const char *__restrict__ src, char *__restrict__ dst, uint32_t count)
{
	const vector *from = (const vector *)src;
	vector *to = (vector *)dst;

#pragma unroll 1
	for (uint32_t i = threadIdx.x; i < count; i += SCATTER_THREADS * IN_FLIGHT) {
		vector held[IN_FLIGHT];

#pragma unroll
		for (int u = 0; u < IN_FLIGHT; u++) {
			if (i + u * SCATTER_THREADS < count) {
				held[u] = __ldcs(from + i + u * SCATTER_THREADS);
			}
		}
#pragma unroll
		for (int u = 0; u < IN_FLIGHT; u++) {
			if (i + u * SCATTER_THREADS < count) {
				__stcs(to + i + u * SCATTER_THREADS, held[u]);
			}
		}
	}
}

/* Whole rows from `first` on. The vectors of all rows are one sequence. */
template <typename vector>
__device__ static inline void copy_rows(const char *__restrict__ src, char *__restrict__ dst,
	const struct scatter_descriptor *__restrict__ d, uint32_t first, uint32_t count)
{
	const struct scatter_divisor vectors = d->vectors;
	const uint64_t src_outer = d->dim[0].src_stride;
	const uint64_t dst_outer = d->dim[0].dst_stride;
	const int ndim = d->ndim;

#pragma unroll 1
	for (uint32_t i = threadIdx.x; i < count; i += SCATTER_THREADS * IN_FLIGHT) {
		uint32_t row[IN_FLIGHT];
		uint64_t from[IN_FLIGHT], to[IN_FLIGHT];
		vector held[IN_FLIGHT];

#pragma unroll
		for (int u = 0; u < IN_FLIGHT; u++) {
			uint32_t v = i + u * SCATTER_THREADS;
			uint32_t local = divide(v, vectors);

			row[u] = first + local;
			from[u] = to[u] = (uint64_t)(v - local * vectors.value) * sizeof(vector);
		}
#pragma unroll 1
		for (int k = ndim - 1; k > 0; k--) {
			const struct scatter_dim dim = d->dim[k];

#pragma unroll
			for (int u = 0; u < IN_FLIGHT; u++) {
				uint32_t outer = divide(row[u], dim.extent);
				uint32_t index = row[u] - outer * dim.extent.value;

				from[u] += index * dim.src_stride;
				to[u] += index * dim.dst_stride;
				row[u] = outer;
			}
		}
#pragma unroll
		for (int u = 0; u < IN_FLIGHT; u++) {
			from[u] += row[u] * src_outer;
			to[u] += row[u] * dst_outer;
			if (i + u * SCATTER_THREADS < count) {
				held[u] = __ldcs((const vector *)(src + from[u]));
			}
		}
#pragma unroll
		for (int u = 0; u < IN_FLIGHT; u++) {
			if (i + u * SCATTER_THREADS < count) {
				__stcs((vector *)(dst + to[u]), held[u]);
			}
		}
	}
}

template <typename vector>
__device__ static inline void copy_tile(const char *src, char *dst,
	const struct scatter_descriptor *__restrict__ d, const struct scatter_tile &tile)
{
	uint32_t row = tile.row;

	if (tile.vector + tile.count > d->vectors.value) {
		copy_rows<vector>(src, dst, d, row, tile.count);
		return;
	}
#pragma unroll 1
	for (int k = d->ndim - 1; k >= 0; k--) {
		uint32_t outer = k ? divide(row, d->dim[k].extent) : 0;
		uint64_t index = row - outer * d->dim[k].extent.value;

		src += index * d->dim[k].src_stride;
		dst += index * d->dim[k].dst_stride;
		row = outer;
	}
	src += (uint64_t)tile.vector * sizeof(vector);
	dst += (uint64_t)tile.vector * sizeof(vector);
	copy_run<vector>(src, dst, tile.count);
}

__device__ static inline void run_tile(const struct scatter_descriptor *__restrict__ descriptors,
	const struct scatter_tile tile, uint64_t slot)
{
	const struct scatter_descriptor *d = &descriptors[tile.descriptor];
	const uint32_t in_slot = d->slot;
	const char *src = (const char *)(d->src + (in_slot & SCATTER_SRC_SLOT ? slot : 0));
	char *dst = (char *)(d->dst + (in_slot & SCATTER_DST_SLOT ? slot : 0));

	switch (d->width) {
	case 16:
		copy_tile<uint4>(src, dst, d, tile);
		break;
	case 8:
		copy_tile<uint2>(src, dst, d, tile);
		break;
	case 4:
		copy_tile<unsigned int>(src, dst, d, tile);
		break;
	case 2:
		copy_tile<unsigned short>(src, dst, d, tile);
		break;
	default:
		copy_tile<unsigned char>(src, dst, d, tile);
		break;
	}
}

/* A block to a tile: all of the GPU, for as long as it takes. */
extern "C" __global__ void __launch_bounds__(SCATTER_THREADS, RESIDENT)
	strew_scatter(const struct scatter_descriptor *__restrict__ descriptors,
		const struct scatter_tile *__restrict__ tiles, uint64_t slot)
{
	run_tile(descriptors, tiles[blockIdx.x], slot);
}

/* As many blocks as the launch has, which take tiles in turn: what a link carries needs few, and
 * the others' kernels find room beside them. */
extern "C" __global__ void __launch_bounds__(SCATTER_THREADS, RESIDENT)
	strew_scatter_few(const struct scatter_descriptor *__restrict__ descriptors,
		const struct scatter_tile *__restrict__ tiles, uint64_t slot, uint32_t ntiles)
{
	for (uint32_t i = blockIdx.x; i < ntiles; i += gridDim.x) {
		run_tile(descriptors, tiles[i], slot);
	}
}
