/*
 * What surrounds the machines: engines and their agents (thinly, after agent/worker_dispatch.c),
 * and the mover's queue.
 */
#include "plan/subset.h"
#include "tests/explore/world.h"
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

void too_small(const char *what)
{
	fprintf(stderr, "explore: the model's room for %s is too small\n", what);
	abort();
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

	if (worker->todo) {
		say_violation("a resume was granted on memory that is written in part");
	}
	for (unsigned i = 0; i < config.members[g] && team; i++) {
		const struct w_worker *other = &now->worker[g][i];
		uint8_t cells = cells_of(g, m, ALL_HALVES) & cells_of(g, i, ALL_HALVES);

		if (team->group.state != STREW_GROUP_CURRENT || other->stage != W_LIVE ||
			!team->group.members[i].present) {
			continue;
		}
		for (unsigned c = 0; c < CELLS; c++) {
			if (other->todo ||
				((cells >> c & 1) && other->content[c] != worker->content[c])) {
				say_violation("a resume was granted, the group is CURRENT, and its "
					      "members hold different versions");
			}
		}
	}
}

/* With such a state its engine does not go on by itself. */
static bool in_doubt(uint8_t state)
{
	return state == STREW_GROUP_PENDING || state == STREW_GROUP_DIRTY ||
	       state == STREW_GROUP_IN_DOUBT;
}

static void hears_answer(unsigned g, unsigned m, uint8_t type)
{
	struct w_worker *worker = &now->worker[g][m];

	if (worker->stage == W_LEAVING) {
		if (type == MSG_OK &&
			live[config.node_of[g]].clients[g][m].session.state == SESSION_OPEN) {
			worker->stage = W_NEW;
			worker->heard_state =
				worker->pending ? STREW_GROUP_PENDING : worker->heard_state;
			worker->running =
				config.gate[g] == STREW_GATE_LIVE || !in_doubt(worker->heard_state);
			if (worker->pending) {
				worker->heard_update = worker->pending_update;
				worker->holds = HOLDS_UNKNOWN;
			}
			worker->pending = worker->said_ready = worker->denied = 0;
			worker->whole = worker->touched = worker->pending_update = 0;
		}
	} else if (type == MSG_OK) {
		check_grant(g, m);
		worker->running = 1;
		worker->asked = worker->said_ready = 0;
	} else {
		worker->asked = 0;
		worker->denied = 1;
	}
}

/* What is written in part may still be finished, by a commit that is learnt late. */
static void hears_done(struct w_worker *worker, const struct w_heard *heard)
{
	worker->pending = worker->pending_update = worker->hold = worker->denied = 0;
	worker->touched = worker->todo ? worker->touched : 0;
	worker->heard_state = heard->state;
	worker->heard_version = heard->version;
	worker->heard_update = heard->update;
	worker->holds = heard->outcome == STREW_OUTCOME_COMMITTED ? HOLDS_ALL
			: heard->state == STREW_GROUP_DIRTY	  ? HOLDS_UNKNOWN
								  : HOLDS_NOTHING;
}

static void hears(unsigned g, unsigned m, const struct w_heard *heard)
{
	struct w_worker *worker = &now->worker[g][m];

	switch (heard->type) {
	case MSG_REGISTERED:
		worker->stage = W_LIVE;
		/* As worker_left(): what does not stand says nothing of this worker's memory. */
		if (heard->state != STREW_GROUP_FORMING && heard->state != STREW_GROUP_LOST) {
			worker->heard_state = heard->state;
			worker->heard_version = heard->version;
		}
		break;
	case MSG_CHECK:
		worker->pending = worker->stage == W_LIVE;
		worker->pending_update = worker->pending ? heard->update : 0;
		tell(worker, WORD_CHECKED, heard->update);
		break;
	case MSG_HOLD:
		if (worker->stage == W_LIVE && config.gate[g] == STREW_GATE_HELD) {
			worker->pending = 1;
			worker->pending_update = heard->update;
			worker->hold = !worker->said_ready;
		}
		break;
	case MSG_APPLY:
		if (worker->stage != W_LIVE) {
			tell(worker, WORD_NOT_PULLED, heard->update);
			break;
		}
		worker->applying = APPLY_TOLD;
		worker->apply_update = heard->update;
		worker->apply_cells = heard->state;
		break;
	case MSG_DONE:
		hears_done(worker, heard);
		break;
	case MSG_OK:
	case MSG_ERROR:
		hears_answer(g, m, heard->type);
		break;
	default:
		break;
	}
}

