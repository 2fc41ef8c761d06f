/*
 * Views: a tensor's shape with each dimension split into consecutive factors,
 * and what an interval of the tensor's dimensions is in the factors: a few
 * rectangles, found digit by digit in the mixed radix that the factors are.
 */
#ifndef PLAN_VIEW_H
#define PLAN_VIEW_H

#include "plan/tensor.h"

/* The dimensions of a view that are longer than 1, outermost first. */
struct view_map {
	int n;
	int dim[STREW_MAX_DIMS];	 /* which dimension of the view */
	int owner[STREW_MAX_DIMS];	 /* the tensor's dimension that it is a factor of */
	uint64_t weight[STREW_MAX_DIMS]; /* one step in it is this many steps of its owner */
};

/*
 * False if the view does not refine the shape. Dimensions of size 1 may stand
 * anywhere in either. Of an empty tensor any empty view is a refinement (the
 * map is then empty, and is not to be used).
 */
bool view_map_make(int ndim, const uint64_t *shape, int view_ndim, const uint64_t *view,
	struct view_map *ret_map);

/* An interval of a dimension split in m gives at most 2m - 1 rectangles: 27 by 3 × 2 factors. */
#define VIEW_RECTS_MAX 27

/*
 * What `part` (not empty, in the tensor's dimensions) and `box` (not empty, in
 * the view's) have in common, as disjoint rectangles of the view. Returns how many.
 */
int view_cut(const struct view_map *map, int view_ndim, const struct box *box,
	const struct box *part, struct box ret_rects[VIEW_RECTS_MAX]);

#endif
