/* Connections: whole frames out of any stream of bytes, each with its own descriptors. */
#include "base/clock.h"
#include "base/util.h"
#include "ipc/conn.h"
#include "ipc/frame.h"
#include "test_ipc_fill.h"
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <unistd.h>

/* `conn` at one end, the bare socket at the other. */
struct ends {
	struct conn *conn;
	int raw;
	struct message message;
	struct error err;
};

static void open_ends(struct ends *ends, bool with_fds)
{
	int fds[2];

	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
	assert_int_equal(conn_create(fds[0], with_fds, &ends->conn), 0);
	assert_int_equal(conn_fd(ends->conn), fds[0]);
	assert_true(fcntl(fds[0], F_GETFL) & O_NONBLOCK);
	ends->raw = fds[1];
	error_clear(&ends->err);
}

static void close_ends(struct ends *ends)
{
	conn_destroy(ends->conn);
	if (ends->raw >= 0) {
		close(ends->raw);
	}
}

/* Writes bytes and nfds descriptors of one pipe's end by one sendmsg(2). */
static void raw_send(int fd, const void *bytes, size_t len, unsigned nfds)
{
	union {
		struct cmsghdr align;
		char bytes[CMSG_SPACE(253 * sizeof(int))];
	} control;
	struct iovec iov = {(void *)(uintptr_t)bytes, len};
	struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};
	int carried[253];
	int null = open("/dev/null", O_RDONLY | O_CLOEXEC);

	memset(&control, 0, sizeof(control));
	if (nfds) {
		struct cmsghdr *cmsg;

		for (unsigned i = 0; i < nfds; i++) {
			carried[i] = null;
		}
		msg.msg_control = control.bytes;
		msg.msg_controllen = CMSG_SPACE(nfds * sizeof(int));
		cmsg = CMSG_FIRSTHDR(&msg);
		cmsg->cmsg_level = SOL_SOCKET;
		cmsg->cmsg_type = SCM_RIGHTS;
		cmsg->cmsg_len = CMSG_LEN(nfds * sizeof(int));
		memcpy(CMSG_DATA(cmsg), carried, nfds * sizeof(int));
	}
	assert_int_equal(sendmsg(fd, &msg, MSG_NOSIGNAL), len);
	close(null);
}

/* A frame of `ok` that claims `nfds`. */
static uint8_t *ok_frame(uint64_t value, unsigned nfds, size_t *ret_len)
{
	struct message message;
	struct error err;
	uint8_t *frame;

	message_init(&message, MSG_OK, 5);
	message.u.ok.value = value;
	message.nfds = nfds;
	assert_int_equal(message_encode(&message, &frame, ret_len, &err), 0);
	return frame;
}

static int receive(struct ends *ends)
{
	return conn_receive(ends->conn, &ends->message, &ends->err);
}

/* The next receive fails that way, its sentence says `said`, and every later one fails too. */
static void assert_broken(struct ends *ends, int rc, const char *said)
{
	int fds = test_count_fds();

	assert_int_equal(receive(ends), rc);
	if (!strstr(ends->err.text, said)) {
		fail_msg("\"%s\" does not say \"%s\"", ends->err.text, said);
	}
	assert_int_equal(receive(ends), rc);
	assert_true(test_count_fds() <= fds);
}

static void test_both_ways(void **state)
{
	struct ends a;
	struct conn *b;

	(void)state;
	open_ends(&a, true);
	assert_int_equal(conn_create(a.raw, true, &b), 0);
	a.raw = -1;
	for (unsigned turn = 0; turn < 2 * CONTRACT_TYPES; turn++) {
		struct message sent, got;

		fill_message(&sent, contract[turn % CONTRACT_TYPES].type);
		assert_int_equal(conn_send(turn % 2 ? a.conn : b, &sent, &a.err), 0);
		while (conn_receive(turn % 2 ? b : a.conn, &got, &a.err) == 0) {
			conn_flush(turn % 2 ? a.conn : b);
		}
		assert_same(&sent, &got);
		message_finish(&got);
		if (sent.type == MSG_PART) {
			sent.u.part.bytes = NULL;
		}
		message_finish(&sent);
	}
	assert_int_equal(receive(&a), 0);
	conn_destroy(b);
	assert_broken(&a, -ECONNRESET, "closed the connection");
	assert_null(strstr(a.err.text, "middle"));
	close_ends(&a);
	conn_destroy(NULL);
}

