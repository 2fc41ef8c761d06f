/* Layouts that are refused, each with its code and names and nothing changed; shared elements. */
#include "base/util.h"
#include "plan/layout.h"
#include "support/test_main.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Tensors [6, 4] of bf16, f32, i8 and f64, and one parameter p.p [6, 4] bf16. */
static void begin(struct layout *layout)
{
	struct tensor t = {"w.t", STREW_BF16, 2, {6, 4}}, f = {"w.f", STREW_F32, 2, {6, 4}};
	struct tensor z = {"w.zero", STREW_BF16, 2, {0, 4}};
	struct tensor n = {"w.i", STREW_I8, 2, {6, 4}}, d = {"w.d", STREW_F64, 2, {6, 4}};
	struct parameter p = {.name = "p.p", .dtype = STREW_BF16, .ndim = 2, .shape = {6, 4}};
	struct error err;
	uint32_t i;

	layout_init(layout);
	assert_int_equal(layout_add_tensor(layout, &t, &i, &err), 0);
	assert_int_equal(i, 0);
	assert_int_equal(layout_add_tensor(layout, &f, &i, &err), 0);
	assert_int_equal(i, 1);
	assert_int_equal(layout_add_tensor(layout, &z, &i, &err), 0);
	assert_int_equal(layout_add_tensor(layout, &n, &i, &err), 0);
	assert_int_equal(layout_add_tensor(layout, &d, &i, &err), 0);
	assert_int_equal(i, 4);
	assert_int_equal(layout_add_tensor(layout, &t, &i, &err), 0);
	assert_int_equal(i, 0);
	assert_int_equal(layout_add_parameter(layout, &p, &i, &err), 0);
	assert_int_equal(i, 0);
}

#define BIG (1ull << 63)

static void bad_pieces(void **state)
{
	static const struct {
		struct piece piece;
		int code;
		const char *sentence;
	} table[] = {
		{{.tensor = 5}, -EINVAL, "tensor number 5"},
		{{.tensor = UINT32_MAX}, -EINVAL, "tensor number"},
		{{.parameter = 1}, -EINVAL, "parameter number 1"},
		{{.ndim = 7}, -EINVAL, "7 dimensions"},
		{{.ndim = -1}, -EINVAL, "-1 dimensions"},
		{{.tensor = 1, .ndim = 2, .view = {6, 4}}, -ENOTSUP,
			"w.f: the tensor is f32, the parameter bf16, and the piece declares no "
			"cast"},
		{{.tensor = 3, .ndim = 2, .view = {6, 4}, .cast = true}, -ENOTSUP,
			"w.i: a cast of i8 to bf16, but casts are between f32, f16 and bf16"},
		{{.tensor = 4, .ndim = 2, .view = {6, 4}, .cast = true}, -ENOTSUP,
			"w.d: a cast of f64 to bf16"},
		{{.ndim = 2, .view = {4, 6}}, -EINVAL, "view [4, 6] does not refine shape [6, 4]"},
		{{.ndim = 0}, -EINVAL, "view [] does not refine"},
		{{.ndim = 1, .view = {24}}, -EINVAL, "view [24] does not refine"},
		{{.ndim = 2, .view = {6, 4}, .box = {{1, 0}, {6, 4}}}, -ERANGE,
			"box at [1, 0] of extent [6, 4]"},
		{{.ndim = 2, .view = {6, 4}, .box = {{UINT64_MAX, 0}, {2, 4}}}, -ERANGE,
			"not inside"},
		{{.ndim = 2, .view = {6, 4}, .box = {{0, 0}, {6, UINT64_MAX}}}, -ERANGE,
			"not inside"},
		{{.ndim = 2, .view = {6, 4}, .box = {{0, 0}, {6, 4}}, .offset = 1}, -ERANGE,
			"pass its 24 elements"},
		{{.ndim = 2, .view = {6, 4}, .box = {{0, 0}, {6, 4}}, .offset = UINT64_MAX},
			-ERANGE, "offset 18446744073709551615"},
		{{.ndim = 2, .view = {6, 4}, .box = {{0, 0}, {6, 4}}, .stride = {5, 1}}, -ERANGE,
			"strides [5, 1]"},
		{{.ndim = 2, .view = {6, 4}, .box = {{0, 0}, {6, 4}}, .stride = {BIG, BIG}},
			-ERANGE, "pass its"},
		{{.ndim = 2, .view = {6, 4}, .box = {{0, 0}, {3, 4}}, .stride = {BIG, 1}}, -ERANGE,
			"pass its"},
		{{.ndim = 2, .view = {6, 4}, .box = {{0, 0}, {6, 4}}, .stride = {3, 1}}, -EINVAL,
			"writes one element twice"},
		{{.ndim = 2, .view = {6, 4}, .box = {{0, 0}, {6, 4}}, .stride = {0, 1}}, -EINVAL,
			"writes one element twice"},
	};
	struct layout layout;

	(void)state;
	begin(&layout);
	for (size_t i = 0; i < ARRAY_LEN(table); i++) {
		struct layout before = layout;
		struct error err = {0};

		assert_int_equal(layout_add_piece(&layout, &table[i].piece, &err), table[i].code);
		if (!strstr(err.text, table[i].sentence)) {
			fail_msg("%zu: '%s' lacks '%s'", i, err.text, table[i].sentence);
		}
		if (i > 2) {
			assert_non_null(strstr(err.text, "parameter p.p, tensor w."));
		}
		assert_memory_equal(&before, &layout, sizeof(layout));
		assert_int_equal(layout_add_piece(&layout, &table[i].piece, NULL), table[i].code);
	}
	layout_finish(&layout);
}

