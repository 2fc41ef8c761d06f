/*
 * Subsets: tensors of a model that are published by themselves, each a publication of its own
 * beside the whole one. Every rank names, once, which of the tensors it has declared belong to
 * subset n. When all have, the lead makes the subset's manifest out of the whole one, and tells
 * the brokers which tensors were chosen, so that they make the same. From then on an update
 * names its subset by number, and nothing is done per tensor. Subsets go with the manifest;
 * what the ranks have named stays in their seats, for the manifest that may follow.
 */
#include "base/log.h"
#include "base/util.h"
#include "broker/server.h"
#include "plan/subset.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

void choices_cut(struct seat *seat, uint32_t n)
{
	while (seat->choices && seat->choices->n > n) {
		free(seat->choices->v[--seat->choices->n]);
	}
}

void seat_finish(struct seat *seat)
{
	choices_cut(seat, 0);
	free(seat->choices);
	manifest_finish(&seat->declared);
	memset(seat, 0, sizeof(*seat));
}

bool choices_same(const struct seat *seat, const struct msg_subset *said)
{
	return !said->ntensors ||
	       memcmp(said->tensors, seat->choices->v[said->subset - 1], said->ntensors) == 0;
}

int choices_keep(struct seat *seat, const struct manifest *declared, const struct msg_subset *said,
	struct error *err)
{
	struct choices *choices = seat->choices;
	uint32_t n = choices ? choices->n : 0;
	uint8_t *bits;
	int rc = bits_check(said->tensors, said->ntensors, declared->ntensors, err);

	if (rc) {
		return rc;
	}
	if (said->subset > n + 1) {
		return error_set(
			err, -EINVAL, "subset %u comes before subset %u", said->subset, n + 1);
	}
	if (said->subset <= n && choices_same(seat, said)) {
		return 0; /* those behind it were named for this one, and stand as it does */
	}
	if (!choices) {
		choices = seat->choices = calloc(1, sizeof(*choices));
	}
	bits = malloc(said->ntensors + 1);
	if (!choices || !bits) {
		free(bits);
		return error_set(err, -ENOMEM, "out of memory");
	}
	if (said->ntensors) {
		memcpy(bits, said->tensors, said->ntensors);
	}
	choices_cut(seat, said->subset - 1);
	choices->v[choices->n++] = bits;
	return 0;
}

static const struct manifest *seat_declared(const struct seat *seat)
{
	return seat->member ? &seat->declared : &seat->client->session.holder->declared;
}

/* Of what one rank has declared: how many tensors it has in common with the subset, and whether it
 * has named all of those. */
static int check_rank(const struct manifest *whole, const uint8_t *all, const struct seat *seat,
	uint32_t rank, uint32_t number, struct error *err)
{
	const struct manifest *declared = seat_declared(seat);
	const uint8_t *own = seat->choices->v[number - 1];

	for (size_t i = 0; i < declared->ntensors; i++) {
		int64_t at = manifest_find(whole, declared->tensors[i].name);

		if (at >= 0 && bits_has(all, (size_t)at) && !bits_has(own, i)) {
			return error_set(err, -EINVAL,
				"subset %u: trainer rank %u holds boxes of tensor %.128s, which "
				"another rank has named and it has not",
				number, rank, declared->tensors[i].name);
		}
	}
	return 0;
}

/* The tensors of the whole manifest that some rank has named. */
static int collect(
	const struct model *model, uint32_t number, uint8_t **ret_tensors, struct error *err)
{
	const struct manifest *whole = &model->publication->manifest;
	uint8_t *all = calloc(bits_bytes(whole->ntensors) + 1, 1);
	int rc = 0;

	if (!all) {
		return error_set(err, -ENOMEM, "out of memory");
	}
	for (uint32_t rank = 0; rank < model->ranks; rank++) {
		const struct seat *seat = &model->seats[rank];
		const struct manifest *declared = seat_declared(seat);

		for (size_t i = 0; i < declared->ntensors; i++) {
			int64_t at = manifest_find(whole, declared->tensors[i].name);

			if (at >= 0 && bits_has(seat->choices->v[number - 1], i)) {
				bits_set(all, (size_t)at);
			}
		}
	}
	for (uint32_t rank = 0; rc == 0 && rank < model->ranks; rank++) {
		rc = check_rank(whole, all, &model->seats[rank], rank, number, err);
	}
	if (rc) {
		free(all);
		return rc;
	}
	*ret_tensors = all;
	return 0;
}

