/* How many steps it takes to tell who holds what of a manifest, and that all of them are counted.
 */
#include "base/limits.h"
#include "base/util.h"
#include "plan/cover.h"
#include "plan/layout.h"
#include "plan/plan.h"
#include "support/test_main.h"
#include <errno.h>
#include <stdio.h>
#include <string.h>

static uint32_t tensor(struct manifest *m, uint64_t rows, uint64_t columns)
{
	char name[32];
	struct tensor t = {.name = name, .dtype = STREW_U8, .ndim = 2, .shape = {rows, columns}};
	struct error err;
	uint32_t index;

	snprintf(name, sizeof(name), "t%zu", m->ntensors);
	assert_int_equal(manifest_add_tensor(m, &t, &index, &err), 0);
	return index;
}

static void hold(struct manifest *m, uint32_t t, uint32_t rank, uint64_t row, uint64_t column,
	uint64_t rows, uint64_t columns)
{
	struct held_box held = {.tensor = t, .rank = rank, .box = {{row, column}, {rows, columns}}};
	struct error err;

	assert_int_equal(manifest_add_box(m, &held, &err), 0);
}

/* Half of the tensor by rows, half by columns: no two overlap, n^2 / 2 do in each dimension. */
static void halves(struct manifest *m, uint64_t n)
{
	uint32_t t = tensor(m, 2 * n, n);

	for (uint64_t i = 0; i < n; i++) {
		hold(m, t, 0, 0, i, n, 1);
	}
	for (uint64_t i = 0; i < n; i++) {
		hold(m, t, 0, n + i, 0, 1, n);
	}
}

/* Rank 1 holds all of the tensor, rank 0 n * n single elements, of which no two touch. */
static void holes(struct manifest *m, uint64_t n)
{
	uint32_t t = tensor(m, 2 * n, 2 * n);

	for (uint64_t i = 0; i < n * n; i++) {
		hold(m, t, 0, i / n * 2, i % n * 2, 1, 1);
	}
	hold(m, t, 1, 0, 0, 2 * n, 2 * n);
}

/* Seals it, and says what telling took; with `refused` what it is refused with. */
static uint64_t seal(struct manifest *m, const char *refused)
{
	struct error err = {0};
	struct cover cover;
	uint64_t steps = 0;

	if (refused) {
		assert_int_equal(manifest_seal(m, &err), -E2BIG);
		if (!strstr(err.text, refused) || !strstr(err.text, "not enough to tell")) {
			fail_msg("'%s' lacks '%s'", err.text, refused);
		}
	} else {
		assert_int_equal(manifest_seal(m, &err), 0);
		assert_int_equal(cover_make(m, &cover, &err), 0);
		steps = cover.steps;
		cover_finish(&cover);
	}
	manifest_finish(m);
	manifest_init(m);
	return steps;
}

static void all_tensors_share(void **state)
{
	struct manifest m;
	const uint64_t n = 4096;
	uint64_t one;

	(void)state;
	manifest_init(&m);
	halves(&m, n);
	one = seal(&m, NULL);
	assert_int_equal(one, n * (n - 1) / 2);
	for (int i = 0; i < 8; i++) {
		halves(&m, n);
	}
	assert_int_equal(seal(&m, NULL), 8 * one);
	for (int i = 0; i < 9; i++) {
		halves(&m, n);
	}
	seal(&m, "tensor t8: its 8192 boxes");
	halves(&m, 32768);
	seal(&m, "tensor t0: its 65536 boxes");
}

static void cuts_count(void **state)
{
	struct manifest m;
	uint64_t one;

	(void)state;
	manifest_init(&m);
	holes(&m, 64);
	one = seal(&m, NULL);
	/* Each hole adds some two parts, of which all are looked at for the next hole. */
	assert_true(one > 4096ull * 4096 && one < LIMIT_COVER_STEPS / 2);
	holes(&m, 256);
	seal(&m, "tensor t0: its 65537 boxes");
}

