/*
 * Buckets by NCCL. The communicator is non-blocking: every call may go on by
 * itself, and ncclCommGetAsyncError tells when it has ended. Ending it may hang
 * inside NCCL, so that a thread of its own does it, and the caller waits for at
 * most LIMIT_ABORT_MS; what the thread needs is then left to it.
 */
#include "base/clock.h"
#include "base/util.h"
#include "wire/carrier_ops.h"
#include "wire/nccl_table.h"
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define WARM_BYTES (1u << 20) /* enough that every channel makes its connections */
#define NAP_MIN_NS 20000u
#define NAP_MAX_NS 2000000u

static void nap(uint64_t *ns)
{
	struct timespec time = {0, (long)*ns};

	nanosleep(&time, NULL);
	*ns = MIN(*ns * 2, NAP_MAX_NS);
}

/* Waits until the communicator's last call has ended. */
static int settle(struct carrier *carrier, const char *what, uint64_t deadline,
	const atomic_int *cancel, struct error *err)
{
	const struct nccl_table *nccl = nccl_table();
	uint64_t nap_ns = NAP_MIN_NS;

	for (;;) {
		int state = NCCL_SUCCESS;
		int rc = NCCL_CALL(nccl, err, get_async_error, carrier->comm, &state);

		if (rc == 0) {
			rc = nccl_checked(err, what, state);
		}
		if (rc || state == NCCL_SUCCESS) {
			return rc;
		}
		rc = carrier_waiting(deadline, cancel, what, err);
		if (rc) {
			return rc;
		}
		nap(&nap_ns);
	}
}

static int wait_event(struct carrier *carrier, struct gpu_event *event, uint64_t deadline,
	const atomic_int *cancel, struct error *err)
{
	uint64_t nap_ns = NAP_MIN_NS;
	int rc;

	while ((rc = gpu_event_query(event, err)) == 0) {
		rc = carrier_nccl_poll(carrier, err);
		if (rc == 0) {
			rc = carrier_waiting(deadline, cancel, "warming the communicator", err);
		}
		if (rc) {
			return rc;
		}
		nap(&nap_ns);
	}
	return rc < 0 ? rc : 0;
}

/* The first collective of a communicator is slow; each root makes connections of its own. */
static int warm(
	struct carrier *carrier, uint64_t deadline, const atomic_int *cancel, struct error *err)
{
	struct gpu_memory *memory = NULL;
	struct gpu_stream *stream = NULL;
	struct gpu_event *event = NULL;
	int rc = gpu_alloc(carrier->device, WARM_BYTES, &memory, err);

	if (rc == 0) {
		rc = gpu_stream_create(carrier->device, &stream, err);
	}
	if (rc == 0) {
		rc = gpu_event_create(carrier->device, &event, err);
	}
	for (uint32_t root = 0; rc == 0 && root < carrier->ranks; root++) {
		rc = carrier_nccl_broadcast(carrier, gpu_memory_address(memory), WARM_BYTES, root,
			stream, deadline, cancel, err);
	}
	if (rc == 0) {
		rc = gpu_event_record(event, stream, err);
	}
	if (rc == 0) {
		rc = wait_event(carrier, event, deadline, cancel, err);
	}
	if (rc) {
		/* Nothing may be in flight into the memory when it is freed. */
		carrier_nccl_destroy(carrier, true);
		carrier->comm = NULL;
	}
	gpu_event_destroy(event);
	gpu_stream_destroy(stream);
	gpu_memory_release(memory);
	return rc;
}

int carrier_nccl_create(struct carrier *carrier, const struct carrier_options *options,
	uint64_t deadline, const atomic_int *cancel, struct error *err)
{
	struct nccl_config config = {.size = sizeof(config),
		.magic = NCCL_CONFIG_MAGIC,
		.version = NCCL_CONFIG_VERSION,
		.blocking = 0,
		.cga_cluster_size = NCCL_UNDEFINED,
		.min_ctas = NCCL_UNDEFINED,
		.max_ctas = NCCL_UNDEFINED,
		.net_name = NULL,
		.split_share = NCCL_UNDEFINED,
		.traffic_class = NCCL_UNDEFINED};
	const struct nccl_table *nccl = nccl_table();
	struct nccl_id id;
	int rc;

	if (!nccl) {
		return error_set(err, -ENOENT, "NCCL is not open");
	}
	memcpy(id.bytes, options->unique_id, sizeof(id.bytes));
	carrier->device = options->device;
	rc = gpu_device_enter(carrier->device, err);
	if (rc) {
		return rc;
	}
	rc = NCCL_CALL(nccl, err, init_rank_config, &carrier->comm, (int)options->ranks, id,
		(int)options->rank, &config);
	if (rc == 0) {
		rc = settle(carrier, "making the communicator", deadline, cancel, err);
	}
	if (rc) {
		carrier_nccl_destroy(carrier, true);
		return rc;
	}
	return warm(carrier, deadline, cancel, err);
}

