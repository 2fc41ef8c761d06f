/* What happens to workers and to the mover's jobs: the glue of clients.c, as thin as it goes. */
#include "tests/explore/world.h"
#include <string.h>

static void step_member(struct client *client, enum group_event_type type)
{
	struct group_event event = {.type = type, .member = client->member, .text = "x"};

	if (client->team) {
		team_step(client->server, client->team, &event);
		node_advance(client->server);
	}
}

static void release_later(unsigned g, unsigned m)
{
	job_add(config.node_of[g], JOB_RELEASE)->workers = (uint8_t)(1u << (g * MEMBERS + m));
}

/* The memory of a process that is gone stays mapped, and is written and read, until its broker
 * hears of it; the next one in its place has other memory. */
static void forget_memory(unsigned g, unsigned m)
{
	struct w_worker *worker = &now->worker[g][m];
	struct w_node *node = &now->node[config.node_of[g]];
	uint8_t bit = (uint8_t)(1u << (g * MEMBERS + m));

	for (unsigned i = 0; i < JOBS; i++) {
		struct w_job *job = &node->jobs[i];

		if (job->kind == JOB_MOVE || job->kind == JOB_COMMIT || job->kind == JOB_SETTLE ||
			job->kind == JOB_CATCH) {
			job->workers &= (uint8_t)~bit;
			job->from &= (uint8_t)~bit;
		}
	}
	node->crew_dead |= live[config.node_of[g]].server.node.stage ? bit : 0;
	worker_unmapped(worker);
}

/* As client_drop(). */
static void client_gone(unsigned g, unsigned m)
{
	struct client *client = &live[config.node_of[g]].clients[g][m];
	enum session_state state = client->session.state;

	client->watch.active = false;
	for (unsigned i = 0; i < JOBS; i++) {
		struct w_job *job = &now->node[config.node_of[g]].jobs[i];

		if ((job->kind == JOB_IMPORT || job->kind == JOB_RELEASE) &&
			job->workers == (1u << (g * MEMBERS + m))) {
			job->gone = 1;
		}
	}
	client->session.state = SESSION_HELLO;
	if (now->worker[g][m].stage == W_DEAD) {
		forget_memory(g, m);
	}
	if (state >= SESSION_SEALED && state != SESSION_LEAVING) {
		team_leave(client, true);
		release_later(g, m);
	}
}

/* As take_pulled(). */
static void take_pulled(struct client *client, bool pulled, uint8_t update)
{
	struct group_event event = {.type = pulled ? GE_PULLED : GE_FAILED,
		.member = client->member,
		.touched = true,
		.text = "x"};

	if (client->team && client->team->group.update == update &&
		client->team->group.phase == PHASE_COMMITTING) {
		team_step(client->server, client->team, &event);
		node_advance(client->server);
	}
}

/* A worker's word reaches its broker: session.c judges it, clients.c carries it out. */
static void word_arrives(unsigned g, unsigned m)
{
	static const enum message_type types[] = {[WORD_CHECKED] = MSG_CHECKED,
		[WORD_UNFIT] = MSG_CHECKED,
		[WORD_PULLED] = MSG_APPLIED_ROUTE,
		[WORD_NOT_PULLED] = MSG_APPLIED_ROUTE,
		[WORD_IS_READY] = MSG_READY,
		[WORD_RESUME] = MSG_RESUME,
		[WORD_WITHDRAW] = MSG_WITHDRAW};
	struct w_worker *worker = &now->worker[g][m];
	struct client *client = &live[config.node_of[g]].clients[g][m];
	uint8_t kind = worker->words[0].kind, update = worker->words[0].update;
	enum session_verdict verdict;
	struct message message;
	struct error err;

	memmove(worker->words, worker->words + 1, (WORDS - 1) * sizeof(worker->words[0]));
	memset(&worker->words[WORDS - 1], 0, sizeof(worker->words[0]));
	if (kind == WORD_EOF) {
		client_gone(g, m);
		return;
	}
	message_init(&message, types[kind], 1);
	if (session_receive(&client->session, &message, "host", &verdict, &err)) {
		say_violation("a session refuses what its agent may say");
		return;
	}
	switch (verdict) {
	case VERDICT_CHECKED:
		if (client->team && client->team->group.update == update) {
			step_member(client, kind == WORD_CHECKED ? GE_CHECKED : GE_REFUSE);
		}
		break;
	case VERDICT_PULLED:
		take_pulled(client, kind == WORD_PULLED, update);
		break;
	case VERDICT_READY:
		client->watch.active = true;
		break;
	case VERDICT_RESUME:
		step_member(client, GE_RESUME);
		break;
	default:
		client->watch.active = false;
		team_leave(client, false);
		release_later(g, m);
		break;
	}
}