static void *copy_of(const void *data, size_t n, size_t size)
{
	void *copy = calloc(n + 1, size);

	if (copy && n) {
		memcpy(copy, data, n * size);
	}
	return copy;
}

/* The same ranks, roots and memory as the whole; fewer boxes. */
static int fill(const struct publication *whole, const uint8_t *tensors,
	struct publication *publication, struct error *err)
{
	size_t n = whole->nroots;
	struct blob blob = {0};
	uint32_t *boxes;
	int rc = manifest_choose(&whole->manifest, tensors, &publication->manifest, &boxes, err);

	if (rc) {
		return rc;
	}
	publication->nroots = n;
	publication->nspaces = whole->nspaces;
	publication->own_root = whole->own_root;
	publication->elsewhere = whole->elsewhere;
	publication->brokers = copy_of(whole->brokers, n, sizeof(*whole->brokers));
	publication->roots = copy_of(whole->roots, n, sizeof(*whole->roots));
	publication->holders = copy_of(whole->holders, n, sizeof(*whole->holders));
	publication->space_base = copy_of(whole->space_base, n, sizeof(*whole->space_base));
	publication->sources =
		calloc(publication->manifest.nboxes + 1, sizeof(*publication->sources));
	if (!publication->brokers || !publication->roots || !publication->holders ||
		!publication->space_base || !publication->sources) {
		rc = error_set(err, -ENOMEM, "out of memory");
	}
	for (size_t i = 0; rc == 0 && i < publication->manifest.nboxes; i++) {
		publication->sources[i] = whole->sources[boxes[i]];
	}
	free(boxes);
	if (rc == 0) {
		rc = blob_from_manifest(&publication->manifest, NULL, &blob, err);
	}
	if (rc == 0) {
		publication->hash = blob_hash(&blob);
		blob_finish(&blob);
	}
	return rc;
}

/* Adds the next subset. Takes the bits when it succeeds. */
static int add(struct server *server, struct model *model, uint8_t *tensors, struct error *err)
{
	struct subset *subset = calloc(1, sizeof(*subset));
	struct publication *publication = calloc(1, sizeof(*publication));
	int rc = subset && publication ? fill(model->publication, tensors, publication, err)
				       : error_set(err, -ENOMEM, "out of memory");

	if (rc) {
		publication_free(publication);
		free(subset);
		return rc;
	}
	publication->references = 1;
	publication->key = ++server->next_key;
	string_copy(publication->model, sizeof(publication->model), model->name);
	subset->publication = publication;
	subset->tensors = tensors;
	model->subsets[model->nsubsets++] = subset;
	log_info("model %s subset %u: %zu of %zu tensors", model->name, model->nsubsets,
		publication->manifest.ntensors, model->publication->manifest.ntensors);
	return 0;
}

void subsets_drop(struct server *server, struct model *model)
{
	while (model->nsubsets) {
		struct subset *subset = model->subsets[--model->nsubsets];

		if (--subset->publication->references == 0) {
			publication_retire(server, subset->publication);
		}
		free(subset->tensors);
		free(subset);
	}
}

static void send_subset(struct model *model, uint32_t number, struct member *member)
{
	const struct subset *subset = model->subsets[number - 1];
	struct message message;
	struct msg_chosen *chosen = &message.u.chosen;

	message_init(&message, MSG_CHOSEN, 0);
	string_copy(chosen->model, sizeof(chosen->model), model->name);
	chosen->manifest_hash = model->publication->hash;
	chosen->subset = number;
	chosen->hash = subset->publication->hash;
	chosen->tensors = subset->tensors;
	chosen->ntensors = bits_bytes(model->publication->manifest.ntensors);
	member_send(member, &message);
}

void lead_send_subsets(struct model *model, struct member *member)
{
	for (uint32_t i = 1; i <= model->nsubsets; i++) {
		send_subset(model, i, member);
	}
}

