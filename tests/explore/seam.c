/*
 * What the machines' own files (node.c, node_jobs.c, groups.c, lead.c) call of the rest of the
 * broker, played: messages become letters and what workers know, jobs are queued for the
 * mover, who is acted in acts.c. A new call out of those files needs its stand-in here, or the
 * linker finds two of everything in the file that has the real one.
 */
#include "base/log.h"
#include "tests/explore/world.h"
#include <stdlib.h>
#include <string.h>

static void (*done_of[JOB_CATCH + 1])(struct job *job);
static void (*noted_of_move)(struct job *job, unsigned notes);

void log_line(enum log_level level, const char *format, ...)
{
	(void)level;
	(void)format;
}

bool server_is_lead(const struct server *server)
{
	return live_node(server) == 0;
}

void server_fatal(struct server *server, const char *text)
{
	(void)server;
	say_violation(text);
}

void server_abandon(struct server *server, const char *text)
{
	server_fatal(server, text);
}

struct model *model_find(struct server *server, const char *name, bool add)
{
	(void)name;
	(void)add;
	return &live[live_node(server)].model;
}

void publication_retire(struct server *server, struct publication *publication)
{
	(void)server;
	(void)publication;
}

/* The trainer is the lead's; the joiner has no ranks. */
void ranks_released(struct server *server)
{
	(void)server;
}

void ranks_committed(struct server *server)
{
	(void)server;
}

void ranks_node_idle(struct server *server)
{
	(void)server;
}

void member_report(struct seat *seat, const struct message *report)
{
	(void)seat;
	(void)report;
}

void clients_release_due(struct server *server)
{
	(void)server;
}

/* Between brokers. */

static uint8_t group_at(uint32_t replica, uint32_t part)
{
	(void)replica;
	return (uint8_t)part;
}

void join_answer(struct server *server, enum message_type type, struct msg_groups *answer)
{
	struct w_letter letter = {.epoch = (uint8_t)answer->epoch,
		.update = (uint8_t)answer->update,
		.code = answer->code != 0};

	if (!server->lead.joined) {
		return;
	}
	letter.kind = type == MSG_ACCEPT     ? LETTER_ACCEPT
		      : type == MSG_PREPARED ? LETTER_PREPARED
					     : LETTER_APPLIED;
	for (size_t i = 0; i < answer->ngroups; i++) {
		uint8_t g = group_at(answer->groups[i].replica, answer->groups[i].part);

		letter.groups |= (uint8_t)(1u << g);
		letter.outcome[g] = (uint8_t)answer->groups[i].outcome;
		letter.state[g] = (uint8_t)answer->groups[i].state;
	}
	post(now->to_lead, &letter);
}

void member_send(struct member *member, struct message *message)
{
	const struct msg_decision *decision = &message->u.decision;
	struct w_letter letter = {0};

	(void)member;
	if (message->type == MSG_BEGIN) {
		letter.kind = LETTER_BEGIN;
		letter.epoch = (uint8_t)message->u.begin.epoch;
		letter.update = (uint8_t)message->u.begin.update;
		letter.version = (uint8_t)message->u.begin.version;
	} else {
		letter.kind = message->type == MSG_GO	    ? LETTER_GO
			      : message->type == MSG_COMMIT ? LETTER_COMMIT
							    : LETTER_ABORT;
		letter.epoch = (uint8_t)decision->epoch;
		letter.update = (uint8_t)decision->update;
		letter.wire = (uint8_t)decision->wire;
		for (size_t i = 0; i < decision->nreplicas; i++) {
			letter.groups |= (uint8_t)(1u << decision->replicas[i]);
		}
		for (size_t i = 0; i < decision->nalone; i++) {
			letter.alone |= (uint8_t)(1u << decision->alone[i]);
		}
	}
	post(now->to_node, &letter);
}

void members_drop_lost(struct server *server, const bool lost[LIMIT_BROKERS])
{
	struct member *member = server->members;

	if (member && member->state == MEMBER_IN_EPOCH && lost[member->rank]) {
		member_drop(server);
	}
}

void epoch_changed(struct server *server)
{
	server->epoch.state = EPOCH_GATHERING;
}

void model_try_seal(struct server *server, struct model *model)
{
	if (!model->ranks || model->publication || model->update.state != UPDATE_IDLE) {
		return;
	}
	update_init(&model->update, 1);
	model->publication = &live[0].publication;
	if (server->members && server->members->state == MEMBER_IN_EPOCH) {
		post(now->to_node, &(struct w_letter){.kind = LETTER_MANIFEST,
					   .version = (uint8_t)model->committed});
	}
}

/* To processes. */

static bool find_worker(const struct client *client, unsigned *ret_group, unsigned *ret_member)
{
	for (unsigned g = 0; g < config.ngroups; g++) {
		for (unsigned m = 0; m < config.members[g]; m++) {
			if (client == &live[config.node_of[g]].clients[g][m]) {
				*ret_group = g;
				*ret_member = m;
				return true;
			}
		}
	}
	return false;
}

static void trainer_hears(const struct message *message)
{
	struct w_trainer *trainer = &now->trainer;
	const struct w_job *job = &now->node[0].jobs[0];

	if (message->type == MSG_RELEASED) {
		if (job->kind == JOB_MOVE && job->progress == JOB_BEGUN && !job->gone) {
			say_violation("the trainer's memory was released while it is read");
		}
		trainer->lent = 0;
	} else if (message->type == MSG_REPORT) {
		if (trainer->lent) {
			say_violation("an update was reported whose memory was not released");
		}
		trainer->publishing = trainer->version = trainer->streaming = 0;
	}
}

void client_send(struct client *client, struct message *message)
{
	unsigned g, m;

	if (find_worker(client, &g, &m)) {
		worker_hears(g, m, message);
	} else {
		trainer_hears(message);
	}
}

