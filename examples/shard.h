/*
 * One rank's parameters in memory: allocated with guards around each, compared
 * byte for byte with what a version should have left there, and written to a
 * file for an independent reader. Nothing here knows strew.
 */
#ifndef EXAMPLES_SHARD_H
#define EXAMPLES_SHARD_H

#include "examples/memory.h"
#include "examples/model.h"

struct shard {
	const struct model *model; /* borrowed */
	uint32_t rank;
	struct memory *memory;
	unsigned char **data; /* of each parameter */
	uint64_t bytes;	      /* of all of them */
};

/* device: as of memory_create(). */
void shard_init(struct shard *shard, const struct model *model, uint32_t rank, int device);
void shard_finish(struct shard *shard);

/* Bytes that differ from that version of values.h, in parameters and guards. */
uint64_t shard_check(const struct shard *shard, uint64_t version, uint64_t seed, const char *only);

/* All parameters one after the other into `path`, their places into `path`.json. 0 or -1. */
int shard_dump(const struct shard *shard, uint64_t version, const char *path);

#endif
