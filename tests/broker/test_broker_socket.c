/*
 * Those who break the protocol of the Unix socket, or only waste its time: each is dropped
 * with a sentence, everybody else is served within a second, and nothing of them is left.
 */
#include "base/clock.h"
#include "base/util.h"
#include "broker/one.h"
#include "broker/peers.h"
#include "ipc/frame.h"
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#define IDLE_CONNECTIONS 1000
#define GROWTH_KIB 1024
/* Of a connection that has said hello, in either process: itself, and both pages. */
#define DESCRIPTORS_EACH 3

static void write_bytes(struct raw *raw, const void *bytes, size_t n)
{
	assert_int_equal(send(conn_fd(raw->conn), bytes, n, MSG_NOSIGNAL), (ssize_t)n);
}

static void write_header(struct raw *raw, unsigned type, uint32_t payload_bytes, uint32_t fds)
{
	struct frame_header header = {
		.type = (uint16_t)type, .payload_bytes = payload_bytes, .fds = fds, .serial = 9};
	uint8_t bytes[FRAME_HEADER_BYTES];

	frame_header_put(bytes, &header);
	write_bytes(raw, bytes, sizeof(bytes));
}

/* The descriptor is given n times with the bytes. */
static void write_fds(struct raw *raw, const void *bytes, size_t len, int fd, unsigned n)
{
	struct iovec iov = {(void *)(uintptr_t)bytes, len};
	struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};
	size_t space = CMSG_SPACE(n * sizeof(int));
	struct cmsghdr *cmsg = calloc(1, space);

	assert_non_null(cmsg);
	msg.msg_control = cmsg;
	msg.msg_controllen = space;
	cmsg->cmsg_level = SOL_SOCKET;
	cmsg->cmsg_type = SCM_RIGHTS;
	cmsg->cmsg_len = CMSG_LEN(n * sizeof(int));
	for (unsigned i = 0; i < n; i++) {
		memcpy(CMSG_DATA(cmsg) + i * sizeof(int), &fd, sizeof(fd));
	}
	assert_int_equal(sendmsg(conn_fd(raw->conn), &msg, MSG_NOSIGNAL), (ssize_t)len);
	free(cmsg);
}

static void test_garbage(void **state)
{
	uint8_t bytes[512];

	(void)state;
	for (unsigned i = 0; i < 50; i++) {
		struct raw raw;

		if (i % 2) {
			raw_open(&raw, &one_broker, (enum role)(1 + i % 3));
		} else {
			raw_open_mute(&raw, &one_broker);
		}
		test_random_fill(bytes, sizeof(bytes));
		bytes[0] = (uint8_t)(i + 1); /* never the magic */
		write_bytes(&raw, bytes, sizeof(bytes));
		raw_expect_end(&raw);
		raw_close(&raw);
	}
}

static uint64_t broker_kib(void)
{
	char path[48], line[256];
	uint64_t kib = 0;
	FILE *status;

	snprintf(path, sizeof(path), "/proc/%d/status", (int)one_broker.pid);
	status = fopen(path, "re");
	while (status && fgets(line, sizeof(line), status)) {
		(void)sscanf(line, "VmRSS: %" SCNu64, &kib);
	}
	if (status) {
		fclose(status);
	}
	assert_true(kib > 0);
	return kib;
}

static void tell_lies(void)
{
	/* A map of 16M entries, an array of 16M, a string of 4 GiB, depth, a negative key. */
	static const struct {
		uint8_t bytes[8];
		uint32_t n;
	} payloads[] = {
		{{0xdf, 0x01, 0x00, 0x00, 0x00}, 5},
		{{0x81, 0xa1, 'x', 0xdd, 0x01, 0x00, 0x00, 0x00}, 8},
		{{0x81, 0xdb, 0xff, 0xff, 0xff, 0xff}, 6},
		{{0x81, 0xa1, 'x', 0x91, 0x91, 0x91, 0x91, 0x91}, 8},
		{{0x81, 0xff, 0x01}, 3},
		{{0xc0}, 1},
		{{0x80, 0x80}, 2},
	};
	struct raw raw;

	raw_open(&raw, &one_broker, ROLE_OBSERVER);
	write_header(&raw, MSG_STATUS, 1u << 30, 0);
	raw_expect_error(&raw, -E2BIG, "");
	raw_expect_end(&raw);
	raw_close(&raw);
	for (size_t i = 0; i < ARRAY_LEN(payloads); i++) {
		raw_open(&raw, &one_broker, ROLE_WORKER);
		write_header(&raw, i % 2 ? MSG_REGISTER : MSG_STATUS, payloads[i].n, 0);
		write_bytes(&raw, payloads[i].bytes, payloads[i].n);
		raw_expect_error(&raw, -EPROTO, "");
		raw_expect_end(&raw);
		raw_close(&raw);
	}
	/* A type that nobody knows, one of the other way, one with no payload at all. */
	for (unsigned type = 0; type < 3; type++) {
		raw_open(&raw, &one_broker, ROLE_WORKER);
		write_header(&raw, type == 0 ? 7777 : type == 1 ? MSG_APPLY : MSG_REGISTER, 0, 0);
		raw_expect_error(&raw, -EPROTO, type == 1 ? "apply" : "");
		raw_expect_end(&raw);
		raw_close(&raw);
	}
}

