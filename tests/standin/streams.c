/*
 * The stand-in driver: streams, a thread each, and events. A call only enqueues; what waits (for an
 * event, for a stalled plan) holds its stream and nobody else. Stream 0 and its kin are
 * one stream of each context; it does not wait for the others, nor they for it: strew's own are all
 * made non-blocking.
 */
#include "tests/standin/driver.h"
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define KERNEL_BYTES 256

enum work_kind {
	WORK_COPY,
	WORK_KERNEL,
	WORK_WRITE,
	WORK_RECORD,
	WORK_WAIT_EVENT,
	WORK_CALL,
};

struct work {
	struct work *next;
	enum work_kind kind;
	struct fault fault;
	cuda_ptr dst, src;
	size_t len_bytes;
	uint64_t value;
	struct cuda_event *event;
	standin_call *call;
	void *data;
	unsigned char launch[KERNEL_BYTES];
};

struct cuda_event {
	struct cuda_ctx *ctx;
	unsigned references;	 /* the handle, and work that names it */
	uint64_t recorded, done; /* numbers of records */
	struct timespec at;
};

struct cuda_stream {
	struct cuda_ctx *ctx;
	struct cuda_stream *next; /* of the context */
	struct work *first, **last;
	bool busy, destroyed;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;

/* The lock is held. */
static void put_event(struct cuda_event *event)
{
	if (--event->references == 0) {
		free(event);
	}
}

/* The bytes between the two ends of a copy, space by space. */
static unsigned run_copy(int device, const struct work *work)
{
	size_t left = work->len_bytes;
	unsigned result = CUDA_OK;

	spaces_hold();
	for (cuda_ptr dst = work->dst, src = work->src; left && result == CUDA_OK;) {
		size_t n = left;
		char *to = space_reach(device, dst, &n, MAY_WRITE);
		char *from = to ? space_reach(device, src, &n, MAY_READ) : NULL;

		if (!from) {
			result = CUDA_ILLEGAL_ADDRESS;
		} else {
			memmove(to, from, n);
		}
		dst += n;
		src += n;
		left -= n;
	}
	spaces_release();
	return result;
}

/* The word is written behind all that the stream wrote before. */
static unsigned run_write(int device, const struct work *work)
{
	size_t n = sizeof(uint64_t);
	unsigned result = CUDA_ILLEGAL_ADDRESS;
	char *at;

	spaces_hold();
	at = space_reach(device, work->dst, &n, MAY_WRITE);
	if (at && n == sizeof(uint64_t)) {
		__atomic_store_n((uint64_t *)(void *)at, work->value, __ATOMIC_RELEASE);
		result = CUDA_OK;
	}
	spaces_release();
	return result;
}

static void run_event(struct cuda_ctx *ctx, const struct work *work)
{
	struct cuda_event *event = work->event;

	pthread_mutex_lock(&lock);
	if (work->kind == WORK_RECORD) {
		event->done = event->done > work->value ? event->done : work->value;
		clock_gettime(CLOCK_MONOTONIC, &event->at);
	}
	while (work->kind == WORK_WAIT_EVENT && event->done < work->value &&
		!atomic_load(&ctx->broken)) {
		pthread_cond_wait(&changed, &lock);
	}
	pthread_mutex_unlock(&lock);
}

static void stall(unsigned plan)
{
	while (standin_planned(plan)) {
		standin_nap(2000);
	}
}

static void run(struct cuda_ctx *ctx, const struct work *work)
{
	unsigned result = CUDA_OK;

	if (work->fault.kind == FAULT_STALL) {
		stall(work->fault.plan);
	} else if (work->fault.kind == FAULT_SLOW) {
		standin_nap(work->fault.argument * 1000);
	} else if (work->fault.kind == FAULT_ASYNC) {
		result = work->fault.argument;
	} else if (work->fault.kind == FAULT_LOST &&
		   (work->kind == WORK_COPY || work->kind == WORK_KERNEL)) {
		return;
	}
	/* Nothing runs in a context that is broken. */
	if (result == CUDA_OK && !atomic_load(&ctx->broken)) {
		switch (work->kind) {
		case WORK_COPY:
			result = run_copy(ctx->device, work);
			break;
		case WORK_KERNEL:
			result = kernel_run(ctx->device, work->launch);
			break;
		case WORK_WRITE:
			result = run_write(ctx->device, work);
			break;
		case WORK_CALL:
			result = work->call(ctx->device, work->data);
			break;
		default:
			run_event(ctx, work);
		}
	} else if (work->kind == WORK_CALL) {
		work->call(-1, work->data);
	}
	if (result != CUDA_OK) {
		driver_break(ctx, result);
	}
}

static void *stream_main(void *data)
{
	struct cuda_stream *stream = data;

	pthread_mutex_lock(&lock);
	for (;;) {
		struct work *work = stream->first;

		if (!work && stream->destroyed) {
			break;
		}
		if (!work) {
			pthread_cond_wait(&changed, &lock);
			continue;
		}
		stream->busy = true;
		pthread_mutex_unlock(&lock);
		run(stream->ctx, work);
		pthread_mutex_lock(&lock);
		stream->first = work->next;
		stream->last = stream->first ? stream->last : &stream->first;
		stream->busy = stream->first != NULL;
		if (work->event) {
			put_event(work->event);
		}
		free(work);
		pthread_cond_broadcast(&changed);
	}
	for (struct cuda_stream **link = &stream->ctx->streams; *link; link = &(*link)->next) {
		if (*link == stream) {
			*link = stream->next;
			break;
		}
	}
	pthread_mutex_unlock(&lock);
	free(stream);
	return NULL;
}

static struct cuda_stream *stream_create(struct cuda_ctx *ctx)
{
	struct cuda_stream *stream = calloc(1, sizeof(*stream));
	pthread_t thread;
	sigset_t all, old;
	int rc;