static void test_fds_travel_with_their_frames(void **state)
{
	struct ends a;
	struct conn *b;

	(void)state;
	open_ends(&a, true);
	assert_int_equal(conn_create(a.raw, true, &b), 0);
	a.raw = -1;
	/* 0, 1, … 64 descriptors in frames behind one another, told apart by their inodes. */
	for (unsigned n = 0; n <= LIMIT_FRAME_FDS; n += n < 3 ? 1 : 61) {
		struct message message;

		message_init(&message, MSG_OK, n);
		for (unsigned i = 0; i < n; i++) {
			int pipes[2];

			assert_int_equal(pipe2(pipes, O_CLOEXEC), 0);
			close(pipes[1]);
			message.fds[i] = pipes[0];
		}
		message.nfds = n;
		assert_int_equal(conn_send(b, &message, &a.err), 0);
		assert_int_equal(message.nfds, 0);
	}
	for (unsigned n = 0; n <= LIMIT_FRAME_FDS; n += n < 3 ? 1 : 61) {
		struct stat st, last = {0};

		assert_int_equal(receive(&a), 1);
		assert_int_equal(a.message.serial, n);
		assert_int_equal(a.message.nfds, n);
		for (unsigned i = 0; i < n; i++) {
			assert_int_equal(fstat(a.message.fds[i], &st), 0);
			assert_true(S_ISFIFO(st.st_mode));
			assert_true(st.st_ino != last.st_ino);
			assert_true(fcntl(a.message.fds[i], F_GETFD) & FD_CLOEXEC);
			last = st;
		}
		message_finish(&a.message);
	}
	conn_destroy(b);
	close_ends(&a);
}

static void test_byte_by_byte(void **state)
{
	struct ends a;
	size_t len;

	(void)state;
	open_ends(&a, true);
	for (unsigned n = 0; n < 4; n++) {
		uint8_t *frame = ok_frame(77 + n, n, &len);

		for (size_t i = 0; i < len; i++) {
			assert_int_equal(receive(&a), 0);
			raw_send(a.raw, frame + i, 1, i ? 0 : n);
		}
		assert_int_equal(receive(&a), 1);
		assert_int_equal(a.message.u.ok.value, 77 + n);
		assert_int_equal(a.message.nfds, n);
		message_finish(&a.message);
		free(frame);
	}
	assert_int_equal(receive(&a), 0);
	close_ends(&a);
}

/* Two frames in one write, the second one's descriptors in the next: nothing is read ahead. */
static void test_nothing_is_read_ahead(void **state)
{
	uint8_t *frame, both[256], rest[64];
	struct ends a;
	size_t len;

	(void)state;
	open_ends(&a, true);
	frame = ok_frame(1, 0, &len);
	memcpy(both, frame, len);
	memcpy(both + len, "raw bytes of a bucket", 21);
	free(frame);
	raw_send(a.raw, both, len + 21, 0);
	assert_int_equal(receive(&a), 1);
	message_finish(&a.message);
	assert_int_equal(recv(conn_fd(a.conn), rest, sizeof(rest), MSG_DONTWAIT), 21);
	assert_memory_equal(rest, "raw bytes of a bucket", 21);
	close_ends(&a);
}

static void test_fds_do_not_fit_the_header(void **state)
{
	static const struct {
		unsigned said, came;
		const char *text;
	} cases[] = {
		{0, 1, "a frame said 0 descriptors, 1 came"},
		{1, 0, "a frame said 1 descriptors, 0 came"},
		{2, 1, "a frame said 2 descriptors, 1 came"},
		{1, 64, "a frame said 1 descriptors, 64 came"},
		{64, 65, "more descriptors came"},
		{64, 253, "more descriptors came"},
	};

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct ends a;
		size_t len;
		uint8_t *frame = ok_frame(1, cases[i].said, &len);

		open_ends(&a, true);
		raw_send(a.raw, frame, len, cases[i].came);
		assert_broken(&a, -EPROTO, cases[i].text);
		free(frame);
		close_ends(&a);
	}
}