/* Each is dropped, and the broker reserves nothing for what a header only claims. */
static void test_headers_that_lie(void **state)
{
	uint64_t before;

	(void)state;
	tell_lies();
	before = broker_kib();
	for (unsigned i = 0; i < 20; i++) {
		tell_lies();
	}
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
	(void)before; /* the sanitizers keep what was freed for a while */
#else
	assert_true(broker_kib() < before + GROWTH_KIB);
#endif
}

static void test_truncated_then_silence(void **state)
{
	struct raw raws[3];
	uint8_t zeros[4096] = {0};

	(void)state;
	for (unsigned i = 0; i < 3; i++) {
		raw_open(&raws[i], &one_broker, ROLE_WORKER);
	}
	write_bytes(&raws[0], "STRW", 4);
	write_header(&raws[1], MSG_PART, LIMIT_FRAME_BYTES - FRAME_HEADER_BYTES, 0);
	write_header(&raws[2], MSG_PART, LIMIT_FRAME_BYTES - FRAME_HEADER_BYTES, 0);
	write_bytes(&raws[2], zeros, sizeof(zeros));
	for (unsigned i = 0; i < 5; i++) {
		struct message reply;

		broker_status(&one_broker, &reply);
		message_finish(&reply);
	}
	for (unsigned i = 0; i < 3; i++) {
		raw_close(&raws[i]);
	}
}

static void test_byte_by_byte(void **state)
{
	struct message message;
	struct error err;
	struct raw raw;
	uint8_t *frame;
	size_t len;

	(void)state;
	raw_open_mute(&raw, &one_broker);
	message_init(&message, MSG_HELLO, 1);
	message.u.hello.protocol = PROTOCOL_VERSION;
	message.u.hello.role = ROLE_OBSERVER;
	assert_int_equal(message_encode(&message, &frame, &len, &err), 0);
	for (size_t i = 0; i < len; i++) {
		write_bytes(&raw, &frame[i], 1);
		if (i % 8 == 0) {
			sleep_ms(1);
		}
	}
	free(frame);
	raw_expect(&raw, MSG_WELCOME, &message);
	message_finish(&message);
	raw_close(&raw);
}

static void test_no_hello(void **state)
{
	uint64_t began = clock_ns();
	struct raw raw;

	(void)state;
	raw_open_mute(&raw, &one_broker);
	raw_expect_error(&raw, -ETIMEDOUT, "hello did not come in time");
	raw_expect_end(&raw);
	assert_in_range(
		(clock_ns() - began) / 1000000, LIMIT_HELLO_MS - 100, LIMIT_HELLO_MS + SERVED_MS);
	raw_close(&raw);
}

static void test_wrong_hellos(void **state)
{
	struct message message;
	struct raw raw;

	(void)state;
	for (unsigned i = 0; i < 4; i++) {
		raw_open_mute(&raw, &one_broker);
		message_init(&message, MSG_HELLO, 1);
		message.u.hello.protocol = i == 0 ? PROTOCOL_VERSION + 1 : PROTOCOL_VERSION;
		message.u.hello.role = i == 1 ? 0 : i == 2 ? 4 : ROLE_WORKER;
		raw_send(&raw, &message);
		/* The last one lacks its page. */
		raw_expect_error(&raw, -EPROTO, i == 0 ? "protocol 2" : i == 3 ? "page" : "role");
		raw_expect_end(&raw);
		raw_close(&raw);
	}
	raw_open(&raw, &one_broker, ROLE_WORKER);
	message_init(&message, MSG_HELLO, 2);
	message.u.hello.protocol = PROTOCOL_VERSION;
	message.u.hello.role = ROLE_TRAINER;
	raw_send(&raw, &message);
	raw_expect_error(&raw, -EPROTO, "hello");
	raw_expect_end(&raw);
	raw_close(&raw);
}

