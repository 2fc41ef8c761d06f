/* What must hold: in every state, and where nothing more happens by itself. */
#include "tests/explore/world.h"
#include <stdio.h>
#include <string.h>

static bool looks_right(const struct team *team)
{
	return team && group_state(&team->group) == STREW_GROUP_CURRENT;
}

/* Is any cell of it not of that content? */
static bool holds_other(
	unsigned g, unsigned m, const struct w_worker *worker, const uint8_t contents[HALVES])
{
	uint8_t cells = cells_of(g, m, ALL_HALVES);

	for (unsigned c = 0; c < CELLS; c++) {
		if ((cells >> c & 1) && worker->content[c] != contents[c % HALVES]) {
			return true;
		}
	}
	return false;
}

/*
 * Does a present, living member's memory differ from the last decision? If nobody can have told
 * its broker of that: is it in part, or not as its siblings'?
 */
static bool differs(const struct world *world, unsigned g, bool told)
{
	const struct w_worker *first = NULL;
	uint8_t known = world->node[config.node_of[g]].committed;

	for (unsigned m = 0; m < config.members[g]; m++) {
		const struct w_worker *worker = &world->worker[g][m];

		if (!world->group[g].member[m].present || worker->stage == W_DEAD) {
			continue;
		}
		first = first ? first : worker;
		if (worker->todo || holds_other(g, m, worker, first->content)) {
			return true;
		}
		/* A new process at a new broker: nobody there can know of the decision. */
		if (told && holds_other(g, m, worker, world->decided) &&
			!(worker->fresh && known < world->decided_version)) {
			return true;
		}
	}
	return false;
}

static const char *check_groups(const struct world *world, bool at_end)
{
	for (unsigned g = 0; g < config.ngroups; g++) {
		const struct w_node *node = &world->node[config.node_of[g]];

		if (node->alive && looks_right(live_team(g)) &&
			differs(world, g, !node->excused || (at_end && !world->node[0].excused))) {
			return "a group whose memory differs from the last decision is CURRENT";
		}
	}
	return NULL;
}

static const char *check_stage(const struct world *world, unsigned n)
{
	const struct w_node *node = &world->node[n];
	bool led = world->node[0].alive && world->update.active &&
		   world->update.serial == node->serial;

	switch (node->stage) {
	case NODE_IDLE:
		return NULL;
	case NODE_ACCEPTED:
	case NODE_PUTTING:
	case NODE_PREPARED:
		if (n == 0) {
			return led ? NULL : "the lead's node waits for a decision of no update";
		}
		if (!world->linked) {
			return "a node waits for a lead to which there is no connection";
		}
		return (led && world->member_there) || world->to_node[0].kind
			       ? NULL
			       : "a node waits for a decision that will never come";
	default:
		return node->job_running || node_due(&live[n].server) != UINT64_MAX
			       ? NULL
			       : "a node waits with no job and no deadline running";
	}
}

static const char *check_waits(const struct world *world)
{
	const struct update *update = &live[0].model.update;

	if (world->node[0].alive && update->state != UPDATE_IDLE &&
		update_due(update) == UINT64_MAX) {
		return "an update waits with no deadline running";
	}
	for (unsigned n = 0; n < config.nodes; n++) {
		const char *wrong = world->node[n].alive ? check_stage(world, n) : NULL;

		if (wrong) {
			return wrong;
		}
	}
	return NULL;
}

/* Each rank of an update in parts has more to put until all is there. */
static const char *check_parts(const struct world *world)
{
	const struct w_update *update = &world->update;

	if (!update->parts || update->state == UPDATE_IDLE || update->state > UPDATE_PUTTING ||
		(update->state == UPDATE_MOVING && !update->part)) {
		return NULL;
	}
	for (unsigned r = 0; r < config.nranks; r++) {
		if (!live[0].model.seats[r].ready) {
			return "an update in parts goes on, and a rank that has more to put is "
			       "gone";
		}
	}
	return NULL;
}

static const char *check_scope(const struct world *world)
{
	if (!config.scope_all || world->update.state != UPDATE_COMMITTING) {
		return NULL;
	}
	for (unsigned g = 0; g < config.ngroups; g++) {
		uint8_t outcome = world->update.group[g].outcome;

		/* Who goes after it was prepared keeps nobody from the commit. */
		if ((world->update.known & ~world->prepared & (1u << g)) &&
			(outcome == STREW_OUTCOME_SAT_OUT || outcome == STREW_OUTCOME_ABORTED)) {
			return "scope=all was committed, and a group sits it out";
		}
	}
	return NULL;
}

const char *world_check(const struct world *world)
{
	const char *wrong = check_groups(world, false);

	wrong = wrong ? wrong : check_waits(world);
	wrong = wrong ? wrong : check_parts(world);
	wrong = wrong ? wrong : check_catching(world);
	return wrong ? wrong : check_scope(world);
}

