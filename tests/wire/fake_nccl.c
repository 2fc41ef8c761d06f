/*
 * A library with NCCL's entry points for two ranks on the host backend, or on the stand-in driver:
 * the carrier's waiting, giving up and ending can be tried without a GPU, and so can brokers whose
 * memory is a GPU's. Each call goes on in a thread of the communicator, as NCCL's do when blocking
 * is 0; a broadcast on a stream (there is one with the stand-in alone) in that stream, as work of
 * the host. A unique id is the number of a loopback port.
 *
 * $FAKE_NCCL, read at each call, plants a fault: "abort-hangs" (until it is unset), or
 * "broadcast-fails".
 */
#include "tests/gpu/extra_calls.h"
#include "wire/nccl_table.h"
#include <dlfcn.h>
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define EXPORT __attribute__((visibility("default")))
#define REMOTE_ERROR 6u
#define INVALID_ARGUMENT 4u
#define IDS_MAX 64
#define GROUP_MAX 64

#define PIECE_BYTES (256u << 10) /* of device memory, on its way to or from a socket */

struct ncclComm;

EXPORT unsigned ncclGetVersion(int *version);
EXPORT unsigned ncclGetUniqueId(nccl_id *id);
EXPORT unsigned ncclCommInitRankConfig(
	struct ncclComm **comm, int ranks, nccl_id id, int rank, struct nccl_config *config);
EXPORT unsigned ncclCommGetAsyncError(struct ncclComm *comm, unsigned *state);
EXPORT unsigned ncclGroupStart(void);
EXPORT unsigned ncclGroupEnd(void);
EXPORT unsigned ncclBroadcast(const void *from, void *to, size_t n, unsigned type, int root,
	struct ncclComm *comm, void *stream);
EXPORT unsigned ncclCommAbort(struct ncclComm *comm);
EXPORT unsigned ncclCommFinalize(struct ncclComm *comm);
EXPORT unsigned ncclCommDestroy(struct ncclComm *comm);
EXPORT const char *ncclGetErrorString(unsigned result);
EXPORT const char *ncclGetLastError(struct ncclComm *comm);

struct part {
	uint8_t *bytes;
	size_t n;
	bool sends;
};

struct ncclComm {
	int rank, listener, fd;
	uint16_t port;
	pthread_t thread;
	bool running;
	atomic_uint state;
	atomic_bool aborted;
	atomic_uint references; /* the handle, and each broadcast that is on a stream */
	/* the call that goes on, or the group that is being made */
	struct part parts[GROUP_MAX];
	size_t nparts;
	void *stream;
};

/* A group on a stream. */
struct streamed {
	struct ncclComm *comm;
	struct cuda_ctx *ctx;
	size_t nparts;
	struct part parts[];
};

/* What is called of the stand-in. */
static struct {
	unsigned (*cuLaunchHostFunc)(struct cuda_stream *, void (*)(void *), void *);
	unsigned (*cuCtxSetCurrent)(struct cuda_ctx *);
	unsigned (*cuCtxPushCurrent)(struct cuda_ctx *);
	unsigned (*cuCtxPopCurrent)(struct cuda_ctx **);
	unsigned (*cuMemcpyHtoD)(cuda_ptr, const void *, size_t);
	unsigned (*cuMemcpyDtoH)(void *, cuda_ptr, size_t);
} cuda;

static __thread bool in_group;
static __thread struct ncclComm *grouped; /* one communicator a group is enough */

static struct {
	uint16_t port;
	int listener;
} ids[IDS_MAX];
static unsigned nids;

static bool planted(const char *fault)
{
	const char *set = getenv("FAKE_NCCL");

	return set && strcmp(set, fault) == 0;
}

unsigned ncclGetVersion(int *version)
{
	*version = 22809;
	return NCCL_SUCCESS;
}

