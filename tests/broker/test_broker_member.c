/*
 * A lead, and a broker with trainer ranks that is played at its control port: one update in
 * which it is a root by hand, what is refused, and what is against the protocol.
 */
#include "base/clock.h"
#include "base/util.h"
#include "broker/joiner.h"
#include "unit/hash_reference.h"
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#define COLS 32
#define HALF_BYTES (8u * COLS * 4u)

static struct broker lead;
static char address[32];
static uint64_t version;
static const struct rows whole[] = {{"w", STREW_F32, 16, COLS, 0, 16}};
static const struct rows upper[] = {{"w", STREW_F32, 16, COLS, 0, 8}};
static const struct rows lower[] = {{"w", STREW_F32, 16, COLS, 8, 8}};

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

/* After every case the lead is alone, has no rank of any model, and has kept nothing. */
static int check(void **state)
{
	(void)state;
	broker_wait_brokers(&lead, 1);
	broker_wait_no_ranks(&lead);
	broker_check(&lead);
	return 0;
}

static void *start_upper(void *data)
{
	struct strew_trainer_options options = {.model = "m", .ranks = 2};

	return (void *)(intptr_t)trainer_start(data, &lead, options, upper, 1);
}

/* Rank 0 in a process at the lead, rank 1 declared by the played broker with serial 10. */
static void declare_both(struct joiner *joiner, struct trainer *trainer)
{
	struct message message;
	pthread_t thread;
	void *rc;

	assert_int_equal(pthread_create(&thread, NULL, start_upper, trainer), 0);
	joiner_declare(joiner, 10, 1, 2, lower, 1, NULL);
	joiner_expect(joiner, MSG_DECLARED, &message);
	assert_int_equal(message.serial, 10);
	assert_int_equal(message.u.declared.tensors, 1);
	assert_int_equal(message.u.declared.bytes, 2 * HALF_BYTES);
	message_finish(&message);
	assert_int_equal(pthread_join(thread, &rc), 0);
	assert_null(rc);
}

static void rank_publish(struct joiner *joiner, uint64_t serial, uint32_t rank)
{
	struct message message;

	message_init(&message, MSG_RANK_PUBLISH, serial);
	string_copy(message.u.rank_publish.model, sizeof(message.u.rank_publish.model), "m");
	message.u.rank_publish.rank = rank;
	message.u.rank_publish.version = version;
	message.u.rank_publish.timeout_ms = PATIENCE_MS;
	raw_send(&joiner->raw, &message);
}

static void rank_done(struct joiner *joiner, uint32_t rank, uint64_t number)
{
	struct message message;

	message_init(&message, MSG_RANK_DONE, 0);
	string_copy(message.u.rank_done.model, sizeof(message.u.rank_done.model), "m");
	message.u.rank_done.rank = rank;
	message.u.rank_done.version = number;
	raw_send(&joiner->raw, &message);
}

static void undeclare(struct joiner *joiner, uint64_t serial, uint32_t rank, uint32_t released)
{
	struct message message;

	message_init(&message, MSG_UNDECLARE, serial);
	string_copy(message.u.undeclare.model, sizeof(message.u.undeclare.model), "m");
	message.u.undeclare.rank = rank;
	message.u.undeclare.released = released;
	raw_send(&joiner->raw, &message);
}

static void take_ok(struct joiner *joiner, uint64_t serial)
{
	struct message message;

	joiner_expect(joiner, MSG_OK, &message);
	assert_int_equal(message.serial, serial);
	message_finish(&message);
}

static void receive(struct raw *data, uint8_t *to, size_t n)
{
	for (size_t at = 0; at < n;) {
		struct pollfd pollfd = {conn_fd(data->conn), POLLIN, 0};
		ssize_t got;

		assert_int_equal(poll(&pollfd, 1, PATIENCE_MS), 1);
		got = recv(conn_fd(data->conn), to + at, n - at, 0);
		assert_true(got > 0);
		at += (size_t)got;
	}
}

