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

struct export_set {
	struct export_entry *entries; /* sorted by base */
	size_t nentries, cap_entries;
	struct export_context *contexts; /* primary contexts retained by this set */
	size_t ncontexts, cap_contexts;
	bool settled;
};

/* The entry that holds the address, or NULL. */
const struct export_entry *export_find(const struct export_set *set, uint64_t address);
/* Adds an entry that is not there yet. -E2BIG, -ENOMEM. */
int export_insert(struct export_set *set, const struct export_entry *entry, struct error *err);

/* The driver's memory at [address, address + len): adds what holds it. See export_add(). */
int export_cuda_add(
	struct export_set *set, uint64_t address, uint64_t len_bytes, struct error *err);
int export_cuda_handle(const struct export_set *set, const struct export_entry *entry,
	struct handle *handle, struct error *err);
int export_cuda_verify(
	const struct export_set *set, const struct export_entry *entry, struct error *err);
void export_cuda_release(struct export_set *set);

/* Makes the primary context of a GPU of the set current; the pop restores the caller's. */
int export_cuda_push(const struct export_set *set, int ordinal, struct error *err);
void export_cuda_pop(void);

#endif
