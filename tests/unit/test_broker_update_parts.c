/* The lead's machine when an update comes in parts: puts, moves between them, the end, losses. */
#include "broker/update.h"
#include "strew/trainer.h"
#include "support/test_main.h"
#include <errno.h>
#include <string.h>

static struct update update;
static struct error err;

static int publish(uint32_t rank, uint32_t subset, uint32_t flags)
{
	struct msg_publish message = {.version = 11,
		.flags = flags | PUBLISH_PARTS,
		.subset = subset,
		.timeout_ms = 1000};

	return update_publish(&update, rank, &message, 10, 1000, &err);
}

static unsigned say(
	unsigned (*take)(struct update *, uint32_t, const struct msg_groups *, uint64_t),
	uint32_t node, enum strew_outcome outcome)
{
	struct group_outcome group = {.replica = node, .outcome = outcome};
	struct msg_groups message = {.update = update.serial, .groups = &group, .ngroups = 1};

	return take(&update, node, &message, 4000);
}

static unsigned moved(uint32_t node)
{
	return say(update_moved, node, STREW_OUTCOME_NONE);
}

/* Two ranks, two nodes, the first part moves. */
static void begin(uint32_t subset)
{
	update_init(&update, 2);
	assert_int_equal(publish(0, subset, 0), 0);
	assert_int_equal(publish(1, subset, 0), 0);
	assert_false(update_stream_done(&update, 0, 0));
	assert_true(update_stream_done(&update, 1, 0));
	assert_int_equal(update_begin(&update, 7, 2, 3000), UPDATE_DO_BEGIN);
	assert_int_equal(update_put(&update, 0, 11, 2, &err), -EBUSY);
	assert_int_equal(say(update_accept, 0, STREW_OUTCOME_NONE), 0);
	assert_int_equal(say(update_accept, 1, STREW_OUTCOME_NONE), UPDATE_DO_GO);
	assert_int_equal(update.state, UPDATE_MOVING);
	assert_int_equal(update.part, subset);
	/* The whole manifest is what begins and what is committed. */
	assert_int_equal(update.subset, 0);
}

/* Both put it, and their streams are done. */
static unsigned both_put(uint32_t subset)
{
	for (uint32_t rank = 0; rank < 2; rank++) {
		assert_int_equal(update_put(&update, rank, 11, subset, &err), 0);
	}
	assert_int_equal(update_put_done(&update, 1), 0);
	return update_put_done(&update, 0);
}

static void test_three_parts(void **state)
{
	(void)state;
	begin(3);
	assert_int_equal(update_released(&update), UPDATE_DO_RELEASE);
	/* Prepared is not the word for a part, and moved counts once. */
	assert_int_equal(say(update_prepared, 0, STREW_OUTCOME_NONE), 0);
	assert_int_equal(moved(0), 0);
	assert_int_equal(moved(0), 0);
	assert_int_equal(update.state, UPDATE_MOVING);
	/* Put while node 1 still moves the first: it goes when that is done. */
	assert_int_equal(both_put(1), 0);
	assert_int_equal(update.part, 3);
	assert_int_equal(moved(1), UPDATE_DO_GO);
	assert_int_equal(update.state, UPDATE_MOVING);
	assert_int_equal(update.part, 1);
	/* Its memory is lent anew. */
	assert_false(update.released);
	assert_int_equal(moved(1), 0);
	assert_int_equal(moved(0), UPDATE_DO_RELEASE);
	assert_int_equal(update.state, UPDATE_PUTTING);
	/* Put behind both: it goes with the last stream. */
	assert_int_equal(both_put(64), UPDATE_DO_GO);
	assert_int_equal(update_released(&update), UPDATE_DO_RELEASE);
	assert_int_equal(moved(0), 0);
	assert_int_equal(moved(1), 0);
	assert_int_equal(update.state, UPDATE_PUTTING);
	assert_int_equal(both_put(0), UPDATE_DO_GO);
	assert_int_equal(update.part, 0);
	/* Now moved is not the word, and nothing more can be put. */
	assert_int_equal(moved(0), 0);
	assert_int_equal(update_put(&update, 0, 11, 2, &err), -EBUSY);
	assert_int_equal(say(update_prepared, 0, STREW_OUTCOME_NONE), 0);
	assert_int_equal(say(update_prepared, 1, STREW_OUTCOME_NONE), UPDATE_DO_COMMIT);
	assert_int_equal(say(update_applied, 0, STREW_OUTCOME_COMMITTED), 0);
	assert_int_equal(say(update_applied, 1, STREW_OUTCOME_COMMITTED), UPDATE_DO_REPORT);
	assert_int_equal(update.outcome, STREW_OUTCOME_COMMITTED);
	/* Nothing of it is left in the next one. */
	assert_int_equal(update_put(&update, 0, 11, 2, &err), -ESTALE);
	assert_int_equal(update_put_done(&update, 0), 0);
}

