/*
 * The mover's part of catching up. Copies go lump by lump, two at a time, and for no longer than
 * SLICE_NS in one job: between two of those come the other jobs, an update's first of all.
 */
#include "base/clock.h"
#include "base/util.h"
#include "broker/moves_internal.h"
#include <errno.h>
#include <time.h>

#define SLICE_NS 20000000u
#define SLEEP_NS 20000u
#define LUMPS_AHEAD 2

static int wait_event(
	struct job *job, struct gpu_event *event, uint64_t deadline, struct error *err)
{
	for (;;) {
		struct timespec nap = {0, SLEEP_NS};
		int rc = gpu_event_query(event, err);

		if (rc) {
			return rc < 0 ? rc : 0;
		}
		if (deadline_passed(deadline)) {
			return error_set(
				err, -ETIMEDOUT, "copying did not end before the deadline");
		}
		mover_look(job);
		nanosleep(&nap, NULL);
	}
}

/* Until all that was enqueued in the lane has been done. */
static int wait_lane(struct job *job, struct lane *lane, uint64_t deadline, struct error *err)
{
	int rc = gpu_event_record(lane->events[0], lane->stream, err);

	return rc ? rc : wait_event(job, lane->events[0], deadline, err);
}

/* After a failure: nothing of ours may be in flight when the job ends. */
static void settle(struct job *job, struct lane *lane)
{
	struct error why = {0};

	if (wait_lane(job, lane, deadline_in_ms(LIMIT_ABORT_MS), &why)) {
		error_prefix(&why, "%.100s; its copies cannot be waited for", job->err.text);
		job->err = why;
		job->hung = true;
	}
}

static int move_lumps(struct job_catch *work, const struct plan_crew *plan, struct lane *lane,
	uint64_t start, struct error *err)
{
	uint64_t deadline = deadline_in_ms(LIMIT_UPDATE_MS);
	int rc = 0;

	do {
		struct gpu_event *event = lane->events[work->lump % LUMPS_AHEAD];

		if (work->lump == plan->nlumps) {
			break;
		}
		rc = wait_event(&work->job, event, deadline, err);
		rc = rc ? rc
			: gpu_copies_run(plan->local[0].copies, work->lump, 0, lane->stream, err);
		rc = rc ? rc : gpu_event_record(event, lane->stream, err);
		work->lump++;
	} while (rc == 0 && clock_ns() - start < SLICE_NS);
	work->more = work->lump < plan->nlumps;
	return rc ? rc : wait_lane(&work->job, lane, deadline, err);
}

static void run_move(struct job_catch *work, uint64_t start)
{
	struct job *job = &work->job;
	struct plan_crew *plan;
	struct lane *lane;

	job->rc = plans_catch(work->moves->plans, &work->from, &work->to, &plan, &job->err);
	if (job->rc == 0) {
		job->rc = moves_local_lane(work->moves, plan->local[0].device,
			plan->local[0].target, &lane, &job->err);
	}
	if (job->rc) {
		return;
	}
	job->rc = move_lumps(work, plan, lane, start, &job->err);
	if (job->rc) {
		settle(job, lane);
	}
}

/* Each worker's by its own GPU, all side by side. */
static int commit_workers(struct job_catch *work, const struct plan_crew *plan,
	struct lane *lanes[LIMIT_MEMBERS], size_t *ret_nlanes, struct error *err)
{
	uint64_t deadline = deadline_in_ms(LIMIT_UPDATE_MS);
	int rc = 0;

	for (size_t i = 0; i < plan->nworkers && rc == 0; i++) {
		struct gpu_device *device = plan->commit_device[i];

		if (!plan->commit[i]) {
			continue;
		}
		rc = moves_local_lane(
			work->moves, device, gpu_device_uuid(device), &lanes[*ret_nlanes], err);
		if (rc == 0) {
			struct lane *lane = lanes[(*ret_nlanes)++];

			rc = gpu_copies_run(plan->commit[i], 0, 0, lane->stream, err);
		}
	}
	for (size_t i = 0; i < *ret_nlanes && rc == 0; i++) {
		rc = wait_lane(&work->job, lanes[i], deadline, err);
	}
	return rc;
}

static void run_commit(struct job_catch *work)
{
	struct lane *lanes[LIMIT_MEMBERS];
	struct job *job = &work->job;
	struct plan_crew *plan;
	size_t nlanes = 0;

	job->rc = plans_catch(work->moves->plans, NULL, &work->to, &plan, &job->err);
	if (job->rc) {
		return;
	}
	job->rc = commit_workers(work, plan, lanes, &nlanes, &job->err);
	for (size_t i = 0; i < nlanes && job->rc && !job->hung; i++) {
		settle(job, lanes[i]);
	}
}

static bool is_staged(const struct crew *crew)
{
	for (size_t i = 0; i < crew->nworkers; i++) {
		if (crew->workers[i]->staged) {
			return true;
		}
	}
	return false;
}

/* The commit's too, so that no engine stands still while it is made. */
static int make_plans(struct job_catch *work, struct error *err)
{
	struct plans *plans = work->moves->plans;
	struct plan_crew *plan;
	int rc = plans_catch(plans, &work->from, &work->to, &plan, err);

	return rc || !is_staged(&work->to) ? rc : plans_catch(plans, NULL, &work->to, &plan, err);
}

void job_catch_run(struct job *job)
{
	struct job_catch *work = (struct job_catch *)job;
	uint64_t start = clock_ns();

	switch (work->step) {
	case CATCH_PLAN:
		job->rc = make_plans(work, &job->err);
		break;
	case CATCH_MOVE:
		run_move(work, start);
		break;
	case CATCH_COMMIT:
		run_commit(work);
		break;
	}
	work->elapsed_ns = clock_ns() - start;
}
