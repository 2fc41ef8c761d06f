/* Which acts may come next. */
#include "tests/explore/world.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct list {
	struct act *v;
	unsigned n;
};

static void add(struct list *list, enum act_kind kind, unsigned a, unsigned b)
{
	if (list->n == ACTS) {
		fprintf(stderr, "explore: the model's room for acts is too small\n");
		abort();
	}
	list->v[list->n++] = (struct act){(uint8_t)kind, (uint8_t)a, (uint8_t)b};
}

/* What the other roots send. */
static bool has_received(const struct world *world, unsigned n, const struct w_job *job)
{
	unsigned other = 1 - n;

	return !job->wire || config.nodes == 1 || !node_has_rank(other) ||
	       (world->sent_serial[other] == job->serial && world->sent_part[other] == job->part);
}

static void add_job(const struct world *world, unsigned n, struct list *list)
{
	const struct w_job *job = &world->node[n].jobs[0];

	switch (job->kind) {
	case JOB_NONE:
		break;
	case JOB_MOVE:
		if (job->progress == JOB_QUEUED) {
			add(list, ACT_JOB_BEGIN, n, 0);
		} else if (node_has_rank(n) && job->progress == JOB_BEGUN) {
			add(list, ACT_JOB_READ, n, 0);
		} else if (has_received(world, n, job)) {
			add(list, ACT_JOB_DONE, n, 0);
		}
		if (job->note_due) {
			add(list, ACT_JOB_NOTED, n, 0);
		}
		if (world->node[n].cancel) {
			add(list, ACT_JOB_FAIL, n, 0);
		}
		break;
	case JOB_COMMIT:
	case JOB_SETTLE:
	case JOB_CATCH:
		if (job->kind == JOB_CATCH && job->step == CATCH_PLAN) {
			add(list, ACT_JOB_DONE, n, 0);
			break;
		}
		add(list, job->progress == JOB_QUEUED ? ACT_JOB_BEGIN : ACT_JOB_DONE, n, 0);
		break;
	default:
		add(list, ACT_JOB_DONE, n, 0);
		break;
	}
}

static void add_worker(const struct world *world, unsigned g, unsigned m, struct list *list)
{
	const struct w_worker *worker = &world->worker[g][m];
	bool served = world->node[config.node_of[g]].alive;

	if (served && worker->words[0].kind) {
		add(list, ACT_WORD, g, m);
	}
	if (served && worker->watched) {
		add(list, ACT_READY_HIT, g, m);
	}
	if (worker->stage == W_DEAD && !worker->words[0].kind && !worker->session) {
		add(list, ACT_WORKER_START, g, m);
	}
	if (served && worker->stage == W_NEW && !worker->words[0].kind) {
		add(list, ACT_REGISTER, g, m);
	}
	if (worker->stage == W_LIVE && worker->hold && !worker->said_ready) {
		add(list, ACT_READY, g, m);
	}
	if (worker->stage == W_LIVE && worker->applying) {
		add(list, worker->applying == APPLY_TOLD ? ACT_PULL : ACT_PULLED, g, m);
	}
	if (worker->stage == W_LIVE && !worker->running && !worker->asked && !worker->denied &&
		!worker->pending) {
		add(list, ACT_RESUME, g, m);
	}
}

static void add_rank(const struct world *world, unsigned r, struct list *list)
{
	if (!world->node[config.rank_node[r]].alive) {
		return;
	}
	if (!world->rank[r].seated) {
		add(list, ACT_TRAINER_START, r, 0);
	}
	if (world->rank[r].streaming) {
		add(list, ACT_STREAM_DONE, r, 0);
	}
	if (rank_may_follow(world, r)) {
		add(list, ACT_FOLLOW, r, 0);
	}
	if (rank_may_put(world, r)) {
		add(list, ACT_PUT, r, 0);
	}
}

static void add_brokers(const struct world *world, struct list *list)
{
	const struct w_node *lead = &world->node[0];

	if (lead->alive && lead->epoch_state == EPOCH_GATHERING && !world->update.active &&
		lead->stage == NODE_IDLE) {
		add(list, ACT_EPOCH, 0, 0);
	}
	for (unsigned r = 0; r < config.nranks; r++) {
		add_rank(world, r, list);
	}
	if (config.nodes > 1) {
		bool quiet = !world->to_node[0].kind && !world->to_lead[0].kind;

		if (world->node[1].alive && world->to_node[0].kind) {
			add(list, ACT_LETTER_TO_NODE, 0, 0);
		}
		if (lead->alive && world->to_lead[0].kind) {
			add(list, ACT_LETTER_TO_LEAD, 0, 0);
		}
		if (lead->alive && world->node[1].alive && !world->linked && !world->member_there &&
			quiet) {
			add(list, ACT_CONNECT, 0, 0);
		}
	}
	for (unsigned n = 0; n < config.nodes; n++) {
		if (!world->node[n].alive) {
			add(list, ACT_BROKER_START, n, 0);
		} else {
			add_job(world, n, list);
		}
	}
}

