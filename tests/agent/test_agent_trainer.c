/* The trainer's face against a played broker. */
#include "base/util.h"
#include "fake_broker.h"
#include "support/test_main.h"
#include <errno.h>
#include <poll.h>
#include <semaphore.h>
#include <strew/strew.h>
#include <string.h>
#include <unistd.h>

#define PATIENCE_MS 10000

static float *memory;
static sem_t was_waited; /* for what was not released yet */

static struct strew_trainer *open_trainer(struct fake *fake, int timeout_ms)
{
	struct strew_trainer_options options = {
		.socket = fake->path, .model = "m", .timeout_ms = timeout_ms};
	struct strew_trainer *trainer;

	assert_int_equal(strew_trainer_open(&options, &trainer), 0);
	return trainer;
}

/* "a" [4, 5] whole; rows 2 to 6 of "b" [8, 3], every second float, 64 floats behind. */
static void declare(struct strew_trainer *trainer)
{
	struct strew_tensor a = {
		.name = "a", .dtype = STREW_F32, .ndim = 2, .shape = {4, 5}, .data = memory};
	struct strew_tensor b = {.name = "b",
		.dtype = STREW_F32,
		.ndim = 2,
		.shape = {8, 3},
		.start = {2, 0},
		.extent = {4, 3},
		.stride = {6, 2},
		.data = memory + 64};

	assert_int_equal(strew_trainer_declare(trainer, &a), 0);
	assert_int_equal(strew_trainer_declare(trainer, &b), 0);
}

static struct strew_trainer *open_sealed(struct fake *fake, int timeout_ms)
{
	struct strew_trainer *trainer = open_trainer(fake, timeout_ms);

	declare(trainer);
	if (strew_trainer_seal(trainer)) {
		fail_msg("%s", strew_error());
	}
	return trainer;
}

static void serve_seal(struct fake *fake)
{
	struct message message;

	fake_take_share(fake, MSG_TRAINER);
	message_init(&message, MSG_DECLARED, fake->seal_serial);
	message.u.declared.tensors = 2;
	fake_send(fake, &message);
}

static void released(struct fake *fake, uint64_t version)
{
	struct message message;

	message_init(&message, MSG_RELEASED, 0);
	message.u.released.version = version;
	fake_send(fake, &message);
}

static void report(struct fake *fake, uint64_t version)
{
	struct group_outcome groups[2] = {
		{.outcome = STREW_OUTCOME_COMMITTED, .state = STREW_GROUP_CURRENT},
		{.node = 1,
			.replica = 2,
			.part = 3,
			.outcome = STREW_OUTCOME_SAT_OUT,
			.state = STREW_GROUP_STALE,
			.text = "asleep"},
	};
	struct message message;

	message_init(&message, MSG_REPORT, 0);
	message.u.report.version = version;
	message.u.report.outcome = STREW_OUTCOME_SAT_OUT;
	strcpy(message.u.report.text, "one sat out");
	message.u.report.tensors = 2;
	message.u.report.bytes = 128;
	message.u.report.move_ns = 1500000000;
	message.u.report.groups = groups;
	message.u.report.ngroups = 2;
	fake_send(fake, &message);
}

static void check_declaration(struct fake *fake)
{
	struct manifest manifest;
	struct source *sources;
	struct error err = {0};

	EXPECT(strcmp(fake->trainer.model, "m") == 0 && fake->trainer.ranks == 1);
	EXPECT(fake->nallocations == 1);
	EXPECT(blob_to_declaration(&fake->blob, 0, &manifest, &sources, &err) == 0);
	EXPECT(manifest.ntensors == 2 && manifest.nboxes == 2);
	EXPECT(manifest.boxes[0].box.extent[0] == 4 && manifest.boxes[0].box.extent[1] == 5);
	EXPECT(sources[0].offset_bytes == 0 && sources[0].stride[0] == 5);
	EXPECT(manifest.boxes[1].box.start[0] == 2 && manifest.boxes[1].box.extent[0] == 4);
	EXPECT(sources[1].offset_bytes == 256 && sources[1].stride[0] == 6);
	EXPECT(sources[1].stride[1] == 2 && sources[1].memory == 0);
	free(sources);
	manifest_finish(&manifest);
}

