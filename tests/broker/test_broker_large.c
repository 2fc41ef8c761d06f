/*
 * Manifests that are more together than an outbox may hold: a broker that joins takes them at its
 * own pace, whoever of the two sends them. And questions that look at all of them.
 */
#include "base/clock.h"
#include "base/util.h"
#include "broker/joiner.h"
#include "broker/leader.h"
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MODELS 2
#define LARGE_TENSORS 200000u
#define LARGE_NAME_BYTES 240u /* 50 MB of names in each */
#define LONG_MS 60000	      /* for what takes many times as long with sanitizers */

_Static_assert(MODELS *LARGE_TENSORS *LARGE_NAME_BYTES > LIMIT_BROKER_OUTBOX_BYTES + (10u << 20),
	"what the sockets take beside the outbox, they would fit");

static struct raw trainers[MODELS];

static const char *name_of(unsigned model)
{
	static const char *const names[MODELS] = {"one", "two"};

	return names[model];
}

/* Trainers of all models have sealed; their answers come when the models stand. */
static void trainers_seal(const struct broker *broker)
{
	for (unsigned i = 0; i < MODELS; i++) {
		struct draft draft;

		draft_large(&draft, name_of(i), LARGE_TENSORS, LARGE_NAME_BYTES);
		raw_open(&trainers[i], broker, ROLE_TRAINER);
		draft_send(&trainers[i], &draft);
		draft_finish(&draft);
	}
}

static void hear(struct raw *raw, struct message *ret_message)
{
	struct error err = {0};
	int rc = conn_receive_wait(raw->conn, deadline_in_ms(LONG_MS), ret_message, &err);

	if (rc != 1) {
		print_error("a message was expected: %s\n", err.text);
	}
	assert_int_equal(rc, 1);
}

static void trainers_declared(void)
{
	for (unsigned i = 0; i < MODELS; i++) {
		struct message message;

		hear(&trainers[i], &message);
		assert_int_equal(message.type, MSG_DECLARED);
		message_finish(&message);
	}
}

static void trainers_leave(void)
{
	for (unsigned i = 0; i < MODELS; i++) {
		raw_close(&trainers[i]);
	}
}

/* Nothing is read until all has been queued that is queued without that. */
static void wait_for_the_first(struct raw *raw, const struct broker *broker)
{
	struct pollfd pollfd = {.fd = conn_fd(raw->conn), .events = POLLIN};
	struct message message;
	struct raw observer;

	assert_int_equal(poll(&pollfd, 1, LONG_MS), 1);
	raw_open(&observer, broker, ROLE_OBSERVER);
	message_init(&message, MSG_STATUS, 1);
	raw_send(&observer, &message);
	hear(&observer, &message);
	message_finish(&message);
	raw_close(&observer);
}

/* Parts and the message behind them, of each model once. */
static void take_blobs(struct raw *raw, enum message_type type)
{
	unsigned found = 0;

	for (unsigned n = 0; n < MODELS;) {
		struct blob blob = {0};
		struct message message;
		struct error err;

		for (;;) {
			hear(raw, &message);
			if (message.type == MSG_PART) {
				assert_int_equal(blob_append(&blob, &message.u.part, &err), 0);
			} else if (message.type != MSG_ALIVE) {
				break;
			}
			message_finish(&message);
		}
		assert_int_equal(message.type, type);
		if (type == MSG_MANIFEST) {
			const struct msg_manifest *said = &message.u.manifest;

			assert_int_equal(
				blob_check(&blob, said->parts, said->bytes, said->hash, &err), 0);
			found |= 1u << strcmp(said->model, name_of(0));
		} else {
			const struct msg_declare *said = &message.u.declare;

			assert_int_equal(
				blob_check(&blob, said->parts, said->bytes, said->hash, &err), 0);
			found |= 1u << strcmp(said->model, name_of(0));
		}
		n++;
		assert_int_equal(__builtin_popcount(found), n);
		message_finish(&message);
		blob_finish(&blob);
	}
}

/* The epoch is behind the last of them, and is made as ever. */
static void test_to_a_broker_that_joins(void **state)
{
	struct broker lead = {0};
	struct msg_join join = joiner_join();
	struct joiner joiner;
	struct raw data;
	char address[32];

	(void)state;
	free_address(address);
	broker_start(&lead, (const char *[]){"--listen", address, NULL});
	trainers_seal(&lead);
	trainers_declared();
	joiner_joins(&joiner, address, &join);
	wait_for_the_first(&joiner.raw, &lead);
	take_blobs(&joiner.raw, MSG_MANIFEST);
	joiner_epoch(&joiner);
	joiner_data(&data, address, &joiner.epoch, 0);
	joiner_warms(&joiner, &data);
	joiner_ready(&joiner, joiner.epoch.epoch);
	broker_wait_brokers(&lead, 2);
	assert_false(broker_said(&lead, "does not read"));
	raw_close(&data);
	raw_close(&joiner.raw);
	trainers_leave();
	broker_finish(&lead);
}

