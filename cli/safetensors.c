#include "cli/safetensors.h"
#include "base/util.h"
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define LENGTH_BYTES 8u
#define SAID_PATH_BYTES 80u /* of a path in a sentence, so that the reason fits too */
#define SAID_NAME_BYTES 80

static int fault(struct error *err, const char *name, const char *what)
{
	return error_set(err, -EINVAL, "tensor \"%.*s\": %s", SAID_NAME_BYTES, name, what);
}

static int read_all(int fd, void *buf, size_t len_bytes, uint64_t offset, struct error *err)
{
	unsigned char *p = buf;

	while (len_bytes) {
		ssize_t n = pread(fd, p, len_bytes, (off_t)offset);

		if (n < 0 && errno == EINTR) {
			continue;
		}
		if (n < 0) {
			return error_set(err, -errno, "reading failed: %s", strerror(errno));
		}
		if (n == 0) {
			return error_set(err, -EINVAL, "the file became shorter while it was read");
		}
		p += n;
		len_bytes -= (size_t)n;
		offset += (uint64_t)n;
	}
	return 0;
}

/* Length of the header, checked against the file. */
static int read_length(int fd, uint64_t file_bytes, uint64_t *ret_length, struct error *err)
{
	unsigned char raw[LENGTH_BYTES];
	uint64_t length = 0;
	int rc;

	if (file_bytes < LENGTH_BYTES) {
		return error_set(err, -EINVAL,
			"%" PRIu64 " bytes are too few for a safetensors file", file_bytes);
	}
	rc = read_all(fd, raw, sizeof(raw), 0, err);
	if (rc) {
		return rc;
	}
	for (unsigned i = 0; i < LENGTH_BYTES; i++) {
		length |= (uint64_t)raw[i] << (8 * i);
	}
	if (length > SAFETENSORS_HEADER_MAX) {
		return error_set(err, -E2BIG,
			"the header says that it is %" PRIu64 " bytes long; at most %u are allowed "
			"(is this a safetensors file?)",
			length, SAFETENSORS_HEADER_MAX);
	}
	if (length > file_bytes - LENGTH_BYTES) {
		return error_set(err, -EINVAL,
			"truncated: the header is %" PRIu64 " bytes long, the file only %" PRIu64,
			length, file_bytes);
	}
	*ret_length = length;
	return 0;
}

static int parse_header(int fd, uint64_t length, json_t **ret_header, struct error *err)
{
	char *text = malloc(length ? length : 1);
	json_error_t why;
	json_t *header;
	int rc;

	if (!text) {
		return error_set(
			err, -ENOMEM, "no memory for a header of %" PRIu64 " bytes", length);
	}
	rc = read_all(fd, text, length, LENGTH_BYTES, err);
	if (rc) {
		free(text);
		return rc;
	}
	header = json_loadb(text, length, JSON_REJECT_DUPLICATES, &why);
	free(text);
	if (!header) {
		return error_set(err, -EINVAL, "the header is not valid JSON: %.120s (byte %d)",
			why.text, why.position);
	}
	if (!json_is_object(header)) {
		json_decref(header);
		return error_set(err, -EINVAL, "the header is not a JSON object");
	}
	*ret_header = header;
	return 0;
}

static int parse_dtype(
	const char *name, const json_t *entry, struct tensor *tensor, struct error *err)
{
	const json_t *dtype = json_object_get(entry, "dtype");
	const char *text = json_string_value(dtype);

	if (!text) {
		return fault(err, name, "no dtype");
	}
	tensor->dtype = dtype_parse(text);
	/* strew's own lower-case names are not the format's. */
	if (tensor->dtype == STREW_DTYPE_INVALID || (*text >= 'a' && *text <= 'z')) {
		return error_set(err, -EINVAL, "tensor \"%.*s\": unknown dtype \"%.24s\"",
			SAID_NAME_BYTES, name, text);
	}
	return 0;
}

/* A JSON number that is a whole one, not negative, and not beyond JSON's 63 bits. */
static int parse_whole(const json_t *value, uint64_t *ret_value)
{
	if (!json_is_integer(value) || json_integer_value(value) < 0) {
		return -EINVAL;
	}
	*ret_value = (uint64_t)json_integer_value(value);
	return 0;
}

