/*
 * Tensor by tensor. Data-parallel replicas hold equal boxes, so equal boxes go
 * first: all but the lowest rank's are dropped by sorting. What is left are
 * shards, which seldom overlap: they are swept along the dimension in which the
 * fewest of them do, and only boxes that really meet are subtracted.
 *
 * Boxes that do not overlap may still take long to be told apart (half of a tensor by rows, half
 * by columns), and one with many holes is cut into ever more parts. The lead seals a manifest in
 * its event loop, so all of its tensors share one number of steps.
 */
#include "plan/cover.h"
#include "base/util.h"
#include "plan/by_tensor.h"
#include "plan/tensor_table.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* Steps; to look whether two boxes overlap is one. */
#define PAIR_STEPS 8u /* two do: kept and sorted */
#define CUT_STEPS 2u  /* a box is taken out of a part */

/* A box is `whole` unless overlaps took something from it. */
struct cover_box {
	size_t first;
	uint32_t count;
	bool whole;
};

struct candidate {
	const struct held_box *held;
	uint32_t index; /* in manifest.boxes */
};

struct pair {
	uint32_t loser, winner; /* places in the candidates' priority order */
};

struct sweep {
	const struct manifest *manifest;
	uint64_t steps; /* that are left */
	int ndim;
	struct candidate *v; /* of one tensor */
	size_t n, cap;
	uint64_t *marks; /* scratch of count_overlaps() */
	size_t cap_marks;
	struct pair *pairs;
	size_t npairs, cap_pairs;
	struct box *left, *next; /* scratch of subtract() */
	size_t cap_left, cap_next;
};

static int by_priority(const void *pa, const void *pb)
{
	const struct candidate *a = pa, *b = pb;

	if (a->held->rank != b->held->rank) {
		return a->held->rank < b->held->rank ? -1 : 1;
	}
	return a->index < b->index ? -1 : a->index > b->index;
}

/* Equal boxes next to each other, the one to be taken first. */
static int by_box(const void *pa, const void *pb)
{
	const struct box *a = &((const struct candidate *)pa)->held->box;
	const struct box *b = &((const struct candidate *)pb)->held->box;
	int r = memcmp(a, b, sizeof(*a));

	return r ? r : by_priority(pa, pb);
}

static int by_u64(const void *pa, const void *pb)
{
	const uint64_t *a = pa, *b = pb;

	return *a < *b ? -1 : *a > *b;
}

struct interval {
	uint64_t start, end;
	uint32_t priority; /* place among the candidates */
};

static int by_start(const void *pa, const void *pb)
{
	const struct interval *a = pa, *b = pb;

	if (a->start != b->start) {
		return a->start < b->start ? -1 : 1;
	}
	return a->priority < b->priority ? -1 : a->priority > b->priority;
}

static int spend(struct sweep *sweep, uint64_t steps, struct error *err)
{
	if (steps > sweep->steps) {
		return error_set(err, -E2BIG,
			"tensor %.80s: its %zu boxes lie or overlap so that a manifest's %u steps "
			"are not enough to tell who holds what",
			sweep->manifest->tensors[sweep->v[0].held->tensor].name, sweep->n,
			LIMIT_COVER_STEPS);
	}
	sweep->steps -= steps;
	return 0;
}

/* How many pairs of candidates overlap in dimension d alone. */
static uint64_t count_overlaps(struct sweep *sweep, int d)
{
	uint64_t *starts = sweep->marks, *ends = sweep->marks + sweep->n;
	uint64_t pairs = 0;

	for (size_t i = 0; i < sweep->n; i++) {
		const struct box *box = &sweep->v[i].held->box;

		starts[i] = box->start[d];
		ends[i] = box->start[d] + box->extent[d];
	}
	qsort(starts, sweep->n, sizeof(*starts), by_u64);
	qsort(ends, sweep->n, sizeof(*ends), by_u64);
	/* Each overlaps those that have started before it and have not ended. */
	for (size_t i = 0, ended = 0; i < sweep->n; i++) {
		while (ends[ended] <= starts[i]) {
			ended++;
		}
		pairs += i - ended;
	}
	return pairs;
}

