/*
 * A lead, and a played broker that says other hashes than the lead has sent: what the lead says of
 * them, also when nobody publishes the tensors any more.
 */
#include "base/util.h"
#include "broker/joiner.h"
#include <poll.h>
#include <string.h>
#include <sys/socket.h>

#define COLS 32
#define HALF_BYTES (8u * COLS * 4u)

static struct broker lead;
static char address[32];
static uint64_t version;
static const struct rows both[] = {{"w", STREW_F32, 8, COLS, 0, 8}, {"v", STREW_F32, 8, COLS, 0, 8},
	{"empty", STREW_F32, 0, COLS, 0, 0}};
static uint64_t wrong[2] = {1, 2};

static int start(void **state)
{
	(void)state;
	free_address(address);
	broker_start(&lead, (const char *[]){"--listen", address, "--verbose", NULL});
	return 0;
}

static int finish(void **state)
{
	(void)state;
	broker_finish(&lead);
	return 0;
}

/* After every case the lead is alone and alive, has no rank of any model, and has kept nothing. */
static int check(void **state)
{
	(void)state;
	broker_wait_brokers(&lead, 1);
	broker_wait_no_ranks(&lead);
	broker_check(&lead);
	return 0;
}

static void receive(struct raw *data, void *to, size_t n)
{
	for (size_t at = 0; at < n;) {
		struct pollfd pollfd = {conn_fd(data->conn), POLLIN, 0};
		ssize_t got;

		assert_int_equal(poll(&pollfd, 1, PATIENCE_MS), 1);
		got = recv(conn_fd(data->conn), (char *)to + at, n - at, 0);
		assert_true(got > 0);
		at += (size_t)got;
	}
}

/* So many bytes in as many buckets as they come in, of which there is a hash each. */
static void receive_buckets(struct joiner *joiner, struct raw *data, uint64_t len_bytes)
{
	uint8_t bytes[4 * HALF_BYTES];
	uint64_t header[3];

	joiner->hashes = wrong;
	joiner->nhashes = 0;
	for (uint64_t at = 0; at < len_bytes; at += header[2]) {
		receive(data, header, sizeof(header));
		assert_int_equal(header[0], joiner->epoch.epoch);
		assert_in_range(header[2], 1, sizeof(bytes));
		receive(data, bytes, header[2]);
		joiner->nhashes++;
	}
	assert_in_range(joiner->nhashes, len_bytes != 0, ARRAY_LEN(wrong));
}

/* From begin to where the played broker has all that is sent; the update's number. */
static uint64_t receive_by_hand(struct joiner *joiner, struct raw *data, uint64_t len_bytes)
{
	struct group_outcome group = {.state = STREW_GROUP_PENDING};
	struct message message;
	uint64_t update;

	joiner_expect(joiner, MSG_BEGIN, &message);
	update = message.u.begin.update;
	message_finish(&message);
	joiner_answer(joiner, MSG_ACCEPT, joiner->epoch.epoch, update, &group, 1);
	joiner_expect(joiner, MSG_GO, &message);
	assert_int_equal(message.u.decision.wire, 1);
	assert_int_equal(message.u.decision.hash, 1);
	message_finish(&message);
	receive_buckets(joiner, data, len_bytes);
	return update;
}

/* What stands in the abort. */
static void expect_abort(struct joiner *joiner, uint64_t update, const char *word)
{
	struct message message;

	joiner_expect(joiner, MSG_ABORT, &message);
	assert_int_equal(message.u.decision.update, update);
	if (!strstr(message.u.decision.text, word)) {
		print_error("\"%s\" was expected: %s\n", word, message.u.decision.text);
		fail();
	}
	message_finish(&message);
	joiner_answer(joiner, MSG_APPLIED, joiner->epoch.epoch, update, NULL, 0);
}

static void stand(struct joiner *joiner, struct raw *data, struct trainer *trainer)
{
	struct strew_trainer_options options = {.model = "m"};

	joiner_stands(joiner, data, address);
	broker_wait_brokers(&lead, 2);
	assert_int_equal(trainer_start(trainer, &lead, options, both, 3), 0);
	trainer_write(trainer, ++version);
}

static void test_tensors_are_named(void **state)
{
	struct strew_report report;
	struct trainer trainer;
	struct joiner joiner;
	struct raw data;
	uint64_t update;

	(void)state;
	stand(&joiner, &data, &trainer);
	assert_int_equal(strew_trainer_publish(
				 trainer.trainer, version, NULL, STREW_PUBLISH_HASH, PATIENCE_MS),
		0);
	update = receive_by_hand(&joiner, &data, 2 * HALF_BYTES);
	joiner_answer(&joiner, MSG_PREPARED, joiner.epoch.epoch, update, NULL, 0);
	expect_abort(&joiner, update, "bucket 0, tensors w to v, has other bytes");
	trainer_reports(&trainer, STREW_OUTCOME_ABORTED, "changed on the wire", &report);
	strew_report_finish(&report);
	trainer_stop(&trainer);
	raw_close(&joiner.raw);
	raw_close(&data);
}

