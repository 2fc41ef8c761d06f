/* The stand-in driver: memory that leaves its process, by legacy IPC and by descriptors. */
#include "tests/standin/driver.h"
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define MAGIC 0x6e6974736e617473ull
#define CHUNK_NAME "strew-standin-chunk"

/* What a legacy handle says: the opener finds the memory among its exporter's descriptors. */
struct legacy {
	uint64_t magic;
	uint64_t base, size;
	uint64_t inode;
	int32_t pid, fd, owner, unused;
};
_Static_assert(sizeof(struct legacy) <= sizeof(struct cuda_ipc_handle), "fits");

unsigned cuIpcGetMemHandle(struct cuda_ipc_handle *ret_handle, cuda_ptr address)
{
	struct legacy legacy = {.magic = MAGIC, .pid = (int32_t)getpid()};
	struct space space;

	ENTER_CTX(cuIpcGetMemHandle);
	if (!space_find(address, &space) || space.kind != SPACE_MEMORY) {
		return CUDA_INVALID_VALUE;
	}
	legacy.base = space.base;
	legacy.size = space.size;
	legacy.inode = space.inode;
	legacy.fd = space.fd;
	legacy.owner = space.owner;
	memset(ret_handle, 0, sizeof(*ret_handle));
	memcpy(ret_handle, &legacy, sizeof(legacy));
	return CUDA_OK;
}

struct wanted {
	const struct legacy *legacy;
	int device;
	cuda_ptr address;
	bool stale;
};

/* The import that is there already, or one that lies where this one has to. */
static bool opened(struct space *space, void *data)
{
	struct wanted *wanted = data;

	if (space->kind != SPACE_IMPORT || space->device != wanted->device ||
		space->exporter != wanted->legacy->pid) {
		return false;
	}
	if (space->inode == wanted->legacy->inode) {
		space->opens++;
		wanted->address = space->base;
		return true;
	}
	wanted->stale |= space->exported_base < wanted->legacy->base + wanted->legacy->size &&
			 wanted->legacy->base < space->exported_base + space->size;
	return false;
}

/* The exporter's memory, if it still is that. */
static int open_exported(const struct legacy *legacy)
{
	struct stat stat_;
	char path[64];
	int fd;

	snprintf(path, sizeof(path), "/proc/%d/fd/%d", legacy->pid, legacy->fd);
	fd = open(path, O_RDWR | O_CLOEXEC);
	if (fd >= 0 && (fstat(fd, &stat_) || stat_.st_ino != legacy->inode ||
			       (uint64_t)stat_.st_size != legacy->size)) {
		close(fd);
		return -1;
	}
	return fd;
}

