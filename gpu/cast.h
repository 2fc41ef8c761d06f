/*
 * Casts of single values between f32, f16 and bf16, without conversions of the
 * hardware, so that host and kernel agree in every bit, and without branches, so
 * that neither is slowed by what is rare. To nearest, ties to even; too large
 * becomes infinity; subnormals are exact. A NaN keeps its sign and the upper bits
 * of its payload and is quiet. Included by C and by CUDA C.
 */
#ifndef GPU_CAST_H
#define GPU_CAST_H

#include <stdint.h>

#ifdef __CUDACC__
#define CAST_FUNCTION __device__ static inline
#else
#define CAST_FUNCTION static inline
#endif

/* enum strew_dtype; gpu/tiles.c asserts it. */
#define CAST_F32 1u
#define CAST_F16 2u
#define CAST_BF16 3u

union cast_bits {
	uint32_t u;
	float f;
};

CAST_FUNCTION uint32_t cast_bf16_to_f32(uint32_t half)
{
	uint32_t bits = half << 16;

	return (bits & 0x7fffffffu) > 0x7f800000u ? bits | 0x00400000u : bits;
}

CAST_FUNCTION uint32_t cast_f32_to_bf16(uint32_t bits)
{
	/* Half a unit, less one where the result would be even; a carry goes to the exponent. */
	uint32_t rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;

	return (bits & 0x7fffffffu) > 0x7f800000u ? bits >> 16 | 0x0040u : rounded;
}

CAST_FUNCTION uint32_t cast_f16_to_f32(uint32_t half)
{
	uint32_t sign = (half & 0x8000u) << 16;
	uint32_t rest = half & 0x7fffu;
	uint32_t quiet = rest > 0x7c00u ? 0x00400000u : 0;
	union cast_bits small = {(rest << 13) + (113u << 23)};
	uint32_t made = (rest << 13) + (112u << 23);

	/* A subnormal has no hidden bit: the one that it was given here, 2^-14, goes again. */
	small.f -= 0x1p-14f;
	made = rest < 0x0400u ? small.u : made;
	made = rest >= 0x7c00u ? 0x7f800000u | rest << 13 | quiet : made;
	return sign | made;
}

CAST_FUNCTION uint32_t cast_f32_to_f16(uint32_t bits)
{
	uint32_t sign = bits >> 16 & 0x8000u;
	uint32_t rest = bits & 0x7fffffffu;
	union cast_bits small = {rest};
	uint32_t made = (rest - (112u << 23) + 0xfffu + (rest >> 13 & 1u)) >> 13;

	/* Below 2^-14 the last bit of a sum with 0.5 is 2^-24, a subnormal's unit. */
	small.f += 0.5f;
	made = rest < 0x38800000u ? small.u - 0x3f000000u : made;
	made = rest >= 0x47800000u ? 0x7c00u : made;
	made = rest > 0x7f800000u ? 0x7e00u | (rest >> 13 & 0x3ffu) : made;
	return sign | made;
}

/* A value of `dtype` as f32, and back; the bits in the lower half where it has 16. */
CAST_FUNCTION uint32_t cast_widen(uint32_t bits, uint32_t dtype)
{
	return dtype == CAST_F16    ? cast_f16_to_f32(bits)
	       : dtype == CAST_BF16 ? cast_bf16_to_f32(bits)
				    : bits;
}

CAST_FUNCTION uint32_t cast_narrow(uint32_t bits, uint32_t dtype)
{
	return dtype == CAST_F16    ? cast_f32_to_f16(bits)
	       : dtype == CAST_BF16 ? cast_f32_to_bf16(bits)
				    : bits;
}

#endif
