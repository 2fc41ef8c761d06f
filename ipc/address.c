/* TCP addresses: "HOST:PORT", "[V6]:PORT", "PORT"; loopback only without a key. */
#include "base/clock.h"
#include "base/log.h"
#include "base/util.h"
#include "ipc/socket.h"
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define BACKLOG 128

static int split(const char *text, char host[128], char port[16], struct error *err)
{
	const char *colon = strrchr(text, ':'), *start = text;
	size_t len = colon ? (size_t)(colon - text) : 0;
	uint64_t number;

	if (!string_copy(port, 16, colon ? colon + 1 : text) ||
		parse_u64(port, 0, 65535, &number) || len >= 128) {
		return error_set(err, -EINVAL, "%.100s is no address: HOST:PORT is wanted", text);
	}
	if (!colon) {
		string_copy(host, 128, "127.0.0.1");
		return 0;
	}
	if (len >= 2 && text[0] == '[' && text[len - 1] == ']') {
		start++;
		len -= 2;
	}
	memcpy(host, start, len);
	host[len] = '\0';
	if (len == 0) {
		return error_set(err, -EINVAL, "%.100s is no address: the host is missing", text);
	}
	return 0;
}

int socket_check_address(const char *address, struct error *err)
{
	char host[128], port[16];

	return split(address, host, port, err);
}

static bool loopback(const struct sockaddr *address)
{
	if (address->sa_family == AF_INET) {
		const struct sockaddr_in *v4 = (const void *)address;

		return ntohl(v4->sin_addr.s_addr) >> 24 == 127;
	}
	if (address->sa_family == AF_INET6) {
		return IN6_IS_ADDR_LOOPBACK(
			&((const struct sockaddr_in6 *)(const void *)address)->sin6_addr);
	}
	return false;
}

/* One of the addresses: IPv4 if there is one, so that "localhost" and "127.0.0.1" meet. */
static const struct addrinfo *choose(const struct addrinfo *found)
{
	for (const struct addrinfo *one = found; one; one = one->ai_next) {
		if (one->ai_family == AF_INET) {
			return one;
		}
	}
	return found;
}

static int resolve(const char *text, bool keyed, struct addrinfo **ret_found, struct error *err)
{
	struct addrinfo hints = {
		.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM, .ai_flags = AI_NUMERICSERV};
	char host[128], port[16];
	int rc = split(text, host, port, err);

	if (rc) {
		return rc;
	}
	rc = getaddrinfo(host, port, &hints, ret_found);
	if (rc) {
		return error_set(err, -ENOENT, "%.100s: %s", text, gai_strerror(rc));
	}
	if (!keyed && !loopback(choose(*ret_found)->ai_addr)) {
		freeaddrinfo(*ret_found);
		return error_set(err, -EPERM,
			"%.100s: only loopback addresses are served without a key: give all "
			"brokers a "
			"copy of one --key-file",
			text);
	}
	return 0;
}

static int bound_port(int fd, uint16_t *ret_port)
{
	struct sockaddr_storage address;
	socklen_t len = sizeof(address);

	if (getsockname(fd, (struct sockaddr *)&address, &len) < 0) {
		return -errno;
	}
	*ret_port = ntohs(address.ss_family == AF_INET
				  ? ((struct sockaddr_in *)(void *)&address)->sin_port
				  : ((struct sockaddr_in6 *)(void *)&address)->sin6_port);
	return 0;
}

/* The listener of a process that was killed lives until the kernel has ended its io_uring, which
 * took more than three seconds under load. */
static int bind_soon(int fd, const struct addrinfo *address, const char *text)
{
	uint64_t deadline = deadline_in_ms(LIMIT_PORT_FREE_MS);
	bool said = false;

	while (bind(fd, address->ai_addr, address->ai_addrlen) < 0) {
		if (errno != EADDRINUSE || deadline_passed(deadline)) {
			return -1;
		}
		if (!said) {
			log_info("the port of %s is in use: waits for up to %u s for it to be free",
				text, LIMIT_PORT_FREE_MS / 1000);
			said = true;
		}
		poll(NULL, 0, 10);
	}
	return 0;
}

