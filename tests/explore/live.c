/*
 * The real machines, filled from a packed world and packed again. Of what they hold only what
 * their decisions look at is packed; sentences count as there or not. explore --walk proves
 * that nothing was left out: there the same acts run with and without packing.
 */
#include "base/clock.h"
#include "tests/explore/world.h"
#include <stdlib.h>
#include <string.h>

#define T0 1000000000000ull /* the clock stands; deadlines pass when the explorer says so */
#define DEADLINE (T0 + 60000000000ull)

struct live live[NODES];

static bool late; /* the clock stands a while later */

uint64_t __wrap_clock_ns(void);

uint64_t __wrap_clock_ns(void)
{
	return late ? T0 + LIMIT_CATCH_MS * 1000000ull : T0;
}

void live_catch_late(struct server *server)
{
	late = true;
	catchup_look(server);
	late = false;
}

unsigned live_node(const struct server *server)
{
	return server == &live[0].server ? 0 : 1;
}

struct team *live_team(unsigned group)
{
	struct team *team = live[config.node_of[group]].server.teams;

	while (team && team->group.part != group) {
		team = team->next;
	}
	return team;
}

static void text_set(char *text, bool there)
{
	text[0] = there ? 'x' : 0;
	text[1] = 0;
}

static void load_client(struct live *at, const struct world *world, unsigned g, unsigned m)
{
	const struct w_worker *worker = &world->worker[g][m];
	struct client *client = &at->clients[g][m];
	struct msg_register *reg = &client->session.reg;

	client->server = &at->server;
	client->session.state = (enum session_state)worker->session;
	client->session.hello.role = ROLE_WORKER;
	client->session.worker = (struct worker *)client; /* never looked into */
	client->member = m;
	client->team = NULL;
	client->watch.active = worker->watched;
	strcpy(reg->model, "m");
	reg->replica = config.replica[g];
	reg->part = g;
	reg->member = m;
	reg->members = config.members[g];
	reg->gate = config.gate[g];
	reg->apply = config.apply[g];
	reg->state = worker->heard_state;
	reg->version = worker->heard_version;
}

/* The other group of the node, NULL: there is none. */
static struct team *live_sibling(unsigned g)
{
	unsigned other = 1 - g;

	return config.ngroups > other && config.node_of[other] == config.node_of[g]
		       ? live_team(other)
		       : NULL;
}

#define KEY(g) (1u + (g))
#define KEY_GONE 77u /* of a crew that is not as it was */

static void load_catching(const struct w_group *from, unsigned g, struct team *team)
{
	struct catching *catching = &team->catching;

	team->key = KEY(g);
	team->alone_at = from->caught.alone_at;
	team->group.catching = from->caught.following;
	catching->stage = (enum catch_stage)from->caught.stage;
	catching->stopping = from->caught.stopping;
	catching->job_running = from->caught.running;
	catching->version = from->caught.version;
	catching->deadline = from->caught.waits ? T0 + LIMIT_CATCH_MS * 1000000ull : UINT64_MAX;
	catching->from_key = from->caught.same_from ? KEY(1 - g) : KEY_GONE;
	catching->job.to.key = from->caught.same_to ? KEY(g) : KEY_GONE;
	catching->job.lump = from->caught.lump;
	catching->job.more = from->caught.more;
	catching->job.job.rc = from->caught.failed ? -5 : 0;
	text_set(catching->job.job.err.text, true);
	catching->job.data = team;
	if (from->caught.tried) {
		catching->tried_key = KEY(g);
		catching->tried_version = from->caught.tried;
		catching->tried_from[0] = KEY(1 - g);
		catching->ntried = 1;
	}
}

static void load_team(struct live *at, const struct world *world, unsigned g)
{
	const struct w_group *from = &world->group[g];
	struct team *team = calloc(1, sizeof(*team));
	struct group *group;

	if (!team) {
		abort();
	}
	group = &team->group;
	group_init(group, "m", config.replica[g], g, config.members[g], config.gate[g],
		config.apply[g]);
	group->state = (enum strew_group_state)from->state;
	group->phase = (enum group_phase)from->phase;
	group->version = from->version;
	group->update = from->update;
	group->update_version = from->update_version;
	text_set(group->text, from->has_text);
	group->npresent = from->npresent;
	for (unsigned m = 0; m < config.members[g]; m++) {
		struct group_member *member = &group->members[m];

		member->present = from->member[m].present;
		member->checked = from->member[m].checked;
		member->ready = from->member[m].ready;
		member->asking = from->member[m].asking;
		member->stale = from->member[m].stale;
		member->version = from->member[m].version == UINT8_MAX ? GROUP_VERSION_MIXED
								       : from->member[m].version;
		if (from->placed & (1u << m)) {
			team->clients[m] = &at->clients[g][m];
			at->clients[g][m].team = team;
		}
	}
	team->taking_part = from->taking_part;
	team->said = from->said;
	team->outcome = (enum strew_outcome)from->outcome;
	load_catching(from, g, team);
	team->next = at->server.teams;
	at->server.teams = team;
}

