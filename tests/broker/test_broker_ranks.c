/*
 * A broker that joined, with a trainer rank of its own, and a lead that is played: an update
 * of which the broker is the root, a lead that goes away at every step of it, and one that lies.
 */
#include "base/clock.h"
#include "base/util.h"
#include "broker/leader.h"
#include "gpu/memfd.h"
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#define BYTES (16u * 32u * 4u)

static struct broker broker;
static uint64_t epoch = 100, version;
static const struct rows whole[] = {{"w", STREW_F32, 16, 32, 0, 16}};
static const struct rows part[] = {{"w", STREW_F32, 16, 32, 0, 12}};

/* A trainer by hand, and what its lead knows of it. */
struct rank {
	struct raw raw, link, data;
	struct draft draft;
	struct manifest share;
	uint64_t declare_serial, publish_serial, hash, word;
};

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
	(void)state;
	broker_wait_no_ranks(&broker);
	return 0;
}

/* What the broker passes on of its rank: its boxes, and not where they lie. */
static void take_declare(struct rank *rank)
{
	const struct msg_declare *said;
	struct blob blob = {0};
	struct message message;
	struct error err;

	raw_expect(&rank->link, MSG_PART, &message);
	assert_int_equal(message.u.part.of, PART_MANIFEST);
	assert_int_equal(blob_append(&blob, &message.u.part, &err), 0);
	message_finish(&message);
	raw_expect(&rank->link, MSG_DECLARE, &message);
	said = &message.u.declare;
	assert_string_equal(said->model, "m");
	assert_int_equal(said->rank, 0);
	assert_int_equal(said->ranks, 1);
	assert_int_equal(blob_check(&blob, said->parts, said->bytes, said->hash, &err), 0);
	manifest_finish(&rank->share);
	assert_int_equal(blob_to_share(&blob, 0, &rank->share, &err), 0);
	assert_int_equal(rank->share.nboxes, 1);
	assert_true(message.serial > 0 && message.serial != rank->declare_serial);
	rank->declare_serial = message.serial;
	message_finish(&message);
	blob_finish(&blob);
}

static void open_rank(struct rank *rank, const struct rows *rows)
{
	memset(rank, 0, sizeof(*rank));
	manifest_init(&rank->share);
	draft_trainer(&rank->draft, "m", 0, rows, 1);
	leader_stands(&rank->link, &rank->data, ++epoch);
	raw_open(&rank->raw, &broker, ROLE_TRAINER);
	draft_send(&rank->raw, &rank->draft);
	take_declare(rank);
}

static void close_link(struct rank *rank)
{
	raw_close(&rank->link);
	raw_close(&rank->data);
}

static void close_rank(struct rank *rank)
{
	raw_close(&rank->raw);
	manifest_finish(&rank->share);
	draft_finish(&rank->draft);
}

static void answer(struct rank *rank, enum message_type type, uint64_t serial)
{
	struct message message;

	message_init(&message, type, serial);
	raw_send(&rank->link, &message);
}

static void seal(struct rank *rank)
{
	struct error err;

	if (!rank->share.sealed) {
		assert_int_equal(manifest_seal(&rank->share, &err), 0);
	}
	rank->hash = leader_manifest(&rank->link, &rank->share, leader_joiner);
}

static void declare(struct rank *rank)
{
	struct message message;

	seal(rank);
	answer(rank, MSG_DECLARED, rank->declare_serial);
	raw_expect(&rank->raw, MSG_DECLARED, &message);
	message_finish(&message);
}

/* Up to where the lead has heard of it, and not of its stream. */
static void publish(struct rank *rank)
{
	struct message message;

	message_init(&message, MSG_PUBLISH, ++rank->raw.serial);
	message.u.publish.version = ++version;
	message.u.publish.word = ++rank->word;
	message.u.publish.flags = 1;
	message.u.publish.timeout_ms = 4321;
	raw_send(&rank->raw, &message);
	raw_expect(&rank->link, MSG_RANK_PUBLISH, &message);
	assert_string_equal(message.u.rank_publish.model, "m");
	assert_int_equal(message.u.rank_publish.rank, 0);
	assert_int_equal(message.u.rank_publish.version, version);
	assert_int_equal(message.u.rank_publish.flags, 1);
	assert_int_equal(message.u.rank_publish.timeout_ms, 4321);
	rank->publish_serial = message.serial;
	message_finish(&message);
}

