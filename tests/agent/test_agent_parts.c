/* The trainer's face against a played broker: updates in parts that end in all sorts of ways. */
#include "base/util.h"
#include "fake_broker.h"
#include "plan/subset.h"
#include "support/test_main.h"
#include <errno.h>
#include <strew/strew.h>
#include <string.h>
#include <unistd.h>

#define PATIENCE_MS 10000
#define VERSION 7

static float *memory;

/* Tensors "a" and "b" in the same memory, each a subset of its own; the script serves that. */
static struct strew_trainer *open_two(struct fake *fake, int timeout_ms)
{
	struct strew_trainer_options options = {
		.socket = fake->path, .model = "m", .timeout_ms = timeout_ms};
	struct strew_tensor tensor = {
		.dtype = STREW_F32, .ndim = 1, .shape = {100}, .data = memory};
	struct strew_trainer *trainer;
	uint32_t subset;

	assert_int_equal(strew_trainer_open(&options, &trainer), 0);
	for (unsigned i = 0; i < 2; i++) {
		tensor.name = i ? "b" : "a";
		assert_int_equal(strew_trainer_declare(trainer, &tensor), 0);
	}
	assert_int_equal(strew_trainer_seal(trainer), 0);
	for (uint32_t i = 0; i < 2; i++) {
		assert_int_equal(
			strew_trainer_subset(trainer, &(const char *){i ? "b" : "a"}, 1, &subset),
			0);
		assert_int_equal(subset, i + 1);
	}
	return trainer;
}

static void serve_two(struct fake *fake)
{
	struct message message;

	fake_take_share(fake, MSG_TRAINER);
	message_init(&message, MSG_DECLARED, fake->seal_serial);
	message.u.declared.tensors = 2;
	fake_send(fake, &message);
	for (uint32_t i = 0; i < 2; i++) {
		fake_expect(fake, MSG_SUBSET, &message);
		EXPECT(message.u.subset.subset == i + 1);
		fake_ok(fake, message.serial);
		message_finish(&message);
	}
}

static void released(struct fake *fake)
{
	struct message message;

	message_init(&message, MSG_RELEASED, 0);
	message.u.released.version = VERSION;
	fake_send(fake, &message);
}

static void report(struct fake *fake, enum strew_outcome outcome, const char *text)
{
	struct message message;

	message_init(&message, MSG_REPORT, 0);
	message.u.report.version = VERSION;
	message.u.report.outcome = outcome;
	string_copy(message.u.report.text, sizeof(message.u.report.text), text);
	fake_send(fake, &message);
}

/* The first part, taken and released. */
static void serve_first(struct fake *fake)
{
	struct message message;

	fake_expect(fake, MSG_PUBLISH, &message);
	EXPECT(message.u.publish.version == VERSION && message.u.publish.subset == 1);
	EXPECT(message.u.publish.flags == PUBLISH_PARTS);
	fake_ok(fake, message.serial);
	released(fake);
}

static void put_first(struct strew_trainer *trainer)
{
	assert_int_equal(strew_trainer_open_parts(trainer, VERSION, 0, 0), 0);
	assert_int_equal(strew_trainer_put(trainer, 1, NULL), 0);
	assert_int_equal(strew_trainer_wait_released(trainer, PATIENCE_MS), 0);
}

static void expect_report(
	struct strew_trainer *trainer, enum strew_outcome outcome, const char *text)
{
	struct strew_report got;

	assert_int_equal(strew_trainer_wait_report(trainer, PATIENCE_MS, &got), 0);
	assert_int_equal(got.outcome, outcome);
	assert_string_equal(got.text, text);
	strew_report_finish(&got);
}

/* The next one is as good as the first. */
static void serve_again(struct fake *fake)
{
	struct message message;

	serve_first(fake);
	fake_expect(fake, MSG_PUT, &message);
	EXPECT(message.u.put.subset == 2);
	fake_ok(fake, message.serial);
	released(fake);
	fake_expect(fake, MSG_PUT, &message);
	EXPECT(message.u.put.subset == 0);
	fake_ok(fake, message.serial);
	report(fake, STREW_OUTCOME_COMMITTED, "");
	fake_expect_end(fake);
}

