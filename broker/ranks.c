/*
 * The trainer ranks of a broker that joined. Their memory is mapped here, their streams are
 * watched here, and their boxes are gathered here; what they declare and publish is the lead's
 * to judge, and is passed on to it as requests of our own, whose answers are passed back:
 *
 *   sealed ─declare─► lead ─declared, when every rank has─► declared
 *   publish ─rank_publish─► lead ─ok─► taken … stream done ─rank_done─► lead … ─report─► report
 *
 * "released" is our own word: when this node has gathered and copied, or is idle again.
 * A trainer that goes is undeclared. Until the lead has answered that, the manifests that
 * come are those of before, in which the trainer's memory is still counted on: they are passed
 * over. When the lead is gone, what was published ends in a report of ours; when there is a lead
 * again, every rank is declared to it anew, and its process notices nothing else.
 */
#include "base/log.h"
#include "base/util.h"
#include "broker/server.h"
#include "plan/subset.h"
#include <errno.h>
#include <stdio.h>
#include <string.h>

static uint64_t next_serial(struct server *server)
{
	return ++server->lead.next_serial;
}

static const char *model_of(const struct client *client)
{
	return client->session.trainer.model;
}

static bool is_rank(const struct client *client)
{
	return client->model && !client->gone && client->session.state == SESSION_LIVE;
}

/* The rank of which a request waits for that answer. */
static struct client *find_rank(struct server *server, uint64_t serial)
{
	for (struct client *client = server->clients; client; client = client->next) {
		if (is_rank(client) && serial &&
			(client->told.declare_serial == serial ||
				client->told.publish_serial == serial ||
				client->told.put_serial == serial ||
				client->told.cancel_serial == serial ||
				client->told.subset_serial == serial)) {
			return client;
		}
	}
	return NULL;
}

static void release(struct client *client)
{
	struct message message;

	if (!client->told.lent) {
		return;
	}
	client->told.lent = false;
	message_init(&message, MSG_RELEASED, 0);
	message.u.released.version = client->told.version;
	client_send(client, &message);
}

static void end_publish(struct client *client)
{
	struct told *told = &client->told;

	mover_unwatch(client->server->mover, &client->watch);
	if (told->put_serial) {
		told->put_serial = 0; /* what the lead still answers is passed over */
		client_error(client, told->put_request, -ESTALE,
			"put: the update has ended; its report says how");
	}
	told->publish_serial = told->request_serial = told->version = 0;
	told->taken = told->lent = false;
	told->committed = told->abandoned = told->prepared = false;
}

/* An update that has ended meanwhile was reported, or will be. */
static void end_cancel(struct client *client, int code, const char *text)
{
	uint64_t request = client->told.cancel_request;

	client->told.cancel_serial = client->told.cancel_request = 0;
	if (request && code) {
		client_error(client, request, code, text);
	} else if (request) {
		client_ok(client, request, 0);
	}
}

static void refuse_publish(struct client *client, int code, const char *text)
{
	uint64_t serial = client->told.request_serial;

	end_publish(client);
	client_error(client, serial, code, text);
}

static struct seat *seat_of(const struct client *client)
{
	return &client->model->seats[client->session.trainer.rank];
}

static void end_subset(struct client *client, int code, const char *text)
{
	struct told *told = &client->told;
	uint64_t request = told->subset_request;

	told->subset_serial = told->subset_request = 0;
	if (request && code) {
		/* What stands was named again, and does not fall with this. */
		choices_cut(seat_of(client), MAX(told->subset - 1, told->subsets));
		client_error(client, request, code, text);
	} else if (request) {
		told->subsets = MAX(told->subsets, told->subset);
		client_ok(client, request, told->subset);
	}
}

void ranks_declare(struct client *client)
{
	struct server *server = client->server;
	struct session *session = &client->session;
	struct message message;
	struct blob blob;
	struct error err;

	if (!server->lead.joined) {
		return; /* ranks_joined() will */
	}
	/* Behind what waits: all ranks' shares together are more than an outbox takes. */
	client->told.declare_due = join_waits(server);
	if (client->told.declare_due) {
		return;
	}
	if (blob_from_manifest(&session->holder->declared, NULL, &blob, &err)) {
		client_error(client, session->seal_serial, err.code, err.text);
		client_drop(client, err.text);
		return;
	}
	join_send_blob(server, &blob, PART_MANIFEST);
	client->told.declare_serial = next_serial(server);
	client->told.declared = false;
	message_init(&message, MSG_DECLARE, client->told.declare_serial);
	string_copy(message.u.declare.model, sizeof(message.u.declare.model), model_of(client));
	message.u.declare.rank = session->trainer.rank;
	message.u.declare.ranks = session->trainer.ranks;
	message.u.declare.parts = blob_parts(&blob);
	message.u.declare.bytes = blob.len;
	message.u.declare.hash = blob_hash(&blob);
	join_send(server, &message);
	blob_finish(&blob);
}

