/*
 * The kernel that hashes a range of spans (hash.h), a block to a tile. Part of scatter.cu's
 * module. It reads each byte once and is limited by memory; words of spans that are not aligned
 * are put together from bytes, which is slow, and rare.
 */
#include "hash.h"

__device__ static inline uint64_t hash_load_bytes(const unsigned char *at, uint32_t n)
{
	uint64_t word = 0;

	for (uint32_t i = 0; i < n; i++) {
		word |= (uint64_t)at[i] << 8 * i;
	}
	return word;
}

/* This thread's share of a tile. */
__device__ static inline uint64_t hash_share(
	const unsigned char *at, uint64_t position, uint32_t len_bytes)
{
	uint32_t pairs = (uintptr_t)at % 16 == 0 ? len_bytes / 16 : 0;
	uint32_t words = (len_bytes + 7) / 8;
	uint64_t sum = 0;

#pragma unroll 4
	for (uint32_t i = threadIdx.x; i < pairs; i += HASH_THREADS) {
		ulonglong2 pair = __ldcs((const ulonglong2 *)at + i);

		sum += hash_word(pair.x, position + 2 * i);
		sum += hash_word(pair.y, position + 2 * i + 1);
	}
	for (uint32_t i = 2 * pairs + threadIdx.x; i < words; i += HASH_THREADS) {
		uint32_t left = len_bytes - 8 * i;

		sum += hash_word(hash_load_bytes(at + 8 * i, left < 8 ? left : 8), position + i);
	}
	return sum;
}

#ifdef __CUDACC__ /* the tests on the CPU have no blocks whose threads wait for each other */
extern "C" __global__ void __launch_bounds__(HASH_THREADS)
	strew_hash(const struct hash_tile *__restrict__ tiles, uint64_t slot, uint64_t *sums)
{
	__shared__ uint64_t parts[HASH_THREADS / 32];
	const struct hash_tile tile = tiles[blockIdx.x];
	const unsigned char *at = (const unsigned char *)(tile.address + (tile.in_slot ? slot : 0));
	uint64_t sum = hash_share(at, tile.position, tile.len_bytes);

	for (int lane = 16; lane > 0; lane /= 2) {
		sum += __shfl_down_sync(~0u, sum, lane);
	}
	if (threadIdx.x % 32 == 0) {
		parts[threadIdx.x / 32] = sum;
	}
	__syncthreads();
	if (threadIdx.x == 0) {
		for (int i = 1; i < HASH_THREADS / 32; i++) {
			sum += parts[i];
		}
		atomicAdd((unsigned long long *)&sums[tile.sum], (unsigned long long)sum);
	}
}
#endif