static void publish_again(struct strew_trainer *trainer)
{
	put_first(trainer);
	assert_int_equal(strew_trainer_put(trainer, 2, NULL), 0);
	assert_int_equal(strew_trainer_wait_released(trainer, PATIENCE_MS), 0);
	assert_int_equal(strew_trainer_close_parts(trainer), 0);
	expect_report(trainer, STREW_OUTCOME_COMMITTED, "");
	strew_trainer_close(trainer);
}

static void crossing_script(struct fake *fake)
{
	struct message message;

	serve_two(fake);
	serve_first(fake);
	fake_expect(fake, MSG_PUT, &message);
	/* The update has ended before the put came: it was released by its end, and never lent. */
	if (fake->step == 2) {
		fake_error(fake, message.serial, -ESTALE, "not being published");
	}
	report(fake, STREW_OUTCOME_ABORTED, "rank 3 was lost");
	if (fake->step == 1) {
		fake_error(fake, message.serial, -ESTALE, "not being published");
	}
	serve_again(fake);
}

/* A put that crosses the report lends nothing for ever, whether its refusal is read or not. */
static void test_a_put_crosses_the_report(void **arg)
{
	(void)arg;
	for (int step = 0; step < 3; step++) {
		struct fake fake = {.script = crossing_script, .step = step};
		struct strew_trainer *trainer;

		fake_start(&fake);
		trainer = open_two(&fake, PATIENCE_MS);
		put_first(trainer);
		assert_int_equal(strew_trainer_put(trainer, 2, NULL), 0);
		if (step == 2) {
			assert_int_equal(
				strew_trainer_wait_released(trainer, PATIENCE_MS), -ECANCELED);
		}
		expect_report(trainer, STREW_OUTCOME_ABORTED, "rank 3 was lost");
		assert_int_equal(strew_trainer_wait_released(trainer, 0), 0);
		publish_again(trainer);
		fake_stop(&fake);
	}
}

static void lost_script(struct fake *fake)
{
	struct message message;

	serve_two(fake);
	if (fake->step == 0) {
		serve_first(fake);
	} else {
		fake_expect(fake, MSG_CANCEL, &message);
	}
	fake_drop(fake);
}

/* The lost connection is what is said, not that an update is still open; one part was put, or none.
 */
static void test_the_broker_is_lost(void **arg)
{
	(void)arg;
	for (int step = 0; step < 2; step++) {
		struct fake fake = {.script = lost_script, .step = step, .mortal = true};
		struct strew_trainer *trainer;
		struct strew_report got;

		fake_start(&fake);
		trainer = open_two(&fake, PATIENCE_MS);
		if (step == 0) {
			put_first(trainer);
			assert_int_equal(
				strew_trainer_wait_report(trainer, PATIENCE_MS, &got), -ECONNRESET);
		} else {
			assert_int_equal(strew_trainer_open_parts(trainer, VERSION, 0, 0), 0);
			assert_int_equal(strew_trainer_cancel_parts(trainer, "why"), -ECONNRESET);
		}
		assert_int_equal(strew_trainer_put(trainer, 2, NULL), -EINVAL);
		assert_string_equal(strew_error(), "put: no update in parts is open");
		assert_int_equal(strew_trainer_close_parts(trainer), -EINVAL);
		assert_string_equal(strew_error(), "close: no update in parts is open");
		assert_int_equal(strew_trainer_cancel_parts(trainer, "why"), -EINVAL);
		assert_int_equal(strew_trainer_open_parts(trainer, VERSION, 0, 0), -ECONNRESET);
		strew_trainer_close(trainer);
		fake_stop(&fake);
	}
}

enum { BETWEEN, AHEAD_OF_THE_ANSWER, TOO_LATE, OTHERS_ALONE, REFUSED, CASES };

static void expect_cancel(struct fake *fake, uint64_t *ret_serial)
{
	struct message message;

	fake_expect(fake, MSG_CANCEL, &message);
	EXPECT(message.u.cancel.version == VERSION);
	EXPECT(strcmp(message.u.cancel.text, "no memory") == 0);
	*ret_serial = message.serial;
}

