/*
 * Blocks are sorted by their first byte; only those in one cluster, a chain of
 * overlapping intervals, can share a byte, and in nearly every layout each
 * cluster is one block. Within a cluster three ways are tried in turn: pairs
 * with few steps (blocks of one stride take a handful of steps a pair, however
 * many rows they have); all runs sorted, if there are not too many (a thousand
 * interleaved columns); pairs with all steps that are left. All three are exact, and all
 * clusters share the steps: there may be half a million of them.
 */
#include "plan/block.h"
#include "base/util.h"
#include <errno.h>
#include <stdlib.h>

#define FEW_STEPS 64u		  /* a block of the cluster … */
#define FEW_STEPS_BASE (1u << 16) /* … and this many for the cluster */
#define RUN_STEPS 16u		  /* as many as sorting one of millions of runs takes time for */

void block_make(int ndim, const uint64_t *extent, const uint64_t *stride, uint64_t element_bytes,
	uint64_t lo, struct block *ret_block)
{
	struct block block = {.lo = lo, .run = element_bytes};
	int n = 0;

	for (int i = 0; i < ndim; i++) {
		int at = n;

		if (extent[i] == 1) {
			continue;
		}
		for (; at > 0 && block.stride[at - 1] < stride[i] * element_bytes; at--) {
			block.extent[at] = block.extent[at - 1];
			block.stride[at] = block.stride[at - 1];
		}
		block.extent[at] = extent[i];
		block.stride[at] = stride[i] * element_bytes;
		n++;
	}
	while (n > 0 && block.stride[n - 1] == block.run) {
		block.run *= block.extent[--n];
	}
	for (int k = n - 2; k >= 0; k--) {
		if (block.stride[k] != block.extent[k + 1] * block.stride[k + 1]) {
			continue;
		}
		block.extent[k] *= block.extent[k + 1];
		block.stride[k] = block.stride[k + 1];
		for (int j = k + 1; j < n - 1; j++) {
			block.extent[j] = block.extent[j + 1];
			block.stride[j] = block.stride[j + 1];
		}
		n--;
	}
	block.n = n;
	block.span = block.run;
	for (int k = 0; k < n; k++) {
		block.span += (block.extent[k] - 1) * block.stride[k];
	}
	*ret_block = block;
}

static int block_compare(const void *pa, const void *pb)
{
	const struct block *a = pa, *b = pb;

	if (a->space != b->space) {
		return a->space < b->space ? -1 : 1;
	}
	if (a->lo != b->lo) {
		return a->lo < b->lo ? -1 : 1;
	}
	return a->id < b->id ? -1 : a->id > b->id;
}

/* A block from its dimension `at` on, moved to `lo`. */
struct view_of {
	const struct block *block;
	int at;
	int64_t lo, span;
};

static struct view_of step_into(struct view_of v, uint64_t index)
{
	const struct block *block = v.block;

	v.lo += (int64_t)(index * block->stride[v.at]);
	v.span -= (int64_t)((block->extent[v.at] - 1) * block->stride[v.at]);
	v.at++;
	return v;
}

static bool has_dims(const struct view_of *v)
{
	return v->at < v->block->n;
}

static uint64_t outer_stride(const struct view_of *v)
{
	return has_dims(v) ? v->block->stride[v->at] : 0;
}

static int share(struct view_of a, struct view_of b, uint64_t *steps);

/*
 * Rows i of a and j of b, strides equal: only i - j counts, and as no row is
 * longer than a stride, at most two differences bring rows to overlap.
 */
static int share_same_stride(struct view_of a, struct view_of b, uint64_t *steps)
{
	int64_t stride = (int64_t)outer_stride(&a);
	int64_t most_a = (int64_t)a.block->extent[a.at] - 1;
	int64_t most_b = (int64_t)b.block->extent[b.at] - 1;
	int64_t about = (b.lo - a.lo) / stride;
	int r = 0;

	for (int64_t d = about - 2; d <= about + 2 && !r; d++) {
		if (d > most_a || d < -most_b) {
			continue;
		}
		r = share(step_into(a, d > 0 ? (uint64_t)d : 0),
			step_into(b, d < 0 ? (uint64_t)-d : 0), steps);
	}
	return r;
}

/* 1: they share a byte; 0: they do not; -EAGAIN: out of steps. */
static int share(struct view_of a, struct view_of b, uint64_t *steps)
{
	int64_t stride, width, first = 0, last;

	if (a.lo >= b.lo + b.span || b.lo >= a.lo + a.span) {
		return 0;
	}
	if (!has_dims(&a) && !has_dims(&b)) {
		return 1;
	}
	if (!*steps) {
		return -EAGAIN;
	}
	--*steps;
	if (outer_stride(&a) == outer_stride(&b)) {
		return share_same_stride(a, b, steps);
	}
	if (outer_stride(&a) < outer_stride(&b)) {
		struct view_of swap = a;

		a = b;
		b = swap;
	}
	stride = (int64_t)outer_stride(&a);
	width = step_into(a, 0).span;
	if (b.lo - a.lo - width >= 0) {
		first = (b.lo - a.lo - width) / stride + 1;
	}
	last = MIN((b.lo + b.span - 1 - a.lo) / stride, (int64_t)a.block->extent[a.at] - 1);
	for (int64_t i = first; i <= last; i++) {
		int r = share(step_into(a, (uint64_t)i), b, steps);

		if (r) {
			return r;
		}
	}
	return 0;
}

