/*
 * A lead with a worker and a trainer of its own, and brokers that are played at its control
 * port: who is refused, what an epoch survives, and that the lead's own node is served
 * whatever they do.
 */
#include "base/clock.h"
#include "base/util.h"
#include "broker/joiner.h"
#include "broker/peers.h"
#include "gpu/gpu.h"
#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/socket.h>

static struct broker lead;
static char address[32];
static struct worker worker;
static struct trainer trainer;
static uint64_t version;
static const struct rows whole[] = {{"w", STREW_F32, 16, 32, 0, 16}};

static int start(void **state)
{
	const char *args[] = {"--listen", address, "--verbose", NULL};
	struct strew_trainer_options options = {.model = "m"};

	(void)state;
	free_address(address);
	broker_start(&lead, args);
	assert_int_equal(
		worker_start(&worker, &lead, (struct strew_agent_options){.model = "m"}, whole, 1),
		0);
	assert_int_equal(trainer_start(&trainer, &lead, options, whole, 1), 0);
	trainer_commits(&trainer, ++version);
	broker_count_fds(&lead);
	return 0;
}

static int finish(void **state)
{
	(void)state;
	trainer_stop(&trainer);
	worker_stop(&worker);
	broker_finish(&lead);
	return 0;
}

/* After every case the lead is alone, and its own node gets its next version. */
static int check(void **state)
{
	(void)state;
	broker_wait_brokers(&lead, 1);
	trainer_commits(&trainer, ++version);
	worker_holds(&worker, version);
	broker_check(&lead);
	return 0;
}

static void refuse(const struct msg_join *join, int code, const char *word, const char *other)
{
	struct joiner joiner;
	struct message message;

	joiner_send(&joiner, address, join);
	raw_expect(&joiner.raw, MSG_ERROR, &message);
	assert_int_equal(error_from_wire(message.u.error.code), code);
	if (!strstr(message.u.error.text, word) || !strstr(message.u.error.text, other)) {
		print_error(
			"\"%s\" and \"%s\" were expected: %s\n", word, other, message.u.error.text);
		fail();
	}
	message_finish(&message);
	raw_expect_end(&joiner.raw);
	raw_close(&joiner.raw);
}

static uint64_t take_begin(struct joiner *joiner)
{
	struct message message;
	uint64_t update;

	joiner_expect(joiner, MSG_BEGIN, &message);
	assert_int_equal(message.u.begin.epoch, joiner->epoch.epoch);
	assert_int_equal(message.u.begin.version, version);
	assert_string_equal(message.u.begin.model, "m");
	update = message.u.begin.update;
	message_finish(&message);
	return update;
}

static void publish(int timeout_ms)
{
	version++;
	trainer_write(&trainer, version);
	assert_int_equal(strew_trainer_publish(trainer.trainer, version, NULL, 0, timeout_ms), 0);
}

static void test_refused(void **state)
{
	static const uint8_t uuid[UUID_BYTES] = {1, 2, 3};
	struct message reply;
	struct joiner joiner;
	struct msg_join join = joiner_join();

	(void)state;
	join.protocol = 77;
	refuse(&join, -EPROTO, "protocol 77", "the lead 1");
	join = joiner_join();
	string_copy(join.backend, sizeof(join.backend), "cuda");
	refuse(&join, -EINVAL, "cuda backend", "host");
	join = joiner_join();
	join.nccl = 22703;
	refuse(&join, -EINVAL, "2.27.3", "none");
	join = joiner_join();
	join.slot_bytes = 0;
	refuse(&join, -EINVAL, "0 bytes", "slots");
	join.slot_bytes = UINT64_MAX;
	refuse(&join, -EINVAL, "18446744073709551615", "slots");
	broker_status(&lead, &reply);
	join = joiner_join();
	join.broker_id = reply.u.status_reply.broker_id;
	message_finish(&reply);
	refuse(&join, -EEXIST, "played:1", "joined already");
	/* On one GPU of one host, and under one name. */
	join = joiner_join();
	memcpy(join.uuid, uuid, sizeof(uuid));
	joiner_joins(&joiner, address, &join);
	refuse(&join, -EEXIST, "played:1", "joined already");
	join.broker_id = joiner_join().broker_id;
	string_copy(join.name, sizeof(join.name), "other:2");
	refuse(&join, -EEXIST, "other:2", "NCCL_HOSTID");
	raw_close(&joiner.raw);
}

