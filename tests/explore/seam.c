/*
 * What the machines' own files (node.c, node_teams.c, node_jobs.c, roots.c, groups.c, lead.c,
 * parts.c, models.c, ranks.c, members.c, recall.c, settle.c, catchup.c) call of the rest of the
 * broker, played: messages become letters and what workers know, jobs are queued for the mover, who
 * is acted in acts.c. A new call out of those files needs its stand-in here, or the linker finds
 * two of everything in the file that has the real one.
 */
#include "base/log.h"
#include "strew/trainer.h"
#include "tests/explore/mutate.h"
#include "tests/explore/world.h"
#include <errno.h>
#include <string.h>

static void (*done_of[JOB_KINDS])(struct job *job);
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

/* Nothing is hashed here. */
void sums_note(struct server *server)
{
	(void)server;
}

void sums_commit(struct server *server)
{
	(void)server;
}

void sums_free(struct sums *sums)
{
	(void)sums;
}

/* Half a replica may go on here: what is remembered of the other half is packed nowhere. */
void seen_await(const struct server *server, struct model *model, uint64_t when)
{
	(void)server;
	(void)model;
	(void)when;
}

void seen_commit(const struct server *server, struct model *model)
{
	(void)server;
	(void)model;
}

void seen_free(struct seen *seen)
{
	(void)seen;
}

/* The names of its tensors come with the manifest. */
void choices_cut(struct seat *seat, uint32_t n)
{
	(void)seat;
	(void)n;
}

bool choices_same(const struct seat *seat, const struct msg_subset *said)
{
	(void)seat;
	(void)said;
	return true;
}

int choices_keep(struct seat *seat, const struct manifest *declared, const struct msg_subset *said,
	struct error *err)
{
	(void)seat;
	(void)declared;
	(void)said;
	return error_set(err, -22, "nobody names subsets here");
}

int subset_take(struct server *server, struct model *model, uint32_t rank,
	const struct msg_subset *said, uint64_t serial, struct error *err)
{
	(void)server;
	(void)model;
	(void)rank;
	(void)serial;
	return choices_keep(NULL, NULL, said, err);
}

void seat_finish(struct seat *seat)
{
	memset(seat, 0, sizeof(*seat));
}

void subsets_drop(struct server *server, struct model *model)
{
	(void)server;
	model->nsubsets = 0;
}

void clients_release_due(struct server *server)
{
	(void)server;
}

/* Between brokers. */

static void fill_groups(struct w_letter *letter, const struct msg_groups *answer)
{
	for (size_t i = 0; i < answer->ngroups; i++) {
		uint32_t g = answer->groups[i].part;

		letter->groups |= (uint8_t)(1u << g);
		letter->outcome[g] = (uint8_t)answer->groups[i].outcome;
		letter->state[g] = (uint8_t)answer->groups[i].state;
	}
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
		      : type == MSG_MOVED    ? LETTER_MOVED
		      : type == MSG_PREPARED ? LETTER_PREPARED
					     : LETTER_APPLIED;
	fill_groups(&letter, answer);
	post(now->to_lead, &letter);
}

bool join_waits(const struct server *server)
{
	(void)server;
	return false;
}

void join_send_blob(struct server *server, const struct blob *blob, enum part_of of)
{
	(void)server;
	(void)blob;
	(void)of;
}

/* Of a trainer rank here, or what is recalled. */
void join_send(struct server *server, struct message *message)
{
	struct w_letter letter = {.serial = (uint8_t)message->serial};

	(void)server;
	switch (message->type) {
	case MSG_RECALL:
		letter = recall_letter(&message->u.recall);
		break;
	case MSG_DECLARE:
		letter.kind = LETTER_DECLARE;
		letter.rank = (uint8_t)message->u.declare.rank;
		break;
	case MSG_UNDECLARE:
		letter.kind = LETTER_UNDECLARE;
		letter.rank = (uint8_t)message->u.undeclare.rank;
		letter.released = (uint8_t)message->u.undeclare.released;
		break;
	case MSG_RANK_PUBLISH:
		letter.kind = LETTER_RANK_PUBLISH;
		letter.rank = (uint8_t)message->u.rank_publish.rank;
		letter.version = (uint8_t)message->u.rank_publish.version;
		letter.parts = (message->u.rank_publish.flags & PUBLISH_PARTS) != 0;
		letter.subset = (uint8_t)message->u.rank_publish.subset;
		letter.base = (uint8_t)message->u.rank_publish.base;
		break;
	case MSG_RANK_PUT:
		letter.kind = LETTER_RANK_PUT;
		letter.rank = (uint8_t)message->u.rank_put.rank;
		letter.version = (uint8_t)message->u.rank_put.version;
		letter.subset = (uint8_t)message->u.rank_put.subset;
		break;
	default:
		letter.kind = LETTER_RANK_DONE;
		letter.rank = (uint8_t)message->u.rank_done.rank;
		letter.version = (uint8_t)message->u.rank_done.version;
		break;
	}
	post(now->to_lead, &letter);
}

static void fill_decision(struct w_letter *letter, const struct msg_decision *decision)
{
	letter->epoch = (uint8_t)decision->epoch;
	letter->update = (uint8_t)decision->update;
	letter->wire = (uint8_t)decision->wire;
	letter->part = (uint8_t)decision->part;
	for (size_t i = 0; i < decision->nreplicas; i++) {
		letter->groups |= (uint8_t)(1u << decision->replicas[i]);
	}
	for (size_t i = 0; i < decision->nmet; i++) {
		letter->met[decision->met[i]]++;
	}
	for (size_t i = 0; i < decision->nown; i++) {
		letter->own |= (uint8_t)(1u << decision->own[i].part);
	}
}

