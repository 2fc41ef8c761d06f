/* Frames over sockets: headers that lie, descriptors, partial reads and writes, deadlines. */
#include "base/clock.h"
#include "base/util.h"
#include "ipc/conn.h"
#include "ipc/frame.h"
#include "ipc/socket.h"
#include "support/test_main.h"
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

/*
 * MSG_READY, serial 7, word 3, as docs/protocol.md quotes it:
 *   53 54 52 57 01 00 17 00 07 00 00 00 00 00 00 00
 *   07 00 00 00 00 00 00 00 81 a4 77 6f 72 64 03
 */
static const uint8_t ready_frame[] = {0x53, 0x54, 0x52, 0x57, 0x01, 0x00, 0x17, 0x00, 0x07, 0x00,
	0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x07, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x81,
	0xa4, 0x77, 0x6f, 0x72, 0x64, 0x03};

#define READY_BYTES sizeof(ready_frame)

/* A conn on one end, the test's own hands on the other. */
struct pair {
	struct conn *conn;
	int raw;
};

static void pair_open(struct pair *pair, bool with_fds)
{
	int fds[2];

	assert_int_equal(
		socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, fds), 0);
	assert_int_equal(conn_create(fds[0], with_fds, &pair->conn), 0);
	pair->raw = fds[1];
}

static void pair_close(struct pair *pair)
{
	conn_destroy(pair->conn);
	fd_close(&pair->raw);
}

static int make_fd(void)
{
	int fd = memfd_create("strew-test", MFD_CLOEXEC);

	assert_true(fd >= 0);
	return fd;
}

static ino_t inode(int fd)
{
	struct stat st;

	assert_int_equal(fstat(fd, &st), 0);
	return st.st_ino;
}

/* Writes all bytes, the first of them with n duplicates of fd. */
static void put_fds(int raw, const void *bytes, size_t len, int fd, unsigned n)
{
	struct iovec iov = {(void *)(uintptr_t)bytes, len};
	struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};
	union {
		struct cmsghdr align;
		char bytes[CMSG_SPACE(253 * sizeof(int))];
	} control = {.bytes = {0}};

	if (n) {
		struct cmsghdr *cmsg;

		msg.msg_control = control.bytes;
		msg.msg_controllen = CMSG_SPACE(n * sizeof(int));
		cmsg = CMSG_FIRSTHDR(&msg);
		cmsg->cmsg_level = SOL_SOCKET;
		cmsg->cmsg_type = SCM_RIGHTS;
		cmsg->cmsg_len = CMSG_LEN(n * sizeof(int));
		for (unsigned i = 0; i < n; i++) {
			memcpy(CMSG_DATA(cmsg) + i * sizeof(int), &fd, sizeof(fd));
		}
	}
	assert_int_equal(sendmsg(raw, &msg, MSG_NOSIGNAL), len);
}

static void put(int raw, const void *bytes, size_t len)
{
	put_fds(raw, bytes, len, -1, 0);
}

/* The frame of MSG_READY whose header says n descriptors. */
static void ready_with(uint8_t frame[READY_BYTES], uint32_t n)
{
	memcpy(frame, ready_frame, READY_BYTES);
	memcpy(frame + 12, &n, sizeof(n));
}

static void assert_refused(struct conn *conn, int code, const char *sentence)
{
	struct message message;
	struct error err = {0};

	memset(&message, 0xa5, sizeof(message));
	assert_int_equal(conn_receive(conn, &message, &err), code);
	if (!strstr(err.text, sentence)) {
		fail_msg("'%s' lacks '%s'", err.text, sentence);
	}
	assert_int_equal(message.nfds, 0xa5a5a5a5); /* untouched */
	/* It stays refused. */
	assert_int_equal(conn_receive(conn, &message, &err), code);
}

