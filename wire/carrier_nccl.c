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
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define WARM_BYTES (1u << 20) /* enough that every channel makes its connections */
#define SPIN_NS 300000u	      /* a broadcast is enqueued within this, and the next waits for it */
#define NAP_MIN_NS 50000u
#define NAP_MAX_NS 2000000u
/*
 * How many multiprocessors a broadcast may take. NCCL's own choice: nothing is posted while an
 * engine works unless its gate is live, and the rates in docs/results.md were measured with it.
 */
#define MAX_CTAS NCCL_UNDEFINED

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
	uint64_t nap_ns = NAP_MIN_NS, start = clock_ns();

	for (;;) {
		unsigned state = NCCL_SUCCESS;
		int rc = NCCL(err, ncclCommGetAsyncError, carrier->comm, &state);

		if (rc == 0) {
			rc = nccl_outcome(err, what, state);
		}
		if (rc || state == NCCL_SUCCESS) {
			return rc;
		}
		rc = carrier_waiting(deadline, cancel, what, err);
		if (rc) {
			return rc;
		}
		if (clock_ns() - start < SPIN_NS) {
			sched_yield();
		} else {
			nap(&nap_ns);
		}
	}
}

/* What the first broadcasts need. */
struct warmth {
	struct gpu_memory *memory;
	struct gpu_stream *stream;
	struct gpu_event *event;
};

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

static int warm_all(struct carrier *carrier, struct warmth *warmth, uint64_t deadline,
	const atomic_int *cancel, struct error *err)
{
	int rc = gpu_alloc(carrier->device, WARM_BYTES, &warmth->memory, err);

	if (rc == 0) {
		rc = gpu_stream_create(carrier->device, &warmth->stream, err);
	}
	if (rc == 0) {
		rc = gpu_event_create(carrier->device, &warmth->event, err);
	}
	for (uint32_t root = 0; rc == 0 && root < carrier->ranks; root++) {
		const struct carrier_part part = {gpu_memory_address(warmth->memory), WARM_BYTES};

		rc = carrier_nccl_broadcast(
			carrier, &part, 1, root, warmth->stream, deadline, cancel, err);
	}
	if (rc == 0) {
		rc = gpu_event_record(warmth->event, warmth->stream, err);
	}
	return rc ? rc : wait_event(carrier, warmth->event, deadline, cancel, err);
}

/* Is nothing in flight on the stream of an aborted communicator? An error is an end too. */
static bool drained(struct warmth *warmth)
{
	uint64_t deadline = deadline_in_ms(LIMIT_DRAIN_MS);
	uint64_t nap_ns = NAP_MIN_NS;

	if (!warmth->event || gpu_event_record(warmth->event, warmth->stream, NULL)) {
		return true;
	}
	while (gpu_event_query(warmth->event, NULL) == 0) {
		if (deadline_passed(deadline)) {
			return false;
		}
		nap(&nap_ns);
	}
	return true;
}

/* A kernel may spin on the engines' GPU for ever: only the process's end stops it. */
static int cannot_abort(struct error *err, const char *what)
{
	error_prefix(err, "%s", what);
	if (err) {
		err->code = -ENOTRECOVERABLE;
	}
	return -ENOTRECOVERABLE;
}

/* The first collective of a communicator is slow; each root makes connections of its own. */
static int warm(
	struct carrier *carrier, uint64_t deadline, const atomic_int *cancel, struct error *err)
{
	struct warmth warmth = {0};
	int rc = warm_all(carrier, &warmth, deadline, cancel, err);

	/* To free memory waits for the whole GPU: for ever, if a broadcast still spins on it. */
	if (rc && (carrier_nccl_destroy(carrier, true) || !drained(&warmth))) {
		return cannot_abort(err, "a broadcast that cannot be aborted, after this");
	}
	gpu_event_destroy(warmth.event);
	gpu_stream_destroy(warmth.stream);
	gpu_memory_release(warmth.memory);
	return rc;
}

