/*
 * Memory of an example program: of a GPU through the driver, which is opened
 * at run time, or of the host where there is none. It is taken from a few
 * larger allocations, as PyTorch's allocator does, since strew shares whole
 * allocations and not tensors. Every failure ends the program with a sentence.
 */
#ifndef EXAMPLES_MEMORY_H
#define EXAMPLES_MEMORY_H

#include <stddef.h>

struct memory;

#define MEMORY_HOST -1	 /* of strew_host_alloc(), which the broker maps */
#define MEMORY_MALLOC -2 /* ordinary memory: libstrew copies to or from it (route "pull") */

/* device: a GPU, or one of those. Fills what it allocates with `poison`. */
struct memory *memory_create(int device, int poison);
void memory_destroy(struct memory *memory);

/* Aligned to 256 bytes; lives until memory_destroy(). */
void *memory_take(struct memory *memory, size_t len_bytes);
/* What that length comes to, so that what lies behind it is aligned as well. */
size_t memory_length(size_t len_bytes);

/* Copies to and from that memory, which is finished on return. */
void memory_write(struct memory *memory, void *dst, const void *src, size_t len_bytes);
void memory_read(struct memory *memory, void *dst, const void *src, size_t len_bytes);

/* What the GPU has left for all processes, in bytes; 0 for memory of the host. */
size_t memory_left(struct memory *memory);

#endif