static const char *check_rest(const struct world *world)
{
	if (world->update.state != UPDATE_IDLE || world->update.active) {
		return "nothing happens any more, and an update has not ended";
	}
	for (unsigned r = 0; r < config.nranks; r++) {
		const struct w_rank *rank = &world->rank[r];

		if (rank->publishing || rank->lent || rank->asked || !rank->told.answered) {
			return "nothing happens any more, and a trainer rank waits";
		}
	}
	for (unsigned n = 0; n < config.nodes; n++) {
		if (world->node[n].stage != NODE_IDLE) {
			return "nothing happens any more, and a node is not idle";
		}
	}
	for (unsigned g = 0; g < config.ngroups; g++) {
		if (world->group[g].phase != PHASE_IDLE || world->group[g].taking_part) {
			return "nothing happens any more, and a group is in an update";
		}
		for (unsigned m = 0; m < config.members[g]; m++) {
			const struct w_worker *worker = &world->worker[g][m];

			if (worker->stage != W_LIVE) {
				return "nothing happens any more, and a worker is not registered";
			}
			if (!worker->running && !worker->denied) {
				return "nothing happens any more, and an engine waits to resume";
			}
			if (worker->running && worker->todo && config.gate[g] == STREW_GATE_HELD) {
				return "an engine runs on memory that is written in part";
			}
		}
	}
	return check_caught(world);
}

static const char *run_update(struct world *world)
{
	struct act acts[ACTS];

	for (unsigned i = 0; i < 500 && world_acts(world, acts) > 0; i++) {
		const char *wrong = world_act(world, acts[0], false);

		wrong = wrong ? wrong : world_check(world);
		if (wrong) {
			return wrong;
		}
	}
	return NULL;
}

/*
 * Both brokers are there, and node 1 still does not know how its update ended, though it is
 * certain: the lead's workers say that they have nothing of it, or hold what only its commit wrote.
 */
static const char *check_doubt(const struct world *world)
{
	const struct w_recall *recall = &world->node[1].recall;
	bool untouched = true, seen = false;

	if (config.nodes < 2 || recall->how != RECALL_PREPARED ||
		recall->lead == world->node[0].born + 1) {
		return NULL; /* a lead that lives may have led another update since */
	}
	for (unsigned g = 0; g < config.ngroups; g++) {
		for (unsigned m = 0; m < config.members[g] && config.node_of[g] == 0; m++) {
			const struct w_worker *worker = &world->worker[g][m];
			bool of_it = worker->said_update == recall->update;

			seen = seen ||
			       (of_it && (worker->said_holds == HOLDS_ALL ||
						 (worker->said_holds == HOLDS_SOME &&
							 config.apply[g] == STREW_APPLY_STAGED)));
			if (recall->own & (1u << g)) {
				untouched =
					untouched && of_it && worker->said_holds == HOLDS_NOTHING;
			}
		}
	}
	return untouched || seen ? "an update could be settled, and is not" : NULL;
}

/* One more update of everything, without faults: all is healed. */
static const char *check_heals(const struct world *world)
{
	struct world next = *world;
	unsigned publish = config.publish;
	const char *wrong;

	next.faults = 0;
	next.updates = 1;
	config.publish = 1u << PUBLISH_WHOLE;
	wrong = run_update(&next);
	config.publish = publish;
	if (wrong) {
		return wrong;
	}
	if (next.decided_version == world->decided_version) {
		return "one more update without faults does not commit";
	}
	for (unsigned g = 0; g < config.ngroups; g++) {
		if (!looks_right(live_team(g)) || differs(&next, g, true)) {
			return "one more update without faults does not heal every group";
		}
	}
	return check_rest(&next);
}

const char *world_check_end(const struct world *world)
{
	const char *wrong = check_rest(world);

	wrong = wrong ? wrong : check_groups(world, true);
	wrong = wrong ? wrong : check_doubt(world);
	return wrong ? wrong : check_heals(world);
}

void world_say(const struct world *world, char *buf, size_t size)
{
	static const char *const states[] = {
		"?", "FORMING", "CURRENT", "PENDING", "IN_DOUBT", "DIRTY", "STALE", "LOST"};
	static const char *const phases[PHASE_COUNT] = {"idle", "checking", "holding", "accepted",
		"moving", "gating", "prepared", "committing", "out"};
	size_t n = 0;

	n += (size_t)snprintf(buf + n, size - n, "lead %s",
		world->node[0].alive ? update_state_name((enum update_state)world->update.state)
				     : "dead");
	for (unsigned i = 0; i < config.nodes && n < size; i++) {
		n += (size_t)snprintf(buf + n, size - n, ", node %u %s", i,
			world->node[i].alive ? node_stage_name(world->node[i].stage) : "dead");
	}
	for (unsigned g = 0; g < config.ngroups && n < size; g++) {
		const struct team *team = live_team(g);

		n += (size_t)snprintf(buf + n, size - n, "; group %u %s (%s)", g,
			team ? states[group_state(&team->group)] : "none",
			team ? phases[team->group.phase] : "");
		for (unsigned m = 0; m < config.members[g] && n < size; m++) {
			const struct w_worker *worker = &world->worker[g][m];

			n += (size_t)snprintf(buf + n, size - n, " %s%u.%u%s%s",
				worker->stage == W_DEAD ? "dead:" : "", worker->content[0],
				worker->content[1], worker->todo ? "~" : "",
				worker->running ? "" : "|");
		}
	}
	if (n < size) {
		snprintf(
			buf + n, size - n, "; decided %u.%u", world->decided[0], world->decided[1]);
	}
}
