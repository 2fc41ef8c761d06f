/* The connection's life: open and greet, lose, close. How messages are read is session_wait.c. */
#include "agent/session.h"
#include "base/clock.h"
#include "base/util.h"
#include "ipc/socket.h"
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#define ENDED_POLL_MS 10 /* between looks at the page, and at the pid where there is no pidfd */

bool agent_session_forked(const struct agent_session *session)
{
	return getpid() != session->pid;
}

int agent_session_enter(struct agent_session *session, struct error *err)
{
	if (agent_session_forked(session)) {
		return error_set(err, -ECHILD,
			"this session belongs to process %d, of which this one is a fork",
			(int)session->pid);
	}
	pthread_mutex_lock(&session->lock);
	return 0;
}

void agent_session_leave(struct agent_session *session)
{
	pthread_mutex_unlock(&session->lock);
}

int agent_session_fd(const struct agent_session *session)
{
	return session->threaded ? session->event_fd : session->poll_fd;
}

void agent_session_lose(struct agent_session *session, int code, const char *text)
{
	if (session->lost.code) {
		return;
	}
	/* What the broker said before it hung up explains more than the end of file. */
	if (code == -ECONNRESET && session->said.code) {
		error_set(&session->lost, session->welcomed ? -ECONNRESET : session->said.code,
			"the broker ended the connection: %.200s", session->said.text);
	} else {
		error_set(&session->lost, session->welcomed ? -ECONNRESET : code, "%s", text);
	}
	shutdown(conn_fd(session->conn), SHUT_RDWR);
	if (session->poll_fd >= 0) {
		epoll_ctl(session->poll_fd, EPOLL_CTL_DEL, conn_fd(session->conn), NULL);
	}
	agent_session_signal(session, true);
}

int agent_session_lost(const struct agent_session *session, struct error *err)
{
	return session->lost.code ? error_set(err, session->lost.code, "%s", session->lost.text)
				  : 0;
}

/* A socket under /tmp that somebody else made first would be given our memory. */
static int check_peer(const struct agent_session *session, const char *path, struct error *err)
{
	const char *option = session->socket, *env = getenv("STREW_SOCKET");
	struct peer peer;
	int rc;

	if (option || env) {
		return 0;
	}
	rc = socket_peer(conn_fd(session->conn), &peer);
	if (rc) {
		return error_set(err, rc, "%s: who serves it cannot be told", path);
	}
	if (peer.uid != 0 && peer.uid != geteuid()) {
		return error_set(err, -EPERM,
			"%s is served by uid %d; name the socket if that is meant", path,
			(int)peer.uid);
	}
	return 0;
}

static int send_hello(
	struct agent_session *session, struct agent_request *request, struct error *err)
{
	struct message message;

	agent_request_begin(session, request);
	message_init(&message, MSG_HELLO, request->serial);
	message.u.hello.protocol = PROTOCOL_VERSION;
	message.u.hello.role = session->role;
	message.u.hello.pid = (uint64_t)session->pid;
	message.u.hello.pid_namespace = socket_pid_namespace();
	string_copy(message.u.hello.library, sizeof(message.u.hello.library), STREW_VERSION);
	message.fds[0] = fcntl(session->page.fd, F_DUPFD_CLOEXEC, 0);
	if (message.fds[0] < 0) {
		return error_set(err, -errno, "no descriptor is left for hello");
	}
	message.nfds = 1;
	return agent_session_send(session, &message, err);
}

static int take_welcome(struct agent_session *session, struct message *message, struct error *err)
{
	const struct msg_welcome *welcome = &message->u.welcome;
	uint64_t ours = socket_pid_namespace();
	int rc;

	if (welcome->protocol != PROTOCOL_VERSION) {
		return error_set(err, -EPROTO, "the broker speaks protocol %u, this library %u",
			welcome->protocol, PROTOCOL_VERSION);
	}
	if (strcmp(welcome->backend, "cuda") == 0 && welcome->pid_namespace != ours) {
		return error_set(err, -EPROTO,
			"this process and its broker are in different PID namespaces, which the "
			"CUDA "
			"driver confuses; run both in one PID namespace: docker --pid=host or "
			"container:NAME");
	}
	if (message->nfds < 1 || message->nfds > 2) {
		return error_set(err, -EPROTO, "welcome came with %u descriptors", message->nfds);
	}
	rc = page_map(message->fds[0], &session->broker_page, err);
	if (rc) {
		error_prefix(err, "the broker's page");
		return -EPROTO;
	}
	if (message->nfds == 2) {
		session->pidfd = fd_take(&message->fds[1]);
	}
	session->broker_pid = welcome->pid_namespace == ours ? (pid_t)welcome->pid : 0;
	memcpy(session->backend, welcome->backend, sizeof(session->backend));
	return 0;
}

