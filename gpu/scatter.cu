/*
 * The kernels that execute a range of copies, a block to a tile: one for bytes, one for casts,
 * so that what casts need costs bytes nothing. Measured on an H100: blocks
 * that take several tiles in turn were slower by 2 to 8 %; more than two loads in flight a
 * thread gained nothing on long rows, and cost a quarter on thousands of small pieces, because
 * fewer threads fit; streaming hints made no clear difference. Rows that are short need no
 * more than one division by multiplication a vector and dimension. Where there are bulk copies
 * they take all but short rows and casts: of Llama-3.1-8B on an H200 7.77 ms instead of 8.30, where
 * a plain copy takes 7.64.
 */
#include "cast.h"
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

#include "bulk.cuh"

__device__ static inline void run_tile(const struct scatter_descriptor *__restrict__ descriptors,
	const struct scatter_tile tile, uint64_t slot)
{
	const struct scatter_descriptor *d = &descriptors[tile.descriptor];
	const uint32_t in_slot = d->slot;
	const char *src = (const char *)(d->src + (in_slot & SCATTER_SRC_SLOT ? slot : 0));
	char *dst = (char *)(d->dst + (in_slot & SCATTER_DST_SLOT ? slot : 0));

	if (bulk_takes(d, tile)) {
		bulk_tile(src, dst, d, tile);
		return;
	}
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
	bulk_begin();
	bulk_ahead(descriptors, tiles, blockIdx.x, gridDim.x);
	run_tile(descriptors, tiles[blockIdx.x], slot);
	bulk_end();
}

/* As many blocks as the launch has, which take tiles in turn: what a link carries needs few, and
 * the others' kernels find room beside them. */
extern "C" __global__ void __launch_bounds__(SCATTER_THREADS, RESIDENT)
	strew_scatter_few(const struct scatter_descriptor *__restrict__ descriptors,
		const struct scatter_tile *__restrict__ tiles, uint64_t slot, uint32_t ntiles)
{
	bulk_begin();
	for (uint32_t i = blockIdx.x; i < ntiles; i += gridDim.x) {
		bulk_ahead(descriptors, tiles, i, ntiles);
		run_tile(descriptors, tiles[i], slot);
	}
	bulk_end();
}

/* The type of an element, by its dtype, and of 2 to 16 bytes that the hardware moves at once. */
template <uint32_t dtype> struct element {
	typedef uint16_t type;
};
template <> struct element<CAST_F32> {
	typedef uint32_t type;
};
template <int bytes> struct word;
template <> struct word<16> {
	typedef uint4 type;
};
template <> struct word<8> {
	typedef uint2 type;
};
template <> struct word<4> {
	typedef unsigned int type;
};
template <> struct word<2> {
	typedef unsigned short type;
};

/* A vector of n elements. */
template <uint32_t dtype, int n> union lanes {
	typedef typename element<dtype>::type lane_type;
	typedef typename word<n * sizeof(lane_type)>::type word_type;
	word_type word;
	lane_type lane[n];
};

template <uint32_t dtype, int n>
__device__ static inline lanes<dtype, n> load(const char *at, bool aligned)
{
	lanes<dtype, n> held;

	if constexpr (n == 1) {
		if (!aligned) {
			held.word = 0;
#pragma unroll
			for (unsigned b = 0; b < sizeof(held); b++) {
				held.word |= (uint32_t)(unsigned char)at[b] << 8 * b;
			}
			return held;
		}
	}
	held.word = __ldcs((const decltype(held.word) *)at);
	return held;
}

template <uint32_t dtype, int n>
__device__ static inline void store(char *at, lanes<dtype, n> held, bool aligned)
{
	if constexpr (n == 1) {
		if (!aligned) {
#pragma unroll
			for (unsigned b = 0; b < sizeof(held); b++) {
				at[b] = (char)(held.word >> 8 * b);
			}
			return;
		}
	}
	__stcs((decltype(held.word) *)at, held.word);
}

template <uint32_t from, uint32_t to, int n>
__device__ static inline lanes<to, n> cast(lanes<from, n> held)
{
	lanes<to, n> made;

#pragma unroll
	for (int e = 0; e < n; e++) {
		made.lane[e] = cast_narrow(cast_widen(held.lane[e], from), to);
	}
	return made;
}