void client_error(struct client *client, uint64_t serial, int code, const char *text)
{
	struct message message = {.type = MSG_ERROR, .serial = serial};

	(void)code;
	(void)text;
	if (client == &live[0].trainer) {
		now->trainer.lent = now->trainer.publishing = now->trainer.version = 0;
		return;
	}
	client_send(client, &message);
}

void client_ok(struct client *client, uint64_t serial, uint64_t value)
{
	struct message message = {.type = MSG_OK, .serial = serial};

	(void)value;
	if (client != &live[0].trainer) {
		client_send(client, &message);
	}
}

/* Only the trainer's: a worker's ready word is watched by acts.c, as clients.c does it. */
void client_watch(
	struct client *client, size_t word, uint64_t value, void (*hit)(struct watch *watch))
{
	static struct watch watch;

	(void)word;
	(void)value;
	watch.hit = hit;
	watch.data = client;
	client->watch = watch;
	now->trainer.streaming = 1;
}

void mover_unwatch(struct mover *mover, struct watch *watch)
{
	(void)mover;
	watch->active = false;
}

/* The mover. */

void job_plan_run(struct job *job)
{
	(void)job;
}

void job_move_run(struct job *job)
{
	(void)job;
}

void job_commit_run(struct job *job)
{
	(void)job;
}

void job_catch_run(struct job *job)
{
	(void)job;
}

static uint8_t workers_of_group(uint32_t g)
{
	return (uint8_t)(((1u << config.members[g]) - 1) << (g * MEMBERS));
}

static uint8_t workers_of(const struct node *node)
{
	uint8_t set = 0;

	for (size_t i = 0; i < node->ngoing; i++) {
		set |= workers_of_group(node->going_teams[i]->group.part);
	}
	return set;
}

/* The sibling is CURRENT in this moment: what its memory holds now is what must be read. */
static void submit_catch(struct job_catch *work)
{
	const struct team *team = work->data;
	uint32_t g = team->group.part, other = 1 - g;
	struct w_job *job = job_add(config.node_of[g], JOB_CATCH);

	done_of[JOB_CATCH] = work->job.done;
	job->step = (uint8_t)work->step;
	job->group = (uint8_t)g;
	if (work->step != CATCH_PLAN) {
		job->workers = workers_of_group(g);
	}
	if (work->step == CATCH_MOVE) {
		job->from = workers_of_group(other);
		job->content = now->worker[other][0].content;
	}
	free(work->from.workers);
	free(work->to.workers);
	work->from.workers = work->to.workers = NULL;
}

/* Node 1's, if one at all: an act may only be of one. */
static void end_catch(struct w_job *ended)
{
	struct team *team = live_team(ended->group);
	struct job_catch *work = &team->catching.job;

	work->step = (enum catch_step)ended->step;
	work->job.rc = ended->failed ? -5 : 0;
	if (ended->step == CATCH_MOVE && ended->progress == JOB_BEGUN) {
		work->lump++; /* also if it is this one that has failed */
		work->more = work->lump < LUMPS;
	}
	done_of[JOB_CATCH](&work->job);
}

static void submit_update(struct job *job)
{
	enum job_kind kind = job->run == job_plan_run	? JOB_PLAN
			     : job->run == job_move_run ? JOB_MOVE
							: JOB_COMMIT;
	struct server *server = kind == JOB_PLAN   ? ((struct job_plan *)job)->data
				: kind == JOB_MOVE ? ((struct job_move *)job)->data
						   : ((struct job_commit *)job)->data;
	unsigned n = live_node(server);
	struct w_node *node = &now->node[n];
	struct w_job *added = job_add(n, kind);

	done_of[kind] = job->done;
	added->serial = (uint8_t)server->node.serial;
	if (kind == JOB_PLAN) {
		node->crew_dead = node->crew_freed = 0;
		return;
	}
	added->workers = workers_of(&server->node);
	if (added->workers & node->crew_freed) {
		say_violation("a job was given the memory of a worker that is unmapped");
	}
	added->workers &= (uint8_t)~node->crew_dead;
	if (kind == JOB_MOVE) {
		noted_of_move = job->noted;
		added->wire = ((struct job_move *)job)->wire;
	}
}

void mover_submit(struct mover *mover, struct job *job)
{
	(void)mover;
	if (job->run == job_catch_run) {
		submit_catch((struct job_catch *)job);
	} else {
		submit_update(job);
	}
}

static void note(struct server *server, struct w_job *job)
{
	if (job->note_due) {
		job->note_due = 0;
		server->node.move.data = server;
		noted_of_move(&server->node.move.job, NOTE_RELEASED);
	}
}

void job_note_call(unsigned n)
{
	note(&live[n].server, &now->node[n].jobs[0]);
}

void job_done_call(unsigned n, struct w_job *ended)
{
	struct server *server = &live[n].server;
	struct node *node = &server->node;
	struct job *job = ended->kind == JOB_PLAN   ? &node->plan.job
			  : ended->kind == JOB_MOVE ? &node->move.job
						    : &node->commit.job;

	if (ended->kind == JOB_CATCH) {
		end_catch(ended);
		return;
	}
	note(server, ended);
	job->rc = ended->failed ? -5 : 0;
	job->err.text[0] = 'x';
	job->err.text[1] = 0;
	node->plan.data = node->move.data = node->commit.data = server;
	node->plan.wanted.n = 0;
	node->move.job.hung = false;
	for (size_t i = 0; i < node->nteams; i++) {
		if (ended->errors & (1u << node->teams[i]->group.part)) {
			error_set(&node->errors[i], -22, "x");
		}
	}
	done_of[ended->kind](job);
}
