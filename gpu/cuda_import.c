/*
 * Other processes' allocations, and the broker's own. An import is counted: a legacy IPC
 * handle opens once a device, and a memfd is pinned once, however many workers name it.
 * Descriptors of VMM chunks carry no identity that two handles could be compared by, so each
 * of those is a mapping of its own; it costs addresses, not memory.
 */
#include "base/util.h"
#include "gpu/cuda_backend.h"
#include "gpu/memfd.h"
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

struct cuda_memory {
	struct gpu_memory head;
	struct cuda_device *device;
	struct cuda_memory *next; /* of the device's imports */
	enum handle_kind kind;	  /* 0: own memory */
	unsigned references;
	bool write;
	uint64_t buffer_id;
	uint8_t ipc[GPU_IPC_BYTES];
	struct memfd_id memfd;
	void *mapping; /* of a memfd; own memory: its address if it is the host's */
};

static bool same_import(const struct cuda_memory *memory, const struct handle *handle, bool write,
	const struct memfd_id *memfd)
{
	if (memory->kind != handle->kind || memory->head.len_bytes != handle->size_bytes) {
		return false;
	}
	switch (handle->kind) {
	case HANDLE_CUDA_IPC:
		return memory->buffer_id == handle->buffer_id &&
		       memcmp(memory->ipc, handle->ipc, GPU_IPC_BYTES) == 0 &&
		       memcmp(memory->head.uuid, handle->uuid, GPU_UUID_BYTES) == 0;
	case HANDLE_MEMFD:
		return memory->write == write && memory->memfd.device == memfd->device &&
		       memory->memfd.inode == memfd->inode;
	default:
		return false;
	}
}

/* The GPU must be one of ours, and within reach of the device that will copy. */
static int check_reach(struct cuda_device *device, const struct handle *handle, struct error *err)
{
	char theirs[UUID_TEXT_BYTES], ours[UUID_TEXT_BYTES];

	gpu_uuid_format(theirs, sizeof(theirs), handle->uuid);
	if (cuda_ordinal(device->gpu, handle->uuid) < 0) {
		return error_set(err, -ENODEV,
			"the memory is on %s, which this process does not see", theirs);
	}
	if (!gpu_device_reaches(&device->head, handle->uuid)) {
		return error_set(err, -ENOTSUP, "%s has no peer access to %s",
			gpu_uuid_format(ours, sizeof(ours), device->head.uuid), theirs);
	}
	return 0;
}

/*
 * What was mapped is as long as was claimed. On which GPU it is the driver does not tell: of an
 * imported allocation it names the one that it was mapped for. A false claim costs its maker
 * speed, nothing else.
 */
static int check_claim(const struct handle *handle, cuda_ptr address, struct error *err)
{
	cuda_ptr base;
	size_t size;
	int rc;

	rc = CUDA(err, cuMemGetAddressRange, &base, &size, address);
	if (rc) {
		return rc;
	}
	if (base != address || size < handle->size_bytes) {
		return error_set(err, -ERANGE,
			"%" PRIu64 " bytes were claimed, the allocation has %zu",
			handle->size_bytes, size - (size_t)(address - base));
	}
	return 0;
}

static int open_ipc(struct cuda_memory *memory, const struct handle *handle, struct error *err)
{
	struct cuda_ipc_handle ipc;
	cuda_ptr address;
	unsigned result;
	int rc;

	rc = check_reach(memory->device, handle, err);
	if (rc) {
		return rc;
	}
	memcpy(ipc.reserved, handle->ipc, sizeof(ipc.reserved));
	result = cuda_driver.cuIpcOpenMemHandle(&address, ipc, CUDA_IPC_LAZY_PEER);
	rc = cuda_outcome(err, "cuIpcOpenMemHandle", result);
	if (rc) {
		if (result == CUDA_INVALID_VALUE || result == CUDA_NOT_PERMITTED) {
			error_prefix(err, "the allocation is gone");
		} else if (result == CUDA_INVALID_CONTEXT) {
			error_prefix(err, "this process's own, or from a PID of another namespace");
		} else if (result == CUDA_ALREADY_MAPPED) {
			error_prefix(err, "an older allocation is still mapped in its place");
		}
		return rc;
	}
	rc = check_claim(handle, address, err);
	if (rc) {
		CUDA(NULL, cuIpcCloseMemHandle, address);
		return rc;
	}
	memcpy(memory->ipc, handle->ipc, GPU_IPC_BYTES);
	memory->head.address = address;
	memory->head.identity = (struct gpu_identity){{address, UINT64_MAX}};
	return 0;
}

