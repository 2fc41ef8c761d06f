/*
 * The key of brokers at the beginning of a connection between two of them. With a key the first
 * word of both sides is a nonce, the last that goes without a seal; the key is proven by the first
 * sealed frames: the broker's join, the lead's answer. What is sealed how: wire/seal.h.
 */
#include "base/clock.h"
#include "base/log.h"
#include "base/util.h"
#include "broker/server.h"
#include <errno.h>
#include <string.h>

int member_nonce(struct member *member, const struct msg_nonce *said, struct error *err)
{
	struct conn_guard *guard;
	struct message reply;
	int rc;

	message_init(&reply, MSG_NONCE, 0);
	rc = random_bytes(reply.u.nonce.nonce, sizeof(reply.u.nonce.nonce));
	if (rc == 0) {
		rc = seal_create(
			&member->server->key, SEAL_LEAD, said->nonce, reply.u.nonce.nonce, &guard);
	}
	if (rc) {
		return error_set(err, rc, "no keys for a connection: %s", strerror(-rc));
	}
	member_send(member, &reply);
	conn_set_guard(member->conn, guard);
	return 0;
}

/* Anybody can be refused, as often as it likes: the log says one a second. */
void member_warn(const struct member *member, const char *why)
{
	struct server *server = member->server;

	if (!deadline_passed(server->warn_at)) {
		server->unsaid++;
		log_debug("refused the broker at %s: %s", member->address, why);
		return;
	}
	if (server->unsaid) {
		log_warn("%u more brokers were refused", server->unsaid);
	}
	server->unsaid = 0;
	server->warn_at = deadline_in_ms(1000);
	log_warn("refused the broker at %s: %s", member->address, why);
}

/* Before join: whether both sides have a key, or neither. */
int member_keyed(const struct member *member, const struct message *message, struct error *err)
{
	bool keyed = member->server->options.key_file != NULL;

	if (message->type == MSG_NONCE && !keyed) {
		return error_set(err, -EPERM,
			"this lead has no key and the broker has one: start both with a copy of "
			"one --key-file, or without");
	}
	if (message->type == MSG_JOIN && keyed && !conn_guard(member->conn)) {
		return error_set(err, -EPERM,
			"this lead has a key and the broker shows none: start it with a copy of "
			"the lead's --key-file");
	}
	return 0;
}

/* With a key the connection begins with a nonce of each side, and all that follows is sealed. */
int join_nonce(struct server *server, struct error *err)
{
	struct lead_link *link = &server->lead;
	struct message message;
	int rc = random_bytes(link->nonce, sizeof(link->nonce));

	if (rc) {
		return error_set(err, rc, "no random numbers from the kernel: %s", strerror(-rc));
	}
	message_init(&message, MSG_NONCE, 0);
	memcpy(message.u.nonce.nonce, link->nonce, sizeof(link->nonce));
	join_send(server, &message);
	return 0;
}

/* The lead's first word, where this broker has a key. What an error says then, anybody may have
 * said. */
int join_keys(struct server *server, const struct message *message, struct error *err)
{
	struct lead_link *link = &server->lead;
	struct conn_guard *guard;
	int rc;

	if (message->type == MSG_ERROR) {
		return error_set(err, -EPERM,
			"it shows no key: start all brokers with a copy of one --key-file");
	}
	if (message->type != MSG_NONCE) {
		return error_set(err, -EPROTO, "message %s came before its nonce",
			message_name(message->type));
	}
	rc = seal_create(&server->key, SEAL_JOINER, link->nonce, message->u.nonce.nonce, &guard);
	if (rc) {
		return error_set(err, rc, "out of memory");
	}
	conn_set_guard(link->conn, guard);
	return 0;
}
