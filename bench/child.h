/*
 * The processes of a bench. Each is forked before anybody has touched a GPU, answers
 * questions over a socket, and dies with its parent. A question has a deadline; a child
 * that fails says its sentence and the bench ends with it.
 */
#ifndef BENCH_CHILD_H
#define BENCH_CHILD_H

#include "base/error.h"
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

struct child {
	pid_t pid; /* 0: none */
	int fd;
	const char *name;
};

/*
 * A question or an answer: up to CHILD_BYTES of the caller's making, and descriptors. The
 * numbers of `what` are the bench's own.
 */
#define CHILD_BYTES 4096
#define CHILD_FDS 16

struct letter {
	uint32_t what;
	int32_t rc; /* of an answer: negative errno with its sentence */
	char text[LIMIT_TEXT_BYTES];
	uint32_t len_bytes, nfds;
	unsigned char bytes[CHILD_BYTES];
	int fds[CHILD_FDS]; /* sent: borrowed; received: the receiver's */
};

/* Forks `run(fd, arg)`, whose return value is the exit code. Ends the program on failure. */
void child_start(
	struct child *ret_child, const char *name, int (*run)(int fd, void *arg), void *arg);
/* Starts another program, argv[0] its path, environ + `env` ("NAME=value" or NULL-ended list). No
 * socket; output goes to stderr, or to `log` if that is not -1. */
void child_exec(struct child *ret_child, const char *name, char *const argv[],
	const char *const env[], int log_fd);

/*
 * Asks and waits for the answer, for at most timeout_s; ends the program with the child's sentence
 * if that is an error. To ask several at once, send or say it to all and then receive from all.
 */
void child_send(struct child *child, const struct letter *letter);
void child_say(struct child *child, uint32_t what, const void *bytes, size_t len_bytes);
void child_receive(struct child *child, struct letter *ret_letter, unsigned timeout_s);
void child_ask(struct child *child, uint32_t what, const void *bytes, size_t len_bytes,
	struct letter *ret_letter, unsigned timeout_s);

/* Waits until a program ends by itself; it is killed, and the bench with it, after timeout_s.
 * Returns its exit code, -1 for a signal. */
int child_wait(struct child *child, unsigned timeout_s);

/* Tells it to end (closes its socket, or SIGTERM for a program), waits, kills it after 10 s.
 * Returns its exit code, -1 for a signal. */
int child_stop(struct child *child);
/* All that run: at the program's end in any case. */
void children_kill(void);

/* In a child: 1 and a letter, 0 when the parent is done. */
int letter_read(int fd, struct letter *ret_letter);
int letter_write(int fd, const struct letter *letter);
/* Makes these bytes the answer. */
void letter_put(struct letter *letter, const void *bytes, size_t len_bytes);
/*
 * Reads a letter, lets `answer` make it the answer, and sends that; false when the parent is done.
 * The answer is empty unless something is put in it. Descriptors of the question are for `answer`
 * to close (nfds 0 then), those of the answer are closed behind it.
 */
bool letter_turn(int fd, struct letter *letter, void (*answer)(void *data, struct letter *letter),
	void *data);
/* Turns until the parent is done. */
void letter_serve(int fd, void (*answer)(void *data, struct letter *letter), void *data);

/* Where bench_fail() says that the brokers' logs are; borrowed. NULL: nowhere. */
void bench_logs(const char *folder);
/* Ends the program, and its children, with a sentence on stderr. */
__attribute__((noreturn, format(printf, 2, 3))) void bench_fail(
	int exit_code, const char *format, ...);
/* The same if rc is negative; the sentence is the error's. */
void bench_must(int rc, const char *what, const struct error *err);
/* The same if ptr is NULL, for want of memory; else ptr. */
void *bench_need(void *ptr);

#endif
