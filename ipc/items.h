/* Items of a blob: msgpack arrays behind one another, written and read one at a time. */
#ifndef IPC_ITEMS_H
#define IPC_ITEMS_H

#include "ipc/blob.h"
#include <msgpack.h>

#define ITEMS_FORMAT 1 /* second element of every header item */

struct item_writer {
	struct blob blob;
	msgpack_packer packer;
	int failed; /* -ENOMEM, -E2BIG */
};

void items_begin(struct item_writer *writer, const char *kind, const uint64_t *counts, unsigned n);
void items_array(struct item_writer *writer, size_t n);
void items_number(struct item_writer *writer, uint64_t value);
void items_string(struct item_writer *writer, const char *text);
void items_numbers(struct item_writer *writer, const uint64_t *values, int n);
/* Moves the bytes to *ret_blob, or frees them and returns why not. */
int items_end(struct item_writer *writer, struct blob *ret_blob, struct error *err);

struct item_reader {
	const uint8_t *bytes;
	size_t len, at;
	msgpack_unpacked item; /* the one being read */
	uint32_t next;	       /* its next element */
	struct error *err;
};

void items_open(struct item_reader *reader, const struct blob *blob, struct error *err);
void items_close(struct item_reader *reader);
/* Reads the header item: its kind must be `kind`, followed by n counts, each at most limits[i]. */
int items_header(struct item_reader *reader, const char *kind, uint64_t *ret_counts,
	const uint64_t *limits, unsigned n);
int items_next(struct item_reader *reader, uint32_t elements); /* begins the next item */
int items_get_number(struct item_reader *reader, uint64_t max, uint64_t *ret_value);
/* Into buf, NUL-terminated. */
int items_get_string(struct item_reader *reader, char *buf, size_t buf_bytes);
/* 0 to STREW_MAX_DIMS numbers; *ret_n < 0 on entry: any count, else that many. */
int items_get_numbers(struct item_reader *reader, uint64_t ret_values[STREW_MAX_DIMS], int *n);
int items_ended(struct item_reader *reader); /* no trailing bytes */

/* Tensors are written alike in all blobs: [name, dtype, [shape]]. */
void items_tensor(struct item_writer *writer, const struct tensor *tensor);
int items_get_tensor(
	struct item_reader *reader, struct tensor *ret_tensor, char name[LIMIT_NAME_BYTES + 1]);

#endif
