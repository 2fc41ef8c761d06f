/*
 * A stand-in for NCCL over the stand-in driver (standin.h): several brokers on the cuda backend
 * without a GPU. Test code, never shipped. Only what strew and its bench ask for. As of the real
 * one: a lost peer is told by ncclCommGetAsyncError, what is on a stream then goes on until
 * ncclCommAbort; an abort does not wait for the stream's turn.
 */
#include "tests/standin/nccl.h"
#include <dlfcn.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define IDS_MAX 256

#define DECLARE(name, parameters) STANDIN_EXPORT unsigned name parameters;
NCCL_CALLS(DECLARE)
#undef DECLARE
STANDIN_EXPORT const char *ncclGetErrorString(unsigned result);
STANDIN_EXPORT const char *ncclGetLastError(struct nccl_comm *comm);

#define ENTER(call)                                                                                \
	static struct standin_cell *_Atomic cell_;                                                 \
	struct fault fault = standin_enter(#call, &cell_);                                         \
	do {                                                                                       \
		if (fault.kind == FAULT_FAIL) {                                                    \
			return fault.argument;                                                     \
		}                                                                                  \
	} while (0)

static __thread struct broadcasts *group; /* of this thread, while one is open */
static __thread struct nccl_stream *group_stream;
static __thread bool in_group;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct {
	uint16_t port;
	int listener;
} ids[IDS_MAX];
static unsigned nids;

unsigned ncclGetVersion(int *ret_version)
{
	const char *number = getenv("STANDIN_NCCL");

	ENTER(ncclGetVersion);
	*ret_version = number ? atoi(number) : 22809;
	return NCCL_SUCCESS;
}

unsigned ncclGetUniqueId(nccl_id *ret_id)
{
	struct sockaddr_in address = {
		.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	socklen_t len = sizeof(address);
	int fd;

	ENTER(ncclGetUniqueId);
	fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd < 0 || bind(fd, (struct sockaddr *)&address, len) || listen(fd, RANKS_MAX) ||
		getsockname(fd, (struct sockaddr *)&address, &len)) {
		if (fd >= 0) {
			close(fd);
		}
		return INVALID_USAGE;
	}
	pthread_mutex_lock(&lock);
	if (nids == IDS_MAX) {
		pthread_mutex_unlock(&lock);
		close(fd);
		return INVALID_USAGE;
	}
	ids[nids].port = ntohs(address.sin_port);
	ids[nids++].listener = fd;
	pthread_mutex_unlock(&lock);
	memset(ret_id, 0, sizeof(*ret_id));
	memcpy(ret_id->bytes, &address.sin_port, sizeof(address.sin_port));
	COUNT(ids, 1);
	return NCCL_SUCCESS;
}

static int take_listener(uint16_t port)
{
	int listener = -1;

	pthread_mutex_lock(&lock);
	for (unsigned i = 0; i < nids && listener < 0; i++) {
		if (ids[i].port == port) {
			listener = ids[i].listener;
			ids[i] = ids[--nids];
			COUNT(ids, -1);
		}
	}
	pthread_mutex_unlock(&lock);
	return listener;
}

void comm_put(struct nccl_comm *comm)
{
	if (atomic_fetch_sub(&comm->references, 1) > 1) {
		return;
	}
	for (int i = 0; i < RANKS_MAX; i++) {
		if (comm->fds[i] >= 0) {
			close(comm->fds[i]);
		}
	}
	if (comm->listener >= 0) {
		close(comm->listener);
	}
	free(comm);
	COUNT(comms, -1);
}

static void *init_main(void *data)
{
	struct nccl_comm *comm = data;

	atomic_store(&comm->state, star_connect(comm) ? (unsigned)NCCL_SUCCESS : REMOTE_ERROR);
	return NULL;
}

/* Behind the broadcasts that were begun. */
static void *finalize_main(void *data)
{
	struct nccl_comm *comm = data;

	while (atomic_load(&comm->references) > 1 && !atomic_load(&comm->aborted)) {
		standin_nap(1000);
	}
	atomic_store(&comm->state, star_meet(comm) ? (unsigned)NCCL_SUCCESS : REMOTE_ERROR);
	return NULL;
}

/* The stand-in driver's own, of the one that is loaded. False: there is none. */
static bool find_driver(struct driver *ret_driver)
{
	void *library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_NOLOAD);
	void *call = library ? dlsym(library, "standin_stream_call") : NULL;
	void *bytes = library ? dlsym(library, "standin_bytes") : NULL;
	void *take = library ? dlsym(library, "standin_take") : NULL;

	memcpy(&ret_driver->stream_call, &call, sizeof(call));
	memcpy(&ret_driver->bytes, &bytes, sizeof(bytes));
	memcpy(&ret_driver->take, &take, sizeof(take));
	if (library) {
		dlclose(library);
	}
	return call && bytes && take;
}

/* What a communicator has on its GPU besides the buffers that are given to it. */
static unsigned take_memory(void)
{
	const char *bytes = getenv("STANDIN_NCCL_MEMORY");
	struct driver driver;

	return bytes && find_driver(&driver) ? driver.take(strtoul(bytes, NULL, 10))
					     : (unsigned)NCCL_SUCCESS;
}

/* Which interface the process that begins a communicator was told to take. */
static void count_interface(void)
{
	const char *interface = getenv("NCCL_SOCKET_IFNAME");
	char name[56];

	snprintf(name, sizeof(name), "interface.%.40s", interface ? interface : "any");
	atomic_fetch_add(&standin_cell(name)->value, 1);
}