/* What trainers declare: shards of 1,024 boxes, of 8 ranks, of a mesh, and beside a whole copy. */
static void declared_in_earnest(void **state)
{
	struct manifest m;

	(void)state;
	manifest_init(&m);
	for (uint32_t t = 0; t < 1000; t++) {
		tensor(&m, 4096, 64);
		for (uint32_t i = 0; i < 1024; i++) {
			hold(&m, t, i / 4, i * 4, 0, 4, 64);
		}
	}
	assert_int_equal(seal(&m, NULL), 0);
	for (uint32_t t = 0; t < 9435; t++) {
		tensor(&m, 4096, 64);
		for (uint32_t i = 0; i < 8; i++) {
			hold(&m, t, i, i * 512, 0, 512, 64);
		}
	}
	assert_int_equal(seal(&m, NULL), 0);
	for (uint32_t t = 0; t < 4096; t++) {
		tensor(&m, 4096, 64);
		for (uint32_t i = 0; i < 256; i++) {
			hold(&m, t, i, i / 16 * 256, i % 16 * 4, 256, 4);
		}
	}
	assert_true(seal(&m, NULL) < LIMIT_COVER_STEPS / 8);
	for (uint32_t t = 0; t < 4096; t++) {
		tensor(&m, 255, 64);
		hold(&m, t, 0, 0, 0, 255, 64);
		for (uint32_t i = 0; i < 255; i++) {
			hold(&m, t, i + 1, i, 0, 1, 64);
		}
	}
	assert_true(seal(&m, NULL) < LIMIT_COVER_STEPS / 4);
}

/* n boxes of a tensor and as many pieces of it: the plan looks at each with each. */
static int match(uint64_t n, struct error *err)
{
	struct piece piece = {.ndim = 2, .view = {n, 1}, .box = {{0, 0}, {1, 1}}};
	struct parameter p = {.name = "p", .dtype = STREW_U8, .ndim = 2, .shape = {n, 1}};
	struct tensor t = {.name = "t0", .dtype = STREW_U8, .ndim = 2, .shape = {n, 1}};
	const uint32_t roots[] = {0};
	struct plan_worker worker = {0};
	struct manifest m;
	struct layout layout;
	struct buckets buckets;
	struct copies copies;
	int r;

	manifest_init(&m);
	layout_init(&layout);
	tensor(&m, n, 1);
	assert_int_equal(layout_add_tensor(&layout, &t, &piece.tensor, err), 0);
	assert_int_equal(layout_add_parameter(&layout, &p, &piece.parameter, err), 0);
	for (uint64_t i = 0; i < n; i++) {
		hold(&m, 0, 0, i, 0, 1, 1);
		piece.box.start[0] = piece.offset = i;
		assert_int_equal(layout_add_piece(&layout, &piece, err), 0);
	}
	assert_int_equal(layout_seal(&layout, false, err), 0);
	assert_int_equal(manifest_seal(&m, err), 0);
	assert_int_equal(buckets_make(&m, 1u << 30, roots, 1, &buckets, err), 0);
	worker.layout = &layout;
	r = plan_scatter(&m, &buckets, &worker, 1, &copies, err);
	if (r == 0) {
		assert_int_equal(copies_bytes(&copies), n);
		copies_finish(&copies);
	}
	buckets_finish(&buckets);
	layout_finish(&layout);
	manifest_finish(&m);
	return r;
}

static void matched_with_pieces(void **state)
{
	struct error err;

	(void)state;
	assert_int_equal(match(2048, &err), 0);
	assert_int_equal(match(24000, &err), -E2BIG);
	assert_non_null(strstr(err.text, "tensor t0: its boxes and its pieces are too many"));
}

int main(void)
{
	const struct CMUnitTest tests[] = {cmocka_unit_test(all_tensors_share),
		cmocka_unit_test(cuts_count), cmocka_unit_test(declared_in_earnest),
		cmocka_unit_test(matched_with_pieces)};

	return TEST_RUN(tests);
}
