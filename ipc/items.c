#include "ipc/items.h"
#include "base/util.h"
#include "ipc/scan.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

static int write_blob(void *data, const char *bytes, size_t n)
{
	struct item_writer *writer = data;
	struct blob *blob = &writer->blob;

	if (writer->failed) {
		return -1;
	}
	if (n > LIMIT_PARTS_BYTES - blob->len) {
		writer->failed = -E2BIG;
	} else if (array_grow((void **)&blob->bytes, &blob->cap, blob->len + n, 1)) {
		writer->failed = -ENOMEM;
	} else {
		memcpy(blob->bytes + blob->len, bytes, n);
		blob->len += n;
	}
	return writer->failed ? -1 : 0;
}

void items_begin(struct item_writer *writer, const char *kind, const uint64_t *counts, unsigned n)
{
	memset(writer, 0, sizeof(*writer));
	msgpack_packer_init(&writer->packer, writer, write_blob);
	items_array(writer, 2 + n);
	items_string(writer, kind);
	items_number(writer, ITEMS_FORMAT);
	for (unsigned i = 0; i < n; i++) {
		items_number(writer, counts[i]);
	}
}

void items_array(struct item_writer *writer, size_t n)
{
	msgpack_pack_array(&writer->packer, n);
}

void items_number(struct item_writer *writer, uint64_t value)
{
	msgpack_pack_uint64(&writer->packer, value);
}

void items_string(struct item_writer *writer, const char *text)
{
	msgpack_pack_str_with_body(&writer->packer, text, strlen(text));
}

void items_numbers(struct item_writer *writer, const uint64_t *values, int n)
{
	items_array(writer, (size_t)n);
	for (int i = 0; i < n; i++) {
		items_number(writer, values[i]);
	}
}

int items_end(struct item_writer *writer, struct blob *ret_blob, struct error *err)
{
	int rc = writer->failed;

	if (rc) {
		blob_finish(&writer->blob);
		return rc == -E2BIG
			       ? error_set(err, rc, "the description passes the limit of %u bytes",
					 LIMIT_PARTS_BYTES)
			       : error_set(err, rc, "out of memory");
	}
	*ret_blob = writer->blob;
	return 0;
}

void items_open(struct item_reader *reader, const struct blob *blob, struct error *err)
{
	memset(reader, 0, sizeof(*reader));
	reader->bytes = blob->bytes;
	reader->len = blob->len;
	reader->err = err;
	msgpack_unpacked_init(&reader->item);
}

void items_close(struct item_reader *reader)
{
	msgpack_unpacked_destroy(&reader->item);
}

static int broken(struct item_reader *reader, const char *what)
{
	return error_set(
		reader->err, -EPROTO, "description, item before byte %zu: %s", reader->at, what);
}

int items_next(struct item_reader *reader, uint32_t elements)
{
	size_t len, end;
	int rc;

	if (reader->at == reader->len) {
		return broken(reader, "there are fewer items than announced");
	}
	rc = scan_value(reader->bytes + reader->at, reader->len - reader->at, &len, reader->err);
	if (rc) {
		return rc;
	}
	end = reader->at + len;
	if (msgpack_unpack_next(&reader->item, (const char *)reader->bytes, end, &reader->at) !=
		MSGPACK_UNPACK_SUCCESS) {
		return broken(reader, "it is no msgpack");
	}
	if (reader->item.data.type != MSGPACK_OBJECT_ARRAY ||
		reader->item.data.via.array.size != elements) {
		return broken(reader, "an array of another length is wanted");
	}
	reader->next = 0;
	return 0;
}

static const msgpack_object *take(struct item_reader *reader)
{
	return &reader->item.data.via.array.ptr[reader->next++];
}

int items_get_number(struct item_reader *reader, uint64_t max, uint64_t *ret_value)
{
	const msgpack_object *object = take(reader);

	if (object->type != MSGPACK_OBJECT_POSITIVE_INTEGER || object->via.u64 > max) {
		return broken(reader, "a number in its range is wanted");
	}
	*ret_value = object->via.u64;
	return 0;
}

