/* The lead's machine: ranks, nodes, replicas, deadlines. */
#include "broker/update.h"
#include "strew/trainer.h"
#include "support/test_main.h"
#include <errno.h>
#include <stdio.h>
#include <string.h>

static struct update update;
static struct error err;

static int publish(uint32_t rank, uint64_t version, uint32_t flags)
{
	struct msg_publish message = {.version = version, .flags = flags, .timeout_ms = 1000};

	return update_publish(&update, rank, &message, 10, 1000, &err);
}

struct say {
	uint32_t replica, part;
	enum strew_outcome outcome;
};

static struct msg_groups answer(const struct say *said, size_t n)
{
	static struct group_outcome groups[8];
	struct msg_groups message = {.update = update.serial, .groups = groups, .ngroups = n};

	memset(groups, 0, sizeof(groups));
	for (size_t i = 0; i < n; i++) {
		groups[i].replica = said[i].replica;
		groups[i].part = said[i].part;
		groups[i].outcome = said[i].outcome;
		snprintf(
			groups[i].text, sizeof(groups[i].text), "%s", said[i].outcome ? "why" : "");
	}
	return message;
}

static void begin(uint32_t nodes, uint32_t flags)
{
	update_init(&update, 1);
	assert_int_equal(publish(0, 11, flags), 0);
	assert_true(update_stream_done(&update, 0, 2000));
	assert_int_equal(update_begin(&update, 77, nodes, 3000), UPDATE_DO_BEGIN);
}

static unsigned accept(uint32_t node, struct say one)
{
	struct msg_groups message = answer(&one, 1);

	return update_accept(&update, node, &message, 4000);
}

static unsigned prepared(uint32_t node, struct say one)
{
	struct msg_groups message = answer(&one, 1);

	return update_prepared(&update, node, &message, 5000);
}

static unsigned applied(uint32_t node, struct say one)
{
	struct msg_groups message = answer(&one, 1);

	return update_applied(&update, node, &message, 6000);
}

static const struct say on = {0, 0, STREW_OUTCOME_NONE};
static const struct say done = {0, 0, STREW_OUTCOME_COMMITTED};

static void test_publish_refusals(void **state)
{
	(void)state;
	update_init(&update, 2);
	assert_int_equal(publish(0, 10, 0), -ESTALE);
	assert_non_null(strstr(err.text, "version 10 is not above the committed version 10"));
	assert_int_equal(update.state, UPDATE_IDLE);
	assert_int_equal(publish(0, 12, 0), 0);
	assert_int_equal(publish(0, 12, 0), -EBUSY);
	assert_int_equal(publish(1, 13, 0), -EINVAL);
	assert_non_null(
		strstr(err.text, "rank 1 publishes version 13, the other ranks version 12"));
	assert_int_equal(publish(1, 12, STREW_PUBLISH_PARTIAL), -EINVAL);
	assert_non_null(
		strstr(err.text, "rank 1 publishes with flags 0x1, the other ranks with 0x0"));
	assert_int_equal(publish(1, 12, 0), 0);
	assert_false(update_stream_done(&update, 1, 0));
	assert_true(update_stream_done(&update, 0, 0));
	assert_int_equal(publish(0, 13, 0), -EBUSY);
}

static void test_two_nodes(void **state)
{
	struct msg_groups none = {.update = 77};

	(void)state;
	begin(2, 0);
	assert_int_equal(update_accept(&update, 0, &none, 4000), 0);
	assert_int_equal(accept(1, on), UPDATE_DO_GO);
	assert_int_equal(update.nreplicas, 1);
	assert_int_equal(update_released(&update), UPDATE_DO_RELEASE);
	assert_int_equal(update_released(&update), 0);
	assert_int_equal(prepared(1, on), 0);
	assert_int_equal(prepared(1, on), 0); /* doubled */
	assert_int_equal(update_prepared(&update, 0, &none, 5000), UPDATE_DO_COMMIT);
	assert_int_equal(applied(1, done), 0);
	assert_int_equal(update_applied(&update, 0, &none, 6000), UPDATE_DO_REPORT);
	assert_int_equal(update.outcome, STREW_OUTCOME_COMMITTED);
	assert_int_equal(update.state, UPDATE_IDLE);
}