static int add_pair(struct sweep *sweep, uint32_t a, uint32_t b, struct error *err)
{
	const struct box *box_a = &sweep->v[a].held->box, *box_b = &sweep->v[b].held->box;
	struct box both;
	int r;

	if (!box_intersect(sweep->ndim, box_a, box_b, &both)) {
		return 0;
	}
	r = spend(sweep, PAIR_STEPS, err);
	if (r < 0) {
		return r;
	}
	r = plan_grow(
		&sweep->pairs, &sweep->cap_pairs, sweep->npairs + 1, sizeof(*sweep->pairs), err);
	if (r < 0) {
		return r;
	}
	sweep->pairs[sweep->npairs++] = (struct pair){.loser = MAX(a, b), .winner = MIN(a, b)};
	return 0;
}

static int sweep_dim(struct sweep *sweep, int d, struct error *err)
{
	struct interval *v = malloc(sweep->n * sizeof(*v));
	int r = 0;

	if (!v) {
		return error_set(err, -ENOMEM, "out of memory for %zu boxes", sweep->n);
	}
	for (size_t i = 0; i < sweep->n; i++) {
		const struct box *box = &sweep->v[i].held->box;

		v[i] = (struct interval){
			box->start[d], box->start[d] + box->extent[d], (uint32_t)i};
	}
	qsort(v, sweep->n, sizeof(*v), by_start);
	for (size_t i = 0; i < sweep->n && r == 0; i++) {
		for (size_t j = i + 1; j < sweep->n && v[j].start < v[i].end && r == 0; j++) {
			r = add_pair(sweep, v[i].priority, v[j].priority, err);
		}
	}
	free(v);
	return r;
}

static int find_pairs(struct sweep *sweep, struct error *err)
{
	uint64_t fewest = UINT64_MAX;
	int best = 0, r;

	sweep->npairs = 0;
	r = plan_grow(&sweep->marks, &sweep->cap_marks, 2 * sweep->n, sizeof(*sweep->marks), err);
	if (r < 0) {
		return r;
	}
	for (int d = 0; d < sweep->ndim && fewest; d++) {
		uint64_t pairs = count_overlaps(sweep, d);

		if (pairs < fewest) {
			fewest = pairs;
			best = d;
		}
	}
	if (!fewest) {
		return 0;
	}
	r = spend(sweep, fewest, err);
	return r < 0 ? r : sweep_dim(sweep, best, err);
}

static int by_loser(const void *pa, const void *pb)
{
	const struct pair *a = pa, *b = pb;

	if (a->loser != b->loser) {
		return a->loser < b->loser ? -1 : 1;
	}
	return a->winner < b->winner ? -1 : a->winner > b->winner;
}

/* Takes the box out of the *n parts that are left of another. */
static int cut(struct sweep *sweep, const struct box *box, size_t *n, struct error *err)
{
	struct box *swap = sweep->left;
	size_t cap = sweep->cap_left, made = 0;
	int r = spend(sweep, *n * CUT_STEPS, err);

	if (r < 0) {
		return r;
	}
	r = plan_grow(
		&sweep->next, &sweep->cap_next, *n * 2 * STREW_MAX_DIMS, sizeof(*sweep->next), err);
	if (r < 0) {
		return r;
	}
	for (size_t i = 0; i < *n; i++) {
		made += (size_t)box_subtract(sweep->ndim, &sweep->left[i], box, sweep->next + made);
	}
	*n = made;
	sweep->left = sweep->next;
	sweep->cap_left = sweep->cap_next;
	sweep->next = swap;
	sweep->cap_next = cap;
	return 0;
}

/* The candidate of pairs[first … past) without what its winners hold, into the cover. */
static int subtract(
	struct sweep *sweep, size_t first, size_t past, struct cover *cover, struct error *err)
{
	const struct candidate *loser = &sweep->v[sweep->pairs[first].loser];
	struct cover_box *ret = &cover->boxes[loser->index];
	size_t n = 1;
	int r = plan_grow(&sweep->left, &sweep->cap_left, 1, sizeof(*sweep->left), err);

	if (r < 0) {
		return r;
	}
	sweep->left[0] = loser->held->box;
	for (size_t p = first; p < past && n; p++) {
		r = cut(sweep, &sweep->v[sweep->pairs[p].winner].held->box, &n, err);
		if (r < 0) {
			return r;
		}
	}
	if (n > LIMIT_BOXES || cover->nparts > LIMIT_COPIES) {
		return error_set(err, -E2BIG, "tensor %.128s: its boxes overlap in too many parts",
			sweep->manifest->tensors[loser->held->tensor].name);
	}
	r = plan_grow(
		&cover->parts, &cover->cap_parts, cover->nparts + n, sizeof(*cover->parts), err);
	if (r < 0) {
		return r;
	}
	if (n) {
		memcpy(cover->parts + cover->nparts, sweep->left, n * sizeof(*sweep->left));
	}
	*ret = (struct cover_box){.first = cover->nparts, .count = (uint32_t)n};
	cover->nparts += n;
	return 0;
}