int socket_listen_tcp(
	const char *address, bool keyed, int *ret_fd, uint16_t *ret_port, struct error *err)
{
	const struct addrinfo *chosen;
	struct addrinfo *found;
	int one = 1, fd, rc;

	rc = resolve(address, keyed, &found, err);
	if (rc) {
		return rc;
	}
	chosen = choose(found);
	fd = socket(chosen->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one)) < 0 ||
		bind_soon(fd, chosen, address) < 0 || listen(fd, BACKLOG) < 0) {
		rc = -errno;
	} else {
		rc = bound_port(fd, ret_port);
	}
	freeaddrinfo(found);
	if (rc) {
		fd_close(&fd);
		return error_set(err, rc, "cannot listen at %.100s: %s%s", address, strerror(-rc),
			rc == -EADDRINUSE ? ": choose another port" : "");
	}
	*ret_fd = fd;
	return 0;
}

int socket_look_up(
	const char *address, bool keyed, struct socket_place *ret_place, struct error *err)
{
	const struct addrinfo *chosen;
	char host[128], port[16];
	struct addrinfo *found;
	uint8_t number[16];
	int rc = resolve(address, keyed, &found, err);

	if (rc) {
		return rc;
	}
	chosen = choose(found);
	memset(ret_place, 0, sizeof(*ret_place));
	memcpy(&ret_place->bytes, chosen->ai_addr, chosen->ai_addrlen);
	ret_place->len = chosen->ai_addrlen;
	ret_place->numeric =
		split(address, host, port, NULL) == 0 &&
		(inet_pton(AF_INET, host, number) == 1 || inet_pton(AF_INET6, host, number) == 1);
	freeaddrinfo(found);
	return 0;
}

int socket_connect_to(
	const struct socket_place *place, const char *address, int *ret_fd, struct error *err)
{
	int one = 1, rc = 0;
	int fd = socket(place->bytes.ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	if (fd < 0) {
		rc = -errno;
	} else {
		setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
		if (connect(fd, (const struct sockaddr *)&place->bytes, place->len) < 0 &&
			errno != EINPROGRESS) {
			rc = -errno;
		}
	}
	if (rc) {
		fd_close(&fd);
		return error_set(err, rc, "cannot connect to %.100s: %s", address, strerror(-rc));
	}
	*ret_fd = fd;
	return 0;
}

int socket_connect_tcp(const char *address, bool keyed, int *ret_fd, struct error *err)
{
	struct socket_place place;
	int rc = socket_look_up(address, keyed, &place, err);

	return rc ? rc : socket_connect_to(&place, address, ret_fd, err);
}

int socket_connected(int fd, const char *address, struct error *err)
{
	socklen_t len = sizeof(int);
	int code = 0;

	if (getsockopt(fd, SOL_SOCKET, SO_ERROR, &code, &len) < 0) {
		code = errno;
	}
	return code ? error_set(err, -code, "cannot connect to %.100s: %s", address, strerror(code))
		    : 0;
}

void socket_remote(int fd, char ret_address[SOCKET_REMOTE_BYTES])
{
	struct sockaddr_storage address;
	socklen_t len = sizeof(address);
	char host[INET6_ADDRSTRLEN], port[8];

	if (getpeername(fd, (struct sockaddr *)&address, &len) < 0 ||
		getnameinfo((struct sockaddr *)&address, len, host, sizeof(host), port,
			sizeof(port), NI_NUMERICHOST | NI_NUMERICSERV)) {
		string_copy(ret_address, SOCKET_REMOTE_BYTES, "an unknown address");
		return;
	}
	snprintf(ret_address, SOCKET_REMOTE_BYTES,
		address.ss_family == AF_INET6 ? "[%s]:%s" : "%s:%s", host, port);
}
