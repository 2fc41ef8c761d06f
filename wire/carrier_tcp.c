/*
 * Buckets over TCP, for host backends. Before each bucket both sides agree on a
 * header (epoch, sequence, length), so that a stream that is out of step is found
 * and not scattered. The connections are a star: rank 0 serves all peers at once
 * (each has its own place in the bucket, and a slow one does not hold up the
 * others), and what another root sends goes to rank 0, which passes it on.
 */
#include "base/clock.h"
#include "base/util.h"
#include "wire/carrier_ops.h"
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define LOOK_MS 20	      /* how long a wait may last before cancel is looked at */
#define TURN_BYTES (1u << 20) /* what a peer is sent before the next one has its turn */

/* Before each bucket: epoch, sequence, length; little-endian. */
#define HEADER_WORDS 3
#define HEADER_BYTES (HEADER_WORDS * 8)

static void put_header(uint8_t to[HEADER_BYTES], const struct carrier *carrier, uint64_t len_bytes)
{
	const uint64_t words[HEADER_WORDS] = {carrier->epoch, carrier->sequence, len_bytes};

	for (size_t i = 0; i < HEADER_BYTES; i++) {
		to[i] = (uint8_t)(words[i / 8] >> i % 8 * 8);
	}
}

static int check_header(const uint8_t from[HEADER_BYTES], const struct carrier *carrier,
	uint32_t from_rank, uint64_t len_bytes, struct error *err)
{
	unsigned long long words[HEADER_WORDS] = {0};

	for (size_t i = 0; i < HEADER_BYTES; i++) {
		words[i / 8] |= (unsigned long long)from[i] << i % 8 * 8;
	}
	if (words[0] == carrier->epoch && words[1] == carrier->sequence && words[2] == len_bytes) {
		return 0;
	}
	return error_set(err, -EPROTO,
		"the data connection to broker %u is out of step: epoch %llu, bucket %llu, %llu "
		"bytes came; epoch %llu, bucket %llu, %llu bytes were expected",
		from_rank, words[0], words[1], words[2], (unsigned long long)carrier->epoch,
		(unsigned long long)carrier->sequence, (unsigned long long)len_bytes);
}

static int prepare_socket(int fd, uint32_t rank, struct error *err)
{
	int flags = fcntl(fd, F_GETFL), one = 1;

	if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0) {
		int code = errno;

		return error_set(
			err, -code, "the data connection to broker %u: %s", rank, strerror(code));
	}
	/* Fails on the socket pairs of tests, where it means nothing. */
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	return 0;
}

int carrier_tcp_create(struct carrier *carrier, const struct carrier_options *options,
	uint64_t deadline, const atomic_int *cancel, struct error *err)
{
	int rc = 0;

	carrier->fds = malloc(options->ranks * sizeof(*carrier->fds));
	if (!carrier->fds) {
		return error_set(err, -ENOMEM, "out of memory");
	}
	for (uint32_t i = 0; rc == 0 && i < options->ranks; i++) {
		carrier->fds[i] = options->data_fds[i];
		if (carrier->fds[i] >= 0) {
			rc = prepare_socket(carrier->fds[i], i, err);
		}
	}
	if (rc == 0) {
		rc = carrier_tcp_broadcast(carrier, 0, 0, 0, deadline, cancel, err);
	}
	if (rc) {
		free(carrier->fds);
	}
	return rc;
}

void carrier_tcp_destroy(struct carrier *carrier)
{
	for (uint32_t i = 0; i < carrier->ranks; i++) {
		fd_close(&carrier->fds[i]);
	}
	free(carrier->fds);
}

static int look_ms(uint64_t deadline)
{
	int left_ms = deadline_left_ms(deadline);

	return left_ms < 0 ? LOOK_MS : MIN(left_ms, LOOK_MS);
}

static int peer_failed(uint32_t rank, int code, struct error *err)
{
	return error_set(err, -ECONNRESET, "the data connection to broker %u %s%s", rank,
		code ? "failed: " : "was closed", code ? strerror(code) : "");
}

/* One peer's progress through header and bucket. 1: done; 0: the socket is full, or its turn over.
 */
static int send_some(int fd, const uint8_t *header, const uint8_t *bytes, uint64_t len_bytes,
	uint64_t *at, uint32_t rank, struct error *err)
{
	uint64_t end = MIN(HEADER_BYTES + len_bytes, *at + TURN_BYTES);

	while (*at < end) {
		bool in_header = *at < HEADER_BYTES;
		const uint8_t *from = in_header ? header + *at : bytes + (*at - HEADER_BYTES);
		size_t n = in_header ? HEADER_BYTES - *at : end - *at;
		ssize_t sent = send(fd, from, n,
			MSG_NOSIGNAL | MSG_DONTWAIT | (in_header && len_bytes ? MSG_MORE : 0));

		if (sent < 0 && errno == EINTR) {
			continue;
		}
		if (sent < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
			return 0;
		}
		if (sent < 0) {
			return peer_failed(rank, errno, err);
		}
		*at += (uint64_t)sent;
	}
	return *at == HEADER_BYTES + len_bytes;
}

