#include "gpu/memfd.h"
#include "base/util.h"
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

int memfd_create_sealed(const char *name, uint64_t len_bytes, int *ret_fd)
{
	int fd, rc;

	if (len_bytes > INT64_MAX) {
		return -ENOMEM;
	}
	fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING);
	if (fd < 0) {
		return -errno;
	}
	if (ftruncate(fd, (off_t)len_bytes) < 0 ||
		fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) < 0) {
		rc = -errno;
		fd_close(&fd);
		return rc;
	}
	*ret_fd = fd;
	return 0;
}

int memfd_identify(int fd, struct memfd_id *ret_id)
{
	struct stat st;

	if (fstat(fd, &st) < 0) {
		return -errno;
	}
	ret_id->device = st.st_dev;
	ret_id->inode = st.st_ino;
	return 0;
}

struct gpu_identity memfd_identity(const struct memfd_id *id)
{
	return (struct gpu_identity){{(uint64_t)id->inode, (uint64_t)id->device}};
}

int memfd_map(int fd, uint64_t len_bytes, bool write, void **ret_ptr, struct error *err)
{
	struct stat st;
	void *ptr;
	int seals;

	seals = fcntl(fd, F_GET_SEALS);
	if (seals < 0) {
		return error_set(err, -EINVAL, "the descriptor is no memfd: %s", strerror(errno));
	}
	if (!(seals & F_SEAL_SHRINK)) {
		return error_set(err, -EINVAL, "the memfd is not sealed against shrinking");
	}
	if (fstat(fd, &st) < 0) {
		return error_set(err, -errno, "the memfd's size is unknown: %s", strerror(errno));
	}
	if (st.st_size < 0 || (uint64_t)st.st_size < len_bytes) {
		return error_set(err, -EINVAL,
			"the memfd holds %" PRId64 " bytes, %" PRIu64 " were claimed",
			(int64_t)st.st_size, len_bytes);
	}
	ptr = mmap(NULL, len_bytes, PROT_READ | (write ? PROT_WRITE : 0), MAP_SHARED, fd, 0);
	if (ptr == MAP_FAILED) {
		int code = errno;

		return error_set(err, -code, "%" PRIu64 " bytes of a memfd cannot be mapped: %s",
			len_bytes, strerror(code));
	}
	*ret_ptr = ptr;
	return 0;
}
