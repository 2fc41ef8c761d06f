/* The stand-in driver: memory that leaves its process by legacy IPC, and what pointers are. */
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
	if (!driver_peers(ctx->device, legacy.owner)) {
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
		wide = space.kind == SPACE_CHUNK ? (unsigned)chunk_types(space.chunk) : 0;
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
