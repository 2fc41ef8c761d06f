/*
 * Memory of a bench process that an agent can share: a GPU's, or the host's. It is taken
 * from large blocks, as allocators of engines do. Failures end the program with a sentence.
 */
#ifndef BENCH_MEMORY_H
#define BENCH_MEMORY_H

#include "gpu/gpu.h"

struct memory;

/* kind is cuda or host. With cuda and `on_host` it is host memory, which a broker registers
 * with the driver; the device's context is made all the same. */
struct memory *memory_create(enum gpu_kind kind, const char *device, bool on_host);
void memory_destroy(struct memory *memory);
struct gpu_device *memory_device(struct memory *memory); /* for raw copies in this process */
enum gpu_kind memory_kind(const struct memory *memory);

/* Aligned to 256 bytes; lives as long as the memory. */
unsigned char *memory_take(struct memory *memory, uint64_t len_bytes);
/* Makes a block of that length, which the next takes come from. */
void memory_reserve(struct memory *memory, uint64_t len_bytes);
/* Every byte that was taken, and done on return. */
void memory_poison(struct memory *memory, int value);

/* Copies to and from it, done on return; from any thread. */
void memory_write(struct memory *memory, void *dst, const void *src, size_t len_bytes);
void memory_read(struct memory *memory, void *dst, const void *src, size_t len_bytes);
/* Host memory that such copies are fast from and to; from any thread. */
void *memory_buffer(struct memory *memory, size_t len_bytes);
void memory_buffer_free(struct memory *memory, void *buffer);

/* Bytes free on the device, as the driver reports them; 0 on the host. */
uint64_t memory_free(struct memory *memory);

#endif
