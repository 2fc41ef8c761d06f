/* An owner of memory in strew-bench copy: exports it with the agents' own code. */
#include "bench/copy.h"
#include "bench/driver.h"
#include "bench/values.h"
#include "gpu/export.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define BLOCK_BYTES (8u << 20)

struct owner {
	const struct copy_owner *part;
	bool on_gpu;
	struct gpu *gpu;
	struct gpu_device *device;
	unsigned char *data;
	uint64_t bytes;
	unsigned char *block; /* of the host's */
	struct export_set *set;
};

static void must(int rc, const char *what, const struct error *err)
{
	bench_must(rc, what, err);
}

static void prepare(struct owner *owner)
{
	uint8_t uuid[GPU_UUID_BYTES];
	struct error err = {0};
	cuda_ptr address;
	void *data;

	owner->bytes = 2 * owner->part->len_bytes;
	owner->on_gpu = owner->part->kind == GPU_CUDA && !owner->part->on_host;
	owner->block = bench_need(malloc(BLOCK_BYTES));
	if (!owner->on_gpu) {
		must(host_memory_alloc(owner->bytes, &data), "host memory", NULL);
		owner->data = data;
	} else {
		must(gpu_open(GPU_CUDA, &owner->gpu, &err), "the backend", &err);
		must(gpu_find(owner->gpu, owner->part->device, uuid, &err), "the device", &err);
		must(gpu_device(owner->gpu, uuid, &owner->device, &err), "the device", &err);
		must(gpu_device_enter(owner->device, &err), "the device", &err);
		must(bench_driver_load(&err), "the driver", &err);
		must(CUDA(&err, cuMemAlloc, &address, owner->bytes), "memory", &err);
		owner->data = (unsigned char *)(uintptr_t)address;
	}
	must(export_set_create(&owner->set), "exports", NULL);
	must(export_add(owner->set, owner->data, owner->bytes, &err), "an export", &err);
	must(export_settle(owner->set, &err), "an export", &err);
}

static void finish(struct owner *owner)
{
	export_set_destroy(owner->set);
	if (owner->on_gpu) {
		CUDA(NULL, cuMemFree, (uintptr_t)owner->data);
		gpu_close(owner->gpu);
	} else {
		host_memory_free(owner->data);
	}
	free(owner->block);
}

static void export_memory(struct owner *owner, struct letter *letter)
{
	struct copy_handle flat = {0};
	struct handle handle;
	struct error err = {0};
	uint32_t index;

	must(export_locate(owner->set, owner->data, &index, &flat.offset, &err), "an export", &err);
	must(export_handle(owner->set, index, &handle, &err), "an export", &err);
	if (handle.nchunks > CHILD_FDS) {
		bench_fail(EXIT_RUNTIME, "an allocation of %u chunks", handle.nchunks);
	}
	flat.kind = handle.kind;
	flat.nchunks = handle.nchunks;
	flat.size_bytes = handle.size_bytes;
	flat.buffer_id = handle.buffer_id;
	memcpy(flat.uuid, handle.uuid, sizeof(flat.uuid));
	memcpy(flat.ipc, handle.ipc, sizeof(flat.ipc));
	letter->nfds = handle.nchunks;
	for (uint32_t i = 0; i < handle.nchunks; i++) {
		flat.chunk_bytes[i] = handle.chunk_bytes ? handle.chunk_bytes[i] : 0;
		letter->fds[i] = handle.fds[i];
		handle.fds[i] = -1; /* the letter's now */
	}
	handle_finish(&handle);
	letter_put(letter, &flat, sizeof(flat));
}

static void to_memory(struct owner *owner, uint64_t at, size_t n)
{
	struct error err = {0};

	if (owner->on_gpu) {
		must(CUDA(&err, cuMemcpyHtoD, (uintptr_t)owner->data + at, owner->block, n),
			"a copy", &err);
	} else {
		memcpy(owner->data + at, owner->block, n);
	}
}

static void from_memory(struct owner *owner, uint64_t at, size_t n)
{
	struct error err = {0};

	if (owner->on_gpu) {
		must(BENCH_CUDA(&err, cuMemcpyDtoH, owner->block, (uintptr_t)owner->data + at, n),
			"a copy", &err);
	} else {
		memcpy(owner->block, owner->data + at, n);
	}
}

static void fill(struct owner *owner, uint64_t seed)
{
	for (uint64_t at = 0; at < owner->bytes; at += BLOCK_BYTES) {
		size_t n = MIN(owner->bytes - at, BLOCK_BYTES);

		values_make(seed, 0, at, owner->block, n);
		to_memory(owner, at, n);
	}
}

static void wipe(struct owner *owner, uint64_t span_bytes)
{
	memset(owner->block, COPY_POISON, BLOCK_BYTES);
	for (uint64_t at = 0; at < span_bytes; at += BLOCK_BYTES) {
		to_memory(owner, at, MIN(span_bytes - at, BLOCK_BYTES));
	}
}

/* What bytes [at, at + n) of the target have to be: copied, or poison as before. */
static void make_expected(
	const struct copy_check *check, uint64_t at, size_t n, unsigned char *expected)
{
	uint64_t row = check->row_bytes, period = row ? 2 * row : 2 * check->len_bytes;
	uint64_t run = row ? row : check->len_bytes;
	uint64_t end = row ? check->len_bytes / row * period : check->len_bytes;

	values_make(check->seed, 0, at, expected, n);
	for (uint64_t gap = at / period * period + run; gap < at + n; gap += period) {
		uint64_t from = MAX(gap, at), to = MIN(gap + period - run, at + n);

		if (from < to) {
			memset(expected + (from - at), COPY_POISON, to - from);
		}
	}
	if (end < at + n) {
		memset(expected + (MAX(end, at) - at), COPY_POISON, at + n - MAX(end, at));
	}
}

/* Beyond what is copied, so that what must not be written is looked at as well. */
static struct compared compare(struct owner *owner, const struct copy_check *check)
{
	unsigned char *expected = bench_need(malloc(BLOCK_BYTES));
	struct compared compared = {0};

	for (uint64_t at = 0; at < check->span_bytes; at += BLOCK_BYTES) {
		size_t n = MIN(check->span_bytes - at, BLOCK_BYTES);

		make_expected(check, at, n, expected);
		from_memory(owner, at, n);
		compared.bytes += n;
		if (memcmp(owner->block, expected, n) == 0) {
			continue;
		}
		for (size_t i = 0; i < n; i++) {
			compared.wrong += owner->block[i] != expected[i];
		}
	}
	free(expected);
	return compared;
}

static void answer(void *data, struct letter *letter)
{
	struct owner *owner = data;
	struct compared compared;
	struct copy_check check;
	uint64_t number;

	memcpy(&number, letter->bytes, sizeof(number));
	memcpy(&check, letter->bytes, sizeof(check));
	switch (letter->what) {
	case COPY_EXPORT:
		export_memory(owner, letter);
		break;
	case COPY_FILL:
		fill(owner, number);
		break;
	case COPY_WIPE:
		wipe(owner, MIN(number, owner->bytes));
		break;
	case COPY_CHECK:
		check.span_bytes = MIN(check.span_bytes, owner->bytes);
		compared = compare(owner, &check);
		letter_put(letter, &compared, sizeof(compared));
		break;
	default:
		letter->rc = -EINVAL;
	}
}

int part_copy_owner(int fd, void *arg)
{
	struct owner owner = {.part = arg};

	prepare(&owner);
	letter_serve(fd, answer, &owner);
	finish(&owner);
	return EXIT_OK;
}
