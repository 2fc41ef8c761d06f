/*
 * A broker that joined a lead that is played: epochs that follow one another faster than
 * they are made, decisions about what it does not know, and a lead that goes away at every step.
 */
#include "base/clock.h"
#include "base/util.h"
#include "broker/leader.h"
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
static const struct rows whole[] = {{"w", STREW_F32, 16, 32, 0, 16}};

static int start(void **state)
{
	(void)state;
	leader_start(&broker);
	return 0;
}

static int finish(void **state)
{
	(void)state;
	leader_finish(&broker);
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

/* A second one while the first is being made: the first is given up, the second is made. */
static void test_epochs_that_overtake(void **state)
{
	(void)state;
	for (uint64_t number = 10; number < 30; number += 2) {
		struct raw link, first, second;

		leader_join(&link);
		leader_epoch(&link, number, 1, 3);
		leader_data(&first, number);
		leader_epoch(&link, number + 1, 1, 2);
		leader_data(&second, number + 1);
		if (number % 4) {
			raw_close(&first);
		}
		leader_warm(&second, number + 1);
		assert_int_equal(leader_ready(&link, number + 1), WIRE_OK);
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
		leader_join(&link);
		leader_epoch(&link, 50, 1, 2);
		leader_data(&first, 50);
		raw_close(&link);
		leader_join(&link);
		leader_epoch(&link, 1, 1, 2);
		leader_data(&second, 1);
		leader_warm(&second, 1);
		assert_int_equal(leader_ready(&link, 1), WIRE_OK);
		raw_close(&first);
		raw_close(&second);
		raw_close(&link);
	}
}

static void test_epochs_that_make_no_sense(void **state)
{
	struct raw link, data;

	(void)state;
	leader_join(&link);
	/* Not one of its ranks: refused in one way or another. */
	leader_epoch(&link, 60, 5, 2);
	raw_close(&link);
	leader_join(&link);
	leader_epoch(&link, 61, 0, 2);
	raw_close(&link);
	/* A carrier that is out of step. */
	leader_join(&link);
	leader_epoch(&link, 62, 1, 2);
	leader_data(&data, 62);
	leader_warm(&data, 63);
	assert_int_not_equal(leader_ready(&link, 62), WIRE_OK);
	raw_close(&data);
	raw_close(&link);
}

/* Slots that are longer than the broker's own, which a bucket would be written past, or too short.
 */
static void test_slots_that_it_has_not(void **state)
{
	static const uint64_t lengths[] = {0, LIMIT_SLOT_BYTES_MIN - 1, LIMIT_SLOT_BYTES_MIN + 1,
		LIMIT_SLOT_BYTES_MAX, UINT64_MAX};

	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(lengths); i++) {
		struct message message;
		struct raw link;

		leader_join(&link);
		message_init(&message, MSG_EPOCH, 0);
		message.u.epoch.epoch = 70 + i;
		message.u.epoch.rank = 1;
		message.u.epoch.ranks = 2;
		message.u.epoch.carrier = CARRIER_TCP;
		message.u.epoch.slot_bytes = lengths[i];
		message.u.epoch.brokers = (uint64_t[]){LEADER_ID, leader_joiner};
		message.u.epoch.nbrokers = 2;
		raw_send(&link, &message);
		raw_expect_end(&link);
		raw_close(&link);
	}
}

static void test_decisions_about_nothing(void **state)
{
	struct raw link, data;
	struct message message;

	(void)state;
	leader_stands(&link, &data, 70);
	for (uint64_t update = 1; update < 4; update++) {
		leader_decides(&link, MSG_GO, 70, update);
		leader_decides(&link, MSG_COMMIT, 70, update);
		leader_begin(&link, 69, update, 5, 0); /* of another epoch */
		leader_begin(&link, 70, update, 5, 0); /* of a manifest that nobody sent */
		assert_int_not_equal(leader_groups(&link, MSG_ACCEPT, update, 0), WIRE_OK);
		leader_decides(&link, MSG_COMMIT, 70, update);
		leader_decides(&link, MSG_ABORT, 70, update);
		assert_int_equal(leader_groups(&link, MSG_APPLIED, update, 0), WIRE_OK);
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
	struct source *sources = NULL;
	struct manifest manifest;
	struct draft draft;
	struct error err;
	uint64_t hash;

	draft_trainer(&draft, "m", 0, whole, 1);
	assert_int_equal(blob_to_declaration(&draft.blob, 0, &manifest, &sources, &err), 0);
	assert_int_equal(manifest_seal(&manifest, &err), 0);
	hash = leader_manifest(link, &manifest, LEADER_ID);
	free(sources);
	manifest_finish(&manifest);
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
		leader_stands(&link, &data, epoch);
		hash = send_manifest(&link);
		leader_begin(&link, epoch, update, hash, 0);
		assert_int_equal(leader_groups(&link, MSG_ACCEPT, update, 0), WIRE_OK);
		if (step > 0) {
			leader_decides(&link, MSG_GO, epoch, update);
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
			assert_int_equal(leader_groups(&link, MSG_PREPARED, update, 0), WIRE_OK);
		}
		raw_close(&link);
		raw_close(&data);
		broker_wait_state(&broker, "m", states[step]);
		if (step < 2) {
			worker_is_poisoned(&worker);
		}
		/* It joins again by itself, and is asked again. */
		leader_stands(&link, &data, 1);
		hash = send_manifest(&link);
		leader_begin(&link, 1, 900, hash, 0);
		assert_int_equal(leader_groups(&link, MSG_ACCEPT, 900, 0), WIRE_OK);
		leader_decides(&link, MSG_ABORT, 1, 900);
		leader_groups(&link, MSG_APPLIED, 900,
			step < 2 ? STREW_OUTCOME_ABORTED : STREW_OUTCOME_DIRTY);
		raw_close(&link);
		raw_close(&data);
		worker_stop(&worker);
	}
}

