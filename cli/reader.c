/* The life of a reader, the choice of a way, and what both ways do with a request's result. */
#include "base/clock.h"
#include "base/util.h"
#include "cli/reader_internal.h"
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/magic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/vfs.h>

#define SAID_PATH_BYTES 80

static const char *path_end(const struct reader *reader, uint32_t file)
{
	const char *path = reader->files[file].path;
	size_t n = strlen(path);

	return n > SAID_PATH_BYTES ? path + n - SAID_PATH_BYTES : path;
}

bool reader_is_direct(const struct reader *reader, uint32_t file)
{
	return __atomic_load_n(&reader->states[file].direct, __ATOMIC_ACQUIRE);
}

void reader_fall_back(struct reader *reader, const char *format, ...)
{
	va_list args;

	pthread_mutex_lock(&reader->lock);
	if (!reader->fallback[0]) {
		va_start(args, format);
		vsnprintf(reader->fallback, sizeof(reader->fallback), format, args);
		va_end(args);
	}
	pthread_mutex_unlock(&reader->lock);
}

/* Whoever finds the file plain may read at any place: so it is plain before that is said. */
void reader_make_plain(struct reader *reader, uint32_t file, const char *why)
{
	int fd = reader->files[file].fd;
	bool was_direct;

	pthread_mutex_lock(&reader->lock);
	was_direct = reader->states[file].direct;
	if (was_direct) {
		(void)fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) & ~O_DIRECT);
		(void)posix_fadvise(fd, 0, 0, POSIX_FADV_SEQUENTIAL);
		__atomic_store_n(&reader->states[file].direct, false, __ATOMIC_RELEASE);
	}
	pthread_mutex_unlock(&reader->lock);
	if (was_direct) {
		reader_fall_back(reader, "%s: %s", path_end(reader, file), why);
	}
}

/* Switches O_DIRECT on where it means something. */
static void prepare_file(struct reader *reader, uint32_t file)
{
	int fd = reader->files[file].fd;
	struct statfs system;
	int flags = fcntl(fd, F_GETFL);

	reader->states[file].direct = true;
	if (fstatfs(fd, &system) == 0 &&
		(system.f_type == TMPFS_MAGIC || system.f_type == RAMFS_MAGIC)) {
		/* Newer kernels accept the flag here, and then read through the page cache. */
		reader_make_plain(reader, file, "its file system is in memory");
	} else if (flags < 0 || fcntl(fd, F_SETFL, flags | O_DIRECT) < 0) {
		reader_make_plain(reader, file, "its file system refuses O_DIRECT");
	}
}

bool reader_next(struct reader *reader, uint64_t max_bytes, struct reader_block *ret_block)
{
	bool found = false;

	pthread_mutex_lock(&reader->lock);
	while (reader->file < reader->nfiles &&
		reader->offset == reader->files[reader->file].bytes) {
		reader->file++;
		reader->offset = 0;
	}
	if (!reader->stop && reader->file < reader->nfiles) {
		const struct reader_file *file = &reader->files[reader->file];
		uint64_t at = (uint64_t)(file->to - reader->options.memory) + reader->offset;

		ret_block->file = reader->file;
		ret_block->offset = reader->offset;
		ret_block->bytes = MIN(max_bytes - at % max_bytes, file->bytes - reader->offset);
		reader->offset += ret_block->bytes;
		found = true;
	}
	pthread_mutex_unlock(&reader->lock);
	return found;
}

unsigned char *reader_to(const struct reader *reader, const struct reader_block *block)
{
	return reader->files[block->file].to + block->offset;
}

uint64_t reader_request(const struct reader_block *block, bool direct)
{
	return direct ? align_up(block->bytes, READER_ALIGN) : block->bytes;
}

bool reader_stopped(struct reader *reader)
{
	bool stop;

	pthread_mutex_lock(&reader->lock);
	stop = reader->stop;
	pthread_mutex_unlock(&reader->lock);
	return stop;
}

void reader_fail(struct reader *reader, int64_t file, int code, const char *what)
{
	pthread_mutex_lock(&reader->lock);
	if (!reader->err.code && file >= 0) {
		error_set(&reader->err, code, "%s: %s", path_end(reader, (uint32_t)file), what);
	} else if (!reader->err.code) {
		error_set(&reader->err, code, "%s", what);
	}
	reader->stop = true;
	pthread_mutex_unlock(&reader->lock);
}

static void count(struct reader *reader, uint64_t bytes, bool direct)
{
	pthread_mutex_lock(&reader->lock);
	reader->done_bytes += bytes;
	reader->direct_bytes += direct ? bytes : 0;
	if (reader->options.progress) {
		reader->options.progress(reader->options.arg, reader->done_bytes);
	}
	pthread_mutex_unlock(&reader->lock);
}

