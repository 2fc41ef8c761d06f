/*
 * A broker that joined a lead that is played: epochs that follow one another faster than
 * they are made, decisions about what it does not know, and a lead that goes away at every step.
 */
#include "base/clock.h"
#include "base/util.h"
#include "broker/peers.h"
#include "ipc/socket.h"
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static struct broker broker;
static int listener = -1;
static char address[32];
static const struct rows whole[] = {{"w", STREW_F32, 16, 32, 0, 16}};

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
static void accept_type(struct raw *raw, enum message_type type, struct message *ret_message)
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
static void take_join(struct raw *link)
{
	struct message message;

	accept_type(link, MSG_JOIN, &message);
	assert_string_equal(message.u.join.backend, "host");
	assert_int_equal(message.u.join.slot_bytes, LIMIT_SLOT_BYTES_MIN);
	message_finish(&message);
	message_init(&message, MSG_JOINED, 1);
	message.u.joined.broker_id = 4711;
	raw_send(link, &message);
}

static int start(void **state)
{
	const char *args[] = {"--join", address, "--verbose", NULL};
	struct error err;
	struct raw link;
	uint16_t port;
	int ready;
	char text[16];

	(void)state;
	assert_int_equal(socket_listen_tcp("127.0.0.1:0", &listener, &port, &err), 0);
	snprintf(address, sizeof(address), "127.0.0.1:%u", port);
	broker_launch(&broker, args, &ready);
	take_join(&link);
	assert_true(read(ready, text, sizeof(text)) > 0);
	close(ready);
	raw_close(&link);
	return 0;
}

static int finish(void **state)
{
	(void)state;
	broker_finish(&broker);
	close(listener);
	return 0;
}

static int check(void **state)
{
	struct message reply;

	(void)state;
	broker_status(&broker, &reply);
	message_finish(&reply);
	return 0;
}

static void send_epoch(struct raw *link, uint64_t number, uint32_t rank, uint32_t ranks)
{
	struct message message;

	message_init(&message, MSG_EPOCH, 0);
	message.u.epoch.epoch = number;
	message.u.epoch.rank = rank;
	message.u.epoch.ranks = ranks;
	message.u.epoch.carrier = CARRIER_TCP;
	message.u.epoch.slot_bytes = LIMIT_SLOT_BYTES_MIN;
	message.u.epoch.token[0] = (uint8_t)number;
	raw_send(link, &message);
}

