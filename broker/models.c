/*
 * The models that are published, and the seats of their trainer ranks. At the lead
 * a seat is that of a trainer here or of one at another broker (members.c); a broker that
 * joined knows its own ranks only, and has its lead decide (ranks.c).
 */
#include "base/log.h"
#include "base/util.h"
#include "broker/server.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void retired(struct job *job)
{
	struct job_release *work = (struct job_release *)job;

	publication_free(work->publication);
	free(work);
}

void publication_retire(struct server *server, struct publication *publication)
{
	struct job_release *work = calloc(1, sizeof(*work));

	if (!work) {
		server_fatal(server, "out of memory");
		return;
	}
	work->job.run = job_release_run;
	work->job.done = retired;
	work->moves = server->moves;
	work->publication = publication;
	mover_submit(server->mover, &work->job);
}

void model_drop_publication(struct server *server, struct model *model)
{
	struct publication *publication = model->publication;

	subsets_drop(server, model);
	model->publication = NULL;
	if (publication && --publication->references == 0) {
		publication_retire(server, publication);
	}
}

static struct model *find(struct server *server, const char *name)
{
	struct model *model = server->models;

	while (model && strcmp(model->name, name) != 0) {
		model = model->next;
	}
	return model;
}

static void model_remove(struct server *server, struct model *model)
{
	struct model **link = &server->models;

	while (*link != model) {
		link = &(*link)->next;
	}
	*link = model->next;
	model_drop_publication(server, model);
	recall_forget(server, model);
	shared_blob_put(model->blob);
	sums_free(model->sums);
	seen_free(&model->seen);
	for (uint32_t i = 0; i < LIMIT_RANKS; i++) {
		seat_finish(&model->seats[i]);
	}
	free(model);
}

/* A broker that joined knows its own ranks only: what is published elsewhere is in use until the
 * lead has said undeclared. */
static bool is_used(const struct server *server, const struct model *model)
{
	const struct publication *moving = server->node.publication;

	return model->ranks || model->publication || model == server->active ||
	       model->leaving_serial || (moving && strcmp(moving->model, model->name) == 0);
}

/* Of the models that nobody publishes any more the one that was used longest ago; NULL if all are
 * in use. */
static struct model *oldest_unused(struct server *server)
{
	struct model *unused = NULL;

	for (struct model *model = server->models; model; model = model->next) {
		if (!is_used(server, model) && (!unused || model->last_use < unused->last_use)) {
			unused = model;
		}
	}
	return unused;
}

void model_undeclared(struct server *server, const char *name)
{
	struct model *model = find(server, name);

	if (model && model->publication) {
		log_info("model %s is not published any more", name);
		model_drop_publication(server, model);
	}
}

void models_undeclared(struct server *server)
{
	for (struct model *model = server->models; model; model = model->next) {
		model_drop_publication(server, model);
	}
}

struct model *model_find(struct server *server, const char *name, bool add)
{
	struct model *model = find(server, name);
	size_t n = 0;

	if (model) {
		model->last_use = ++server->next_key;
	}
	if (model || !add) {
		return model;
	}
	for (model = server->models; model; model = model->next) {
		n++;
	}
	if (n >= LIMIT_MODELS) {
		model = oldest_unused(server);
		if (!model) {
			return NULL;
		}
		model_remove(server, model);
	}
	model = calloc(1, sizeof(*model));
	if (model) {
		string_copy(model->name, sizeof(model->name), name);
		model->committed = teams_version(server, name);
		model->last_use = ++server->next_key;
		model->next = server->models;
		server->models = model;
	}
	return model;
}

void model_set(struct server *server, struct model *model, struct publication *publication)
{
	model_drop_publication(server, model);
	publication->references = 1;
	publication->key = ++server->next_key;
	string_copy(publication->model, sizeof(publication->model), model->name);
	model->publication = publication;
}