static bool lead_waits(const struct world *world)
{
	return world->node[0].alive && world->update.state != UPDATE_IDLE;
}

static bool node_waits(const struct w_node *node)
{
	return node->alive &&
	       (node->stage == NODE_PLANNING || node->stage == NODE_MOVING ||
		       node->stage == NODE_COMMITTING) &&
	       !node->job_running && node->deadline != 3;
}

/* An engine's gate, a check, or a worker's own copy, for a commit that was learnt late. */
static bool settle_waits(const struct world *world, unsigned n)
{
	for (unsigned g = 0; g < config.ngroups; g++) {
		const struct w_group *group = &world->group[g];

		if (config.node_of[g] == n && group->settling &&
			(group->phase != PHASE_COMMITTING || group->copied)) {
			return true;
		}
	}
	return false;
}

static void add_timers(const struct world *world, bool late, struct list *list)
{
	if (lead_waits(world)) {
		add(list, late ? ACT_LEAD_LATE : ACT_LEAD_TIMER, 0, 0);
	}
	for (unsigned n = 0; n < config.nodes; n++) {
		if (node_waits(&world->node[n]) || settle_waits(world, n)) {
			add(list, late ? ACT_NODE_LATE : ACT_NODE_TIMER, n, 0);
		}
		if (catch_waits(world, n)) {
			add(list, late ? ACT_CATCH_LATE : ACT_CATCH_TIMER, n, 0);
		}
	}
}

static void add_worker_faults(const struct world *world, unsigned g, unsigned m, struct list *list)
{
	const struct w_worker *worker = &world->worker[g][m];

	if (worker->stage != W_DEAD) {
		add(list, ACT_WORKER_DIES, g, m);
	}
	if (worker->stage == W_LIVE && worker->applying != APPLY_BEGUN) {
		add(list, ACT_WITHDRAW, g, m);
	}
	if (worker->words[0].kind == WORD_CHECKED) {
		add(list, ACT_UNFIT, g, m);
	}
	if (worker->stage == W_LIVE && worker->said_ready && worker->pending && !worker->asked) {
		add(list, ACT_EARLY_RESUME, g, m);
	}
	if (worker->stage == W_LIVE && worker->applying) {
		add(list, ACT_PULL_FAILS, g, m);
	}
}

static void add_rank_faults(const struct world *world, unsigned r, struct list *list)
{
	const struct w_rank *rank = &world->rank[r];

	if (!rank->seated || !world->node[config.rank_node[r]].alive) {
		return;
	}
	add(list, ACT_TRAINER_DIES, r, 0);
	if (rank_may_put(world, r)) {
		add(list, ACT_PUT_AGAIN, r, 0);
		if (rank->puts < HALVES) {
			add(list, ACT_CLOSE_EARLY, r, 0);
		}
	}
	if (world->round_kind == PUBLISH_IN_PARTS && world->round && !rank->publishing &&
		!rank->asked) {
		add(list, ACT_PUT_LATE, r, 0);
	}
	if (rank_may_start(world, r) && world->decided_version && (config.publish & 2)) {
		add(list, ACT_WRONG_BASE, r, PUBLISH_FIRST);
	}
}

static void add_connection_faults(const struct world *world, struct list *list)
{
	if (world->linked && world->member_there && world->to_node[0].kind != LETTER_EOF) {
		add(list, ACT_CUT, 0, 0);
	}
	if (world->member_there && world->node[0].alive) {
		add(list, ACT_LEAD_DROPS, 0, 0);
	}
	if (world->linked && world->node[1].alive && world->joined) {
		add(list, ACT_NODE_DROPS, 0, 0);
	}
}