/* 40 with the header and 40 with the payload: more than a frame may have, though each fits. */
static void test_fds_add_up(void **state)
{
	struct ends a;
	size_t len;
	uint8_t *frame = ok_frame(1, 64, &len);

	(void)state;
	open_ends(&a, true);
	raw_send(a.raw, frame, 10, 40);
	assert_int_equal(receive(&a), 0);
	raw_send(a.raw, frame + 10, len - 10, 40);
	assert_broken(&a, -EPROTO, "more descriptors came");
	free(frame);
	close_ends(&a);
}

static void test_fds_on_tcp(void **state)
{
	struct message message;
	struct ends a;
	size_t len;
	uint8_t *frame = ok_frame(1, 1, &len);

	(void)state;
	open_ends(&a, false);
	raw_send(a.raw, frame, len, 0);
	assert_broken(&a, -EPROTO, "on a TCP connection");
	close_ends(&a);
	free(frame);

	/* Came all the same, by a peer that sits on a Unix socket. */
	open_ends(&a, false);
	frame = ok_frame(1, 0, &len);
	raw_send(a.raw, frame, len, 1);
	assert_broken(&a, -EPROTO, "more descriptors came");
	close_ends(&a);
	free(frame);

	open_ends(&a, false);
	message_init(&message, MSG_OK, 0);
	message.fds[0] = open("/dev/null", O_RDONLY | O_CLOEXEC);
	message.nfds = 1;
	assert_int_equal(conn_send(a.conn, &message, &a.err), -EINVAL);
	assert_int_equal(message.nfds, 0);
	close_ends(&a);
}

static void test_broken_frames(void **state)
{
	static const struct {
		const char *bytes;
		size_t len;
		int rc;
		const char *text;
	} cases[] = {
		{"GET / HTTP/1.1\r\nHost: x\r\n", 24, -EPROTO, "no frame of strew"},
		{"STRW\x02\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0", 24, -EPROTO,
			"the peer speaks protocol 2, this side 1"},
		{"STRW\x01\0\x04\0\0\0\0\x7f\0\0\0\0\0\0\0\0\0\0\0\0", 24, -E2BIG,
			"passes the limit of 262144"},
		{"STRW\x01\0\x04\0\x01\0\0\0\x41\0\0\0\0\0\0\0\0\0\0\0", 24, -EPROTO,
			"65 descriptors"},
		{"STRW\x01\0\x4d\0\x01\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x80", 25, -EPROTO, "type 77"},
		{"STRW\x01\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0", 24, -EPROTO, "message ok"},
		{"STRW\x01\0\x04\0\x05\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\xdf\x01\0\0\0", 29, -EPROTO,
			"container of 33554432"},
	};

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct message message;
		struct ends a;
		char told[64];

		open_ends(&a, true);
		/* Those that the header alone condemns come with a descriptor, which is closed. */
		raw_send(a.raw, cases[i].bytes, cases[i].len, i < 4);
		assert_broken(&a, cases[i].rc, cases[i].text);
		/* The peer can still be told why. */
		message_init(&message, MSG_ERROR, 0);
		assert_int_equal(conn_send(a.conn, &message, &a.err), 0);
		assert_int_equal(recv(a.raw, told, 24, MSG_DONTWAIT), 24);
		close_ends(&a);
	}
}

static void test_end_of_file(void **state)
{
	size_t len;
	uint8_t *frame = ok_frame(300, 2, &len);

	(void)state;
	for (size_t cut = 0; cut < len; cut++) {
		struct ends a;

		open_ends(&a, true);
		if (cut) {
			raw_send(a.raw, frame, cut, 2);
		}
		if (cut % 2) {
			assert_int_equal(receive(&a), 0);
		}
		close(a.raw);
		a.raw = -1;
		assert_broken(&a, -ECONNRESET, "closed the connection");
		/* assert_broken() has made a later sentence of it. */
		close_ends(&a);

		open_ends(&a, true);
		if (cut) {
			raw_send(a.raw, frame, cut, 2);
		}
		close(a.raw);
		a.raw = -1;
		assert_int_equal(receive(&a), -ECONNRESET);
		assert_int_equal(strstr(a.err.text, "in the middle of a frame") != NULL, cut > 0);
		close_ends(&a);
	}
	free(frame);
}

