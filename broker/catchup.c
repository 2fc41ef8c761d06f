/*
 * Catching up. A group that has missed what others committed, or is DIRTY, takes it from a sibling
 * on this broker: another group of the model that is CURRENT at the version committed last and has
 * all that its pieces want (plan/catch_up.c). To the group it is an update whose lead this file is,
 * with the same phases, gates and rules about what is DIRTY (group.c); to the mover it is a job
 * between updates, in slices.
 *
 *   NONE ─a sibling is found─► PLANNING ─it covers─► UNDER_WAY: CHECKING … ACCEPTED ─go─► MOVING
 *        ─all copied─► (GATING) PREPARED ─commit─► (COMMITTING) ─► NONE, CURRENT
 *
 * What engines do in their own time, answering a check and holding the gate, has no deadline, as
 * nobody waits for it and it is in nobody's way; but once a member's resume waits for the gates of
 * others it has one. An update that wants to begin ends it, when the slice that is being copied,
 * or the commit's copy, has ended; one of a subset, or of another model, which would leave live
 * memory in part, waits a moment for all of it. So does the sibling's leaving until all is copied.
 *
 * A replica that has other groups is left to the next update: they can only go on together. What
 * was just started and holds no version is ahead of nobody.
 */
#include "broker/catchup.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/util.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

static struct team *team_by_key(struct server *server, uint64_t key)
{
	struct team *team = server->teams;

	while (team && team->key != key) {
		team = team->next;
	}
	return team;
}

/* Between updates. A group takes part in the one that is about to begin. */
static bool may_run(const struct server *server)
{
	for (const struct model *model = server->models; model; model = model->next) {
		if (model->update.state == UPDATE_QUEUED) {
			return false;
		}
	}
	return server->node.stage == NODE_IDLE && !server->node.begin_waits && !server->draining;
}

static int make_crew(const struct team *team, struct crew *ret_crew)
{
	struct crew crew = {.key = team->key, .nworkers = team->group.nmembers};

	crew.workers = calloc(crew.nworkers, sizeof(*crew.workers));
	if (!crew.workers) {
		return -ENOMEM;
	}
	for (size_t i = 0; i < crew.nworkers; i++) {
		crew.workers[i] = team->clients[i]->session.worker;
	}
	*ret_crew = crew;
	return 0;
}

static void free_crews(struct job_catch *work)
{
	free(work->from.workers);
	free(work->to.workers);
	work->from.workers = work->to.workers = NULL;
}

/* What it has come to is looked at in the same round of the loop. */
static void job_done(struct job *job)
{
	struct job_catch *work = (struct job_catch *)job;
	struct team *team = work->data;

	team->catching.job_running = false;
	team->catching.mover_ns += work->step == CATCH_PLAN ? 0 : work->elapsed_ns;
	free_crews(work);
}

/* A failure to submit is one of the job. */
static void submit(struct server *server, struct team *team, enum catch_step step)
{
	struct catching *catching = &team->catching;
	const struct team *from = team_by_key(server, catching->from_key);
	struct job_catch *work = &catching->job;
	size_t lump = step == CATCH_PLAN ? 0 : work->lump;
	int rc;

	memset(work, 0, sizeof(*work));
	work->job.run = job_catch_run;
	work->job.done = job_done;
	work->moves = server->moves;
	work->step = step;
	work->lump = lump;
	work->job.limit_ms = step == CATCH_PLAN ? 0 : LIMIT_UPDATE_MS + LIMIT_HUNG_MS;
	work->data = team;
	if (step != CATCH_PLAN) {
		/* What is DIRTY after this is so in more than one manifest's tensors. */
		memset(&team->written, 0, sizeof(team->written));
	}
	rc = make_crew(team, &work->to);
	if (rc == 0 && step != CATCH_COMMIT) {
		rc = from ? make_crew(from, &work->from) : -ENOENT;
	}
	if (rc) {
		free_crews(work);
		work->job.rc = error_set(&work->job.err, rc, "%s", strerror(-rc));
		return;
	}
	catching->job_running = true;
	mover_submit(server->mover, &work->job);
}

static void begin(struct server *server, struct team *team, const struct team *from)
{
	struct catching *catching = &team->catching;

	catching->stage = CATCH_PLANNING;
	catching->stopping = false;
	catching->version = from->group.version;
	catching->from_key = from->key;
	catching->from_replica = from->group.replica;
	catching->from_part = from->group.part;
	catching->deadline = UINT64_MAX;
	catching->yield_by = 0;
	catching->mover_ns = 0;
	submit(server, team, CATCH_PLAN);
}

/* Live memory or the shadow may have been written. */
static bool has_copied(const struct catching *catching)
{
	return catching->job.lump > 0;
}