static void add_faults(const struct world *world, struct list *list)
{
	for (unsigned g = 0; g < config.ngroups; g++) {
		for (unsigned m = 0; m < config.members[g]; m++) {
			add_worker_faults(world, g, m, list);
		}
	}
	for (unsigned n = 0; n < config.nodes; n++) {
		const struct w_job *job = &world->node[n].jobs[0];

		if (!world->node[n].alive) {
			continue;
		}
		add(list, ACT_BROKER_DIES, n, 0);
		if (n == 0 && world->to_node[0].kind && world->to_node[0].kind != LETTER_EOF) {
			add(list, ACT_BROKER_DIES, n, 1); /* and its last words are lost */
		}
		if (job->kind == JOB_PLAN || job->kind == JOB_MOVE || job->kind == JOB_COMMIT ||
			job->kind == JOB_SETTLE || job->kind == JOB_CATCH) {
			add(list, ACT_JOB_BREAKS, n, 0);
		}
		for (unsigned g = 0; g < config.ngroups && job->kind == JOB_PLAN; g++) {
			if (world->node[n].teams & (1u << g)) {
				add(list, ACT_PLAN_UNFIT, n, g);
			}
		}
	}
	for (unsigned r = 0; r < config.nranks; r++) {
		add_rank_faults(world, r, list);
	}
	add_connection_faults(world, list);
	add_timers(world, true, list);
}

unsigned world_acts(const struct world *world, struct act ret_acts[ACTS])
{
	struct list list = {.v = ret_acts};
	bool busy;

	for (unsigned g = 0; g < config.ngroups; g++) {
		for (unsigned m = 0; m < config.members[g]; m++) {
			add_worker(world, g, m, &list);
		}
	}
	add_brokers(world, &list);
	busy = list.n > 0;
	/* A deadline passes when nothing else happens any more; before that it is a fault. */
	if (!busy) {
		add_timers(world, false, &list);
	}
	for (unsigned r = 0; r < config.nranks; r++) {
		for (unsigned kind = 0; kind < PUBLISH_KINDS && rank_may_start(world, r); kind++) {
			if (config.publish >> kind & 1) {
				add(&list, ACT_PUBLISH, r, kind);
			}
		}
	}
	if (world->faults) {
		unsigned before = list.n;

		add_faults(world, &list);
		if (!busy) {
			/* Those deadlines are there already. */
			unsigned n = before;

			for (unsigned i = before; i < list.n; i++) {
				if (ret_acts[i].kind != ACT_LEAD_LATE &&
					ret_acts[i].kind != ACT_NODE_LATE &&
					ret_acts[i].kind != ACT_CATCH_LATE) {
					ret_acts[n++] = ret_acts[i];
				}
			}
			list.n = n;
		}
	}
	return list.n;
}

