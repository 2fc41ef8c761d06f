/*
 * Building lists of copies: each goes in as it falls out of the geometry and is
 * brought into its normal form; a range is then sorted by destination, and
 * copies that continue each other become one.
 */
#ifndef PLAN_COPIES_H
#define PLAN_COPIES_H

#include "plan/plan.h"

/* Makes an empty list ready for `nranges` ranges. -ENOMEM; finish it in any case. */
int copies_start(struct copies *copies, size_t nranges, struct error *err);

/*
 * Adds to the open range (the first is open at the start). In `copy` extents
 * may be 1 and dimensions in any order, but no extent is 0 and the destination
 * is injective. -ENOMEM, -E2BIG.
 */
int copies_add(struct copies *copies, const struct copy *copy, struct error *err);

/* Ends the open range and opens the next. */
void copies_end_range(struct copies *copies);

/* Drops extents of 1, sorts by destination stride, joins dimensions, widens the run. */
void copy_normalise(struct copy *copy);

/* True, and both as one in *a, if that is an equal or better copy. a lies before b. */
bool copy_merge(struct copy *a, const struct copy *b);

#endif