/* What is no sealed memfd of one page, as the page of a process. */
static int wrong_page(unsigned i)
{
	int fd = i == 0 ? open("/dev/null", O_RDWR | O_CLOEXEC)
			: memfd_create("page", MFD_CLOEXEC | (i == 1 ? 0 : MFD_ALLOW_SEALING));

	assert_true(fd >= 0);
	if (i > 0) {
		assert_int_equal(ftruncate(fd, i == 3 ? 8192 : 4096), 0);
	}
	if (i == 3) {
		/* All seals, and the wrong size. */
		assert_int_equal(
			fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | 0x10 | F_SEAL_SEAL),
			0);
	}
	return fd;
}

static void test_wrong_pages(void **state)
{
	(void)state;
	for (unsigned i = 0; i < 4; i++) {
		struct message message;
		struct raw raw;

		raw_open_mute(&raw, &one_broker);
		message_init(&message, MSG_HELLO, 1);
		message.u.hello.protocol = PROTOCOL_VERSION;
		message.u.hello.role = ROLE_TRAINER;
		message.fds[0] = wrong_page(i);
		message.nfds = 1;
		raw_send(&raw, &message);
		raw_expect_error(&raw, -EINVAL, "page");
		raw_expect_end(&raw);
		raw_close(&raw);
	}
}

static void test_descriptors_that_nobody_asked_for(void **state)
{
	int fd = open("/dev/null", O_RDWR | O_CLOEXEC);
	uint8_t header[FRAME_HEADER_BYTES], empty = 0x80;
	struct message message;
	struct raw raw;

	(void)state;
	assert_true(fd >= 0);
	/* Two are said and none comes; none is said and 64 come; 250 come. */
	raw_open(&raw, &one_broker, ROLE_OBSERVER);
	write_header(&raw, MSG_STATUS, 1, 2);
	write_bytes(&raw, &empty, 1);
	raw_expect_error(&raw, -EPROTO, "descriptors");
	raw_expect_end(&raw);
	raw_close(&raw);
	frame_header_put(header, &(struct frame_header){.type = MSG_STATUS, .payload_bytes = 1});
	for (unsigned n = 64; n <= 250; n += 186) {
		raw_open(&raw, &one_broker, ROLE_OBSERVER);
		write_fds(&raw, header, sizeof(header), fd, n);
		/* The broker may have hung up already. */
		send(conn_fd(raw.conn), &empty, 1, MSG_NOSIGNAL);
		raw_expect_error(&raw, -EPROTO, "descriptors");
		raw_expect_end(&raw);
		raw_close(&raw);
	}
	/* As many as are said, with a message that has no use for them, again and again. */
	raw_open(&raw, &one_broker, ROLE_OBSERVER);
	for (unsigned i = 0; i < 20; i++) {
		message_init(&message, MSG_STATUS, 3);
		for (; message.nfds < LIMIT_FRAME_FDS; message.nfds++) {
			message.fds[message.nfds] = dup(fd);
		}
		raw_send(&raw, &message);
		raw_expect(&raw, MSG_STATUS_REPLY, &message);
		message_finish(&message);
	}
	/* And left in the middle of a frame. */
	frame_header_put(
		header, &(struct frame_header){.type = MSG_PART, .payload_bytes = 100, .fds = 32});
	write_fds(&raw, header, 10, fd, 32);
	raw_close(&raw);
	close(fd);
}

static void test_messages_of_brokers(void **state)
{
	static const enum message_type types[] = {MSG_WELCOME, MSG_OK, MSG_REGISTERED, MSG_CHECK,
		MSG_DONE, MSG_REPORT, MSG_STATUS_REPLY, MSG_JOIN, MSG_BEGIN, MSG_COMMIT, MSG_BYE,
		MSG_DATA};

	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(types); i++) {
		struct message message;
		struct raw raw;

		raw_open(&raw, &one_broker, i % 2 ? ROLE_WORKER : ROLE_TRAINER);
		message_init(&message, types[i], 5);
		/* What their tables want. */
		if (types[i] == MSG_REGISTERED) {
			message.u.registered.state = STREW_GROUP_CURRENT;
		} else if (types[i] == MSG_DONE) {
			message.u.done.state = STREW_GROUP_CURRENT;
		}
		raw_send(&raw, &message);
		raw_expect_error(&raw, -EPROTO, message_name(types[i]));
		raw_expect_end(&raw);
		raw_close(&raw);
	}
}

/* Descriptors for so many connections, of this process and of the broker, which has raised its
 * own. */
