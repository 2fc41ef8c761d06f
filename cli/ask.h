/*
 * A question to this node's broker, asked as an observer: connect, say hello, send one message,
 * read the one that answers it. What fails before an answer came is EXIT_UNREACHABLE, what the
 * broker refuses is a failure.
 */
#ifndef CLI_ASK_H
#define CLI_ASK_H

#include "ipc/conn.h"

#define ASK_MS 10000 /* for connecting, and for each answer */

/* Connects to the socket of that path and says hello. The caller finishes *ret_welcome.
 * -ECONNRESET if nobody serves it; err->code says more. */
int ask_connect(
	const char *path, struct conn **ret_conn, struct message *ret_welcome, struct error *err);

/* Is the answer of that type? If not, what the broker says, or -EPROTO. */
int ask_check(const struct message *answer, enum message_type wanted, struct error *err);

/* Sends one message and receives the answer, which must have that type. */
int ask(struct conn *conn, struct message *question, enum message_type wanted,
	struct message *ret_answer, struct error *err);

/*
 * The same for a program: finds the path, says on stderr what is wrong, and returns an exit
 * code. *ret_conn is NULL unless it is 0.
 */
int ask_open(const char *program, const char *socket, struct conn **ret_conn);
/* An answer that did not come: the sentence on stderr, and the exit code. */
int ask_failed(const char *program, int rc, const struct error *err);

#endif
