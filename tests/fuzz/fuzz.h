/*
 * What every fuzz target shares: the input read from the front, bit by bit, and claims
 * that end the process when they do not hold. A target is one file with LLVMFuzzerTestOneInput();
 * with clang it is linked with libFuzzer, without with replay.c, which feeds it files.
 */
#ifndef FUZZ_FUZZ_H
#define FUZZ_FUZZ_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* What is left of the input. Past its end everything reads as 0. */
struct input {
	const uint8_t *at;
	size_t left;
};

uint8_t input_byte(struct input *input);
uint32_t input_below(struct input *input, uint32_t limit); /* [0, limit), of one byte */
uint16_t input_u16(struct input *input);		   /* little-endian, as the others */
uint64_t input_u64(struct input *input);
/* Up to `max` bytes, borrowed; a length byte (two where max needs them) says how many. */
const uint8_t *input_bytes(struct input *input, size_t max, size_t *ret_n);

/* Bounds, powers of two and limits, where code counts wrongly. */
uint64_t input_edge(uint8_t which);

void fuzz_claim(bool holds, const char *what, const char *file, int line);
#define CLAIM(condition) fuzz_claim(condition, #condition, __FILE__, __LINE__)

/* What is open and mapped by strew's own code; both must be the same behind an input as before. */
unsigned fuzz_open_fds(void);
long fuzz_mappings(void);

#endif
