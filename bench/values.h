/*
 * What the bytes of a tensor are: a function of seed, tensor and place, so that a worker
 * can say what should be in its memory without anybody sending it. Memory of a bench
 * process, on a GPU or the host's, is filled and compared by several threads.
 */
#ifndef BENCH_VALUES_H
#define BENCH_VALUES_H

#include "bench/memory.h"
#include "bench/shapes.h"

/* Bytes [at, at + len) of a tensor. */
void values_make(uint64_t seed, uint32_t tensor, uint64_t at, void *dst, size_t len_bytes);

/* Writes tensor i of the shapes to data[i], all of them. */
void values_fill(struct memory *memory, const struct shapes *shapes, unsigned char *const *data,
	uint64_t seed);

/* Bytes of the parameters data[i] that are not what their pieces say; *ret_bytes compared. */
uint64_t values_compare(struct memory *memory, const struct shapes *shapes,
	unsigned char *const *data, uint64_t seed, uint64_t *ret_bytes);

#endif
