/*
 * Groups that catch up from the other group of their node: broker/catchup.c and catch_choice.c as
 * they are, packed, and the mover's jobs for them. A job copies one half of the model, or commits
 * both.
 */
#include "base/clock.h"
#include "tests/explore/world.h"
#include <stdlib.h>
#include <string.h>

#define KEY_GONE 77u /* of a crew that is not as it was */

/* NULL: there is none on its node. */
static struct team *sibling_of(unsigned g)
{
	unsigned other = 1 - g;

	return config.ngroups > other && config.node_of[other] == config.node_of[g]
		       ? live_team(other)
		       : NULL;
}

void name_crews(const struct world *world, unsigned g, struct team *team)
{
	const struct w_catching *from = &world->group[g].catching;
	struct catching *catching = &team->catching;
	uint64_t sibling = TEAM_KEY(1 - g);

	catching->from_key = from->same_from ? sibling : KEY_GONE;
	catching->job.to.key = from->same_to ? TEAM_KEY(g) : KEY_GONE;
	catching->tried_key = TEAM_KEY(g);
	catching->tried_version = from->tried;
	catching->tried_from[0] = sibling;
	catching->ntried = from->tried != 0;
}

void load_catching(const struct world *world, unsigned g, struct team *team)
{
	const struct w_catching *from = &world->group[g].catching;
	struct catching *catching = &team->catching;

	team->alone = from->alone;
	team->alone_at = from->alone_at;
	team->group.catching = from->following;
	catching->stage = (enum catch_stage)from->stage;
	catching->stopping = from->stopping;
	catching->job_running = from->running;
	catching->version = from->version;
	catching->deadline = from->waits ? clock_ns() + LIMIT_CATCH_MS * 1000000ull : UINT64_MAX;
	catching->job.lump = from->lump;
	catching->job.more = from->more;
	catching->job.job.rc = from->failed ? -5 : 0;
	strcpy(catching->job.job.err.text, "x");
	catching->job.data = team;
	name_crews(world, g, team);
}

static uint8_t tried_at(const struct team *team, const struct team *sibling)
{
	const struct catching *catching = &team->catching;

	for (size_t i = 0; sibling && catching->tried_key == team->key && i < catching->ntried;
		i++) {
		if (catching->tried_from[i] == sibling->key) {
			return (uint8_t)catching->tried_version;
		}
	}
	return 0;
}

/* Before teams are given the keys that they have between acts. */
void save_catching(struct world *world, unsigned g)
{
	struct w_catching *to = &world->group[g].catching;
	const struct team *team = live_team(g), *sibling = sibling_of(g);
	const struct catching *catching = &team->catching;
	enum node_stage stage = live[config.node_of[g]].server.node.stage;

	/* Each go says it anew. */
	to->alone = team->alone && stage >= NODE_MOVING;
	to->alone_at = (uint8_t)team->alone_at;
	to->following = team->group.catching;
	to->stage = (uint8_t)catching->stage;
	to->running = catching->job_running;
	to->tried = tried_at(team, sibling);
	/* What means nothing otherwise is made alike; a job that runs still ends. */
	if (catching->stage == CATCH_NONE && !catching->job_running) {
		return;
	}
	to->stopping = catching->stopping;
	to->version = (uint8_t)catching->version;
	to->waits = catching->deadline != UINT64_MAX;
	to->same_from = sibling && catching->from_key == sibling->key;
	to->same_to = catching->job.to.key == team->key;
	to->lump = (uint8_t)catching->job.lump;
	to->more = catching->job.more;
	to->failed = catching->job.job.rc != 0;
}

bool catch_waits(const struct world *world, unsigned n)
{
	for (unsigned g = 0; g < config.ngroups; g++) {
		const struct w_catching *catching = &world->group[g].catching;

		if (config.node_of[g] == n && catching->stage == CATCH_UNDER_WAY &&
			catching->waits && !catching->running) {
			return world->node[n].alive;
		}
	}
	return false;
}

/* The mover */

static void (*caught)(struct job *job);

void job_catch_run(struct job *job)
{
	(void)job;
}

/* The sibling is CURRENT in this moment: what its memory holds now is what must be read. */
void catch_submit(struct job_catch *work)
{
	const struct team *team = work->data;
	unsigned g = team->group.part, other = 1 - g;
	struct w_job *job = job_add(config.node_of[g], JOB_CATCH);

	caught = work->job.done;
	job->step = (uint8_t)work->step;
	job->errors = (uint8_t)g;
	job->serial = (uint8_t)team->group.update;
	if (work->step != CATCH_PLAN) {
		job->workers = members_of(g);
	}
	if (work->step == CATCH_MOVE) {
		job->part = (uint8_t)(work->lump + 1);
		job->from = members_of(other);
		memcpy(job->content, now->worker[other][0].content, sizeof(job->content));
	}
	free(work->from.workers);
	free(work->to.workers);
	work->from.workers = work->to.workers = NULL;
}

