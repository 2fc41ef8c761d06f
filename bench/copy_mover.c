/* Who copies in strew-bench copy: imports with the broker's code, by either GPU's context. */
#include "base/clock.h"
#include "bench/copy.h"
#include "bench/driver.h"
#include "plan/copies.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define PIECE_BYTES (64u << 10)
#define TIMED_BYTES (256ull << 20) /* what one timing moves, at least … */
#define TIMED_COPIES 200u	   /* … in so many copies at most */

const char *const copy_method_names[COPY_METHODS] = {[COPY_ENGINE] = "engine",
	[COPY_LOOP] = "engine, 64 KiB each",
	[COPY_BATCH] = "engine, 64 KiB, a batch",
	[COPY_KERNEL] = "strew, 64 KiB each",
	[COPY_ROWS_KERNEL] = "strew, rows",
	[COPY_ROWS_ENGINE] = "engine, rows"};

/* What one GPU needs to issue: its own view of both ends. */
struct issuer {
	struct gpu_device *device;
	struct gpu_stream *stream;
	struct gpu_event *done;
	struct cuda_event *start, *end; /* cuda */
	struct gpu_memory *memory[2];	/* the source's, the target's */
	uint64_t at[2];
	/* compiled for the last length */
	struct gpu_copies *copies[COPY_METHODS];
	uint64_t compiled_bytes;
	/* the pieces of a batch, for its last length */
	cuda_ptr *batch_dsts, *batch_srcs;
	size_t *batch_sizes, nbatch;
	uint64_t batch_bytes;
};

struct mover {
	const struct copy_mover *part;
	struct gpu *gpu;
	struct issuer
		issuers[2]; /* on the source's GPU or the part's issuer, and on the target's */
	struct gpu_memory *own[2];
	unsigned taken; /* handles */
};

static void must(int rc, const char *what, const struct error *err)
{
	bench_must(rc, what, err);
}

static void open_issuer(struct mover *mover, const char *device, struct issuer *issuer)
{
	uint8_t uuid[GPU_UUID_BYTES];
	struct error err = {0};

	must(gpu_find(mover->gpu, device, uuid, &err), "the device", &err);
	must(gpu_device(mover->gpu, uuid, &issuer->device, &err), "the device", &err);
	must(gpu_stream_create(issuer->device, &issuer->stream, &err), "a stream", &err);
	must(gpu_event_create(issuer->device, &issuer->done, &err), "an event", &err);
	if (gpu_info(mover->gpu)->kind == GPU_CUDA) {
		must(gpu_device_enter(issuer->device, &err), "the device", &err);
		must(CUDA(&err, cuEventCreate, &issuer->start, 0), "an event", &err);
		must(CUDA(&err, cuEventCreate, &issuer->end, 0), "an event", &err);
	}
}

/* Out of host memory the target's GPU issues, unless the part names another. */
static void prepare(struct mover *mover)
{
	const struct copy_mover *part = mover->part;
	const char *first = part->on_host ? part->target : part->source;
	struct gpu_device *home;
	struct error err = {0};

	must(gpu_open(part->kind, &mover->gpu, &err), "the backend", &err);
	if (part->kind == GPU_CUDA) {
		must(bench_driver_load(&err), "the driver", &err);
	}
	open_issuer(mover, part->issuer ? part->issuer : first, &mover->issuers[0]);
	open_issuer(mover, part->target, &mover->issuers[1]);
	home = mover->issuers[part->issuer != NULL].device;
	must(part->on_host ? gpu_alloc_pinned(home, part->len_bytes, &mover->own[0], &err)
			   : gpu_alloc(home, part->len_bytes, &mover->own[0], &err),
		"memory for plain copies", &err);
	must(gpu_alloc(mover->issuers[1].device, part->len_bytes, &mover->own[1], &err),
		"memory for plain copies", &err);
}

static void forget_copies(struct issuer *issuer)
{
	for (size_t i = 0; i < COPY_METHODS; i++) {
		gpu_copies_destroy(issuer->copies[i]);
		issuer->copies[i] = NULL;
	}
}

static void finish(struct mover *mover)
{
	for (int i = 0; i < 2; i++) {
		struct issuer *issuer = &mover->issuers[i];

		forget_copies(issuer);
		free(issuer->batch_dsts);
		free(issuer->batch_srcs);
		free(issuer->batch_sizes);
		gpu_memory_release(issuer->memory[0]);
		gpu_memory_release(issuer->memory[1]);
		gpu_memory_release(mover->own[i]);
		if (issuer->start) {
			gpu_device_enter(issuer->device, NULL);
			CUDA(NULL, cuEventDestroy, issuer->start);
			CUDA(NULL, cuEventDestroy, issuer->end);
		}
		gpu_event_destroy(issuer->done);
		gpu_stream_destroy(issuer->stream);
	}
	gpu_close(mover->gpu);
}