static void assert_ready(struct conn *conn, uint64_t word, struct message *ret_message)
{
	struct error err = {0};
	int rc = conn_receive(conn, ret_message, &err);

	if (rc != 1) {
		fail_msg("%d: %s", rc, err.text);
	}
	assert_int_equal(ret_message->type, MSG_READY);
	assert_int_equal(ret_message->u.ready.word, word);
}

static void test_exact_bytes(void **state)
{
	struct message message;
	struct pair pair;
	struct error err;
	uint8_t *frame;
	size_t len;

	(void)state;
	message_init(&message, MSG_READY, 7);
	message.u.ready.word = 3;
	assert_int_equal(message_encode(&message, &frame, &len, &err), 0);
	assert_int_equal(len, READY_BYTES);
	assert_memory_equal(frame, ready_frame, READY_BYTES);
	free(frame);

	pair_open(&pair, true);
	put(pair.raw, ready_frame, READY_BYTES);
	assert_ready(pair.conn, 3, &message);
	assert_int_equal(message.serial, 7);
	message_finish(&message);
	pair_close(&pair);
}

static void test_bad_headers(void **state)
{
	static const struct {
		unsigned at;
		const char *bytes;
		size_t len;
		int code;
		const char *sentence;
	} bad[] = {
		{0, "GET ", 4, -EPROTO, "magic 0x20544547"},
		{0, "WRTS", 4, -EPROTO, "no frame of strew"},
		{4, "\x02\x00", 2, -EPROTO, "the peer speaks protocol 2, this side 1"},
		{4, "\x00\x00", 2, -EPROTO, "the peer speaks protocol 0, this side 1"},
		{4, "\x01\x01", 2, -EPROTO, "the peer speaks protocol 257, this side 1"},
		{8, "\xe9\xff\x03\x00", 4, -E2BIG, "limit of 262144"},
		{8, "\xff\xff\xff\xff", 4, -E2BIG, "a frame of 4294967295 bytes"},
		{12, "\x41\x00\x00\x00", 4, -EPROTO, "65 descriptors passes the limit of 64"},
		{12, "\xff\xff\xff\xff", 4, -EPROTO, "4294967295 descriptors"},
	};

	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
		uint8_t header[FRAME_HEADER_BYTES];
		struct pair pair;

		pair_open(&pair, true);
		memcpy(header, ready_frame, sizeof(header));
		memcpy(header + bad[i].at, bad[i].bytes, bad[i].len);
		/* The header alone: nothing is allocated or waited for. */
		put(pair.raw, header, sizeof(header));
		assert_refused(pair.conn, bad[i].code, bad[i].sentence);
		pair_close(&pair);
	}
}

static void test_lying_fd_counts(void **state)
{
	static const struct {
		bool with_fds;
		unsigned said, sent;
		const char *sentence;
	} bad[] = {
		{true, 2, 1, "a frame said 2 descriptors, 1 came"},
		{true, 1, 0, "a frame said 1 descriptors, 0 came"},
		{true, 0, 1, "a frame said 0 descriptors, 1 came"},
		{true, 1, 3, "a frame said 1 descriptors, 3 came"},
		{true, 63, 64, "a frame said 63 descriptors, 64 came"},
		{true, 64, 65, "more descriptors came than a frame may carry"},
		{true, 64, 253, "more descriptors came than a frame may carry"},
		{true, 0, 253, "more descriptors came than a frame may carry"},
		{false, 1, 0, "descriptors on a TCP connection"},
		{false, 64, 0, "descriptors on a TCP connection"},
	};

	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
		int before = test_count_fds();
		uint8_t frame[READY_BYTES];
		int fd = make_fd();
		struct pair pair;

		pair_open(&pair, bad[i].with_fds);
		ready_with(frame, bad[i].said);
		put_fds(pair.raw, frame, sizeof(frame), fd, bad[i].sent);
		assert_refused(pair.conn, -EPROTO, bad[i].sentence);
		/* Refused descriptors are closed at once, not when the peer is dropped. */
		assert_int_equal(test_count_fds(), before + 3);
		pair_close(&pair);
		fd_close(&fd);
	}
}

