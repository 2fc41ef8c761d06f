/*
 * What surrounds the machines: engines and their agents (thinly, after agent/worker_dispatch.c),
 * the memory that the mover writes, the connection between the brokers and the jobs' queue.
 */
#include "tests/explore/surround.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct world *now;
const char *violation;

void say_violation(const char *text)
{
	if (!violation) {
		violation = text;
	}
}

static _Noreturn void too_small(const char *what)
{
	fprintf(stderr, "explore: the model's room for %s is too small\n", what);
	abort();
}

/* What is sent to where nobody listens is lost, and what is sent behind an end of file. */
void post(struct w_letter letters[LETTERS], const struct w_letter *letter)
{
	if (letters == now->to_node ? !now->linked : !live[0].server.members) {
		return;
	}
	for (unsigned i = 0; i < LETTERS; i++) {
		if (letters[i].kind == LETTER_EOF) {
			return;
		}
		if (letters[i].kind == LETTER_NONE) {
			letters[i] = *letter;
			return;
		}
	}
	too_small("letters");
}

void tell(struct w_worker *worker, enum word_kind kind, uint8_t update)
{
	for (unsigned i = 0; i < WORDS; i++) {
		if (worker->words[i].kind == WORD_NONE) {
			worker->words[i].kind = (uint8_t)kind;
			worker->words[i].update = update;
			return;
		}
	}
	too_small("a worker's words");
}

struct w_job *job_add(unsigned n, enum job_kind kind)
{
	for (unsigned i = 0; i < JOBS; i++) {
		struct w_job *job = &now->node[n].jobs[i];

		if (job->kind == JOB_NONE) {
			job->kind = (uint8_t)kind;
			return job;
		}
	}
	too_small("jobs");
}

/* A resume was granted: the engine runs on what is there. */
static void check_grant(unsigned g, unsigned m)
{
	const struct w_worker *worker = &now->worker[g][m];
	const struct team *team = live_team(g);

	if (worker->partial) {
		say_violation("a resume was granted on memory that is written in part");
	}
	for (unsigned i = 0; i < config.members[g] && team; i++) {
		const struct w_worker *other = &now->worker[g][i];

		if (team->group.state == STREW_GROUP_CURRENT && other->stage == W_LIVE &&
			team->group.members[i].present &&
			(other->partial || other->content != worker->content)) {
			say_violation("a resume was granted, the group is CURRENT, and its members "
				      "hold different versions");
		}
	}
}

/* With such a state its engine does not go on by itself. */
static bool in_doubt(uint8_t state)
{
	return state == STREW_GROUP_PENDING || state == STREW_GROUP_DIRTY ||
	       state == STREW_GROUP_IN_DOUBT;
}

static void hears_answer(unsigned g, unsigned m, const struct message *message)
{
	struct w_worker *worker = &now->worker[g][m];

	if (worker->stage == W_LEAVING) {
		if (message->type == MSG_OK &&
			live[config.node_of[g]].clients[g][m].session.state == SESSION_OPEN) {
			worker->stage = W_NEW;
			worker->heard_state =
				worker->pending ? STREW_GROUP_PENDING : worker->heard_state;
			worker->running =
				config.gate[g] == STREW_GATE_LIVE || !in_doubt(worker->heard_state);
			worker->pending = worker->said_ready = worker->denied = 0;
		}
	} else if (message->type == MSG_OK) {
		check_grant(g, m);
		worker->running = 1;
		worker->asked = worker->said_ready = 0;
	} else {
		worker->asked = 0;
		worker->denied = 1;
	}
}

void worker_hears(unsigned g, unsigned m, const struct message *message)
{
	struct w_worker *worker = &now->worker[g][m];

	if (worker->stage == W_DEAD || worker->stage == W_NEW) {
		return;
	}
	switch (message->type) {
	case MSG_REGISTERED:
		worker->stage = W_LIVE;
		/* As worker_left(): a group that forms says nothing of this worker's memory. */
		if (message->u.registered.state != STREW_GROUP_FORMING ||
			message->u.registered.version) {
			worker->heard_state = (uint8_t)message->u.registered.state;
			worker->heard_version = (uint8_t)message->u.registered.version;
		}
		break;
	case MSG_CHECK:
		worker->pending = worker->stage == W_LIVE;
		tell(worker, WORD_CHECKED, (uint8_t)message->u.check.update);
		break;
	case MSG_HOLD:
		if (worker->stage == W_LIVE && config.gate[g] == STREW_GATE_HELD) {
			worker->pending = 1;
			worker->hold = !worker->said_ready;
		}
		break;
	case MSG_DONE:
		worker->pending = worker->hold = worker->denied = 0;
		worker->heard_state = (uint8_t)message->u.done.state;
		worker->heard_version = (uint8_t)message->u.done.version;
		break;
	case MSG_OK:
	case MSG_ERROR:
		hears_answer(g, m, message);
		break;
	default:
		break;
	}
}

/* As worker_state() of the agent when its broker is gone. */
uint8_t worker_belief(unsigned g, const struct w_worker *worker)
{
	if (!worker->pending) {
		return worker->heard_state;
	}
	if (config.gate[g] == STREW_GATE_HELD && !worker->said_ready) {
		return worker->heard_state;
	}
	return config.apply[g] == STREW_APPLY_DIRECT ? STREW_GROUP_DIRTY : STREW_GROUP_IN_DOUBT;
}

