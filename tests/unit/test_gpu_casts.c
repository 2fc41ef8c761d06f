/* Casts: every value of the small types, f32 around every boundary, and the host's executor. */
#include "base/limits.h"
#include "gpu/cast.h"
#include "gpu/gpu.h"
#include "unit/gpu_copies.h"
#include <errno.h>
#include <stdlib.h>

static uint32_t ours(uint32_t bits, enum strew_dtype from, enum strew_dtype to)
{
	return cast_narrow(cast_widen(bits, from), to);
}

static void same(uint32_t bits, enum strew_dtype from, enum strew_dtype to)
{
	uint32_t got = ours(bits, from, to), want = ref_cast(bits, from, to);

	if (got != want) {
		fail_msg("%s %08x to %s: %08x, but %08x is right", strew_dtype_name(from), bits,
			strew_dtype_name(to), got, want);
	}
}

/* The reference itself, against what the C compiler knows of f32. */
static void test_reference(void **state)
{
	(void)state;
	for (unsigned i = 0; i < 100000; i++) {
		uint32_t bits = (uint32_t)test_random();
		float value;

		memcpy(&value, &bits, sizeof(value));
		if (!ref_is_nan(bits, STREW_F32)) {
			assert_true(ref_decode(bits, STREW_F32) == (double)value);
			assert_int_equal(ref_encode((double)value, STREW_F32), bits);
		}
	}
	assert_int_equal(ref_encode(65504, STREW_F16), 0x7bff);
	assert_int_equal(ref_encode(65519.99, STREW_F16), 0x7bff);
	assert_int_equal(ref_encode(65520, STREW_F16), 0x7c00);
	assert_int_equal(ref_encode(-0.0, STREW_BF16), 0x8000);
	assert_int_equal(ref_encode(ldexp(1, -25), STREW_F16), 0);
	assert_int_equal(ref_encode(ldexp(3, -25), STREW_F16), 2);
	assert_int_equal(ref_encode(1 + 1.0 / 256, STREW_BF16), 0x3f80);
	assert_int_equal(ref_encode(1 + 3.0 / 256, STREW_BF16), 0x3f82);
}

static void test_small_values(void **state)
{
	static const enum strew_dtype small[] = {STREW_F16, STREW_BF16};

	(void)state;
	for (uint32_t bits = 0; bits < 65536; bits++) {
		for (unsigned i = 0; i < 2; i++) {
			uint32_t quiet = small[i] == STREW_F16 ? 0x0200 : 0x0040;
			uint32_t back = ours(ours(bits, small[i], STREW_F32), STREW_F32, small[i]);

			same(bits, small[i], STREW_F32);
			same(bits, small[i], small[1 - i]);
			assert_int_equal(back, ref_is_nan(bits, small[i]) ? bits | quiet : bits);
		}
	}
}

/* Each value of the small type, the middle between it and the next one, and what is beside them. */
static void test_boundaries(void **state)
{
	static const enum strew_dtype small[] = {STREW_F16, STREW_BF16};

	(void)state;
	for (unsigned i = 0; i < 2; i++) {
		for (uint32_t bits = 0; bits < 65536; bits++) {
			double here, next;
			uint32_t at, middle;

			if (ref_is_nan(bits, small[i])) {
				continue;
			}
			here = ref_decode(bits, small[i]);
			next = ref_is_nan(bits + 1, small[i]) ? here
							      : ref_decode(bits + 1, small[i]);
			next = isinf(next) ? here * 2
					   : next; /* beyond the largest, and to 2 of it */
			at = ref_encode(here, STREW_F32);
			middle = ref_encode((here + next) / 2, STREW_F32);
			for (uint32_t k = 0; k < 7; k++) {
				same(at + k - 3, STREW_F32, small[i]);
				same(middle + k - 3, STREW_F32, small[i]);
			}
		}
	}
	/* Where f16 ends, and where what is left of it ends. */
	for (uint32_t k = 0; k < 4096; k++) {
		static const uint32_t around[] = {0x477ff000, 0x47800000, 0x33000000, 0x33800000,
			0x38800000, 0x7f7fffff, 0x7f7f8000, 0x00000000, 0x80000000, 0x00800000};

		for (unsigned i = 0; i < ARRAY_LEN(around); i++) {
			same(around[i] + k - 2048, STREW_F32, STREW_F16);
			same(around[i] + k - 2048, STREW_F32, STREW_BF16);
		}
	}
}

static void test_random_values(void **state)
{
	(void)state;
	for (unsigned i = 0; i < 2000000; i++) {
		uint32_t bits = (uint32_t)test_random();

		same(bits, STREW_F32, STREW_F16);
		same(bits, STREW_F32, STREW_BF16);
		/* Within f16's exponents, which random bits seldom meet. */
		bits = (bits & 0x807fffff) | (uint32_t)(100 + test_random_below(45)) << 23;
		same(bits, STREW_F32, STREW_F16);
	}
}

