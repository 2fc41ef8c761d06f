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
	issues_finish(&plan->scatter);
	issues_finish(&plan->local);
	for (size_t i = 0; plan->commit && i < plan->nworkers; i++) {
		issues_finish(&plan->commit[i]);
	}
	free(plan->commit);
	free(plan);
}

/* Buckets whose boxes lie here are not scattered: the copies from their memory do it. */
static void drop_own(
	struct copies *copies, const struct buckets *buckets, const struct publication *publication)
{
	size_t kept = 0;

	for (size_t b = 0; b < copies->nranges; b++) {
		size_t first = copies->first[b], past = copies->first[b + 1];

		copies->first[b] = kept;
		/* Of a part or a subset a crew may take nothing: then there is no array. */
		if (buckets->v[b].root == publication->own_root || past == first) {
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
	const struct spaces spaces = {.slot = true, .crew = crew};
	struct plan_worker *workers;
	struct gpu_device *home;
	struct copies copies;
	int rc;

	rc = plans_home(plans, NULL, &home, err);
	rc = rc ? rc : spaces_workers(&spaces, &workers, err);
	if (rc) {
		return rc;
	}
	rc = plan_scatter(
		&publication->manifest, &base->buckets, workers, crew->nworkers, &copies, err);
	free(workers);
	if (rc) {
		return rc;
	}
	drop_own(&copies, &base->buckets, publication);
	rc = issues_make(plans, &spaces, &copies, home, &plan->scatter, err);
	copies_finish(&copies);
	if (rc == 0) {
		issues_share(&plan->scatter, GPU_SHARE_CARRIER);
	}
	return rc;
}

static int make_local(struct plans *plans, const struct publication *publication,
	const struct plan_base *base, const struct crew *crew, struct plan_crew *plan,
	struct error *err)
{
	const struct spaces spaces = {.sources = publication, .crew = crew};
	struct plan_worker *workers;
	struct copies copies;
	int rc = spaces_workers(&spaces, &workers, err);

	if (rc) {
		return rc;
	}
	rc = plan_local(&publication->manifest, &base->lumps, publication->sources, workers,
		crew->nworkers, &copies, err);
	free(workers);
	if (rc) {
		return rc;
	}
	rc = issues_make(plans, &spaces, &copies, NULL, &plan->local, err);
	copies_finish(&copies);
	return rc;
}

static int make_commit_one(struct plans *plans, const struct manifest *manifest,
	struct worker *worker, struct issues *ret_commit, struct error *err)
{
	const struct crew crew = {.workers = &worker, .nworkers = 1};
	const struct spaces spaces = {.crew = &crew};
	struct plan_worker *workers;
	struct gpu_device *device;
	struct copies copies;
	uint8_t uuid[GPU_UUID_BYTES];
	int rc;

	exports_uuid(&worker->exports, uuid);
	rc = plans_device(plans, uuid, &device, err);
	rc = rc ? rc : spaces_workers(&spaces, &workers, err);
	if (rc) {
		return rc;
	}
	rc = plan_commit(manifest, workers, 1, &copies, err);
	free(workers);
	if (rc) {
		return rc;
	}
	rc = issues_make(plans, &spaces, &copies, device, ret_commit, err);
	copies_finish(&copies);
	return rc;
}

int crew_plan_make_commit(struct plans *plans, const struct manifest *manifest,
	const struct crew *crew, struct plan_crew *plan, struct error *err)
{
	int rc = 0;

	plan->nworkers = crew->nworkers;
	plan->commit = calloc(crew->nworkers + 1, sizeof(*plan->commit));
	if (!plan->commit) {
		return error_set(err, -ENOMEM, "out of memory");
	}
	for (size_t i = 0; i < crew->nworkers && rc == 0; i++) {
		struct worker *worker = crew->workers[i];

		if (worker->staged && worker->shadow) {
			rc = make_commit_one(plans, manifest, worker, &plan->commit[i], err);
		}
	}
	return rc;
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
	return rc ? rc : crew_plan_make_commit(plans, &publication->manifest, crew, plan, err);
}
