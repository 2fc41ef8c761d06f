#include "plan/view.h"
#include "base/util.h"

static bool any_zero(int ndim, const uint64_t *dims)
{
	for (int i = 0; i < ndim; i++) {
		if (!dims[i]) {
			return true;
		}
	}
	return false;
}

bool view_map_make(int ndim, const uint64_t *shape, int view_ndim, const uint64_t *view,
	struct view_map *ret_map)
{
	struct view_map map = {0};
	int v = 0;

	if (any_zero(ndim, shape) || any_zero(view_ndim, view)) {
		*ret_map = map;
		return any_zero(ndim, shape) && any_zero(view_ndim, view);
	}
	for (int t = 0; t < ndim; t++) {
		uint64_t rest = shape[t];

		while (rest > 1) {
			while (v < view_ndim && view[v] == 1) {
				v++;
			}
			if (v == view_ndim || rest % view[v]) {
				return false;
			}
			rest /= view[v];
			map.dim[map.n] = v++;
			map.owner[map.n] = t;
			map.weight[map.n++] = rest;
		}
	}
	for (; v < view_ndim; v++) {
		if (view[v] != 1) {
			return false;
		}
	}
	*ret_map = map;
	return true;
}

struct cut {
	const struct view_map *map;
	const struct box *box, *part;
	struct box now; /* the rectangle as chosen so far */
	struct box *rects;
	int n;
};

static void cut_from(struct cut *cut, int k, uint64_t lo, uint64_t hi);

static void cut_owner(struct cut *cut, int k)
{
	int owner;

	if (k == cut->map->n) {
		cut->rects[cut->n++] = cut->now;
		return;
	}
	owner = cut->map->owner[k];
	cut_from(cut, k, cut->part->start[owner],
		cut->part->start[owner] + cut->part->extent[owner]);
}

/* Digits [first, last) here; of the factors inside, what makes up [lo, hi). */
static void cut_digits(
	struct cut *cut, int k, uint64_t first, uint64_t last, uint64_t lo, uint64_t hi)
{
	const struct view_map *map = cut->map;
	int dim = map->dim[k];
	uint64_t start = MAX(first, cut->box->start[dim]);
	uint64_t end = MIN(last, cut->box->start[dim] + cut->box->extent[dim]);

	if (start >= end) {
		return;
	}
	cut->now.start[dim] = start;
	cut->now.extent[dim] = end - start;
	if (map->weight[k] == 1) {
		cut_owner(cut, k + 1);
	} else {
		cut_from(cut, k + 1, lo, hi);
	}
}

/* [lo, hi) counts steps of the owner, within one step of the factor outside of k. */
static void cut_from(struct cut *cut, int k, uint64_t lo, uint64_t hi)
{
	uint64_t weight = cut->map->weight[k];
	uint64_t first = lo / weight, last = hi / weight;
	uint64_t head = lo % weight, tail = hi % weight;

	if (first == last) {
		cut_digits(cut, k, first, first + 1, head, tail);
		return;
	}
	if (head) {
		cut_digits(cut, k, first, first + 1, head, weight);
		first++;
	}
	if (first < last) {
		cut_digits(cut, k, first, last, 0, weight);
	}
	if (tail) {
		cut_digits(cut, k, last, last + 1, 0, tail);
	}
}

int view_cut(const struct view_map *map, int view_ndim, const struct box *box,
	const struct box *part, struct box ret_rects[VIEW_RECTS_MAX])
{
	struct cut cut = {.map = map, .box = box, .part = part, .rects = ret_rects};

	for (int i = 0; i < view_ndim; i++) {
		cut.now.extent[i] = 1;
	}
	cut_owner(&cut, 0);
	return cut.n;
}
