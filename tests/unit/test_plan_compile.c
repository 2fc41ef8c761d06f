/*
 * What plans look like: how few copies merging leaves, matching and what is
 * uncovered, refusals, and the time of a large plan (printed, not judged).
 */
#include "base/util.h"
#include "plan/copies.h"
#include "plan/plan.h"
#include "support/test_main.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static const uint32_t one_root[1];

static uint32_t publish(struct manifest *m, const char *name, uint64_t a, uint64_t b)
{
	struct tensor t = {name, STREW_BF16, 2, {a, b}};
	struct held_box held = {.box = {{0, 0}, {a, b}}};
	struct error err;

	assert_int_equal(manifest_add_tensor(m, &t, &held.tensor, &err), 0);
	assert_int_equal(manifest_add_box(m, &held, &err), 0);
	return held.tensor;
}

static uint32_t place(struct layout *l, const char *name, uint64_t at, uint64_t a, uint64_t b)
{
	struct parameter p = {
		.name = name, .dtype = STREW_BF16, .ndim = 2, .shape = {a, b}, .offset_bytes = at};
	struct error err;
	uint32_t index;

	assert_int_equal(layout_add_parameter(l, &p, &index, &err), 0);
	return index;
}

/* Box [r0, r0 + rows) × [c0, c0 + columns) of a × b to `offset`, rows `pitch` apart. */
static void wire(struct layout *l, const char *tensor, uint64_t a, uint64_t b, uint32_t parameter,
	struct box box, uint64_t offset, uint64_t pitch)
{
	struct tensor t = {tensor, STREW_BF16, 2, {a, b}};
	struct piece p = {.parameter = parameter,
		.ndim = 2,
		.view = {a, b},
		.box = box,
		.offset = offset,
		.stride = {pitch, 1}};
	struct error err = {0};

	assert_int_equal(layout_add_tensor(l, &t, &p.tensor, &err), 0);
	if (layout_add_piece(l, &p, &err) < 0) {
		fail_msg("%s", err.text);
	}
}

struct counts {
	size_t buckets, scatter, commit;
	struct copy first;
};

static struct counts compile(struct manifest *m, struct layout *l, uint64_t slot)
{
	uint64_t shadow[16];
	struct plan_worker worker = {.layout = l, .shadow_space = 9};
	struct copies copies;
	struct buckets buckets;
	struct counts counts;
	struct error err;

	assert_int_equal(manifest_seal(m, &err), 0);
	assert_int_equal(layout_seal(l, false, &err), 0);
	assert_int_equal(buckets_make(m, slot, one_root, 1, &buckets, &err), 0);
	assert_int_equal(plan_scatter(m, &buckets, &worker, 1, &copies, &err), 0);
	counts = (struct counts){.buckets = buckets.n, .scatter = copies.n, .first = copies.v[0]};
	copies_finish(&copies);
	assert_int_equal(plan_commit(m, &worker, 1, &copies, &err), 0);
	assert_int_equal(copies.n, 0);
	copies_finish(&copies);
	plan_shadow(l, NULL, shadow);
	worker.shadow_offset = shadow;
	assert_int_equal(plan_commit(m, &worker, 1, &copies, &err), 0);
	counts.commit = copies.n;
	copies_finish(&copies);
	buckets_finish(&buckets);
	manifest_finish(m);
	layout_finish(l);
	return counts;
}

