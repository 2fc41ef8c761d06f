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
#define PLANS_MAX 256 /* kept of each sort; more than groups × models in use */
/* What was found out about a publication and a set of crews is kept so often: an update of a subset
 * follows one of another, or of everything, and must not count tensors again. */
#define MARKS_MAX 64

struct plans {
	struct gpu *gpu;
	const char *device; /* the option, borrowed */
	struct gpu_device *home;
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
};

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
		gpu_copies_destroy(base->gather);
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
	free(plans);
}

int plans_home(
	struct plans *plans, const uint8_t *hint, struct gpu_device **ret_home, struct error *err)
{
	static const uint8_t none[GPU_UUID_BYTES];
	uint8_t uuid[GPU_UUID_BYTES];
	int rc;

	if (!plans->home) {
		if (!plans->device && hint && memcmp(hint, none, sizeof(none)) != 0) {
			memcpy(uuid, hint, sizeof(uuid));
		} else {
			rc = gpu_find(plans->gpu, plans->device, uuid, err);
			if (rc) {
				return rc;
			}
		}
		rc = gpu_device(plans->gpu, uuid, &plans->home, err);
		if (rc) {
			return rc;
		}
	}
	*ret_home = plans->home;
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

int source_bases(const struct publication *publication, struct gpu_device *device,
	uint64_t *ret_bases, struct error *err)
{
	for (size_t rank = 0; rank < publication->nroots; rank++) {
		struct holder *holder = publication->holders[rank];
		int rc;

		if (!holder) {
			continue;
		}
		rc = exports_map(&holder->exports, device, err);
		if (rc) {
			return rc;
		}
		exports_bases(&holder->exports, device, ret_bases + publication->space_base[rank]);
	}
	return 0;
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

static int make_gather(struct plans *plans, const struct publication *publication,
	struct plan_base *base, struct error *err)
{
	struct gpu_device *home;
	struct copies copies;
	uint64_t *bases;
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
	if (rc) {
		goto free_copies;
	}
	/* The slot is space 0 of the destinations and the sources' are counted from 0 too, so
	 * the slot moves behind them. */
	bases = calloc(publication->nspaces + 1, sizeof(*bases));
	if (!bases) {
		rc = error_set(err, -ENOMEM, "out of memory");
		goto free_copies;
	}
	for (size_t i = 0; i < copies.n; i++) {
		copies.v[i].dst_space = publication->nspaces;
	}
	rc = source_bases(publication, home, bases, err);
	if (rc == 0) {
		rc = gpu_copies_create(
			home, &copies, bases, publication->nspaces + 1, &base->gather, err);
	}
	if (rc == 0) {
		gpu_copies_share(base->gather); /* with the carrier's kernels */
	}
	for (size_t i = 0; rc == 0 && i < base->stretches.n; i++) {
		struct stretch *stretch = &base->stretches.v[i];

		stretch->src += stretch->space == STRETCH_PACKED ? 0 : bases[stretch->space];
	}
	free(bases);
free_copies:
	copies_finish(&copies);
	return rc;
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
static int make_buckets(struct plan_base *base, const struct plan_for *plan_for, struct error *err)
{
	const struct publication *publication = plan_for->publication;
	int rc = 0;

	if ((plan_for->wire || publication->elsewhere) && !base->buckets.n) {
		rc = make_wire_buckets(base, publication, err);
	}
	if (rc == 0 && publication_here(publication) && !base->lumps.n) {
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
	rc = make_buckets(base, plan_for, err);
	if (rc == 0 && gather && !base->gather) {
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
		rc = from ? catch_plan_make(plans, from, crew, plan, err)
			  : crew_commit_make(plans, NULL, crew, plan, err);
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

/* Names a publication and a set of crews. */
static uint64_t mark_of(
	const struct publication *publication, const struct crew *const *crews, size_t ncrews)
{
	uint64_t mark = publication->key;

	for (size_t i = 0; i < ncrews; i++) {
		mark = mark * 31 + crews[i]->key;
	}
	return mark;
}

/* Their layouts; malloc'd, NULL without memory. */
static const struct layout **layouts_of(
	const struct crew *const *crews, size_t ncrews, size_t *ret_n)
{
	const struct layout **layouts;
	size_t n = 0;

	for (size_t i = 0; i < ncrews; i++) {
		n += crews[i]->nworkers;
	}
	layouts = calloc(n + 1, sizeof(*layouts));
	n = 0;
	for (size_t i = 0; layouts && i < ncrews; i++) {
		for (size_t k = 0; k < crews[i]->nworkers; k++) {
			layouts[n++] = &crews[i]->workers[k]->layout;
		}
	}
	*ret_n = n;
	return layouts;
}

int plans_wanted(struct plans *plans, const struct plan_for *plan_for,
	const struct crew *const *crews, size_t ncrews, struct slot_types *ret_types)
{
	const struct publication *publication = plan_for->publication;
	uint64_t mark = mark_of(publication, crews, ncrews) * 31 + publication->own_root;
	size_t at = mark % MARKS_MAX;
	int rc = 0;

	if (plans->wanted[at].mark != mark) {
		size_t n;
		const struct layout **layouts = layouts_of(crews, ncrews, &n);

		rc = layouts ? slot_types_wanted(&publication->manifest, publication->roots,
				       publication->nroots, publication->own_root, layouts, n,
				       &plans->wanted[at].types)
			     : -ENOMEM;
		free(layouts);
		plans->wanted[at].mark = rc ? 0 : mark;
	}
	if (rc == 0) {
		*ret_types = plans->wanted[at].types;
	}
	return rc;
}

int plans_guess(struct plans *plans, const struct plan_for *plan_for,
	const struct crew *const *crews, size_t ncrews, struct slot_types *ret_types)
{
	const struct plan_base *last = NULL;
	int rc;

	for (size_t i = 0; i < plans->nbases; i++) {
		const struct plan_base *base = plans->bases[i];

		if (base->key == plan_for->publication->key &&
			base->slot_bytes == plan_for->slot_bytes &&
			(!last || base->last_use > last->last_use)) {
			last = base;
		}
	}
	if (last) {
		*ret_types = last->slot_types;
		return 0;
	}
	rc = plans_wanted(plans, plan_for, crews, ncrews, ret_types);
	if (rc == 0) {
		slot_types_settle(ret_types);
	}
	return rc;
}

int plans_unwanted(struct plans *plans, const struct publication *publication,
	const struct crew *const *crews, size_t ncrews, uint64_t *ret_unwanted)
{
	uint64_t mark = mark_of(publication, crews, ncrews);
	size_t at = mark % MARKS_MAX;
	struct plan_uncovered uncovered;
	int rc;

	if (plans->unwanted[at].mark != mark) {
		size_t n;
		const struct layout **layouts = layouts_of(crews, ncrews, &n);

		if (!layouts) {
			return -ENOMEM;
		}
		rc = plan_uncovered(&publication->manifest, layouts, n, &uncovered);
		free(layouts);
		if (rc) {
			return rc;
		}
		plans->unwanted[at].tensors = uncovered.tensors;
		plans->unwanted[at].mark = mark;
	}
	*ret_unwanted = plans->unwanted[at].tensors;
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
