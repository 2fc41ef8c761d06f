/*
 * From a name to a number: an open-addressed hash table. The names are
 * borrowed; whoever adds one keeps it alive and unchanged (an arena does).
 */
#ifndef PLAN_NAME_INDEX_H
#define PLAN_NAME_INDEX_H

#include <stdint.h>

struct name_index;

/* NULL without memory. The caller destroys it. */
struct name_index *name_index_create(void);
void name_index_destroy(struct name_index *index);

/* The number under `name`, or -1. A NULL index is empty. */
int64_t name_index_find(const struct name_index *index, const char *name);

/* Adds a name that is not there yet. Returns 0, or -ENOMEM with the index unchanged. */
int name_index_add(struct name_index *index, const char *name, uint32_t number);

#endif
