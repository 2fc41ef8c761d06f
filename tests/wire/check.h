/*
 * nccl_check: what its files share. It runs where there is a GPU and NCCL, without a test
 * frame, so that one binary can be carried to such a machine. The parent touches neither: it
 * forks rank 0 (the lead) and, when that asks, a fresh rank 1 (the peer) for each communicator.
 * With differing NCCL_HOSTID both ranks may use one GPU, and talk by sockets.
 */
#ifndef TESTS_WIRE_CHECK_H
#define TESTS_WIRE_CHECK_H

#include "wire/carrier.h"

#define CHECK_BYTES (64u << 20) /* of the broadcast buffer */
#define CHECK_LOOP_BYTES (16u << 20)

enum peer_task {
	PEER_EXCHANGE = 1, /* all sizes from each root, compared; exits 0 */
	PEER_LOOP = 2,	   /* takes broadcasts from rank 0 until it is ended */
};

struct request {
	enum peer_task task; /* 0: wait for the peer `pid`, at most 30 s */
	int pid;
	uint8_t id[UNIQUE_ID_BYTES];
};

struct reply {
	int pid;
	int status; /* of the peer's end, as waitpid() gives it */
};

/* Shared by all processes. */
struct counts {
	_Atomic unsigned checks, failed;
};
extern struct counts *counts;

/* Counts a check and prints its line. */
void check(bool good, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* Ends the process with a line if `rc` is an error: for what the checks stand on. */
void must(int rc, const char *what, const struct error *err);
double seconds_since(uint64_t start_ns);

/* A rank: its device, a buffer there, and host memory that the device reaches. */
struct rank {
	uint32_t number;
	struct gpu *gpu;
	struct gpu_device *device;
	struct gpu_stream *stream;
	struct gpu_event *event;
	struct gpu_memory *buffer, *staging;
	uint8_t *host; /* the staging memory, as the process sees it */
	int memfd;
};

/* -ENODEV or -ENOENT: no GPU or no NCCL. `device` may be NULL. */
int rank_open(struct rank *rank, uint32_t number, const char *device, struct error *err);
void rank_close(struct rank *rank);

int rank_carrier(struct rank *rank, const uint8_t id[UNIQUE_ID_BYTES], int timeout_ms,
	const atomic_int *cancel, struct carrier **ret_carrier, struct error *err);
/* Waits for all that the stream has; with a carrier its errors count too. */
int rank_drain(struct rank *rank, struct carrier *carrier, int timeout_ms, struct error *err);
/* One broadcast and its end. */
int rank_broadcast(struct rank *rank, struct carrier *carrier, uint64_t len_bytes, uint32_t root,
	int timeout_ms, struct error *err);
/* Random data of several sizes from each root, compared bit by bit. -EILSEQ: differs. */
int rank_exchange(struct rank *rank, struct carrier *carrier, struct error *err);

#endif
