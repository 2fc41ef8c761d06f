/* The worker's face against a played broker, with and without the library's own thread. */
#include "base/util.h"
#include "fake_broker.h"
#include "support/test_main.h"
#include <errno.h>
#include <poll.h>
#include <strew/strew.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define ROWS 8
#define COLUMNS 6
#define PATIENCE_MS 10000

static uint16_t *memory; /* of the worker under test */

static struct strew_agent *open_agent(struct fake *fake, struct strew_agent_options *options)
{
	struct strew_agent *agent;

	options->socket = fake->path;
	options->model = "m";
	if (!options->timeout_ms) {
		options->timeout_ms = PATIENCE_MS;
	}
	assert_int_equal(strew_agent_open(options, &agent), 0);
	return agent;
}

/* One parameter [8, 6] of bf16 at row 1 of its memory, from tensor "t" [16, 6], rows 8 to 16. */
static void declare(struct strew_agent *agent)
{
	struct strew_parameter parameter = {.name = "p",
		.data = memory + COLUMNS,
		.dtype = STREW_BF16,
		.ndim = 2,
		.shape = {ROWS, COLUMNS}};
	struct strew_piece piece = {.tensor = "t",
		.dtype = STREW_BF16,
		.ndim = 2,
		.shape = {2 * ROWS, COLUMNS},
		.start = {ROWS, 0}};

	assert_int_equal(strew_agent_declare(agent, &parameter, &piece.parameter), 0);
	assert_int_equal(strew_agent_piece(agent, &piece), 0);
}

static struct strew_agent *open_registered(struct fake *fake, struct strew_agent_options *options)
{
	struct strew_agent *agent = open_agent(fake, options);

	declare(agent);
	if (strew_agent_register(agent)) {
		fail_msg("%s", strew_error());
	}
	return agent;
}

static void expect_event(struct strew_agent *agent, enum strew_event_type type, uint64_t version,
	enum strew_group_state state)
{
	struct pollfd pollfd = {.fd = strew_agent_fd(agent), .events = POLLIN};
	struct strew_event event = {0};
	int rc = 0;

	while (rc == 0) {
		assert_int_equal(poll(&pollfd, 1, PATIENCE_MS), 1);
		rc = strew_agent_dispatch(agent, &event);
	}
	assert_int_equal(rc, 1);
	assert_int_equal(event.type, type);
	assert_int_equal(event.version, version);
	assert_int_equal(event.state, state);
}

static void expect_quiet(struct strew_agent *agent)
{
	struct strew_event event;

	assert_int_equal(strew_agent_wait(agent, 50, &event), -ETIMEDOUT);
	assert_int_equal(strew_agent_dispatch(agent, &event), 0);
}

static void serve_withdraw(struct fake *fake)
{
	struct message message;

	fake_expect(fake, MSG_WITHDRAW, &message);
	fake_ok(fake, message.serial);
	fake_expect_end(fake);
}

static void check_registration(struct fake *fake)
{
	struct layout layout;
	struct error err = {0};
	uint16_t *map;

	EXPECT(strcmp(fake->reg.model, "m") == 0);
	EXPECT(fake->reg.members == 1 && fake->reg.gate == STREW_GATE_HELD);
	EXPECT(fake->reg.apply == STREW_APPLY_STAGED && fake->nallocations == 1);
	EXPECT(fake->allocations[0].base == (uint64_t)(uintptr_t)memory);
	EXPECT(blob_to_layout(&fake->blob, false, &layout, &err) == 0);
	EXPECT(layout.nparameters == 1 && layout.npieces == 1 && layout.ntensors == 1);
	EXPECT(strcmp(layout.parameters[0].name, "p") == 0);
	EXPECT(layout.parameters[0].allocation == 0);
	EXPECT(layout.parameters[0].offset_bytes == COLUMNS * sizeof(*memory));
	EXPECT(layout.pieces[0].box.start[0] == ROWS && layout.pieces[0].box.extent[0] == ROWS);
	EXPECT(layout.pieces[0].box.extent[1] == COLUMNS);
	EXPECT(layout.pieces[0].stride[0] == COLUMNS && layout.pieces[0].stride[1] == 1);
	layout_finish(&layout);
	map = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fake->fds[0], 0);
	EXPECT(map != MAP_FAILED);
	map[COLUMNS] = 0x5354;
	munmap(map, 4096);
}