static void take(struct rank *rank)
{
	struct message message;

	answer(rank, MSG_OK, rank->publish_serial);
	raw_expect(&rank->raw, MSG_OK, &message);
	assert_int_equal(message.serial, rank->raw.serial);
	message_finish(&message);
}

/* The stream is done: the lead hears it. Random bytes are in the memory. */
static void stream(struct rank *rank, uint8_t bytes[BYTES])
{
	struct message message;
	void *memory;

	memory = mmap(NULL, BYTES, PROT_WRITE, MAP_SHARED, rank->draft.fd, 0);
	assert_true(memory != MAP_FAILED);
	test_random_fill(bytes, BYTES);
	memcpy(memory, bytes, BYTES);
	munmap(memory, BYTES);
	page_store(&rank->raw.page, WORD_PUBLISH, rank->word);
	raw_expect(&rank->link, MSG_RANK_DONE, &message);
	assert_int_equal(message.u.rank_done.version, version);
	message_finish(&message);
}

/* The bucket that this broker sends to the lead. */
static void receive(struct rank *rank, const uint8_t bytes[BYTES])
{
	uint8_t got[24 + BYTES];

	for (size_t at = 0; at < sizeof(got);) {
		struct pollfd pollfd = {conn_fd(rank->data.conn), POLLIN, 0};
		ssize_t n;

		assert_int_equal(poll(&pollfd, 1, PATIENCE_MS), 1);
		n = recv(conn_fd(rank->data.conn), got + at, sizeof(got) - at, 0);
		assert_true(n > 0);
		at += (size_t)n;
	}
	assert_int_equal(got[0], (uint8_t)epoch);
	assert_int_equal(got[8], 1);
	assert_memory_equal(got + 24, bytes, BYTES);
}

static void take_released(struct rank *rank)
{
	struct message message;

	raw_expect(&rank->raw, MSG_RELEASED, &message);
	assert_int_equal(message.u.released.version, version);
	message_finish(&message);
}

static void take_report(struct rank *rank, enum strew_outcome outcome, const char *word)
{
	struct message message;

	raw_expect(&rank->raw, MSG_REPORT, &message);
	if (message.u.report.outcome != outcome || !strstr(message.u.report.text, word)) {
		print_error("%d \"%s\" was expected; %d: %s\n", outcome, word,
			message.u.report.outcome, message.u.report.text);
		fail();
	}
	assert_int_equal(message.serial, 0);
	assert_int_equal(message.u.report.version, version);
	message_finish(&message);
}

static void send_report(struct rank *rank)
{
	struct message message;

	message_init(&message, MSG_REPORT, rank->publish_serial);
	message.u.report.version = version;
	message.u.report.outcome = STREW_OUTCOME_COMMITTED;
	string_copy(message.u.report.text, sizeof(message.u.report.text), "from the lead");
	raw_send(&rank->link, &message);
}

/* An update, up to that step. */
static void go_through(struct rank *rank, unsigned step)
{
	uint8_t bytes[BYTES];
	uint64_t update;

	publish(rank);
	update = version; /* its serial here */
	if (step > 0) {
		take(rank);
	}
	if (step > 1) {
		stream(rank, bytes);
	}
	if (step > 2) {
		leader_begin(&rank->link, epoch, update, rank->hash, 1);
		assert_int_equal(leader_groups(&rank->link, MSG_ACCEPT, update, 0), WIRE_OK);
	}
	if (step > 3) {
		leader_decides(&rank->link, MSG_GO, epoch, update);
		receive(rank, bytes);
		take_released(rank);
		assert_int_equal(leader_groups(&rank->link, MSG_PREPARED, update, 0), WIRE_OK);
	}
	if (step > 4) {
		leader_decides(&rank->link, MSG_COMMIT, epoch, update);
		assert_int_equal(leader_groups(&rank->link, MSG_APPLIED, update, 0), WIRE_OK);
	}
}