static void wait_mapped(const struct broker *broker)
{
	static const char word[] = " mapped 1 allocations";
	uint64_t deadline = deadline_in_ms(LONG_MS);
	unsigned found = 0;

	while (found < MODELS) {
		char *said = read_text(broker->log);

		assert_false(deadline_passed(deadline));
		found = 0;
		for (char *at = said; at && (at = strstr(at, word)); at += sizeof(word) - 1) {
			found++;
		}
		free(said);
		sleep_ms(20);
	}
}

/* What a broker's own trainers have declared, when it has a lead again. */
static void test_to_the_lead(void **state)
{
	struct broker broker = {0};
	struct raw link;

	(void)state;
	leader_start(&broker);
	leader_leaves();
	trainers_seal(&broker);
	wait_mapped(&broker);
	leader_returns();
	leader_join(&link);
	wait_for_the_first(&link, &broker);
	take_blobs(&link, MSG_DECLARE);
	assert_false(broker_said(&broker, "does not read"));
	raw_close(&link);
	trainers_leave();
	leader_finish(&broker);
}

#define ASKERS 8
#define QUESTIONS 64 /* as many as one connection's cheap ones in a round */

static void ask_what_is_not_there(struct raw *raw)
{
	struct message message;

	for (unsigned i = 0; i < QUESTIONS; i++) {
		message_init(&message, MSG_EXPLAIN, ++raw->serial);
		string_copy(message.u.explain.name, sizeof(message.u.explain.name), "w");
		raw_send(raw, &message);
	}
}

/* Each of them looks at all names. Who asks something else waits for one of each connection, not
 * for all of them. */
static void test_dear_questions(void **state)
{
	struct raw askers[ASKERS], observer;
	struct broker broker = {0};
	struct message message;
	uint64_t from, answered_ns, all_ns;

	(void)state;
	broker_start(&broker, NULL);
	trainers_seal(&broker);
	trainers_declared();
	for (unsigned i = 0; i < ASKERS; i++) {
		raw_open(&askers[i], &broker, ROLE_OBSERVER);
	}
	raw_open(&observer, &broker, ROLE_OBSERVER);
	/* All of it is there when the broker looks, in whatever order: one of two comes behind it.
	 */
	assert_int_equal(kill(broker.pid, SIGSTOP), 0);
	for (unsigned i = 0; i < ASKERS; i++) {
		ask_what_is_not_there(&askers[i]);
	}
	message_init(&message, MSG_STATUS, 1);
	raw_send(&observer, &message);
	from = clock_ns();
	assert_int_equal(kill(broker.pid, SIGCONT), 0);
	for (unsigned i = 0; i < 2; i++) {
		hear(&observer, &message);
		assert_int_equal(message.type, MSG_STATUS_REPLY);
		message_finish(&message);
		if (i == 0) {
			message_init(&message, MSG_STATUS, 2);
			raw_send(&observer, &message);
		}
	}
	answered_ns = clock_ns() - from;
	for (unsigned i = 0; i < ASKERS * QUESTIONS; i++) {
		hear(&askers[i / QUESTIONS], &message);
		assert_int_equal(message.type, MSG_ERROR);
		message_finish(&message);
	}
	all_ns = clock_ns() - from;
	if (answered_ns > all_ns / 4) {
		print_error("status after %d ms of %d\n", (int)(answered_ns / 1000000),
			(int)(all_ns / 1000000));
	}
	assert_in_range(answered_ns, 0, all_ns / 4);
	for (unsigned i = 0; i < ASKERS; i++) {
		raw_close(&askers[i]);
	}
	raw_close(&observer);
	trainers_leave();
	broker_finish(&broker);
}

static void wait_said(const struct broker *broker, const char *text)
{
	uint64_t deadline = deadline_in_ms(LONG_MS);

	while (!broker_said(broker, text) && !deadline_passed(deadline)) {
		sleep_ms(20);
	}
	assert_true(broker_said(broker, text));
}

/* Between two real ones, with a key: frames that are made late are sealed in their order. */
static void test_sealed(void **state)
{
	static const char key[] = "thirty-two bytes, of which all count";
	struct broker lead = {0}, joiner = {0};
	char address[32], path[] = "/tmp/strew-key-XXXXXX";
	int fd = mkstemp(path), ready;

	(void)state;
	assert_true(fd >= 0);
	assert_int_equal(write(fd, key, sizeof(key)), sizeof(key));
	close(fd);
	free_address(address);
	broker_start(&lead, (const char *[]){"--listen", address, "--key-file", path, NULL});
	trainers_seal(&lead);
	trainers_declared();
	broker_launch(
		&joiner, (const char *[]){"--join", address, "--key-file", path, NULL}, &ready);
	wait_said(&lead, "epoch 1 stands: 2 brokers");
	for (unsigned i = 0; i < MODELS; i++) {
		char text[64];

		snprintf(text, sizeof(text), "model %s is announced: %u tensors", name_of(i),
			LARGE_TENSORS);
		assert_true(broker_said(&joiner, text));
	}
	assert_false(broker_said(&joiner, "is gone"));
	close(ready);
	broker_finish(&joiner);
	trainers_leave();
	broker_finish(&lead);
	unlink(path);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_to_a_broker_that_joins),
		cmocka_unit_test(test_to_the_lead),
		cmocka_unit_test(test_sealed),
		cmocka_unit_test(test_dear_questions),
	};

	return TEST_RUN(tests);
}
