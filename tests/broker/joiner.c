#include "broker/joiner.h"
#include "base/clock.h"
#include "base/util.h"
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

struct msg_join joiner_join(void)
{
	static uint64_t last = 1000;
	uint64_t number = ++last;
	/* Each on a host of its own: what one has spoilt is not laid to the next one's charge. */
	struct msg_join join = {.protocol = PROTOCOL_VERSION,
		.broker_id = number,
		.host_id = number,
		.backend = "host",
		.slot_bytes = LIMIT_SLOT_BYTES_MIN,
		.name = "played:1"};

	return join;
}

void joiner_send(struct joiner *joiner, const char *address, const struct msg_join *join)
{
	struct message message;

	tcp_open(&joiner->raw, address);
	message_init(&message, MSG_JOIN, 1);
	message.u.join = *join;
	joiner->join = *join;
	joiner->hashes = NULL;
	joiner->nhashes = 0;
	raw_send(&joiner->raw, &message);
}

void joiner_hears(struct joiner *joiner, struct message *ret_message)
{
	struct error err = {0};

	for (;;) {
		int rc = conn_receive_wait(
			joiner->raw.conn, deadline_in_ms(PATIENCE_MS), ret_message, &err);

		if (rc != 1) {
			print_error("a message was expected: %s\n", err.text);
		}
		assert_int_equal(rc, 1);
		if (ret_message->type != MSG_PART && ret_message->type != MSG_MANIFEST &&
			ret_message->type != MSG_UNDECLARED && ret_message->type != MSG_ALIVE) {
			break;
		}
		message_finish(ret_message);
	}
}

void joiner_ends(struct joiner *joiner)
{
	struct message message;
	struct error err;
	int rc;

	while ((rc = conn_receive_wait(
			joiner->raw.conn, deadline_in_ms(PATIENCE_MS), &message, &err)) == 1) {
		message_finish(&message);
	}
	assert_int_equal(rc, -ECONNRESET);
}

void joiner_expect(struct joiner *joiner, enum message_type type, struct message *ret_message)
{
	joiner_hears(joiner, ret_message);
	if (ret_message->type != type) {
		print_error("%s was expected, %s came\n", message_name(type),
			message_name(ret_message->type));
	}
	assert_int_equal(ret_message->type, type);
}

void joiner_joins(struct joiner *joiner, const char *address, const struct msg_join *join)
{
	struct message message;

	joiner_send(joiner, address, join);
	joiner_expect(joiner, MSG_JOINED, &message);
	message_finish(&message);
}

void joiner_epoch(struct joiner *joiner)
{
	struct message message;

	joiner_expect(joiner, MSG_EPOCH, &message);
	joiner->epoch = message.u.epoch;
	joiner->nbrokers = message.u.epoch.nbrokers;
	memcpy(joiner->brokers, message.u.epoch.brokers, joiner->nbrokers * sizeof(uint64_t));
	joiner->epoch.brokers = joiner->brokers;
	message_finish(&message);
}

void joiner_data(
	struct raw *data, const char *address, const struct msg_epoch *epoch, uint8_t token_xor)
{
	struct message message;

	tcp_open(data, address);
	message_init(&message, MSG_DATA, 0);
	message.u.data.epoch = epoch->epoch;
	message.u.data.rank = epoch->rank;
	memcpy(message.u.data.token, epoch->token, TOKEN_BYTES);
	message.u.data.token[TOKEN_BYTES - 1] ^= token_xor;
	raw_send(data, &message);
}

void joiner_warms(const struct joiner *joiner, struct raw *data)
{
	struct pollfd pollfd = {.fd = conn_fd(data->conn), .events = POLLIN};
	uint64_t header[3];

	assert_int_equal(poll(&pollfd, 1, PATIENCE_MS), 1);
	assert_int_equal(recv(pollfd.fd, header, sizeof(header), MSG_WAITALL), sizeof(header));
	assert_int_equal(header[0], joiner->epoch.epoch);
	assert_int_equal(header[1], 0);
	assert_int_equal(header[2], 0);
}

