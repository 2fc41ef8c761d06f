#include "wire/seal.h"
#include <errno.h>
#include <sodium.h>
#include <stdlib.h>
#include <string.h>

#define LABEL_BYTES 16u

struct seal {
	struct conn_guard guard; /* first: what conn.c holds */
	uint8_t out_key[SEAL_KEY_BYTES], in_key[SEAL_KEY_BYTES], token_key[SEAL_KEY_BYTES];
	uint64_t sent, heard; /* frames */
};

static void put(uint8_t *to, uint64_t value, unsigned n)
{
	for (unsigned i = 0; i < n; i++) {
		to[i] = (uint8_t)(value >> 8 * i);
	}
}

int seal_key_make(const uint8_t *bytes, size_t len_bytes, struct seal_key *ret_key)
{
	static const char label[LABEL_BYTES + 1] = "strew key file 1";

	if (sodium_init() < 0) {
		return -ENOSYS;
	}
	crypto_generichash(ret_key->bytes, sizeof(ret_key->bytes), bytes, len_bytes,
		(const uint8_t *)label, LABEL_BYTES);
	return 0;
}

void seal_key_wipe(struct seal_key *key)
{
	sodium_memzero(key, sizeof(*key));
}

static void derive(const struct seal_key *key, const char *label,
	const uint8_t joiner_nonce[NONCE_BYTES], const uint8_t lead_nonce[NONCE_BYTES],
	uint8_t ret_key[SEAL_KEY_BYTES])
{
	uint8_t text[LABEL_BYTES + 2 * NONCE_BYTES];

	memcpy(text, label, LABEL_BYTES);
	memcpy(text + LABEL_BYTES, joiner_nonce, NONCE_BYTES);
	memcpy(text + LABEL_BYTES + NONCE_BYTES, lead_nonce, NONCE_BYTES);
	crypto_generichash(
		ret_key, SEAL_KEY_BYTES, text, sizeof(text), key->bytes, sizeof(key->bytes));
}

static void tag_of(const uint8_t key[SEAL_KEY_BYTES], uint64_t counter,
	const uint8_t header[FRAME_HEADER_BYTES], const uint8_t *payload, size_t len_bytes,
	uint8_t ret_tag[CONN_TAG_BYTES])
{
	crypto_generichash_state state;
	uint8_t number[8];

	put(number, counter, sizeof(number));
	crypto_generichash_init(&state, key, SEAL_KEY_BYTES, CONN_TAG_BYTES);
	crypto_generichash_update(&state, number, sizeof(number));
	crypto_generichash_update(&state, header, FRAME_HEADER_BYTES);
	crypto_generichash_update(&state, payload, len_bytes);
	crypto_generichash_final(&state, ret_tag, CONN_TAG_BYTES);
	sodium_memzero(&state, sizeof(state));
}

static void seal_put(struct conn_guard *guard, const uint8_t header[FRAME_HEADER_BYTES],
	const uint8_t *payload, size_t len_bytes, uint8_t ret_tag[CONN_TAG_BYTES])
{
	struct seal *seal = (struct seal *)guard;

	tag_of(seal->out_key, seal->sent++, header, payload, len_bytes, ret_tag);
}

static int seal_check(struct conn_guard *guard, const uint8_t header[FRAME_HEADER_BYTES],
	const uint8_t *payload, size_t len_bytes, const uint8_t tag[CONN_TAG_BYTES],
	struct error *err)
{
	struct seal *seal = (struct seal *)guard;
	uint8_t right[CONN_TAG_BYTES];
	bool equal;

	tag_of(seal->in_key, seal->heard, header, payload, len_bytes, right);
	equal = sodium_memcmp(right, tag, sizeof(right)) == 0;
	sodium_memzero(right, sizeof(right));
	if (equal) {
		seal->heard++;
		return 0;
	}
	return error_set(err, -EPERM, "%s",
		seal->heard == 0
			? "it has another key, or its first frame was changed: start both brokers "
			  "with a copy of one --key-file"
			: "a frame was changed, repeated or left out on its way: find out what "
			  "alters the traffic between the two brokers");
}

static void seal_destroy(struct conn_guard *guard)
{
	if (guard) {
		sodium_memzero(guard, sizeof(struct seal));
		free(guard);
	}
}

int seal_create(const struct seal_key *key, enum seal_side side,
	const uint8_t joiner_nonce[NONCE_BYTES], const uint8_t lead_nonce[NONCE_BYTES],
	struct conn_guard **ret_guard)
{
	struct seal *seal = calloc(1, sizeof(*seal));
	bool lead = side == SEAL_LEAD;

	if (!seal) {
		return -ENOMEM;
	}
	seal->guard = (struct conn_guard){seal_put, seal_check, seal_destroy};
	derive(key, "strew m to lead ", joiner_nonce, lead_nonce,
		lead ? seal->in_key : seal->out_key);
	derive(key, "strew lead to m ", joiner_nonce, lead_nonce,
		lead ? seal->out_key : seal->in_key);
	derive(key, "strew data token", joiner_nonce, lead_nonce, seal->token_key);
	*ret_guard = &seal->guard;
	return 0;
}

void seal_token(const struct conn_guard *guard, uint64_t epoch, uint32_t rank,
	const uint8_t token[TOKEN_BYTES], uint8_t ret_token[TOKEN_BYTES])
{
	const struct seal *seal = (const struct seal *)guard;
	uint8_t text[8 + 4 + TOKEN_BYTES];

	if (!seal) {
		memcpy(ret_token, token, TOKEN_BYTES);
		return;
	}
	put(text, epoch, 8);
	put(text + 8, rank, 4);
	memcpy(text + 12, token, TOKEN_BYTES);
	crypto_generichash(ret_token, TOKEN_BYTES, text, sizeof(text), seal->token_key,
		sizeof(seal->token_key));
}

bool seal_token_equal(const uint8_t a[TOKEN_BYTES], const uint8_t b[TOKEN_BYTES])
{
	return sodium_memcmp(a, b, TOKEN_BYTES) == 0;
}
