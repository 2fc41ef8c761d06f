/*
 * Reads whole files into memory at the disk's rate: io_uring, O_DIRECT, buffers that are
 * registered a window at a time, many requests in flight, and threads that make the
 * pages of the destination just ahead of them. Where the kernel or the file system refuses one
 * of these the next best is taken and said. Runs in threads of its own while the
 * caller does something else; knows nothing of what the files are.
 */
#ifndef CLI_READER_H
#define CLI_READER_H

#include "base/error.h"
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define READER_ALIGN 4096u /* of destinations, offsets and lengths of direct reads */

/*
 * The whole of a file goes to `to`, which is on READER_ALIGN and has room up to the next
 * multiple of it (bytes behind the file's end are undefined). fd is borrowed; its file status
 * flags change.
 */
struct reader_file {
	int fd;
	const char *path; /* for sentences */
	uint64_t bytes;
	unsigned char *to;
};

struct reader_options {
	/* The files' destinations lie in [memory, memory + memory_bytes), which starts on a page.
	 */
	unsigned char *memory;
	uint64_t memory_bytes;
	bool no_uring; /* threads with pread(2), as where io_uring is forbidden */
	/* Called by one of the reading threads at a time; NULL: nobody is told. */
	void (*progress)(void *arg, uint64_t done_bytes);
	void *arg;
};

struct reader_result {
	uint64_t bytes;
	uint64_t direct_bytes; /* of them, past the page cache */
	double seconds;
	char how[160]; /* "direct", or what came instead and why */
};

struct reader;

/* Starts to read; files and their paths are borrowed until the end. -ENOMEM, -EAGAIN. */
int reader_start(const struct reader_options *options, const struct reader_file *files,
	size_t nfiles, struct reader **ret_reader, struct error *err);

/* Lets no further read begin; reader_finish() then returns soon, with -ECANCELED. */
void reader_cancel(struct reader *reader);

/*
 * Waits until nothing is read any more, and frees. 0: every byte is there. Otherwise what went
 * wrong first, with the file's name: -EIO and others of read(2), -EINVAL for a file that
 * became shorter, -ENOMEM for a destination without pages. NULL is fine.
 */
int reader_finish(struct reader *reader, struct reader_result *ret_result, struct error *err);

#endif
