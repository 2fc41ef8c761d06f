/* The stand-in driver: physical memory that is mapped where one likes, and shared by descriptors.
 */
#include "tests/standin/driver.h"
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define CHUNK_NAME "strew-standin-chunk"

/* Physical memory; its address is the handle. Lives while it has references or is mapped. */
struct chunk {
	size_t size;
	int fd, owner, types;
	bool made_here; /* so that it is this process's memory */
	unsigned references, mappings;
	uint64_t id;
	struct chunk *next;
};

static pthread_mutex_t chunks_lock = PTHREAD_MUTEX_INITIALIZER;
static struct chunk *chunks;
static struct cuda_ptr_range {
	cuda_ptr base;
	size_t size;
} reserved[256];

/* The lock is held. A handle that was made up is none. */
static struct chunk *find_chunk(unsigned long long handle)
{
	struct chunk *chunk = chunks;

	while (chunk && (uintptr_t)chunk != handle) {
		chunk = chunk->next;
	}
	return chunk && chunk->references ? chunk : NULL;
}

static void forget_chunk(struct chunk *chunk)
{
	struct chunk **link = &chunks;

	if (chunk->references || chunk->mappings) {
		return;
	}
	while (*link != chunk) {
		link = &(*link)->next;
	}
	*link = chunk->next;
	close(chunk->fd);
	COUNT(fds, -1);
	free(chunk);
}

/* Takes fd. */
static unsigned add_chunk(
	int fd, size_t size, int owner, int types, bool made_here, unsigned long long *ret_handle)
{
	struct chunk *chunk = calloc(1, sizeof(*chunk));

	if (!chunk) {
		close(fd);
		return CUDA_OUT_OF_MEMORY;
	}
	chunk->fd = fd;
	chunk->size = size;
	chunk->owner = owner;
	chunk->types = types;
	chunk->made_here = made_here;
	chunk->references = 1;
	chunk->id = space_new_id();
	pthread_mutex_lock(&chunks_lock);
	chunk->next = chunks;
	chunks = chunk;
	pthread_mutex_unlock(&chunks_lock);
	COUNT(chunks, 1);
	COUNT(fds, 1);
	*ret_handle = (uintptr_t)chunk;
	return CUDA_OK;
}

unsigned cuMemCreate(unsigned long long *ret_handle, size_t size,
	const struct cuda_alloc_prop *prop, unsigned long long flags)
{
	char name[64];
	unsigned result;
	int fd, owner;

	ENTER(cuMemCreate);
	if (flags || !size || size % GRANULARITY || prop->type != CUDA_ALLOCATION_PINNED ||
		prop->location.type != CUDA_LOCATION_DEVICE || !driver_ctx(prop->location.id) ||
		prop->handle_types & ~(unsigned)CUDA_HANDLE_POSIX_FD) {
		return CUDA_INVALID_VALUE;
	}
	result = space_fits(prop->location.id, size);
	if (result) {
		return result;
	}
	owner = prop->location.id;
	snprintf(name, sizeof(name), CHUNK_NAME "-%d", owner);
	fd = memfd_create(name, MFD_CLOEXEC);
	if (fd < 0 || ftruncate(fd, (off_t)size)) {
		if (fd >= 0) {
			close(fd);
		}
		return CUDA_OUT_OF_MEMORY;
	}
	return add_chunk(fd, size, owner, (int)prop->handle_types, true, ret_handle);
}

unsigned cuMemRelease(unsigned long long handle)
{
	struct chunk *chunk;

	ENTER(cuMemRelease);
	pthread_mutex_lock(&chunks_lock);
	chunk = find_chunk(handle);
	if (chunk) {
		chunk->references--;
		COUNT(chunks, -1);
		forget_chunk(chunk);
	}
	pthread_mutex_unlock(&chunks_lock);
	return chunk ? CUDA_OK : CUDA_INVALID_VALUE;
}

unsigned cuMemRetainAllocationHandle(unsigned long long *ret_handle, void *address)
{
	struct space space;

	ENTER(cuMemRetainAllocationHandle);
	if (!space_find((uintptr_t)address, &space) || space.kind != SPACE_CHUNK) {
		return CUDA_INVALID_VALUE;
	}
	pthread_mutex_lock(&chunks_lock);
	space.chunk->references++;
	pthread_mutex_unlock(&chunks_lock);
	COUNT(chunks, 1);
	*ret_handle = (uintptr_t)space.chunk;
	return CUDA_OK;
}