static void test_before_join(void **state)
{
	static const enum message_type types[] = {
		MSG_ACCEPT, MSG_EPOCH_READY, MSG_HELLO, MSG_STATUS, MSG_BYE, MSG_COMMIT, MSG_DATA};

	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(types); i++) {
		struct message message;
		struct raw raw;

		tcp_open(&raw, address);
		message_init(&message, types[i], 1);
		message.u.hello.role = ROLE_WORKER;
		if (types[i] != MSG_HELLO) {
			memset(&message.u, 0, sizeof(message.u));
		}
		raw_send(&raw, &message);
		raw_expect_error(&raw, -EPROTO, types[i] == MSG_DATA ? "data connection" : "join");
		raw_expect_end(&raw);
		raw_close(&raw);
	}
	for (unsigned i = 0; i < 20; i++) {
		uint8_t bytes[64];
		struct raw raw;

		tcp_open(&raw, address);
		test_random_fill(bytes, sizeof(bytes));
		bytes[0] = 0;
		assert_int_equal(
			send(conn_fd(raw.conn), bytes, sizeof(bytes), MSG_NOSIGNAL), sizeof(bytes));
		/* Reset or closed: TCP may lose what was said to somebody who had more to say. */
		sleep_ms(1);
		raw_close(&raw);
	}
}

/* It says that it is ready, and never made its data connection: it is dropped at once. */
static void test_ready_without_data(void **state)
{
	struct msg_join join = joiner_join();
	struct joiner joiner;

	(void)state;
	joiner_joins(&joiner, address, &join);
	joiner_epoch(&joiner);
	joiner_ready(&joiner, joiner.epoch.epoch);
	raw_expect_end(&joiner.raw);
	assert_true(broker_said(&lead, "without a data connection"));
	raw_close(&joiner.raw);
}

/* It joins, is given an epoch, and is gone: what was published meanwhile commits. */
static void test_gone_before_the_epoch_stands(void **state)
{
	struct strew_report report;
	struct joiner joiner;

	(void)state;
	for (unsigned i = 0; i < 3; i++) {
		struct msg_join join = joiner_join();

		joiner_joins(&joiner, address, &join);
		joiner_epoch(&joiner);
		assert_int_equal(joiner.epoch.rank, 1);
		assert_int_equal(joiner.epoch.ranks, 2);
		assert_int_equal(joiner.epoch.carrier, CARRIER_TCP);
		assert_int_equal(joiner.epoch.slot_bytes, LIMIT_SLOT_BYTES_MIN);
		publish(PATIENCE_MS);
		if (i == 1) {
			/* What is said of other epochs is nobody's; neither is what is not made. */
			joiner_ready(&joiner, joiner.epoch.epoch - 1);
			joiner_ready(&joiner, joiner.epoch.epoch + 1);
		}
		if (i == 2) {
			struct raw data;

			joiner_data(&data, address, &joiner.epoch, 0);
			sleep_ms(20);
			raw_close(&data);
		}
		raw_close(&joiner.raw);
		trainer_reports(&trainer, STREW_OUTCOME_COMMITTED, "", &report);
		assert_int_equal(report.wire_bytes, 0);
		strew_report_finish(&report);
		worker_holds(&worker, version);
	}
}

/*
 * Who joins while an update runs has no part in it. What it hears of the model says what was
 * committed when its first epoch begins, or its groups would be taken for the last version's.
 */