/* To whom this rank sends a bucket of that root. */
static bool sends_to(const struct carrier *carrier, uint32_t root, uint32_t rank)
{
	return rank != carrier->rank && rank != root && (carrier->rank == 0 || rank == 0);
}

static int send_all(struct carrier *carrier, const uint8_t *bytes, uint64_t len_bytes,
	uint32_t root, uint64_t deadline, const atomic_int *cancel, struct pollfd *polls,
	uint64_t *at, struct error *err)
{
	uint8_t header[HEADER_BYTES];

	put_header(header, carrier, len_bytes);
	for (;;) {
		uint32_t left = 0;
		int rc = carrier_waiting(deadline, cancel, "sending a bucket", err);

		if (rc) {
			return rc;
		}
		for (uint32_t i = 0; i < carrier->ranks; i++) {
			polls[i].fd = -1;
			if (!sends_to(carrier, root, i)) {
				continue;
			}
			rc = send_some(carrier->fds[i], header, bytes, len_bytes, &at[i], i, err);
			if (rc < 0) {
				return rc;
			}
			if (rc == 0) {
				polls[i] = (struct pollfd){carrier->fds[i], POLLOUT, 0};
				left++;
			}
		}
		if (left == 0) {
			return 0;
		}
		poll(polls, carrier->ranks, look_ms(deadline));
	}
}

static int send_bucket(struct carrier *carrier, const uint8_t *bytes, uint64_t len_bytes,
	uint32_t root, uint64_t deadline, const atomic_int *cancel, struct error *err)
{
	struct pollfd *polls = calloc(carrier->ranks, sizeof(*polls));
	uint64_t *at = calloc(carrier->ranks, sizeof(*at));
	int rc = 0;

	for (uint32_t i = 0; i < carrier->ranks; i++) {
		if (sends_to(carrier, root, i) && carrier->fds[i] < 0) {
			rc = error_set(err, -ENOTSUP,
				"broker %u cannot send: it has no data connection to broker %u",
				carrier->rank, i);
		}
	}
	if (!polls || !at) {
		rc = error_set(err, -ENOMEM, "out of memory");
	}
	if (rc == 0) {
		rc = send_all(carrier, bytes, len_bytes, root, deadline, cancel, polls, at, err);
	}
	free(polls);
	free(at);
	return rc;
}

static int receive_exactly(struct carrier *carrier, uint32_t from, uint8_t *to, uint64_t len_bytes,
	uint64_t deadline, const atomic_int *cancel, struct error *err)
{
	uint64_t at = 0;

	while (at < len_bytes) {
		int rc = carrier_waiting(deadline, cancel, "receiving a bucket", err);
		ssize_t n;

		if (rc) {
			return rc;
		}
		n = recv(carrier->fds[from], to + at, len_bytes - at, MSG_DONTWAIT);
		if (n > 0) {
			at += (uint64_t)n;
		} else if (n == 0) {
			return peer_failed(from, 0, err);
		} else if (errno == EAGAIN || errno == EWOULDBLOCK) {
			struct pollfd pollfd = {carrier->fds[from], POLLIN, 0};

			poll(&pollfd, 1, look_ms(deadline));
		} else if (errno != EINTR) {
			return peer_failed(from, errno, err);
		}
	}
	return 0;
}

static int receive_bucket(struct carrier *carrier, uint8_t *to, uint64_t len_bytes, uint32_t root,
	uint64_t deadline, const atomic_int *cancel, struct error *err)
{
	uint32_t from = carrier->rank == 0 ? root : 0;
	uint8_t header[HEADER_BYTES];
	int rc;

	if (carrier->fds[from] < 0) {
		return error_set(err, -ENOTSUP, "there is no data connection to broker %u", from);
	}
	rc = receive_exactly(carrier, from, header, HEADER_BYTES, deadline, cancel, err);
	if (rc == 0) {
		rc = check_header(header, carrier, from, len_bytes, err);
	}
	if (rc == 0) {
		rc = receive_exactly(carrier, from, to, len_bytes, deadline, cancel, err);
	}
	if (rc == 0 && carrier->rank == 0) {
		rc = send_bucket(carrier, to, len_bytes, root, deadline, cancel, err);
	}
	return rc;
}

int carrier_tcp_broadcast(struct carrier *carrier, uint64_t address, uint64_t len_bytes,
	uint32_t root, uint64_t deadline, const atomic_int *cancel, struct error *err)
{
	uint8_t *bytes = (uint8_t *)(uintptr_t)address;
	int rc = root == carrier->rank
			 ? send_bucket(carrier, bytes, len_bytes, root, deadline, cancel, err)
			 : receive_bucket(carrier, bytes, len_bytes, root, deadline, cancel, err);

	carrier->sequence++;
	return rc;
}
