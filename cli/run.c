/*
 * strew run: the launcher. It starts the broker in a process group of its own
 * (so that Ctrl-C on a terminal reaches the command alone), waits until the
 * broker serves, runs the command with STREW_SOCKET set, and ends with it. A broker that dies
 * before the command is started again, some times; its workers register again by themselves. One
 * that only cannot reach its lead is started again without end.
 *
 * All signals come in through one signalfd, children's ends included, so there
 * is a single place that waits: wait_event(). The broker outlives the command
 * and not the launcher.
 */
#include "base/clock.h"
#include "base/util.h"
#include "cli/cli.h"
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <unistd.h>

#define READY_MS 120000 /* a broker that joins retries for a while */
#define STOP_MS 15000	/* from SIGTERM to SIGKILL */
#define RESTARTS 5	/* of a broker that never lives for long */
#define LONG_MS 60000	/* so long, and what it died of before is forgotten */
#define DELAY_MS 500	/* more before each restart after the first */
#define AWAY_MS 1000	/* before one of a broker whose lead is away */
#define BROKER "strewd"

static const char help[] =
	"Usage: strew run [--socket PATH] [strewd's options] -- COMMAND [ARGUMENT…]\n"
	"\n"
	"Starts this node's broker, waits until it serves, and runs the command with\n"
	"$STREW_SOCKET set. Passes SIGTERM, SIGINT and SIGHUP on to the command, ends with its\n"
	"exit code (128+n if signal n ended it), and then stops the broker. A broker that ends\n"
	"before the command is started again; after five short lives it is left, but one whose\n"
	"lead is away (its code 4) is started as often as it takes.\n"
	"\n"
	"  --socket PATH  the broker's socket (default: a private one, removed at the end)\n"
	"  --help         this text; strewd --help has the options that are passed on\n"
	"\n"
	"Exit codes before the command runs: 1 failure, 2 usage, 3 no usable device, 4 the lead\n"
	"is unreachable; 126 and 127 if the command cannot be run or is not there.\n"
	"\n"
	"Example, one node: strew run -- ./my_engine\n"
	"Example, the second of two: strew run --join 127.0.0.1:7700 -- ./my_engine\n";

struct launch {
	char **broker_argv; /* ends with NULL; points into this struct and the caller's argv */
	char name[8], socket_option[16], ready_option[16], ready_text[16];
	char **command;
	char directory[108]; /* of a private socket; "" if the caller gave one */
	char socket[108];
	int signals; /* signalfd */
	sigset_t old_mask;
	pid_t broker, child; /* 0: not running */
	int broker_status, child_status;
	int ready; /* where the broker says that it serves; -1: it has, or none runs */
	/* the broker's lives */
	uint64_t started_at, restart_at;
	unsigned restarts;
	bool left;	 /* no more of them */
	int interrupted; /* signal that came before the command ran, or after it ended */
};

