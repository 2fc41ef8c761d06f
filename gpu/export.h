/*
 * The processes' half of gpu/: how a worker or a trainer turns its pointers into
 * handles. Uses the process's own primary context, allocates on the GPU only twins of
 * memory that has no handle, and opens libcuda.so.1 only when a pointer is not host memory
 * of strew's.
 */
#ifndef GPU_EXPORT_H
#define GPU_EXPORT_H

#include "gpu/gpu.h"
#include "plan/plan.h"

/*
 * A set of exported allocations of one session, each once. export_add() notes
 * the allocation that holds [ptr, ptr + len) if it is new; export_locate() gives,
 * once settled, its index and the offset of ptr in it. A range over several VMM chunks
 * becomes (or widens) one allocation of neighbouring chunks.
 */
struct export_set;

int export_set_create(struct export_set **ret_set);
void export_set_destroy(struct export_set *set); /* NULL is fine */

/*
 * Memory that cannot be exported gets a place in a twin instead: exportable memory of ours that
 * is an allocation like others, with export_pulls() true. -EFAULT if it is nobody's memory.
 */
int export_add(struct export_set *set, const void *ptr, uint64_t len_bytes, struct error *err);

/*
 * After the last add: settles the allocations (neighbouring VMM chunks that were asked for
 * together become one). Then allocation index and offset of an address added before:
 */
int export_settle(struct export_set *set, struct error *err);
int export_locate(const struct export_set *set, const void *ptr, uint32_t *ret_allocation,
	uint64_t *ret_offset, struct error *err);
size_t export_count(const struct export_set *set);

/* Is the allocation a twin? */
bool export_pulls(const struct export_set *set, uint32_t allocation);
/*
 * All memory that has a place in a twin → the twins: on `stream` within a GPU, and out of host
 * memory at once, but behind what the stream has yet to do if some memory of the set is the
 * driver's.
 */
int export_twins_fill(const struct export_set *set, void *stream, struct error *err);
/* Twins → memory: copies whose source space and place are a twin's. All is there on return. */
int export_twins_apply(struct export_set *set, const struct copies *copies, struct error *err);

/*
 * Makes the handle of allocation `index`, fds included; the caller finishes it. VMM fds are
 * made here, so that few are open at a time.
 */
int export_handle(
	const struct export_set *set, uint32_t index, struct handle *ret_handle, struct error *err);

/* Are all allocations still what they were: address, size, buffer id? -ESTALE names the first that
 * is not. */
int export_verify(const struct export_set *set, struct error *err);

/*
 * Words of a page that a stream writes when it gets there. `page` is memory of this process
 * (a mapped memfd); it is registered with the driver at the first call with a busy stream.
 * Where no memory of the set is the driver's (nor pinned or managed by it), the word is written
 * at once by the CPU.
 */
struct export_page;
int export_page_create(void *page, size_t len_bytes, struct export_page **ret_page);
void export_page_destroy(struct export_page *page);
int export_page_write(struct export_page *page, const struct export_set *set, void *stream,
	size_t word, uint64_t value, struct error *err);

/* strew_host_alloc()'s other side: the memfd that holds ptr, borrowed; -ENOENT if none. */
int host_memory_find(const void *ptr, int *ret_fd, uint64_t *ret_base, uint64_t *ret_size);
int host_memory_alloc(size_t len_bytes, void **ret_ptr);
void host_memory_free(void *ptr);

#endif