/* What goes with go: what all nodes want; nothing of the update before, nor of a late answer. */
static void test_slot_types(void **state)
{
	uint32_t want[3][3] = {{6 << 2 | SLOT_ANY},
		{2 << 2 | SLOT_BF16, 2 << 2 | SLOT_ANY, 2 << 2 | SLOT_F16},
		{3 << 2 | SLOT_BF16, 2 << 2 | SLOT_ANY, 1 << 2 | SLOT_BF16}};
	const uint32_t agreed[] = {
		3 << 2 | SLOT_BF16, 1 << 2 | SLOT_OWN, 1 << 2 | SLOT_F16, 1 << 2 | SLOT_OWN};
	size_t n[] = {1, 3, 3};
	struct msg_groups message;

	(void)state;
	update_init(&update, 1);
	for (uint64_t version = 11; version < 14; version++) {
		assert_int_equal(publish(0, version, 0), 0);
		assert_true(update_stream_done(&update, 0, 2000));
		update_begin(&update, version, 3, 3000);
		for (uint32_t node = 0; node < 3; node++) {
			message = answer(&on, 1);
			message.slot_types = want[node];
			message.nslot_types = version == 13 && node == 1 ? 0 : n[node];
			assert_int_equal(update_accept(&update, node, &message, 4000),
				node == 2 ? UPDATE_DO_GO : 0);
			assert_int_equal(update_accept(&update, 0, &message, 4000), 0);
		}
		if (version == 13) {
			assert_int_equal(update.slot_types.n, 0);
		} else {
			assert_int_equal(update.slot_types.n, 4);
			assert_memory_equal(update.slot_types.runs, agreed, sizeof(agreed));
		}
		for (uint32_t node = 0; node < 3; node++) {
			prepared(node, on);
		}
		for (uint32_t node = 0; node < 3; node++) {
			applied(node, done);
		}
		assert_int_equal(update.state, UPDATE_IDLE);
	}
}

static void test_old_serial_is_ignored(void **state)
{
	struct msg_groups old = {.update = 76};

	(void)state;
	begin(1, 0);
	assert_int_equal(update_accept(&update, 0, &old, 4000), 0);
	assert_int_equal(update.state, UPDATE_ACCEPTING);
}

static void test_replica_sits_out(void **state)
{
	const struct say said[] = {{0, 0, STREW_OUTCOME_NONE}, {0, 1, STREW_OUTCOME_SAT_OUT},
		{1, 0, STREW_OUTCOME_NONE}};
	const struct say end[] = {{0, 0, STREW_OUTCOME_SAT_OUT}, {0, 1, STREW_OUTCOME_SAT_OUT},
		{1, 0, STREW_OUTCOME_COMMITTED}};
	const struct say second[] = {{1, 0, STREW_OUTCOME_NONE}};
	struct msg_groups message;

	(void)state;
	begin(1, 0);
	message = answer(said, 3);
	assert_int_equal(update_accept(&update, 0, &message, 4000), UPDATE_DO_GO);
	assert_int_equal(update.nreplicas, 1);
	assert_int_equal(update.replicas[0], 1);
	message = answer(second, 1);
	assert_int_equal(
		update_prepared(&update, 0, &message, 5000), UPDATE_DO_COMMIT | UPDATE_DO_RELEASE);
	message = answer(end, 3);
	assert_int_equal(update_applied(&update, 0, &message, 6000), UPDATE_DO_REPORT);
	assert_int_equal(update.outcome, STREW_OUTCOME_SAT_OUT);
}

/* What was there at the last commit, and was lost with its broker, keeps its replica back. */
static void test_a_part_is_awaited(void **state)
{
	const struct say said[] = {{0, 0, STREW_OUTCOME_NONE}, {1, 0, STREW_OUTCOME_NONE}};
	const struct say back[] = {{0, 1, STREW_OUTCOME_NONE}};
	struct msg_groups message;

	(void)state;
	for (uint32_t is_back = 0; is_back < 2; is_back++) {
		begin(2, 0);
		update.awaited[0] = (struct group_awaited){0, 1, 1};
		update.nawaited = 1;
		message = answer(said, 2);
		assert_int_equal(update_accept(&update, 0, &message, 4000), 0);
		assert_true(update_awaits(&update, 0, 1));
		assert_false(update_awaits(&update, 0, 0));
		message = answer(back, is_back);
		assert_int_equal(update_accept(&update, 1, &message, 4000), UPDATE_DO_GO);
		assert_int_equal(update.nreplicas, 1 + is_back);
		assert_int_equal(update_awaits(&update, 0, 1), !is_back);
		if (!is_back) {
			assert_int_equal(update.replicas[0], 1);
			assert_int_equal(update.groups[0].outcome, STREW_OUTCOME_SAT_OUT);
			assert_non_null(strstr(update.groups[0].text,
				"part 1 of replica 0 is not back since its broker was lost"));
		}
	}
}

