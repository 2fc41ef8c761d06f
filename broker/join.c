/*
 * A broker that has joined a lead: connects, and connects again with a growing,
 * capped delay; takes manifests; hands epochs to join_epoch.c, the lead's decisions to
 * node.c and the node's answers back.
 */
#include "base/clock.h"
#include "base/log.h"
#include "base/util.h"
#include "broker/alive.h"
#include "broker/join_internal.h"
#include "broker/place.h"
#include "wire/handshake.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>

_Static_assert(LIMIT_SUCCEED_MS >= LIMIT_SILENT_MS + LIMIT_RETRY_MAX_MS,
	"a successor would be refused before the lead misses who was there");

static void on_lead(void *data, uint32_t events);

void join_fill(struct server *server, struct msg_join *ret_join)
{
	memset(ret_join, 0, sizeof(*ret_join));
	ret_join->protocol = PROTOCOL_VERSION;
	ret_join->broker_id = server->broker_id;
	ret_join->host_id = host_id_compute();
	memcpy(ret_join->uuid, server->uuid, sizeof(ret_join->uuid));
	string_copy(ret_join->backend, sizeof(ret_join->backend), gpu_info(server->gpu)->kind_name);
	ret_join->nccl = gpu_info(server->gpu)->kind == GPU_CUDA ? nccl_version() : 0;
	ret_join->slot_bytes = server->options.slot_bytes;
	string_copy(ret_join->name, sizeof(ret_join->name), server->name);
}

void join_send(struct server *server, struct message *message)
{
	struct lead_link *link = &server->lead;
	struct error err;

	if (!link->conn) {
		message_close_fds(message);
		return;
	}
	if (conn_send(link->conn, message, &err)) {
		log_debug("lead: %s", err.text);
		return;
	}
	loop_modify(link->source, (uint32_t)conn_events(link->conn));
}

bool join_waits(const struct server *server)
{
	return server->lead.conn && conn_wants_write(server->lead.conn);
}

void join_send_blob(struct server *server, const struct blob *blob, enum part_of of)
{
	struct lead_link *link = &server->lead;
	struct error err;

	if (!link->conn) {
		return;
	}
	if (blob_send(link->conn, blob, of, &err)) {
		log_debug("lead: %s", err.text);
	}
	/* What is left is written with what follows it. */
}

/* Ends the connection and sets the time of the next try. */
static void link_down(struct server *server, const char *why)
{
	struct lead_link *link = &server->lead;
	bool was_joined = link->joined;

	loop_remove(link->source);
	link->source = NULL;
	conn_destroy(link->conn);
	link->conn = NULL;
	fd_close(&link->connecting);
	join_forget_epoch(link);
	blob_finish(&link->blob);
	link->joined = false;
	link->deadline = UINT64_MAX;
	if (was_joined) {
		log_warn("the lead at %s is gone: %s", server->options.join, why);
		link->retry_ms = LIMIT_RETRY_MIN_MS;
		place_lost(link);
		atomic_store(&server->epoch.job.cancel, 1);
		ranks_link_down(server);
		node_doubt(server);
	}
	link->retry_at = deadline_in_ms(link->retry_ms);
	link->retry_ms = MIN(link->retry_ms * 2, LIMIT_RETRY_MAX_MS);
	if (server->stop || link->joined_once) {
		return;
	}
	link->retry_at = MIN(link->retry_at, link->give_up_at); /* the last one is at its end */
	if (deadline_passed(link->give_up_at)) {
		log_error("cannot join the lead at %s: %s", server->options.join, why);
		server->exit_code = 4;
		server->stop = true;
	}
}

/* What the parts before it and the message say. Takes the parts in any case. */
static int read_manifest(struct server *server, const struct msg_manifest *said,
	struct publication *publication, struct error *err)
{
	struct lead_link *link = &server->lead;
	int rc = blob_check(&link->blob, said->parts, said->bytes, said->hash, err);

