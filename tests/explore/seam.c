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

static void (*done_of[JOB_SETTLE + 1])(struct job *job);
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

void join_send(struct server *server, struct message *message)
{
	const struct msg_recall *said = &message->u.recall;
	struct w_letter letter = {.kind = LETTER_RECALL};
	struct recall recall = {.update = said->update,
		.version = said->version,
		.how = (enum recall_how)said->how,
		.nbrokers = said->nbrokers,
		.nreplicas = said->nreplicas,
		.nown = said->nown};

	(void)server;
	memcpy(recall.brokers, said->brokers, said->nbrokers * sizeof(recall.brokers[0]));
	memcpy(recall.replicas, said->replicas, said->nreplicas * sizeof(recall.replicas[0]));
	memcpy(recall.own, said->own, said->nown * sizeof(recall.own[0]));
	letter.recall = recall_pack(&recall);
	post(now->to_lead, &letter);
}

static void send_settled(const struct msg_settled *said)
{
	struct w_letter letter = {.kind = LETTER_SETTLED};

	letter.recall.update = (uint8_t)said->update;
	letter.recall.version = (uint8_t)said->version;
	letter.recall.how = (uint8_t)said->how;
	for (size_t i = 0; i < said->nreplicas; i++) {
		letter.recall.replicas |= (uint8_t)(1u << said->replicas[i]);
	}
	post(now->to_node, &letter);
}

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
	if (message->type == MSG_SETTLED) {
		send_settled(&message->u.settled);
		return;
	}
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
			letter.sizes[decision->replicas[i]] =
				(uint8_t)(decision->nsizes ? decision->sizes[i] : 0);
		}
		for (size_t i = 0; i < decision->nown; i++) {
			letter.own |= (uint8_t)(1u << decision->own[i].part);
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
		if (message->u.report.outcome != STREW_OUTCOME_ABORTED) {
			now->reported = (uint8_t)message->u.report.version;
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

void job_settle_run(struct job *job)
{
	(void)job;
}

static uint8_t workers_of(const struct node *node)
{
	uint8_t set = 0;

	for (size_t i = 0; i < node->ngoing; i++) {
		uint32_t g = node->going_teams[i]->group.part;

		for (unsigned m = 0; m < config.members[g]; m++) {
			set |= (uint8_t)(1u << (g * MEMBERS + m));
		}
	}
	return set;
}

/* Those who live: memory of a process that has died is nobody's. */
static uint8_t members_of(unsigned g)
{
	uint8_t set = 0;

	for (unsigned m = 0; m < config.members[g]; m++) {
		set |= now->worker[g][m].stage != W_DEAD ? (uint8_t)(1u << (g * MEMBERS + m)) : 0;
	}
	return set;
}

/* The real job is forgotten, and made again when it ends. */
static void submit_settle(struct job_settle *job)
{
	unsigned g = (unsigned)job->crew.key - 1;
	struct server *server = job->data;
	struct w_job *added = job_add(live_node(server), JOB_SETTLE);

	if (g >= config.ngroups || !job->publication) {
		say_violation("a group settles what is not known any more");
		return;
	}
	done_of[JOB_SETTLE] = job->job.done;
	added->workers = members_of(g);
	added->errors = (uint8_t)g;
	added->serial = (uint8_t)live_team(g)->group.update;
	free(job->crew.workers);
	free(job);
}

void job_settled_call(unsigned n, const struct w_job *ended)
{
	struct job_settle *job = calloc(1, sizeof(*job));

	if (!job) {
		abort();
	}
	job->data = &live[n].server;
	job->job.rc = ended->failed ? -5 : 0;
	job->job.err.text[0] = 'x';
	job->touched = ended->progress != JOB_QUEUED;
	job->crew.key = ended->gone ? 0 : ended->errors + 1u;
	done_of[JOB_SETTLE](&job->job);
}

void mover_submit(struct mover *mover, struct job *job)
{
	enum job_kind kind = job->run == job_plan_run	? JOB_PLAN
			     : job->run == job_move_run ? JOB_MOVE
							: JOB_COMMIT;
	struct w_job *added;
	struct w_node *node;
	struct server *server;
	unsigned n;

	(void)mover;
	if (job->run == job_settle_run) {
		submit_settle((struct job_settle *)job);
		return;
	}
	server = kind == JOB_PLAN   ? ((struct job_plan *)job)->data
		 : kind == JOB_MOVE ? ((struct job_move *)job)->data
				    : ((struct job_commit *)job)->data;
	n = live_node(server);
	node = &now->node[n];
	added = job_add(n, kind);
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
