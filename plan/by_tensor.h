/* Which pieces or boxes are of tensor t: items[first[t]] up to items[first[t + 1]], in order. */
#ifndef PLAN_BY_TENSOR_H
#define PLAN_BY_TENSOR_H

#include "plan/layout.h"
#include "plan/manifest.h"

struct by_tensor {
	size_t *first;	 /* ntensors + 1 */
	uint32_t *items; /* indices of pieces or boxes */
};

/* 0 or -ENOMEM; by_tensor_finish() is right after either. */
int by_tensor_of_boxes(const struct manifest *manifest, struct by_tensor *ret_index);
int by_tensor_of_pieces(const struct layout *layout, struct by_tensor *ret_index);
void by_tensor_finish(struct by_tensor *index);

#endif
