/* The set of exported allocations; what the driver knows of them is in export_cuda.c. */
#include "gpu/export.h"
#include "base/util.h"
#include "gpu/export_set.h"
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

int export_set_create(struct export_set **ret_set)
{
	struct export_set *set = calloc(1, sizeof(*set));

	if (!set) {
		return -ENOMEM;
	}
	*ret_set = set;
	return 0;
}

void export_set_destroy(struct export_set *set)
{
	if (!set) {
		return;
	}
	export_pull_release(set);
	export_cuda_release(set);
	for (size_t i = 0; i < set->nentries; i++) {
		free(set->entries[i].chunks);
	}
	free(set->entries);
	free(set->contexts);
	free(set);
}

/* Index of the first entry that starts behind the address. */
static size_t entry_behind(const struct export_set *set, uint64_t address)
{
	return upper_bound(set->entries, set->nentries, sizeof(*set->entries),
		offsetof(struct export_entry, base), address);
}

const struct export_entry *export_find(const struct export_set *set, uint64_t address)
{
	size_t at = entry_behind(set, address);

	if (at > 0 && address - set->entries[at - 1].base < set->entries[at - 1].size_bytes) {
		return &set->entries[at - 1];
	}
	return NULL;
}

int export_insert(struct export_set *set, const struct export_entry *entry, struct error *err)
{
	size_t at = entry_behind(set, entry->base);
	int rc;

	if (set->nentries >= LIMIT_ALLOCATIONS + LIMIT_CHUNKS) {
		return error_set(err, -E2BIG, "more than %u allocations and chunks",
			LIMIT_ALLOCATIONS + LIMIT_CHUNKS);
	}
	rc = array_grow((void **)&set->entries, &set->cap_entries, set->nentries + 1,
		sizeof(*set->entries));
	if (rc) {
		return error_set(err, rc, "no memory for %zu allocations", set->nentries + 1);
	}
	memmove(&set->entries[at + 1], &set->entries[at],
		(set->nentries - at) * sizeof(*set->entries));
	set->entries[at] = *entry;
	set->nentries++;
	return 0;
}

/* -ENOENT if it is not from strew_host_alloc(). */
static int add_host(struct export_set *set, uint64_t address, uint64_t len_bytes, struct error *err)
{
	struct export_entry entry = {.kind = HANDLE_MEMFD, .ordinal = -1};
	int rc;

	rc = host_memory_find(
		(void *)(uintptr_t)address, &entry.fd, &entry.base, &entry.size_bytes);
	if (rc) {
		return rc;
	}
	if (len_bytes > entry.size_bytes - (address - entry.base)) {
		return error_set(err, -EFAULT,
			"0x%" PRIx64 " + %" PRIu64 " passes the end of its %" PRIu64
			" bytes of host memory",
			address, len_bytes, entry.size_bytes);
	}
	if (export_find(set, address)) {
		return 0;
	}
	rc = memfd_identify(entry.fd, &entry.memfd);
	if (rc) {
		return error_set(err, rc, "the memfd is unusable: %s", strerror(-rc));
	}
	rc = export_insert(set, &entry, err);
	return rc ? rc : export_cuda_note(set, address, err);
}

int export_add(struct export_set *set, const void *ptr, uint64_t len_bytes, struct error *err)
{
	uint64_t address = (uint64_t)(uintptr_t)ptr;
	struct export_range range = {.ordinal = -1};
	uint64_t end;
	int rc;

	if (set->settled) {
		return error_set(err, -EINVAL,
			"what was declared is settled: to declare more, close and open anew");
	}
	if (!ptr || add_overflows(address, len_bytes, &end)) {
		return error_set(err, -EFAULT, "%" PRIu64 " bytes at 0x%" PRIx64 " are nobody's",
			len_bytes, address);
	}
	/* An empty range still has a place, and its allocation is wanted. */
	len_bytes = MAX(len_bytes, 1);
	rc = add_host(set, address, len_bytes, err);
	if (rc == -ENOENT) {
		rc = export_cuda_add(set, address, len_bytes, &range, err);
	}
	if (rc == -ENOTSUP) {
		error_clear(err);
		range.base = address;
		range.len_bytes = len_bytes;
		rc = export_pull_add(set, &range, err);
	}
	return rc;
}

static bool joins(const struct export_entry *before, const struct export_entry *entry)
{
	return before->kind == HANDLE_CUDA_VMM && entry->kind == HANDLE_CUDA_VMM &&
	       before->ordinal == entry->ordinal &&
	       before->base + before->size_bytes == entry->base;
}

int export_settle(struct export_set *set, struct error *err)
{
	size_t kept = 0;

	if (set->settled) {
		return 0;
	}
	for (size_t i = 0, j; i < set->nentries; i = j) {
		struct export_entry entry = set->entries[i];

		j = i + 1;
		if (entry.kind == HANDLE_CUDA_VMM) {
			while (j < set->nentries && joins(&set->entries[j - 1], &set->entries[j])) {
				j++;
			}
			entry.nchunks = (uint32_t)(j - i);
			entry.size_bytes = 0;
			entry.chunks = calloc(j - i, sizeof(*entry.chunks));
			if (!entry.chunks) {
				goto no_memory;
			}
			for (size_t k = i; k < j; k++) {
				entry.chunks[k - i].base = set->entries[k].base;
				entry.chunks[k - i].size_bytes = set->entries[k].size_bytes;
				entry.chunks[k - i].buffer_id = set->entries[k].buffer_id;
				entry.size_bytes += set->entries[k].size_bytes;
			}
		}
		set->entries[kept++] = entry;
	}
	set->nentries = kept;
	set->settled = true;
	return export_pull_settle(set, err);

no_memory:
	/* The entries are partly joined: nothing is left to do with the set but to destroy it. */
	set->nentries = kept;
	return error_set(err, -ENOMEM, "no memory for an allocation's chunks");
}

