/*
 * The lead's side of trainer ranks at other brokers. Such a broker maps its ranks'
 * memory and watches their streams; here each has a seat in its model like a rank of our own,
 * and what it declares and publishes is judged by the same rules. A member that breaks the
 * protocol is dropped, and its ranks are lost with it. One that is only late is not: what it
 * says of a rank that was refused or withdrawn meanwhile is answered with an error.
 */
#include "base/log.h"
#include "base/util.h"
#include "broker/server.h"
#include <errno.h>
#include <stdio.h>
#include <string.h>

static void answer_ok(struct member *member, uint64_t serial)
{
	struct message message;

	message_init(&message, MSG_OK, serial);
	member_send(member, &message);
}

/* The member's own seat, or NULL. */
static struct seat *find_seat(
	struct member *member, const char *name, uint32_t rank, struct model **ret_model)
{
	struct model *model = model_find(member->server, name, false);

	*ret_model = model;
	if (!model || rank >= model->ranks || model->seats[rank].member != member) {
		return NULL;
	}
	return &model->seats[rank];
}

/* A rank that sits elsewhere is not the member's to speak for. */
static int check_owner(const struct model *model, const struct member *member, uint32_t rank,
	const char *what, struct error *err)
{
	if (model && rank < model->ranks &&
		(model->seats[rank].client ||
			(model->seats[rank].member && model->seats[rank].member != member))) {
		return error_set(err, -EPROTO,
			"%s of trainer rank %u of model %s, which is another broker's", what, rank,
			model->name);
	}
	return 0;
}

int member_part(struct member *member, const struct msg_part *part, struct error *err)
{
	if (part->of != PART_MANIFEST) {
		return error_set(err, -EPROTO, "a part of kind %u came where kind %u was due",
			part->of, PART_MANIFEST);
	}
	return blob_append(&member->blob, part, err);
}

static uint32_t count_ranks(const struct member *member)
{
	uint32_t n = 0;

	for (const struct model *model = member->server->models; model; model = model->next) {
		for (uint32_t i = 0; i < model->ranks; i++) {
			n += model->seats[i].member == member;
		}
	}
	return n;
}

static int take_seat(struct member *member, const struct msg_declare *said, uint64_t serial,
	struct manifest *declared, struct error *err)
{
	struct msg_trainer who = {.rank = said->rank, .ranks = said->ranks};
	struct model *model;
	struct seat *seat;
	int rc;

	string_copy(who.model, sizeof(who.model), said->model);
	if (count_ranks(member) >= LIMIT_SESSIONS) {
		return error_set(err, -E2BIG, "%u trainer ranks of one broker are declared already",
			LIMIT_SESSIONS);
	}
	rc = seat_find(member->server, &who, &model, err);
	if (rc) {
		return rc;
	}
	model->ranks = said->ranks;
	seat = &model->seats[said->rank];
	seat->member = member;
	seat->declared = *declared;
	manifest_init(declared);
	seat->declare_serial = serial;
	seat->ready = true;
	log_info("broker %s has trainer rank %u of %u of model %s", member->join.name, said->rank,
		said->ranks, model->name);
	model_try_seal(member->server, model);
	return 0;
}

int member_declare(struct member *member, const struct message *message, struct error *err)
{
	const struct msg_declare *said = &message->u.declare;
	struct manifest declared;
	struct error refusal;
	int rc;

	if (!message->serial || !said->model[0] || said->rank >= said->ranks) {
		return error_set(err, -EPROTO,
			"declare of rank %u of %u of model \"%s\", serial %llu", said->rank,
			said->ranks, said->model, (unsigned long long)message->serial);
	}
	rc = blob_check(&member->blob, said->parts, said->bytes, said->hash, err);
	if (rc) {
		return rc;
	}
	/* Its broker has taken the declaration by the same rules: what fails here is no user's. */
	rc = blob_to_share(&member->blob, said->rank, &declared, err);
	blob_finish(&member->blob);
	if (rc) {
		return rc;
	}
	if (take_seat(member, said, message->serial, &declared, &refusal)) {
		member_refuse(member, message->serial, &refusal);
	}
	manifest_finish(&declared);
	return 0;
}

int member_undeclare(struct member *member, const struct message *message, struct error *err)
{
	const struct msg_undeclare *said = &message->u.undeclare;
	struct model *model;

	if (!message->serial) {
		return error_set(err, -EPROTO, "undeclare without a serial");
	}
	/* Of one that was refused too: the two messages may have crossed. */
	if (find_seat(member, said->model, said->rank, &model)) {
		log_info("broker %s: trainer rank %u of model %s is gone", member->join.name,
			said->rank, model->name);
		seat_leave(member->server, model, said->rank, said->released);
	}
	answer_ok(member, message->serial);
	/* It has passed over every manifest since it asked. */
	if (model) {
		lead_send_manifest(model, member);
	}
	return 0;
}

