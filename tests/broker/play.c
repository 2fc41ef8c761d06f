#include "broker/play.h"
#include "base/clock.h"
#include "base/util.h"
#include "ipc/socket.h"
#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define ARGS_MAX 24

void sleep_ms(unsigned ms)
{
	poll(NULL, 0, (int)ms);
}

char *read_text(const char *path)
{
	FILE *file = fopen(path, "re");
	char *text = calloc(1, 1 << 20);
	size_t n = 0;

	if (file && text) {
		n = fread(text, 1, (1 << 20) - 1, file);
	}
	if (file) {
		fclose(file);
	}
	if (text) {
		text[n] = '\0';
	}
	return text;
}

static void make_place(struct broker *broker)
{
	if (broker->dir[0]) {
		return;
	}
	snprintf(broker->dir, sizeof(broker->dir), "/tmp/strew-test-XXXXXX");
	assert_non_null(mkdtemp(broker->dir));
	snprintf(broker->socket, sizeof(broker->socket), "%s/socket", broker->dir);
	snprintf(broker->log, sizeof(broker->log), "%s/log", broker->dir);
}

/* In the child: nothing of ours but stdin, stdout, stderr and the kept descriptor. */
static void exec_strewd(const char *const *argv, int out, int err, int keep)
{
	/* A test that failed before it could stop its broker leaves none behind. */
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	dup2(out, STDOUT_FILENO);
	dup2(err, STDERR_FILENO);
	if (keep >= 0) {
		fcntl(keep, F_SETFD, 0);
	}
	execv(STREWD, (char *const *)(uintptr_t)argv);
	_exit(127);
}

void broker_launch(struct broker *broker, const char *const *args, int *ret_ready_fd)
{
	const char *argv[ARGS_MAX] = {STREWD, "--backend", "host", "--slot", "64K", "--socket"};
	int ready[2], log;
	char fd[12];
	size_t n = 6;

	make_place(broker);
	assert_int_equal(pipe2(ready, O_CLOEXEC), 0);
	snprintf(fd, sizeof(fd), "%d", ready[1]);
	argv[n++] = broker->socket;
	argv[n++] = "--ready-fd";
	argv[n++] = fd;
	for (size_t i = 0; args && args[i]; i++) {
		assert_true(n < ARGS_MAX - 1);
		argv[n++] = args[i];
	}
	log = open(broker->log, O_CREAT | O_APPEND | O_WRONLY | O_CLOEXEC, 0600);
	assert_true(log >= 0);
	broker->pid = fork();
	assert_true(broker->pid >= 0);
	if (broker->pid == 0) {
		exec_strewd(argv, log, log, ready[1]);
	}
	close(log);
	close(ready[1]);
	*ret_ready_fd = ready[0];
}

/* The one that the run is about, where it is about one (ctest's label "epoll"). */
static void expect_loop(const struct broker *broker)
{
	const char *name = getenv("STREW_TEST_LOOP");
	char text[48];

	if (name) {
		snprintf(text, sizeof(text), "event loop: %s", name);
		assert_true(broker_said(broker, text));
	}
}

void broker_start(struct broker *broker, const char *const *args)
{
	struct pollfd pollfd = {.events = POLLIN};
	char text[16] = "";

	broker_launch(broker, args, &pollfd.fd);
	if (poll(&pollfd, 1, PATIENCE_MS) != 1 || read(pollfd.fd, text, sizeof(text) - 1) <= 0 ||
		strcmp(text, "READY=1\n") != 0) {
		char *said = read_text(broker->log);

		print_error("strewd is not ready: %s\n", said ? said : "");
		free(said);
		fail();
	}
	close(pollfd.fd);
	expect_loop(broker);
	broker_count_fds(broker);
}

static unsigned count_fds(pid_t pid)
{
	char path[48];
	unsigned n = 0;
	DIR *dir;

	snprintf(path, sizeof(path), "/proc/%d/fd", (int)pid);
	dir = opendir(path);
	while (dir && readdir(dir)) {
		n++;
	}
	if (dir) {
		closedir(dir);
	}
	return n;
}

unsigned broker_fds_now(const struct broker *broker)
{
	return count_fds(broker->pid);
}

unsigned broker_memfds_mapped(const struct broker *broker)
{
	char path[48], line[512];
	unsigned n = 0;
	FILE *maps;

	snprintf(path, sizeof(path), "/proc/%d/maps", (int)broker->pid);
	maps = fopen(path, "re");
	assert_non_null(maps);
	while (fgets(line, sizeof(line), maps)) {
		n += strstr(line, "/memfd:") != NULL;
	}
	fclose(maps);
	return n;
}