/* A partial update's commit leaves alone what it does not publish. */
static void commit_of_a_part(void **state)
{
	const struct tensor here = {.name = "here", .dtype = STREW_F32, .ndim = 1, .shape = {8}};
	const struct tensor missing = {
		.name = "missing", .dtype = STREW_F32, .ndim = 1, .shape = {8}};
	struct parameter parameter = {
		.name = "p", .dtype = STREW_F32, .ndim = 1, .shape = {16}, .stride = {1}};
	struct piece piece = {.ndim = 1, .view = {8}, .box = {.extent = {8}}, .stride = {1}};
	struct held_box box = {.box = {.extent = {8}}};
	struct plan_worker worker = {.shadow_space = 9};
	struct manifest manifest;
	struct layout layout;
	struct copies copies;
	uint64_t shadow[1];
	struct error err;
	uint32_t index;

	(void)state;
	layout_init(&layout);
	assert_int_equal(layout_add_tensor(&layout, &missing, &piece.tensor, &err), 0);
	assert_int_equal(layout_add_parameter(&layout, &parameter, &piece.parameter, &err), 0);
	assert_int_equal(layout_add_piece(&layout, &piece, &err), 0);
	assert_int_equal(layout_add_tensor(&layout, &here, &piece.tensor, &err), 0);
	piece.offset = 8;
	assert_int_equal(layout_add_piece(&layout, &piece, &err), 0);
	assert_int_equal(layout_seal(&layout, false, &err), 0);
	manifest_init(&manifest);
	assert_int_equal(manifest_add_tensor(&manifest, &here, &index, &err), 0);
	assert_int_equal(manifest_add_box(&manifest, &box, &err), 0);
	assert_int_equal(manifest_seal(&manifest, &err), 0);
	worker.layout = &layout;
	worker.shadow_offset = shadow;
	plan_shadow(&layout, NULL, shadow);
	assert_int_equal(plan_commit(&manifest, &worker, 1, &copies, &err), 0);
	assert_int_equal(copies.n, 1);
	assert_int_equal(copies_bytes(&copies), 32);
	assert_int_equal(copies.v[0].dst, 32);
	copies_finish(&copies);
	manifest_finish(&manifest);
	layout_finish(&layout);
}

/* q, k and v one after another fill a fused parameter: one run each way. */
static void fused_is_one_run(void **state)
{
	struct manifest m;
	struct layout l;
	struct counts counts;

	(void)state;
	manifest_init(&m);
	layout_init(&l);
	publish(&m, "q", 32, 64);
	publish(&m, "k", 8, 64);
	publish(&m, "v", 8, 64);
	place(&l, "qkv", 512, 48, 64);
	wire(&l, "q", 32, 64, 0, (struct box){{0, 0}, {32, 64}}, 0, 64);
	wire(&l, "k", 8, 64, 0, (struct box){{0, 0}, {8, 64}}, 32 * 64, 64);
	wire(&l, "v", 8, 64, 0, (struct box){{0, 0}, {8, 64}}, 40 * 64, 64);
	counts = compile(&m, &l, 1 << 20);
	assert_int_equal(counts.buckets, 1);
	assert_int_equal(counts.scatter, 1);
	assert_int_equal(counts.first.ndim, 0);
	assert_int_equal(counts.first.run_bytes, 48 * 64 * 2);
	assert_int_equal(counts.first.dst, 512);
	assert_int_equal(counts.commit, 1);
}

/* Two halves of the columns, and two of the rows: one run. */
static void quarters_are_one_run(void **state)
{
	struct manifest m;
	struct layout l;
	struct counts counts;

	(void)state;
	manifest_init(&m);
	layout_init(&l);
	publish(&m, "w", 8, 8);
	place(&l, "p", 0, 8, 8);
	wire(&l, "w", 8, 8, 0, (struct box){{0, 0}, {3, 5}}, 0, 8);
	wire(&l, "w", 8, 8, 0, (struct box){{0, 5}, {3, 3}}, 5, 8);
	wire(&l, "w", 8, 8, 0, (struct box){{3, 0}, {5, 8}}, 24, 8);
	counts = compile(&m, &l, 1 << 20);
	assert_int_equal(counts.scatter, 1);
	assert_int_equal(counts.first.run_bytes, 128);
	assert_int_equal(counts.commit, 1);
}

/* 16 experts of equal small parts become rows of one copy; of large ones they do not. */
static void experts_are_rows(void **state)
{
	(void)state;
	for (int large = 0; large < 2; large++) {
		uint64_t width = large ? 64 << 10 : 64;
		struct manifest m;
		struct layout l;
		struct counts counts;

		manifest_init(&m);
		layout_init(&l);
		place(&l, "w13", 0, 64, width);
		for (uint64_t e = 0; e < 16; e++) {
			char name[32];

			snprintf(name, sizeof(name), "gate%u", (unsigned)e);
			publish(&m, name, 2, width);
			wire(&l, name, 2, width, 0, (struct box){{0, 0}, {2, width}}, e * 4 * width,
				width);
		}
		counts = compile(&m, &l, 1 << 24);
		assert_int_equal(counts.scatter, large ? 16 : 1);
		assert_int_equal(counts.commit, large ? 16 : 1);
		if (!large) {
			assert_int_equal(counts.first.ndim, 1);
			assert_int_equal(counts.first.extent[0], 16);
			assert_int_equal(counts.first.run_bytes, 256);
			assert_int_equal(counts.first.dst_stride[0], 512);
		}
	}
}

