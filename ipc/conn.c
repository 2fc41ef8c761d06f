#include "ipc/conn.h"
#include "base/clock.h"
#include "base/util.h"
#include "ipc/frame.h"
#include <errno.h>
#include <fcntl.h>
#include <linux/sockios.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

/* Of what sources give, written in one go: a peer that keeps up would keep us from all others. */
#define FLUSH_BYTES (4u << 20)

/* A frame on its way out, or where many come from: then it is the one under way. */
struct out {
	struct out *next;
	struct conn_source *source; /* owned; NULL: there is this frame alone */
	uint8_t *bytes;		    /* NULL: the source's next one is due */
	size_t len, at;
	bool guarded; /* its tag is made when it goes out, as tags count frames in that order */
	int fds[LIMIT_FRAME_FDS];
	unsigned nfds;
};

struct conn {
	int fd;
	bool with_fds;
	struct conn_guard *guard;
	uint32_t most; /* bytes of a frame to receive */
	int failed;    /* sending, sticky … */
	bool gave_up;  /* … and by this side's doing */
	int in_failed; /* receiving, sticky; the peer may still be told why */
	/* in: the header, then exactly its payload */
	uint8_t header[FRAME_HEADER_BYTES];
	struct frame_header frame;
	uint8_t *payload; /* NULL while the header is read */
	size_t at;	  /* read so far of header or payload */
	int fds[LIMIT_FRAME_FDS];
	unsigned nfds;
	/* out */
	struct out *first, **last;
	size_t queued, queued_fds;
	unsigned sources;
	uint64_t said_ns, heard_ns;
};

int conn_create(int fd, bool with_fds, struct conn **ret_conn)
{
	struct conn *conn = calloc(1, sizeof(*conn));
	int flags = fcntl(fd, F_GETFL);

	if (!conn) {
		return -ENOMEM;
	}
	if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0) {
		int rc = -errno;

		free(conn);
		return rc;
	}
	if (!with_fds) {
		/* Small frames that wait for answers; refused only by the socket pairs of tests. */
		int one = 1;

		setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	}
	conn->fd = fd;
	conn->with_fds = with_fds;
	conn->most = LIMIT_FRAME_BYTES;
	conn->last = &conn->first;
	conn->said_ns = conn->heard_ns = clock_ns();
	*ret_conn = conn;
	return 0;
}

static void close_fds(int *fds, unsigned *n)
{
	while (*n) {
		fd_close(&fds[--*n]);
	}
}

static void out_free(struct out *out)
{
	close_fds(out->fds, &out->nfds);
	if (out->source) {
		out->source->destroy(out->source);
	}
	free(out->bytes);
	free(out);
}

void conn_destroy(struct conn *conn)
{
	if (!conn) {
		return;
	}
	while (conn->first) {
		struct out *next = conn->first->next;

		out_free(conn->first);
		conn->first = next;
	}
	close_fds(conn->fds, &conn->nfds);
	free(conn->payload);
	if (conn->guard) {
		conn->guard->destroy(conn->guard);
	}
	fd_close(&conn->fd);
	free(conn);
}

int conn_fd(const struct conn *conn)
{
	return conn->fd;
}

void conn_set_most(struct conn *conn, uint32_t frame_bytes)
{
	conn->most = frame_bytes;
}

void conn_set_guard(struct conn *conn, struct conn_guard *guard)
{
	conn->guard = guard;
}

const struct conn_guard *conn_guard(const struct conn *conn)
{
	return conn->guard;
}

uint64_t conn_said_ns(const struct conn *conn)
{
	return conn->said_ns;
}

uint64_t conn_heard_ns(const struct conn *conn)
{
	return conn->heard_ns;
}

bool conn_wants_write(const struct conn *conn)
{
	return conn->first != NULL && !conn->failed;
}

bool conn_gave_up(const struct conn *conn)
{
	return conn->gave_up;
}

bool conn_is_taken(const struct conn *conn)
{
	int unread;

	/* Of a Unix socket it counts what the peer has not read; where nobody counts it, nothing.
	 */
	return !conn->first && (ioctl(conn->fd, SIOCOUTQ, &unread) < 0 || unread == 0);
}

short conn_events(const struct conn *conn)
{
	return conn_wants_write(conn) ? POLLIN | POLLOUT : POLLIN;
}