static void bad_names(void **state)
{
	static const struct {
		struct parameter parameter;
		int code;
		const char *sentence;
	} table[] = {
		{{.name = "p.p", .dtype = STREW_F32}, -EEXIST, "parameter p.p: the name"},
		{{.name = "", .dtype = STREW_F32}, -EINVAL, "parameter without a name"},
		{{.name = "q.q", .dtype = (enum strew_dtype)77}, -EINVAL,
			"parameter q.q: dtype 77"},
		{{.name = "q.q", .dtype = STREW_F32, .ndim = 9}, -EINVAL, "parameter q.q: 9 dim"},
		{{.name = "q.q", .dtype = STREW_F32, .ndim = 2, .shape = {BIG, 4}}, -ERANGE,
			"parameter q.q: [9223"},
		{{.name = "q.q", .dtype = STREW_F32, .ndim = 1, .shape = {4}, .stride = {BIG}},
			-ERANGE, "parameter q.q: its strides"},
		{{.name = "q.q",
			 .dtype = STREW_F32,
			 .ndim = 1,
			 .shape = {4},
			 .stride = {1},
			 .offset_bytes = 1ull << 62},
			-ERANGE, "parameter q.q: it ends"},
		{{.name = "q.q",
			 .dtype = STREW_F32,
			 .ndim = 1,
			 .shape = {4},
			 .stride = {1},
			 .offset_bytes = UINT64_MAX},
			-ERANGE, "parameter q.q: it ends"},
	};
	struct tensor other = {"w.t", STREW_BF16, 2, {4, 6}}, cast = {"w.t", STREW_F16, 2, {6, 4}};
	struct layout layout;
	struct error err;
	uint32_t index = 99;

	(void)state;
	begin(&layout);
	for (size_t i = 0; i < ARRAY_LEN(table); i++) {
		assert_int_equal(layout_add_parameter(&layout, &table[i].parameter, &index, &err),
			table[i].code);
		if (!strstr(err.text, table[i].sentence)) {
			fail_msg("%zu: '%s' lacks '%s'", i, err.text, table[i].sentence);
		}
		assert_int_equal(layout.nparameters, 1);
		assert_int_equal(index, 99);
	}
	assert_int_equal(layout_add_tensor(&layout, &other, &index, &err), -EINVAL);
	assert_string_equal(err.text, "tensor w.t: declared as bf16 [6, 4] and as bf16 [4, 6]");
	assert_int_equal(layout_add_tensor(&layout, &cast, &index, &err), -EINVAL);
	assert_string_equal(err.text, "tensor w.t: declared as bf16 [6, 4] and as f16 [6, 4]");
	assert_int_equal(layout.ntensors, 5);
	assert_int_equal(index, 99);
	layout_finish(&layout);
}

