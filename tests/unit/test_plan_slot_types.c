/* Slot types: runs against plain arrays, tables that do not fit, and what brokers may say. */
#include "base/util.h"
#include "plan/slot_types.h"
#include "plan/subset.h"
#include "support/test_main.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define TENSORS 5000

static struct slot_types pack(const uint8_t *v, uint32_t n)
{
	struct slot_types types = {.n = 0};

	for (uint32_t i = 0; i < n;) {
		uint32_t end = i;

		while (end < n && v[end] == v[i]) {
			end++;
		}
		assert_true(types.n < LIMIT_SLOT_TYPES);
		types.runs[types.n++] = (end - i) << 2 | v[i];
		i = end;
	}
	return types;
}

/* Random types with runs of up to `longest`. */
static void random_types(uint8_t *v, uint32_t n, uint32_t longest)
{
	for (uint32_t i = 0; i < n;) {
		uint32_t far = i + 1 + (uint32_t)test_random_below(longest); /* MIN calls twice */
		uint32_t end = MIN(n, far);
		uint8_t type = (uint8_t)test_random_below(4);

		while (i < end) {
			v[i++] = type;
		}
	}
}

static uint8_t both(uint8_t a, uint8_t b)
{
	static const uint8_t table[4][4] = {{0, 0, 0, 0}, {0, 1, 2, 3}, {0, 2, 2, 0}, {0, 3, 0, 3}};

	return table[a][b];
}

static void assert_types(const struct slot_types *types, const uint8_t *v, uint32_t n)
{
	struct slot_types want = pack(v, n);

	if (want.n == 1 && (want.runs[0] & 3) == SLOT_OWN) {
		want.n = 0;
	}
	assert_true(slot_types_equal(types, &want));
}

static void test_merge(void **state)
{
	static uint8_t a[TENSORS], b[TENSORS], merged[TENSORS], settled[TENSORS];

	(void)state;
	for (unsigned turn = 0; turn < 400; turn++) {
		uint32_t n = 1 + (uint32_t)test_random_below(turn % 4 ? 40 : TENSORS);
		uint32_t longest = 1 + n / 20;
		struct slot_types types, other, back;
		bool serves = true;

		random_types(a, n, longest);
		random_types(b, n, longest);
		types = pack(a, n);
		other = pack(b, n);
		for (uint32_t i = 0; i < n; i++) {
			merged[i] = both(a[i], b[i]);
			settled[i] = merged[i] == SLOT_ANY ? SLOT_OWN : merged[i];
		}
		back = other;
		slot_types_merge(&types, &other);
		assert_types(&types, merged, n);
		types = pack(a, n);
		slot_types_merge(&back, &types); /* the same the other way round */
		assert_types(&back, merged, n);
		slot_types_settle(&back);
		assert_types(&back, settled, n);
		assert_true(slot_types_serve(&back, &types));
		assert_true(slot_types_serve(&back, &other));
		/* And a table that was not made for them. */
		random_types(merged, n, longest);
		for (uint32_t i = 0; i < n; i++) {
			merged[i] = merged[i] == SLOT_ANY ? SLOT_OWN : merged[i];
			serves = serves &&
				 (merged[i] == SLOT_OWN || a[i] == SLOT_ANY || a[i] == merged[i]);
		}
		back = pack(merged, n);
		assert_int_equal(slot_types_serve(&back, &types), serves);
	}
}

/* Those of some tensors, as the plain array of them has it. */
static void test_choose(void **state)
{
	static uint8_t all[TENSORS], some[TENSORS], chosen[TENSORS / 8 + 1];

	(void)state;
	for (unsigned turn = 0; turn < 400; turn++) {
		uint32_t n = 1 + (uint32_t)test_random_below(turn % 4 ? 40 : TENSORS), k = 0;
		struct slot_types types, made;

		random_types(all, n, 1 + n / 20);
		memset(chosen, 0, sizeof(chosen));
		for (uint32_t i = 0; i < n; i++) {
			if (test_random_below(3) || i + 1 == n) {
				bits_set(chosen, i);
				some[k++] = all[i];
			}
		}
		types = pack(all, n);
		memset(&made, 0x5a, sizeof(made));
		slot_types_choose(&types, chosen, n, &made);
		assert_types(&made, some, k);
	}
	/* Nothing said of the whole is nothing said of a part. */
	{
		struct slot_types none = {.n = 0}, made = {.n = 9};

		slot_types_choose(&none, chosen, 8, &made);
		assert_int_equal(made.n, 0);
	}
}