/* Room for LIMIT_FRAME_FDS descriptors, aligned as the kernel wants it. */
union control {
	struct cmsghdr align;
	char bytes[CMSG_SPACE(LIMIT_FRAME_FDS * sizeof(int))];
};

/* One sendmsg(2) of what is left of the frame; its fds go with its first byte. */
static ssize_t send_some(struct conn *conn, struct out *out)
{
	struct iovec iov = {out->bytes + out->at, out->len - out->at};
	struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};
	union control control;
	ssize_t n;

	if (out->at == 0 && out->nfds) {
		struct cmsghdr *cmsg;

		memset(&control, 0, sizeof(control));
		msg.msg_control = control.bytes;
		msg.msg_controllen = CMSG_SPACE(out->nfds * sizeof(int));
		cmsg = CMSG_FIRSTHDR(&msg);
		cmsg->cmsg_level = SOL_SOCKET;
		cmsg->cmsg_type = SCM_RIGHTS;
		cmsg->cmsg_len = CMSG_LEN(out->nfds * sizeof(int));
		memcpy(CMSG_DATA(cmsg), out->fds, out->nfds * sizeof(int));
	}
	do {
		n = sendmsg(conn->fd, &msg, MSG_NOSIGNAL | MSG_DONTWAIT);
	} while (n < 0 && errno == EINTR);
	return n;
}

/*
 * A message that did not go out is one that the peer waits for in vain, so the connection ends:
 * whoever polls it reads what the peer has said by now, then the end of file.
 */
static int fail_send(struct conn *conn, int rc)
{
	if (!conn->failed) {
		conn->failed = rc;
		conn->gave_up = true;
		shutdown(conn->fd, SHUT_RDWR);
	}
	return rc;
}

static void pop(struct conn *conn)
{
	struct out *out = conn->first;

	conn->first = out->next;
	if (!conn->first) {
		conn->last = &conn->first;
	}
	conn->sources -= out->source != NULL;
	out_free(out);
}

static int add_tag(struct conn *conn, struct out *out)
{
	uint8_t *bytes = realloc(out->bytes, out->len + CONN_TAG_BYTES);

	if (!bytes) {
		return -ENOMEM;
	}
	out->bytes = bytes;
	out->guarded = false;
	conn->guard->put(conn->guard, bytes, bytes + FRAME_HEADER_BYTES,
		out->len - FRAME_HEADER_BYTES, bytes + out->len);
	out->len += CONN_TAG_BYTES;
	conn->queued += CONN_TAG_BYTES;
	return 0;
}

/* The source's next frame. 0: there is none any more; or an error. */
static int draw(struct conn *conn, struct out *out)
{
	struct message message;
	struct error err;
	int rc;

	if (!out->source->next(out->source, &message)) {
		return 0;
	}
	rc = message_encode(&message, &out->bytes, &out->len, &err);
	if (rc) {
		return rc;
	}
	out->at = 0;
	out->guarded = conn->guard != NULL;
	conn->queued += out->len;
	return 1;
}

/* Writes what is left of the frame. 1: not all of it was taken; or an error. */
static int write_out(struct conn *conn, struct out *out)
{
	int rc = out->guarded ? add_tag(conn, out) : 0;

	if (rc) {
		return fail_send(conn, rc);
	}
	while (out->at < out->len) {
		ssize_t n = send_some(conn, out);

		if (n < 0) {
			if (errno == EAGAIN || errno == EWOULDBLOCK) {
				return 1;
			}
			conn->failed = -errno;
			return conn->failed;
		}
		conn->queued_fds -= out->nfds;
		close_fds(out->fds, &out->nfds);
		out->at += (size_t)n;
	}
	conn->queued -= out->len;
	return 0;
}

int conn_flush(struct conn *conn)
{
	size_t drawn = 0;
	int rc = conn->failed;

	while (rc == 0 && conn->first) {
		struct out *out = conn->first;

		if (!out->bytes && drawn >= FLUSH_BYTES) {
			return 1;
		}
		if (!out->bytes) {
			rc = draw(conn, out);
			if (rc < 0) {
				return fail_send(conn, rc);
			}
			if (rc == 0) {
				pop(conn);
				continue;
			}
			drawn += out->len;
		}
		rc = write_out(conn, out);
		if (rc == 0 && out->source) {
			free(out->bytes);
			out->bytes = NULL;
		} else if (rc == 0) {
			pop(conn);
		}
	}
	return rc;
}