unsigned cuMemExportToShareableHandle(
	void *ret_fd, unsigned long long handle, unsigned type, unsigned long long flags)
{
	unsigned result = CUDA_INVALID_VALUE;
	struct chunk *chunk;
	int fd;

	ENTER(cuMemExportToShareableHandle);
	pthread_mutex_lock(&chunks_lock);
	chunk = find_chunk(handle);
	if (chunk && !flags && type == CUDA_HANDLE_POSIX_FD &&
		chunk->types & CUDA_HANDLE_POSIX_FD) {
		fd = fcntl(chunk->fd, F_DUPFD_CLOEXEC, 0);
		memcpy(ret_fd, &fd, sizeof(fd));
		result = fd < 0 ? (unsigned)CUDA_OUT_OF_MEMORY : CUDA_OK;
	}
	pthread_mutex_unlock(&chunks_lock);
	return result;
}

unsigned cuMemImportFromShareableHandle(unsigned long long *ret_handle, void *shared, unsigned type)
{
	static const char prefix[] = "/memfd:" CHUNK_NAME "-";
	char path[64], target[128] = "";
	struct stat stat_;
	int fd;

	ENTER(cuMemImportFromShareableHandle);
	snprintf(path, sizeof(path), "/proc/self/fd/%d", (int)(intptr_t)shared);
	if (type != CUDA_HANDLE_POSIX_FD ||
		readlink(path, target, sizeof(target) - 1) < (ssize_t)sizeof(prefix) ||
		strncmp(target, prefix, sizeof(prefix) - 1) != 0) {
		return CUDA_INVALID_VALUE;
	}
	fd = fcntl((int)(intptr_t)shared, F_DUPFD_CLOEXEC, 0);
	if (fd < 0 || fstat(fd, &stat_)) {
		return CUDA_OUT_OF_MEMORY;
	}
	return add_chunk(fd, (size_t)stat_.st_size, atoi(target + sizeof(prefix) - 1),
		CUDA_HANDLE_POSIX_FD, false, ret_handle);
}

unsigned cuMemGetAllocationGranularity(
	size_t *ret_bytes, const struct cuda_alloc_prop *prop, unsigned option)
{
	ENTER(cuMemGetAllocationGranularity);
	if (option > 1 || prop->type != CUDA_ALLOCATION_PINNED || !driver_ctx(prop->location.id)) {
		return CUDA_INVALID_VALUE;
	}
	*ret_bytes = GRANULARITY;
	return CUDA_OK;
}

static struct cuda_ptr_range *find_reserved(cuda_ptr base, size_t size)
{
	for (size_t i = 0; i < sizeof(reserved) / sizeof(reserved[0]); i++) {
		if (reserved[i].size && base >= reserved[i].base &&
			size <= reserved[i].size - (base - reserved[i].base) &&
			base - reserved[i].base < reserved[i].size) {
			return &reserved[i];
		}
	}
	return NULL;
}

unsigned cuMemAddressReserve(
	cuda_ptr *ret_address, size_t size, size_t align, cuda_ptr wanted, unsigned long long flags)
{
	unsigned result = CUDA_OUT_OF_MEMORY;

	ENTER(cuMemAddressReserve);
	(void)wanted;
	if (!size || size % GRANULARITY || flags || align & (align - 1)) {
		return CUDA_INVALID_VALUE;
	}
	pthread_mutex_lock(&chunks_lock);
	for (size_t i = 0; i < sizeof(reserved) / sizeof(reserved[0]); i++) {
		if (!reserved[i].size) {
			reserved[i].base = space_reserve(size, GRANULARITY);
			reserved[i].size = reserved[i].base ? size : 0;
			*ret_address = reserved[i].base;
			result = reserved[i].base ? CUDA_OK : CUDA_OUT_OF_MEMORY;
			break;
		}
	}
	pthread_mutex_unlock(&chunks_lock);
	if (result == CUDA_OK) {
		COUNT(reserved, 1);
	}
	return result;
}

