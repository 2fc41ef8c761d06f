/* What broker/plans.c, wanted.c, crew_plans.c, catch_plans.c, spaces.c and issues.c share. */
#ifndef BROKER_PLANS_INTERNAL_H
#define BROKER_PLANS_INTERNAL_H

#include "broker/plans.h"

#define PLANS_MAX 256 /* kept of each sort; more than groups × models in use */
/* What was found out about a publication and a set of crews is kept so often: an update of a subset
 * follows one of another, or of everything, and must not count tensors again. */
#define MARKS_MAX 64

struct plans {
	struct gpu *gpu;
	const char *device;		   /* the option, borrowed */
	_Atomic(struct gpu_device *) home; /* looked at by the event loop too */
	struct rings rings;
	struct plan_base *bases[PLANS_MAX];
	size_t nbases;
	struct plan_crew *crews[PLANS_MAX];
	size_t ncrews;
	uint64_t uses;
	struct {
		uint64_t mark, tensors;
	} unwanted[MARKS_MAX]; /* at its mark, modulo their number; mark 0: none */
	struct {
		uint64_t mark;
		struct slot_types types;
	} wanted[MARKS_MAX]; /* the same */
	uint64_t next_id;
	atomic_ullong made; /* since the start; looked at by the event loop too */
};

/*
 * What the spaces of copies stand for, one behind the other: the allocations of the trainer ranks
 * here, the slot, and of each worker of a crew the allocations and the shadow. Each of the three
 * may be missing.
 */
struct spaces {
	const struct publication *sources;
	bool slot;
	const struct crew *crew;
};

size_t spaces_count(const struct spaces *spaces);
/* On which GPU each lies, the slot on `home`; to be freed, the UUIDs are borrowed. */
int spaces_where(const struct spaces *spaces, const uint8_t *home, const uint8_t ***ret_where,
	struct error *err);
/* Addresses for the device, for which everything in its reach is mapped; to be freed. The slot's is
 * 0. */
int spaces_bases(const struct spaces *spaces, struct gpu_device *device, uint64_t **ret_bases,
	struct error *err);
/* The crew for a plan, with the numbers of its spaces; to be freed. */
int spaces_workers(
	const struct spaces *spaces, struct plan_worker **ret_workers, struct error *err);

/* How many buckets one sum is of, and how many sums there are. */
size_t hashes_fold(const struct buckets *buckets);
size_t hashes_count(const struct buckets *buckets);
/* The buckets of an update made anew, to be finished; for who only wants to name something. */
int hashes_buckets(const struct publication *publication, const struct slot_types *slot_types,
	uint64_t slot_bytes, struct buckets *ret_buckets);

/*
 * Gives each of the copies to the GPU that issues it: its source's; from host memory, its target's.
 * One issue for each pair of issuer and target, so that a slow link does not hold up a fast one,
 * each with every range. Given an issuer, what that reaches at both ends is one issue of its own,
 * and what it is itself an end of, but does not reach, bounces. So do all copies whose source's GPU
 * does not reach their target. Finish with issues_finish().
 */
int issues_make(struct plans *plans, const struct spaces *spaces, const struct copies *copies,
	struct gpu_device *issuer, struct issues *ret_issues, struct error *err);
void issues_share(const struct issues *issues, enum gpu_share share); /* gpu_copies_share() */
void issues_finish(struct issues *issues);

/* Fills in scatter, local copies and commits of an empty plan; after a failure it is to be freed.
 */
int crew_plan_make(struct plans *plans, const struct publication *publication,
	const struct plan_base *base, const struct crew *crew, struct plan_crew *plan,
	struct error *err);
/* The commits alone: of the manifest's tensors, or (NULL) of all that the crew has pieces of. */
int crew_plan_make_commit(struct plans *plans, const struct manifest *manifest,
	const struct crew *crew, struct plan_crew *plan, struct error *err);
void crew_plan_free(struct plan_crew *plan); /* NULL is fine */

/* catch_plans.c: copies from one crew's live memory to another, in the place of local copies. */
int catch_plan_make(struct plans *plans, const struct crew *from, const struct crew *to,
	struct plan_crew *plan, struct error *err);

#endif
