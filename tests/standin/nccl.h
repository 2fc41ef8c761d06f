/*
 * What the two files of the stand-in for NCCL share: nccl.c has NCCL's entry points, star.c moves
 * the bytes. All ranks of a communicator have one connection to rank 0, which passes on what others
 * send; a unique id is the port of a loopback listener in the process that made it.
 */
#ifndef STANDIN_NCCL_H
#define STANDIN_NCCL_H

#include "tests/standin/standin.h"
#include "wire/nccl_table.h"
#include <pthread.h>

#define RANKS_MAX 16
#define PARTS_MAX 4096 /* of a group */

enum { INVALID_ARGUMENT = 4, INVALID_USAGE = 5, REMOTE_ERROR = 6 };

struct nccl_comm {
	int rank, ranks;
	bool blocking;
	int listener; /* rank 0, until all have come; -1 */
	uint16_t port;
	int fds[RANKS_MAX]; /* rank 0: of each other rank; else fds[0] alone; -1 */
	pthread_t thread;   /* of the call that goes on by itself */
	bool running;
	atomic_uint state;
	atomic_bool aborted;
	atomic_uint references; /* the handle, and broadcasts on their streams */
	uint64_t sequence;	/* of parts, on the stream; differs between ranks that disagree */
};

/* One ncclBroadcast. */
struct part {
	uint64_t from, to;
	size_t len_bytes;
	int root;
	struct fault fault;
};

/* What libcuda has for this library. */
struct driver {
	unsigned (*stream_call)(void *stream, standin_call *call, void *data);
	unsigned (*bytes)(
		int device, uint64_t address, void *bytes, size_t len_bytes, bool to_device);
	unsigned (*take)(size_t len_bytes);
};

/* A group of broadcasts on its stream. */
struct broadcasts {
	struct nccl_comm *comm;
	struct driver driver;
	size_t nparts;
	struct part parts[];
};

/* Makes the star's connections; waits for the ranks that are not here. False: aborted, or lost. */
bool star_connect(struct nccl_comm *comm);
/* All ranks are here. */
bool star_meet(struct nccl_comm *comm);
/* A standin_call. Ends early only if aborted, as NCCL's kernels do: a lost peer is told by `state`.
 */
unsigned star_broadcast(int device, void *broadcasts);
void comm_put(struct nccl_comm *comm);

#endif
