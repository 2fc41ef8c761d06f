/*
 * What is published: trainers' declarations become one sealed manifest, which
 * every broker of the epoch is sent and every update refers to by its hash.
 */
#include "base/log.h"
#include "base/util.h"
#include "broker/server.h"
#include <errno.h>
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

static void drop_publication(struct server *server, struct model *model)
{
	struct publication *publication = model->publication;

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
	drop_publication(server, model);
	blob_finish(&model->blob);
	free(model);
}

/* Of the models that nobody publishes any more the one that was added first; NULL if all are in
 * use. */
static struct model *oldest_unused(struct server *server)
{
	struct model *unused = NULL;

	for (struct model *model = server->models; model; model = model->next) {
		/* At a broker that joined no trainer is known; the lead sends what it still needs.
		 */
		if (model->ranks == 0 && model != server->active &&
			(!unused || model->last_use < unused->last_use)) {
			unused = model;
		}
	}
	return unused;
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
		model->last_use = ++server->next_key;
		model->next = server->models;
		server->models = model;
	}
	return model;
}

void model_set(struct server *server, struct model *model, struct publication *publication)
{
	drop_publication(server, model);
	publication->references = 1;
	publication->key = ++server->next_key;
	string_copy(publication->model, sizeof(publication->model), model->name);
	model->publication = publication;
}

int lead_declare(struct client *client, struct error *err)
{
	const struct msg_trainer *trainer = &client->session.trainer;
	struct server *server = client->server;
	struct model *model;

	if (!server_is_lead(server)) {
		return error_set(err, -ENOTSUP,
			"a trainer registers with the lead's broker; this one has joined %s",
			server->options.join);
	}
	model = model_find(server, trainer->model, true);
	if (!model) {
		return error_set(err, -E2BIG, "%u models are published here already", LIMIT_MODELS);
	}
	if (model->ranks && model->ranks != trainer->ranks) {
		return error_set(err, -EINVAL, "model %s has %u trainer ranks, rank %u says %u",
			model->name, model->ranks, trainer->rank, trainer->ranks);
	}
	if (model->trainers[trainer->rank]) {
		return error_set(err, -EEXIST,
			"model %s: trainer rank %u is registered already, by process %d",
			model->name, trainer->rank, (int)model->trainers[trainer->rank]->peer.pid);
	}
	model->ranks = trainer->ranks;
	model->trainers[trainer->rank] = client;
	client->model = model;
	return 0;
}

static int merge_rank(
	struct publication *publication, struct holder *holder, uint32_t rank, struct error *err)
{
	struct manifest *manifest = &publication->manifest;

	publication->holders[rank] = holder;
	publication->space_base[rank] = publication->nspaces;
	for (size_t i = 0; i < holder->declared.nboxes; i++) {
		struct held_box box = holder->declared.boxes[i];
		int rc = manifest_add_tensor(
			manifest, &holder->declared.tensors[box.tensor], &box.tensor, err);

		box.rank = rank;
		if (rc == 0) {
			rc = manifest_add_box(manifest, &box, err);
		}
		if (rc) {
			return error_prefix(err, "trainer rank %u", rank);
		}
		publication->sources[manifest->nboxes - 1] = holder->sources[i];
		publication->sources[manifest->nboxes - 1].memory += publication->nspaces;
	}
	publication->nspaces += (uint32_t)holder->exports.nhandles;
	return 0;
}

static int merge(struct model *model, struct publication **ret_publication, struct error *err)
{
	struct publication *publication = calloc(1, sizeof(*publication));
	size_t boxes = 0;
	int rc = 0;

	if (!publication) {
		return error_set(err, -ENOMEM, "out of memory");
	}
	manifest_init(&publication->manifest);
	for (uint32_t i = 0; i < model->ranks; i++) {
		boxes += model->trainers[i]->session.holder->declared.nboxes;
	}
	publication->nroots = publication->nholders = model->ranks;
	publication->roots = calloc(model->ranks, sizeof(*publication->roots));
	publication->holders = calloc(model->ranks, sizeof(*publication->holders));
	publication->space_base = calloc(model->ranks, sizeof(*publication->space_base));
	publication->sources = calloc(boxes + 1, sizeof(*publication->sources));
	if (!publication->roots || !publication->holders || !publication->space_base ||
		!publication->sources) {
		rc = error_set(err, -ENOMEM, "out of memory");
	}
	for (uint32_t i = 0; rc == 0 && i < model->ranks; i++) {
		rc = merge_rank(publication, model->trainers[i]->session.holder, i, err);
	}
	if (rc == 0) {
		rc = manifest_seal(&publication->manifest, err);
	}
	if (rc == 0) {
		blob_finish(&model->blob);
		rc = blob_from_manifest(&publication->manifest, NULL, &model->blob, err);
	}
	if (rc) {
		publication_free(publication);
		return rc;
	}
	publication->hash = blob_hash(&model->blob);
	*ret_publication = publication;
	return 0;
}

