/* Shapes, boxes and dtypes: small cases exactly, random boxes by brute force, sizes near 2^63. */
#include "base/util.h"
#include "plan/name_index.h"
#include "plan/tensor.h"
#include "plan/view.h"
#include "support/test_main.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void dtypes(void **state)
{
	static const struct {
		enum strew_dtype dtype;
		const char *name, *other;
		size_t size;
	} table[] = {{STREW_F32, "f32", "F32", 4}, {STREW_BF16, "bf16", "BF16", 2},
		{STREW_F16, "f16", "F16", 2}, {STREW_F8_E4M3, "f8_e4m3", "F8_E4M3", 1},
		{STREW_F8_E5M2, "f8_e5m2", "F8_E5M2", 1}, {STREW_I8, "i8", "I8", 1},
		{STREW_U8, "u8", "U8", 1}, {STREW_I16, "i16", "I16", 2},
		{STREW_U16, "u16", "U16", 2}, {STREW_I32, "i32", "I32", 4},
		{STREW_U32, "u32", "U32", 4}, {STREW_I64, "i64", "I64", 8},
		{STREW_U64, "u64", "U64", 8}, {STREW_F64, "f64", "F64", 8},
		{STREW_BOOL, "bool", "BOOL", 1}};

	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(table); i++) {
		assert_true(dtype_valid(table[i].dtype));
		assert_int_equal(strew_dtype_size(table[i].dtype), table[i].size);
		assert_string_equal(strew_dtype_name(table[i].dtype), table[i].name);
		assert_int_equal(dtype_parse(table[i].name), table[i].dtype);
		assert_int_equal(dtype_parse(table[i].other), table[i].dtype);
	}
	assert_false(dtype_valid(0));
	assert_false(dtype_valid(16));
	assert_false(dtype_valid(UINT32_MAX));
	assert_int_equal(strew_dtype_size((enum strew_dtype)99), 0);
	assert_string_equal(strew_dtype_name(STREW_DTYPE_INVALID), "invalid");
	assert_int_equal(dtype_parse("Bf16"), STREW_DTYPE_INVALID);
	assert_int_equal(dtype_parse(""), STREW_DTYPE_INVALID);
}

static void counts(void **state)
{
	uint64_t n = 7, stride[STREW_MAX_DIMS];

	(void)state;
	assert_int_equal(dims_count(0, NULL, &n), 0);
	assert_int_equal(n, 1);
	assert_int_equal(dims_count(3, (uint64_t[]){2, 3, 4}, &n), 0);
	assert_int_equal(n, 24);
	assert_int_equal(dims_count(3, (uint64_t[]){1ull << 63, 4, 0}, &n), 0);
	assert_int_equal(n, 0);
	n = 7;
	assert_int_equal(dims_count(2, (uint64_t[]){1ull << 32, 1ull << 32}, &n), -ERANGE);
	assert_int_equal(n, 7);
	assert_int_equal(dims_count(2, (uint64_t[]){1ull << 32, (1ull << 32) - 1}, &n), 0);
	dims_dense(3, (uint64_t[]){2, 3, 4}, stride);
	assert_int_equal(stride[0], 12);
	assert_int_equal(stride[1], 4);
	assert_int_equal(stride[2], 1);
	assert_int_equal(dims_span(2, (uint64_t[]){3, 4}, (uint64_t[]){10, 2}, &n), 0);
	assert_int_equal(n, 27);
	assert_int_equal(dims_span(2, (uint64_t[]){0, 4}, (uint64_t[]){UINT64_MAX, 2}, &n), 0);
	assert_int_equal(n, 0);
	assert_int_equal(dims_span(1, (uint64_t[]){3}, (uint64_t[]){1ull << 63}, &n), -ERANGE);
	assert_int_equal(dims_span(2, (uint64_t[]){2, 2}, (uint64_t[]){1ull << 63, 1ull << 63}, &n),
		-ERANGE);
	assert_int_equal(dims_span(1, (uint64_t[]){1}, (uint64_t[]){UINT64_MAX}, &n), 0);
	assert_int_equal(n, 1);
}

static void injective(void **state)
{
	(void)state;
	assert_true(dims_injective(0, NULL, NULL));
	assert_true(dims_injective(2, (uint64_t[]){3, 4}, (uint64_t[]){4, 1}));
	assert_true(dims_injective(2, (uint64_t[]){3, 4}, (uint64_t[]){1, 3}));
	assert_false(dims_injective(2, (uint64_t[]){3, 4}, (uint64_t[]){3, 1}));
	assert_false(dims_injective(2, (uint64_t[]){3, 4}, (uint64_t[]){0, 1}));
	assert_false(dims_injective(1, (uint64_t[]){2}, (uint64_t[]){0}));
	assert_true(dims_injective(2, (uint64_t[]){1, 4}, (uint64_t[]){0, 1}));
	assert_true(dims_injective(2, (uint64_t[]){0, 4}, (uint64_t[]){0, 0}));
	assert_false(dims_injective(1, (uint64_t[]){3}, (uint64_t[]){1ull << 63}));
	assert_true(dims_injective(4, (uint64_t[]){4, 2, 3, 8}, (uint64_t[]){48, 8, 16, 1}));
}

