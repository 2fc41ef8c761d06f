/*
 * One piece of a worker against the tensor that it is taken from: does every element lie where
 * the layout says, as it was or cast? Pure. Written without plan/'s copies, which put it there.
 */
#ifndef CLI_COMPARE_H
#define CLI_COMPARE_H

#include "plan/layout.h"

struct comparison {
	uint64_t elements, differ;
	uint64_t first; /* number in the tensor of the first element that differs */
};

/*
 * `source`: the whole tensor, dense; its dtype is the tensor's. `memory`: from the parameter's
 * element 0 to the end of its span. Adds to *comparison. Piece, tensor and parameter are of a
 * sealed layout.
 */
void compare_piece(const struct tensor *tensor, const unsigned char *source,
	const struct piece *piece, const struct parameter *parameter, const unsigned char *memory,
	struct comparison *comparison);

#endif
