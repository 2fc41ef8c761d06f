/* Manifests that are refused, and the rules by which boxes become buckets. */
#include "base/util.h"
#include "plan/manifest.h"
#include "support/test_main.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const uint32_t roots[4] = {0, 0, 1, 0};

static uint32_t tensor(struct manifest *m, const char *name, enum strew_dtype dtype, int ndim,
	const uint64_t *shape)
{
	struct tensor t = {.name = name, .dtype = dtype, .ndim = ndim};
	struct error err;
	uint32_t index;

	memcpy(t.shape, shape, sizeof(*shape) * (size_t)ndim);
	assert_int_equal(manifest_add_tensor(m, &t, &index, &err), 0);
	return index;
}

static void hold(struct manifest *m, uint32_t t, uint32_t rank, struct box box)
{
	struct held_box held = {.tensor = t, .rank = rank, .box = box};
	struct error err;

	assert_int_equal(manifest_add_box(m, &held, &err), 0);
}

static void refusals(void **state)
{
	static const struct {
		struct held_box box;
		int code;
		const char *sentence;
	} table[] = {
		{{.tensor = 1}, -EINVAL, "tensor number 1"},
		{{.rank = LIMIT_RANKS}, -E2BIG, "tensor w.w: a box of rank 256"},
		{{.box = {{4, 0}, {1, 1}}}, -ERANGE,
			"tensor w.w: a box at [4, 0] of extent [1, 1] is not inside [4, 3]"},
		{{.box = {{0, 1}, {4, 3}}}, -ERANGE, "w.w"},
		{{.box = {{UINT64_MAX, 0}, {2, 1}}}, -ERANGE, "w.w"},
		{{.box = {{1, 0}, {UINT64_MAX, 1}}}, -ERANGE, "w.w"},
	};
	struct manifest m, before;
	struct buckets buckets;
	struct error err = {0};

	(void)state;
	manifest_init(&m);
	tensor(&m, "w.w", STREW_F32, 2, (uint64_t[]){4, 3});
	for (size_t i = 0; i < ARRAY_LEN(table); i++) {
		before = m;
		assert_int_equal(manifest_add_box(&m, &table[i].box, &err), table[i].code);
		if (!strstr(err.text, table[i].sentence)) {
			fail_msg("%zu: '%s' lacks '%s'", i, err.text, table[i].sentence);
		}
		assert_memory_equal(&m, &before, sizeof(m));
	}
	assert_int_equal(manifest_seal(&m, &err), -EINVAL);
	assert_string_equal(err.text, "tensor w.w f32 [4, 3]: no rank holds 12 of its elements");
	hold(&m, 0, 0, (struct box){{0, 0}, {3, 2}});
	hold(&m, 0, 1, (struct box){{2, 1}, {2, 2}});
	assert_int_equal(manifest_seal(&m, &err), -EINVAL);
	assert_string_equal(err.text, "tensor w.w f32 [4, 3]: no rank holds 3 of its elements");
	hold(&m, 0, 2, (struct box){{0, 2}, {2, 1}});
	hold(&m, 0, 3, (struct box){{3, 0}, {1, 1}});
	assert_int_equal(manifest_seal(&m, &err), 0);
	assert_int_equal(manifest_seal(&m, &err), -EINVAL);
	assert_int_equal(manifest_add_box(&m, &table[0].box, &err), -EINVAL);
	assert_int_equal(manifest_find(&m, "w.w"), 0);
	assert_int_equal(manifest_find(&m, "w"), -ENOENT);
	assert_int_equal(manifest_bytes(&m), 48);
	memset(&buckets, 0x33, sizeof(buckets));
	assert_int_equal(buckets_make(&m, 3, roots, 4, &buckets, &err), -EINVAL);
	assert_string_equal(err.text, "tensor w.w: an element of 4 bytes does not fit a slot of 3");
	assert_int_equal(buckets_make(&m, 0, roots, 4, &buckets, &err), -EINVAL);
	assert_int_equal(buckets_make(&m, 64, roots, 3, &buckets, &err), -EINVAL);
	assert_non_null(strstr(err.text, "held by rank 3, but there are 3 ranks"));
	assert_int_equal(buckets.n, 0x3333333333333333);
	manifest_finish(&m);
}

static void expect(const struct buckets *b, size_t i, uint32_t box, uint64_t start0,
	uint64_t extent0, uint64_t offset)
{
	assert_int_equal(b->entries[i].box, box);
	assert_int_equal(b->entries[i].part.start[0], start0);
	assert_int_equal(b->entries[i].part.extent[0], extent0);
	assert_int_equal(b->entries[i].slot_offset_bytes, offset);
}

/* Boxes stay whole, unless one is longer than a slot or would leave much of one empty: it fills
 * what is left and goes on. */
