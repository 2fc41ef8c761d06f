/*
 * Out of a sibling's live parameters instead of a trainer's memory. Its pieces say which elements
 * of a tensor lie where, ours which are wanted where; what two of them have in common is a copy.
 *
 * Pieces are boxes in views, and two layouts may view a tensor differently. So each tensor gets a
 * view of its own that refines all of them, in which every piece is a few rectangles, and
 * everything is done there. Two views that split a dimension as 2 × 3 and as 3 × 2 have no such
 * refinement.
 */
#include "base/util.h"
#include "plan/by_tensor.h"
#include "plan/cast.h"
#include "plan/copies.h"
#include "plan/plan.h"
#include "plan/tensor_table.h"
#include "plan/view.h"
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define NO_TENSOR UINT32_MAX
#define LOOKS_MAX (1u << 26) /* at two rectangles, whether they meet: less than a second */

/* A worker, and its pieces found from the wanted tensors. */
struct member {
	const struct plan_worker *worker;
	uint32_t *tensor; /* by the wanted one: the layout's, or NO_TENSOR */
	struct by_tensor pieces;
};

/* The common refinement of all views of a tensor. No dimension of it is 1. */
struct refined {
	const struct tensor *tensor;
	int n;
	int owner[STREW_MAX_DIMS]; /* which of the tensor's dimensions it is a factor of … */
	uint64_t weight[STREW_MAX_DIMS]; /* … and how many steps of that a step of it is */
	uint64_t shape[STREW_MAX_DIMS];
};

/* A rectangle of a tensor in a member's memory: `at` is the byte of its first element. */
struct spot {
	struct box box;
	uint32_t space;
	enum strew_dtype dtype;
	uint64_t at;
	uint64_t stride[STREW_MAX_DIMS]; /* bytes */
};

struct spots {
	struct spot *v;
	size_t n, cap;
};

struct catcher {
	struct manifest wanted; /* the tensors that our pieces take, no boxes */
	struct member *from, *to;
	size_t nfrom, nto;
	struct refined refined; /* of the tensor under way */
	struct spots held;	/* by the siblings, of it */
	struct box *left, *next;
	size_t cap_left, cap_next;
	struct copies copies;
	uint64_t lump_bytes, open_bytes; /* in the open range */
	uint64_t looks;
};

static int out_of_memory(struct error *err)
{
	return error_set(err, -ENOMEM, "out of memory");
}

static int find_wanted(
	struct catcher *c, const struct plan_worker *to, size_t nto, struct error *err)
{
	for (size_t w = 0; w < nto; w++) {
		const struct layout *layout = to[w].layout;

		for (size_t i = 0; i < layout->npieces; i++) {
			const struct piece *piece = &layout->pieces[i];
			uint32_t index;
			int r;

			if (box_empty(piece->ndim, &piece->box)) {
				continue;
			}
			r = manifest_add_tensor(
				&c->wanted, &layout->tensors[piece->tensor], &index, err);
			if (r < 0) {
				return r;
			}
		}
	}
	return 0;
}

static int member_make(struct member *member, const struct plan_worker *worker,
	const struct manifest *wanted, struct error *err)
{
	const struct layout *layout = worker->layout;

	member->worker = worker;
	member->tensor = malloc((wanted->ntensors + 1) * sizeof(*member->tensor));
	if (by_tensor_of_pieces(layout, &member->pieces) < 0 || !member->tensor) {
		return out_of_memory(err);
	}
	for (size_t i = 0; i < wanted->ntensors; i++) {
		member->tensor[i] = NO_TENSOR;
	}
	for (size_t i = 0; i < layout->ntensors; i++) {
		int64_t found = manifest_find(wanted, layout->tensors[i].name);

		/* Another dtype or shape under that name is another tensor. */
		if (found >= 0 && tensor_same(&layout->tensors[i], &wanted->tensors[found])) {
			member->tensor[found] = (uint32_t)i;
		}
	}
	return 0;
}

static void members_finish(struct member *members, size_t n)
{
	for (size_t i = 0; members && i < n; i++) {
		free(members[i].tensor);
		by_tensor_finish(&members[i].pieces);
	}
	free(members);
}

/* The member's pieces of a wanted tensor, as numbers. */
static const uint32_t *pieces_of(const struct member *member, size_t tensor, size_t *ret_n)
{
	uint32_t own = member->tensor[tensor];

	*ret_n = 0;
	if (own == NO_TENSOR) {
		return NULL;
	}
	*ret_n = member->pieces.first[own + 1] - member->pieces.first[own];
	return member->pieces.items + member->pieces.first[own];
}

