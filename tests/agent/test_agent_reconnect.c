/* A worker whose broker is gone, and the brokers that come in its place: what it tells them. */
#include "fake_broker.h"
#include "support/test_main.h"
#include <errno.h>
#include <strew/strew.h>
#include <string.h>
#include <unistd.h>

#define PATIENCE_MS 10000
#define SHORT_MS 200

/* What had been heard of update 5, to version 2, when the first broker went. */
enum last_heard {
	NOTHING,
	CHECKED,
	READY, /* and the engine had let go of its memory */
	COMMITTED,
	SAT_OUT,
	WRITTEN_IN_PART,
	SIBLING_LOST,
	LAST_HEARD_COUNT
};

/* What that broker's page says of its writing, when it has ended. */
enum page_says { NOT_A_WORD, NOT_WRITTEN, HAS_WRITTEN, PAGE_SAYS_COUNT };

static enum page_says page_says;

static char *memory, path[128], directory[64];

static void first_script(struct fake *fake)
{
	struct message message;

	fake_take_share(fake, MSG_REGISTER);
	EXPECT(fake->reg.version == 0 && fake->reg.update == 0);
	fake_registered(fake, STREW_GROUP_CURRENT, 0);
	page_store(&fake->ours, WORD_WRITTEN,
		page_says == NOT_A_WORD	   ? 0
		: page_says == HAS_WRITTEN ? 5
					   : WRITTEN_NONE);
	if (fake->step >= CHECKED) {
		fake_check(fake, 5, 2, WIRE_OK);
	}
	if (fake->step >= READY && fake->reg.gate == STREW_GATE_HELD) {
		fake_hold(fake, 5, 2);
		fake_expect(fake, MSG_READY, &message);
	}
	switch (fake->step) {
	case COMMITTED:
		fake_done(fake, 5, 2, STREW_OUTCOME_COMMITTED, STREW_GROUP_CURRENT);
		break;
	case SAT_OUT:
		fake_done(fake, 5, 0, STREW_OUTCOME_SAT_OUT, STREW_GROUP_STALE);
		break;
	case WRITTEN_IN_PART:
		fake_done(fake, 5, 0, STREW_OUTCOME_DIRTY, STREW_GROUP_DIRTY);
		break;
	case SIBLING_LOST:
		fake_done(fake, 5, 0, STREW_OUTCOME_LOST, STREW_GROUP_LOST);
		break;
	default:
		break;
	}
	fake_drop(fake);
}

/* What the brokers that follow must be told. */
struct told {
	enum strew_group_state state; /* 0: nothing */
	uint64_t version, update;
	enum memory_holds holds;
};

static struct told told;

/* What a group of one such worker is then. */
static enum strew_group_state comes_as(void)
{
	bool torn = told.state == STREW_GROUP_IN_DOUBT || told.state == STREW_GROUP_DIRTY;

	return torn && told.holds != HOLDS_NOTHING ? STREW_GROUP_DIRTY
	       : torn || told.state == STREW_GROUP_LOST || told.state == STREW_GROUP_FORMING
		       ? STREW_GROUP_STALE
	       : told.state ? told.state
			    : STREW_GROUP_CURRENT;
}

static void next_script(struct fake *fake)
{
	struct message message;

	fake_take_share(fake, MSG_REGISTER);
	EXPECT(fake->reg.state == told.state && fake->reg.version == told.version);
	EXPECT(fake->reg.update == told.update && fake->reg.holds == told.holds);
	EXPECT(fake->nallocations == 1);
	EXPECT(fake->allocations[0].base == (uint64_t)(uintptr_t)memory);
	fake_registered(fake, comes_as(), told.version);
	/* Not ready any more: the hold is heard. */
	fake_check(fake, 1, 9, WIRE_OK);
	if (fake->reg.gate == STREW_GATE_HELD) {
		fake_hold(fake, 1, 9);
		fake_expect(fake, MSG_READY, &message);
	}
	fake_done(fake, 1, 9, STREW_OUTCOME_COMMITTED, STREW_GROUP_CURRENT);
	fake_expect(fake, MSG_WITHDRAW, &message);
	fake_ok(fake, message.serial);
	fake_expect_end(fake);
}

static void refusing_script(struct fake *fake)
{
	fake_take_share(fake, MSG_REGISTER);
	fake_error(fake, fake->seal_serial, -EEXIST, "worker 0 is here already");
	fake_expect_end(fake);
}

static struct strew_agent *open_registered(enum strew_gate gate, int serve_thread)
{
	struct strew_agent_options options = {.socket = path,
		.model = "m",
		.gate = gate,
		.serve_thread = serve_thread,
		.timeout_ms = PATIENCE_MS};
	struct strew_parameter parameter = {
		.name = "p", .data = memory, .dtype = STREW_BF16, .ndim = 1, .shape = {64}};
	struct strew_piece piece = {.tensor = "t", .dtype = STREW_BF16, .ndim = 1, .shape = {64}};
	struct strew_agent *agent;