static void fill_begin(struct w_letter *letter, const struct msg_begin *begin)
{
	letter->epoch = (uint8_t)begin->epoch;
	letter->update = (uint8_t)begin->update;
	letter->version = (uint8_t)begin->version;
	letter->parts = (begin->flags & PUBLISH_PARTS) != 0;
	letter->subset = (uint8_t)begin->subset;
	letter->base = (uint8_t)begin->base;
}

void member_send(struct member *member, struct message *message)
{
	static const uint8_t kinds[] = {[MSG_BEGIN] = LETTER_BEGIN,
		[MSG_GO] = LETTER_GO,
		[MSG_COMMIT] = LETTER_COMMIT,
		[MSG_ABORT] = LETTER_ABORT,
		[MSG_OK] = LETTER_OK,
		[MSG_DECLARED] = LETTER_DECLARED,
		[MSG_REPORT] = LETTER_REPORT,
		[MSG_SETTLED] = LETTER_SETTLED};
	struct w_letter letter = {.kind = kinds[message->type], .serial = (uint8_t)message->serial};

	(void)member;
	if (message->type == MSG_SETTLED) {
		letter = settled_letter(&message->u.settled);
	} else if (message->type == MSG_BEGIN) {
		fill_begin(&letter, &message->u.begin);
	} else if (message->type == MSG_REPORT) {
		letter.version = (uint8_t)message->u.report.version;
		letter.code = (uint8_t)message->u.report.outcome;
	} else if (message->type != MSG_OK && message->type != MSG_DECLARED) {
		fill_decision(&letter, &message->u.decision);
	}
	post(now->to_node, &letter);
}

void member_refuse(struct member *member, uint64_t serial, const struct error *err)
{
	(void)member;
	post(now->to_node, &(struct w_letter){.kind = LETTER_ERROR,
				   .serial = (uint8_t)serial,
				   .code = (uint8_t)error_to_wire(err->code)});
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

void lead_send_manifest(struct model *model, struct member *member)
{
	(void)member;
	if (model->publication) {
		post(now->to_node, &(struct w_letter){.kind = LETTER_MANIFEST,
					   .version = (uint8_t)model->committed});
	}
}

void lead_send_undeclared(
	struct server *server, const struct model *model, const struct member *own)
{
	(void)model;
	if (server->members && server->members != own &&
		server->members->state != MEMBER_CONNECTED) {
		post(now->to_node, &(struct w_letter){.kind = LETTER_UNDECLARED});
	}
}

/* As say_declared(). */
static void say_declared(struct seat *seat)
{
	struct message message;

	message_init(&message, MSG_DECLARED, seat->declare_serial);
	if (seat->client) {
		seat->client->declared = true;
	} else if (!seat->answered) {
		seat->answered = true;
		member_send(seat->member, &message);
	}
}

void model_try_seal(struct server *server, struct model *model)
{
	if (!model->ranks || model->publication || model->update.state != UPDATE_IDLE) {
		return;
	}
	for (uint32_t i = 0; i < model->ranks; i++) {
		if (!model->seats[i].ready) {
			return;
		}
	}
	update_init(&model->update, model->ranks);
	live_name_brokers(now, 0);
	model->publication = &live[0].publication;
	model->nsubsets = HALVES;
	if (server->members && server->members->state == MEMBER_IN_EPOCH) {
		lead_send_manifest(model, server->members);
	}
	for (uint32_t i = 0; i < model->ranks; i++) {
		say_declared(&model->seats[i]);
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

/* The number of a trainer rank, or RANKS. */
static unsigned find_rank(const struct client *client)
{
	unsigned r = 0;

	while (r < RANKS && client != &ranks[r]) {
		r++;
	}
	return r;
}

void client_send(struct client *client, struct message *message)
{
	unsigned g, m, r = find_rank(client);

	if (r < RANKS) {
		rank_hears(r, message);
	} else if (find_worker(client, &g, &m)) {
		worker_hears(g, m, message);
	}
}

void client_error(struct client *client, uint64_t serial, int code, const char *text)
{
	struct message message = {.type = MSG_ERROR, .serial = serial};
	unsigned r = find_rank(client);

	(void)text;
	if (r < RANKS && code == -ESTALE && now->rank[r].asked == ASKED_PUT && config.mutation &&
		strcmp(config.mutation, MUTATION_PUT_UNANSWERED) == 0) {
		return;
	}
	if (r < RANKS) {
		rank_answered(r, code);
	} else {
		client_send(client, &message);
	}
}

void client_ok(struct client *client, uint64_t serial, uint64_t value)
{
	struct message message = {.type = MSG_OK, .serial = serial};
	unsigned r = find_rank(client);

	(void)value;
	if (r < RANKS) {
		rank_answered(r, 0);
	} else {
		client_send(client, &message);
	}
}

void client_drop(struct client *client, const char *why)
{
	(void)client;
	(void)why;
	say_violation("a trainer rank that has done nothing wrong is dropped");
}

/* Only the trainer's: a worker's ready word is watched by acts.c, as clients.c does it. */
void client_watch(
	struct client *client, size_t word, uint64_t value, void (*hit)(struct watch *watch))
{
	(void)word;
	(void)value;
	client->watch = (struct watch){.hit = hit, .data = client, .active = true};
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

void job_release_run(struct job *job)
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

static void submit_of_update(struct job *job)
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
		added->part = (uint8_t)server->node.part;
		added->gone = node->ranks_dead;
	}
}

void mover_submit(struct mover *mover, struct job *job)
{
	(void)mover;
	if (job->run == job_settle_run) {
		settle_submit((struct job_settle *)job);
	} else if (job->run == job_catch_run) {
		catch_submit((struct job_catch *)job);
	} else {
		submit_of_update(job);
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