static int open_vmm(
	struct cuda_memory *memory, const struct handle *handle, bool write, struct error *err)
{
	cuda_ptr address;
	int rc;

	rc = check_reach(memory->device, handle, err);
	if (rc == 0) {
		rc = cuda_vmm_map(memory->device, handle, write, &address, err);
	}
	if (rc == 0) {
		memory->head.address = address;
	}
	return rc;
}

static int open_memfd(
	struct cuda_memory *memory, const struct handle *handle, bool write, struct error *err)
{
	/* Without the attribute the driver pins for writing, whatever the mapping allows. */
	bool map_write = write || !memory->device->read_only_register;
	unsigned flags = CUDA_REGISTER_PORTABLE | CUDA_REGISTER_DEVICEMAP;
	cuda_ptr address;
	void *mapping;
	int rc;

	rc = memfd_map(handle->fds[0], handle->size_bytes, map_write, &mapping, err);
	if (rc) {
		return rc;
	}
	flags |= map_write ? 0 : CUDA_REGISTER_READ_ONLY;
	rc = CUDA(err, cuMemHostRegister, mapping, handle->size_bytes, flags);
	if (rc) {
		goto unmap;
	}
	rc = CUDA(err, cuMemHostGetDevicePointer, &address, mapping, 0);
	if (rc) {
		goto unregister;
	}
	memory->mapping = mapping;
	memory->head.address = address;
	memory->head.identity = memfd_identity(&memory->memfd);
	return 0;

unregister:
	CUDA(NULL, cuMemHostUnregister, mapping);
unmap:
	munmap(mapping, handle->size_bytes);
	return rc;
}

int cuda_import(struct gpu_device *base, const struct handle *handle, bool write,
	struct gpu_memory **ret_memory, struct error *err)
{
	struct cuda_device *device = (struct cuda_device *)base;
	struct memfd_id memfd = {0};
	struct cuda_memory *memory;
	int rc;

	rc = cuda_enter(device, err);
	if (rc) {
		return rc;
	}
	if (handle->kind == HANDLE_MEMFD) {
		rc = memfd_identify(handle->fds[0], &memfd);
		if (rc) {
			return error_set(err, rc, "the memfd is unusable: %s", strerror(-rc));
		}
	}
	for (memory = device->imports; memory; memory = memory->next) {
		if (same_import(memory, handle, write, &memfd)) {
			memory->references++;
			*ret_memory = &memory->head;
			return 0;
		}
	}
	memory = calloc(1, sizeof(*memory));
	if (!memory) {
		return error_set(err, -ENOMEM, "no memory for an import");
	}
	memory->head.ops = base->ops;
	memory->head.len_bytes = handle->size_bytes;
	memory->device = device;
	memory->kind = handle->kind;
	memory->references = 1;
	memory->write = write;
	memory->buffer_id = handle->buffer_id;
	memory->memfd = memfd;
	switch (handle->kind) {
	case HANDLE_CUDA_IPC:
		rc = open_ipc(memory, handle, err);
		break;
	case HANDLE_CUDA_VMM:
		rc = open_vmm(memory, handle, write, err);
		break;
	default:
		rc = open_memfd(memory, handle, write, err);
	}
	if (rc) {
		free(memory);
		return rc;
	}
	if (handle->kind != HANDLE_MEMFD) {
		memcpy(memory->head.uuid, handle->uuid, GPU_UUID_BYTES);
	}
	memory->next = device->imports;
	device->imports = memory;
	*ret_memory = &memory->head;
	return 0;
}

