#include "base/util.h"
#include "fuzz/fuzz.h"
#include "fuzz/stand_ins.h"
#include "ipc/socket.h"
#include <errno.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#define QUEUE 16

/* Connections on their way. */
struct queue {
	struct {
		int fd, listener;
		bool tcp;
	} v[QUEUE];
	unsigned n;
};

static struct queue accepted, dialled, offered;
static bool refuse;

static void put(struct queue *queue, int fd, int listener, bool tcp)
{
	if (queue->n == QUEUE) {
		close(fd);
		return;
	}
	queue->v[queue->n].fd = fd;
	queue->v[queue->n].listener = listener;
	queue->v[queue->n++].tcp = tcp;
}

/* The oldest; of that listener, if it is one. */
static int take(struct queue *queue, int listener, bool *ret_tcp)
{
	for (unsigned i = 0; i < queue->n; i++) {
		int fd = queue->v[i].fd;

		if (listener >= 0 && queue->v[i].listener != listener) {
			continue;
		}
		if (ret_tcp) {
			*ret_tcp = queue->v[i].tcp;
		}
		memmove(&queue->v[i], &queue->v[i + 1], (--queue->n - i) * sizeof(queue->v[0]));
		return fd;
	}
	return -1;
}

static void drop(struct queue *queue)
{
	int fd;

	while ((fd = take(queue, -1, NULL)) >= 0) {
		close(fd);
	}
}

void sockets_drop(void)
{
	drop(&accepted);
	drop(&dialled);
	drop(&offered);
}

void sockets_accept_next(int listener, int fd)
{
	put(&accepted, fd, listener, false);
	eventfd_write(listener, 1);
}

int sockets_dialled(bool *ret_tcp)
{
	return take(&dialled, -1, ret_tcp);
}

void sockets_dial_next(int fd)
{
	put(&offered, fd, -1, false);
}

void sockets_refuse(bool refuse_all)
{
	refuse = refuse_all;
}

int socket_path(const char *option, char ret_path[108], struct error *err)
{
	(void)err;
	string_copy(ret_path, 108, option ? option : "/nowhere/strew");
	return 0;
}

static int listen_at(int *ret_fd)
{
	*ret_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK | EFD_SEMAPHORE);
	return *ret_fd < 0 ? -errno : 0;
}

int socket_listen_unix(const char *path, int *ret_fd, struct error *err)
{
	(void)path;
	(void)err;
	return listen_at(ret_fd);
}

int socket_listen_tcp(
	const char *address, bool keyed, int *ret_fd, uint16_t *ret_port, struct error *err)
{
	(void)keyed;
	(void)address;
	(void)err;
	*ret_port = 1;
	return listen_at(ret_fd);
}

int socket_accept(int listener, int *ret_fd)
{
	int fd = take(&accepted, listener, NULL);
	eventfd_t count;

	if (fd < 0) {
		return -EAGAIN;
	}
	eventfd_read(listener, &count);
	*ret_fd = fd;
	return 0;
}

int socket_connect_unix(const char *path, uint64_t deadline, int *ret_fd, struct error *err)
{
	int fd = take(&offered, -1, NULL);

	(void)deadline;
	if (fd < 0) {
		return error_set(err, -ENOENT, "no broker serves %s", path);
	}
	*ret_fd = fd;
	return 0;
}

/* A name server would be a thread of its own (broker/lookup.c), and none is asked for a number. */
int socket_look_up(
	const char *address, bool keyed, struct socket_place *ret_place, struct error *err)
{
	(void)address;
	(void)keyed;
	(void)err;
	memset(ret_place, 0, sizeof(*ret_place));
	ret_place->numeric = true;
	return 0;
}

int socket_connect_to(
	const struct socket_place *place, const char *address, int *ret_fd, struct error *err)
{
	int pair[2];

	(void)place;
	if (refuse) {
		return error_set(err, -ECONNREFUSED, "cannot connect to %s", address);
	}
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair) < 0) {
		return error_set(err, -errno, "socketpair: %s", strerror(errno));
	}
	put(&dialled, pair[1], -1, true);
	*ret_fd = pair[0];
	return 0;
}

int socket_connect_tcp(const char *address, bool keyed, int *ret_fd, struct error *err)
{
	(void)keyed;
	return socket_connect_to(NULL, address, ret_fd, err);
}

int socket_connected(int fd, const char *address, struct error *err)
{
	(void)fd;
	return refuse ? error_set(err, -ECONNREFUSED, "cannot connect to %s", address) : 0;
}

void socket_remote(int fd, char ret_address[SOCKET_REMOTE_BYTES])
{
	(void)fd;
	strcpy(ret_address, "192.0.2.1:1");
}

int socket_peer(int fd, struct peer *ret_peer)
{
	(void)fd;
	*ret_peer = (struct peer){4123, geteuid(), getegid()};
	return 0;
}

uint64_t socket_pid_namespace(void)
{
	return 42;
}

int socket_pidfd(pid_t pid)
{
	(void)pid;
	return -ENOSYS;
}