static void cancel_script(struct fake *fake)
{
	struct message message;
	uint64_t serial;

	serve_two(fake);
	if (fake->step == OTHERS_ALONE) {
		expect_cancel(fake, &serial);
		fake_error(fake, serial, -ESTALE, "nobody has put");
		serve_again(fake);
		return;
	}
	if (fake->step == REFUSED) {
		fake_expect(fake, MSG_PUBLISH, &message);
		fake_error(fake, message.serial, -ESTALE, "not above");
		serve_again(fake);
		return;
	}
	serve_first(fake);
	if (fake->step != BETWEEN) {
		fake_expect(fake, MSG_PUT, &message);
	}
	expect_cancel(fake, &serial);
	if (fake->step == TOO_LATE) {
		fake_error(fake, serial, -ESTALE, "it has ended");
		fake_error(fake, message.serial, -ESTALE, "not being published");
	} else if (fake->step == AHEAD_OF_THE_ANSWER) {
		fake_ok(fake, message.serial);
		fake_ok(fake, serial);
		released(fake);
	} else {
		fake_ok(fake, serial);
	}
	report(fake, STREW_OUTCOME_ABORTED, "gave it up");
	serve_again(fake);
}

static void test_cancel(void **arg)
{
	static const int codes[CASES] = {
		[TOO_LATE] = -ECANCELED, [OTHERS_ALONE] = -ENOENT, [REFUSED] = -ECANCELED};

	(void)arg;
	for (int step = 0; step < CASES; step++) {
		struct fake fake = {.script = cancel_script, .step = step};
		struct strew_trainer *trainer;
		struct strew_report got;

		fake_start(&fake);
		trainer = open_two(&fake, PATIENCE_MS);
		assert_int_equal(strew_trainer_cancel_parts(trainer, "no memory"), -EINVAL);
		assert_int_equal(strew_trainer_cancel_parts(NULL, "no memory"), -EINVAL);
		if (step == OTHERS_ALONE) {
			assert_int_equal(strew_trainer_open_parts(trainer, VERSION, 0, 0), 0);
		} else if (step == REFUSED) {
			assert_int_equal(strew_trainer_open_parts(trainer, VERSION, 0, 0), 0);
			assert_int_equal(strew_trainer_put(trainer, 1, NULL), 0);
		} else {
			put_first(trainer);
		}
		if (step == AHEAD_OF_THE_ANSWER || step == TOO_LATE) {
			assert_int_equal(strew_trainer_put(trainer, 2, NULL), 0);
		}
		assert_int_equal(strew_trainer_cancel_parts(trainer, "no memory"), codes[step]);
		if (step == REFUSED) {
			assert_int_equal(strew_trainer_wait_released(trainer, 0), -ESTALE);
			assert_int_equal(strew_trainer_wait_report(trainer, 0, &got), -ESTALE);
			assert_string_equal(strew_error(), "not above");
		} else if (step == OTHERS_ALONE) {
			assert_int_equal(strew_trainer_wait_report(trainer, 0, &got), -EINVAL);
		} else {
			expect_report(trainer, STREW_OUTCOME_ABORTED, "gave it up");
		}
		publish_again(trainer);
		fake_stop(&fake);
	}
}

static void silent_script(struct fake *fake)
{
	struct message message;
	uint64_t serial;

	serve_two(fake);
	serve_first(fake);
	expect_cancel(fake, &serial);
	/* Said again, and the first answer comes late. */
	fake_expect(fake, MSG_CANCEL, &message);
	fake_ok(fake, serial);
	fake_error(fake, message.serial, -ESTALE, "it has ended");
	report(fake, STREW_OUTCOME_ABORTED, "gave it up");
	serve_again(fake);
}

static void test_cancel_waits_only_so_long(void **arg)
{
	struct fake fake = {.script = silent_script};
	struct strew_trainer *trainer;

	(void)arg;
	fake_start(&fake);
	trainer = open_two(&fake, 500);
	put_first(trainer);
	assert_int_equal(strew_trainer_cancel_parts(trainer, "no memory"), -ETIMEDOUT);
	assert_int_equal(strew_trainer_cancel_parts(trainer, "no memory"), -ECANCELED);
	expect_report(trainer, STREW_OUTCOME_ABORTED, "gave it up");
	publish_again(trainer);
	fake_stop(&fake);
}

#define TEST(name) FAKE_TEST(name, memory)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(test_a_put_crosses_the_report),
		TEST(test_the_broker_is_lost),
		TEST(test_cancel),
		TEST(test_cancel_waits_only_so_long),
	};

	return TEST_RUN(tests);
}
