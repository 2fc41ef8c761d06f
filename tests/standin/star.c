/*
 * The stand-in for NCCL: bytes between ranks, by loopback TCP. Each part of a broadcast has a
 * header that all ranks compare, so that brokers which cut an update differently are found.
 */
#include "tests/standin/nccl.h"
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define CHUNK_BYTES 65536u
#define LOOK_MS 2 /* how often somebody who waits looks whether he is aborted */
#define HELLO 0x4e43434cu

struct header {
	uint64_t sequence, len_bytes;
	int64_t root;
};

/* Waits until the socket can. False: aborted. */
static bool can(struct nccl_comm *comm, int fd, short events)
{
	struct pollfd pollfd = {fd, events, 0};

	while (!atomic_load(&comm->aborted)) {
		if (poll(&pollfd, 1, LOOK_MS) == 1) {
			return true;
		}
	}
	return false;
}

static bool transfer(struct nccl_comm *comm, int fd, bool sends, void *bytes, size_t n)
{
	char *at = bytes;

	while (n) {
		ssize_t done;

		if (!can(comm, fd, sends ? POLLOUT : POLLIN)) {
			return false;
		}
		done = sends ? send(fd, at, n, MSG_NOSIGNAL | MSG_DONTWAIT)
			     : recv(fd, at, n, MSG_DONTWAIT);
		if (done == 0 || (done < 0 && errno != EAGAIN && errno != EINTR)) {
			return false;
		}
		at += done > 0 ? done : 0;
		n -= done > 0 ? (size_t)done : 0;
	}
	return true;
}

/* Rank 0: to all others but one. Else: to rank 0. */
static bool send_on(struct nccl_comm *comm, int but, void *bytes, size_t n)
{
	for (int i = 0; i < comm->ranks; i++) {
		if (comm->fds[i] >= 0 && i != but &&
			!transfer(comm, comm->fds[i], true, bytes, n)) {
			return false;
		}
	}
	return true;
}

static bool take_in(struct nccl_comm *comm)
{
	for (int n = 1; n < comm->ranks; n++) {
		uint32_t hello[2];
		int fd;

		if (!can(comm, comm->listener, POLLIN)) {
			return false;
		}
		fd = accept4(comm->listener, NULL, NULL, SOCK_CLOEXEC);
		if (fd < 0 || !transfer(comm, fd, false, hello, sizeof(hello)) ||
			hello[0] != HELLO || hello[1] == 0 || hello[1] >= (uint32_t)comm->ranks ||
			comm->fds[hello[1]] >= 0) {
			if (fd >= 0) {
				close(fd);
			}
			return false;
		}
		comm->fds[hello[1]] = fd;
	}
	close(comm->listener);
	comm->listener = -1;
	return true;
}

bool star_connect(struct nccl_comm *comm)
{
	struct sockaddr_in address = {.sin_family = AF_INET,
		.sin_addr.s_addr = htonl(INADDR_LOOPBACK),
		.sin_port = htons(comm->port)};
	uint32_t hello[2] = {HELLO, (uint32_t)comm->rank};

	if (comm->rank == 0) {
		return (comm->ranks == 1 || comm->listener >= 0) && take_in(comm) &&
		       star_meet(comm);
	}
	comm->fds[0] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	return comm->fds[0] >= 0 &&
	       connect(comm->fds[0], (struct sockaddr *)&address, sizeof(address)) == 0 &&
	       transfer(comm, comm->fds[0], true, hello, sizeof(hello)) && star_meet(comm);
}

bool star_meet(struct nccl_comm *comm)
{
	char byte = 'm';

	if (comm->rank) {
		return send_on(comm, -1, &byte, 1) &&
		       transfer(comm, comm->fds[0], false, &byte, 1) && byte == 'm';
	}
	for (int i = 1; i < comm->ranks; i++) {
		if (!transfer(comm, comm->fds[i], false, &byte, 1) || byte != 'm') {
			return false;
		}
	}
	return send_on(comm, -1, &byte, 1);
}

