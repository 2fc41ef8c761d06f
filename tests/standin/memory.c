/* The stand-in driver: address spaces, memory of the GPU and of the host, what is known of them. */
#include "tests/standin/driver.h"
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define SPACES_MAX 4096
#define MEMORY_BYTES (8ull << 30)
#define MANAGED_GLOBAL 1u

static pthread_rwlock_t lock = PTHREAD_RWLOCK_INITIALIZER;
static struct space spaces[SPACES_MAX]; /* by base */
static size_t nspaces;
static size_t used[DEVICES_MAX]; /* bytes that this process has, by its device */

uint64_t space_new_id(void)
{
	static atomic_ullong last;

	return atomic_fetch_add(&last, 1) + 1;
}

/* The first that begins behind the address. */
static size_t behind(cuda_ptr address)
{
	size_t low = 0, high = nspaces;

	while (low < high) {
		size_t middle = (low + high) / 2;

		if (spaces[middle].base <= address) {
			low = middle + 1;
		} else {
			high = middle;
		}
	}
	return low;
}

static struct space *find(cuda_ptr address)
{
	size_t at = behind(address);

	return at && address - spaces[at - 1].base < spaces[at - 1].size ? &spaces[at - 1] : NULL;
}

/* What takes memory of the GPU; mapped chunks were counted when they were made. */
static bool has_memory(const struct space *space)
{
	return space->kind == SPACE_MEMORY || space->kind == SPACE_MANAGED;
}

unsigned space_add(const struct space *space)
{
	size_t at;

	pthread_rwlock_wrlock(&lock);
	at = behind(space->base);
	if (nspaces == SPACES_MAX || (at && find(space->base)) ||
		(at < nspaces && spaces[at].base < space->base + space->size)) {
		pthread_rwlock_unlock(&lock);
		return CUDA_INVALID_VALUE;
	}
	memmove(&spaces[at + 1], &spaces[at], (nspaces - at) * sizeof(*spaces));
	spaces[at] = *space;
	nspaces++;
	if (has_memory(space)) {
		used[space->device] += space->size;
		COUNT(bytes, space->size);
	}
	pthread_rwlock_unlock(&lock);
	return CUDA_OK;
}

bool space_find(cuda_ptr address, struct space *ret_space)
{
	struct space *space;

	pthread_rwlock_rdlock(&lock);
	space = find(address);
	if (space) {
		*ret_space = *space;
	}
	pthread_rwlock_unlock(&lock);
	return space != NULL;
}

bool space_take(cuda_ptr base, enum space_kind kind, struct space *ret_space)
{
	struct space *space;
	bool found;

	pthread_rwlock_wrlock(&lock);
	space = find(base);
	found = space && space->base == base && space->kind == kind;
	if (found) {
		*ret_space = *space;
		if (has_memory(space)) {
			used[space->device] -= space->size;
			COUNT(bytes, -(long long)space->size);
		}
		memmove(space, space + 1,
			(size_t)(&spaces[nspaces] - (space + 1)) * sizeof(*space));
		nspaces--;
	}
	pthread_rwlock_unlock(&lock);
	return found;
}

bool spaces_each(bool (*f)(struct space *, void *), void *data)
{
	bool found = false;

	pthread_rwlock_wrlock(&lock);
	for (size_t i = 0; i < nspaces && !found; i++) {
		found = f(&spaces[i], data);
	}
	pthread_rwlock_unlock(&lock);
	return found;
}

void spaces_hold(void)
{
	pthread_rwlock_rdlock(&lock);
}

void spaces_release(void)
{
	pthread_rwlock_unlock(&lock);
}

static bool may(const struct space *space, int device, unsigned access)
{
	switch (space->kind) {
	case SPACE_CHUNK:
		return (space->access[device] & access) == access;
	case SPACE_MEMORY:
		return space->device == device || driver_ctx(device)->peers[space->device];
	case SPACE_IMPORT:
		return space->device == device;
	default:
		return !space->read_only || !(access & MAY_WRITE);
	}
}

char *space_reach(int device, cuda_ptr address, size_t *len_bytes, unsigned access)
{
	struct space *space = find(address);
	size_t offset;

	if (!space || !may(space, device, access)) {
		return NULL;
	}
	offset = address - space->base;
	if (*len_bytes > space->size - offset) {
		*len_bytes = space->size - offset;
	}
	return space->host + offset;
}

