/*
 * The key of brokers, on real ones: who may join, and what is altered on the way between two of
 * them. Peers that are played know the key (wire/seal.h) or what they have heard.
 */
#include "base/clock.h"
#include "base/util.h"
#include "broker/joiner.h"
#include "broker/peers.h"
#include "ipc/socket.h"
#include "wire/key_file.h"
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static const struct rows whole[] = {{"w", STREW_F32, 64, 512, 0, 64}};
static char dir[] = "/tmp/strew-keys-XXXXXX";
static char right[64], wrong[64];
static struct seal_key key;

static void write_key(char path[64], const char *name)
{
	uint8_t bytes[48];
	int fd;

	snprintf(path, 64, "%s/%s", dir, name);
	test_random_fill(bytes, sizeof(bytes));
	fd = open(path, O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC, 0600);
	assert_true(fd >= 0);
	assert_int_equal(write(fd, bytes, sizeof(bytes)), sizeof(bytes));
	close(fd);
}

static int make_keys(void **state)
{
	struct error err;

	(void)state;
	assert_non_null(mkdtemp(dir));
	write_key(right, "right");
	write_key(wrong, "wrong");
	assert_int_equal(key_file_read(right, &key, &err), 0);
	return 0;
}

static int remove_keys(void **state)
{
	(void)state;
	unlink(right);
	unlink(wrong);
	rmdir(dir);
	return 0;
}

static void wait_said(const struct broker *broker, const char *text)
{
	uint64_t deadline = deadline_in_ms(PATIENCE_MS);

	while (!broker_said(broker, text)) {
		if (deadline_passed(deadline)) {
			char *log = read_text(broker->log);

			print_error("\"%s\" was not said: %s\n", text, log ? log : "");
			free(log);
			fail();
		}
		sleep_ms(10);
	}
}

static void lead_start(struct broker *lead, char address[32], const char *file)
{
	memset(lead, 0, sizeof(*lead));
	free_address(address);
	broker_start(lead, file ? (const char *[]){"--listen", address, "--key-file", file, NULL}
				: (const char *[]){"--listen", address, NULL});
}

/* An update reaches a worker at the broker that joined. */
static void commits(const struct broker *lead, const struct broker *joiner, uint64_t version)
{
	struct strew_trainer_options trained = {.model = "m"};
	struct strew_agent_options served = {.model = "m", .apply = STREW_APPLY_STAGED};
	struct trainer trainer;
	struct worker worker;

	broker_wait_brokers(lead, 2);
	assert_int_equal(worker_start(&worker, joiner, served, whole, 1), 0);
	assert_int_equal(trainer_start(&trainer, lead, trained, whole, 1), 0);
	trainer_commits(&trainer, version);
	worker_holds(&worker, version);
	trainer_stop(&trainer);
	worker_stop(&worker);
}

static void test_the_right_key(void **state)
{
	struct broker lead, joiner = {0};
	char address[32];

	(void)state;
	lead_start(&lead, address, right);
	broker_start(&joiner, (const char *[]){"--join", address, "--key-file", right, NULL});
	commits(&lead, &joiner, 1);
	broker_finish(&joiner);
	broker_finish(&lead);
}

/* Who has another key or none is told so, and the lead names where it came from. */
static void test_keys_that_differ(void **state)
{
	/* Who has a key takes nobody's word for it that the lead is there. */
	static const struct {
		const char *lead, *joiner, *lead_says, *joiner_says;
		int code;
	} cases[] = {
		{right, wrong, "it has another key", "it has another key", 4},
		{right, NULL, "has a key and the broker shows none", "this lead has a key", 1},
		{NULL, right, "has no key and the broker has one", "it shows no key", 4},
	};

	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
		char out[RUN_TEXT_BYTES], err[RUN_TEXT_BYTES], address[32], socket[96];
		const char *args[] = {"--backend", "host", "--socket", socket, "--join", address,
			"--join-timeout", "1", cases[i].joiner ? "--key-file" : NULL,
			cases[i].joiner, NULL};
		struct broker lead;

		lead_start(&lead, address, cases[i].lead);
		snprintf(socket, sizeof(socket), "%s/socket", dir);
		assert_int_equal(strewd_run(args, out, err), cases[i].code);
		assert_non_null(strstr(err, cases[i].joiner_says));
		assert_non_null(strstr(err, address));
		assert_non_null(strstr(err, "--key-file"));
		wait_said(&lead, cases[i].lead_says);
		wait_said(&lead, "refused the broker at 127.0.0.1:");
		broker_check(&lead);
		broker_finish(&lead);
	}
}