/* A tile of vectors of n elements. Its rows, or the part of one, are one sequence of vectors. */
template <uint32_t from, uint32_t to, int n>
__device__ static inline void cast_tile(const char *__restrict__ src, char *__restrict__ dst,
	const struct scatter_descriptor *__restrict__ d, const struct scatter_tile &tile)
{
	const struct scatter_divisor vectors = d->vectors;
	const bool aligned = d->width != 0;
	const int ndim = d->ndim;

#pragma unroll 1
	for (uint32_t i = threadIdx.x; i < tile.count; i += SCATTER_THREADS * IN_FLIGHT) {
		uint32_t row[IN_FLIGHT];
		uint64_t src_at[IN_FLIGHT], dst_at[IN_FLIGHT];
		lanes<from, n> held[IN_FLIGHT];

#pragma unroll
		for (int u = 0; u < IN_FLIGHT; u++) {
			uint32_t v = tile.vector + i + u * SCATTER_THREADS;
			uint32_t local = divide(v, vectors);

			row[u] = tile.row + local;
			src_at[u] = (uint64_t)(v - local * vectors.value) * sizeof(lanes<from, n>);
			dst_at[u] = (uint64_t)(v - local * vectors.value) * sizeof(lanes<to, n>);
		}
#pragma unroll 1
		for (int k = ndim - 1; k >= 0; k--) {
			const struct scatter_dim dim = d->dim[k];

#pragma unroll
			for (int u = 0; u < IN_FLIGHT; u++) {
				uint32_t outer = k ? divide(row[u], dim.extent) : 0;
				uint32_t index = row[u] - outer * dim.extent.value;

				src_at[u] += index * dim.src_stride;
				dst_at[u] += index * dim.dst_stride;
				row[u] = outer;
			}
		}
#pragma unroll
		for (int u = 0; u < IN_FLIGHT; u++) {
			if (i + u * SCATTER_THREADS < tile.count) {
				held[u] = load<from, n>(src + src_at[u], aligned);
			}
		}
#pragma unroll
		for (int u = 0; u < IN_FLIGHT; u++) {
			if (i + u * SCATTER_THREADS < tile.count) {
				store<to, n>(dst + dst_at[u], cast<from, to, n>(held[u]), aligned);
			}
		}
	}
}

template <uint32_t from, uint32_t to>
__device__ static inline void cast_any(const char *src, char *dst,
	const struct scatter_descriptor *__restrict__ d, const struct scatter_tile &tile)
{
	constexpr bool narrow = from != CAST_F32 && to != CAST_F32;

	if (d->width > 1) {
		cast_tile<from, to, narrow ? SCATTER_CAST_NARROW : SCATTER_CAST_WIDE>(
			src, dst, d, tile);
	} else {
		cast_tile<from, to, 1>(src, dst, d, tile);
	}
}

extern "C" __global__ void __launch_bounds__(SCATTER_THREADS, RESIDENT)
	strew_scatter_cast(const struct scatter_descriptor *__restrict__ descriptors,
		const struct scatter_tile *__restrict__ tiles, uint64_t slot)
{
	const struct scatter_tile tile = tiles[blockIdx.x];
	const struct scatter_descriptor *d = &descriptors[tile.descriptor];
	const uint32_t in_slot = d->slot;
	const char *src = (const char *)(d->src + (in_slot & SCATTER_SRC_SLOT ? slot : 0));
	char *dst = (char *)(d->dst + (in_slot & SCATTER_DST_SLOT ? slot : 0));

	switch (d->cast) {
	case SCATTER_CAST(CAST_F32, CAST_BF16):
		cast_any<CAST_F32, CAST_BF16>(src, dst, d, tile);
		break;
	case SCATTER_CAST(CAST_F32, CAST_F16):
		cast_any<CAST_F32, CAST_F16>(src, dst, d, tile);
		break;
	case SCATTER_CAST(CAST_BF16, CAST_F32):
		cast_any<CAST_BF16, CAST_F32>(src, dst, d, tile);
		break;
	case SCATTER_CAST(CAST_F16, CAST_F32):
		cast_any<CAST_F16, CAST_F32>(src, dst, d, tile);
		break;
	case SCATTER_CAST(CAST_BF16, CAST_F16):
		cast_any<CAST_BF16, CAST_F16>(src, dst, d, tile);
		break;
	default:
		cast_any<CAST_F16, CAST_BF16>(src, dst, d, tile);
		break;
	}
}

#include "hash.cuh"
