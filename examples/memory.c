#include "examples/memory.h"
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <strew/types.h>
#include <string.h>

#define BLOCK_BYTES ((size_t)32 << 20)
#define ALIGN 256u

/* The few entry points of the CUDA driver that an example needs; see the driver API's manual. */
struct driver {
	int (*init)(unsigned flags);
	int (*device_get)(int *device, int ordinal);
	int (*primary_retain)(void **context, int device);
	int (*set_current)(void *context);
	int (*alloc)(unsigned long long *ptr, size_t len_bytes);
	int (*release)(unsigned long long ptr);
	int (*to_device)(unsigned long long dst, const void *src, size_t len_bytes);
	int (*to_host)(void *dst, unsigned long long src, size_t len_bytes);
	int (*synchronize)(void);
	int (*info)(size_t *left_bytes, size_t *total_bytes);
};

struct block {
	unsigned char *data;
	size_t size, used;
};

struct memory {
	int device, poison;
	void *library;
	struct driver driver;
	struct block *blocks;
	size_t nblocks;
};

static void need(int result, const char *call)
{
	if (result) {
		fprintf(stderr, "%s failed with error %d\n", call, result);
		exit(1);
	}
}

static void open_driver(struct memory *memory)
{
	struct driver *driver = &memory->driver;
	const struct {
		const char *name;
		void *entry; /* a function pointer, filled in as dlsym(3) says */
	} table[] = {
		{"cuInit", &driver->init},
		{"cuDeviceGet", &driver->device_get},
		{"cuDevicePrimaryCtxRetain", &driver->primary_retain},
		{"cuCtxSetCurrent", &driver->set_current},
		{"cuMemAlloc_v2", &driver->alloc},
		{"cuMemFree_v2", &driver->release},
		{"cuMemcpyHtoD_v2", &driver->to_device},
		{"cuMemcpyDtoH_v2", &driver->to_host},
		{"cuCtxSynchronize", &driver->synchronize},
		{"cuMemGetInfo_v2", &driver->info},
	};
	void *context;
	int device;

	memory->library = dlopen("libcuda.so.1", RTLD_NOW);
	if (!memory->library) {
		fprintf(stderr, "no CUDA driver: %s\n", dlerror());
		exit(3);
	}
	for (size_t i = 0; i < sizeof(table) / sizeof(table[0]); i++) {
		void *symbol = dlsym(memory->library, table[i].name);

		need(!symbol, table[i].name);
		memcpy(table[i].entry, &symbol, sizeof(symbol));
	}
	need(driver->init(0), "cuInit");
	need(driver->device_get(&device, memory->device), "cuDeviceGet");
	/* The primary context is the one that PyTorch and the CUDA runtime use. */
	need(driver->primary_retain(&context, device), "cuDevicePrimaryCtxRetain");
	need(driver->set_current(context), "cuCtxSetCurrent");
}

struct memory *memory_create(int device, int poison)
{
	struct memory *memory = calloc(1, sizeof(*memory));

	need(!memory, "calloc");
	memory->device = device;
	memory->poison = poison;
	if (device >= 0) {
		open_driver(memory);
	}
	return memory;
}

static void add_block(struct memory *memory, size_t size)
{
	struct block *block;
	unsigned long long address;
	void *data, *pattern;

	memory->blocks = realloc(memory->blocks, (memory->nblocks + 1) * sizeof(*block));
	need(!memory->blocks, "realloc");
	block = &memory->blocks[memory->nblocks++];
	if (memory->device >= 0) {
		need(memory->driver.alloc(&address, size), "cuMemAlloc");
		data = (void *)(uintptr_t)address;
	} else if (memory->device == MEMORY_MALLOC) {
		data = malloc(size);
		need(!data, "malloc");
	} else if (strew_host_alloc(size, &data) < 0) {
		fprintf(stderr, "strew_host_alloc: %s\n", strew_error());
		exit(1);
	}
	*block = (struct block){.data = data, .size = size};
	pattern = malloc(BLOCK_BYTES);
	need(!pattern, "malloc");
	memset(pattern, memory->poison, BLOCK_BYTES);
	for (size_t at = 0; at < size; at += BLOCK_BYTES) {
		memory_write(memory, block->data + at, pattern,
			size - at < BLOCK_BYTES ? size - at : BLOCK_BYTES);
	}
	free(pattern);
}

size_t memory_length(size_t len_bytes)
{
	return (len_bytes + ALIGN - 1) / ALIGN * ALIGN;
}

void *memory_take(struct memory *memory, size_t len_bytes)
{
	size_t len = memory_length(len_bytes);
	struct block *block = memory->nblocks ? &memory->blocks[memory->nblocks - 1] : NULL;

	if (!block || block->size - block->used < len) {
		add_block(memory, len > BLOCK_BYTES ? len : BLOCK_BYTES);
		block = &memory->blocks[memory->nblocks - 1];
	}
	block->used += len;
	return block->data + block->used - len;
}

void memory_write(struct memory *memory, void *dst, const void *src, size_t len_bytes)
{
	if (memory->device < 0) {
		memcpy(dst, src, len_bytes);
		return;
	}
	need(memory->driver.to_device((uintptr_t)dst, src, len_bytes), "cuMemcpyHtoD");
	need(memory->driver.synchronize(), "cuCtxSynchronize");
}

void memory_read(struct memory *memory, void *dst, const void *src, size_t len_bytes)
{
	if (memory->device < 0) {
		memcpy(dst, src, len_bytes);
		return;
	}
	need(memory->driver.to_host(dst, (uintptr_t)src, len_bytes), "cuMemcpyDtoH");
}

size_t memory_left(struct memory *memory)
{
	size_t left_bytes = 0, total_bytes;

	if (memory->device >= 0) {
		need(memory->driver.info(&left_bytes, &total_bytes), "cuMemGetInfo");
	}
	return left_bytes;
}

void memory_destroy(struct memory *memory)
{
	if (!memory) {
		return;
	}
	for (size_t i = 0; i < memory->nblocks; i++) {
		if (memory->device >= 0) {
			memory->driver.release((uintptr_t)memory->blocks[i].data);
		} else if (memory->device == MEMORY_MALLOC) {
			free(memory->blocks[i].data);
		} else {
			strew_host_free(memory->blocks[i].data);
		}
	}
	/* The driver stays loaded: it may have threads and an exit handler of its own. */
	free(memory->blocks);
	free(memory);
}