/* team_place(), and the import behind what the mover has. */
static void register_worker(unsigned g, unsigned m)
{
	struct w_worker *worker = &now->worker[g][m];
	struct client *client = &live[config.node_of[g]].clients[g][m];
	struct error err;

	if (team_place(client, &err)) {
		return; /* the one before has not been missed yet: asks again */
	}
	client->session.reg.state = worker->said_state = worker->heard_state;
	client->session.reg.version = worker->said_version = worker->heard_version;
	client->session.reg.update = worker->said_update = worker->heard_update;
	client->session.reg.holds = worker->said_holds = worker->holds;
	live[config.node_of[g]].words[g][m][WORD_WRITTEN] = WRITTEN_NONE;
	client->session.state = SESSION_SEALED;
	worker->stage = W_IMPORTING;
	job_add(config.node_of[g], JOB_IMPORT)->workers = (uint8_t)(1u << (g * MEMBERS + m));
}

static void find_slot(uint8_t workers, unsigned *ret_group, unsigned *ret_member)
{
	unsigned bit = (unsigned)__builtin_ctz(workers);

	*ret_group = bit / MEMBERS;
	*ret_member = bit % MEMBERS;
}

static void small_job_ends(unsigned n, const struct w_job *job)
{
	struct client *client;
	unsigned g, m;

	if (job->kind == JOB_EPOCH) {
		if (!job->gone) {
			struct epoch *epoch = &live[n].server.epoch;

			epoch->number = job->serial;
			epoch->ranks = 2;
			epoch->state = EPOCH_READY;
			post(now->to_lead, &(struct w_letter){.kind = LETTER_EPOCH_READY,
						   .epoch = job->serial});
		}
		return;
	}
	find_slot(job->workers, &g, &m);
	client = &live[n].clients[g][m];
	if (job->kind == JOB_RELEASE) {
		now->node[n].crew_freed |= live[n].server.node.stage ? job->workers : 0;
		if (!job->gone && client->session.state == SESSION_LEAVING) {
			client->session.state = SESSION_OPEN;
			client_ok(client, 2, 0);
		}
	} else if (!job->gone) {
		client->session.state = SESSION_LIVE;
		team_join(client);
	}
}

static void job_ends(unsigned n, bool failed)
{
	struct w_job *jobs = now->node[n].jobs;
	struct w_job job = jobs[0];

	job.failed = failed;
	if (!failed && (job.kind == JOB_MOVE || job.kind == JOB_COMMIT || job.kind == JOB_SETTLE ||
			       job.kind == JOB_CATCH)) {
		job_writes(&job, true);
	}
	if (job.kind == JOB_MOVE) {
		atomic_store(&live[n].server.node.move.touched, job.progress && job.workers);
	}
	memmove(jobs, jobs + 1, (JOBS - 1) * sizeof(*jobs));
	memset(&jobs[JOBS - 1], 0, sizeof(*jobs));
	if (job.kind == JOB_PLAN || job.kind == JOB_MOVE || job.kind == JOB_COMMIT) {
		job_done_call(n, &job);
	} else if (job.kind == JOB_SETTLE) {
		settle_done_call(n, &job);
	} else if (job.kind == JOB_CATCH) {
		catch_done_call(&job);
	} else {
		small_job_ends(n, &job);
	}
}

static void job_begins(unsigned n)
{
	struct w_job *job = &now->node[n].jobs[0];

	job->progress = JOB_BEGUN;
	if (job->kind == JOB_MOVE) {
		job_reads(job, n);
	}
	job_writes(job, false);
}

/* The mover has read and sent all that the ranks of its node hold. */
static void job_has_read(unsigned n)
{
	struct w_job *job = &now->node[n].jobs[0];

	job_reads(job, n);
	job->progress = JOB_READ;
	job->note_due = 1;
	now->sent_serial[n] = job->serial;
	now->sent_part[n] = job->part;
}

/* The process is gone, but for what it has sent, and for memory that is mapped. */
static void worker_forgets(struct w_worker *worker)
{
	struct w_worker dead = {.stage = W_DEAD, .running = 1};

	dead.session = worker->session;
	dead.watched = worker->watched;
	dead.said_state = worker->said_state;
	dead.said_version = worker->said_version;
	dead.said_update = worker->said_update;
	dead.said_holds = worker->said_holds;
	dead.written = worker->written;
	memcpy(dead.words, worker->words, sizeof(dead.words));
	if (worker->session) {
		memcpy(dead.content, worker->content, sizeof(dead.content));
		memcpy(dead.shadow, worker->shadow, sizeof(dead.shadow));
		dead.todo = worker->todo;
		dead.touched = worker->touched;
		dead.whole = worker->whole;
	}
	*worker = dead;
}

static void worker_dies(unsigned g, unsigned m)
{
	struct w_worker *worker = &now->worker[g][m];

	if (worker->stage == W_NEW) {
		forget_memory(g, m);
		live[config.node_of[g]].clients[g][m].session.state = SESSION_HELLO;
		memset(worker->words, 0, sizeof(worker->words));
		worker->session = 0;
	} else {
		tell(worker, WORD_EOF, 0);
	}
	worker_forgets(worker);
}

static void worker_pulls(unsigned g, unsigned m, enum word_kind word)
{
	struct w_worker *worker = &now->worker[g][m];

	if (word == WORD_PULLED) {
		worker_writes(g, m, true);
	}
	tell(worker, word, worker->apply_update);
	worker->applying = worker->apply_update = worker->apply_cells = 0;
	worker_reads_on(g, m);
}