static int exit_code_of(int status)
{
	return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

static void say_status(const char *what, int status)
{
	if (WIFSIGNALED(status)) {
		fprintf(stderr, "strew run: %s was ended by signal %d (%s)\n", what,
			WTERMSIG(status), strsignal(WTERMSIG(status)));
	} else {
		fprintf(stderr, "strew run: %s ended with code %d\n", what, WEXITSTATUS(status));
	}
}

static void reap(struct launch *launch)
{
	int status;
	pid_t pid;

	while ((pid = waitpid(-1, &status, WNOHANG)) > 0) {
		if (pid == launch->child) {
			launch->child = 0;
			launch->child_status = status;
		} else if (pid == launch->broker) {
			launch->broker = 0;
			launch->broker_status = status;
		}
	}
}

/*
 * Waits for a signal, or for `fd` (-1: none) to be readable. 1: it is, 0: a signal was
 * dealt with, -ETIMEDOUT.
 */
static int wait_event(struct launch *launch, int fd, uint64_t deadline)
{
	struct pollfd fds[2] = {{launch->signals, POLLIN, 0}, {fd, POLLIN, 0}};
	struct signalfd_siginfo info;

	if (poll(fds, fd < 0 ? 1 : 2, deadline_left_ms(deadline)) < 0 && errno != EINTR) {
		return -errno;
	}
	if (fds[0].revents && read(launch->signals, &info, sizeof(info)) == sizeof(info)) {
		if (info.ssi_signo == SIGCHLD) {
			reap(launch);
		} else if (!launch->child) {
			launch->interrupted = (int)info.ssi_signo;
		} else if (info.ssi_code != SI_KERNEL) {
			/* A terminal's signal (SI_KERNEL) has reached the command already. */
			kill(launch->child, (int)info.ssi_signo);
		}
		return 0;
	}
	if (fd >= 0 && fds[1].revents) {
		return 1;
	}
	return deadline_passed(deadline) ? -ETIMEDOUT : 0;
}

/* The strewd that lies beside this program, else the one in $PATH. */
static void exec_broker(char **argv)
{
	char path[4096];
	ssize_t n = readlink("/proc/self/exe", path, sizeof(path) - sizeof(BROKER));
	char *slash;

	if (n > 0) {
		path[n] = '\0';
		slash = strrchr(path, '/');
		if (slash) {
			strcpy(slash + 1, BROKER);
			execv(path, argv);
			if (errno != ENOENT) {
				fprintf(stderr, "strew run: %s: %s\n", path, strerror(errno));
				_exit(EXIT_RUNTIME);
			}
		}
	}
	execvp(BROKER, argv);
	fprintf(stderr, "strew run: %s is neither beside this program nor in $PATH: %s\n", BROKER,
		strerror(errno));
	_exit(EXIT_RUNTIME);
}

/* A pipe whose writing end is no standard descriptor, whatever is open. */
static int open_ready(int ready[2])
{
	int fd;

	if (pipe2(ready, O_CLOEXEC) < 0) {
		ready[0] = ready[1] = -1;
		return -1;
	}
	fd = fcntl(ready[1], F_DUPFD_CLOEXEC, 3);
	fd_close(&ready[1]);
	ready[1] = fd;
	return fd < 0 ? -1 : 0;
}

static int start_broker(struct launch *launch)
{
	pid_t parent = getpid(), pid = -1;
	int ready[2];

	if (open_ready(ready) == 0) {
		snprintf(launch->ready_text, sizeof(launch->ready_text), "%d", ready[1]);
		pid = fork();
	}
	if (pid < 0) {
		fprintf(stderr, "strew run: the broker cannot be started: %s\n", strerror(errno));
		fd_close(&ready[0]);
		fd_close(&ready[1]);
		return -1;
	}
	if (pid == 0) {
		setpgid(0, 0);
		prctl(PR_SET_PDEATHSIG, SIGTERM);
		if (getppid() != parent) {
			_exit(EXIT_RUNTIME); /* it ended before the line above */
		}
		sigprocmask(SIG_SETMASK, &launch->old_mask, NULL);
		fcntl(ready[1], F_SETFD, 0); /* the broker inherits it */
		exec_broker(launch->broker_argv);
	}
	fd_close(&ready[1]);
	launch->ready = ready[0];
	launch->broker = pid;
	launch->started_at = clock_ns();
	return 0;
}

/* The broker has said something, or nothing and closed. */
static bool read_ready(struct launch *launch)
{
	char line[16] = "";
	ssize_t n = read(launch->ready, line, sizeof(line) - 1);

	fd_close(&launch->ready);
	return n > 0 && strncmp(line, "READY=1\n", 8) == 0;
}

/* 0: it serves. Else an exit code, with the reason said. */
static int wait_ready(struct launch *launch)
{
	uint64_t deadline = deadline_in_ms(READY_MS);

	while (launch->broker && !launch->interrupted && launch->ready >= 0) {
		int rc = wait_event(launch, launch->ready, deadline);

		if (rc < 0) {
			fprintf(stderr, "strew run: the broker did not serve within %d s\n",
				READY_MS / 1000);
			return EXIT_RUNTIME;
		}
		if (rc == 1 && read_ready(launch)) {
			return 0;
		}
	}
	if (launch->interrupted) {
		return 128 + launch->interrupted;
	}
	/* The descriptor closes a moment before the process has ended. */
	deadline = deadline_in_ms(STOP_MS);
	while (launch->broker && wait_event(launch, -1, deadline) == 0) {
	}
	if (launch->broker) {
		fputs("strew run: the broker closed --ready-fd without being ready\n", stderr);
		return EXIT_RUNTIME;
	}
	say_status("the broker", launch->broker_status);
	return WIFEXITED(launch->broker_status) && WEXITSTATUS(launch->broker_status)
		       ? WEXITSTATUS(launch->broker_status)
		       : EXIT_RUNTIME;
}

static int start_command(struct launch *launch)
{
	pid_t pid = fork();

	if (pid < 0) {
		fprintf(stderr, "strew run: fork: %s\n", strerror(errno));
		return -1;
	}
	if (pid == 0) {
		sigprocmask(SIG_SETMASK, &launch->old_mask, NULL);
		setenv("STREW_SOCKET", launch->socket, 1);
		execvp(launch->command[0], launch->command);
		fprintf(stderr, "strew run: %s: %s\n", launch->command[0], strerror(errno));
		_exit(errno == ENOENT ? 127 : 126);
	}
	launch->child = pid;
	return 0;
}

/* It has ended before the command. */
static void broker_ended(struct launch *launch)
{
	launch->restart_at = DEADLINE_NEVER;
	if (WIFEXITED(launch->broker_status) &&
		WEXITSTATUS(launch->broker_status) == EXIT_UNREACHABLE) {
		/* Nothing is wrong with it: it goes on trying for as long as the command runs. */
		launch->restart_at = deadline_in_ms(AWAY_MS);
		return;
	}
	if (clock_ns() - launch->started_at > LONG_MS * 1000000ull) {
		launch->restarts = 0;
	}
	if (launch->restarts == RESTARTS) {
		launch->left = true;
		fputs("strew run: the command goes on without it; its weights stay as they are\n",
			stderr);
		return;
	}
	launch->restart_at = deadline_in_ms((int)launch->restarts * DELAY_MS);
	launch->restarts++;
}

static void keep_broker(struct launch *launch)
{
	if (launch->broker || launch->left) {
		return;
	}
	if (launch->restart_at == DEADLINE_NEVER) {
		fd_close(&launch->ready);
		say_status("the broker", launch->broker_status);
		broker_ended(launch);
	}
	if (!launch->left && deadline_passed(launch->restart_at)) {
		launch->restart_at = DEADLINE_NEVER;
		if (start_broker(launch) < 0) {
			broker_ended(launch);
		}
	}
}

static int follow_command(struct launch *launch)
{
	if (launch->interrupted) {
		return 128 + launch->interrupted;
	}
	if (start_command(launch) < 0) {
		return EXIT_RUNTIME;
	}
	launch->restart_at = DEADLINE_NEVER;
	while (launch->child) {
		if (wait_event(launch, launch->ready, launch->restart_at) == 1 &&
			read_ready(launch)) {
			fputs("strew run: the broker serves again\n", stderr);
		}
		keep_broker(launch);
	}
	return exit_code_of(launch->child_status);
}

/* SIGTERM, a deadline, SIGKILL. A signal while it drains is passed on: it leaves at once. */
static void stop_broker(struct launch *launch)
{
	uint64_t deadline = deadline_in_ms(STOP_MS);
	int passed = 0;

	if (!launch->broker) {
		return;
	}
	launch->interrupted = 0;
	kill(launch->broker, SIGTERM);
	while (launch->broker && wait_event(launch, -1, deadline) == 0) {
		if (launch->interrupted && !passed++) {
			kill(launch->broker, SIGTERM);
		}
	}
	if (launch->broker) {
		fprintf(stderr, "strew run: the broker did not stop within %d s and is killed\n",
			STOP_MS / 1000);
		kill(launch->broker, SIGKILL);
		waitpid(launch->broker, &launch->broker_status, 0);
		launch->broker = 0;
	}
}

static int open_signals(struct launch *launch)
{
	sigset_t mask;

	sigemptyset(&mask);
	sigaddset(&mask, SIGCHLD);
	sigaddset(&mask, SIGTERM);
	sigaddset(&mask, SIGINT);
	sigaddset(&mask, SIGHUP);
	sigprocmask(SIG_BLOCK, &mask, &launch->old_mask);
	launch->signals = signalfd(-1, &mask, SFD_CLOEXEC | SFD_NONBLOCK);
	if (launch->signals < 0) {
		fprintf(stderr, "strew run: signalfd: %s\n", strerror(errno));
		return -1;
	}
	return 0;
}

/* A directory that only this user can enter, for a socket that only this run uses. */
static int make_socket(struct launch *launch)
{
	const char *base = getenv("XDG_RUNTIME_DIR");
	int n;

	if (!base || access(base, W_OK) < 0) {
		base = getenv("TMPDIR");
	}
	n = snprintf(launch->directory, sizeof(launch->directory), "%s/strew-run-XXXXXX",
		base ? base : "/tmp");
	if (n < 0 || (size_t)n + sizeof("/broker.sock") > sizeof(launch->socket)) {
		strcpy(launch->directory, "/tmp/strew-run-XXXXXX");
	}
	if (!mkdtemp(launch->directory)) {
		fprintf(stderr, "strew run: %s: %s\n", launch->directory, strerror(errno));
		launch->directory[0] = '\0';
		return -1;
	}
	strcpy(launch->socket, launch->directory);
	strcat(launch->socket, "/broker.sock");
	return 0;
}

static int launch_all(struct launch *launch)
{
	int code = EXIT_RUNTIME;

	if (open_signals(launch) == 0 && start_broker(launch) == 0) {
		code = wait_ready(launch);
		code = code ? code : follow_command(launch);
		stop_broker(launch);
	}
	fd_close(&launch->ready);
	fd_close(&launch->signals);
	return code;
}

/* Is that the option, in full or cut as getopt lets it be cut: to `least` letters? */
static bool is_option(const char *argument, const char *name, size_t least)
{
	size_t n = strcspn(argument, "=");

	return n >= 2 + least && n <= 2 + strlen(name) && strncmp(argument, "--", 2) == 0 &&
	       strncmp(argument + 2, name, n - 2) == 0;
}

static bool take_socket(struct launch *launch, const char *socket)
{
	if (!socket || !socket[0]) {
		fputs("strew run: --socket has no path: leave it out for a private one\n", stderr);
		return false;
	}
	if (!string_copy(launch->socket, sizeof(launch->socket), socket)) {
		fprintf(stderr, "strew run: --socket %s: longer than %zu bytes\n", socket,
			sizeof(launch->socket) - 1);
		return false;
	}
	return true;
}

/* Everything before "--" but --socket is the broker's. 0, or the exit code. */
static int parse(int argc, char **argv, struct launch *launch, bool *ret_help)
{
	size_t n = 0;
	int i;

	/* Ahead of the user's: an option of theirs that lacks its value must not swallow these. */
	launch->broker_argv[n++] = launch->name;
	launch->broker_argv[n++] = launch->socket_option;
	launch->broker_argv[n++] = launch->socket;
	launch->broker_argv[n++] = launch->ready_option;
	launch->broker_argv[n++] = launch->ready_text;
	for (i = 1; i < argc && strcmp(argv[i], "--") != 0; i++) {
		if (strcmp(argv[i], "--help") == 0) {
			fputs(help, stdout);
			*ret_help = true;
			return EXIT_OK;
		}
		/* The last one counts for strewd, which would serve elsewhere, or say it to nobody.
		 */
		if (is_option(argv[i], "ready-fd", 1)) {
			fputs("strew run: --ready-fd is what it waits on itself\n", stderr);
			return EXIT_USAGE;
		}
		if (is_option(argv[i], "socket", 2)) {
			char *value = strchr(argv[i], '=');
			bool next = !value && i + 1 < argc && strcmp(argv[i + 1], "--") != 0;

			if (!take_socket(launch, value ? value + 1 : next ? argv[++i] : NULL)) {
				return EXIT_USAGE;
			}
		} else {
			launch->broker_argv[n++] = argv[i];
		}
	}
	if (i + 1 >= argc) {
		fputs("strew run: \"-- COMMAND\" is wanted; see strew run --help\n", stderr);
		return EXIT_USAGE;
	}
	launch->command = argv + i + 1;
	return EXIT_OK;
}

int cmd_run(int argc, char **argv)
{
	struct launch launch = {.signals = -1,
		.ready = -1,
		.name = BROKER,
		.socket_option = "--socket",
		.ready_option = "--ready-fd"};
	bool helped = false;
	int code;

	launch.broker_argv = calloc((size_t)argc + 6, sizeof(*launch.broker_argv));
	if (!launch.broker_argv) {
		fputs("strew run: out of memory\n", stderr);
		return EXIT_RUNTIME;
	}
	code = parse(argc, argv, &launch, &helped);
	if (!code && !helped) {
		code = launch.socket[0] || make_socket(&launch) == 0 ? launch_all(&launch)
								     : EXIT_RUNTIME;
	}
	if (launch.directory[0]) {
		unlink(launch.socket);
		rmdir(launch.directory);
	}
	free(launch.broker_argv);
	return code;
}
