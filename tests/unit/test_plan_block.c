/* How many steps it takes to be sure that no blocks share a byte, and that they are all counted. */
#include "base/limits.h"
#include "base/util.h"
#include "plan/block.h"
#include "support/test_main.h"
#include <errno.h>
#include <stdlib.h>

static struct block block(uint32_t space, uint32_t id, uint64_t lo, int ndim,
	const uint64_t *extent, const uint64_t *stride)
{
	struct block b;

	block_make(ndim, extent, stride, 2, lo * 2, &b);
	b.space = space;
	b.id = id;
	return b;
}

/* What it took of `all` steps. */
static uint64_t spent(struct block *blocks, size_t n, uint64_t all, int expected)
{
	uint64_t left = all;
	uint32_t a = UINT32_MAX, b = UINT32_MAX;

	assert_int_equal(blocks_find_shared(blocks, n, &left, &a, &b), expected);
	assert_true(left <= all);
	if (expected) {
		assert_true(a < n && b < n && a != b);
	}
	return all - left;
}

/* Clusters of two blocks each, of strides 4 and 2 and that many elements. */
static void pairs(struct block *v, uint32_t clusters, uint64_t elements)
{
	for (uint32_t i = 0; i < 2 * clusters; i++) {
		v[i] = block(i / 2, i, i % 2, 1, &elements, (uint64_t[]){i % 2 ? 2 : 4});
	}
}

/* Of so many elements that each of the three ways is taken. */
static void all_clusters_share(void **state)
{
	static const uint64_t elements[] = {1u << 12, 1u << 17, 1u << 21};
	enum { CLUSTERS = 8 };
	struct block v[2 * CLUSTERS];

	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(elements); i++) {
		uint64_t all;

		pairs(v, CLUSTERS, elements[i]);
		all = spent(v, ARRAY_LEN(v), LIMIT_SHARED_STEPS, 0);
		assert_true(all >= CLUSTERS * elements[i] / 2);
		assert_true(spent(v, ARRAY_LEN(v), all / 2, -E2BIG) <= all / 2);
	}
	assert_int_equal(spent(v, 2, 0, -E2BIG), 0);
}

/*
 * The worst that an engine makes of Qwen3-30B-A3B: of each layer one parameter, its 128 experts
 * side by side in the columns of transposed matrices, gate and up interleaved element by element.
 */
static void experts_side_by_side(void **state)
{
	enum { LAYERS = 48, EXPERTS = 128, HIDDEN = 2048, INTER = 768 };
	const uint64_t row = (uint64_t)EXPERTS * 2 * INTER;
	struct block *v = calloc((size_t)LAYERS * EXPERTS * 2, sizeof(*v));
	size_t n = 0;

	(void)state;
	assert_non_null(v);
	for (uint32_t l = 0; l < LAYERS; l++) {
		for (uint32_t e = 0; e < 2 * EXPERTS; e++) {
			v[n] = block(0, (uint32_t)n,
				l * row * HIDDEN + (uint64_t)(e / 2) * 2 * INTER + e % 2, 2,
				(uint64_t[]){HIDDEN, INTER}, (uint64_t[]){row, 2});
			n++;
		}
	}
	assert_true(spent(v, n, LIMIT_SHARED_STEPS, 0) < LIMIT_SHARED_STEPS / 4);
	free(v);
}

/* A fused qkv whose heads lie interleaved, and a stack of experts in memory of its own. */
static void fused_as_ever(void **state)
{
	enum { LAYERS = 48, HEADS = 32, HEAD = 128, HIDDEN = 2048, EXPERTS = 128, INTER = 768 };
	const uint64_t head[] = {HEADS, HEAD / 2, 2, HIDDEN};
	const uint64_t rotary[] = {3 * HEAD * HIDDEN, HIDDEN, HEAD / 2 * HIDDEN, 1};
	struct block *v = calloc((size_t)LAYERS * (3 + 2 * EXPERTS), sizeof(*v));
	size_t n = 0;

	(void)state;
	assert_non_null(v);
	for (uint32_t l = 0; l < LAYERS; l++) {
		for (uint32_t k = 0; k < 3; k++) {
			v[n] = block(
				2 * l, (uint32_t)n, (uint64_t)k * HEAD * HIDDEN, 4, head, rotary);
			n++;
		}
		for (uint32_t e = 0; e < 2 * EXPERTS; e++) {
			v[n] = block(2 * l + 1, (uint32_t)n,
				(uint64_t)(e / 2) * 2 * INTER * HIDDEN + e % 2 * HIDDEN, 2,
				(uint64_t[]){INTER, HIDDEN}, (uint64_t[]){2 * HIDDEN, 1});
			n++;
		}
	}
	assert_true(spent(v, n, LIMIT_SHARED_STEPS, 0) < LIMIT_SHARED_STEPS / 512);
	free(v);
}

int main(void)
{
	const struct CMUnitTest tests[] = {cmocka_unit_test(all_clusters_share),
		cmocka_unit_test(experts_side_by_side), cmocka_unit_test(fused_as_ever)};

	return TEST_RUN(tests);
}
