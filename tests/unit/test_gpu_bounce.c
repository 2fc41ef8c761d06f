/*
 * Copies that go by a ring of buffers: what the loads are, and that every byte arrives as by the
 * copies themselves, in any strides and by any cast, with buffers much shorter than what goes by
 * them.
 */
#include "gpu/bounce.h"
#include "gpu/gpu.h"
#include "plan/bounce.h"
#include "unit/gpu_copies.h"
#include <errno.h>
#include <stdlib.h>

#define RING_SPACE 7
#define NBUFFERS 3u

static uint64_t run_in_ring(const struct copy *copy)
{
	return MIN(copy->run_bytes, run_in_source(copy));
}

static uint64_t total(const struct copy *copy)
{
	uint64_t bytes = run_in_ring(copy);

	for (unsigned k = 0; k < copy->ndim; k++) {
		bytes *= copy->extent[k];
	}
	return bytes;
}

/* Copies of one range that lie apart at their destinations, between spaces 0 and 1. */
static void random_range(struct copy *v, size_t n)
{
	for (size_t i = 0; i < n; i++) {
		random_copy(&v[i], test_random_below(2) != 0);
		v[i].dst += i * SPACE_BYTES;
		v[i].dst_space = 1;
	}
}

/* No load is longer than its buffer, nor lies in another one; all that goes in comes out. */
static void check_loads(const struct copies *copies, const struct bounce *bounce, uint64_t buffer)
{
	uint64_t wanted = 0, packed = 0, taken = 0;

	assert_int_equal(bounce->nranges, copies->nranges);
	assert_int_equal(bounce->first[0], 0);
	assert_int_equal(bounce->first[copies->nranges], bounce->out.nranges);
	assert_int_equal(bounce->out.nranges, bounce->in.nranges);
	for (size_t i = 0; i < copies->n; i++) {
		wanted += total(&copies->v[i]);
	}
	for (size_t load = 0; load < bounce->out.nranges; load++) {
		uint64_t begin = load % NBUFFERS * buffer, past = begin + buffer;

		assert_true(bounce->out.first[load] < bounce->out.first[load + 1]);
		for (size_t i = bounce->out.first[load]; i < bounce->out.first[load + 1]; i++) {
			const struct copy *copy = &bounce->out.v[i];

			assert_int_equal(copy->src_space, 0);
			assert_int_equal(copy->dst_space, RING_SPACE);
			assert_true(copy->dst >= begin);
			assert_true(
				copy->dst + copy_span(copy, copy->run_bytes, copy->dst_stride) <=
				past);
			assert_true(copy->run_bytes <= run_in_source(copy));
			packed += total(copy);
		}
		for (size_t i = bounce->in.first[load]; i < bounce->in.first[load + 1]; i++) {
			const struct copy *copy = &bounce->in.v[i];

			assert_int_equal(copy->src_space, RING_SPACE);
			assert_int_equal(copy->dst_space, 1);
			assert_true(copy->src >= begin);
			assert_true(copy->src + copy_span(copy, run_in_source(copy),
							copy->src_stride) <=
				    past);
			assert_true(copy->run_bytes >= run_in_source(copy));
			taken += total(copy);
		}
	}
	assert_int_equal(packed, wanted);
	assert_int_equal(taken, wanted);
}

static void test_loads(void **state)
{
	(void)state;
	for (unsigned round = 0; round < 300; round++) {
		struct copy v[8];
		size_t first[] = {0, test_random_below(5), 4, 4, 8};
		struct copies copies = {.v = v, .n = 8, .cap = 8, .first = first, .nranges = 4};
		uint64_t buffer = SLOT_ALIGN << test_random_below(12);
		struct bounce bounce;

		random_range(v, 8);
		assert_int_equal(
			bounce_make(&copies, RING_SPACE, buffer, NBUFFERS, &bounce, NULL), 0);
		check_loads(&copies, &bounce, buffer);
		assert_int_equal(bounce.first[2], bounce.first[3]);
		bounce_finish(&bounce);
	}
}

