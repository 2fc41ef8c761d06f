/*
 * Descriptors and tiles without a GPU: an interpreter that does what the kernel does, with
 * the kernel's arithmetic, against the plain meaning of struct copy.
 */
#include "base/util.h"
#include "gpu/tiles.h"
#include "support/test_main.h"
#include <stdlib.h>
#include <string.h>

#define SPACE_BYTES (1u << 20)

static uint32_t divide(uint32_t n, const struct scatter_divisor *d)
{
	return d->magic ? (uint32_t)(((uint64_t)n * d->magic) >> 32) >> d->shift : n;
}

static void interpret(const struct scatter_table *table, size_t range, uint64_t slot)
{
	for (size_t t = 0; t < table->ranges[range].ntiles; t++) {
		const struct scatter_tile *tile =
			&table->tiles[table->ranges[range].first_tile + t];
		const struct scatter_descriptor *d = &table->descriptors[tile->descriptor];

		assert_true(tile->count > 0 && tile->count <= SCATTER_TILE_VECTORS);
		for (uint32_t i = 0; i < tile->count; i++) {
			uint64_t src = d->src + (d->slot & SCATTER_SRC_SLOT ? slot : 0);
			uint64_t dst = d->dst + (d->slot & SCATTER_DST_SLOT ? slot : 0);
			uint32_t v = tile->vector + i;
			uint32_t local = divide(v, &d->vectors);
			uint32_t row = tile->row + local;
			uint64_t column = (uint64_t)(v - local * d->vectors.value) * d->width;

			for (uint32_t k = d->ndim; k-- > 0;) {
				uint32_t outer = k ? divide(row, &d->dim[k].extent) : 0;
				uint32_t index = k ? row - outer * d->dim[k].extent.value : row;

				src += index * d->dim[k].src_stride;
				dst += index * d->dim[k].dst_stride;
				row = outer;
			}
			assert_int_equal((src + column) % d->width, 0);
			assert_int_equal((dst + column) % d->width, 0);
			memcpy((void *)(uintptr_t)(dst + column), (void *)(uintptr_t)(src + column),
				d->width);
		}
	}
	for (size_t r = 0; r < table->ranges[range].nruns; r++) {
		const struct scatter_run *run = &table->runs[table->ranges[range].first_run + r];

		memcpy((void *)(uintptr_t)(run->dst + (run->slot & SCATTER_DST_SLOT ? slot : 0)),
			(void *)(uintptr_t)(run->src + (run->slot & SCATTER_SRC_SLOT ? slot : 0)),
			run->len_bytes);
	}
}

static void reference(const struct copy *copy, unsigned dim, char *dst, const char *src)
{
	if (dim == copy->ndim) {
		memcpy(dst, src, copy->run_bytes);
		return;
	}
	for (uint64_t i = 0; i < copy->extent[dim]; i++) {
		reference(copy, dim + 1, dst + i * copy->dst_stride[dim],
			src + i * copy->src_stride[dim]);
	}
}

static uint64_t span(const struct copy *copy, const uint64_t *stride)
{
	uint64_t bytes = copy->run_bytes;

	for (unsigned k = 0; k < copy->ndim; k++) {
		bytes += (copy->extent[k] - 1) * stride[k];
	}
	return bytes;
}

/* Strides from the innermost dimension out, in a random order, with gaps; false if too big. */
static bool random_strides(const struct copy *copy, uint64_t unit, uint64_t *ret_stride)
{
	unsigned order[STREW_MAX_DIMS];
	uint64_t stride = copy->run_bytes;

	for (unsigned k = 0; k < copy->ndim; k++) {
		unsigned other = (unsigned)test_random_below(k + 1);

		order[k] = order[other];
		order[other] = k;
	}
	for (unsigned k = 0; k < copy->ndim; k++) {
		stride += test_random_below(3) * unit;
		ret_stride[order[k]] = stride;
		stride *= copy->extent[order[k]];
	}
	return span(copy, ret_stride) < SPACE_BYTES / 2;
}

static void random_copy(struct copy *copy)
{
	do {
		uint64_t unit = 1ull << test_random_below(6);

		memset(copy, 0, sizeof(*copy));
		copy->ndim = (uint32_t)test_random_below(STREW_MAX_DIMS + 1);
		copy->run_bytes = unit * (1 + test_random_below(copy->ndim > 2 ? 20 : 3000));
		for (unsigned k = 0; k < copy->ndim; k++) {
			copy->extent[k] = 2 + test_random_below(copy->ndim > 2 ? 5 : 70);
		}
		copy->src = unit * test_random_below(200);
		copy->dst = unit * test_random_below(200);
		if (random_strides(copy, unit, copy->src_stride) &&
			random_strides(copy, unit, copy->dst_stride)) {
			return;
		}
	} while (true);
}

static void test_divisors(void **state)
{
	(void)state;
	for (unsigned i = 0; i < 200000; i++) {
		uint32_t d = 1 + (uint32_t)(test_random() >> (33 + test_random_below(31)));
		uint32_t n = (uint32_t)(test_random() >> (33 + test_random_below(31)));
		struct scatter_divisor divisor = tiles_divisor(d);

		assert_int_equal(divide(n, &divisor), n / d);
		n = n / d * d;
		assert_int_equal(divide(n, &divisor), n / d);
		if (n > 0) {
			assert_int_equal(divide(n - 1, &divisor), (n - 1) / d);
		}
	}
}