	if (rc == 0) {
		rc = blob_to_manifest(&link->blob, &publication->manifest, err);
	}
	blob_finish(&link->blob);
	if (rc) {
		return rc;
	}
	if (!said->nroots) {
		return error_set(
			err, -EPROTO, "manifest of model %s: no trainer rank", said->model);
	}
	publication->hash = said->hash;
	publication->nroots = said->nroots;
	publication->brokers = calloc(said->nroots, sizeof(*publication->brokers));
	if (!publication->brokers) {
		return error_set(err, -ENOMEM, "out of memory");
	}
	memcpy(publication->brokers, said->roots, said->nroots * sizeof(*said->roots));
	return 0;
}

/* Groups here that hold less have missed it. */
static void take_committed(struct server *server, struct model *model, uint64_t version)
{
	if (version > model->committed) {
		model->committed = version;
		model->committed_subset = 0; /* it is not said */
		model->committed_base = 0;
	}
	teams_missed(server, model->name);
}

/* Of a model that nobody publishes any more. */
static int take_no_manifest(
	struct server *server, const struct msg_manifest *said, struct error *err)
{
	struct model *model;

	if (said->bytes || said->hash || said->nroots) {
		return error_set(
			err, -EPROTO, "manifest of model %s: it comes in no parts", said->model);
	}
	model = model_find(server, said->model, true);
	if (model) {
		take_committed(server, model, said->committed);
	}
	return 0;
}

static int take_manifest(struct server *server, const struct msg_manifest *said, struct error *err)
{
	struct publication *publication = calloc(1, sizeof(*publication));
	struct model *model;
	int rc;

	if (!publication) {
		return error_set(err, -ENOMEM, "out of memory");
	}
	rc = read_manifest(server, said, publication, err);
	model = rc ? NULL : model_find(server, said->model, true);
	if (rc == 0 && !model) {
		rc = error_set(err, -ENOMEM, "model %s: no place for it", said->model);
	}
	if (rc == 0 && model->leaving_serial) {
		publication_free(publication);
		return 0;
	}
	if (rc == 0) {
		rc = publication_bind(server, model, publication, err);
	}
	if (rc) {
		publication_free(publication);
		return rc;
	}
	model_set(server, model, publication);
	take_committed(server, model, said->committed);
	log_info("model %s is announced: %zu tensors", model->name, publication->manifest.ntensors);
	return 0;
}

static void say_join(struct server *server)
{
	struct message message;

	message_init(&message, MSG_JOIN, 1);
	join_fill(server, &message.u.join);
	join_send(server, &message);
}

/* Who answers at the lead's address shows no key, or another one, or the traffic is altered. It may
 * be a stranger who has the port while the lead is away, so it is tried again as an absent lead is.
 */
static void key_failed(struct server *server, const char *text)
{
	struct lead_link *link = &server->lead;

	if (link->joined || link->key_said) {
		return; /* link_down() says the former */
	}
	link->key_said = true;
	log_warn("cannot join the lead at %s%s: %s; trying again", server->options.join,
		link->joined_once ? " again" : "", text);
}

/* Somebody is in our place: perhaps who died there, and whose end the lead has not heard yet. */
static bool may_succeed(struct server *server, const char *text)
{
	struct lead_link *link = &server->lead;

	if (!link->succeed_until) {
		link->succeed_until = deadline_in_ms(LIMIT_SUCCEED_MS);
		log_warn("the lead at %s: %s; trying for %d s, as one of them may have ended",
			server->options.join, text, LIMIT_SUCCEED_MS / 1000);
	}
	return !deadline_passed(link->succeed_until);
}

static int take_error(struct server *server, const struct msg_error *said, struct error *err)
{
	struct lead_link *link = &server->lead;
	int code = error_from_wire(said->code);

	if (!link->joined && code == -EBUSY && !link->busy_said) {
		link->busy_said = true;
		log_warn("the lead at %s: %s", server->options.join, said->text);
	}
	if (!link->joined && !link->joined_once && code != -EBUSY && code != -ETIMEDOUT &&
		!(code == -EEXIST && may_succeed(server, said->text))) {
		/* A refusal will not change by asking again. */
		log_error("the lead at %s refuses: %s", server->options.join, said->text);
		server->exit_code = 1;
		server->stop = true;
	}
	return error_set(err, -ECONNRESET, "%.200s", said->text);
}