/* One more than the limit, a few with each byte, so that no single message is truncated. */
static void test_fds_trickle_over_limit(void **state)
{
	int fd = make_fd(), before = test_count_fds();
	uint8_t frame[READY_BYTES];
	struct message message;
	struct error err;
	struct pair pair;
	int rc = 0;

	(void)state;
	pair_open(&pair, true);
	ready_with(frame, LIMIT_FRAME_FDS);
	for (size_t i = 0; i < sizeof(frame) && rc == 0; i++) {
		put_fds(pair.raw, &frame[i], 1, fd, 13);
		rc = conn_receive(pair.conn, &message, &err);
		assert_true(i >= 4 || rc == 0);
	}
	assert_int_equal(rc, -EPROTO);
	assert_non_null(strstr(err.text, "more descriptors"));
	assert_int_equal(test_count_fds(), before + 2);
	pair_close(&pair);
	fd_close(&fd);
}

static void test_byte_by_byte(void **state)
{
	int fds[2] = {make_fd(), make_fd()};
	uint8_t frame[READY_BYTES];
	struct message message;
	struct error err;
	struct pair pair;

	(void)state;
	pair_open(&pair, true);
	ready_with(frame, 3);
	for (size_t i = 0; i < sizeof(frame); i++) {
		assert_int_equal(conn_receive(pair.conn, &message, &err), 0);
		/* Two with the first byte, one with the last. */
		put_fds(pair.raw, &frame[i], 1, i ? fds[1] : fds[0],
			i == 0 ? 2 : i + 1 == sizeof(frame));
	}
	assert_ready(pair.conn, 3, &message);
	assert_int_equal(message.nfds, 3);
	assert_int_equal(inode(message.fds[0]), inode(fds[0]));
	assert_int_equal(inode(message.fds[1]), inode(fds[0]));
	assert_int_equal(inode(message.fds[2]), inode(fds[1]));
	message_finish(&message);
	assert_int_equal(conn_receive(pair.conn, &message, &err), 0);
	pair_close(&pair);
	fd_close(&fds[0]);
	fd_close(&fds[1]);
}

/* Nothing was read between the frames: each has its own descriptors all the same. */
static void test_back_to_back(void **state)
{
	uint8_t frame[READY_BYTES];
	struct message message;
	int fds[3];
	struct error err;
	struct pair pair;

	(void)state;
	pair_open(&pair, true);
	for (unsigned i = 0; i < 3; i++) {
		fds[i] = make_fd();
		ready_with(frame, i == 1 ? 0 : i + 1);
		frame[READY_BYTES - 1] = (uint8_t)(10 + i);
		put_fds(pair.raw, frame, sizeof(frame), fds[i], i == 1 ? 0 : i + 1);
	}
	for (unsigned i = 0; i < 3; i++) {
		assert_ready(pair.conn, 10 + i, &message);
		assert_int_equal(message.nfds, i == 1 ? 0 : i + 1);
		for (unsigned k = 0; k < message.nfds; k++) {
			assert_int_equal(inode(message.fds[k]), inode(fds[i]));
		}
		message_finish(&message);
		fd_close(&fds[i]);
	}
	assert_int_equal(conn_receive(pair.conn, &message, &err), 0);
	pair_close(&pair);
}

static void test_end_of_file(void **state)
{
	(void)state;
	for (size_t len = 0; len < READY_BYTES; len++) {
		uint8_t frame[READY_BYTES];
		struct message message;
		struct error err = {0};
		int fd = make_fd();
		struct pair pair;

		pair_open(&pair, true);
		put(pair.raw, ready_frame, READY_BYTES);
		ready_with(frame, 1);
		if (len) {
			put_fds(pair.raw, frame, len, fd, 1);
		}
		fd_close(&pair.raw);
		assert_ready(pair.conn, 3, &message);
		message_finish(&message);
		assert_int_equal(conn_receive(pair.conn, &message, &err), -ECONNRESET);
		assert_string_equal(
			err.text, len ? "the peer closed the connection in the middle of a frame"
				      : "the peer closed the connection");
		/* And whoever sends hears it too. */
		message_init(&message, MSG_BYE, 0);
		assert_int_equal(conn_send(pair.conn, &message, &err), -ECONNRESET);
		pair_close(&pair);
		fd_close(&fd);
	}
}

