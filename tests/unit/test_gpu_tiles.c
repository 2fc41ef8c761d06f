/*
 * Descriptors and tiles without a GPU: an interpreter that does what the kernels do, with
 * their arithmetic, and the kernels' own source, against the plain meaning of struct copy.
 */
#include "gpu/cast.h"
#include "gpu/tiles.h"
#include "unit/gpu_copies.h"
#include <stdlib.h>

static uint32_t divide(uint32_t n, const struct scatter_divisor *d)
{
	return d->magic ? (uint32_t)(((uint64_t)n * d->magic) >> 32) >> d->shift : n;
}

/* A vector of a cast. */
static void interpret_cast(const struct scatter_descriptor *d, uint64_t src, uint64_t dst)
{
	uint32_t from = d->cast & 0xff, to = d->cast >> 8, n = d->width ? d->width : 1;
	uint32_t from_bytes = from == CAST_F32 ? 4 : 2, to_bytes = to == CAST_F32 ? 4 : 2;

	assert_true(n == 1 || n * (from_bytes > to_bytes ? from_bytes : to_bytes) == 16);
	assert_true(d->width == 0 || src % (n * from_bytes) == 0);
	assert_true(d->width == 0 || dst % (n * to_bytes) == 0);
	for (uint32_t e = 0; e < n; e++) {
		uint32_t bits = 0;

		memcpy(&bits, (void *)(uintptr_t)(src + e * from_bytes), from_bytes);
		bits = cast_narrow(cast_widen(bits, from), to);
		memcpy((void *)(uintptr_t)(dst + e * to_bytes), &bits, to_bytes);
	}
}

static void interpret_tile(
	const struct scatter_table *table, const struct scatter_tile *tile, uint64_t slot)
{
	const struct scatter_descriptor *d = &table->descriptors[tile->descriptor];
	uint32_t src_width = d->width, dst_width = d->width;

	if (d->cast) {
		src_width = MAX(d->width, 1) * ((d->cast & 0xff) == CAST_F32 ? 4 : 2);
		dst_width = MAX(d->width, 1) * (d->cast >> 8 == CAST_F32 ? 4 : 2);
	}
	assert_true(tile->count > 0 && tile->count <= SCATTER_TILE_VECTORS);
	for (uint32_t i = 0; i < tile->count; i++) {
		uint64_t src = d->src + (d->slot & SCATTER_SRC_SLOT ? slot : 0);
		uint64_t dst = d->dst + (d->slot & SCATTER_DST_SLOT ? slot : 0);
		uint32_t v = tile->vector + i;
		uint32_t local = divide(v, &d->vectors);
		uint32_t row = tile->row + local;
		uint64_t column = v - local * d->vectors.value;

		src += column * src_width;
		dst += column * dst_width;
		for (uint32_t k = d->ndim; k-- > 0;) {
			uint32_t outer = k ? divide(row, &d->dim[k].extent) : 0;
			uint32_t index = k ? row - outer * d->dim[k].extent.value : row;

			src += index * d->dim[k].src_stride;
			dst += index * d->dim[k].dst_stride;
			row = outer;
		}
		if (d->cast) {
			interpret_cast(d, src, dst);
			continue;
		}
		assert_int_equal(src % d->width, 0);
		assert_int_equal(dst % d->width, 0);
		memcpy((void *)(uintptr_t)dst, (void *)(uintptr_t)src, d->width);
	}
}

static void interpret_runs(const struct scatter_table *table, size_t range, uint64_t slot)
{
	for (size_t r = 0; r < table->ranges[range].nruns; r++) {
		const struct scatter_run *run = &table->runs[table->ranges[range].first_run + r];

		memcpy((void *)(uintptr_t)(run->dst + (run->slot & SCATTER_DST_SLOT ? slot : 0)),
			(void *)(uintptr_t)(run->src + (run->slot & SCATTER_SRC_SLOT ? slot : 0)),
			run->len_bytes);
	}
}

static void interpret(const struct scatter_table *table, size_t range, uint64_t slot)
{
	const struct scatter_range *here = &table->ranges[range];

	for (size_t t = 0; t < here->ntiles; t++) {
		const struct scatter_tile *tile = &table->tiles[here->first_tile + t];

		assert_int_equal(table->descriptors[tile->descriptor].cast, 0);
		interpret_tile(table, tile, slot);
	}
	for (size_t t = 0; t < here->ncasts; t++) {
		const struct scatter_tile *tile = &table->tiles[here->first_cast + t];

		assert_int_not_equal(table->descriptors[tile->descriptor].cast, 0);
		interpret_tile(table, tile, slot);
	}
	interpret_runs(table, range, slot);
}

