/*
 * Declarations become one sealed manifest, which every broker of the epoch is sent
 * and every update refers to by its hash; and a manifest, made here or sent by the lead,
 * is bound to the memory of the trainers that are here.
 */
#include "base/log.h"
#include "base/util.h"
#include "broker/server.h"
#include "plan/tensor_table.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* The roots' names, and the holders that are here. */
static int bind_ranks(struct server *server, struct model *model, struct publication *publication,
	struct error *err)
{
	for (uint32_t rank = 0; rank < publication->nroots; rank++) {
		const struct seat *seat = &model->seats[rank];
		struct holder *holder;
		uint32_t root = 0;

		while (publication->brokers[root] != publication->brokers[rank]) {
			root++;
		}
		publication->roots[rank] = root;
		if (publication->brokers[rank] != server->broker_id) {
			publication->elsewhere = true;
			continue;
		}
		if (!seat->client || !seat->ready) {
			return error_set(err, -EPROTO,
				"manifest of model %s: trainer rank %u is not declared here",
				model->name, rank);
		}
		holder = seat->client->session.holder;
		publication->own_root = root;
		publication->holders[rank] = holder;
		publication->space_base[rank] = publication->nspaces;
		publication->nspaces += (uint32_t)holder->exports.nhandles;
	}
	return 0;
}

/* A rank's boxes come in the order in which it has declared them, and so do its sources. */
static int bind_boxes(struct publication *publication, struct error *err)
{
	const struct manifest *manifest = &publication->manifest;
	size_t next[LIMIT_RANKS] = {0};

	for (size_t i = 0; i < manifest->nboxes; i++) {
		const struct held_box *box = &manifest->boxes[i], *own;
		const struct tensor *tensor = &manifest->tensors[box->tensor], *said;
		const struct holder *holder;

		publication->sources[i].memory = SOURCE_ELSEWHERE;
		if (box->rank >= publication->nroots) {
			return error_set(err, -EPROTO, "tensor %.128s: a box of rank %u of %zu",
				tensor->name, box->rank, publication->nroots);
		}
		holder = publication->holders[box->rank];
		if (!holder) {
			continue;
		}
		if (next[box->rank] == holder->declared.nboxes) {
			return error_set(err, -EPROTO,
				"tensor %.128s: more boxes of rank %u than it has declared",
				tensor->name, box->rank);
		}
		own = &holder->declared.boxes[next[box->rank]];
		said = &holder->declared.tensors[own->tensor];
		if (strcmp(said->name, tensor->name) != 0 || !tensor_same(said, tensor) ||
			memcmp(&own->box, &box->box, sizeof(own->box)) != 0) {
			return error_set(err, -EPROTO,
				"tensor %.128s: not the box that rank %u has declared",
				tensor->name, box->rank);
		}
		publication->sources[i] = holder->sources[next[box->rank]++];
		publication->sources[i].memory += publication->space_base[box->rank];
	}
	for (size_t rank = 0; rank < publication->nroots; rank++) {
		const struct holder *holder = publication->holders[rank];

		if (holder && next[rank] != holder->declared.nboxes) {
			return error_set(
				err, -EPROTO, "boxes of trainer rank %zu are missing", rank);
		}
	}
	return 0;
}

int publication_bind(struct server *server, struct model *model, struct publication *publication,
	struct error *err)
{
	size_t n = publication->nroots;
	int rc;

	publication->own_root = ROOT_NONE;
	publication->roots = calloc(n + 1, sizeof(*publication->roots));
	publication->holders = calloc(n + 1, sizeof(*publication->holders));
	publication->space_base = calloc(n + 1, sizeof(*publication->space_base));
	publication->sources =
		calloc(publication->manifest.nboxes + 1, sizeof(*publication->sources));
	if (!publication->roots || !publication->holders || !publication->space_base ||
		!publication->sources) {
		return error_set(err, -ENOMEM, "out of memory");
	}
	rc = bind_ranks(server, model, publication, err);
	return rc ? rc : bind_boxes(publication, err);
}

static int merge_rank(struct manifest *manifest, const struct manifest *declared, uint32_t rank,
	struct error *err)
{
	for (size_t i = 0; i < declared->nboxes; i++) {
		struct held_box box = declared->boxes[i];
		int rc = manifest_add_tensor(
			manifest, &declared->tensors[box.tensor], &box.tensor, err);

		box.rank = rank;
		if (rc == 0) {
			rc = manifest_add_box(manifest, &box, err);
		}
		if (rc) {
			return error_prefix(err, "trainer rank %u", rank);
		}
	}
	return 0;
}

/* The one before may still be on its way to somebody. */
static int make_blob(struct model *model, struct publication *publication, struct error *err)
{
	struct blob blob;
	int rc = blob_from_manifest(&publication->manifest, NULL, &blob, err);

	shared_blob_put(model->blob);
	model->blob = rc ? NULL : shared_blob_create(&blob);
	if (rc == 0 && !model->blob) {
		blob_finish(&blob);
		rc = error_set(err, -ENOMEM, "out of memory");
	}
	if (rc == 0) {
		publication->hash = blob_hash(&model->blob->blob);
	}
	return rc;
}

static int merge(struct server *server, struct model *model, struct publication *publication,
	struct error *err)
{
	int rc = 0;

