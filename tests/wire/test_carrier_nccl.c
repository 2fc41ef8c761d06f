/*
 * The NCCL carrier's waiting, giving up and ending, against fake_nccl (whose path is the
 * argument). The test is rank 0 on the host backend; rank 1 is a forked process.
 */
#include "base/clock.h"
#include "base/util.h"
#include "support/test_main.h"
#include "wire/carrier.h"
#include "wire/nccl_table.h"
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define SLACK_MS 1500
#define BYTES (1u << 20)

static const char *library;

/* One rank's device. */
struct rank {
	uint32_t number;
	struct gpu *gpu;
	struct gpu_device *device;
	struct gpu_stream *stream;
};

static void rank_open(struct rank *rank, uint32_t number)
{
	static const uint8_t host[GPU_UUID_BYTES];

	rank->number = number;
	assert_int_equal(gpu_open(GPU_HOST, &rank->gpu, NULL), 0);
	assert_int_equal(gpu_device(rank->gpu, host, &rank->device, NULL), 0);
	assert_int_equal(gpu_stream_create(rank->device, &rank->stream, NULL), 0);
}

static void rank_close(struct rank *rank)
{
	gpu_stream_destroy(rank->stream);
	gpu_close(rank->gpu);
}

static int join_epoch(struct rank *rank, const uint8_t *id, int timeout_ms,
	const atomic_int *cancel, struct carrier **ret_carrier, struct error *err)
{
	struct carrier_options options = {.kind = CARRIER_NCCL,
		.epoch = 1,
		.rank = rank->number,
		.ranks = 2,
		.device = rank->device};

	memcpy(options.unique_id, id, sizeof(options.unique_id));
	return carrier_create(&options, deadline_in_ms(timeout_ms), cancel, ret_carrier, err);
}

static int broadcast(struct rank *rank, struct carrier *carrier, uint8_t *buf, uint64_t len_bytes,
	uint32_t root, int timeout_ms, struct error *err)
{
	const struct carrier_part part = {(uintptr_t)buf, len_bytes};

	return carrier_broadcast(
		carrier, &part, 1, root, rank->stream, deadline_in_ms(timeout_ms), NULL, err);
}

/* Rank 1: `buckets` buckets from rank 0, each sent back. Then the end in order, or sleep. */
static pid_t peer(const uint8_t *id, int buckets, bool sleeps)
{
	pid_t pid = fork();

	if (pid == 0) {
		struct carrier *carrier;
		struct rank rank;
		uint8_t *buf = malloc(BYTES);
		int rc;

		rank_open(&rank, 1);
		rc = join_epoch(&rank, id, 10000, NULL, &carrier, NULL);
		for (int i = 0; rc == 0 && i < buckets; i++) {
			rc = broadcast(&rank, carrier, buf, BYTES, 0, 10000, NULL);
			rc = rc ? rc : broadcast(&rank, carrier, buf, BYTES, 1, 10000, NULL);
		}
		while (rc == 0 && sleeps) {
			pause();
		}
		_exit(-(rc ? rc : carrier_destroy(carrier, false)));
	}
	return pid;
}

static void begin(
	struct rank *rank, int buckets, bool sleeps, struct carrier **ret_carrier, pid_t *ret_pid)
{
	uint8_t id[UNIQUE_ID_BYTES];
	struct error err = {0};

	rank_open(rank, 0);
	assert_int_equal(nccl_unique_id(id, &err), 0);
	*ret_pid = peer(id, buckets, sleeps);
	assert_int_equal(join_epoch(rank, id, 10000, NULL, ret_carrier, &err), 0);
}

static int end_peer(pid_t pid)
{
	int status;

	kill(pid, SIGKILL);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	return status;
}

static uint64_t elapsed_ms(uint64_t since)
{
	return (clock_ns() - since) / 1000000u;
}

