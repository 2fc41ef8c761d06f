/* What broker/plans.c, broker/crew_plans.c and broker/issues.c share. */
#ifndef BROKER_PLANS_INTERNAL_H
#define BROKER_PLANS_INTERNAL_H

#include "broker/plans.h"

/*
 * Spaces of a crew from `first` on: each worker's allocations, then its shadow. Device NULL: their
 * numbers alone, nothing is mapped and the bases are zeros.
 */
struct crew_spaces {
	struct plan_worker *workers;
	uint64_t *bases;
	uint32_t nbases;
};

int spaces_make(const struct crew *crew, uint32_t first, struct gpu_device *device,
	struct crew_spaces *ret_spaces, struct error *err);
void spaces_finish(struct crew_spaces *spaces);

/* How many buckets one sum is of, and how many sums there are. */
size_t hashes_fold(const struct buckets *buckets);
size_t hashes_count(const struct buckets *buckets);

/* Base addresses of the sources' spaces, for the device, to ret_bases[nspaces]. */
int source_bases(const struct publication *publication, struct gpu_device *device,
	uint64_t *ret_bases, struct error *err);

/*
 * Gives each of the copies, whose spaces are the sources' and then the crew's, to the GPU that
 * issues it: its source's; from host memory, its target's. One issue for each pair of issuer
 * and target, so that a slow link does not hold up a fast one, each with every range.
 */
int issues_make(struct plans *plans, const struct publication *publication, const struct crew *crew,
	const struct copies *copies, struct issue *ret_issues, size_t *ret_n, struct error *err);
void issues_finish(struct issue *issues, size_t n);

/* Fills in scatter, local copies and commits of an empty plan; after a failure it is to be freed.
 */
int crew_plan_make(struct plans *plans, const struct publication *publication,
	const struct plan_base *base, const struct crew *crew, struct plan_crew *plan,
	struct error *err);
void crew_plan_free(struct plan_crew *plan); /* NULL is fine */
/* The commits alone: of the manifest's tensors, or (NULL) of all that the crew has pieces of. */
int crew_commit_make(struct plans *plans, const struct manifest *manifest, const struct crew *crew,
	struct plan_crew *plan, struct error *err);

/* catch_plans.c: copies from one crew's live memory to another, in the place of local copies. */
int catch_plan_make(struct plans *plans, const struct crew *from, const struct crew *to,
	struct plan_crew *plan, struct error *err);

#endif