static void load_node(struct live *at, const struct world *world, unsigned n)
{
	const struct w_node *from = &world->node[n];
	struct node *node = &at->server.node;

	node->stage = (enum node_stage)from->stage;
	node->epoch = from->epoch;
	node->serial = from->serial;
	node->version = from->version;
	node->wire = from->wire;
	node->gate_deadline = DEADLINE + 1;
	node->deadline = from->deadline == 2   ? node->gate_deadline
			 : from->deadline == 3 ? UINT64_MAX
					       : DEADLINE;
	node->update_deadline = DEADLINE + 2;
	node->publication = from->has_publication ? &at->publication : NULL;
	node->job_running = from->job_running;
	node->touched = from->touched;
	atomic_store(&node->move.cancel, from->cancel);
	text_set(node->abort_text, true);
	node->begin_waits = from->begin_waits;
	node->roots[0] = 0;
	node->begin = (struct msg_begin){.epoch = from->epoch,
		.update = from->serial,
		.model = "m",
		.version = from->begin_version,
		.flags = config.scope_all ? STREW_PUBLISH_SCOPE_ALL : 0,
		.timeout_ms = 60000,
		.roots = node->roots,
		.nroots = 1};
	node->nteams = node->ngoing = node->nabsent = 0;
	for (unsigned g = 0; g < config.ngroups; g++) {
		if (from->teams & (1u << g)) {
			node->crews[node->nteams].workers = NULL;
			error_clear(&node->errors[node->nteams]);
			node->teams[node->nteams++] = live_team(g);
		}
		if (from->going & (1u << g)) {
			node->going_teams[node->ngoing++] = live_team(g);
		}
		if (from->absent & (1u << g)) {
			struct group_outcome *absent = &node->absent[node->nabsent++];

			memset(absent, 0, sizeof(*absent));
			absent->replica = config.replica[g];
			absent->part = g;
			absent->outcome = STREW_OUTCOME_SAT_OUT;
			absent->state = from->absent_state[g];
			text_set(absent->text, true);
		}
	}
}

static void load_update(struct live *at, const struct world *world)
{
	const struct w_update *from = &world->update;
	struct update *update = &at->model.update;

	update->nranks = 1;
	update->state = (enum update_state)from->state;
	update->serial = from->serial;
	update->version = from->version;
	update->flags = config.scope_all ? STREW_PUBLISH_SCOPE_ALL : 0;
	update->deadline_ns = DEADLINE;
	update->published[0] = from->published;
	update->done[0] = from->done;
	update->released = from->released;
	update->nnodes = from->nnodes;
	update->outcome = (enum strew_outcome)from->outcome;
	text_set(update->text, from->has_text);
	for (unsigned n = 0; n < NODES; n++) {
		update->answered[n] = from->answered & (1u << n);
		update->lost[n] = from->lost & (1u << n);
	}
	update->ngroups = update->nreplicas = 0;
	for (unsigned g = 0; g < config.ngroups; g++) {
		if (from->known & (1u << g)) {
			struct group_outcome *group = &update->groups[update->ngroups++];

			memset(group, 0, sizeof(*group));
			group->node = config.node_of[g];
			group->replica = config.replica[g];
			group->part = g;
			group->outcome = from->group[g].outcome;
			group->state = from->group[g].state;
			text_set(group->text, from->group[g].has_text);
		}
		if (from->replicas & (1u << g)) {
			update->replicas[update->nreplicas++] = g;
		}
	}
	at->server.active = from->active ? &at->model : NULL;
}

static void load_server(struct live *at, const struct world *world, unsigned n)
{
	struct server *server = &at->server;
	struct member *member = &at->member;
	const struct w_node *from = &world->node[n];

	while (server->teams) {
		struct team *team = server->teams;

		server->teams = team->next;
		free(team);
	}
	for (unsigned i = 0; i < LIMIT_GROUPS && i < server->node.nteams; i++) {
		free(server->node.crews[i].workers);
		server->node.crews[i].workers = NULL;
	}
	at->broker_id = 7;
	server->broker_id = n ? 8 : 7;
	at->publication.nroots = 1;
	at->publication.references = 100;
	at->publication.brokers = &at->broker_id;
	at->publication.own_root = n ? ROOT_NONE : 0;
	at->publication.elsewhere = n;
	strcpy(at->publication.model, "m");
	strcpy(at->model.name, "m");
	at->model.committed = from->committed;
	at->model.doubted = from->doubted;
	at->model.decided = from->knows;
	at->model.publication = from->announced ? &at->publication : NULL;
	at->model.ranks = world->trainer.seated ? 1 : 0;
	at->model.seats[0].client = !n && world->trainer.seated ? &at->trainer : NULL;
	at->model.seats[0].ready = world->trainer.seated;
	at->trainer.server = server;
	at->trainer.session.state = SESSION_LIVE;
	at->trainer.model = world->trainer.seated ? &at->model : NULL;
	server->models = &at->model;
	server->epoch.state = (enum epoch_state)from->epoch_state;
	server->epoch.number = from->epoch_number;
	server->epoch.ranks = from->epoch_ranks;
	server->epoch.rank = n;
	server->next_serial = n ? 128u + world->next_serial_1 : world->next_serial;
	server->next_key = 100;
	server->options.listen = n ? NULL : "x";
	server->options.join = n ? "x" : NULL;
	server->lead.joined = n && world->joined;
	member->server = server;
	member->state = (enum member_state)world->member_state;
	member->rank = world->member_rank;
	member->join.broker_id = 8;
	server->members = !n && world->member_there ? member : NULL;
}