static struct piece rows(
	uint32_t tensor, uint32_t parameter, uint64_t first, uint64_t n, uint64_t to)
{
	return (struct piece){.tensor = tensor,
		.parameter = parameter,
		.ndim = 2,
		.view = {6, 4},
		.box = {{first, 0}, {n, 4}},
		.offset = to * 4,
		.stride = {4, 1}};
}

static void sealing(void **state)
{
	struct tensor tied = {"tied", STREW_BF16, 2, {6, 4}};
	struct parameter alias = {
		.name = "alias", .dtype = STREW_U8, .ndim = 1, .shape = {4}, .offset_bytes = 22};
	struct tensor bytes = {"bytes", STREW_U8, 1, {4}};
	struct piece p = rows(0, 0, 0, 3, 0), q;
	struct layout layout, before;
	struct error err;
	uint32_t t, b, a;

	(void)state;
	begin(&layout);
	assert_int_equal(layout_seal(&layout, false, &err), -EINVAL);
	assert_string_equal(err.text, "parameter p.p: no piece fills it");
	assert_int_equal(layout_add_piece(&layout, &p, &err), 0);
	q = rows(0, 0, 3, 3, 2);
	assert_int_equal(layout_add_piece(&layout, &q, &err), 0);
	before = layout;
	assert_int_equal(layout_seal(&layout, false, &err), -EINVAL);
	assert_string_equal(
		err.text, "parameter p.p: two pieces of tensor w.t would write the same element");
	assert_memory_equal(&before, &layout, sizeof(layout));
	layout.pieces[1].offset = 12;
	assert_int_equal(layout_add_tensor(&layout, &tied, &t, &err), 0);
	q = rows(t, 0, 0, 1, 5);
	assert_int_equal(layout_add_piece(&layout, &q, &err), 0);
	assert_int_equal(layout_seal(&layout, true, &err), -EINVAL);
	assert_string_equal(err.text, "parameter p.p: tensors w.t and tied would write the same "
				      "element: write the storage once");
	layout.npieces--;
	/* Another parameter over bytes 22 … 26 of the same allocation: rows 2 and 3. */
	assert_int_equal(layout_add_parameter(&layout, &alias, &a, &err), 0);
	assert_int_equal(layout_add_tensor(&layout, &bytes, &b, &err), 0);
	q = (struct piece){.tensor = b, .parameter = a, .ndim = 1, .view = {4}, .box = {{0}, {4}}};
	assert_int_equal(layout_add_piece(&layout, &q, &err), 0);
	assert_int_equal(layout_seal(&layout, true, &err), -EINVAL);
	assert_string_equal(err.text, "parameters p.p and alias share memory, and tensors w.t and "
				      "bytes would both write it: write the storage once");
	layout.parameters[a].allocation = 1;
	assert_int_equal(layout_seal(&layout, false, &err), 0);
	assert_int_equal(layout_bytes(&layout), 52);
	assert_int_equal(layout_seal(&layout, false, &err), -EINVAL);
	assert_int_equal(layout_add_piece(&layout, &q, &err), -EINVAL);
	assert_int_equal(layout_add_tensor(&layout, &bytes, &b, &err), -EINVAL);
	assert_int_equal(layout_add_parameter(&layout, &alias, &a, &err), -EINVAL);
	layout_finish(&layout);
}