static int enqueue(struct conn *conn, struct out *out, struct error *err)
{
	int rc;

	*conn->last = out;
	conn->last = &out->next;
	rc = conn_flush(conn);
	return rc < 0 ? error_set(err, rc, "cannot send: %s", strerror(-rc)) : 0;
}

int conn_send(struct conn *conn, struct message *message, struct error *err)
{
	struct out *out = calloc(1, sizeof(*out));
	int rc = conn->failed;

	conn->said_ns = clock_ns();
	if (!out) {
		rc = -ENOMEM;
		error_set(err, rc, "out of memory");
	} else if (rc) {
		error_set(err, rc, "the connection has failed: %s", strerror(-rc));
	} else if (message->nfds && !conn->with_fds) {
		rc = error_set(err, -EINVAL, "descriptors cannot travel on this connection");
	} else {
		rc = message_encode(message, &out->bytes, &out->len, err);
	}
	if (rc == 0 && conn->queued + out->len >
			       (conn->with_fds ? LIMIT_OUTBOX_BYTES : LIMIT_BROKER_OUTBOX_BYTES)) {
		rc = error_set(
			err, -E2BIG, "the peer does not read: %zu bytes wait for it", conn->queued);
	}
	/* Each may hold memory, far more than the frame that it waits with. */
	if (rc == 0 && conn->queued_fds + message->nfds > LIMIT_OUTBOX_FDS) {
		rc = error_set(err, -E2BIG, "the peer does not read: %zu descriptors wait for it",
			conn->queued_fds);
	}
	if (rc) {
		if (out) {
			out_free(out);
		}
		close_fds(message->fds, &message->nfds);
		return fail_send(conn, rc);
	}
	memcpy(out->fds, message->fds, message->nfds * sizeof(int));
	out->nfds = message->nfds;
	message->nfds = 0;
	out->guarded = conn->guard != NULL;
	conn->queued += out->len;
	conn->queued_fds += out->nfds;
	return enqueue(conn, out, err);
}

int conn_send_from(struct conn *conn, struct conn_source *source, struct error *err)
{
	struct out *out = calloc(1, sizeof(*out));
	int rc = conn->failed;

	conn->said_ns = clock_ns();
	if (rc) {
		error_set(err, rc, "the connection has failed: %s", strerror(-rc));
	} else if (!out) {
		rc = error_set(err, -ENOMEM, "out of memory");
	} else if (conn->sources == LIMIT_OUTBOX_SOURCES) {
		rc = error_set(err, -E2BIG, "the peer does not read: %u manifests wait for it",
			conn->sources);
	}
	if (rc) {
		source->destroy(source);
		free(out);
		return fail_send(conn, rc);
	}
	out->source = source;
	conn->sources++;
	return enqueue(conn, out, err);
}

/* Takes what came with the bytes; too many or truncated: -EPROTO. */
static int take_fds(struct conn *conn, struct msghdr *msg, struct error *err)
{
	int rc = 0;

	for (struct cmsghdr *cmsg = CMSG_FIRSTHDR(msg); cmsg; cmsg = CMSG_NXTHDR(msg, cmsg)) {
		size_t n = (cmsg->cmsg_len - CMSG_LEN(0)) / sizeof(int);

		if (cmsg->cmsg_level != SOL_SOCKET || cmsg->cmsg_type != SCM_RIGHTS) {
			continue;
		}
		for (size_t i = 0; i < n; i++) {
			int fd;

			memcpy(&fd, CMSG_DATA(cmsg) + i * sizeof(int), sizeof(fd));
			if (conn->nfds < LIMIT_FRAME_FDS) {
				conn->fds[conn->nfds++] = fd;
			} else {
				fd_close(&fd);
				rc = -EPROTO;
			}
		}
	}
	if (msg->msg_flags & MSG_CTRUNC) {
		rc = -EPROTO;
	}
	return rc ? error_set(err, rc, "more descriptors came than a frame may carry, or than fit")
		  : 0;
}

