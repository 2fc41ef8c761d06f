#include "base/util.h"
#include "broker/plans_internal.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

/*
 * How much is launched at once where no slot limits it: every launch has a tail in which the
 * GPU runs empty (about 10 us), and a cancel is seen between launches.
 */
#define LUMP_BYTES (2ull << 30)
/*
 * From this length on what lies together goes over the wire by a broadcast of its own, from where
 * it is. Every broker of an epoch must have the same. Measured with two H100s, 9,435 tensors of
 * 3 MB and less in memory of their own: 91.1 ms with 4 MiB, 89.0 with 1 MiB.
 */
#define STRETCH_BYTES (1ull << 20)

void publication_free(struct publication *publication)
{
	if (!publication) {
		return;
	}
	manifest_finish(&publication->manifest);
	free(publication->brokers);
	free(publication->roots);
	free(publication->holders);
	free(publication->space_base);
	free(publication->sources);
	free(publication);
}

int plans_create(struct gpu *gpu, const char *device, struct plans **ret_plans)
{
	struct plans *plans = calloc(1, sizeof(*plans));

	if (!plans) {
		return -ENOMEM;
	}
	plans->gpu = gpu;
	plans->device = device;
	*ret_plans = plans;
	return 0;
}

static void base_free(struct plan_base *base)
{
	if (base) {
		buckets_finish(&base->buckets);
		buckets_finish(&base->lumps);
		stretches_finish(&base->stretches);
		issues_finish(&base->gather);
		gpu_hashes_destroy(base->hashes);
		free(base->parts);
		free(base);
	}
}

void plans_destroy(struct plans *plans)
{
	if (!plans) {
		return;
	}
	while (plans->ncrews) {
		crew_plan_free(plans->crews[--plans->ncrews]);
	}
	while (plans->nbases) {
		base_free(plans->bases[--plans->nbases]);
	}
	rings_finish(&plans->rings);
	free(plans);
}

int plans_home(
	struct plans *plans, const uint8_t *hint, struct gpu_device **ret_home, struct error *err)
{
	static const uint8_t none[GPU_UUID_BYTES];
	struct gpu_device *home = atomic_load(&plans->home);
	uint8_t uuid[GPU_UUID_BYTES];
	int rc;

	if (!home) {
		if (!plans->device && hint && memcmp(hint, none, sizeof(none)) != 0) {
			memcpy(uuid, hint, sizeof(uuid));
		} else {
			rc = gpu_find(plans->gpu, plans->device, uuid, err);
			if (rc) {
				return rc;
			}
		}
		rc = gpu_device(plans->gpu, uuid, &home, err);
		if (rc) {
			return rc;
		}
		atomic_store(&plans->home, home);
	}
	*ret_home = home;
	return 0;
}

int plans_device(struct plans *plans, const uint8_t uuid[GPU_UUID_BYTES],
	struct gpu_device **ret_device, struct error *err)
{
	static const uint8_t none[GPU_UUID_BYTES];

	if (memcmp(uuid, none, sizeof(none)) == 0) {
		return plans_home(plans, NULL, ret_device, err);
	}
	return gpu_device(plans->gpu, uuid, ret_device, err);
}

int plans_ring(struct plans *plans, struct gpu_device *from, struct gpu_device *to,
	struct gpu_ring **ret_ring, struct error *err)
{
	return rings_get(&plans->rings, from, to, ret_ring, err);
}

const uint8_t *plans_slots_uuid(const struct plans *plans)
{
	const struct gpu_device *home = atomic_load(&plans->home);

	return home ? gpu_device_uuid(home) : NULL;
}

uint64_t plans_made(struct plans *plans)
{
	return atomic_load(&plans->made);
}

const struct rings *plans_rings(const struct plans *plans)
{
	return &plans->rings;
}

/* The place for one more plan: a free one, or that of the plan that was used longest ago. */
static size_t base_place(struct plans *plans)
{
	size_t oldest = 0;

	if (plans->nbases < PLANS_MAX) {
		return plans->nbases++;
	}
	for (size_t i = 1; i < plans->nbases; i++) {
		if (plans->bases[i]->last_use < plans->bases[oldest]->last_use) {
			oldest = i;
		}
	}
	base_free(plans->bases[oldest]);
	return oldest;
}

static size_t crew_place(struct plans *plans)
{
	size_t oldest = 0;

	if (plans->ncrews < PLANS_MAX) {
		return plans->ncrews++;
	}
	for (size_t i = 1; i < plans->ncrews; i++) {
		if (plans->crews[i]->last_use < plans->crews[oldest]->last_use) {
			oldest = i;
		}
	}
	crew_plan_free(plans->crews[oldest]);
	return oldest;
}

