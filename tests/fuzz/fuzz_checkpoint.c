/*
 * Checkpoints: one safetensors file, or an index and its shards, in a directory that lives as
 * long as the process. The first byte says which; a file is the input's bytes as they are, or a
 * header of theirs with the right length before it and some (empty) data behind it. What is taken
 * must lie inside its file, without a gap.
 */
#include "base/util.h"
#include "cli/checkpoint.h"
#include "fuzz/fuzz.h"
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define SHARDS 3u

static char directory[PATH_MAX];
static const char *const names[] = {
	"model.safetensors.index.json", "model.safetensors", "a", "b", "c"};

static void path_of(char *path, const char *name)
{
	snprintf(path, PATH_MAX, "%.4000s/%s", directory, name);
}

static void remove_all(void)
{
	char path[PATH_MAX];

	for (size_t i = 0; i < ARRAY_LEN(names); i++) {
		path_of(path, names[i]);
		unlink(path);
	}
	rmdir(directory);
}

static void make_directory(void)
{
	bool memory = access("/dev/shm", W_OK) == 0;

	snprintf(
		directory, sizeof(directory), "%s/strew-fuzz-XXXXXX", memory ? "/dev/shm" : "/tmp");
	CLAIM(mkdtemp(directory));
	atexit(remove_all);
}

static void write_file(const char *name, const uint8_t *head, size_t nhead, const uint8_t *bytes,
	size_t n, size_t hole)
{
	char path[PATH_MAX];
	int fd;

	path_of(path, name);
	fd = open(path, O_CREAT | O_TRUNC | O_WRONLY | O_CLOEXEC, 0600);
	CLAIM(fd >= 0);
	CLAIM(write(fd, head, nhead) == (ssize_t)nhead);
	CLAIM(write(fd, bytes, n) == (ssize_t)n);
	CLAIM(ftruncate(fd, (off_t)(nhead + n + hole)) == 0);
	close(fd);
}

/* A header of the input's bytes, and as much data as the two bytes before it say. */
static void write_shard(const char *name, struct input *input, bool all)
{
	size_t hole = input_u16(input), n = input->left;
	const uint8_t *bytes = input->at;
	uint8_t head[8] = {0};

	if (!all) {
		bytes = input_bytes(input, UINT16_MAX, &n);
	}
	for (unsigned i = 0; i < 4; i++) {
		head[i] = (uint8_t)(n >> 8 * i);
	}
	write_file(name, head, sizeof(head), bytes, n, hole);
}

static void check_file(const struct safetensors *file)
{
	uint64_t end = 0;

	for (size_t i = 0; i < file->ntensors; i++) {
		const struct safetensors_tensor *tensor = &file->tensors[i];
		uint64_t count = strew_dtype_size(tensor->tensor.dtype);

		CLAIM(tensor->tensor.name[0]);
		CLAIM(tensor->tensor.ndim >= 0 && tensor->tensor.ndim <= STREW_MAX_DIMS);
		for (int k = 0; k < tensor->tensor.ndim; k++) {
			count *= tensor->tensor.shape[k];
		}
		CLAIM(tensor->offset == end && tensor->bytes == count);
		end += tensor->bytes;
	}
	CLAIM(end == file->data_bytes);
}

static void check_checkpoint(const struct checkpoint *checkpoint)
{
	uint64_t bytes = 0;
	size_t n = 0;

	for (size_t i = 0; i < checkpoint->nshards; i++) {
		check_file(&checkpoint->shards[i].file);
		CLAIM(checkpoint->shards[i].place % CHECKPOINT_ALIGN == 0);
		bytes += checkpoint->shards[i].file.data_bytes;
		n += checkpoint->shards[i].file.ntensors;
	}
	CLAIM(n == checkpoint->ntensors && bytes == checkpoint->data_bytes);
}

static void write_all(uint8_t how, struct input *input)
{
	const uint8_t *bytes;
	size_t n;

	if (how % 4 == 0) {
		write_file(names[1], NULL, 0, input->at, input->left, 0);
		return;
	}
	if (how % 4 == 1) {
		write_shard(names[1], input, true);
		return;
	}
	bytes = input_bytes(input, UINT16_MAX, &n);
	write_file(names[0], NULL, 0, bytes, n, 0);
	for (unsigned i = 0; i < SHARDS && input->left; i++) {
		write_shard(names[2 + i], input, false);
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct input input = {data, size};
	struct checkpoint checkpoint;
	struct safetensors file;
	struct error err = {0};
	char path[PATH_MAX];
	uint8_t how;
	int rc;

	if (!directory[0]) {
		make_directory();
	}
	for (size_t i = 0; i < ARRAY_LEN(names); i++) {
		path_of(path, names[i]);
		unlink(path);
	}
	how = input_byte(&input);
	write_all(how, &input);
	if (how % 4 < 2) {
		path_of(path, names[1]);
		rc = safetensors_open(path, &file, &err);
		if (rc == 0) {
			check_file(&file);
			safetensors_close(&file);
		}
	} else {
		rc = checkpoint_open(directory, &checkpoint, &err);
		if (rc == 0) {
			check_checkpoint(&checkpoint);
			checkpoint_close(&checkpoint);
		}
	}
	CLAIM(rc == 0 || (err.code == rc && err.text[0]));
	/* A sentence for a terminal has nothing in it that a terminal obeys. */
	for (const char *p = err.text; *p; p++) {
		CLAIM((unsigned char)*p >= ' ' && *p != 0x7f);
	}
	return 0;
}