/* Answers what waits for that subset; err NULL: it is made. */
static void answer(struct seat *seat, uint32_t number, const struct error *err)
{
	uint64_t serial = seat->subset_serial;
	struct message message;

	if (!serial || seat->subset != number) {
		return;
	}
	seat->subset_serial = 0;
	if (seat->member && err) {
		member_refuse(seat->member, serial, err);
	} else if (seat->member) {
		message_init(&message, MSG_OK, serial);
		message.u.ok.value = number;
		member_send(seat->member, &message);
	} else if (err) {
		client_error(seat->client, serial, err->code, err->text);
	} else {
		client_ok(seat->client, serial, number);
	}
}

static bool all_have_named(const struct model *model, uint32_t number)
{
	for (uint32_t i = 0; i < model->ranks; i++) {
		const struct choices *choices = model->seats[i].choices;

		if (!model->seats[i].ready || !choices || choices->n < number) {
			return false;
		}
	}
	return true;
}

static void try_next(struct server *server, struct model *model)
{
	uint32_t number = model->nsubsets + 1;
	uint8_t *tensors = NULL;
	struct error err;
	int rc = collect(model, number, &tensors, &err);

	if (rc == 0) {
		rc = add(server, model, tensors, &err);
	}
	if (rc) {
		free(tensors);
		log_warn("model %s: %s", model->name, err.text);
	}
	for (struct member *member = server->members; rc == 0 && member; member = member->next) {
		if (member->state == MEMBER_IN_EPOCH) {
			send_subset(model, number, member);
		}
	}
	for (uint32_t i = 0; i < model->ranks; i++) {
		if (rc) {
			choices_cut(&model->seats[i], number - 1);
		}
		answer(&model->seats[i], number, rc ? &err : NULL);
	}
}

int subset_take(struct server *server, struct model *model, uint32_t rank,
	const struct msg_subset *said, uint64_t serial, struct error *err)
{
	struct seat *seat = &model->seats[rank];
	uint32_t n = seat->choices ? seat->choices->n : 0;
	int rc;

	if (!model->publication) {
		return error_set(err, -EBUSY,
			"subset: not every rank of the trainer has declared its tensors");
	}
	if (said->subset <= model->nsubsets && said->subset <= n) {
		rc = bits_check(said->tensors, said->ntensors, seat_declared(seat)->ntensors, err);
		if (rc == 0 && !choices_same(seat, said)) {
			rc = error_set(
				err, -EEXIST, "subset %u has other tensors already", said->subset);
		}
	} else {
		rc = choices_keep(seat, seat_declared(seat), said, err);
	}
	if (rc) {
		return rc;
	}
	/* An earlier request that still waits was given up by its process. */
	seat->subset_serial = serial;
	seat->subset = said->subset;
	if (said->subset <= model->nsubsets) {
		answer(seat, said->subset, NULL);
		return 0;
	}
	while (model->nsubsets < LIMIT_SUBSETS && all_have_named(model, model->nsubsets + 1)) {
		uint32_t before = model->nsubsets;

		try_next(server, model);
		if (model->nsubsets == before) {
			break;
		}
	}
	return 0;
}

void lead_subset(struct client *client, const struct message *message)
{
	struct error err;
	int rc = subset_take(client->server, client->model, client->session.trainer.rank,
		&message->u.subset, message->serial, &err);

	if (rc) {
		client_error(client, message->serial, rc, err.text);
	}
}

int subset_chosen(struct server *server, const struct msg_chosen *said, struct error *err)
{
	struct model *model = model_find(server, said->model, false);
	uint8_t *tensors;
	int rc;

	/* Of a manifest that this broker has passed over, or that has lost a rank here. */
	if (!model || model->leaving_serial || !model->publication ||
		model->publication->hash != said->manifest_hash) {
		return 0;
	}
	if (said->subset != model->nsubsets + 1) {
		return error_set(err, -EPROTO, "model %s: subset %u came where subset %u was due",
			model->name, said->subset, model->nsubsets + 1);
	}
	rc = bits_check(said->tensors, said->ntensors, model->publication->manifest.ntensors, err);
	if (rc) {
		return rc;
	}
	tensors = copy_of(said->tensors, said->ntensors, 1);
	rc = tensors ? add(server, model, tensors, err) : error_set(err, -ENOMEM, "out of memory");
	if (rc) {
		free(tensors);
		return rc;
	}
	if (model->subsets[said->subset - 1]->publication->hash != said->hash) {
		return error_set(err, -EPROTO, "model %s: subset %u has another hash at the lead",
			model->name, said->subset);
	}
	return 0;
}