unsigned ncclGetUniqueId(nccl_id *id)
{
	struct sockaddr_in address = {
		.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	socklen_t len = sizeof(address);
	int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (nids == IDS_MAX || bind(listener, (struct sockaddr *)&address, len) ||
		listen(listener, 1) || getsockname(listener, (struct sockaddr *)&address, &len)) {
		return INVALID_ARGUMENT;
	}
	ids[nids].port = ntohs(address.sin_port);
	ids[nids].listener = listener;
	memset(id, 0, sizeof(*id));
	memcpy(id->bytes, &ids[nids++].port, sizeof(uint16_t));
	return NCCL_SUCCESS;
}

/* 1: may go on; 0: aborted. */
static bool ready(struct ncclComm *comm, int fd, short events)
{
	struct pollfd pollfd = {fd, events, 0};

	while (!atomic_load(&comm->aborted)) {
		if (poll(&pollfd, 1, 5) == 1) {
			return true;
		}
	}
	return false;
}

static bool transfer(struct ncclComm *comm, bool sends, uint8_t *bytes, size_t n)
{
	while (n) {
		ssize_t done;

		if (!ready(comm, comm->fd, sends ? POLLOUT : POLLIN)) {
			return false;
		}
		done = sends ? send(comm->fd, bytes, n, MSG_NOSIGNAL | MSG_DONTWAIT)
			     : recv(comm->fd, bytes, n, MSG_DONTWAIT);
		if (done == 0 || (done < 0 && errno != EAGAIN && errno != EINTR)) {
			return false;
		}
		bytes += done > 0 ? done : 0;
		n -= done > 0 ? (size_t)done : 0;
	}
	return true;
}

/* Both ranks are here. */
static bool meet(struct ncclComm *comm)
{
	uint8_t byte = 1;

	return transfer(comm, true, &byte, 1) && transfer(comm, false, &byte, 1);
}

static void *init_main(void *data)
{
	struct ncclComm *comm = data;
	struct sockaddr_in address = {.sin_family = AF_INET,
		.sin_addr.s_addr = htonl(INADDR_LOOPBACK),
		.sin_port = htons(comm->port)};

	if (comm->rank == 0) {
		comm->fd = ready(comm, comm->listener, POLLIN)
				   ? accept4(comm->listener, NULL, NULL, SOCK_CLOEXEC)
				   : -1;
	} else {
		comm->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
		if (connect(comm->fd, (struct sockaddr *)&address, sizeof(address))) {
			close(comm->fd);
			comm->fd = -1;
		}
	}
	atomic_store(&comm->state, comm->fd >= 0 && meet(comm) ? NCCL_SUCCESS : REMOTE_ERROR);
	return NULL;
}

static void *broadcast_main(void *data)
{
	struct ncclComm *comm = data;
	bool good = true;

	for (size_t i = 0; i < comm->nparts && good; i++) {
		good = transfer(comm, comm->parts[i].sends, comm->parts[i].bytes, comm->parts[i].n);
	}
	atomic_store(&comm->state, good ? NCCL_SUCCESS : REMOTE_ERROR);
	return NULL;
}

static void release(struct ncclComm *comm)
{
	if (atomic_fetch_sub(&comm->references, 1) > 1) {
		return;
	}
	if (comm->fd >= 0) {
		close(comm->fd);
	}
	if (comm->listener >= 0) {
		close(comm->listener);
	}
	free(comm);
}

static pthread_once_t cuda_once = PTHREAD_ONCE_INIT;
static bool cuda_loaded;

static void load_cuda(void)
{
	void *library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_NOLOAD);
	const struct {
		const char *symbol;
		void *entry; /* a function pointer, filled in as dlsym(3) says */
	} table[] = {
		{"cuLaunchHostFunc", &cuda.cuLaunchHostFunc},
		{"cuCtxSetCurrent", &cuda.cuCtxSetCurrent},
		{"cuCtxPushCurrent_v2", &cuda.cuCtxPushCurrent},
		{"cuCtxPopCurrent_v2", &cuda.cuCtxPopCurrent},
		{"cuMemcpyHtoD_v2", &cuda.cuMemcpyHtoD},
		{"cuMemcpyDtoH_v2", &cuda.cuMemcpyDtoH},
	};

	cuda_loaded = library != NULL;
	for (size_t i = 0; cuda_loaded && i < sizeof(table) / sizeof(table[0]); i++) {
		void *symbol = dlsym(library, table[i].symbol);

		cuda_loaded = symbol != NULL;
		if (cuda_loaded) {
			memcpy(table[i].entry, &symbol, sizeof(symbol));
		}
	}
}

static bool transfer_device(struct ncclComm *comm, const struct part *part, uint8_t *piece)
{
	for (size_t at = 0; at < part->n;) {
		size_t n = part->n - at < PIECE_BYTES ? part->n - at : PIECE_BYTES;
		cuda_ptr address = (uintptr_t)part->bytes + at;

		if ((part->sends && cuda.cuMemcpyDtoH(piece, address, n)) ||
			!transfer(comm, part->sends, piece, n) ||
			(!part->sends && cuda.cuMemcpyHtoD(address, piece, n))) {
			return false;
		}
		at += n;
	}
	return true;
}

/* In the stream's turn. The real driver forbids its calls here; the stand-in does not mind. */
static void streamed_main(void *data)
{
	struct streamed *streamed = data;
	struct ncclComm *comm = streamed->comm;
	uint8_t *piece = malloc(PIECE_BYTES);
	bool good = piece && cuda.cuCtxSetCurrent(streamed->ctx) == 0;

	for (size_t i = 0; i < streamed->nparts && good; i++) {
		good = transfer_device(comm, &streamed->parts[i], piece);
	}
	if (!good) {
		atomic_store(&comm->state, REMOTE_ERROR);
	}
	/* A kernel whose peer is gone goes on waiting: nothing but an abort ends it. */
	while (!good && !atomic_load(&comm->aborted)) {
		usleep(1000);
	}
	free(piece);
	free(streamed);
	release(comm);
}

