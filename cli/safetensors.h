/*
 * A strict reader of safetensors files: 8 bytes of header length, a JSON header,
 * the tensors' bytes. Nothing of the header is believed before it was checked
 * against the file: every tensor lies inside, none overlap, and no byte is left
 * over. Reads headers only; the data is the caller's to read from the file.
 */
#ifndef CLI_SAFETENSORS_H
#define CLI_SAFETENSORS_H

#include "plan/tensor.h"

#define SAFETENSORS_HEADER_MAX (100u * 1000u * 1000u) /* the format's own limit */

struct safetensors_tensor {
	struct tensor tensor; /* its name is owned by the safetensors */
	uint64_t offset;      /* of its first byte, from data_offset */
	uint64_t bytes;	      /* 0: a tensor with an empty dimension */
};

struct safetensors {
	int fd;
	uint64_t data_offset; /* in the file */
	uint64_t data_bytes;
	struct safetensors_tensor *tensors; /* in the order of their data */
	size_t ntensors;
	void *header; /* JSON; owns the names */
};

/*
 * Opens and checks a file. -ENOENT and others from open(2), -EINVAL: it breaks the format,
 * -E2BIG: a limit. The sentence names the file, and the tensor if it is one's fault.
 */
int safetensors_open(const char *path, struct safetensors *ret_file, struct error *err);
void safetensors_close(struct safetensors *file);

/* Puts the end of `path` before the sentence and makes all of it fit for a terminal. Returns
 * err->code. */
int safetensors_blame(struct error *err, const char *path);

#endif