static void expect_header(struct raw *data, uint64_t epoch, uint64_t sequence, uint64_t len)
{
	uint64_t header[3];

	receive(data, (uint8_t *)header, sizeof(header));
	assert_int_equal(header[0], epoch);
	assert_int_equal(header[1], sequence);
	assert_int_equal(header[2], len);
}

/*
 * An update up to its prepared: the played broker receives rank 0's bucket, sends its own rank's,
 * and has the hashes of both. Returns the update's number.
 */
static uint64_t move_by_hand(struct joiner *joiner, struct raw *data, struct trainer *trainer,
	uint8_t mine[HALF_BYTES], uint64_t turn)
{
	uint64_t header[3] = {joiner->epoch.epoch, 2 * turn + 2, HALF_BYTES}, update;
	static uint64_t hashes[2];
	uint8_t theirs[HALF_BYTES];
	struct message message;

	version++;
	trainer_write(trainer, version);
	test_random_fill(mine, HALF_BYTES);
	rank_publish(joiner, 20 + turn, 1);
	take_ok(joiner, 20 + turn);
	assert_int_equal(strew_trainer_publish(trainer->trainer, version, NULL, 0, PATIENCE_MS), 0);
	/* Of another version it means nothing. */
	rank_done(joiner, 1, version + 1);
	raw_expect_silence(&joiner->raw, 30);
	rank_done(joiner, 1, version);
	joiner_expect(joiner, MSG_BEGIN, &message);
	update = message.u.begin.update;
	assert_int_equal(message.u.begin.nroots, 2);
	assert_int_equal(message.u.begin.roots[0], 0);
	assert_int_equal(message.u.begin.roots[1], joiner->epoch.rank);
	message_finish(&message);
	joiner_answer(joiner, MSG_ACCEPT, joiner->epoch.epoch, update, NULL, 0);
	joiner_expect(joiner, MSG_GO, &message);
	assert_int_equal(message.u.decision.wire, 1);
	assert_int_equal(message.u.decision.hash, 1); /* the worker's group is staged */
	message_finish(&message);
	expect_header(data, joiner->epoch.epoch, 2 * turn + 1, HALF_BYTES);
	receive(data, theirs, sizeof(theirs));
	assert_memory_equal(theirs, trainer->memory, sizeof(theirs));
	assert_int_equal(
		send(conn_fd(data->conn), header, sizeof(header), MSG_NOSIGNAL), sizeof(header));
	assert_int_equal(send(conn_fd(data->conn), mine, HALF_BYTES, MSG_NOSIGNAL), HALF_BYTES);
	/* The lead's own memory is released without us. */
	assert_int_equal(strew_trainer_wait_released(trainer->trainer, PATIENCE_MS), 0);
	hashes[0] = ref_hash(theirs, sizeof(theirs), 0);
	hashes[1] = ref_hash(mine, HALF_BYTES, joiner->epoch.slot_bytes);
	joiner->hashes = hashes;
	joiner->nhashes = 2;
	return update;
}

static void update_by_hand(struct joiner *joiner, struct raw *data, struct trainer *trainer,
	const struct worker *worker, uint64_t turn)
{
	uint8_t mine[HALF_BYTES];
	uint64_t update = move_by_hand(joiner, data, trainer, mine, turn);
	struct strew_report report;
	struct message message;

	joiner_answer(joiner, MSG_PREPARED, joiner->epoch.epoch, update, NULL, 0);
	joiner_takes(joiner, MSG_COMMIT, update);
	joiner_answer(joiner, MSG_APPLIED, joiner->epoch.epoch, update, NULL, 0);
	joiner_expect(joiner, MSG_REPORT, &message);
	assert_int_equal(message.serial, 20 + turn);
	assert_int_equal(message.u.report.outcome, STREW_OUTCOME_COMMITTED);
	message_finish(&message);
	trainer_reports(trainer, STREW_OUTCOME_COMMITTED, "", &report);
	strew_report_finish(&report);
	assert_memory_equal(worker->memory, trainer->memory, HALF_BYTES);
	assert_memory_equal((uint8_t *)worker->memory + HALF_BYTES, mine, HALF_BYTES);
}

