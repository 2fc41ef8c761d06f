/* What processes that register may hold together: sealed or not, it counts. */
#include "broker/server.h"
#include "support/test_main.h"
#include <errno.h>
#include <string.h>

#define CLIENTS 300

static struct server server;
static struct client clients[CLIENTS];
static struct error err;

static int set_up(void **state)
{
	(void)state;
	memset(&server, 0, sizeof(server));
	memset(clients, 0, sizeof(clients));
	for (size_t i = 0; i < CLIENTS; i++) {
		clients[i].server = &server;
		clients[i].session.state = SESSION_OPEN;
		clients[i].next = server.clients;
		server.clients = &clients[i];
	}
	return 0;
}

static void fill(size_t i, size_t len_bytes, uint32_t chunks)
{
	clients[i].session.state = SESSION_FILLING;
	clients[i].session.blob.len = len_bytes;
	clients[i].session.chunks = chunks;
}

/* The next one has too much, until one before it is refused, or gone. */
static void too_much(size_t last, const char *word)
{
	assert_true(room_check(&clients[last], &err));
	fill(last + 1, clients[last].session.blob.len, clients[last].session.chunks);
	assert_false(room_check(&clients[last + 1], &err));
	assert_int_equal(err.code, -E2BIG);
	assert_non_null(strstr(err.text, word));
	clients[0].session.failed.code = -EINVAL;
	assert_true(room_check(&clients[last + 1], &err));
	clients[0].session.failed.code = 0;
	clients[0].session.state = SESSION_OPEN;
	assert_true(room_check(&clients[last + 1], &err));
}

static void test_sessions(void **state)
{
	(void)state;
	for (size_t i = 0; i < LIMIT_SESSIONS; i++) {
		fill(i, 0, 0);
		clients[i].session.state = i % 2 ? SESSION_FILLING : SESSION_LIVE;
	}
	clients[LIMIT_SESSIONS - 1].session.state = SESSION_FILLING;
	clients[0].session.state = SESSION_FILLING;
	too_much(LIMIT_SESSIONS - 1, "256 workers and trainers");
}

static void test_bytes(void **state)
{
	size_t n = LIMIT_ALL_PARTS_BYTES / LIMIT_PARTS_BYTES;

	(void)state;
	for (size_t i = 0; i < n; i++) {
		fill(i, LIMIT_PARTS_BYTES, 0);
	}
	too_much(n - 1, "layouts");
}

static void test_chunks(void **state)
{
	size_t n = LIMIT_ALL_CHUNKS / LIMIT_CHUNKS;

	(void)state;
	for (size_t i = 0; i < n; i++) {
		fill(i, 0, LIMIT_CHUNKS);
	}
	/* The descriptors stay where the memory is mapped. */
	clients[1].session.state = SESSION_LIVE;
	too_much(n - 1, "chunks");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup(test_sessions, set_up),
		cmocka_unit_test_setup(test_bytes, set_up),
		cmocka_unit_test_setup(test_chunks, set_up),
	};

	return test_finish(cmocka_run_group_tests(tests, NULL, NULL), test_fds_at_start);
}