	if (!stream) {
		return NULL;
	}
	stream->ctx = ctx;
	stream->last = &stream->first;
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	rc = pthread_create(&thread, NULL, stream_main, stream);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	if (rc) {
		free(stream);
		return NULL;
	}
	pthread_detach(thread);
	stream->next = ctx->streams;
	ctx->streams = stream;
	return stream;
}

/* The stream behind a handle. The lock is held. NULL: it is none. */
static struct cuda_stream *find_stream(struct cuda_ctx *ctx, struct cuda_stream *handle)
{
	if ((uintptr_t)handle <= 2) {
		if (!ctx->legacy) {
			ctx->legacy = stream_create(ctx);
		}
		return ctx->legacy;
	}
	for (int i = 0; i < driver_devices(); i++) {
		for (struct cuda_stream *at = driver_ctx(i)->streams; at; at = at->next) {
			if (at == handle && !at->destroyed) {
				return at;
			}
		}
	}
	return NULL;
}

static unsigned enqueue(
	struct cuda_ctx *ctx, struct cuda_stream *handle, const struct work *described)
{
	struct work *work = malloc(sizeof(*work));
	struct cuda_stream *stream;

	if (!work) {
		return CUDA_OUT_OF_MEMORY;
	}
	*work = *described;
	work->next = NULL;
	pthread_mutex_lock(&lock);
	stream = find_stream(ctx, handle);
	if (!stream) {
		pthread_mutex_unlock(&lock);
		free(work);
		return INVALID_HANDLE;
	}
	if (work->event) {
		work->event->references++;
	}
	if (work->kind == WORK_RECORD) {
		work->value = ++work->event->recorded;
	} else if (work->kind == WORK_WAIT_EVENT) {
		work->value = work->event->recorded;
	}
	*stream->last = work;
	stream->last = &work->next;
	stream->busy = true;
	pthread_cond_broadcast(&changed);
	pthread_mutex_unlock(&lock);
	return CUDA_OK;
}

unsigned stream_copy(struct cuda_ctx *ctx, struct cuda_stream *stream, const struct fault *fault,
	cuda_ptr dst, cuda_ptr src, size_t len_bytes)
{
	struct work work = {
		.kind = WORK_COPY, .fault = *fault, .dst = dst, .src = src, .len_bytes = len_bytes};
	struct space space;

	/* The real one would take an unknown address for pageable memory. None of strew's is. */
	if (len_bytes && (!space_find(dst, &space) || !space_find(src, &space))) {
		return CUDA_INVALID_VALUE;
	}
	return enqueue(ctx, stream, &work);
}

unsigned stream_kernel(struct cuda_ctx *ctx, struct cuda_stream *stream, const struct fault *fault,
	const void *launch, size_t launch_bytes)
{
	struct work work = {.kind = WORK_KERNEL, .fault = *fault};

	if (launch_bytes > sizeof(work.launch)) {
		return CUDA_INVALID_VALUE;
	}
	memcpy(work.launch, launch, launch_bytes);
	return enqueue(ctx, stream, &work);
}

unsigned stream_call(struct cuda_ctx *ctx, struct cuda_stream *stream, const struct fault *fault,
	standin_call *call, void *data)
{
	struct work work = {.kind = WORK_CALL, .fault = *fault, .call = call, .data = data};

	return enqueue(ctx, stream, &work);
}

unsigned standin_stream_call(void *stream, standin_call *call, void *data)
{
	const struct fault none = {FAULT_NONE, 0, 0};

	return (uintptr_t)stream <= 2 ? INVALID_HANDLE
				      : stream_call(NULL, stream, &none, call, data);
}

/* The lock is held. Work of a broken context is never waited for: it is thrown away. */
static void drain_one(struct cuda_stream *stream)
{
	struct cuda_ctx *ctx = stream->ctx;

	while (find_stream(ctx, stream) == stream && stream->busy && !atomic_load(&ctx->broken)) {
		pthread_cond_wait(&changed, &lock);
	}
}

void stream_drain_legacy(struct cuda_ctx *ctx)
{
	pthread_mutex_lock(&lock);
	if (ctx->legacy) {
		drain_one(ctx->legacy);
	}
	pthread_mutex_unlock(&lock);
}

void streams_drain(struct cuda_ctx *ctx)
{
	bool busy;

	pthread_mutex_lock(&lock);
	do {
		busy = false;
		for (struct cuda_stream *at = ctx->streams; at; at = at->next) {
			busy |= at->busy;
		}
		busy = busy && !atomic_load(&ctx->broken);
		if (busy) {
			pthread_cond_wait(&changed, &lock);
		}
	} while (busy);
	pthread_mutex_unlock(&lock);
}

unsigned cuStreamCreateWithPriority(struct cuda_stream **ret_stream, unsigned flags, int priority)
{
	struct cuda_stream *stream;

	ENTER_CTX(cuStreamCreateWithPriority);
	(void)priority; /* any is taken, the nearest that there is */
	if (flags > 1) {
		return CUDA_INVALID_VALUE;
	}
	pthread_mutex_lock(&lock);
	stream = stream_create(ctx);
	pthread_mutex_unlock(&lock);
	if (!stream) {
		return CUDA_OUT_OF_MEMORY;
	}
	COUNT(streams, 1);
	*ret_stream = stream;
	return CUDA_OK;
}

/* Returns at once; the thread ends when it has done what was enqueued. */
unsigned cuStreamDestroy_v2(struct cuda_stream *handle)
{
	struct cuda_stream *stream;

	ENTER_CTX(cuStreamDestroy);
	pthread_mutex_lock(&lock);
	stream = (uintptr_t)handle > 2 ? find_stream(ctx, handle) : NULL;
	if (stream) {
		stream->destroyed = true;
		pthread_cond_broadcast(&changed);
		COUNT(streams, -1);
	}
	pthread_mutex_unlock(&lock);
	return stream ? CUDA_OK : INVALID_HANDLE;
}

unsigned cuStreamQuery(struct cuda_stream *handle)
{
	struct cuda_stream *stream;
	bool busy = false;

	ENTER_CTX(cuStreamQuery);
	pthread_mutex_lock(&lock);
	stream = find_stream(ctx, handle);
	busy = stream && stream->busy;
	pthread_mutex_unlock(&lock);
	return !stream ? INVALID_HANDLE : busy ? (unsigned)CUDA_NOT_READY : CUDA_OK;
}

unsigned cuStreamSynchronize(struct cuda_stream *handle)
{
	struct cuda_stream *stream;

	ENTER_CTX(cuStreamSynchronize);
	pthread_mutex_lock(&lock);
	stream = find_stream(ctx, handle);
	if (stream) {
		drain_one(stream);
	}
	pthread_mutex_unlock(&lock);
	return stream ? atomic_load(&ctx->broken) : INVALID_HANDLE;
}

unsigned cuCtxSynchronize(void)
{
	ENTER_CTX(cuCtxSynchronize);
	streams_drain(ctx);
	return atomic_load(&ctx->broken);
}

unsigned cuStreamWaitEvent(struct cuda_stream *stream, struct cuda_event *event, unsigned flags)
{
	struct work work = {.kind = WORK_WAIT_EVENT, .event = event};

	ENTER_CTX(cuStreamWaitEvent);
	work.fault = fault;
	return flags || !event ? INVALID_HANDLE : enqueue(ctx, stream, &work);
}

unsigned cuStreamWriteValue64_v2(
	struct cuda_stream *stream, cuda_ptr address, uint64_t value, unsigned flags)
{
	struct work work = {.kind = WORK_WRITE, .dst = address, .value = value};
	struct space space;