	for (uint32_t i = 0; rc == 0 && i < model->ranks; i++) {
		struct seat *seat = &model->seats[i];

		publication->brokers[i] =
			seat->member ? seat->member->join.broker_id : server->broker_id;
		rc = merge_rank(&publication->manifest,
			seat->member ? &seat->declared : &seat->client->session.holder->declared, i,
			err);
	}
	if (rc == 0) {
		rc = manifest_seal(&publication->manifest, err);
	}
	if (rc == 0) {
		rc = publication_bind(server, model, publication, err);
	}
	return rc ? rc : make_blob(model, publication, err);
}

static int make(struct server *server, struct model *model, struct publication **ret_publication,
	struct error *err)
{
	struct publication *publication = calloc(1, sizeof(*publication));
	int rc;

	if (!publication) {
		return error_set(err, -ENOMEM, "out of memory");
	}
	manifest_init(&publication->manifest);
	publication->nroots = model->ranks;
	publication->brokers = calloc(model->ranks, sizeof(*publication->brokers));
	rc = publication->brokers ? merge(server, model, publication, err)
				  : error_set(err, -ENOMEM, "out of memory");
	if (rc) {
		publication_free(publication);
		return rc;
	}
	*ret_publication = publication;
	return 0;
}

static void say_declared(struct model *model, struct seat *seat)
{
	struct message message;

	message_init(&message, MSG_DECLARED,
		seat->client ? seat->client->session.seal_serial : seat->declare_serial);
	message.u.declared.manifest_hash = model->publication->hash;
	message.u.declared.tensors = model->publication->manifest.ntensors;
	message.u.declared.bytes = manifest_bytes(&model->publication->manifest);
	message.u.declared.version = model->committed;
	if (seat->client && !seat->client->declared) {
		seat->client->declared = true;
		client_send(seat->client, &message);
	} else if (seat->member && !seat->answered) {
		seat->answered = true;
		member_send(seat->member, &message);
	}
}

static void refuse_all(struct server *server, struct model *model, const struct error *err)
{
	for (uint32_t i = 0; i < model->ranks; i++) {
		struct seat *seat = &model->seats[i];

		if (seat->member) {
			member_refuse(seat->member, seat->declare_serial, err);
			seat_leave(server, model, i, true);
		} else if (seat->client) {
			client_error(seat->client, seat->client->session.seal_serial, err->code,
				err->text);
			client_drop(seat->client, err->text);
		}
	}
}

/* Seals the manifest once every rank is there. An update of a trainer that is gone ends first. */
void model_try_seal(struct server *server, struct model *model)
{
	struct publication *publication = NULL;
	struct error err;
	char text[32];

	if (!model->ranks || model->publication || model->update.state != UPDATE_IDLE) {
		return;
	}
	for (uint32_t i = 0; i < model->ranks; i++) {
		if (!model->seats[i].ready) {
			return;
		}
	}
	update_init(&model->update, model->ranks);
	if (make(server, model, &publication, &err)) {
		log_warn("model %s: %s", model->name, err.text);
		refuse_all(server, model, &err);
		return;
	}
	model_set(server, model, publication);
	log_info("model %s is declared: %zu tensors, %s, %u ranks", model->name,
		publication->manifest.ntensors,
		format_bytes(text, sizeof(text), manifest_bytes(&publication->manifest)),
		model->ranks);
	for (struct member *member = server->members; member; member = member->next) {
		/* Who has just joined hears of it with its first epoch. */
		if (member->state == MEMBER_IN_EPOCH) {
			lead_send_manifest(model, member);
		}
	}
	for (uint32_t i = 0; i < model->ranks; i++) {
		say_declared(model, &model->seats[i]);
	}
}

void lead_send_manifest(struct model *model, struct member *member)
{
	struct publication *publication = model->publication;
	struct message message;
	struct error err;

	if (!publication) {
		return;
	}
	if (blob_send_shared(member->conn, model->blob, PART_MANIFEST, &err)) {
		log_warn("broker %s: %s", member->join.name, err.text);
		return;
	}
	message_init(&message, MSG_MANIFEST, 0);
	string_copy(message.u.manifest.model, sizeof(message.u.manifest.model), model->name);
	message.u.manifest.parts = blob_parts(&model->blob->blob);
	message.u.manifest.bytes = model->blob->blob.len;
	message.u.manifest.hash = publication->hash;
	message.u.manifest.roots = publication->brokers;
	message.u.manifest.nroots = publication->nroots;
	message.u.manifest.committed = model->committed;
	member_send(member, &message);
	lead_send_subsets(model, member);
}

void lead_send_committed(struct member *member)
{
	struct message message;

	for (struct model *model = member->server->models; model; model = model->next) {
		if (model->publication || !model->committed) {
			continue;
		}
		message_init(&message, MSG_MANIFEST, 0);
		string_copy(
			message.u.manifest.model, sizeof(message.u.manifest.model), model->name);
		message.u.manifest.committed = model->committed;
		member_send(member, &message);
	}
}

void lead_send_undeclared(
	struct server *server, const struct model *model, const struct member *own)
{
	struct message message;

	for (struct member *member = server->members; member; member = member->next) {
		if (member->state == MEMBER_CONNECTED || member == own) {
			continue;
		}
		message_init(&message, MSG_UNDECLARED, 0);
		string_copy(message.u.undeclared.model, sizeof(message.u.undeclared.model),
			model->name);
		member_send(member, &message);
	}
}
