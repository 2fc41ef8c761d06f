/*
 * A checkpoint on disk: one safetensors file, or a directory as Hugging Face writes it, with
 * one model.safetensors or with model.safetensors.index.json and the shards that it
 * names. Index and shards are checked against each other, tensor by tensor; only files that
 * the index names are opened. Reads headers only: the tensors are cli/reader.h's to read.
 */
#ifndef CLI_CHECKPOINT_H
#define CLI_CHECKPOINT_H

#include "cli/safetensors.h"

#define CHECKPOINT_ALIGN 4096u /* of each shard's image in memory, as O_DIRECT wants it */

struct shard {
	char *path;
	struct safetensors file;
	uint64_t bytes; /* of the whole file, header included */
	uint64_t place; /* of its image in the checkpoint's; a multiple of CHECKPOINT_ALIGN */
};

struct checkpoint {
	struct shard *shards; /* by name */
	size_t nshards;
	size_t ntensors;
	uint64_t data_bytes;  /* of all tensors */
	uint64_t file_bytes;  /* of all shards, headers included */
	uint64_t image_bytes; /* of all shards' images side by side */
};

/*
 * Opens and checks all of it. `path` is a file, an index file (*.index.json) or a directory.
 * Errors as safetensors_open(); the sentence names the file, and the tensor if it is one's fault.
 */
int checkpoint_open(const char *path, struct checkpoint *ret_checkpoint, struct error *err);
void checkpoint_close(struct checkpoint *checkpoint);

#endif
