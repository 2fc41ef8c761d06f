/*
 * What both faces share: the connection of one process to its node's broker. It
 * says hello, numbers requests and keeps their answers, hands every other
 * message to its face the moment it is read, and remembers how the connection
 * ended. It knows no layouts and no updates.
 *
 * Without a thread, the socket is read inside the calls that wait. With one, the
 * thread reads it and the calls wait for the thread; the lock is then held by
 * whoever works with the session, and given up only while waiting.
 */
#ifndef AGENT_SESSION_H
#define AGENT_SESSION_H

#include "base/clock.h"
#include "ipc/conn.h"
#include "ipc/page.h"
#include <pthread.h>
#include <stdbool.h>
#include <sys/types.h>

/* A request whose answer is awaited. Zeroed: none. */
struct agent_request {
	uint64_t serial; /* 0: none under way */
	bool answered;
	struct message answer; /* valid once answered; finished by agent_request_clear() */
};

/* Requests of one session that may be under way together: one of a call, one that outlives it. */
#define AGENT_REQUESTS 4

/*
 * Takes a message that answers nothing. Called with the lock held. A failure (-EPROTO) ends the
 * connection. The message stays the caller's.
 */
typedef int agent_handler(void *data, struct message *message, struct error *err);

struct agent_session {
	pid_t pid;    /* that opened it; in any other process the session is inert */
	char *socket; /* as in the options, may be NULL */
	uint32_t role;
	struct conn *conn;
	struct page page;	 /* ours, which the broker reads */
	struct page broker_page; /* the broker's */
	int pidfd;		 /* the broker's process, -1 if its kernel has none */
	pid_t broker_pid;	 /* in our namespace, 0 if it has another */
	int timeout_ms;
	char backend[8];
	bool welcomed;
	uint64_t serial; /* the last one used */
	struct agent_request *requests[AGENT_REQUESTS];
	agent_handler *handler;
	void *data;
	/* Of the connection before: WORD_WRITTEN when its broker had ended, else 0. */
	uint64_t written;
	struct error said; /* the broker's last error that answers no request */
	struct error lost; /* code: the connection is over, and the sentence says why */
	int event_fd;	   /* readable while the face has something for its user */
	int poll_fd;	   /* epoll over the socket and event_fd; -1 with a thread */
	bool signalled;
	bool receiving; /* a handler is running */
	/* Between these a wait looks at the socket without sleeping: something is expected then. */
	uint64_t awake_from_ns, awake_until_ns;
	/* the thread's */
	bool threaded; /* reading is its business; also while none runs, between two connections */
	bool running, stopping;
	pthread_t thread;
	pthread_mutex_t lock;
	pthread_cond_t changed;
	int wake_fd;
};

/*
 * Connects, says hello and waits for the welcome. `socket` as in the options. On failure
 * everything is undone. handler and data are kept; no message reaches them before this returns.
 */
int agent_session_open(struct agent_session *session, const char *socket, uint32_t role,
	int timeout_ms, agent_handler *handler, void *data, struct error *err);

/*
 * After the connection was lost: the same to the broker that serves the socket now. 0 only when
 * nothing that the old connection's broker began touches this process's memory any more, or it is
 * the same process, which then must be asked. The session's thread has ended; start it again.
 */
int agent_session_reopen(struct agent_session *session, uint64_t deadline, struct error *err);

/* Starts the library's own thread, in which no signal is delivered. */
int agent_session_start(struct agent_session *session, struct error *err);

/* With the lock held, after the connection was lost: waits for the thread's end. */
void agent_session_join(struct agent_session *session);

/* Stops the thread, leaves the broker and frees. In a forked child: closes and frees only. */
void agent_session_finish(struct agent_session *session);
/* Says the end and waits until the broker has taken note, at most until the deadline: then the
 * place is free for the next process. What the broker still says is dropped. */
void agent_session_part(struct agent_session *session, uint64_t deadline);

bool agent_session_forked(const struct agent_session *session);

/*
 * Opens and ends every public call: -ECHILD in a forked child, else the lock is held until
 * agent_session_leave().
 */
int agent_session_enter(struct agent_session *session, struct error *err);
void agent_session_leave(struct agent_session *session);

/* Makes the descriptor of the face readable, or no more. */
void agent_session_signal(struct agent_session *session, bool on);
int agent_session_fd(const struct agent_session *session);

/* Ends the connection for this reason, unless it is over already. */
void agent_session_lose(struct agent_session *session, int code, const char *text);
/* After a failed send: looks for what the broker said before it hung up, then ends it. */
void agent_session_ended(struct agent_session *session, int code, const struct error *err);
/* The negative errno and sentence of a connection that is over; 0 if it is not. */
int agent_session_lost(const struct agent_session *session, struct error *err);
/* Is it over, now that what has come is read? */
bool agent_session_gone(struct agent_session *session);

/*
 * Queues; what the socket does not take at once goes out with later calls (or the thread). From a
 * handler, -ECONNRESET does not end the connection yet: there may be more to read before its end.
 */
int agent_session_send(struct agent_session *session, struct message *message, struct error *err);
/* Waits until the broker has read it. */
int agent_session_send_wait(struct agent_session *session, struct message *message,
	uint64_t deadline, struct error *err);

/*
 * Lets messages be handled: waits until something has come and takes what is there. 0: look
 * again whether what you wait for is there; -ETIMEDOUT; or why the connection is over.
 */
int agent_session_step(struct agent_session *session, uint64_t deadline, struct error *err);

/* Gives the request a serial and awaits its answer. */
void agent_request_begin(struct agent_session *session, struct agent_request *request);
/*
 * 0: answered by a message of that type, which lies in request->answer until it is cleared;
 * an error answer is returned as its errno. -ETIMEDOUT: still under way; call again.
 */
int agent_request_wait(struct agent_session *session, struct agent_request *request,
	enum message_type type, uint64_t deadline, struct error *err);
/* The same without waiting, of a request that is answered. */
int agent_request_result(
	const struct agent_request *request, enum message_type type, struct error *err);
/* Forgets it; an answer that comes later is ignored. */
void agent_request_clear(struct agent_session *session, struct agent_request *request);

/*
 * After the connection was lost: waits until the broker has said on its page that it touches this
 * process's memory no more, or for the end of its process. 0; -ETIMEDOUT also where that cannot be
 * observed.
 */
int agent_broker_ended(const struct agent_session *session, uint64_t deadline, struct error *err);

#endif
