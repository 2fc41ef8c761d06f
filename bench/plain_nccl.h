/*
 * Two ranks of plain NCCL beside an update over a wire: broadcasts of the same bytes, in pieces of
 * several lengths, by processes of their own on the brokers' GPUs (part_nccl() of bench/parts.h).
 * The length that is fastest is the raw figure.
 */
#ifndef BENCH_PLAIN_NCCL_H
#define BENCH_PLAIN_NCCL_H

#include "bench/parts.h"

#define PLAIN_NCCL_LENGTHS 3

/* Zero-initialised: there are no ranks. */
struct plain_nccl {
	struct child ranks[2];
	struct part parts[2];
	uint64_t len_bytes;
	struct samples times[PLAIN_NCCL_LENGTHS];
	double own_bytes; /* see plain_nccl_join() */
};

/* Forks them, rank 0 on the first GPU. They broadcast len_bytes at a time. */
void plain_nccl_start(
	struct plain_nccl *nccl, const char *root, const char *other, uint64_t len_bytes);
void plain_nccl_stop(struct plain_nccl *nccl);
bool plain_nccl_there(const struct plain_nccl *nccl);

/*
 * A communicator and a first broadcast. own_bytes is what that took of rank 0's GPU, by the
 * driver's word on what is free there: NCCL's own memory and its kernels, without the rank's
 * buffer and context, which were there before. Where the other rank is on the same GPU, it is half
 * of what the two took.
 */
void plain_nccl_join(struct plain_nccl *nccl);
/* One sample of each length. */
void plain_nccl_measure(struct plain_nccl *nccl);

/* The fastest, borrowed; and what it is called. */
const struct samples *plain_nccl_best(const struct plain_nccl *nccl, const char **ret_name);
/* A figure of each length. */
void plain_nccl_report(const struct plain_nccl *nccl, struct report *report);

#endif