static void update_script(struct fake *fake)
{
	struct message message;

	serve_seal(fake);
	check_declaration(fake);
	/* Other ranks' updates are not ours. */
	released(fake, 4);
	report(fake, 4);
	fake_expect(fake, MSG_PUBLISH, &message);
	EXPECT(message.u.publish.version == 5 && message.u.publish.word == 1);
	EXPECT(page_load(&fake->theirs, WORD_PUBLISH) == 1);
	EXPECT(message.u.publish.timeout_ms == LIMIT_UPDATE_MS);
	/* What ended before it was taken is not ours either. */
	report(fake, 5);
	fake_ok(fake, message.serial);
	sem_wait(&was_waited);
	released(fake, 5);
	report(fake, 5);
	fake_expect(fake, MSG_PUBLISH, &message);
	fake_error(fake, message.serial, -ESTALE, "version 5 is not above 5");
	fake_expect(fake, MSG_PUBLISH, &message);
	EXPECT(message.u.publish.word == 3);
	EXPECT(message.u.publish.flags == STREW_PUBLISH_SCOPE_ALL);
	fake_ok(fake, message.serial);
	released(fake, 6);
	report(fake, 6);
	fake_expect_end(fake);
}

static void expect_report(struct strew_trainer *trainer, uint64_t version)
{
	struct strew_report got;

	assert_int_equal(strew_trainer_wait_report(trainer, PATIENCE_MS, &got), 0);
	assert_int_equal(got.version, version);
	assert_int_equal(got.outcome, STREW_OUTCOME_SAT_OUT);
	assert_string_equal(got.text, "one sat out");
	assert_int_equal(got.bytes, 128);
	assert_true(got.move_s == 1.5);
	assert_int_equal(got.ngroups, 2);
	assert_string_equal(got.groups[0].text, "");
	assert_string_equal(got.groups[1].text, "asleep");
	assert_int_equal(got.groups[1].node, 1);
	assert_int_equal(got.groups[1].replica, 2);
	assert_int_equal(got.groups[1].part, 3);
	assert_int_equal(got.groups[1].state, STREW_GROUP_STALE);
	strew_report_finish(&got);
	strew_report_finish(&got);
}

static bool readable(struct strew_trainer *trainer, int timeout_ms)
{
	struct pollfd pollfd = {.fd = strew_trainer_fd(trainer), .events = POLLIN};

	return poll(&pollfd, 1, timeout_ms) == 1;
}

static void test_updates(void **arg)
{
	struct fake fake = {.script = update_script};
	struct strew_trainer *trainer;
	struct strew_report got;

	(void)arg;
	assert_int_equal(sem_init(&was_waited, 0, 0), 0);
	fake_start(&fake);
	trainer = open_sealed(&fake, PATIENCE_MS);
	assert_int_equal(strew_trainer_wait_report(trainer, 0, &got), -EINVAL);
	assert_int_equal(strew_trainer_wait_released(trainer, 0), 0);
	assert_int_equal(strew_trainer_publish(trainer, 0, NULL, 0, 0), -EINVAL);
	assert_int_equal(strew_trainer_publish(trainer, 5, NULL, 64, 0), -EINVAL);
	assert_int_equal(strew_trainer_publish(trainer, 5, NULL, 0, -1), -EINVAL);
	assert_int_equal(strew_trainer_publish(trainer, 5, NULL, 0, 0), 0);
	assert_int_equal(strew_trainer_publish(trainer, 6, NULL, 0, 0), -EBUSY);
	assert_int_equal(strew_trainer_wait_released(trainer, 10), -ETIMEDOUT);
	sem_post(&was_waited);
	assert_true(readable(trainer, PATIENCE_MS));
	assert_int_equal(strew_trainer_wait_released(trainer, PATIENCE_MS), 0);
	assert_int_equal(strew_trainer_publish(trainer, 6, NULL, 0, 0), -EBUSY);
	assert_true(readable(trainer, PATIENCE_MS));
	expect_report(trainer, 5);
	assert_int_equal(strew_trainer_wait_report(trainer, 0, &got), -EINVAL);
	assert_false(readable(trainer, 0));

	assert_int_equal(strew_trainer_publish(trainer, 5, NULL, 0, 0), 0);
	assert_int_equal(strew_trainer_wait_released(trainer, PATIENCE_MS), -ESTALE);
	assert_string_equal(strew_error(), "version 5 is not above 5");
	assert_int_equal(strew_trainer_wait_report(trainer, PATIENCE_MS, &got), -ESTALE);
	assert_int_equal(strew_trainer_wait_report(trainer, PATIENCE_MS, &got), -EINVAL);

	/* The report alone is waited for: it was released on the way. */
	assert_int_equal(strew_trainer_publish(trainer, 6, NULL, STREW_PUBLISH_SCOPE_ALL, 1000), 0);
	expect_report(trainer, 6);
	assert_int_equal(strew_trainer_wait_released(trainer, 0), 0);
	strew_trainer_close(trainer);
	fake_stop(&fake);
}