/* What is contiguous stays so: a whole matrix in long runs, and its rows where they are apart. */
static void test_runs_stay_long(void **state)
{
	struct copy v[] = {
		{.dst_space = 1, .run_bytes = 1 << 20},
		{.dst = 4 << 20,
			.dst_space = 1,
			.run_bytes = 512,
			.ndim = 1,
			.extent = {1024},
			.src_stride = {512},
			.dst_stride = {2048}},
	};
	size_t first[] = {0, 1, 2};
	struct copies copies = {.v = v, .n = 2, .cap = 2, .first = first, .nranges = 2};
	struct bounce bounce;

	(void)state;
	assert_int_equal(bounce_make(&copies, RING_SPACE, 1 << 18, NBUFFERS, &bounce, NULL), 0);
	assert_int_equal(bounce.first[1], 4);
	assert_int_equal(bounce.first[2], 6);
	for (size_t load = 0; load < 6; load++) {
		const struct copy *out = &bounce.out.v[load], *in = &bounce.in.v[load];

		assert_int_equal(bounce.out.first[load], load);
		assert_int_equal(bounce.in.first[load], load);
		assert_int_equal(out->run_bytes, 1 << 18);
		assert_int_equal(out->ndim, 0);
		assert_int_equal(in->run_bytes, load < 4 ? 1 << 18 : 512);
		assert_int_equal(in->ndim, load < 4 ? 0 : 1);
	}
	bounce_finish(&bounce);
}

static void test_casts_are_carried_narrow(void **state)
{
	struct copy v[] = {
		{.dst_space = 1, .run_bytes = 2000, .from = STREW_F32, .to = STREW_BF16},
		{.dst_space = 1,
			.dst = 4000,
			.run_bytes = 4000,
			.from = STREW_F16,
			.to = STREW_F32},
		{.dst_space = 1,
			.dst = 9000,
			.run_bytes = 2000,
			.from = STREW_F16,
			.to = STREW_BF16},
	};
	size_t first[] = {0, 3};
	struct copies copies = {.v = v, .n = 3, .cap = 3, .first = first, .nranges = 1};
	struct bounce bounce;

	(void)state;
	assert_int_equal(bounce_make(&copies, RING_SPACE, 1 << 18, NBUFFERS, &bounce, NULL), 0);
	assert_int_equal(bounce.out.n, 3);
	assert_int_equal(bounce.in.n, 3);
	for (size_t i = 0; i < 3; i++) {
		assert_int_equal(bounce.out.v[i].run_bytes, 2000);
		assert_int_equal(bounce.out.v[i].from, i == 0 ? STREW_F32 : 0);
		assert_int_equal(bounce.in.v[i].run_bytes, v[i].run_bytes);
		assert_int_equal(bounce.in.v[i].from, i == 0 ? 0 : v[i].from);
		assert_int_equal(bounce.in.v[i].to, i == 0 ? 0 : v[i].to);
	}
	bounce_finish(&bounce);
}

