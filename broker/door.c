/*
 * Who comes to the lead's control port: connections, join, the data connections of an epoch, and
 * what brokers that have joined say. What becomes of them is epoch.c's.
 */
#include "base/clock.h"
#include "base/log.h"
#include "base/util.h"
#include "broker/alive.h"
#include "broker/epoch.h"
#include "wire/handshake.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

struct member *member_by_rank(struct server *server, uint32_t rank)
{
	for (struct member *member = server->members; member; member = member->next) {
		if (member->state == MEMBER_IN_EPOCH && member->rank == rank) {
			return member;
		}
	}
	return NULL;
}

void member_send(struct member *member, struct message *message)
{
	struct error err;

	if (conn_send(member->conn, message, &err)) {
		log_debug("broker %s: %s", member->join.name, err.text);
		return;
	}
	loop_modify(member->source, (uint32_t)conn_events(member->conn));
}

void member_refuse(struct member *member, uint64_t serial, const struct error *err)
{
	struct message message;

	message_init(&message, MSG_ERROR, serial);
	message.u.error.code = error_to_wire(err->code);
	string_copy(message.u.error.text, sizeof(message.u.error.text), err->text);
	member_send(member, &message);
}

static void member_free(struct member *member)
{
	struct member **link = &member->server->members;

	while (*link != member) {
		link = &(*link)->next;
	}
	*link = member->next;
	loop_remove(member->source);
	conn_destroy(member->conn);
	fd_close(&member->data_fd);
	blob_finish(&member->blob);
	member_recalls_free(member);
	free(member);
}

void member_drop(struct member *member, const char *why)
{
	struct server *server = member->server;
	bool counted = member->state != MEMBER_CONNECTED;
	bool in_epoch = member->state == MEMBER_IN_EPOCH;
	bool may_be_well = member->stood && !member->left;
	uint32_t rank = member->rank;
	char name[ADDRESS_BYTES];

	string_copy(name, sizeof(name), member->join.name);
	if (counted) {
		log_warn("broker %s is gone: %s", name, why);
	} else {
		log_debug("a connection to the control port ended: %s", why);
	}
	missed_lost(member);
	seen_lost(member);
	/* First the ranks there: an update says whose memory it has lost. */
	member_ranks_lost(member);
	member_free(member);
	if (in_epoch) {
		lead_member_lost(server, rank, name);
	}
	if (counted) {
		/* What was lost may be its connection alone: then its groups are not to miss the
		 * update that waits. */
		epoch_gather(server, may_be_well ? REGATHER_MS : LIMIT_GATHER_MS);
	}
}

void members_drop_lost(struct server *server, const bool lost[LIMIT_BROKERS])
{
	struct member *next;

	for (struct member *member = server->members; member; member = next) {
		next = member->next;
		if (member->state == MEMBER_IN_EPOCH && lost[member->rank]) {
			member_drop(member, "it did not answer in an update");
		}
	}
}

void member_tick(struct member *member, uint64_t now)
{
	struct message alive;
	char text[64];

	if (member->state == MEMBER_CONNECTED) {
		if (now >= member->deadline) {
			member_drop(member, "join did not come in time");
		}
	} else if (alive_is_silent(member->conn, now)) {
		snprintf(text, sizeof(text), "it was not heard for %u s", LIMIT_SILENT_MS / 1000);
		blame_lost(member, true);
		member_drop(member, text);
	} else if (alive_is_to_speak(member->conn, now)) {
		message_init(&alive, MSG_ALIVE, 0);
		member_send(member, &alive);
	}
}