/* It has its memory back and goes; what it has published is under way all the same. */
static void test_the_trainer_is_gone(void **state)
{
	struct trainer trainer;
	struct joiner joiner;
	struct raw data;
	uint64_t update;

	(void)state;
	stand(&joiner, &data, &trainer);
	assert_int_equal(strew_trainer_publish(
				 trainer.trainer, version, NULL, STREW_PUBLISH_HASH, PATIENCE_MS),
		0);
	update = receive_by_hand(&joiner, &data, 2 * HALF_BYTES);
	assert_int_equal(strew_trainer_wait_released(trainer.trainer, PATIENCE_MS), 0);
	trainer_stop(&trainer);
	broker_wait_no_ranks(&lead);
	joiner_answer(&joiner, MSG_PREPARED, joiner.epoch.epoch, update, NULL, 0);
	expect_abort(&joiner, update, "has other bytes");
	raw_close(&joiner.raw);
	raw_close(&data);
}

/* The rank of an update in parts goes: aborted, while the played broker's word is on its way. */
static void test_moved_crosses_an_abort(void **state)
{
	struct trainer trainer;
	struct joiner joiner;
	struct message message;
	struct raw data;
	uint64_t update;
	uint32_t subset;

	(void)state;
	stand(&joiner, &data, &trainer);
	assert_int_equal(
		strew_trainer_subset(trainer.trainer, &(const char *){"v"}, 1, &subset), 0);
	joiner_expect(&joiner, MSG_CHOSEN, &message);
	message_finish(&message);
	assert_int_equal(
		strew_trainer_open_parts(trainer.trainer, version, STREW_PUBLISH_HASH, PATIENCE_MS),
		0);
	assert_int_equal(strew_trainer_put(trainer.trainer, subset, NULL), 0);
	update = receive_by_hand(&joiner, &data, HALF_BYTES);
	assert_int_equal(strew_trainer_wait_released(trainer.trainer, PATIENCE_MS), 0);
	trainer_stop(&trainer);
	broker_wait_no_ranks(&lead);
	joiner_answer(&joiner, MSG_MOVED, joiner.epoch.epoch, update, NULL, 0);
	expect_abort(&joiner, update, "trainer rank 0 was lost");
	raw_close(&joiner.raw);
	raw_close(&data);
}

/* A subset of no bytes: there is nothing to send and to hash, nor to keep for the next time. */
static void test_nothing_to_hash(void **state)
{
	struct trainer trainer;
	struct joiner joiner;
	struct message message;
	struct raw data;
	uint32_t subset;

	(void)state;
	stand(&joiner, &data, &trainer);
	assert_int_equal(
		strew_trainer_subset(trainer.trainer, &(const char *){"empty"}, 1, &subset), 0);
	joiner_expect(&joiner, MSG_CHOSEN, &message);
	message_finish(&message);
	for (uint64_t base = 0; base < 3; base = version++) {
		struct group_outcome done = {
			.outcome = STREW_OUTCOME_COMMITTED, .state = STREW_GROUP_CURRENT};
		struct strew_report report;
		uint64_t update;

		assert_int_equal(strew_trainer_publish_subset(trainer.trainer, subset, base,
					 version, NULL, STREW_PUBLISH_HASH, PATIENCE_MS),
			0);
		update = receive_by_hand(&joiner, &data, 0);
		joiner_answer(&joiner, MSG_PREPARED, joiner.epoch.epoch, update, NULL, 0);
		joiner_takes(&joiner, MSG_COMMIT, update);
		joiner_answer(&joiner, MSG_APPLIED, joiner.epoch.epoch, update, &done, 1);
		trainer_reports(&trainer, STREW_OUTCOME_COMMITTED, "", &report);
		strew_report_finish(&report);
	}
	trainer_stop(&trainer);
	raw_close(&joiner.raw);
	raw_close(&data);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_teardown(test_nothing_to_hash, check),
		cmocka_unit_test_teardown(test_tensors_are_named, check),
		cmocka_unit_test_teardown(test_the_trainer_is_gone, check),
		cmocka_unit_test_teardown(test_moved_crosses_an_abort, check),
	};

	return test_finish(cmocka_run_group_tests(tests, start, finish), test_fds_at_start);
}