static int lead_message(struct server *server, struct message *message, struct error *err)
{
	struct lead_link *link = &server->lead;
	int rc;

	if (server->options.key_file && !conn_guard(link->conn)) {
		rc = join_keys(server, message, err);
		if (rc == 0) {
			say_join(server);
		}
		return rc;
	}
	if (!link->joined && message->type != MSG_JOINED && message->type != MSG_ERROR) {
		return error_set(
			err, -EPROTO, "message %s came before joined", message_name(message->type));
	}
	rc = ranks_answer(server, message, err);
	if (rc) {
		return rc < 0 ? rc : 0;
	}
	switch (message->type) {
	case MSG_JOINED:
		link->joined = link->joined_once = true;
		link->busy_said = link->key_said = false;
		conn_set_most(link->conn, LIMIT_FRAME_BYTES);
		link->deadline = UINT64_MAX;
		link->retry_ms = LIMIT_RETRY_MIN_MS;
		log_info("joined the lead at %s", server->options.join);
		server_ready(server);
		models_undeclared(server);
		recalls_tell(server);
		ranks_joined(server);
		return 0;
	case MSG_PART:
		return blob_append(&link->blob, &message->u.part, err);
	case MSG_MANIFEST:
		return message->u.manifest.parts
			       ? take_manifest(server, &message->u.manifest, err)
			       : take_no_manifest(server, &message->u.manifest, err);
	case MSG_UNDECLARED:
		model_undeclared(server, message->u.undeclared.model);
		return 0;
	case MSG_CHOSEN:
		return subset_chosen(server, &message->u.chosen, err);
	case MSG_EPOCH:
		return join_take_epoch(server, &message->u.epoch, err);
	case MSG_SETTLED:
		recall_settled(server, &message->u.settled);
		return 0;
	case MSG_BEGIN:
		if (message->u.begin.epoch == server->epoch.number &&
			server->epoch.state == EPOCH_READY) {
			node_begin(server, &message->u.begin);
		}
		return 0;
	case MSG_GO:
		node_go(server, &message->u.decision);
		return 0;
	case MSG_COMMIT:
		node_commit(server, &message->u.decision);
		return 0;
	case MSG_ABORT:
		node_abort(server, message->u.decision.update, message->u.decision.text);
		return 0;
	case MSG_ALIVE:
		return 0;
	case MSG_BYE:
		return error_set(err, -ECONNRESET,
			message->u.bye.again ? "it starts itself anew" : "it stopped in order");
	case MSG_ERROR:
		return take_error(server, &message->u.error, err);
	default:
		return error_set(err, -EPROTO, "message %s is not for a broker that joined",
			message_name(message->type));
	}
}

static void on_lead(void *data, uint32_t events)
{
	struct server *server = data;
	struct lead_link *link = &server->lead;
	struct message message;
	struct error err;
	int rc, budget = MESSAGES_A_ROUND;

	if (events & EPOLLOUT) {
		conn_flush(link->conn);
		loop_modify(link->source, (uint32_t)conn_events(link->conn));
		if (link->joined) {
			ranks_declare_due(server);
		}
	}
	do {
		rc = conn_receive(link->conn, &message, &err);
		if (rc == 0) {
			return;
		}
		if (rc > 0) {
			rc = lead_message(server, &message, &err);
			message_finish(&message);
		}
	} while (rc == 0 && link->conn && --budget > 0);
	if (rc == -EPERM) {
		key_failed(server, err.text);
	}
	if (rc < 0 && link->conn) {
		link_down(server, err.text);
	}
}