static void test_scope_all(void **state)
{
	const struct say said[] = {{0, 0, STREW_OUTCOME_SAT_OUT}, {1, 0, STREW_OUTCOME_NONE}};
	struct msg_groups message;

	(void)state;
	begin(1, STREW_PUBLISH_SCOPE_ALL);
	message = answer(said, 2);
	assert_int_equal(update_accept(&update, 0, &message, 4000), UPDATE_DO_ABORT);
	assert_int_equal(update.state, UPDATE_ABORTING);
	assert_non_null(strstr(update.text, "scope=all"));
	assert_int_equal(
		update_applied(&update, 0, &message, 6000), UPDATE_DO_REPORT | UPDATE_DO_RELEASE);
	assert_int_equal(update.outcome, STREW_OUTCOME_ABORTED);
}

/* What scope=all cannot ask it does not leave out; who has not asked for it goes on. */
static void test_a_broker_is_missed(void **state)
{
	(void)state;
	for (uint32_t all = 0; all < 2; all++) {
		update_init(&update, 1);
		assert_int_equal(publish(0, 11, all ? STREW_PUBLISH_SCOPE_ALL : 0), 0);
		assert_int_equal(update_missed(&update, "b:1", 2000), 0); /* it may come back */
		assert_true(update_stream_done(&update, 0, 2000));
		assert_int_equal(update_missed(&update, "b:1", 2000),
			all ? UPDATE_DO_REPORT | UPDATE_DO_RELEASE : 0);
		assert_int_equal(update.state, all ? UPDATE_IDLE : UPDATE_QUEUED);
	}
	assert_int_equal(update.outcome, STREW_OUTCOME_ABORTED);
	assert_non_null(strstr(update.text, "broker b:1, which was lost"));
}

/* What cannot begin ends, with why; what has begun is not in its way any more. */
static void test_cannot_begin(void **state)
{
	(void)state;
	update_init(&update, 1);
	assert_int_equal(update_give_up(&update, "no root", 1000), 0);
	assert_int_equal(publish(0, 11, 0), 0);
	assert_int_equal(update_give_up(&update, "no root", 1000), 0);
	assert_true(update_stream_done(&update, 0, 2000));
	assert_int_equal(
		update_give_up(&update, "no root", 2000), UPDATE_DO_REPORT | UPDATE_DO_RELEASE);
	assert_int_equal(update.state, UPDATE_IDLE);
	assert_int_equal(update.outcome, STREW_OUTCOME_ABORTED);
	assert_string_equal(update.text, "no root");
	begin(1, 0);
	assert_int_equal(update_give_up(&update, "no root", 4000), 0);
}

/* A later version is learnt to be committed: that ends it at every step before the decision. */
static void test_overtaken(void **state)
{
	(void)state;
	for (unsigned step = 0; step < 5; step++) {
		update_init(&update, 1);
		assert_int_equal(update_overtaken(&update, 11, 1000), 0);
		assert_int_equal(publish(0, 11, 0), 0);
		if (step >= 1) {
			assert_true(update_stream_done(&update, 0, 2000));
		}
		if (step >= 2) {
			begin(1, 0);
		}
		if (step >= 3) {
			assert_int_equal(accept(0, on), UPDATE_DO_GO);
		}
		assert_int_equal(update_overtaken(&update, 10, 4000), 0);
		if (step == 4) {
			assert_int_equal(prepared(0, on), UPDATE_DO_COMMIT | UPDATE_DO_RELEASE);
			assert_int_equal(update_overtaken(&update, 11, 4000), 0);
			break;
		}
		assert_int_equal(update_overtaken(&update, 11, 4000),
			step < 2 ? UPDATE_DO_REPORT | UPDATE_DO_RELEASE : UPDATE_DO_ABORT);
		assert_int_equal(update.outcome, STREW_OUTCOME_ABORTED);
		assert_string_equal(
			update.text, "version 11 is not above the committed version 11");
		assert_int_equal(update_overtaken(&update, 12, 4000), 0);
	}
}