/* A part of 200 KiB that carries one descriptor, or none. */
static void big_part(struct message *message, uint32_t number, const uint8_t *bytes, bool with_fd)
{
	message_init(message, MSG_PART, number);
	message->u.part.of = PART_LAYOUT;
	message->u.part.number = number;
	message->u.part.bytes = bytes;
	message->u.part.nbytes = 200u << 10;
	if (with_fd) {
		message->fds[message->nfds++] = make_fd();
	}
}

static void test_outbox_limit(void **state)
{
	uint8_t *bytes = calloc(1, 200u << 10);

	(void)state;
	for (int with_fds = 0; with_fds < 2; with_fds++) {
		size_t limit = with_fds ? LIMIT_OUTBOX_BYTES : LIMIT_BROKER_OUTBOX_BYTES;
		int before = test_count_fds();
		struct message message;
		struct error err = {0};
		struct pair pair;
		size_t sent = 0;
		int rc;

		pair_open(&pair, with_fds);
		do {
			big_part(&message, 0, bytes, with_fds);
			rc = conn_send(pair.conn, &message, &err);
			assert_int_equal(message.nfds, 0); /* taken in any case */
			sent += rc ? 0 : 200u << 10;
		} while (rc == 0 && sent < 2 * limit);
		assert_int_equal(rc, -E2BIG);
		assert_non_null(strstr(err.text, "the peer does not read"));
		/* What the socket itself holds comes on top. */
		assert_in_range(sent, limit - (400u << 10), limit + (4u << 20));
		message_init(&message, MSG_BYE, 0);
		assert_int_equal(conn_send(pair.conn, &message, &err), -E2BIG);
		assert_false(conn_wants_write(pair.conn));
		pair_close(&pair);
		assert_int_equal(test_count_fds(), before);
	}
	free(bytes);
}

static void test_partial_writes(void **state)
{
	enum { FRAMES = 8 };
	int small = 4096, before = test_count_fds(), fds[2];
	struct conn *from, *to;
	struct message message;
	uint8_t *bytes[FRAMES];
	unsigned turns = 0;
	struct error err;

	(void)state;
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
	setsockopt(fds[0], SOL_SOCKET, SO_SNDBUF, &small, sizeof(small));
	assert_int_equal(conn_create(fds[0], true, &from), 0);
	assert_int_equal(conn_create(fds[1], true, &to), 0);
	for (uint32_t i = 0; i < FRAMES; i++) {
		bytes[i] = malloc(200u << 10);
		test_random_fill(bytes[i], 200u << 10);
		big_part(&message, i, bytes[i], i % 3 != 1);
		assert_int_equal(conn_send(from, &message, &err), 0);
	}
	assert_true(conn_wants_write(from));
	for (uint32_t i = 0; i < FRAMES;) {
		int rc = conn_receive(to, &message, &err);

		if (rc == 0) {
			assert_true(++turns < 100000);
			assert_true(conn_flush(from) >= 0);
			continue;
		}
		assert_int_equal(rc, 1);
		assert_int_equal(message.u.part.number, i);
		assert_int_equal(message.serial, i);
		assert_int_equal(message.nfds, i % 3 != 1);
		assert_int_equal(message.u.part.nbytes, 200u << 10);
		assert_memory_equal(message.u.part.bytes, bytes[i], 200u << 10);
		message_finish(&message);
		free(bytes[i++]);
	}
	assert_true(turns > FRAMES); /* they really were partial */
	assert_int_equal(conn_flush(from), 0);
	assert_false(conn_wants_write(from));
	conn_destroy(from);
	conn_destroy(to);
	assert_int_equal(test_count_fds(), before);
}