static void update_script(struct fake *fake)
{
	struct message message;

	fake_take_share(fake, MSG_REGISTER);
	check_registration(fake);
	fake_registered(fake, STREW_GROUP_CURRENT, 1);
	fake_check(fake, 11, 2, WIRE_OK);
	fake_hold(fake, 11, 2);
	fake_expect(fake, MSG_READY, &message);
	EXPECT(page_load(&fake->theirs, WORD_READY) == message.u.ready.word);
	EXPECT(message.u.ready.word == 1);
	fake_expect(fake, MSG_RESUME, &message);
	usleep(100000);
	EXPECT(page_load(&fake->theirs, WORD_READY) == 1);
	/* The grant and the next update's hold at once: the hold is not of the old pause. */
	fake_done(fake, 11, 2, STREW_OUTCOME_COMMITTED, STREW_GROUP_CURRENT);
	fake_ok(fake, message.serial);
	fake_hold(fake, 12, 3);
	fake_expect(fake, MSG_READY, &message);
	EXPECT(message.u.ready.word == 2);
	/* Already ready: the hold of the next update is nobody's business. */
	fake_hold(fake, 12, 3);
	fake_done(fake, 12, 2, STREW_OUTCOME_DIRTY, STREW_GROUP_DIRTY);
	fake_expect(fake, MSG_RESUME, &message);
	fake_error(fake, message.serial, -EUCLEAN, "the group is DIRTY");
	fake_expect(fake, MSG_RESUME, &message);
	fake_done(fake, 13, 4, STREW_OUTCOME_COMMITTED, STREW_GROUP_CURRENT);
	fake_ok(fake, message.serial);
	fake_expect(fake, MSG_WITHDRAW, &message);
	EXPECT(page_load(&fake->theirs, WORD_STATE) == STREW_GROUP_CURRENT);
	EXPECT(page_load(&fake->theirs, WORD_VERSION) == 4);
	EXPECT(page_load(&fake->theirs, WORD_UPDATE) == 13);
	fake_ok(fake, message.serial);
	fake_expect_end(fake);
}

static void run_updates(int serve_thread)
{
	struct strew_agent_options options = {.serve_thread = serve_thread};
	struct fake fake = {.script = update_script};
	enum strew_group_state state;
	struct strew_agent *agent;
	uint64_t version;

	fake_start(&fake);
	agent = open_registered(&fake, &options);
	assert_int_equal(memory[COLUMNS], 0x5354);
	expect_event(agent, STREW_EVENT_HOLD, 2, STREW_GROUP_PENDING);
	assert_int_equal(strew_agent_state(agent, &state, &version), 0);
	assert_int_equal(state, STREW_GROUP_PENDING);
	assert_int_equal(version, 1);
	assert_int_equal(strew_agent_ready(agent, NULL), 0);
	assert_int_equal(strew_agent_resume(agent, 20), -ETIMEDOUT);
	assert_int_equal(strew_agent_ready(agent, NULL), -EBUSY);
	assert_int_equal(strew_agent_resume(agent, PATIENCE_MS), 0);
	expect_event(agent, STREW_EVENT_DONE, 2, STREW_GROUP_CURRENT);
	expect_event(agent, STREW_EVENT_HOLD, 3, STREW_GROUP_PENDING);
	assert_int_equal(strew_agent_ready(agent, NULL), 0);
	expect_event(agent, STREW_EVENT_DONE, 2, STREW_GROUP_DIRTY);
	assert_int_equal(strew_agent_resume(agent, PATIENCE_MS), -EUCLEAN);
	assert_string_equal(strew_error(), "the group is DIRTY");
	assert_int_equal(strew_agent_resume(agent, PATIENCE_MS), 0);
	expect_event(agent, STREW_EVENT_DONE, 4, STREW_GROUP_CURRENT);
	expect_quiet(agent);
	assert_int_equal(strew_agent_withdraw(agent), 0);
	assert_int_equal(strew_agent_ready(agent, NULL), -EINVAL);
	strew_agent_close(agent);
	fake_stop(&fake);
}

static void test_updates(void **arg)
{
	(void)arg;
	run_updates(0);
}

static void test_updates_thread(void **arg)
{
	(void)arg;
	run_updates(1);
}

/* What is left of a group when the broker goes: by what happened before, gate and apply. */
static void lost_script(struct fake *fake)
{
	struct message message;

	fake_serve_register(fake);
	if (fake->step >= 1) {
		fake_check(fake, 5, 2, WIRE_OK);
	}
	if (fake->step >= 2) {
		fake_hold(fake, 5, 2);
		fake_expect(fake, MSG_READY, &message);
	}
	if (fake->step >= 3) {
		fake_done(fake, 5, 2, STREW_OUTCOME_SAT_OUT, STREW_GROUP_STALE);
	}
	fake_drop(fake);
}