/* "process 4123" or "broker node1:77" */
static void say_who(const struct seat *seat, char *buf, size_t size)
{
	if (seat->client) {
		snprintf(buf, size, "process %d", (int)seat->client->peer.pid);
	} else {
		snprintf(buf, size, "a process at broker %s", seat->member->join.name);
	}
}

static bool seat_taken(const struct seat *seat)
{
	return seat->client || seat->member;
}

int seat_find(struct server *server, const struct msg_trainer *who, struct model **ret_model,
	struct error *err)
{
	struct model *model = model_find(server, who->model, true);
	char text[ADDRESS_BYTES + 32];

	if (!model) {
		return error_set(err, -E2BIG, "%u models are published here already", LIMIT_MODELS);
	}
	if (model->ranks && model->ranks != who->ranks) {
		return error_set(err, -EINVAL, "model %s has %u trainer ranks, rank %u says %u",
			model->name, model->ranks, who->rank, who->ranks);
	}
	if (seat_taken(&model->seats[who->rank])) {
		say_who(&model->seats[who->rank], text, sizeof(text));
		return error_set(err, -EEXIST,
			"model %s: trainer rank %u is registered already, by %s", model->name,
			who->rank, text);
	}
	*ret_model = model;
	return 0;
}

int rank_place(struct client *client, struct error *err)
{
	const struct msg_trainer *who = &client->session.trainer;
	struct model *model;
	int rc = seat_find(client->server, who, &model, err);

	if (rc) {
		return rc;
	}
	model->ranks = who->ranks;
	model->seats[who->rank].client = client;
	client->model = model;
	return 0;
}

void rank_mapped(struct client *client)
{
	client->model->seats[client->session.trainer.rank].ready = true;
	if (server_is_lead(client->server)) {
		model_try_seal(client->server, client->model);
	} else {
		ranks_declare(client);
	}
}

static void seat_empty(struct model *model, uint32_t rank)
{
	seat_finish(&model->seats[rank]);
	for (uint32_t i = 0; i < model->ranks; i++) {
		if (seat_taken(&model->seats[i])) {
			return;
		}
	}
	model->ranks = 0;
}

void seat_where(const struct seat *seat, char *buf, size_t size)
{
	const struct member *member = seat->member;

	buf[0] = '\0';
	if (member && member->state == MEMBER_IN_EPOCH) {
		snprintf(buf, size, " at node %u, broker %s,", member->rank, member->join.name);
	} else if (member) {
		snprintf(buf, size, " at broker %s", member->join.name);
	}
}

void seat_leave(struct server *server, struct model *model, uint32_t rank, bool released)
{
	const struct member *own = model->seats[rank].member;
	bool announced = model->publication != NULL;
	char where[SEAT_WHERE_BYTES];

	seat_where(&model->seats[rank], where, sizeof(where));
	/* The report that may follow is not for this rank. */
	model->seats[rank].client = NULL;
	model->seats[rank].publish_serial = model->seats[rank].subset_serial = 0;
	model->seats[rank].ready = false;
	lead_rank_lost(server, model, rank, released, where);
	model_drop_publication(server, model);
	if (announced) {
		lead_send_undeclared(server, model, own);
	}
	seat_empty(model, rank);
}

void rank_gone(struct client *client)
{
	struct server *server = client->server;
	struct model *model = client->model;
	uint32_t rank = client->session.trainer.rank;

	if (!model) {
		return;
	}
	if (server_is_lead(server)) {
		client->model = NULL;
		seat_leave(server, model, rank, model->update.released);
		return;
	}
	ranks_gone(client);
	client->model = NULL;
	/* Without its memory this node can be no root of it. What it only receives stays. */
	if (model->publication && rank < model->publication->nroots &&
		model->publication->holders[rank]) {
		model_drop_publication(server, model);
	}
	seat_empty(model, rank);
}

void models_free(struct server *server)
{
	while (server->models) {
		model_remove(server, server->models);
	}
}