static int greet(struct agent_session *session, uint64_t deadline, struct error *err)
{
	struct agent_request request = {0};
	char path[108];
	int fd, rc;

	rc = socket_path(session->socket, path, err);
	if (rc) {
		return rc;
	}
	rc = socket_connect_unix(path, deadline, &fd, err);
	if (rc) {
		return rc;
	}
	rc = conn_create(fd, true, &session->conn);
	if (rc) {
		close(fd);
		return error_set(err, rc, "no memory for a connection");
	}
	rc = check_peer(session, path, err);
	if (rc) {
		return rc;
	}
	rc = send_hello(session, &request, err);
	if (rc == 0) {
		rc = agent_request_wait(session, &request, MSG_WELCOME, deadline, err);
	}
	if (rc == 0) {
		rc = take_welcome(session, &request.answer, err);
	}
	agent_request_clear(session, &request);
	if (rc) {
		error_prefix(err, "%.100s", path);
		return rc;
	}
	session->welcomed = true;
	return 0;
}

static int init_lock(struct agent_session *session)
{
	pthread_condattr_t attr;
	int rc = pthread_condattr_init(&attr);

	if (rc) {
		return -rc;
	}
	rc = pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	if (rc == 0) {
		rc = pthread_cond_init(&session->changed, &attr);
	}
	pthread_condattr_destroy(&attr);
	if (rc) {
		return -rc;
	}
	rc = pthread_mutex_init(&session->lock, NULL);
	if (rc) {
		pthread_cond_destroy(&session->changed);
	}
	return -rc;
}

static int make_poll_fd(struct agent_session *session)
{
	struct epoll_event event = {.events = EPOLLIN};

	session->poll_fd = epoll_create1(EPOLL_CLOEXEC);
	if (session->poll_fd < 0 ||
		epoll_ctl(session->poll_fd, EPOLL_CTL_ADD, session->event_fd, &event) < 0) {
		return -errno;
	}
	/* A broker that is gone already leaves nothing to poll for but the event. */
	if (session->lost.code) {
		agent_session_signal(session, true);
		return 0;
	}
	return epoll_ctl(session->poll_fd, EPOLL_CTL_ADD, conn_fd(session->conn), &event) < 0
		       ? -errno
		       : 0;
}

int agent_session_open(struct agent_session *session, const char *socket, uint32_t role,
	int timeout_ms, agent_handler *handler, void *data, struct error *err)
{
	int rc;

	memset(session, 0, sizeof(*session));
	session->pid = getpid();
	session->page.fd = session->broker_page.fd = session->pidfd = -1;
	session->event_fd = session->poll_fd = session->wake_fd = -1;
	session->timeout_ms = timeout_ms ? timeout_ms : LIMIT_CALL_MS;
	session->handler = handler;
	session->data = data;
	session->role = role;
	rc = init_lock(session);
	if (rc) {
		return error_set(err, rc, "a lock could not be made");
	}
	rc = page_create(&session->page, err);
	if (rc == 0 && socket) {
		session->socket = strdup(socket);
		rc = session->socket ? 0 : error_set(err, -ENOMEM, "no memory for a session");
	}
	if (rc == 0) {
		rc = greet(session, deadline_in_ms(session->timeout_ms), err);
	}
	if (rc == 0) {
		session->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
		rc = session->event_fd < 0 ? -errno : make_poll_fd(session);
		if (rc) {
			error_set(err, rc, "no descriptor is left");
		}
	}
	if (rc) {
		agent_session_finish(session);
	}
	return rc;
}

void agent_session_join(struct agent_session *session)
{
	if (!session->running) {
		return;
	}
	session->stopping = true;
	pthread_mutex_unlock(&session->lock);
	eventfd_write(session->wake_fd, 1);
	pthread_join(session->thread, NULL);
	pthread_mutex_lock(&session->lock);
	session->running = session->stopping = false;
	fd_close(&session->wake_fd);
}

void agent_session_part(struct agent_session *session, uint64_t deadline)
{
	struct pollfd polled = {.events = POLLIN};
	char dropped[4096];
	ssize_t n;

	if (!session->conn || session->lost.code) {
		return;
	}
	polled.fd = conn_fd(session->conn);
	shutdown(polled.fd, SHUT_WR);
	do {
		n = recv(polled.fd, dropped, sizeof(dropped), MSG_DONTWAIT);
	} while (n > 0 || (n < 0 && (errno == EAGAIN || errno == EINTR) &&
				  poll(&polled, 1, deadline_left_ms(deadline)) == 1));
}

