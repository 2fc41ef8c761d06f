#include "ipc/blob.h"
#include "base/util.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

/* What is left of a frame for a part's bytes: header, map, keys and numbers take less than this. */
#define PART_BYTES (LIMIT_FRAME_BYTES - 256u)

void blob_finish(struct blob *blob)
{
	free(blob->bytes);
	memset(blob, 0, sizeof(*blob));
}

uint64_t blob_hash(const struct blob *blob)
{
	return XXH3_64bits(blob->bytes, blob->len);
}

unsigned blob_parts(const struct blob *blob)
{
	return (unsigned)((blob->len + PART_BYTES - 1) / PART_BYTES);
}

static void fill_part(
	const struct blob *blob, enum part_of of, unsigned number, struct message *ret_message)
{
	size_t at = (size_t)number * PART_BYTES;

	message_init(ret_message, MSG_PART, 0);
	ret_message->u.part.of = of;
	ret_message->u.part.number = number;
	ret_message->u.part.bytes = blob->bytes + at;
	ret_message->u.part.nbytes = MIN(blob->len - at, PART_BYTES);
}

int blob_send(struct conn *conn, const struct blob *blob, enum part_of of, struct error *err)
{
	for (unsigned i = 0; i < blob_parts(blob); i++) {
		struct message message;
		int rc;

		fill_part(blob, of, i, &message);
		rc = conn_send(conn, &message, err);
		if (rc) {
			return rc;
		}
	}
	return 0;
}

int blob_send_wait(struct conn *conn, const struct blob *blob, enum part_of of, uint64_t deadline,
	struct error *err)
{
	for (unsigned i = 0; i < blob_parts(blob); i++) {
		struct message message;
		int rc;

		fill_part(blob, of, i, &message);
		rc = conn_send_wait(conn, &message, deadline, err);
		if (rc) {
			return rc;
		}
	}
	return 0;
}

struct shared_blob *shared_blob_create(struct blob *blob)
{
	struct shared_blob *shared = calloc(1, sizeof(*shared));

	if (shared) {
		shared->blob = *blob;
		shared->references = 1;
		memset(blob, 0, sizeof(*blob));
	}
	return shared;
}

void shared_blob_put(struct shared_blob *shared)
{
	if (shared && --shared->references == 0) {
		blob_finish(&shared->blob);
		free(shared);
	}
}

/* A shared blob on its way to one peer. */
struct parts {
	struct conn_source source;
	struct shared_blob *shared;
	enum part_of of;
	unsigned next;
};

static bool next_part(struct conn_source *source, struct message *ret_message)
{
	struct parts *parts = (struct parts *)source;

	if (parts->next == blob_parts(&parts->shared->blob)) {
		return false;
	}
	fill_part(&parts->shared->blob, parts->of, parts->next++, ret_message);
	return true;
}

static void free_parts(struct conn_source *source)
{
	struct parts *parts = (struct parts *)source;

	shared_blob_put(parts->shared);
	free(parts);
}

int blob_send_shared(
	struct conn *conn, struct shared_blob *shared, enum part_of of, struct error *err)
{
	struct parts *parts = calloc(1, sizeof(*parts));

	if (!parts) {
		return error_set(err, -ENOMEM, "out of memory");
	}
	parts->source.next = next_part;
	parts->source.destroy = free_parts;
	parts->shared = shared;
	parts->of = of;
	shared->references++;
	return conn_send_from(conn, &parts->source, err);
}

int blob_append(struct blob *blob, const struct msg_part *part, struct error *err)
{
	if (part->number != blob->parts) {
		return error_set(err, -EPROTO, "part %u came where part %u was due", part->number,
			blob->parts);
	}
	if (part->nbytes == 0) {
		return error_set(err, -EPROTO, "part %u is empty", part->number);
	}
	if (part->nbytes > LIMIT_PARTS_BYTES - blob->len) {
		return error_set(err, -E2BIG, "part %u: %zu bytes more pass the limit of %u",
			part->number, part->nbytes, LIMIT_PARTS_BYTES);
	}
	if (array_grow((void **)&blob->bytes, &blob->cap, blob->len + part->nbytes, 1)) {
		return error_set(err, -ENOMEM, "out of memory");
	}
	memcpy(blob->bytes + blob->len, part->bytes, part->nbytes);
	blob->len += part->nbytes;
	blob->parts++;
	return 0;
}

int blob_check(
	const struct blob *blob, uint32_t parts, uint64_t bytes, uint64_t hash, struct error *err)
{
	if (blob->parts != parts || blob->len != bytes) {
		return error_set(err, -EPROTO,
			"the seal says %u parts and %llu bytes, %u parts and %zu bytes came", parts,
			(unsigned long long)bytes, blob->parts, blob->len);
	}
	if (blob_hash(blob) != hash) {
		return error_set(
			err, -EPROTO, "the seal's hash is not that of the %zu bytes", blob->len);
	}
	return 0;
}
