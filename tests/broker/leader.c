#include "broker/leader.h"
#include "base/clock.h"
#include "base/util.h"
#include "ipc/socket.h"
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

char leader_address[32];
uint64_t leader_joiner;

static int listener = -1;

static void accept_one(struct raw *raw)
{
	struct pollfd pollfd = {.fd = listener, .events = POLLIN};
	int fd = -1;

	memset(raw, 0, sizeof(*raw));
	raw->page.fd = -1;
	assert_int_equal(poll(&pollfd, 1, PATIENCE_MS), 1);
	assert_int_equal(socket_accept(listener, &fd), 0);
	assert_int_equal(conn_create(fd, false, &raw->conn), 0);
}

/* The next connection that begins with that type; others were given up by the broker. */
void leader_accept(struct raw *raw, enum message_type type, struct message *ret_message)
{
	for (unsigned i = 0; i < 8; i++) {
		struct error err;
		int rc;

		accept_one(raw);
		rc = conn_receive_wait(raw->conn, deadline_in_ms(PATIENCE_MS), ret_message, &err);
		if (rc == 1 && ret_message->type == type) {
			return;
		}
		if (rc == 1) {
			message_finish(ret_message);
		}
		raw_close(raw);
	}
	fail();
}

/* Waits for the broker to join (again). */
void leader_join(struct raw *link)
{
	struct message message;

	leader_accept(link, MSG_JOIN, &message);
	assert_string_equal(message.u.join.backend, "host");
	assert_int_equal(message.u.join.slot_bytes, LIMIT_SLOT_BYTES_MIN);
	leader_joiner = message.u.join.broker_id;
	message_finish(&message);
	message_init(&message, MSG_JOINED, 1);
	message.u.joined.broker_id = LEADER_ID;
	raw_send(link, &message);
}

void leader_epoch_of(
	struct raw *link, uint64_t number, uint32_t rank, uint64_t *brokers, uint32_t ranks)
{
	struct message message;

	message_init(&message, MSG_EPOCH, 0);
	message.u.epoch.epoch = number;
	message.u.epoch.rank = rank;
	message.u.epoch.ranks = ranks;
	message.u.epoch.carrier = CARRIER_TCP;
	message.u.epoch.slot_bytes = LIMIT_SLOT_BYTES_MIN;
	message.u.epoch.token[0] = (uint8_t)number;
	message.u.epoch.brokers = brokers;
	message.u.epoch.nbrokers = ranks;
	raw_send(link, &message);
}

void leader_epoch(struct raw *link, uint64_t number, uint32_t rank, uint32_t ranks)
{
	uint64_t brokers[LIMIT_BROKERS];

	for (uint32_t i = 0; i < ranks; i++) {
		brokers[i] = i ? 5000 + i : LEADER_ID;
	}
	brokers[rank % ranks] = leader_joiner;
	leader_epoch_of(link, number, rank, brokers, ranks);
}

void leader_data(struct raw *data, uint64_t number)
{
	struct message message;
	uint64_t epoch;

	for (;;) {
		leader_accept(data, MSG_DATA, &message);
		epoch = message.u.data.epoch;
		if (epoch == number) {
			break;
		}
		message_finish(&message);
		raw_close(data);
	}
	assert_int_equal(message.u.data.token[0], (uint8_t)number);
	message_finish(&message);
}

/* What the TCP carrier says first: epoch, sequence 0, length 0. */
void leader_warm(struct raw *data, uint64_t number)
{
	uint8_t header[24] = {0};

	for (unsigned i = 0; i < 8; i++) {
		header[i] = (uint8_t)(number >> 8 * i);
	}
	assert_int_equal(
		send(conn_fd(data->conn), header, sizeof(header), MSG_NOSIGNAL), sizeof(header));
}

/* The next epoch_ready of that epoch; those of other epochs are passed over. */
uint32_t leader_ready(struct raw *link, uint64_t number)
{
	struct message message;
	uint32_t code;
	uint64_t epoch;

	do {
		raw_expect(link, MSG_EPOCH_READY, &message);
		epoch = message.u.epoch_ready.epoch;
		code = message.u.epoch_ready.code;
		message_finish(&message);
	} while (epoch != number);
	return code;
}

void leader_makes_epoch(struct raw *link, struct raw *data, uint64_t number)
{
	leader_epoch(link, number, 1, 2);
	leader_data(data, number);
	leader_warm(data, number);
	assert_int_equal(leader_ready(link, number), WIRE_OK);
}

void leader_stands(struct raw *link, struct raw *data, uint64_t number)
{
	leader_join(link);
	leader_makes_epoch(link, data, number);
}