/* Its broker is gone. The engine goes on by itself unless it has reason to doubt its memory. */
void worker_loses_broker(unsigned g, unsigned m)
{
	struct w_worker *worker = &now->worker[g][m];
	uint8_t state;

	if (worker->stage == W_DEAD || worker->stage == W_NEW) {
		if (worker->stage == W_DEAD) {
			worker->content = worker->partial = 0;
			worker->shadow = worker->shadow_whole = 0;
		}
		memset(worker->words, 0, sizeof(worker->words));
		return;
	}
	state = worker_belief(g, worker);
	if (worker->partial && !in_doubt(state)) {
		say_violation("the broker is gone, and a worker takes memory that is written in "
			      "part for whole");
	}
	worker->stage = W_NEW;
	worker->heard_state =
		worker->pending && state == STREW_GROUP_CURRENT ? STREW_GROUP_STALE : state;
	if (!in_doubt(state)) {
		worker->running = 1;
	}
	worker->said_ready = worker->asked = worker->denied = worker->hold = worker->pending = 0;
	worker->shadow = worker->shadow_whole = 0;
	memset(worker->words, 0, sizeof(worker->words));
}

/* The mover writes into live memory. */
static void write_live(unsigned g, struct w_worker *worker, uint8_t content, bool whole)
{
	if (worker->stage == W_NEW) {
		say_violation("memory was written whose withdrawal was acknowledged");
	}
	if (config.gate[g] == STREW_GATE_HELD && worker->running && worker->stage != W_DEAD) {
		say_violation("live memory is written while the engine runs");
	}
	worker->partial = !whole;
	worker->fresh = 0;
	if (whole) {
		worker->content = content;
	}
}

/* What a sibling holds must stay as it was when the broker looked at it. */
static void check_source(const struct w_job *job)
{
	for (unsigned g = 0; g < config.ngroups; g++) {
		for (unsigned m = 0; m < config.members[g]; m++) {
			const struct w_worker *worker = &now->worker[g][m];

			if (!(job->from & (1u << (g * MEMBERS + m)))) {
				continue;
			}
			if (worker->stage == W_NEW) {
				say_violation("memory was read whose withdrawal was acknowledged");
			}
			if (worker->partial || worker->content != job->content) {
				say_violation("a group catches up from what is being written");
			}
		}
	}
}

static void catch_writes(const struct w_job *job, bool whole)
{
	const struct team *team = live_team(job->group);
	unsigned g = job->group;

	check_source(job);
	/* A lump that is not the last leaves it in part. */
	whole = whole && (job->step == CATCH_COMMIT || team->catching.job.lump + 1 >= LUMPS);
	for (unsigned m = 0; m < config.members[g]; m++) {
		struct w_worker *worker = &now->worker[g][m];

		if (!(job->workers & (1u << (g * MEMBERS + m)))) {
			continue;
		}
		if (job->step == CATCH_COMMIT) {
			if (!worker->shadow_whole) {
				say_violation("a commit copies a shadow that is not whole");
			}
			write_live(g, worker, worker->shadow, whole);
		} else if (config.apply[g] == STREW_APPLY_STAGED) {
			worker->shadow = job->content;
			worker->shadow_whole = whole;
		} else {
			write_live(g, worker, job->content, whole);
		}
	}
}

/* A job begins to write, or has written everything. */
void job_writes(const struct w_job *job, bool whole)
{
	uint8_t content = now->content_of[job->serial % 8];

	if (job->kind == JOB_CATCH) {
		catch_writes(job, whole);
		return;
	}
	for (unsigned g = 0; g < config.ngroups; g++) {
		for (unsigned m = 0; m < config.members[g]; m++) {
			struct w_worker *worker = &now->worker[g][m];

			if (!(job->workers & (1u << (g * MEMBERS + m)))) {
				continue;
			}
			if (job->kind == JOB_COMMIT) {
				if (!worker->shadow_whole || worker->shadow != content) {
					say_violation("a commit copies a shadow that is not whole");
				}
				write_live(g, worker, content, whole);
			} else if (config.apply[g] == STREW_APPLY_STAGED) {
				worker->shadow = content;
				worker->shadow_whole = whole;
			} else {
				write_live(g, worker, content, whole);
			}
		}
	}
}

/* The lead ends the connection to its member, as member_drop() in epoch.c. */
void member_drop(struct server *server)
{
	struct member *member = server->members;
	bool in_epoch = member->state == MEMBER_IN_EPOCH;
	bool counted = member->state != MEMBER_CONNECTED;
	uint32_t rank = member->rank;

	server->members = NULL;
	memset(now->to_lead, 0, sizeof(now->to_lead));
	post(now->to_node, &(struct w_letter){.kind = LETTER_EOF});
	if (in_epoch) {
		lead_member_lost(server, rank, "n");
	}
	if (counted) {
		epoch_changed(server);
	}
}

/* The joiner ends its connection to the lead, as link_down() in join.c. */
void link_down(void)
{
	struct server *server = &live[1].server;
	bool was_joined = server->lead.joined;

	memset(now->to_node, 0, sizeof(now->to_node));
	post(now->to_lead, &(struct w_letter){.kind = LETTER_EOF});
	now->linked = now->joined = 0;
	server->lead.joined = false;
	for (unsigned i = 0; i < JOBS; i++) {
		now->node[1].jobs[i].gone |= now->node[1].jobs[i].kind == JOB_EPOCH;
	}
	if (was_joined) {
		node_doubt(server);
	}
}
