/*
 * What strew explain says of bytes: a hash of each box where a trainer rank holds it and where a
 * worker has it, read out of their live memory as strew verify does it, between updates; and of a
 * worker's box the same of the trainer's, cast as the worker has it. The whole tensor is read from
 * the trainer ranks of this node, once.
 */
#ifndef CLI_EXPLAIN_HASH_H
#define CLI_EXPLAIN_HASH_H

#include "ipc/conn.h"

struct found_hash {
	bool known;
	uint64_t v;
	char why[LIMIT_TEXT_BYTES]; /* it is not known */
};

struct hashing; /* tensors that have been read so far */

int hashing_create(struct conn *conn, struct hashing **ret_hashing);
void hashing_destroy(struct hashing *hashing); /* NULL is fine */

/* Of a held box: where it lies. Of a piece: there, and of the same box of the trainer. */
void hashing_row(struct hashing *hashing, const struct explained *row, struct found_hash *ret_here,
	struct found_hash *ret_trainer);

/* Is the sentence that only the broker's own user may know? It holds for all. */
bool hashing_refused(const struct hashing *hashing);

#endif