/* Puts a factor in its place, unless it is there. False: there is no room for it. */
static bool add_factor(struct refined *refined, int owner, uint64_t weight)
{
	int at = 0;

	while (at < refined->n &&
		(refined->owner[at] < owner ||
			(refined->owner[at] == owner && refined->weight[at] > weight))) {
		at++;
	}
	if (at < refined->n && refined->owner[at] == owner && refined->weight[at] == weight) {
		return true;
	}
	if (refined->n == STREW_MAX_DIMS) {
		return false;
	}
	for (int k = refined->n++; k > at; k--) {
		refined->owner[k] = refined->owner[k - 1];
		refined->weight[k] = refined->weight[k - 1];
	}
	refined->owner[at] = owner;
	refined->weight[at] = weight;
	return true;
}

static bool refine_by(struct refined *refined, const struct member *member, size_t tensor)
{
	const struct piece *last = NULL;
	const uint32_t *numbers;
	size_t n;

	numbers = pieces_of(member, tensor, &n);
	for (size_t i = 0; i < n; i++) {
		const struct piece *piece = &member->worker->layout->pieces[numbers[i]];
		struct view_map map;

		if (box_empty(piece->ndim, &piece->box) ||
			(last && last->ndim == piece->ndim &&
				!memcmp(last->view, piece->view, sizeof(piece->view)))) {
			continue;
		}
		last = piece;
		view_map_make(refined->tensor->ndim, refined->tensor->shape, piece->ndim,
			piece->view, &map);
		for (int k = 0; k < map.n; k++) {
			if (!add_factor(refined, map.owner[k], map.weight[k])) {
				return false;
			}
		}
	}
	return true;
}

/* The shape of the refinement; false if some factor does not divide the one outside of it. */
static bool refined_shape(struct refined *refined)
{
	for (int k = 0; k < refined->n; k++) {
		bool first = k == 0 || refined->owner[k - 1] != refined->owner[k];
		uint64_t all =
			first ? refined->tensor->shape[refined->owner[k]] : refined->weight[k - 1];

		if (all % refined->weight[k]) {
			return false;
		}
		refined->shape[k] = all / refined->weight[k];
	}
	return true;
}

static int refine(struct catcher *c, size_t tensor, struct error *err)
{
	struct refined *refined = &c->refined;
	bool fits = true;

	*refined = (struct refined){.tensor = &c->wanted.tensors[tensor]};
	for (size_t i = 0; i < c->nfrom && fits; i++) {
		fits = refine_by(refined, &c->from[i], tensor);
	}
	for (size_t i = 0; i < c->nto && fits; i++) {
		fits = refine_by(refined, &c->to[i], tensor);
	}
	if (!fits || !refined_shape(refined)) {
		return error_set(err, -ENOENT,
			"tensor %.128s: the two groups split its dimensions in ways that do not "
			"fit",
			refined->tensor->name);
	}
	return 0;
}

/* The piece in the refinement: its rectangles, each with its place in memory. */
static unsigned spots_of(const struct refined *refined, const struct plan_worker *worker,
	const struct piece *piece, struct spot ret_spots[VIEW_RECTS_MAX])
{
	const struct parameter *parameter = &worker->layout->parameters[piece->parameter];
	uint64_t size = strew_dtype_size(parameter->dtype);
	struct box whole = {0}, rects[VIEW_RECTS_MAX];
	struct view_map map;
	int n;

	memcpy(whole.extent, refined->shape, sizeof(whole.extent));
	view_map_make(piece->ndim, piece->view, refined->n, refined->shape, &map);
	n = view_cut(&map, refined->n, &whole, &piece->box, rects);
	for (int i = 0; i < n; i++) {
		uint64_t index[STREW_MAX_DIMS] = {0};
		struct spot *spot = &ret_spots[i];

		*spot = (struct spot){.box = rects[i], .dtype = parameter->dtype};
		spot->at = plan_parameter_at(worker, piece->parameter, &spot->space) +
			   piece->offset * size;
		for (int k = 0; k < map.n; k++) {
			index[map.owner[k]] += rects[i].start[k] * map.weight[k];
			spot->stride[k] = piece->stride[map.owner[k]] * map.weight[k] * size;
		}
		/* A dimension of 1 has no factor, and its stride is never stepped. */
		for (int v = 0; v < piece->ndim; v++) {
			uint64_t steps = piece->view[v] > 1 ? index[v] - piece->box.start[v] : 0;

			spot->at += steps * piece->stride[v] * size;
		}
	}
	return (unsigned)n;
}