static unsigned import(struct cuda_ctx *ctx, const struct legacy *legacy, cuda_ptr *ret_address)
{
	struct space space = {.kind = SPACE_IMPORT,
		.size = legacy->size,
		.device = ctx->device,
		.owner = legacy->owner,
		.opens = 1,
		.exporter = legacy->pid,
		.exported_base = legacy->base,
		.inode = legacy->inode,
		.fd = -1};
	int fd = open_exported(legacy);
	void *host;

	if (fd < 0) {
		return CUDA_INVALID_VALUE;
	}
	host = mmap(NULL, space.size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	close(fd);
	space.base = host == MAP_FAILED ? 0 : space_reserve(space.size, 4096);
	space.host = host;
	space.buffer_id = space_new_id();
	if (!space.base || space_add(&space)) {
		if (space.base) {
			munmap((void *)(uintptr_t)space.base, space.size);
		}
		if (host != MAP_FAILED) {
			munmap(host, space.size);
		}
		return CUDA_OUT_OF_MEMORY;
	}
	*ret_address = space.base;
	return CUDA_OK;
}

unsigned cuIpcOpenMemHandle_v2(cuda_ptr *ret_address, struct cuda_ipc_handle handle, unsigned flags)
{
	struct wanted wanted = {0};
	struct legacy legacy;
	unsigned result;

	ENTER_CTX(cuIpcOpenMemHandle);
	memcpy(&legacy, &handle, sizeof(legacy));
	if (legacy.magic != MAGIC || flags != CUDA_IPC_LAZY_PEER) {
		return CUDA_INVALID_VALUE;
	}
	if (legacy.pid == (int32_t)getpid()) {
		return CUDA_INVALID_CONTEXT;
	}
	if (driver_physical(ctx->device) != legacy.owner && !driver_peers()) {
		return PEER_UNSUPPORTED;
	}
	wanted.legacy = &legacy;
	wanted.device = ctx->device;
	if (spaces_each(opened, &wanted)) {
		COUNT(imports, 1);
		*ret_address = wanted.address;
		return CUDA_OK;
	}
	if (wanted.stale) {
		return CUDA_ALREADY_MAPPED;
	}
	result = import(ctx, &legacy, ret_address);
	if (result == CUDA_OK) {
		COUNT(imports, 1);
	}
	return result;
}

static bool close_once(struct space *space, void *data)
{
	const cuda_ptr *address = data;

	if (space->kind == SPACE_IMPORT && space->base == *address && space->opens > 1) {
		space->opens--;
		return true;
	}
	return false;
}

unsigned cuIpcCloseMemHandle(cuda_ptr address)
{
	struct space space;

	ENTER_CTX(cuIpcCloseMemHandle);
	if (spaces_each(close_once, &address)) {
		COUNT(imports, -1);
		return CUDA_OK;
	}
	if (!space_find(address, &space) || space.kind != SPACE_IMPORT || space.base != address) {
		return CUDA_INVALID_VALUE;
	}
	streams_drain(ctx);
	if (!space_take(address, SPACE_IMPORT, &space)) {
		return CUDA_INVALID_VALUE;
	}
	space_drop(&space);
	COUNT(imports, -1);
	return CUDA_OK;
}

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
	owner = driver_physical(prop->location.id);
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
		space.device = driver_seen(chunk->owner);
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

	if (space->kind == SPACE_CHUNK && space->base == granting->at) {
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

static unsigned answer(void *ret, const void *value, size_t len)
{
	memcpy(ret, value, len);
	return CUDA_OK;
}

/* Ordinals are of what the memory was mapped for, as seen with imports on the real driver. */
unsigned cuPointerGetAttribute(void *ret, unsigned attribute, cuda_ptr address)
{
	struct space space;
	unsigned number;
	unsigned long long wide;

	ENTER(cuPointerGetAttribute);
	if (!space_find(address, &space)) {
		return CUDA_INVALID_VALUE;
	}
	switch (attribute) {
	case CUDA_POINTER_MEMORY_TYPE:
		number = space.kind == SPACE_HOST || space.kind == SPACE_REGISTERED
				 ? CUDA_MEMORY_HOST
				 : CUDA_MEMORY_DEVICE;
		return answer(ret, &number, sizeof(number));
	case CUDA_POINTER_BUFFER_ID:
		return answer(ret, &space.buffer_id, sizeof(space.buffer_id));
	case CUDA_POINTER_IS_MANAGED:
		number = space.kind == SPACE_MANAGED;
		return answer(ret, &number, sizeof(number));
	case CUDA_POINTER_ORDINAL:
		return answer(ret, &space.device, sizeof(space.device));
	case CUDA_POINTER_LEGACY_IPC:
		number = space.kind == SPACE_MEMORY;
		return answer(ret, &number, 1);
	case CUDA_POINTER_HANDLE_TYPES:
		wide = space.kind == SPACE_CHUNK ? (unsigned)space.chunk->types : 0;
		return answer(ret, &wide, sizeof(wide));
	case CUDA_POINTER_MAPPING_BASE:
		return answer(ret, &space.base, sizeof(space.base));
	case CUDA_POINTER_MAPPING_SIZE:
		wide = space.size;
		return answer(ret, &wide, sizeof(wide));
	case CUDA_POINTER_BLOCK_ID:
		return answer(ret, &space.buffer_id, sizeof(space.buffer_id));
	default:
		return CUDA_INVALID_VALUE;
	}
}
