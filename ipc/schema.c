#include "ipc/schema.h"
#include "base/util.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define AT(base, offset) ((void *)((char *)(base) + (offset)))
#define CONST_AT(base, offset) ((const void *)((const char *)(base) + (offset)))

static size_t count_of(const struct field *field, const void *from)
{
	size_t n;

	memcpy(&n, CONST_AT(from, field->count), sizeof(n));
	return n;
}

static void *list_of(const struct field *field, const void *from)
{
	void *list;

	memcpy(&list, CONST_AT(from, field->offset), sizeof(list));
	return list;
}

static void set_list(const struct field *field, void *to, void *list, size_t n)
{
	memcpy(AT(to, field->offset), &list, sizeof(list));
	memcpy(AT(to, field->count), &n, sizeof(n));
}

static int encode_field(
	msgpack_packer *packer, const struct field *field, const void *from, struct error *err)
{
	const void *value = CONST_AT(from, field->offset);
	size_t n;

	switch (field->kind) {
	case FIELD_U32:
		return msgpack_pack_uint32(packer, *(const uint32_t *)value);
	case FIELD_U64:
		return msgpack_pack_uint64(packer, *(const uint64_t *)value);
	case FIELD_STRING:
		n = strnlen(value, field->size);
		return msgpack_pack_str_with_body(packer, value, n);
	case FIELD_BYTES:
		return msgpack_pack_bin_with_body(packer, value, field->size);
	case FIELD_BLOB:
		return msgpack_pack_bin_with_body(
			packer, list_of(field, from), count_of(field, from));
	case FIELD_U32_LIST:
	case FIELD_U64_LIST:
	case FIELD_STRUCTS:
		break;
	}
	n = count_of(field, from);
	if (n > field->max) {
		return error_set(err, -E2BIG, "%s: %zu elements pass the limit of %llu", field->key,
			n, (unsigned long long)field->max);
	}
	msgpack_pack_array(packer, n);
	for (size_t i = 0; i < n; i++) {
		const char *list = list_of(field, from);
		int rc = 0;

		if (field->kind == FIELD_U32_LIST) {
			rc = msgpack_pack_uint32(packer, ((const uint32_t *)(const void *)list)[i]);
		} else if (field->kind == FIELD_U64_LIST) {
			rc = msgpack_pack_uint64(packer, ((const uint64_t *)(const void *)list)[i]);
		} else {
			rc = schema_encode(packer, field->table, list + i * field->size, err);
		}
		if (rc) {
			return rc;
		}
	}
	return 0;
}

int schema_encode(
	msgpack_packer *packer, const struct table *table, const void *from, struct error *err)
{
	msgpack_pack_map(packer, table->n);
	for (size_t i = 0; i < table->n; i++) {
		const struct field *field = &table->fields[i];
		int rc;

		msgpack_pack_str_with_body(packer, field->key, strlen(field->key));
		rc = encode_field(packer, field, from, err);
		if (rc) {
			return rc == -E2BIG ? rc : error_set(err, -ENOMEM, "out of memory");
		}
	}
	return 0;
}

static int ill_typed(const struct field *field, struct error *err)
{
	static const char *const wanted[] = {"a 32-bit number", "a number", "a string", "bytes",
		"bytes", "an array of numbers", "an array of numbers", "an array of maps"};

	return error_set(err, -EPROTO, "%s: %s is wanted", field->key, wanted[field->kind]);
}

static int decode_number(
	const msgpack_object *object, const struct field *field, void *to, struct error *err)
{
	uint64_t value;

	if (object->type != MSGPACK_OBJECT_POSITIVE_INTEGER) {
		return ill_typed(field, err);
	}
	value = object->via.u64;
	if (field->kind == FIELD_U32 && value > UINT32_MAX) {
		return ill_typed(field, err);
	}
	if (field->max && (value < field->min || value > field->max)) {
		return error_set(err, -EPROTO, "%s: %llu is not one of %llu to %llu", field->key,
			(unsigned long long)value, (unsigned long long)field->min,
			(unsigned long long)field->max);
	}
	if (field->kind == FIELD_U32) {
		*(uint32_t *)AT(to, field->offset) = (uint32_t)value;
	} else {
		*(uint64_t *)AT(to, field->offset) = value;
	}
	return 0;
}

static int decode_string(
	const msgpack_object *object, const struct field *field, void *to, struct error *err)
{
	if (object->type != MSGPACK_OBJECT_STR) {
		return ill_typed(field, err);
	}
	if (object->via.str.size >= field->size ||
		memchr(object->via.str.ptr, '\0', object->via.str.size)) {
		return error_set(err, -EPROTO, "%s: a string of %u bytes (at most %zu, no NUL)",
			field->key, object->via.str.size, field->size - 1);
	}
	memcpy(AT(to, field->offset), object->via.str.ptr, object->via.str.size);
	((char *)AT(to, field->offset))[object->via.str.size] = '\0';
	return 0;
}