void joiner_ready(struct joiner *joiner, uint64_t epoch)
{
	struct message message;

	message_init(&message, MSG_EPOCH_READY, 0);
	message.u.epoch_ready.epoch = epoch;
	raw_send(&joiner->raw, &message);
}

void joiner_stands(struct joiner *joiner, struct raw *data, const char *address)
{
	struct msg_join join = joiner_join();

	joiner_joins(joiner, address, &join);
	joiner_epoch(joiner);
	joiner_data(data, address, &joiner->epoch, 0);
	joiner_warms(joiner, data);
	joiner_ready(joiner, joiner->epoch.epoch);
}

void joiner_answer(struct joiner *joiner, enum message_type type, uint64_t epoch, uint64_t update,
	struct group_outcome *groups, size_t ngroups)
{
	struct message message;

	message_init(&message, type, 0);
	message.u.groups.epoch = epoch;
	message.u.groups.update = update;
	message.u.groups.groups = groups;
	message.u.groups.ngroups = ngroups;
	if (type == MSG_PREPARED || type == MSG_MOVED) {
		message.u.groups.hashes = joiner->hashes;
		message.u.groups.nhashes = joiner->nhashes;
	}
	raw_send(&joiner->raw, &message);
}

void joiner_takes(struct joiner *joiner, enum message_type type, uint64_t update)
{
	struct message message;

	joiner_expect(joiner, type, &message);
	assert_int_equal(message.u.decision.update, update);
	message_finish(&message);
}

void joiner_declare(struct joiner *joiner, uint64_t serial, uint32_t rank, uint32_t ranks,
	const struct rows *rows, size_t nrows, void (*spoil)(struct message *message))
{
	struct source *sources;
	struct manifest share;
	struct message message;
	struct draft draft;
	struct blob blob;
	struct error err;

	draft_trainer(&draft, "m", rank, rows, nrows);
	assert_int_equal(blob_to_declaration(&draft.blob, rank, &share, &sources, &err), 0);
	assert_int_equal(blob_from_manifest(&share, NULL, &blob, &err), 0);
	message_init(&message, MSG_DECLARE, serial);
	string_copy(message.u.declare.model, sizeof(message.u.declare.model), "m");
	message.u.declare.rank = rank;
	message.u.declare.ranks = ranks;
	message.u.declare.parts = blob_parts(&blob);
	message.u.declare.bytes = blob.len;
	message.u.declare.hash = blob_hash(&blob);
	if (spoil) {
		spoil(&message);
	}
	assert_int_equal(blob_send_wait(joiner->raw.conn, &blob, PART_MANIFEST,
				 deadline_in_ms(PATIENCE_MS), &err),
		0);
	raw_send(&joiner->raw, &message);
	free(sources);
	manifest_finish(&share);
	blob_finish(&blob);
	draft_finish(&draft);
}

void joiner_refused(struct joiner *joiner, uint64_t serial, int code, const char *word)
{
	struct message message;

	joiner_expect(joiner, MSG_ERROR, &message);
	if (message.serial != serial || error_from_wire(message.u.error.code) != code ||
		!strstr(message.u.error.text, word)) {
		print_error("%d \"%s\" to %d was expected; %d to %d: %s\n", code, word, (int)serial,
			error_from_wire(message.u.error.code), (int)message.serial,
			message.u.error.text);
		fail();
	}
	message_finish(&message);
}

void lead_starts_anew(const struct broker *lead, const char *address)
{
	for (unsigned i = 0; !broker_said(lead, "starts anew"); i++) {
		struct joiner joiner;
		struct raw data;

		assert_in_range(i, 0, LIMIT_EPOCHS);
		joiner_stands(&joiner, &data, address);
		raw_close(&data);
		raw_close(&joiner.raw);
		sleep_ms(1);
	}
}
