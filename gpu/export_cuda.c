/*
 * How this process's GPU memory can be shared. The driver is only asked where the process
 * has it loaded: without it no pointer can be the driver's. Nothing here initialises it
 * or makes a context; the primary context of a pointer's GPU exists, because its memory does.
 */
#include "base/util.h"
#include "gpu/backend.h"
#include "gpu/export_set.h"
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <string.h>

#define CANNOT "memory that cannot be exported"

static bool attribute(uint64_t address, enum cuda_pointer_attribute which, uint64_t *ret_value)
{
	uint64_t value = 0;

	if (cuda_driver.cuPointerGetAttribute(&value, which, address) != CUDA_OK) {
		return false;
	}
	*ret_value = value;
	return true;
}

static const struct export_context *find_context(const struct export_set *set, int ordinal)
{
	for (size_t i = 0; i < set->ncontexts; i++) {
		if (set->contexts[i].ordinal == ordinal) {
			return &set->contexts[i];
		}
	}
	return NULL;
}

static int retain_context(struct export_set *set, int ordinal, struct error *err)
{
	struct export_context context = {.ordinal = ordinal};
	int rc;

	if (find_context(set, ordinal)) {
		return 0;
	}
	rc = array_grow((void **)&set->contexts, &set->cap_contexts, set->ncontexts + 1,
		sizeof(*set->contexts));
	if (rc) {
		return error_set(err, rc, "no memory for a context");
	}
	rc = CUDA(err, cuDeviceGet, &context.device, ordinal);
	if (rc == 0) {
		rc = CUDA(err, cuDevicePrimaryCtxRetain, &context.ctx, context.device);
	}
	if (rc == 0) {
		set->contexts[set->ncontexts++] = context;
	}
	return rc;
}

void export_cuda_release(struct export_set *set)
{
	for (size_t i = 0; i < set->ncontexts; i++) {
		CUDA(NULL, cuDevicePrimaryCtxRelease, set->contexts[i].device);
	}
	set->ncontexts = 0;
}

int export_cuda_push(const struct export_set *set, int ordinal, struct error *err)
{
	const struct export_context *context = find_context(set, ordinal);

	if (!context) {
		return error_set(err, -EINVAL, "the set has nothing on GPU %d", ordinal);
	}
	return CUDA(err, cuCtxPushCurrent, context->ctx);
}

void export_cuda_pop(void)
{
	struct cuda_ctx *popped;

	CUDA(NULL, cuCtxPopCurrent, &popped);
}

/*
 * The chunk that holds the address. cuMemGetAddressRange() has been seen to mean the
 * chunk; the mapping's attributes mean it by definition, where the driver has them. A
 * range whose ends lie in different physical blocks is not one chunk.
 */
static int find_chunk(uint64_t address, uint64_t *ret_base, uint64_t *ret_size, struct error *err)
{
	uint64_t base, size, first, last;
	cuda_ptr range_base;
	size_t range_size;
	int rc;

	if (attribute(address, CUDA_POINTER_MAPPING_BASE, &base) &&
		attribute(address, CUDA_POINTER_MAPPING_SIZE, &size) && base <= address &&
		address - base < size) {
		goto found;
	}
	rc = CUDA(err, cuMemGetAddressRange, &range_base, &range_size, address);
	if (rc) {
		return rc;
	}
	base = range_base;
	size = range_size;

found:
	if (attribute(base, CUDA_POINTER_BLOCK_ID, &first) &&
		attribute(base + size - 1, CUDA_POINTER_BLOCK_ID, &last) && first != last) {
		return error_set(err, -ENOTSUP,
			"0x%" PRIx64 ": the driver does not tell its chunks apart: " CANNOT,
			address);
	}
	*ret_base = base;
	*ret_size = size;
	return 0;
}

/* Tries what export_handle() will do, so that a refusal comes at the declaration. */
static int try_chunk(uint64_t base, struct error *err)
{
	unsigned long long chunk;
	int rc;

	rc = CUDA(err, cuMemRetainAllocationHandle, &chunk, (void *)(uintptr_t)base);
	if (rc) {
		error_prefix(err, CANNOT);
		return -ENOTSUP;
	}
	CUDA(NULL, cuMemRelease, chunk);
	return 0;
}