static int take_join(struct member *member, const struct message *message, struct error *err)
{
	struct server *server = member->server;
	struct msg_join known[LIMIT_BROKERS];
	struct message reply;
	size_t n = 0;
	int rc;

	join_fill(server, &known[n++]);
	for (struct member *other = server->members; other; other = other->next) {
		if (other->state != MEMBER_CONNECTED && n < LIMIT_BROKERS) {
			known[n++] = other->join;
		}
	}
	member->join = message->u.join;
	rc = admit_check(&message->u.join, known, n, err);
	rc = rc ? rc : blame_admits(server, &message->u.join, err);
	if (rc) {
		return rc;
	}
	member->state = MEMBER_JOINED;
	conn_set_most(member->conn, LIMIT_FRAME_BYTES);
	log_info("broker %s joined", member->join.name);
	message_init(&reply, MSG_JOINED, message->serial);
	reply.u.joined.broker_id = server->broker_id;
	member_send(member, &reply);
	epoch_changed(server);
	return 0;
}

/* A data connection: it belongs to the member of that rank from now on. */
static int take_data(struct member *connection, const struct msg_data *data, struct error *err)
{
	struct server *server = connection->server;
	struct epoch *epoch = &server->epoch;
	struct member *member = member_by_rank(server, data->rank);
	uint8_t token[TOKEN_BYTES];

	if (epoch->state != EPOCH_MAKING || epoch->own_submitted || data->epoch != epoch->number ||
		!member || member->data_fd >= 0) {
		return error_set(err, -EPROTO, "a data connection that no epoch waits for");
	}
	seal_token(conn_guard(member->conn), epoch->number, member->rank, epoch->token, token);
	if (!seal_token_equal(data->token, token)) {
		return error_set(err, -EPROTO, "a data connection that no epoch waits for");
	}
	member->data_fd = dup(conn_fd(connection->conn));
	if (member->data_fd < 0) {
		return error_set(err, -EMFILE, "no descriptor is left");
	}
	member_free(connection);
	epoch_try_submit(server);
	return 0;
}

/* One message; 0 if the member still stands and more may be read. */
static int member_message(struct member *member, const struct message *message, struct error *err)
{
	struct server *server = member->server;

	if (member->state == MEMBER_CONNECTED) {
		if (member_keyed(member, message, err)) {
			return err->code;
		}
		if (message->type == MSG_NONCE && !conn_guard(member->conn)) {
			return member_nonce(member, &message->u.nonce, err);
		}
		if (message->type == MSG_JOIN) {
			return take_join(member, message, err);
		}
		if (message->type == MSG_DATA) {
			int rc = take_data(member, &message->u.data, err);

			return rc ? rc : 1;
		}
		return error_set(
			err, -EPROTO, "message %s came before join", message_name(message->type));
	}
	switch (message->type) {
	case MSG_EPOCH_READY:
		if (message->u.epoch_ready.epoch != server->epoch.number ||
			server->epoch.state != EPOCH_MAKING) {
			return 0; /* of an epoch that was given up */
		}
		if (message->u.epoch_ready.code) {
			return blame_word(member, &message->u.epoch_ready, err);
		}
		if (!server->epoch.own_submitted) {
			return error_set(err, -EPROTO,
				"epoch_ready without a data connection: nothing can be ready "
				"before the lead's own part has begun");
		}
		member->ready = true;
		epoch_check_ready(server);
		return 0;
	case MSG_ACCEPT:
	case MSG_MOVED:
	case MSG_PREPARED:
	case MSG_APPLIED:
		if (member->state == MEMBER_IN_EPOCH) {
			lead_answer(server, member->rank, message->type, &message->u.groups);
		}
		return 0;
	case MSG_PART:
		return member_part(member, &message->u.part, err);
	case MSG_DECLARE:
		return member_declare(member, message, err);
	case MSG_UNDECLARE:
		return member_undeclare(member, message, err);
	case MSG_RANK_PUBLISH:
		return member_publish(member, message, err);
	case MSG_RANK_PUT:
		return member_put(member, message, err);
	case MSG_RANK_CANCEL:
		return member_cancel(member, message, err);
	case MSG_RANK_SUBSET:
		return member_subset(member, message, err);
	case MSG_RANK_DONE:
		return member_done(member, &message->u.rank_done, err);
	case MSG_RECALL:
		return member_recall(member, &message->u.recall, err);
	case MSG_ALIVE:
		return 0;
	case MSG_BYE:
		member->again = message->u.bye.again;
		member->left = !member->again;
		member->judged = true;
		return error_set(
			err, -ECONNRESET, member->again ? "it starts itself anew" : "it left");
	default:
		return error_set(err, -EPROTO, "message %s is not for the lead",
			message_name(message->type));
	}
}