#ifdef HAVE_KERNEL_ON_CPU
unsigned kernel_on_cpu(bool casts, const struct scatter_descriptor *descriptors,
	const struct scatter_tile *tiles, uint32_t ntiles, uint64_t slot);
unsigned few_on_cpu(const struct scatter_descriptor *descriptors, const struct scatter_tile *tiles,
	uint32_t ntiles, uint64_t slot, uint32_t nblocks);

/* The same by the kernels themselves. */
static void run_kernels(const struct scatter_table *table, size_t range, uint64_t slot)
{
	const struct scatter_range *here = &table->ranges[range];

	if (test_random_below(2)) {
		assert_int_equal(
			few_on_cpu(table->descriptors, table->tiles + here->first_tile,
				(uint32_t)here->ntiles, slot, 1 + (uint32_t)test_random_below(7)),
			0);
	} else {
		assert_int_equal(
			kernel_on_cpu(false, table->descriptors, table->tiles + here->first_tile,
				(uint32_t)here->ntiles, slot),
			0);
	}
	assert_int_equal(kernel_on_cpu(true, table->descriptors, table->tiles + here->first_cast,
				 (uint32_t)here->ncasts, slot),
		0);
	interpret_runs(table, range, slot);
}
#else
#define run_kernels interpret
#endif

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
	char *memory = aligned_alloc(4096, 5 * SPACE_BYTES), *before = memory + 4 * SPACE_BYTES;
	char *src = memory, *dst = memory + SPACE_BYTES;
	char *slot = memory + 2 * SPACE_BYTES, *want = memory + 3 * SPACE_BYTES;
	uint64_t bases[] = {0, (uintptr_t)src, (uintptr_t)dst};
	const enum place places[] = {PLACE_HERE, PLACE_HERE, PLACE_HOST};
	size_t first[] = {0, 1};

	(void)state;
	assert_non_null(memory);
	for (unsigned i = 0; i < 1200; i++) {
		struct scatter_table table;
		struct copy copy;
		struct copies copies = {.v = &copy, .n = 1, .cap = 1, .first = first, .nranges = 1};
		bool gather = test_random_below(2);
		bool scatter = !gather && test_random_below(2);
		char *from = scatter ? slot : src;
		char *to = gather ? slot : dst;

		random_copy(&copy, i % 2);
		copy.src_space = scatter ? 0 : 1;
		copy.dst_space = gather ? 0 : 2;
		test_random_fill(memory, 3 * SPACE_BYTES);
		memcpy(want, to, SPACE_BYTES);
		reference(&copy, 0, want + copy.dst, from + copy.src);
		assert_int_equal(tiles_build(&copies, bases, places, &table, NULL), 0);
		memcpy(before, to, SPACE_BYTES);
		interpret(&table, 0, (uintptr_t)slot);
		assert_memory_equal(to, want, SPACE_BYTES);
		memcpy(to, before, SPACE_BYTES);
		run_kernels(&table, 0, (uintptr_t)slot);
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

/* Casts and bytes of one range apart, whatever their order; casts never by a copy engine. */
static void test_casts_apart(void **state)
{
	struct copy v[40] = {{0}};
	size_t first[] = {0, 1, ARRAY_LEN(v)};
	const uint64_t bases[] = {1ull << 40, 1ull << 41};
	struct copies copies = {
		.v = v, .n = ARRAY_LEN(v), .cap = ARRAY_LEN(v), .first = first, .nranges = 2};

	(void)state;
	for (int far = 0; far < 2; far++) {
		const enum place places[] = {PLACE_HERE, far ? PLACE_HOST : PLACE_HERE};
		struct scatter_table table;
		size_t bytes = 0, casts = 0, runs = 0;

		for (size_t i = 0; i < ARRAY_LEN(v); i++) {
			bool cast = i == 0 || test_random_below(2);
			/* One tile each, or long enough for an engine. */
			bool longer = i == 0 || test_random_below(4) == 0;

			v[i] = (struct copy){.src = i << 24,
				.dst = i << 24,
				.dst_space = 1,
				.run_bytes = longer ? 8u << 20 : 4096};
			if (cast) {
				v[i].from = STREW_BF16;
				v[i].to = STREW_F16;
			}
			bytes += i && !cast && !longer;
			casts += i && cast ? (longer ? (4u << 20) / 8 / 2048 : 1) : 0;
			runs += i && !cast && longer;
		}
		assert_int_equal(tiles_build(&copies, bases, places, &table, NULL), 0);
		assert_int_equal(table.ranges[0].ntiles + table.ranges[0].nruns, 0);
		assert_int_equal(table.ranges[0].ncasts, 256);
		assert_int_equal(table.ranges[1].ncasts, casts);
		if (far) {
			assert_int_equal(table.ranges[1].ntiles, bytes);
			assert_int_equal(table.ranges[1].nruns, runs);
		}
		tiles_finish(&table);
	}
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

/* Over a link an engine takes some of the shorter runs off the kernel: one in 8 MiB or more, so
 * that its calls cost little, and none that is short or strided. */
static void test_engine_shares(void **state)
{
	struct copy v[100] = {{0}};
	size_t first[] = {0, ARRAY_LEN(v)};
	const uint64_t bases[] = {0, 1ull << 40};
	enum place places[] = {PLACE_HERE, PLACE_PEER};
	struct copies copies = {
		.v = v, .n = ARRAY_LEN(v), .cap = ARRAY_LEN(v), .first = first, .nranges = 1};
	struct scatter_table table;

	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(v); i++) {
		v[i] = (struct copy){.dst_space = 1,
			.run_bytes = 1u << 20,
			.src = i * (2ull << 20),
			.dst = i * (1ull << 20)};
	}
	assert_int_equal(tiles_build(&copies, bases, places, &table, NULL), 0);
	assert_int_equal(table.nruns, ARRAY_LEN(v) / 8);
	assert_int_equal(tile_bytes(&table), (ARRAY_LEN(v) - ARRAY_LEN(v) / 8) << 20);
	assert_int_equal(table.runs[0].src, 7 * (2ull << 20));
	tiles_finish(&table);

	places[1] = PLACE_HERE;
	assert_int_equal(tiles_build(&copies, bases, places, &table, NULL), 0);
	assert_int_equal(table.nruns, 0);
	tiles_finish(&table);

	places[1] = PLACE_PEER;
	for (size_t i = 0; i < ARRAY_LEN(v); i++) {
		if (i % 2) {
			v[i].run_bytes -= 16;
		} else {
			v[i].ndim = 1;
			v[i].extent[0] = 2;
			v[i].src_stride[0] = v[i].dst_stride[0] = 1u << 20;
		}
	}
	assert_int_equal(tiles_build(&copies, bases, places, &table, NULL), 0);
	assert_int_equal(table.nruns, 0);
	tiles_finish(&table);
}

/* A long cast is cut so that all but its ends go in wide vectors, at any alignment that allows it.
 */
static void test_cast_cuts(void **state)
{
	(void)state;
	for (unsigned i = 0; i < 200; i++) {
		uint64_t from = i % 2 ? 4 : 2, lead = test_random_below(8);
		struct copy copy = {.dst_space = 1, .from = STREW_F16, .to = STREW_BF16};
		uint64_t wide = from == 4 ? 4 : 8, n = 5000 + test_random_below(100), elements = 0;
		struct scatter_table table;

		copy.from = from == 4 ? STREW_F32 : STREW_F16;
		copy.src = lead * from;
		copy.dst = (lead + wide * test_random_below(3)) * 2;
		copy.run_bytes = n * 2;
		build_one(&copy, false, &table);
		for (size_t d = 0; d < table.ndescriptors; d++) {
			const struct scatter_descriptor *at = &table.descriptors[d];
			uint64_t count = (uint64_t)at->width * at->vectors.value;

			assert_true(at->width == wide || (at->width == 1 && count < wide));
			elements += count;
		}
		assert_int_equal(elements, n);
		assert_true(table.ndescriptors <= 3);
		tiles_finish(&table);
	}
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
		cmocka_unit_test(test_casts_apart),
		cmocka_unit_test(test_policy),
		cmocka_unit_test(test_engine_shares),
		cmocka_unit_test(test_cast_cuts),
		cmocka_unit_test(test_cuts),
	};

	return TEST_RUN(tests);
}