/* A box that is cut over buckets costs one copy a bucket; a row-parallel one has rows. */
static void cut_and_strided(void **state)
{
	struct manifest m;
	struct layout l;
	struct counts counts;

	(void)state;
	manifest_init(&m);
	layout_init(&l);
	publish(&m, "w", 64, 64);
	place(&l, "p", 0, 64, 32);
	wire(&l, "w", 64, 64, 0, (struct box){{0, 32}, {64, 32}}, 0, 32);
	counts = compile(&m, &l, 2048);
	assert_int_equal(counts.buckets, 4);
	assert_int_equal(counts.scatter, 4);
	assert_int_equal(counts.first.ndim, 1);
	assert_int_equal(counts.first.extent[0], 16);
	assert_int_equal(counts.first.run_bytes, 64);
	assert_int_equal(counts.first.src, 64);
	assert_int_equal(counts.first.src_stride[0], 128);
	assert_int_equal(counts.first.dst_stride[0], 64);
	assert_int_equal(counts.commit, 1);
}

static void normal_form(void **state)
{
	struct copy copy = {.run_bytes = 2,
		.ndim = 5,
		.extent = {4, 1, 3, 5, 2},
		.src_stride = {10, 77, 40, 2, 1000},
		.dst_stride = {10, 5, 40, 2, 120}};

	(void)state;
	copy_normalise(&copy);
	assert_int_equal(copy.ndim, 1);
	assert_int_equal(copy.run_bytes, 120);
	assert_int_equal(copy.extent[0], 2);
	assert_int_equal(copy.src_stride[0], 1000);
	assert_int_equal(copy.dst_stride[0], 120);
	/* The same at the destination alone: nothing may be folded. */
	copy = (struct copy){.run_bytes = 2,
		.ndim = 2,
		.extent = {3, 4},
		.src_stride = {2, 6},
		.dst_stride = {8, 2}};
	copy_normalise(&copy);
	assert_int_equal(copy.ndim, 2);
	assert_int_equal(copy.run_bytes, 2);
}

/* Pairs that must stay two copies, and the ones of the same shape that become one. */
static void merges(void **state)
{
	static const struct copy row = {.src = 100, .dst = 1000, .run_bytes = 8};
	static const struct copy rows = {.src = 100,
		.dst = 1000,
		.run_bytes = 8,
		.ndim = 1,
		.extent = {3},
		.src_stride = {16},
		.dst_stride = {32}};
	static const struct {
		const struct copy *a;
		uint64_t src, dst; /* of b, which else is the same */
		bool one;
	} table[] = {
		{&row, 108, 1008, true},
		{&row, 108, 1016, true},
		{&row, 120, 1008, true},
		{&row, 100, 1008, false}, /* one source for both */
		{&row, 104, 1008, false}, /* rows that overlap at the source */
		{&row, 92, 1008, false},  /* backwards */
		{&rows, 108, 1008, true},
		{&rows, 148, 1096, true},
		{&rows, 148, 1100, true},
		{&rows, 200, 1016, false}, /* interleaved: the new stride would be the lesser */
		{&rows, 200, 1032, false},
	};

	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(table); i++) {
		struct copy a = *table[i].a, b = a;

		b.src = table[i].src;
		b.dst = table[i].dst;
		assert_int_equal(copy_merge(&a, &b), table[i].one);
		assert_memory_equal(&a, table[i].a, table[i].one ? 0 : sizeof(a));
		a = *table[i].a;
		b.src_space = 1;
		assert_false(copy_merge(&a, &b));
		b.src_space = 0;
		b.dst_space = 1;
		assert_false(copy_merge(&a, &b));
	}
}

