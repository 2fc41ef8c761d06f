/*
 * A checkpoint on disk for a bench: made as Hugging Face writes them, in shards with an index,
 * read as plainly as can be, past the page cache, and taken out of that cache. Failures end
 * the program with a sentence.
 */
#ifndef BENCH_DISK_H
#define BENCH_DISK_H

#include "bench/shapes.h"
#include <stdbool.h>

#define DISK_PATH_BYTES 512
#define DISK_THREADS 8 /* at most, of a reading */

struct disk_file {
	char path[DISK_PATH_BYTES];
	uint64_t bytes;
};

struct disk {
	char directory[DISK_PATH_BYTES];
	bool made; /* the directory too */
	struct disk_file *files;
	size_t nfiles;
	uint64_t bytes; /* of all shards, headers included */
};

/* Writes all tensors with the values of a seed, by several threads, down to the disk. The
 * directory is made, or is empty. */
void disk_make(struct disk *ret_disk, const char *directory, const struct shapes *shapes,
	uint64_t shard_bytes, uint64_t seed);
void disk_remove(struct disk *disk); /* fine to repeat */

/* The name of its file system's type, by number where it has none here. */
const char *disk_system(const struct disk *disk);

/* Takes every page out of the cache, and looks whether that was done. */
void disk_drop(const struct disk *disk);

/* Reads every byte once with O_DIRECT, in order, 16 MiB at a time by each thread; seconds. */
double disk_read(const struct disk *disk, unsigned nthreads);

#endif