static void test_refusals(void **state)
{
	struct msg_publish whole = {.version = 11, .timeout_ms = 1000};

	(void)state;
	update_init(&update, 2);
	assert_int_equal(publish(0, 0, 0), -EINVAL);
	assert_non_null(strstr(err.text, "begins with a subset"));
	assert_int_equal(update.state, UPDATE_IDLE);
	assert_int_equal(publish(0, 2, 0), 0);
	assert_int_equal(publish(1, 3, 0), -EINVAL);
	assert_non_null(strstr(err.text, "the other ranks subset 2"));
	assert_int_equal(publish(1, 2, STREW_PUBLISH_PARTIAL), -EINVAL);
	assert_int_equal(update_publish(&update, 1, &whole, 10, 1000, &err), -EINVAL);
	begin(2);
	assert_int_equal(update_put(&update, 0, 12, 1, &err), -ESTALE);
	assert_int_equal(update_put(&update, 0, 11, 2, &err), -EINVAL);
	assert_non_null(strstr(err.text, "subset 2 has been put already"));
	assert_false(update.next_said);
	assert_int_equal(update_put(&update, 0, 11, 5, &err), 0);
	assert_int_equal(update_put(&update, 0, 11, 5, &err), -EBUSY);
	assert_int_equal(update_put(&update, 1, 11, 4, &err), -EINVAL);
	assert_non_null(strstr(err.text, "rank 1 puts subset 4, the other ranks subset 5"));
	assert_int_equal(update_put(&update, 1, 11, 0, &err), -EINVAL);
	/* A stream without a put says nothing. */
	assert_int_equal(update_put_done(&update, 1), 0);
	assert_false(update.done[1]);
	/* An update that is not in parts takes none. */
	update_init(&update, 1);
	assert_int_equal(update_publish(&update, 0, &whole, 10, 1000, &err), 0);
	assert_int_equal(update_put(&update, 0, 11, 1, &err), -ESTALE);
}

/* A rank that is lost has more to put: whether its memory is read does not matter, until the end.
 */
static void test_a_rank_is_lost(void **state)
{
	(void)state;
	for (unsigned put = 0; put < 2; put++) {
		begin(1);
		update_released(&update);
		if (put) {
			moved(0);
			moved(1);
			assert_int_equal(update.state, UPDATE_PUTTING);
			assert_int_equal(update_put(&update, 0, 11, 2, &err), 0);
		}
		assert_int_equal(update_rank_lost(&update, 1, true, "", 5000), UPDATE_DO_ABORT);
		assert_string_equal(update.text, "trainer rank 1 was lost");
		assert_int_equal(say(update_applied, 0, STREW_OUTCOME_ABORTED), 0);
		/* What rank 0 has put already is given back. */
		assert_int_equal(say(update_applied, 1, STREW_OUTCOME_DIRTY),
			UPDATE_DO_REPORT | (put ? UPDATE_DO_RELEASE : 0));
		assert_int_equal(update.outcome, STREW_OUTCOME_ABORTED);
	}
	begin(1);
	update_released(&update);
	moved(0);
	moved(1);
	assert_int_equal(both_put(0), UPDATE_DO_GO);
	assert_int_equal(update_rank_lost(&update, 1, true, "", 5000), 0);
	assert_int_equal(update.state, UPDATE_MOVING);
}

