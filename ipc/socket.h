/*
 * Sockets: the node's Unix socket (path, permissions, live or dead, peer) and
 * TCP addresses. All descriptors are CLOEXEC and non-blocking.
 */
#ifndef IPC_SOCKET_H
#define IPC_SOCKET_H

#include "base/error.h"
#include <stdbool.h>
#include <stdint.h>
#include <sys/socket.h>
#include <sys/types.h>

/* --socket, else $STREW_SOCKET, else $XDG_RUNTIME_DIR/strew/broker.sock, else
 * /tmp/strew-UID/broker.sock, into ret_path (108 bytes). -ENAMETOOLONG, named. */
int socket_path(const char *option, char ret_path[108], struct error *err);

/*
 * Listens. Makes the directory 0700 if it is missing (refuses one of another owner, or
 * that others may write), the socket 0600. A live socket at the path: -EADDRINUSE;
 * a dead one is replaced; anything else there: -EEXIST.
 */
int socket_listen_unix(const char *path, int *ret_fd, struct error *err);

/* -ENOENT, -ECONNREFUSED, -EACCES: the sentence names the path and says how to start a broker. */
int socket_connect_unix(const char *path, uint64_t deadline, int *ret_fd, struct error *err);

struct peer {
	pid_t pid;
	uid_t uid;
	gid_t gid;
};
int socket_peer(int fd, struct peer *ret_peer);

/*
 * TCP. "HOST:PORT", "[V6]:PORT", "PORT". Without a key (`keyed`) only loopback addresses are
 * served: -EPERM says so. *ret_port is the port that was bound (useful with port 0).
 */
int socket_listen_tcp(
	const char *address, bool keyed, int *ret_fd, uint16_t *ret_port, struct error *err);

/* Is it written as an address? -EINVAL; nothing is looked up. */
int socket_check_address(const char *address, struct error *err);

/* Where an address leads. */
struct socket_place {
	struct sockaddr_storage bytes;
	socklen_t len;
	bool numeric; /* no name was looked up: it will be the same again */
};
/* May take as long as name servers like to: not for an event loop. */
int socket_look_up(
	const char *address, bool keyed, struct socket_place *ret_place, struct error *err);
/* Starts connecting: the fd polls writable when it is decided; then socket_connected(). `address`
 * is for the sentence. */
int socket_connect_to(
	const struct socket_place *place, const char *address, int *ret_fd, struct error *err);
/* Both. */
int socket_connect_tcp(const char *address, bool keyed, int *ret_fd, struct error *err);
int socket_connected(int fd, const char *address, struct error *err);

/* The address of the other end, as HOST:PORT; "an unknown address" if there is none. */
#define SOCKET_REMOTE_BYTES 64
void socket_remote(int fd, char ret_address[SOCKET_REMOTE_BYTES]);

/* One accept4(); -EAGAIN when there is none. */
int socket_accept(int listener, int *ret_fd);

uint64_t socket_pid_namespace(void); /* inode of /proc/self/ns/pid, 0 if unknown */
int socket_pidfd(pid_t pid);	     /* pidfd_open(2), -errno if the kernel has none */

#endif