static int parse_shape(const char *name, const json_t *entry, struct tensor *tensor,
	uint64_t *ret_bytes, struct error *err)
{
	const json_t *shape = json_object_get(entry, "shape");
	uint64_t count;

	if (!json_is_array(shape)) {
		return fault(err, name, "no shape");
	}
	if (json_array_size(shape) > STREW_MAX_DIMS) {
		return error_set(err, -E2BIG,
			"tensor \"%.*s\": %zu dimensions; at most %d are allowed", SAID_NAME_BYTES,
			name, json_array_size(shape), STREW_MAX_DIMS);
	}
	tensor->ndim = (int)json_array_size(shape);
	for (int i = 0; i < tensor->ndim; i++) {
		if (parse_whole(json_array_get(shape, (size_t)i), &tensor->shape[i])) {
			return fault(err, name, "a dimension that is not a whole number from 0 on");
		}
	}
	if (dims_count(tensor->ndim, tensor->shape, &count) ||
		mul_overflows(count, strew_dtype_size(tensor->dtype), ret_bytes)) {
		return fault(err, name, "the shape has more bytes than 64 bits can count");
	}
	return 0;
}

static int parse_offsets(const char *name, const json_t *entry, uint64_t data_bytes,
	struct safetensors_tensor *tensor, struct error *err)
{
	const json_t *offsets = json_object_get(entry, "data_offsets");
	uint64_t begin, end;

	if (!json_is_array(offsets) || json_array_size(offsets) != 2 ||
		parse_whole(json_array_get(offsets, 0), &begin) ||
		parse_whole(json_array_get(offsets, 1), &end)) {
		return fault(err, name, "data_offsets are not two whole numbers from 0 on");
	}
	if (begin > end) {
		return error_set(err, -EINVAL,
			"tensor \"%.*s\": data_offsets [%" PRIu64 ", %" PRIu64
			"] end before they begin",
			SAID_NAME_BYTES, name, begin, end);
	}
	if (end > data_bytes) {
		return error_set(err, -EINVAL,
			"tensor \"%.*s\": data_offsets [%" PRIu64 ", %" PRIu64
			"] lie outside the file, which has %" PRIu64 " bytes of data",
			SAID_NAME_BYTES, name, begin, end, data_bytes);
	}
	if (end - begin != tensor->bytes) {
		return error_set(err, -EINVAL,
			"tensor \"%.*s\": data_offsets give it %" PRIu64
			" bytes, dtype and shape make %" PRIu64,
			SAID_NAME_BYTES, name, end - begin, tensor->bytes);
	}
	tensor->offset = begin;
	return 0;
}

static int parse_tensor(const char *name, const json_t *entry, uint64_t data_bytes,
	struct safetensors_tensor *tensor, struct error *err)
{
	int rc;

	tensor->tensor.name = name;
	if (!*name) {
		return error_set(err, -EINVAL, "a tensor without a name");
	}
	if (strlen(name) > LIMIT_NAME_BYTES) {
		return error_set(err, -E2BIG, "tensor \"%.*s…\": the name is longer than %u bytes",
			SAID_NAME_BYTES, name, LIMIT_NAME_BYTES);
	}
	if (!json_is_object(entry)) {
		return fault(err, name, "its entry is not a JSON object");
	}
	rc = parse_dtype(name, entry, &tensor->tensor, err);
	if (!rc) {
		rc = parse_shape(name, entry, &tensor->tensor, &tensor->bytes, err);
	}
	return rc ? rc : parse_offsets(name, entry, data_bytes, tensor, err);
}

static int parse_metadata(const json_t *metadata, struct error *err)
{
	const char *key;
	json_t *value;

	if (!json_is_object(metadata)) {
		return error_set(err, -EINVAL, "__metadata__ is not a JSON object");
	}
	json_object_foreach((json_t *)metadata, key, value)
	{
		if (!json_is_string(value)) {
			return error_set(err, -EINVAL, "__metadata__ \"%.*s\" is not a string",
				SAID_NAME_BYTES, key);
		}
	}
	return 0;
}

static int by_offset(const void *left, const void *right)
{
	const struct safetensors_tensor *a = left, *b = right;

	if (a->offset != b->offset) {
		return a->offset < b->offset ? -1 : 1;
	}
	return (a->bytes > b->bytes) - (a->bytes < b->bytes); /* empty ones first */
}