int carrier_nccl_create(struct carrier *carrier, const struct carrier_options *options,
	uint64_t deadline, const atomic_int *cancel, struct error *err)
{
	struct nccl_config config = NCCL_CONFIG_DEFAULTS;
	nccl_id id;
	int rc;

	if (!nccl_version()) {
		return error_set(err, -ENOENT, "NCCL is not open");
	}
	config.blocking = 0;
	config.max_ctas = MAX_CTAS;
	memcpy(id.bytes, options->unique_id, sizeof(id.bytes));
	carrier->device = options->device;
	rc = gpu_device_enter(carrier->device, err);
	if (rc) {
		return rc;
	}
	rc = NCCL(err, ncclCommInitRankConfig, &carrier->comm, (int)options->ranks, id,
		(int)options->rank, &config);
	/* NCCL keeps memory and a thread of one that is aborted before it is made, too. */
	if (carrier->comm && options->ret_given) {
		*options->ret_given = true;
	}
	if (rc == 0) {
		rc = settle(carrier, "making the communicator", deadline, cancel, err);
	}
	if (rc) {
		if (carrier_nccl_destroy(carrier, true)) {
			return cannot_abort(
				err, "a communicator that cannot be aborted, after this");
		}
		return rc;
	}
	return warm(carrier, deadline, cancel, err);
}

int carrier_nccl_broadcast(struct carrier *carrier, const struct carrier_part *parts, size_t nparts,
	uint32_t root, struct gpu_stream *stream, uint64_t deadline, const atomic_int *cancel,
	struct error *err)
{
	int rc = gpu_device_enter(carrier->device, err), end;

	if (rc == 0) {
		rc = NCCL(err, ncclGroupStart, );
	}
	if (rc) {
		return rc;
	}
	for (size_t i = 0; i < nparts && rc == 0; i++) {
		void *bytes = (void *)(uintptr_t)parts[i].address;

		rc = NCCL(err, ncclBroadcast, bytes, bytes, parts[i].len_bytes, NCCL_UINT8,
			(int)root, carrier->comm, gpu_stream_native(stream));
	}
	end = NCCL(rc ? NULL : err, ncclGroupEnd, );
	rc = rc ? rc : end;
	return rc ? rc : settle(carrier, "a broadcast", deadline, cancel, err);
}

int carrier_nccl_poll(struct carrier *carrier, struct error *err)
{
	unsigned state = NCCL_SUCCESS;
	int rc = NCCL(err, ncclCommGetAsyncError, carrier->comm, &state);

	return rc ? rc : nccl_outcome(err, "the communicator", state);
}

/* The ending of a communicator, shared with its thread: the last one to let go frees it. */
struct ending {
	pthread_mutex_t lock;
	pthread_cond_t ended_cond;
	struct gpu_device *device;
	struct nccl_comm *comm;
	bool abort, ended, left;
};

static void ending_free(struct ending *ending)
{
	pthread_cond_destroy(&ending->ended_cond);
	pthread_mutex_destroy(&ending->lock);
	free(ending);
}

/* False: the peers do not take part, or the communicator has failed. It is not destroyed then. */
static bool end_in_order(struct nccl_comm *comm)
{
	uint64_t deadline = deadline_in_ms(LIMIT_ABORT_MS / 2);
	uint64_t nap_ns = NAP_MIN_NS;
	unsigned state = NCCL_IN_PROGRESS;

	if (NCCL(NULL, ncclCommFinalize, comm)) {
		return false;
	}
	while (NCCL(NULL, ncclCommGetAsyncError, comm, &state) == 0 && state == NCCL_IN_PROGRESS &&
		!deadline_passed(deadline)) {
		nap(&nap_ns);
	}
	if (state != NCCL_SUCCESS) {
		return false;
	}
	NCCL(NULL, ncclCommDestroy, comm);
	return true;
}

static void *end_main(void *data)
{
	struct ending *ending = data;
	bool left;

	/* NCCL enters the device again by itself; where that fails there is nothing to wait for. */
	gpu_device_enter(ending->device, NULL);
	if (ending->abort || !end_in_order(ending->comm)) {
		NCCL(NULL, ncclCommAbort, ending->comm);
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

int carrier_nccl_destroy(struct carrier *carrier, bool abort)
{
	struct timespec until = clock_timespec(deadline_in_ms(LIMIT_ABORT_MS));
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