	ENTER_CTX(cuStreamWriteValue64);
	work.fault = fault;
	if (flags || address % sizeof(value) || !space_find(address, &space)) {
		return CUDA_INVALID_VALUE;
	}
	return enqueue(ctx, stream, &work);
}

unsigned cuEventCreate(struct cuda_event **ret_event, unsigned flags)
{
	struct cuda_event *event;

	ENTER_CTX(cuEventCreate);
	if (flags & ~7u) {
		return CUDA_INVALID_VALUE;
	}
	event = calloc(1, sizeof(*event));
	if (!event) {
		return CUDA_OUT_OF_MEMORY;
	}
	event->ctx = ctx;
	event->references = 1;
	COUNT(events, 1);
	*ret_event = event;
	return CUDA_OK;
}

unsigned cuEventDestroy_v2(struct cuda_event *event)
{
	ENTER_CTX(cuEventDestroy);
	pthread_mutex_lock(&lock);
	put_event(event);
	pthread_mutex_unlock(&lock);
	COUNT(events, -1);
	return CUDA_OK;
}

unsigned cuEventRecord(struct cuda_event *event, struct cuda_stream *stream)
{
	struct work work = {.kind = WORK_RECORD, .event = event};

	ENTER_CTX(cuEventRecord);
	work.fault = fault;
	return event && event->ctx == ctx ? enqueue(ctx, stream, &work) : INVALID_HANDLE;
}

unsigned cuEventQuery(struct cuda_event *event)
{
	bool done;

	ENTER_CTX(cuEventQuery);
	pthread_mutex_lock(&lock);
	done = event->done >= event->recorded;
	pthread_mutex_unlock(&lock);
	return done ? CUDA_OK : CUDA_NOT_READY;
}

unsigned cuEventElapsedTime(float *ret_ms, struct cuda_event *from, struct cuda_event *to)
{
	ENTER_CTX(cuEventElapsedTime);
	pthread_mutex_lock(&lock);
	*ret_ms = (float)((double)(to->at.tv_sec - from->at.tv_sec) * 1e3 +
			  (double)(to->at.tv_nsec - from->at.tv_nsec) / 1e6);
	pthread_mutex_unlock(&lock);
	return CUDA_OK;
}
