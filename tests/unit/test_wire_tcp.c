/*
 * The TCP carrier among forked processes: the test is rank 0, the children the
 * others. Sockets are loopback TCP in a star. A child says how it
 * fared by its exit status: 0, or the errno of its failure.
 */
#include "test_wire_tcp.h"
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define BIG (8u << 20)
#define SLACK_MS 1500 /* a loaded machine's; the carrier itself looks every 20 ms */

static const uint64_t sizes[] = {0, 1, 65535, 65536, 65537, 0, 4097, BIG, 3, BIG - 1};

/* What bucket `number` holds, known to all ranks without talking. */
static void fill(uint64_t seed, uint64_t number, uint8_t *buf, uint64_t len_bytes)
{
	uint64_t z = seed + number * 0x9e3779b97f4a7c15u;

	for (uint64_t i = 0; i < len_bytes; i++) {
		z = z * 6364136223846793005u + 1442695040888963407u;
		buf[i] = (uint8_t)(z >> 56);
	}
}

/* All sizes from each root in turn. Returns 0 or an errno. */
static int exchange(struct carrier *carrier, uint32_t rank, uint32_t roots, uint64_t seed)
{
	uint8_t *buf = malloc(BIG + 64), *want = malloc(BIG);
	struct error err = {0};
	uint64_t number = 0;
	int rc = 0;

	for (size_t i = 0; rc == 0 && i < ARRAY_LEN(sizes); i++) {
		for (uint32_t root = 0; rc == 0 && root < roots; root++, number++) {
			uint64_t n = sizes[i];

			fill(seed, number, want, n);
			memset(buf, 0xa5, n + 64);
			if (rank == root) {
				memcpy(buf, want, n);
			}
			rc = broadcast(carrier, buf, n, root, 20000, &err);
			if (rc == 0 && (memcmp(buf, want, n) != 0 || buf[n] != 0xa5 ||
					       buf[n + 63] != 0xa5)) {
				rc = -EILSEQ;
			}
		}
	}
	if (rc) {
		fprintf(stderr, "rank %u, bucket %llu: %d %s\n", rank, (unsigned long long)number,
			rc, err.text);
	}
	free(buf);
	free(want);
	return -rc;
}

static void exchange_among(uint32_t ranks)
{
	uint64_t seed = test_random();
	struct carrier *carrier;
	struct sockets sockets;
	struct error err = {0};
	pid_t child[RANKS_MAX];

	sockets_open(&sockets, ranks);
	for (uint32_t rank = 1; rank < ranks; rank++) {
		child[rank] = fork();
		if (child[rank] == 0) {
			int rc;

			sockets_keep(&sockets, rank);
			rc = -join_epoch(&sockets, rank, 7, 10000, &carrier, &err);
			_exit(rc ? rc : exchange(carrier, rank, ranks, seed));
		}
	}
	sockets_keep(&sockets, 0);
	assert_int_equal(join_epoch(&sockets, 0, 7, 10000, &carrier, &err), 0);
	assert_int_equal(exchange(carrier, 0, ranks, seed), 0);
	assert_int_equal(carrier_poll(carrier, &err), 0);
	for (uint32_t rank = 1; rank < ranks; rank++) {
		assert_int_equal(wait_child(child[rank]), 0);
	}
	assert_int_equal(carrier_destroy(carrier, false), 0);
}

static void test_two(void **state)
{
	(void)state;
	exchange_among(2);
}

static void test_star_of_four(void **state)
{
	(void)state;
	exchange_among(4);
}

static void test_alone(void **state)
{
	struct carrier_options options = {.kind = CARRIER_NCCL, .epoch = 3, .ranks = 1};
	struct carrier *carrier;
	struct error err = {0};
	uint8_t byte = 42;

	(void)state;
	assert_int_equal(carrier_create(&options, 0, NULL, &carrier, &err), 0);
	assert_int_equal(broadcast(carrier, &byte, 1, 0, 0, &err), 0);
	assert_int_equal(byte, 42);
	assert_int_equal(broadcast(carrier, &byte, 1, 1, 0, &err), -EINVAL);
	assert_int_equal(carrier_poll(carrier, &err), 0);
	assert_int_equal(carrier_destroy(carrier, true), 0);
	assert_int_equal(carrier_destroy(NULL, false), 0);
}

