/* The seal on frames between brokers: known answers, and that nothing else holds than what was
 * sent. */
#include "base/clock.h"
#include "support/test_main.h"
#include "wire/key_file.h"
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

struct link {
	struct seal_key key;
	uint8_t nonces[2][NONCE_BYTES];
	struct conn_guard *joiner, *lead;
};

static void link_guards(struct link *link)
{
	assert_int_equal(seal_create(&link->key, SEAL_JOINER, link->nonces[0], link->nonces[1],
				 &link->joiner),
		0);
	assert_int_equal(
		seal_create(&link->key, SEAL_LEAD, link->nonces[0], link->nonces[1], &link->lead),
		0);
}

static void link_open(struct link *link)
{
	uint8_t file[SEAL_FILE_BYTES_MIN];

	test_random_fill(file, sizeof(file));
	assert_int_equal(seal_key_make(file, sizeof(file), &link->key), 0);
	test_random_fill(link->nonces, sizeof(link->nonces));
	link_guards(link);
}

static void link_close(struct link *link)
{
	link->joiner->destroy(link->joiner);
	link->lead->destroy(link->lead);
}

static void assert_hex(const uint8_t *bytes, size_t n, const char *hex)
{
	char text[2 * CONN_TAG_BYTES + 1];

	for (size_t i = 0; i < n; i++) {
		snprintf(text + 2 * i, 3, "%02x", bytes[i]);
	}
	assert_string_equal(text, hex);
}

/* By Python's hashlib.blake2b() from the tables of docs/protocol.md. */
static void test_known_answers(void **state)
{
	static const char *const joiner_tags[] = {
		"502744a0e6f0a18ca62f58259ee7d0053bdadeae0497b60a2646e9c57a27e9cd",
		"b06c4086078788393df762b94e6076e3eafec210f79034207ca01a63d6cc4c56"};
	static const char *const lead_tags[] = {
		"129d957a6dc58077507472c5e7c224b59d51624d1e301c298eb477739da9e6a4",
		"7646823a91c2f81b114884352902dfb22a84fb2aba6c260e58f7f32d8a4dc1ba"};
	uint8_t file[40], header[FRAME_HEADER_BYTES], token[TOKEN_BYTES], tag[CONN_TAG_BYTES];
	struct link link;

	(void)state;
	for (unsigned i = 0; i < sizeof(file); i++) {
		file[i] = (uint8_t)i;
	}
	for (unsigned i = 0; i < NONCE_BYTES; i++) {
		link.nonces[0][i] = (uint8_t)(0xa0 + i % 16);
		link.nonces[1][i] = (uint8_t)(7 * i);
	}
	for (unsigned i = 0; i < sizeof(header); i++) {
		header[i] = (uint8_t)(100 + i);
	}
	for (unsigned i = 0; i < sizeof(token); i++) {
		token[i] = (uint8_t)i;
	}
	assert_int_equal(seal_key_make(file, sizeof(file), &link.key), 0);
	assert_hex(link.key.bytes, sizeof(link.key.bytes),
		"b9ffe725e5b6d2ea1b622779024b27cbbed9067fb44e2cce236df9fdfa0d6abb");
	link_guards(&link);
	for (unsigned i = 0; i < 2; i++) {
		link.joiner->put(link.joiner, header, (const uint8_t *)"payload", 7, tag);
		assert_hex(tag, sizeof(tag), joiner_tags[i]);
		link.lead->put(link.lead, header, (const uint8_t *)"payload", 7, tag);
		assert_hex(tag, sizeof(tag), lead_tags[i]);
	}
	seal_token(link.joiner, 0x1122334455667788, 5, token, tag);
	assert_hex(tag, TOKEN_BYTES, "b85ad16ee8943af82d840e639177a48e");
	seal_token(link.lead, 0x1122334455667788, 5, token, tag);
	assert_hex(tag, TOKEN_BYTES, "b85ad16ee8943af82d840e639177a48e");
	assert_false(seal_token_equal(tag, token));
	seal_token(NULL, 1, 1, token, tag);
	assert_true(seal_token_equal(tag, token));
	link_close(&link);
	seal_key_wipe(&link.key);
	for (unsigned i = 0; i < sizeof(link.key.bytes); i++) {
		assert_int_equal(link.key.bytes[i], 0);
	}
}

