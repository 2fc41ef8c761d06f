/*
 * The trainer ranks: what they ask their brokers for, after agent/trainer_publish.c and
 * agent/trainer_parts.c, and what they may rely on. All ranks publish the same, one round after
 * another; in parts both halves, each made in the same memory when the one before was released.
 */
#include "strew/trainer.h"
#include "tests/explore/world.h"
#include <errno.h>
#include <string.h>

#define CLOSED (HALVES + 1)

/* Our numbers of the requests: none waits beside another of its kind. */
#define SERIAL_PUBLISH 3u
#define SERIAL_PUT 4u

uint8_t round_halves(uint8_t kind)
{
	return kind == PUBLISH_FIRST ? 1 : kind == PUBLISH_SECOND ? 2 : ALL_HALVES;
}

bool node_has_rank(unsigned n)
{
	for (unsigned r = 0; r < config.nranks; r++) {
		if (config.rank_node[r] == n) {
			return true;
		}
	}
	return false;
}

static bool is_idle(const struct world *world, unsigned r)
{
	const struct w_rank *rank = &world->rank[r];

	return rank->seated && rank->told.answered && !rank->publishing && !rank->asked;
}

/* A new round begins when the last one is over for all. */
bool rank_may_start(const struct world *world, unsigned r)
{
	for (unsigned i = 0; i < config.nranks; i++) {
		if (!is_idle(world, i)) {
			return false;
		}
	}
	return world->updates && world->node[0].alive && world->node[0].announced &&
	       is_idle(world, r);
}

bool rank_may_follow(const struct world *world, unsigned r)
{
	return world->round && is_idle(world, r) && world->rank[r].round != world->round;
}

bool rank_may_put(const struct world *world, unsigned r)
{
	const struct w_rank *rank = &world->rank[r];

	return rank->publishing && world->round_kind == PUBLISH_IN_PARTS && !rank->lent &&
	       !rank->asked && !rank->gave_up && rank->puts < CLOSED;
}

static void forget(struct w_rank *rank)
{
	rank->publishing = rank->version = rank->puts = rank->memory = 0;
	rank->lent = rank->asked = rank->gave_up = 0;
}

/* What the lead knows of a rank elsewhere goes with that broker's connection. */
void rank_loses_broker(unsigned r)
{
	struct w_rank lost = {.round = now->round};

	if (config.rank_node[r]) {
		lost.seat = now->rank[r].seat;
	}
	now->rank[r] = lost;
}

void rank_hears(unsigned r, const struct message *message)
{
	struct w_rank *rank = &now->rank[r];
	const struct w_job *jobs = now->node[config.rank_node[r]].jobs;

	/* What came before the answer to its publish is not its. */
	if (!rank->publishing || rank->asked == ASKED_PUBLISH) {
		return;
	}
	if (message->type == MSG_RELEASED && message->u.released.version == rank->version) {
		if (jobs->kind == JOB_MOVE && jobs->progress == JOB_BEGUN && rank->lent &&
			!(jobs->gone >> r & 1)) {
			say_violation("the trainer's memory was released while it is read");
		}
		rank->lent = 0;
	} else if (message->type == MSG_REPORT && message->u.report.version == rank->version) {
		if (rank->lent) {
			say_violation("an update was reported whose memory was not released");
		}
		if (rank->asked) {
			say_violation("an update was reported, and a put of it was not answered");
		}
		/* LOST is no word of a group that has it: the next lead may settle it as an abort.
		 */
		if (message->u.report.outcome == STREW_OUTCOME_COMMITTED ||
			message->u.report.outcome == STREW_OUTCOME_SAT_OUT) {
			now->reported = rank->publishing;
		}
		forget(rank);
	}
}

/* code 0: ok */
void rank_answered(unsigned r, int code)
{
	struct w_rank *rank = &now->rank[r];
	uint8_t asked = rank->asked;

	rank->asked = ASKED_NOTHING;
	if (asked == ASKED_NOTHING) {
		say_violation("a rank was answered that has asked nothing");
	} else if (code == 0 && asked == ASKED_WRONGLY) {
		/* Taken: what comes of it is to be seen. */
	} else if (code && asked == ASKED_PUBLISH) {
		forget(rank);
	} else if (code) {
		rank->lent = 0;
		if (asked == ASKED_PUT && code != -ESTALE) {
			say_violation("a put was refused that may come");
		}
		if (asked == ASKED_PUT) {
			rank->puts--;
			rank->gave_up = 1;
		}
	}
}