/* Reads up to `want` bytes to `to`. Bytes read, 0: not now, or an error. */
static ssize_t read_some(struct conn *conn, uint8_t *to, size_t want, struct error *err)
{
	struct iovec iov = {to, want};
	struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};
	union control control;
	ssize_t n;
	int rc;

	if (conn->with_fds) {
		msg.msg_control = control.bytes;
		msg.msg_controllen = sizeof(control.bytes);
	}
	do {
		n = recvmsg(conn->fd, &msg, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
	} while (n < 0 && errno == EINTR);
	if (n < 0) {
		if (errno == EAGAIN || errno == EWOULDBLOCK) {
			return 0;
		}
		rc = -errno;
		return error_set(
			err, rc == -EPIPE ? -ECONNRESET : rc, "cannot receive: %s", strerror(-rc));
	}
	rc = take_fds(conn, &msg, err);
	if (rc) {
		return rc;
	}
	if (n == 0) {
		return error_set(err, -ECONNRESET, "the peer closed the connection%s",
			conn->at || conn->payload ? " in the middle of a frame" : "");
	}
	/* With a guard only whole frames count: a forged length would swallow what follows it. */
	if (!conn->guard) {
		conn->heard_ns = clock_ns();
	}
	return n;
}

/* Header whole: room for the payload, and for its tag. */
static int begin_payload(struct conn *conn, struct error *err)
{
	int rc = frame_header_get(conn->header, &conn->frame, err);

	if (rc == 0 && conn->frame.payload_bytes > conn->most - FRAME_HEADER_BYTES) {
		rc = error_set(err, -E2BIG, "a frame of %u bytes passes the limit of %u",
			conn->frame.payload_bytes, conn->most);
	}
	if (rc == 0 && conn->frame.fds && !conn->with_fds) {
		rc = error_set(err, -EPROTO, "a frame with descriptors on a TCP connection");
	}
	if (rc && conn->guard) {
		rc = error_set(err, -EPERM,
			"a frame's header was changed on its way: find out what alters the "
			"traffic between the two brokers");
	}
	if (rc) {
		return rc;
	}
	conn->payload = malloc(conn->frame.payload_bytes + CONN_TAG_BYTES);
	if (!conn->payload) {
		return error_set(err, -ENOMEM, "out of memory");
	}
	conn->at = 0;
	return 0;
}

static int end_frame(struct conn *conn, struct message *ret_message, struct error *err)
{
	uint8_t *payload = conn->payload;
	int rc;

	conn->payload = NULL;
	conn->at = 0;
	if (conn->guard) {
		rc = conn->guard->check(conn->guard, conn->header, payload,
			conn->frame.payload_bytes, payload + conn->frame.payload_bytes, err);
		if (rc) {
			free(payload);
			return rc;
		}
		conn->heard_ns = clock_ns();
	}
	if (conn->nfds != conn->frame.fds) {
		free(payload);
		return error_set(err, -EPROTO, "a frame said %u descriptors, %u came",
			conn->frame.fds, conn->nfds);
	}
	rc = message_decode(conn->frame.type, conn->frame.serial, payload,
		conn->frame.payload_bytes, ret_message, err);
	if (rc) {
		return rc;
	}
	memcpy(ret_message->fds, conn->fds, conn->nfds * sizeof(int));
	ret_message->nfds = conn->nfds;
	conn->nfds = 0;
	return 1;
}

static int receive(struct conn *conn, struct message *ret_message, struct error *err)
{
	for (;;) {
		uint8_t *to = conn->payload ? conn->payload : conn->header;
		size_t want = FRAME_HEADER_BYTES;

		if (conn->payload) {
			want = conn->frame.payload_bytes + (conn->guard ? CONN_TAG_BYTES : 0);
		}
		if (conn->at < want) {
			ssize_t n = read_some(conn, to + conn->at, want - conn->at, err);

			if (n <= 0) {
				return (int)n;
			}
			conn->at += (size_t)n;
		} else if (conn->payload) {
			return end_frame(conn, ret_message, err);
		} else {
			int rc = begin_payload(conn, err);

			if (rc) {
				return rc;
			}
		}
	}
}

int conn_receive(struct conn *conn, struct message *ret_message, struct error *err)
{
	int rc;

	if (conn->in_failed) {
		return error_set(err, conn->in_failed, "the connection has failed: %s",
			strerror(-conn->in_failed));
	}
	rc = receive(conn, ret_message, err);
	if (rc < 0) {
		close_fds(conn->fds, &conn->nfds);
		conn->in_failed = rc;
		if (rc == -ECONNRESET && !conn->failed) {
			conn->failed = rc;
		}
	}
	return rc;
}