/* The format wants the data to be covered without a gap or an overlap. */
static int check_cover(const struct safetensors *file, struct error *err)
{
	const char *before = NULL;
	uint64_t end = 0;

	for (size_t i = 0; i < file->ntensors; i++) {
		const struct safetensors_tensor *tensor = &file->tensors[i];

		if (tensor->offset < end) {
			return error_set(err, -EINVAL, "tensor \"%.*s\" overlaps \"%.*s\"",
				SAID_NAME_BYTES, tensor->tensor.name, SAID_NAME_BYTES, before);
		}
		if (tensor->offset > end) {
			return error_set(err, -EINVAL,
				"%" PRIu64 " bytes before tensor \"%.*s\" belong to no tensor",
				tensor->offset - end, SAID_NAME_BYTES, tensor->tensor.name);
		}
		end += tensor->bytes;
		before = tensor->tensor.name;
	}
	if (end != file->data_bytes) {
		return error_set(err, -EINVAL,
			"%" PRIu64 " bytes at the end of the file belong to no tensor",
			file->data_bytes - end);
	}
	return 0;
}

static int parse_tensors(struct safetensors *file, struct error *err)
{
	const char *key;
	json_t *value;
	int rc;

	file->tensors = calloc(json_object_size(file->header) + 1, sizeof(*file->tensors));
	if (!file->tensors) {
		return error_set(err, -ENOMEM, "no memory for the list of tensors");
	}
	json_object_foreach((json_t *)file->header, key, value)
	{
		if (strcmp(key, "__metadata__") == 0) {
			rc = parse_metadata(value, err);
		} else {
			rc = parse_tensor(
				key, value, file->data_bytes, &file->tensors[file->ntensors], err);
			file->ntensors++;
		}
		if (rc) {
			return rc;
		}
	}
	if (file->ntensors > LIMIT_TENSORS) {
		return error_set(err, -E2BIG, "%zu tensors; at most %u are allowed", file->ntensors,
			LIMIT_TENSORS);
	}
	qsort(file->tensors, file->ntensors, sizeof(*file->tensors), by_offset);
	return check_cover(file, err);
}

static int open_file(const char *path, struct safetensors *file, struct error *err)
{
	struct stat status;
	uint64_t length = 0;
	json_t *header = NULL;
	int rc;

	file->fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	if (file->fd < 0) {
		return error_set(err, -errno, "cannot be opened: %s", strerror(errno));
	}
	if (fstat(file->fd, &status) < 0) {
		return error_set(err, -errno, "fstat failed: %s", strerror(errno));
	}
	if (!S_ISREG(status.st_mode)) {
		return error_set(err, -EINVAL, "not a regular file");
	}
	/* Only the header is read here: what the page cache would read ahead is data. */
	(void)posix_fadvise(file->fd, 0, 0, POSIX_FADV_RANDOM);
	rc = read_length(file->fd, (uint64_t)status.st_size, &length, err);
	if (rc) {
		return rc;
	}
	rc = parse_header(file->fd, length, &header, err);
	if (rc) {
		return rc;
	}
	file->header = header;
	file->data_offset = LENGTH_BYTES + length;
	file->data_bytes = (uint64_t)status.st_size - file->data_offset;
	return parse_tensors(file, err);
}

int safetensors_blame(struct error *err, const char *path)
{
	size_t skip = strlen(path) > SAID_PATH_BYTES ? strlen(path) - SAID_PATH_BYTES : 0;

	if (!err) {
		return 0;
	}
	error_prefix(err, "%s%s", skip ? "..." : "", path + skip);
	/* A name may hold anything; a sentence for a terminal may not. */
	for (char *p = err->text; *p; p++) {
		*p = *p == 0x7f || (unsigned char)*p < ' ' ? '?' : *p;
	}
	return err->code;
}

int safetensors_open(const char *path, struct safetensors *ret_file, struct error *err)
{
	struct safetensors file = {.fd = -1};
	int rc = open_file(path, &file, err);

	if (rc) {
		safetensors_close(&file);
		safetensors_blame(err, path);
		return rc;
	}
	*ret_file = file;
	return 0;
}

void safetensors_close(struct safetensors *file)
{
	json_decref(file->header);
	free(file->tensors);
	fd_close(&file->fd);
	*file = (struct safetensors){.fd = -1};
}
