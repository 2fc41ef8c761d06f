/*
 * Copies of staged workers' shadows to their live memory: at the end of an update, of one whose
 * end was heard late, and of catching up. Each worker's by its own GPU, all side by side.
 */
#include "broker/moves_internal.h"
#include "broker/plans_internal.h"
#include <errno.h>
#include <stdlib.h>

static int enqueue(struct moves *moves, const struct issues *issues, struct error *err)
{
	int rc = 0;

	for (size_t i = 0; rc == 0 && i < issues->n; i++) {
		struct lane *out, *in;

		rc = issue_out(moves, &issues->v[i], &out, err);
		rc = rc ? rc : issue_in(moves, &issues->v[i], &in, err);
		rc = rc ? rc : issue_run(&issues->v[i], 0, 0, out, in, err);
	}
	return rc;
}

int commit_crews(struct moves *moves, struct job *job, struct plan_crew *const *crews,
	size_t ncrews, uint64_t deadline)
{
	int rc = 0;

	for (size_t i = 0; rc == 0 && i < ncrews; i++) {
		for (size_t k = 0; rc == 0 && k < crews[i]->nworkers; k++) {
			rc = enqueue(moves, &crews[i]->commit[k], &job->err);
		}
	}
	rc = rc ? rc : moves_wait_local(moves, job, deadline, &job->err);
	if (rc) {
		moves_quiet_local(moves, job);
	}
	return rc;
}

void job_commit_run(struct job *job)
{
	struct job_commit *work = (struct job_commit *)job;
	struct plan_crew **crews;

	job->rc = moves_plans(
		work->moves, &work->plan_for, work->crews, work->ncrews, NULL, &crews, &job->err);
	if (job->rc) {
		return;
	}
	job->rc = commit_crews(work->moves, job, crews, work->ncrews, work->deadline);
	free(crews);
}

void job_settle_run(struct job *job)
{
	struct job_settle *work = (struct job_settle *)job;
	struct plan_crew *plan = calloc(1, sizeof(*plan));

	if (!plan) {
		job->rc = error_set(&job->err, -ENOMEM, "out of memory");
	} else if (!work->publication) {
		job->rc = error_set(&job->err, -ESTALE, "what was prepared is not known any more");
	} else {
		job->rc = crew_plan_make_commit(work->moves->plans, &work->publication->manifest,
			&work->crew, plan, &job->err);
	}
	if (job->rc == 0) {
		work->touched = true;
		job->rc = commit_crews(work->moves, job, &plan, 1, work->deadline);
	}
	crew_plan_free(plan);
}
