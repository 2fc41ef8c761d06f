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

/* What time may write; the rest of the models stays as it is. */
#define MANY_REFERENCES 1000000u

struct live live[NODES];
struct client ranks[RANKS];

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

/* The tensors of the halves, and a worker with nothing in twins, and one with all of it. */
static struct manifest whole, half[HALVES];
static uint8_t bits[HALVES] = {1, 2};
static struct worker workers[2];
static struct holder holder;

static void add_tensor(struct manifest *manifest, unsigned h)
{
	struct tensor tensor = {
		.name = h ? "second" : "first", .dtype = STREW_F32, .ndim = 1, .shape = {1}};
	struct error err;
	uint32_t index;

	if (manifest_add_tensor(manifest, &tensor, &index, &err)) {
		abort();
	}
}

static void make_worker(struct worker *worker, bool pulls)
{
	static struct handle twin = {.pull = true};
	struct parameter parameter = {
		.name = "p", .dtype = STREW_F32, .ndim = 1, .shape = {2}, .stride = {1}};
	struct tensor tensor = {.dtype = STREW_F32, .ndim = 1, .shape = {1}};
	struct error err;
	uint32_t index;

	layout_init(&worker->layout);
	for (unsigned h = 0; h < HALVES; h++) {
		tensor.name = h ? "second" : "first";
		if (layout_add_tensor(&worker->layout, &tensor, &index, &err)) {
			abort();
		}
	}
	if (pulls) {
		worker->exports.handles = &twin;
		worker->exports.nhandles = 1;
		if (layout_add_parameter(&worker->layout, &parameter, &index, &err)) {
			abort();
		}
	}
}

static void make_tensors(void)
{
	if (whole.ntensors) {
		return;
	}
	manifest_init(&whole);
	manifest_init(&holder.declared);
	for (unsigned h = 0; h < HALVES; h++) {
		add_tensor(&whole, h);
		manifest_init(&half[h]);
		add_tensor(&half[h], h);
	}
	make_worker(&workers[0], false);
	make_worker(&workers[1], true);
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
	client->session.worker = &workers[config.pulls[g] >> m & 1];
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
	reg->state = worker->said_state;
	reg->version = worker->said_version;
	reg->update = worker->said_update;
	reg->holds = worker->said_holds;
	client->ours.words = at->words[g][m];
	at->words[g][m][WORD_WRITTEN] = worker->written ? worker->written : WRITTEN_NONE;
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
	group->doubt.update = from->doubt;
	group->doubt.prepared = from->doubt_prepared;
	group->doubt.current = from->doubt_current;
	group->settling = from->settling;
	for (unsigned m = 0; m < config.members[g]; m++) {
		struct group_member *member = &group->members[m];

		member->present = from->member[m].present;
		member->checked = from->member[m].checked;
		member->ready = from->member[m].ready;
		member->asking = from->member[m].asking;
		member->stale = from->member[m].stale;
		member->doubt = from->member[m].doubt;
		member->pulls = from->member[m].pulls;
		member->pulled = from->member[m].pulled;
		member->version = from->member[m].version == UINT8_MAX ? GROUP_VERSION_MIXED
								       : from->member[m].version;
		if (from->placed & (1u << m)) {
			team->clients[m] = &at->clients[g][m];
			at->clients[g][m].team = team;
		}
	}
	group->copied = from->copied;
	team->key = TEAM_KEY(g);
	team->settle_due = DEADLINE;
	team->taking_part = from->taking_part;
	team->said = from->said;
	team->outcome = (enum strew_outcome)from->outcome;
	load_catching(world, g, team);
	team->next = at->server.teams;
	at->server.teams = team;
}

static uint32_t flags_of(bool parts)
{
	return (config.scope_all ? STREW_PUBLISH_SCOPE_ALL : 0) | (parts ? PUBLISH_PARTS : 0);
}