static unsigned enqueue(struct ncclComm *comm)
{
	size_t bytes = comm->nparts * sizeof(struct part);
	struct streamed *streamed = malloc(sizeof(*streamed) + bytes);

	pthread_once(&cuda_once, load_cuda);
	if (!streamed || !cuda_loaded || cuda.cuCtxPopCurrent(&streamed->ctx) ||
		cuda.cuCtxPushCurrent(streamed->ctx)) {
		free(streamed);
		return INVALID_ARGUMENT;
	}
	streamed->comm = comm;
	streamed->nparts = comm->nparts;
	memcpy(streamed->parts, comm->parts, bytes);
	atomic_fetch_add(&comm->references, 1);
	if (cuda.cuLaunchHostFunc(comm->stream, streamed_main, streamed)) {
		free(streamed);
		release(comm);
		return INVALID_ARGUMENT;
	}
	return NCCL_SUCCESS;
}

static void *finalize_main(void *data)
{
	struct ncclComm *comm = data;

	atomic_store(&comm->state, meet(comm) ? NCCL_SUCCESS : REMOTE_ERROR);
	return NULL;
}

static unsigned go_on(struct ncclComm *comm, void *(*main)(void *))
{
	if (comm->running) {
		pthread_join(comm->thread, NULL);
	}
	atomic_store(&comm->state, NCCL_IN_PROGRESS);
	comm->running = pthread_create(&comm->thread, NULL, main, comm) == 0;
	return NCCL_IN_PROGRESS;
}

unsigned ncclCommInitRankConfig(
	struct ncclComm **ret_comm, int ranks, nccl_id id, int rank, struct nccl_config *config)
{
	struct ncclComm *comm = calloc(1, sizeof(*comm));

	if (!comm || ranks != 2 || config->magic != NCCL_CONFIG_MAGIC || config->blocking != 0 ||
		config->size != sizeof(*config)) {
		free(comm);
		return INVALID_ARGUMENT;
	}
	atomic_init(&comm->references, 1);
	comm->rank = rank;
	comm->listener = comm->fd = -1;
	memcpy(&comm->port, id.bytes, sizeof(comm->port));
	for (unsigned i = 0; rank == 0 && i < nids; i++) {
		if (ids[i].port == comm->port) {
			comm->listener = ids[i].listener;
			ids[i] = ids[--nids];
		}
	}
	*ret_comm = comm;
	return go_on(comm, init_main);
}

unsigned ncclCommGetAsyncError(struct ncclComm *comm, unsigned *state)
{
	*state = atomic_load(&comm->state);
	return NCCL_SUCCESS;
}

unsigned ncclGroupStart(void)
{
	in_group = true;
	return NCCL_SUCCESS;
}

unsigned ncclGroupEnd(void)
{
	struct ncclComm *comm = grouped;

	in_group = false;
	grouped = NULL;
	if (comm && comm->stream) {
		return enqueue(comm);
	}
	return comm ? go_on(comm, broadcast_main) : NCCL_SUCCESS;
}

unsigned ncclBroadcast(const void *from, void *to, size_t n, unsigned type, int root,
	struct ncclComm *comm, void *stream)
{
	if (!in_group || from != to || type != NCCL_UINT8 || planted("broadcast-fails")) {
		return INVALID_ARGUMENT;
	}
	if (n == 0) {
		return NCCL_SUCCESS;
	}
	if (grouped != comm) {
		if (comm->running) {
			pthread_join(comm->thread, NULL);
			comm->running = false;
		}
		comm->nparts = 0;
		grouped = comm;
	}
	if (comm->nparts == GROUP_MAX) {
		return INVALID_ARGUMENT;
	}
	comm->stream = stream;
	comm->parts[comm->nparts].bytes = to;
	comm->parts[comm->nparts].n = n;
	comm->parts[comm->nparts++].sends = comm->rank == root;
	return NCCL_SUCCESS;
}

unsigned ncclCommFinalize(struct ncclComm *comm)
{
	return go_on(comm, finalize_main);
}

unsigned ncclCommDestroy(struct ncclComm *comm)
{
	if (comm->running) {
		pthread_join(comm->thread, NULL);
	}
	release(comm);
	return NCCL_SUCCESS;
}

unsigned ncclCommAbort(struct ncclComm *comm)
{
	while (planted("abort-hangs")) {
		usleep(1000);
	}
	atomic_store(&comm->aborted, true);
	return ncclCommDestroy(comm);
}

const char *ncclGetErrorString(unsigned result)
{
	return result == REMOTE_ERROR ? "remote process exited" : "invalid argument";
}

const char *ncclGetLastError(struct ncclComm *comm)
{
	(void)comm;
	return "socket 3: connection closed by peer";
}
