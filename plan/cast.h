/*
 * Which casts there are, and what they make of lengths. What they make of
 * values is the executor's business (gpu/cast.h).
 */
#ifndef PLAN_CAST_H
#define PLAN_CAST_H

#include "plan/plan.h"

/* Between f32, f16 and bf16, each to each. */
bool cast_known(enum strew_dtype from, enum strew_dtype to);

/* Makes it a cast, or a copy of bytes where the two are equal. run_bytes is left alone. */
void copy_set_cast(struct copy *copy, enum strew_dtype from, enum strew_dtype to);

/* Bytes of the source that a run of run_bytes of the destination is made of. */
uint64_t copy_source_run(const struct copy *copy);

#endif
