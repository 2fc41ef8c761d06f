/* Connections of those who have nothing else to do than to wait: agents and the command line. */
#include "base/clock.h"
#include "ipc/conn.h"
#include <errno.h>
#include <poll.h>
#include <string.h>

static int wait_for(const struct conn *conn, short events, uint64_t deadline, struct error *err)
{
	struct pollfd pollfd = {.fd = conn_fd(conn), .events = events};
	int n;

	do {
		n = poll(&pollfd, 1, deadline_left_ms(deadline));
	} while (n < 0 && errno == EINTR);
	if (n < 0) {
		int rc = -errno;

		return error_set(err, rc, "poll: %s", strerror(-rc));
	}
	if (n == 0) {
		return error_set(err, -ETIMEDOUT, "the peer did not answer in time");
	}
	return 0;
}

int conn_send_wait(struct conn *conn, struct message *message, uint64_t deadline, struct error *err)
{
	int rc = conn_send(conn, message, err);

	while (rc == 0 && conn_wants_write(conn)) {
		rc = wait_for(conn, POLLOUT, deadline, err);
		if (rc == 0) {
			rc = conn_flush(conn);
			if (rc < 0) {
				error_set(err, rc, "cannot send: %s", strerror(-rc));
			} else {
				rc = 0;
			}
		}
	}
	return rc;
}

int conn_receive_wait(
	struct conn *conn, uint64_t deadline, struct message *ret_message, struct error *err)
{
	for (;;) {
		int rc = conn_receive(conn, ret_message, err);

		if (rc) {
			return rc;
		}
		rc = conn_flush(conn);
		rc = wait_for(conn, (short)(POLLIN | (rc == 1 ? POLLOUT : 0)), deadline, err);
		if (rc) {
			return rc;
		}
	}
}
