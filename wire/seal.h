/*
 * The seal on frames between brokers: a MAC by a key that both have, over a counter that neither
 * sends and the whole frame. Keys are of one connection and one direction, from the shared key and
 * a nonce of each side, so that a frame holds in its place in its own connection and nowhere else.
 * Pure: no system call, no randomness of its own. It hides nothing: frames travel in clear.
 */
#ifndef WIRE_SEAL_H
#define WIRE_SEAL_H

#include "ipc/conn.h"

#define SEAL_KEY_BYTES 32u
#define SEAL_FILE_BYTES_MIN 32u
#define SEAL_FILE_BYTES_MAX 256u

struct seal_key {
	uint8_t bytes[SEAL_KEY_BYTES];
};

enum seal_side { SEAL_JOINER, SEAL_LEAD };

/* BLAKE2b-256 of the file's bytes under the label "strew key file 1". -ENOSYS: libsodium does not
 * start. */
int seal_key_make(const uint8_t *bytes, size_t len_bytes, struct seal_key *ret_key);
void seal_key_wipe(struct seal_key *key);

/*
 * The seal of one connection, from the side that calls. Its keys are BLAKE2b-256 under `key` of
 * a label of 16 bytes ("strew m to lead ", "strew lead to m ", "strew data token"), the joiner's
 * nonce and the lead's. To be given to conn_set_guard(), or to be destroyed by its own function,
 * which wipes it. -ENOMEM.
 */
int seal_create(const struct seal_key *key, enum seal_side side,
	const uint8_t joiner_nonce[NONCE_BYTES], const uint8_t lead_nonce[NONCE_BYTES],
	struct conn_guard **ret_guard);

/*
 * What a data connection says in the place of the epoch's token: BLAKE2b-128 under the third key of
 * epoch (8 bytes), rank (4), both little-endian, and the token, which anybody on the way has read.
 * Without a guard (NULL) it is the token itself.
 */
void seal_token(const struct conn_guard *guard, uint64_t epoch, uint32_t rank,
	const uint8_t token[TOKEN_BYTES], uint8_t ret_token[TOKEN_BYTES]);

/* In a time that does not depend on where they differ. */
bool seal_token_equal(const uint8_t a[TOKEN_BYTES], const uint8_t b[TOKEN_BYTES]);

#endif