int carrier_nccl_broadcast(struct carrier *carrier, uint64_t address, uint64_t len_bytes,
	uint32_t root, struct gpu_stream *stream, uint64_t deadline, const atomic_int *cancel,
	struct error *err)
{
	void *bytes = (void *)(uintptr_t)address;
	int rc = gpu_device_enter(carrier->device, err);

	if (rc == 0) {
		rc = NCCL_CALL(nccl_table(), err, broadcast, bytes, bytes, len_bytes, NCCL_UINT8,
			(int)root, carrier->comm, gpu_stream_native(stream));
	}
	return rc ? rc : settle(carrier, "a broadcast", deadline, cancel, err);
}

int carrier_nccl_poll(struct carrier *carrier, struct error *err)
{
	int state = NCCL_SUCCESS;
	int rc = NCCL_CALL(nccl_table(), err, get_async_error, carrier->comm, &state);

	return rc ? rc : nccl_checked(err, "the communicator", state);
}

/* The ending of a communicator, shared with its thread: the last one to let go frees it. */
struct ending {
	pthread_mutex_t lock;
	pthread_cond_t ended_cond;
	struct gpu_device *device;
	nccl_comm comm;
	bool abort, ended, left;
};

static void ending_free(struct ending *ending)
{
	pthread_cond_destroy(&ending->ended_cond);
	pthread_mutex_destroy(&ending->lock);
	free(ending);
}

static void end_in_order(const struct nccl_table *nccl, nccl_comm comm)
{
	uint64_t nap_ns = NAP_MIN_NS;
	int state = NCCL_IN_PROGRESS;

	nccl->finalize(comm);
	while (nccl->get_async_error(comm, &state) == NCCL_SUCCESS && state == NCCL_IN_PROGRESS) {
		nap(&nap_ns);
	}
	nccl->destroy(comm);
}

static void *end_main(void *data)
{
	struct ending *ending = data;
	struct error ignored;
	bool left;

	if (gpu_device_enter(ending->device, &ignored) == 0) {
		if (ending->abort) {
			nccl_table()->abort(ending->comm);
		} else {
			end_in_order(nccl_table(), ending->comm);
		}
	}
	pthread_mutex_lock(&ending->lock);
	ending->ended = true;
	left = ending->left;
	pthread_cond_signal(&ending->ended_cond);
	pthread_mutex_unlock(&ending->lock);
	if (left) {
		ending_free(ending);
	}
	return NULL;
}

static struct timespec ending_deadline(void)
{
	uint64_t at = clock_ns() + LIMIT_ABORT_MS * 1000000ull;

	return (struct timespec){(time_t)(at / 1000000000u), (long)(at % 1000000000u)};
}

int carrier_nccl_destroy(struct carrier *carrier, bool abort)
{
	struct timespec until = ending_deadline();
	struct ending *ending;
	pthread_condattr_t attr;
	pthread_t thread;
	bool ended;
	int rc = 0;

	if (!carrier->comm) {
		return 0;
	}
	ending = calloc(1, sizeof(*ending));
	if (!ending) {
		return -ENOMEM;
	}
	ending->device = carrier->device;
	ending->comm = carrier->comm;
	ending->abort = abort;
	carrier->comm = NULL;
	pthread_mutex_init(&ending->lock, NULL);
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&ending->ended_cond, &attr);
	pthread_condattr_destroy(&attr);
	rc = pthread_create(&thread, NULL, end_main, ending);
	if (rc) {
		ending_free(ending);
		return -rc;
	}
	pthread_detach(thread);
	pthread_mutex_lock(&ending->lock);
	while (!ending->ended && rc == 0) {
		rc = pthread_cond_timedwait(&ending->ended_cond, &ending->lock, &until);
	}
	ended = ending->ended;
	ending->left = !ended;
	pthread_mutex_unlock(&ending->lock);
	if (!ended) {
		return -ETIMEDOUT;
	}
	ending_free(ending);
	return 0;
}