static int add_chunks(struct export_set *set, struct export_entry *entry, uint64_t address,
	uint64_t len_bytes, struct error *err)
{
	uint64_t end = address + len_bytes;
	uint64_t ordinal;
	int rc = 0;

	entry->kind = HANDLE_CUDA_VMM;
	while (address < end && rc == 0) {
		const struct export_entry *known = export_find(set, address);

		if (known) {
			address = known->base + known->size_bytes;
			continue;
		}
		if (!attribute(address, CUDA_POINTER_ORDINAL, &ordinal) ||
			(int)ordinal != entry->ordinal) {
			return error_set(err, -EFAULT,
				"0x%" PRIx64 ", %" PRIu64 " bytes before the end, is not mapped",
				address, end - address);
		}
		rc = find_chunk(address, &entry->base, &entry->size_bytes, err);
		if (rc == 0) {
			rc = try_chunk(entry->base, err);
		}
		if (rc == 0) {
			entry->buffer_id = 0;
			attribute(entry->base, CUDA_POINTER_BUFFER_ID, &entry->buffer_id);
			rc = export_insert(set, entry, err);
		}
		address = entry->base + entry->size_bytes;
	}
	return rc;
}

static int add_legacy(struct export_set *set, struct export_entry *entry, uint64_t address,
	uint64_t len_bytes, struct error *err)
{
	struct cuda_ipc_handle ipc;
	cuda_ptr base;
	size_t size;
	int rc;

	entry->kind = HANDLE_CUDA_IPC;
	rc = CUDA(err, cuMemGetAddressRange, &base, &size, address);
	if (rc) {
		return rc;
	}
	if (len_bytes > size - (address - base)) {
		return error_set(err, -EFAULT,
			"0x%" PRIx64 " + %" PRIu64 " passes the end of its allocation of %zu bytes",
			address, len_bytes, size);
	}
	rc = CUDA(err, cuIpcGetMemHandle, &ipc, base);
	if (rc) {
		error_prefix(err, CANNOT);
		return -ENOTSUP;
	}
	entry->base = base;
	entry->size_bytes = size;
	attribute(base, CUDA_POINTER_BUFFER_ID, &entry->buffer_id);
	return export_insert(set, entry, err);
}

/*
 * Fills where the memory is, and refuses what no handle can be made of. The context is retained for
 * that too where the memory is the driver's, managed or pinned: streams write there, and are waited
 * for in it.
 */
static int probe(
	struct export_set *set, uint64_t address, struct export_entry *entry, struct error *err)
{
	uint64_t type = 0;
	uint64_t managed = 0;
	uint64_t ordinal = 0;
	struct cuda_uuid uuid;
	int device, rc;

	if (!attribute(address, CUDA_POINTER_MEMORY_TYPE, &type)) {
		return -ENOTSUP; /* somebody else's host memory, or nobody's */
	}
	rc = CUDA(err, cuPointerGetAttribute, &ordinal, CUDA_POINTER_ORDINAL, address);
	rc = rc ? rc : retain_context(set, (int)ordinal, err);
	if (rc) {
		return rc;
	}
	if (attribute(address, CUDA_POINTER_IS_MANAGED, &managed) && managed) {
		return error_set(
			err, -ENOTSUP, "0x%" PRIx64 " is managed memory: " CANNOT, address);
	}
	if (type != CUDA_MEMORY_DEVICE) {
		return error_set(
			err, -ENOTSUP, "0x%" PRIx64 " is pinned host memory: " CANNOT, address);
	}
	rc = CUDA(err, cuDeviceGet, &device, (int)ordinal);
	rc = rc ? rc : CUDA(err, cuDeviceGetUuid, &uuid, device);
	if (rc == 0) {
		entry->ordinal = (int)ordinal;
		memcpy(entry->uuid, uuid.bytes, GPU_UUID_BYTES);
	}
	return rc;
}

int export_cuda_note(struct export_set *set, uint64_t address, struct error *err)
{
	uint64_t type, ordinal = 0;
	int rc;

	if (cuda_driver_load(true, NULL) || !attribute(address, CUDA_POINTER_MEMORY_TYPE, &type)) {
		return 0;
	}
	rc = CUDA(err, cuPointerGetAttribute, &ordinal, CUDA_POINTER_ORDINAL, address);
	return rc ? rc : retain_context(set, (int)ordinal, err);
}

int export_cuda_add(struct export_set *set, uint64_t address, uint64_t len_bytes,
	struct export_range *ret_range, struct error *err)
{
	const struct export_entry *known = export_find(set, address);
	struct export_entry entry = {.fd = -1, .ordinal = -1};
	uint64_t legacy = 0;
	uint64_t types = 0;
	int rc;