/* What it has not read yet when it withdraws it does not do any more. */
static void worker_withdraws(unsigned g, unsigned m)
{
	struct w_worker *worker = &now->worker[g][m];

	worker->stage = W_LEAVING;
	worker->hold = worker->asked = 0;
	tell(worker, WORD_WITHDRAW, 0);
	if (worker->applying) {
		worker_pulls(g, m, WORD_NOT_PULLED);
	}
}

static void act_of_worker(struct act act)
{
	struct w_worker *worker = &now->worker[act.a][act.b];
	struct client *client = &live[config.node_of[act.a]].clients[act.a][act.b];

	switch (act.kind) {
	case ACT_WORD:
		word_arrives(act.a, act.b);
		break;
	case ACT_READY_HIT:
		client->watch.active = false;
		step_member(client, GE_READY);
		break;
	case ACT_WORKER_START:
		worker->stage = W_NEW;
		worker->fresh = 1;
		break;
	case ACT_REGISTER:
		register_worker(act.a, act.b);
		break;
	case ACT_READY:
		worker->hold = worker->running = 0;
		worker->said_ready = 1;
		tell(worker, WORD_IS_READY, 0);
		break;
	case ACT_RESUME:
	case ACT_EARLY_RESUME:
		worker->asked = 1;
		tell(worker, WORD_RESUME, 0);
		break;
	case ACT_WORKER_DIES:
		worker_dies(act.a, act.b);
		break;
	case ACT_PULL:
		worker->applying = APPLY_BEGUN;
		worker_writes(act.a, act.b, false);
		break;
	case ACT_PULLED:
	case ACT_PULL_FAILS:
		worker_pulls(act.a, act.b, act.kind == ACT_PULLED ? WORD_PULLED : WORD_NOT_PULLED);
		break;
	case ACT_WITHDRAW:
		worker_withdraws(act.a, act.b);
		break;
	case ACT_UNFIT:
		worker->words[0].kind = WORD_UNFIT;
		break;
	default:
		break;
	}
}

static void act_of_job(struct act act)
{
	struct w_job *job = &now->node[act.a].jobs[0];

	switch (act.kind) {
	case ACT_JOB_BEGIN:
		job_begins(act.a);
		break;
	case ACT_JOB_READ:
		job_has_read(act.a);
		break;
	case ACT_JOB_NOTED:
		job_note_call(act.a);
		break;
	case ACT_JOB_DONE:
		job_ends(act.a, false);
		break;
	case ACT_PLAN_UNFIT:
		job->errors = (uint8_t)(1u << act.b);
		job_ends(act.a, false);
		break;
	default:
		job_ends(act.a, true);
		break;
	}
}

static bool is_of_worker(struct act act)
{
	return (act.kind >= ACT_WORD && act.kind <= ACT_READY_HIT) ||
	       (act.kind >= ACT_WORKER_START && act.kind <= ACT_PULLED) ||
	       (act.kind >= ACT_WORKER_DIES && act.kind <= ACT_PULL_FAILS);
}

static bool is_of_job(struct act act)
{
	return (act.kind >= ACT_JOB_BEGIN && act.kind <= ACT_JOB_FAIL) ||
	       act.kind == ACT_JOB_BREAKS || act.kind == ACT_PLAN_UNFIT;
}

static bool is_of_rank(struct act act)
{
	return act.kind == ACT_STREAM_DONE ||
	       (act.kind >= ACT_TRAINER_START && act.kind <= ACT_PUT) ||
	       (act.kind >= ACT_TRAINER_DIES && act.kind <= ACT_WRONG_BASE);
}

/* As in every round of the loop: node_tick(), lead_tick(), catchup_look(). */
static void look(const struct world *world)
{
	for (unsigned n = 0; n < config.nodes; n++) {
		if (!world->node[n].alive) {
			continue;
		}
		if (live[n].server.node.begin_waits) {
			node_tick(&live[n].server, 0);
		}
		if (n == 0) {
			lead_ready(&live[0].server);
		}
		catchup_look(&live[n].server);
	}
}

const char *world_act(struct world *world, struct act act, bool loaded)
{
	uint8_t committed = world->node[0].committed;
	struct w_update before = world->update;

	now = world;
	violation = NULL;
	world->faults -= act.kind >= ACT_WORKER_DIES;
	world->updates -= act.kind == ACT_PUBLISH || act.kind == ACT_WRONG_BASE;
	if (!loaded) {
		live_load(world);
	}
	if (is_of_worker(act)) {
		act_of_worker(act);
	} else if (is_of_job(act)) {
		act_of_job(act);
	} else if (is_of_rank(act)) {
		act_of_rank(act);
	} else {
		act_of_broker(act);
	}
	look(world);
	if (live[0].model.update.state == UPDATE_ACCEPTING) {
		note_begin((uint8_t)live[0].model.update.serial);
	}
	note_decision(committed, &before, (uint8_t)live[0].model.committed);
	live_save(world);
	forget_decision();
	return violation;
}
