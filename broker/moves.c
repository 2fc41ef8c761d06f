#include "base/clock.h"
#include "base/util.h"
#include "broker/moves_internal.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

int moves_create(const struct moves_options *options, struct moves **ret_moves)
{
	struct moves *moves = calloc(1, sizeof(*moves));
	int rc;

	if (!moves) {
		return -ENOMEM;
	}
	moves->gpu = options->gpu;
	moves->slot_bytes = options->slot_bytes;
	moves->nslots = options->slots;
	moves->pinned_shadows = options->pinned_shadows;
	rc = plans_create(options->gpu, options->device, &moves->plans);
	if (rc) {
		free(moves);
		return rc;
	}
	*ret_moves = moves;
	return 0;
}

uint64_t moves_plans_made(const struct moves *moves)
{
	return plans_made(moves->plans);
}

const struct rings *moves_rings(const struct moves *moves)
{
	return plans_rings(moves->plans);
}

const uint8_t *moves_slots_uuid(const struct moves *moves)
{
	return plans_slots_uuid(moves->plans);
}

void moves_destroy(struct moves *moves)
{
	if (!moves) {
		return;
	}
	/* Peers may be gone already, and an orderly end would wait for them. */
	carrier_destroy(moves->carrier, true);
	plans_destroy(moves->plans);
	lane_finish(&moves->gather);
	lane_finish(&moves->wire);
	lane_finish(&moves->scatter);
	for (size_t i = 0; i < moves->nlocal; i++) {
		lane_finish(&moves->local[i]);
	}
	for (size_t i = 0; i < LIMIT_SLOTS_MAX; i++) {
		gpu_memory_release(moves->slots[i]);
	}
	free(moves);
}

int moves_slots(struct moves *moves, struct error *err)
{
	struct gpu_device *home;
	int rc = plans_home(moves->plans, NULL, &home, err);

	for (uint32_t i = 0; rc == 0 && i < moves->nslots; i++) {
		if (!moves->slots[i]) {
			rc = gpu_alloc(home, moves->slot_bytes, &moves->slots[i], err);
			if (rc) {
				error_prefix(err, "slot %u of %u (see --slot and --slots)", i + 1,
					moves->nslots);
			}
		}
	}
	if (rc == 0) {
		rc = lane_open(&moves->gather, home, false, err);
	}
	if (rc == 0) {
		rc = lane_open(&moves->wire, home, true, err);
	}
	if (rc == 0) {
		rc = lane_open(&moves->scatter, home, false, err);
	}
	return rc;
}

/* For the slots' GPU; and what that does not reach, for the GPU that it lies on. */
static int map_exports(
	struct moves *moves, struct exports *exports, struct gpu_device *home, struct error *err)
{
	int rc = exports_map(exports, home, err);

	for (size_t i = 0; i < exports->nhandles && rc == 0; i++) {
		const uint8_t *uuid = exports->handles[i].uuid;
		struct gpu_device *own;

		if (gpu_device_reaches(home, uuid)) {
			continue;
		}
		rc = plans_device(moves->plans, uuid, &own, err);
		rc = rc ? rc : exports_map(exports, own, err);
	}
	return rc;
}

static int import_worker(struct moves *moves, struct worker *worker, struct error *err)
{
	struct gpu_device *home, *own;
	uint8_t uuid[GPU_UUID_BYTES];
	int rc = worker_check(worker, err);

	if (rc) {
		return rc;
	}
	exports_uuid(&worker->exports, uuid);
	rc = plans_home(moves->plans, uuid, &home, err);
	if (rc == 0) {
		rc = map_exports(moves, &worker->exports, home, err);
	}
	if (rc == 0) {
		rc = worker_check_overlap(worker, moves->workers, err);
	}
	if (rc == 0 && worker->staged) {
		rc = plans_device(moves->plans, uuid, &own, err);
		if (rc == 0) {
			rc = worker_reserve(worker, own, moves->pinned_shadows, err);
		}
	}
	if (rc == 0) {
		worker->next = moves->workers;
		moves->workers = worker;
	}
	return rc;
}

/* Does nothing where its import has failed. */
static void forget_worker(struct moves *moves, const struct worker *worker)
{
	struct worker **link = &moves->workers;

	while (*link && *link != worker) {
		link = &(*link)->next;
	}
	if (*link) {
		*link = worker->next;
	}
}

