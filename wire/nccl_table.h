/*
 * The part of NCCL's interface that strew calls, declared by itself so that
 * building needs no NCCL. nccl_check.c compares it with nccl.h where that is found.
 */
#ifndef WIRE_NCCL_TABLE_H
#define WIRE_NCCL_TABLE_H

#include "ipc/messages.h"
#include <limits.h>
#include <stddef.h>

struct nccl_comm;
struct nccl_stream;

enum nccl_result { NCCL_SUCCESS = 0, NCCL_REMOTE_ERROR = 6, NCCL_IN_PROGRESS = 7 };
enum nccl_type { NCCL_UINT8 = 1 };

typedef struct nccl_id {
	char bytes[UNIQUE_ID_BYTES];
} nccl_id; /* a typedef, because the check puts the vendor's nameless struct in its place */

/*
 * ncclConfig_t of 2.28. A library of another version takes the first `size` bytes that it knows
 * and its own defaults for the rest, so that an older and a newer one accept this too.
 */
struct nccl_config {
	size_t size;
	unsigned magic, version;
	int blocking, cga_cluster_size, min_ctas, max_ctas;
	const char *net_name;
	int split_share, traffic_class;
	const char *comm_name;
	int collnet_enable, cta_policy, shrink_share, nvls_ctas;
	int channels_per_net_peer, nvlink_centric;
};
#define NCCL_CONFIG_MAGIC 0xcafebeefu
#define NCCL_CONFIG_VERSION 22809u /* of the nccl.h that has these fields */
#define NCCL_UNDEFINED INT_MIN	   /* the library's default */

#define NCCL_CONFIG_DEFAULTS                                                                       \
	{                                                                                          \
		.size = sizeof(struct nccl_config), .magic = NCCL_CONFIG_MAGIC,                    \
		.version = NCCL_CONFIG_VERSION, .blocking = NCCL_UNDEFINED,                        \
		.cga_cluster_size = NCCL_UNDEFINED, .min_ctas = NCCL_UNDEFINED,                    \
		.max_ctas = NCCL_UNDEFINED, .net_name = NULL, .split_share = NCCL_UNDEFINED,       \
		.traffic_class = NCCL_UNDEFINED, .comm_name = NULL,                                \
		.collnet_enable = NCCL_UNDEFINED, .cta_policy = NCCL_UNDEFINED,                    \
		.shrink_share = NCCL_UNDEFINED, .nvls_ctas = NCCL_UNDEFINED,                       \
		.channels_per_net_peer = NCCL_UNDEFINED, .nvlink_centric = NCCL_UNDEFINED,         \
	}

/* X(name, parameters). All return ncclResult_t. Enumerations are passed as unsigned. */
#define NCCL_CALLS(X)                                                                              \
	X(ncclGetVersion, (int *))                                                                 \
	X(ncclGetUniqueId, (nccl_id *))                                                            \
	X(ncclCommInitRankConfig, (struct nccl_comm **, int, nccl_id, int, struct nccl_config *))  \
	X(ncclCommGetAsyncError, (struct nccl_comm *, unsigned *))                                 \
	X(ncclGroupStart, (void))                                                                  \
	X(ncclGroupEnd, (void))                                                                    \
	X(ncclBroadcast, (const void *, void *, size_t, unsigned, int, struct nccl_comm *,         \
				 struct nccl_stream *))                                            \
	X(ncclCommAbort, (struct nccl_comm *))                                                     \
	X(ncclCommFinalize, (struct nccl_comm *))                                                  \
	X(ncclCommDestroy, (struct nccl_comm *))

struct nccl_table {
#define NCCL_FIELD(name, parameters) unsigned(*name) parameters;
	NCCL_CALLS(NCCL_FIELD)
#undef NCCL_FIELD
	/* These two return text, for nccl_outcome() alone. */
	const char *(*ncclGetErrorString)(unsigned);
	const char *(*ncclGetLastError)(struct nccl_comm *);
};
/* Filled by nccl_open(). */
extern struct nccl_table nccl_table;

/*
 * Makes the call and returns 0, or an error with the call, the error's name and NCCL's own text:
 * -ECONNRESET if another rank or the network failed, -EIO if it was this one. A call that goes on
 * by itself (NCCL_IN_PROGRESS) is no error.
 */
#define NCCL(err, call, ...) nccl_outcome((err), #call, nccl_table.call(__VA_ARGS__))
int nccl_outcome(struct error *err, const char *call, unsigned result);

#endif