/* A frame with its tag. */
struct sealed {
	uint8_t bytes[FRAME_HEADER_BYTES + 200 + CONN_TAG_BYTES];
	size_t payload;
};

static void seal(struct conn_guard *guard, struct sealed *ret_sealed)
{
	ret_sealed->payload = test_random_below(201);
	test_random_fill(ret_sealed->bytes, sizeof(ret_sealed->bytes));
	guard->put(guard, ret_sealed->bytes, ret_sealed->bytes + FRAME_HEADER_BYTES,
		ret_sealed->payload, ret_sealed->bytes + FRAME_HEADER_BYTES + ret_sealed->payload);
}

static int check(struct conn_guard *guard, const struct sealed *sealed, const char *says)
{
	struct error err = {0};
	int rc = guard->check(guard, sealed->bytes, sealed->bytes + FRAME_HEADER_BYTES,
		sealed->payload, sealed->bytes + FRAME_HEADER_BYTES + sealed->payload, &err);

	if (rc) {
		assert_int_equal(rc, -EPERM);
		assert_non_null(strstr(err.text, says));
	}
	return rc;
}

static void test_every_byte(void **state)
{
	struct sealed sealed;
	struct link link;

	(void)state;
	link_open(&link);
	for (unsigned i = 0; i < 20; i++) {
		const char *says = i ? "changed, repeated or left out" : "another key";

		seal(link.joiner, &sealed);
		for (size_t at = 0; at < FRAME_HEADER_BYTES + sealed.payload + CONN_TAG_BYTES;
			at++) {
			uint8_t flip = (uint8_t)(1 + test_random_below(255));

			sealed.bytes[at] ^= flip;
			assert_int_equal(check(link.lead, &sealed, says), -EPERM);
			sealed.bytes[at] ^= flip;
		}
		assert_int_equal(check(link.lead, &sealed, ""), 0);
	}
	link_close(&link);
}

static void test_other_places(void **state)
{
	struct sealed first, second, answer, other;
	struct link link, again;

	(void)state;
	link_open(&link);
	seal(link.joiner, &first);
	seal(link.joiner, &second);
	seal(link.lead, &answer);
	assert_int_equal(check(link.lead, &second, ""), -EPERM); /* one was left out */
	assert_int_equal(check(link.lead, &answer, ""), -EPERM); /* turned round */
	assert_int_equal(check(link.lead, &first, ""), 0);
	assert_int_equal(check(link.lead, &first, ""), -EPERM); /* repeated */
	assert_int_equal(check(link.lead, &second, ""), 0);
	assert_int_equal(check(link.joiner, &first, ""), -EPERM);
	assert_int_equal(check(link.joiner, &answer, ""), 0);
	/* Another connection of the same key differs by one bit of one nonce; or by the key. */
	for (unsigned i = 0; i < 3; i++) {
		again = link;
		if (i < 2) {
			again.nonces[i][test_random_below(NONCE_BYTES)] ^= 1;
		} else {
			again.key.bytes[test_random_below(SEAL_KEY_BYTES)] ^= 0x80;
		}
		link_guards(&again);
		assert_int_equal(check(again.lead, &first, "another key"), -EPERM);
		seal(again.joiner, &other);
		assert_int_equal(check(again.lead, &other, ""), 0);
		link_close(&again);
	}
	/* Both sides with one nonce, as where a nonce is turned round. */
	again = link;
	memcpy(again.nonces[1], again.nonces[0], NONCE_BYTES);
	link_guards(&again);
	seal(again.joiner, &other);
	assert_int_equal(check(again.joiner, &other, ""), -EPERM);
	link_close(&again);
	link_close(&link);
}