static void send_publish(unsigned r)
{
	struct server *server = ranks[r].server;
	struct w_rank *rank = &now->rank[r];
	struct message message;

	message_init(&message, MSG_PUBLISH, SERIAL_PUBLISH);
	message.u.publish.version = now->round_version;
	message.u.publish.flags = config.scope_all ? STREW_PUBLISH_SCOPE_ALL : 0;
	message.u.publish.base = now->round_base;
	if (now->round_kind == PUBLISH_IN_PARTS) {
		message.u.publish.flags |= PUBLISH_PARTS;
		message.u.publish.subset = 1;
	} else if (now->round_kind != PUBLISH_WHOLE) {
		message.u.publish.subset = now->round_kind == PUBLISH_FIRST ? 1 : 2;
	}
	rank->round = rank->publishing = now->round;
	rank->version = now->round_version;
	rank->memory = now->round_kind == PUBLISH_IN_PARTS ? 1 : 0;
	if (now->round_kind == PUBLISH_FIRST || now->round_kind == PUBLISH_SECOND) {
		rank->memory = 0; /* a subset's move is of all that its publication has */
	}
	rank->puts = rank->lent = 1;
	rank->asked = ASKED_PUBLISH;
	if (server_is_lead(server)) {
		lead_publish(&ranks[r], &message);
	} else {
		ranks_publish(&ranks[r], &message);
	}
}

static void start_round(unsigned r, uint8_t kind, bool wrong_base)
{
	now->round++;
	now->round_kind = kind;
	now->round_version = now->decided_version + 1;
	now->round_base = now->decided_version;
	now->round_base -= wrong_base;
	send_publish(r);
}

static void send_put(unsigned r, uint8_t subset, enum rank_asked asked)
{
	struct server *server = ranks[r].server;
	struct w_rank *rank = &now->rank[r];
	struct message message;

	message_init(&message, MSG_PUT, SERIAL_PUT);
	message.u.put.version = now->round_version;
	message.u.put.subset = subset;
	rank->asked = (uint8_t)asked;
	rank->lent = subset != 0;
	rank->memory = subset ? subset : rank->memory;
	if (server_is_lead(server)) {
		lead_put(&ranks[r], &message);
	} else {
		ranks_put(&ranks[r], &message);
	}
}

static void put_next(unsigned r)
{
	struct w_rank *rank = &now->rank[r];

	rank->puts++;
	send_put(r, rank->puts == CLOSED ? 0 : rank->puts, ASKED_PUT);
}

/* It has not heard that its update has ended; what it puts then is refused. */
static void put_late(unsigned r)
{
	send_put(r, HALVES, ASKED_WRONGLY);
	if (now->rank[r].asked || now->rank[r].lent) {
		say_violation("a put after the end was not refused");
	}
	now->rank[r].asked = now->rank[r].lent = now->rank[r].memory = 0;
}

/* Its connection ends, as client_drop(). */
static void rank_dies(unsigned r)
{
	struct w_node *node = &now->node[config.rank_node[r]];
	struct client *client = &ranks[r];

	for (unsigned i = 0; i < JOBS; i++) {
		node->jobs[i].gone |= node->jobs[i].kind == JOB_MOVE ? (uint8_t)(1u << r) : 0;
	}
	node->ranks_dead |= (uint8_t)(1u << r);
	rank_loses_broker(r);
	client->gone = true;
	mover_unwatch(client->server->mover, &client->watch);
	rank_gone(client);
	memset(&client->told, 0, sizeof(client->told));
	client->declared = false;
}

/* As import() and imported(). */
static void rank_starts(unsigned r)
{
	struct client *client = &ranks[r];
	struct error err;

	now->rank[r].round = now->round;
	client->gone = false;
	if (rank_place(client, &err)) {
		say_violation("a trainer rank finds its place taken");
		return;
	}
	rank_mapped(client);
}

void act_of_rank(struct act act)
{
	struct client *client = &ranks[act.a];

	switch (act.kind) {
	case ACT_STREAM_DONE:
		client->watch.active = false;
		client->watch.hit(&client->watch);
		break;
	case ACT_TRAINER_START:
		rank_starts(act.a);
		break;
	case ACT_PUBLISH:
	case ACT_WRONG_BASE:
		start_round(act.a, act.b, act.kind == ACT_WRONG_BASE);
		break;
	case ACT_FOLLOW:
		send_publish(act.a);
		break;
	case ACT_PUT:
		put_next(act.a);
		break;
	case ACT_PUT_AGAIN:
		send_put(act.a, 1, ASKED_WRONGLY);
		break;
	case ACT_CLOSE_EARLY:
		send_put(act.a, 0, ASKED_WRONGLY);
		break;
	case ACT_PUT_LATE:
		put_late(act.a);
		break;
	default:
		rank_dies(act.a);
		break;
	}
}
