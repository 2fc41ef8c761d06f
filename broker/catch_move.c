/*
 * The mover's part of catching up. Copies go lump by lump, two at a time, and for no longer than
 * SLICE_NS in one job: between two of those come the other jobs, an update's first of all.
 */
#include "base/clock.h"
#include "base/util.h"
#include "broker/moves_internal.h"
#include <errno.h>

#define SLICE_NS 20000000u
#define LUMPS_AHEAD 2

/* An issue of the copies, and its lanes: in which it reads, and in which it writes. */
struct way {
	const struct issue *issue;
	struct lane *out, *in;
};

static int find_ways(struct moves *moves, const struct issues *issues,
	struct way ret_ways[ISSUES_MAX], struct error *err)
{
	int rc = 0;

	for (size_t i = 0; i < issues->n && rc == 0; i++) {
		ret_ways[i].issue = &issues->v[i];
		rc = issue_out(moves, &issues->v[i], &ret_ways[i].out, err);
		rc = rc ? rc : issue_in(moves, &issues->v[i], &ret_ways[i].in, err);
	}
	return rc;
}

/* The next lump, when the last but one has arrived. */
static int move_lump(struct job_catch *work, const struct way *ways, size_t nways,
	uint64_t deadline, struct error *err)
{
	size_t turn = work->lump % LUMPS_AHEAD, lump;
	int rc = 0;

	/* Ways share lanes: all are waited for before the first is given work. */
	for (size_t i = 0; i < nways && rc == 0; i++) {
		rc = event_wait(ways[i].in->events[turn], &work->job, deadline, err);
	}
	if (rc) {
		return rc;
	}
	lump = work->lump++;
	for (size_t i = 0; i < nways && rc == 0; i++) {
		rc = issue_run(ways[i].issue, lump, 0, ways[i].out, ways[i].in, err);
		rc = rc ? rc : gpu_event_record(ways[i].in->events[turn], ways[i].in->stream, err);
	}
	return rc;
}

static int move_lumps(
	struct job_catch *work, const struct plan_crew *plan, uint64_t start, struct error *err)
{
	struct way ways[ISSUES_MAX];
	int rc = find_ways(work->moves, &plan->local, ways, err);

	while (rc == 0 && work->lump < plan->nlumps) {
		rc = move_lump(work, ways, plan->local.n, work->deadline, err);
		if (clock_ns() - start >= SLICE_NS) {
			break;
		}
	}
	work->more = work->lump < plan->nlumps;
	return rc ? rc : moves_wait_local(work->moves, &work->job, work->deadline, err);
}

static void run_move(struct job_catch *work, uint64_t start)
{
	struct job *job = &work->job;
	struct plan_crew *plan;

	job->rc = plans_catch(work->moves->plans, &work->from, &work->to, &plan, &job->err);
	if (job->rc) {
		return;
	}
	job->rc = move_lumps(work, plan, start, &job->err);
	if (job->rc) {
		moves_quiet_local(work->moves, job);
	}
}

static void run_commit(struct job_catch *work)
{
	struct job *job = &work->job;
	struct plan_crew *plan;

	job->rc = plans_catch(work->moves->plans, NULL, &work->to, &plan, &job->err);
	if (job->rc == 0) {
		job->rc = commit_crews(work->moves, job, &plan, 1, work->deadline);
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

	work->deadline = deadline_in_ms(LIMIT_UPDATE_MS);
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
