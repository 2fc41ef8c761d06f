/*
 * Plans of the mover: for each model that is published the buckets and the
 * gather, and for each group the scatter, the local copies and the commit, with
 * their descriptors where the executor wants them. Made once under the
 * publication's key, the slot length and the group's generation, then replayed. Mover only.
 */
#ifndef BROKER_PLANS_H
#define BROKER_PLANS_H

#include "broker/memory.h"
#include "broker/rings.h"
#include "plan/slot_types.h"
#include "plan/stretches.h"
#include "wire/carrier.h"

#define ROOT_NONE UINT32_MAX

/*
 * A sealed manifest, and where the boxes lie that trainers of this broker hold. A root
 * is named by the lowest rank whose memory lies with it: that outlives epochs, so that plans do
 * too. Immutable; counted.
 */
struct publication {
	char model[LIMIT_MODEL_BYTES];
	unsigned references; /* event loop only */
	struct manifest manifest;
	uint64_t hash; /* of the manifest, the same at every broker */
	uint64_t key;  /* of this publication at this broker: memory may differ under one hash */
	uint64_t *brokers; /* broker_id of each rank's broker */
	uint32_t *roots;   /* of each rank */
	size_t nroots;
	uint32_t own_root; /* of the ranks here, ROOT_NONE: there are none */
	bool elsewhere;	   /* some rank is not here */
	/* one a rank, NULL for those elsewhere; borrowed: they outlive every job of the
	 * publication */
	struct holder **holders;
	uint32_t *space_base;	/* of each rank's allocations among the sources' spaces */
	struct source *sources; /* one a box, or SOURCE_ELSEWHERE; memory counts through all ranks
				 */
	uint32_t nspaces;
};

void publication_free(struct publication *publication); /* NULL is fine */
/* Do any of its boxes lie with this broker? */
static inline bool publication_here(const struct publication *publication)
{
	return publication->own_root != ROOT_NONE;
}

/* One group, for the mover: its workers, in member order. */
struct crew {
	uint64_t key; /* unique for a group and its generation */
	struct worker **workers;
	size_t nworkers;
};

/*
 * Copies that one GPU issues, all to one GPU (or to host memory: zeros); or that bounce: it reads,
 * and the other one writes.
 */
struct issue {
	struct gpu_device *device;
	uint8_t target[GPU_UUID_BYTES];
	struct gpu_copies *copies; /* NULL: they bounce … */
	struct gpu_bounce *bounce;
	struct gpu_device *far; /* … and this is the target's device */
};
#define ISSUES_MAX 81 /* of one sort of copies: 8 GPUs and host memory, each to each */

struct issues {
	struct issue v[ISSUES_MAX];
	size_t n;
};

/* What belongs to a publication, a slot length and slot types. */
struct plan_base {
	uint64_t key, slot_bytes;
	struct slot_types slot_types;
	uint64_t id;		    /* its own */
	struct buckets buckets;	    /* through slots; none where the wire is not used */
	struct buckets lumps;	    /* the same in longer stretches, for copies that need no slot */
	bool gathers;		    /* it has a gather, */
	struct issues gather;	    /* which is issued by the slots' device, or bounces to it */
	struct stretches stretches; /* of the buckets */
	bool sends_direct;	    /* some of them, from the trainers' own memory */
	struct gpu_hashes *hashes;  /* of the buckets; NULL until an update is checked */
	struct carrier_part *parts; /* room for the stretches of any one bucket */
	uint64_t last_use;
};

/* What belongs to a base and a crew. */
struct plan_crew {
	uint64_t publication, base, key; /* key: the crew's */
	bool partial;			 /* matched only with parameters left uncovered */
	struct issues scatter; /* from slots; issued by the slots' device, or bounced from it */
	struct issues local;   /* from the trainers' memory; of catching up: from a sibling's */
	size_t nlumps;	       /* of catching up: the ranges of `local` */
	struct issues *commit; /* one a worker, by its GPU; empty where direct */
	size_t nworkers;
	uint64_t last_use;
};

struct plans;

int plans_create(struct gpu *gpu, const char *device, struct plans **ret_plans);
void plans_destroy(struct plans *plans);

/* The device of the slots, chosen and opened at the first need: the option's, else `hint`'s, else
 * the first. */
int plans_home(
	struct plans *plans, const uint8_t *hint, struct gpu_device **ret_home, struct error *err);

/* The ring by which bytes get from one device to the other, which it does not reach. */
int plans_ring(struct plans *plans, struct gpu_device *from, struct gpu_device *to,
	struct gpu_ring **ret_ring, struct error *err);
/* What there is, and the GPU of the slots, NULL before it was chosen; any thread. */
const struct rings *plans_rings(const struct plans *plans);
/* How many there were to make so far: a whole update makes none but the first time. Any thread. */
uint64_t plans_made(struct plans *plans);
const uint8_t *plans_slots_uuid(const struct plans *plans);

/* The device with that UUID; zeros: the home. */
int plans_device(struct plans *plans, const uint8_t uuid[GPU_UUID_BYTES],
	struct gpu_device **ret_device, struct error *err);

/* What an update's plans are made for: the same while it is planned, moved and committed. */
struct plan_for {
	const struct publication *publication;
	uint64_t slot_bytes;
	uint32_t rank;	       /* of this broker, in the epoch */
	const uint32_t *roots; /* by a root's name: its number in the epoch */
	bool wire;	       /* buckets go through slots: gathered here, or scattered from here */
	bool partial;	       /* parameters that no tensor covers are not an error */
	const struct slot_types *slot_types; /* borrowed; job_plan finds its own */
};

/* Finds them or makes them. */
int plans_base(struct plans *plans, const struct plan_for *plan_for, struct plan_base **ret_base,
	struct error *err);
/* Makes base->hashes, unless it is there. */
int plans_hashes(struct plans *plans, const struct publication *publication, struct plan_base *base,
	struct error *err);
int plans_crew(struct plans *plans, const struct plan_for *plan_for, const struct plan_base *base,
	const struct crew *crew, struct plan_crew **ret_crew, struct error *err);

/*
 * For catching up, found or made; the base is no plan_base, and publications may come and go. The
 * copies out of `from`, a sibling's live memory: -ENOENT, it does not cover what this crew wants.
 * `from` NULL: the commits of this crew's staged workers, for which it is needed no more.
 */
int plans_catch(struct plans *plans, const struct crew *from, const struct crew *crew,
	struct plan_crew **ret_crew, struct error *err);

/* The slot types that these crews want, who are served by wire. Kept for one set of crews. */
int plans_wanted(struct plans *plans, const struct plan_for *plan_for,
	const struct crew *const *crews, size_t ncrews, struct slot_types *ret_types);

/*
 * The slot types that an update will most likely have: those of the last one of this
 * publication, else what these crews want.
 */
int plans_guess(struct plans *plans, const struct plan_for *plan_for,
	const struct crew *const *crews, size_t ncrews, struct slot_types *ret_types);

/* Tensors that no worker of these crews takes an element of; counted once for a set of crews. */
int plans_unwanted(struct plans *plans, const struct publication *publication,
	const struct crew *const *crews, size_t ncrews, uint64_t *ret_unwanted);

/* Forget plans of a crew, or of a publication; nothing of them is in flight. */
void plans_drop_crew(struct plans *plans, uint64_t key);
void plans_drop_publication(struct plans *plans, uint64_t key);

#endif