void join_answer(struct server *server, enum message_type type, struct msg_groups *answer)
{
	struct message message;

	message_init(&message, type, 0);
	message.u.groups = *answer;
	join_send(server, &message);
}

/* The TCP connection is decided: the connection proper begins, with join. */
static void on_connected(void *data, uint32_t events)
{
	struct server *server = data;
	struct lead_link *link = &server->lead;
	struct error err;
	int rc;

	(void)events;
	loop_remove(link->source);
	link->source = NULL;
	rc = socket_connected(link->connecting, server->options.join, &err);
	if (rc == 0) {
		rc = conn_create(link->connecting, false, &link->conn);
	}
	if (rc) {
		link_down(server, err.text);
		return;
	}
	link->connecting = -1;
	conn_set_most(link->conn, LIMIT_FIRST_FRAME_BYTES);
	rc = loop_add(server->loop, conn_fd(link->conn), EPOLLIN, on_lead, server, &link->source);
	if (rc) {
		link_down(server, "out of memory");
		return;
	}
	link->deadline = deadline_in_ms(LIMIT_HELLO_MS);
	if (!server->options.key_file) {
		say_join(server);
	} else if (join_nonce(server, &err)) {
		link_down(server, err.text);
	}
}

static void try_connect(struct server *server)
{
	struct lead_link *link = &server->lead;
	struct error err;
	int rc;

	link->retry_at = UINT64_MAX;
	place_look(server);
	if (!link->placed) {
		link_down(server, link->place_why);
		return;
	}
	rc = socket_connect_to(&link->place, server->options.join, &link->connecting, &err);
	if (rc == 0) {
		link->deadline = deadline_in_ms(LIMIT_HELLO_MS);
		rc = loop_add(server->loop, link->connecting, EPOLLOUT, on_connected, server,
			&link->source);
		if (rc) {
			error_set(&err, rc, "%s", strerror(-rc));
		}
	}
	if (rc) {
		link_down(server, err.text);
	}
}

/* Before the loop runs, so this may wait for the lead's name. */
void join_start(struct server *server)
{
	struct lead_link *link = &server->lead;

	link->retry_ms = LIMIT_RETRY_MIN_MS;
	link->retry_at = 0;
	link->deadline = UINT64_MAX;
	link->give_up_at = deadline_in_ms((int64_t)server->options.join_timeout_s * 1000);
	place_first(server);
}

void join_tick(struct server *server, uint64_t now)
{
	struct lead_link *link = &server->lead;
	struct message alive;
	char text[64];

	if (!server->options.join || server->stop) {
		return;
	}
	if (now >= link->deadline) {
		link_down(server, "it does not answer");
	} else if (link->joined && alive_is_silent(link->conn, now)) {
		snprintf(text, sizeof(text), "it was not heard for %u s", LIMIT_SILENT_MS / 1000);
		link_down(server, text);
	} else if (link->joined && alive_is_to_speak(link->conn, now)) {
		message_init(&alive, MSG_ALIVE, 0);
		join_send(server, &alive);
	} else if (!link->conn && link->connecting < 0 && now >= link->retry_at) {
		try_connect(server);
	}
}

uint64_t join_due(const struct server *server)
{
	const struct lead_link *link = &server->lead;

	if (!server->options.join) {
		return UINT64_MAX;
	}
	if (!link->conn && link->connecting < 0) {
		return link->retry_at;
	}
	return link->joined ? MIN(link->deadline, alive_due(link->conn)) : link->deadline;
}

void join_stop(struct server *server)
{
	struct lead_link *link = &server->lead;
	struct message message;

	if (link->conn) {
		message_init(&message, MSG_BYE, 0);
		message.u.bye.again = server_starts_again(server);
		join_send(server, &message);
	}
	loop_remove(link->source);
	conn_destroy(link->conn);
	fd_close(&link->connecting);
	place_end(link);
	join_forget_epoch(link);
	blob_finish(&link->blob);
	memset(link, 0, sizeof(*link));
	link->connecting = link->data_connecting = -1;
}