/* What cannot be opened says why, and does not stand in the way of what can. */
static void test_open(void **state)
{
	struct carrier *carrier = NULL;
	struct error err = {0};
	uint8_t id[UNIQUE_ID_BYTES] = {0};
	struct rank rank;

	(void)state;
	assert_int_equal(nccl_version(), 0);
	assert_int_equal(nccl_unique_id(id, &err), -ENOENT);
	rank_open(&rank, 0);
	assert_int_equal(join_epoch(&rank, id, 100, NULL, &carrier, &err), -ENOENT);
	rank_close(&rank);
	setenv("STREW_NCCL", "/nowhere/libnccl.so.2", 1);
	assert_int_equal(nccl_open(&err), -ENOENT);
	assert_non_null(strstr(err.text, "/nowhere/libnccl.so.2"));
	setenv("STREW_NCCL", "libm.so.6", 1);
	assert_int_equal(nccl_open(&err), -ENOSYS);
	assert_non_null(strstr(err.text, "ncclGetVersion"));
	assert_int_equal(nccl_version(), 0);
	setenv("STREW_NCCL", library, 1);
	assert_int_equal(nccl_open(&err), 0);
	assert_int_equal(nccl_open(&err), 0);
	assert_int_equal(nccl_version(), 22809);
}

static void test_exchange(void **state)
{
	uint8_t *buf = malloc(BYTES), *want = malloc(BYTES);
	struct carrier *carrier;
	struct error err = {0};
	struct rank rank;
	int status;
	pid_t pid;

	(void)state;
	begin(&rank, 5, false, &carrier, &pid);
	for (int i = 0; i < 5; i++) {
		test_random_fill(want, BYTES);
		memcpy(buf, want, BYTES);
		assert_int_equal(broadcast(&rank, carrier, buf, BYTES, 0, 10000, &err), 0);
		memset(buf, 0xa5, BYTES);
		assert_int_equal(broadcast(&rank, carrier, buf, BYTES, 1, 10000, &err), 0);
		assert_memory_equal(buf, want, BYTES);
		assert_int_equal(broadcast(&rank, carrier, buf, 0, 0, 10000, &err), 0);
		assert_int_equal(carrier_poll(carrier, &err), 0);
	}
	assert_int_equal(carrier_destroy(carrier, false), 0);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
	rank_close(&rank);
	free(buf);
	free(want);
}

static void test_absent(void **state)
{
	struct carrier *carrier = NULL;
	uint8_t id[UNIQUE_ID_BYTES];
	struct error err = {0};
	atomic_int cancel = 1;
	struct rank rank;
	uint64_t start;

	(void)state;
	rank_open(&rank, 0);
	assert_int_equal(nccl_unique_id(id, &err), 0);
	start = clock_ns();
	assert_int_equal(join_epoch(&rank, id, 300, NULL, &carrier, &err), -ETIMEDOUT);
	assert_in_range(elapsed_ms(start), 300, 300 + SLACK_MS);
	assert_string_equal(err.text, "making the communicator did not end before its deadline");
	assert_int_equal(nccl_unique_id(id, &err), 0);
	assert_int_equal(join_epoch(&rank, id, 10000, &cancel, &carrier, &err), -ECANCELED);
	assert_null(carrier);
	rank_close(&rank);
}

/* The peer ends (SIGKILL) or stands still (SIGSTOP); the end in order is an abort then. */
static void lose_peer(int signal_number, int code, bool abort, uint64_t least_ms, uint64_t most_ms)
{
	uint8_t *buf = calloc(1, 8 * BYTES);
	struct carrier *carrier;
	struct error err = {0};
	struct rank rank;
	uint64_t start;
	pid_t pid;

	begin(&rank, 0, true, &carrier, &pid);
	kill(pid, signal_number);
	start = clock_ns();
	assert_int_equal(broadcast(&rank, carrier, buf, 8 * BYTES, 1, 400, &err), code);
	assert_true(elapsed_ms(start) < 400 + SLACK_MS);
	if (code == -ECONNRESET) {
		assert_string_equal(err.text, "a broadcast: remote process exited: socket 3: "
					      "connection closed by peer");
		assert_int_equal(carrier_poll(carrier, &err), -ECONNRESET);
	}
	assert_int_equal(broadcast(&rank, carrier, buf, 1, 0, 400, &err), -EIO);
	assert_non_null(strstr(err.text, "broke at an earlier bucket"));
	/* A stopped peer has not sent: an end in order would first wait for it, as NCCL does. */
	start = clock_ns();
	assert_int_equal(carrier_destroy(carrier, abort), 0);
	assert_in_range(elapsed_ms(start), least_ms, most_ms);
	end_peer(pid);
	rank_close(&rank);
	free(buf);
}

