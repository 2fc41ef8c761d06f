/*
 * Blobs: layouts, declarations and manifests as one compact stream of msgpack
 * items, cut into numbered parts on the wire, counted against a quota and sealed
 * by a hash. Building and checking what is in them is plan/'s business.
 */
#ifndef IPC_BLOB_H
#define IPC_BLOB_H

#include "ipc/conn.h"
#include "plan/layout.h"
#include "plan/manifest.h"

struct blob {
	uint8_t *bytes;
	size_t len, cap;
	uint32_t parts; /* received so far */
};

void blob_finish(struct blob *blob);
uint64_t blob_hash(const struct blob *blob);

/* Encoders. -E2BIG over LIMIT_PARTS_BYTES. A declaration is a manifest with the sources of its
 * boxes. */
int blob_from_layout(const struct layout *layout, struct blob *ret_blob, struct error *err);
int blob_from_manifest(const struct manifest *manifest, const struct source *sources,
	struct blob *ret_blob,
	struct error *err); /* sources NULL: PART_MANIFEST, else PART_DECLARATION */

/*
 * Decoders: check counts and types here and everything else by plan/'s own adders;
 * the result is sealed (a declaration's manifest is not: its rank may hold only a part). No
 * trailing bytes. ret_sources is malloc'd, one a box.
 */
int blob_to_layout(
	const struct blob *blob, bool partial, struct layout *ret_layout, struct error *err);
int blob_to_declaration(const struct blob *blob, uint32_t rank, struct manifest *ret_manifest,
	struct source **ret_sources, struct error *err);
int blob_to_manifest(const struct blob *blob, struct manifest *ret_manifest, struct error *err);
/* A manifest of that rank's boxes alone, not sealed: what a broker passes on to its lead. */
int blob_to_share(
	const struct blob *blob, uint32_t rank, struct manifest *ret_manifest, struct error *err);

/* Sends all parts (not the seal). Queues without waiting, so the outbox limits it … */
int blob_send(struct conn *conn, const struct blob *blob, enum part_of of, struct error *err);
/* … and the same, waiting for the peer to read. */
int blob_send_wait(struct conn *conn, const struct blob *blob, enum part_of of, uint64_t deadline,
	struct error *err);

/* One that is sent to several, each at its own pace: it is kept until the last part has left. Of
 * one thread. */
struct shared_blob {
	struct blob blob;
	unsigned references;
};

/* Takes the bytes; NULL: no memory, and nothing is taken. */
struct shared_blob *shared_blob_create(struct blob *blob);
void shared_blob_put(struct shared_blob *shared); /* gives one reference up; NULL is fine */
/* Queues all parts, of which no more than one waits in the outbox. */
int blob_send_shared(
	struct conn *conn, struct shared_blob *shared, enum part_of of, struct error *err);
unsigned blob_parts(const struct blob *blob); /* how many frames it takes */

/* Appends a received part: its number must be blob->parts. -E2BIG over the quota. */
int blob_append(struct blob *blob, const struct msg_part *part, struct error *err);
/* Compares parts, bytes and hash with the seal. */
int blob_check(
	const struct blob *blob, uint32_t parts, uint64_t bytes, uint64_t hash, struct error *err);

#endif