static void give_up(struct server *server, struct team *team, const char *text)
{
	struct catching *catching = &team->catching;
	struct group_event event = {
		.type = GE_ABORT, .touched = has_copied(catching), .text = text};
	enum catch_stage stage = catching->stage;

	catching->stage = CATCH_NONE;
	if (stage == CATCH_UNDER_WAY) {
		team_step(server, team, &event);
	}
}

/* Why it cannot go on, whatever it has come to; NULL: it can. */
static const char *find_obstacle(struct server *server, const struct team *team)
{
	const struct catching *catching = &team->catching;
	const struct team *from = team_by_key(server, catching->from_key);
	enum group_phase phase = team->group.phase;
	bool copied = phase == PHASE_GATING || phase == PHASE_PREPARED ||
		      (phase == PHASE_MOVING && !catching->job.job.rc && !catching->job.more);

	if (phase == PHASE_COMMITTING) {
		return NULL;
	}
	if (catching->stopping || (catching->stage == CATCH_PLANNING && !may_run(server))) {
		return "an update begins";
	}
	if (server->draining && phase != PHASE_MOVING && phase != PHASE_PREPARED) {
		return "the broker stops";
	}
	if (catching->version != catch_version(server, team->group.model)) {
		return "another version was committed meanwhile";
	}
	if (!copied && (!from || !catch_holds(from, catching->version))) {
		return "the sibling that it was to be taken from is not CURRENT any more";
	}
	return NULL;
}

static void planned(struct server *server, struct team *team)
{
	struct catching *catching = &team->catching;
	const struct error *err = &catching->job.job.err;

	if (catching->job.job.rc) {
		log_info("model %s replica %u part %u cannot take version %llu from replica %u "
			 "part %u: %s",
			team->group.model, team->group.replica, team->group.part,
			(unsigned long long)catching->version, catching->from_replica,
			catching->from_part, err->text);
		catch_note_tried(team);
		catching->stage = CATCH_NONE;
		return;
	}
	/* Its members may have changed meanwhile, and others want other things. */
	if (!catch_wanted(server, team) || catching->job.to.key != team->key) {
		catching->stage = CATCH_NONE;
		return;
	}
	catching->stage = CATCH_UNDER_WAY;
	team_step(server, team,
		&(struct group_event){.type = GE_BEGIN,
			.update = ++server->next_serial,
			.version = catching->version,
			.catching = true});
}

static void step_failed(struct server *server, struct team *team)
{
	struct catching *catching = &team->catching;

	log_error("model %s replica %u part %u, catching up: %s", team->group.model,
		team->group.replica, team->group.part, catching->job.job.err.text);
	team_step(server, team,
		&(struct group_event){.type = GE_FAILED,
			.touched = has_copied(catching),
			.text = catching->job.job.err.text});
}

static uint64_t team_bytes(const struct team *team)
{
	uint64_t bytes = 0;

	for (uint32_t i = 0; i < team->group.nmembers; i++) {
		bytes += layout_bytes(&team->clients[i]->session.worker->layout);
	}
	return bytes;
}

static void ended(struct server *server, struct team *team)
{
	struct catching *catching = &team->catching;
	uint64_t bytes = team_bytes(team);
	char text[32];

	catching->stage = CATCH_NONE;
	log_info("model %s replica %u part %u caught up with version %llu from replica %u part "
		 "%u, %s in %.1f ms",
		team->group.model, team->group.replica, team->group.part,
		(unsigned long long)catching->version, catching->from_replica, catching->from_part,
		format_bytes(text, sizeof(text), bytes), (double)catching->mover_ns / 1e6);
	history_catch(server, team, bytes);
	/* Of a commit that was heard of in this very moment. */
	teams_missed(server, team->group.model);
}

static void commit(struct server *server, struct team *team)
{
	team_step(server, team, &(struct group_event){.type = GE_COMMIT});
	if (team->group.phase == PHASE_COMMITTING) {
		submit(server, team, CATCH_COMMIT);
	} else {
		ended(server, team);
	}
}

/* A resume waits for the gates of the group's other members. */
static bool keeps_waiting(const struct group *group)
{
	for (uint32_t i = 0; i < group->nmembers; i++) {
		if (group->members[i].present && group->members[i].asking) {
			return group->phase == PHASE_HOLDING || group->phase == PHASE_GATING;
		}
	}
	return false;
}

static bool wait_members(struct server *server, struct team *team)
{
	struct catching *catching = &team->catching;
	uint64_t now = clock_ns();

	if (!keeps_waiting(&team->group)) {
		catching->deadline = UINT64_MAX;
	} else if (catching->deadline == UINT64_MAX) {
		catching->deadline = now + LIMIT_CATCH_MS * 1000000ull;
	} else if (now >= catching->deadline) {
		catching->deadline = UINT64_MAX;
		team_step(server, team,
			&(struct group_event){.type = GE_LATE,
				.text = "not all of its workers held the gate for catching up"});
		return true;
	}
	return false;
}

