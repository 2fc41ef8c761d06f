/*
 * Slot types: which tensors of a manifest lie in slots, and so go over the wire,
 * in another dtype than the trainer's: those in f32 of which every piece of every
 * worker that gets them by wire wants the same 16-bit type. They are cast before
 * the wire then, which changes no bit of what arrives. Also what a node says that it
 * wants. A value: runs of tensors in the manifest's order, as they travel.
 */
#ifndef PLAN_SLOT_TYPES_H
#define PLAN_SLOT_TYPES_H

#include "base/limits.h"
#include "plan/layout.h"
#include "plan/manifest.h"

enum slot_type {
	SLOT_OWN = 0, /* the tensor's */
	SLOT_ANY = 1, /* said by a node: nobody here gets it by wire */
	SLOT_F16 = 2,
	SLOT_BF16 = 3,
};

/* n 0: every tensor its own, whatever the manifest. */
struct slot_types {
	uint32_t n;
	uint32_t runs[LIMIT_SLOT_TYPES]; /* how many tensors << 2 | enum slot_type */
};

/*
 * What workers of broker `rank` want; roots as in buckets_make(). A tensor that only this
 * broker gathers comes to them without a slot. More runs than fit: every tensor its own. -ENOMEM.
 */
int slot_types_wanted(const struct manifest *manifest, const uint32_t *roots, size_t nroots,
	uint32_t rank, const struct layout *const *layouts, size_t nlayouts,
	struct slot_types *ret_types);

/* What both want. If the two are not of one manifest: every tensor its own. */
void slot_types_merge(struct slot_types *types, const struct slot_types *other);

/* Those of the chosen tensors alone: a bit for each of the n tensors, as in plan/subset.h. */
void slot_types_choose(const struct slot_types *types, const uint8_t *chosen, size_t n,
	struct slot_types *ret_types);

/* Ends the asking: what nobody gets goes as it is. */
void slot_types_settle(struct slot_types *types);

bool slot_types_equal(const struct slot_types *a, const struct slot_types *b);

/* True if who wants `wanted` gets what it should from slots of these types. */
bool slot_types_serve(const struct slot_types *types, const struct slot_types *wanted);

/*
 * By tensor, for buckets_make_as(): 0 or the dtype; malloc'd, NULL if every tensor has its own.
 * -EINVAL if they are not of this manifest, or not of tensors in f32 (named); -ENOMEM.
 */
int slot_types_expand(const struct slot_types *types, const struct manifest *manifest,
	uint8_t **ret_dtypes, struct error *err);

#endif