int reader_look(struct reader *reader, struct reader_block *block, bool direct, int64_t got)
{
	char text[96];

	if (got == -EINTR || got == -EAGAIN) {
		return 0;
	}
	if (direct && (got == -EINVAL || got == -EOPNOTSUPP)) {
		reader_make_plain(reader, block->file, "its file system refuses O_DIRECT");
		return 0;
	}
	if (got < 0) {
		snprintf(text, sizeof(text), "reading failed: %s", strerrordesc_np((int)-got));
		reader_fail(reader, block->file, (int)got, text);
		return (int)got;
	}
	if (got == 0) {
		reader_fail(
			reader, block->file, -EINVAL, "the file became shorter while it was read");
		return -EINVAL;
	}
	got = (int64_t)MIN((uint64_t)got, block->bytes);
	count(reader, (uint64_t)got, direct);
	block->offset += (uint64_t)got;
	block->bytes -= (uint64_t)got;
	if (!block->bytes) {
		return 1;
	}
	if (direct && block->offset % READER_ALIGN) {
		/* O_DIRECT cannot go on from here. */
		reader_make_plain(reader, block->file, "a read ended at an odd place");
	}
	return 0;
}

/* A file that was written to meanwhile may be of two versions. */
static void check_unchanged(struct reader *reader)
{
	for (uint32_t i = 0; i < reader->nfiles && !reader_stopped(reader); i++) {
		const struct timespec *before = &reader->states[i].written;
		struct stat status;

		if (fstat(reader->files[i].fd, &status) < 0 ||
			(uint64_t)status.st_size != reader->files[i].bytes ||
			status.st_mtim.tv_sec != before->tv_sec ||
			status.st_mtim.tv_nsec != before->tv_nsec) {
			reader_fail(
				reader, i, -EINVAL, "the file was written to while it was read");
		}
	}
}

static void *run(void *arg)
{
	struct reader *reader = arg;
	bool any_direct = false;
	int rc = -ENOSYS;

	for (uint32_t i = 0; i < reader->nfiles; i++) {
		any_direct |= reader_is_direct(reader, i);
	}
	if (reader->options.no_uring) {
		reader_fall_back(reader, "no io_uring, as was asked");
	} else if (any_direct) {
		rc = reader_run_uring(reader);
		if (rc) {
			reader_fall_back(
				reader, "io_uring cannot be had: %s", strerrordesc_np(-rc));
		}
	}
	if (rc) {
		reader_run_threads(reader);
	}
	check_unchanged(reader);
	reader->ended_ns = clock_ns();
	return NULL;
}

int reader_start(const struct reader_options *options, const struct reader_file *files,
	size_t nfiles, struct reader **ret_reader, struct error *err)
{
	struct reader *reader = calloc(1, sizeof(*reader));
	struct reader_state *states = calloc(nfiles + 1, sizeof(*states));
	int rc;

	if (!reader || !states) {
		rc = error_set(err, -ENOMEM, "no memory for %zu files", nfiles);
		goto free_all;
	}
	reader->options = *options;
	reader->files = files;
	reader->states = states;
	reader->nfiles = nfiles;
	reader->started_ns = clock_ns();
	pthread_mutex_init(&reader->lock, NULL);
	for (uint32_t i = 0; i < nfiles; i++) {
		struct stat status;

		if (fstat(files[i].fd, &status) < 0) {
			rc = error_set(err, -errno, "%s: fstat failed: %s", path_end(reader, i),
				strerror(errno));
			goto destroy_lock;
		}
		states[i].written = status.st_mtim;
		prepare_file(reader, i);
	}
	rc = -pthread_create(&reader->thread, NULL, run, reader);
	if (rc) {
		error_set(err, rc, "a thread for reading: %s", strerrordesc_np(-rc));
		goto destroy_lock;
	}
	*ret_reader = reader;
	return 0;

destroy_lock:
	pthread_mutex_destroy(&reader->lock);
free_all:
	free(states);
	free(reader);
	return rc;
}

void reader_cancel(struct reader *reader)
{
	reader_fail(reader, -1, -ECANCELED, "reading was given up");
}

static void describe(const struct reader *reader, struct reader_result *result)
{
	const char *kind = reader->direct_bytes == reader->done_bytes ? "direct"
			   : reader->direct_bytes		      ? "partly direct"
								      : "buffered";

	result->bytes = reader->done_bytes;
	result->direct_bytes = reader->direct_bytes;
	result->seconds = (double)(reader->ended_ns - reader->started_ns) * 1e-9;
	snprintf(result->how, sizeof(result->how), "%s%s%s", kind, reader->fallback[0] ? ": " : "",
		reader->fallback);
}

int reader_finish(struct reader *reader, struct reader_result *ret_result, struct error *err)
{
	int rc;

	if (!reader) {
		return 0;
	}
	pthread_join(reader->thread, NULL);
	rc = reader->err.code;
	if (rc) {
		error_set(err, rc, "%s", reader->err.text);
	} else {
		describe(reader, ret_result);
	}
	pthread_mutex_destroy(&reader->lock);
	free(reader->states);
	free(reader);
	return rc;
}