/* As far as it goes without waiting. True: something has happened. */
static bool advance(struct server *server, struct team *team)
{
	struct catching *catching = &team->catching;
	const char *obstacle;

	if (catching->stage == CATCH_NONE || catching->job_running) {
		return false;
	}
	obstacle = find_obstacle(server, team);
	if (obstacle) {
		give_up(server, team, obstacle);
		return true;
	}
	if (catching->stage == CATCH_PLANNING) {
		planned(server, team);
		return true;
	}
	switch (team->group.phase) {
	case PHASE_ACCEPTED:
		team_step(server, team, &(struct group_event){.type = GE_GO});
		submit(server, team, CATCH_MOVE);
		return true;
	case PHASE_MOVING:
		if (catching->job.job.rc) {
			step_failed(server, team);
		} else if (catching->job.more) {
			submit(server, team, CATCH_MOVE);
		} else {
			team_step(server, team, &(struct group_event){.type = GE_MOVED});
		}
		return true;
	case PHASE_PREPARED:
		commit(server, team);
		return true;
	case PHASE_COMMITTING:
		if (catching->job.job.rc) {
			step_failed(server, team);
			return true;
		}
		team_step(server, team, &(struct group_event){.type = GE_COPIED});
		ended(server, team);
		return true;
	case PHASE_OUT:
		/* Refused, late, failed or left by a member: the same again would end alike. */
		catch_note_tried(team);
		give_up(server, team, team->group.text);
		return true;
	default:
		return wait_members(server, team);
	}
}

/* The first group that has a sibling to go to. */
static bool begin_next(struct server *server)
{
	for (struct team *team = server->teams; team && may_run(server); team = team->next) {
		const struct team *from;

		if (team->catching.stage != CATCH_NONE || team->catching.job_running ||
			!catch_wanted(server, team)) {
			continue;
		}
		from = catch_sibling(server, team, catch_version(server, team->group.model));
		if (from) {
			begin(server, team, from);
			return true;
		}
	}
	return false;
}

void catchup_look(struct server *server)
{
	bool again;

	do {
		again = begin_next(server);
		for (struct team *team = server->teams; team; team = team->next) {
			again = advance(server, team) || again;
		}
	} while (again);
}

/* Live memory is in part, and the update would leave it so: it may be finished, in bounded time. */
static bool may_finish(struct team *team)
{
	struct catching *catching = &team->catching;

	if (!group_writes(&team->group) || !has_copied(catching)) {
		return false;
	}
	if (!catching->yield_by) {
		catching->yield_by = deadline_in_ms(LIMIT_YIELD_MS);
	}
	return !deadline_passed(catching->yield_by);
}

bool catchup_yield(struct server *server, const char *model, bool whole)
{
	bool quiet = true;

	for (struct team *team = server->teams; team; team = team->next) {
		struct catching *catching = &team->catching;
		bool heals = whole && strcmp(team->group.model, model) == 0;

		if (catching->stage != CATCH_UNDER_WAY) {
			continue;
		}
		catching->stopping = catching->stopping || heals || !may_finish(team);
		/* Now, as it may be what the update waits for in this round of the loop. */
		while (advance(server, team)) {
			continue;
		}
		quiet = quiet && catching->stage == CATCH_NONE;
	}
	return quiet;
}

bool catchup_quiet(const struct server *server)
{
	for (const struct team *team = server->teams; team; team = team->next) {
		if (team->catching.stage == CATCH_UNDER_WAY) {
			return false;
		}
	}
	return true;
}

void catchup_go(struct server *server, const struct msg_decision *go)
{
	const char *model = server->node.publication->model;

	for (struct team *team = team_next(server, NULL, model); team;
		team = team_next(server, team, model)) {
		team->alone = groups_met(go, team->group.replica) == 1;
	}
}

void catchup_committed(struct server *server)
{
	const struct node *node = &server->node;

	for (struct team *team = team_next(server, NULL, node->publication->model); team;
		team = team_next(server, team, node->publication->model)) {
		team->alone_at = team->alone ? node->version : 0;
	}
}

void catchup_free(struct team *team)
{
	free_crews(&team->catching.job);
}

uint64_t catchup_due(const struct server *server)
{
	uint64_t due = UINT64_MAX;

	for (const struct team *team = server->teams; team; team = team->next) {
		if (team->catching.stage == CATCH_UNDER_WAY) {
			due = MIN(due, team->catching.deadline);
		}
	}
	return due;
}