static int cover_tensor(struct sweep *sweep, struct cover *cover, struct error *err)
{
	size_t n = 0;
	int r;

	qsort(sweep->v, sweep->n, sizeof(*sweep->v), by_box);
	for (size_t i = 0; i < sweep->n; i++) {
		if (n && !memcmp(&sweep->v[n - 1].held->box, &sweep->v[i].held->box,
				 sizeof(struct box))) {
			cover->boxes[sweep->v[i].index].whole = false;
		} else {
			sweep->v[n++] = sweep->v[i];
		}
	}
	sweep->n = n;
	if (n == 1) {
		return 0;
	}
	qsort(sweep->v, sweep->n, sizeof(*sweep->v), by_priority);
	r = find_pairs(sweep, err);
	if (r < 0 || !sweep->npairs) {
		return r;
	}
	qsort(sweep->pairs, sweep->npairs, sizeof(*sweep->pairs), by_loser);
	for (size_t first = 0, past; first < sweep->npairs && r == 0; first = past) {
		past = first + 1;
		while (past < sweep->npairs &&
			sweep->pairs[past].loser == sweep->pairs[first].loser) {
			past++;
		}
		r = subtract(sweep, first, past, cover, err);
	}
	return r;
}

static int cover_fill(const struct manifest *manifest, const struct by_tensor *index,
	struct sweep *sweep, struct cover *cover, struct error *err)
{
	for (size_t t = 0; t < manifest->ntensors; t++) {
		size_t n = index->first[t + 1] - index->first[t];
		int r;

		sweep->ndim = manifest->tensors[t].ndim;
		sweep->n = 0;
		r = plan_grow(&sweep->v, &sweep->cap, n, sizeof(*sweep->v), err);
		if (r < 0) {
			return r;
		}
		for (size_t i = index->first[t]; i < index->first[t + 1]; i++) {
			const struct held_box *held = &manifest->boxes[index->items[i]];

			cover->boxes[index->items[i]].whole = !box_empty(sweep->ndim, &held->box);
			if (!box_empty(sweep->ndim, &held->box)) {
				sweep->v[sweep->n++] = (struct candidate){held, index->items[i]};
			}
		}
		r = sweep->n > 1 ? cover_tensor(sweep, cover, err) : 0;
		if (r < 0) {
			return r;
		}
	}
	return 0;
}

int cover_make(const struct manifest *manifest, struct cover *ret_cover, struct error *err)
{
	struct sweep sweep = {.manifest = manifest, .steps = LIMIT_COVER_STEPS};
	struct cover cover = {0};
	struct by_tensor index;
	int r = by_tensor_of_boxes(manifest, &index);

	cover.boxes = calloc(manifest->nboxes + 1, sizeof(*cover.boxes));
	if (r < 0 || !cover.boxes) {
		r = error_set(err, -ENOMEM, "out of memory for %zu boxes", manifest->nboxes);
	} else {
		r = cover_fill(manifest, &index, &sweep, &cover, err);
	}
	by_tensor_finish(&index);
	free(sweep.v);
	free(sweep.marks);
	free(sweep.pairs);
	free(sweep.left);
	free(sweep.next);
	if (r < 0) {
		cover_finish(&cover);
		return r;
	}
	cover.steps = LIMIT_COVER_STEPS - sweep.steps;
	*ret_cover = cover;
	return 0;
}

void cover_finish(struct cover *cover)
{
	free(cover->boxes);
	free(cover->parts);
	*cover = (struct cover){0};
}

size_t cover_parts(const struct cover *cover, const struct manifest *manifest, size_t i,
	const struct box **ret_parts)
{
	const struct cover_box *box = &cover->boxes[i];

	if (box->whole) {
		*ret_parts = &manifest->boxes[i].box;
		return 1;
	}
	*ret_parts = box->count ? &cover->parts[box->first] : NULL;
	return box->count;
}