static void say_declared(struct model *model, struct client *client)
{
	struct message message;

	client->declared = true;
	message_init(&message, MSG_DECLARED, client->session.seal_serial);
	message.u.declared.manifest_hash = model->publication->hash;
	message.u.declared.tensors = model->publication->manifest.ntensors;
	message.u.declared.bytes = manifest_bytes(&model->publication->manifest);
	message.u.declared.version = model->committed;
	client_send(client, &message);
}

static void refuse_all(struct model *model, const struct error *err)
{
	for (uint32_t i = 0; i < model->ranks; i++) {
		struct client *client = model->trainers[i];

		if (client) {
			client_error(client, client->session.seal_serial, err->code, err->text);
			client_drop(client, err->text);
		}
	}
}

/* Seals the manifest once every rank is there. An update of a trainer that is gone ends first. */
void model_try_seal(struct server *server, struct model *model)
{
	struct publication *publication = NULL;
	struct error err;
	char text[32];

	if (!model->ranks || model->sealed < model->ranks || model->publication ||
		model->update.state != UPDATE_IDLE) {
		return;
	}
	update_init(&model->update, model->ranks);
	if (merge(model, &publication, &err)) {
		log_warn("model %s: %s", model->name, err.text);
		refuse_all(model, &err);
		return;
	}
	model_set(server, model, publication);
	log_info("model %s is declared: %zu tensors, %s, %u ranks", model->name,
		publication->manifest.ntensors,
		format_bytes(text, sizeof(text), manifest_bytes(&publication->manifest)),
		model->ranks);
	for (struct member *member = server->members; member; member = member->next) {
		if (member->state != MEMBER_CONNECTED) {
			lead_send_manifest(model, member);
		}
	}
	for (uint32_t i = 0; i < model->ranks; i++) {
		if (!model->trainers[i]->declared) {
			say_declared(model, model->trainers[i]);
		}
	}
}

void lead_declared(struct client *client)
{
	client->model->sealed++;
	model_try_seal(client->server, client->model);
}

void lead_withdraw(struct client *client)
{
	struct server *server = client->server;
	struct model *model = client->model;
	uint32_t rank = client->session.trainer.rank;

	if (!model) {
		return;
	}
	client->model = NULL;
	model->trainers[rank] = NULL;
	if (client->session.state == SESSION_LIVE) {
		model->sealed--;
	}
	lead_rank_lost(server, model, rank);
	drop_publication(server, model);
	for (uint32_t i = 0; i < model->ranks; i++) {
		if (model->trainers[i]) {
			return;
		}
	}
	model->ranks = 0;
}

void lead_send_manifest(struct model *model, struct member *member)
{
	struct publication *publication = model->publication;
	struct message message;
	struct error err;

	if (!publication) {
		return;
	}
	if (blob_send(member->conn, &model->blob, PART_MANIFEST, &err)) {
		log_warn("broker %s: %s", member->join.name, err.text);
		return;
	}
	message_init(&message, MSG_MANIFEST, 0);
	string_copy(message.u.manifest.model, sizeof(message.u.manifest.model), model->name);
	message.u.manifest.parts = blob_parts(&model->blob);
	message.u.manifest.bytes = model->blob.len;
	message.u.manifest.hash = publication->hash;
	message.u.manifest.roots = publication->roots;
	message.u.manifest.nroots = publication->nroots;
	member_send(member, &message);
}

void models_free(struct server *server)
{
	while (server->models) {
		model_remove(server, server->models);
	}
}
