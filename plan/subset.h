/*
 * Some of a manifest's tensors as a manifest of their own, chosen by a bit for each: bit i % 8
 * of byte i / 8. A pure function of both, so that every broker makes the same one out of the
 * same bits.
 */
#ifndef PLAN_SUBSET_H
#define PLAN_SUBSET_H

#include "plan/manifest.h"

static inline size_t bits_bytes(size_t n)
{
	return (n + 7) / 8;
}

static inline bool bits_has(const uint8_t *bits, size_t i)
{
	return bits[i / 8] >> i % 8 & 1;
}

static inline void bits_set(uint8_t *bits, size_t i)
{
	bits[i / 8] |= (uint8_t)(1u << i % 8);
}

/* Are they bits_bytes(n) long, with none set behind the first n? -EINVAL. */
int bits_check(const uint8_t *bits, size_t nbytes, size_t n, struct error *err);

/*
 * The chosen tensors with all their boxes, in the order of the whole, sealed. ret_boxes:
 * malloc'd, the number in the whole of each of its boxes. -EINVAL: none is chosen.
 */
int manifest_choose(const struct manifest *whole, const uint8_t *chosen,
	struct manifest *ret_manifest, uint32_t **ret_boxes, struct error *err);

#endif
