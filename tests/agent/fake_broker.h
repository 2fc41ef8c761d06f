/*
 * A broker that a test plays: a real Unix socket, served by a thread that runs
 * the test's script after the handshake. Its process can be a child that only
 * sleeps, so that a test can end it. A broken expectation aborts the program.
 */
#ifndef TESTS_FAKE_BROKER_H
#define TESTS_FAKE_BROKER_H

#include "ipc/blob.h"
#include "ipc/page.h"
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

#define EXPECT(condition)                                                                          \
	do {                                                                                       \
		if (!(condition)) {                                                                \
			fprintf(stderr, "%s:%d: expected %s\n", __FILE__, __LINE__, #condition);   \
			abort();                                                                   \
		}                                                                                  \
	} while (0)

#define FAKE_ALLOCATIONS 8

struct fake {
	/* set by the test before fake_start() */
	void (*script)(struct fake *fake);
	void (*greeting)(struct fake *fake, struct message *hello); /* instead of a welcome */
	const char *backend;					    /* NULL: "host" */
	uint64_t pid_namespace;					    /* 0: the true one */
	bool mortal;						    /* its process is a child */
	const char *at; /* where it serves; NULL: in a directory of its own */
	int step;	/* for the script's own use */
	/* the fake's */
	char directory[64], path[108];
	int listener;
	pthread_t thread;
	struct conn *conn;
	struct page theirs, ours;
	pid_t child;
	/* what was registered or declared */
	struct msg_register reg;
	struct msg_trainer trainer;
	struct msg_allocation allocations[FAKE_ALLOCATIONS];
	int fds[FAKE_ALLOCATIONS];
	size_t nallocations;
	struct blob blob;
	uint64_t seal_serial;
};

void fake_start(struct fake *fake);
void fake_stop(struct fake *fake);
void fake_kill(struct fake *fake); /* ends the child of a mortal one */

/* For scripts. */
void fake_expect(struct fake *fake, enum message_type type, struct message *ret_message);
void fake_expect_end(struct fake *fake);
void fake_send(struct fake *fake, struct message *message);
void fake_ok(struct fake *fake, uint64_t serial);
void fake_error(struct fake *fake, uint64_t serial, int code, const char *text);
void fake_take_share(struct fake *fake, enum message_type opening); /* up to and with the seal */
void fake_registered(struct fake *fake, enum strew_group_state state, uint64_t version);
void fake_serve_register(struct fake *fake); /* take_share and registered, CURRENT version 1 */
void fake_check(struct fake *fake, uint64_t update, uint64_t version, uint32_t expected_code);
/* A check that is refused as stale, with this sentence. */
void fake_check_says(struct fake *fake, uint64_t update, uint64_t version, const char *text);
void fake_hold(struct fake *fake, uint64_t update, uint64_t version);
void fake_done(struct fake *fake, uint64_t update, uint64_t version, enum strew_outcome outcome,
	enum strew_group_state state);
void fake_raw(struct fake *fake, const void *bytes, size_t len);
void fake_drop(struct fake *fake); /* ends the connection from the broker's side */

/* A test with a page that agents can share in the file's pointer `memory`. */
#define FAKE_TEST(name, memory)                                                                    \
	cmocka_unit_test_prestate_setup_teardown(                                                  \
		name, fake_memory_make, fake_memory_free, &(memory))
int fake_memory_make(void **pointer);
int fake_memory_free(void **pointer);

#endif
