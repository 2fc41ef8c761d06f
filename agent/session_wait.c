/*
 * Reading: every message is taken as soon as it is read, whoever reads it. An answer goes to its
 * request, an error that answers nothing is kept as the reason of an end that may follow, and
 * all else goes to the face. So nothing is lost while a call waits for something else.
 */
#include "agent/session.h"
#include "base/clock.h"
#include "base/thread.h"
#include "base/util.h"
#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <sched.h>
#include <string.h>
#include <sys/eventfd.h>

/* Messages taken in one go, so that a broker that never stops talking does not hold a caller. */
#define STEP_MESSAGES 64

static bool is_answer(enum message_type type)
{
	return type == MSG_OK || type == MSG_ERROR || type == MSG_WELCOME ||
	       type == MSG_REGISTERED || type == MSG_DECLARED;
}

static void take_answer(struct agent_session *session, struct message *message)
{
	for (size_t i = 0; i < AGENT_REQUESTS; i++) {
		struct agent_request *request = session->requests[i];

		if (request && request->serial == message->serial) {
			request->answer = *message;
			request->answered = true;
			session->requests[i] = NULL;
			/* Moved: nothing is left for the reader to finish. */
			message_init(message, message->type, 0);
			return;
		}
	}
	/* Of a request that was given up. */
}

static int take(struct agent_session *session, struct message *message, struct error *err)
{
	if (message->serial && is_answer(message->type)) {
		take_answer(session, message);
		return 0;
	}
	if (message->type == MSG_ERROR) {
		int code = error_from_wire(message->u.error.code);

		error_set(&session->said, code ? code : -EPROTO, "%s", message->u.error.text);
		return 0;
	}
	if (!session->welcomed) {
		return error_set(
			err, -EPROTO, "%s came before welcome", message_name(message->type));
	}
	return session->handler(session->data, message, err);
}

/* Takes what is there. How the connection ended, if it did, is in session->lost. */
static void receive(struct agent_session *session)
{
	for (int i = 0; i < STEP_MESSAGES && !session->lost.code; i++) {
		struct error err = {0};
		struct message message;
		int rc = conn_receive(session->conn, &message, &err);

		if (rc == 0) {
			return;
		}
		if (rc > 0) {
			session->receiving = true;
			rc = take(session, &message, &err);
			session->receiving = false;
			message_finish(&message);
		}
		if (rc < 0) {
			agent_session_lose(session, rc,
				err.text[0] ? err.text : "the broker closed the connection");
		}
	}
}

void agent_session_ended(struct agent_session *session, int code, const struct error *err)
{
	receive(session);
	agent_session_lose(session, code == -EPIPE ? -ECONNRESET : code, err->text);
}

/* What conn_send() does with a message's fds, of one that is not sent. Its arrays are the caller's.
 */
static void close_fds(struct message *message)
{
	while (message->nfds) {
		fd_close(&message->fds[--message->nfds]);
	}
}

int agent_session_send(struct agent_session *session, struct message *message, struct error *err)
{
	int rc = agent_session_lost(session, err);

	if (rc) {
		close_fds(message);
		return rc;
	}
	rc = conn_send(session->conn, message, err);
	if (rc < 0 && session->receiving) {
		return rc == -EPIPE ? -ECONNRESET : rc;
	}
	if (rc < 0) {
		agent_session_ended(session, rc, err);
		return agent_session_lost(session, err);
	}
	if (session->threaded && conn_wants_write(session->conn)) {
		eventfd_write(session->wake_fd, 1);
	}
	return 0;
}

int agent_session_send_wait(struct agent_session *session, struct message *message,
	uint64_t deadline, struct error *err)
{
	int rc = agent_session_lost(session, err);

	if (rc) {
		close_fds(message);
		return rc;
	}
	rc = conn_send_wait(session->conn, message, deadline, err);
	if (rc < 0) {
		/* After a timeout too: half a message may be out, and what follows never comes. */
		agent_session_ended(session, rc, err);
		return rc == -ETIMEDOUT ? rc : agent_session_lost(session, err);
	}
	return 0;
}

static int wait_for_thread(struct agent_session *session, uint64_t deadline)
{
	struct timespec until = clock_timespec(deadline);

	if (deadline == DEADLINE_NEVER) {
		return -pthread_cond_wait(&session->changed, &session->lock);
	}
	return -pthread_cond_timedwait(&session->changed, &session->lock, &until);
}

/* How long a poll may sleep: until the deadline, but awake while something is expected. In ms, of
 * which the last before that time is not slept through. */
static int sleep_ms(const struct agent_session *session, uint64_t deadline)
{
	uint64_t now = clock_ns();

	if (now >= session->awake_until_ns) {
		return deadline_left_ms(deadline);
	}
	if (deadline > now && session->awake_from_ns > now + 1000000u) {
		return (int)MIN((MIN(deadline, session->awake_from_ns) - now) / 1000000u, INT_MAX);
	}
	sched_yield();
	return 0;
}