static void test_a_root_by_hand(void **state)
{
	struct strew_report report;
	struct worker worker;
	struct trainer trainer;
	struct joiner joiner;
	struct raw data;

	(void)state;
	joiner_stands(&joiner, &data, address);
	broker_wait_brokers(&lead, 2);
	declare_both(&joiner, &trainer);
	assert_int_equal(
		worker_start(&worker, &lead, (struct strew_agent_options){.model = "m"}, whole, 1),
		0);
	for (uint64_t turn = 0; turn < 3; turn++) {
		update_by_hand(&joiner, &data, &trainer, &worker, turn);
	}
	/* Gone, and the update that waits for its stream with it. */
	version++;
	trainer_write(&trainer, version);
	assert_int_equal(strew_trainer_publish(trainer.trainer, version, NULL, 0, PATIENCE_MS), 0);
	broker_wait_ranks(&lead, 2, "waiting for ranks");
	rank_publish(&joiner, 30, 1);
	take_ok(&joiner, 30);
	raw_close(&joiner.raw);
	raw_close(&data);
	trainer_reports(&trainer, STREW_OUTCOME_ABORTED,
		"trainer rank 1 at node 1, broker played:1, was lost", &report);
	strew_report_finish(&report);
	worker_stop(&worker);
	trainer_stop(&trainer);
}

static void wait_awaited(const char *whom)
{
	uint64_t deadline = deadline_in_ms(PATIENCE_MS);
	struct raw observer;
	bool found = false;

	raw_open(&observer, &lead, ROLE_OBSERVER);
	while (!found) {
		struct message message;

		assert_false(deadline_passed(deadline));
		message_init(&message, MSG_PROGRESS, 1);
		raw_send(&observer, &message);
		raw_expect(&observer, MSG_PROGRESS_REPLY, &message);
		for (size_t i = 0; i < message.u.progress_reply.nmodels; i++) {
			found |= strcmp(message.u.progress_reply.models[i].awaited, whom) == 0;
		}
		message_finish(&message);
	}
	raw_close(&observer);
}

/* They differ, and the rank is gone, and with it the manifest that would name what differs. Whether
 * it is needed any more decides if the update goes on so far that they are compared at all. */
static void test_hashes_of_a_rank_that_is_gone(void **state)
{
	(void)state;
	for (uint32_t released = 0; released < 2; released++) {
		uint8_t mine[HALF_BYTES];
		struct strew_report report;
		struct worker worker;
		struct trainer trainer;
		struct joiner joiner;
		struct raw data;
		uint64_t update;

		joiner_stands(&joiner, &data, address);
		broker_wait_brokers(&lead, 2);
		declare_both(&joiner, &trainer);
		assert_int_equal(worker_start(&worker, &lead,
					 (struct strew_agent_options){.model = "m"}, whole, 1),
			0);
		update = move_by_hand(&joiner, &data, &trainer, mine, 0);
		/* The lead has hashed both buckets as well, and has kept that. */
		wait_awaited("node 1 played:1");
		undeclare(&joiner, 31, 1, released);
		joiner.hashes[1] ^= 1;
		joiner_answer(&joiner, MSG_PREPARED, joiner.epoch.epoch, update, NULL, 0);
		joiner_answer(&joiner, MSG_APPLIED, joiner.epoch.epoch, update, NULL, 0);
		trainer_reports(&trainer, STREW_OUTCOME_ABORTED,
			released ? "tensors w to w, has other bytes here than at node 0"
				 : "trainer rank 1",
			&report);
		strew_report_finish(&report);
		worker_is_poisoned(&worker);
		worker_stop(&worker);
		trainer_stop(&trainer);
		raw_close(&joiner.raw);
		raw_close(&data);
		broker_wait_brokers(&lead, 1);
		broker_wait_no_ranks(&lead);
	}
}

