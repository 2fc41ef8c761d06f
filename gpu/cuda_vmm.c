/*
 * Memory that came as chunks, each with a descriptor of its own: one range of addresses is
 * reserved for all, and each chunk mapped into its place. Every step is undone in reverse
 * when a later one fails.
 */
#include "gpu/cuda_backend.h"
#include <errno.h>
#include <inttypes.h>

/* Sizes that no chunk on that GPU can have are refused before anything is mapped. */
static int check_sizes(struct cuda_device *device, const struct handle *handle, struct error *err)
{
	struct cuda_alloc_prop prop = {
		.type = CUDA_ALLOCATION_PINNED,
		.handle_types = CUDA_HANDLE_POSIX_FD,
		.location = {.type = CUDA_LOCATION_DEVICE},
	};
	size_t granularity;
	int rc;

	rc = CUDA(err, cuDeviceGet, &prop.location.id, cuda_ordinal(device->gpu, handle->uuid));
	if (rc == 0) {
		rc = CUDA(err, cuMemGetAllocationGranularity, &granularity, &prop,
			CUDA_GRANULARITY_MINIMUM);
	}
	for (uint32_t i = 0; i < handle->nchunks && rc == 0; i++) {
		if (handle->chunk_bytes[i] % granularity) {
			rc = error_set(err, -EINVAL,
				"chunk %" PRIu32 " of %" PRIu64 " bytes is no multiple of %zu", i,
				handle->chunk_bytes[i], granularity);
		}
	}
	return rc;
}

static int map_chunk(
	cuda_ptr address, int fd, uint64_t len_bytes, uint32_t index, struct error *err)
{
	unsigned long long chunk;
	int rc;

	rc = CUDA(err, cuMemImportFromShareableHandle, &chunk, (void *)(intptr_t)fd,
		CUDA_HANDLE_POSIX_FD);
	if (rc) {
		error_prefix(err, "chunk %" PRIu32, index);
		return rc;
	}
	rc = CUDA(err, cuMemMap, address, len_bytes, 0, chunk, 0);
	if (rc) {
		error_prefix(err, "chunk %" PRIu32 " as %" PRIu64 " bytes", index, len_bytes);
		/* What the driver says to a mapping that is longer than the chunk. */
		if (rc == -ENOTSUP) {
			rc = -ERANGE;
			if (err) {
				err->code = rc;
			}
		}
	}
	/* The mapping holds the memory from here on; without one nothing needs it. */
	CUDA(NULL, cuMemRelease, chunk);
	return rc;
}

/* Each chunk reaches to its end: only what is accessible has a range to ask for. */
static int check_chunks(const struct handle *handle, cuda_ptr address, struct error *err)
{
	cuda_ptr base;
	size_t size;
	int rc = 0;

	for (uint32_t i = 0; i < handle->nchunks && rc == 0; i++) {
		uint64_t claimed = handle->chunk_bytes[i];

		rc = CUDA(err, cuMemGetAddressRange, &base, &size, address);
		if (rc == 0 && (base > address || size - (address - base) < claimed)) {
			rc = error_set(err, -ERANGE,
				"chunk %" PRIu32 ": %" PRIu64 " bytes were claimed, it has %zu", i,
				claimed, size);
		}
		address += claimed;
	}
	return rc;
}

static int allow_access(struct cuda_device *device, cuda_ptr address, uint64_t len_bytes,
	bool write, struct error *err)
{
	struct cuda_access access = {
		.location = {.type = CUDA_LOCATION_DEVICE, .id = device->ordinal},
		.flags = CUDA_ACCESS_READ,
	};

	if (!write && cuda_driver.cuMemSetAccess(address, len_bytes, &access, 1) == CUDA_OK) {
		return 0;
	}
	/* Not every driver can map for reading only. */
	access.flags = CUDA_ACCESS_READ_WRITE;
	return CUDA(err, cuMemSetAccess, address, len_bytes, &access, 1);
}

int cuda_vmm_map(struct cuda_device *device, const struct handle *handle, bool write,
	cuda_ptr *ret_address, struct error *err)
{
	uint64_t mapped = 0;
	cuda_ptr address;
	int rc;

	rc = check_sizes(device, handle, err);
	if (rc) {
		return rc;
	}
	rc = CUDA(err, cuMemAddressReserve, &address, handle->size_bytes, 0, 0, 0);
	if (rc) {
		return rc;
	}
	for (uint32_t i = 0; i < handle->nchunks && rc == 0; i++) {
		rc = map_chunk(address + mapped, handle->fds[i], handle->chunk_bytes[i], i, err);
		if (rc == 0) {
			mapped += handle->chunk_bytes[i];
		}
	}
	if (rc == 0) {
		rc = allow_access(device, address, handle->size_bytes, write, err);
	}
	if (rc == 0) {
		rc = check_chunks(handle, address, err);
	}
	if (rc) {
		goto unmap;
	}
	*ret_address = address;
	return 0;

unmap:
	if (mapped) {
		CUDA(NULL, cuMemUnmap, address, mapped);
	}
	CUDA(NULL, cuMemAddressFree, address, handle->size_bytes);
	return rc;
}

void cuda_vmm_unmap(cuda_ptr address, uint64_t len_bytes)
{
	CUDA(NULL, cuMemUnmap, address, len_bytes);
	CUDA(NULL, cuMemAddressFree, address, len_bytes);
}