static void test_bad_options(void **state)
{
	const struct carrier_options bad[] = {
		{.kind = CARRIER_TCP, .ranks = 0},
		{.kind = CARRIER_TCP, .rank = 2, .ranks = 2},
		{.kind = CARRIER_TCP, .ranks = LIMIT_BROKERS + 1},
		{.kind = CARRIER_NONE, .ranks = 2},
	};
	struct carrier *carrier = NULL;

	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
		assert_int_equal(carrier_create(&bad[i], 0, NULL, &carrier, NULL), -EINVAL);
	}
	assert_null(carrier);
}

/* A peer that joins, takes the first `buckets` buckets and then does as told. */
enum then { THEN_EXIT, THEN_SLEEP };

static pid_t peer(struct sockets *sockets, uint32_t rank, unsigned buckets, enum then then)
{
	pid_t pid = fork();

	if (pid == 0) {
		uint8_t *buf = malloc(BIG);
		struct carrier *carrier;
		int rc;

		sockets_keep(sockets, rank);
		rc = join_epoch(sockets, rank, 7, 10000, &carrier, NULL);
		for (unsigned i = 0; rc == 0 && i < buckets; i++) {
			rc = broadcast(carrier, buf, BIG, 0, 10000, NULL);
		}
		while (then == THEN_SLEEP && rc == 0) {
			pause();
		}
		_exit(-rc);
	}
	return pid;
}

/* The root's socket to a killed peer fails, and says whose it is. */
static void test_killed_receiver(void **state)
{
	uint8_t *buf = calloc(1, BIG);
	struct carrier *carrier;
	struct sockets sockets;
	struct error err = {0};
	pid_t child[2];
	uint64_t start;
	int rc = 0;

	(void)state;
	sockets_open(&sockets, 3);
	child[0] = peer(&sockets, 1, 1000, THEN_SLEEP);
	child[1] = peer(&sockets, 2, 1, THEN_SLEEP);
	sockets_keep(&sockets, 0);
	assert_int_equal(join_epoch(&sockets, 0, 7, 10000, &carrier, &err), 0);
	assert_int_equal(broadcast(carrier, buf, BIG, 0, 10000, &err), 0);
	kill(child[1], SIGKILL);
	start = clock_ns();
	for (int i = 0; rc == 0 && i < 10; i++) {
		rc = broadcast(carrier, buf, BIG, 0, 10000, &err);
	}
	assert_int_equal(rc, -ECONNRESET);
	assert_true(elapsed_ms(start) < SLACK_MS);
	assert_non_null(strstr(err.text, "broker 2"));
	/* It stays broken: nobody may take what comes next for a bucket. */
	assert_int_equal(broadcast(carrier, buf, 1, 0, 1000, &err), -EIO);
	assert_int_equal(carrier_destroy(carrier, true), 0);
	kill(child[0], SIGKILL);
	assert_int_equal(wait_child(child[1]), -SIGKILL);
	wait_child(child[0]);
	free(buf);
}

/* What a root sends, by hand. */
static void send_raw(int fd, uint64_t epoch, uint64_t sequence, uint64_t len_bytes, size_t n)
{
	uint64_t header[3] = {epoch, sequence, len_bytes};
	uint8_t *bytes = calloc(1, n + sizeof(header));

	memcpy(bytes, header, sizeof(header));
	for (size_t at = 0; at < n + sizeof(header);) {
		ssize_t sent = send(fd, bytes + at, n + sizeof(header) - at, MSG_NOSIGNAL);

		if (sent <= 0) {
			break;
		}
		at += (size_t)sent;
	}
	free(bytes);
}

/* A root that is ended by `signal_number` (0: closes its socket) in the middle of a bucket. */
static pid_t half_root(struct sockets *sockets, int signal_number)
{
	pid_t pid = fork();

	if (pid == 0) {
		struct timespec pause_time = {.tv_nsec = 100000000};

		sockets_keep(sockets, 0);
		send_raw(sockets->fd[0][1], 7, 0, 0, 0);
		send_raw(sockets->fd[0][1], 7, 1, BIG, BIG / 2);
		nanosleep(&pause_time, NULL);
		if (signal_number) {
			raise(signal_number);
		}
		_exit(0);
	}
	sockets_keep(sockets, 1);
	return pid;
}