static void test_nan(void **state)
{
	(void)state;
	for (unsigned i = 0; i < 200000; i++) {
		uint32_t payload = (uint32_t)test_random() & (0x7fffffu >> test_random_below(23));
		uint32_t sign = (uint32_t)test_random_below(2) << 31;

		payload = payload ? payload : 1;
		same(sign | 0x7f800000 | payload, STREW_F32, STREW_F16);
		same(sign | 0x7f800000 | payload, STREW_F32, STREW_BF16);
		assert_int_equal(ours(sign | 0x7f800000 | payload, STREW_F32, STREW_F16),
			sign >> 16 | 0x7e00 | payload >> 13);
		assert_int_equal(ours(sign | 0x7f800000 | payload, STREW_F32, STREW_BF16),
			sign >> 16 | 0x7fc0 | payload >> 16);
	}
}

/* Random casts by the host backend; what lies between the elements written stays as it was. */
static void test_host(void **state)
{
	static const uint8_t uuid[GPU_UUID_BYTES];
	char *src = malloc(SPACE_BYTES), *dst = aligned_alloc(SLOT_ALIGN, SPACE_BYTES),
	     *want = malloc(SPACE_BYTES);
	uint64_t bases[] = {(uintptr_t)src, 0};
	size_t first[] = {0, 1};
	struct gpu_stream *stream;
	struct gpu_device *device;
	struct gpu *gpu;

	(void)state;
	assert_int_equal(gpu_open(GPU_HOST, &gpu, NULL), 0);
	assert_int_equal(gpu_device(gpu, uuid, &device, NULL), 0);
	assert_int_equal(gpu_stream_create(device, &stream, NULL), 0);
	for (unsigned i = 0; i < 400; i++) {
		struct copy copy;
		struct copies copies = {.v = &copy, .n = 1, .cap = 1, .first = first, .nranges = 1};
		struct gpu_copies *compiled;

		random_copy(&copy, true);
		copy.dst_space = 1;
		test_random_fill(src, SPACE_BYTES);
		test_random_fill(dst, SPACE_BYTES);
		memcpy(want, dst, SPACE_BYTES);
		reference(&copy, 0, want + copy.dst, src + copy.src);
		assert_int_equal(gpu_copies_create(device, &copies, bases, 2, &compiled, NULL), 0);
		assert_int_equal(gpu_copies_run(compiled, 0, (uintptr_t)dst, stream, NULL), 0);
		assert_memory_equal(dst, want, SPACE_BYTES);
		gpu_copies_destroy(compiled);
	}
	gpu_stream_destroy(stream);
	gpu_close(gpu);
	free(src);
	free(dst);
	free(want);
}

/* What is no cast is refused, not run. */
static void test_bad_casts(void **state)
{
	static const struct copy bad[] = {
		{.run_bytes = 2, .from = STREW_I8, .to = STREW_BF16},
		{.run_bytes = 8, .from = STREW_F32, .to = STREW_F64},
		{.run_bytes = 4, .from = STREW_F32, .to = STREW_F32},
		{.run_bytes = 4, .from = STREW_F32},
		{.run_bytes = 4, .to = STREW_F32},
		{.run_bytes = 3, .from = STREW_F32, .to = STREW_F16},
		{.run_bytes = 4, .from = 99, .to = STREW_F16},
	};
	static const uint8_t uuid[GPU_UUID_BYTES];
	const uint64_t bases[] = {0};
	size_t first[] = {0, 1};
	struct gpu_device *device;
	struct gpu *gpu;

	(void)state;
	assert_int_equal(gpu_open(GPU_HOST, &gpu, NULL), 0);
	assert_int_equal(gpu_device(gpu, uuid, &device, NULL), 0);
	for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
		struct copy copy = bad[i];
		struct copies copies = {.v = &copy, .n = 1, .cap = 1, .first = first, .nranges = 1};
		struct gpu_copies *compiled;
		struct error err = {0};

		assert_int_equal(
			gpu_copies_create(device, &copies, bases, 1, &compiled, &err), -EINVAL);
		assert_non_null(strstr(err.text, "copy 0: "));
	}
	gpu_close(gpu);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_reference),
		cmocka_unit_test(test_small_values),
		cmocka_unit_test(test_boundaries),
		cmocka_unit_test(test_random_values),
		cmocka_unit_test(test_nan),
		cmocka_unit_test(test_host),
		cmocka_unit_test(test_bad_casts),
	};

	test_seed();
	return TEST_RUN(tests);
}
