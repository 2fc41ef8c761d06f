/*
 * Brokers that join and spoil the making of a communicator, again and again: the others go on
 * committing, all of them, and what it costs them is bounded. The lead and a second broker are
 * real, and hasty (hasty.h); who spoils is played.
 */
#include "base/clock.h"
#include "base/util.h"
#include "broker/hasty.h"
#include "broker/joiner.h"
#include "broker/peers.h"
#include <errno.h>
#include <poll.h>
#include <string.h>

/* A making without anybody who spoils it, and the gathering before it. */
#define MADE_MS 1500
/* What a making that is spoilt by silence costs: its deadline, REGATHER_MS and the next one. */
#define SPOILT_MS (HASTY_EPOCH_MS + 1000 + MADE_MS)

static struct broker lead, node;
static char address[32];
static struct worker at_lead, at_node;
static struct trainer trainer;
static uint64_t version;
static const struct rows whole[] = {{"w", STREW_F32, 16, 32, 0, 16}};

static int start(void **state)
{
	(void)state;
	memset(&lead, 0, sizeof(lead));
	memset(&node, 0, sizeof(node));
	version = 0;
	free_address(address);
	broker_start(&lead, (const char *[]){"--listen", address, NULL});
	broker_start(&node, (const char *[]){"--join", address, NULL});
	broker_wait_brokers(&lead, 2);
	assert_int_equal(
		worker_start(&at_lead, &lead, (struct strew_agent_options){.model = "m"}, whole, 1),
		0);
	assert_int_equal(
		worker_start(&at_node, &node,
			(struct strew_agent_options){.model = "m", .replica = 1}, whole, 1),
		0);
	assert_int_equal(trainer_start(&trainer, &lead,
				 (struct strew_trainer_options){.model = "m"}, whole, 1),
		0);
	trainer_commits(&trainer, ++version);
	return 0;
}

static int finish(void **state)
{
	(void)state;
	/* The one that has stood was never dropped, and nobody has started himself anew. */
	assert_false(broker_said(&node, "is gone"));
	assert_false(broker_said(&lead, "starts anew"));
	trainer_stop(&trainer);
	worker_stop(&at_lead);
	worker_stop(&at_node);
	broker_finish(&node);
	broker_finish(&lead);
	return 0;
}

/* At both nodes, and so soon. */
static void commits_within(uint64_t limit_ms)
{
	uint64_t from = clock_ns(), took_ms;
	struct strew_report report;

	trainer_write(&trainer, ++version);
	assert_int_equal(
		strew_trainer_publish(trainer.trainer, version, NULL, 0, 2 * PATIENCE_MS), 0);
	assert_int_equal(strew_trainer_wait_report(trainer.trainer, 2 * PATIENCE_MS, &report), 0);
	assert_int_equal(report.outcome, STREW_OUTCOME_COMMITTED);
	assert_int_equal(report.ngroups, 2);
	strew_report_finish(&report);
	worker_holds(&at_lead, version);
	worker_holds(&at_node, version);
	took_ms = (clock_ns() - from) / 1000000u;
	if (took_ms > limit_ms) {
		print_error("version %d took %d ms\n", (int)version, (int)took_ms);
	}
	assert_in_range(took_ms, 0, limit_ms);
}

/* True: it has joined. Else it is told when it may. */
static bool may_join(struct joiner *joiner, const struct msg_join *join)
{
	struct message message;
	bool joined;

	joiner_send(joiner, address, join);
	joiner_hears(joiner, &message);
	joined = message.type == MSG_JOINED;
	if (!joined) {
		assert_int_equal(message.type, MSG_ERROR);
		assert_int_equal(error_from_wire(message.u.error.code), -EBUSY);
		assert_non_null(strstr(message.u.error.text, "may join again in"));
		raw_close(&joiner->raw);
	}
	message_finish(&message);
	return joined;
}

static void fails(struct joiner *joiner)
{
	struct message message;

	joiner_epoch(joiner);
	message_init(&message, MSG_EPOCH_READY, 0);
	message.u.epoch_ready.epoch = joiner->epoch.epoch;
	message.u.epoch_ready.code = WIRE_DEVICE;
	string_copy(message.u.epoch_ready.text, sizeof(message.u.epoch_ready.text), "played");
	raw_send(&joiner->raw, &message);
	joiner_ends(joiner);
	raw_close(&joiner->raw);
}