static bool inside(struct space *space, void *data)
{
	const struct cuda_ptr_range *range = data;

	return space->base < range->base + range->size && range->base < space->base + space->size;
}

unsigned cuMemAddressFree(cuda_ptr address, size_t size)
{
	struct cuda_ptr_range *range, free_range = {address, size};

	ENTER(cuMemAddressFree);
	pthread_mutex_lock(&chunks_lock);
	range = find_reserved(address, size);
	if (!range || range->base != address || range->size != size ||
		spaces_each(inside, &free_range)) {
		pthread_mutex_unlock(&chunks_lock);
		return CUDA_INVALID_VALUE;
	}
	range->size = 0;
	munmap((void *)(uintptr_t)address, size);
	pthread_mutex_unlock(&chunks_lock);
	COUNT(reserved, -1);
	return CUDA_OK;
}

unsigned cuMemMap(cuda_ptr address, size_t size, size_t offset, unsigned long long handle,
	unsigned long long flags)
{
	struct space space = {.kind = SPACE_CHUNK, .base = address, .size = size, .fd = -1};
	unsigned result = CUDA_INVALID_VALUE;
	struct chunk *chunk;

	ENTER(cuMemMap);
	pthread_mutex_lock(&chunks_lock);
	chunk = find_chunk(handle);
	if (chunk && size && size % GRANULARITY == 0 && !offset && !flags &&
		find_reserved(address, size)) {
		/* That is how the real one answers a mapping that is longer than its memory. */
		result = size > chunk->size ? (unsigned)CUDA_NOT_SUPPORTED : CUDA_OK;
	}
	if (result == CUDA_OK) {
		space.chunk = chunk;
		space.owner = chunk->owner;
		space.device = chunk->owner;
		space.buffer_id = chunk->id;
		space.host = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, chunk->fd, 0);
		result =
			space.host == MAP_FAILED ? (unsigned)CUDA_OUT_OF_MEMORY : space_add(&space);
		if (result == CUDA_OK) {
			chunk->mappings++;
			COUNT(mappings, 1);
		}
	}
	pthread_mutex_unlock(&chunks_lock);
	return result;
}

/* Whole mappings, side by side. Work that still uses them then fails: nothing waits here. */
unsigned cuMemUnmap(cuda_ptr address, size_t size)
{
	struct space space;
	cuda_ptr at = address;

	ENTER(cuMemUnmap);
	while (at < address + size) {
		if (!space_find(at, &space) || space.kind != SPACE_CHUNK || space.base != at) {
			return CUDA_INVALID_VALUE;
		}
		at += space.size;
	}
	if (at != address + size) {
		return CUDA_INVALID_VALUE;
	}
	for (at = address; at < address + size; at += space.size) {
		if (!space_take(at, SPACE_CHUNK, &space)) {
			return CUDA_INVALID_VALUE;
		}
		space_drop(&space);
		COUNT(mappings, -1);
		pthread_mutex_lock(&chunks_lock);
		space.chunk->mappings--;
		forget_chunk(space.chunk);
		pthread_mutex_unlock(&chunks_lock);
	}
	return CUDA_OK;
}

struct granting {
	cuda_ptr at, end;
	int device;
	unsigned char flags;
};

static bool grant(struct space *space, void *data)
{
	struct granting *granting = data;

	if (space->kind == SPACE_CHUNK && space->base == granting->at &&
		driver_peers(granting->device, space->owner)) {
		space->access[granting->device] = granting->flags;
		granting->at += space->size;
	}
	return granting->at >= granting->end;
}

unsigned cuMemSetAccess(cuda_ptr address, size_t size, const struct cuda_access *access, size_t n)
{
	ENTER(cuMemSetAccess);
	for (size_t i = 0; i < n; i++) {
		struct granting granting = {address, address + size, access[i].location.id,
			(unsigned char)access[i].flags};

		if (access[i].location.type != CUDA_LOCATION_DEVICE ||
			!driver_ctx(granting.device) || (granting.flags & ~3) ||
			!spaces_each(grant, &granting)) {
			return CUDA_INVALID_VALUE;
		}
	}
	return CUDA_OK;
}

int chunk_types(const struct chunk *chunk)
{
	return chunk->types;
}