/* Two ends of the host backend, a slot at either of them, three ranges, and what lies between. */
static void test_bytes_arrive(void **state)
{
	static const uint8_t uuid[GPU_UUID_BYTES];
	enum { N = 6 };
	char *src = aligned_alloc(SLOT_ALIGN, SPACE_BYTES);
	char *dst = aligned_alloc(SLOT_ALIGN, N * SPACE_BYTES), *want = malloc(N * SPACE_BYTES);
	struct gpu_stream *stream;
	struct gpu_device *device;
	struct gpu *gpu;

	(void)state;
	assert_int_equal(gpu_open(GPU_HOST, &gpu, NULL), 0);
	assert_int_equal(gpu_device(gpu, uuid, &device, NULL), 0);
	assert_int_equal(gpu_stream_create(device, &stream, NULL), 0);
	assert_true(gpu_reaches(gpu, uuid, uuid));
	for (unsigned round = 0; round < 60; round++) {
		struct copy v[N];
		size_t first[] = {0, 2, 2, N};
		struct copies copies = {.v = v, .n = N, .cap = N, .first = first, .nranges = 3};
		bool slot_first = round % 2;
		uint64_t from[] = {slot_first ? 0 : (uintptr_t)src, GPU_OUT_OF_REACH};
		uint64_t to[] = {GPU_OUT_OF_REACH, slot_first ? (uintptr_t)dst : 0};
		struct gpu_bounce *bounce;
		struct gpu_ring *ring;

		random_range(v, N);
		test_random_fill(src, SPACE_BYTES);
		test_random_fill(dst, N * SPACE_BYTES);
		memcpy(want, dst, N * SPACE_BYTES);
		assert_int_equal(
			gpu_ring_create(device, device, SLOT_ALIGN << round % 9, &ring, NULL), 0);
		assert_int_equal(gpu_bounce_create(ring, &copies, from, to, 2, &bounce, NULL), 0);
		for (size_t range = 0; range < 3; range++) {
			for (size_t i = first[range]; i < first[range + 1]; i++) {
				reference(&v[i], 0, want + v[i].dst, src + v[i].src);
			}
			assert_int_equal(
				gpu_bounce_run(bounce, range, (uintptr_t)(slot_first ? src : dst),
					stream, stream, NULL),
				0);
			assert_memory_equal(dst, want, N * SPACE_BYTES);
		}
		assert_int_equal(gpu_bounce_run(bounce, 3, 0, stream, stream, NULL), -EINVAL);
		gpu_bounce_destroy(bounce);
		gpu_ring_destroy(ring);
	}
	gpu_stream_destroy(stream);
	gpu_close(gpu);
	free(src);
	free(dst);
	free(want);
}

/* What is out of reach is refused, and not run as if its address were one. */
static void test_out_of_reach(void **state)
{
	static const uint8_t uuid[GPU_UUID_BYTES];
	struct copy copy = {.dst_space = 1, .run_bytes = 16};
	size_t first[] = {0, 1};
	struct copies copies = {.v = &copy, .n = 1, .cap = 1, .first = first, .nranges = 1};
	uint64_t bases[] = {4096, GPU_OUT_OF_REACH, GPU_OUT_OF_REACH};
	struct gpu_copies *compiled;
	struct gpu_bounce *bounce;
	struct gpu_device *device;
	struct gpu_ring *ring;
	struct error err = {0};
	struct gpu *gpu;

	(void)state;
	assert_int_equal(gpu_open(GPU_HOST, &gpu, NULL), 0);
	assert_int_equal(gpu_device(gpu, uuid, &device, NULL), 0);
	assert_int_equal(gpu_ring_create(device, device, SLOT_ALIGN, &ring, NULL), 0);
	assert_int_equal(gpu_copies_create(device, &copies, bases, 3, &compiled, &err), -EINVAL);
	assert_non_null(strstr(err.text, "copy 0: spaces 0 and 1 are not both within reach"));
	assert_int_equal(gpu_bounce_create(ring, &copies, bases, bases, 3, &bounce, &err), -EINVAL);
	assert_int_equal(gpu_bounce_create(ring, &copies, bases, bases, 1, &bounce, &err), -EINVAL);
	gpu_bounce_destroy(NULL);
	gpu_ring_destroy(ring);
	gpu_ring_destroy(NULL);
	gpu_close(gpu);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_loads),
		cmocka_unit_test(test_runs_stay_long),
		cmocka_unit_test(test_casts_are_carried_narrow),
		cmocka_unit_test(test_bytes_arrive),
		cmocka_unit_test(test_out_of_reach),
	};

	test_seed();
	return TEST_RUN(tests);
}