int member_publish(struct member *member, const struct message *message, struct error *err)
{
	const struct msg_rank_publish *said = &message->u.rank_publish;
	const struct msg_publish publish = {.version = said->version,
		.flags = said->flags,
		.timeout_ms = said->timeout_ms,
		.subset = said->subset,
		.base = said->base};
	struct error refusal;
	struct model *model;
	struct seat *seat = find_seat(member, said->model, said->rank, &model);
	int rc = check_owner(model, member, said->rank, "rank_publish", err);

	if (rc) {
		return rc;
	}
	if (!message->serial) {
		return error_set(err, -EPROTO, "rank_publish without a serial");
	}
	rc = seat ? lead_take_publish(model, said->rank, &publish, &refusal)
		  : error_set(&refusal, -EBUSY,
			    "publish: trainer rank %u of model %s is not declared", said->rank,
			    said->model);
	if (rc) {
		member_refuse(member, message->serial, &refusal);
		return 0;
	}
	seat->publish_serial = message->serial;
	answer_ok(member, message->serial);
	return 0;
}

int member_put(struct member *member, const struct message *message, struct error *err)
{
	const struct msg_rank_put *said = &message->u.rank_put;
	struct error refusal;
	struct model *model;
	struct seat *seat = find_seat(member, said->model, said->rank, &model);
	int rc = check_owner(model, member, said->rank, "rank_put", err);

	if (rc) {
		return rc;
	}
	if (!message->serial) {
		return error_set(err, -EPROTO, "rank_put without a serial");
	}
	rc = seat ? lead_take_put(model, said->rank, said->version, said->subset, &refusal)
		  : error_set(&refusal, -EBUSY, "put: trainer rank %u of model %s is not declared",
			    said->rank, said->model);
	if (rc) {
		member_refuse(member, message->serial, &refusal);
	} else {
		answer_ok(member, message->serial);
	}
	return 0;
}

int member_cancel(struct member *member, const struct message *message, struct error *err)
{
	const struct msg_rank_cancel *said = &message->u.rank_cancel;
	char where[SEAT_WHERE_BYTES];
	struct error refusal;
	struct model *model;
	struct seat *seat = find_seat(member, said->model, said->rank, &model);
	int rc = check_owner(model, member, said->rank, "rank_cancel", err);

	if (rc) {
		return rc;
	}
	if (!message->serial) {
		return error_set(err, -EPROTO, "rank_cancel without a serial");
	}
	rc = seat ? update_check_cancel(&model->update, said->version, &refusal)
		  : error_set(&refusal, -ESTALE,
			    "cancel: trainer rank %u of model %s is not declared", said->rank,
			    said->model);
	if (rc) {
		member_refuse(member, message->serial, &refusal);
		return 0;
	}
	answer_ok(member, message->serial);
	seat_where(seat, where, sizeof(where));
	lead_rank_cancels(member->server, model, said->rank, said->version, where, said->text);
	return 0;
}

int member_subset(struct member *member, const struct message *message, struct error *err)
{
	const struct msg_rank_subset *said = &message->u.rank_subset;
	const struct msg_subset subset = {
		.subset = said->subset, .tensors = said->tensors, .ntensors = said->ntensors};
	struct error refusal;
	struct model *model;
	struct seat *seat = find_seat(member, said->model, said->rank, &model);
	int rc = check_owner(model, member, said->rank, "rank_subset", err);

	if (rc) {
		return rc;
	}
	if (!message->serial) {
		return error_set(err, -EPROTO, "rank_subset without a serial");
	}
	rc = seat ? subset_take(
			    member->server, model, said->rank, &subset, message->serial, &refusal)
		  : error_set(&refusal, -EBUSY,
			    "subset: trainer rank %u of model %s is not declared", said->rank,
			    said->model);
	if (rc) {
		member_refuse(member, message->serial, &refusal);
	}
	return 0;
}

int member_done(struct member *member, const struct msg_rank_done *done, struct error *err)
{
	struct model *model;
	struct seat *seat = find_seat(member, done->model, done->rank, &model);
	int rc = check_owner(model, member, done->rank, "rank_done", err);

	/* Of an update that has been given up meanwhile it means nothing. */
	if (rc == 0 && seat && seat->publish_serial && model->update.version == done->version) {
		lead_stream_done(member->server, model, done->rank);
	}
	return rc;
}

void member_report(struct seat *seat, const struct message *report)
{
	struct message copy = *report;

	if (seat->publish_serial) {
		copy.serial = seat->publish_serial;
		seat->publish_serial = 0;
		member_send(seat->member, &copy);
	}
}

void member_ranks_lost(struct member *member)
{
	struct server *server = member->server;

	for (struct model *model = server->models; model; model = model->next) {
		for (uint32_t i = 0; i < model->ranks; i++) {
			if (model->seats[i].member == member) {
				seat_leave(server, model, i, false);
			}
		}
	}
}