static int receive_half(int signal_number, int timeout_ms, uint64_t *ret_ms, struct error *err)
{
	uint8_t *buf = malloc(BIG);
	struct carrier *carrier;
	struct sockets sockets;
	uint64_t start;
	pid_t root;
	int rc;

	sockets_open(&sockets, 2);
	root = half_root(&sockets, signal_number);
	assert_int_equal(join_epoch(&sockets, 1, 7, 10000, &carrier, err), 0);
	start = clock_ns();
	rc = broadcast(carrier, buf, BIG, 0, timeout_ms, err);
	*ret_ms = elapsed_ms(start);
	kill(root, SIGKILL);
	wait_child(root);
	assert_int_equal(carrier_destroy(carrier, true), 0);
	free(buf);
	return rc;
}

static void test_killed_root(void **state)
{
	struct error err = {0};
	uint64_t ms;

	(void)state;
	assert_int_equal(receive_half(SIGKILL, 10000, &ms, &err), -ECONNRESET);
	assert_true(ms < 100 + SLACK_MS);
	assert_non_null(strstr(err.text, "broker 0"));
	assert_int_equal(receive_half(0, 10000, &ms, &err), -ECONNRESET);
	assert_true(ms < 100 + SLACK_MS);
	assert_non_null(strstr(err.text, "broker 0 was closed"));
}

static void test_stopped_root(void **state)
{
	struct error err = {0};
	uint64_t ms;

	(void)state;
	assert_int_equal(receive_half(SIGSTOP, 400, &ms, &err), -ETIMEDOUT);
	assert_in_range(ms, 400, 400 + SLACK_MS);
}

/* One peer stands still: the root's deadline holds, and the other has got its bucket whole. */
static void test_stopped_receiver(void **state)
{
	uint8_t *buf = calloc(1, BIG);
	struct carrier *carrier;
	struct sockets sockets;
	struct error err = {0};
	pid_t stopped, other;
	uint64_t start;
	int rc;

	(void)state;
	sockets_open(&sockets, 3);
	stopped = peer(&sockets, 1, 0, THEN_SLEEP);
	other = peer(&sockets, 2, 1, THEN_EXIT);
	sockets_keep(&sockets, 0);
	assert_int_equal(join_epoch(&sockets, 0, 7, 10000, &carrier, &err), 0);
	kill(stopped, SIGSTOP);
	start = clock_ns();
	rc = broadcast(carrier, buf, BIG, 0, 500, &err);
	assert_int_equal(rc, -ETIMEDOUT);
	assert_in_range(elapsed_ms(start), 500, 500 + SLACK_MS);
	assert_int_equal(wait_child(other), 0);
	assert_int_equal(carrier_destroy(carrier, true), 0);
	kill(stopped, SIGKILL);
	wait_child(stopped);
	free(buf);
}

static void *cancel_soon(void *data)
{
	struct timespec pause_time = {.tv_nsec = 100000000};

	nanosleep(&pause_time, NULL);
	atomic_store((atomic_int *)data, 1);
	return NULL;
}

static void test_cancel(void **state)
{
	uint8_t *buf = calloc(1, BIG);
	struct sockets sockets;
	struct error err = {0};
	pid_t child;

	(void)state;
	for (uint32_t rank = 0; rank < 2; rank++) {
		struct carrier *carrier;
		atomic_int cancel = 0;
		pthread_t thread;
		uint64_t start;

		sockets_open(&sockets, 2);
		child = rank == 0 ? peer(&sockets, 1, 0, THEN_SLEEP) : half_root(&sockets, SIGSTOP);
		sockets_keep(&sockets, rank);
		assert_int_equal(join_epoch(&sockets, rank, 7, 10000, &carrier, &err), 0);
		assert_int_equal(pthread_create(&thread, NULL, cancel_soon, &cancel), 0);
		start = clock_ns();
		assert_int_equal(
			carrier_broadcast(carrier, &(struct carrier_part){(uintptr_t)buf, BIG}, 1,
				0, NULL, DEADLINE_NEVER, &cancel, &err),
			-ECANCELED);
		assert_true(elapsed_ms(start) < 100 + SLACK_MS);
		pthread_join(thread, NULL);
		assert_int_equal(carrier_destroy(carrier, true), 0);
		kill(child, SIGKILL);
		wait_child(child);
	}
	free(buf);
}