/* What the part is, as its root has it. All ranks must mean the same one. */
static bool agree(struct nccl_comm *comm, const struct part *part)
{
	struct header mine = {comm->sequence++, part->len_bytes, part->root}, said = mine;
	int source = comm->rank ? 0 : part->root;

	if (comm->rank != part->root &&
		!transfer(comm, comm->fds[source], false, &said, sizeof(said))) {
		return false;
	}
	if (memcmp(&said, &mine, sizeof(said)) != 0) {
		fprintf(stderr,
			"standin: rank %d broadcasts %llu bytes of rank %lld, rank %d has %llu of "
			"%lld\n",
			source, (unsigned long long)said.len_bytes, (long long)said.root,
			comm->rank, (unsigned long long)mine.len_bytes, (long long)mine.root);
		atomic_store(&comm->state, INVALID_USAGE);
		return false;
	}
	return (comm->rank && comm->rank != part->root) ||
	       send_on(comm, part->root, &said, sizeof(said));
}

/* False: `*ret_result` is a fault of memory, or 0 and the peer is lost. */
static bool pass(const struct broadcasts *work, int device, const struct part *part, char *buffer,
	unsigned *ret_result)
{
	struct nccl_comm *comm = work->comm;
	bool sends = comm->rank == part->root;

	for (size_t at = 0; at < part->len_bytes; at += CHUNK_BYTES) {
		size_t left = part->len_bytes - at, n = left < CHUNK_BYTES ? left : CHUNK_BYTES;

		if (sends) {
			*ret_result = work->driver.bytes(device, part->from + at, buffer, n, false);
			buffer[0] ^= part->fault.kind == FAULT_FLIP && at == 0 ? 4 : 0;
		} else if (!transfer(comm, comm->fds[comm->rank ? 0 : part->root], false, buffer,
				   n)) {
			return false;
		}
		if (*ret_result == 0 && !(sends && part->from == part->to) &&
			!(sends && part->fault.kind == FAULT_FLIP)) {
			*ret_result = work->driver.bytes(device, part->to + at, buffer, n, true);
		}
		if (*ret_result ||
			((sends || comm->rank == 0) && !send_on(comm, part->root, buffer, n))) {
			return false;
		}
	}
	return true;
}

static void wait_for_abort(struct nccl_comm *comm)
{
	while (!atomic_load(&comm->aborted)) {
		standin_nap(LOOK_MS * 1000);
	}
}

static void hold(struct nccl_comm *comm, const struct fault *fault)
{
	if (fault->kind == FAULT_SLOW) {
		standin_nap(fault->argument * 1000);
	}
	while (fault->kind == FAULT_STALL && standin_planned(fault->plan) &&
		!atomic_load(&comm->aborted)) {
		standin_nap(LOOK_MS * 1000);
	}
	if (fault->kind == FAULT_ASYNC || fault->kind == FAULT_STICKY) {
		atomic_store(&comm->state, fault->argument);
		wait_for_abort(comm);
	}
}

unsigned star_broadcast(int device, void *data)
{
	struct broadcasts *work = data;
	struct nccl_comm *comm = work->comm;
	char *buffer = malloc(CHUNK_BYTES);
	unsigned result = 0;

	for (size_t i = 0; i < work->nparts && device >= 0 && result == 0; i++) {
		hold(comm, &work->parts[i].fault);
		if (buffer && !atomic_load(&comm->aborted) && agree(comm, &work->parts[i]) &&
			pass(work, device, &work->parts[i], buffer, &result)) {
			continue;
		}
		if (result == 0) {
			unsigned fine = NCCL_SUCCESS;

			atomic_compare_exchange_strong(&comm->state, &fine, REMOTE_ERROR);
			wait_for_abort(comm);
		}
		break;
	}
	free(buffer);
	COUNT(broadcasts, -1);
	comm_put(comm);
	free(work);
	return result;
}