static void test_joined_in_the_middle(void **state)
{
	struct msg_join join = joiner_join();
	struct strew_report report;
	struct message message;
	struct joiner joiner;
	struct draft draft;
	struct raw raw;

	(void)state;
	draft_worker(&draft, "m", whole, 1);
	draft.reg.replica = 1;
	draft.allocation.kind = HANDLE_PULL; /* or it would catch up first */
	raw_open(&raw, &lead, ROLE_WORKER);
	draft_register(&raw, &draft);
	trainer_write(&trainer, ++version);
	assert_int_equal(strew_trainer_publish(trainer.trainer, version, NULL, 0, PATIENCE_MS), 0);
	raw_expect(&raw, MSG_CHECK, &message);
	message_finish(&message);
	joiner_joins(&joiner, address, &join);
	raw_expect_silence(&joiner.raw, 100);
	raw_close(&raw);
	trainer_reports(&trainer, STREW_OUTCOME_SAT_OUT, "is gone", &report);
	strew_report_finish(&report);
	raw_expect(&joiner.raw, MSG_PART, &message);
	message_finish(&message);
	raw_expect(&joiner.raw, MSG_MANIFEST, &message);
	assert_int_equal(message.u.manifest.committed, version);
	message_finish(&message);
	joiner_epoch(&joiner);
	raw_close(&joiner.raw);
	draft_finish(&draft);
}

static void test_data_connections_of_strangers(void **state)
{
	struct msg_join join = joiner_join();
	struct raw data, stranger;
	struct joiner joiner;

	(void)state;
	joiner_joins(&joiner, address, &join);
	joiner_epoch(&joiner);
	joiner_data(&stranger, address, &joiner.epoch, 1);
	raw_expect_error(&stranger, -EPROTO, "data connection");
	raw_expect_end(&stranger);
	raw_close(&stranger);
	for (uint32_t rank = 0; rank < 4; rank += 2) {
		struct msg_epoch wrong = joiner.epoch;

		wrong.rank = rank;
		joiner_data(&stranger, address, &wrong, 0);
		raw_expect_error(&stranger, -EPROTO, "data connection");
		raw_close(&stranger);
	}
	joiner_data(&data, address, &joiner.epoch, 0);
	/* The place is taken now, also for the right token. */
	joiner_data(&stranger, address, &joiner.epoch, 0);
	raw_expect_error(&stranger, -EPROTO, "data connection");
	raw_close(&stranger);
	joiner_ready(&joiner, joiner.epoch.epoch);
	broker_wait_brokers(&lead, 2);
	joiner_data(&stranger, address, &joiner.epoch, 0);
	raw_expect_error(&stranger, -EPROTO, "data connection");
	raw_close(&stranger);
	raw_close(&data);
	raw_close(&joiner.raw);
}

/* Three exchanges by hand; what belongs to other epochs and updates is ignored. */
static void test_an_update_by_hand(void **state)
{
	struct group_outcome group = {
		.replica = 9, .outcome = STREW_OUTCOME_NONE, .state = STREW_GROUP_PENDING};
	struct strew_report report;
	struct joiner joiner;
	struct raw data;
	uint64_t epoch, update;

	(void)state;
	joiner_stands(&joiner, &data, address);
	broker_wait_brokers(&lead, 2);
	epoch = joiner.epoch.epoch;
	for (unsigned wire = 0; wire < 2; wire++) {
		group.outcome = STREW_OUTCOME_NONE;
		publish(PATIENCE_MS);
		update = take_begin(&joiner);
		joiner_answer(&joiner, MSG_ACCEPT, epoch - 1, update, NULL, 0);
		joiner_answer(&joiner, MSG_ACCEPT, epoch, update + 1, NULL, 0);
		joiner_answer(&joiner, MSG_PREPARED, epoch, update, NULL, 0);
		joiner_answer(&joiner, MSG_APPLIED, epoch, update, NULL, 0);
		raw_expect_silence(&joiner.raw, 50);
		joiner_answer(&joiner, MSG_ACCEPT, epoch, update, &group, wire);
		joiner_takes(&joiner, MSG_GO, update);
		joiner_answer(&joiner, MSG_ACCEPT, epoch, update, &group, wire);
		raw_expect_silence(&joiner.raw, 50);
		joiner_answer(&joiner, MSG_PREPARED, epoch, update, &group, wire);
		joiner_takes(&joiner, MSG_COMMIT, update);
		group.outcome = STREW_OUTCOME_COMMITTED;
		joiner_answer(&joiner, MSG_APPLIED, epoch, update, &group, wire);
		trainer_reports(&trainer, STREW_OUTCOME_COMMITTED, "", &report);
		assert_int_equal(report.ngroups, 1 + wire);
		assert_true((report.wire_bytes > 0) == (wire > 0));
		strew_report_finish(&report);
		worker_holds(&worker, version);
	}
	raw_close(&data);
	raw_close(&joiner.raw);
}