static int find_held(struct catcher *c, size_t tensor, struct error *err)
{
	c->held.n = 0;
	for (size_t m = 0; m < c->nfrom; m++) {
		const struct member *member = &c->from[m];
		const uint32_t *numbers;
		size_t n;

		numbers = pieces_of(member, tensor, &n);
		for (size_t i = 0; i < n; i++) {
			const struct piece *piece = &member->worker->layout->pieces[numbers[i]];
			int r = plan_grow(&c->held.v, &c->held.cap, c->held.n + VIEW_RECTS_MAX,
				sizeof(*c->held.v), err);

			if (r < 0) {
				return r;
			}
			if (!box_empty(piece->ndim, &piece->box)) {
				c->held.n += spots_of(
					&c->refined, member->worker, piece, c->held.v + c->held.n);
			}
		}
	}
	return 0;
}

/* The tensor's own values, or those that ours are to have. */
static bool serves(const struct refined *refined, const struct spot *held, enum strew_dtype wanted)
{
	return held->dtype == wanted || held->dtype == refined->tensor->dtype;
}

static uint64_t spot_at(const struct spot *spot, int n, const uint64_t *start)
{
	uint64_t at = spot->at;

	for (int k = 0; k < n; k++) {
		at += (start[k] - spot->box.start[k]) * spot->stride[k];
	}
	return at;
}

/* One that fits a lump. */
static int copy_box(struct catcher *c, const struct spot *held, const struct spot *wanted,
	const struct box *box, uint64_t bytes, struct error *err)
{
	struct copy copy = {.src_space = held->space,
		.dst_space = wanted->space,
		.run_bytes = strew_dtype_size(wanted->dtype),
		.ndim = (uint32_t)c->refined.n};

	if (c->open_bytes && c->open_bytes + bytes > c->lump_bytes) {
		copies_end_range(&c->copies);
		c->open_bytes = 0;
	}
	c->open_bytes += bytes;
	copy_set_cast(&copy, held->dtype, wanted->dtype);
	copy.src = spot_at(held, c->refined.n, box->start);
	copy.dst = spot_at(wanted, c->refined.n, box->start);
	for (int k = 0; k < c->refined.n; k++) {
		copy.extent[k] = box->extent[k];
		copy.src_stride[k] = held->stride[k];
		copy.dst_stride[k] = wanted->stride[k];
	}
	return copies_add(&c->copies, &copy, err);
}

/* One that may have to be cut, along its outermost dimension that is longer than 1. */
static int copy_cut(struct catcher *c, const struct spot *held, const struct spot *wanted,
	const struct box *box, struct error *err)
{
	uint64_t bytes = box_count(c->refined.n, box) * strew_dtype_size(wanted->dtype);
	struct box part = *box;
	int d = 0, r = 0;
	uint64_t end, most;

	if (bytes <= c->lump_bytes) {
		return copy_box(c, held, wanted, box, bytes, err);
	}
	while (box->extent[d] == 1) {
		d++;
	}
	end = box->start[d] + box->extent[d];
	most = MAX(c->lump_bytes / (bytes / box->extent[d]), 1);
	while (part.start[d] < end && r == 0) {
		part.extent[d] = MIN(end - part.start[d], most);
		r = copy_cut(c, held, wanted, &part, err);
		part.start[d] += part.extent[d];
	}
	return r;
}

/* Takes what one rectangle of the sibling's has of what is left of ours. *n boxes are left then. */
static int take(struct catcher *c, const struct spot *held, const struct spot *wanted, size_t *n,
	struct error *err)
{
	struct box *swap = c->left;
	size_t cap = c->cap_left, made = 0;
	int r = plan_grow(
		&c->next, &c->cap_next, *n * 2 * STREW_MAX_DIMS + *n, sizeof(*c->next), err);

	for (size_t i = 0; i < *n && r == 0; i++) {
		struct box both;

		if (!box_intersect(c->refined.n, &c->left[i], &held->box, &both)) {
			c->next[made++] = c->left[i];
			continue;
		}
		r = copy_cut(c, held, wanted, &both, err);
		made += (size_t)box_subtract(c->refined.n, &c->left[i], &held->box, c->next + made);
	}
	c->left = c->next;
	c->cap_left = c->cap_next;
	c->next = swap;
	c->cap_next = cap;
	*n = made;
	return r;
}

/*
 * Every element of ours, from the first rectangle that has it, beginning with number *hint: layouts
 * that are alike find each piece at the first look, and what all siblings hold is not taken from
 * one alone.
 */
static int cover_spot(struct catcher *c, const struct spot *wanted, size_t *hint, const char *name,
	struct error *err)
{
	size_t n = 1, first = *hint;
	int r = plan_grow(&c->left, &c->cap_left, 1, sizeof(*c->left), err);

