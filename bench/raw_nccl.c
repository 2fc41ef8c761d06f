/* One of two ranks of plain NCCL, with NCCL's own defaults: broadcasts in pieces of one length. */
#include "base/clock.h"
#include "bench/driver.h"
#include "bench/parts.h"
#include "wire/nccl.h"
#include "wire/nccl_table.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct ring {
	struct part *part;
	struct memory *memory;
	struct gpu_stream *stream;
	struct cuda_event *end;
	struct nccl_comm *comm;
	unsigned char *buffer; /* made at the start: what is free later tells what NCCL took */
};

static void init(struct ring *ring, const void *id_bytes)
{
	struct nccl_config config = NCCL_CONFIG_DEFAULTS;
	struct error err = {0};
	nccl_id id;

	config.blocking = 1;
	memcpy(id.bytes, id_bytes, sizeof(id.bytes));
	bench_must(NCCL(&err, ncclCommInitRankConfig, &ring->comm, 2, id, (int)ring->part->rank,
			   &config),
		"raw NCCL", &err);
	bench_must(gpu_stream_create(memory_device(ring->memory), &ring->stream, &err), "a stream",
		&err);
	bench_must(CUDA(&err, cuEventCreate, &ring->end, 0), "an event", &err);
}

/* By the host's clock, which both ranks share: a broadcast is done when its receiver has it. */
static struct broadcast_times run(struct ring *ring, const struct broadcast *broadcast)
{
	struct nccl_stream *stream = gpu_stream_native(ring->stream);
	uint64_t want = MIN(broadcast->piece_bytes, ring->part->buffer_bytes);
	struct broadcast_times times;
	struct error err = {0};
	unsigned result;

	times.start_ns = clock_ns();
	for (uint64_t done = 0; done < broadcast->len_bytes; done += want) {
		bench_must(NCCL(&err, ncclBroadcast, ring->buffer, ring->buffer,
				   MIN(want, broadcast->len_bytes - done), NCCL_UINT8, 0,
				   ring->comm, stream),
			"raw NCCL", &err);
	}
	bench_must(CUDA(&err, cuEventRecord, ring->end, gpu_stream_native(ring->stream)),
		"an event", &err);
	/* Looked at without sleeping: waking up is none of NCCL's costs. */
	while ((result = cuda_driver.cuEventQuery(ring->end)) == CUDA_NOT_READY) {
	}
	times.end_ns = clock_ns();
	bench_must(cuda_outcome(&err, "cuEventQuery", result), "raw NCCL", &err);
	return times;
}

static void answer(void *data, struct letter *letter)
{
	struct ring *ring = data;
	struct broadcast broadcast;
	struct broadcast_times times;
	struct error err = {0};
	uint64_t free_bytes;
	nccl_id id;

	switch (letter->what) {
	case PART_ID:
		bench_must(NCCL(&err, ncclGetUniqueId, &id), "raw NCCL", &err);
		letter_put(letter, id.bytes, sizeof(id.bytes));
		break;
	case PART_INIT:
		init(ring, letter->bytes);
		break;
	case PART_FREE:
		free_bytes = memory_free(ring->memory);
		letter_put(letter, &free_bytes, sizeof(free_bytes));
		break;
	case PART_BROADCAST:
		memcpy(&broadcast, letter->bytes, sizeof(broadcast));
		times = run(ring, &broadcast);
		letter_put(letter, &times, sizeof(times));
		break;
	default:
		letter->rc = -EINVAL;
	}
}

int part_nccl(int fd, void *arg)
{
	struct ring ring = {.part = arg};
	struct error err = {0};

	if (ring.part->one_gpu) {
		setenv("NCCL_HOSTID", ring.part->rank ? "strew-raw-1" : "strew-raw-0", 1);
	}
	ring.memory = memory_create(GPU_CUDA, ring.part->device, false);
	memory_reserve(ring.memory, ring.part->buffer_bytes);
	ring.buffer = memory_take(ring.memory, ring.part->buffer_bytes);
	bench_must(nccl_open(&err), "raw NCCL", &err);
	letter_serve(fd, answer, &ring);
	/* The communicator ends with the process, with all that it uses: the other rank may be gone
	 * already, and NCCL would wait for it. */
	_exit(EXIT_OK);
}
