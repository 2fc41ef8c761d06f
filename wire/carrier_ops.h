/* What a carrier's two kinds give to carrier.c. */
#ifndef WIRE_CARRIER_OPS_H
#define WIRE_CARRIER_OPS_H

#include "wire/carrier.h"

struct carrier {
	enum carrier_kind kind;
	uint64_t epoch;
	uint32_t rank, ranks;
	bool broken; /* a broadcast failed */
	/* NCCL */
	struct nccl_comm *comm;
	struct gpu_device *device;
	/* TCP */
	int *fds; /* one a rank, -1 for those that are not connected */
	uint64_t sequence;
};

int carrier_nccl_create(struct carrier *carrier, const struct carrier_options *options,
	uint64_t deadline, const atomic_int *cancel, struct error *err);
int carrier_nccl_broadcast(struct carrier *carrier, const struct carrier_part *parts, size_t nparts,
	uint32_t root, struct gpu_stream *stream, uint64_t deadline, const atomic_int *cancel,
	struct error *err);
int carrier_nccl_poll(struct carrier *carrier, struct error *err);
int carrier_nccl_destroy(struct carrier *carrier, bool abort);

int carrier_tcp_create(struct carrier *carrier, const struct carrier_options *options,
	uint64_t deadline, const atomic_int *cancel, struct error *err);
int carrier_tcp_broadcast(struct carrier *carrier, uint64_t address, uint64_t len_bytes,
	uint32_t root, uint64_t deadline, const atomic_int *cancel, struct error *err);
void carrier_tcp_destroy(struct carrier *carrier);

/* -ECANCELED or -ETIMEDOUT if it is time to stop waiting for `what`, else 0. */
int carrier_waiting(
	uint64_t deadline, const atomic_int *cancel, const char *what, struct error *err);

#endif