/* What pieces may declare: each to each of the three, and nothing to itself. */
static void casts(void **state)
{
	static const enum strew_dtype floats[] = {STREW_F32, STREW_F16, STREW_BF16};

	(void)state;
	for (unsigned from = STREW_F32; from <= STREW_BOOL; from++) {
		for (unsigned to = STREW_F32; to <= STREW_BOOL; to++) {
			struct tensor t = {"t", (enum strew_dtype)from, 1, {10}};
			struct parameter p = {.name = "p",
				.dtype = (enum strew_dtype)to,
				.ndim = 1,
				.shape = {10},
				.offset_bytes = 3};
			struct piece piece = {
				.ndim = 1, .view = {10}, .box = {{0}, {10}}, .cast = true};
			struct layout layout;
			bool known = from == to;
			struct error err = {0};
			int rc;

			for (unsigned i = 0; i < 9; i++) {
				known = known || (floats[i / 3] == from && floats[i % 3] == to);
			}
			layout_init(&layout);
			assert_int_equal(layout_add_tensor(&layout, &t, &piece.tensor, &err), 0);
			assert_int_equal(
				layout_add_parameter(&layout, &p, &piece.parameter, &err), 0);
			rc = layout_add_piece(&layout, &piece, &err);
			assert_int_equal(rc, known ? 0 : -ENOTSUP);
			if (rc) {
				assert_non_null(strstr(err.text, "parameter p, tensor t: a cast"));
			} else {
				assert_int_equal(layout_seal(&layout, false, &err), 0);
				assert_int_equal(layout_bytes(&layout),
					10 * strew_dtype_size((enum strew_dtype)to));
			}
			layout_finish(&layout);
		}
	}
}

static void empty_pieces(void **state)
{
	struct piece none = rows(0, 0, 6, 0, 6), zero = rows(2, 0, 0, 0, 0),
		     whole = rows(0, 0, 0, 6, 0);
	struct layout layout;
	struct error err;

	(void)state;
	begin(&layout);
	zero.view[0] = 0;
	assert_int_equal(layout_add_piece(&layout, &none, &err), 0);
	assert_int_equal(layout_add_piece(&layout, &zero, &err), 0);
	assert_int_equal(layout_bytes(&layout), 0);
	assert_int_equal(layout_add_piece(&layout, &whole, &err), 0);
	assert_int_equal(layout_seal(&layout, false, &err), 0);
	layout_finish(&layout);
	layout_init(&layout);
	assert_int_equal(layout_seal(&layout, false, &err), 0);
	layout_finish(&layout);
}

/* Random pieces of random strides over few elements, against a plain count of each. */
static int count_writes(const struct layout *layout, unsigned char *writes)
{
	int twice = 0;

	for (size_t p = 0; p < layout->npieces; p++) {
		const struct piece *piece = &layout->pieces[p];
		uint64_t index[STREW_MAX_DIMS] = {0};
		int i;

		do {
			uint64_t at = piece->offset;

			for (i = 0; i < piece->ndim; i++) {
				at += index[i] * piece->stride[i];
			}
			twice |= writes[at]++;
			for (i = piece->ndim - 1; i >= 0 && ++index[i] == piece->box.extent[i];
				i--) {
				index[i] = 0;
			}
		} while (i >= 0);
	}
	return twice;
}

static void shared_at_random(void **state)
{
	int refused = 0, accepted = 0;

	(void)state;
	for (int round = 0; round < 6000; round++) {
		struct tensor t = {"t", STREW_U16, 3, {4, 4, 4}};
		struct parameter p = {.name = "p", .dtype = STREW_U16, .ndim = 1, .shape = {400}};
		size_t pieces = 2 + test_random_below(5);
		uint64_t grid = 1 + test_random_below(3);
		unsigned char writes[400] = {0};
		struct layout layout;
		struct error err;
		uint32_t i;
		int twice;

		layout_init(&layout);
		assert_int_equal(layout_add_tensor(&layout, &t, &i, &err), 0);
		assert_int_equal(layout_add_parameter(&layout, &p, &i, &err), 0);
		while (layout.npieces < pieces) {
			struct piece piece = {.ndim = 3, .view = {4, 4, 4}};

			for (int k = 0; k < 3; k++) {
				piece.box.extent[k] = 1 + test_random_below(4);
				piece.stride[k] = (1 + test_random_below(32)) * grid;
			}
			piece.offset = test_random_below(400);
			layout_add_piece(&layout, &piece, &err);
		}
		twice = count_writes(&layout, writes);
		assert_int_equal(layout_seal(&layout, false, &err), twice ? -EINVAL : 0);
		*(twice ? &refused : &accepted) += 1;
		layout_finish(&layout);
	}
	assert_true(refused > 100 && accepted > 100);
}