static void run_lost(enum strew_gate gate, enum strew_apply apply, int step, int serve_thread,
	enum strew_group_state expected)
{
	struct strew_agent_options options = {
		.gate = gate, .apply = apply, .serve_thread = serve_thread};
	struct fake fake = {.script = lost_script, .step = step, .mortal = true};
	struct strew_agent *agent;
	enum strew_group_state state;
	struct strew_event event;

	fake_start(&fake);
	agent = open_registered(&fake, &options);
	if (step >= 2) {
		expect_event(agent, STREW_EVENT_HOLD, 2, STREW_GROUP_PENDING);
		assert_int_equal(strew_agent_ready(agent, NULL), 0);
	}
	if (step >= 3) {
		expect_event(agent, STREW_EVENT_DONE, 2, STREW_GROUP_STALE);
	}
	expect_event(agent, STREW_EVENT_LOST, step >= 3 ? 2 : 1, expected);
	assert_int_equal(strew_agent_dispatch(agent, &event), -ECONNRESET);
	assert_int_equal(strew_agent_wait(agent, 10, &event), -ECONNRESET);
	assert_int_equal(strew_agent_state(agent, &state, NULL), 0);
	assert_int_equal(state, expected);
	if (gate != STREW_GATE_LIVE) {
		assert_int_equal(strew_agent_resume(agent, 10), -ECONNRESET);
		assert_int_equal(strew_agent_ready(agent, NULL), -ECONNRESET);
	}
	fake_kill(&fake);
	assert_int_equal(strew_agent_withdraw(agent), 0);
	strew_agent_close(agent);
	fake_stop(&fake);
}

static void test_lost(void **arg)
{
	(void)arg;
	for (int thread = 0; thread < 2; thread++) {
		run_lost(STREW_GATE_HELD, STREW_APPLY_DIRECT, 0, thread, STREW_GROUP_CURRENT);
		/* Nothing was ready, so nothing was written. */
		run_lost(STREW_GATE_HELD, STREW_APPLY_DIRECT, 1, thread, STREW_GROUP_CURRENT);
		run_lost(STREW_GATE_HELD, STREW_APPLY_DIRECT, 2, thread, STREW_GROUP_DIRTY);
		run_lost(STREW_GATE_HELD, STREW_APPLY_STAGED, 2, thread, STREW_GROUP_IN_DOUBT);
		run_lost(STREW_GATE_HELD, STREW_APPLY_DIRECT, 3, thread, STREW_GROUP_STALE);
		run_lost(STREW_GATE_LIVE, STREW_APPLY_DIRECT, 1, thread, STREW_GROUP_DIRTY);
		run_lost(STREW_GATE_LIVE, STREW_APPLY_STAGED, 1, thread, STREW_GROUP_IN_DOUBT);
	}
}

/* A broker that hangs up but lives on may still write: no promise before it ended. */
static void test_withdraw_needs_end(void **arg)
{
	struct strew_agent_options options = {.timeout_ms = 200};
	struct fake fake = {.script = lost_script, .mortal = true};
	struct strew_agent *agent;

	(void)arg;
	fake_start(&fake);
	agent = open_registered(&fake, &options);
	expect_event(agent, STREW_EVENT_LOST, 1, STREW_GROUP_CURRENT);
	assert_int_equal(strew_agent_withdraw(agent), -ETIMEDOUT);
	fake_kill(&fake);
	assert_int_equal(strew_agent_withdraw(agent), 0);
	strew_agent_close(agent);
	fake_stop(&fake);
}

/* Unless it says itself that it has let go, on its page, behind the end of the connection. */
static void quiet_script(struct fake *fake)
{
	lost_script(fake);
	usleep(50000);
	page_store(&fake->ours, WORD_QUIET, 1);
}

static void test_withdraw_of_who_lives_on(void **arg)
{
	struct strew_agent_options options = {.timeout_ms = 5000};

	(void)arg;
	for (int thread = 0; thread < 2; thread++) {
		struct fake fake = {.script = quiet_script};
		struct strew_agent *agent;

		options.serve_thread = thread;
		fake_start(&fake);
		agent = open_registered(&fake, &options);
		expect_event(agent, STREW_EVENT_LOST, 1, STREW_GROUP_CURRENT);
		assert_int_equal(strew_agent_withdraw(agent), 0);
		strew_agent_close(agent);
		fake_stop(&fake);
	}
}

