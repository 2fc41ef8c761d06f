#include "plan/copies.h"
#include "base/util.h"
#include "plan/cast.h"
#include "plan/tensor_table.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

/*
 * Equal copies at an even distance become rows of one only while they are
 * small: a descriptor costs as much as moving about this many bytes, and large
 * contiguous runs are best left to themselves.
 */
#define ROW_BYTES_MAX (64u << 10)

void copies_init(struct copies *copies)
{
	*copies = (struct copies){0};
}

void copies_finish(struct copies *copies)
{
	free(copies->v);
	free(copies->first);
	copies_init(copies);
}

static uint64_t copy_bytes(const struct copy *copy)
{
	uint64_t bytes = copy->run_bytes;

	for (uint32_t k = 0; k < copy->ndim; k++) {
		bytes *= copy->extent[k];
	}
	return bytes;
}

uint64_t copies_bytes(const struct copies *copies)
{
	uint64_t bytes = 0;

	for (size_t i = 0; i < copies->n; i++) {
		bytes += copy_bytes(&copies->v[i]);
	}
	return bytes;
}

int copies_start(struct copies *copies, size_t nranges, struct error *err)
{
	copies_init(copies);
	copies->first = calloc(nranges + 1, sizeof(*copies->first));
	if (!copies->first) {
		return error_set(err, -ENOMEM, "out of memory for %zu buckets", nranges);
	}
	return 0;
}

static void move_dim(struct copy *copy, uint32_t to, uint32_t from)
{
	copy->extent[to] = copy->extent[from];
	copy->src_stride[to] = copy->src_stride[from];
	copy->dst_stride[to] = copy->dst_stride[from];
}

static void sort_dims(struct copy *copy)
{
	uint32_t n = 0;

	for (uint32_t i = 0; i < copy->ndim; i++) {
		uint64_t extent = copy->extent[i], src = copy->src_stride[i];
		uint64_t dst = copy->dst_stride[i];
		uint32_t at = n;

		if (extent == 1) {
			continue;
		}
		for (; at > 0 && copy->dst_stride[at - 1] < dst; at--) {
			move_dim(copy, at, at - 1);
		}
		copy->extent[at] = extent;
		copy->src_stride[at] = src;
		copy->dst_stride[at] = dst;
		n++;
	}
	copy->ndim = n;
}

static bool dims_chain(const struct copy *copy, uint32_t outer, uint32_t inner)
{
	return copy->src_stride[outer] == copy->extent[inner] * copy->src_stride[inner] &&
	       copy->dst_stride[outer] == copy->extent[inner] * copy->dst_stride[inner];
}

static void clear_unused(struct copy *copy)
{
	for (uint32_t k = copy->ndim; k < STREW_MAX_DIMS; k++) {
		copy->extent[k] = 0;
		copy->src_stride[k] = 0;
		copy->dst_stride[k] = 0;
	}
}

void copy_normalise(struct copy *copy)
{
	uint64_t source_run = copy_source_run(copy);
	uint32_t n = 1;

	sort_dims(copy);
	while (copy->ndim > 0 && copy->src_stride[copy->ndim - 1] == source_run &&
		copy->dst_stride[copy->ndim - 1] == copy->run_bytes) {
		source_run *= copy->extent[--copy->ndim];
		copy->run_bytes *= copy->extent[copy->ndim];
	}
	if (copy->ndim == 0) {
		n = 0;
	}
	for (uint32_t k = 1; k < copy->ndim; k++) {
		if (dims_chain(copy, n - 1, k)) {
			copy->extent[n - 1] *= copy->extent[k];
			copy->src_stride[n - 1] = copy->src_stride[k];
			copy->dst_stride[n - 1] = copy->dst_stride[k];
		} else {
			move_dim(copy, n++, k);
		}
	}
	copy->ndim = n;
	clear_unused(copy);
}

/* Dimensions [a_from …) of a and [b_from …) of b are the same. */
static bool same_dims(const struct copy *a, uint32_t a_from, const struct copy *b, uint32_t b_from)
{
	size_t n = a->ndim - a_from;

	if (b->ndim - b_from != n) {
		return false;
	}
	n *= sizeof(a->extent[0]);
	return !memcmp(a->extent + a_from, b->extent + b_from, n) &&
	       !memcmp(a->src_stride + a_from, b->src_stride + b_from, n) &&
	       !memcmp(a->dst_stride + a_from, b->dst_stride + b_from, n);
}