static void packing(void **state)
{
	struct manifest m;
	struct buckets b;
	struct error err;

	(void)state;
	manifest_init(&m);
	tensor(&m, "small", STREW_U8, 1, (uint64_t[]){100});
	tensor(&m, "long", STREW_U8, 2, (uint64_t[]){10, 300});
	tensor(&m, "whole", STREW_U8, 1, (uint64_t[]){900});
	tensor(&m, "empty", STREW_U8, 2, (uint64_t[]){0, 9});
	tensor(&m, "other root", STREW_U8, 0, (uint64_t[]){0});
	tensor(&m, "back", STREW_F64, 0, (uint64_t[]){0});
	hold(&m, 0, 0, (struct box){{0}, {100}});
	hold(&m, 1, 0, (struct box){{0, 0}, {10, 300}});
	hold(&m, 2, 0, (struct box){{0}, {900}});
	hold(&m, 3, 0, (struct box){{0, 0}, {0, 9}});
	hold(&m, 4, 2, (struct box){{0}, {0}});
	hold(&m, 5, 3, (struct box){{0}, {0}});
	assert_int_equal(manifest_seal(&m, &err), 0);
	assert_int_equal(buckets_make(&m, 1024, roots, 4, &b, &err), 0);
	assert_int_equal(b.n, 7);
	assert_int_equal(b.nentries, 9);
	expect(&b, 0, 0, 0, 100, 0);
	expect(&b, 1, 1, 0, 2, 256);
	assert_int_equal(b.v[0].len_bytes, 856);
	expect(&b, 2, 1, 2, 3, 0);
	expect(&b, 3, 1, 5, 3, 0);
	expect(&b, 4, 1, 8, 2, 0);
	expect(&b, 5, 2, 0, 256, 768);
	expect(&b, 6, 2, 256, 644, 0);
	expect(&b, 7, 4, 0, 0, 0);
	expect(&b, 8, 5, 0, 0, 0);
	assert_int_equal(b.v[4].root, 0);
	assert_int_equal(b.v[5].root, 1);
	assert_int_equal(b.v[6].root, 0);
	buckets_finish(&b);
	/* A slot shorter than a row: single rows, each cut along the next dimension. */
	assert_int_equal(buckets_make(&m, 256, roots, 4, &b, &err), 0);
	assert_int_equal(b.entries[1].part.extent[0], 1);
	assert_int_equal(b.entries[1].part.extent[1], 256);
	assert_int_equal(b.entries[2].part.start[1], 256);
	assert_int_equal(b.entries[2].part.extent[1], 44);
	buckets_finish(&b);
	manifest_finish(&m);
}

/* Buckets between the ramps are full where rows let them be, and a row is never cut for it. */
static void filled(void **state)
{
	/* Of 24 slots that 1,536,000 bytes need; rows of 4,800 end evenly only by four. */
	static const struct {
		uint64_t row_bytes;
		size_t full;
	} table[] = {{256, 23}, {512, 23}, {24, 16}, {4800, 0}};
	const uint64_t slot = 64 << 10;

	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(table); i++) {
		struct manifest m;
		struct buckets b;
		struct error err;
		size_t full = 0;

		manifest_init(&m);
		for (uint32_t k = 0; k < 40; k++) {
			uint64_t shape[] = {38400 / table[i].row_bytes, table[i].row_bytes};
			char name[16];

			snprintf(name, sizeof(name), "t%u", k);
			hold(&m, tensor(&m, name, STREW_U8, 2, shape), 0,
				(struct box){{0, 0}, {shape[0], shape[1]}});
		}
		assert_int_equal(manifest_seal(&m, &err), 0);
		assert_int_equal(buckets_make(&m, slot, roots, 1, &b, &err), 0);
		for (size_t k = 0; k < b.n; k++) {
			full += b.v[k].len_bytes > slot - slot / 16;
		}
		for (size_t k = 0; k < b.nentries; k++) {
			assert_int_equal(b.entries[k].part.extent[1], table[i].row_bytes);
			assert_true(!k || b.entries[k].slot_offset_bytes == 0 ||
				    b.entries[k].box == b.entries[k - 1].box + 1);
		}
		assert_int_equal(full, table[i].full);
		buckets_finish(&b);
		manifest_finish(&m);
	}
}

