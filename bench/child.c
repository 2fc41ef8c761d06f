#include "bench/child.h"
#include "base/clock.h"
#include "base/util.h"
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#define CHILDREN 128
#define STOP_S 10

static struct child *children[CHILDREN]; /* that run */
static pid_t parent_pid;
static const char *logs; /* where the brokers' are kept when it fails */

void bench_fail(int exit_code, const char *format, ...)
{
	va_list args;

	va_start(args, format);
	fputs("strew-bench: ", stderr);
	vfprintf(stderr, format, args);
	fputc('\n', stderr);
	va_end(args);
	if (!parent_pid || getpid() == parent_pid) {
		/* No broker has written into an empty folder: nothing is to be read there. */
		if (logs && rmdir(logs)) {
			fprintf(stderr, "strew-bench: what the brokers said is in %s\n", logs);
		}
		children_kill();
	}
	exit(exit_code);
}

void bench_logs(const char *folder)
{
	logs = folder;
}

void bench_must(int rc, const char *what, const struct error *err)
{
	if (rc < 0) {
		bench_fail(rc == -ENODEV ? 3 : 1, "%s: %s", what,
			err && err->text[0] ? err->text : strerror(-rc));
	}
}

void *bench_need(void *ptr)
{
	if (!ptr) {
		bench_fail(1, "out of memory");
	}
	return ptr;
}

static void remember(struct child *child)
{
	for (size_t i = 0; i < CHILDREN; i++) {
		if (!children[i]) {
			children[i] = child;
			return;
		}
	}
	bench_fail(1, "more than %d processes", CHILDREN);
}

static void forget(struct child *child)
{
	for (size_t i = 0; i < CHILDREN; i++) {
		if (children[i] == child) {
			children[i] = NULL;
		}
	}
}

static pid_t fork_child(void)
{
	pid_t pid;

	if (!parent_pid) {
		parent_pid = getpid();
		signal(SIGPIPE, SIG_IGN);
		atexit(children_kill);
	}
	fflush(NULL);
	pid = fork();
	if (pid < 0) {
		bench_fail(1, "fork: %s", strerror(errno));
	}
	if (pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		if (getppid() != parent_pid) {
			_exit(1);
		}
		/* The other children are the parent's. */
		for (size_t i = 0; i < CHILDREN; i++) {
			if (children[i]) {
				fd_close(&children[i]->fd);
				children[i] = NULL;
			}
		}
	}
	return pid;
}

void child_start(
	struct child *ret_child, const char *name, int (*run)(int fd, void *arg), void *arg)
{
	int pair[2];
	pid_t pid;

	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0) {
		bench_fail(1, "socketpair: %s", strerror(errno));
	}
	pid = fork_child();
	if (pid == 0) {
		close(pair[0]);
		exit(run(pair[1], arg));
	}
	close(pair[1]);
	*ret_child = (struct child){.pid = pid, .fd = pair[0], .name = name};
	remember(ret_child);
}

void child_exec(struct child *ret_child, const char *name, char *const argv[],
	const char *const env[], int log_fd)
{
	pid_t pid = fork_child();

	if (pid == 0) {
		for (size_t i = 0; env && env[i]; i++) {
			putenv((char *)(uintptr_t)env[i]);
		}
		dup2(log_fd >= 0 ? log_fd : STDERR_FILENO, STDOUT_FILENO);
		if (log_fd >= 0) {
			dup2(log_fd, STDERR_FILENO);
		}
		execv(argv[0], argv);
		fprintf(stderr, "strew-bench: %s: %s\n", argv[0], strerror(errno));
		_exit(127);
	}
	*ret_child = (struct child){.pid = pid, .fd = -1, .name = name};
	remember(ret_child);
}

int letter_write(int fd, const struct letter *letter)
{
	union {
		char bytes[CMSG_SPACE(sizeof(int) * CHILD_FDS)];
		struct cmsghdr align;
	} control = {{0}};
	struct iovec iov = {
		(void *)(uintptr_t)letter, offsetof(struct letter, bytes) + letter->len_bytes};
	struct msghdr message = {.msg_iov = &iov, .msg_iovlen = 1};

	if (letter->nfds) {
		struct cmsghdr *header;

		message.msg_control = control.bytes;
		message.msg_controllen = CMSG_SPACE(sizeof(int) * letter->nfds);
		header = CMSG_FIRSTHDR(&message);
		header->cmsg_level = SOL_SOCKET;
		header->cmsg_type = SCM_RIGHTS;
		header->cmsg_len = CMSG_LEN(sizeof(int) * letter->nfds);
		memcpy(CMSG_DATA(header), letter->fds, sizeof(int) * letter->nfds);
	}
	return sendmsg(fd, &message, MSG_NOSIGNAL) < 0 ? -errno : 0;
}

