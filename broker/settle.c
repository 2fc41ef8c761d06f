/*
 * A group that was in doubt of an update hears how it ended (recall.c). A commit is carried out
 * apart from any update: the shadow still holds its bytes, so that members are asked whether
 * their memory is as it was, the gate is held once more, and one job copies. A whole update that
 * begins meanwhile is the better cure: what does not copy yet gives way to it.
 */
#include "base/clock.h"
#include "base/log.h"
#include "base/util.h"
#include "broker/server.h"
#include <stdlib.h>
#include <string.h>

void settle_team(struct server *server, struct team *team, uint64_t update, uint64_t version,
	enum strew_outcome outcome)
{
	struct group_event event = {
		.type = GE_SETTLED, .update = update, .version = version, .outcome = outcome};

	team->settle_due = deadline_in_ms(LIMIT_SETTLE_MS);
	team_step(server, team, &event);
	team_learn(server, team);
}

static struct team *find_team(struct server *server, uint64_t key)
{
	struct team *team = server->teams;

	while (team && team->key != key) {
		team = team->next;
	}
	return team;
}

static void copied(struct job *job)
{
	struct job_settle *work = (struct job_settle *)job;
	struct server *server = work->data;
	/* A team that has lost a member since has another key. */
	struct team *team = find_team(server, work->crew.key);
	struct group_event event = {.type = GE_COPIED};

	if (job->rc) {
		log_error("commit after its lead was lost: %s", job->err.text);
		event = (struct group_event){
			.type = GE_FAILED, .touched = work->touched, .text = job->err.text};
	}
	if (team && team->group.settling) {
		team_step(server, team, &event);
	}
	free(work->crew.workers);
	free(work);
}

void settle_copy(struct server *server, struct team *team)
{
	const struct model *model = model_find(server, team->group.model, false);
	struct job_settle *work = calloc(1, sizeof(*work));
	struct worker **workers = calloc(team->group.nmembers, sizeof(struct worker *));

	if (!work || !workers) {
		free(workers);
		free(work);
		server_fatal(server, "out of memory");
		return;
	}
	team->settle_due = MAX(team->settle_due, deadline_in_ms(LIMIT_PULL_MS));
	for (uint32_t i = 0; i < team->group.nmembers; i++) {
		workers[i] = team->clients[i]->session.worker;
	}
	work->job.run = job_settle_run;
	work->job.done = copied;
	work->moves = server->moves;
	/* Whoever forgets it later has it freed behind this job. */
	work->publication = model ? model->remembered.publication : NULL;
	work->crew.key = team->key;
	work->crew.workers = workers;
	work->crew.nworkers = team->group.nmembers;
	work->deadline = deadline_in_ms(LIMIT_UPDATE_MS);
	work->job.due = work->deadline + LIMIT_HUNG_MS * 1000000ull;
	work->data = server;
	mover_submit(server->mover, &work->job);
}

/* UINT64_MAX: nobody outside the mover is waited for. */
static uint64_t due_of(const struct team *team)
{
	const struct group *group = &team->group;
	bool copying = group->phase == PHASE_COMMITTING && !group->copied;

	return group->settling && !copying ? team->settle_due : UINT64_MAX;
}

static void give_up(struct server *server, struct team *team, const char *text)
{
	struct group_event event = {.type = GE_LATE, .text = text};

	if (team->group.phase == PHASE_COMMITTING) {
		event = (struct group_event){.type = GE_FAILED,
			.touched = true,
			.text = "a worker did not copy what it pulls before the deadline"};
	}
	team_step(server, team, &event);
}

void settle_yield(struct server *server, const char *model)
{
	for (struct team *team = team_next(server, NULL, model); team;
		team = team_next(server, team, model)) {
		if (team->group.settling && team->group.phase != PHASE_COMMITTING) {
			give_up(server, team,
				"another update came before its engine held the gate");
		}
	}
}

void settle_tick(struct server *server, uint64_t now)
{
	for (struct team *team = server->teams; team; team = team->next) {
		if (now >= due_of(team)) {
			give_up(server, team,
				"its engine did not hold the gate for a commit that was learnt "
				"late");
		}
	}
}

uint64_t settle_due(const struct server *server)
{
	uint64_t due = UINT64_MAX;

	for (const struct team *team = server->teams; team; team = team->next) {
		due = MIN(due, due_of(team));
	}
	return due;
}