static void test_deadlines(void **state)
{
	uint8_t *bytes = calloc(1, 200u << 10);
	struct message message;
	struct error err = {0};
	struct pair pair;
	uint64_t start;
	int rc;

	(void)state;
	pair_open(&pair, true);
	put(pair.raw, ready_frame, 9);
	start = clock_ns();
	assert_int_equal(
		conn_receive_wait(pair.conn, deadline_in_ms(60), &message, &err), -ETIMEDOUT);
	assert_in_range(clock_ns() - start, 59000000, 2000000000);
	assert_non_null(strstr(err.text, "did not answer in time"));
	/* One that has passed still takes what is there. */
	put(pair.raw, ready_frame + 9, READY_BYTES - 9);
	assert_int_equal(conn_receive_wait(pair.conn, deadline_in_ms(0), &message, &err), 1);
	assert_int_equal(message.u.ready.word, 3);
	message_finish(&message);
	do {
		big_part(&message, 0, bytes, false);
		start = clock_ns();
		rc = conn_send_wait(pair.conn, &message, deadline_in_ms(60), &err);
	} while (rc == 0);
	assert_int_equal(rc, -ETIMEDOUT);
	assert_in_range(clock_ns() - start, 59000000, 2000000000);
	free(bytes);
	pair_close(&pair);
}

/* The peer that broke the protocol hears why, and what was queued before. */
static void test_told_why(void **state)
{
	struct conn *peer;
	struct message message;
	struct error err = {0};
	struct pair pair;

	(void)state;
	pair_open(&pair, true);
	put(pair.raw, "GET / HTTP/1.1\r\nHost: strew\r\n", 29);
	message_init(&message, MSG_OK, 1);
	assert_int_equal(conn_send(pair.conn, &message, &err), 0);
	assert_refused(pair.conn, -EPROTO, "no frame of strew");
	message_init(&message, MSG_ERROR, 2);
	message.u.error.code = WIRE_PROTOCOL;
	string_copy(message.u.error.text, sizeof(message.u.error.text), "no frame of strew");
	assert_int_equal(conn_send(pair.conn, &message, &err), 0);

	assert_int_equal(conn_create(fd_take(&pair.raw), true, &peer), 0);
	assert_int_equal(conn_receive(peer, &message, &err), 1);
	assert_int_equal(message.type, MSG_OK);
	message_finish(&message);
	assert_int_equal(conn_receive(peer, &message, &err), 1);
	assert_int_equal(message.type, MSG_ERROR);
	assert_int_equal(message.u.error.code, WIRE_PROTOCOL);
	assert_string_equal(message.u.error.text, "no frame of strew");
	message_finish(&message);
	conn_destroy(peer);
	pair_close(&pair);
}

static void test_fds_refused_on_tcp(void **state)
{
	int before = test_count_fds();
	struct message message;
	struct error err = {0};
	struct pair pair;

	(void)state;
	pair_open(&pair, false);
	message_init(&message, MSG_BYE, 0);
	message.fds[message.nfds++] = make_fd();
	assert_int_equal(conn_send(pair.conn, &message, &err), -EINVAL);
	assert_non_null(strstr(err.text, "descriptors cannot travel"));
	assert_int_equal(message.nfds, 0);
	pair_close(&pair);
	assert_int_equal(test_count_fds(), before);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_exact_bytes),
		cmocka_unit_test(test_bad_headers),
		cmocka_unit_test(test_lying_fd_counts),
		cmocka_unit_test(test_fds_trickle_over_limit),
		cmocka_unit_test(test_byte_by_byte),
		cmocka_unit_test(test_back_to_back),
		cmocka_unit_test(test_end_of_file),
		cmocka_unit_test(test_outbox_limit),
		cmocka_unit_test(test_partial_writes),
		cmocka_unit_test(test_deadlines),
		cmocka_unit_test(test_told_why),
		cmocka_unit_test(test_fds_refused_on_tcp),
	};

	return TEST_RUN(tests);
}