/*
 * An update up to that step, at which the lead goes away (the last one: it does not). Whatever
 * it was, the rank is declared to the next lead anew, and its process is asked nothing.
 */
static void test_an_update_step_by_step(void **state)
{
	static const struct {
		enum strew_outcome outcome;
		const char *word;
	} ends[] = {
		{0, "the lead is gone"},	    /* not answered */
		{STREW_OUTCOME_ABORTED, "is gone"}, /* taken */
		{STREW_OUTCOME_ABORTED, "is gone"}, /* its stream was done */
		{STREW_OUTCOME_ABORTED, "is gone"}, /* accepted */
		{STREW_OUTCOME_ABORTED, "whether it has committed is not known"},
		{STREW_OUTCOME_COMMITTED, "since its commit"},
		{STREW_OUTCOME_COMMITTED, "from the lead"},
	};
	struct rank rank;

	(void)state;
	open_rank(&rank, whole);
	declare(&rank);
	for (unsigned step = 0; step < ARRAY_LEN(ends); step++) {
		go_through(&rank, step);
		if (step > 5) {
			send_report(&rank);
		} else {
			close_link(&rank);
		}
		if (step == 0) {
			raw_expect_error(&rank.raw, -ECONNRESET, ends[step].word);
		} else {
			if (step < 4) {
				take_released(&rank);
			}
			take_report(&rank, ends[step].outcome, ends[step].word);
		}
		if (step < 6) {
			struct message message;

			/* Not before there is a lead again. */
			message_init(&message, MSG_PUBLISH, ++rank.raw.serial);
			message.u.publish.version = version + 1;
			message.u.publish.word = rank.word;
			raw_send(&rank.raw, &message);
			raw_expect_error(&rank.raw, -EBUSY, "publish");
			leader_join(&rank.link);
			take_declare(&rank);
			leader_makes_epoch(&rank.link, &rank.data, ++epoch);
			seal(&rank);
			answer(&rank, MSG_DECLARED, rank.declare_serial);
			raw_expect_silence(&rank.raw, 30);
		}
	}
	close_link(&rank);
	close_rank(&rank);
}

/* A trainer that goes is undeclared, and until that is answered no manifest counts. */
static void test_undeclared(void **state)
{
	(void)state;
	for (unsigned lent = 0; lent < 2; lent++) {
		struct message message;
		struct rank rank;

		open_rank(&rank, whole);
		declare(&rank);
		if (lent) {
			publish(&rank);
			take(&rank);
		}
		raw_close(&rank.raw);
		raw_expect(&rank.link, MSG_UNDECLARE, &message);
		assert_string_equal(message.u.undeclare.model, "m");
		assert_int_equal(message.u.undeclare.rank, 0);
		assert_int_equal(message.u.undeclare.released, !lent);
		/* These have crossed. */
		seal(&rank);
		leader_begin(&rank.link, epoch, 7, rank.hash, 1);
		assert_int_equal(leader_groups(&rank.link, MSG_ACCEPT, 7, 0), WIRE_NOT_FOUND);
		leader_decides(&rank.link, MSG_ABORT, epoch, 7);
		assert_int_equal(leader_groups(&rank.link, MSG_APPLIED, 7, 0), WIRE_OK);
		answer(&rank, MSG_OK, message.serial);
		message_finish(&message);
		/* Now it is somebody else's. */
		rank.hash = leader_manifest(&rank.link, &rank.share, LEADER_ID);
		leader_begin(&rank.link, epoch, 8, rank.hash, 0);
		assert_int_equal(leader_groups(&rank.link, MSG_ACCEPT, 8, 0), WIRE_OK);
		leader_decides(&rank.link, MSG_ABORT, epoch, 8);
		assert_int_equal(leader_groups(&rank.link, MSG_APPLIED, 8, 0), WIRE_OK);
		close_link(&rank);
		close_rank(&rank);
	}
}

static void refuse(struct rank *rank, uint64_t serial, enum wire_code code, const char *text)
{
	struct message message;

	message_init(&message, MSG_ERROR, serial);
	message.u.error.code = code;
	string_copy(message.u.error.text, sizeof(message.u.error.text), text);
	raw_send(&rank->link, &message);
}