/* b is the columns right of a, or simply what follows it. */
static bool merge_runs(struct copy *a, const struct copy *b)
{
	if (b->src - a->src != copy_source_run(a) || b->dst - a->dst != a->run_bytes ||
		!same_dims(a, 0, b, 0)) {
		return false;
	}
	a->run_bytes += b->run_bytes;
	copy_normalise(a);
	return true;
}

/* b is the row, or the rows, after a's last. */
static bool merge_rows(struct copy *a, const struct copy *b)
{
	uint64_t rows;

	if (!a->ndim || a->run_bytes != b->run_bytes ||
		b->src - a->src != a->extent[0] * a->src_stride[0] ||
		b->dst - a->dst != a->extent[0] * a->dst_stride[0]) {
		return false;
	}
	if (same_dims(a, 1, b, 0)) {
		rows = 1;
	} else if (b->ndim && same_dims(a, 1, b, 1) && a->src_stride[0] == b->src_stride[0] &&
		   a->dst_stride[0] == b->dst_stride[0]) {
		rows = b->extent[0];
	} else {
		return false;
	}
	a->extent[0] += rows;
	copy_normalise(a);
	return true;
}

/* a and b are two equal things some way apart. */
static bool merge_pair(struct copy *a, const struct copy *b)
{
	uint64_t src = b->src - a->src, dst = b->dst - a->dst;

	if (a->ndim == STREW_MAX_DIMS || a->run_bytes != b->run_bytes || !same_dims(a, 0, b, 0) ||
		copy_bytes(a) > ROW_BYTES_MAX) {
		return false;
	}
	/* Outermost first, as the strides are ordered, and rows that do not overlap at the source.
	 */
	if (b->src < a->src || src < copy_source_run(a) || (a->ndim && dst <= a->dst_stride[0])) {
		return false;
	}
	for (uint32_t k = a->ndim; k > 0; k--) {
		move_dim(a, k, k - 1);
	}
	a->ndim++;
	a->extent[0] = 2;
	a->src_stride[0] = src;
	a->dst_stride[0] = dst;
	copy_normalise(a);
	return true;
}

bool copy_merge(struct copy *a, const struct copy *b)
{
	if (a->src_space != b->src_space || a->dst_space != b->dst_space || a->from != b->from ||
		a->to != b->to) {
		return false;
	}
	return merge_runs(a, b) || merge_rows(a, b) || merge_pair(a, b);
}

int copies_add(struct copies *copies, const struct copy *copy, struct error *err)
{
	int r;

	if (copies->n >= LIMIT_COPIES) {
		return error_set(err, -E2BIG, "the plan has over %u copies", LIMIT_COPIES);
	}
	r = plan_grow(&copies->v, &copies->cap, copies->n + 1, sizeof(*copies->v), err);
	if (r < 0) {
		return r;
	}
	copies->v[copies->n] = *copy;
	copy_normalise(&copies->v[copies->n++]);
	return 0;
}

static int by_destination(const void *pa, const void *pb)
{
	const struct copy *a = pa, *b = pb;

	if (a->dst_space != b->dst_space) {
		return a->dst_space < b->dst_space ? -1 : 1;
	}
	if (a->dst != b->dst) {
		return a->dst < b->dst ? -1 : 1;
	}
	if (a->src_space != b->src_space) {
		return a->src_space < b->src_space ? -1 : 1;
	}
	return a->src < b->src ? -1 : a->src > b->src;
}

static bool sorted(const struct copy *v, size_t n)
{
	for (size_t i = 1; i < n; i++) {
		if (by_destination(&v[i - 1], &v[i]) > 0) {
			return false;
		}
	}
	return true;
}

void copies_end_range(struct copies *copies)
{
	size_t first = copies->first[copies->nranges], n = copies->n - first, kept = 0;
	struct copy *v;

	if (n) {
		v = copies->v + first;
		if (!sorted(v, n)) {
			qsort(v, n, sizeof(*v), by_destination);
		}
		for (size_t i = 0; i < n; i++) {
			v[kept++] = v[i];
			while (kept > 1 && copy_merge(&v[kept - 2], &v[kept - 1])) {
				kept--;
			}
		}
	}
	copies->n = first + kept;
	copies->first[++copies->nranges] = copies->n;
}