static void refuse_script(struct fake *fake)
{
	struct message message;

	if (fake->step == 0) {
		fake_take_share(fake, MSG_REGISTER);
		fake_error(fake, fake->seal_serial, -EEXIST, "member 0 is there already");
		fake_expect_end(fake);
		return;
	}
	/* Refused at once, and hung up on what follows. */
	fake_expect(fake, MSG_REGISTER, &message);
	fake_error(fake, message.serial, -EINVAL, "no such group");
	fake_drop(fake);
}

static void run_refused(int serve_thread, int step, int expected, const char *text)
{
	struct strew_agent_options options = {.serve_thread = serve_thread};
	struct fake fake = {.script = refuse_script, .step = step};
	struct strew_agent *agent;

	fake_start(&fake);
	agent = open_agent(&fake, &options);
	declare(agent);
	assert_int_equal(strew_agent_register(agent), expected);
	assert_string_equal(strew_error(), text);
	assert_int_equal(strew_agent_register(agent), -EINVAL);
	strew_agent_close(agent);
	fake_stop(&fake);
}

static void test_refused(void **arg)
{
	(void)arg;
	for (int thread = 0; thread < 2; thread++) {
		run_refused(thread, 0, -EEXIST, "member 0 is there already");
		run_refused(thread, 1, -EINVAL, "no such group");
	}
}

static void late_script(struct fake *fake)
{
	fake_take_share(fake, MSG_REGISTER);
	usleep(300000);
	fake_registered(fake, STREW_GROUP_FORMING, 0);
	serve_withdraw(fake);
}

static void test_late_registered(void **arg)
{
	struct strew_agent_options options = {.timeout_ms = 100};
	struct fake fake = {.script = late_script};
	enum strew_group_state state;
	struct strew_agent *agent;
	int rc;

	(void)arg;
	fake_start(&fake);
	agent = open_agent(&fake, &options);
	declare(agent);
	assert_int_equal(strew_agent_register(agent), -ETIMEDOUT);
	do {
		rc = strew_agent_register(agent);
	} while (rc == -ETIMEDOUT);
	assert_int_equal(rc, 0);
	assert_int_equal(strew_agent_state(agent, &state, NULL), 0);
	assert_int_equal(state, STREW_GROUP_FORMING);
	strew_agent_close(agent);
	fake_stop(&fake);
}

/* What was forgotten wants a new agent, and both refusals say so. */
static void test_register_nothing(void **arg)
{
	struct strew_agent_options options = {0};
	struct fake fake = {.script = fake_expect_end};
	struct strew_parameter parameter = {
		.name = "p", .data = memory, .dtype = STREW_BF16, .ndim = 1, .shape = {COLUMNS}};
	struct strew_agent *agent;
	uint32_t id;

	(void)arg;
	fake_start(&fake);
	agent = open_agent(&fake, &options);
	assert_int_equal(strew_agent_register(agent), -EINVAL);
	assert_non_null(strstr(strew_error(), "nothing to register"));
	assert_non_null(strstr(strew_error(), "close the agent"));
	assert_int_equal(strew_agent_declare(agent, &parameter, &id), -EINVAL);
	assert_non_null(strstr(strew_error(), "close and open anew"));
	strew_agent_close(agent);
	fake_stop(&fake);
}

static void stale_script(struct fake *fake)
{
	struct message message;

	fake_serve_register(fake);
	fake_expect(fake, MSG_READY, &message);
	fake_check(fake, 5, 2, WIRE_STALE_VERSION);
	fake_drop(fake);
}

static void test_check_fails(void **arg)
{
	struct strew_agent_options options = {.serve_thread = 1};
	struct fake fake = {.script = stale_script, .mortal = true};
	struct strew_agent *agent;

	(void)arg;
	fake_start(&fake);
	agent = open_registered(&fake, &options);
	strew_host_free(memory);
	assert_int_equal(strew_agent_ready(agent, NULL), 0);
	expect_event(agent, STREW_EVENT_LOST, 1, STREW_GROUP_IN_DOUBT);
	assert_int_equal(strew_host_alloc(4096, (void **)&memory), 0);
	fake_kill(&fake);
	strew_agent_close(agent);
	fake_stop(&fake);
}

