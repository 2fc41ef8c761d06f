/*
 * The values of the examples' model and their check. A value is a pure
 * function of tensor name, byte offset, version and seed, so that a worker
 * knows what should be in its memory without asking anybody. Which row and
 * column belong where is computed here a second time, row by row from the
 * definition of each layout, and not from the boxes that strew was told about.
 */
#ifndef EXAMPLES_VALUES_H
#define EXAMPLES_VALUES_H

#include "examples/model.h"

#define POISON 0xa5 /* what workers' memory holds before the first version */

/* Bytes [offset, offset + len_bytes) of a tensor, into dst. */
void values_fill(const char *tensor, uint64_t version, uint64_t seed, uint64_t offset, void *dst,
	size_t len_bytes);

/*
 * Compares a copy of a rank's parameter, byte for byte, with what `version`
 * should have left there (version 0: nothing yet). Returns the number of bytes
 * that differ, and says on stderr where the first one is. `only`: as below.
 */
uint64_t values_check(const struct model *model, const struct model_parameter *parameter,
	uint32_t rank, uint64_t version, uint64_t seed, const char *only,
	const unsigned char *memory);

/*
 * Of which version a tensor's values are where version 1 has brought all tensors and later ones
 * only those whose names contain `only` (NULL: all).
 */
uint64_t values_version(const char *tensor, uint64_t version, const char *only);

#endif
