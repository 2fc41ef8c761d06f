/*
 * The stage of the broker's tests: real strewd processes on the host backend, each in a
 * directory of its own, and raw connections to them by ipc/ that may say anything. Whatever
 * goes wrong here fails the running cmocka test.
 */
#ifndef BROKER_PLAY_H
#define BROKER_PLAY_H

#include "support/test_main.h"

#include "ipc/blob.h"
#include "ipc/page.h"
#include <stdbool.h>
#include <sys/types.h>

#define PATIENCE_MS 10000
#define SERVED_MS 1000 /* within which a status is answered, whatever others do */

struct broker {
	pid_t pid; /* 0: not running */
	char dir[64], socket[96], log[96];
	unsigned fds; /* of the idle process */
};

/* Starts strewd with --backend host, its socket and args (NULL at the end); returns at once, its
 * readiness is told by ret_ready_fd (-1 when the caller waits by broker_start()). */
void broker_launch(struct broker *broker, const char *const *args, int *ret_ready_fd);
/* The same, and waits until it is ready. Counts its descriptors. */
void broker_start(struct broker *broker, const char *const *args);
/* Sends the signal and waits: the exit code, or 256 + the signal that ended it. */
int broker_stop(struct broker *broker, int signal);
int broker_wait(struct broker *broker, int timeout_ms); /* without a signal */
/* Prints the log if the test fails to stop it with code 0; removes the directory. */
void broker_finish(struct broker *broker);
bool broker_said(const struct broker *broker, const char *text);
void broker_count_fds(struct broker *broker);
unsigned broker_fds_now(const struct broker *broker);
unsigned broker_memfds_mapped(
	const struct broker *broker); /* pages, workers' and trainers' memory */
/* A status is answered in time, and no descriptor is left of what was played. */
void broker_check(const struct broker *broker);
/* By an observer; to be finished by message_finish(). */
void broker_status(const struct broker *broker, struct message *ret_reply);
/* How the last update there has ended, the same way. */
void broker_last_event(const struct broker *broker, struct message *ret_event);
/* The state of the only group of the model, 0 if there is none. */
uint32_t broker_group_state(const struct broker *broker, const char *model);
void broker_wait_state(const struct broker *broker, const char *model, uint32_t state);
void broker_wait_brokers(const struct broker *broker, size_t n); /* in a standing epoch */
void broker_wait_no_ranks(const struct broker *broker); /* until no trainer is known there */
/* Until some model has that many trainer ranks there and its update is in that stage. */
void broker_wait_ranks(const struct broker *broker, uint32_t present, const char *stage);

/* Runs strewd to its end. Returns the exit code; what it wrote is cut to LIMIT_TEXT_BYTES * 16. */
int strewd_run(const char *const *args, char *ret_out, char *ret_err);
#define RUN_TEXT_BYTES (LIMIT_TEXT_BYTES * 16)

/* A connection to the broker's socket, nothing said yet. */
int raw_socket(const struct broker *broker);

struct raw {
	struct conn *conn;
	struct page page;
	uint64_t serial;
};

void raw_open(struct raw *raw, const struct broker *broker, enum role role); /* with its hello */
void raw_open_mute(struct raw *raw, const struct broker *broker);	     /* without */
void raw_close(struct raw *raw);
void raw_send(struct raw *raw, struct message *message);
void raw_expect(struct raw *raw, enum message_type type, struct message *ret_message);
/* An error with that code (negative errno) whose sentence holds the word. */
void raw_expect_error(struct raw *raw, int code, const char *word);
/* End of file, after errors and what it recalls at most. */
void raw_expect_end(struct raw *raw);
void raw_expect_silence(struct raw *raw, int for_ms);
/* A played worker has looked at its memory, and finds nothing changed (code 0) or why it cannot be
 * written; the number of what it was asked for. */
uint64_t raw_answer_check(struct raw *raw, int code, const char *text);

/* TCP at the control port of a lead. */
void tcp_open(struct raw *raw, const char *address);

/* "127.0.0.1:PORT" of a port that is free now. */
void free_address(char ret_address[32]);

/* The whole file as a string, to be freed. */
char *read_text(const char *path);

void sleep_ms(unsigned ms);

#endif