static bool has_room(size_t connections)
{
	struct rlimit limit;
	rlim_t wanted = (rlim_t)connections * DESCRIPTORS_EACH + 64;

	assert_int_equal(getrlimit(RLIMIT_NOFILE, &limit), 0);
	if (limit.rlim_max < wanted) {
		print_message("SKIP: %zu connections take %zu descriptors\n", connections,
			(size_t)wanted);
		return false;
	}
	limit.rlim_cur = MAX(limit.rlim_cur, wanted);
	return setrlimit(RLIMIT_NOFILE, &limit) == 0;
}

static void test_many_idle_connections(void **state)
{
	static struct raw raws[IDLE_CONNECTIONS];

	(void)state;
	if (!has_room(IDLE_CONNECTIONS)) {
		skip();
	}
	for (unsigned i = 0; i < IDLE_CONNECTIONS; i++) {
		struct message reply;

		if (i % 3) {
			raw_open_mute(&raws[i], &one_broker);
		} else {
			raw_open(&raws[i], &one_broker, ROLE_WORKER);
		}
		if (i % 50 == 49) {
			broker_status(&one_broker, &reply);
			message_finish(&reply);
		}
	}
	for (unsigned i = 0; i < IDLE_CONNECTIONS; i++) {
		raw_close(&raws[i]);
	}
}

/* On a connection that stands, in the time in which everybody is served. */
static void ask_status(struct raw *raw, struct message *ret_reply)
{
	struct message message;
	struct error err = {0};
	int rc;

	message_init(&message, MSG_STATUS, ++raw->serial);
	raw_send(raw, &message);
	rc = conn_receive_wait(raw->conn, deadline_in_ms(SERVED_MS), ret_reply, &err);
	if (rc != 1) {
		print_error("status: %s\n", err.text);
	}
	assert_int_equal(rc, 1);
	assert_int_equal(ret_reply->type, MSG_STATUS_REPLY);
}

/* Who wants more than to look is told why it may not, and who says nothing is in nobody's way. */
static void be_refused(void)
{
	static const enum role roles[] = {ROLE_WORKER, ROLE_TRAINER};

	for (size_t i = 0; i < ARRAY_LEN(roles); i++) {
		struct message hello;
		struct raw raw;

		raw_open_mute(&raw, &one_broker);
		message_init(&hello, MSG_HELLO, 1);
		hello.u.hello.protocol = PROTOCOL_VERSION;
		hello.u.hello.role = roles[i];
		raw_send(&raw, &hello);
		raw_expect_error(&raw, -E2BIG, "1024 connections are open here already");
		raw_expect_end(&raw);
		raw_close(&raw);
	}
	assert_true(broker_said(&one_broker, "1024 connections are open here already"));
}

/* The places of those who look are taken, first by who says nothing, then by who has said hello:
 * one more is served each time, and at last the first of them are hung up on. */
static void take_all_that_is_left(void)
{
	static struct raw mute[LIMIT_LOOKERS], idle[2 * LIMIT_LOOKERS];
	struct message reply;

	for (unsigned i = 0; i < LIMIT_LOOKERS; i++) {
		raw_open_mute(&mute[i], &one_broker);
	}
	broker_status(&one_broker, &reply);
	message_finish(&reply);
	for (unsigned i = 0; i < 2 * LIMIT_LOOKERS; i++) {
		raw_open(&idle[i], &one_broker, ROLE_OBSERVER);
		broker_status(&one_broker, &reply);
		message_finish(&reply);
	}
	for (unsigned i = 0; i < LIMIT_LOOKERS; i++) {
		raw_expect_end(&mute[i]);
		raw_close(&mute[i]);
	}
	for (unsigned i = 0; i < 2 * LIMIT_LOOKERS; i++) {
		if (i < LIMIT_LOOKERS) {
			raw_expect_end(&idle[i]);
		}
		raw_close(&idle[i]);
	}
}

/* As many as there may be, which all have said hello, so that time ends none of them: who comes
 * then may only look; who is there is served; and a place that is free is given away. */
static void test_as_many_connections_as_there_may_be(void **state)
{
	static struct raw raws[LIMIT_CONNECTIONS];
	struct message reply;

	(void)state;
	if (!has_room(LIMIT_CONNECTIONS + 4 * LIMIT_LOOKERS)) {
		skip();
	}
	for (unsigned i = 0; i < LIMIT_CONNECTIONS; i++) {
		raw_open(&raws[i], &one_broker, (enum role)(1 + i % 3));
		if (i % 100 == 99) {
			ask_status(&raws[0], &reply);
			message_finish(&reply);
		}
	}
	for (unsigned i = 0; i < 20; i++) {
		be_refused();
		broker_status(&one_broker, &reply);
		message_finish(&reply);
		ask_status(&raws[i], &reply);
		message_finish(&reply);
	}
	take_all_that_is_left();
	raw_close(&raws[LIMIT_CONNECTIONS / 2]);
	ask_status(&raws[0], &reply); /* behind the end of the one that has left */
	message_finish(&reply);
	raw_open(&raws[LIMIT_CONNECTIONS / 2], &one_broker, ROLE_WORKER);
	for (unsigned i = 0; i < LIMIT_CONNECTIONS; i++) {
		raw_close(&raws[i]);
	}
}

