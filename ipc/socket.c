#include "ipc/socket.h"
#include "base/clock.h"
#include "base/util.h"
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#define BACKLOG 128

int socket_path(const char *option, char ret_path[108], struct error *err)
{
	const char *env = getenv("STREW_SOCKET");
	const char *runtime = getenv("XDG_RUNTIME_DIR");
	char path[512];
	int n;

	/* An unset variable in a script must not lead to another broker than the one meant. */
	if ((option && !*option) || (!option && env && !*env)) {
		return error_set(err, -EINVAL, "%s",
			option ? "the socket's path is empty: leave it out for the default one"
			       : "$STREW_SOCKET is empty: unset it for the default socket");
	}
	if (option) {
		n = snprintf(path, sizeof(path), "%s", option);
	} else if (env) {
		n = snprintf(path, sizeof(path), "%s", env);
	} else if (runtime && *runtime) {
		n = snprintf(path, sizeof(path), "%s/strew/broker.sock", runtime);
	} else {
		n = snprintf(path, sizeof(path), "/tmp/strew-%u/broker.sock", (unsigned)geteuid());
	}
	if (n < 0 || n >= 108) {
		return error_set(err, -ENAMETOOLONG,
			"socket path %.120s…: it has %d bytes, a socket's name holds 107", path, n);
	}
	memcpy(ret_path, path, (size_t)n + 1);
	return 0;
}

/* The kernel cuts a longer path, and serves another one. */
static int check_length(const char *path, struct error *err)
{
	if (strlen(path) >= sizeof(((struct sockaddr_un *)NULL)->sun_path)) {
		return error_set(err, -ENAMETOOLONG,
			"socket path %.120s…: it has %zu bytes, a socket's name holds 107", path,
			strlen(path));
	}
	return 0;
}

static void fill_address(const char *path, struct sockaddr_un *ret_address)
{
	memset(ret_address, 0, sizeof(*ret_address));
	ret_address->sun_family = AF_UNIX;
	string_copy(ret_address->sun_path, sizeof(ret_address->sun_path), path);
}

/* The directory of the socket: ours and nobody else's to write, made if it is missing. */
static int check_directory(const char *path, struct error *err)
{
	char directory[108];
	struct stat st;
	char *slash;

	string_copy(directory, sizeof(directory), path);
	slash = strrchr(directory, '/');
	if (!slash) {
		string_copy(directory, sizeof(directory), ".");
	} else {
		slash[slash == directory] = '\0';
	}
	if (mkdir(directory, 0700) < 0 && errno != EEXIST) {
		return error_set(err, -errno, "cannot make the socket's directory %s: %s",
			directory, strerror(errno));
	}
	if (stat(directory, &st) < 0) {
		return error_set(
			err, -errno, "the socket's directory %s: %s", directory, strerror(errno));
	}
	if (!S_ISDIR(st.st_mode)) {
		return error_set(err, -ENOTDIR, "%s is no directory", directory);
	}
	if ((st.st_uid != geteuid() && st.st_uid != 0) || (st.st_mode & 022)) {
		return error_set(err, -EPERM,
			"the socket's directory %s must belong to this user, and nobody else may "
			"write "
			"to it (chmod 700)",
			directory);
	}
	return 0;
}

/* A process that was sent SIGKILL is expected to end within this time. */
#define DYING_MS 500

/*
 * Connects to see whether somebody serves the path. The listener of a process that was killed is
 * open for a while more, as io_uring ends after it, so what counts is the process that made it:
 * -ECONNREFUSED if it has ended. Its number may belong to another namespace; then what counts is
 * that the connection is hung up.
 */
static int probe(const char *path, struct error *why)
{
	uint64_t deadline = deadline_in_ms(DYING_MS);
	struct peer peer = {0};
	int fd, pidfd, rc;

	do {
		struct pollfd polled[2] = {{.events = POLLIN}, {.events = POLLIN}};
		bool ended;

		rc = socket_connect_unix(path, deadline_in_ms(1000), &fd, why);
		if (rc) {
			return rc;
		}
		pidfd = socket_peer(fd, &peer) == 0 && peer.pid > 0 ? socket_pidfd(peer.pid) : -1;
		polled[0].fd = fd;
		polled[1].fd = pidfd;
		ended = pidfd == -ESRCH;
		rc = ended ? 1 : poll(polled, 2, deadline_left_ms(deadline));
		ended = ended || polled[1].revents;
		fd_close(&fd);
		fd_close(&pidfd);
		if (ended) {
			return error_set(why, -ECONNREFUSED, "%s: the process %d has ended", path,
				(int)peer.pid);
		}
	} while (rc > 0 && !deadline_passed(deadline));
	return 0;
}