int export_locate(const struct export_set *set, const void *ptr, uint32_t *ret_allocation,
	uint64_t *ret_offset, struct error *err)
{
	uint64_t address = (uint64_t)(uintptr_t)ptr;
	const struct export_range *range = export_pull_find(set, address);
	const struct export_entry *entry = export_find(set, address);

	if (!set->settled) {
		return error_set(err, -EINVAL, "the set is not settled");
	}
	/* First: a range may begin in a chunk that has a handle, and go on where none has one. */
	if (range) {
		*ret_allocation = (uint32_t)set->nentries + range->twin;
		*ret_offset = range->twin_offset + (address - range->base);
		return 0;
	}
	if (!entry) {
		return error_set(err, -EFAULT, "0x%" PRIx64 " was not added", address);
	}
	*ret_allocation = (uint32_t)(entry - set->entries);
	*ret_offset = address - entry->base;
	return 0;
}

size_t export_count(const struct export_set *set)
{
	return set->nentries + set->ntwins;
}

static int handle_arrays(struct handle *handle, uint32_t nchunks)
{
	handle->fds = malloc(nchunks * sizeof(*handle->fds));
	handle->chunk_bytes = calloc(nchunks, sizeof(*handle->chunk_bytes));
	if (!handle->fds || !handle->chunk_bytes) {
		return -ENOMEM;
	}
	for (uint32_t i = 0; i < nchunks; i++) {
		handle->fds[i] = -1;
	}
	handle->nchunks = nchunks;
	return 0;
}

static int memfd_handle(int fd, uint64_t size_bytes, struct handle *handle, struct error *err)
{
	if (handle_arrays(handle, 1)) {
		return error_set(err, -ENOMEM, "no memory for a handle");
	}
	handle->chunk_bytes[0] = size_bytes;
	handle->fds[0] = fcntl(fd, F_DUPFD_CLOEXEC, 0);
	if (handle->fds[0] < 0) {
		int code = errno;

		return error_set(err, -code, "a memfd's descriptor: %s", strerror(code));
	}
	return 0;
}

static int twin_handle(const struct export_set *set, const struct export_twin *twin,
	struct handle *ret_handle, struct error *err)
{
	struct handle handle = {.kind = twin->ordinal < 0 ? HANDLE_MEMFD : HANDLE_CUDA_IPC,
		.base = twin->base,
		.size_bytes = twin->size_bytes,
		.pull = true};
	int rc;

	memcpy(handle.uuid, twin->uuid, GPU_UUID_BYTES);
	rc = twin->ordinal < 0 ? memfd_handle(twin->fd, twin->size_bytes, &handle, err)
			       : export_cuda_twin_handle(set, twin, &handle, err);
	if (rc) {
		handle_finish(&handle);
		return rc;
	}
	*ret_handle = handle;
	return 0;
}

int export_handle(
	const struct export_set *set, uint32_t index, struct handle *ret_handle, struct error *err)
{
	const struct export_entry *entry;
	struct handle handle = {0};
	uint32_t nchunks;
	int rc = 0;

	if (!set->settled || index >= export_count(set)) {
		return error_set(
			err, -EINVAL, "allocation %" PRIu32 " of %zu", index, export_count(set));
	}
	if (export_pulls(set, index)) {
		return twin_handle(set, &set->twins[index - set->nentries], ret_handle, err);
	}
	entry = &set->entries[index];
	handle.kind = entry->kind;
	handle.base = entry->base;
	handle.size_bytes = entry->size_bytes;
	handle.buffer_id = entry->buffer_id;
	memcpy(handle.uuid, entry->uuid, GPU_UUID_BYTES);
	nchunks = entry->nchunks;
	if (entry->kind == HANDLE_MEMFD) {
		rc = memfd_handle(entry->fd, entry->size_bytes, &handle, err);
	} else if (nchunks && handle_arrays(&handle, nchunks)) {
		rc = error_set(err, -ENOMEM, "no memory for a handle");
	} else {
		rc = export_cuda_handle(set, entry, &handle, err);
	}
	if (rc) {
		handle_finish(&handle);
		return rc;
	}
	*ret_handle = handle;
	return 0;
}

static int verify_host(const struct export_entry *entry, struct error *err)
{
	struct memfd_id id;
	uint64_t base, size;
	int fd;

	if (host_memory_find((void *)(uintptr_t)entry->base, &fd, &base, &size) ||
		base != entry->base || size != entry->size_bytes || memfd_identify(fd, &id) ||
		id.device != entry->memfd.device || id.inode != entry->memfd.inode) {
		return error_set(err, -ESTALE,
			"%" PRIu64 " bytes of host memory at 0x%" PRIx64 " were freed",
			entry->size_bytes, entry->base);
	}
	return 0;
}

int export_verify(const struct export_set *set, struct error *err)
{
	int rc = 0;

	for (size_t i = 0; i < set->nentries && rc == 0; i++) {
		const struct export_entry *entry = &set->entries[i];

		rc = entry->kind == HANDLE_MEMFD ? verify_host(entry, err)
						 : export_cuda_verify(set, entry, err);
	}
	return rc ? rc : export_pull_verify(set, err);
}