static const struct rows small[] = {{"w", STREW_F32, 4, 4, 0, 4}};

/* Who has left is there until its memory is unmapped. */
static void register_once_there_is_room(struct raw *raw, const struct draft *draft)
{
	uint64_t deadline = deadline_in_ms(PATIENCE_MS);
	struct message message;
	struct error err = {0};
	enum message_type type;

	do {
		draft_send(raw, draft);
		assert_int_equal(conn_receive_wait(raw->conn, deadline, &message, &err), 1);
		type = message.type;
		message_finish(&message);
	} while (type == MSG_ERROR && !deadline_passed(deadline));
	assert_int_equal(type, MSG_DECLARED);
}

/* As many as may register: the next is told so, and may register when another has left. */
static void test_as_many_sessions_as_there_may_be(void **state)
{
	static struct raw raws[LIMIT_SESSIONS];
	struct message reply;
	struct raw more;
	struct draft draft;

	(void)state;
	if (!has_room(LIMIT_SESSIONS)) {
		skip();
	}
	for (unsigned i = 0; i < LIMIT_SESSIONS; i++) {
		draft_worker(&draft, "many", small, 1);
		draft.reg.replica = i / LIMIT_MEMBERS;
		draft.reg.members = LIMIT_MEMBERS;
		draft.reg.member = i % LIMIT_MEMBERS;
		raw_open(&raws[i], &one_broker, ROLE_WORKER);
		draft_register(&raws[i], &draft);
		draft_finish(&draft);
	}
	broker_status(&one_broker, &reply);
	assert_int_equal(reply.u.status_reply.ngroups, LIMIT_SESSIONS / LIMIT_MEMBERS);
	message_finish(&reply);
	draft_trainer(&draft, "many", 0, small, 1);
	raw_open(&more, &one_broker, ROLE_TRAINER);
	draft_refused(&more, &draft, -E2BIG, "256 workers and trainers are registered here");
	broker_status(&one_broker, &reply);
	message_finish(&reply);
	raw_close(&raws[0]);
	register_once_there_is_room(&more, &draft);
	draft_finish(&draft);
	raw_close(&more);
	for (unsigned i = 1; i < LIMIT_SESSIONS; i++) {
		raw_close(&raws[i]);
	}
}

/* Asks and never reads the answers: bounded, and nobody else's trouble. */
static void test_questions_without_reading(void **state)
{
	struct message message;
	uint8_t *frame;
	struct error err;
	struct raw raw;
	size_t len;
	unsigned sent = 0;

	(void)state;
	raw_open(&raw, &one_broker, ROLE_OBSERVER);
	message_init(&message, MSG_STATUS, 1);
	assert_int_equal(message_encode(&message, &frame, &len, &err), 0);
	for (uint64_t until = deadline_in_ms(1500); !deadline_passed(until);) {
		ssize_t n = send(conn_fd(raw.conn), frame, len, MSG_NOSIGNAL | MSG_DONTWAIT);

		assert_true(n < 0 || (size_t)n == len);
		sent += n > 0;
		if (sent % 500 == 0) {
			struct message reply;

			broker_status(&one_broker, &reply);
			message_finish(&reply);
			if (n < 0) {
				break;
			}
		}
	}
	free(frame);
	raw_close(&raw);
}

#define CASE(name) cmocka_unit_test_teardown(name, one_check)

int main(void)
{
	const struct CMUnitTest tests[] = {
		CASE(test_garbage),
		CASE(test_headers_that_lie),
		CASE(test_truncated_then_silence),
		CASE(test_byte_by_byte),
		CASE(test_wrong_hellos),
		CASE(test_wrong_pages),
		CASE(test_descriptors_that_nobody_asked_for),
		CASE(test_messages_of_brokers),
		CASE(test_many_idle_connections),
		CASE(test_as_many_connections_as_there_may_be),
		CASE(test_as_many_sessions_as_there_may_be),
		CASE(test_questions_without_reading),
		CASE(test_no_hello),
	};

	return test_finish(cmocka_run_group_tests(tests, one_start, one_finish), test_fds_at_start);
}