static void matching(void **state)
{
	struct manifest m;
	struct layout l;
	const struct layout *layouts[] = {&l};
	struct plan_uncovered uncovered;
	struct tensor t;
	struct error err = {0};
	uint32_t index;

	(void)state;
	manifest_init(&m);
	layout_init(&l);
	publish(&m, "a.weight", 4, 4);
	publish(&m, "spare.weight", 4, 4);
	publish(&m, "spare.bias", 0, 4);
	place(&l, "a", 0, 4, 4);
	place(&l, "b", 32, 4, 4);
	wire(&l, "a.weight", 4, 4, 0, (struct box){{0, 0}, {4, 4}}, 0, 4);
	assert_int_equal(manifest_seal(&m, &err), 0);
	assert_int_equal(plan_match(&m, &l, false, &err), 0);
	wire(&l, "b.weight", 4, 4, 1, (struct box){{0, 0}, {4, 4}}, 0, 4);
	assert_int_equal(plan_match(&m, &l, false, &err), -ENOENT);
	assert_string_equal(err.text, "parameter b: no tensor b.weight is published");
	assert_int_equal(plan_match(&m, &l, true, &err), 0);
	assert_int_equal(plan_uncovered(&m, layouts, 1, &uncovered), 0);
	assert_int_equal(uncovered.tensors, 1);
	assert_string_equal(uncovered.first_tensor, "spare.weight");
	assert_int_equal(uncovered.parameters, 1);
	assert_string_equal(uncovered.first_parameter, "b");
	layout_finish(&l);
	layout_init(&l);
	t = (struct tensor){"a.weight", STREW_F32, 2, {4, 4}};
	assert_int_equal(layout_add_tensor(&l, &t, &index, &err), 0);
	assert_int_equal(plan_match(&m, &l, false, &err), 0); /* no piece wants it */
	layout_finish(&l);
	layout_init(&l);
	place(&l, "a", 0, 4, 5);
	wire(&l, "a.weight", 4, 5, 0, (struct box){{0, 0}, {4, 5}}, 0, 5);
	assert_int_equal(plan_match(&m, &l, true, &err), -EINVAL);
	assert_string_equal(err.text,
		"tensor a.weight: the trainer has bf16 [4, 4], the layout expects bf16 [4, 5]");
	layout_finish(&l);
	manifest_finish(&m);
}

/* Sources whose strides would wrap are refused; boxes that lie elsewhere are left out. */
static void sources(void **state)
{
	static const struct source table[] = {
		{.stride = {1ull << 62, 1}},
		{.stride = {1ull << 63, 1ull << 63}},
		{.stride = {4, 1}, .offset_bytes = UINT64_MAX - 3},
		{.stride = {4, 1}, .offset_bytes = (1ull << 62) - 31},
	};
	struct source good = {.stride = {4, 1}, .offset_bytes = (1ull << 62) - 32};
	struct source elsewhere = {.memory = SOURCE_ELSEWHERE};
	struct manifest m;
	struct layout l;
	struct plan_worker worker = {.layout = &l, .space_base = 5};
	struct buckets buckets;
	struct copies copies;
	struct error err = {0};

	(void)state;
	manifest_init(&m);
	layout_init(&l);
	publish(&m, "a.weight", 4, 4);
	place(&l, "a", 0, 4, 4);
	wire(&l, "a.weight", 4, 4, 0, (struct box){{0, 0}, {4, 4}}, 0, 4);
	assert_int_equal(manifest_seal(&m, &err), 0);
	assert_int_equal(buckets_make(&m, 4096, one_root, 1, &buckets, &err), 0);
	memset(&copies, 0x44, sizeof(copies));
	for (size_t i = 0; i < ARRAY_LEN(table); i++) {
		assert_int_equal(plan_gather(&m, &buckets, &table[i], 0, &copies, &err), -ERANGE);
		assert_non_null(strstr(err.text, "tensor a.weight"));
		assert_int_equal(
			plan_local(&m, &buckets, &table[i], &worker, 1, &copies, &err), -ERANGE);
	}
	assert_int_equal(plan_gather(&m, &buckets, &elsewhere, 0, &copies, &err), -EINVAL);
	assert_int_equal(copies.n, 0x4444444444444444);
	assert_int_equal(plan_gather(&m, &buckets, &elsewhere, 1, &copies, &err), 0);
	copies_finish(&copies);
	assert_int_equal(plan_local(&m, &buckets, &elsewhere, &worker, 1, &copies, &err), 0);
	assert_int_equal(copies.n, 0);
	copies_finish(&copies);
	assert_int_equal(plan_local(&m, &buckets, &good, &worker, 1, &copies, &err), 0);
	assert_int_equal(copies.n, 1);
	assert_int_equal(copies.v[0].dst_space, 5);
	copies_finish(&copies);
	buckets_finish(&buckets);
	layout_finish(&l);
	manifest_finish(&m);
}

