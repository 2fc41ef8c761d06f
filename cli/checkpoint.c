#include "cli/checkpoint.h"
#include "base/util.h"
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define INDEX_NAME "model.safetensors.index.json"
#define INDEX_END ".index.json"
#define SINGLE_NAME "model.safetensors"
#define SAID_BYTES 80 /* of a name in a sentence */

/* An index file while it is compared with its shards. */
struct index_file {
	json_t *json;
	json_t *weight_map; /* borrowed from json: tensor -> shard */
	json_t *shards;	    /* shard -> its number in the checkpoint */
};

static bool ends_with(const char *text, const char *end)
{
	size_t n = strlen(text), m = strlen(end);

	return n >= m && strcmp(text + n - m, end) == 0;
}

static char *join_path(const char *directory, const char *name)
{
	size_t n = strlen(directory);
	char *path;

	if (asprintf(&path, "%s%s%s", directory, n && directory[n - 1] == '/' ? "" : "/", name) <
		0) {
		return NULL;
	}
	return path;
}

/* Adds a shard of that path, which is taken. */
static int add_shard(struct checkpoint *checkpoint, char *path, struct error *err)
{
	struct shard *shard = &checkpoint->shards[checkpoint->nshards];
	int rc;

	if (!path) {
		return error_set(err, -ENOMEM, "no memory for a path");
	}
	*shard = (struct shard){.path = path, .file = {.fd = -1}};
	checkpoint->nshards++;
	rc = safetensors_open(path, &shard->file, err);
	if (rc) {
		return rc;
	}
	shard->bytes = shard->file.data_offset + shard->file.data_bytes;
	shard->place = checkpoint->image_bytes;
	checkpoint->ntensors += shard->file.ntensors;
	checkpoint->data_bytes += shard->file.data_bytes;
	checkpoint->file_bytes += shard->bytes;
	if (add_overflows(checkpoint->image_bytes, align_up(shard->bytes, CHECKPOINT_ALIGN),
		    &checkpoint->image_bytes)) {
		return error_set(
			err, -E2BIG, "%s: the shards have more bytes than 64 bits count", path);
	}
	if (checkpoint->ntensors > LIMIT_TENSORS) {
		error_set(err, -E2BIG, "with its tensors there are %zu; at most %u are allowed",
			checkpoint->ntensors, LIMIT_TENSORS);
		return safetensors_blame(err, path);
	}
	return 0;
}

static int open_single(struct checkpoint *checkpoint, char *path, struct error *err)
{
	checkpoint->shards = calloc(1, sizeof(*checkpoint->shards));
	if (!checkpoint->shards) {
		free(path);
		return error_set(err, -ENOMEM, "no memory for a shard");
	}
	return add_shard(checkpoint, path, err);
}

static int read_whole(int fd, char *text, size_t len_bytes, struct error *err)
{
	size_t done = 0;

	while (done < len_bytes) {
		ssize_t n = read(fd, text + done, len_bytes - done);

		if (n < 0 && errno == EINTR) {
			continue;
		}
		if (n <= 0) {
			return error_set(err, n < 0 ? -errno : -EINVAL, "reading failed: %s",
				n < 0 ? strerror(errno) : "it became shorter");
		}
		done += (size_t)n;
	}
	return 0;
}

static int load_json(int fd, json_t **ret_json, struct error *err)
{
	struct stat status;
	json_error_t why;
	char *text;
	int rc;

	if (fstat(fd, &status) < 0 || !S_ISREG(status.st_mode)) {
		return error_set(err, -EINVAL, "not a regular file");
	}
	if (status.st_size > SAFETENSORS_HEADER_MAX) {
		return error_set(err, -E2BIG, "%" PRId64 " bytes long; at most %u are allowed",
			(int64_t)status.st_size, SAFETENSORS_HEADER_MAX);
	}
	text = malloc((size_t)status.st_size + 1);
	if (!text) {
		return error_set(err, -ENOMEM, "no memory for it");
	}
	rc = read_whole(fd, text, (size_t)status.st_size, err);
	if (!rc) {
		*ret_json = json_loadb(text, (size_t)status.st_size, JSON_REJECT_DUPLICATES, &why);
		if (!*ret_json) {
			/* A tensor that is there twice is said here, with its name. */
			rc = error_set(err, -EINVAL, "not valid JSON: %.120s (line %d)", why.text,
				why.line);
		}
	}
	free(text);
	return rc;
}