/* Both nonces, with the lead's answer; the connection is sealed if there is a key to seal it with.
 */
static void greet(struct raw *raw, const char *address, const struct seal_key *with)
{
	struct conn_guard *guard;
	struct message message;
	uint8_t nonce[NONCE_BYTES];

	tcp_open(raw, address);
	test_random_fill(nonce, sizeof(nonce));
	message_init(&message, MSG_NONCE, 0);
	memcpy(message.u.nonce.nonce, nonce, sizeof(nonce));
	raw_send(raw, &message);
	raw_expect(raw, MSG_NONCE, &message);
	assert_memory_not_equal(message.u.nonce.nonce, nonce, sizeof(nonce));
	if (with) {
		assert_int_equal(
			seal_create(with, SEAL_JOINER, nonce, message.u.nonce.nonce, &guard), 0);
		conn_set_guard(raw->conn, guard);
	}
	message_finish(&message);
}

static void join(struct joiner *joiner)
{
	struct message message;

	joiner->join = joiner_join();
	message_init(&message, MSG_JOIN, 1);
	message.u.join = joiner->join;
	raw_send(&joiner->raw, &message);
}

static void expect_end_of_any_kind(struct raw *raw)
{
	struct message message;
	struct error err;
	int rc;

	while ((rc = conn_receive_wait(raw->conn, deadline_in_ms(PATIENCE_MS), &message, &err)) ==
		1) {
		message_finish(&message);
	}
	assert_true(rc == -ECONNRESET || rc == -EPERM || rc == -EPROTO);
	raw_close(raw);
}

/* The nonce is no secret: what was heard of another connection proves nothing in a new one. */
static void test_a_join_that_was_recorded(void **state)
{
	struct raw tap = {.page.fd = -1}, again;
	struct conn_guard *guard;
	uint8_t nonces[2][NONCE_BYTES], frame[1024];
	struct message message;
	struct broker lead;
	struct error err;
	char address[32];
	int pair[2];
	ssize_t n;

	(void)state;
	lead_start(&lead, address, right);
	/* A join as one who knows the key says it, in another connection. */
	test_random_fill(nonces, sizeof(nonces));
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
	assert_int_equal(conn_create(pair[0], false, &tap.conn), 0);
	assert_int_equal(seal_create(&key, SEAL_JOINER, nonces[0], nonces[1], &guard), 0);
	conn_set_guard(tap.conn, guard);
	message_init(&message, MSG_JOIN, 1);
	message.u.join = joiner_join();
	raw_send(&tap, &message);
	n = recv(pair[1], frame, sizeof(frame), MSG_DONTWAIT);
	assert_true(n > 0);
	/* The joiner's nonce is repeated as well; the lead's is new. */
	tcp_open(&again, address);
	message_init(&message, MSG_NONCE, 0);
	memcpy(message.u.nonce.nonce, nonces[0], NONCE_BYTES);
	raw_send(&again, &message);
	raw_expect(&again, MSG_NONCE, &message);
	assert_memory_not_equal(message.u.nonce.nonce, nonces[1], NONCE_BYTES);
	message_finish(&message);
	assert_int_equal(send(conn_fd(again.conn), frame, (size_t)n, MSG_NOSIGNAL), n);
	expect_end_of_any_kind(&again);
	wait_said(&lead, "it has another key");
	/* A second nonce, a join without a seal after it, and one with no nonce at all. */
	greet(&again, address, &key);
	message_init(&message, MSG_NONCE, 0);
	raw_send(&again, &message);
	expect_end_of_any_kind(&again);
	greet(&again, address, NULL);
	message_init(&message, MSG_JOIN, 1);
	message.u.join = joiner_join();
	raw_send(&again, &message);
	/* Its tag is awaited: nothing is answered before. */
	assert_int_equal(
		conn_receive_wait(again.conn, deadline_in_ms(200), &message, &err), -ETIMEDOUT);
	raw_close(&again);
	tcp_open(&again, address);
	message_init(&message, MSG_JOIN, 1);
	message.u.join = joiner_join();
	raw_send(&again, &message);
	raw_expect_error(&again, -EPERM, "--key-file");
	expect_end_of_any_kind(&again);
	assert_false(broker_said(&lead, " joined"));
	raw_close(&tap);
	close(pair[1]);
	broker_check(&lead);
	broker_finish(&lead);
}