/* Of other manifests, empty, with empty runs: then nothing is cast before the wire. */
static void test_mismatch(void **state)
{
	const struct slot_types none = {.n = 0}, ten = {1, {10 << 2 | SLOT_BF16}},
				eleven = {1, {11 << 2 | SLOT_BF16}},
				split = {4, {0 | SLOT_ANY, 4 << 2 | SLOT_BF16, 0 | SLOT_F16,
						    6 << 2 | SLOT_ANY}},
				huge = {2, {UINT32_MAX, UINT32_MAX}}, zero = {1, {SLOT_BF16}};
	const struct slot_types *const all[] = {&none, &eleven, &huge, &zero};
	struct slot_types types;

	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(all); i++) {
		types = ten;
		slot_types_merge(&types, all[i]);
		assert_int_equal(types.n, 0);
		types = *all[i];
		slot_types_merge(&types, &ten);
		assert_int_equal(types.n, 0);
		assert_int_equal(slot_types_serve(&ten, all[i]), false);
		assert_true(slot_types_serve(&none, all[i]));
	}
	types = ten;
	slot_types_merge(&types, &split);
	assert_int_equal(types.n, 1);
	assert_int_equal(types.runs[0], 10 << 2 | SLOT_BF16);
}

/* Tensors t.0, t.1, … of rank 0 and 1 in turn, each of 4 elements. */
static void make_manifest(struct manifest *manifest, uint32_t n, enum strew_dtype dtype)
{
	struct error err;

	manifest_init(manifest);
	for (uint32_t rank = 0; rank < 2; rank++) {
		for (uint32_t i = rank; i < n; i += 2) {
			char name[32];
			struct tensor tensor = {name, dtype, 1, {4}};
			struct held_box held = {.rank = rank, .box = {{0}, {4}}};

			snprintf(name, sizeof(name), "t.%u", i);
			assert_int_equal(
				manifest_add_tensor(manifest, &tensor, &held.tensor, &err), 0);
			assert_int_equal(manifest_add_box(manifest, &held, &err), 0);
		}
	}
	assert_int_equal(manifest_seal(manifest, &err), 0);
}

/* Piece i wants tensor i % ntensors of the manifest in dtypes[i]. */
static void make_layout(struct layout *layout, const struct manifest *manifest, uint32_t npieces,
	const enum strew_dtype *dtypes)
{
	struct error err = {0};

	layout_init(layout);
	for (uint32_t i = 0; i < npieces; i++) {
		const struct tensor *tensor = &manifest->tensors[i % manifest->ntensors];
		char name[32];
		struct parameter parameter = {.name = name,
			.offset_bytes = 64 * i,
			.dtype = dtypes[i],
			.ndim = 1,
			.shape = {4}};
		struct piece piece = {.ndim = 1,
			.view = {4},
			.box = {{0}, {4}},
			.cast = dtypes[i] != tensor->dtype};

		snprintf(name, sizeof(name), "p.%u", i);
		assert_int_equal(
			layout_add_parameter(layout, &parameter, &piece.parameter, &err), 0);
		assert_int_equal(layout_add_tensor(layout, tensor, &piece.tensor, &err), 0);
		assert_int_equal(layout_add_piece(layout, &piece, &err), 0);
	}
	assert_int_equal(layout_seal(layout, false, &err), 0);
}

static void test_wanted(void **state)
{
	static const enum strew_dtype first[] = {
		STREW_BF16, STREW_F16, STREW_F32, STREW_BF16, STREW_BF16, STREW_F16};
	static const enum strew_dtype second[] = {STREW_BF16, STREW_BF16, STREW_BF16};
	const uint32_t roots[] = {0, 3};
	const struct layout *layouts[2];
	struct layout a, b;
	struct manifest manifest;
	struct slot_types types;

	(void)state;
	/* In the manifest's order: t.0, t.2, t.4, t.6 of rank 0, then t.1, t.3, t.5 of rank 1. */
	make_manifest(&manifest, 7, STREW_F32);
	make_layout(&a, &manifest, 6, first);
	make_layout(&b, &manifest, 3, second);
	layouts[0] = &a;
	layouts[1] = &b;
	assert_int_equal(slot_types_wanted(&manifest, roots, 2, 7, layouts, 1, &types), 0);
	assert_types(&types, (const uint8_t[]){3, 2, 0, 3, 3, 2, 1}, 7);
	assert_int_equal(slot_types_wanted(&manifest, roots, 2, 7, layouts, 2, &types), 0);
	assert_types(&types, (const uint8_t[]){3, 0, 0, 3, 3, 2, 1}, 7);
	/* A broker that gathers rank 0's, or rank 1's, tensors feeds its own workers from them. */
	assert_int_equal(slot_types_wanted(&manifest, roots, 2, 0, layouts, 2, &types), 0);
	assert_types(&types, (const uint8_t[]){1, 1, 1, 1, 3, 2, 1}, 7);
	assert_int_equal(slot_types_wanted(&manifest, roots, 2, 3, layouts, 2, &types), 0);
	assert_types(&types, (const uint8_t[]){3, 0, 0, 3, 1, 1, 1}, 7);
	assert_int_equal(slot_types_wanted(&manifest, roots, 2, 7, NULL, 0, &types), 0);
	assert_types(&types, (const uint8_t[]){1, 1, 1, 1, 1, 1, 1}, 7);
	layout_finish(&a);
	layout_finish(&b);
	manifest_finish(&manifest);
	/* bf16 is not cast to f16 before the wire: it would save nothing. */
	make_manifest(&manifest, 6, STREW_BF16);
	make_layout(&a, &manifest, 6, first);
	layouts[0] = &a;
	assert_int_equal(slot_types_wanted(&manifest, roots, 2, 7, layouts, 1, &types), 0);
	assert_int_equal(types.n, 0);
	layout_finish(&a);
	manifest_finish(&manifest);
}

