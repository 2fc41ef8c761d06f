#include "cli/ask.h"
#include "base/clock.h"
#include "base/util.h"
#include "cli/cli.h"
#include "ipc/socket.h"
#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <unistd.h>

int ask_check(const struct message *answer, enum message_type wanted, struct error *err)
{
	if (answer->type == wanted) {
		return 0;
	}
	if (answer->type == MSG_ERROR) {
		return error_set(err, error_from_wire(answer->u.error.code), "the broker says: %s",
			answer->u.error.text);
	}
	return error_set(err, -EPROTO, "the broker answered with %s instead of %s",
		message_name(answer->type), message_name(wanted));
}

int ask(struct conn *conn, struct message *question, enum message_type wanted,
	struct message *ret_answer, struct error *err)
{
	uint64_t deadline = deadline_in_ms(ASK_MS);
	struct message answer;
	int rc = conn_send_wait(conn, question, deadline, err);

	if (rc >= 0) {
		rc = conn_receive_wait(conn, deadline, &answer, err);
	}
	if (rc < 0) {
		return rc;
	}
	rc = ask_check(&answer, wanted, err);
	if (rc) {
		message_finish(&answer);
	} else {
		*ret_answer = answer;
	}
	return rc;
}

int ask_connect(
	const char *path, struct conn **ret_conn, struct message *ret_welcome, struct error *err)
{
	struct message hello;
	struct conn *conn;
	int fd, rc;

	/* Whatever keeps it from connecting, nobody has answered. */
	if (socket_connect_unix(path, deadline_in_ms(ASK_MS), &fd, err) < 0) {
		return -ECONNRESET;
	}
	rc = conn_create(fd, true, &conn);
	if (rc < 0) {
		close(fd);
		return error_set(err, rc, "out of memory");
	}
	message_init(&hello, MSG_HELLO, 1);
	hello.u.hello.protocol = PROTOCOL_VERSION;
	hello.u.hello.role = ROLE_OBSERVER; /* owns no memory, so it needs no page */
	hello.u.hello.pid = (uint64_t)getpid();
	hello.u.hello.pid_namespace = socket_pid_namespace();
	string_copy(hello.u.hello.library, sizeof(hello.u.hello.library), STREW_VERSION);
	rc = ask(conn, &hello, MSG_WELCOME, ret_welcome, err);
	if (rc) {
		error_prefix(err, "%s", path);
		conn_destroy(conn);
		return rc;
	}
	*ret_conn = conn;
	return 0;
}

static bool silent(int rc)
{
	return rc == -ETIMEDOUT || rc == -ECONNRESET || rc == -EPIPE;
}

int ask_failed(const char *program, int rc, const struct error *err)
{
	fprintf(stderr, "%s: %s\n", program, err->text);
	return silent(rc) ? EXIT_UNREACHABLE : EXIT_RUNTIME;
}

int ask_open(const char *program, const char *socket, struct conn **ret_conn)
{
	struct error err = {0};
	struct message welcome;
	char path[108];
	int rc;

	*ret_conn = NULL;
	if (socket_path(socket, path, &err) < 0) {
		fprintf(stderr, "%s: %s\n", program, err.text);
		return EXIT_USAGE;
	}
	rc = ask_connect(path, ret_conn, &welcome, &err);
	if (rc) {
		return ask_failed(program, rc, &err);
	}
	message_finish(&welcome);
	return EXIT_OK;
}