/* The lead's refusals reach the process; those of requests that nobody made reach nobody. */
static void test_refused(void **state)
{
	struct rank rank;

	(void)state;
	open_rank(&rank, whole);
	refuse(&rank, rank.declare_serial + 100, WIRE_EXISTS, "nothing");
	answer(&rank, MSG_DECLARED, rank.declare_serial + 100);
	answer(&rank, MSG_OK, rank.declare_serial + 100);
	answer(&rank, MSG_REPORT, rank.declare_serial + 100);
	raw_expect_silence(&rank.raw, 30);
	declare(&rank);
	publish(&rank);
	refuse(&rank, rank.publish_serial, WIRE_STALE_VERSION, "too old");
	raw_expect_error(&rank.raw, -ESTALE, "too old");
	/* Its word is no news any more. */
	page_store(&rank.raw.page, WORD_PUBLISH, rank.word);
	raw_expect_silence(&rank.link, 30);
	publish(&rank);
	take(&rank);
	send_report(&rank);
	take_released(&rank);
	take_report(&rank, STREW_OUTCOME_COMMITTED, "from the lead");
	/* The other ranks have brought it down: it is refused late. */
	refuse(&rank, rank.declare_serial, WIRE_INVALID, "tensor w: another shape");
	raw_expect_error(&rank.raw, -EINVAL, "another shape");
	raw_expect_end(&rank.raw);
	raw_expect_silence(&rank.link, 30); /* no undeclare: the lead knows */
	close_link(&rank);
	close_rank(&rank);
}

/* A manifest that counts on memory here which nobody has declared, or on other boxes of it. */
static void test_a_lead_that_lies(void **state)
{
	struct manifest claimed;
	struct source *sources;
	struct draft draft;
	struct error err;
	struct rank rank;

	(void)state;
	draft_trainer(&draft, "m", 0, whole, 1);
	assert_int_equal(blob_to_declaration(&draft.blob, 0, &claimed, &sources, &err), 0);
	assert_int_equal(manifest_seal(&claimed, &err), 0);
	open_rank(&rank, part);
	leader_manifest(&rank.link, &claimed, leader_joiner);
	raw_expect_end(&rank.link);
	close_link(&rank);
	close_rank(&rank);
	leader_join(&rank.link);
	assert_true(broker_said(&broker, "not the box that rank 0 has declared"));
	leader_manifest(&rank.link, &claimed, leader_joiner);
	raw_expect_end(&rank.link);
	raw_close(&rank.link);
	manifest_finish(&claimed);
	draft_finish(&draft);
	free(sources);

	/* Roots that the epoch does not have, or that are not where the manifest says. */
	open_rank(&rank, whole);
	assert_true(broker_said(&broker, "trainer rank 0 is not declared here"));
	declare(&rank);
	for (uint32_t root = 0; root < 3; root += 2) {
		leader_begin(&rank.link, epoch, 20 + root, rank.hash, root);
		assert_int_equal(leader_groups(&rank.link, MSG_ACCEPT, 20 + root, 0), WIRE_INVALID);
		leader_decides(&rank.link, MSG_ABORT, epoch, 20 + root);
		leader_groups(&rank.link, MSG_APPLIED, 20 + root, 0);
	}
	/* A report in the middle of the update. */
	publish(&rank);
	take(&rank);
	leader_begin(&rank.link, epoch, version, rank.hash, 1);
	assert_int_equal(leader_groups(&rank.link, MSG_ACCEPT, version, 0), WIRE_OK);
	send_report(&rank);
	raw_expect_end(&rank.link);
	take_released(&rank);
	take_report(&rank, STREW_OUTCOME_ABORTED, "is gone");
	close_link(&rank);
	close_rank(&rank);
}

#define CASE(name) cmocka_unit_test_teardown(name, check)

int main(void)
{
	const struct CMUnitTest tests[] = {
		CASE(test_an_update_step_by_step),
		CASE(test_undeclared),
		CASE(test_refused),
		CASE(test_a_lead_that_lies),
	};

	return test_finish(cmocka_run_group_tests(tests, start, finish), test_fds_at_start);
}