static void open_conn(struct conn_guard *guard, struct conn **ret_conn, int *ret_raw)
{
	int fds[2];

	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
	assert_int_equal(conn_create(fds[0], false, ret_conn), 0);
	assert_null(conn_guard(*ret_conn));
	conn_set_guard(*ret_conn, guard);
	*ret_raw = fds[1];
}

static size_t caught(struct conn *conn, int raw, uint64_t value, uint8_t bytes[256])
{
	struct message message;
	struct error err;
	ssize_t n;

	message_init(&message, MSG_JOINED, value);
	message.u.joined.broker_id = value;
	assert_int_equal(conn_send(conn, &message, &err), 0);
	n = recv(raw, bytes, 256, MSG_DONTWAIT);
	assert_true(n > (ssize_t)(FRAME_HEADER_BYTES + CONN_TAG_BYTES));
	return (size_t)n;
}

/* Whole frames out of single bytes, which are no sign of life before they are whole. */
static void test_frames_through_connections(void **state)
{
	int joiner_raw, lead_raw;
	struct conn *joiner, *lead;
	struct message message;
	uint64_t heard_ns;
	struct link link;
	struct error err;

	(void)state;
	link_open(&link);
	open_conn(link.joiner, &joiner, &joiner_raw);
	open_conn(link.lead, &lead, &lead_raw);
	for (unsigned i = 0; i < 50; i++) {
		uint64_t value = test_random();
		uint8_t bytes[256];
		size_t n = caught(joiner, joiner_raw, value, bytes);

		heard_ns = conn_heard_ns(lead);
		for (size_t at = 0; at < n; at++) {
			assert_int_equal(conn_receive(lead, &message, &err), 0);
			assert_int_equal(conn_heard_ns(lead), heard_ns);
			assert_int_equal(send(lead_raw, bytes + at, 1, MSG_NOSIGNAL), 1);
		}
		assert_int_equal(conn_receive(lead, &message, &err), 1);
		assert_true(conn_heard_ns(lead) > heard_ns);
		assert_int_equal(message.u.joined.broker_id, value);
		message_finish(&message);
	}
	conn_destroy(joiner);
	conn_destroy(lead);
	close(joiner_raw);
	close(lead_raw);
}

/* What the lead makes of the joiner's first frame, when at most n bytes of it come, changed by flip
 * at `at`, and then the end. Returns the frame's length. */
static size_t first_frame(
	struct link *link, size_t n, size_t at, uint8_t flip, int *ret_rc, struct error *err)
{
	int joiner_raw, lead_raw;
	struct conn *joiner, *lead;
	struct message message;
	uint8_t bytes[256];
	size_t whole;

	link_guards(link);
	open_conn(link->joiner, &joiner, &joiner_raw);
	open_conn(link->lead, &lead, &lead_raw);
	whole = caught(joiner, joiner_raw, 7, bytes);
	bytes[at] ^= flip;
	n = n < whole ? n : whole;
	assert_int_equal(send(lead_raw, bytes, n, MSG_NOSIGNAL), n);
	shutdown(lead_raw, SHUT_WR);
	*ret_rc = conn_receive(lead, &message, err);
	if (*ret_rc == 1) {
		message_finish(&message);
	}
	conn_destroy(joiner);
	conn_destroy(lead);
	close(joiner_raw);
	close(lead_raw);
	return whole;
}

static void test_changed_and_cut_frames(void **state)
{
	struct link link;
	struct error err;
	size_t whole;
	int rc;

	(void)state;
	link_open(&link);
	link_close(&link);
	whole = first_frame(&link, 256, 0, 0, &rc, &err);
	assert_int_equal(rc, 1);
	for (size_t at = 0; at < whole; at++) {
		for (unsigned bit = 0; bit < 8; bit++) {
			first_frame(&link, 256, at, (uint8_t)(1u << bit), &rc, &err);
			/* A longer frame is waited for, and does not come. */
			if (at < 8 || at >= 12 || rc != -ECONNRESET) {
				assert_int_equal(rc, -EPERM);
			}
		}
		first_frame(&link, at, 0, 0, &rc, &err);
		assert_int_equal(rc, -ECONNRESET);
		assert_int_equal(at > 0, strstr(err.text, "in the middle of a frame") != NULL);
	}
}