	if (known && len_bytes <= known->size_bytes - (address - known->base)) {
		return 0;
	}
	if (cuda_driver_load(true, NULL)) {
		return -ENOTSUP; /* somebody else's host memory, or nobody's */
	}
	rc = probe(set, address, &entry, err);
	if (rc == 0) {
		ret_range->ordinal = entry.ordinal;
		memcpy(ret_range->uuid, entry.uuid, GPU_UUID_BYTES);
		attribute(address, CUDA_POINTER_BUFFER_ID, &ret_range->buffer_id);
		rc = export_cuda_push(set, entry.ordinal, err);
	}
	if (rc) {
		return rc;
	}
	if (attribute(address, CUDA_POINTER_LEGACY_IPC, &legacy) && legacy) {
		rc = add_legacy(set, &entry, address, len_bytes, err);
	} else if (attribute(address, CUDA_POINTER_HANDLE_TYPES, &types) &&
		   (types & CUDA_HANDLE_POSIX_FD)) {
		rc = add_chunks(set, &entry, address, len_bytes, err);
	} else {
		rc = error_set(err, -ENOTSUP,
			"0x%" PRIx64 " has no IPC handle and no descriptor: " CANNOT, address);
	}
	export_cuda_pop();
	return rc;
}

static int chunk_fd(const struct export_chunk *chunk, int *ret_fd, struct error *err)
{
	unsigned long long allocation;
	int fd = -1;
	int rc;

	rc = CUDA(err, cuMemRetainAllocationHandle, &allocation, (void *)(uintptr_t)chunk->base);
	if (rc) {
		return rc;
	}
	rc = CUDA(err, cuMemExportToShareableHandle, &fd, allocation, CUDA_HANDLE_POSIX_FD, 0);
	CUDA(NULL, cuMemRelease, allocation);
	if (rc) {
		return rc;
	}
	fcntl(fd, F_SETFD, FD_CLOEXEC);
	*ret_fd = fd;
	return 0;
}

int export_cuda_handle(const struct export_set *set, const struct export_entry *entry,
	struct handle *handle, struct error *err)
{
	struct cuda_ipc_handle ipc;
	int rc;

	rc = export_cuda_push(set, entry->ordinal, err);
	if (rc) {
		return rc;
	}
	if (entry->kind == HANDLE_CUDA_IPC) {
		rc = CUDA(err, cuIpcGetMemHandle, &ipc, entry->base);
		if (rc == 0) {
			memcpy(handle->ipc, ipc.reserved, GPU_IPC_BYTES);
		}
	}
	for (uint32_t i = 0; i < entry->nchunks && rc == 0; i++) {
		handle->chunk_bytes[i] = entry->chunks[i].size_bytes;
		rc = chunk_fd(&entry->chunks[i], &handle->fds[i], err);
	}
	export_cuda_pop();
	return rc;
}

static int stale(uint64_t base, uint64_t size_bytes, struct error *err)
{
	return error_set(err, -ESTALE,
		"%" PRIu64 " bytes of GPU memory at 0x%" PRIx64 " were freed or reallocated",
		size_bytes, base);
}

/* Memory that is gone is an invalid value to the driver; any other failure is of the device. */
static int verify_range(uint64_t base, uint64_t size_bytes, uint64_t buffer_id, struct error *err)
{
	uint64_t id = 0;
	unsigned result = cuda_driver.cuPointerGetAttribute(&id, CUDA_POINTER_BUFFER_ID, base);

	if (result == CUDA_OK || result == CUDA_INVALID_VALUE) {
		return id == buffer_id && result == CUDA_OK ? 0 : stale(base, size_bytes, err);
	}
	return cuda_outcome(err, "cuPointerGetAttribute", result);
}

static int verify_entry(const struct export_entry *entry, struct error *err)
{
	uint64_t base, size;
	cuda_ptr range_base;
	size_t range_size;
	int rc = 0;

	if (entry->kind == HANDLE_CUDA_IPC) {
		rc = verify_range(entry->base, entry->size_bytes, entry->buffer_id, err);
		if (rc == 0 &&
			(cuda_driver.cuMemGetAddressRange(&range_base, &range_size, entry->base) ||
				range_base != entry->base || range_size != entry->size_bytes)) {
			return stale(entry->base, entry->size_bytes, err);
		}
	}
	for (uint32_t i = 0; i < entry->nchunks && rc == 0; i++) {
		const struct export_chunk *chunk = &entry->chunks[i];

		rc = verify_range(chunk->base, chunk->size_bytes, chunk->buffer_id, err);
		if (rc == 0 && (find_chunk(chunk->base, &base, &size, NULL) ||
				       base != chunk->base || size != chunk->size_bytes)) {
			return stale(chunk->base, chunk->size_bytes, err);
		}
	}
	return rc;
}

int export_cuda_verify(
	const struct export_set *set, const struct export_entry *entry, struct error *err)
{
	int rc = export_cuda_push(set, entry->ordinal, err);

	if (rc == 0) {
		rc = verify_entry(entry, err);
		export_cuda_pop();
	}
	return rc;
}