static void shadows(void **state)
{
	uint64_t offset[16];
	struct layout l;

	(void)state;
	layout_init(&l);
	place(&l, "a", 2, 3, 3);
	place(&l, "b", 512, 300, 1);
	place(&l, "c", 4096 + 6, 0, 4);
	assert_int_equal(plan_shadow(&l, NULL, offset), 1024 + 6);
	assert_int_equal(offset[0], 2);
	assert_int_equal(offset[1], 256);
	assert_int_equal(offset[2], 1024 + 6);
	/* Lengths that no memory has do not wrap. */
	for (unsigned i = 0; i < 10; i++) {
		char name[16];

		snprintf(name, sizeof(name), "%u", i);
		place(&l, name, 0, 1ull << 60, 1);
	}
	assert_true(plan_shadow(&l, NULL, offset) == UINT64_MAX);
	layout_finish(&l);
}

static double since(struct timespec start)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (double)(now.tv_sec - start.tv_sec) * 1e3 +
	       (double)(now.tv_nsec - start.tv_nsec) * 1e-6;
}

/* `tensors` matrices on two workers, halved by rows or by columns: 2 × tensors pieces. */
static void timed(uint32_t tensors, uint64_t slot)
{
	struct manifest m;
	struct layout l[2];
	struct plan_worker workers[2];
	struct buckets buckets;
	struct copies copies;
	struct timespec start;
	struct error err;
	double add, seal, cut, match, scatter;

	clock_gettime(CLOCK_MONOTONIC, &start);
	manifest_init(&m);
	for (uint32_t w = 0; w < 2; w++) {
		layout_init(&l[w]);
		workers[w] = (struct plan_worker){.layout = &l[w], .space_base = w};
	}
	for (uint32_t t = 0; t < tensors; t++) {
		char name[64];

		snprintf(name, sizeof(name), "model.layers.%u.mlp.experts.%u.w", t / 128, t % 128);
		publish(&m, name, 64, 64);
		for (uint32_t w = 0; w < 2; w++) {
			uint32_t p = place(&l[w], name, t * 4096ull, 32, 64);

			if (t % 2) {
				wire(&l[w], name, 64, 64, p, (struct box){{32 * w, 0}, {32, 64}}, 0,
					64);
			} else {
				wire(&l[w], name, 64, 64, p, (struct box){{0, 32 * w}, {64, 32}}, 0,
					32);
			}
		}
	}
	add = since(start);
	clock_gettime(CLOCK_MONOTONIC, &start);
	assert_int_equal(manifest_seal(&m, &err), 0);
	assert_int_equal(layout_seal(&l[0], false, &err), 0);
	assert_int_equal(layout_seal(&l[1], false, &err), 0);
	seal = since(start);
	clock_gettime(CLOCK_MONOTONIC, &start);
	assert_int_equal(buckets_make(&m, slot, one_root, 1, &buckets, &err), 0);
	cut = since(start);
	clock_gettime(CLOCK_MONOTONIC, &start);
	assert_int_equal(plan_match(&m, &l[0], false, &err), 0);
	assert_int_equal(plan_match(&m, &l[1], false, &err), 0);
	match = since(start);
	clock_gettime(CLOCK_MONOTONIC, &start);
	assert_int_equal(plan_scatter(&m, &buckets, workers, 2, &copies, &err), 0);
	scatter = since(start);
	fprintf(stderr,
		"%u pieces on two workers, %zu buckets, %zu copies: add %.1f ms, seal %.1f, "
		"buckets %.1f, match %.1f, scatter %.1f\n",
		2 * tensors, buckets.n, copies.n, add, seal, cut, match, scatter);
	copies_finish(&copies);
	buckets_finish(&buckets);
	manifest_finish(&m);
	layout_finish(&l[0]);
	layout_finish(&l[1]);
}

static void timing(void **state)
{
	(void)state;
	timed(20000, 8 << 20);
	timed(40000, 8 << 20);
	timed(100000, 256 << 20);
}

int main(void)
{
	const struct CMUnitTest tests[] = {cmocka_unit_test(commit_of_a_part),
		cmocka_unit_test(fused_is_one_run), cmocka_unit_test(quarters_are_one_run),
		cmocka_unit_test(experts_are_rows), cmocka_unit_test(cut_and_strided),
		cmocka_unit_test(normal_form), cmocka_unit_test(merges), cmocka_unit_test(matching),
		cmocka_unit_test(sources), cmocka_unit_test(shadows), cmocka_unit_test(timing)};

	return TEST_RUN(tests);
}
