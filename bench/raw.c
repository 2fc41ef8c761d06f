/* The raw ways of moving a model's bytes: plain copies, and a kernel over all pieces at once. */
#include "base/clock.h"
#include "bench/driver.h"
#include "bench/parts.h"
#include "plan/copies.h"
#include <stdlib.h>
#include <string.h>

#define CHUNK_BYTES (1ull << 30)
#define ROOM_BYTES (2ull << 30) /* of device memory, left to others */

struct raw {
	struct memory *memory;
	const struct shapes *shapes;
	unsigned char *const *data;
	const struct part *part;
	struct gpu_stream *stream;
	struct cuda_event *start, *end;
	/* plain copies */
	uint64_t chunk_bytes;
	void *src, *dst, *pinned; /* pinned: the host's, where the part's memory is */
	struct gpu *gpu;	  /* for the peer */
	void *peer_src, *peer_dst;
	/* pieces */
	struct gpu_memory *scratch;
	struct gpu_copies *pieces;
};

static void must(int rc, const char *what, const struct error *err)
{
	bench_must(rc, what, err);
}

struct raw *raw_create(struct memory *memory, const struct shapes *shapes,
	unsigned char *const *data, const struct part *part)
{
	struct raw *raw = bench_need(calloc(1, sizeof(*raw)));
	struct error err = {0};

	raw->memory = memory;
	raw->shapes = shapes;
	raw->data = data;
	raw->part = part;
	must(gpu_stream_create(memory_device(memory), &raw->stream, &err), "a stream", &err);
	if (memory_kind(memory) == GPU_CUDA) {
		must(CUDA(&err, cuEventCreate, &raw->start, 0), "an event", &err);
		must(CUDA(&err, cuEventCreate, &raw->end, 0), "an event", &err);
	}
	return raw;
}

static void *device_memory(uint64_t len_bytes)
{
	struct error err = {0};
	cuda_ptr address;

	must(CUDA(&err, cuMemAlloc, &address, len_bytes), "memory for raw copies", &err);
	return (void *)(uintptr_t)address;
}

/* Source and destination of plain copies, at the first. */
static void prepare(struct raw *raw, uint64_t len_bytes)
{
	struct error err = {0};

	if (raw->src) {
		return;
	}
	raw->chunk_bytes = MIN(len_bytes, CHUNK_BYTES);
	if (memory_kind(raw->memory) == GPU_HOST) {
		raw->src = bench_need(malloc(raw->chunk_bytes));
		raw->dst = bench_need(malloc(raw->chunk_bytes));
		memset(raw->src, 1, raw->chunk_bytes);
		memset(raw->dst, 2, raw->chunk_bytes);
		return;
	}
	raw->dst = device_memory(raw->chunk_bytes);
	raw->src = device_memory(raw->chunk_bytes);
	if (raw->part->on_host) {
		must(CUDA(&err, cuMemHostAlloc, &raw->pinned, raw->chunk_bytes, 0), "pinned memory",
			&err);
		memset(raw->pinned, 1, raw->chunk_bytes);
	}
}

static double begin(struct raw *raw)
{
	struct error err = {0};

	must(gpu_device_enter(memory_device(raw->memory), &err), "the device", &err);
	if (raw->start) {
		must(CUDA(&err, cuEventRecord, raw->start, gpu_stream_native(raw->stream)),
			"an event", &err);
		return 0;
	}
	return (double)clock_ns() * 1e-9;
}

static double seconds_since(struct raw *raw, double start)
{
	struct error err = {0};
	float ms;

	if (!raw->start) {
		return (double)clock_ns() * 1e-9 - start;
	}
	must(CUDA(&err, cuEventRecord, raw->end, gpu_stream_native(raw->stream)), "an event", &err);
	must(BENCH_CUDA(&err, cuStreamSynchronize, gpu_stream_native(raw->stream)), "a raw copy",
		&err);
	must(BENCH_CUDA(&err, cuEventElapsedTime, &ms, raw->start, raw->end), "a time", &err);
	return (double)ms * 1e-3;
}

static double copy(struct raw *raw, const void *src, uint64_t len_bytes)
{
	struct error err = {0};
	double start = begin(raw);

	for (uint64_t done = 0; done < len_bytes; done += raw->chunk_bytes) {
		uint64_t n = MIN(len_bytes - done, raw->chunk_bytes);

		must(gpu_copy(memory_device(raw->memory), (uintptr_t)raw->dst, (uintptr_t)src, n,
			     raw->stream, &err),
			"a raw copy", &err);
	}
	return seconds_since(raw, start);
}

double raw_within(struct raw *raw, uint64_t len_bytes)
{
	prepare(raw, len_bytes);
	return copy(raw, raw->src, len_bytes);
}

double raw_copy(struct raw *raw, uint64_t len_bytes)
{
	prepare(raw, len_bytes);
	return copy(raw, raw->pinned ? raw->pinned : raw->src, len_bytes);
}

/* Memory of another GPU, within reach of this one. */
static void prepare_peer(struct raw *raw)
{
	uint8_t uuid[GPU_UUID_BYTES];
	struct gpu_device *peer;
	struct error err = {0};

	must(gpu_open(GPU_CUDA, &raw->gpu, &err), "the peer", &err);
	must(gpu_find(raw->gpu, raw->part->peer, uuid, &err), "the peer", &err);
	must(gpu_device(raw->gpu, uuid, &peer, &err), "the peer", &err);
	must(gpu_device_enter(peer, &err), "the peer", &err);
	raw->peer_dst = device_memory(CHUNK_BYTES);
	/* Opening both through one gpu gives each access to the other. */
	must(gpu_device(raw->gpu, gpu_device_uuid(memory_device(raw->memory)), &peer, &err),
		"this GPU", &err);
	must(gpu_device_enter(memory_device(raw->memory), &err), "this GPU", &err);
	raw->peer_src = device_memory(CHUNK_BYTES);
}