void ranks_declare_due(struct server *server)
{
	struct client *next;

	for (struct client *client = server->clients; client; client = next) {
		next = client->next;
		if (is_rank(client) && client->told.declare_due) {
			ranks_declare(client);
		}
	}
}

void ranks_joined(struct server *server)
{
	for (struct client *client = server->clients; client; client = client->next) {
		client->told.declare_due = is_rank(client);
	}
	ranks_declare_due(server);
}

/* Is the node at work on what this rank publishes? */
static bool in_update(const struct client *client)
{
	const struct node *node = &client->server->node;

	return node->publication && client->told.publish_serial &&
	       node->version == client->told.version &&
	       strcmp(node->publication->model, model_of(client)) == 0;
}

/*
 * What the lead can no longer report. Without this node's prepared it has not committed; with it,
 * it may have.
 */
static void report_abandoned(struct client *client)
{
	struct told *told = &client->told;
	struct message message;
	struct msg_report *report;

	message_init(&message, MSG_REPORT, 0);
	report = &message.u.report;
	report->version = told->version;
	report->outcome = told->committed ? STREW_OUTCOME_COMMITTED : STREW_OUTCOME_ABORTED;
	snprintf(report->text, sizeof(report->text), "the lead at %.100s is gone%s",
		client->server->options.join,
		told->committed	 ? " since its commit: how other nodes have ended is not known"
		: told->prepared ? ", and whether it has committed is not known"
				 : "");
	end_publish(client);
	client_send(client, &message);
}

/* When nothing moves any more. */
static void end_abandoned(struct server *server)
{
	for (struct client *client = server->clients; client; client = client->next) {
		if (!is_rank(client) || !client->told.abandoned) {
			continue;
		}
		if (!client->told.taken) {
			refuse_publish(client, -ECONNRESET, "publish: the lead is gone");
			continue;
		}
		release(client);
		report_abandoned(client);
	}
}

void ranks_link_down(struct server *server)
{
	enum node_stage stage = server->node.stage;

	for (struct client *client = server->clients; client; client = client->next) {
		client->told.declare_serial = 0;
		client->told.declared = client->told.declare_due = false;
		if (is_rank(client)) {
			end_subset(client, -ECONNRESET, "subset: the lead is gone");
			end_cancel(client, -ESTALE, "cancel: the lead is gone");
		}
		client->told.abandoned = client->told.publish_serial != 0;
		client->told.prepared = in_update(client) && recall_in_doubt(server);
	}
	for (struct model *model = server->models; model; model = model->next) {
		model->leaving_serial = 0;
	}
	if (stage == NODE_IDLE) {
		end_abandoned(server);
	}
}

void ranks_gone(struct client *client)
{
	struct server *server = client->server;
	struct message message;

	if (!client->told.declare_serial) {
		return;
	}
	client->model->leaving_serial = next_serial(server);
	message_init(&message, MSG_UNDECLARE, client->model->leaving_serial);
	string_copy(message.u.undeclare.model, sizeof(message.u.undeclare.model), model_of(client));
	message.u.undeclare.rank = client->session.trainer.rank;
	message.u.undeclare.released = !client->told.lent;
	join_send(server, &message);
	client->told.declare_serial = 0;
}

static void stream_done(struct watch *watch)
{
	struct client *client = watch->data;
	struct message message;

	if (!client->told.publish_serial || client->told.abandoned) {
		return;
	}
	message_init(&message, MSG_RANK_DONE, 0);
	string_copy(message.u.rank_done.model, sizeof(message.u.rank_done.model), model_of(client));
	message.u.rank_done.rank = client->session.trainer.rank;
	message.u.rank_done.version = client->told.version;
	join_send(client->server, &message);
}

static int check(const struct client *client, const struct msg_publish *publish, struct error *err)
{
	int rc = publish_check(publish, err);

	if (rc) {
		return rc;
	}
	if (client->told.publish_serial) {
		return error_set(err, -EBUSY, "version %llu is still being published",
			(unsigned long long)client->told.version);
	}
	if (!client->server->lead.joined) {
		return error_set(err, -EBUSY, "publish: there is no connection to the lead at %s",
			client->server->options.join);
	}
	if (!client->told.declared) {
		return error_set(err, -EBUSY,
			"publish: not every rank of the trainer has declared its tensors");
	}
	return 0;
}