/* What is well-formed and wrong is answered; the broker stands. */
static void test_refusals(void **state)
{
	struct trainer trainer;
	struct joiner joiner;
	struct raw data;

	(void)state;
	joiner_stands(&joiner, &data, address);
	version++;
	rank_publish(&joiner, 2, 1);
	joiner_refused(&joiner, 2, -EBUSY, "trainer rank 1 of model m is not declared");
	declare_both(&joiner, &trainer);
	joiner_declare(&joiner, 11, 1, 2, lower, 1, NULL);
	joiner_refused(&joiner, 11, -EEXIST, "a process at broker played:1");
	joiner_declare(&joiner, 12, 0, 2, upper, 1, NULL);
	joiner_refused(&joiner, 12, -EEXIST, "trainer rank 0 is registered already, by process");
	joiner_declare(&joiner, 13, 2, 3, lower, 1, NULL);
	joiner_refused(&joiner, 13, -EINVAL, "2 trainer ranks, rank 2 says 3");
	/* It may have been refused while this was on its way. */
	undeclare(&joiner, 14, 0, 1);
	take_ok(&joiner, 14);
	version = 0;
	rank_publish(&joiner, 15, 1);
	joiner_refused(&joiner, 15, -ESTALE, "version 0");
	version = 100;
	rank_publish(&joiner, 16, 1);
	take_ok(&joiner, 16);
	rank_publish(&joiner, 17, 1);
	joiner_refused(&joiner, 17, -EBUSY, "still being published");
	undeclare(&joiner, 18, 1, 1);
	take_ok(&joiner, 18);
	rank_publish(&joiner, 19, 1);
	joiner_refused(&joiner, 19, -EBUSY, "is not declared");
	rank_done(&joiner, 1, version);
	raw_expect_silence(&joiner.raw, 30);
	trainer_stop(&trainer);
	raw_close(&joiner.raw);
	raw_close(&data);
}

/* The rank's boxes fit no others: both sides hear it, and the seat is free again. */
static void test_tensors_that_do_not_fit(void **state)
{
	static const struct rows other[] = {{"w", STREW_I32, 16, COLS, 8, 8}};
	struct trainer trainer;
	struct joiner joiner;
	pthread_t thread;
	struct raw data;
	void *rc;

	(void)state;
	joiner_stands(&joiner, &data, address);
	for (uint64_t turn = 0; turn < 2; turn++) {
		assert_int_equal(pthread_create(&thread, NULL, start_upper, &trainer), 0);
		joiner_declare(&joiner, 40 + turn, 1, 2, other, 1, NULL);
		joiner_refused(&joiner, 40 + turn, -EINVAL, "tensor w");
		assert_int_equal(pthread_join(thread, &rc), 0);
		assert_int_equal((intptr_t)rc, -EINVAL);
		trainer_stop(&trainer);
	}
	declare_both(&joiner, &trainer);
	trainer_stop(&trainer);
	raw_close(&joiner.raw);
	raw_close(&data);
}

static void no_serial(struct message *message)
{
	message->serial = 0;
}

static void no_model(struct message *message)
{
	message->u.declare.model[0] = '\0';
}

static void rank_beyond(struct message *message)
{
	message->u.declare.ranks = message->u.declare.rank;
}

static void another_rank(struct message *message)
{
	message->u.declare.rank = 0;
}

static void more_parts(struct message *message)
{
	message->u.declare.parts++;
}

static void more_bytes(struct message *message)
{
	message->u.declare.bytes++;
}

static void another_hash(struct message *message)
{
	message->u.declare.hash ^= 1;
}

static void send_part(struct joiner *joiner, enum part_of of, uint32_t number)
{
	struct message message;
	uint8_t bytes[64];

	test_random_fill(bytes, sizeof(bytes));
	message_init(&message, MSG_PART, 0);
	message.u.part.of = of;
	message.u.part.number = number;
	message.u.part.bytes = bytes;
	message.u.part.nbytes = sizeof(bytes);
	raw_send(&joiner->raw, &message);
}