/* 3,000 interleaved columns, each a piece of two dimensions: too many pairs, few runs. */
static void interleaved_columns(void **state)
{
	const uint64_t columns = 3000, rows_ = 3;
	struct tensor t = {"t", STREW_U8, 2, {rows_, columns}};
	struct parameter p = {.name = "p", .dtype = STREW_U8, .ndim = 2, .shape = {rows_, columns}};

	(void)state;
	for (int bad = 0; bad < 2; bad++) {
		struct layout layout;
		struct error err;
		uint32_t i;

		layout_init(&layout);
		assert_int_equal(layout_add_tensor(&layout, &t, &i, &err), 0);
		assert_int_equal(layout_add_parameter(&layout, &p, &i, &err), 0);
		for (uint64_t c = 0; c < columns; c++) {
			struct piece piece = {.ndim = 2,
				.view = {rows_, columns},
				.box = {{0, c}, {rows_, 1}},
				.offset = bad && c == 2999 ? 1234 : c,
				.stride = {columns, 1}};

			assert_int_equal(layout_add_piece(&layout, &piece, &err), 0);
		}
		assert_int_equal(layout_seal(&layout, false, &err), bad ? -EINVAL : 0);
		layout_finish(&layout);
	}
}

/*
 * Pairs of pieces of strides 4 and 2, each pair in an allocation of its own: to be sure of one
 * takes as many steps as it has elements. One pair of 2^22 is checked, sixteen are more than a
 * layout has.
 */
static int seal_pairs(uint32_t pairs, uint64_t elements, struct error *err)
{
	struct tensor t = {"t", STREW_U8, 1, {elements}};
	struct layout layout;
	uint32_t tensor, parameter;
	int r;

	layout_init(&layout);
	assert_int_equal(layout_add_tensor(&layout, &t, &tensor, err), 0);
	for (uint32_t i = 0; i < 2 * pairs; i++) {
		uint64_t stride = i % 2 ? 2 : 4;
		char name[16];
		struct parameter p = {.name = name,
			.allocation = i / 2,
			.offset_bytes = i % 2,
			.dtype = STREW_U8,
			.ndim = 1,
			.shape = {elements},
			.stride = {stride}};
		struct piece piece = {.tensor = tensor,
			.ndim = 1,
			.view = {elements},
			.box = {{0}, {elements}},
			.stride = {stride}};

		snprintf(name, sizeof(name), "%s%u", i % 2 ? "odd" : "even", i / 2);
		assert_int_equal(layout_add_parameter(&layout, &p, &parameter, err), 0);
		piece.parameter = parameter;
		assert_int_equal(layout_add_piece(&layout, &piece, err), 0);
	}
	r = layout_seal(&layout, false, err);
	assert_int_equal(layout.sealed, r == 0);
	layout_finish(&layout);
	return r;
}

static void tangled_for_long(void **state)
{
	struct error err;

	(void)state;
	assert_int_equal(seal_pairs(1, 1u << 22, &err), 0);
	assert_int_equal(seal_pairs(16, 1u << 22, &err), -E2BIG);
	assert_non_null(strstr(err.text, "parameters even"));
	assert_non_null(strstr(err.text, "interleave too irregularly to be checked in"));
	/* The broker that is told this stops for no longer than for any other. */
	assert_int_equal(seal_pairs(8, 1u << 27, &err), -E2BIG);
	assert_non_null(strstr(err.text, "parameters even0 and odd0: "));
}

int main(void)
{
	const struct CMUnitTest tests[] = {cmocka_unit_test(bad_pieces),
		cmocka_unit_test(bad_names), cmocka_unit_test(sealing), cmocka_unit_test(casts),
		cmocka_unit_test(empty_pieces), cmocka_unit_test(shared_at_random),
		cmocka_unit_test(interleaved_columns), cmocka_unit_test(tangled_for_long)};

	test_seed();
	return TEST_RUN(tests);
}