static void send_subset(struct client *client, uint32_t number)
{
	const struct manifest *declared = &client->session.holder->declared;
	struct message message;
	struct msg_rank_subset *request;

	client->told.subset_serial = next_serial(client->server);
	message_init(&message, MSG_RANK_SUBSET, client->told.subset_serial);
	request = &message.u.rank_subset;
	string_copy(request->model, sizeof(request->model), model_of(client));
	request->rank = client->session.trainer.rank;
	request->subset = number;
	request->tensors = seat_of(client)->choices->v[number - 1];
	request->ntensors = bits_bytes(declared->ntensors);
	join_send(client->server, &message);
}

/* To a new lead, of which the process notices nothing. */
static void send_subsets(struct client *client)
{
	const struct choices *choices = seat_of(client)->choices;

	for (uint32_t i = 1; choices && i <= choices->n; i++) {
		send_subset(client, i);
	}
	client->told.subset_serial = 0;
}

/* By the lead's rules, as a new lead hears of what is kept here alone. */
static int keep_subset(struct client *client, const struct msg_subset *said, struct error *err)
{
	const struct manifest *declared = &client->session.holder->declared;
	int rc;

	if (said->subset > client->told.subsets) {
		return choices_keep(seat_of(client), declared, said, err);
	}
	rc = bits_check(said->tensors, said->ntensors, declared->ntensors, err);
	if (rc == 0 && !choices_same(seat_of(client), said)) {
		rc = error_set(err, -EEXIST, "subset %u has other tensors already", said->subset);
	}
	return rc;
}

void ranks_subset(struct client *client, const struct message *message)
{
	const struct msg_subset *said = &message->u.subset;
	struct told *told = &client->told;
	struct error err;
	int rc;

	if (!client->server->lead.joined || !told->declared) {
		rc = error_set(&err, -EBUSY,
			"subset: not every rank of the trainer has declared its tensors");
	} else {
		rc = keep_subset(client, said, &err);
	}
	if (rc) {
		client_error(client, message->serial, rc, err.text);
		return;
	}
	/* An earlier request that still waits was given up by the process. */
	told->subset_request = message->serial;
	told->subset = said->subset;
	send_subset(client, said->subset);
}

void ranks_publish(struct client *client, const struct message *message)
{
	const struct msg_publish *publish = &message->u.publish;
	struct server *server = client->server;
	struct message request;
	struct error err;
	int rc = check(client, publish, &err);

	if (rc) {
		client_error(client, message->serial, rc, err.text);
		return;
	}
	client->told.publish_serial = next_serial(server);
	client->told.request_serial = message->serial;
	client->told.version = publish->version;
	client->told.lent = true;
	message_init(&request, MSG_RANK_PUBLISH, client->told.publish_serial);
	string_copy(request.u.rank_publish.model, sizeof(request.u.rank_publish.model),
		model_of(client));
	request.u.rank_publish.rank = client->session.trainer.rank;
	request.u.rank_publish.version = publish->version;
	request.u.rank_publish.flags = publish->flags;
	request.u.rank_publish.timeout_ms = publish->timeout_ms;
	request.u.rank_publish.subset = publish->subset;
	request.u.rank_publish.base = publish->base;
	join_send(server, &request);
	client_watch(client, WORD_PUBLISH, publish->word, stream_done);
}

static int check_put(const struct client *client, const struct msg_put *put, struct error *err)
{
	const struct told *told = &client->told;

	if (!told->publish_serial || !told->taken || told->abandoned ||
		put->version != told->version) {
		return error_set(err, -ESTALE, "put: version %llu is not being published in parts",
			(unsigned long long)put->version);
	}
	if (told->put_serial || told->lent) {
		return error_set(err, -EBUSY, "put: the part before is still being read");
	}
	return 0;
}

void ranks_put(struct client *client, const struct message *message)
{
	const struct msg_put *put = &message->u.put;
	struct message request;
	struct error err;
	int rc = check_put(client, put, &err);

	if (rc) {
		client_error(client, message->serial, rc, err.text);
		return;
	}
	client->told.put_serial = next_serial(client->server);
	client->told.put_request = message->serial;
	client->told.lent = put->subset != 0;
	message_init(&request, MSG_RANK_PUT, client->told.put_serial);
	string_copy(request.u.rank_put.model, sizeof(request.u.rank_put.model), model_of(client));
	request.u.rank_put.rank = client->session.trainer.rank;
	request.u.rank_put.version = put->version;
	request.u.rank_put.subset = put->subset;
	join_send(client->server, &request);
	client_watch(client, WORD_PUBLISH, put->word, stream_done);
}