static void on_member(void *data, uint32_t events)
{
	struct member *member = data;
	struct message message;
	struct error err;
	int rc, budget = MESSAGES_A_ROUND;

	if (events & EPOLLOUT) {
		conn_flush(member->conn);
		loop_modify(member->source, (uint32_t)conn_events(member->conn));
	}
	do {
		bool joining = member->state == MEMBER_CONNECTED;

		rc = conn_receive(member->conn, &message, &err);
		if (rc == 0) {
			return;
		}
		if (rc > 0) {
			rc = member_message(member, &message, &err);
			if (rc == -EBUSY && joining) {
				/* It asks again and again, and the log has why. */
				log_debug("not yet: %s", err.text);
				member_refuse(member, message.serial, &err);
			} else if (rc < 0 && joining) {
				member_warn(member, err.text);
				member_refuse(member, message.serial, &err);
			}
			message_finish(&message);
		} else if (rc == -EPERM) {
			if (joining) {
				member_warn(member, err.text);
			} else {
				log_warn(
					"dropping the broker at %s: %s", member->address, err.text);
			}
			/* With another key it cannot read this, and says just that. */
			member_refuse(member, 0, &err);
		}
	} while (rc == 0 && --budget > 0);
	if (rc < 0) {
		blame_lost(member, false);
		member_drop(member, err.text);
	}
}

/*
 * There are at most twice as many connections as brokers. One too many ends the oldest of those
 * that have not joined, so that who holds them all open keeps out nobody who comes and joins.
 */
static void make_room(struct server *server)
{
	struct member *oldest = NULL;
	unsigned n = 0;

	for (struct member *member = server->members; member; member = member->next, n++) {
		oldest = member->state == MEMBER_CONNECTED ? member : oldest;
	}
	if (n >= 2 * LIMIT_BROKERS && oldest) {
		member_drop(oldest, "others came, and it had not joined");
	}
}

void members_accept(void *data, uint32_t events)
{
	struct server *server = data;
	struct member *member;
	int fd, rc = 0, budget = ACCEPTS_A_ROUND;

	(void)events;
	/* Who connects without end is not served without end: the rest comes in the next round. */
	while (budget-- > 0 && (rc = socket_accept(server->tcp_listener, &fd)) == 0) {
		make_room(server);
		member = calloc(1, sizeof(*member));
		if (!member) {
			close(fd);
			continue;
		}
		member->server = server;
		member->data_fd = -1;
		socket_remote(fd, member->address);
		member->deadline = deadline_in_ms(LIMIT_HELLO_MS);
		if (conn_create(fd, false, &member->conn)) {
			close(fd);
			free(member);
			continue;
		}
		conn_set_most(member->conn, LIMIT_FIRST_FRAME_BYTES);
		if (loop_add(server->loop, conn_fd(member->conn), EPOLLIN, on_member, member,
			    &member->source)) {
			conn_destroy(member->conn);
			free(member);
			continue;
		}
		member->next = server->members;
		server->members = member;
	}
	if (rc) {
		server_accept_ended(server, rc);
	}
}

void members_drop_all(struct server *server)
{
	struct message message;

	while (server->members) {
		message_init(&message, MSG_BYE, 0);
		message.u.bye.again = server_starts_again(server);
		member_send(server->members, &message);
		member_ranks_lost(server->members);
		member_free(server->members);
	}
}