/* As many runs as there is room for, and one more. */
static void test_too_many(void **state)
{
	enum strew_dtype *dtypes = calloc(LIMIT_SLOT_TYPES + 1, sizeof(*dtypes));
	const uint32_t roots[] = {0, 0};

	(void)state;
	for (uint32_t i = 0; i <= LIMIT_SLOT_TYPES; i++) {
		dtypes[i] = i % 2 ? STREW_F16 : STREW_BF16;
	}
	for (uint32_t n = LIMIT_SLOT_TYPES; n <= LIMIT_SLOT_TYPES + 1; n++) {
		const struct layout *layouts[1];
		struct slot_types types;
		struct manifest manifest;
		struct layout layout;

		make_manifest(&manifest, n, STREW_F32);
		make_layout(&layout, &manifest, n, dtypes);
		layouts[0] = &layout;
		assert_int_equal(slot_types_wanted(&manifest, roots, 2, 1, layouts, 1, &types), 0);
		assert_int_equal(types.n, n == LIMIT_SLOT_TYPES ? n : 0);
		layout_finish(&layout);
		manifest_finish(&manifest);
	}
	free(dtypes);
}

static void test_merge_too_many(void **state)
{
	static uint8_t a[2 * LIMIT_SLOT_TYPES], b[2 * LIMIT_SLOT_TYPES];
	struct slot_types types, other;

	(void)state;
	/* Runs of two, one tensor apart: merged they are runs of one. */
	for (uint32_t i = 0; i < ARRAY_LEN(a); i++) {
		a[i] = i / 2 % 2 ? SLOT_F16 : SLOT_ANY;
		b[i] = (i + 1) / 2 % 2 ? SLOT_BF16 : SLOT_ANY;
	}
	b[ARRAY_LEN(a) - 1] = b[ARRAY_LEN(a) - 2];
	types = pack(a, ARRAY_LEN(a));
	other = pack(b, ARRAY_LEN(b));
	slot_types_merge(&types, &other);
	assert_int_equal(types.n, 0);
}

static void test_expand(void **state)
{
	static const struct {
		struct slot_types types;
		const char *text;
	} bad[] = {
		{{1, {5 << 2 | SLOT_BF16}}, "5 tensors, but there are 6"},
		{{1, {7 << 2 | SLOT_BF16}}, "not of this manifest"},
		{{1, {UINT32_MAX}}, "not of this manifest"},
		{{1, {6 << 2 | SLOT_ANY}}, "not of this manifest"},
		{{1, {SLOT_BF16}}, "0 tensors"},
		{{2, {6 << 2 | SLOT_OWN, 1 << 2 | SLOT_OWN}}, "not of this manifest"},
	};
	struct slot_types types = {3, {1 << 2 | SLOT_F16, 2 << 2 | SLOT_OWN, 3 << 2 | SLOT_BF16}};
	const uint8_t want[] = {STREW_F16, 0, 0, STREW_BF16, STREW_BF16, STREW_BF16};
	struct manifest manifest;
	struct error err = {0};
	uint8_t *dtypes;

	(void)state;
	make_manifest(&manifest, 6, STREW_F32);
	assert_int_equal(slot_types_expand(&types, &manifest, &dtypes, &err), 0);
	assert_memory_equal(dtypes, want, 6);
	free(dtypes);
	for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
		assert_int_equal(
			slot_types_expand(&bad[i].types, &manifest, &dtypes, &err), -EINVAL);
		if (!strstr(err.text, bad[i].text)) {
			fail_msg("%s", err.text);
		}
	}
	manifest_finish(&manifest);
	make_manifest(&manifest, 6, STREW_I32);
	assert_int_equal(slot_types_expand(&types, &manifest, &dtypes, &err), -EINVAL);
	assert_non_null(strstr(err.text, "tensor t.0: i32"));
	types.n = 0;
	assert_int_equal(slot_types_expand(&types, &manifest, &dtypes, &err), 0);
	assert_null(dtypes);
	manifest_finish(&manifest);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_merge),
		cmocka_unit_test(test_choose),
		cmocka_unit_test(test_mismatch),
		cmocka_unit_test(test_wanted),
		cmocka_unit_test(test_too_many),
		cmocka_unit_test(test_merge_too_many),
		cmocka_unit_test(test_expand),
	};

	test_seed();
	return TEST_RUN(tests);
}
