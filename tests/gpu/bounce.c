/*
 * Bytes that go by pinned host memory, as between GPUs without peer access. The ring does not ask
 * what its two GPUs reach, so here it is tried wherever there is a GPU: from one to itself, and
 * from each to the next. The product has no switch that forces it.
 */
#include "gpu/bounce.h"
#include "base/clock.h"
#include "check.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define BUFFER_BYTES (512u << 10) /* much shorter than what goes by it */
#define LONG_BYTES (1ull << 30)

/* One of the two GPUs, with as much memory as what is copied needs. */
struct end {
	struct gpu_device *device;
	struct gpu_stream *stream;
	struct gpu_memory *memory;
};

static void end_open(struct gpu *gpu, const char *number, uint64_t bytes, struct end *end)
{
	struct error err = {0};
	uint8_t uuid[GPU_UUID_BYTES];

	must(gpu_find(gpu, number, uuid, &err), "a GPU", &err);
	must(gpu_device(gpu, uuid, &end->device, &err), "its context", &err);
	must(gpu_stream_create(end->device, &end->stream, &err), "a stream", &err);
	must(gpu_alloc(end->device, bytes, &end->memory, &err), "memory", &err);
}

static void end_close(struct end *end)
{
	gpu_memory_release(end->memory);
	gpu_stream_destroy(end->stream);
}

static void fill(const struct end *end, const void *bytes)
{
	struct error err = {0};

	must(gpu_device_enter(end->device, &err), "a context", &err);
	must(CUDA(&err, cuMemcpyHtoD, gpu_memory_address(end->memory), bytes, CHECK_BYTES),
		"filling memory", &err);
}

/* Space 0 is a slot, space 1 the target's memory; each GPU has an address for its own end alone. */
static void bases_of(const struct end *to, uint64_t *ret_from, uint64_t *ret_to)
{
	ret_from[0] = 0;
	ret_from[1] = GPU_OUT_OF_REACH;
	ret_to[0] = GPU_OUT_OF_REACH;
	ret_to[1] = gpu_memory_address(to->memory);
}

/* What the plain copies refuse where there is no peer access, by both names. */
static void check_refusal(const struct end *from, const struct end *to, const struct copies *copies)
{
	uint64_t bases[2] = {0, gpu_memory_address(to->memory)};
	struct gpu_copies *compiled;
	struct error err = {0};
	bool reaches = gpu_device_reaches(from->device, gpu_device_uuid(to->device));
	int rc = gpu_copies_create(from->device, copies, bases, 2, &compiled, &err);

	check(rc == (reaches ? 0 : -ENOTSUP), "bounce: within reach %d %s", reaches, err.text);
	if (rc == 0) {
		gpu_copies_destroy(compiled);
	}
}

/* Strides and casts from a slot on one GPU into memory on the other, through buffers. */
static void check_bytes(const struct end *from, const struct end *to, uint64_t seed)
{
	char *slot = malloc(CHECK_BYTES), *memory = malloc(CHECK_BYTES), *got = malloc(CHECK_BYTES);
	uint64_t from_bases[2], to_bases[2];
	struct gpu_bounce *bounce;
	struct gpu_ring *ring;
	struct copies copies, forth;
	struct error err = {0};
	size_t first[3];

	make_copies(seed, CHECK_BYTES, &copies);
	/* Ranges 0 and 2 go from the slot to the memory. */
	memmove(copies.v + CHECK_COPIES, copies.v + copies.first[2], sizeof(*copies.v));
	first[0] = 0;
	first[1] = CHECK_COPIES;
	first[2] = CHECK_COPIES + 1;
	forth = (struct copies){.v = copies.v, .n = first[2], .first = first, .nranges = 2};
	make_pattern(seed, memory, CHECK_BYTES);
	make_pattern(seed + 1, slot, CHECK_BYTES);
	fill(to, memory);
	fill(from, slot);
	bases_of(to, from_bases, to_bases);
	must(gpu_ring_create(from->device, to->device, BUFFER_BYTES, &ring, &err), "a ring", &err);
	must(gpu_bounce_create(ring, &forth, from_bases, to_bases, 2, &bounce, &err), "copies",
		&err);
	for (size_t range = 0; range < forth.nranges; range++) {
		must(gpu_bounce_run(bounce, range, gpu_memory_address(from->memory), from->stream,
			     to->stream, &err),
			"running copies", &err);
		run_reference(&forth, range, slot, memory);
	}
	drain(to->device, to->stream);
	drain(from->device, from->stream);
	check_refusal(from, to, &forth);
	must(gpu_device_enter(to->device, &err), "a context", &err);
	check(extra.cuMemcpyDtoH(got, gpu_memory_address(to->memory), CHECK_BYTES) == 0 &&
			memcmp(got, memory, CHECK_BYTES) == 0,
		"bounce: the memory bit by bit");
	gpu_bounce_destroy(bounce);
	gpu_ring_destroy(ring);
	free(copies.v);
	free(copies.first);
	free(slot);
	free(memory);
	free(got);
}

/* How fast a long run is with buffers as the broker has them. */
static void measure(struct gpu *gpu, const char *first, const char *second)
{
	struct copy copy = {.dst_space = 1, .run_bytes = LONG_BYTES};
	size_t ranges[2] = {0, 1};
	struct copies copies = {.v = &copy, .n = 1, .first = ranges, .nranges = 1};
	uint64_t from_bases[2], to_bases[2], started = 0;
	struct gpu_bounce *bounce;
	struct gpu_ring *ring;
	struct error err = {0};
	struct end from, to;

	end_open(gpu, first, LONG_BYTES, &from);
	end_open(gpu, second, LONG_BYTES, &to);
	bases_of(&to, from_bases, to_bases);
	must(gpu_ring_create(from.device, to.device, RING_BUFFER_BYTES, &ring, &err), "a ring",
		&err);
	must(gpu_bounce_create(ring, &copies, from_bases, to_bases, 2, &bounce, &err), "copies",
		&err);
	for (int i = 0; i < 2; i++) { /* the first one warms up */
		started = clock_ns();
		must(gpu_bounce_run(bounce, 0, gpu_memory_address(from.memory), from.stream,
			     to.stream, &err),
			"running copies", &err);
		drain(to.device, to.stream);
	}
	printf("bounce: GPU %s to %s %.1f GB/s\n", first, second,
		(double)LONG_BYTES / (double)(clock_ns() - started));
	gpu_bounce_destroy(bounce);
	gpu_ring_destroy(ring);
	end_close(&from);
	end_close(&to);
}

void bounce_checks(struct gpu *gpu)
{
	const char *second = gpu_info(gpu)->ndevices > 1 ? "1" : "0";
	struct end here, there;
	int fds;

	end_open(gpu, "0", CHECK_BYTES, &here);
	end_open(gpu, second, CHECK_BYTES, &there);
	for (uint64_t seed = 200; seed < (check_small ? 202 : 210); seed++) {
		check_bytes(&here, &there, seed);
		check_bytes(&there, &here, seed + 100);
	}
	end_close(&here);
	end_close(&there);
	fds = count_fds();
	end_open(gpu, second, CHECK_BYTES, &there);
	end_open(gpu, "0", CHECK_BYTES, &here);
	check_bytes(&here, &there, 400);
	end_close(&here);
	end_close(&there);
	check(count_fds() == fds, "bounce: %d descriptors before and after", fds);
	if (!check_small) {
		measure(gpu, "0", second);
	}
}
