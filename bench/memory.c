#include "bench/memory.h"
#include "base/util.h"
#include "bench/child.h"
#include "bench/driver.h"
#include <stdlib.h>
#include <strew/types.h>
#include <string.h>

#define ALIGN 256u
#define BLOCK_BYTES (1ull << 30)

struct block {
	unsigned char *data;
	uint64_t len_bytes, used_bytes;
};

struct memory {
	struct gpu *gpu;
	struct gpu_device *device;
	bool on_host;
	struct block *blocks;
	size_t nblocks, cap_blocks;
};

struct memory *memory_create(enum gpu_kind kind, const char *device, bool on_host)
{
	struct memory *memory = bench_need(calloc(1, sizeof(*memory)));
	uint8_t uuid[GPU_UUID_BYTES];
	struct error err = {0};

	bench_must(gpu_open(kind, &memory->gpu, &err), "the backend", &err);
	bench_must(gpu_find(memory->gpu, device, uuid, &err), "the device", &err);
	bench_must(gpu_device(memory->gpu, uuid, &memory->device, &err), "the device", &err);
	bench_must(gpu_device_enter(memory->device, &err), "the device", &err);
	if (memory_kind(memory) == GPU_CUDA) {
		bench_must(bench_driver_load(&err), "the driver", &err);
	}
	memory->on_host = on_host || memory_kind(memory) == GPU_HOST;
	return memory;
}

enum gpu_kind memory_kind(const struct memory *memory)
{
	return gpu_info(memory->gpu)->kind;
}

struct gpu_device *memory_device(struct memory *memory)
{
	return memory->device;
}

static void enter(struct memory *memory)
{
	struct error err = {0};

	bench_must(gpu_device_enter(memory->device, &err), "the device", &err);
}

void memory_destroy(struct memory *memory)
{
	if (!memory) {
		return;
	}
	enter(memory);
	for (size_t i = 0; i < memory->nblocks; i++) {
		if (memory->on_host) {
			strew_host_free(memory->blocks[i].data);
		} else {
			CUDA(NULL, cuMemFree, (uintptr_t)memory->blocks[i].data);
		}
	}
	free(memory->blocks);
	gpu_close(memory->gpu);
	free(memory);
}

void memory_reserve(struct memory *memory, uint64_t len_bytes)
{
	struct block block = {.len_bytes = align_up(len_bytes, 2u << 20)};
	struct error err = {0};
	cuda_ptr address;
	void *data;

	enter(memory);
	if (memory->on_host) {
		bench_must(strew_host_alloc(block.len_bytes, &data), strew_error(), NULL);
		block.data = data;
	} else {
		bench_must(CUDA(&err, cuMemAlloc, &address, block.len_bytes), "memory", &err);
		block.data = (unsigned char *)(uintptr_t)address;
	}
	if (array_grow((void **)&memory->blocks, &memory->cap_blocks, memory->nblocks + 1,
		    sizeof(block))) {
		bench_fail(1, "out of memory");
	}
	memory->blocks[memory->nblocks++] = block;
}

unsigned char *memory_take(struct memory *memory, uint64_t len_bytes)
{
	struct block *block = memory->nblocks ? &memory->blocks[memory->nblocks - 1] : NULL;
	unsigned char *taken;

	if (!block || block->len_bytes - block->used_bytes < len_bytes) {
		memory_reserve(memory, MAX(len_bytes, BLOCK_BYTES));
		block = &memory->blocks[memory->nblocks - 1];
	}
	taken = block->data + block->used_bytes;
	block->used_bytes = MIN(align_up(block->used_bytes + len_bytes, ALIGN), block->len_bytes);
	return taken;
}

void memory_poison(struct memory *memory, int value)
{
	struct error err = {0};

	enter(memory);
	for (size_t i = 0; i < memory->nblocks; i++) {
		struct block *block = &memory->blocks[i];

		if (memory->on_host) {
			memset(block->data, value, block->used_bytes);
		} else {
			bench_must(BENCH_CUDA(&err, cuMemsetD8Async, (uintptr_t)block->data,
					   (unsigned char)value, block->used_bytes, NULL),
				"poison", &err);
		}
	}
	if (!memory->on_host) {
		bench_must(BENCH_CUDA(&err, cuCtxSynchronize), "poison", &err);
	}
}

void memory_write(struct memory *memory, void *dst, const void *src, size_t len_bytes)
{
	struct error err = {0};

	if (memory->on_host) {
		memcpy(dst, src, len_bytes);
		return;
	}
	enter(memory);
	bench_must(CUDA(&err, cuMemcpyHtoD, (uintptr_t)dst, src, len_bytes), "a copy", &err);
}

void memory_read(struct memory *memory, void *dst, const void *src, size_t len_bytes)
{
	struct error err = {0};

	if (memory->on_host) {
		memcpy(dst, src, len_bytes);
		return;
	}
	enter(memory);
	bench_must(BENCH_CUDA(&err, cuMemcpyDtoH, dst, (uintptr_t)src, len_bytes), "a copy", &err);
}

void *memory_buffer(struct memory *memory, size_t len_bytes)
{
	struct error err = {0};
	void *buffer;

	if (memory->on_host) {
		buffer = bench_need(malloc(len_bytes));
		return buffer;
	}
	enter(memory);
	bench_must(CUDA(&err, cuMemHostAlloc, &buffer, len_bytes, 0), "pinned memory", &err);
	return buffer;
}

void memory_buffer_free(struct memory *memory, void *buffer)
{
	if (memory->on_host) {
		free(buffer);
	} else {
		enter(memory);
		CUDA(NULL, cuMemFreeHost, buffer);
	}
}

uint64_t memory_free(struct memory *memory)
{
	uint64_t free_bytes = 0, total;

	gpu_device_free(memory->device, &free_bytes, &total);
	return free_bytes;
}