/* Of the tensors that its layout names, both, those that the update brings. */
static uint8_t cells_to_pull(unsigned g, unsigned m, const struct msg_apply *apply)
{
	uint8_t halves = ALL_HALVES;

	for (unsigned i = 0; i < HALVES && apply->nmissing; i++) {
		halves &= bits_has(apply->missing, i) ? (uint8_t) ~(1u << i) : ALL_HALVES;
	}
	return cells_of(g, m, halves) >> HALVES << HALVES;
}

void worker_hears(unsigned g, unsigned m, const struct message *message)
{
	struct w_worker *worker = &now->worker[g][m];
	struct w_heard heard = {.type = (uint8_t)message->type};
	unsigned n = 0;

	switch (message->type) {
	case MSG_REGISTERED:
		heard.state = (uint8_t)message->u.registered.state;
		heard.version = (uint8_t)message->u.registered.version;
		break;
	case MSG_CHECK:
		heard.update = (uint8_t)message->u.check.update;
		break;
	case MSG_HOLD:
		heard.update = (uint8_t)message->u.hold.update;
		break;
	case MSG_APPLY:
		heard.update = (uint8_t)message->u.apply.update;
		heard.state = cells_to_pull(g, m, &message->u.apply);
		break;
	case MSG_DONE:
		heard.state = (uint8_t)message->u.done.state;
		heard.version = (uint8_t)message->u.done.version;
		heard.update = (uint8_t)message->u.done.update;
		heard.outcome = (uint8_t)message->u.done.outcome;
		break;
	default:
		break;
	}
	if (worker->stage == W_DEAD || worker->stage == W_NEW) {
		return;
	}
	if (!worker->applying) {
		hears(g, m, &heard);
		return;
	}
	while (n < INBOX && worker->inbox[n].type) {
		n++;
	}
	if (n == INBOX) {
		too_small("what a worker hears");
	}
	worker->inbox[n] = heard;
}

void worker_reads_on(unsigned g, unsigned m)
{
	struct w_worker *worker = &now->worker[g][m];

	while (!worker->applying && worker->inbox[0].type) {
		struct w_heard heard = worker->inbox[0];

		memmove(worker->inbox, worker->inbox + 1, (INBOX - 1) * sizeof(heard));
		memset(&worker->inbox[INBOX - 1], 0, sizeof(heard));
		hears(g, m, &heard);
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

/* As worker_left() and worker_found(): that broker has ended, and its page is read. */
static void worker_finds(unsigned g, struct w_worker *worker, uint8_t belief)
{
	bool closed = config.gate[g] == STREW_GATE_HELD && !worker->said_ready;
	uint8_t heard = worker->heard_state;

	if (!worker->pending) {
		worker->heard_state = belief;
		return;
	}
	worker->heard_update = worker->pending_update;
	worker->holds =
		closed || worker->written != worker->pending_update ? HOLDS_NOTHING : HOLDS_SOME;
	if (worker->todo && worker->holds == HOLDS_NOTHING && heard != STREW_GROUP_DIRTY) {
		say_violation("the page of a broker that has ended says nothing of what it wrote");
	}
	worker->heard_state = worker->holds == HOLDS_SOME     ? belief
			      : heard == STREW_GROUP_CURRENT  ? STREW_GROUP_IN_DOUBT
			      : heard == STREW_GROUP_IN_DOUBT ? STREW_GROUP_STALE
							      : heard;
}

void worker_unmapped(struct w_worker *worker)
{
	memset(worker->content, 0, sizeof(worker->content));
	memset(worker->shadow, 0, sizeof(worker->shadow));
	worker->todo = worker->touched = worker->whole = 0;
}

/* Its broker is gone. The engine goes on by itself unless it has reason to doubt its memory. */
void worker_loses_broker(unsigned g, unsigned m)
{
	struct w_worker *worker = &now->worker[g][m];
	uint8_t state;

	if (worker->stage == W_DEAD) {
		worker_unmapped(worker);
	}
	if (worker->stage == W_DEAD || worker->stage == W_NEW) {
		memset(worker->words, 0, sizeof(worker->words));
		return;
	}
	/* What was said before the end is read before the end is seen. */
	while (worker->applying) {
		worker_writes(g, m, true);
		worker->applying = worker->apply_update = worker->apply_cells = 0;
		worker_reads_on(g, m);
	}
	state = worker_belief(g, worker);
	if (worker->todo && !in_doubt(state)) {
		say_violation("the broker is gone, and a worker takes memory that is written in "
			      "part for whole");
	}
	worker->stage = W_NEW;
	worker_finds(g, worker, state);
	if (!in_doubt(state)) {
		worker->running = 1;
	}
	worker->said_ready = worker->asked = worker->denied = worker->hold = worker->pending = 0;
	worker->whole = worker->touched = 0;
	memset(worker->shadow, 0, sizeof(worker->shadow));
	memset(worker->words, 0, sizeof(worker->words));
}
