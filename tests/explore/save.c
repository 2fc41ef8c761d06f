/* The real machines, packed into a world: what live.c fills again. */
#include "strew/trainer.h"
#include "tests/explore/world.h"
#include <string.h>

static void save_team(struct world *world, unsigned g)
{
	struct w_group *to = &world->group[g];
	const struct team *team = live_team(g);
	const struct group *group;

	memset(to, 0, sizeof(*to));
	if (!team) {
		return;
	}
	group = &team->group;
	to->exists = 1;
	to->phase = (uint8_t)group->phase;
	to->state = (uint8_t)group->state;
	to->version = (uint8_t)group->version;
	to->has_text = group->text[0] != 0;
	to->npresent = (uint8_t)group->npresent;
	to->update = (uint8_t)group->update;
	to->update_version = (uint8_t)group->update_version;
	to->doubt = (uint8_t)group->doubt.update;
	to->doubt_prepared = group->doubt.prepared;
	to->doubt_current = group->doubt.current;
	to->settling = group->settling;
	for (unsigned m = 0; m < config.members[g]; m++) {
		const struct group_member *member = &group->members[m];

		to->member[m].present = member->present;
		to->member[m].checked = member->checked;
		to->member[m].ready = member->ready;
		to->member[m].asking = member->asking;
		to->member[m].stale = member->stale;
		to->member[m].doubt = (uint8_t)member->doubt;
		to->member[m].version = (uint8_t)member->version;
		to->member[m].pulls = member->pulls;
		to->member[m].pulled = member->pulled;
		to->placed |= team->clients[m] ? (uint8_t)(1u << m) : 0;
	}
	to->copied = group->phase == PHASE_COMMITTING && group->copied;
	to->taking_part = team->taking_part;
	to->said = team->said;
	to->outcome = (uint8_t)team->outcome;
	save_catching(world, g);
}

static void save_begin(struct w_node *to, const struct node *node)
{
	const struct msg_begin *begin = &node->begin;
	bool waits = node->begin_waits;

	to->begin_waits = waits;
	to->begin_epoch = waits ? (uint8_t)begin->epoch : 0;
	to->begin_serial = waits ? (uint8_t)begin->update : 0;
	to->begin_version = waits ? (uint8_t)begin->version : 0;
	to->begin_parts = waits && (begin->flags & PUBLISH_PARTS);
	to->begin_subset = waits ? (uint8_t)begin->subset : 0;
	to->begin_base = waits ? (uint8_t)begin->base : 0;
}

static void save_node(struct world *world, unsigned n)
{
	const struct server *server = &live[n].server;
	const struct node *node = &server->node;
	struct w_node *to = &world->node[n];

	to->stage = (uint8_t)node->stage;
	to->epoch = (uint8_t)node->epoch;
	to->serial = (uint8_t)node->serial;
	to->version = (uint8_t)node->version;
	to->wire = node->wire;
	to->deadline = node->deadline == UINT64_MAX	       ? 3
		       : node->deadline == node->gate_deadline ? 2
							       : 1;
	to->subset = (uint8_t)node->subset;
	to->base = (uint8_t)node->base;
	to->parts = (node->flags & PUBLISH_PARTS) != 0;
	to->part = (uint8_t)node->part;
	to->moving = node->moving ? (uint8_t)(node->moving - live[n].half + 1) : 0;
	to->leaving = (uint8_t)live[n].model.leaving_serial;
	to->has_publication = node->publication != NULL;
	to->job_running = node->job_running;
	to->touched = node->touched;
	to->cancel = (uint8_t)atomic_load(&node->move.cancel);
	to->committed = (uint8_t)live[n].model.committed;
	to->knows = live[n].model.decided;
	to->doubted = (uint8_t)live[n].model.doubted;
	to->announced = live[n].model.publication != NULL;
	to->epoch_state = (uint8_t)server->epoch.state;
	to->epoch_number = (uint8_t)server->epoch.number;
	to->epoch_ranks = (uint8_t)server->epoch.ranks;
	to->epoch_lead = (uint8_t)(server->epoch.brokers[0] - broker_of(0, 0));
	to->teams = to->going = to->absent = 0;
	memset(to->absent_state, 0, sizeof(to->absent_state));
	for (size_t i = 0; i < node->nteams; i++) {
		to->teams |= (uint8_t)(1u << node->teams[i]->group.part);
	}
	for (size_t i = 0; node->job_running && node->stage != NODE_PLANNING && i < node->ngoing;
		i++) {
		to->going |= (uint8_t)(1u << node->going_teams[i]->group.part);
	}
	for (size_t i = 0; i < node->nabsent; i++) {
		to->absent |= (uint8_t)(1u << node->absent[i].part);
		to->absent_state[node->absent[i].part] = (uint8_t)node->absent[i].state;
	}
	/* What means nothing yet, and what means nothing between updates, is made alike. */
	if (node->stage < NODE_MOVING) {
		to->wire = to->cancel = 0;
	}
	if (node->stage == NODE_IDLE) {
		to->wire = to->touched = to->cancel = to->deadline = to->version = 0;
		to->crew_dead = to->crew_freed = to->ranks_dead = 0;
		to->epoch = node->begin_waits ? to->epoch : 0;
		to->subset = to->base = to->parts = 0;
	}
	save_begin(to, node);
}

