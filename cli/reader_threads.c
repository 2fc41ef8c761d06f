/*
 * Where there is no ring: a few threads, each with one pread(2) at a time. The pages of the
 * destination are made within the reads, by as many threads.
 */
#include "cli/reader_internal.h"
#include <errno.h>
#include <unistd.h>

static void *read_blocks(void *arg)
{
	struct reader *reader = arg;
	struct reader_block block;

	while (reader_next(reader, READER_PREAD_BYTES, &block)) {
		int done = 0;

		while (done == 0 && !reader_stopped(reader)) {
			bool direct = reader_is_direct(reader, block.file);
			ssize_t n = pread(reader->files[block.file].fd, reader_to(reader, &block),
				reader_request(&block, direct), (off_t)block.offset);

			done = reader_look(reader, &block, direct, n < 0 ? -errno : n);
		}
	}
	return NULL;
}

void reader_run_threads(struct reader *reader)
{
	pthread_t threads[READER_PREAD_THREADS - 1]; /* and this one */
	unsigned n = 0;

	while (n < READER_PREAD_THREADS - 1 &&
		pthread_create(&threads[n], NULL, read_blocks, reader) == 0) {
		n++;
	}
	read_blocks(reader);
	while (n > 0) {
		pthread_join(threads[--n], NULL);
	}
}