void broker_count_fds(struct broker *broker)
{
	struct message reply;
	unsigned seen;

	broker_status(broker, &reply);
	message_finish(&reply);
	/* The observer's own are closed in a moment, which is longer on a busy machine. */
	broker->fds = count_fds(broker->pid);
	do {
		seen = broker->fds;
		sleep_ms(20);
		broker->fds = count_fds(broker->pid);
	} while (broker->fds != seen);
}

static int exit_code(int status)
{
	return WIFEXITED(status) ? WEXITSTATUS(status) : 256 + WTERMSIG(status);
}

int broker_wait(struct broker *broker, int timeout_ms)
{
	uint64_t deadline = deadline_in_ms(timeout_ms);
	int status = 0;
	pid_t pid;

	assert_true(broker->pid > 0);
	while ((pid = waitpid(broker->pid, &status, WNOHANG)) == 0) {
		if (deadline_passed(deadline)) {
			kill(broker->pid, SIGKILL);
			waitpid(broker->pid, &status, 0);
			broker->pid = 0;
			print_error("strewd did not end in %d ms\n", timeout_ms);
			return -ETIMEDOUT;
		}
		sleep_ms(5);
	}
	broker->pid = 0;
	return exit_code(status);
}

int broker_stop(struct broker *broker, int signal)
{
	assert_true(broker->pid > 0);
	kill(broker->pid, signal);
	return broker_wait(broker, PATIENCE_MS);
}

void broker_finish(struct broker *broker)
{
	int rc = broker->pid > 0 ? broker_stop(broker, SIGTERM) : 0;
	const char *names[] = {broker->socket, broker->log};

	if (rc) {
		char *said = read_text(broker->log);

		print_error("strewd ended with %d: %s\n", rc, said ? said : "");
		free(said);
	}
	for (size_t i = 0; i < ARRAY_LEN(names) && broker->dir[0]; i++) {
		unlink(names[i]);
	}
	if (broker->dir[0]) {
		rmdir(broker->dir);
	}
	broker->dir[0] = '\0';
	assert_int_equal(rc, 0);
}

bool broker_said(const struct broker *broker, const char *text)
{
	char *said = read_text(broker->log);
	bool found = said && strstr(said, text);

	free(said);
	return found;
}

/* An observer's question, and its answer. */
static void broker_ask(
	const struct broker *broker, struct message *question, struct message *ret_reply)
{
	uint64_t deadline = deadline_in_ms(SERVED_MS);
	struct message message;
	struct raw raw;
	struct error err = {0};

	raw_open_mute(&raw, broker);
	message_init(&message, MSG_HELLO, 1);
	message.u.hello.protocol = PROTOCOL_VERSION;
	message.u.hello.role = ROLE_OBSERVER;
	raw_send(&raw, &message);
	raw_send(&raw, question);
	for (unsigned i = 0; i < 2; i++) {
		int rc = conn_receive_wait(raw.conn, deadline, ret_reply, &err);

		if (rc != 1) {
			print_error("%s: %s\n", message_name(question->type), err.text);
		}
		assert_int_equal(rc, 1);
		if (i == 0) {
			message_finish(ret_reply);
		}
	}
	raw_close(&raw);
}

void broker_status(const struct broker *broker, struct message *ret_reply)
{
	struct message message;

	message_init(&message, MSG_STATUS, 2);
	broker_ask(broker, &message, ret_reply);
	assert_int_equal(ret_reply->type, MSG_STATUS_REPLY);
}

void broker_last_event(const struct broker *broker, struct message *ret_event)
{
	uint64_t last = 1;
	struct message message;

	for (unsigned i = 0; i < 2; i++) {
		message_init(&message, MSG_EVENTS, 2);
		message.u.events.after = last - 1;
		broker_ask(broker, &message, ret_event);
		assert_int_equal(ret_event->type, MSG_EVENT);
		last = ret_event->u.event.last;
		assert_true(last > 0);
		if (i == 0) {
			message_finish(ret_event);
		}
	}
}

void broker_check(const struct broker *broker)
{
	uint64_t deadline = deadline_in_ms(3000);
	struct message reply;

	broker_status(broker, &reply);
	message_finish(&reply);
	while (count_fds(broker->pid) != broker->fds && !deadline_passed(deadline)) {
		sleep_ms(5);
	}
	assert_int_equal(count_fds(broker->pid), broker->fds);
}

