/*
 * The comparison of strew verify, on random pieces. The memory is written element by element
 * from the meaning of a piece (strew/agent.h), in the order of the tensor's elements; then single
 * bits of it are turned.
 */
#include "base/util.h"
#include "cast_reference.h"
#include "cli/compare.h"
#include "support/test_main.h"
#include <stdlib.h>
#include <string.h>

struct example {
	struct tensor tensor;
	struct parameter parameter;
	struct piece piece;
	unsigned char source[4096 * 4], memory[65536 * 4];
	uint64_t inside[4096]; /* numbers of the box's elements, ascending */
	uint64_t place[4096];  /* of each, in the parameter */
	size_t n;
};

static void draw(struct example *example, enum strew_dtype from, enum strew_dtype to)
{
	struct piece *piece = &example->piece;
	uint64_t total = 1, stride = 1 + test_random_below(2);
	int order[4] = {0, 1, 2, 3};

	memset(example, 0, sizeof(*example));
	example->tensor.dtype = from;
	example->parameter.dtype = to;
	piece->cast = from != to;
	piece->ndim = (int)test_random_below(5);
	piece->offset = test_random_below(50);
	for (int d = 0; d < piece->ndim; d++) {
		piece->view[d] = 1 + test_random_below(7);
		piece->box.start[d] = test_random_below(piece->view[d]);
		piece->box.extent[d] = 1 + test_random_below(piece->view[d] - piece->box.start[d]);
		total *= piece->view[d];
	}
	example->tensor.ndim = 1;
	example->tensor.shape[0] = total;
	/* Any dimension may be the innermost of the destination, and there may be gaps. */
	for (int d = piece->ndim - 1; d > 0; d--) {
		int other = (int)test_random_below((uint64_t)d + 1), kept = order[d];

		order[d] = order[other];
		order[other] = kept;
	}
	for (int i = piece->ndim - 1; i >= 0; i--) {
		piece->stride[order[i]] = stride;
		stride *= piece->box.extent[order[i]];
		stride += test_random_below(2);
	}
	test_random_fill(example->source, sizeof(example->source));
	test_random_fill(example->memory, sizeof(example->memory));
	for (uint64_t number = 0; number < total; number++) {
		uint64_t left = number, at = piece->offset;
		bool in = true;

		for (int d = piece->ndim - 1; d >= 0; d--) {
			uint64_t index = left % piece->view[d];

			left /= piece->view[d];
			in = in && index >= piece->box.start[d] &&
			     index < piece->box.start[d] + piece->box.extent[d];
			at += (index - piece->box.start[d]) * piece->stride[d];
		}
		if (in) {
			example->inside[example->n] = number;
			example->place[example->n++] = at;
		}
	}
}

static void put(struct example *example)
{
	uint32_t from = example->tensor.dtype, to = example->parameter.dtype;
	size_t from_bytes = strew_dtype_size(from), to_bytes = strew_dtype_size(to);

	for (size_t i = 0; i < example->n; i++) {
		unsigned char *to_at = example->memory + example->place[i] * to_bytes;
		const unsigned char *from_at = example->source + example->inside[i] * from_bytes;

		if (from == to) {
			memcpy(to_at, from_at, to_bytes);
		} else {
			uint32_t bits = 0;

			memcpy(&bits, from_at, from_bytes);
			bits = ref_cast(bits, from, to);
			memcpy(to_at, &bits, to_bytes);
		}
	}
}

static struct comparison compare(const struct example *example)
{
	struct comparison comparison = {0};

	compare_piece(&example->tensor, example->source, &example->piece, &example->parameter,
		example->memory, &comparison);
	assert_int_equal(comparison.elements, example->n);
	return comparison;
}

/* Turns a bit of element i of the box, in the memory. */
static void turn(struct example *example, size_t i)
{
	size_t bytes = strew_dtype_size(example->parameter.dtype);
	uint64_t bit = test_random_below(bytes * 8);

	example->memory[example->place[i] * bytes + bit / 8] ^= (unsigned char)(1u << bit % 8);
}

static void check(struct example *example)
{
	size_t bytes = strew_dtype_size(example->parameter.dtype);
	size_t first = test_random_below(example->n), second = test_random_below(example->n);
	struct comparison found;
	unsigned char before;
	uint64_t outside;

	put(example);
	found = compare(example);
	assert_int_equal(found.differ, 0);
	/* What the piece does not write does not count. */
	outside = example->place[example->n - 1] + 1;
	for (size_t i = 0; i < example->n; i++) {
		outside = MAX(outside, example->place[i] + 1);
	}
	before = example->memory[outside * bytes];
	example->memory[outside * bytes] ^= 0xff;
	found = compare(example);
	assert_int_equal(found.differ, 0);
	example->memory[outside * bytes] = before;
	turn(example, first);
	found = compare(example);
	assert_int_equal(found.differ, 1);
	assert_true(found.first == example->inside[first]);
	if (second != first) {
		turn(example, second);
		found = compare(example);
		assert_int_equal(found.differ, 2);
		assert_true(found.first == example->inside[MIN(first, second)]);
	}
}

static void random_pieces(void **state)
{
	static const enum strew_dtype dtypes[] = {STREW_F32, STREW_F16, STREW_BF16, STREW_U8};
	struct example *example = malloc(sizeof(*example));

	(void)state;
	assert_non_null(example);
	for (int i = 0; i < 400; i++) {
		enum strew_dtype dtype = dtypes[i % 4];

		draw(example, dtype, dtype);
		check(example);
	}
	free(example);
}

static void random_casts(void **state)
{
	static const enum strew_dtype dtypes[] = {STREW_F32, STREW_F16, STREW_BF16};
	struct example *example = malloc(sizeof(*example));

	(void)state;
	assert_non_null(example);
	for (int i = 0; i < 900; i++) {
		enum strew_dtype from = dtypes[i % 3], to = dtypes[i / 3 % 3];

		draw(example, from, to);
		check(example);
	}
	free(example);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(random_pieces),
		cmocka_unit_test(random_casts),
	};

	return TEST_RUN(tests);
}