int items_get_string(struct item_reader *reader, char *buf, size_t buf_bytes)
{
	const msgpack_object *object = take(reader);

	/* An empty string may have no pointer. */
	if (object->type != MSGPACK_OBJECT_STR || object->via.str.size == 0 ||
		object->via.str.size >= buf_bytes ||
		memchr(object->via.str.ptr, '\0', object->via.str.size)) {
		return broken(reader, "a name within the limit is wanted");
	}
	memcpy(buf, object->via.str.ptr, object->via.str.size);
	buf[object->via.str.size] = '\0';
	return 0;
}

int items_get_numbers(struct item_reader *reader, uint64_t ret_values[STREW_MAX_DIMS], int *n)
{
	const msgpack_object *object = take(reader);

	if (object->type != MSGPACK_OBJECT_ARRAY || object->via.array.size > STREW_MAX_DIMS ||
		(*n >= 0 && object->via.array.size != (uint32_t)*n)) {
		return broken(reader, "another number of dimensions is wanted");
	}
	*n = (int)object->via.array.size;
	for (int i = 0; i < *n; i++) {
		const msgpack_object *value = &object->via.array.ptr[i];

		if (value->type != MSGPACK_OBJECT_POSITIVE_INTEGER) {
			return broken(reader, "a dimension is no number");
		}
		ret_values[i] = value->via.u64;
	}
	return 0;
}

int items_header(struct item_reader *reader, const char *kind, uint64_t *ret_counts,
	const uint64_t *limits, unsigned n)
{
	uint64_t format = 0, items = 0;
	char name[32];
	int rc = items_next(reader, 2 + n);

	if (rc == 0) {
		rc = items_get_string(reader, name, sizeof(name));
	}
	if (rc == 0) {
		rc = items_get_number(reader, UINT32_MAX, &format);
	}
	if (rc == 0 && (strcmp(name, kind) != 0 || format != ITEMS_FORMAT)) {
		rc = broken(reader, "it is a description of another kind");
	}
	for (unsigned i = 0; rc == 0 && i < n; i++) {
		rc = items_get_number(reader, UINT64_MAX, &ret_counts[i]);
		if (rc == 0 && ret_counts[i] > limits[i]) {
			rc = error_set(reader->err, -E2BIG,
				"a description of %llu items passes the limit of %llu",
				(unsigned long long)ret_counts[i], (unsigned long long)limits[i]);
		}
		items += rc ? 0 : ret_counts[i];
	}
	/* Before anybody allocates for them: every item has at least one byte. */
	if (rc == 0 && items > reader->len - reader->at) {
		rc = error_set(reader->err, -EPROTO, "a description of %llu items in %zu bytes",
			(unsigned long long)items, reader->len - reader->at);
	}
	return rc;
}

int items_ended(struct item_reader *reader)
{
	return reader->at == reader->len ? 0 : broken(reader, "there are bytes behind its end");
}

void items_tensor(struct item_writer *writer, const struct tensor *tensor)
{
	items_array(writer, 3);
	items_string(writer, tensor->name);
	items_number(writer, tensor->dtype);
	items_numbers(writer, tensor->shape, tensor->ndim);
}

int items_get_tensor(
	struct item_reader *reader, struct tensor *ret_tensor, char name[LIMIT_NAME_BYTES + 1])
{
	struct tensor tensor = {.name = name, .ndim = -1};
	uint64_t dtype = 0;
	int rc = items_next(reader, 3);

	if (rc == 0) {
		rc = items_get_string(reader, name, LIMIT_NAME_BYTES + 1);
	}
	if (rc == 0) {
		rc = items_get_number(reader, UINT8_MAX, &dtype);
	}
	if (rc == 0) {
		rc = items_get_numbers(reader, tensor.shape, &tensor.ndim);
	}
	if (rc == 0) {
		tensor.dtype = (enum strew_dtype)dtype;
		*ret_tensor = tensor;
	}
	return rc;
}