void ranks_cancel(struct client *client, const struct message *message)
{
	const struct msg_cancel *cancel = &message->u.cancel;
	struct told *told = &client->told;
	struct message request;

	if (!told->declared || told->abandoned) {
		client_error(client, message->serial, -ESTALE, "cancel: the lead is gone");
		return;
	}
	/* An earlier request that still waits was given up by the process. */
	told->cancel_serial = next_serial(client->server);
	told->cancel_request = message->serial;
	message_init(&request, MSG_RANK_CANCEL, told->cancel_serial);
	string_copy(
		request.u.rank_cancel.model, sizeof(request.u.rank_cancel.model), model_of(client));
	request.u.rank_cancel.rank = client->session.trainer.rank;
	request.u.rank_cancel.version = cancel->version;
	string_copy(request.u.rank_cancel.text, sizeof(request.u.rank_cancel.text), cancel->text);
	join_send(client->server, &request);
}

static void end_put(struct client *client, int code, const char *text)
{
	client->told.put_serial = 0;
	if (code) {
		mover_unwatch(client->server->mover, &client->watch);
		client->told.lent = false;
		client_error(client, client->told.put_request, code, text);
	} else {
		client_ok(client, client->told.put_request, 0);
	}
}

void ranks_released(struct server *server)
{
	for (struct client *client = server->clients; client; client = client->next) {
		if (is_rank(client) && in_update(client)) {
			release(client);
		}
	}
}

void ranks_committed(struct server *server)
{
	for (struct client *client = server->clients; client; client = client->next) {
		if (is_rank(client) && in_update(client)) {
			client->told.committed = true;
		}
	}
}

void ranks_node_idle(struct server *server)
{
	ranks_released(server);
	end_abandoned(server);
}

static void take_declared(struct client *client, const struct message *answer)
{
	struct message message = *answer;

	client->told.declared = true;
	/* After a new lead's the process has heard it already. */
	if (!client->declared) {
		client->declared = true;
		message.serial = client->session.seal_serial;
		client_send(client, &message);
	}
	send_subsets(client);
}

static void take_ok(struct server *server, struct client *client, uint64_t serial)
{
	if (client && client->told.publish_serial == serial && !client->told.taken) {
		client->told.taken = true;
		client_ok(client, client->told.request_serial, 0);
	} else if (client && client->told.put_serial == serial) {
		end_put(client, 0, NULL);
	} else if (client && client->told.cancel_serial == serial) {
		end_cancel(client, 0, NULL);
	} else if (client && client->told.subset_serial == serial) {
		end_subset(client, 0, NULL);
	}
	for (struct model *model = server->models; model; model = model->next) {
		if (model->leaving_serial == serial) {
			model->leaving_serial = 0;
		}
	}
}

static void take_refusal(struct client *client, uint64_t serial, const struct msg_error *said)
{
	int code = error_from_wire(said->code);

	if (client->told.publish_serial == serial && !client->told.taken) {
		refuse_publish(client, code, said->text);
	} else if (client->told.put_serial == serial) {
		end_put(client, code, said->text);
	} else if (client->told.cancel_serial == serial) {
		end_cancel(client, code, said->text);
	} else if (client->told.subset_serial == serial) {
		end_subset(client, code, said->text);
	} else if (client->told.declare_serial == serial) {
		client->told.declare_serial = 0;
		client_error(client, client->session.seal_serial, code, said->text);
		client_drop(client, said->text);
	}
}

static int take_report(struct client *client, const struct message *report, struct error *err)
{
	struct message message = *report;

	if (client->told.publish_serial != report->serial || !client->told.taken) {
		return 0;
	}
	if (in_update(client)) {
		return error_set(err, -EPROTO,
			"it reports version %llu, which this broker has not ended",
			(unsigned long long)client->told.version);
	}
	release(client);
	end_publish(client);
	message.serial = 0;
	client_send(client, &message);
	return 0;
}

int ranks_answer(struct server *server, const struct message *message, struct error *err)
{
	struct client *client = find_rank(server, message->serial);

	switch (message->type) {
	case MSG_DECLARED:
		if (client && client->told.declare_serial == message->serial) {
			take_declared(client, message);
		}
		return 1;
	case MSG_OK:
		take_ok(server, client, message->serial);
		return 1;
	case MSG_ERROR:
		if (!message->serial || !server->lead.joined) {
			return 0;
		}
		/* Else of one that is gone. */
		if (client) {
			take_refusal(client, message->serial, &message->u.error);
		}
		return 1;
	case MSG_REPORT:
		return client && take_report(client, message, err) ? err->code : 1;
	default:
		return 0;
	}
}