static void test_killed_peer(void **state)
{
	(void)state;
	lose_peer(SIGKILL, -ECONNRESET, true, 0, SLACK_MS);
	lose_peer(SIGKILL, -ECONNRESET, false, 0, SLACK_MS);
}

static void test_stopped_peer(void **state)
{
	(void)state;
	lose_peer(SIGSTOP, -ETIMEDOUT, true, 0, SLACK_MS);
}

/* All is well, but the peer does not end: ours does, after half of the limit. */
static void test_end_alone(void **state)
{
	struct carrier *carrier;
	struct rank rank;
	uint64_t start;
	pid_t pid;

	(void)state;
	begin(&rank, 0, true, &carrier, &pid);
	start = clock_ns();
	assert_int_equal(carrier_destroy(carrier, false), 0);
	assert_in_range(elapsed_ms(start), LIMIT_ABORT_MS / 2, LIMIT_ABORT_MS / 2 + SLACK_MS);
	end_peer(pid);
	rank_close(&rank);
}

static void test_call_fails(void **state)
{
	struct carrier *carrier;
	struct error err = {0};
	struct rank rank;
	uint8_t byte = 0;
	pid_t pid;

	(void)state;
	begin(&rank, 0, true, &carrier, &pid);
	setenv("FAKE_NCCL", "broadcast-fails", 1);
	assert_int_equal(broadcast(&rank, carrier, &byte, 1, 0, 1000, &err), -EIO);
	unsetenv("FAKE_NCCL");
	assert_non_null(strstr(err.text, "ncclBroadcast: invalid argument: socket 3"));
	assert_int_equal(carrier_destroy(carrier, true), 0);
	end_peer(pid);
	rank_close(&rank);
}

/* An abort that hangs is waited for, then left behind; its thread frees what it had. */
static void test_abort_hangs(void **state)
{
	uint8_t id[UNIQUE_ID_BYTES];
	struct carrier *carrier = NULL;
	struct error err = {0};
	struct rank rank;
	uint64_t start;
	int fds = test_count_fds();
	pid_t pid;

	(void)state;
	begin(&rank, 0, true, &carrier, &pid);
	setenv("FAKE_NCCL", "abort-hangs", 1);
	start = clock_ns();
	assert_int_equal(carrier_destroy(carrier, true), -ETIMEDOUT);
	assert_in_range(elapsed_ms(start), LIMIT_ABORT_MS, LIMIT_ABORT_MS + SLACK_MS);
	carrier = NULL;
	assert_int_equal(nccl_unique_id(id, &err), 0);
	assert_int_equal(join_epoch(&rank, id, 100, NULL, &carrier, &err), -ENOTRECOVERABLE);
	assert_int_equal(err.code, -ENOTRECOVERABLE);
	assert_non_null(strstr(err.text, "cannot be aborted"));
	assert_non_null(strstr(err.text, "making the communicator did not end"));
	unsetenv("FAKE_NCCL");
	for (start = clock_ns(); test_count_fds() != fds && elapsed_ms(start) < SLACK_MS;) {
		usleep(1000);
	}
	usleep(100000);
	end_peer(pid);
	rank_close(&rank);
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_open),
		cmocka_unit_test(test_exchange),
		cmocka_unit_test(test_absent),
		cmocka_unit_test(test_killed_peer),
		cmocka_unit_test(test_stopped_peer),
		cmocka_unit_test(test_end_alone),
		cmocka_unit_test(test_call_fails),
		cmocka_unit_test(test_abort_hangs),
	};

	if (argc != 2) {
		fprintf(stderr, "usage: test_carrier_nccl FAKE_LIBRARY\n");
		return 2;
	}
	library = argv[1];
	return TEST_RUN(tests);
}
