/*
 * What the reader's files share: reader.c has its life and the choice of a way, reader_uring.c
 * and reader_threads.c the two ways, reader_pages.c the pages of the destination.
 */
#ifndef CLI_READER_INTERNAL_H
#define CLI_READER_INTERNAL_H

#include "cli/reader.h"
#include <pthread.h>
#include <time.h>

/*
 * Measured on a virtual disk of 1 to 2 GB/s and by what NVMe drives want in flight: from 8 MiB
 * on more changes nothing, and blocks of less than 512 KiB only cost system calls.
 */
#define READER_BLOCK_BYTES (1u << 20)
#define READER_DEPTH 16u
#define READER_WINDOW_BYTES (16u << 20) /* registered at once; a multiple of a block */
#define READER_WINDOWS 4u		/* registered at a time */
#define READER_PAGE_THREADS 8u
#define READER_PREAD_THREADS 8u
#define READER_PREAD_BYTES (4u << 20)

/* A stretch of one file on its way. */
struct reader_block {
	uint32_t file;
	uint64_t offset; /* in the file */
	uint64_t bytes;	 /* that are wanted */
};

struct reader_state {
	struct timespec written; /* st_mtim before the reading */
	bool direct;		 /* atomic: O_DIRECT is on */
};

struct reader {
	struct reader_options options;
	const struct reader_file *files;
	struct reader_state *states; /* one a file */
	size_t nfiles;
	pthread_t thread;
	uint64_t started_ns, ended_ns;
	pthread_mutex_t lock; /* of what follows */
	uint32_t file;	      /* the next block's */
	uint64_t offset;
	uint64_t done_bytes, direct_bytes;
	bool stop;	    /* an error, or canceled */
	char fallback[128]; /* the first thing that was not as wanted, and why */
	struct error err;   /* the first */
};

/* The next block of at most `max_bytes`, cut so that it lies in one window. False: none, or stop.
 */
bool reader_next(struct reader *reader, uint64_t max_bytes, struct reader_block *ret_block);

/* The whole has failed; only the first sentence is kept. file < 0: no file's fault. */
void reader_fail(struct reader *reader, int64_t file, int code, const char *what);
bool reader_stopped(struct reader *reader);

/* Remembers what is not as wanted, for the user; only the first is kept. */
void reader_fall_back(struct reader *reader, const char *format, ...)
	__attribute__((format(printf, 2, 3)));

bool reader_is_direct(const struct reader *reader, uint32_t file);
/* From now on this file is read through the page cache. */
void reader_make_plain(struct reader *reader, uint32_t file, const char *why);

/* Where a block goes, and how long the request for it is (direct: up to the aligned end). */
unsigned char *reader_to(const struct reader *reader, const struct reader_block *block);
uint64_t reader_request(const struct reader_block *block, bool direct);

/*
 * What a request for a block gave, `got` bytes or a negative errno: 1 if the block is done, 0
 * if *block is what is left and to be asked for again, negative if the reader has failed.
 */
int reader_look(struct reader *reader, struct reader_block *block, bool direct, int64_t got);

/* The two ways: to the end, an error, or a stop. uring: -errno if there is no ring, nothing read.
 */
int reader_run_uring(struct reader *reader);
void reader_run_threads(struct reader *reader);

/*
 * Threads that touch the destination's pages in the order of the reading: zeroing them costs more
 * than a fast disk's reading does, and would else happen within the reads, one after
 * another. pages_wait(): until [0, end) is there; 0 or -ENOMEM, -ECANCELED after a stop.
 */
struct reader_pages;
int pages_start(unsigned char *memory, uint64_t len_bytes, struct reader_pages **ret_pages);
int pages_wait(struct reader_pages *pages, uint64_t end);
void pages_finish(struct reader_pages *pages); /* stops them; NULL is fine */

#endif