void live_load(const struct world *world)
{
	for (unsigned n = 0; n < config.nodes; n++) {
		load_server(&live[n], world, n);
	}
	for (unsigned g = 0; g < config.ngroups; g++) {
		struct live *at = &live[config.node_of[g]];

		for (unsigned m = 0; m < config.members[g]; m++) {
			load_client(at, world, g, m);
		}
		if (world->group[g].exists) {
			load_team(at, world, g);
		}
	}
	for (unsigned n = 0; n < config.nodes; n++) {
		load_node(&live[n], world, n);
	}
	load_update(&live[0], world);
}

static void save_catching(struct w_group *to, unsigned g, const struct team *team)
{
	const struct catching *catching = &team->catching;
	const struct team *sibling = live_sibling(g);

	to->caught.alone_at = (uint8_t)team->alone_at;
	to->caught.stage = (uint8_t)catching->stage;
	to->caught.running = catching->job_running;
	if (sibling && catching->tried_key == team->key && catching->ntried &&
		catching->tried_from[0] == sibling->key) {
		to->caught.tried = (uint8_t)catching->tried_version;
	}
	if (team->group.phase != PHASE_IDLE) {
		to->caught.following = team->group.catching;
	}
	/* What means nothing otherwise is made alike; a job that runs still ends. */
	if (catching->stage == CATCH_NONE && !catching->job_running) {
		return;
	}
	to->caught.stopping = catching->stopping;
	to->caught.version = (uint8_t)catching->version;
	to->caught.waits = catching->deadline != UINT64_MAX;
	to->caught.same_from = sibling && catching->from_key == sibling->key;
	to->caught.same_to = catching->job.to.key == team->key;
	to->caught.lump = (uint8_t)catching->job.lump;
	to->caught.more = catching->job.more;
	to->caught.failed = catching->job.job.rc != 0;
}

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
	for (unsigned m = 0; m < config.members[g]; m++) {
		const struct group_member *member = &group->members[m];

		to->member[m].present = member->present;
		to->member[m].checked = member->checked;
		to->member[m].ready = member->ready;
		to->member[m].asking = member->asking;
		to->member[m].stale = member->stale;
		to->member[m].version = (uint8_t)member->version;
		to->placed |= team->clients[m] ? (uint8_t)(1u << m) : 0;
	}
	to->taking_part = team->taking_part;
	to->said = team->said;
	to->outcome = (uint8_t)team->outcome;
	save_catching(to, g, team);
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
	to->begin_waits = node->begin_waits;
	to->begin_version = node->begin_waits ? (uint8_t)node->begin.version : 0;
	to->teams = to->going = to->absent = 0;
	memset(to->absent_state, 0, sizeof(to->absent_state));
	for (size_t i = 0; i < node->nteams; i++) {
		to->teams |= (uint8_t)(1u << node->teams[i]->group.part);
	}
	for (size_t i = 0; node->job_running && i < node->ngoing; i++) {
		to->going |= (uint8_t)(1u << node->going_teams[i]->group.part);
	}
	for (size_t i = 0; i < node->nabsent; i++) {
		to->absent |= (uint8_t)(1u << node->absent[i].part);
		to->absent_state[node->absent[i].part] = (uint8_t)node->absent[i].state;
	}
	/* What the last update has left means nothing before go … */
	if (node->stage == NODE_PLANNING || node->stage == NODE_ACCEPTED) {
		to->going = to->cancel = to->wire = 0;
	}
	/* … and this nothing between updates. */
	if (node->stage == NODE_IDLE) {
		to->wire = to->touched = to->cancel = to->deadline = to->version = 0;
		to->crew_dead = to->crew_freed = 0;
		to->epoch = node->begin_waits ? to->epoch : 0;
	}
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
	to->published = update->published[0];
	to->done = update->done[0];
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

void live_save(struct world *world)
{
	for (unsigned g = 0; g < config.ngroups; g++) {
		struct live *at = &live[config.node_of[g]];

		save_team(world, g);
		for (unsigned m = 0; m < config.members[g]; m++) {
			world->worker[g][m].session = (uint8_t)at->clients[g][m].session.state;
			world->worker[g][m].watched = at->clients[g][m].watch.active;
		}
	}
	for (unsigned n = 0; n < config.nodes; n++) {
		save_node(world, n);
	}
	save_update(world);
	world->member_state = (uint8_t)live[0].member.state;
	world->member_rank = (uint8_t)live[0].member.rank;
	world->member_there = live[0].server.members != NULL;
	if (!world->member_there) {
		world->member_state = world->member_rank = 0;
	}
	world->next_serial = (uint8_t)live[0].server.next_serial;
	world->next_serial_1 = config.nodes > 1 ? (uint8_t)(live[1].server.next_serial - 128u) : 0;
}