cuda_ptr space_reserve(size_t size, size_t align)
{
	char *map = mmap(
		NULL, size + align, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	char *at;

	if (map == MAP_FAILED) {
		return 0;
	}
	at = (char *)(((uintptr_t)map + align - 1) / align * align);
	if (at > map) {
		munmap(map, (size_t)(at - map));
	}
	munmap(at + size, (size_t)(map + align - at));
	return (cuda_ptr)(uintptr_t)at;
}

void space_drop(struct space *space)
{
	void *address = (void *)(uintptr_t)space->base;

	if (space->kind == SPACE_MEMORY || space->kind == SPACE_IMPORT ||
		space->kind == SPACE_CHUNK) {
		munmap(space->host, space->size);
	}
	if (space->kind != SPACE_CHUNK && space->kind != SPACE_REGISTERED) {
		munmap(address, space->size);
	}
	if (space->fd >= 0) {
		close(space->fd);
		COUNT(fds, -1);
	}
}

static size_t memory_bytes(void)
{
	const char *set = getenv("STANDIN_MEMORY");

	return set ? strtoull(set, NULL, 10) : MEMORY_BYTES;
}

unsigned space_fits(int device, size_t size)
{
	bool fits;

	pthread_rwlock_rdlock(&lock);
	fits = used[device] <= memory_bytes() && size <= memory_bytes() - used[device];
	pthread_rwlock_unlock(&lock);
	return fits ? CUDA_OK : CUDA_OUT_OF_MEMORY;
}

unsigned cuMemGetInfo_v2(size_t *ret_free, size_t *ret_total)
{
	ENTER_CTX(cuMemGetInfo);
	pthread_rwlock_rdlock(&lock);
	*ret_total = memory_bytes();
	*ret_free = *ret_total - (used[ctx->device] < *ret_total ? used[ctx->device] : *ret_total);
	pthread_rwlock_unlock(&lock);
	return CUDA_OK;
}

unsigned standin_take(size_t len_bytes)
{
	ENTER_CTX(standin_take);
	pthread_rwlock_wrlock(&lock);
	used[ctx->device] += len_bytes;
	COUNT(bytes, len_bytes);
	pthread_rwlock_unlock(&lock);
	return CUDA_OK;
}

/* Memory that other processes may be shown, at an address that no CPU code may use. */
static unsigned make_memory(struct cuda_ctx *ctx, size_t size, struct space *space)
{
	struct stat stat_;
	void *host = MAP_FAILED;

	space->kind = SPACE_MEMORY;
	space->size = size;
	space->device = ctx->device;
	space->owner = ctx->device;
	space->buffer_id = space_new_id();
	space->base = space_reserve(size, 4096);
	space->fd = memfd_create("strew-standin-memory", MFD_CLOEXEC);
	if (space->base && space->fd >= 0 && ftruncate(space->fd, (off_t)size) == 0 &&
		fstat(space->fd, &stat_) == 0) {
		space->inode = stat_.st_ino;
		host = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, space->fd, 0);
	}
	if (host == MAP_FAILED) {
		if (space->base) {
			munmap((void *)(uintptr_t)space->base, size);
		}
		if (space->fd >= 0) {
			close(space->fd);
		}
		return CUDA_OUT_OF_MEMORY;
	}
	space->host = host;
	return CUDA_OK;
}

unsigned cuMemAlloc_v2(cuda_ptr *ret_address, size_t size)
{
	struct space space = {.fd = -1};
	unsigned result;

	ENTER_CTX(cuMemAlloc);
	if (size == 0) {
		return CUDA_INVALID_VALUE;
	}
	result = space_fits(ctx->device, size);
	if (result == CUDA_OK) {
		result = make_memory(ctx, size, &space);
	}
	if (result == CUDA_OK) {
		result = space_add(&space);
	}
	if (result != CUDA_OK) {
		return result;
	}
	COUNT(memory, 1);
	COUNT(fds, 1);
	*ret_address = space.base;
	return CUDA_OK;
}

static unsigned add_host(struct cuda_ctx *ctx, enum space_kind kind, size_t size, void **ret_host)
{
	struct space space = {
		.kind = kind, .size = size, .device = ctx->device, .owner = ctx->device, .fd = -1};
	void *host = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (size == 0 || host == MAP_FAILED) {
		return size ? CUDA_OUT_OF_MEMORY : CUDA_INVALID_VALUE;
	}
	space.base = (uintptr_t)host;
	space.host = host;
	space.buffer_id = space_new_id();
	if (space_add(&space)) {
		munmap(host, size);
		return CUDA_OUT_OF_MEMORY;
	}
	*ret_host = host;
	return CUDA_OK;
}