static void take(struct mover *mover, struct letter *letter)
{
	struct copy_handle flat;
	struct handle handle = {0};
	struct error err = {0};
	unsigned which = mover->taken++;

	memcpy(&flat, letter->bytes, sizeof(flat));
	handle.kind = (enum handle_kind)flat.kind;
	handle.size_bytes = flat.size_bytes;
	handle.buffer_id = flat.buffer_id;
	memcpy(handle.uuid, flat.uuid, sizeof(handle.uuid));
	memcpy(handle.ipc, flat.ipc, sizeof(handle.ipc));
	handle.nchunks = letter->nfds;
	handle.fds = letter->fds;
	handle.chunk_bytes = flat.chunk_bytes;
	for (int i = 0; i < 2; i++) {
		struct issuer *issuer = &mover->issuers[i];

		must(gpu_import(issuer->device, &handle, which == 1, &issuer->memory[which], &err),
			"an import", &err);
		issuer->at[which] = gpu_memory_address(issuer->memory[which]) + flat.offset;
	}
	for (uint32_t i = 0; i < letter->nfds; i++) {
		fd_close(&letter->fds[i]);
	}
	letter->nfds = 0;
}

/* The list of a method that strew's executor runs. */
static void compile(struct mover *mover, struct issuer *issuer, const struct copy_run *run)
{
	uint64_t row = mover->part->row_bytes;
	struct copies copies;
	struct error err = {0};

	if (issuer->compiled_bytes != run->len_bytes) {
		forget_copies(issuer);
		issuer->compiled_bytes = run->len_bytes;
	}
	if (issuer->copies[run->method]) {
		return;
	}
	must(copies_start(&copies, 1, &err), "copies", &err);
	copies.first[++copies.nranges] = 0;
	if (run->method == COPY_ROWS_KERNEL) {
		struct copy rows = {.dst_space = 1,
			.run_bytes = row,
			.ndim = 1,
			.extent = {run->len_bytes / row},
			.src_stride = {2 * row},
			.dst_stride = {2 * row}};

		must(copies_add(&copies, &rows, &err), "copies", &err);
	}
	for (uint64_t at = 0; run->method == COPY_KERNEL && at < run->len_bytes;
		at += PIECE_BYTES) {
		struct copy piece = {.dst_space = 1,
			.src = at,
			.dst = at,
			.run_bytes = MIN(run->len_bytes - at, PIECE_BYTES)};

		must(copies_add(&copies, &piece, &err), "copies", &err);
	}
	copies.first[copies.nranges] = copies.n;
	must(gpu_copies_create(
		     issuer->device, &copies, issuer->at, 2, &issuer->copies[run->method], &err),
		"copies", &err);
	copies_finish(&copies);
}

/* The lists of a batch are made before it is timed, as strew's are compiled. */
static void list_batch(struct issuer *issuer, uint64_t len_bytes)
{
	size_t n = (size_t)((len_bytes + PIECE_BYTES - 1) / PIECE_BYTES);

	if (issuer->batch_bytes == len_bytes) {
		return;
	}
	issuer->batch_dsts = bench_need(realloc(issuer->batch_dsts, n * sizeof(cuda_ptr)));
	issuer->batch_srcs = bench_need(realloc(issuer->batch_srcs, n * sizeof(cuda_ptr)));
	issuer->batch_sizes = bench_need(realloc(issuer->batch_sizes, n * sizeof(size_t)));
	for (size_t i = 0; i < n; i++) {
		uint64_t at = (uint64_t)i * PIECE_BYTES;

		issuer->batch_dsts[i] = issuer->at[1] + at;
		issuer->batch_srcs[i] = issuer->at[0] + at;
		issuer->batch_sizes[i] = MIN(len_bytes - at, PIECE_BYTES);
	}
	issuer->nbatch = n;
	issuer->batch_bytes = len_bytes;
}

static int copy_rows(
	const struct mover *mover, struct issuer *issuer, uint64_t len_bytes, struct error *err)
{
	uint64_t row = mover->part->row_bytes;
	struct bench_rows rows = {.width_bytes = row, .height = len_bytes / row};

	rows.src.memory_type = rows.dst.memory_type = BENCH_MEMORY_UNIFIED;
	rows.src.device = issuer->at[0];
	rows.dst.device = issuer->at[1];
	rows.src.pitch_bytes = rows.dst.pitch_bytes = 2 * row;
	return BENCH_CUDA(err, cuMemcpy2DAsync, &rows, gpu_stream_native(issuer->stream));
}

static int copy_once(
	struct mover *mover, struct issuer *issuer, const struct copy_run *run, struct error *err)
{
	uint64_t step = run->method == COPY_LOOP ? PIECE_BYTES : run->len_bytes;
	int rc = 0;