/* It goes away when this broker has said that its move failed: nothing was committed. */
static void test_a_lead_that_goes_after_a_failure(void **state)
{
	struct raw link, data;
	struct worker worker;
	uint64_t hash;

	(void)state;
	assert_int_equal(
		worker_start(&worker, &broker,
			(struct strew_agent_options){
				.model = "m", .apply = STREW_APPLY_STAGED, .serve_thread = 1},
			whole, 1),
		0);
	leader_stands(&link, &data, 90);
	hash = send_manifest(&link);
	leader_begin(&link, 90, 910, hash, 0);
	assert_int_equal(leader_groups(&link, MSG_ACCEPT, 910, 0), WIRE_OK);
	leader_decides(&link, MSG_GO, 90, 910);
	raw_close(&data);
	assert_int_not_equal(
		leader_groups(&link, MSG_PREPARED, 910, STREW_OUTCOME_SAT_OUT), WIRE_OK);
	raw_close(&link);
	worker_event(&worker, STREW_EVENT_DONE, STREW_OUTCOME_ABORTED);
	assert_int_equal(broker_group_state(&broker, "m"), STREW_GROUP_CURRENT);
	worker_is_poisoned(&worker);
	worker_stop(&worker);
}

static void test_manifests_that_lie(void **state)
{
	(void)state;
	for (unsigned i = 0; i < 4; i++) {
		uint8_t bytes[100];
		struct message message;
		struct raw link;

		leader_join(&link);
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

/* In no parts comes what was committed of a model that nobody publishes, and no manifest. */
static void test_no_manifest_that_lies(void **state)
{
	(void)state;
	for (unsigned i = 0; i < 3; i++) {
		uint64_t root = LEADER_ID;
		struct message message;
		struct raw link;

		leader_join(&link);
		message_init(&message, MSG_MANIFEST, 0);
		string_copy(message.u.manifest.model, sizeof(message.u.manifest.model), "m");
		message.u.manifest.bytes = i == 0;
		message.u.manifest.hash = i == 1;
		message.u.manifest.roots = &root;
		message.u.manifest.nroots = i == 2;
		raw_send(&link, &message);
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
	leader_join(&kept);
	for (size_t i = 0; i < ARRAY_LEN(timeouts); i++) {
		struct broker refused = {0};
		struct message message;
		int ready;

		broker_launch(&refused,
			(const char *[]){
				"--join", leader_address, "--join-timeout", timeouts[i], NULL},
			&ready);
		close(ready);
		leader_accept(&link, MSG_JOIN, &message);
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

/* NCCL keeps something of each communicator: behind many it starts anew, and says so.
 * The last case, as it ends the broker. */
static void test_it_starts_anew(void **state)
{
	struct raw link, data;
	struct message message;
	uint64_t number = 1000;

	(void)state;
	leader_join(&link);
	while (!broker_said(&broker, "starts anew")) {
		assert_in_range(number, 1000, 1000 + LIMIT_EPOCHS);
		leader_makes_epoch(&link, &data, ++number);
		raw_close(&data);
	}
	raw_expect(&link, MSG_BYE, &message);
	assert_int_equal(message.u.bye.again, 1);
	message_finish(&message);
	raw_expect_end(&link);
	raw_close(&link);
	/* Its successor is another one, and leaves in order. */
	number = leader_joiner;
	leader_join(&link);
	assert_true(leader_joiner != number);
	assert_int_equal(kill(broker.pid, SIGTERM), 0);
	raw_expect(&link, MSG_BYE, &message);
	assert_int_equal(message.u.bye.again, 0);
	message_finish(&message);
	raw_close(&link);
	assert_int_equal(broker_wait(&broker, PATIENCE_MS), 0);
}

#define CASE(name) cmocka_unit_test_teardown(name, check)

int main(void)
{
	const struct CMUnitTest tests[] = {
		CASE(test_epochs_that_overtake),
		CASE(test_a_lead_that_counts_from_one),
		CASE(test_epochs_that_make_no_sense),
		CASE(test_slots_that_it_has_not),
		CASE(test_decisions_about_nothing),
		CASE(test_a_lead_that_goes_after_a_failure),
		CASE(test_a_lead_that_goes_away),
		CASE(test_manifests_that_lie),
		CASE(test_no_manifest_that_lies),
		CASE(test_a_refusal_is_no_timeout),
		cmocka_unit_test(test_it_starts_anew),
	};

	return test_finish(cmocka_run_group_tests(tests, start, finish), test_fds_at_start);
}
