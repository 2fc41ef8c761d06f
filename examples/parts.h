/*
 * Publishing in parts, for a trainer that has not the memory to hold a whole model beside what it
 * trains: stretches of its tensors, in their order, are made one after another in the same memory,
 * each is put, and all of them are one version. trainer.c uses it with --parts.
 */
#ifndef EXAMPLES_PARTS_H
#define EXAMPLES_PARTS_H

#include "examples/memory.h"
#include "examples/model.h"
#include <stddef.h>
#include <strew/strew.h>

#define PARTS_MAX 64 /* a model has at most so many subsets, and a part is one */

struct parts {
	size_t n;		     /* 0: everything is published at once */
	size_t first[PARTS_MAX + 1]; /* part k: tensors first[k] to first[k + 1] - 1 */
	uint32_t subset[PARTS_MAX];  /* its number from strew_trainer_subset() */
};

/* At most n parts of about as many bytes each. All ranks must cut alike, so it is bytes of whole
 * tensors that count, and not those that a rank holds of them. */
void parts_cut(const struct model *model, size_t n, struct parts *ret_parts);

/* Where each tensor of that many bytes is made (0: nowhere): in memory for the largest part. */
void parts_place(const struct parts *parts, struct memory *memory, const uint64_t *bytes,
	unsigned char **ret_data);

/*
 * Publishes a version up to its close; the report is still to be waited for. make(data, k) makes
 * the tensors of part k where they were declared; a sentence of its makes all ranks give up.
 */
int parts_publish(const struct parts *parts, struct strew_trainer *strew, uint64_t version,
	unsigned flags, int timeout_ms, const char *(*make)(void *data, size_t part), void *data);

#endif