uint32_t broker_group_state(const struct broker *broker, const char *model)
{
	struct message reply;
	uint32_t state = 0;

	broker_status(broker, &reply);
	for (size_t i = 0; i < reply.u.status_reply.ngroups; i++) {
		if (strcmp(reply.u.status_reply.groups[i].model, model) == 0) {
			state = reply.u.status_reply.groups[i].state;
		}
	}
	message_finish(&reply);
	return state;
}

void broker_wait_state(const struct broker *broker, const char *model, uint32_t state)
{
	uint64_t deadline = deadline_in_ms(PATIENCE_MS);

	while (broker_group_state(broker, model) != state && !deadline_passed(deadline)) {
		sleep_ms(5);
	}
	assert_string_equal(
		strew_group_state_name((enum strew_group_state)broker_group_state(broker, model)),
		strew_group_state_name((enum strew_group_state)state));
}

void broker_wait_brokers(const struct broker *broker, size_t n)
{
	uint64_t deadline = deadline_in_ms(PATIENCE_MS);
	struct message reply;
	bool stands;

	do {
		sleep_ms(10);
		broker_status(broker, &reply);
		stands = reply.u.status_reply.nbrokers == n &&
			 (strcmp(reply.u.status_reply.carrier, "none") == 0) == (n == 1);
		message_finish(&reply);
	} while (!stands && !deadline_passed(deadline));
	assert_true(stands);
}

static bool ranks_are(const struct broker *broker, uint32_t present, const char *stage, bool all)
{
	struct message reply;
	struct msg_status_reply *status = &reply.u.status_reply;
	size_t n = 0, models;

	broker_status(broker, &reply);
	for (size_t i = 0; i < status->ntrainers; i++) {
		n += status->trainers[i].present == present &&
		     (!stage || strcmp(status->trainers[i].stage, stage) == 0);
	}
	models = status->ntrainers;
	message_finish(&reply);
	return all ? n == models : n > 0;
}

static void wait_ranks(const struct broker *broker, uint32_t present, const char *stage, bool all)
{
	uint64_t deadline = deadline_in_ms(PATIENCE_MS);

	while (!ranks_are(broker, present, stage, all)) {
		assert_false(deadline_passed(deadline));
		sleep_ms(5);
	}
}

void broker_wait_ranks(const struct broker *broker, uint32_t present, const char *stage)
{
	wait_ranks(broker, present, stage, false);
}

void broker_wait_no_ranks(const struct broker *broker)
{
	wait_ranks(broker, 0, NULL, true);
}

static void read_pipe(int fd, char *ret_text)
{
	size_t at = 0;
	ssize_t n;

	while ((n = read(fd, ret_text + at, RUN_TEXT_BYTES - 1 - at)) > 0) {
		at += (size_t)n;
	}
	ret_text[at] = '\0';
	close(fd);
}

int strewd_run(const char *const *args, char *ret_out, char *ret_err)
{
	const char *argv[ARGS_MAX] = {STREWD};
	struct broker broker = {0};
	int out[2], err[2];

	for (size_t i = 0; args[i]; i++) {
		argv[i + 1] = args[i];
	}
	assert_int_equal(pipe2(out, O_CLOEXEC), 0);
	assert_int_equal(pipe2(err, O_CLOEXEC), 0);
	broker.pid = fork();
	assert_true(broker.pid >= 0);
	if (broker.pid == 0) {
		exec_strewd(argv, out[1], err[1], -1);
	}
	close(out[1]);
	close(err[1]);
	read_pipe(out[0], ret_out);
	read_pipe(err[0], ret_err);
	return broker_wait(&broker, PATIENCE_MS);
}

int raw_socket(const struct broker *broker)
{
	struct error err;
	int fd = -1;

	assert_int_equal(
		socket_connect_unix(broker->socket, deadline_in_ms(PATIENCE_MS), &fd, &err), 0);
	return fd;
}

void raw_open_mute(struct raw *raw, const struct broker *broker)
{
	memset(raw, 0, sizeof(*raw));
	raw->page.fd = -1;
	assert_int_equal(conn_create(raw_socket(broker), true, &raw->conn), 0);
}

void raw_open(struct raw *raw, const struct broker *broker, enum role role)
{
	struct message message;
	struct error err;

	raw_open_mute(raw, broker);
	assert_int_equal(page_create(&raw->page, &err), 0);
	message_init(&message, MSG_HELLO, ++raw->serial);
	message.u.hello.protocol = PROTOCOL_VERSION;
	message.u.hello.role = role;
	message.u.hello.pid = (uint64_t)getpid();
	message.u.hello.pid_namespace = socket_pid_namespace();
	message.fds[0] = dup(raw->page.fd);
	message.nfds = 1;
	raw_send(raw, &message);
	raw_expect(raw, MSG_WELCOME, &message);
	assert_string_equal(message.u.welcome.backend, "host");
	message_finish(&message);
}