/* 0, or 1 or -EAGAIN (out of steps) and at which two: *ret_a < *ret_b, places in the array. */
static int shared_by_pairs(
	const struct block *v, size_t n, uint64_t *steps, size_t *ret_a, size_t *ret_b)
{
	for (size_t i = 0; i < n; i++) {
		struct view_of a = {&v[i], 0, (int64_t)v[i].lo, (int64_t)v[i].span};

		for (size_t j = i + 1; j < n && v[j].lo < v[i].lo + v[i].span; j++) {
			struct view_of b = {&v[j], 0, (int64_t)v[j].lo, (int64_t)v[j].span};
			int r = -EAGAIN;

			if (*steps) {
				--*steps;
				r = share(a, b, steps);
			}
			if (r) {
				*ret_a = i;
				*ret_b = j;
				return r;
			}
		}
	}
	return 0;
}

struct run {
	uint64_t lo;
	uint32_t block;
};

static int run_compare(const void *pa, const void *pb)
{
	const struct run *a = pa, *b = pb;

	if (a->lo != b->lo) {
		return a->lo < b->lo ? -1 : 1;
	}
	return a->block < b->block ? -1 : a->block > b->block;
}

static uint64_t count_runs(const struct block *v, size_t n)
{
	uint64_t all = 0;

	for (size_t i = 0; i < n; i++) {
		uint64_t runs = 1;

		for (int k = 0; k < v[i].n; k++) {
			if (mul_overflows(runs, v[i].extent[k], &runs)) {
				return UINT64_MAX;
			}
		}
		if (add_overflows(all, runs, &all)) {
			return UINT64_MAX;
		}
	}
	return all;
}

static size_t list_runs(const struct block *block, uint32_t number, struct run *ret_runs)
{
	uint64_t index[STREW_MAX_DIMS] = {0};
	uint64_t lo = block->lo;
	size_t n = 0;
	int k;

	do {
		ret_runs[n++] = (struct run){.lo = lo, .block = number};
		for (k = block->n - 1; k >= 0; k--) {
			lo += block->stride[k];
			if (++index[k] < block->extent[k]) {
				break;
			}
			lo -= block->extent[k] * block->stride[k];
			index[k] = 0;
		}
	} while (k >= 0);
	return n;
}

static int shared_by_runs(
	const struct block *v, size_t n, uint64_t nruns, size_t *ret_a, size_t *ret_b)
{
	struct run *runs = malloc(nruns * sizeof(*runs));
	size_t used = 0;
	int r = 0;

	if (!runs) {
		return -ENOMEM;
	}
	for (size_t i = 0; i < n; i++) {
		used += list_runs(&v[i], (uint32_t)i, runs + used);
	}
	qsort(runs, used, sizeof(*runs), run_compare);
	for (size_t i = 1; i < used && !r; i++) {
		if (runs[i].lo < runs[i - 1].lo + v[runs[i - 1].block].run) {
			*ret_a = MIN(runs[i - 1].block, runs[i].block);
			*ret_b = MAX(runs[i - 1].block, runs[i].block);
			r = 1;
		}
	}
	free(runs);
	return r;
}

static int shared_in_cluster(
	const struct block *v, size_t n, uint64_t *steps, size_t *ret_a, size_t *ret_b)
{
	uint64_t few = MIN(*steps, FEW_STEPS_BASE + FEW_STEPS * (uint64_t)n), left = few;
	uint64_t nruns;
	int r = shared_by_pairs(v, n, &left, ret_a, ret_b);

	*steps -= few - left;
	if (r != -EAGAIN) {
		return r;
	}
	nruns = count_runs(v, n);
	if (nruns <= *steps / RUN_STEPS) {
		*steps -= nruns * RUN_STEPS;
		return shared_by_runs(v, n, nruns, ret_a, ret_b);
	}
	r = shared_by_pairs(v, n, steps, ret_a, ret_b);
	return r == -EAGAIN ? -E2BIG : r;
}

int blocks_find_shared(
	struct block *blocks, size_t n, uint64_t *steps, uint32_t *ret_a, uint32_t *ret_b)
{
	size_t first = 0;

	qsort(blocks, n, sizeof(*blocks), block_compare);
	while (first < n) {
		uint64_t end = blocks[first].lo + blocks[first].span;
		size_t past = first + 1, a = 0, b = 0;
		int r = 0;

		while (past < n && blocks[past].space == blocks[first].space &&
			blocks[past].lo < end) {
			end = MAX(end, blocks[past].lo + blocks[past].span);
			past++;
		}
		if (past - first > 1) {
			r = shared_in_cluster(blocks + first, past - first, steps, &a, &b);
		}
		if (r == 1 || r == -E2BIG) {
			*ret_a = blocks[first + a].id;
			*ret_b = blocks[first + b].id;
		}
		if (r) {
			return r;
		}
		first = past;
	}
	return 0;
}
