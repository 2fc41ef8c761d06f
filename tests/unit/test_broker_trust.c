/* Who has spoilt the making of a communicator, and for how long it is kept out. */
#include "base/util.h"
#include "broker/trust.h"
#include "support/test_main.h"
#include <stdio.h>
#include <sys/param.h>

#define MS 1000000ull
#define START (3600 * 1000 * MS)

static struct msg_join gpu(unsigned number)
{
	struct msg_join join = {.host_id = 7, .uuid = {1, (uint8_t)number, (uint8_t)(number >> 8)}};

	snprintf(join.name, sizeof(join.name), "host:%u", number);
	return join;
}

static void test_growth(void **state)
{
	struct trust trust = {0};
	struct msg_join who = gpu(1);
	uint64_t now = START, want = 4 * 2000 * MS;

	(void)state;
	assert_int_equal(trust_until(&trust, &who, now), 0);
	for (unsigned i = 0; i < 40; i++) {
		uint64_t out;

		trust_failed(&trust, &who, true, 2000 * MS, now);
		out = trust_until(&trust, &who, now) - now;
		assert_true(out == MIN(want, LIMIT_BLAME_MAX_MS * MS));
		want = MIN(want * 2, LIMIT_BLAME_MAX_MS * MS);
		now += out;
	}
	/* Another process of it, by another name, is no better. */
	string_copy(who.name, sizeof(who.name), "host:2");
	assert_true(trust_until(&trust, &who, now) != 0);
	assert_int_equal(trust_until(&trust, (struct msg_join[]){gpu(2)}, now), 0);
	trust_stands(&trust, &who);
	assert_int_equal(trust_until(&trust, &who, now), 0);
	/* What costs next to nothing is kept out for a moment, what costs for ever not for ever. */
	trust_failed(&trust, &who, true, 1, now);
	assert_true(trust_until(&trust, &who, now) == now + LIMIT_BLAME_MIN_MS * MS);
	trust_failed(&trust, &who, true, UINT64_MAX / 8, now);
	assert_true(trust_until(&trust, &who, now) == now + LIMIT_BLAME_MAX_MS * MS);
}

/* The first time is free for one of several, and every later one is not. */
static void test_one_of_several(void **state)
{
	struct trust trust = {0};
	struct msg_join who = gpu(1);

	(void)state;
	trust_failed(&trust, &who, false, 1000 * MS, START);
	assert_true(trust_until(&trust, &who, START) == START);
	trust_failed(&trust, &who, false, 1000 * MS, START);
	assert_true(trust_until(&trust, &who, START) == START + 4000 * MS);
	trust_failed(&trust, &who, true, 1000 * MS, START);
	assert_true(trust_until(&trust, &who, START) == START + 16000 * MS);
	/* Who has stayed away for long is as new. */
	assert_int_equal(
		trust_until(&trust, &who, START + (16000 + LIMIT_BLAME_MAX_MS) * MS + 1), 0);
	assert_int_equal(trust.n, 0);
}

/* Where there is no GPU: by host and name. */
static void test_names(void **state)
{
	struct msg_join one = {.host_id = 7, .name = "host:1"},
			other = {.host_id = 8, .name = "host:1"};
	struct trust trust = {0};

	(void)state;
	trust_failed(&trust, &one, true, MS, START);
	assert_int_equal(trust_until(&trust, &other, START), 0);
	other.host_id = 7;
	assert_true(trust_until(&trust, &other, START) != 0);
	string_copy(other.name, sizeof(other.name), "host:2");
	assert_int_equal(trust_until(&trust, &other, START), 0);
}

/* A full list forgets who may come back first. */
static void test_full(void **state)
{
	struct trust trust = {0};
	struct msg_join who;

	(void)state;
	for (unsigned i = 0; i < TRUST_ENTRIES + 10; i++) {
		who = gpu(i);
		trust_failed(&trust, &who, true, MS, START + (i * 37 % 1000) * MS);
	}
	assert_int_equal(trust.n, TRUST_ENTRIES);
	assert_true(trust_until(&trust, &who, START) != 0);
	who = gpu(0);
	assert_int_equal(trust_until(&trust, &who, START), 0);
	for (unsigned i = 0; i < TRUST_ENTRIES + 10; i++) {
		who = gpu(i);
		trust_stands(&trust, &who);
	}
	assert_int_equal(trust.n, 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_growth),
		cmocka_unit_test(test_one_of_several),
		cmocka_unit_test(test_names),
		cmocka_unit_test(test_full),
	};

	return TEST_RUN(tests);
}