/* A group that no list has room for could neither be judged nor asked: nobody goes on. */
static void test_too_many_groups(void **state)
{
	static struct group_outcome groups[LIMIT_REPORT_GROUPS];
	struct msg_groups message = {.groups = groups};
	unsigned actions;

	(void)state;
	for (uint32_t over = 0; over < 2; over++) {
		begin(9, 0);
		message.update = update.serial;
		message.ngroups = 64;
		for (uint32_t node = 0; node < 8; node++) {
			for (uint32_t i = 0; i < 64; i++) {
				groups[i] = (struct group_outcome){.replica = i, .part = node};
			}
			assert_int_equal(update_accept(&update, node, &message, 4000), 0);
		}
		groups[0] = (struct group_outcome){
			.replica = 5, .part = 8, .outcome = STREW_OUTCOME_SAT_OUT};
		message.ngroups = over;
		actions = update_accept(&update, 8, &message, 4000);
		assert_int_equal(actions, over ? UPDATE_DO_ABORT : UPDATE_DO_GO);
	}
	assert_non_null(strstr(update.text, "more than the 512 groups"));
	assert_non_null(strstr(update.text, "replica 5 part 8 on node 8"));
}

/* The commit was decided, so its version is spent, whoever is left: no word of an abort. */
static void test_committed_by_nobody(void **state)
{
	const struct say lost = {0, 0, STREW_OUTCOME_LOST};

	(void)state;
	begin(1, 0);
	accept(0, on);
	assert_int_equal(prepared(0, on), UPDATE_DO_COMMIT | UPDATE_DO_RELEASE);
	assert_int_equal(applied(0, lost), UPDATE_DO_REPORT);
	assert_int_equal(update.outcome, STREW_OUTCOME_LOST);
	assert_non_null(strstr(update.text, "another version"));
	assert_non_null(strstr(update.text, "replica 0 part 0 on node 0: why"));
}

static void test_nobody(void **state)
{
	struct msg_groups none = {.update = 77};

	(void)state;
	begin(1, 0);
	assert_int_equal(update_accept(&update, 0, &none, 4000), UPDATE_DO_ABORT);
	assert_non_null(strstr(update.text, "no worker of this model"));
}

static void test_deadlines(void **state)
{
	(void)state;
	/* A rank that does not publish is named. */
	update_init(&update, 2);
	assert_int_equal(publish(0, 11, 0), 0);
	update_stream_done(&update, 0, 0);
	assert_int_equal(update_tick(&update, 999), 0);
	assert_int_equal(
		update_tick(&update, update.deadline_ns), UPDATE_DO_REPORT | UPDATE_DO_RELEASE);
	assert_non_null(strstr(update.text, "rank 1 did not publish"));
	/* So is a node that does not accept; then the abort's own deadline ends it. */
	begin(2, 0);
	accept(0, on);
	assert_int_equal(update_tick(&update, update.deadline_ns), UPDATE_DO_ABORT);
	assert_non_null(strstr(update.text, "node 1 did not answer begin"));
	applied(0, on);
	assert_int_equal(update.state, UPDATE_ABORTING);
	assert_int_equal(
		update_tick(&update, update.deadline_ns), UPDATE_DO_REPORT | UPDATE_DO_RELEASE);
	/* No state but IDLE is without a deadline. */
	assert_true(update_due(&update) == UINT64_MAX);
}

static void test_losses(void **state)
{
	(void)state;
	/* A node before the commit: abort. */
	begin(2, 0);
	assert_int_equal(update_node_lost(&update, 1, "b", 4000), UPDATE_DO_ABORT);
	assert_int_equal(applied(0, on), UPDATE_DO_REPORT | UPDATE_DO_RELEASE);
	/* After it: the commit stands. */
	begin(2, 0);
	accept(0, on);
	accept(1, (struct say){1, 0, STREW_OUTCOME_NONE});
	prepared(0, on);
	assert_int_equal(prepared(1, (struct say){1, 0, STREW_OUTCOME_NONE}),
		UPDATE_DO_COMMIT | UPDATE_DO_RELEASE);
	assert_int_equal(applied(0, done), 0);
	assert_int_equal(update_node_lost(&update, 1, "b", 6000), UPDATE_DO_REPORT);
	assert_int_equal(update.outcome, STREW_OUTCOME_SAT_OUT);
	assert_int_equal(update.groups[1].outcome, STREW_OUTCOME_LOST);
	/* A rank whose memory is read: abort; released before: nothing. */
	begin(1, 0);
	assert_int_equal(update_rank_lost(&update, 0, update.released, "", 4000), UPDATE_DO_ABORT);
	begin(1, 0);
	accept(0, on);
	update_released(&update);
	assert_int_equal(update_rank_lost(&update, 0, update.released, "", 4000), 0);
	assert_int_equal(update.state, UPDATE_MOVING);
}