static void tensors(void **state)
{
	static char long_name[LIMIT_NAME_BYTES + 2];
	static const struct {
		struct tensor tensor;
		int code;
		const char *sentence;
	} table[] = {
		{{"w", STREW_F32, 0, {0}}, 0, ""},
		{{"w", STREW_F64, 2, {1ull << 59, 1}}, 0, ""},
		{{"w", STREW_F64, 2, {1ull << 63, 0}}, 0, ""},
		{{"w.x", STREW_F64, 1, {(1ull << 59) + 1}}, -ERANGE,
			"tensor w.x: [576460752303423489]"},
		{{"w.x", STREW_U8, 2, {1ull << 32, 1ull << 32}}, -ERANGE, "w.x: [4294967296, 42"},
		{{"w.x", STREW_U8, 2, {1ull << 33, 1ull << 31}}, -ERANGE, "w.x"},
		{{"", STREW_F32, 1, {1}}, -EINVAL, "without a name"},
		{{NULL, STREW_F32, 1, {1}}, -EINVAL, "without a name"},
		{{"w.x", STREW_DTYPE_INVALID, 1, {1}}, -EINVAL, "w.x: dtype 0"},
		{{"w.x", (enum strew_dtype)16, 1, {1}}, -EINVAL, "w.x: dtype 16"},
		{{"w.x", STREW_F32, 7, {1}}, -EINVAL, "w.x: 7 dimensions"},
		{{"w.x", STREW_F32, -1, {1}}, -EINVAL, "w.x: -1 dimensions"},
		{{long_name, STREW_F32, 1, {1}}, -E2BIG,
			"xxxx...: the name is longer than 512 bytes"},
	};

	(void)state;
	memset(long_name, 'x', LIMIT_NAME_BYTES + 1);
	for (size_t i = 0; i < ARRAY_LEN(table); i++) {
		struct error err = {0};

		assert_int_equal(tensor_check(&table[i].tensor, &err), table[i].code);
		assert_int_equal(tensor_check(&table[i].tensor, NULL), table[i].code);
		assert_non_null(strstr(err.text, table[i].sentence));
	}
	assert_int_equal(tensor_bytes(&table[1].tensor), 1ull << 62);
	assert_int_equal(tensor_bytes(&table[2].tensor), 0);
	assert_int_equal(tensor_bytes(&table[0].tensor), 4);
}

static void formats(void **state)
{
	char buf[64], small[8];

	(void)state;
	assert_string_equal(dims_format(buf, 64, 2, (uint64_t[]){3, 4096}), "[3, 4096]");
	assert_string_equal(dims_format(buf, 64, 0, NULL), "[]");
	assert_string_equal(dims_format(buf, 64, 1, (uint64_t[]){0}), "[0]");
	assert_string_equal(dims_format(small, 8, 2, (uint64_t[]){30, 4096}), "[30, 40");
	assert_string_equal(dims_format(small, 8, 2, (uint64_t[]){123456, 4096}), "[123456");
}

static struct box random_box(int ndim, const uint64_t *shape)
{
	struct box box = {{0}, {0}};

	for (int i = 0; i < ndim; i++) {
		box.start[i] = test_random_below(shape[i] + 1);
		box.extent[i] = test_random_below(shape[i] - box.start[i] + 1);
	}
	return box;
}

static int in_box(int ndim, const struct box *box, const uint64_t *at)
{
	for (int i = 0; i < ndim; i++) {
		if (at[i] < box->start[i] || at[i] >= box->start[i] + box->extent[i]) {
			return 0;
		}
	}
	return 1;
}

static int step(int ndim, const uint64_t *shape, uint64_t *at)
{
	for (int i = ndim - 1; i >= 0; i--) {
		if (++at[i] < shape[i]) {
			return 1;
		}
		at[i] = 0;
	}
	return 0;
}

static void boxes(void **state)
{
	static const uint64_t shape[] = {4, 3, 5, 2, 2, 2};

	(void)state;
	for (int round = 0; round < 2000; round++) {
		int ndim = (int)test_random_below(7), n;
		struct box a = random_box(ndim, shape), b = random_box(ndim, shape), both;
		struct box rest[2 * STREW_MAX_DIMS], untouched;
		uint64_t at[STREW_MAX_DIMS] = {0};
		bool meet;

		memset(&both, 0x55, sizeof(both));
		untouched = both;
		assert_true(box_inside(ndim, shape, &a));
		meet = box_intersect(ndim, &a, &b, &both);
		if (!meet) {
			assert_memory_equal(&both, &untouched, sizeof(both));
		}
		n = box_subtract(ndim, &a, &b, rest);
		assert_true(n <= 2 * ndim);
		do {
			int in_rest = 0, in_both = meet && in_box(ndim, &both, at);

			for (int i = 0; i < n; i++) {
				in_rest += in_box(ndim, &rest[i], at);
			}
			assert_int_equal(in_both, in_box(ndim, &a, at) && in_box(ndim, &b, at));
			assert_int_equal(in_rest, in_box(ndim, &a, at) && !in_box(ndim, &b, at));
		} while (step(ndim, shape, at));
	}
	assert_false(box_inside(1, shape, &(struct box){{UINT64_MAX}, {2}}));
	assert_false(box_inside(1, shape, &(struct box){{2}, {UINT64_MAX}}));
	assert_false(box_inside(1, shape, &(struct box){{5}, {0}}));
	assert_true(box_inside(1, shape, &(struct box){{4}, {0}}));
}