static int check_entry(const char *tensor, const json_t *value, struct error *err)
{
	const char *shard = json_string_value(value);

	if (!shard) {
		return error_set(err, -EINVAL, "tensor \"%.*s\": its shard is not a string",
			SAID_BYTES, tensor);
	}
	/* A checkpoint reads nothing outside its directory, whatever its index says. */
	if (!*shard || strpbrk(shard, "/\\") || strcmp(shard, ".") == 0 ||
		strcmp(shard, "..") == 0) {
		return error_set(err, -EINVAL,
			"tensor \"%.*s\": the shard \"%.*s\" is not the plain name of a file",
			SAID_BYTES, tensor, SAID_BYTES, shard);
	}
	return 0;
}

/* The index's shards, each once, into index->shards. */
static int read_index(struct index_file *index, struct error *err)
{
	const char *tensor;
	json_t *value;
	int rc = 0;

	index->weight_map = json_object_get(index->json, "weight_map");
	if (!json_is_object(index->weight_map)) {
		return error_set(
			err, -EINVAL, "no \"weight_map\" that says which shard has which tensor");
	}
	if (!json_object_size(index->weight_map)) {
		return error_set(err, -EINVAL, "its \"weight_map\" names no tensor");
	}
	index->shards = json_object();
	json_object_foreach(index->weight_map, tensor, value)
	{
		rc = check_entry(tensor, value, err);
		if (!rc && json_object_set_new(
				   index->shards, json_string_value(value), json_integer(0))) {
			rc = error_set(err, -ENOMEM, "no memory for the list of shards");
		}
		if (rc) {
			return rc;
		}
	}
	if (json_object_size(index->shards) > LIMIT_SHARDS) {
		rc = error_set(err, -E2BIG, "%zu shards; at most %u are allowed",
			json_object_size(index->shards), LIMIT_SHARDS);
	}
	return rc;
}

static int by_text(const void *left, const void *right)
{
	return strcmp(*(const char *const *)left, *(const char *const *)right);
}

static int open_shards(struct checkpoint *checkpoint, const struct index_file *index,
	const char *directory, struct error *err)
{
	size_t n = json_object_size(index->shards), i = 0;
	const char **names = calloc(n, sizeof(*names));
	const char *name;
	json_t *value;
	int rc = 0;

	checkpoint->shards = calloc(n, sizeof(*checkpoint->shards));
	if (!names || !checkpoint->shards) {
		free(names);
		return error_set(err, -ENOMEM, "no memory for %zu shards", n);
	}
	json_object_foreach(index->shards, name, value)
	{
		names[i++] = name;
	}
	qsort(names, n, sizeof(*names), by_text);
	for (i = 0; i < n && !rc; i++) {
		json_integer_set(json_object_get(index->shards, names[i]), (json_int_t)i);
		rc = add_shard(checkpoint, join_path(directory, names[i]), err);
	}
	free(names);
	return rc;
}

static bool has_tensor(const struct shard *shard, const char *tensor)
{
	return strcmp(tensor, "__metadata__") != 0 && json_object_get(shard->file.header, tensor);
}

static const char *base_name(const struct shard *shard)
{
	const char *slash = strrchr(shard->path, '/');

	return slash ? slash + 1 : shard->path;
}

/* What the index says is in the shards. */
static int check_named(
	const struct checkpoint *checkpoint, const struct index_file *index, struct error *err)
{
	const char *tensor;
	json_t *value;

	json_object_foreach(index->weight_map, tensor, value)
	{
		const char *name = json_string_value(value);
		size_t said = (size_t)json_integer_value(json_object_get(index->shards, name));

		if (has_tensor(&checkpoint->shards[said], tensor)) {
			continue;
		}
		for (size_t i = 0; i < checkpoint->nshards; i++) {
			if (has_tensor(&checkpoint->shards[i], tensor)) {
				return error_set(err, -EINVAL,
					"tensor \"%.*s\" is in %.*s, the index says in %.*s",
					SAID_BYTES, tensor, SAID_BYTES / 2,
					base_name(&checkpoint->shards[i]), SAID_BYTES / 2, name);
			}
		}
		return error_set(err, -EINVAL, "tensor \"%.*s\" is missing: the index says in %.*s",
			SAID_BYTES, tensor, SAID_BYTES / 2, name);
	}
	return 0;
}

/* What is in the shards the index says, so that no tensor is there twice. */
static int check_held(
	const struct checkpoint *checkpoint, const struct index_file *index, struct error *err)
{
	for (size_t i = 0; i < checkpoint->nshards; i++) {
		const struct shard *shard = &checkpoint->shards[i];

		for (size_t k = 0; k < shard->file.ntensors; k++) {
			const char *tensor = shard->file.tensors[k].tensor.name;
			const char *said =
				json_string_value(json_object_get(index->weight_map, tensor));

			if (!said) {
				return error_set(err, -EINVAL,
					"tensor \"%.*s\" of %.*s is not named in the index",
					SAID_BYTES, tensor, SAID_BYTES / 2, base_name(shard));
			}
			if (strcmp(said, base_name(shard)) != 0) {
				return error_set(err, -EINVAL,
					"tensor \"%.*s\" is there twice, in %.*s and in %.*s",
					SAID_BYTES, tensor, SAID_BYTES / 2, said, SAID_BYTES / 2,
					base_name(shard));
			}
		}
	}
	return 0;
}

