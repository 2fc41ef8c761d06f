/*
 * The kernels' own source, compiled for the CPU: a block's threads run one after
 * another, which they may, because none waits for another.
 */
#include <cstdint>

struct dim3_ {
	uint32_t x;
};
static dim3_ threadIdx, blockIdx, gridDim;
struct alignas(8) uint2 {
	uint32_t x, y;
};
struct alignas(16) ulonglong2 {
	uint64_t x, y;
};
struct alignas(16) uint4 {
	uint32_t x, y, z, w;
};

#define __device__
#define __global__
#define __launch_bounds__(threads, blocks)

static inline uint32_t __umulhi(uint32_t a, uint32_t b)
{
	return (uint32_t)((uint64_t)a * b >> 32);
}

/* What the hardware would fault on, and whoever runs this counts. */
static unsigned misaligned;

template <typename vector> static inline vector __ldcs(const vector *at)
{
	misaligned += (uintptr_t)at % sizeof(vector) != 0;
	return *at;
}

template <typename vector> static inline void __stcs(vector *at, vector value)
{
	misaligned += (uintptr_t)at % sizeof(vector) != 0;
	*at = value;
}

#include "gpu/scatter.cu"

/* A launch of few blocks, which take all tiles in turn; returns how many accesses were not aligned. */
extern "C" unsigned few_on_cpu(const struct scatter_descriptor *descriptors,
	const struct scatter_tile *tiles, uint32_t ntiles, uint64_t slot, uint32_t nblocks)
{
	misaligned = 0;
	gridDim.x = nblocks;
	for (blockIdx.x = 0; blockIdx.x < nblocks; blockIdx.x++) {
		for (threadIdx.x = 0; threadIdx.x < SCATTER_THREADS; threadIdx.x++) {
			strew_scatter_few(descriptors, tiles, slot, ntiles);
		}
	}
	return misaligned;
}

/* One launch; returns how many accesses were not aligned. */
extern "C" unsigned kernel_on_cpu(bool casts, const struct scatter_descriptor *descriptors,
	const struct scatter_tile *tiles, uint32_t ntiles, uint64_t slot)
{
	misaligned = 0;
	for (blockIdx.x = 0; blockIdx.x < ntiles; blockIdx.x++) {
		for (threadIdx.x = 0; threadIdx.x < SCATTER_THREADS; threadIdx.x++) {
			(casts ? strew_scatter_cast : strew_scatter)(descriptors, tiles, slot);
		}
	}
	return misaligned;
}

/* One launch of strew_hash, but for its sum over a block's threads; returns the same. */
extern "C" unsigned hash_on_cpu(
	const struct hash_tile *tiles, uint32_t ntiles, uint64_t slot, uint64_t *sums)
{
	misaligned = 0;
	for (uint32_t i = 0; i < ntiles; i++) {
		const struct hash_tile *tile = &tiles[i];
		uint64_t address = tile->address + (tile->in_slot ? slot : 0);

		for (threadIdx.x = 0; threadIdx.x < HASH_THREADS; threadIdx.x++) {
			sums[tile->sum] += hash_share(
				(const unsigned char *)address, tile->position, tile->len_bytes);
		}
	}
	return misaligned;
}