static void views(void **state)
{
	static const struct {
		int ndim;
		uint64_t shape[6];
		int view_ndim;
		uint64_t view[6];
		bool good;
	} table[] = {
		{2, {12, 5}, 2, {12, 5}, true},
		{2, {12, 5}, 4, {2, 3, 2, 5}, true},
		{2, {12, 5}, 4, {2, 3, 1, 2}, false},
		{2, {12, 5}, 1, {60}, false},
		{2, {12, 5}, 2, {5, 12}, false},
		{2, {12, 5}, 3, {4, 15, 1}, false},
		{3, {1, 12, 1}, 3, {3, 1, 4}, true},
		{0, {0}, 0, {0}, true},
		{0, {0}, 2, {1, 1}, true},
		{2, {1, 1}, 0, {0}, true},
		{1, {4}, 0, {0}, false},
		{0, {0}, 1, {2}, false},
		{2, {0, 5}, 2, {0, 5}, true},
		{2, {0, 5}, 1, {1}, false},
		{1, {5}, 1, {0}, false},
		{2, {12, 5}, 3, {12, 5, 2}, false},
		{1, {1ull << 40}, 2, {1ull << 20, 1ull << 20}, true},
		{1, {6}, 2, {4, 2}, false},
		{1, {4}, 2, {1ull << 33, 1ull << 33}, false},
	};

	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(table); i++) {
		struct view_map map;

		assert_int_equal(view_map_make(table[i].ndim, table[i].shape, table[i].view_ndim,
					 table[i].view, &map),
			table[i].good);
	}
}

/* Every interval of a dimension of 24, cut to every view: as few rectangles as digits allow. */
static void view_cuts(void **state)
{
	static const struct {
		int n;
		uint64_t view[3];
	} table[] = {{1, {24}}, {2, {4, 6}}, {3, {2, 3, 4}}, {3, {4, 1, 6}}};

	(void)state;
	for (size_t k = 0; k < ARRAY_LEN(table); k++) {
		struct view_map map;
		struct box whole = {{0}, {0}}, rects[VIEW_RECTS_MAX];

		memcpy(whole.extent, table[k].view, sizeof(table[k].view));
		assert_true(view_map_make(1, (uint64_t[]){24}, table[k].n, table[k].view, &map));
		for (uint64_t lo = 0; lo < 24; lo++) {
			for (uint64_t hi = lo + 1; hi <= 24; hi++) {
				struct box part = {{lo}, {hi - lo}};
				int n = view_cut(&map, table[k].n, &whole, &part, rects);
				uint64_t at[STREW_MAX_DIMS] = {0}, linear = 0;

				assert_true(n <= 2 * map.n - 1);
				assert_true(hi - lo < 24 || n == 1);
				do {
					int hits = 0;

					for (int i = 0; i < n; i++) {
						hits += in_box(table[k].n, &rects[i], at);
					}
					assert_int_equal(hits, linear >= lo && linear < hi);
					linear++;
				} while (step(table[k].n, table[k].view, at));
			}
		}
	}
}

static void name_indices(void **state)
{
	struct name_index *index = name_index_create();
	static char names[20000][12];

	(void)state;
	assert_int_equal(name_index_find(NULL, "x"), -1);
	for (uint32_t i = 0; i < 20000; i++) {
		snprintf(names[i], sizeof(names[i]), "t%u", i);
		assert_int_equal(name_index_find(index, names[i]), -1);
		assert_int_equal(name_index_add(index, names[i], i), 0);
	}
	for (uint32_t i = 0; i < 20000; i++) {
		assert_int_equal(name_index_find(index, names[i]), i);
	}
	name_index_destroy(index);
	name_index_destroy(NULL);
}

int main(void)
{
	const struct CMUnitTest tests[] = {cmocka_unit_test(dtypes), cmocka_unit_test(counts),
		cmocka_unit_test(injective), cmocka_unit_test(tensors), cmocka_unit_test(formats),
		cmocka_unit_test(boxes), cmocka_unit_test(views), cmocka_unit_test(view_cuts),
		cmocka_unit_test(name_indices)};

	test_seed();
	return TEST_RUN(tests);
}
