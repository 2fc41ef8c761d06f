/*
 * The hash of bytes that went over a wire: the sum, modulo 2^64, of hash_word() over the 8-byte
 * words of each span, little-endian, the last one filled up with zeros. A sum can be made in
 * any order and by any number of threads; a word counts differently at each position, and as
 * hash_word() is a bijection of the word, a sum in which one word differs differs. It finds
 * accidents: who wants to deceive it can. Included by C and by CUDA C.
 */
#ifndef GPU_HASH_H
#define GPU_HASH_H

#include <stdint.h>

#ifdef __CUDACC__
#define HASH_INLINE __host__ __device__ static inline
#else
#define HASH_INLINE static inline
#endif

#define HASH_THREADS 256
#define HASH_TILE_BYTES 131072u /* a block's share; a multiple of 16 */

/* A stretch of one span for one block. */
struct hash_tile {
	uint64_t address;  /* or an offset in the slot, whose address comes with the launch */
	uint64_t position; /* of its first word, in words */
	uint32_t len_bytes;
	uint32_t in_slot;
	uint32_t sum; /* number of the sum that it adds to */
	uint32_t unused;
};

/* The finalizer of SplitMix64 (Steele, Lea and Flood 2014) over the word, told apart by position.
 */
HASH_INLINE uint64_t hash_word(uint64_t word, uint64_t position)
{
	uint64_t x = word ^ ((position + 1) * 0x9e3779b97f4a7c15u);

	x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
	x = (x ^ x >> 27) * 0x94d049bb133111ebu;
	return x ^ x >> 31;
}

#endif
