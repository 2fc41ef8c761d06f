/*
 * Messages as data: one table of fields for a struct, from which encoding to a
 * msgpack map, decoding and every check follow. Keys are short and readable;
 * unknown keys are ignored, doubled and missing ones are errors that name the key.
 */
#ifndef IPC_SCHEMA_H
#define IPC_SCHEMA_H

#include "base/error.h"
#include <msgpack.h>
#include <stddef.h>
#include <stdint.h>

enum field_kind {
	FIELD_U32,
	FIELD_U64,
	FIELD_STRING,	/* char[size], NUL-terminated */
	FIELD_BYTES,	/* uint8_t[size], exactly */
	FIELD_BLOB,	/* const uint8_t * and size_t, borrowed from the payload */
	FIELD_U32_LIST, /* uint32_t * and size_t, malloc'd */
	FIELD_U64_LIST,
	FIELD_STRUCTS, /* struct * and size_t, malloc'd; `table` describes an element */
};

struct field {
	const char *key;
	enum field_kind kind;
	size_t offset;
	size_t size;  /* strings, bytes: of the array; structs: of an element */
	uint64_t min; /* numbers: range, if max is not 0 */
	uint64_t max; /* lists, structs: how many at most */
	size_t count; /* lists, blobs, structs: offset of the size_t */
	const struct table *table;
};

#define FIELDS_MAX 40 /* of a table */

struct table {
	const struct field *fields;
	size_t n; /* at most FIELDS_MAX */
};

int schema_encode(
	msgpack_packer *packer, const struct table *table, const void *from, struct error *err);

/* `map` must be a msgpack map. On failure what was allocated is left in *to for schema_finish(). */
int schema_decode(
	const msgpack_object *map, const struct table *table, void *to, struct error *err);

/* Frees lists and structs, and sets them to NULL. */
void schema_finish(const struct table *table, void *of);

#endif
