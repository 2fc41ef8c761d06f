/*
 * The tensors of a layout or of a manifest: an array, an arena for the names
 * and an index by name. Both structs keep these as fields of their own; this
 * gathers pointers to them, so that one function serves both.
 */
#ifndef PLAN_TENSOR_TABLE_H
#define PLAN_TENSOR_TABLE_H

#include "plan/arena.h"
#include "plan/name_index.h"
#include "plan/tensor.h"

struct tensor_table {
	struct tensor **v;
	size_t *n, *cap;
	struct arena **arena;	   /* made when first needed */
	struct name_index **index; /* the same */
};

/*
 * Checks and adds the tensor, or finds it: the same name must come with the
 * same dtype and shape (-EINVAL). The name is copied.
 */
int tensor_table_add(const struct tensor_table *table, const struct tensor *tensor,
	uint32_t *ret_index, struct error *err);

/* Makes arena and index if they are not there. 0 or -ENOMEM. */
int names_prepare(struct arena **arena, struct name_index **index, struct error *err);

/* array_grow() on an array of any type, with the sentence. */
int plan_grow(void *array, size_t *cap, size_t need, size_t size, struct error *err);

/* "bf16 [4096, 4096]" into buf, which is returned. */
const char *tensor_format(char *buf, size_t buf_bytes, const struct tensor *tensor);
bool tensor_same(const struct tensor *a, const struct tensor *b); /* dtype and shape */

#endif