	assert_int_equal(strew_agent_open(&options, &agent), 0);
	assert_int_equal(strew_agent_declare(agent, &parameter, &piece.parameter), 0);
	assert_int_equal(strew_agent_piece(agent, &piece), 0);
	assert_int_equal(strew_agent_reconnect(agent, 0), -EISCONN);
	assert_int_equal(strew_agent_register(agent), 0);
	return agent;
}

static void expect_event(struct strew_agent *agent, enum strew_event_type type)
{
	struct strew_event event = {0};

	if (strew_agent_wait(agent, PATIENCE_MS, &event) != 1) {
		fail_msg("%s", strew_error());
	}
	assert_int_equal(event.type, type);
}

static void lose(struct strew_agent *agent, enum strew_gate gate, enum last_heard heard)
{
	if (heard >= READY && gate == STREW_GATE_HELD) {
		expect_event(agent, STREW_EVENT_HOLD);
		assert_int_equal(strew_agent_ready(agent, NULL), 0);
	}
	if (heard >= COMMITTED) {
		expect_event(agent, STREW_EVENT_DONE);
	}
	expect_event(agent, STREW_EVENT_LOST);
}

static void serve_again(struct strew_agent *agent, enum strew_gate gate, struct told expected)
{
	struct fake fake = {.script = next_script, .at = path, .mortal = true};
	enum strew_group_state state;
	uint64_t version;

	told = expected;
	fake_start(&fake);
	if (strew_agent_reconnect(agent, PATIENCE_MS)) {
		fail_msg("%s", strew_error());
	}
	if (gate == STREW_GATE_HELD) {
		assert_int_equal(strew_agent_state(agent, &state, &version), 0);
		assert_true(state == STREW_GROUP_PENDING || state == comes_as());
		assert_int_equal(version, told.version);
		expect_event(agent, STREW_EVENT_HOLD);
		assert_int_equal(strew_agent_ready(agent, NULL), 0);
	}
	expect_event(agent, STREW_EVENT_DONE);
	assert_int_equal(strew_agent_state(agent, &state, &version), 0);
	assert_int_equal(state, STREW_GROUP_CURRENT);
	assert_int_equal(version, 9);
	strew_agent_close(agent);
	fake_stop(&fake);
}

/* Where the broker might write, its page says whether it did; but what was under way others may
 * have. */
static enum memory_holds held_by(enum last_heard heard, enum strew_gate gate)
{
	static const enum memory_holds by_page[PAGE_SAYS_COUNT] = {
		HOLDS_UNKNOWN, HOLDS_NOTHING, HOLDS_SOME};

	if (heard == NOTHING || heard == COMMITTED) {
		return HOLDS_ALL;
	}
	if (heard == READY || (heard == CHECKED && gate == STREW_GATE_LIVE)) {
		return by_page[page_says];
	}
	return heard == WRITTEN_IN_PART ? HOLDS_UNKNOWN : HOLDS_NOTHING;
}

static void run_what_is_told(enum last_heard heard, enum strew_gate gate, int serve_thread)
{
	static const struct told left[LAST_HEARD_COUNT] = {{.state = STREW_GROUP_CURRENT},
		{STREW_GROUP_IN_DOUBT, 0, 5, 0}, {STREW_GROUP_IN_DOUBT, 0, 5, 0},
		{STREW_GROUP_CURRENT, 2, 5, 0}, {STREW_GROUP_STALE, 0, 5, 0},
		{STREW_GROUP_DIRTY, 0, 5, 0}, {STREW_GROUP_LOST, 0, 5, 0}};
	struct told expected = left[heard];
	struct fake fake = {.script = first_script, .at = path, .mortal = true, .step = (int)heard};
	struct strew_agent *agent;

	expected.holds = held_by(heard, gate);
	fake_start(&fake);
	agent = open_registered(gate, serve_thread);
	lose(agent, gate, heard);
	fake_stop(&fake);
	serve_again(agent, gate, expected);
}

static void test_what_is_told(void **arg)
{
	(void)arg;
	for (int i = 0; i < 4 * LAST_HEARD_COUNT * PAGE_SAYS_COUNT; i++) {
		page_says = (enum page_says)(i / 4 % PAGE_SAYS_COUNT);
		run_what_is_told((enum last_heard)(i / 4 / PAGE_SAYS_COUNT),
			i & 1 ? STREW_GATE_LIVE : STREW_GATE_HELD, i & 2);
	}
}