/* The lead says in clear what the epoch's token is; a data connection needs the key as well. */
static void test_data_connections(void **state)
{
	struct message message;
	struct joiner joiner;
	struct broker lead;
	struct raw data;
	struct msg_epoch epoch;
	char address[32];
	uint64_t header[3];
	struct pollfd pollfd = {.events = POLLIN};

	(void)state;
	lead_start(&lead, address, right);
	greet(&joiner.raw, address, &key);
	join(&joiner);
	joiner_expect(&joiner, MSG_JOINED, &message);
	message_finish(&message);
	joiner_epoch(&joiner);
	joiner_data(&data, address, &joiner.epoch, 0);
	raw_expect_error(&data, -EPROTO, "no epoch waits for");
	raw_close(&data);
	epoch = joiner.epoch;
	seal_token(conn_guard(joiner.raw.conn), epoch.epoch, epoch.rank, joiner.epoch.token,
		epoch.token);
	joiner_data(&data, address, &epoch, 1);
	raw_expect_error(&data, -EPROTO, "no epoch waits for");
	raw_close(&data);
	joiner_data(&data, address, &epoch, 0);
	pollfd.fd = conn_fd(data.conn);
	assert_int_equal(poll(&pollfd, 1, PATIENCE_MS), 1);
	assert_int_equal(recv(pollfd.fd, header, sizeof(header), MSG_WAITALL), sizeof(header));
	assert_int_equal(header[0], epoch.epoch);
	joiner_ready(&joiner, epoch.epoch);
	broker_wait_brokers(&lead, 2);
	raw_close(&data);
	raw_close(&joiner.raw);
	broker_finish(&lead);
}

/* Connections that say nothing, or a nonce and no more, are in nobody's way who has the key. */
static void test_connections_that_do_not_join(void **state)
{
	struct raw idle[2 * LIMIT_BROKERS];
	struct pollfd pollfd = {.events = POLLIN};
	struct message message;
	struct joiner joiner;
	struct broker lead;
	struct error err;
	char address[32];

	(void)state;
	lead_start(&lead, address, right);
	for (size_t i = 0; i < ARRAY_LEN(idle); i++) {
		tcp_open(&idle[i], address);
	}
	greet(&joiner.raw, address, &key);
	/* The first has made room, unlike the last; a nonce proves nothing. */
	pollfd.fd = conn_fd(idle[0].conn);
	assert_int_equal(poll(&pollfd, 1, PATIENCE_MS), 1);
	assert_int_equal(conn_receive(idle[0].conn, &message, &err), -ECONNRESET);
	pollfd.fd = conn_fd(idle[ARRAY_LEN(idle) - 1].conn);
	assert_int_equal(poll(&pollfd, 1, 0), 0);
	join(&joiner);
	joiner_expect(&joiner, MSG_JOINED, &message);
	message_finish(&message);
	for (size_t i = 0; i < ARRAY_LEN(idle); i++) {
		raw_close(&idle[i]);
		tcp_open(&idle[i], address);
	}
	/* Who has joined stays. */
	joiner_epoch(&joiner);
	for (size_t i = 0; i < ARRAY_LEN(idle); i++) {
		raw_close(&idle[i]);
	}
	raw_close(&joiner.raw);
	broker_finish(&lead);
}