static void test_random_copies(void **state)
{
	char *memory = aligned_alloc(4096, 4 * SPACE_BYTES);
	char *src = memory, *dst = memory + SPACE_BYTES;
	char *slot = memory + 2 * SPACE_BYTES, *want = memory + 3 * SPACE_BYTES;
	uint64_t bases[] = {0, (uintptr_t)src, (uintptr_t)dst};
	const enum place places[] = {PLACE_HERE, PLACE_HERE, PLACE_HOST};
	size_t first[] = {0, 1};

	(void)state;
	assert_non_null(memory);
	for (unsigned i = 0; i < 600; i++) {
		struct scatter_table table;
		struct copy copy;
		struct copies copies = {.v = &copy, .n = 1, .cap = 1, .first = first, .nranges = 1};
		bool gather = test_random_below(2);
		bool scatter = !gather && test_random_below(2);
		char *from = scatter ? slot : src;
		char *to = gather ? slot : dst;

		random_copy(&copy);
		copy.src_space = scatter ? 0 : 1;
		copy.dst_space = gather ? 0 : 2;
		test_random_fill(memory, 3 * SPACE_BYTES);
		memcpy(want, to, SPACE_BYTES);
		reference(&copy, 0, want + copy.dst, from + copy.src);
		assert_int_equal(tiles_build(&copies, bases, places, &table, NULL), 0);
		interpret(&table, 0, (uintptr_t)slot);
		assert_memory_equal(to, want, SPACE_BYTES);
		tiles_finish(&table);
	}
	free(memory);
}

/* Only addresses: nothing is copied. */
static void build_one(const struct copy *copy, enum place place, struct scatter_table *ret_table)
{
	size_t first[] = {0, 1};
	const uint64_t bases[] = {0, 1ull << 40};
	const enum place places[] = {PLACE_HERE, place};
	struct copies copies = {.n = 1, .cap = 1, .first = first, .nranges = 1};
	struct copy one = *copy;

	copies.v = &one;
	assert_int_equal(tiles_build(&copies, bases, places, ret_table, NULL), 0);
}

static uint64_t tile_bytes(const struct scatter_table *table)
{
	uint64_t bytes = 0;

	for (size_t i = 0; i < table->ntiles; i++) {
		bytes += (uint64_t)table->tiles[i].count *
			 table->descriptors[table->tiles[i].descriptor].width;
	}
	return bytes;
}

static void test_policy(void **state)
{
	struct copy copy = {.dst_space = 1, .run_bytes = 4u << 20};
	struct scatter_table table;

	(void)state;
	build_one(&copy, PLACE_HERE, &table);
	assert_int_equal(table.nruns, 1);
	assert_int_equal(table.ntiles, 0);
	tiles_finish(&table);

	copy.run_bytes = 2u << 20;
	build_one(&copy, PLACE_HERE, &table);
	assert_int_equal(table.nruns, 0);
	assert_int_equal(tile_bytes(&table), 2u << 20);
	tiles_finish(&table);

	copy.ndim = 1;
	copy.extent[0] = 20;
	copy.src_stride[0] = copy.dst_stride[0] = 3u << 20;
	build_one(&copy, PLACE_PEER, &table);
	assert_int_equal(table.nruns, 0);
	tiles_finish(&table);
	build_one(&copy, PLACE_HOST, &table);
	assert_int_equal(table.nruns, 20);
	assert_int_equal(table.runs[19].dst, (1ull << 40) + 19 * (3ull << 20));
	assert_int_equal(table.runs[19].slot, SCATTER_SRC_SLOT);
	tiles_finish(&table);

	copy.run_bytes = 16u << 20;
	copy.src_stride[0] = copy.dst_stride[0] = 16u << 20;
	build_one(&copy, PLACE_PEER, &table);
	assert_int_equal(table.nruns, 20);
	tiles_finish(&table);
}

/* What exceeds 31 bits is cut; an odd long run is copied by 16 bytes but for its ends. */
static void test_cuts(void **state)
{
	struct copy copy = {.dst_space = 1, .run_bytes = 5, .ndim = 2};
	struct scatter_table table;

	(void)state;
	copy.extent[0] = 3;
	copy.extent[1] = 2;
	copy.src_stride[0] = copy.dst_stride[0] = 1ull << 35;
	copy.src_stride[1] = copy.dst_stride[1] = 1ull << 33;
	copy.run_bytes = (1ull << 32) + 16;
	build_one(&copy, PLACE_HERE, &table);
	assert_int_equal(table.nruns, 6); /* few and long: engines */
	tiles_finish(&table);

	copy.extent[0] = 30;
	build_one(&copy, PLACE_HERE, &table);
	assert_int_equal(table.nruns, 0);
	assert_int_equal(table.ndescriptors, 5);
	assert_int_equal(tile_bytes(&table), 60 * copy.run_bytes);
	tiles_finish(&table);

	memset(&copy, 0, sizeof(copy));
	copy.dst_space = 1;
	copy.src = copy.dst = 3;
	copy.run_bytes = 100001;
	build_one(&copy, PLACE_HERE, &table);
	assert_int_equal(table.ndescriptors, 3);
	assert_int_equal(table.descriptors[1].width, 16);
	assert_int_equal(tile_bytes(&table), copy.run_bytes);
	tiles_finish(&table);

	copy.ndim = 1;
	copy.extent[0] = 0;
	build_one(&copy, PLACE_HERE, &table);
	assert_int_equal(table.ntiles, 0);
	tiles_finish(&table);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_divisors),
		cmocka_unit_test(test_random_copies),
		cmocka_unit_test(test_policy),
		cmocka_unit_test(test_cuts),
	};

	return TEST_RUN(tests);
}