static void send_garbage(struct joiner *joiner)
{
	struct message message;
	uint8_t bytes[64];

	test_random_fill(bytes, sizeof(bytes));
	message_init(&message, MSG_PART, 0);
	message.u.part.of = PART_MANIFEST;
	message.u.part.bytes = bytes;
	message.u.part.nbytes = sizeof(bytes);
	raw_send(&joiner->raw, &message);
	message_init(&message, MSG_DECLARE, 5);
	string_copy(message.u.declare.model, sizeof(message.u.declare.model), "m");
	message.u.declare.ranks = 1;
	message.u.declare.parts = 1;
	message.u.declare.bytes = sizeof(bytes);
	message.u.declare.hash = blob_hash(&(struct blob){.bytes = bytes, .len = sizeof(bytes)});
	raw_send(&joiner->raw, &message);
}

/* Whatever it had declared goes with it. */
static void test_against_the_protocol(void **state)
{
	static const struct {
		void (*spoil)(struct message *message);
		const char *said;
	} spoils[] = {
		{no_serial, "declare of rank 1 of 2"},
		{no_model, "declare of rank 1 of 2 of model \"\""},
		{rank_beyond, "declare of rank 1 of 1"},
		{another_rank, "rank 0 declares a box of rank 1"},
		{more_parts, "the seal says 2 parts"},
		{more_bytes, "the seal says 1 parts"},
		{another_hash, "the seal's hash"},
	};

	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(spoils) + 7; i++) {
		const char *said = i < ARRAY_LEN(spoils) ? spoils[i].said : "";
		struct trainer trainer;
		struct joiner joiner;
		struct raw data;

		joiner_stands(&joiner, &data, address);
		declare_both(&joiner, &trainer);
		version++;
		switch ((int)i - (int)ARRAY_LEN(spoils)) {
		case 0:
			send_part(&joiner, PART_LAYOUT, 0);
			said = "a part of kind 1";
			break;
		case 1:
			send_part(&joiner, PART_MANIFEST, 1);
			said = "part 1 came where part 0 was due";
			break;
		case 2:
			send_garbage(&joiner);
			break;
		case 3:
			rank_publish(&joiner, 20, 0);
			said = "rank_publish of trainer rank 0 of model m, which is another";
			break;
		case 4:
			rank_done(&joiner, 0, version);
			said = "rank_done of trainer rank 0 of model m, which is another";
			break;
		case 5:
			rank_publish(&joiner, 0, 1);
			said = "rank_publish without a serial";
			break;
		case 6:
			undeclare(&joiner, 0, 1, 1);
			said = "undeclare without a serial";
			break;
		default:
			joiner_declare(&joiner, 20, 1, 2, lower, 1, spoils[i].spoil);
			break;
		}
		raw_expect_end(&joiner.raw);
		raw_close(&joiner.raw);
		raw_close(&data);
		broker_wait_brokers(&lead, 1);
		assert_true(broker_said(&lead, said));
		/* Rank 0 still stands there, alone. */
		trainer_write(&trainer, version);
		assert_int_equal(strew_trainer_publish(trainer.trainer, version, NULL, 0, 1000), 0);
		assert_int_equal(strew_trainer_wait_report(
					 trainer.trainer, PATIENCE_MS, &(struct strew_report){0}),
			-EBUSY);
		trainer_stop(&trainer);
		broker_wait_no_ranks(&lead);
	}
}

#define CASE(name) cmocka_unit_test_teardown(name, check)

int main(void)
{
	const struct CMUnitTest tests[] = {
		CASE(test_a_root_by_hand),
		CASE(test_hashes_of_a_rank_that_is_gone),
		CASE(test_refusals),
		CASE(test_tensors_that_do_not_fit),
		CASE(test_against_the_protocol),
	};

	return test_finish(cmocka_run_group_tests(tests, start, finish), test_fds_at_start);
}
