/*
 * What the plan of one crew is made of: the scatter of buckets that come by wire, the local
 * copies of what lies with this broker, and the commit of each staged worker's shadow.
 */
#include "broker/plans_internal.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

void crew_plan_free(struct plan_crew *plan)
{
	if (!plan) {
		return;
	}
	gpu_copies_destroy(plan->scatter);
	issues_finish(plan->local, plan->nlocal);
	for (size_t i = 0; plan->commit && i < plan->nworkers; i++) {
		gpu_copies_destroy(plan->commit[i]);
	}
	free(plan->commit);
	free(plan->commit_device);
	free(plan);
}

void spaces_finish(struct crew_spaces *spaces)
{
	free(spaces->workers);
	free(spaces->bases);
}

int spaces_make(const struct crew *crew, uint32_t first, struct gpu_device *device,
	struct crew_spaces *ret_spaces, struct error *err)
{
	struct crew_spaces spaces = {.nbases = first};
	uint32_t next = first;
	int rc = 0;

	for (size_t i = 0; i < crew->nworkers; i++) {
		spaces.nbases += (uint32_t)crew->workers[i]->exports.nhandles + 1;
	}
	spaces.workers = calloc(crew->nworkers + 1, sizeof(*spaces.workers));
	spaces.bases = calloc(spaces.nbases + 1, sizeof(*spaces.bases));
	if (!spaces.workers || !spaces.bases) {
		spaces_finish(&spaces);
		return error_set(err, -ENOMEM, "out of memory");
	}
	for (size_t i = 0; i < crew->nworkers && rc == 0; i++) {
		struct worker *worker = crew->workers[i];
		struct plan_worker *plan = &spaces.workers[i];

		if (device) {
			rc = exports_map(&worker->exports, device, err);
			exports_bases(&worker->exports, device, spaces.bases + next);
		}
		plan->layout = &worker->layout;
		plan->space_base = next;
		next += (uint32_t)worker->exports.nhandles;
		if (worker->staged) {
			plan->shadow_offset = worker->shadow_offset;
			plan->shadow_space = next;
			if (worker->shadow) {
				spaces.bases[next] = gpu_memory_address(worker->shadow);
			}
		}
		next++;
	}
	if (rc) {
		spaces_finish(&spaces);
		return rc;
	}
	*ret_spaces = spaces;
	return 0;
}

/* Buckets whose boxes lie here are not scattered: the copies from their memory do it. */
static void drop_own(
	struct copies *copies, const struct buckets *buckets, const struct publication *publication)
{
	size_t kept = 0;

	for (size_t b = 0; b < copies->nranges; b++) {
		size_t first = copies->first[b], past = copies->first[b + 1];

		copies->first[b] = kept;
		if (buckets->v[b].root == publication->own_root) {
			continue;
		}
		memmove(copies->v + kept, copies->v + first, (past - first) * sizeof(*copies->v));
		kept += past - first;
	}
	copies->first[copies->nranges] = copies->n = kept;
}

static int make_scatter(struct plans *plans, const struct publication *publication,
	const struct plan_base *base, const struct crew *crew, struct plan_crew *plan,
	struct error *err)
{
	struct crew_spaces spaces;
	struct gpu_device *home;
	struct copies copies;
	int rc;

	rc = plans_home(plans, NULL, &home, err);
	if (rc) {
		return rc;
	}
	rc = spaces_make(crew, 1, home, &spaces, err);
	if (rc) {
		return rc;
	}
	rc = plan_scatter(&publication->manifest, &base->buckets, spaces.workers, crew->nworkers,
		&copies, err);
	if (rc == 0) {
		drop_own(&copies, &base->buckets, publication);
		rc = gpu_copies_create(
			home, &copies, spaces.bases, spaces.nbases, &plan->scatter, err);
		copies_finish(&copies);
	}
	if (rc == 0) {
		gpu_copies_share(plan->scatter);
	}
	spaces_finish(&spaces);
	return rc;
}

static int make_local(struct plans *plans, const struct publication *publication,
	const struct plan_base *base, const struct crew *crew, struct plan_crew *plan,
	struct error *err)
{
	struct crew_spaces spaces;
	struct copies copies;
	/* For the plan the spaces' numbers count; each issuer has addresses of its own. */
	int rc = spaces_make(crew, publication->nspaces, NULL, &spaces, err);

	if (rc) {
		return rc;
	}
	rc = plan_local(&publication->manifest, &base->lumps, publication->sources, spaces.workers,
		crew->nworkers, &copies, err);
	spaces_finish(&spaces);
	if (rc) {
		return rc;
	}
	rc = issues_make(plans, publication, crew, &copies, plan->local, &plan->nlocal, err);
	copies_finish(&copies);
	return rc;
}

static int make_commit_one(struct plans *plans, const struct manifest *manifest,
	struct worker *worker, struct plan_crew *plan, size_t index, struct error *err)
{
	struct crew crew = {.workers = &worker, .nworkers = 1};
	struct crew_spaces spaces;
	struct copies copies;
	uint8_t uuid[GPU_UUID_BYTES];
	int rc;

	exports_uuid(&worker->exports, uuid);
	rc = plans_device(plans, uuid, &plan->commit_device[index], err);
	if (rc) {
		return rc;
	}
	rc = spaces_make(&crew, 0, plan->commit_device[index], &spaces, err);
	if (rc) {
		return rc;
	}
	rc = plan_commit(manifest, spaces.workers, 1, &copies, err);
	if (rc == 0) {
		rc = gpu_copies_create(plan->commit_device[index], &copies, spaces.bases,
			spaces.nbases, &plan->commit[index], err);
		copies_finish(&copies);
	}
	spaces_finish(&spaces);
	return rc;
}

int crew_commit_make(struct plans *plans, const struct manifest *manifest, const struct crew *crew,
	struct plan_crew *plan, struct error *err)
{
	plan->nworkers = crew->nworkers;
	plan->commit = calloc(crew->nworkers, sizeof(*plan->commit));
	plan->commit_device = calloc(crew->nworkers, sizeof(*plan->commit_device));
	if (!plan->commit || !plan->commit_device) {
		return error_set(err, -ENOMEM, "out of memory");
	}
	for (size_t i = 0; i < crew->nworkers; i++) {
		int rc = 0;

		if (crew->workers[i]->staged && crew->workers[i]->shadow) {
			rc = make_commit_one(plans, manifest, crew->workers[i], plan, i, err);
		}
		if (rc) {
			return rc;
		}
	}
	return 0;
}

int crew_plan_make(struct plans *plans, const struct publication *publication,
	const struct plan_base *base, const struct crew *crew, struct plan_crew *plan,
	struct error *err)
{
	int rc = 0;

	if (publication_here(publication)) {
		rc = make_local(plans, publication, base, crew, plan, err);
	}
	if (rc == 0 && publication->elsewhere) {
		rc = make_scatter(plans, publication, base, crew, plan, err);
	}
	return rc ? rc : crew_commit_make(plans, &publication->manifest, crew, plan, err);
}