/* Before it has joined nobody makes the lead wait for more than a word or two. */
static void test_a_long_first_frame(void **state)
{
	uint8_t bytes[LIMIT_FIRST_FRAME_BYTES];
	struct message message = {
		.type = MSG_PART, .u.part = {PART_MANIFEST, 0, bytes, sizeof(bytes)}};
	struct broker lead;
	struct raw raw;
	char address[32];

	(void)state;
	test_random_fill(bytes, sizeof(bytes));
	lead_start(&lead, address, right);
	tcp_open(&raw, address);
	raw_send(&raw, &message);
	expect_end_of_any_kind(&raw);
	greet(&raw, address, &key);
	raw_send(&raw, &message);
	expect_end_of_any_kind(&raw);
	wait_said(&lead, "a frame's header was changed");
	broker_check(&lead);
	broker_finish(&lead);
}

/* A stranger at the lead's address who knows nothing and sends back what he hears. Nobody is taken
 * in, and nobody gives up for it: the lead comes back, and is joined. */
static void test_a_stranger_who_turns_all_round(void **state)
{
	struct pollfd pollfd = {.events = POLLIN};
	struct broker lead = {0}, joiner = {0};
	char address[32];
	uint16_t port;
	struct error err;
	int ready;

	(void)state;
	free_address(address);
	assert_int_equal(socket_listen_tcp(address, false, &pollfd.fd, &port, &err), 0);
	broker_launch(
		&joiner, (const char *[]){"--join", address, "--key-file", right, NULL}, &ready);
	for (unsigned i = 0; i < 2; i++) {
		struct pollfd in = {.fd = -1, .events = POLLIN};
		uint8_t bytes[1024];
		ssize_t n;

		assert_int_equal(poll(&pollfd, 1, PATIENCE_MS), 1);
		assert_int_equal(socket_accept(pollfd.fd, &in.fd), 0);
		do {
			assert_int_equal(poll(&in, 1, PATIENCE_MS), 1);
			n = recv(in.fd, bytes, sizeof(bytes), 0);
			send(in.fd, bytes, n > 0 ? (size_t)n : 0, MSG_NOSIGNAL);
		} while (n > 0);
		close(in.fd);
	}
	wait_said(&joiner, "it has another key");
	assert_false(broker_said(&joiner, "joined the lead"));
	close(pollfd.fd);
	broker_start(&lead, (const char *[]){"--listen", address, "--key-file", right, NULL});
	commits(&lead, &joiner, 1);
	close(ready);
	broker_finish(&joiner);
	broker_finish(&lead);
}

/* The same where he speaks strew, without the key. */
static void test_a_stranger_without_the_key(void **state)
{
	struct broker stranger, lead = {0}, joiner = {0};
	char address[32];
	int ready;

	(void)state;
	lead_start(&stranger, address, NULL);
	broker_launch(
		&joiner, (const char *[]){"--join", address, "--key-file", right, NULL}, &ready);
	wait_said(&joiner, "it shows no key");
	broker_finish(&stranger);
	broker_start(&lead, (const char *[]){"--listen", address, "--key-file", right, NULL});
	commits(&lead, &joiner, 1);
	close(ready);
	broker_finish(&joiner);
	broker_finish(&lead);
}

/* What stands between two brokers, and is told to do something to the next bytes of one way. */
enum deed { PASS, FLIP, REPEAT, DROP };

struct between {
	int listener;
	char address[32], lead[32];
	atomic_int deed[2]; /* 0: to the lead, 1: from it */
	atomic_bool stop;
	pthread_t thread;
};

#define PIPES 32

static void pass(struct between *between, int from, int to, unsigned way)
{
	uint8_t bytes[65536];
	ssize_t n = recv(from, bytes, sizeof(bytes), MSG_DONTWAIT);
	int deed;

	if (n <= 0) {
		if (n == 0 || (errno != EAGAIN && errno != EINTR)) {
			shutdown(to, SHUT_RDWR);
			shutdown(from, SHUT_RDWR);
		}
		return;
	}
	deed = atomic_exchange(&between->deed[way], PASS);
	if (deed == DROP) {
		return;
	}
	if (deed == FLIP) {
		/* Not the length: what is longer is waited for. */
		size_t at = 12 + (size_t)test_random_below((uint64_t)n - 12);

		bytes[at] ^= (uint8_t)(1 + test_random_below(255));
	}
	for (unsigned i = 0; i < (deed == REPEAT ? 2u : 1u); i++) {
		send(to, bytes, (size_t)n, MSG_NOSIGNAL);
	}
}

