/* Hashes of bytes that go over a wire: the host backend and the kernel's source against a
 * reference; every flipped bit, and what was moved, is found. */
#include "base/util.h"
#include "gpu/gpu.h"
#include "gpu/hash.h"
#include "support/test_main.h"
#include "unit/hash_reference.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define MEMORY_BYTES (1u << 20)
#define SPANS 40
#define RANGES 5
#define SUMS 3

static const uint8_t host_uuid[GPU_UUID_BYTES];

struct fixture {
	struct gpu *gpu;
	struct gpu_device *device;
	struct gpu_stream *stream;
	unsigned char *memory, *slot;
	struct gpu_span spans[SPANS];
	size_t first[RANGES + 1];
};

static int setup(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));

	assert_int_equal(gpu_open(GPU_HOST, &f->gpu, NULL), 0);
	assert_int_equal(gpu_device(f->gpu, host_uuid, &f->device, NULL), 0);
	assert_int_equal(gpu_stream_create(f->device, &f->stream, NULL), 0);
	f->memory = malloc(MEMORY_BYTES);
	f->slot = malloc(MEMORY_BYTES);
	test_random_fill(f->memory, MEMORY_BYTES);
	test_random_fill(f->slot, MEMORY_BYTES);
	*state = f;
	return 0;
}

static int teardown(void **state)
{
	struct fixture *f = *state;

	gpu_stream_destroy(f->stream);
	gpu_close(f->gpu);
	free(f->memory);
	free(f->slot);
	free(f);
	return 0;
}

/* Some empty, most short, of any alignment; the second range has none. */
static void make_spans(struct fixture *f)
{
	f->first[0] = 0;
	f->first[1] = f->first[2] = SPANS / 4;
	f->first[3] = SPANS / 2;
	f->first[4] = SPANS - 1;
	f->first[5] = SPANS;
	for (size_t i = 0; i < SPANS; i++) {
		struct gpu_span *span = &f->spans[i];
		uint64_t longest = i % 4 ? 100 : MEMORY_BYTES / 2, at;

		span->len_bytes = i == 7 ? 0 : test_random_below(longest);
		at = test_random_below(MEMORY_BYTES - span->len_bytes);
		span->in_slot = i % 3 == 0;
		span->address = span->in_slot ? at & ~7ull : (uintptr_t)f->memory + at;
		span->position = test_random_below(1u << 30) * 8;
		span->sum = (uint32_t)test_random_below(SUMS);
	}
}

static const unsigned char *bytes_of(const struct fixture *f, const struct gpu_span *span)
{
	return span->in_slot ? f->slot + span->address
			     : (const unsigned char *)(uintptr_t)span->address;
}

static void reference(const struct fixture *f, uint64_t sums[SUMS])
{
	memset(sums, 0, SUMS * sizeof(*sums));
	for (size_t i = 0; i < SPANS; i++) {
		const struct gpu_span *span = &f->spans[i];

		sums[span->sum] += ref_hash(bytes_of(f, span), span->len_bytes, span->position);
	}
}

static void test_spans(void **state)
{
	struct fixture *f = *state;
	struct gpu_hashes *hashes;
	uint64_t wanted[SUMS];

	for (int round = 0; round < 20; round++) {
		make_spans(f);
		reference(f, wanted);
		assert_int_equal(gpu_hashes_create(f->device, f->spans, f->first, RANGES, SUMS,
					 &hashes, NULL),
			0);
		/* Again, as in the next update: nothing of the first time is left. */
		for (int again = 0; again < 2; again++) {
			assert_int_equal(gpu_hashes_clear(hashes, f->stream, NULL), 0);
			for (size_t range = RANGES; range-- > 0;) {
				assert_int_equal(gpu_hashes_run(hashes, range, (uintptr_t)f->slot,
							 f->stream, NULL),
					0);
			}
			assert_int_equal(gpu_hashes_fetch(hashes, f->stream, NULL), 0);
			assert_memory_equal(gpu_hashes_values(hashes), wanted, sizeof(wanted));
		}
		assert_int_equal(gpu_hashes_run(hashes, RANGES, 0, f->stream, NULL), -EINVAL);
		gpu_hashes_destroy(hashes);
	}
	f->spans[3].position = 12;
	assert_int_equal(
		gpu_hashes_create(f->device, f->spans, f->first, RANGES, SUMS, &hashes, NULL),
		-EINVAL);
	f->spans[3].position = 16;
	f->spans[3].sum = SUMS;
	assert_int_equal(
		gpu_hashes_create(f->device, f->spans, f->first, RANGES, SUMS, &hashes, NULL),
		-EINVAL);
}

