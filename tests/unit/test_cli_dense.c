/* Boxes as dense bytes: each against loops over single elements, and the hash against its
 * reference. */
#include "base/util.h"
#include "cli/dense.h"
#include "support/test_main.h"
#include "unit/cast_reference.h"
#include "unit/hash_reference.h"
#include <stdlib.h>

#define MAX_ELEMENTS 4096

/* A box of a random shape, and its elements' numbers in that, in order. */
struct sample {
	struct dense_box box;
	uint64_t all, n;
	uint64_t numbers[MAX_ELEMENTS];
};

static void number(struct sample *sample, int dim, uint64_t from)
{
	if (dim == sample->box.ndim) {
		sample->numbers[sample->n++] = from;
		return;
	}
	for (uint64_t i = 0; i < sample->box.box.extent[dim]; i++) {
		number(sample, dim + 1,
			from * sample->box.shape[dim] + sample->box.box.start[dim] + i);
	}
}

static void make_sample(struct sample *sample)
{
	memset(sample, 0, sizeof(*sample));
	sample->box.ndim = (int)test_random_below(5);
	sample->all = 1;
	for (int d = 0; d < sample->box.ndim; d++) {
		uint64_t shape = 1 + test_random_below(8);

		sample->box.shape[d] = shape;
		sample->box.box.start[d] = test_random_below(shape);
		sample->box.box.extent[d] = test_random_below(shape - sample->box.box.start[d] + 1);
		sample->all *= shape;
	}
	number(sample, 0, 0);
}

static void test_put_and_cut(void **state)
{
	static const size_t sizes[] = {1, 2, 4, 8};
	static const enum strew_dtype plain[] = {STREW_U8, STREW_BF16, STREW_F32, STREW_I64};

	(void)state;
	for (unsigned round = 0; round < 2000; round++) {
		struct sample sample;
		size_t k = test_random_below(4), size = sizes[k];
		unsigned char *whole, *want, *dense, *back;
		uint64_t all, n;

		make_sample(&sample);
		assert_true(dense_count(&sample.box, &all, &n));
		assert_int_equal(all, sample.all);
		assert_int_equal(n, sample.n);
		whole = malloc(all * size);
		want = malloc(all * size);
		dense = malloc(n * size + 1);
		back = malloc(n * size + 1);
		test_random_fill(whole, all * size);
		test_random_fill(dense, n * size);
		memcpy(want, whole, all * size);
		for (uint64_t i = 0; i < n; i++) {
			memcpy(want + sample.numbers[i] * size, dense + i * size, size);
		}
		dense_put(&sample.box, size, dense, whole);
		assert_memory_equal(whole, want, all * size);
		dense_cut(&sample.box, whole, plain[k], plain[k], back);
		assert_memory_equal(back, dense, n * size);
		free(whole);
		free(want);
		free(dense);
		free(back);
	}
}

static void test_take(void **state)
{
	(void)state;
	for (unsigned round = 0; round < 2000; round++) {
		struct sample sample;
		uint64_t stride[STREW_MAX_DIMS] = {0}, step = 1 + test_random_below(3), span = 1;
		unsigned char *memory, *dense;

		make_sample(&sample);
		/* Any order of dimensions, with gaps. */
		for (int d = 0; d < sample.box.ndim; d++) {
			int at = round % 2 ? d : sample.box.ndim - 1 - d;

			stride[at] = step;
			span += MAX(sample.box.box.extent[at], 1) * step;
			step = step * MAX(sample.box.box.extent[at], 1) + test_random_below(3);
		}
		memory = malloc(span * 2);
		dense = malloc(sample.n * 2 + 1);
		test_random_fill(memory, span * 2);
		dense_take(&sample.box, stride, 2, memory, dense);
		for (uint64_t i = 0; i < sample.n; i++) {
			uint64_t from = 0, left = i;

			for (int d = sample.box.ndim - 1; d >= 0; d--) {
				from += left % sample.box.box.extent[d] * stride[d];
				left /= sample.box.box.extent[d];
			}
			assert_memory_equal(dense + i * 2, memory + from * 2, 2);
		}
		free(memory);
		free(dense);
	}
}

static void test_cut_casts(void **state)
{
	static const enum strew_dtype floats[] = {STREW_F32, STREW_F16, STREW_BF16};

	(void)state;
	for (unsigned round = 0; round < 500; round++) {
		enum strew_dtype from = floats[round % 3],
				 to = floats[(round + 1 + round / 3 % 2) % 3];
		size_t from_bytes = strew_dtype_size(from), to_bytes = strew_dtype_size(to);
		struct sample sample;
		unsigned char *whole, *dense;

		make_sample(&sample);
		whole = malloc(sample.all * from_bytes);
		dense = malloc(sample.n * to_bytes + 1);
		test_random_fill(whole, sample.all * from_bytes);
		dense_cut(&sample.box, whole, from, to, dense);
		for (uint64_t i = 0; i < sample.n; i++) {
			unsigned char want[4];

			ref_cast_at((char *)want,
				(const char *)whole + sample.numbers[i] * from_bytes, from, to);
			assert_memory_equal(dense + i * to_bytes, want, to_bytes);
		}
		free(whole);
		free(dense);
	}
}

static void test_hash(void **state)
{
	unsigned char bytes[100];

	(void)state;
	test_random_fill(bytes, sizeof(bytes));
	for (size_t n = 0; n <= sizeof(bytes); n++) {
		assert_int_equal(dense_hash(bytes, n), ref_hash(bytes, n, 0));
	}
}

static void test_what_makes_no_sense(void **state)
{
	struct dense_box passes = {.ndim = 1, .shape = {8}, .box = {{5}, {4}}};
	struct dense_box wraps = {.ndim = 1, .shape = {8}, .box = {{UINT64_MAX}, {2}}};
	struct dense_box many = {
		.ndim = 2, .shape = {1ull << 33, 1ull << 33}, .box = {{0}, {1, 1}}};
	uint64_t all, n;

	(void)state;
	assert_false(dense_count(&passes, &all, &n));
	assert_false(dense_count(&wraps, &all, &n));
	assert_false(dense_count(&many, &all, &n));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_put_and_cut),
		cmocka_unit_test(test_take),
		cmocka_unit_test(test_cut_casts),
		cmocka_unit_test(test_hash),
		cmocka_unit_test(test_what_makes_no_sense),
	};

	test_seed();
	return TEST_RUN(tests);
}
