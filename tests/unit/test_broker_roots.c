/* Which number in the epoch a trainer rank's broker has; and where it has none. */
#include "base/util.h"
#include "broker/roots.h"
#include "support/test_main.h"
#include <errno.h>

enum { LEAD = 7, FIRST = 11, SECOND = 13 };

static struct server server;
static struct member members[2];

static int set_up(void **state)
{
	(void)state;
	server = (struct server){.broker_id = LEAD, .members = members};
	server.epoch.number = 5;
	server.epoch.ranks = 3;
	members[0] = (struct member){
		.next = &members[1], .state = MEMBER_IN_EPOCH, .join.broker_id = FIRST, .rank = 1};
	members[1] = (struct member){.state = MEMBER_IN_EPOCH, .join.broker_id = SECOND, .rank = 2};
	return 0;
}

static void test_found(void **state)
{
	uint64_t brokers[] = {SECOND, LEAD, FIRST, SECOND};
	const struct publication publication = {.brokers = brokers, .nroots = ARRAY_LEN(brokers)};
	uint32_t roots[LIMIT_RANKS];
	struct error err;

	(void)state;
	assert_int_equal(roots_find(&server, &publication, roots, &err), 0);
	assert_int_equal(roots[0], 2);
	assert_int_equal(roots[1], 0);
	assert_int_equal(roots[2], 1);
	assert_int_equal(roots[3], 2);
}

/* Nobody is taken for the lead: neither who is not known, nor who waits for the next epoch. */
static void test_not_in_the_epoch(void **state)
{
	uint64_t brokers[] = {LEAD, SECOND};
	const struct publication publication = {.brokers = brokers, .nroots = ARRAY_LEN(brokers)};
	uint32_t roots[LIMIT_RANKS];
	struct error err;

	(void)state;
	members[1].state = MEMBER_JOINED;
	assert_int_equal(roots_find(&server, &publication, roots, &err), -EHOSTUNREACH);
	assert_string_equal(err.text, "trainer rank 1 is at a broker that is not in epoch 5");
	brokers[1] = 99;
	assert_int_equal(roots_find(&server, &publication, roots, &err), -EHOSTUNREACH);
}

/* What begin says agrees with the manifest about who this broker is. */
static void test_taken(void **state)
{
	uint64_t brokers[] = {LEAD, SECOND};
	const struct publication publication = {.brokers = brokers, .nroots = ARRAY_LEN(brokers)};
	uint32_t said[][2] = {{0, 2}, {0, 1}, {0, 0}, {1, 2}, {0, 3}};
	struct msg_begin begin = {.nroots = 2};

	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(said); i++) {
		begin.roots = said[i];
		assert_int_equal(roots_take(&server, &publication, &begin), i < 2);
	}
	begin.roots = said[0];
	begin.nroots = 1;
	assert_false(roots_take(&server, &publication, &begin));
	begin.nroots = 2;
	assert_true(roots_take(&server, &publication, &begin));
	assert_int_equal(server.node.roots[0], 0);
	assert_int_equal(server.node.roots[1], 2);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup(test_found, set_up),
		cmocka_unit_test_setup(test_not_in_the_epoch, set_up),
		cmocka_unit_test_setup(test_taken, set_up),
	};

	return test_finish(cmocka_run_group_tests(tests, NULL, NULL), test_fds_at_start);
}