static void save_update(struct world *world)
{
	const struct update *update = &live[0].model.update;
	struct w_update *to = &world->update;

	memset(to, 0, sizeof(*to));
	to->active = live[0].server.active != NULL;
	to->state = (uint8_t)update->state;
	to->serial = (uint8_t)update->serial;
	if (update->state == UPDATE_IDLE) {
		return; /* update_publish() forgets the rest */
	}
	to->version = (uint8_t)update->version;
	to->parts = update->parts;
	to->part = (uint8_t)update->part;
	to->put = (uint8_t)update->put;
	to->next_said = update->next_said;
	to->next = update->next_said ? (uint8_t)update->next : 0;
	to->subset = (uint8_t)update->subset;
	to->base = (uint8_t)update->base;
	for (unsigned r = 0; r < config.nranks; r++) {
		to->published |= update->published[r] ? (uint8_t)(1u << r) : 0;
		to->done |= update->done[r] ? (uint8_t)(1u << r) : 0;
	}
	to->released = update->released;
	to->nnodes = (uint8_t)update->nnodes;
	to->outcome = (uint8_t)update->outcome;
	to->has_text = update->text[0] != 0;
	for (unsigned n = 0; n < NODES; n++) {
		to->answered |= update->answered[n] ? (uint8_t)(1u << n) : 0;
		to->lost |= update->lost[n] ? (uint8_t)(1u << n) : 0;
	}
	for (size_t i = 0; i < update->ngroups; i++) {
		const struct group_outcome *group = &update->groups[i];

		to->known |= (uint8_t)(1u << group->part);
		to->group[group->part].outcome = (uint8_t)group->outcome;
		to->group[group->part].state = (uint8_t)group->state;
		to->group[group->part].has_text = group->text[0] != 0;
	}
	for (size_t i = 0; i < update->nreplicas; i++) {
		to->replicas |= (uint8_t)(1u << update->replicas[i]);
	}
}

static void save_rank(struct world *world, unsigned r)
{
	const struct client *client = &ranks[r];
	const struct told *told = &client->told;
	const struct seat *seat = &live[0].model.seats[r];
	struct w_rank *to = &world->rank[r];

	to->seated = !client->gone && client->model != NULL;
	to->streaming = client->watch.active;
	to->told.answered = client->declared;
	to->told.declare = (uint8_t)told->declare_serial;
	to->told.declared = told->declared;
	to->told.publish = (uint8_t)told->publish_serial;
	to->told.put = (uint8_t)told->put_serial;
	to->told.version = told->publish_serial ? (uint8_t)told->version : 0;
	to->told.taken = told->taken;
	to->told.lent = told->lent;
	to->told.committed = told->committed;
	to->told.abandoned = told->abandoned;
	to->told.prepared = told->prepared;
	memset(&to->seat, 0, sizeof(to->seat));
	if (seat->member) {
		to->seat.there = 1;
		to->seat.ready = seat->ready;
		to->seat.answered = seat->answered;
		to->seat.declare = (uint8_t)seat->declare_serial;
		to->seat.publish = (uint8_t)seat->publish_serial;
	}
}

/* A team that has lost or won a member is not the one whose shadows are being copied. */
static void orphan_jobs(struct world *world, unsigned g)
{
	struct team *team = live_team(g);
	struct w_job *jobs = world->node[config.node_of[g]].jobs;

	for (unsigned i = 0; i < JOBS; i++) {
		if (jobs[i].kind == JOB_SETTLE && jobs[i].errors == g &&
			(!team || team->key != TEAM_KEY(g))) {
			jobs[i].gone = 1;
		}
	}
	if (team) {
		team->key = TEAM_KEY(g);
		name_crews(world, g, team);
	}
}

void live_save(struct world *world)
{
	for (unsigned r = 0; r < config.nranks; r++) {
		save_rank(world, r);
	}
	for (unsigned g = 0; g < config.ngroups; g++) {
		save_team(world, g);
	}
	for (unsigned g = 0; g < config.ngroups; g++) {
		struct live *at = &live[config.node_of[g]];

		orphan_jobs(world, g);
		for (unsigned m = 0; m < config.members[g]; m++) {
			struct w_worker *worker = &world->worker[g][m];
			uint64_t written = at->words[g][m][WORD_WRITTEN];

			worker->session = (uint8_t)at->clients[g][m].session.state;
			worker->watched = at->clients[g][m].watch.active;
			worker->written = written == WRITTEN_NONE ? 0 : (uint8_t)written;
		}
	}
	for (unsigned n = 0; n < config.nodes; n++) {
		save_node(world, n);
		save_recalls(world, n);
	}
	save_update(world);
	world->joined = live[1].server.lead.joined;
	world->link_serial = (uint8_t)live[1].server.lead.next_serial;
	world->member_state = (uint8_t)live[0].member.state;
	world->member_rank = (uint8_t)live[0].member.rank;
	world->member_there = live[0].server.members != NULL;
	if (!world->member_there) {
		world->member_state = world->member_rank = world->member_born = 0;
	}
	world->next_serial = (uint8_t)live[0].server.next_serial;
	world->node_serial = config.nodes > 1 ? (uint8_t)(live[1].server.next_serial - 128u) : 0;
}