/* Each rank's memory is released by its own broker: the lead's word is not the others'. */
static void test_a_rank_elsewhere_is_lost(void **state)
{
	(void)state;
	begin(2, 0);
	accept(0, on);
	accept(1, (struct say){1, 0, STREW_OUTCOME_NONE});
	assert_int_equal(update_released(&update), UPDATE_DO_RELEASE);
	assert_int_equal(update_rank_lost(&update, 1, true, " at node 1, x,", 4500), 0);
	assert_int_equal(update.state, UPDATE_MOVING);
	assert_int_equal(
		update_rank_lost(&update, 1, false, " at node 1, x,", 4500), UPDATE_DO_ABORT);
	assert_string_equal(update.text, "trainer rank 1 at node 1, x, was lost");
	/* Its node goes with it, and is not waited for. */
	assert_int_equal(update_rank_lost(&update, 0, false, "", 4600), 0);
	assert_int_equal(applied(0, on), 0);
	assert_int_equal(update_node_lost(&update, 1, "x", 4700), UPDATE_DO_REPORT);
	assert_string_equal(update.text, "trainer rank 1 at node 1, x, was lost");
	/* Before anything is read, "released" says nothing: the rank has not published. */
	update_init(&update, 2);
	assert_int_equal(publish(0, 11, 0), 0);
	assert_int_equal(
		update_rank_lost(&update, 1, true, "", 4000), UPDATE_DO_REPORT | UPDATE_DO_RELEASE);
	/* After the commit nobody's memory is needed. */
	begin(1, 0);
	accept(0, on);
	prepared(0, on);
	assert_int_equal(update_rank_lost(&update, 0, false, "", 6000), 0);
	assert_int_equal(applied(0, done), UPDATE_DO_REPORT);
	assert_int_equal(update.outcome, STREW_OUTCOME_COMMITTED);
}

/* An abort whose own node still reads: no passing of time gives the trainer its memory back. */
static void test_time_does_not_release(void **state)
{
	(void)state;
	begin(2, 0);
	accept(0, on);
	accept(1, on);
	assert_int_equal(update_node_lost(&update, 1, "b", 4500), UPDATE_DO_ABORT);
	for (int i = 0; i < 5; i++) {
		uint64_t due = update_due(&update);

		assert_int_equal(update_tick(&update, due), 0);
		assert_int_equal(update.state, UPDATE_ABORTING);
		assert_false(update.released);
		assert_true(update_due(&update) > due);
		assert_true(update_due(&update) != UINT64_MAX);
	}
	assert_int_equal(applied(0, on), UPDATE_DO_REPORT | UPDATE_DO_RELEASE);
	/* Others are not waited for, and what was released before can be reported. */
	begin(2, 0);
	accept(0, on);
	accept(1, on);
	assert_int_equal(update_released(&update), UPDATE_DO_RELEASE);
	assert_int_equal(update_tick(&update, update.deadline_ns), UPDATE_DO_ABORT);
	assert_int_equal(update_tick(&update, update.deadline_ns), UPDATE_DO_REPORT);
	assert_true(update.lost[0] && update.lost[1]);
}

static void test_aborted_version_again(void **state)
{
	(void)state;
	begin(1, 0);
	update_node_lost(&update, 0, "a", 4000);
	update_tick(&update, UINT64_MAX - 1);
	assert_int_equal(update.state, UPDATE_IDLE);
	assert_int_equal(publish(0, 11, 0), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_publish_refusals),
		cmocka_unit_test(test_two_nodes),
		cmocka_unit_test(test_slot_types),
		cmocka_unit_test(test_old_serial_is_ignored),
		cmocka_unit_test(test_replica_sits_out),
		cmocka_unit_test(test_a_part_is_awaited),
		cmocka_unit_test(test_scope_all),
		cmocka_unit_test(test_a_broker_is_missed),
		cmocka_unit_test(test_cannot_begin),
		cmocka_unit_test(test_overtaken),
		cmocka_unit_test(test_too_many_groups),
		cmocka_unit_test(test_committed_by_nobody),
		cmocka_unit_test(test_nobody),
		cmocka_unit_test(test_deadlines),
		cmocka_unit_test(test_losses),
		cmocka_unit_test(test_a_rank_elsewhere_is_lost),
		cmocka_unit_test(test_time_does_not_release),
		cmocka_unit_test(test_aborted_version_again),
	};

	return TEST_RUN(tests);
}