int letter_read(int fd, struct letter *ret_letter)
{
	union {
		char bytes[CMSG_SPACE(sizeof(int) * CHILD_FDS)];
		struct cmsghdr align;
	} control;
	struct iovec iov = {ret_letter, sizeof(*ret_letter)};
	struct msghdr message = {.msg_iov = &iov,
		.msg_iovlen = 1,
		.msg_control = control.bytes,
		.msg_controllen = sizeof(control.bytes)};
	struct cmsghdr *header;
	ssize_t n;

	do {
		n = recvmsg(fd, &message, MSG_CMSG_CLOEXEC);
	} while (n < 0 && errno == EINTR);
	if (n <= 0) {
		return n < 0 ? -errno : 0;
	}
	ret_letter->nfds = 0;
	header = CMSG_FIRSTHDR(&message);
	if (header && header->cmsg_type == SCM_RIGHTS) {
		ret_letter->nfds = (uint32_t)((header->cmsg_len - CMSG_LEN(0)) / sizeof(int));
		memcpy(ret_letter->fds, CMSG_DATA(header), sizeof(int) * ret_letter->nfds);
	}
	return 1;
}

void letter_put(struct letter *letter, const void *bytes, size_t len_bytes)
{
	memcpy(letter->bytes, bytes, len_bytes);
	letter->len_bytes = (uint32_t)len_bytes;
}

bool letter_turn(int fd, struct letter *letter, void (*answer)(void *data, struct letter *letter),
	void *data)
{
	int rc;

	if (letter_read(fd, letter) != 1) {
		return false;
	}
	letter->len_bytes = 0;
	answer(data, letter);
	rc = letter_write(fd, letter);
	for (uint32_t i = 0; i < letter->nfds; i++) {
		fd_close(&letter->fds[i]);
	}
	return rc == 0;
}

void letter_serve(int fd, void (*answer)(void *data, struct letter *letter), void *data)
{
	struct letter *letter = bench_need(calloc(1, sizeof(*letter)));

	while (letter_turn(fd, letter, answer, data)) {
	}
	free(letter);
}

void child_send(struct child *child, const struct letter *letter)
{
	int rc = letter_write(child->fd, letter);

	if (rc < 0) {
		bench_fail(1, "%s is gone", child->name);
	}
}

void child_receive(struct child *child, struct letter *ret_letter, unsigned timeout_s)
{
	struct pollfd poll_fd = {.fd = child->fd, .events = POLLIN};
	uint64_t deadline = deadline_in_ms((int64_t)timeout_s * 1000);
	int rc;

	do {
		rc = poll(&poll_fd, 1, deadline_left_ms(deadline));
	} while (rc < 0 && errno == EINTR);
	if (rc <= 0) {
		bench_fail(1, "%s did not answer within %u s", child->name, timeout_s);
	}
	if (letter_read(child->fd, ret_letter) != 1) {
		bench_fail(1, "%s ended too early", child->name);
	}
	if (ret_letter->rc < 0) {
		bench_fail(ret_letter->rc == -ENODEV ? 3 : 1, "%s: %s", child->name,
			ret_letter->text[0] ? ret_letter->text : strerror(-ret_letter->rc));
	}
}

void child_say(struct child *child, uint32_t what, const void *bytes, size_t len_bytes)
{
	struct letter letter = {.what = what, .len_bytes = (uint32_t)len_bytes};

	if (len_bytes > CHILD_BYTES) {
		bench_fail(1, "a question of %zu bytes", len_bytes);
	}
	if (len_bytes) {
		memcpy(letter.bytes, bytes, len_bytes);
	}
	child_send(child, &letter);
}

void child_ask(struct child *child, uint32_t what, const void *bytes, size_t len_bytes,
	struct letter *ret_letter, unsigned timeout_s)
{
	child_say(child, what, bytes, len_bytes);
	child_receive(child, ret_letter, timeout_s);
}

/* False: it runs still. */
static bool ended_by(struct child *child, uint64_t deadline, unsigned nap_us, int *ret_status)
{
	while (waitpid(child->pid, ret_status, WNOHANG) == 0) {
		if (deadline_passed(deadline)) {
			return false;
		}
		usleep(nap_us);
	}
	return true;
}

static int forget_ended(struct child *child, int status)
{
	forget(child);
	child->pid = 0;
	return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

int child_wait(struct child *child, unsigned timeout_s)
{
	int status = 0;

	if (!ended_by(child, deadline_in_ms((int64_t)timeout_s * 1000), 200, &status)) {
		bench_fail(1, "%s did not end within %u s", child->name, timeout_s);
	}
	return forget_ended(child, status);
}

int child_stop(struct child *child)
{
	int status = 0;

	if (!child->pid) {
		return 0;
	}
	if (child->fd >= 0) {
		fd_close(&child->fd);
	} else {
		kill(child->pid, SIGTERM);
	}
	if (!ended_by(child, deadline_in_ms(STOP_S * 1000), 2000, &status)) {
		kill(child->pid, SIGKILL);
		waitpid(child->pid, &status, 0);
	}
	return forget_ended(child, status);
}

void children_kill(void)
{
	if (getpid() != parent_pid) {
		return;
	}
	for (size_t i = 0; i < CHILDREN; i++) {
		if (children[i] && children[i]->pid) {
			kill(children[i]->pid, SIGKILL);
			waitpid(children[i]->pid, NULL, 0);
			fd_close(&children[i]->fd);
			children[i]->pid = 0;
			children[i] = NULL;
		}
	}
}