/* What lies on the slots' own device can be sent without a copy. ret_direct[nspaces] */
static void find_direct(
	const struct publication *publication, struct gpu_device *home, bool *ret_direct)
{
	for (size_t rank = 0; rank < publication->nroots; rank++) {
		const struct holder *holder = publication->holders[rank];

		for (size_t i = 0; holder && i < holder->exports.nhandles; i++) {
			ret_direct[publication->space_base[rank] + i] =
				memcmp(holder->exports.handles[i].uuid, gpu_device_uuid(home),
					GPU_UUID_BYTES) == 0;
		}
	}
}

/* Takes out of the gather what is sent from where it lies. */
static int choose_direct(const struct publication *publication, struct plan_base *base,
	struct gpu_device *home, struct copies *gather, struct error *err)
{
	bool *direct = calloc(publication->nspaces + 1, sizeof(*direct));
	int64_t n;

	if (!direct) {
		return error_set(err, -ENOMEM, "out of memory");
	}
	find_direct(publication, home, direct);
	n = stretches_send_direct(&base->stretches, gather, direct, err);
	free(direct);
	base->sends_direct = n > 0;
	return n < 0 ? (int)n : 0;
}

/* Where the stretches lie that are sent as they are, for the slots' device. */
static int locate_stretches(const struct spaces *spaces, struct plan_base *base,
	struct gpu_device *home, struct error *err)
{
	uint64_t *bases;
	int rc = spaces_bases(spaces, home, &bases, err);

	if (rc) {
		return rc;
	}
	for (size_t i = 0; i < base->stretches.n; i++) {
		struct stretch *stretch = &base->stretches.v[i];

		stretch->src += stretch->space == STRETCH_PACKED ? 0 : bases[stretch->space];
	}
	free(bases);
	return 0;
}

static int make_gather(struct plans *plans, const struct publication *publication,
	struct plan_base *base, struct error *err)
{
	const struct spaces spaces = {.sources = publication, .slot = true};
	struct gpu_device *home;
	struct copies copies;
	int rc;

	rc = plans_home(plans, NULL, &home, err);
	if (rc) {
		return rc;
	}
	rc = plan_gather(&publication->manifest, &base->buckets, publication->sources,
		publication->own_root, &copies, err);
	if (rc) {
		return rc;
	}
	rc = choose_direct(publication, base, home, &copies, err);
	/* The slot is space 0 of the destinations and the sources' are counted from 0 too, so
	 * the slot moves behind them. */
	for (size_t i = 0; i < copies.n; i++) {
		copies.v[i].dst_space = publication->nspaces;
	}
	rc = rc ? rc : issues_make(plans, &spaces, &copies, home, &base->gather, err);
	copies_finish(&copies);
	rc = rc ? rc : locate_stretches(&spaces, base, home, err);
	if (rc) {
		issues_finish(&base->gather);
		return rc;
	}
	issues_share(&base->gather, GPU_SHARE_CARRIER);
	base->gathers = true;
	return 0;
}

static int make_wire_buckets(
	struct plan_base *base, const struct publication *publication, struct error *err)
{
	const struct manifest *manifest = &publication->manifest;
	uint8_t *dtypes;
	int rc = slot_types_expand(&base->slot_types, manifest, &dtypes, err);

	if (rc) {
		return rc;
	}
	rc = buckets_make_as(manifest, dtypes, base->slot_bytes, publication->roots,
		publication->nroots, &base->buckets, err);
	free(dtypes);
	if (rc) {
		return rc;
	}
	rc = stretches_make(manifest, &base->buckets, STRETCH_BYTES, &base->stretches, err);
	if (rc == 0) {
		base->parts = calloc(base->stretches.longest + 1, sizeof(*base->parts));
		rc = base->parts ? 0 : error_set(err, -ENOMEM, "out of memory");
	}
	if (rc) {
		stretches_finish(&base->stretches);
		buckets_finish(&base->buckets);
	}
	return rc;
}

/* The lists that this update needs, unless they are there. */
static int make_buckets(struct plans *plans, struct plan_base *base,
	const struct plan_for *plan_for, struct error *err)
{
	const struct publication *publication = plan_for->publication;
	int rc = 0;

	/* Not by their number: there are none where no tensor has bytes. */
	if ((plan_for->wire || publication->elsewhere) && !base->parts) {
		plans->made++;
		rc = make_wire_buckets(base, publication, err);
	}
	if (rc == 0 && publication_here(publication) && !base->lumps.n) {
		plans->made++;
		rc = buckets_make_even(&publication->manifest, LUMP_BYTES, publication->roots,
			publication->nroots, &base->lumps, err);
	}
	return rc;
}

int plans_base(struct plans *plans, const struct plan_for *plan_for, struct plan_base **ret_base,
	struct error *err)
{
	const struct publication *publication = plan_for->publication;
	uint64_t slot_bytes = plan_for->slot_bytes;
	bool gather = plan_for->wire && publication_here(publication);
	struct plan_base *base = NULL;
	int rc;