static void load_begin(struct node *node, const struct w_node *from)
{
	node->begin_waits = from->begin_waits;
	node->begin_came = clock_ns();
	node->begin = (struct msg_begin){.epoch = from->begin_epoch,
		.update = from->begin_serial,
		.model = "m",
		.version = from->begin_version,
		.flags = flags_of(from->begin_parts),
		.timeout_ms = 60000,
		.roots = node->begin_roots,
		.nroots = config.nranks,
		.subset = from->begin_subset,
		.base = from->begin_base};
	for (unsigned r = 0; r < config.nranks; r++) {
		node->begin_roots[r] = config.rank_node[r];
	}
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
	node->subset = from->subset;
	node->base = from->base;
	node->part = from->part;
	node->flags = flags_of(from->parts);
	node->publication = !from->has_publication ? NULL
			    : from->subset	   ? &at->half[from->subset - 1]
						   : &at->publication;
	node->moving = from->moving ? &at->half[from->moving - 1] : NULL;
	node->wanted.n = node->slot_types.n = 0;
	for (unsigned r = 0; r < config.nranks; r++) {
		node->roots[r] = config.rank_node[r];
	}
	load_begin(node, from);
	node->job_running = from->job_running;
	node->touched = from->touched;
	atomic_store(&node->move.cancel, from->cancel);
	text_set(node->abort_text, true);
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

	update->nranks = config.nranks;
	update->state = (enum update_state)from->state;
	update->serial = from->serial;
	update->version = from->version;
	update->flags = (config.scope_all ? STREW_PUBLISH_SCOPE_ALL : 0) |
			(from->parts ? PUBLISH_PARTS : 0);
	update->parts = from->parts;
	update->part = from->part;
	update->put = from->put;
	update->next_said = from->next_said;
	update->next = from->next;
	update->subset = from->subset;
	update->base = from->base;
	update->deadline_ns = DEADLINE;
	for (unsigned r = 0; r < config.nranks; r++) {
		update->published[r] = from->published >> r & 1;
		update->done[r] = from->done >> r & 1;
	}
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

void live_name_brokers(const struct world *world, unsigned n)
{
	uint8_t born[NODES] = {world->node[0].born, n ? world->node[1].born : world->member_born};

	for (unsigned r = 0; r < config.nranks; r++) {
		live[n].brokers[r] = broker_of(config.rank_node[r], born[config.rank_node[r]]);
	}
}

/* What is published: everything, and each half by itself. */
static void load_publication(struct live *at, unsigned n, struct publication *publication,
	const struct manifest *manifest)
{
	*publication = (struct publication){.model = "m",
		.references = MANY_REFERENCES,
		.manifest = *manifest,
		.brokers = at->brokers,
		.roots = at->roots,
		.nroots = config.nranks,
		.own_root = ROOT_NONE,
		.holders = at->holders};
	for (unsigned r = config.nranks; r-- > 0;) {
		bool here = config.rank_node[r] == n;

		at->holders[r] = here ? &holder : NULL;
		at->roots[r] = r && config.rank_node[r] == config.rank_node[0] ? 0 : r;
		publication->own_root = here ? at->roots[r] : publication->own_root;
		publication->elsewhere = publication->elsewhere || !here;
	}
}

static void load_model(struct live *at, const struct world *world, unsigned n)
{
	const struct w_node *from = &world->node[n];
	struct model *model = &at->model;

	make_tensors();
	live_name_brokers(world, n);
	load_publication(at, n, &at->publication, &whole);
	for (unsigned h = 0; h < HALVES; h++) {
		load_publication(at, n, &at->half[h], &half[h]);
		at->subset[h] = (struct subset){&at->half[h], &bits[h]};
		model->subsets[h] = &at->subset[h];
	}
	strcpy(model->name, "m");
	model->committed = from->committed;
	model->doubted = from->doubted;
	model->decided = from->knows;
	model->leaving_serial = from->leaving;
	model->publication = from->announced ? &at->publication : NULL;
	model->nsubsets = from->announced ? HALVES : 0;
	model->ranks = 0;
}

/* Their clients at this broker, and their seats; the lead has a seat for each rank elsewhere too.
 */
static void load_ranks(struct live *at, const struct world *world, unsigned n)
{
	at->server.clients = NULL;
	for (unsigned r = config.nranks; r-- > 0;) {
		const struct w_rank *from = &world->rank[r];
		struct client *client = &ranks[r];
		struct seat *seat = &at->model.seats[r];

		memset(seat, 0, sizeof(*seat));
		if (config.rank_node[r] != n) {
			if (!n && from->seat.there) {
				seat->member = &at->member;
				seat->ready = from->seat.ready;
				seat->answered = from->seat.answered;
				seat->declare_serial = from->seat.declare;
				seat->publish_serial = from->seat.publish;
				at->model.ranks = config.nranks;
			}
			continue;
		}
		client->server = &at->server;
		client->session.state = SESSION_LIVE;
		client->session.holder = &holder;
		client->session.trainer.rank = r;
		client->session.trainer.ranks = config.nranks;
		strcpy(client->session.trainer.model, "m");
		client->watch.active = from->streaming;
		client->watch.data = client;
		client->gone = !from->seated;
		client->model = NULL;
		client->declared = from->told.answered;
		client->told = (struct told){.declare_serial = from->told.declare,
			.declared = from->told.declared,
			.publish_serial = from->told.publish,
			.request_serial = from->told.publish ? 3 : 0,
			.version = from->told.version,
			.taken = from->told.taken,
			.put_serial = from->told.put,
			.put_request = 4,
			.lent = from->told.lent,
			.committed = from->told.committed,
			.abandoned = from->told.abandoned,
			.prepared = from->told.prepared};
		client->next = at->server.clients;
		at->server.clients = client;
		if (from->seated) {
			client->model = &at->model;
			seat->client = client;
			seat->ready = true;
			at->model.ranks = config.nranks;
		}
	}
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
	server->broker_id = broker_of(n, from->born);
	server->next_key = FIRST_KEY;
	load_model(at, world, n);
	load_ranks(at, world, n);
	server->models = &at->model;
	server->epoch.state = (enum epoch_state)from->epoch_state;
	server->epoch.number = from->epoch_number;
	server->epoch.ranks = from->epoch_ranks;
	server->epoch.rank = n;
	server->epoch.brokers[0] = broker_of(0, from->epoch_lead);
	server->epoch.brokers[1] = broker_of(1, world->node[1].born);
	server->next_serial = n ? 128u + world->node_serial : world->next_serial;
	/* Who is alone in its replica only the lead of several nodes knows. */
	server->options.listen = n ? NULL : "x";
	server->options.join = n ? "x" : NULL;
	server->lead.joined = n && world->joined;
	server->lead.next_serial = n ? world->link_serial : 0;
	member->server = server;
	member->state = (enum member_state)world->member_state;
	member->rank = world->member_rank;
	member->join.broker_id = broker_of(1, world->member_born);
	server->members = !n && world->member_there ? member : NULL;
	load_recalls(at, world, n);
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