static void flood_script(struct fake *fake)
{
	fake_serve_register(fake);
	for (uint64_t i = 1; i <= 40; i++) {
		fake_check(fake, i, i, WIRE_OK);
		fake_done(fake, i, i, STREW_OUTCOME_COMMITTED, STREW_GROUP_CURRENT);
	}
	fake_check(fake, 41, 41, WIRE_OK);
	serve_withdraw(fake);
}

static void test_many_events(void **arg)
{
	struct strew_agent_options options = {.serve_thread = 1, .gate = STREW_GATE_LIVE};
	struct fake fake = {.script = flood_script};
	enum strew_group_state state = STREW_GROUP_CURRENT;
	struct strew_agent *agent;
	uint64_t version = 0;

	(void)arg;
	fake_start(&fake);
	agent = open_registered(&fake, &options);
	assert_int_equal(strew_agent_ready(agent, NULL), -EINVAL);
	assert_int_equal(strew_agent_resume(agent, 0), -EINVAL);
	while (version != 40 || state != STREW_GROUP_PENDING) {
		usleep(1000);
		assert_int_equal(strew_agent_state(agent, &state, &version), 0);
	}
	for (uint64_t i = 9; i <= 40; i++) {
		expect_event(agent, STREW_EVENT_DONE, i, STREW_GROUP_CURRENT);
	}
	expect_quiet(agent);
	strew_agent_close(agent);
	fake_stop(&fake);
}

static void garbage_script(struct fake *fake)
{
	fake_serve_register(fake);
	switch (fake->step) {
	case 0:
		fake_raw(fake, "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", 35);
		break;
	case 1: /* not for agents */
		fake_ok(fake, 0);
		break;
	case 2: /* states that do not exist */
		fake_done(fake, 1, 1, STREW_OUTCOME_COMMITTED, (enum strew_group_state)99);
		break;
	default: /* half a frame */
		fake_raw(fake, "STRW", 4);
		fake_drop(fake);
		return;
	}
	fake_expect_end(fake);
}

static void test_garbage(void **arg)
{
	(void)arg;
	for (int i = 0; i < 8; i++) {
		struct strew_agent_options options = {.serve_thread = i & 1};
		struct fake fake = {.script = garbage_script, .step = i / 2, .mortal = true};
		struct strew_agent *agent;

		fake_start(&fake);
		agent = open_registered(&fake, &options);
		expect_event(agent, STREW_EVENT_LOST, 1, STREW_GROUP_CURRENT);
		fake_kill(&fake);
		strew_agent_close(agent);
		fake_stop(&fake);
	}
}

static void fork_script(struct fake *fake)
{
	struct message message;

	fake_serve_register(fake);
	/* Nothing that the child did may be heard before this. */
	fake_expect(fake, MSG_RESUME, &message);
	fake_ok(fake, message.serial);
	serve_withdraw(fake);
}

static void test_fork(void **arg)
{
	(void)arg;
	for (int thread = 0; thread < 2; thread++) {
		struct strew_agent_options options = {.serve_thread = thread};
		struct fake fake = {.script = fork_script};
		struct strew_agent *agent;
		struct strew_event event;
		pid_t child;
		int status;

		fake_start(&fake);
		agent = open_registered(&fake, &options);
		child = fork();
		if (child == 0) {
			int wrong = strew_agent_ready(agent, NULL) != -ECHILD ||
				    strew_agent_resume(agent, 10) != -ECHILD ||
				    strew_agent_dispatch(agent, &event) != -ECHILD ||
				    strew_agent_fd(agent) != -ECHILD ||
				    strew_agent_withdraw(agent) != -ECHILD;
			strew_agent_close(agent);
			_exit(wrong);
		}
		assert_int_equal(waitpid(child, &status, 0), child);
		assert_int_equal(status, 0);
		assert_int_equal(strew_agent_resume(agent, PATIENCE_MS), 0);
		strew_agent_close(agent);
		fake_stop(&fake);
	}
}

#define TEST(name) FAKE_TEST(name, memory)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(test_updates),
		TEST(test_updates_thread),
		TEST(test_lost),
		TEST(test_withdraw_needs_end),
		TEST(test_withdraw_of_who_lives_on),
		TEST(test_refused),
		TEST(test_late_registered),
		TEST(test_register_nothing),
		TEST(test_check_fails),
		TEST(test_many_events),
		TEST(test_garbage),
		TEST(test_fork),
	};

	return TEST_RUN(tests);
}