static void refuse_script(struct fake *fake)
{
	fake_take_share(fake, MSG_TRAINER);
	fake_error(fake, fake->seal_serial, -ENOTSUP, "not the lead");
	fake_expect_end(fake);
}

static void test_refused(void **arg)
{
	struct fake fake = {.script = refuse_script};
	struct strew_trainer *trainer;

	(void)arg;
	fake_start(&fake);
	trainer = open_trainer(&fake, PATIENCE_MS);
	declare(trainer);
	assert_int_equal(strew_trainer_publish(trainer, 1, NULL, 0, 0), -EINVAL);
	assert_int_equal(strew_trainer_seal(trainer), -ENOTSUP);
	assert_string_equal(strew_error(), "not the lead");
	assert_int_equal(strew_trainer_seal(trainer), -EINVAL);
	strew_trainer_close(trainer);
	fake_stop(&fake);
}

static void lost_script(struct fake *fake)
{
	struct message message;

	serve_seal(fake);
	fake_expect(fake, MSG_PUBLISH, &message);
	fake_ok(fake, message.serial);
	if (fake->step == 1) {
		released(fake, 5);
	}
	fake_drop(fake);
}

/* The connection's end releases nothing; the process's end does. */
static void test_lost(void **arg)
{
	(void)arg;
	for (int step = 0; step < 2; step++) {
		struct fake fake = {.script = lost_script, .step = step, .mortal = true};
		struct strew_trainer *trainer;
		struct strew_report got;

		fake_start(&fake);
		trainer = open_sealed(&fake, PATIENCE_MS);
		assert_int_equal(strew_trainer_publish(trainer, 5, NULL, 0, 0), 0);
		if (step == 0) {
			assert_int_equal(strew_trainer_wait_released(trainer, 100), -ETIMEDOUT);
			fake_kill(&fake);
			assert_int_equal(
				strew_trainer_wait_released(trainer, PATIENCE_MS), -ECONNRESET);
		} else {
			assert_int_equal(strew_trainer_wait_released(trainer, PATIENCE_MS), 0);
		}
		assert_int_equal(
			strew_trainer_wait_report(trainer, PATIENCE_MS, &got), -ECONNRESET);
		assert_int_equal(strew_trainer_publish(trainer, 6, NULL, 0, 0), -ECONNRESET);
		strew_trainer_close(trainer);
		fake_stop(&fake);
	}
}

static void again_script(struct fake *fake)
{
	struct message message;

	serve_seal(fake);
	EXPECT(fake->trainer.rank == 0 && fake->nallocations == 1);
	fake_expect(fake, MSG_PUBLISH, &message);
	fake_ok(fake, message.serial);
	released(fake, 6);
	message_init(&message, MSG_REPORT, 0);
	message.u.report.version = 6;
	message.u.report.outcome = STREW_OUTCOME_COMMITTED;
	fake_send(fake, &message);
	fake_expect_end(fake);
}