static void test_peer_gone_while_sending(void **state)
{
	struct message message;
	struct ends a;
	int rc;

	(void)state;
	open_ends(&a, true);
	close(a.raw);
	a.raw = -1;
	message_init(&message, MSG_BYE, 0);
	rc = conn_send(a.conn, &message, &a.err);
	assert_true(rc == -EPIPE || rc == -ECONNRESET);
	assert_int_equal(conn_send(a.conn, &message, &a.err), rc);
	assert_int_equal(conn_flush(a.conn), rc);
	assert_false(conn_wants_write(a.conn));
	assert_int_equal(receive(&a), -ECONNRESET);
	close_ends(&a);
}

static void fill_part(struct message *message, const uint8_t *bytes, uint32_t number)
{
	message_init(message, MSG_PART, 0);
	message->u.part.of = PART_LAYOUT;
	message->u.part.number = number;
	message->u.part.bytes = bytes;
	message->u.part.nbytes = LIMIT_FRAME_BYTES - 256;
}

/* Everything queued arrives, in order and whole, at a reader that takes odd numbers of bytes. */
static void test_slow_reader(void **state)
{
	uint8_t *bytes = malloc(LIMIT_FRAME_BYTES);
	struct message message;
	struct ends a;
	struct conn *b;
	uint32_t got = 0;
	int small = 8192;

	(void)state;
	open_ends(&a, true);
	setsockopt(a.raw, SOL_SOCKET, SO_SNDBUF, &small, sizeof(small));
	assert_int_equal(conn_create(a.raw, true, &b), 0);
	a.raw = -1;
	test_random_fill(bytes, LIMIT_FRAME_BYTES);
	for (uint32_t i = 0; i < 20; i++) {
		fill_part(&message, bytes, i);
		message.fds[0] = open("/dev/null", O_RDONLY | O_CLOEXEC);
		message.nfds = 1;
		assert_int_equal(conn_send(b, &message, &a.err), 0);
	}
	assert_true(conn_wants_write(b));
	assert_int_equal(conn_flush(b), 1);
	while (got < 20) {
		int rc = receive(&a);

		assert_true(rc >= 0);
		if (rc == 1) {
			assert_int_equal(a.message.u.part.number, got++);
			assert_int_equal(a.message.nfds, 1);
			assert_memory_equal(a.message.u.part.bytes, bytes, a.message.u.part.nbytes);
			message_finish(&a.message);
		}
		assert_true(conn_flush(b) >= 0);
	}
	assert_false(conn_wants_write(b));
	assert_int_equal(conn_flush(b), 0);
	conn_destroy(b);
	close_ends(&a);
	free(bytes);
}

/* Refused by its header: nothing of the payload is waited for. */
static void test_a_limit_of_its_own(void **state)
{
	size_t len;
	uint8_t *frame = ok_frame(7, 0, &len);
	struct ends ends;

	(void)state;
	open_ends(&ends, false);
	conn_set_most(ends.conn, (uint32_t)len);
	raw_send(ends.raw, frame, len, 0);
	assert_int_equal(conn_receive(ends.conn, &ends.message, &ends.err), 1);
	message_finish(&ends.message);
	conn_set_most(ends.conn, (uint32_t)len - 1);
	raw_send(ends.raw, frame, FRAME_HEADER_BYTES, 0);
	assert_int_equal(conn_receive(ends.conn, &ends.message, &ends.err), -E2BIG);
	assert_non_null(strstr(ends.err.text, "passes the limit"));
	close_ends(&ends);
	free(frame);
}

