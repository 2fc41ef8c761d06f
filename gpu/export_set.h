/*
 * What export.c (the set) and export_cuda.c (the driver's part of it) share. An entry is
 * an allocation; while ranges are added, every VMM chunk is an entry of its own, and
 * settling joins neighbours.
 */
#ifndef GPU_EXPORT_SET_H
#define GPU_EXPORT_SET_H

#include "gpu/cuda_driver.h"
#include "gpu/export.h"
#include "gpu/memfd.h"

struct export_chunk {
	uint64_t base;
	uint64_t size_bytes;
	uint64_t buffer_id;
};

struct export_entry {
	enum handle_kind kind; /* HANDLE_MEMFD, _CUDA_IPC or _CUDA_VMM */
	uint64_t base;
	uint64_t size_bytes;
	uint64_t buffer_id;
	int ordinal; /* of the GPU, as this process counts; -1 for host memory */
	uint8_t uuid[GPU_UUID_BYTES];
	int fd; /* of a memfd, borrowed from the registry */
	struct memfd_id memfd;
	struct export_chunk *chunks; /* of VMM memory once settled, by address; owned */
	uint32_t nchunks;
};

struct export_context {
	int ordinal;
	int device; /* the driver's number */
	struct cuda_ctx *ctx;
};

/* Memory that cannot be exported, and where it has its place in a twin once settled. */
struct export_range {
	uint64_t base;
	uint64_t len_bytes;
	uint64_t buffer_id; /* of its first byte; 0 for host memory */
	int ordinal;	    /* of the GPU; -1 for host memory */
	uint8_t uuid[GPU_UUID_BYTES];
	uint32_t twin;
	uint64_t twin_offset;
};

struct export_twin {
	uint64_t base; /* of the first range that it stands for, for messages */
	uint64_t size_bytes;
	size_t first, nranges; /* its ranges: pulls[first] and on */
	int ordinal;
	uint8_t uuid[GPU_UUID_BYTES];
	int fd;			    /* host: owned; else -1 */
	cuda_ptr address;	    /* on a GPU: owned */
	struct cuda_stream *stream; /* on a GPU, for what is applied */
};

#define EXPORT_TWINS 17 /* of host memory and of 16 GPUs */

struct export_set {
	struct export_entry *entries; /* sorted by base */
	size_t nentries, cap_entries;
	struct export_context
		*contexts; /* primary, of GPUs whose streams may write to it; retained */
	size_t ncontexts, cap_contexts;
	struct export_range *pulls; /* none overlaps; sorted by base, once settled by twin first */
	size_t npulls, cap_pulls;
	struct export_twin twins[EXPORT_TWINS]; /* once settled; numbered behind the entries */
	size_t ntwins;
	bool settled;
};

/* The entry that holds the address, or NULL. */
const struct export_entry *export_find(const struct export_set *set, uint64_t address);
/* Adds an entry that is not there yet. -E2BIG, -ENOMEM. */
int export_insert(struct export_set *set, const struct export_entry *entry, struct error *err);

/*
 * The driver's memory at [address, address + len): adds what holds it. See export_add().
 * -ENOTSUP: it has no handle, or is host memory; *ret_range says where it lies.
 */
int export_cuda_add(struct export_set *set, uint64_t address, uint64_t len_bytes,
	struct export_range *ret_range, struct error *err);
/* Of host memory that is exported as such: is it the driver's too, so that streams write there?
 * To look for a driver takes 15 us where there is none: once for an allocation. */
int export_cuda_note(struct export_set *set, uint64_t address, struct error *err);
int export_cuda_handle(const struct export_set *set, const struct export_entry *entry,
	struct handle *handle, struct error *err);
int export_cuda_verify(
	const struct export_set *set, const struct export_entry *entry, struct error *err);
void export_cuda_release(struct export_set *set);

/* export_pull.c: ranges without a handle, and their twins. */
int export_pull_add(struct export_set *set, const struct export_range *range, struct error *err);
const struct export_range *export_pull_find(const struct export_set *set, uint64_t address);
int export_pull_settle(struct export_set *set, struct error *err);
int export_pull_verify(const struct export_set *set, struct error *err);
void export_pull_release(struct export_set *set);

/* export_cuda_pull.c: the driver's part of that. Of size_bytes, with a stream of its own. */
int export_cuda_twin(const struct export_set *set, struct export_twin *twin, struct error *err);
void export_cuda_twin_free(const struct export_set *set, struct export_twin *twin);
int export_cuda_twin_handle(const struct export_set *set, const struct export_twin *twin,
	struct handle *handle, struct error *err);
int export_cuda_range_verify(
	const struct export_set *set, const struct export_range *range, struct error *err);
/* Queues a copy within the GPU of the twin. */
int export_cuda_carry(const struct export_set *set, const struct export_twin *twin, cuda_ptr dst,
	cuda_ptr src, uint64_t len_bytes, struct cuda_stream *stream, struct error *err);
/* Until the stream has nothing left to do; at once where no memory of the set is the driver's. */
int export_cuda_wait(const struct export_set *set, struct cuda_stream *stream, struct error *err);

/* Makes the primary context of a GPU of the set current; the pop restores the caller's. */
int export_cuda_push(const struct export_set *set, int ordinal, struct error *err);
void export_cuda_pop(void);

#endif
