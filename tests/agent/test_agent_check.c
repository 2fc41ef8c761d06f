/* A worker's own look before an update, against a played broker. */
#include "fake_broker.h"
#include "support/test_main.h"
#include <errno.h>
#include <strew/strew.h>
#include <string.h>

#define PATIENCE_MS 10000

static uint16_t *memory; /* of the worker under test */

struct looks {
	int count;
	pthread_t thread;
};

/* What is to be answered in this turn; the third refuses without a sentence. */
static int look(void *data, char *ret_text, size_t text_bytes)
{
	struct looks *looks = data;

	looks->thread = pthread_self();
	switch (++looks->count) {
	case 2:
		snprintf(ret_text, text_bytes, "parameter p lies elsewhere");
		return -ESTALE;
	case 3:
		return 1;
	case 4: /* not terminated */
		memset(ret_text, 'x', text_bytes);
		return -1;
	default:
		return 0;
	}
}

static void script(struct fake *fake)
{
	struct error longest;
	struct message message;

	memset(longest.text, 'x', sizeof(longest.text) - 1);
	longest.text[sizeof(longest.text) - 1] = '\0';
	fake_serve_register(fake);
	fake_check(fake, 5, 2, WIRE_OK);
	fake_done(fake, 5, 2, STREW_OUTCOME_COMMITTED, STREW_GROUP_CURRENT);
	fake_check_says(fake, 6, 3, "parameter p lies elsewhere");
	fake_done(fake, 6, 2, STREW_OUTCOME_SAT_OUT, STREW_GROUP_STALE);
	fake_check_says(fake, 7, 3, "its engine refuses the update");
	fake_done(fake, 7, 2, STREW_OUTCOME_SAT_OUT, STREW_GROUP_STALE);
	longest.text[sizeof(message.u.checked.text) - 1] = '\0';
	fake_check_says(fake, 8, 3, longest.text);
	fake_done(fake, 8, 2, STREW_OUTCOME_SAT_OUT, STREW_GROUP_STALE);
	fake_check(fake, 9, 3, WIRE_OK);
	fake_done(fake, 9, 3, STREW_OUTCOME_COMMITTED, STREW_GROUP_CURRENT);
	fake_expect(fake, MSG_WITHDRAW, &message);
	fake_ok(fake, message.serial);
	fake_expect_end(fake);
}

static void expect_done(struct strew_agent *agent, uint64_t version, enum strew_group_state state)
{
	struct strew_event event = {0};

	assert_int_equal(strew_agent_wait(agent, PATIENCE_MS, &event), 1);
	assert_int_equal(event.type, STREW_EVENT_DONE);
	assert_int_equal(event.version, version);
	assert_int_equal(event.state, state);
}

static void run(int serve_thread)
{
	struct looks looks = {0};
	struct fake fake = {.script = script};
	struct strew_agent_options options = {.model = "m",
		.timeout_ms = PATIENCE_MS,
		.serve_thread = serve_thread,
		.check = look,
		.check_data = &looks};
	struct strew_parameter parameter = {
		.name = "p", .data = memory, .dtype = STREW_BF16, .ndim = 1, .shape = {8}};
	struct strew_piece piece = {.tensor = "t", .dtype = STREW_BF16, .ndim = 1, .shape = {8}};
	struct strew_agent *agent;

	fake_start(&fake);
	options.socket = fake.path;
	assert_int_equal(strew_agent_open(&options, &agent), 0);
	assert_int_equal(strew_agent_declare(agent, &parameter, &piece.parameter), 0);
	assert_int_equal(strew_agent_piece(agent, &piece), 0);
	assert_int_equal(strew_agent_register(agent), 0);
	expect_done(agent, 2, STREW_GROUP_CURRENT);
	for (int i = 0; i < 3; i++) {
		expect_done(agent, 2, STREW_GROUP_STALE);
	}
	expect_done(agent, 3, STREW_GROUP_CURRENT);
	assert_int_equal(looks.count, 5);
	assert_int_equal(pthread_equal(looks.thread, pthread_self()) != 0, !serve_thread);
	assert_int_equal(strew_agent_close(agent), 0);
	fake_stop(&fake);
}

static void test_in_a_call(void **arg)
{
	(void)arg;
	run(0);
}

static void test_in_the_librarys_thread(void **arg)
{
	(void)arg;
	run(1);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		FAKE_TEST(test_in_a_call, memory),
		FAKE_TEST(test_in_the_librarys_thread, memory),
	};

	return TEST_RUN(tests);
}