void catch_done_call(const struct w_job *ended)
{
	struct team *team = live_team(ended->errors);
	struct job_catch *work = &team->catching.job;

	work->step = (enum catch_step)ended->step;
	work->job.rc = ended->failed ? -5 : 0;
	strcpy(work->job.err.text, "x");
	if (ended->step == CATCH_MOVE && ended->progress == JOB_BEGUN) {
		work->lump++; /* also if it is this one that has failed */
		work->more = work->lump < HALVES;
	}
	caught(&work->job);
}

/* What a sibling holds must stay as it was when the broker looked at it. */
static void check_source(const struct w_job *job)
{
	for (unsigned i = 0; i < GROUPS * MEMBERS; i++) {
		const struct w_worker *worker = &now->worker[i / MEMBERS][i % MEMBERS];

		if (!(job->from >> i & 1)) {
			continue;
		}
		if (worker->stage == W_NEW) {
			say_violation("memory was read whose withdrawal was acknowledged");
		}
		if (worker->todo ||
			memcmp(worker->content, job->content, sizeof(job->content)) != 0) {
			say_violation("a group catches up from what is being written");
		}
	}
}

static void member_catches(const struct w_job *job, unsigned g, unsigned m, bool whole)
{
	struct w_worker *worker = &now->worker[g][m];
	struct w_write write = {.serial = job->serial, .brings = ALL_HALVES};
	unsigned cell = job->part - 1u; /* of a move */

	if (job->step == CATCH_COMMIT) {
		if ((worker->whole & ALL_HALVES) != ALL_HALVES) {
			say_violation("a commit copies a shadow that is not whole");
		}
		memcpy(write.content, worker->shadow, sizeof(write.content));
		write_live(g, m, &write, ALL_HALVES, whole);
		return;
	}
	memcpy(write.content, job->content, sizeof(write.content));
	if (config.apply[g] == STREW_APPLY_DIRECT) {
		write_live(g, m, &write, (uint8_t)(1u << cell), whole);
		return;
	}
	worker->whole &= (uint8_t) ~(1u << cell);
	if (whole) {
		worker->whole |= (uint8_t)(1u << cell);
		worker->shadow[cell] = job->content[cell];
	}
}

void catch_writes(const struct w_job *job, bool whole)
{
	unsigned g = job->errors;

	check_source(job);
	for (unsigned m = 0; m < config.members[g]; m++) {
		if (job->workers >> (g * MEMBERS + m) & 1) {
			member_catches(job, g, m, whole);
		}
	}
}

/* What must hold */

/* A group that has missed a version, beside one that has it. */
static bool lags(const struct world *world, unsigned g)
{
	const struct w_node *node = &world->node[config.node_of[g]];
	const struct w_group *group = &world->group[g], *other = &world->group[1 - g];
	bool fresh = true, pulls = config.pulls[0] || config.pulls[1];

	if (config.ngroups < 2 || config.node_of[1 - g] != config.node_of[g] || pulls ||
		(group->state != STREW_GROUP_STALE && group->state != STREW_GROUP_DIRTY) ||
		other->state != STREW_GROUP_CURRENT || other->version != node->committed ||
		node->doubted > node->committed || !other->version) {
		return false;
	}
	for (unsigned m = 0; m < config.members[g]; m++) {
		const struct w_worker *worker = &world->worker[g][m];

		fresh = fresh && !group->member[m].version && !worker->said_version &&
			worker->said_state != STREW_GROUP_STALE;
	}
	return (fresh || group->catching.alone_at == node->committed) &&
	       group->catching.tried != node->committed;
}

const char *check_caught(const struct world *world)
{
	for (unsigned g = 0; g < config.ngroups; g++) {
		if (lags(world, g)) {
			return "nothing happens any more, and a group has not caught up";
		}
	}
	return NULL;
}

/* For an engine, or the mover. */
static bool waits_for_somebody(const struct w_group *group)
{
	return group->catching.running || group->phase == PHASE_CHECKING ||
	       group->phase == PHASE_HOLDING || group->phase == PHASE_GATING;
}

const char *check_catching(const struct world *world)
{
	for (unsigned n = 0; n < config.nodes; n++) {
		bool copies = false;

		for (unsigned g = 0; g < config.ngroups; g++) {
			const struct w_group *group = &world->group[g];

			if (config.node_of[g] != n || !world->node[n].alive) {
				continue;
			}
			copies = copies || group->catching.running;
			if (group->catching.stage != CATCH_NONE && !waits_for_somebody(group)) {
				return "a group that catches up waits for nobody";
			}
			if (group->catching.stage == CATCH_UNDER_WAY &&
				world->node[n].stage != NODE_IDLE) {
				return "a group catches up in the middle of an update";
			}
		}
		if (world->node[n].begin_waits && !copies && world->node[n].stage == NODE_IDLE) {
			return "an update waits for nobody to begin";
		}
	}
	return NULL;
}