/* Cancel is seen as well while bytes come without a pause. */
static void test_cancel_in_flow(void **state)
{
	struct sockets sockets;
	struct carrier *carrier;
	struct error err = {0};
	atomic_int cancel = 1;
	uint8_t buf[4096];

	(void)state;
	sockets_open(&sockets, 2);
	send_raw(sockets.fd[0][1], 7, 0, 0, 0);
	send_raw(sockets.fd[0][1], 7, 1, sizeof(buf), sizeof(buf));
	assert_int_equal(join_epoch(&sockets, 1, 7, 10000, &carrier, &err), 0);
	assert_int_equal(
		carrier_broadcast(carrier, &(struct carrier_part){(uintptr_t)buf, sizeof(buf)}, 1,
			0, NULL, DEADLINE_NEVER, &cancel, &err),
		-ECANCELED);
	assert_int_equal(carrier_destroy(carrier, true), 0);
	sockets_keep(&sockets, 1);
}

/* A rank that never comes: create fails in time, and the sockets stay the caller's. */
static void test_absent(void **state)
{
	struct carrier_options options = {.kind = CARRIER_TCP, .epoch = 7, .rank = 1, .ranks = 2};
	struct carrier *carrier = NULL;
	struct sockets sockets;
	struct error err = {0};
	atomic_int cancel = 1;
	uint64_t start = clock_ns();

	(void)state;
	sockets_open(&sockets, 2);
	assert_int_equal(join_epoch(&sockets, 1, 7, 200, &carrier, &err), -ETIMEDOUT);
	assert_in_range(elapsed_ms(start), 200, 200 + SLACK_MS);
	options.data_fds = sockets.fd[1];
	assert_int_equal(
		carrier_create(&options, DEADLINE_NEVER, &cancel, &carrier, &err), -ECANCELED);
	/* They can be used again. */
	send_raw(sockets.fd[0][1], 7, 0, 0, 0);
	assert_int_equal(join_epoch(&sockets, 1, 7, 200, &carrier, &err), 0);
	assert_int_equal(carrier_destroy(carrier, true), 0);
	sockets_keep(&sockets, 1);
}

static void test_out_of_step(void **state)
{
	const struct {
		uint64_t epoch, sequence, len_bytes;
		int code;
		const char *text;
	} headers[] = {
		{7, 1, 4096, 0, NULL},
		{8, 1, 4096, -EPROTO, "epoch 8, bucket 1, 4096 bytes came"},
		{6, 1, 4096, -EPROTO, "epoch 6,"},
		{7, 0, 4096, -EPROTO, "bucket 0,"},
		{7, 2, 4096, -EPROTO, "bucket 2,"},
		{7, 1, 4095, -EPROTO, "4095 bytes came"},
		{7, 1, 4097, -EPROTO, "4097 bytes came"},
		{7, 1, 1ull << 63, -EPROTO, "bytes came"},
	};

	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(headers); i++) {
		uint8_t buf[4096 + 64];
		struct sockets sockets;
		struct carrier *carrier;
		struct error err = {0};
		int rc;

		memset(buf, 0xa5, sizeof(buf));
		sockets_open(&sockets, 2);
		send_raw(sockets.fd[0][1], 7, 0, 0, 0);
		send_raw(sockets.fd[0][1], headers[i].epoch, headers[i].sequence,
			headers[i].len_bytes, 4097);
		assert_int_equal(join_epoch(&sockets, 1, 7, 1000, &carrier, &err), 0);
		rc = broadcast(carrier, buf, 4096, 0, 1000, &err);
		assert_int_equal(rc, headers[i].code);
		if (rc) {
			assert_non_null(strstr(err.text, headers[i].text));
			assert_int_equal(buf[0], 0xa5);
		}
		assert_int_equal(buf[4096], 0xa5);
		assert_int_equal(carrier_destroy(carrier, true), 0);
		sockets_keep(&sockets, 1);
	}
}