/* A peer that does not read costs LIMIT_OUTBOX_BYTES, then the connection ends. */
static void test_outbox_limit(void **state)
{
	uint8_t *bytes = calloc(1, LIMIT_FRAME_BYTES);
	struct message message;
	struct ends a;
	unsigned n = 0;
	int rc;

	(void)state;
	open_ends(&a, true);
	raw_send(a.raw, "S", 1, 0);
	do {
		fill_part(&message, bytes, n);
		message.fds[0] = open("/dev/null", O_RDONLY | O_CLOEXEC);
		message.nfds = 1;
		rc = conn_send(a.conn, &message, &a.err);
		assert_int_equal(message.nfds, 0);
	} while (rc == 0 && ++n < 1000);
	assert_int_equal(rc, -E2BIG);
	assert_non_null(strstr(a.err.text, "does not read"));
	assert_true(n >= LIMIT_OUTBOX_BYTES / LIMIT_FRAME_BYTES);
	assert_true(n <= LIMIT_OUTBOX_BYTES / (LIMIT_FRAME_BYTES - 1024) + 4);
	fill_part(&message, bytes, n);
	assert_int_equal(conn_send(a.conn, &message, &a.err), -E2BIG);
	assert_int_equal(conn_flush(a.conn), -E2BIG);
	assert_false(conn_wants_write(a.conn));
	/* Whoever polls it sees the end. */
	assert_int_equal(receive(&a), -ECONNRESET);
	close_ends(&a);
	free(bytes);
}

/* And no more than LIMIT_OUTBOX_FDS, however small their frames are. */
static void test_outbox_limit_of_descriptors(void **state)
{
	uint8_t *bytes = calloc(1, LIMIT_FRAME_BYTES);
	int open_before;
	unsigned n = 0;
	struct message message;
	struct ends a;
	int rc;

	(void)state;
	open_ends(&a, true);
	/* Nothing behind this one gets into the socket. */
	fill_part(&message, bytes, 0);
	do {
		assert_int_equal(conn_send(a.conn, &message, &a.err), 0);
	} while (!conn_wants_write(a.conn));
	assert_false(conn_is_taken(a.conn));
	open_before = test_count_fds();
	do {
		message_init(&message, MSG_OK, 1);
		message.fds[0] = open("/dev/null", O_RDONLY | O_CLOEXEC);
		message.nfds = 1;
		rc = conn_send(a.conn, &message, &a.err);
		assert_int_equal(message.nfds, 0);
	} while (rc == 0 && ++n < 1000);
	assert_int_equal(rc, -E2BIG);
	assert_non_null(strstr(a.err.text, "descriptors wait"));
	assert_int_equal(n, LIMIT_OUTBOX_FDS);
	assert_int_equal(test_count_fds(), open_before + LIMIT_OUTBOX_FDS);
	close_ends(&a);
	free(bytes);
}

/* What has gone into the socket is taken when the peer has read the last byte of it. */
static void test_what_is_taken(void **state)
{
	struct message message;
	struct ends a, b = {.raw = -1};

	(void)state;
	open_ends(&a, true);
	assert_int_equal(conn_create(a.raw, true, &b.conn), 0);
	a.raw = -1;
	assert_true(conn_is_taken(a.conn));
	for (unsigned i = 0; i < 2; i++) {
		message_init(&message, MSG_OK, 1);
		message.fds[0] = open("/dev/null", O_RDONLY | O_CLOEXEC);
		message.nfds = 1;
		assert_int_equal(conn_send(a.conn, &message, &a.err), 0);
		assert_false(conn_wants_write(a.conn));
		assert_false(conn_is_taken(a.conn));
	}
	for (unsigned i = 0; i < 2; i++) {
		assert_int_equal(receive(&b), 1);
		message_finish(&b.message);
		assert_int_equal(conn_is_taken(a.conn), i == 1);
	}
	close_ends(&a);
	close_ends(&b);
}

/* A message that cannot be encoded is one that the peer waits for in vain. */
static void test_failed_encoding_ends_it(void **state)
{
	uint8_t *bytes = calloc(1, LIMIT_FRAME_BYTES);
	struct message message;
	struct ends a;

	(void)state;
	open_ends(&a, true);
	fill_part(&message, bytes, 0);
	message.u.part.nbytes = LIMIT_FRAME_BYTES;
	assert_int_equal(conn_send(a.conn, &message, &a.err), -E2BIG);
	message_init(&message, MSG_BYE, 0);
	assert_int_equal(conn_send(a.conn, &message, &a.err), -E2BIG);
	assert_int_equal(receive(&a), -ECONNRESET);
	close_ends(&a);
	free(bytes);
}

