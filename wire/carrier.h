/*
 * A carrier takes the buckets of one epoch from their root to every other
 * broker: NCCL between GPUs, TCP between host backends. Used by the mover's thread.
 */
#ifndef WIRE_CARRIER_H
#define WIRE_CARRIER_H

#include "wire/nccl.h"
#include <stdatomic.h>

struct carrier;

struct carrier_options {
	enum carrier_kind kind;
	uint64_t epoch;
	uint32_t rank, ranks;
	struct gpu_device *device;	    /* of the slots */
	uint8_t unique_id[UNIQUE_ID_BYTES]; /* NCCL */
	int *data_fds; /* TCP: ranks entries, a connected socket or -1: rank 0 has one to each other
			  rank, the others one to rank 0; taken on success */
	bool *ret_given; /* set once there is a communicator of which something may stay behind,
			    whatever becomes of it; may be NULL */
};

/*
 * Makes the communicator and warms it (a first broadcast), waiting for at most the deadline.
 * `cancel` (may be NULL) is looked at while waiting: nonzero gives -ECANCELED. -ETIMEDOUT: a rank
 * did not come. -EINVAL: no such rank or kind. On failure nothing is left but what NCCL itself
 * leaks. -ENOTRECOVERABLE: even its abort hangs; what it uses is left to it, and the process must
 * end.
 */
int carrier_create(const struct carrier_options *options, uint64_t deadline,
	const atomic_int *cancel, struct carrier **ret_carrier, struct error *err);

/* A stretch of a bucket, where this rank has it or wants it. */
struct carrier_part {
	uint64_t address, len_bytes;
};

/*
 * Sends the root's parts to those of every rank, which are as many and as long. NCCL: enqueues
 * them all at once on the stream and returns; done when the stream is. TCP: done on return. In
 * order; the ranks agree on the sequence of calls. -ETIMEDOUT, -ECANCELED, -ECONNRESET, -EPROTO
 * (out of step), -EIO: the carrier is broken, and every later broadcast is -EIO. -ENOTSUP: this
 * rank lacks a TCP connection of the star.
 */
int carrier_broadcast(struct carrier *carrier, const struct carrier_part *parts, size_t nparts,
	uint32_t root, struct gpu_stream *stream, uint64_t deadline, const atomic_int *cancel,
	struct error *err);

/* Asynchronous errors so far: 0, or the error. Never blocks. */
int carrier_poll(struct carrier *carrier, struct error *err);

/*
 * Ends it in order (`abort` false, after the last broadcast is done) or at once. A hang in NCCL
 * is waited for in another thread for LIMIT_ABORT_MS; -ETIMEDOUT then: the process must end.
 * In order, a peer that does not take part turns the end into an abort after half of that.
 * Frees the carrier in any case. NULL is fine.
 */
int carrier_destroy(struct carrier *carrier, bool abort);

#endif