static void join_thread(struct nccl_comm *comm)
{
	if (comm->running) {
		pthread_join(comm->thread, NULL);
		comm->running = false;
	}
}

static unsigned go_on(struct nccl_comm *comm, void *(*main)(void *))
{
	sigset_t all, old;

	join_thread(comm);
	atomic_store(&comm->state, NCCL_IN_PROGRESS);
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	comm->running = pthread_create(&comm->thread, NULL, main, comm) == 0;
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	if (comm->running && comm->blocking) {
		join_thread(comm);
		return atomic_load(&comm->state);
	}
	return comm->running ? (unsigned)NCCL_IN_PROGRESS : INVALID_USAGE;
}

unsigned ncclCommInitRankConfig(
	struct nccl_comm **ret_comm, int ranks, nccl_id id, int rank, struct nccl_config *config)
{
	struct nccl_comm *comm;

	ENTER(ncclCommInitRankConfig);
	if (ranks < 1 || ranks > RANKS_MAX || rank < 0 || rank >= ranks ||
		config->magic != NCCL_CONFIG_MAGIC || (config->blocking & ~1) ||
		config->size != sizeof(*config)) {
		return INVALID_ARGUMENT;
	}
	comm = take_memory() ? NULL : calloc(1, sizeof(*comm));
	if (!comm) {
		return INVALID_USAGE;
	}
	comm->rank = rank;
	comm->ranks = ranks;
	comm->blocking = config->blocking == 1;
	memset(comm->fds, -1, sizeof(comm->fds));
	memcpy(&comm->port, id.bytes, sizeof(comm->port));
	comm->port = ntohs(comm->port);
	comm->listener = rank == 0 ? take_listener(comm->port) : -1;
	atomic_store(&comm->references, 1);
	COUNT(comms, 1);
	count_interface();
	*ret_comm = comm;
	return go_on(comm, init_main);
}

unsigned ncclCommGetAsyncError(struct nccl_comm *comm, unsigned *ret_state)
{
	ENTER(ncclCommGetAsyncError);
	*ret_state = atomic_load(&comm->state);
	if (*ret_state != NCCL_IN_PROGRESS) {
		join_thread(comm); /* one that nobody waits for would pass for a leak */
	}
	return NCCL_SUCCESS;
}

unsigned ncclGroupStart(void)
{
	ENTER(ncclGroupStart);
	if (in_group) {
		return INVALID_USAGE;
	}
	in_group = true;
	return NCCL_SUCCESS;
}

/* Hands over to the stream what the group has. */
unsigned ncclGroupEnd(void)
{
	struct broadcasts *work = group;
	bool blocking;

	in_group = false;
	group = NULL;
	ENTER(ncclGroupEnd);
	if (!work) {
		return NCCL_SUCCESS;
	}
	blocking = work->comm->blocking;
	atomic_fetch_add(&work->comm->references, 1);
	COUNT(broadcasts, 1);
	if (!find_driver(&work->driver) ||
		work->driver.stream_call(group_stream, star_broadcast, work)) {
		comm_put(work->comm);
		COUNT(broadcasts, -1);
		free(work);
		return INVALID_ARGUMENT;
	}
	/* In progress for once; the state is success already. */
	return blocking ? NCCL_SUCCESS : NCCL_IN_PROGRESS;
}

unsigned ncclBroadcast(const void *from, void *to, size_t n, unsigned type, int root,
	struct nccl_comm *comm, struct nccl_stream *stream)
{
	bool alone = !in_group;

	ENTER(ncclBroadcast);
	if (type != NCCL_UINT8 || root < 0 || root >= comm->ranks) {
		return INVALID_ARGUMENT;
	}
	if (!group) {
		group = calloc(1, sizeof(*group) + PARTS_MAX * sizeof(group->parts[0]));
		if (!group) {
			return INVALID_USAGE;
		}
		group->comm = comm;
		group_stream = stream;
	}
	if (group->comm != comm || group_stream != stream || group->nparts == PARTS_MAX) {
		return INVALID_USAGE;
	}
	group->parts[group->nparts++] = (struct part){.from = (uint64_t)(uintptr_t)from,
		.to = (uint64_t)(uintptr_t)to,
		.len_bytes = n,
		.root = root,
		.fault = fault};
	return alone ? ncclGroupEnd() : (unsigned)NCCL_SUCCESS;
}

unsigned ncclCommFinalize(struct nccl_comm *comm)
{
	ENTER(ncclCommFinalize);
	return go_on(comm, finalize_main);
}

static unsigned end(struct nccl_comm *comm)
{
	join_thread(comm);
	comm_put(comm);
	return NCCL_SUCCESS;
}

unsigned ncclCommDestroy(struct nccl_comm *comm)
{
	ENTER(ncclCommDestroy);
	return end(comm);
}

unsigned ncclCommAbort(struct nccl_comm *comm)
{
	ENTER(ncclCommAbort);
	atomic_store(&comm->aborted, true);
	return end(comm);
}

const char *ncclGetErrorString(unsigned result)
{
	return result == REMOTE_ERROR	 ? "remote process exited or there was a network error"
	       : result == INVALID_USAGE ? "invalid usage"
					 : "invalid argument";
}

const char *ncclGetLastError(struct nccl_comm *comm)
{
	(void)comm;
	return "";
}