/* It says nothing once it has an epoch; with a data connection, or without. */
static void silent(bool connects)
{
	struct msg_join join = joiner_join();
	struct joiner joiner;
	struct raw data = {0};
	uint64_t until;

	for (unsigned time = 0; time < 2; time++) {
		assert_true(may_join(&joiner, &join));
		joiner_epoch(&joiner);
		if (connects) {
			joiner_data(&data, address, &joiner.epoch, 0);
		}
		commits_within(SPOILT_MS);
		joiner_ends(&joiner);
		raw_close(&joiner.raw);
		if (connects) {
			raw_close(&data);
		}
		/* Four times what it has cost; nobody else sees it meanwhile. */
		until = deadline_in_ms(4 * HASTY_EPOCH_MS - 2000);
		while (time == 0 && !deadline_passed(until)) {
			join.broker_id++;
			assert_false(may_join(&joiner, &join));
			commits_within(MADE_MS);
			sleep_ms(100);
		}
		sleep_ms(time ? 0 : 3000);
	}
	join.broker_id++;
	assert_false(may_join(&joiner, &join));
}

static void test_silent(void **state)
{
	(void)state;
	silent(false);
	assert_true(broker_said(&lead, "did not make its communicator in time"));
}

static void test_silent_with_data(void **state)
{
	(void)state;
	silent(true);
}

/* It says that it lives, and takes nothing of what the lead has to tell it. */
static void test_does_not_take_manifests(void **state)
{
	struct msg_join join = joiner_join();
	struct message message;
	struct joiner joiner;
	struct draft draft;
	struct raw large;

	(void)state;
	/* More than sockets hold. */
	draft_large(&draft, "large", 50000, 500);
	raw_open(&large, &lead, ROLE_TRAINER);
	draft_register(&large, &draft);
	draft_finish(&draft);
	assert_true(may_join(&joiner, &join));
	/* It has been gathered when something is there to be read. */
	assert_int_equal(
		poll(&(struct pollfd){conn_fd(joiner.raw.conn), POLLIN, 0}, 1, PATIENCE_MS), 1);
	message_init(&message, MSG_ALIVE, 0);
	raw_send(&joiner.raw, &message);
	commits_within(SPOILT_MS);
	assert_true(broker_said(&lead, "it did not take the models' manifests in time"));
	joiner_ends(&joiner);
	raw_close(&joiner.raw);
	join.broker_id++;
	assert_false(may_join(&joiner, &join));
	raw_close(&large);
}

/* It comes back at once and fails at once: ever more seldom, and the others make few epochs. */
static void test_fails_each_time(void **state)
{
	uint64_t until = deadline_in_ms(6500);
	struct msg_join join = joiner_join();
	struct joiner joiner;
	unsigned joined = 0;

	(void)state;
	while (!deadline_passed(until)) {
		join.broker_id++;
		if (may_join(&joiner, &join)) {
			joined++;
			fails(&joiner);
		}
		commits_within(MADE_MS);
		sleep_ms(50);
	}
	assert_in_range(joined, 2, 3); /* now, after 1 s, after 2 s more */
	/* Who is well is not taken for it. */
	join = joiner_join();
	assert_true(may_join(&joiner, &join));
	raw_close(&joiner.raw);
}

/* What it has done is forgotten once it has been in an epoch that stood. */
static void test_forgiven(void **state)
{
	struct msg_join join = joiner_join();
	struct joiner joiner;
	struct raw data;

	(void)state;
	for (unsigned time = 0; time < 3; time++) {
		assert_true(may_join(&joiner, &join));
		fails(&joiner);
		sleep_ms(HASTY_BLAME_MIN_MS + 200);
		assert_true(may_join(&joiner, &join));
		joiner_epoch(&joiner);
		joiner_data(&data, address, &joiner.epoch, 0);
		joiner_warms(&joiner, &data);
		joiner_ready(&joiner, joiner.epoch.epoch);
		broker_wait_brokers(&lead, 3);
		raw_close(&data);
		raw_close(&joiner.raw);
		broker_wait_brokers(&lead, 2);
		commits_within(MADE_MS);
	}
}

#define CASE(name) cmocka_unit_test_setup_teardown(name, start, finish)

int main(void)
{
	const struct CMUnitTest tests[] = {
		CASE(test_silent),
		CASE(test_silent_with_data),
		CASE(test_does_not_take_manifests),
		CASE(test_fails_each_time),
		CASE(test_forgiven),
	};

	return TEST_RUN(tests);
}
