/*
 * Host memory that travels as a memfd: making one with its seals, and mapping one that
 * somebody else made. The seals are what lets a reader trust the size: without
 * F_SEAL_SHRINK the owner could cut the file and turn a copy into SIGBUS.
 */
#ifndef GPU_MEMFD_H
#define GPU_MEMFD_H

#include "gpu/gpu.h"
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

/* What makes two descriptors the same memory. */
struct memfd_id {
	dev_t device;
	ino_t inode;
};

/* A memfd of len_bytes (a multiple of the page size), sealed against shrinking and growing. */
int memfd_create_sealed(const char *name, uint64_t len_bytes, int *ret_fd);

int memfd_identify(int fd, struct memfd_id *ret_id);
struct gpu_identity memfd_identity(const struct memfd_id *id);

/*
 * Maps the first len_bytes of fd, which is borrowed. -EINVAL for what is no memfd, can
 * shrink, or is shorter. Pages appear at first touch. Unmap with munmap().
 */
int memfd_map(int fd, uint64_t len_bytes, bool write, void **ret_ptr, struct error *err);

#endif