/* The next broker is told the same, and knows nothing of the version that was under way. */
static void test_reconnect(void **arg)
{
	struct fake fake = {.script = lost_script, .mortal = true}, next = {.script = again_script};
	struct strew_trainer *trainer;
	struct strew_report got;
	char path[108];

	(void)arg;
	fake_start(&fake);
	strcpy(path, fake.path);
	trainer = open_sealed(&fake, PATIENCE_MS);
	assert_int_equal(strew_trainer_reconnect(trainer, 0), -EISCONN);
	assert_int_equal(strew_trainer_publish(trainer, 5, NULL, 0, 0), 0);
	assert_int_equal(strew_trainer_wait_released(trainer, 100), -ETIMEDOUT);
	/* Somebody else serves the path, but the old process lives, and may still read. */
	pthread_join(fake.thread, NULL);
	conn_destroy(fake.conn);
	fake.conn = NULL;
	close(fake.listener);
	assert_int_equal(strew_trainer_reconnect(trainer, 100), -ECONNREFUSED);
	next.at = path;
	next.mortal = true;
	fake_kill(&fake);
	fake_start(&next);
	if (strew_trainer_reconnect(trainer, PATIENCE_MS)) {
		fail_msg("%s", strew_error());
	}
	assert_int_equal(strew_trainer_wait_report(trainer, PATIENCE_MS, &got), -EINVAL);
	assert_int_equal(strew_trainer_publish(trainer, 6, NULL, 0, 0), 0);
	assert_int_equal(strew_trainer_wait_released(trainer, PATIENCE_MS), 0);
	assert_int_equal(strew_trainer_wait_report(trainer, PATIENCE_MS, &got), 0);
	assert_int_equal(got.version, 6);
	strew_report_finish(&got);
	strew_trainer_close(trainer);
	fake_stop(&next);
	page_finish(&fake.theirs);
	page_finish(&fake.ours);
	blob_finish(&fake.blob);
	fd_close(&fake.fds[0]);
	assert_int_equal(rmdir(fake.directory), 0);
}

static bool was_released; /* read after the script's thread was joined */

static void late_script(struct fake *fake)
{
	struct message message;

	fake_take_share(fake, MSG_TRAINER);
	usleep(200000);
	message_init(&message, MSG_DECLARED, fake->seal_serial);
	fake_send(fake, &message);
	fake_expect(fake, MSG_PUBLISH, &message);
	fake_ok(fake, message.serial);
	usleep(200000);
	released(fake, 5);
	was_released = true;
	fake_expect_end(fake);
}

/* Sealing goes on after a timeout; closing waits for lent memory. */
static void test_late(void **arg)
{
	struct fake fake = {.script = late_script};
	struct strew_trainer *trainer;
	int rc;

	(void)arg;
	fake_start(&fake);
	trainer = open_trainer(&fake, PATIENCE_MS);
	declare(trainer);
	rc = strew_trainer_seal(trainer);
	assert_int_equal(rc, 0);
	assert_int_equal(strew_trainer_publish(trainer, 5, NULL, 0, 0), 0);
	strew_trainer_close(trainer);
	fake_stop(&fake);
	assert_true(was_released);
}

static void test_declare_errors(void **arg)
{
	struct fake fake = {.script = fake_expect_end};
	struct strew_tensor tensor = {
		.name = "a", .dtype = STREW_F32, .ndim = 1, .shape = {8}, .data = memory};
	struct strew_tensor bad;
	struct strew_trainer *trainer;

	(void)arg;
	fake_start(&fake);
	trainer = open_trainer(&fake, PATIENCE_MS);
	bad = tensor;
	bad.data = (void *)16;
	assert_int_equal(strew_trainer_declare(trainer, &bad), -EFAULT);
	assert_non_null(strstr(strew_error(), "tensor a"));
	bad = tensor;
	bad.start[0] = 9;
	assert_int_equal(strew_trainer_declare(trainer, &bad), -ERANGE);
	bad = tensor;
	bad.ndim = 7;
	assert_int_equal(strew_trainer_declare(trainer, &bad), -EINVAL);
	bad.ndim = -1;
	assert_int_equal(strew_trainer_declare(trainer, &bad), -EINVAL);
	bad = tensor;
	bad.dtype = (enum strew_dtype)99;
	assert_int_equal(strew_trainer_declare(trainer, &bad), -EINVAL);
	bad = tensor;
	bad.name = NULL;
	assert_int_equal(strew_trainer_declare(trainer, &bad), -EINVAL);
	bad = tensor;
	bad.stride[0] = UINT64_MAX / 2;
	assert_int_equal(strew_trainer_declare(trainer, &bad), -ERANGE);
	assert_int_equal(strew_trainer_seal(trainer), -EINVAL);
	assert_non_null(strstr(strew_error(), "close the trainer"));
	assert_int_equal(strew_trainer_declare(trainer, &tensor), -EINVAL);
	assert_non_null(strstr(strew_error(), "close and open anew"));
	strew_trainer_close(trainer);
	fake_stop(&fake);
}

#define TEST(name) FAKE_TEST(name, memory)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(test_updates),
		TEST(test_refused),
		TEST(test_lost),
		TEST(test_reconnect),
		TEST(test_late),
		TEST(test_declare_errors),
	};

	return TEST_RUN(tests);
}