static int wait_for_socket(struct agent_session *session, uint64_t deadline)
{
	struct pollfd socket = {.fd = conn_fd(session->conn), .events = conn_events(session->conn)};
	int n;

	n = poll(&socket, 1, sleep_ms(session, deadline));
	if (n == 0) {
		return deadline_passed(deadline) ? -ETIMEDOUT : 0;
	}
	if (n < 0) {
		/* A signal: the caller looks at the deadline by coming again. */
		return errno == EINTR ? 0 : -errno;
	}
	if (socket.revents & POLLOUT) {
		/* A failure shows itself in what is read. */
		(void)conn_flush(session->conn);
	}
	receive(session);
	return 0;
}

int agent_session_step(struct agent_session *session, uint64_t deadline, struct error *err)
{
	int rc = agent_session_lost(session, err);

	if (rc) {
		return rc;
	}
	rc = session->threaded ? wait_for_thread(session, deadline)
			       : wait_for_socket(session, deadline);
	if (rc == -ETIMEDOUT) {
		return error_set(err, rc, "the broker did not answer in time");
	}
	return rc ? error_set(err, rc, "waiting for the broker failed") : 0;
}

bool agent_session_gone(struct agent_session *session)
{
	if (!session->threaded) {
		/* Its end may have come, and nobody has read it yet. */
		(void)agent_session_step(session, deadline_in_ms(0), NULL);
	}
	return agent_session_lost(session, NULL) != 0;
}

void agent_session_signal(struct agent_session *session, bool on)
{
	eventfd_t count;

	/* Before the session is open there is nobody to tell. */
	if (session->event_fd < 0 || on == session->signalled) {
		return;
	}
	if (on) {
		eventfd_write(session->event_fd, 1);
	} else {
		eventfd_read(session->event_fd, &count);
	}
	session->signalled = on;
}

void agent_request_begin(struct agent_session *session, struct agent_request *request)
{
	memset(request, 0, sizeof(*request));
	request->serial = ++session->serial;
	for (size_t i = 0; i < AGENT_REQUESTS; i++) {
		if (!session->requests[i]) {
			session->requests[i] = request;
			return;
		}
	}
}

void agent_request_clear(struct agent_session *session, struct agent_request *request)
{
	for (size_t i = 0; i < AGENT_REQUESTS; i++) {
		if (session->requests[i] == request) {
			session->requests[i] = NULL;
		}
	}
	if (request->answered) {
		message_finish(&request->answer);
	}
	request->serial = 0;
	request->answered = false;
}

int agent_request_result(
	const struct agent_request *request, enum message_type type, struct error *err)
{
	const struct message *answer = &request->answer;

	if (answer->type == MSG_ERROR) {
		int code = error_from_wire(answer->u.error.code);

		return error_set(err, code ? code : -EPROTO, "%s", answer->u.error.text);
	}
	if (answer->type != type) {
		return error_set(err, -EPROTO, "the broker answered %s where %s was due",
			message_name(answer->type), message_name(type));
	}
	return 0;
}

int agent_request_wait(struct agent_session *session, struct agent_request *request,
	enum message_type type, uint64_t deadline, struct error *err)
{
	while (!request->answered) {
		int rc = agent_session_step(session, deadline, err);

		if (rc) {
			return rc;
		}
	}
	return agent_request_result(request, type, err);
}

static void *serve(void *data)
{
	struct agent_session *session = data;
	struct pollfd fds[2] = {
		{.fd = conn_fd(session->conn)}, {.fd = session->wake_fd, .events = POLLIN}};
	eventfd_t count;

	pthread_mutex_lock(&session->lock);
	while (!session->stopping && !session->lost.code) {
		fds[0].events = conn_events(session->conn);
		pthread_mutex_unlock(&session->lock);
		if (poll(fds, 2, -1) < 0) {
			fds[0].revents = fds[1].revents = 0;
		}
		pthread_mutex_lock(&session->lock);
		if (fds[1].revents) {
			eventfd_read(session->wake_fd, &count);
		}
		if (fds[0].revents & POLLOUT) {
			(void)conn_flush(session->conn);
		}
		if (fds[0].revents) {
			receive(session);
			pthread_cond_broadcast(&session->changed);
		}
	}
	pthread_cond_broadcast(&session->changed);
	pthread_mutex_unlock(&session->lock);
	return NULL;
}

int agent_session_start(struct agent_session *session, struct error *err)
{
	int rc;

	session->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (session->wake_fd < 0) {
		return error_set(err, -errno, "no descriptor is left for a thread");
	}
	pthread_mutex_lock(&session->lock);
	session->threaded = session->running = true;
	rc = thread_start(serve, session, &session->thread);
	if (rc) {
		session->threaded = session->running = false;
		fd_close(&session->wake_fd);
	} else {
		pthread_setname_np(session->thread, "strew");
		fd_close(&session->poll_fd);
	}
	pthread_mutex_unlock(&session->lock);
	return rc ? error_set(err, rc, "a thread could not be started: %s", strerrordesc_np(-rc))
		  : 0;
}