void act_say(struct act act, const struct world *before, char *buf, size_t size)
{
	static const char *const names[ACT_KINDS] = {[ACT_LETTER_TO_NODE] = "node 1 hears",
		[ACT_LETTER_TO_LEAD] = "the lead hears",
		[ACT_WORD] = "its broker hears worker",
		[ACT_READY_HIT] = "the ready word is seen of worker",
		[ACT_STREAM_DONE] = "its stream is done: trainer rank",
		[ACT_PULL] = "begins to copy out of its twins: worker",
		[ACT_PULLED] = "has copied out of its twins: worker",
		[ACT_JOB_BEGIN] = "the mover begins on node",
		[ACT_JOB_READ] = "the trainer's memory was read on node",
		[ACT_JOB_NOTED] = "that is noted on node",
		[ACT_JOB_DONE] = "the mover is done on node",
		[ACT_JOB_FAIL] = "the mover gives up on node",
		[ACT_EPOCH] = "the lead makes an epoch",
		[ACT_CONNECT] = "node 1 connects to the lead",
		[ACT_WORKER_START] = "a new process is worker",
		[ACT_REGISTER] = "registers: worker",
		[ACT_READY] = "holds its gate: worker",
		[ACT_RESUME] = "asks to resume: worker",
		[ACT_TRAINER_START] = "declares: trainer rank",
		[ACT_PUBLISH] = "begins to publish: trainer rank",
		[ACT_FOLLOW] = "publishes the same: trainer rank",
		[ACT_PUT] = "puts the next part, or closes: trainer rank",
		[ACT_BROKER_START] = "a new broker on node",
		[ACT_LEAD_TIMER] = "the update's deadline passes",
		[ACT_NODE_TIMER] = "the gate's deadline passes on node",
		[ACT_CATCH_TIMER] = "a resume has waited too long on node",
		[ACT_WORKER_DIES] = "FAULT dies: worker",
		[ACT_WITHDRAW] = "FAULT withdraws: worker",
		[ACT_UNFIT] = "FAULT is not as registered: worker",
		[ACT_EARLY_RESUME] = "FAULT asks to resume early: worker",
		[ACT_PULL_FAILS] = "FAULT cannot copy out of its twins: worker",
		[ACT_TRAINER_DIES] = "FAULT dies: trainer rank",
		[ACT_PUT_AGAIN] = "FAULT puts the first part again: trainer rank",
		[ACT_CLOSE_EARLY] = "FAULT closes before it has put all: trainer rank",
		[ACT_PUT_LATE] = "FAULT puts after the end: trainer rank",
		[ACT_WRONG_BASE] = "FAULT publishes a subset on an old base: trainer rank",
		[ACT_BROKER_DIES] = "FAULT the broker dies on node",
		[ACT_CUT] = "FAULT the connection is cut",
		[ACT_LEAD_DROPS] = "FAULT the lead gives node 1 up",
		[ACT_NODE_DROPS] = "FAULT node 1 gives the lead up",
		[ACT_LEAD_LATE] = "FAULT the update's deadline passes early",
		[ACT_NODE_LATE] = "FAULT the gate's deadline passes early on node",
		[ACT_CATCH_LATE] = "FAULT a resume has waited too long, early, on node",
		[ACT_JOB_BREAKS] = "FAULT the mover fails on node",
		[ACT_PLAN_UNFIT] = "FAULT no plan can be made on node"};
	static const char *const letters[LETTER_KINDS] = {"", "join", "joined", "manifest",
		"undeclared", "epoch", "epoch_ready", "begin", "go", "commit", "abort", "accept",
		"moved", "prepared", "applied", "recall", "settled", "declare", "undeclare",
		"rank_publish", "rank_put", "rank_done", "declared", "ok", "error", "report",
		"end of file"};
	static const char *const words[] = {"", "checked", "unfit", "pulled", "not pulled", "ready",
		"resume", "withdraw", "end of file"};
	static const char *const kinds[PUBLISH_KINDS] = {
		"everything", "the first half", "the second half", "in parts"};
	static const char *const jobs[] = {"", "import", "plan", "move", "commit", "release",
		"epoch", "late commit", "catching up"};
	bool of_worker = (act.kind >= ACT_WORD && act.kind <= ACT_READY_HIT) ||
			 (act.kind >= ACT_WORKER_START && act.kind <= ACT_PULLED) ||
			 (act.kind >= ACT_WORKER_DIES && act.kind <= ACT_PULL_FAILS);
	bool of_job = (act.kind >= ACT_JOB_BEGIN && act.kind <= ACT_JOB_FAIL) ||
		      act.kind == ACT_JOB_BREAKS || act.kind == ACT_PLAN_UNFIT;

	if (of_worker) {
		snprintf(buf, size, "%s %u of group %u%s%s", names[act.kind], act.b, act.a,
			act.kind == ACT_WORD ? ": " : "",
			act.kind == ACT_WORD ? words[before->worker[act.a][act.b].words[0].kind]
					     : "");
	} else if (of_job) {
		snprintf(buf, size, "%s %u (%s)", names[act.kind], act.a,
			jobs[before->node[act.a].jobs[0].kind]);
	} else if (act.kind == ACT_LETTER_TO_NODE || act.kind == ACT_LETTER_TO_LEAD) {
		snprintf(buf, size, "%s %s", names[act.kind],
			letters[act.kind == ACT_LETTER_TO_NODE ? before->to_node[0].kind
							       : before->to_lead[0].kind]);
	} else if (act.kind == ACT_PUBLISH || act.kind == ACT_WRONG_BASE) {
		snprintf(buf, size, "%s %u: %s", names[act.kind], act.a, kinds[act.b]);
	} else if ((act.kind >= ACT_TRAINER_START && act.kind <= ACT_PUT) ||
		   act.kind == ACT_STREAM_DONE ||
		   (act.kind >= ACT_TRAINER_DIES && act.kind <= ACT_PUT_LATE)) {
		snprintf(buf, size, "%s %u", names[act.kind], act.a);
	} else if (act.kind == ACT_BROKER_START || act.kind == ACT_BROKER_DIES ||
		   act.kind == ACT_NODE_TIMER || act.kind == ACT_NODE_LATE ||
		   act.kind == ACT_CATCH_TIMER || act.kind == ACT_CATCH_LATE) {
		snprintf(buf, size, "%s %u%s", names[act.kind], act.a,
			act.kind == ACT_BROKER_DIES && act.b ? ", its last words are lost" : "");
	} else {
		snprintf(buf, size, "%s", names[act.kind]);
	}
}