/* Two brokers die in a row, and the first had been told that its update was in doubt. */
static void doubt_script(struct fake *fake)
{
	struct message message;

	fake_take_share(fake, MSG_REGISTER);
	fake_registered(fake, STREW_GROUP_CURRENT, 3);
	page_store(&fake->ours, WORD_WRITTEN, WRITTEN_NONE);
	fake_check(fake, 6, 4, WIRE_OK);
	fake_hold(fake, 6, 4);
	fake_expect(fake, MSG_READY, &message);
	fake_done(fake, 6, 3, STREW_OUTCOME_NONE, STREW_GROUP_IN_DOUBT);
	if (fake->step) {
		/* The next one begins before the end of that one was learnt. */
		fake_check(fake, 7, 5, WIRE_OK);
	}
	fake_drop(fake);
}

static void test_doubt(void **arg)
{
	(void)arg;
	for (int next = 0; next < 2; next++) {
		struct fake fake = {
			.script = doubt_script, .at = path, .mortal = true, .step = next};
		struct told expected = {STREW_GROUP_IN_DOUBT, 3, 6, HOLDS_NOTHING};
		struct strew_agent *agent;

		if (next) {
			/* No one update alone decides whether it has the last version. */
			expected = (struct told){STREW_GROUP_STALE, 3, 7, HOLDS_NOTHING};
		}
		fake_start(&fake);
		agent = open_registered(STREW_GATE_HELD, 0);
		expect_event(agent, STREW_EVENT_HOLD);
		assert_int_equal(strew_agent_ready(agent, NULL), 0);
		expect_event(agent, STREW_EVENT_DONE);
		expect_event(agent, STREW_EVENT_LOST);
		fake_stop(&fake);
		serve_again(agent, STREW_GATE_HELD, expected);
	}
}

/* What a second broker says of the group, to a worker that came to it CURRENT at version 2. */
enum second_says {
	FORMS,		    /* when it registers; it stands later, without a message */
	LACKS,		    /* LOST, the same way */
	FORMS_THEN_CHECKED, /* the next update begins, and ends with that broker */
	FORMS_AT_ITS_END,   /* that update has ended, perhaps by a commit of others */
	SECOND_SAYS_COUNT
};

static void second_script(struct fake *fake)
{
	fake_take_share(fake, MSG_REGISTER);
	fake_registered(fake, fake->step == LACKS ? STREW_GROUP_LOST : STREW_GROUP_FORMING, 2);
	page_store(&fake->ours, WORD_WRITTEN, WRITTEN_NONE);
	page_tell_group(&fake->ours, STREW_GROUP_CURRENT, 2);
	if (fake->step >= FORMS_THEN_CHECKED) {
		fake_check(fake, 6, 3, WIRE_OK);
	}
	if (fake->step == FORMS_AT_ITS_END) {
		fake_done(fake, 6, 2, STREW_OUTCOME_SAT_OUT, STREW_GROUP_FORMING);
	}
	fake_drop(fake);
}

static void test_group_that_forms(void **arg)
{
	static const struct told expected[SECOND_SAYS_COUNT] = {
		{STREW_GROUP_CURRENT, 2, 5, HOLDS_ALL}, {STREW_GROUP_CURRENT, 2, 5, HOLDS_ALL},
		{STREW_GROUP_IN_DOUBT, 2, 6, HOLDS_NOTHING},
		{STREW_GROUP_FORMING, 2, 6, HOLDS_NOTHING}};

	(void)arg;
	for (int says = 0; says < SECOND_SAYS_COUNT; says++) {
		struct fake first = {
			.script = first_script, .at = path, .mortal = true, .step = COMMITTED};
		struct fake second = {
			.script = second_script, .at = path, .mortal = true, .step = says};
		struct strew_agent *agent;

		fake_start(&first);
		agent = open_registered(STREW_GATE_HELD, 0);
		lose(agent, STREW_GATE_HELD, COMMITTED);
		fake_stop(&first);
		fake_start(&second);
		assert_int_equal(strew_agent_reconnect(agent, PATIENCE_MS), 0);
		if (says == FORMS_AT_ITS_END) {
			expect_event(agent, STREW_EVENT_DONE);
		}
		expect_event(agent, STREW_EVENT_LOST);
		fake_stop(&second);
		serve_again(agent, STREW_GATE_HELD, expected[says]);
	}
}