	for (size_t i = 0; i < plans->nbases; i++) {
		if (plans->bases[i]->key == publication->key &&
			plans->bases[i]->slot_bytes == slot_bytes &&
			slot_types_equal(&plans->bases[i]->slot_types, plan_for->slot_types)) {
			base = plans->bases[i];
		}
	}
	if (!base) {
		base = calloc(1, sizeof(*base));
		if (!base) {
			return error_set(err, -ENOMEM, "out of memory");
		}
		base->key = publication->key;
		base->slot_bytes = slot_bytes;
		base->slot_types = *plan_for->slot_types;
		base->id = ++plans->next_id;
		plans->bases[base_place(plans)] = base;
	}
	base->last_use = ++plans->uses;
	rc = make_buckets(plans, base, plan_for, err);
	if (rc == 0 && gather && !base->gathers) {
		plans->made++;
		rc = make_gather(plans, publication, base, err);
	}
	if (rc) {
		return rc;
	}
	*ret_base = base;
	return 0;
}

static int match(const struct publication *publication, const struct crew *crew, bool partial,
	struct error *err)
{
	for (size_t i = 0; i < crew->nworkers; i++) {
		int rc =
			plan_match(&publication->manifest, &crew->workers[i]->layout, partial, err);

		if (rc) {
			return rc;
		}
	}
	return 0;
}

int plans_crew(struct plans *plans, const struct plan_for *plan_for, const struct plan_base *base,
	const struct crew *crew, struct plan_crew **ret_crew, struct error *err)
{
	const struct publication *publication = plan_for->publication;
	bool partial = plan_for->partial;
	struct plan_crew *plan = NULL;
	int rc;

	for (size_t i = 0; i < plans->ncrews; i++) {
		struct plan_crew *have = plans->crews[i];

		if (have->base == base->id && have->key == crew->key) {
			plan = have;
		}
	}
	/* What matched strictly once matches for ever: all three are immutable. */
	if (!plan || (plan->partial && !partial)) {
		rc = match(publication, crew, partial, err);
		if (rc) {
			return rc;
		}
	}
	if (!plan) {
		plan = calloc(1, sizeof(*plan));
		if (!plan) {
			return error_set(err, -ENOMEM, "out of memory");
		}
		plan->publication = base->key;
		plan->base = base->id;
		plan->key = crew->key;
		plan->partial = partial;
		plans->made++;
		rc = crew_plan_make(plans, publication, base, crew, plan, err);
		if (rc) {
			crew_plan_free(plan);
			return rc;
		}
		plans->crews[crew_place(plans)] = plan;
	}
	plan->last_use = ++plans->uses;
	plan->partial = plan->partial && partial;
	*ret_crew = plan;
	return 0;
}

/* No base has such an id. */
#define CATCH_BASE (1ull << 63)

int plans_catch(struct plans *plans, const struct crew *from, const struct crew *crew,
	struct plan_crew **ret_crew, struct error *err)
{
	uint64_t base = CATCH_BASE | (from ? from->key : 0);
	struct plan_crew *plan = NULL;
	int rc;

	for (size_t i = 0; i < plans->ncrews; i++) {
		if (plans->crews[i]->base == base && plans->crews[i]->key == crew->key) {
			plan = plans->crews[i];
		}
	}
	if (!plan) {
		plan = calloc(1, sizeof(*plan));
		if (!plan) {
			return error_set(err, -ENOMEM, "out of memory");
		}
		plan->base = base;
		plan->key = crew->key;
		plans->made++;
		rc = from ? catch_plan_make(plans, from, crew, plan, err)
			  : crew_plan_make_commit(plans, NULL, crew, plan, err);
		if (rc) {
			crew_plan_free(plan);
			return rc;
		}
		plans->crews[crew_place(plans)] = plan;
	}
	plan->last_use = ++plans->uses;
	*ret_crew = plan;
	return 0;
}

void plans_drop_crew(struct plans *plans, uint64_t key)
{
	for (size_t i = 0; i < plans->ncrews;) {
		/* What another one catches up by is made of its memory too. */
		if (plans->crews[i]->key == key || plans->crews[i]->base == (CATCH_BASE | key)) {
			crew_plan_free(plans->crews[i]);
			plans->crews[i] = plans->crews[--plans->ncrews];
		} else {
			i++;
		}
	}
}

void plans_drop_publication(struct plans *plans, uint64_t key)
{
	for (size_t i = 0; i < plans->ncrews;) {
		if (plans->crews[i]->publication == key) {
			crew_plan_free(plans->crews[i]);
			plans->crews[i] = plans->crews[--plans->ncrews];
		} else {
			i++;
		}
	}
	for (size_t i = 0; i < plans->nbases;) {
		if (plans->bases[i]->key == key) {
			base_free(plans->bases[i]);
			plans->bases[i] = plans->bases[--plans->nbases];
		} else {
			i++;
		}
	}
}