static void take_data(struct raw *data, uint64_t number)
{
	struct message message;
	uint64_t epoch;

	for (;;) {
		accept_type(data, MSG_DATA, &message);
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
static void warm(struct raw *data, uint64_t number)
{
	uint8_t header[24] = {0};

	for (unsigned i = 0; i < 8; i++) {
		header[i] = (uint8_t)(number >> 8 * i);
	}
	assert_int_equal(
		send(conn_fd(data->conn), header, sizeof(header), MSG_NOSIGNAL), sizeof(header));
}

/* The next epoch_ready of that epoch; those of other epochs are passed over. */
static uint32_t take_ready(struct raw *link, uint64_t number)
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

static void stand(struct raw *link, struct raw *data, uint64_t number)
{
	take_join(link);
	send_epoch(link, number, 1, 2);
	take_data(data, number);
	warm(data, number);
	assert_int_equal(take_ready(link, number), WIRE_OK);
}

/* A second one while the first is being made: the first is given up, the second is made. */
static void test_epochs_that_overtake(void **state)
{
	(void)state;
	for (uint64_t number = 10; number < 30; number += 2) {
		struct raw link, first, second;

		take_join(&link);
		send_epoch(&link, number, 1, 3);
		take_data(&first, number);
		send_epoch(&link, number + 1, 1, 2);
		take_data(&second, number + 1);
		if (number % 4) {
			raw_close(&first);
		}
		warm(&second, number + 1);
		assert_int_equal(take_ready(&link, number + 1), WIRE_OK);
		if (number % 4 == 0) {
			raw_close(&first);
		}
		raw_close(&second);
		raw_close(&link);
	}
}

/* A lead that was restarted counts from 1 again, also while the last epoch is being made. */
static void test_a_lead_that_counts_from_one(void **state)
{
	struct raw link, first, second;

	(void)state;
	for (unsigned i = 0; i < 3; i++) {
		take_join(&link);
		send_epoch(&link, 50, 1, 2);
		take_data(&first, 50);
		raw_close(&link);
		take_join(&link);
		send_epoch(&link, 1, 1, 2);
		take_data(&second, 1);
		warm(&second, 1);
		assert_int_equal(take_ready(&link, 1), WIRE_OK);
		raw_close(&first);
		raw_close(&second);
		raw_close(&link);
	}
}

static void test_epochs_that_make_no_sense(void **state)
{
	struct raw link, data;

	(void)state;
	take_join(&link);
	/* Not one of its ranks: refused in one way or another. */
	send_epoch(&link, 60, 5, 2);
	raw_close(&link);
	take_join(&link);
	send_epoch(&link, 61, 0, 2);
	raw_close(&link);
	/* A carrier that is out of step. */
	take_join(&link);
	send_epoch(&link, 62, 1, 2);
	take_data(&data, 62);
	warm(&data, 63);
	assert_int_not_equal(take_ready(&link, 62), WIRE_OK);
	raw_close(&data);
	raw_close(&link);
}

static void begin(struct raw *link, uint64_t epoch, uint64_t update, uint64_t hash)
{
	uint32_t root = 0;
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

static void decide(struct raw *link, enum message_type type, uint64_t epoch, uint64_t update)
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
static uint32_t take_groups(
	struct raw *link, enum message_type type, uint64_t update, enum strew_outcome outcome)
{
	struct message message;
	uint32_t code;

	raw_expect(link, type, &message);
	assert_int_equal(message.u.groups.update, update);
	code = message.u.groups.code;
	if (message.u.groups.ngroups) {
		assert_int_equal(message.u.groups.groups[0].outcome, outcome);
	}
	message_finish(&message);
	return code;
}

static void test_decisions_about_nothing(void **state)
{
	struct raw link, data;
	struct message message;

	(void)state;
	stand(&link, &data, 70);
	for (uint64_t update = 1; update < 4; update++) {
		decide(&link, MSG_GO, 70, update);
		decide(&link, MSG_COMMIT, 70, update);
		begin(&link, 69, update, 5); /* of another epoch */
		begin(&link, 70, update, 5); /* of a manifest that nobody sent */
		assert_int_not_equal(take_groups(&link, MSG_ACCEPT, update, 0), WIRE_OK);
		decide(&link, MSG_COMMIT, 70, update);
		decide(&link, MSG_ABORT, 70, update);
		assert_int_equal(take_groups(&link, MSG_APPLIED, update, 0), WIRE_OK);
	}
	raw_expect_silence(&link, 50);
	/* What is no message for it ends the connection, and it joins again. */
	message_init(&message, MSG_JOIN, 1);
	raw_send(&link, &message);
	raw_expect_end(&link);
	raw_close(&link);
	raw_close(&data);
}

static uint64_t send_manifest(struct raw *link)
{
	struct message message;
	struct draft draft;
	struct manifest manifest;
	struct source *sources = NULL;
	struct blob blob;
	struct error err;
	uint64_t root = 4711;
	uint64_t hash;

	draft_trainer(&draft, "m", 0, whole, 1);
	assert_int_equal(blob_to_declaration(&draft.blob, 0, &manifest, &sources, &err), 0);
	assert_int_equal(manifest_seal(&manifest, &err), 0);
	assert_int_equal(blob_from_manifest(&manifest, NULL, &blob, &err), 0);
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
	free(sources);
	manifest_finish(&manifest);
	blob_finish(&blob);
	draft_finish(&draft);
	return hash;
}

/* The lead goes away after begin, after go, after prepared. */
static void test_a_lead_that_goes_away(void **state)
{
	static const enum strew_group_state states[] = {
		STREW_GROUP_CURRENT, STREW_GROUP_CURRENT, STREW_GROUP_DIRTY};

	(void)state;
	for (unsigned step = 0; step < 3; step++) {
		uint64_t epoch = 80 + step, update = 800 + step, hash;
		uint8_t bucket[24 + 16 * 32 * 4] = {0};
		struct raw link, data;
		struct worker worker;

		assert_int_equal(worker_start(&worker, &broker,
					 (struct strew_agent_options){
						 .model = "m", .apply = STREW_APPLY_DIRECT},
					 whole, 1),
			0);
		stand(&link, &data, epoch);
		hash = send_manifest(&link);
		begin(&link, epoch, update, hash);
		assert_int_equal(take_groups(&link, MSG_ACCEPT, update, 0), WIRE_OK);
		if (step > 0) {
			decide(&link, MSG_GO, epoch, update);
			sleep_ms(20);
		}
		if (step > 1) {
			/* Epoch, sequence 1, length, then the bucket itself. */
			bucket[0] = (uint8_t)epoch;
			bucket[8] = 1;
			bucket[17] = 16 * 32 * 4 >> 8;
			assert_int_equal(
				send(conn_fd(data.conn), bucket, sizeof(bucket), MSG_NOSIGNAL),
				sizeof(bucket));
			assert_int_equal(take_groups(&link, MSG_PREPARED, update, 0), WIRE_OK);
		}
		raw_close(&link);
		raw_close(&data);
		broker_wait_state(&broker, "m", states[step]);
		if (step < 2) {
			worker_is_poisoned(&worker);
		}
		/* It joins again by itself, and is asked again. */
		stand(&link, &data, 1);
		hash = send_manifest(&link);
		begin(&link, 1, 900, hash);
		assert_int_equal(take_groups(&link, MSG_ACCEPT, 900, 0), WIRE_OK);
		decide(&link, MSG_ABORT, 1, 900);
		take_groups(&link, MSG_APPLIED, 900,
			step < 2 ? STREW_OUTCOME_ABORTED : STREW_OUTCOME_DIRTY);
		raw_close(&link);
		raw_close(&data);
		worker_stop(&worker);
	}
}

static void test_manifests_that_lie(void **state)
{
	(void)state;
	for (unsigned i = 0; i < 4; i++) {
		uint8_t bytes[100];
		struct message message;
		struct raw link;

		take_join(&link);
		test_random_fill(bytes, sizeof(bytes));
		message_init(&message, MSG_PART, 0);
		message.u.part.of = PART_MANIFEST;
		message.u.part.number = i == 0;
		message.u.part.bytes = bytes;
		message.u.part.nbytes = sizeof(bytes);
		raw_send(&link, &message);
		message_init(&message, MSG_MANIFEST, 0);
		string_copy(message.u.manifest.model, sizeof(message.u.manifest.model), "m");
		message.u.manifest.parts = 1;
		message.u.manifest.bytes = sizeof(bytes);
		message.u.manifest.hash =
			i == 1 ? 0
			       : blob_hash(&(struct blob){.bytes = bytes, .len = sizeof(bytes)});
		if (i == 0) {
			/* It may be gone at the part already. */
			struct error err;

			conn_send(link.conn, &message, &err);
		} else {
			raw_send(&link, &message);
		}
		raw_expect_end(&link);
		raw_close(&link);
	}
}

/* A lead that says no: asking again would not help, whatever time is left. */
static void test_a_refusal_is_no_timeout(void **state)
{
	static const char *const timeouts[] = {"0", "60"};
	struct raw kept, link;

	(void)state;
	/* The other one is kept busy meanwhile. */
	take_join(&kept);
	for (size_t i = 0; i < ARRAY_LEN(timeouts); i++) {
		struct broker refused = {0};
		struct message message;
		int ready;

		broker_launch(&refused,
			(const char *[]){"--join", address, "--join-timeout", timeouts[i], NULL},
			&ready);
		close(ready);
		accept_type(&link, MSG_JOIN, &message);
		message_finish(&message);
		message_init(&message, MSG_ERROR, 1);
		message.u.error.code = WIRE_INVALID;
		string_copy(message.u.error.text, sizeof(message.u.error.text), "not you");
		raw_send(&link, &message);
		assert_int_equal(broker_wait(&refused, PATIENCE_MS), 1);
		assert_true(broker_said(&refused, "not you"));
		raw_close(&link);
		broker_finish(&refused);
	}
	raw_close(&kept);
}

#define CASE(name) cmocka_unit_test_teardown(name, check)

int main(void)
{
	const struct CMUnitTest tests[] = {
		CASE(test_epochs_that_overtake),
		CASE(test_a_lead_that_counts_from_one),
		CASE(test_epochs_that_make_no_sense),
		CASE(test_decisions_about_nothing),
		CASE(test_a_lead_that_goes_away),
		CASE(test_manifests_that_lie),
		CASE(test_a_refusal_is_no_timeout),
	};

	return test_finish(cmocka_run_group_tests(tests, start, finish), test_fds_at_start);
}