void raw_close(struct raw *raw)
{
	conn_destroy(raw->conn);
	raw->conn = NULL;
	page_finish(&raw->page);
}

void raw_send(struct raw *raw, struct message *message)
{
	struct error err = {0};
	int rc = conn_send_wait(raw->conn, message, deadline_in_ms(PATIENCE_MS), &err);

	if (rc) {
		print_error("cannot send %s: %s\n", message_name(message->type), err.text);
	}
	assert_int_equal(rc, 0);
}

void raw_expect(struct raw *raw, enum message_type type, struct message *ret_message)
{
	struct error err = {0};
	int rc = conn_receive_wait(raw->conn, deadline_in_ms(PATIENCE_MS), ret_message, &err);

	/* A broker says it whenever it joins. */
	while (rc == 1 && ret_message->type == MSG_RECALL && type != MSG_RECALL) {
		message_finish(ret_message);
		rc = conn_receive_wait(raw->conn, deadline_in_ms(PATIENCE_MS), ret_message, &err);
	}
	if (rc != 1 || ret_message->type != type) {
		print_error("%s was expected, %s came: %s\n", message_name(type),
			rc == 1 ? message_name(ret_message->type) : "nothing",
			rc == 1 && ret_message->type == MSG_ERROR ? ret_message->u.error.text
								  : err.text);
		fail();
	}
}

void raw_expect_error(struct raw *raw, int code, const char *word)
{
	struct message message;

	raw_expect(raw, MSG_ERROR, &message);
	if (!strstr(message.u.error.text, word) || error_from_wire(message.u.error.code) != code) {
		print_error("%d \"%s\" was expected, %d came: %s\n", code, word,
			error_from_wire(message.u.error.code), message.u.error.text);
	}
	assert_non_null(strstr(message.u.error.text, word));
	assert_int_equal(error_from_wire(message.u.error.code), code);
	message_finish(&message);
}

void raw_expect_end(struct raw *raw)
{
	struct message message;
	struct error err = {0};
	int rc;

	do {
		rc = conn_receive_wait(raw->conn, deadline_in_ms(PATIENCE_MS), &message, &err);
		if (rc == 1) {
			assert_true(message.type == MSG_ERROR || message.type == MSG_RECALL);
			message_finish(&message);
		}
	} while (rc == 1);
	assert_int_equal(rc, -ECONNRESET);
}

void raw_expect_silence(struct raw *raw, int for_ms)
{
	struct message message;
	struct error err = {0};

	assert_int_equal(
		conn_receive_wait(raw->conn, deadline_in_ms(for_ms), &message, &err), -ETIMEDOUT);
}

void tcp_open(struct raw *raw, const char *address)
{
	struct pollfd pollfd = {.events = POLLOUT};
	struct error err = {0};

	memset(raw, 0, sizeof(*raw));
	raw->page.fd = -1;
	assert_int_equal(socket_connect_tcp(address, false, &pollfd.fd, &err), 0);
	assert_int_equal(poll(&pollfd, 1, PATIENCE_MS), 1);
	assert_int_equal(socket_connected(pollfd.fd, address, &err), 0);
	assert_int_equal(conn_create(pollfd.fd, false, &raw->conn), 0);
}

void free_address(char ret_address[32])
{
	struct sockaddr_in address = {.sin_family = AF_INET};
	socklen_t len = sizeof(address);
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	assert_true(fd >= 0);
	assert_int_equal(bind(fd, (struct sockaddr *)&address, sizeof(address)), 0);
	assert_int_equal(getsockname(fd, (struct sockaddr *)&address, &len), 0);
	close(fd);
	snprintf(ret_address, 32, "127.0.0.1:%u", ntohs(address.sin_port));
}

uint64_t raw_answer_check(struct raw *raw, int code, const char *text)
{
	struct message message;
	uint64_t update;

	raw_expect(raw, MSG_CHECK, &message);
	update = message.u.check.update;
	message_finish(&message);
	message_init(&message, MSG_CHECKED, 0);
	message.u.checked.update = update;
	message.u.checked.code = code ? error_to_wire(code) : WIRE_OK;
	string_copy(message.u.checked.text, sizeof(message.u.checked.text), text);
	raw_send(raw, &message);
	return update;
}