static uint64_t sum_of(struct fixture *f, size_t len_bytes, uint64_t position)
{
	struct gpu_span span = {
		.address = (uintptr_t)f->memory, .len_bytes = len_bytes, .position = position};
	size_t first[2] = {0, 1};
	struct gpu_hashes *hashes;
	uint64_t sum;

	assert_int_equal(gpu_hashes_create(f->device, &span, first, 1, 1, &hashes, NULL), 0);
	assert_int_equal(gpu_hashes_run(hashes, 0, 0, f->stream, NULL), 0);
	sum = gpu_hashes_values(hashes)[0];
	gpu_hashes_destroy(hashes);
	return sum;
}

/* Each bit of it, words in each other's places, and a place further on. */
static void test_what_is_found(void **state)
{
	struct fixture *f = *state;
	size_t len_bytes = 1 + test_random_below(200);
	uint64_t sum = sum_of(f, len_bytes, 0), word;

	for (size_t bit = 0; bit < 8 * len_bytes; bit++) {
		f->memory[bit / 8] ^= (unsigned char)(1u << bit % 8);
		assert_true(sum_of(f, len_bytes, 0) != sum);
		f->memory[bit / 8] ^= (unsigned char)(1u << bit % 8);
	}
	assert_true(sum_of(f, len_bytes, 0) == sum);
	assert_true(sum_of(f, len_bytes, 8) != sum);
	memset(f->memory, 0, 64);
	assert_true(sum_of(f, 64, 0) != 0 && sum_of(f, 64, 0) != sum_of(f, 56, 0));
	test_random_fill(f->memory, 64);
	sum = sum_of(f, 64, 0);
	memcpy(&word, f->memory, 8);
	memcpy(f->memory, f->memory + 40, 8);
	memcpy(f->memory + 40, &word, 8);
	assert_true(sum_of(f, 64, 0) != sum);
}

#ifdef HAVE_KERNEL_ON_CPU
unsigned hash_on_cpu(const struct hash_tile *tiles, uint32_t ntiles, uint64_t slot, uint64_t *sums);

static void test_kernel(void **state)
{
	struct fixture *f = *state;
	struct hash_tile tiles[SPANS];
	uint64_t sums[SUMS] = {0}, wanted[SUMS];

	make_spans(f);
	for (size_t i = 0; i < SPANS; i++) {
		struct gpu_span *span = &f->spans[i];

		span->len_bytes = MIN(span->len_bytes, HASH_TILE_BYTES);
		tiles[i] = (struct hash_tile){.address = span->address,
			.position = span->position / 8,
			.len_bytes = (uint32_t)span->len_bytes,
			.in_slot = span->in_slot,
			.sum = span->sum};
	}
	reference(f, wanted);
	assert_int_equal(hash_on_cpu(tiles, SPANS, (uintptr_t)f->slot, sums), 0);
	assert_memory_equal(sums, wanted, sizeof(wanted));
}
#else
static void test_kernel(void **state)
{
	(void)state;
	skip();
}
#endif

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_spans, setup, teardown),
		cmocka_unit_test_setup_teardown(test_what_is_found, setup, teardown),
		cmocka_unit_test_setup_teardown(test_kernel, setup, teardown),
	};

	return TEST_RUN(tests);
}
