/*
 * strew_host_alloc()'s registry: which memfd holds a pointer. Sorted by address, because
 * a trainer looks up every tensor that it declares.
 */
#include "base/util.h"
#include "gpu/export.h"
#include "gpu/memfd.h"
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

struct host_block {
	uint64_t base;
	uint64_t size_bytes;
	int fd;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct host_block *blocks;
static size_t nblocks, cap_blocks;

/* Index of the first block that starts behind `address`. */
static size_t block_behind(uint64_t address)
{
	return upper_bound(
		blocks, nblocks, sizeof(*blocks), offsetof(struct host_block, base), address);
}

static int block_add(const struct host_block *block)
{
	size_t at;
	int rc;

	pthread_mutex_lock(&lock);
	rc = array_grow((void **)&blocks, &cap_blocks, nblocks + 1, sizeof(*blocks));
	if (rc == 0) {
		at = block_behind(block->base);
		memmove(&blocks[at + 1], &blocks[at], (nblocks - at) * sizeof(*blocks));
		blocks[at] = *block;
		nblocks++;
	}
	pthread_mutex_unlock(&lock);
	return rc;
}

int host_memory_alloc(size_t len_bytes, void **ret_ptr)
{
	uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
	struct host_block block;
	void *ptr;
	int rc;

	if (len_bytes == 0) {
		return -EINVAL;
	}
	if (len_bytes > INT64_MAX - page) {
		return -ENOMEM;
	}
	block.size_bytes = align_up(len_bytes, page);
	rc = memfd_create_sealed("strew", block.size_bytes, &block.fd);
	if (rc) {
		return rc;
	}
	ptr = mmap(NULL, block.size_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, block.fd, 0);
	if (ptr == MAP_FAILED) {
		rc = -errno;
		goto close_fd;
	}
	block.base = (uint64_t)(uintptr_t)ptr;
	rc = block_add(&block);
	if (rc) {
		goto unmap;
	}
	*ret_ptr = ptr;
	return 0;

unmap:
	munmap(ptr, block.size_bytes);
close_fd:
	fd_close(&block.fd);
	return rc;
}

int host_memory_find(const void *ptr, int *ret_fd, uint64_t *ret_base, uint64_t *ret_size)
{
	uint64_t address = (uint64_t)(uintptr_t)ptr;
	int rc = -ENOENT;
	size_t at;

	pthread_mutex_lock(&lock);
	at = block_behind(address);
	if (at > 0 && address - blocks[at - 1].base < blocks[at - 1].size_bytes) {
		*ret_fd = blocks[at - 1].fd;
		*ret_base = blocks[at - 1].base;
		*ret_size = blocks[at - 1].size_bytes;
		rc = 0;
	}
	pthread_mutex_unlock(&lock);
	return rc;
}

void host_memory_free(void *ptr)
{
	uint64_t address = (uint64_t)(uintptr_t)ptr;
	struct host_block block = {.fd = -1};
	size_t at;

	if (!ptr) {
		return;
	}
	pthread_mutex_lock(&lock);
	at = block_behind(address);
	if (at > 0 && blocks[at - 1].base == address) {
		block = blocks[at - 1];
		memmove(&blocks[at - 1], &blocks[at], (nblocks - at) * sizeof(*blocks));
		nblocks--;
	}
	if (nblocks == 0) {
		free(blocks);
		blocks = NULL;
		cap_blocks = 0;
	}
	pthread_mutex_unlock(&lock);
	if (block.fd >= 0) {
		munmap(ptr, block.size_bytes);
		fd_close(&block.fd);
	}
}