/* Two epochs that meet find out while they are made. */
static void test_other_epoch(void **state)
{
	struct carrier *carrier = NULL;
	struct sockets sockets;
	struct error err = {0};

	(void)state;
	sockets_open(&sockets, 2);
	send_raw(sockets.fd[0][1], 6, 0, 0, 0);
	assert_int_equal(join_epoch(&sockets, 1, 7, 1000, &carrier, &err), -EPROTO);
	assert_null(carrier);
	fd_close(&sockets.fd[1][0]);
	fd_close(&sockets.fd[0][1]);
}

/* What a root other than rank 0 sends has to go through rank 0. */
static void test_a_hole_in_the_star(void **state)
{
	struct carrier *carrier;
	struct sockets sockets;
	struct error err = {0};
	uint8_t byte = 0;
	pid_t child;

	(void)state;
	sockets_open(&sockets, 2);
	send_raw(sockets.fd[0][1], 7, 0, 0, 0);
	assert_int_equal(join_epoch(&sockets, 1, 7, 1000, &carrier, &err), 0);
	/* Rank 1 sends to rank 0 alone. */
	assert_int_equal(broadcast(carrier, &byte, 1, 1, 1000, &err), 0);
	assert_int_equal(carrier_destroy(carrier, true), 0);
	sockets_keep(&sockets, 1);

	sockets_open(&sockets, 3);
	child = peer(&sockets, 1, 0, THEN_SLEEP);
	sockets_keep(&sockets, 0);
	fd_close(&sockets.fd[0][2]);
	assert_int_equal(join_epoch(&sockets, 0, 7, 1000, &carrier, &err), -ENOTSUP);
	assert_non_null(strstr(err.text, "no data connection to broker 2"));
	fd_close(&sockets.fd[0][1]);
	kill(child, SIGKILL);
	wait_child(child);
}

/* A root that is gone in the middle of its bucket: rank 0 says so, and passes no more on. */
static void test_killed_root_behind_the_star(void **state)
{
	uint8_t *buf = malloc(BIG);
	struct carrier *carrier;
	struct sockets sockets;
	struct error err = {0};
	pid_t root, other;

	(void)state;
	sockets_open(&sockets, 3);
	other = peer(&sockets, 2, 0, THEN_SLEEP);
	root = fork();
	if (root == 0) {
		struct carrier *own;
		int rc;

		sockets_keep(&sockets, 1);
		rc = join_epoch(&sockets, 1, 7, 10000, &own, NULL);
		send_raw(sockets.fd[1][0], 7, 1, BIG, BIG / 2);
		_exit(-rc);
	}
	sockets_keep(&sockets, 0);
	assert_int_equal(join_epoch(&sockets, 0, 7, 10000, &carrier, &err), 0);
	assert_int_equal(broadcast(carrier, buf, BIG, 1, 10000, &err), -ECONNRESET);
	assert_non_null(strstr(err.text, "broker 1 was closed"));
	assert_int_equal(carrier_destroy(carrier, true), 0);
	assert_int_equal(wait_child(root), 0);
	kill(other, SIGKILL);
	wait_child(other);
	free(buf);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_two),
		cmocka_unit_test(test_star_of_four),
		cmocka_unit_test(test_alone),
		cmocka_unit_test(test_bad_options),
		cmocka_unit_test(test_killed_receiver),
		cmocka_unit_test(test_killed_root),
		cmocka_unit_test(test_stopped_root),
		cmocka_unit_test(test_stopped_receiver),
		cmocka_unit_test(test_cancel),
		cmocka_unit_test(test_cancel_in_flow),
		cmocka_unit_test(test_absent),
		cmocka_unit_test(test_out_of_step),
		cmocka_unit_test(test_other_epoch),
		cmocka_unit_test(test_a_hole_in_the_star),
		cmocka_unit_test(test_killed_root_behind_the_star),
	};

	return TEST_RUN(tests);
}