void leader_begin(struct raw *link, uint64_t epoch, uint64_t update, uint64_t hash, uint32_t root)
{
	struct message message;

	message_init(&message, MSG_BEGIN, 0);
	message.u.begin.epoch = epoch;
	message.u.begin.update = update;
	string_copy(message.u.begin.model, sizeof(message.u.begin.model), "m");
	message.u.begin.version = update;
	message.u.begin.manifest_hash = hash;
	message.u.begin.slot_bytes = LIMIT_SLOT_BYTES_MIN;
	message.u.begin.timeout_ms = 5000;
	message.u.begin.roots = &root;
	message.u.begin.nroots = 1;
	raw_send(link, &message);
}

void leader_decides(struct raw *link, enum message_type type, uint64_t epoch, uint64_t update)
{
	static uint32_t replica;
	struct message message;

	message_init(&message, type, 0);
	message.u.decision.epoch = epoch;
	message.u.decision.update = update;
	message.u.decision.replicas = &replica;
	message.u.decision.nreplicas = 1;
	message.u.decision.wire = 1;
	raw_send(link, &message);
}

/* The answer to a step: its code; of its only group the outcome. */
uint32_t leader_groups(
	struct raw *link, enum message_type type, uint64_t update, enum strew_outcome outcome)
{
	struct message message;
	uint32_t code;

	raw_expect(link, type, &message);
	assert_int_equal(message.u.groups.update, update);
	code = message.u.groups.code;
	if (message.u.groups.ngroups) {
		if (message.u.groups.groups[0].outcome != outcome) {
			print_error("%s\n", message.u.groups.groups[0].text);
		}
		assert_int_equal(message.u.groups.groups[0].outcome, outcome);
	}
	message_finish(&message);
	return code;
}

uint64_t leader_manifest(struct raw *link, const struct manifest *manifest, uint64_t root)
{
	struct message message;
	struct blob blob;
	struct error err;
	uint64_t hash;

	assert_int_equal(blob_from_manifest(manifest, NULL, &blob, &err), 0);
	assert_int_equal(
		blob_send_wait(link->conn, &blob, PART_MANIFEST, deadline_in_ms(PATIENCE_MS), &err),
		0);
	hash = blob_hash(&blob);
	message_init(&message, MSG_MANIFEST, 0);
	string_copy(message.u.manifest.model, sizeof(message.u.manifest.model), "m");
	message.u.manifest.parts = blob_parts(&blob);
	message.u.manifest.bytes = blob.len;
	message.u.manifest.hash = hash;
	message.u.manifest.roots = &root;
	message.u.manifest.nroots = 1;
	raw_send(link, &message);
	blob_finish(&blob);
	return hash;
}

uint64_t leader_rows(struct raw *link, const struct rows *rows)
{
	struct source *sources = NULL;
	struct manifest manifest;
	struct draft draft;
	struct error err;
	uint64_t hash;

	draft_trainer(&draft, "m", 0, rows, 1);
	assert_int_equal(blob_to_declaration(&draft.blob, 0, &manifest, &sources, &err), 0);
	assert_int_equal(manifest_seal(&manifest, &err), 0);
	hash = leader_manifest(link, &manifest, LEADER_ID);
	free(sources);
	manifest_finish(&manifest);
	draft_finish(&draft);
	return hash;
}

void leader_bucket(struct raw *data, uint64_t epoch, uint64_t sequence, const struct rows *rows,
	uint64_t version)
{
	size_t bytes = rows->n * rows->cols * sizeof(uint32_t);
	uint64_t header[3] = {epoch, sequence, bytes};
	struct trainer trainer = {.nrows = 1};

	trainer.rows[0] = *rows;
	trainer.memory = malloc(bytes);
	assert_non_null(trainer.memory);
	trainer_write(&trainer, version);
	assert_int_equal(
		send(conn_fd(data->conn), header, sizeof(header), MSG_NOSIGNAL), sizeof(header));
	assert_int_equal(send(conn_fd(data->conn), trainer.memory, bytes, MSG_NOSIGNAL), bytes);
	free(trainer.memory);
}

void leader_start(struct broker *broker)
{
	const char *args[] = {"--join", leader_address, "--verbose", NULL};
	struct error err;
	struct raw link;
	uint16_t port;
	int ready;
	char text[16];

	assert_int_equal(socket_listen_tcp("127.0.0.1:0", false, &listener, &port, &err), 0);
	snprintf(leader_address, sizeof(leader_address), "127.0.0.1:%u", port);
	broker_launch(broker, args, &ready);
	leader_join(&link);
	assert_true(read(ready, text, sizeof(text)) > 0);
	close(ready);
	raw_close(&link);
}

void leader_finish(struct broker *broker)
{
	broker_finish(broker);
	leader_leaves();
}

void leader_leaves(void)
{
	fd_close(&listener);
}

void leader_returns(void)
{
	struct error err;
	uint16_t port;

	assert_int_equal(socket_listen_tcp(leader_address, false, &listener, &port, &err), 0);
}