/* Whoever gives it up ends it for all, wherever it is, until all have put everything. */
static void test_a_rank_gives_it_up(void **state)
{
	struct msg_publish whole = {.version = 11, .timeout_ms = 1000};

	(void)state;
	update_init(&update, 2);
	assert_int_equal(update_check_cancel(&update, 11, &err), -ESTALE);
	/* Before anything has begun, also by a rank that has put nothing. */
	for (uint32_t done = 0; done < 3; done++) {
		update_init(&update, 2);
		for (uint32_t rank = 0; rank < done; rank++) {
			assert_int_equal(publish(rank, 1, 0), 0);
			update_stream_done(&update, rank, 0);
		}
		assert_int_equal(update_cancel(&update, 1, 12, "", "why", 4000), 0);
		assert_int_equal(update_cancel(&update, 1, 11, "", "why", 4000),
			done ? UPDATE_DO_REPORT | UPDATE_DO_RELEASE : 0);
		assert_int_equal(update.state, UPDATE_IDLE);
	}
	assert_string_equal(update.text, "trainer rank 1 gave it up: why");
	for (unsigned put = 0; put < 3; put++) {
		begin(1);
		update_released(&update);
		if (put) {
			moved(0);
			moved(1);
			assert_int_equal(update_put(&update, 0, 11, 2 * (put - 1), &err), 0);
		}
		assert_int_equal(update_cancel(&update, 0, 11, " at node 1, broker b,", "", 5000),
			UPDATE_DO_ABORT);
		assert_string_equal(update.text, "trainer rank 0 at node 1, broker b, gave it up");
		/* Once. */
		assert_int_equal(update_check_cancel(&update, 11, &err), -ESTALE);
		assert_int_equal(update_cancel(&update, 1, 11, "", "why", 5000), 0);
		assert_int_equal(say(update_applied, 0, STREW_OUTCOME_ABORTED), 0);
		assert_int_equal(say(update_applied, 1, STREW_OUTCOME_DIRTY),
			UPDATE_DO_REPORT | (put ? UPDATE_DO_RELEASE : 0));
		assert_int_equal(update.outcome, STREW_OUTCOME_ABORTED);
	}
	begin(1);
	moved(0);
	moved(1);
	assert_int_equal(both_put(0), UPDATE_DO_GO);
	assert_int_equal(update_check_cancel(&update, 11, &err), -ESTALE);
	assert_string_equal(err.text, "cancel: all ranks have said that all is there");
	assert_int_equal(update_cancel(&update, 0, 11, "", "why", 5000), 0);
	assert_int_equal(update.state, UPDATE_MOVING);
	/* What is published at once is not given up. */
	update_init(&update, 1);
	assert_int_equal(update_publish(&update, 0, &whole, 10, 1000, &err), 0);
	assert_int_equal(update_check_cancel(&update, 11, &err), -ESTALE);
}

static void test_nodes_and_deadlines(void **state)
{
	struct msg_groups failed = {.update = 7, .code = 1};

	(void)state;
	begin(1);
	moved(0);
	moved(1);
	assert_int_equal(update_due(&update), update.deadline_ns);
	assert_int_equal(update_put(&update, 0, 11, 2, &err), 0);
	update_put_done(&update, 0);
	assert_int_equal(update_tick(&update, update.deadline_ns - 1), 0);
	assert_int_equal(update_tick(&update, update.deadline_ns), UPDATE_DO_ABORT);
	assert_string_equal(
		update.text, "trainer rank 1 did not put its next part before the deadline");
	begin(1);
	moved(0);
	moved(1);
	assert_int_equal(update_node_lost(&update, 1, "b", 5000), UPDATE_DO_ABORT);
	begin(1);
	moved(0);
	strcpy(failed.text, "why");
	assert_int_equal(update_moved(&update, 1, &failed, 5000), UPDATE_DO_ABORT);
	assert_string_equal(update.text, "node 1: why");
	/* A replica that fails in a part is out; with it the last one, and the update. */
	begin(1);
	assert_int_equal(say(update_moved, 0, STREW_OUTCOME_SAT_OUT), 0);
	assert_int_equal(moved(1), UPDATE_DO_RELEASE);
	assert_int_equal(both_put(2), UPDATE_DO_GO);
	assert_int_equal(update.nreplicas, 1);
	assert_int_equal(update.replicas[0], 1);
	assert_int_equal(say(update_moved, 0, STREW_OUTCOME_SAT_OUT), 0);
	assert_int_equal(say(update_moved, 1, STREW_OUTCOME_LOST), UPDATE_DO_ABORT);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_three_parts),
		cmocka_unit_test(test_refusals),
		cmocka_unit_test(test_a_rank_is_lost),
		cmocka_unit_test(test_a_rank_gives_it_up),
		cmocka_unit_test(test_nodes_and_deadlines),
	};

	return TEST_RUN(tests);
}
