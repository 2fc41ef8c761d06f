/*
 * What a cast should give, found slowly in exact double arithmetic: a value is
 * decoded, its quantum in the new format is found, and it is rounded to that.
 * Shares no code with gpu/cast.h.
 */
#ifndef UNIT_CAST_REFERENCE_H
#define UNIT_CAST_REFERENCE_H

#include "strew/types.h"
#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

struct ref_format {
	int bytes, mantissa, exponent_bits;
};

static inline struct ref_format ref_format(enum strew_dtype dtype)
{
	switch (dtype) {
	case STREW_F32:
		return (struct ref_format){4, 23, 8};
	case STREW_F16:
		return (struct ref_format){2, 10, 5};
	default:
		return (struct ref_format){2, 7, 8};
	}
}

static inline bool ref_is_nan(uint32_t bits, enum strew_dtype dtype)
{
	struct ref_format f = ref_format(dtype);
	uint32_t exponents = (1u << f.exponent_bits) - 1;

	return (bits >> f.mantissa & exponents) == exponents &&
	       (bits & ((1u << f.mantissa) - 1)) != 0;
}

/* Not for NaN. */
static inline double ref_decode(uint32_t bits, enum strew_dtype dtype)
{
	struct ref_format f = ref_format(dtype);
	int bias = (1 << (f.exponent_bits - 1)) - 1;
	int exponent = (int)(bits >> f.mantissa) & ((1 << f.exponent_bits) - 1);
	double mantissa = bits & ((1u << f.mantissa) - 1);
	double sign = bits >> (f.bytes * 8 - 1) ? -1 : 1;

	if (exponent == (1 << f.exponent_bits) - 1) {
		return sign * INFINITY;
	}
	if (exponent == 0) {
		return sign * ldexp(mantissa, 1 - bias - f.mantissa);
	}
	return sign * ldexp(mantissa + (1u << f.mantissa), exponent - bias - f.mantissa);
}

static inline uint32_t ref_encode(double value, enum strew_dtype dtype)
{
	struct ref_format f = ref_format(dtype);
	int bias = (1 << (f.exponent_bits - 1)) - 1;
	uint32_t sign = signbit(value) ? 1u << (f.bytes * 8 - 1) : 0;
	uint32_t infinity = ((1u << f.exponent_bits) - 1) << f.mantissa;
	double size = fabs(value), units;
	int exponent;

	if (size == 0 || isinf(size)) {
		return sign | (size == 0 ? 0 : infinity);
	}
	exponent = ilogb(size);
	exponent = exponent < 1 - bias ? 1 - bias : exponent;
	/* Both steps are exact; nearbyint() rounds ties to even. */
	units = nearbyint(ldexp(size, f.mantissa - exponent));
	if (ldexp(units, exponent - f.mantissa) >= ldexp(1, bias + 1)) {
		return sign | infinity;
	}
	/* The hidden bit, and a carry beyond it, add themselves to the exponent. */
	return sign | (((uint32_t)(exponent + bias - 1) << f.mantissa) + (uint32_t)units);
}

static inline uint32_t ref_cast(uint32_t bits, enum strew_dtype from, enum strew_dtype to)
{
	struct ref_format a = ref_format(from), b = ref_format(to);
	uint64_t payload;

	if (!ref_is_nan(bits, from)) {
		return ref_encode(ref_decode(bits, from), to);
	}
	/* The payload as if it had 52 bits, its upper ones taken, and the highest set. */
	payload = (uint64_t)(bits & ((1u << a.mantissa) - 1)) << (52 - a.mantissa);
	payload = (payload >> (52 - b.mantissa)) | 1ull << (b.mantissa - 1);
	return (bits >> (a.bytes * 8 - 1) << (b.bytes * 8 - 1)) |
	       ((1u << b.exponent_bits) - 1) << b.mantissa | (uint32_t)payload;
}

/* One element in memory, little-endian. */
static inline void ref_cast_at(
	void *dst, const void *src, enum strew_dtype from, enum strew_dtype to)
{
	uint32_t bits = 0;

	memcpy(&bits, src, (size_t)ref_format(from).bytes);
	bits = ref_cast(bits, from, to);
	memcpy(dst, &bits, (size_t)ref_format(to).bytes);
}

#endif