/* The connection of each pipe to the lead is made when its first end is taken. */
static void *stands_between(void *data)
{
	struct between *between = data;
	struct pollfd polls[1 + 2 * PIPES] = {{.fd = between->listener, .events = POLLIN}};
	unsigned pipes = 0;

	while (!atomic_load(&between->stop)) {
		struct error err;
		int fd;

		poll(polls, 1 + 2 * pipes, 20);
		for (unsigned i = 0; i < 2 * pipes; i++) {
			if (polls[1 + i].revents) {
				pass(between, polls[1 + i].fd, polls[1 + (i ^ 1)].fd, i & 1);
			}
			if (polls[1 + i].revents & POLLHUP) {
				polls[1 + i].events = 0;
				polls[1 + i].fd = ~polls[1 + i].fd; /* poll(2) passes it over */
			}
		}
		if (pipes < PIPES && socket_accept(between->listener, &fd) == 0) {
			struct pollfd out = {.events = POLLOUT};

			if (socket_connect_tcp(between->lead, false, &out.fd, &err)) {
				close(fd);
				continue;
			}
			poll(&out, 1, PATIENCE_MS);
			polls[1 + 2 * pipes] = (struct pollfd){.fd = fd, .events = POLLIN};
			polls[2 + 2 * pipes] = (struct pollfd){.fd = out.fd, .events = POLLIN};
			pipes++;
		}
	}
	for (unsigned i = 0; i < 2 * pipes; i++) {
		int fd = polls[1 + i].fd;

		close(fd < 0 ? ~fd : fd);
	}
	return NULL;
}

static void test_bytes_that_are_altered(void **state)
{
	static const char *const deeds[] = {"", "flipped", "repeated", "left out"};

	(void)state;
	for (unsigned way = 0; way < 2; way++) {
		struct broker lead, joiner = {0};
		struct between between = {0};
		struct error err;
		uint16_t port;

		lead_start(&lead, between.lead, right);
		assert_int_equal(
			socket_listen_tcp("127.0.0.1:0", false, &between.listener, &port, &err), 0);
		snprintf(between.address, sizeof(between.address), "127.0.0.1:%u", port);
		assert_int_equal(
			pthread_create(&between.thread, NULL, stands_between, &between), 0);
		broker_start(&joiner,
			(const char *[]){"--join", between.address, "--key-file", right, NULL});
		commits(&lead, &joiner, 1);
		for (int deed = FLIP; deed <= DROP; deed++) {
			struct broker *hears = way ? &joiner : &lead;
			char *log = read_text(hears->log);
			size_t before = strlen(log);
			uint64_t deadline = deadline_in_ms(PATIENCE_MS);
			const char *said = NULL;

			free(log);
			atomic_store(&between.deed[way], deed);
			/* The next words are the alive of each; then the seal is broken. */
			while (!said) {
				log = read_text(hears->log);
				said = strstr(log + before, "on its way: find out what alters");
				free(log);
				if (!said && deadline_passed(deadline)) {
					print_error("%s bytes were taken\n", deeds[deed]);
					fail();
				}
				sleep_ms(20);
			}
			/* It has joined again, by itself, and all is well. */
			commits(&lead, &joiner, (uint64_t)deed + 1);
		}
		atomic_store(&between.stop, true);
		pthread_join(between.thread, NULL);
		close(between.listener);
		broker_finish(&joiner);
		broker_finish(&lead);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_the_right_key),
		cmocka_unit_test(test_keys_that_differ),
		cmocka_unit_test(test_a_join_that_was_recorded),
		cmocka_unit_test(test_data_connections),
		cmocka_unit_test(test_connections_that_do_not_join),
		cmocka_unit_test(test_a_long_first_frame),
		cmocka_unit_test(test_a_stranger_who_turns_all_round),
		cmocka_unit_test(test_a_stranger_without_the_key),
		cmocka_unit_test(test_bytes_that_are_altered),
	};

	return test_finish(
		cmocka_run_group_tests(tests, make_keys, remove_keys), test_fds_at_start);
}