unsigned cuMemAllocManaged(cuda_ptr *ret_address, size_t size, unsigned flags)
{
	void *host = NULL;
	unsigned result;

	ENTER_CTX(cuMemAllocManaged);
	result = flags == MANAGED_GLOBAL ? add_host(ctx, SPACE_MANAGED, size, &host)
					 : CUDA_INVALID_VALUE;
	if (result == CUDA_OK) {
		COUNT(memory, 1);
		*ret_address = (uintptr_t)host;
	}
	return result;
}

unsigned cuMemFree_v2(cuda_ptr address)
{
	struct space space;

	ENTER_CTX(cuMemFree);
	if (!address) {
		return CUDA_OK;
	}
	if (!space_find(address, &space) || space.base != address || !has_memory(&space)) {
		return CUDA_INVALID_VALUE;
	}
	/* To free memory is to wait for all that its GPU does in this process. */
	streams_drain(driver_ctx(space.device));
	if (!space_take(address, space.kind, &space)) {
		return CUDA_INVALID_VALUE;
	}
	space_drop(&space);
	COUNT(memory, -1);
	return CUDA_OK;
}

unsigned cuMemHostAlloc(void **ret_host, size_t size, unsigned flags)
{
	unsigned result;

	ENTER_CTX(cuMemHostAlloc);
	result = flags & ~7u ? CUDA_INVALID_VALUE : add_host(ctx, SPACE_HOST, size, ret_host);
	if (result == CUDA_OK) {
		COUNT(host, 1);
	}
	return result;
}

unsigned cuMemFreeHost(void *host)
{
	struct space space;

	ENTER_CTX(cuMemFreeHost);
	streams_drain(ctx);
	if (!space_take((uintptr_t)host, SPACE_HOST, &space)) {
		return CUDA_INVALID_VALUE;
	}
	space_drop(&space);
	COUNT(host, -1);
	return CUDA_OK;
}

unsigned cuMemHostRegister_v2(void *host, size_t size, unsigned flags)
{
	struct space space = {.kind = SPACE_REGISTERED,
		.base = (uintptr_t)host,
		.size = size,
		.host = host,
		.fd = -1,
		.read_only = flags & CUDA_REGISTER_READ_ONLY};

	ENTER_CTX(cuMemHostRegister);
	if (!host || size == 0 || flags & ~15u) {
		return CUDA_INVALID_VALUE;
	}
	space.device = ctx->device;
	space.owner = ctx->device;
	space.buffer_id = space_new_id();
	if (space_add(&space)) {
		return CUDA_HOST_ALREADY_REGISTERED;
	}
	COUNT(registered, 1);
	return CUDA_OK;
}

unsigned cuMemHostUnregister(void *host)
{
	struct space space;

	ENTER_CTX(cuMemHostUnregister);
	streams_drain(ctx);
	if (!space_take((uintptr_t)host, SPACE_REGISTERED, &space)) {
		return HOST_NOT_REGISTERED;
	}
	COUNT(registered, -1);
	return CUDA_OK;
}

unsigned cuMemHostGetDevicePointer_v2(cuda_ptr *ret_address, void *host, unsigned flags)
{
	struct space space;

	ENTER_CTX(cuMemHostGetDevicePointer);
	if (flags || !space_find((uintptr_t)host, &space) ||
		(space.kind != SPACE_HOST && space.kind != SPACE_REGISTERED)) {
		return CUDA_INVALID_VALUE;
	}
	*ret_address = (uintptr_t)host;
	return CUDA_OK;
}

unsigned cuMemGetAddressRange_v2(cuda_ptr *ret_base, size_t *ret_size, cuda_ptr address)
{
	struct space space;
	unsigned char all = 0;

	ENTER_CTX(cuMemGetAddressRange);
	if (!space_find(address, &space)) {
		return NOT_FOUND;
	}
	for (int i = 0; i < DEVICES_MAX; i++) {
		all |= space.access[i];
	}
	if (space.kind == SPACE_CHUNK && !all) {
		return NOT_FOUND;
	}
	if (ret_base) {
		*ret_base = space.base;
	}
	if (ret_size) {
		*ret_size = space.size;
	}
	return CUDA_OK;
}
