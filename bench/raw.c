/* The raw ways of moving a model's bytes: plain copies, and a kernel over all pieces at once. */
#include "base/clock.h"
#include "bench/driver.h"
#include "bench/parts.h"
#include "plan/copies.h"
#include <stdlib.h>
#include <string.h>

#define CHUNK_BYTES (1ull << 30)
#define ROOM_BYTES (2ull << 30) /* of device memory, left to others */
#define PEERS_MAX 16

/* Where copies are issued, and timed. */
struct lane {
	struct gpu_device *device;
	struct gpu_stream *stream;
	struct cuda_event *start, *end; /* cuda */
};

/* Another GPU within reach. Its lane issues what comes from host memory, ours what comes from here.
 */
struct peer {
	char name[64];
	struct lane lane;
	void *dst;
};

struct raw {
	struct memory *memory;
	const struct shapes *shapes;
	unsigned char *const *data;
	const struct part *part;
	struct lane lane;
	/* plain copies */
	uint64_t chunk_bytes;
	void *src, *dst, *pinned; /* pinned: the host's, where the part's memory is */
	struct gpu *gpu;	  /* for the peers */
	struct peer peers[PEERS_MAX];
	size_t npeers;
	void *peer_src; /* of what goes to them from here */
	/* pieces */
	struct gpu_memory *scratch;
	struct gpu_copies *pieces;
};

static void must(int rc, const char *what, const struct error *err)
{
	bench_must(rc, what, err);
}

static void lane_open(struct lane *lane, struct gpu_device *device, enum gpu_kind kind)
{
	struct error err = {0};

	lane->device = device;
	must(gpu_device_enter(device, &err), "the device", &err);
	must(gpu_stream_create(device, &lane->stream, &err), "a stream", &err);
	if (kind == GPU_CUDA) {
		must(CUDA(&err, cuEventCreate, &lane->start, 0), "an event", &err);
		must(CUDA(&err, cuEventCreate, &lane->end, 0), "an event", &err);
	}
}

static void lane_close(struct lane *lane)
{
	gpu_device_enter(lane->device, NULL);
	if (lane->start) {
		CUDA(NULL, cuEventDestroy, lane->start);
		CUDA(NULL, cuEventDestroy, lane->end);
	}
	gpu_stream_destroy(lane->stream);
}

struct raw *raw_create(struct memory *memory, const struct shapes *shapes,
	unsigned char *const *data, const struct part *part)
{
	struct raw *raw = bench_need(calloc(1, sizeof(*raw)));

	raw->memory = memory;
	raw->shapes = shapes;
	raw->data = data;
	raw->part = part;
	lane_open(&raw->lane, memory_device(memory), memory_kind(memory));
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
	must(gpu_device_enter(raw->lane.device, &err), "the device", &err);
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

static double begin(const struct lane *lane)
{
	struct error err = {0};

	must(gpu_device_enter(lane->device, &err), "the device", &err);
	if (lane->start) {
		must(CUDA(&err, cuEventRecord, lane->start, gpu_stream_native(lane->stream)),
			"an event", &err);
		return 0;
	}
	return (double)clock_ns() * 1e-9;
}

static double seconds_since(const struct lane *lane, double start)
{
	struct error err = {0};
	float ms;

	if (!lane->start) {
		return (double)clock_ns() * 1e-9 - start;
	}
	must(CUDA(&err, cuEventRecord, lane->end, gpu_stream_native(lane->stream)), "an event",
		&err);
	must(CUDA(&err, cuStreamSynchronize, gpu_stream_native(lane->stream)), "a raw copy", &err);
	must(BENCH_CUDA(&err, cuEventElapsedTime, &ms, lane->start, lane->end), "a time", &err);
	return (double)ms * 1e-3;
}

/* In chunks, each to and from the same place. */
static double copy(const struct lane *lane, void *dst, const void *src, uint64_t chunk_bytes,
	uint64_t len_bytes)
{
	struct error err = {0};
	double start = begin(lane);

	for (uint64_t done = 0; done < len_bytes; done += chunk_bytes) {
		must(gpu_copy(lane->device, (uintptr_t)dst, (uintptr_t)src,
			     MIN(len_bytes - done, chunk_bytes), lane->stream, &err),
			"a raw copy", &err);
	}
	return seconds_since(lane, start);
}

double raw_within(struct raw *raw, uint64_t len_bytes)
{
	prepare(raw, len_bytes);
	return copy(&raw->lane, raw->dst, raw->src, raw->chunk_bytes, len_bytes);
}

double raw_copy(struct raw *raw, uint64_t len_bytes)
{
	prepare(raw, len_bytes);
	return copy(&raw->lane, raw->dst, raw->pinned ? raw->pinned : raw->src, raw->chunk_bytes,
		len_bytes);
}

/* Another GPU, whose memory is within reach of this one. */
static struct peer *open_peer(struct raw *raw, const char *name)
{
	uint8_t uuid[GPU_UUID_BYTES];
	struct gpu_device *device;
	struct error err = {0};
	struct peer *peer;

	for (size_t i = 0; i < raw->npeers; i++) {
		if (strcmp(raw->peers[i].name, name) == 0) {
			return &raw->peers[i];
		}
	}
	if (raw->npeers == PEERS_MAX) {
		bench_fail(EXIT_RUNTIME, "over %d GPUs", PEERS_MAX);
	}
	if (!raw->gpu) {
		must(gpu_open(GPU_CUDA, &raw->gpu, &err), "the peer", &err);
	}
	peer = &raw->peers[raw->npeers++];
	string_copy(peer->name, sizeof(peer->name), name);
	must(gpu_find(raw->gpu, name, uuid, &err), "the peer", &err);
	must(gpu_device(raw->gpu, uuid, &device, &err), "the peer", &err);
	lane_open(&peer->lane, device, GPU_CUDA);
	peer->dst = device_memory(CHUNK_BYTES);
	/* Opening both through one gpu gives each access to the other. */
	must(gpu_device(raw->gpu, gpu_device_uuid(raw->lane.device), &device, &err), "this GPU",
		&err);
	return peer;
}

double raw_peer(struct raw *raw, const char *name, uint64_t len_bytes)
{
	struct peer *peer = open_peer(raw, name);
	struct error err = {0};

	if (raw->part->on_host) {
		prepare(raw, len_bytes);
		return copy(&peer->lane, peer->dst, raw->pinned, raw->chunk_bytes, len_bytes);
	}
	if (!raw->peer_src) {
		must(gpu_device_enter(raw->lane.device, &err), "this GPU", &err);
		raw->peer_src = device_memory(CHUNK_BYTES);
	}
	return copy(&raw->lane, peer->dst, raw->peer_src, CHUNK_BYTES, len_bytes);
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
	start = begin(&raw->lane);
	must(gpu_copies_run(raw->pieces, 0, 0, raw->lane.stream, &err), "the pieces", &err);
	return seconds_since(&raw->lane, start);
}

void raw_destroy(struct raw *raw)
{
	if (!raw) {
		return;
	}
	gpu_device_enter(raw->lane.device, NULL);
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
	}
	if (raw->peer_src) {
		CUDA(NULL, cuMemFree, (uintptr_t)raw->peer_src);
	}
	for (size_t i = 0; i < raw->npeers; i++) {
		gpu_device_enter(raw->peers[i].lane.device, NULL);
		CUDA(NULL, cuMemFree, (uintptr_t)raw->peers[i].dst);
		lane_close(&raw->peers[i].lane);
	}
	lane_close(&raw->lane);
	gpu_close(raw->gpu);
	free(raw);
}