const uint8_t *cuda_import_uuid(const struct cuda_device *device, cuda_ptr address)
{
	for (const struct cuda_memory *memory = device->imports; memory; memory = memory->next) {
		if (address >= memory->head.address &&
			address - memory->head.address < memory->head.len_bytes) {
			return memory->head.uuid;
		}
	}
	return NULL;
}

/* Room for an allocation of our own, in the device's context. */
static int new_own(struct cuda_device *device, uint64_t len_bytes, struct cuda_memory **ret_memory,
	struct error *err)
{
	struct cuda_memory *memory;
	int rc = cuda_enter(device, err);

	if (rc) {
		return rc;
	}
	memory = calloc(1, sizeof(*memory));
	if (!memory) {
		return error_set(err, -ENOMEM, "no memory for an allocation");
	}
	memory->head.ops = device->head.ops;
	memory->head.len_bytes = len_bytes;
	memory->device = device;
	memory->references = 1;
	*ret_memory = memory;
	return 0;
}

int cuda_alloc(struct gpu_device *base, uint64_t len_bytes, struct gpu_memory **ret_memory,
	struct error *err)
{
	struct cuda_device *device = (struct cuda_device *)base;
	struct cuda_memory *memory = NULL;
	char wanted[32], left[32], gpu[UUID_TEXT_BYTES];
	uint64_t free_bytes, total_bytes;
	cuda_ptr address;
	int rc = new_own(device, len_bytes, &memory, err);

	if (rc) {
		return rc;
	}
	rc = CUDA(err, cuMemAlloc, &address, len_bytes);
	if (rc) {
		if (rc == -ENOMEM && gpu_device_free(base, &free_bytes, &total_bytes) == 0) {
			error_set(err, rc, "%s wanted on %s, %s are free",
				format_bytes(wanted, sizeof(wanted), len_bytes),
				gpu_uuid_format(gpu, sizeof(gpu), device->head.uuid),
				format_bytes(left, sizeof(left), free_bytes));
		}
		free(memory);
		return rc;
	}
	memory->head.address = address;
	memcpy(memory->head.uuid, device->head.uuid, GPU_UUID_BYTES);
	*ret_memory = &memory->head;
	return 0;
}

int cuda_alloc_pinned(struct gpu_device *base, uint64_t len_bytes, struct gpu_memory **ret_memory,
	struct error *err)
{
	struct cuda_memory *memory = NULL;
	char wanted[32];
	int rc = new_own((struct cuda_device *)base, len_bytes, &memory, err);

	if (rc) {
		return rc;
	}
	/* One address for all devices: the driver unifies them on every system that it supports. */
	rc = CUDA(err, cuMemHostAlloc, &memory->mapping, len_bytes,
		CUDA_REGISTER_PORTABLE | CUDA_REGISTER_DEVICEMAP);
	if (rc) {
		error_prefix(err, "%s of pinned host memory",
			format_bytes(wanted, sizeof(wanted), len_bytes));
		free(memory);
		return rc;
	}
	memory->head.address = (uintptr_t)memory->mapping;
	*ret_memory = &memory->head;
	return 0;
}

static void forget_import(struct cuda_memory *memory)
{
	struct cuda_memory **link = &memory->device->imports;

	while (*link != memory) {
		link = &(*link)->next;
	}
	*link = memory->next;
}

void cuda_memory_release(struct gpu_memory *base)
{
	struct cuda_memory *memory = (struct cuda_memory *)base;

	if (--memory->references > 0) {
		return;
	}
	cuda_enter(memory->device, NULL);
	if (memory->kind) {
		forget_import(memory);
	}
	switch (memory->kind) {
	case HANDLE_CUDA_IPC:
		CUDA(NULL, cuIpcCloseMemHandle, memory->head.address);
		break;
	case HANDLE_CUDA_VMM:
		cuda_vmm_unmap(memory->head.address, memory->head.len_bytes);
		break;
	case HANDLE_MEMFD:
		CUDA(NULL, cuMemHostUnregister, memory->mapping);
		munmap(memory->mapping, memory->head.len_bytes);
		break;
	default:
		if (memory->mapping) {
			CUDA(NULL, cuMemFreeHost, memory->mapping);
		} else {
			CUDA(NULL, cuMemFree, memory->head.address);
		}
	}
	free(memory);
}
