/*
 * The hash of spans as gpu/hash.h describes it, made a byte at a time, without its code. For unit
 * tests, the stand-in driver and gpu_check.
 */
#ifndef TESTS_HASH_REFERENCE_H
#define TESTS_HASH_REFERENCE_H

#include <stddef.h>
#include <stdint.h>

static inline uint64_t ref_hash_word(uint64_t word, uint64_t number)
{
	word ^= (number + 1) * 11400714819323198485u; /* 2^64 / golden ratio */
	word ^= word >> 30;
	word *= 13787848793156543929u;
	word ^= word >> 27;
	word *= 10723151780598845931u;
	return word ^ word >> 31;
}

/* position: of the first byte, a multiple of 8. */
static inline uint64_t ref_hash(const void *bytes, size_t len_bytes, uint64_t position)
{
	const unsigned char *at = bytes;
	uint64_t sum = 0;

	for (size_t i = 0; i < len_bytes; i += 8) {
		uint64_t word = 0;

		for (size_t k = 0; k < 8 && i + k < len_bytes; k++) {
			word += (uint64_t)at[i + k] << (8 * k);
		}
		sum += ref_hash_word(word, (position + i) / 8);
	}
	return sum;
}

#endif