static int decode_bytes(
	const msgpack_object *object, const struct field *field, void *to, struct error *err)
{
	const char *bytes;

	if (object->type != MSGPACK_OBJECT_BIN) {
		return ill_typed(field, err);
	}
	bytes = object->via.bin.ptr;
	if (field->kind == FIELD_BLOB) {
		size_t n = object->via.bin.size;

		memcpy(AT(to, field->offset), &bytes, sizeof(bytes));
		memcpy(AT(to, field->count), &n, sizeof(n));
		return 0;
	}
	if (object->via.bin.size != field->size) {
		return error_set(err, -EPROTO, "%s: %u bytes where %zu are wanted", field->key,
			object->via.bin.size, field->size);
	}
	memcpy(AT(to, field->offset), bytes, field->size);
	return 0;
}

static int decode_list(
	const msgpack_object *object, const struct field *field, void *to, struct error *err)
{
	size_t size = field->kind == FIELD_U32_LIST   ? sizeof(uint32_t)
		      : field->kind == FIELD_U64_LIST ? sizeof(uint64_t)
						      : field->size;
	struct field element = {field->key, field->kind == FIELD_U32_LIST ? FIELD_U32 : FIELD_U64,
		0, 0, 0, 0, 0, NULL};
	char *list;

	if (object->type != MSGPACK_OBJECT_ARRAY) {
		return ill_typed(field, err);
	}
	if (object->via.array.size > field->max) {
		return error_set(err, -EPROTO, "%s: %u elements pass the limit of %llu", field->key,
			object->via.array.size, (unsigned long long)field->max);
	}
	list = calloc(object->via.array.size + 1u, size);
	if (!list) {
		return error_set(err, -ENOMEM, "out of memory");
	}
	set_list(field, to, list, object->via.array.size);
	for (uint32_t i = 0; i < object->via.array.size; i++) {
		const msgpack_object *item = &object->via.array.ptr[i];
		int rc = field->kind == FIELD_STRUCTS
				 ? schema_decode(item, field->table, list + i * size, err)
				 : decode_number(item, &element, list + i * size, err);

		if (rc) {
			return rc;
		}
	}
	return 0;
}

static int decode_field(
	const msgpack_object *object, const struct field *field, void *to, struct error *err)
{
	switch (field->kind) {
	case FIELD_U32:
	case FIELD_U64:
		return decode_number(object, field, to, err);
	case FIELD_STRING:
		return decode_string(object, field, to, err);
	case FIELD_BYTES:
	case FIELD_BLOB:
		return decode_bytes(object, field, to, err);
	default:
		return decode_list(object, field, to, err);
	}
}

static size_t find_field(const struct table *table, const msgpack_object *key)
{
	for (size_t i = 0; i < table->n; i++) {
		size_t len = strlen(table->fields[i].key);

		if (key->via.str.size == len &&
			memcmp(key->via.str.ptr, table->fields[i].key, len) == 0) {
			return i;
		}
	}
	return table->n;
}

int schema_decode(const msgpack_object *map, const struct table *table, void *to, struct error *err)
{
	bool seen[FIELDS_MAX] = {false};

	if (map->type != MSGPACK_OBJECT_MAP) {
		return error_set(err, -EPROTO, "a map is wanted");
	}
	for (uint32_t i = 0; i < map->via.map.size; i++) {
		const msgpack_object_kv *kv = &map->via.map.ptr[i];
		size_t found;
		int rc;

		if (kv->key.type != MSGPACK_OBJECT_STR) {
			return error_set(err, -EPROTO, "a key that is not a string");
		}
		found = find_field(table, &kv->key);
		if (found == table->n) {
			continue;
		}
		if (seen[found]) {
			return error_set(err, -EPROTO, "%s: twice", table->fields[found].key);
		}
		seen[found] = true;
		rc = decode_field(&kv->val, &table->fields[found], to, err);
		if (rc) {
			return rc;
		}
	}
	for (size_t i = 0; i < table->n; i++) {
		if (!seen[i]) {
			return error_set(err, -EPROTO, "%s: missing", table->fields[i].key);
		}
	}
	return 0;
}

void schema_finish(const struct table *table, void *of)
{
	for (size_t i = 0; i < table->n; i++) {
		const struct field *field = &table->fields[i];

		if (field->kind == FIELD_U32_LIST || field->kind == FIELD_U64_LIST ||
			field->kind == FIELD_STRUCTS) {
			/* Elements hold no lists of their own. */
			free(list_of(field, of));
			set_list(field, of, NULL, 0);
		}
	}
}
