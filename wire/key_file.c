#include "wire/key_file.h"
#include "base/util.h"
#include <errno.h>
#include <fcntl.h>
#include <sodium.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static int check_file(int fd, const char *path, struct error *err)
{
	struct stat stat;

	if (fstat(fd, &stat) < 0) {
		int code = errno;

		return error_set(err, -code, "key file %.100s: %s", path, strerror(code));
	}
	if (!S_ISREG(stat.st_mode)) {
		return error_set(err, -EPERM, "key file %.100s is no regular file", path);
	}
	if (stat.st_uid != geteuid() && stat.st_uid != 0) {
		return error_set(err, -EPERM,
			"key file %.100s belongs to uid %u: it must be this user's (%u) or root's",
			path, (unsigned)stat.st_uid, (unsigned)geteuid());
	}
	if (stat.st_mode & (S_IRWXG | S_IRWXO)) {
		return error_set(err, -EPERM,
			"key file %.100s has mode %04o, which lets others in: chmod 600 it", path,
			(unsigned)stat.st_mode & 07777u);
	}
	return 0;
}

/* Up to `most` bytes: a read may be short. */
static ssize_t read_all(int fd, uint8_t *to, size_t most)
{
	size_t at = 0;

	while (at < most) {
		ssize_t n = read(fd, to + at, most - at);

		if (n == 0) {
			break;
		}
		if (n < 0 && errno != EINTR) {
			return -errno;
		}
		at += n > 0 ? (size_t)n : 0;
	}
	return (ssize_t)at;
}

int key_file_read(const char *path, struct seal_key *ret_key, struct error *err)
{
	uint8_t bytes[SEAL_FILE_BYTES_MAX + 1];
	int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY), rc;
	ssize_t n;

	if (fd < 0) {
		rc = -errno;
		return error_set(err, rc, "key file %.100s: %s", path, strerror(-rc));
	}
	rc = check_file(fd, path, err);
	if (rc) {
		fd_close(&fd);
		return rc;
	}
	n = read_all(fd, bytes, sizeof(bytes));
	fd_close(&fd);
	if (n < 0) {
		rc = error_set(err, (int)n, "key file %.100s: %s", path, strerror((int)-n));
	} else if (n < (ssize_t)SEAL_FILE_BYTES_MIN || n > (ssize_t)SEAL_FILE_BYTES_MAX) {
		rc = error_set(err, -EINVAL,
			"key file %.100s has %s %u bytes: %u to %u random bytes are wanted", path,
			n < (ssize_t)SEAL_FILE_BYTES_MIN ? "fewer than" : "more than",
			n < (ssize_t)SEAL_FILE_BYTES_MIN ? SEAL_FILE_BYTES_MIN
							 : SEAL_FILE_BYTES_MAX,
			SEAL_FILE_BYTES_MIN, SEAL_FILE_BYTES_MAX);
	} else {
		rc = seal_key_make(bytes, (size_t)n, ret_key);
		if (rc) {
			error_set(err, rc, "libsodium does not start");
		}
	}
	sodium_memzero(bytes, sizeof(bytes));
	return rc;
}