static void on_alarm(int number)
{
	(void)number;
}

/* Signals do not end a wait, and its deadline does. */
static void test_waiting(void **state)
{
	struct itimerval often = {{0, 5000}, {0, 5000}}, never = {{0, 0}, {0, 0}};
	struct sigaction action = {.sa_handler = on_alarm};
	uint64_t began = clock_ns();
	uint8_t *bytes = calloc(1, LIMIT_FRAME_BYTES);
	struct message message;
	struct ends a;
	size_t len;
	uint8_t *frame = ok_frame(9, 0, &len);
	int rc = 0;

	(void)state;
	sigaction(SIGALRM, &action, NULL);
	setitimer(ITIMER_REAL, &often, NULL);
	open_ends(&a, true);
	assert_int_equal(
		conn_receive_wait(a.conn, deadline_in_ms(60), &a.message, &a.err), -ETIMEDOUT);
	assert_true(clock_ns() - began >= 60000000u);
	assert_true(clock_ns() - began < 2000000000u);
	raw_send(a.raw, frame, len, 0);
	assert_int_equal(conn_receive_wait(a.conn, deadline_in_ms(1000), &a.message, &a.err), 1);
	assert_int_equal(a.message.u.ok.value, 9);
	message_finish(&a.message);
	for (unsigned i = 0; rc == 0 && i < 100; i++) {
		fill_part(&message, bytes, i);
		rc = conn_send_wait(a.conn, &message, deadline_in_ms(60), &a.err);
	}
	assert_int_equal(rc, -ETIMEDOUT);
	setitimer(ITIMER_REAL, &never, NULL);
	close(a.raw);
	a.raw = -1;
	assert_int_equal(
		conn_receive_wait(a.conn, DEADLINE_NEVER, &a.message, &a.err), -ECONNRESET);
	close_ends(&a);
	free(frame);
	free(bytes);
}

/* Noise on the socket: an error or nothing, never a crash, never a leaked descriptor. */
static void test_noise(void **state)
{
	(void)state;
	for (unsigned turn = 0; turn < 2000; turn++) {
		uint8_t *frame;
		struct message sent;
		struct ends a;
		size_t len;
		int rc;

		open_ends(&a, true);
		fill_message(&sent, contract[turn % CONTRACT_TYPES].type);
		sent.nfds = (unsigned)test_random_below(3);
		assert_int_equal(message_encode(&sent, &frame, &len, &a.err), 0);
		sent.nfds = 0;
		len = MIN(len, 4096);
		for (unsigned flips = 0; flips < 3; flips++) {
			size_t bit = test_random_below(8 * (flips ? len : FRAME_HEADER_BYTES));

			frame[bit / 8] ^= (uint8_t)(1u << bit % 8);
		}
		raw_send(a.raw, frame, len, (unsigned)test_random_below(3));
		close(a.raw);
		a.raw = -1;
		while ((rc = receive(&a)) == 1) {
			message_finish(&a.message);
		}
		assert_true(rc < 0);
		free(frame);
		if (sent.type == MSG_PART) {
			sent.u.part.bytes = NULL;
		}
		message_finish(&sent);
		close_ends(&a);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_both_ways),
		cmocka_unit_test(test_fds_travel_with_their_frames),
		cmocka_unit_test(test_byte_by_byte),
		cmocka_unit_test(test_nothing_is_read_ahead),
		cmocka_unit_test(test_fds_do_not_fit_the_header),
		cmocka_unit_test(test_fds_add_up),
		cmocka_unit_test(test_fds_on_tcp),
		cmocka_unit_test(test_broken_frames),
		cmocka_unit_test(test_end_of_file),
		cmocka_unit_test(test_peer_gone_while_sending),
		cmocka_unit_test(test_slow_reader),
		cmocka_unit_test(test_a_limit_of_its_own),
		cmocka_unit_test(test_outbox_limit),
		cmocka_unit_test(test_outbox_limit_of_descriptors),
		cmocka_unit_test(test_what_is_taken),
		cmocka_unit_test(test_failed_encoding_ends_it),
		cmocka_unit_test(test_waiting),
		cmocka_unit_test(test_noise),
	};

	return TEST_RUN(tests);
}