void agent_session_finish(struct agent_session *session)
{
	bool forked = agent_session_forked(session);

	for (size_t i = 0; i < AGENT_REQUESTS; i++) {
		if (session->requests[i]) {
			agent_request_clear(session, session->requests[i]);
		}
	}
	if (!forked) {
		pthread_mutex_lock(&session->lock);
		agent_session_join(session);
		pthread_mutex_unlock(&session->lock);
		/* The broker must see the end even if a forked child still has the socket. */
		if (session->conn) {
			shutdown(conn_fd(session->conn), SHUT_RDWR);
		}
		pthread_cond_destroy(&session->changed);
		pthread_mutex_destroy(&session->lock);
	}
	free(session->socket);
	session->socket = NULL;
	conn_destroy(session->conn);
	session->conn = NULL;
	page_finish(&session->broker_page);
	page_finish(&session->page);
	fd_close(&session->pidfd);
	fd_close(&session->event_fd);
	fd_close(&session->poll_fd);
	fd_close(&session->wake_fd);
}

static int process_ended(
	const struct page *page, int pidfd, pid_t pid, uint64_t deadline, struct error *err)
{
	struct pollfd end = {.fd = pidfd, .events = POLLIN};

	for (;;) {
		int left_ms = deadline_left_ms(deadline);

		/* A broker that has ended this connection alone, or starts itself anew in the same
		 * process, says it there when it has let go of this process's memory. */
		if ((page->words && page_load(page, WORD_QUIET)) ||
			(pidfd < 0 && pid > 0 && kill(pid, 0) < 0 && errno == ESRCH)) {
			return 0;
		}
		left_ms = left_ms < 0 ? ENDED_POLL_MS : MIN(left_ms, ENDED_POLL_MS);
		if (poll(&end, 1, left_ms) > 0) {
			return 0;
		}
		if (deadline_passed(deadline)) {
			return error_set(err, -ETIMEDOUT,
				"the connection is lost, but the broker's process has not ended, "
				"and may still use this memory");
		}
	}
}

int agent_broker_ended(const struct agent_session *session, uint64_t deadline, struct error *err)
{
	return process_ended(
		&session->broker_page, session->pidfd, session->broker_pid, deadline, err);
}

/* All that belongs to one connection. */
struct link {
	struct conn *conn;
	struct page broker_page;
	int pidfd;
	pid_t broker_pid;
	struct error lost;
};

static struct link take_link(struct agent_session *session)
{
	struct link link = {session->conn, session->broker_page, session->pidfd,
		session->broker_pid, session->lost};

	session->conn = NULL;
	session->broker_page = (struct page){.fd = -1};
	session->pidfd = -1;
	session->broker_pid = 0;
	error_clear(&session->lost);
	error_clear(&session->said);
	return link;
}

static void link_finish(struct link *link)
{
	conn_destroy(link->conn);
	page_finish(&link->broker_page);
	fd_close(&link->pidfd);
}

static int follow(
	struct agent_session *session, const struct link *old, uint64_t deadline, struct error *err)
{
	struct epoll_event event = {.events = EPOLLIN};
	bool same = old->broker_pid > 0 && old->broker_pid == session->broker_pid;

	if (!same) {
		/* It may live on behind its socket's end. */
		int rc = process_ended(
			&old->broker_page, old->pidfd, old->broker_pid, deadline, err);

		if (rc) {
			return rc;
		}
	}
	session->written =
		same || !old->broker_page.words ? 0 : page_load(&old->broker_page, WORD_WRITTEN);
	if (session->poll_fd >= 0 && !session->lost.code &&
		epoll_ctl(session->poll_fd, EPOLL_CTL_ADD, conn_fd(session->conn), &event) < 0) {
		return error_set(err, -errno, "no memory to watch the connection");
	}
	return 0;
}

int agent_session_reopen(struct agent_session *session, uint64_t deadline, struct error *err)
{
	struct link old = take_link(session), failed;
	int rc;

	session->welcomed = false;
	rc = greet(session, deadline, err);
	if (rc == 0) {
		rc = follow(session, &old, deadline, err);
	}
	if (rc == 0) {
		link_finish(&old);
		return 0;
	}
	failed = take_link(session);
	link_finish(&failed);
	session->conn = old.conn;
	session->broker_page = old.broker_page;
	session->pidfd = old.pidfd;
	session->broker_pid = old.broker_pid;
	session->lost = old.lost;
	session->welcomed = true;
	return rc;
}