	if (r < 0) {
		return r;
	}
	c->left[0] = wanted->box;
	for (size_t i = 0; i < c->held.n && n && r == 0; i++) {
		size_t at = (first + i) % c->held.n;

		c->looks += n;
		if (c->looks > LOOKS_MAX) {
			return error_set(err, -E2BIG, "tensor %.128s: too many pieces",
				c->refined.tensor->name);
		}
		if (serves(&c->refined, &c->held.v[at], wanted->dtype)) {
			r = take(c, &c->held.v[at], wanted, &n, err);
			*hint = n ? *hint : (at + 1) % c->held.n;
		}
	}
	if (r == 0 && n) {
		return error_set(err, -ENOENT,
			"parameter %.88s: the sibling does not hold all of tensor %.88s, or not as "
			"it is wanted",
			name, c->refined.tensor->name);
	}
	return r;
}

/* Where the pieces begin of the sibling that most likely has what member m of ours wants. */
static size_t first_guess(const struct catcher *c, size_t m)
{
	uint32_t space = c->from[m * c->nfrom / c->nto].worker->space_base;
	size_t i = 0;

	while (i < c->held.n && c->held.v[i].space < space) {
		i++;
	}
	return i < c->held.n ? i : 0;
}

static int catch_tensor(struct catcher *c, size_t tensor, struct error *err)
{
	int r = refine(c, tensor, err);

	r = r < 0 ? r : find_held(c, tensor, err);
	for (size_t m = 0; m < c->nto && r == 0; m++) {
		const struct layout *layout = c->to[m].worker->layout;
		size_t n, hint = first_guess(c, m);
		const uint32_t *numbers = pieces_of(&c->to[m], tensor, &n);

		for (size_t i = 0; i < n && r == 0; i++) {
			const struct piece *piece = &layout->pieces[numbers[i]];
			struct spot wanted[VIEW_RECTS_MAX];
			unsigned nspots = 0;

			if (!box_empty(piece->ndim, &piece->box)) {
				nspots = spots_of(&c->refined, c->to[m].worker, piece, wanted);
			}
			for (unsigned k = 0; k < nspots && r == 0; k++) {
				r = cover_spot(c, &wanted[k], &hint,
					layout->parameters[piece->parameter].name, err);
			}
		}
	}
	return r;
}

/* Two lumps in a row are longer together than one may be. */
static size_t most_ranges(const struct catcher *c)
{
	uint64_t bytes = 0;

	for (size_t m = 0; m < c->nto; m++) {
		bytes += layout_bytes(c->to[m].worker->layout);
	}
	return (size_t)(2 * (bytes / c->lump_bytes) + 3);
}

static int catch_all(struct catcher *c, const struct plan_worker *from,
	const struct plan_worker *to, struct error *err)
{
	int r = find_wanted(c, to, c->nto, err);

	c->from = calloc(c->nfrom + 1, sizeof(*c->from));
	c->to = calloc(c->nto + 1, sizeof(*c->to));
	if (r == 0 && (!c->from || !c->to)) {
		r = out_of_memory(err);
	}
	for (size_t m = 0; m < c->nfrom && r == 0; m++) {
		r = member_make(&c->from[m], &from[m], &c->wanted, err);
	}
	for (size_t m = 0; m < c->nto && r == 0; m++) {
		r = member_make(&c->to[m], &to[m], &c->wanted, err);
	}
	if (r == 0) {
		r = copies_start(&c->copies, most_ranges(c), err);
	}
	for (size_t t = 0; t < c->wanted.ntensors && r == 0; t++) {
		r = catch_tensor(c, t, err);
	}
	if (r == 0 && c->open_bytes) {
		copies_end_range(&c->copies);
	}
	return r;
}

int plan_catch_up(const struct plan_worker *from, size_t nfrom, const struct plan_worker *to,
	size_t nto, uint64_t lump_bytes, struct copies *ret_copies, struct error *err)
{
	struct catcher c = {.nfrom = nfrom, .nto = nto, .lump_bytes = lump_bytes};
	int r;

	manifest_init(&c.wanted);
	copies_init(&c.copies);
	r = catch_all(&c, from, to, err);
	members_finish(c.from, nfrom);
	members_finish(c.to, nto);
	manifest_finish(&c.wanted);
	free(c.held.v);
	free(c.left);
	free(c.next);
	if (r < 0) {
		copies_finish(&c.copies);
		return r;
	}
	*ret_copies = c.copies;
	return 0;
}