/* Removes a dead socket at the path. -EADDRINUSE: a live one; -EEXIST: something else. */
static int clear_path(const char *path, struct error *err)
{
	struct error why;
	struct stat st;
	int rc;

	if (lstat(path, &st) < 0) {
		return errno == ENOENT ? 0
				       : error_set(err, -errno, "%s: %s", path, strerror(errno));
	}
	if (!S_ISSOCK(st.st_mode)) {
		return error_set(err, -EEXIST, "%s exists and is no socket", path);
	}
	rc = probe(path, &why);
	if (rc == 0 || rc == -EAGAIN) {
		return error_set(err, -EADDRINUSE,
			"a broker serves %s already; stop it, or choose another --socket", path);
	}
	if (rc == -EPROTOTYPE) {
		return error_set(err, -EEXIST, "%s exists and is a socket of another type", path);
	}
	/* Only a refusal says that nobody listens. */
	if (rc != -ECONNREFUSED && rc != -ENOENT) {
		return error_set(err, rc, "%s", why.text);
	}
	if (unlink(path) < 0 && errno != ENOENT) {
		return error_set(
			err, -errno, "cannot remove the dead socket %s: %s", path, strerror(errno));
	}
	return 0;
}

static int bind_listen(const char *path, int *ret_fd, struct error *err)
{
	struct sockaddr_un address;
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	int rc;

	if (fd < 0) {
		return error_set(err, -errno, "socket: %s", strerror(errno));
	}
	fill_address(path, &address);
	/* The directory may be wider than 0700 (read by others), so the socket is narrow from
	 * its first moment: fchmod before bind sets the mode that bind gives it. */
	if (fchmod(fd, 0600) < 0 || bind(fd, (struct sockaddr *)&address, sizeof(address)) < 0 ||
		chmod(path, 0600) < 0 || listen(fd, BACKLOG) < 0) {
		rc = -errno;
		fd_close(&fd);
		return error_set(err, rc, "cannot listen at %s: %s", path, strerror(-rc));
	}
	*ret_fd = fd;
	return 0;
}

/*
 * Two brokers that start at once must not both find the path dead. The lock counts only if its
 * file is still at its path: whoever held it before has removed the file, and a third may hold a
 * new one.
 */
static int lock_path(const char *path, int *ret_lock, struct error *err)
{
	struct stat held, there;
	int lock = open(path, O_CREAT | O_RDWR | O_CLOEXEC | O_NOFOLLOW, 0600);

	if (lock < 0) {
		return error_set(err, -errno, "cannot open %s: %s", path, strerror(errno));
	}
	if (flock(lock, LOCK_EX | LOCK_NB) < 0 || fstat(lock, &held) < 0 ||
		stat(path, &there) < 0 || held.st_ino != there.st_ino ||
		held.st_dev != there.st_dev) {
		fd_close(&lock);
		return error_set(
			err, -EADDRINUSE, "another broker is starting here (it holds %s)", path);
	}
	*ret_lock = lock;
	return 0;
}

int socket_listen_unix(const char *path, int *ret_fd, struct error *err)
{
	char lock_name[116];
	int lock, rc = check_length(path, err);

	if (rc == 0) {
		rc = check_directory(path, err);
	}
	if (rc) {
		return rc;
	}
	snprintf(lock_name, sizeof(lock_name), "%s.lock", path);
	rc = lock_path(lock_name, &lock, err);
	if (rc) {
		return rc;
	}
	rc = clear_path(path, err);
	if (rc == 0) {
		rc = bind_listen(path, ret_fd, err);
	}
	unlink(lock_name);
	fd_close(&lock);
	return rc;
}

int socket_connect_unix(const char *path, uint64_t deadline, int *ret_fd, struct error *err)
{
	struct sockaddr_un address;
	int fd, rc = check_length(path, err);

	if (rc) {
		return rc;
	}
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0) {
		return error_set(err, -errno, "socket: %s", strerror(errno));
	}
	fill_address(path, &address);
	/* A Unix socket connects at once or, with a full backlog, says so; then try again. */
	while (connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0) {
		rc = -errno;
		if (rc == -EINTR) {
			continue;
		}
		if (rc == -EAGAIN && !deadline_passed(deadline)) {
			poll(NULL, 0, 5);
			continue;
		}
		fd_close(&fd);
		if (rc == -ENOENT || rc == -ECONNREFUSED) {
			return error_set(err, rc,
				"no broker serves %s: start one (strewd --socket %s) or set "
				"STREW_SOCKET",
				path, path);
		}
		return error_set(err, rc, "cannot connect to %s: %s", path, strerror(-rc));
	}
	*ret_fd = fd;
	return 0;
}

int socket_peer(int fd, struct peer *ret_peer)
{
	struct ucred cred;
	socklen_t len = sizeof(cred);

	if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &cred, &len) < 0) {
		return -errno;
	}
	*ret_peer = (struct peer){cred.pid, cred.uid, cred.gid};
	return 0;
}

int socket_accept(int listener, int *ret_fd)
{
	int fd;

	do {
		fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
	} while (fd < 0 && (errno == EINTR || errno == ECONNABORTED));
	if (fd < 0) {
		return -errno;
	}
	*ret_fd = fd;
	return 0;
}

uint64_t socket_pid_namespace(void)
{
	struct stat st;

	return stat("/proc/self/ns/pid", &st) < 0 ? 0 : (uint64_t)st.st_ino;
}

int socket_pidfd(pid_t pid)
{
	long fd = syscall(SYS_pidfd_open, pid, 0);

	return fd < 0 ? -errno : (int)fd;
}