static int open_index(
	struct checkpoint *checkpoint, const char *directory, const char *path, struct error *err)
{
	struct index_file index = {0};
	int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK), rc;

	if (fd < 0) {
		error_set(err, -errno, "cannot be opened: %s", strerror(errno));
		return safetensors_blame(err, path);
	}
	rc = load_json(fd, &index.json, err);
	fd_close(&fd);
	if (!rc) {
		rc = read_index(&index, err);
	}
	if (rc) {
		safetensors_blame(err, path);
		goto free_json;
	}
	rc = open_shards(checkpoint, &index, directory, err); /* blames the shard */
	if (rc) {
		goto free_json;
	}
	rc = check_named(checkpoint, &index, err);
	if (!rc) {
		rc = check_held(checkpoint, &index, err);
	}
	if (rc) {
		safetensors_blame(err, path);
	}
free_json:
	json_decref(index.shards);
	json_decref(index.json);
	return rc;
}

/* Says what is wanted of a directory that has neither an index nor the one file. */
static int refuse_directory(const char *path, struct error *err)
{
	DIR *directory = opendir(path);
	const struct dirent *entry;
	size_t n = 0;

	if (!directory) {
		error_set(err, -errno, "cannot be opened: %s", strerror(errno));
		return safetensors_blame(err, path);
	}
	while ((entry = readdir(directory))) {
		n += ends_with(entry->d_name, ".safetensors");
	}
	closedir(directory);
	if (n) {
		error_set(err, -EINVAL,
			"%zu .safetensors file%s and no " INDEX_NAME
			" that says which belong together; add it, or push a file by its name",
			n, n == 1 ? "" : "s");
	} else {
		error_set(err, -ENOENT, "neither " INDEX_NAME " nor " SINGLE_NAME " is in it");
	}
	return safetensors_blame(err, path);
}

static int open_directory(struct checkpoint *checkpoint, const char *path, struct error *err)
{
	char *index = join_path(path, INDEX_NAME), *single = join_path(path, SINGLE_NAME);
	bool has_index, has_single;
	int rc;

	if (!index || !single) {
		rc = error_set(err, -ENOMEM, "no memory for a path");
		goto free_paths;
	}
	/* A link that leads nowhere counts: its sentence is better than "neither". */
	has_index = faccessat(AT_FDCWD, index, F_OK, AT_SYMLINK_NOFOLLOW) == 0;
	has_single = faccessat(AT_FDCWD, single, F_OK, AT_SYMLINK_NOFOLLOW) == 0;
	if (has_index && has_single) {
		error_set(err, -EINVAL,
			"both " INDEX_NAME " and " SINGLE_NAME
			" are in it; push the one that is meant by its name");
		rc = safetensors_blame(err, path);
	} else if (has_index) {
		rc = open_index(checkpoint, path, index, err);
	} else if (has_single) {
		rc = open_single(checkpoint, single, err);
		single = NULL;
	} else {
		rc = refuse_directory(path, err);
	}
free_paths:
	free(index);
	free(single);
	return rc;
}

int checkpoint_open(const char *path, struct checkpoint *ret_checkpoint, struct error *err)
{
	struct checkpoint checkpoint = {0};
	struct error local = {0};
	struct stat status;
	int rc;

	err = err ? err : &local;
	if (stat(path, &status) == 0 && S_ISDIR(status.st_mode)) {
		rc = open_directory(&checkpoint, path, err);
	} else if (ends_with(path, INDEX_END)) {
		const char *slash = strrchr(path, '/');
		char *directory = slash ? strndup(path, (size_t)(slash - path) + 1) : strdup(".");

		rc = directory ? open_index(&checkpoint, directory, path, err)
			       : error_set(err, -ENOMEM, "no memory for a path");
		free(directory);
	} else {
		rc = open_single(&checkpoint, strdup(path), err);
	}
	if (!rc && !checkpoint.data_bytes) {
		error_set(err, -EINVAL, "it has no data");
		rc = safetensors_blame(err, path);
	}
	if (rc) {
		checkpoint_close(&checkpoint);
		return rc;
	}
	*ret_checkpoint = checkpoint;
	return 0;
}

void checkpoint_close(struct checkpoint *checkpoint)
{
	for (size_t i = 0; i < checkpoint->nshards; i++) {
		safetensors_close(&checkpoint->shards[i].file);
		free(checkpoint->shards[i].path);
	}
	free(checkpoint->shards);
	*checkpoint = (struct checkpoint){0};
}