/* A tensor of 2^62 bytes is legal; cut too finely it is refused, and nothing is lost. */
static void enormous(void **state)
{
	struct manifest m;
	struct buckets b;
	struct error err;

	(void)state;
	manifest_init(&m);
	tensor(&m, "huge", STREW_F64, 2, (uint64_t[]){1ull << 30, 1ull << 29});
	hold(&m, 0, 0, (struct box){{0, 0}, {1ull << 30, 1ull << 29}});
	assert_int_equal(manifest_seal(&m, &err), 0);
	assert_int_equal(manifest_bytes(&m), 1ull << 62);
	assert_int_equal(buckets_make(&m, 1ull << 50, roots, 4, &b, &err), 0);
	assert_int_equal(b.n, (1 << 12) + 3);
	buckets_finish(&b);
	assert_int_equal(buckets_make(&m, UINT64_MAX, roots, 4, &b, &err), 0);
	assert_int_equal(b.n, 1);
	buckets_finish(&b);
	assert_int_equal(buckets_make(&m, 1 << 16, roots, 4, &b, &err), -E2BIG);
	assert_non_null(strstr(err.text, "tensor huge: over 16777216 parts"));
	manifest_finish(&m);
}

/* Long slots: the first and the last buckets are shorter, so that the wire starts and ends soon. */
static void ramp(void **state)
{
	const uint64_t mib = 1 << 20, lengths[] = {64, 128, 256, 256, 160, 80, 80};
	struct manifest m;
	struct buckets b;
	struct error err;

	(void)state;
	manifest_init(&m);
	tensor(&m, "long", STREW_U8, 2, (uint64_t[]){1024, mib});
	hold(&m, 0, 0, (struct box){{0, 0}, {1024, mib}});
	assert_int_equal(manifest_seal(&m, &err), 0);
	assert_int_equal(buckets_make(&m, 256 * mib, roots, 4, &b, &err), 0);
	assert_int_equal(b.n, ARRAY_LEN(lengths));
	for (size_t i = 0; i < b.n; i++) {
		assert_int_equal(b.v[i].len_bytes, lengths[i] * mib);
	}
	buckets_finish(&b);
	/* Short slots have no ramp, and what fits one goes in one. */
	assert_int_equal(buckets_make(&m, 8 * mib, roots, 4, &b, &err), 0);
	assert_int_equal(b.n, 128);
	buckets_finish(&b);
	manifest_finish(&m);
}

/* 64 replicas of 4,000 tensors, and 256 shards of 500: equal boxes must cost next to nothing. */
static void many_ranks(void **state)
{
	static uint32_t zero[LIMIT_RANKS];
	struct manifest m;
	struct buckets b;
	struct error err;

	(void)state;
	manifest_init(&m);
	for (uint32_t t = 0; t < 4500; t++) {
		char name[32];

		snprintf(name, sizeof(name), "t%u", t);
		tensor(&m, name, STREW_BF16, 2, (uint64_t[]){256, 16});
	}
	for (uint32_t rank = 0; rank < 256; rank++) {
		for (uint32_t t = 0; rank < 64 && t < 4000; t++) {
			hold(&m, t, rank, (struct box){{0, 0}, {256, 16}});
		}
		for (uint32_t t = 4000; t < 4500; t++) {
			hold(&m, t, rank, (struct box){{rank, 0}, {1, 16}});
		}
	}
	assert_int_equal(manifest_seal(&m, &err), 0);
	assert_int_equal(buckets_make(&m, 1 << 20, zero, 256, &b, &err), 0);
	assert_int_equal(b.nentries, 4000 + 256 * 500);
	for (size_t i = 0; i < 4000; i++) {
		assert_int_equal(m.boxes[b.entries[i].box].rank, 0);
	}
	buckets_finish(&b);
	manifest_finish(&m);
}

/* Boxes added in any order: rank decides, then the place. */
static void lowest_rank(void **state)
{
	struct manifest m;
	struct buckets b;
	struct error err;

	(void)state;
	manifest_init(&m);
	tensor(&m, "t", STREW_U8, 1, (uint64_t[]){10});
	hold(&m, 0, 3, (struct box){{0}, {10}});
	hold(&m, 0, 1, (struct box){{4}, {2}});
	hold(&m, 0, 1, (struct box){{5}, {2}});
	hold(&m, 0, 0, (struct box){{0}, {1}});
	assert_int_equal(manifest_seal(&m, &err), 0);
	assert_int_equal(buckets_make(&m, 4096, roots, 4, &b, &err), 0);
	assert_int_equal(b.nentries, 5);
	expect(&b, 0, 0, 1, 3, 0);
	expect(&b, 1, 0, 7, 3, 256);
	expect(&b, 2, 1, 4, 2, 512);
	expect(&b, 3, 2, 6, 1, 768);
	expect(&b, 4, 3, 0, 1, 1024);
	buckets_finish(&b);
	manifest_finish(&m);
}

int main(void)
{
	const struct CMUnitTest tests[] = {cmocka_unit_test(refusals), cmocka_unit_test(packing),
		cmocka_unit_test(filled), cmocka_unit_test(enormous), cmocka_unit_test(ramp),
		cmocka_unit_test(many_ranks), cmocka_unit_test(lowest_rank)};

	return TEST_RUN(tests);
}