static int import_holder(struct moves *moves, struct holder *holder, struct error *err)
{
	struct gpu_device *home;
	uint8_t uuid[GPU_UUID_BYTES];
	int rc = holder_check(holder, err);

	if (rc) {
		return rc;
	}
	exports_uuid(&holder->exports, uuid);
	rc = plans_home(moves->plans, uuid, &home, err);
	return rc ? rc : map_exports(moves, &holder->exports, home, err);
}

void job_import_run(struct job *job)
{
	struct job_import *work = (struct job_import *)job;
	uint64_t start = clock_ns();

	job->rc = work->worker ? import_worker(work->moves, work->worker, &job->err)
			       : import_holder(work->moves, work->holder, &job->err);
	work->elapsed_ns = clock_ns() - start;
}

void job_release_run(struct job *job)
{
	struct job_release *work = (struct job_release *)job;

	if (work->crew_key) {
		plans_drop_crew(work->moves->plans, work->crew_key);
	}
	if (work->publication) {
		plans_drop_publication(work->moves->plans, work->publication->key);
	}
	if (work->worker) {
		forget_worker(work->moves, work->worker);
		worker_finish(work->worker);
	}
	if (work->holder) {
		holder_finish(work->holder);
	}
}

/* The GPUs that will read the trainer's memory, which has just been computed on. */
static void wake_sources(struct moves *moves, const struct plan_for *plan_for)
{
	if (!publication_here(plan_for->publication)) {
		return;
	}
	for (size_t i = 0; i < moves->nlocal; i++) {
		gpu_stream_wake(moves->local[i].stream);
	}
	if (plan_for->wire) {
		gpu_stream_wake(moves->gather.stream);
	}
}

static int plan_crews(struct job_plan *work, const struct plan_for *plan_for,
	const struct crew **planned, size_t *ret_n, struct error *err)
{
	struct plan_base *base;
	size_t n = 0;
	int rc = plans_base(work->moves->plans, plan_for, &base, err);

	for (size_t i = 0; rc == 0 && i < work->ncrews; i++) {
		struct plan_crew *crew;

		if (plans_crew(work->moves->plans, plan_for, base, &work->crews[i], &crew,
			    &work->errors[i]) == 0) {
			planned[n++] = &work->crews[i];
		}
	}
	*ret_n = n;
	return rc;
}

void job_plan_run(struct job *job)
{
	struct job_plan *work = (struct job_plan *)job;
	struct plans *plans = work->moves->plans;
	const struct crew **crews = calloc(work->ncrews + 1, sizeof(*crews));
	struct plan_for plan_for = work->plan_for;
	struct slot_types guess;
	size_t n = work->ncrews;

	if (!crews) {
		job->rc = error_set(&job->err, -ENOMEM, "out of memory");
		return;
	}
	wake_sources(work->moves, &work->plan_for);
	for (size_t i = 0; i < n; i++) {
		crews[i] = &work->crews[i];
	}
	job->rc = plans_guess(plans, &plan_for, crews, n, &guess);
	plan_for.slot_types = &guess;
	if (job->rc == 0) {
		job->rc = plan_crews(work, &plan_for, crews, &n, &job->err);
		if (job->rc) {
			goto free_crews;
		}
	}
	work->unwanted = 0;
	if (job->rc == 0) {
		job->rc = plans_wanted(plans, &plan_for, crews, n, &work->wanted);
	}
	if (job->rc == 0) {
		job->rc = plans_unwanted(plans, plan_for.publication, crews, n, &work->unwanted);
	}
	if (job->rc) {
		error_set(
			&job->err, job->rc, "cannot count what is covered: %s", strerror(-job->rc));
	}
free_crews:
	free(crews);
}

void job_epoch_run(struct job *job)
{
	struct job_epoch *work = (struct job_epoch *)job;
	struct moves *moves = work->moves;

	work->began_ns = clock_ns();
	if (moves->carrier) {
		job->rc = carrier_destroy(moves->carrier, true);
		moves->carrier = NULL;
		if (job->rc) {
			job->hung = true;
			error_set(&job->err, job->rc, "the old communicator did not end: %s",
				strerror(-job->rc));
			return;
		}
	}
	if (work->carrier.kind == CARRIER_NONE) {
		return;
	}
	job->rc = moves_slots(moves, &job->err);
	if (job->rc) {
		return;
	}
	work->carrier.device = moves->wire.device;
	work->carrier.ret_given = &work->given;
	job->rc = carrier_create(
		&work->carrier, work->deadline, &work->cancel, &moves->carrier, &job->err);
	work->elapsed_ns = clock_ns() - work->began_ns;
}