double raw_peer(struct raw *raw, uint64_t len_bytes)
{
	struct error err = {0};
	double start;

	if (!raw->peer_dst) {
		prepare_peer(raw);
	}
	start = begin(raw);
	for (uint64_t done = 0; done < len_bytes; done += CHUNK_BYTES) {
		must(gpu_copy(memory_device(raw->memory), (uintptr_t)raw->peer_dst,
			     (uintptr_t)raw->peer_src, MIN(len_bytes - done, CHUNK_BYTES),
			     raw->stream, &err),
			"a raw copy to the peer", &err);
	}
	return seconds_since(raw, start);
}

/* A piece as one copy: rows of a tensor to rows of a parameter, which lie side by side. */
static void add_piece(struct raw *raw, const struct shapes *shapes, const struct shape_piece *piece,
	uint64_t parameter_at, struct copies *copies)
{
	const struct shape_tensor *tensor = &shapes->tensors[piece->tensor];
	uint64_t element = strew_dtype_size(tensor->dtype);
	uint64_t cols = tensor->ndim == 2 ? tensor->shape[1] : 1;
	struct error err = {0};
	struct copy copy = {.src_space = 0,
		.dst_space = 1,
		.src = (uintptr_t)raw->data[piece->tensor] - (uintptr_t)raw->data[0] +
		       (piece->start[0] * cols + piece->start[1]) * element,
		.dst = parameter_at + piece->offset * element,
		.run_bytes = piece->extent[1] * element,
		.ndim = 1,
		.extent = {piece->extent[0]},
		.src_stride = {cols * element},
		.dst_stride = {piece->row_stride * element}};

	must(copies_add(copies, &copy, &err), "a piece", &err);
}

/* All workers' pieces in one range, so that one launch does them. */
static bool compile(struct raw *raw)
{
	uint64_t at = 0, all = 0, bases[2];
	struct copies copies;
	struct error err = {0};

	if (raw->part->on_host && memory_kind(raw->memory) == GPU_CUDA) {
		return false; /* the trainer's memory is not registered in this process */
	}
	for (uint32_t rank = 0; rank < raw->part->model.tp; rank++) {
		struct shapes shapes;

		bench_shapes(&raw->part->model, rank, &shapes);
		all += shapes.worker_bytes + 256 * shapes.nparameters;
		shapes_finish(&shapes);
	}
	if (memory_kind(raw->memory) == GPU_CUDA && memory_free(raw->memory) < all + ROOM_BYTES) {
		return false;
	}
	must(gpu_alloc(memory_device(raw->memory), all, &raw->scratch, &err), "scratch", &err);
	must(copies_start(&copies, 1, &err), "pieces", &err);
	for (uint32_t rank = 0; rank < raw->part->model.tp; rank++) {
		struct shapes shapes;
		uint64_t *places;

		bench_shapes(&raw->part->model, rank, &shapes);
		places = bench_need(calloc(shapes.nparameters, sizeof(*places)));
		for (size_t i = 0; i < shapes.nparameters; i++) {
			places[i] = at;
			at = align_up(at + shape_bytes(&shapes.parameters[i]), 256);
		}
		for (size_t i = 0; i < shapes.npieces; i++) {
			add_piece(raw, &shapes, &shapes.pieces[i],
				places[shapes.pieces[i].parameter], &copies);
		}
		free(places);
		shapes_finish(&shapes);
	}
	copies_end_range(&copies);
	bases[0] = (uintptr_t)raw->data[0];
	bases[1] = gpu_memory_address(raw->scratch);
	must(gpu_copies_create(memory_device(raw->memory), &copies, bases, 2, &raw->pieces, &err),
		"pieces", &err);
	copies_finish(&copies);
	return true;
}

double raw_pieces(struct raw *raw)
{
	struct error err = {0};
	double start;

	if (!raw->pieces && !compile(raw)) {
		return -1;
	}
	start = begin(raw);
	must(gpu_copies_run(raw->pieces, 0, 0, raw->stream, &err), "the pieces", &err);
	return seconds_since(raw, start);
}

void raw_destroy(struct raw *raw)
{
	if (!raw) {
		return;
	}
	gpu_device_enter(memory_device(raw->memory), NULL);
	if (raw->pieces) {
		gpu_copies_destroy(raw->pieces);
	}
	gpu_memory_release(raw->scratch);
	if (memory_kind(raw->memory) == GPU_HOST) {
		free(raw->src);
		free(raw->dst);
	} else {
		if (raw->pinned) {
			CUDA(NULL, cuMemFreeHost, raw->pinned);
		}
		if (raw->src) {
			CUDA(NULL, cuMemFree, (uintptr_t)raw->src);
			CUDA(NULL, cuMemFree, (uintptr_t)raw->dst);
		}
		CUDA(NULL, cuEventDestroy, raw->start);
		CUDA(NULL, cuEventDestroy, raw->end);
	}
	if (raw->peer_dst) {
		CUDA(NULL, cuMemFree, (uintptr_t)raw->peer_src);
		CUDA(NULL, cuMemFree, (uintptr_t)raw->peer_dst);
	}
	gpu_stream_destroy(raw->stream);
	gpu_close(raw->gpu);
	free(raw);
}