static char dir[64];

static void write_file(const char *name, size_t len, mode_t mode, char path[96])
{
	uint8_t bytes[SEAL_FILE_BYTES_MAX + 1];
	int fd;

	snprintf(path, 96, "%s/%s", dir, name);
	for (size_t i = 0; i < sizeof(bytes); i++) {
		bytes[i] = (uint8_t)(i * 5);
	}
	fd = open(path, O_CREAT | O_TRUNC | O_WRONLY | O_CLOEXEC, 0600);
	assert_true(fd >= 0);
	assert_int_equal(write(fd, bytes, len), len);
	assert_int_equal(fchmod(fd, mode), 0);
	close(fd);
}

static void refused(const char *path, int code, const char *word)
{
	struct seal_key key = {{42}}, before = key;
	struct error err = {0};

	assert_int_equal(key_file_read(path, &key, &err), code);
	assert_non_null(strstr(err.text, word));
	assert_non_null(strstr(err.text, path));
	assert_memory_equal(&key, &before, sizeof(key));
}

static void test_key_files(void **state)
{
	static const mode_t open_modes[] = {0640, 0620, 0610, 0604, 0602, 0601, 0666, 0777};
	struct seal_key key, other;
	char path[96], second[96];
	struct error err;

	(void)state;
	strcpy(dir, "/tmp/strew-key-XXXXXX");
	assert_non_null(mkdtemp(dir));
	write_file("key", SEAL_FILE_BYTES_MIN, 0600, path);
	assert_int_equal(key_file_read(path, &key, &err), 0);
	snprintf(second, sizeof(second), "%s/link", dir);
	assert_int_equal(symlink(path, second), 0);
	assert_int_equal(key_file_read(second, &other, &err), 0);
	assert_memory_equal(&key, &other, sizeof(key));
	unlink(second);
	write_file("key", SEAL_FILE_BYTES_MAX, 0400, path);
	assert_int_equal(key_file_read(path, &other, &err), 0);
	assert_memory_not_equal(&key, &other, sizeof(key));
	write_file("key", SEAL_FILE_BYTES_MIN - 1, 0600, path);
	refused(path, -EINVAL, "fewer than 32 bytes");
	write_file("key", 0, 0600, path);
	refused(path, -EINVAL, "fewer than 32 bytes");
	write_file("key", SEAL_FILE_BYTES_MAX + 1, 0600, path);
	refused(path, -EINVAL, "more than 256 bytes");
	for (size_t i = 0; i < sizeof(open_modes) / sizeof(open_modes[0]); i++) {
		write_file("key", SEAL_FILE_BYTES_MIN, open_modes[i], path);
		refused(path, -EPERM, "chmod 600");
	}
	if (geteuid() == 0) {
		write_file("key", SEAL_FILE_BYTES_MIN, 0600, path);
		assert_int_equal(chown(path, 4711, 4711), 0);
		refused(path, -EPERM, "uid 4711");
	}
	unlink(path);
	refused(path, -ENOENT, "No such file");
	assert_int_equal(mkfifo(path, 0600), 0);
	refused(path, -EPERM, "no regular file"); /* and does not wait for a writer */
	unlink(path);
	refused(dir, -EPERM, "no regular file");
	rmdir(dir);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_known_answers),
		cmocka_unit_test(test_every_byte),
		cmocka_unit_test(test_other_places),
		cmocka_unit_test(test_frames_through_connections),
		cmocka_unit_test(test_changed_and_cut_frames),
		cmocka_unit_test(test_key_files),
	};

	return TEST_RUN(tests);
}
