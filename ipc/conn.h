/*
 * A connection: frames in and out of one non-blocking stream socket, Unix (with
 * fds) or TCP (without). Reads never pass the end of the frame under way, so
 * that fds that arrive belong to that frame. What cannot be written yet is
 * queued, up to LIMIT_OUTBOX_BYTES and LIMIT_OUTBOX_FDS. No state machine, no dispatch.
 */
#ifndef IPC_CONN_H
#define IPC_CONN_H

#include "ipc/messages.h"
#include <stdbool.h>

struct conn;

/*
 * What every frame carries behind its payload, not counted in its length, so that nobody else can
 * have written it. The connection knows no keys: wire/seal.h has the only one there is.
 */
#define CONN_TAG_BYTES 32u
struct conn_guard {
	/* The tag of the next frame out. */
	void (*put)(struct conn_guard *guard, const uint8_t header[FRAME_HEADER_BYTES],
		const uint8_t *payload, size_t len_bytes, uint8_t ret_tag[CONN_TAG_BYTES]);
	/* Is that the tag of the next frame in? -EPERM, with a sentence. */
	int (*check)(struct conn_guard *guard, const uint8_t header[FRAME_HEADER_BYTES],
		const uint8_t *payload, size_t len_bytes, const uint8_t tag[CONN_TAG_BYTES],
		struct error *err);
	void (*destroy)(struct conn_guard *guard);
};

/* Takes fd (made non-blocking) unless it fails. `with_fds`: a Unix socket that may carry
 * descriptors. */
int conn_create(int fd, bool with_fds, struct conn **ret_conn);
void conn_destroy(struct conn *conn); /* closes the socket and every fd not taken; NULL is fine */
int conn_fd(const struct conn *conn);

/* No frame longer than that is received from now on, header included; at first
 * LIMIT_FRAME_BYTES. */
void conn_set_most(struct conn *conn, uint32_t frame_bytes);

/* Takes the guard: all frames given to conn_send() and received from now on have its tag. Once,
 * between two messages. */
void conn_set_guard(struct conn *conn, struct conn_guard *guard);
const struct conn_guard *conn_guard(const struct conn *conn); /* NULL: none */

/*
 * Encodes and queues the message, then writes what the socket takes. message->fds
 * are taken in any case. -EPIPE or -ECONNRESET: the peer is gone; -E2BIG: the frame or the outbox
 * exceeds its limit. After a failure every later call fails the same way, and if it was this
 * side's (the limits, no memory) the socket is shut down, so that receiving ends too.
 */
int conn_send(struct conn *conn, struct message *message, struct error *err);

/*
 * Where messages come from that are too much to wait in an outbox: each is asked for when those
 * before it have been written, so that its bytes need not be anywhere else until then. Without
 * descriptors.
 */
struct conn_source {
	/* The next one, of which conn_send_from()'s connection keeps nothing. False: there is none
	 * any more. */
	bool (*next)(struct conn_source *source, struct message *ret_message);
	void (*destroy)(struct conn_source *source);
};

/* Queues all that the source has, which is taken in any case, and destroyed behind its last
 * message. Fails as conn_send(); -E2BIG: LIMIT_OUTBOX_SOURCES wait already. */
int conn_send_from(struct conn *conn, struct conn_source *source, struct error *err);

/* Writes what is queued. Returns 1 if something is left (poll for POLLOUT), 0 if not, or an error.
 */
int conn_flush(struct conn *conn);
bool conn_gave_up(const struct conn *conn); /* a failure that was this side's has ended it */
bool conn_wants_write(const struct conn *conn);
/* Has the peer read all that was sent to it? For a Unix socket. */
bool conn_is_taken(const struct conn *conn);
/* What to wait for, as poll(2) and epoll(7) alike have it: input, and room where output waits. */
short conn_events(const struct conn *conn);

/* When a message was last given to conn_send(), and a byte (with a guard: a frame that it has
 * checked) last received; at first, when the connection was made. */
uint64_t conn_said_ns(const struct conn *conn);
uint64_t conn_heard_ns(const struct conn *conn);

/*
 * Reads at most one message. 1: *ret_message is filled and must be finished by
 * the caller; 0: nothing whole is there yet; -ECONNRESET: end of file (err says whether in the
 * middle of a frame); -EPROTO, -E2BIG: the peer broke the protocol, drop it; -EPERM: a frame that
 * the guard refuses. It may still be told why.
 */
int conn_receive(struct conn *conn, struct message *ret_message, struct error *err);

/* Blocking helpers for the agents and the command line: poll(2) with a deadline (base/clock.h). */
int conn_send_wait(
	struct conn *conn, struct message *message, uint64_t deadline, struct error *err);
int conn_receive_wait(
	struct conn *conn, uint64_t deadline, struct message *ret_message, struct error *err);

#endif