	switch (run->method) {
	case COPY_KERNEL:
	case COPY_ROWS_KERNEL:
		return gpu_copies_run(issuer->copies[run->method], 0, 0, issuer->stream, err);
	case COPY_ROWS_ENGINE:
		return copy_rows(mover, issuer, run->len_bytes, err);
	case COPY_BATCH:
		return bench_batch_copy(issuer->batch_dsts, issuer->batch_srcs, issuer->batch_sizes,
			issuer->nbatch, gpu_stream_native(issuer->stream), err);
	default:
		for (uint64_t at = 0; rc == 0 && at < run->len_bytes; at += step) {
			rc = gpu_copy(issuer->device, issuer->at[1] + at, issuer->at[0] + at,
				MIN(run->len_bytes - at, step), issuer->stream, err);
		}
		return rc;
	}
}

static int plain_once(
	struct mover *mover, struct issuer *issuer, const struct copy_run *run, struct error *err)
{
	return gpu_copy(issuer->device, gpu_memory_address(mover->own[1]),
		gpu_memory_address(mover->own[0]), run->len_bytes, issuer->stream, err);
}

/* Seconds of one of `n` copies behind each other. */
static double time_copies(struct mover *mover, struct issuer *issuer, const struct copy_run *run,
	int (*copy)(struct mover *, struct issuer *, const struct copy_run *, struct error *),
	unsigned n)
{
	struct cuda_stream *stream = gpu_stream_native(issuer->stream);
	struct error err = {0};
	uint64_t start_ns = clock_ns();
	float ms;
	int rc;

	must(gpu_device_enter(issuer->device, &err), "the device", &err);
	if (issuer->start) {
		must(CUDA(&err, cuEventRecord, issuer->start, stream), "an event", &err);
	}
	for (unsigned i = 0; i < n; i++) {
		must(copy(mover, issuer, run, &err), "a copy", &err);
	}
	if (!issuer->start) {
		return (double)(clock_ns() - start_ns) * 1e-9 / n;
	}
	must(CUDA(&err, cuEventRecord, issuer->end, stream), "an event", &err);
	must(gpu_event_record(issuer->done, issuer->stream, &err), "an event", &err);
	while ((rc = gpu_event_query(issuer->done, &err)) == 0) {
	}
	must(rc, "a copy", &err);
	must(BENCH_CUDA(&err, cuEventElapsedTime, &ms, issuer->start, issuer->end), "a time", &err);
	return (double)ms * 1e-3 / n;
}

static unsigned how_many(const struct copy_run *run)
{
	uint64_t n = TIMED_BYTES / run->len_bytes;

	return run->once ? 1 : (unsigned)MIN(MAX(n, 1), TIMED_COPIES);
}

static double answer_run(struct mover *mover, const struct copy_run *run, bool raw)
{
	/* Plain copies stay with their own GPU. */
	struct issuer *issuer =
		&mover->issuers[run->by_target || (raw && mover->part->issuer != NULL)];

	if (!raw && (run->method == COPY_KERNEL || run->method == COPY_ROWS_KERNEL)) {
		compile(mover, issuer, run);
	} else if (!raw && run->method == COPY_BATCH) {
		list_batch(issuer, run->len_bytes);
	}
	return time_copies(mover, issuer, run, raw ? plain_once : copy_once, how_many(run));
}

/* Some ways are a matter of GPUs, one of new drivers. */
static bool copy_can(const struct mover *mover, uint32_t method)
{
	if (mover->part->kind != GPU_CUDA) {
		return method != COPY_BATCH && method != COPY_ROWS_ENGINE;
	}
	return method != COPY_BATCH || bench_batch_there();
}

static void answer(void *data, struct letter *letter)
{
	struct mover *mover = data;
	struct copy_run run;
	uint32_t method;
	uint64_t can;
	double seconds;

	if (letter->what == COPY_TAKE && mover->taken < 2) {
		take(mover, letter);
	} else if (letter->what == COPY_RUN || letter->what == COPY_RAW) {
		memcpy(&run, letter->bytes, sizeof(run));
		seconds = answer_run(mover, &run, letter->what == COPY_RAW);
		letter_put(letter, &seconds, sizeof(seconds));
	} else if (letter->what == COPY_CAN) {
		memcpy(&method, letter->bytes, sizeof(method));
		can = copy_can(mover, method);
		letter_put(letter, &can, sizeof(can));
	} else {
		letter->rc = -EINVAL;
	}
}

int part_copy_mover(int fd, void *arg)
{
	struct mover mover = {.part = arg};

	prepare(&mover);
	letter_serve(fd, answer, &mover);
	finish(&mover);
	return EXIT_OK;
}
