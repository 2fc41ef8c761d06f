/* The sockets of test_wire_tcp: loopback TCP among up to four ranks, and joining over them. */
#ifndef UNIT_TEST_WIRE_TCP_H
#define UNIT_TEST_WIRE_TCP_H

#include "base/clock.h"
#include "base/util.h"
#include "support/test_main.h"
#include "wire/carrier.h"
#include <netinet/in.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#define RANKS_MAX 4

/* sockets.fd[a][b] is a's end of the connection to b; a or b is 0. */
struct sockets {
	uint32_t ranks;
	int fd[RANKS_MAX][RANKS_MAX];
};

static inline void tcp_pair(int ret_pair[2])
{
	struct sockaddr_in address = {
		.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	socklen_t len = sizeof(address);
	int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	assert_true(listener >= 0);
	assert_int_equal(bind(listener, (struct sockaddr *)&address, len), 0);
	assert_int_equal(listen(listener, 1), 0);
	assert_int_equal(getsockname(listener, (struct sockaddr *)&address, &len), 0);
	ret_pair[0] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	assert_int_equal(connect(ret_pair[0], (struct sockaddr *)&address, len), 0);
	ret_pair[1] = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
	assert_true(ret_pair[1] >= 0);
	close(listener);
}

static inline void sockets_open(struct sockets *sockets, uint32_t ranks)
{
	sockets->ranks = ranks;
	memset(sockets->fd, -1, sizeof(sockets->fd));
	for (uint32_t rank = 1; rank < ranks; rank++) {
		int pair[2];

		tcp_pair(pair);
		sockets->fd[0][rank] = pair[0];
		sockets->fd[rank][0] = pair[1];
	}
}

/* Closes every end that is not `rank`'s. */
static inline void sockets_keep(struct sockets *sockets, uint32_t rank)
{
	for (uint32_t a = 0; a < sockets->ranks; a++) {
		for (uint32_t b = 0; b < sockets->ranks && a != rank; b++) {
			fd_close(&sockets->fd[a][b]);
		}
	}
}

static inline int join_epoch(struct sockets *sockets, uint32_t rank, uint64_t epoch, int timeout_ms,
	struct carrier **ret_carrier, struct error *err)
{
	struct carrier_options options = {.kind = CARRIER_TCP,
		.epoch = epoch,
		.rank = rank,
		.ranks = sockets->ranks,
		.data_fds = sockets->fd[rank]};

	return carrier_create(&options, deadline_in_ms(timeout_ms), NULL, ret_carrier, err);
}

static inline int broadcast(struct carrier *carrier, void *buf, uint64_t len_bytes, uint32_t root,
	int timeout_ms, struct error *err)
{
	const struct carrier_part part = {(uintptr_t)buf, len_bytes};

	return carrier_broadcast(
		carrier, &part, 1, root, NULL, deadline_in_ms(timeout_ms), NULL, err);
}

static inline int wait_child(pid_t pid)
{
	int status = 0;

	assert_int_equal(waitpid(pid, &status, 0), pid);
	return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

static inline uint64_t elapsed_ms(uint64_t since)
{
	return (clock_ns() - since) / 1000000u;
}

#endif