/* Each failure leaves the worker as it was, and what it holds is told to the one that comes. */
static void run_failures(int serve_thread)
{
	struct fake first = {.script = first_script, .at = path, .mortal = true, .step = COMMITTED};
	struct fake early = {.script = fake_expect_end, .at = path, .mortal = true};
	struct fake refusing = {.script = refusing_script, .at = path, .mortal = true};
	enum strew_group_state state;
	struct strew_agent *agent;
	struct strew_event event;
	uint64_t version;

	fake_start(&first);
	agent = open_registered(STREW_GATE_HELD, serve_thread);
	lose(agent, STREW_GATE_HELD, COMMITTED);
	pthread_join(first.thread, NULL);
	unlink(path);
	assert_int_equal(strew_agent_reconnect(agent, SHORT_MS), -ENOENT);
	/* Another broker is there, but the first one's process is not gone: it may still write. */
	fake_start(&early);
	assert_int_equal(strew_agent_reconnect(agent, SHORT_MS), -ETIMEDOUT);
	fake_stop(&early);
	fake_kill(&first);
	fake_start(&refusing);
	assert_int_equal(strew_agent_reconnect(agent, PATIENCE_MS), -EEXIST);
	assert_string_equal(strew_error(), "worker 0 is here already");
	fake_stop(&refusing);
	/* Said once, and not of the brokers that did not take it. */
	assert_int_equal(strew_agent_dispatch(agent, &event), -ECONNRESET);
	assert_int_equal(strew_agent_state(agent, &state, &version), 0);
	assert_int_equal(state, STREW_GROUP_CURRENT);
	assert_int_equal(version, 2);
	serve_again(agent, STREW_GATE_HELD, (struct told){STREW_GROUP_CURRENT, 2, 5, HOLDS_ALL});
	conn_destroy(first.conn);
	first.conn = NULL;
	page_finish(&first.theirs);
	page_finish(&first.ours);
	blob_finish(&first.blob);
	close(first.fds[0]);
	close(first.listener);
}

static void test_failures(void **arg)
{
	(void)arg;
	run_failures(0);
	run_failures(1);
}

static void current_script(struct fake *fake)
{
	fake_take_share(fake, MSG_REGISTER);
	fake_registered(fake, STREW_GROUP_FORMING, 0);
	usleep(100000);
	/* Its siblings have come, without a message: only the page says it. */
	page_tell_group(&fake->ours, STREW_GROUP_STALE, 3);
	usleep(100000);
	page_tell_group(&fake->ours, STREW_GROUP_CURRENT, 4);
	usleep(100000);
	fake_drop(fake);
}

static void test_wait_current(void **arg)
{
	(void)arg;
	for (int thread = 0; thread < 2; thread++) {
		struct fake fake = {.script = current_script, .at = path, .mortal = true};
		enum strew_group_state state;
		struct strew_agent *agent;
		uint64_t version;

		fake_start(&fake);
		agent = open_registered(STREW_GATE_HELD, thread);
		assert_int_equal(strew_agent_peek(agent, &state, &version), -EAGAIN);
		assert_int_equal(strew_agent_wait_current(agent, 10), -ETIMEDOUT);
		assert_string_equal(strew_error(), "the group is FORMING");
		assert_int_equal(strew_agent_wait_current(agent, PATIENCE_MS), 0);
		assert_int_equal(strew_agent_peek(agent, &state, &version), 0);
		assert_int_equal(state, STREW_GROUP_CURRENT);
		assert_int_equal(version, 4);
		expect_event(agent, STREW_EVENT_LOST);
		fake_kill(&fake);
		assert_int_equal(strew_agent_wait_current(agent, PATIENCE_MS), -ECONNRESET);
		strew_agent_close(agent);
		fake_stop(&fake);
	}
}

/* Memory that was taken back is not given away again. */
static void test_withdrawn(void **arg)
{
	struct fake fake = {.script = first_script, .at = path, .mortal = true};
	struct strew_agent *agent;

	(void)arg;
	fake_start(&fake);
	agent = open_registered(STREW_GATE_HELD, 0);
	lose(agent, STREW_GATE_HELD, NOTHING);
	fake_stop(&fake);
	assert_int_equal(strew_agent_withdraw(agent), 0);
	assert_int_equal(strew_agent_reconnect(agent, SHORT_MS), -EINVAL);
	strew_agent_close(agent);
}

static int set_up(void **arg)
{
	(void)arg;
	strcpy(directory, "/tmp/strew-agent-XXXXXX");
	if (!mkdtemp(directory)) {
		return -1;
	}
	snprintf(path, sizeof(path), "%s/socket", directory);
	return strew_host_alloc(4096, (void **)&memory);
}

static int tear_down(void **arg)
{
	char lock[160];

	(void)arg;
	strew_host_free(memory);
	snprintf(lock, sizeof(lock), "%s.lock", path);
	unlink(lock);
	return rmdir(directory);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(test_what_is_told),
		TEST(test_doubt),
		TEST(test_group_that_forms),
		TEST(test_failures),
		TEST(test_withdrawn),
		TEST(test_wait_current),
	};

	return TEST_RUN(tests);
}