/* Gone or broken at each step of an update. */
static void test_gone_in_an_update(void **state)
{
	struct group_outcome group = {.outcome = STREW_OUTCOME_NONE, .state = STREW_GROUP_PENDING};

	(void)state;
	for (unsigned step = 0; step < 4; step++) {
		struct strew_report report;
		struct joiner joiner;
		struct raw data;
		uint64_t update;

		joiner_stands(&joiner, &data, address);
		broker_wait_brokers(&lead, 2);
		group.replica = 7;
		publish(PATIENCE_MS);
		update = take_begin(&joiner);
		if (step > 0) {
			joiner_answer(&joiner, MSG_ACCEPT, joiner.epoch.epoch, update, &group, 1);
			joiner_takes(&joiner, MSG_GO, update);
		}
		if (step > 1) {
			joiner_answer(&joiner, MSG_PREPARED, joiner.epoch.epoch, update, &group, 1);
			joiner_takes(&joiner, MSG_COMMIT, update);
		}
		if (step == 3) {
			/* Against the protocol, which is as good as gone. */
			joiner_answer(&joiner, MSG_BEGIN, 0, 0, NULL, 0);
		} else {
			raw_close(&joiner.raw);
		}
		trainer_reports(&trainer, step > 1 ? STREW_OUTCOME_SAT_OUT : STREW_OUTCOME_ABORTED,
			"played:1", &report);
		if (step > 0) {
			report_group(&report, 7, STREW_OUTCOME_LOST, "was lost");
		}
		strew_report_finish(&report);
		raw_close(&data);
		if (step == 3) {
			raw_close(&joiner.raw);
		}
		broker_wait_brokers(&lead, 1);
	}
}

#define CASE(name) cmocka_unit_test_teardown(name, check)

/* NCCL keeps something of every communicator: behind many the broker is a new one, and those
 * who were connected find their way back with what they have. */
static void test_many_epochs(void **state)
{
	enum strew_group_state group;
	struct strew_event event;
	uint64_t deadline, held;
	int rc;

	(void)state;
	lead_starts_anew(&lead, address);
	/* First what it has to say of the updates before. */
	do {
		rc = strew_agent_wait(worker.agent, PATIENCE_MS, &event);
		assert_int_equal(rc, 1);
	} while (event.type == STREW_EVENT_DONE);
	assert_int_equal(event.type, STREW_EVENT_LOST);
	rc = -1;
	for (deadline = deadline_in_ms(PATIENCE_MS); rc && !deadline_passed(deadline);) {
		rc = strew_agent_reconnect(worker.agent, PATIENCE_MS);
		sleep_ms(rc ? 10 : 0);
	}
	assert_int_equal(rc, 0);
	assert_int_equal(strew_agent_state(worker.agent, &group, &held), 0);
	assert_int_equal(group, STREW_GROUP_CURRENT);
	assert_true(held == version);
	assert_int_equal(strew_trainer_reconnect(trainer.trainer, PATIENCE_MS), 0);
	broker_count_fds(&lead);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		CASE(test_refused),
		CASE(test_before_join),
		CASE(test_ready_without_data),
		CASE(test_gone_before_the_epoch_stands),
		CASE(test_joined_in_the_middle),
		CASE(test_data_connections_of_strangers),
		CASE(test_an_update_by_hand),
		CASE(test_gone_in_an_update),
		CASE(test_many_epochs),
	};

	return test_finish(cmocka_run_group_tests(tests, start, finish), test_fds_at_start);
}
