/*
 * How a bucket goes over the wire: in stretches of its slot, each a broadcast of its own, all
 * enqueued at once. Entries that lie behind each other at the root, alone or together long
 * enough, are one, so that the root can send them from where they are; what is between two
 * of those is one as well, and packed in the slot.
 */
#ifndef PLAN_STRETCHES_H
#define PLAN_STRETCHES_H

#include "plan/plan.h"

#define STRETCH_ALIGN 16u /* of its source, where it is sent from there */

#define STRETCH_PACKED UINT32_MAX

struct stretch {
	uint64_t offset, len_bytes; /* in the slot */
	uint32_t space;		    /* at the root: where it lies as one run, or STRETCH_PACKED */
	uint64_t src;		    /* in that space */
};

/* Those of bucket i are v[first[i] .. first[i + 1]). */
struct stretches {
	struct stretch *v;
	size_t n, cap;
	size_t *first; /* nbuckets + 1 */
	size_t nbuckets;
	size_t longest;	      /* the most that a bucket has */
	uint64_t least_bytes; /* of an entry that goes by itself */
};

/*
 * A pure function of manifest, buckets and least_bytes, so the same at every broker; all packed.
 * -ENOMEM.
 */
int stretches_make(const struct manifest *manifest, const struct buckets *buckets,
	uint64_t least_bytes, struct stretches *ret_stretches, struct error *err);
void stretches_finish(struct stretches *stretches);

/*
 * At a root: stretches that are part of one run of a space that `direct` allows, and are long
 * enough or all of their bucket, are to be sent from there, and what they cover is taken out of the
 * gather (as plan_gather() makes it, not yet renumbered). Returns how many, or -ENOMEM, -E2BIG; the
 * gather is then as it was.
 */
int64_t stretches_send_direct(
	struct stretches *stretches, struct copies *gather, const bool *direct, struct error *err);

#endif
