/* Messages: what goes in comes out, and what is malformed is an error that names what is wrong. */
#include "base/util.h"
#include "ipc/frame.h"
#include "ipc/scan.h"
#include "test_ipc_fill.h"
#include <errno.h>
#include <msgpack.h>
#include <stdio.h>
#include <sys/resource.h>

static uint8_t *copy(const uint8_t *bytes, size_t len)
{
	uint8_t *copied = malloc(len + 1);

	assert_non_null(copied);
	memcpy(copied, bytes, len);
	return copied;
}

/* Decodes a copy of the payload; the result is poisoned first. */
static int decode(unsigned type, const uint8_t *payload, size_t len, struct message *ret_message,
	struct error *err)
{
	memset(ret_message, 0xa5, sizeof(*ret_message));
	error_clear(err);
	return message_decode(type, 7, copy(payload, len), len, ret_message, err);
}

static int decode_only(unsigned type, const uint8_t *payload, size_t len, struct error *err)
{
	struct message message;
	int rc = decode(type, payload, len, &message, err);

	if (rc == 0) {
		message_finish(&message);
	} else {
		assert_int_equal(rc, err->code);
		assert_true(err->text[0] != '\0');
	}
	return rc;
}

static void test_round_trip(void **state)
{
	(void)state;
	for (unsigned turn = 0; turn < 20 * CONTRACT_TYPES; turn++) {
		enum message_type type = contract[turn % CONTRACT_TYPES].type;
		struct message sent, received;
		struct frame_header header;
		struct error err;
		uint8_t *frame, *again;
		size_t len, again_len;

		fill_message(&sent, type);
		assert_int_equal(message_encode(&sent, &frame, &len, &err), 0);
		assert_int_equal(frame_header_get(frame, &header, &err), 0);
		assert_int_equal(header.type, type);
		assert_int_equal(header.payload_bytes, len - FRAME_HEADER_BYTES);
		assert_int_equal(header.fds, 0);
		memset(&received, 0xa5, sizeof(received));
		assert_int_equal(message_decode(header.type, header.serial,
					 copy(frame + FRAME_HEADER_BYTES, header.payload_bytes),
					 header.payload_bytes, &received, &err),
			0);
		assert_int_equal(received.nfds, 0);
		assert_same(&sent, &received);
		assert_int_equal(message_encode(&received, &again, &again_len, &err), 0);
		assert_int_equal(len, again_len);
		assert_memory_equal(frame, again, len);
		free(frame);
		free(again);
		if (type == MSG_PART) {
			sent.u.part.bytes = NULL;
		}
		message_finish(&sent);
		message_finish(&received);
		message_finish(&received); /* twice is fine */
	}
}

/* The payload of a random message of that type. */
static uint8_t *payload_of(enum message_type type, size_t *ret_len)
{
	struct message message;
	struct error err;
	uint8_t *frame;

	fill_message(&message, type);
	assert_int_equal(message_encode(&message, &frame, ret_len, &err), 0);
	if (type != MSG_PART) {
		message_finish(&message);
	}
	*ret_len -= FRAME_HEADER_BYTES;
	memmove(frame, frame + FRAME_HEADER_BYTES, *ret_len);
	return frame;
}

static void test_names_and_keys(void **state)
{
	(void)state;
	for (size_t i = 0; i < CONTRACT_TYPES; i++) {
		char keys[512] = "";
		msgpack_unpacked unpacked;
		size_t len, at = 0;
		uint8_t *payload = payload_of(contract[i].type, &len);

		assert_string_equal(message_name(contract[i].type), contract[i].name);
		msgpack_unpacked_init(&unpacked);
		assert_int_equal(msgpack_unpack_next(&unpacked, (char *)payload, len, &at),
			MSGPACK_UNPACK_SUCCESS);
		assert_int_equal(unpacked.data.type, MSGPACK_OBJECT_MAP);
		for (uint32_t k = 0; k < unpacked.data.via.map.size; k++) {
			const msgpack_object_str *key = &unpacked.data.via.map.ptr[k].key.via.str;

			snprintf(keys + strlen(keys), sizeof(keys) - strlen(keys), "%s%.*s",
				k ? " " : "", (int)key->size, key->ptr);
		}
		assert_string_equal(keys, contract[i].keys);
		msgpack_unpacked_destroy(&unpacked);
		free(payload);
	}
	assert_string_equal(message_name(77), "unknown");
	assert_string_equal(message_name(MSG_APPLY), "apply");
}

static void test_truncated_everywhere(void **state)
{
	struct error err;

	(void)state;
	for (size_t i = 0; i < CONTRACT_TYPES; i++) {
		size_t len, step;
		uint8_t *payload = payload_of(contract[i].type, &len);

		/* Reports may have 100,000 bytes: their first and last kilobytes, and a sample. */
		for (size_t cut = 0; cut < len; cut += step) {
			step = cut < 1024 || cut + 1024 > len ? 1 : 97;
			assert_int_equal(
				decode_only(contract[i].type, payload, cut, &err), -EPROTO);
			assert_non_null(strstr(err.text, contract[i].name));
		}
		free(payload);
	}
}

static void test_flipped_bits(void **state)
{
	struct error err;

	(void)state;
	for (unsigned turn = 0; turn < 40 * CONTRACT_TYPES; turn++) {
		enum message_type type = contract[turn % CONTRACT_TYPES].type;
		size_t len;
		uint8_t *payload = payload_of(type, &len);

		for (unsigned flips = 1; flips <= 16; flips++) {
			size_t bit = test_random_below(8 * MIN(len, flips % 2 ? len : 64));

			payload[bit / 8] ^= (uint8_t)(1u << bit % 8);
			decode_only(type, payload, len, &err);
		}
		free(payload);
	}
}

static void test_random_bytes(void **state)
{
	uint8_t noise[256];
	struct error err;

	(void)state;
	for (unsigned turn = 0; turn < 20000; turn++) {
		size_t len = test_random_below(sizeof(noise));

		test_random_fill(noise, sizeof(noise));
		noise[0] = (uint8_t)(0x80 | test_random_below(16)); /* a map at least */
		decode_only(contract[turn % CONTRACT_TYPES].type, noise, len, &err);
	}
}

enum harm { DROP, DOUBLE, RETYPE, ADD };

/* Packs the map again, with one key dropped, doubled or of another type, or one added. */
static void harm_key(const uint8_t *payload, size_t len, uint32_t victim, enum harm harm,
	msgpack_sbuffer *ret_buffer)
{
	msgpack_unpacked unpacked;
	msgpack_packer packer;
	size_t at = 0;
	uint32_t n;

	msgpack_sbuffer_init(ret_buffer);
	msgpack_packer_init(&packer, ret_buffer, msgpack_sbuffer_write);
	msgpack_unpacked_init(&unpacked);
	assert_int_equal(msgpack_unpack_next(&unpacked, (const char *)payload, len, &at),
		MSGPACK_UNPACK_SUCCESS);
	n = unpacked.data.via.map.size;
	msgpack_pack_map(&packer, harm == DROP ? n - 1 : harm == RETYPE ? n : n + 1);
	for (uint32_t i = 0; i < n; i++) {
		const msgpack_object_kv *kv = &unpacked.data.via.map.ptr[i];

		if (i == victim && harm == DROP) {
			continue;
		}
		for (int times = i == victim && harm == DOUBLE ? 2 : 1; times; times--) {
			msgpack_pack_object(&packer, kv->key);
			if (i == victim && harm == RETYPE) {
				msgpack_pack_true(&packer);
			} else {
				msgpack_pack_object(&packer, kv->val);
			}
		}
	}
	if (harm == ADD) {
		msgpack_pack_str_with_body(&packer, "from_the_future", 15);
		msgpack_pack_array(&packer, 1);
		msgpack_pack_nil(&packer);
	}
	msgpack_unpacked_destroy(&unpacked);
}

static void assert_named(enum message_type type, const msgpack_sbuffer *buffer, const char *key,
	size_t key_len, const char *what)
{
	char named[64];
	struct error err;

	snprintf(named, sizeof(named), "%.*s: %s", (int)key_len, key, what);
	assert_int_equal(
		decode_only(type, (const uint8_t *)buffer->data, buffer->size, &err), -EPROTO);
	if (!strstr(err.text, named)) {
		fail_msg("\"%s\" does not say \"%s\"", err.text, named);
	}
}

static void test_keys_dropped_doubled_retyped(void **state)
{
	(void)state;
	for (size_t i = 0; i < CONTRACT_TYPES; i++) {
		enum message_type type = contract[i].type;
		const char *key = contract[i].keys;
		msgpack_sbuffer buffer;
		struct error err;
		size_t len;
		uint8_t *payload = payload_of(type, &len);

		for (uint32_t k = 0; *key; k++) {
			size_t key_len = strcspn(key, " ");

			harm_key(payload, len, k, DROP, &buffer);
			assert_named(type, &buffer, key, key_len, "missing");
			msgpack_sbuffer_destroy(&buffer);
			harm_key(payload, len, k, DOUBLE, &buffer);
			assert_named(type, &buffer, key, key_len, "twice");
			msgpack_sbuffer_destroy(&buffer);
			harm_key(payload, len, k, RETYPE, &buffer);
			assert_named(type, &buffer, key, key_len, "");
			msgpack_sbuffer_destroy(&buffer);
			key += key_len + (key[key_len] == ' ');
		}
		harm_key(payload, len, 0, ADD, &buffer);
		assert_int_equal(decode_only(type, (uint8_t *)buffer.data, buffer.size, &err), 0);
		msgpack_sbuffer_destroy(&buffer);
		free(payload);
	}
}

/* Values that the structs could hold and the contract does not allow. */
static void test_values_out_of_range(void **state)
{
	static const struct {
		enum message_type type;
		size_t offset;
		uint32_t value;
		const char *said;
	} bad[] = {
		{MSG_HELLO, offsetof(struct msg_hello, role), 0, "role: 0"},
		{MSG_HELLO, offsetof(struct msg_hello, role), 4, "role: 4"},
		{MSG_REGISTER, offsetof(struct msg_register, gate), 3, "gate: 3"},
		{MSG_REGISTER, offsetof(struct msg_register, apply), 0, "apply: 0"},
		{MSG_ALLOCATION, offsetof(struct msg_allocation, kind), 5, "kind: 5"},
		{MSG_PART, offsetof(struct msg_part, of), 4, "of: 4"},
		{MSG_REGISTERED, offsetof(struct msg_registered, state), 8, "state: 8"},
		{MSG_DONE, offsetof(struct msg_done, outcome), 6, "outcome: 6"},
		{MSG_DONE, offsetof(struct msg_done, state), 0, "state: 0"},
		{MSG_REPORT, offsetof(struct msg_report, outcome), 99, "outcome: 99"},
		{MSG_EPOCH, offsetof(struct msg_epoch, carrier), 3, "carrier: 3"},
		{MSG_EPOCH, offsetof(struct msg_epoch, rank), LIMIT_BROKERS, "rank: 64"},
		{MSG_EPOCH, offsetof(struct msg_epoch, ranks), 0, "ranks: 0"},
		{MSG_DECLARE, offsetof(struct msg_declare, rank), LIMIT_RANKS, "rank: 256"},
		{MSG_DECLARE, offsetof(struct msg_declare, ranks), 0, "ranks: 0"},
		{MSG_DECLARE, offsetof(struct msg_declare, ranks), LIMIT_RANKS + 1, "ranks: 257"},
		{MSG_UNDECLARE, offsetof(struct msg_undeclare, rank), LIMIT_RANKS, "rank: 256"},
		{MSG_UNDECLARE, offsetof(struct msg_undeclare, released), 2, "released: 2"},
		{MSG_RANK_PUBLISH, offsetof(struct msg_rank_publish, rank), LIMIT_RANKS,
			"rank: 256"},
		{MSG_RANK_DONE, offsetof(struct msg_rank_done, rank), LIMIT_RANKS, "rank: 256"},
	};

	(void)state;
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		struct message message;
		struct error err;
		uint8_t *frame;
		size_t len;

		fill_message(&message, bad[i].type);
		memcpy((char *)&message.u + bad[i].offset, &bad[i].value, sizeof(bad[i].value));
		assert_int_equal(message_encode(&message, &frame, &len, &err), 0);
		assert_int_equal(decode_only(bad[i].type, frame + FRAME_HEADER_BYTES,
					 len - FRAME_HEADER_BYTES, &err),
			-EPROTO);
		assert_non_null(strstr(err.text, bad[i].said));
		free(frame);
		if (bad[i].type == MSG_PART) {
			message.u.part.bytes = NULL;
		}
		message_finish(&message);
	}
}

/* {"<key>": <value bytes>} as the payload of a message of one key. */
static int decode_one(
	enum message_type type, const char *key, const char *value, size_t len, struct error *err)
{
	uint8_t payload[512] = {0x81};

	payload[1] = (uint8_t)(0xa0 | strlen(key));
	memcpy(payload + 2, key, strlen(key));
	memcpy(payload + 2 + strlen(key), value, len);
	return decode_only(type, payload, 2 + strlen(key) + len, err);
}

#define ONE(type, key, bytes) decode_one(type, key, bytes, sizeof(bytes) - 1, &err)

static void test_values_ill_formed(void **state)
{
	struct error err;

	(void)state;
	assert_int_equal(ONE(MSG_OK, "value", "\x01"), 0);
	assert_int_equal(ONE(MSG_OK, "value", "\xcf\xff\xff\xff\xff\xff\xff\xff\xff"), 0);
	assert_int_equal(ONE(MSG_OK, "value", "\xff"), -EPROTO);		 /* -1 */
	assert_int_equal(ONE(MSG_OK, "value", "\xd1\x00\x01"), -EPROTO);	 /* int16 */
	assert_int_equal(ONE(MSG_OK, "value", "\xca\x3f\x80\x00\x00"), -EPROTO); /* float */
	assert_int_equal(ONE(MSG_OK, "value", "\xd4\x01\x01"), -EPROTO);	 /* ext */
	assert_int_equal(ONE(MSG_OK, "value", "\xc1"), -EPROTO);		 /* never used */
	assert_int_equal(ONE(MSG_OK, "value", "\xa1x"), -EPROTO);
	/* 32 bits, and one more */
	assert_int_equal(ONE(MSG_ERROR, "code", "\xcf\x00\x00\x00\x01\x00\x00\x00\x00"), -EPROTO);
	assert_non_null(strstr(err.text, "code"));
	assert_int_equal(ONE(MSG_ERROR, "text", "\xa3yes"), -EPROTO); /* code is missing */
	assert_non_null(strstr(err.text, "code: missing"));
	assert_int_equal(ONE(MSG_ERROR, "text", "\xa3y\0s"), -EPROTO);
	assert_non_null(strstr(err.text, "text: a string of 3 bytes"));
	assert_int_equal(ONE(MSG_DATA, "token", "\xc4\x01x"), -EPROTO);
	assert_non_null(strstr(err.text, "token: 1 bytes"));
	/* a key that is no string; not a map; behind its end; nothing */
	assert_int_equal(decode_only(MSG_OK, (const uint8_t *)"\x81\x01\x01", 3, &err), -EPROTO);
	assert_int_equal(decode_only(MSG_OK, (const uint8_t *)"\x90", 1, &err), -EPROTO);
	assert_int_equal(decode_only(MSG_ALIVE, (const uint8_t *)"\x80", 1, &err), 0);
	assert_int_equal(decode_only(MSG_ALIVE, (const uint8_t *)"\x80\x80", 2, &err), -EPROTO);
	assert_non_null(strstr(err.text, "1 bytes behind its end"));
	assert_int_equal(decode_only(MSG_ALIVE, (const uint8_t *)"", 0, &err), -EPROTO);
}

static void test_longest_strings(void **state)
{
	struct msg_error *said;
	struct message message;
	uint8_t *frame;
	struct error err;
	size_t len;

	(void)state;
	message_init(&message, MSG_ERROR, 0);
	said = &message.u.error;
	memset(said->text, 'x', sizeof(said->text) - 1);
	assert_int_equal(message_encode(&message, &frame, &len, &err), 0);
	len -= FRAME_HEADER_BYTES;
	assert_int_equal(decode_only(MSG_ERROR, frame + FRAME_HEADER_BYTES, len, &err), 0);
	free(frame);
	/* Without its NUL it is one too long. */
	said->text[sizeof(said->text) - 1] = 'x';
	assert_int_equal(message_encode(&message, &frame, &len, &err), 0);
	len -= FRAME_HEADER_BYTES;
	assert_int_equal(decode_only(MSG_ERROR, frame + FRAME_HEADER_BYTES, len, &err), -EPROTO);
	assert_non_null(strstr(err.text, "text: a string of 240 bytes"));
	free(frame);
}

static long resident_kb(void)
{
	struct rusage usage;

	getrusage(RUSAGE_SELF, &usage);
	return usage.ru_maxrss;
}

/* Reliability, row 19: lies, depth and counts cost no memory. */
static void test_lies(void **state)
{
	static const char *const lies[] = {
		"\xdd\x01\x00\x00\x00",	    /* an array of 16 M */
		"\xdf\x01\x00\x00\x00",	    /* a map of 16 M */
		"\xdf\xff\xff\xff\xff",	    /* of 4 G, doubled past 32 bits */
		"\xdd\xff\xff\xff\xff\xc0", /* one is there */
		"\xc6\xff\xff\xff\xff",	    /* 4 GiB of bytes */
		"\xdb\x7f\xff\xff\xff",	    /* 2 GiB of text */
	};
	static const size_t lens[] = {5, 5, 5, 6, 5, 5};
	long before = resident_kb();
	struct error err;

	(void)state;
	for (unsigned turn = 0; turn < 1000; turn++) {
		for (size_t i = 0; i < sizeof(lies) / sizeof(lies[0]); i++) {
			assert_int_equal(decode_only(MSG_STATUS_REPLY, (const uint8_t *)lies[i],
						 lens[i], &err),
				-EPROTO);
			assert_int_equal(
				decode_one(MSG_MANIFEST, "roots", lies[i], lens[i], &err), -EPROTO);
		}
	}
	assert_true(resident_kb() - before < 1024);
}

static void test_scan_limits(void **state)
{
	static uint8_t many[LIMIT_MSGPACK_VALUES + 16];
	uint8_t deep[64];
	struct error err;
	size_t len;

	(void)state;
	memset(deep, 0x91, sizeof(deep));
	deep[LIMIT_MSGPACK_DEPTH] = 0xc0;
	assert_int_equal(scan_value(deep, sizeof(deep), &len, &err), 0);
	assert_int_equal(len, LIMIT_MSGPACK_DEPTH + 1);
	memset(deep, 0x91, sizeof(deep));
	assert_int_equal(scan_value(deep, sizeof(deep), &len, &err), -EPROTO);
	assert_non_null(strstr(err.text, "nested deeper than 6"));
	/* Depth under an unknown key, which is ignored otherwise. */
	assert_int_equal(decode_one(MSG_OK, "x", (const char *)deep, 32, &err), -EPROTO);
	assert_non_null(strstr(err.text, "nested deeper than 6"));

	memcpy(many, "\xdd\x00\x00\xff\xff", 5);
	assert_int_equal(scan_value(many, sizeof(many), &len, &err), 0);
	assert_int_equal(len, 5 + 0xffff);
	memcpy(many, "\xdd\x00\x01\x00\x00", 5);
	assert_int_equal(scan_value(many, sizeof(many), &len, &err), -EPROTO);
	assert_non_null(strstr(err.text, "more than 65536 values"));
}

static void test_lists_over_their_limit(void **state)
{
	struct message message;
	uint8_t *frame;
	struct error err;
	size_t len;

	(void)state;
	message_init(&message, MSG_MANIFEST, 0);
	message.u.manifest.roots = calloc(LIMIT_RANKS + 1, sizeof(uint64_t));
	message.u.manifest.nroots = LIMIT_RANKS + 1;
	assert_int_equal(message_encode(&message, &frame, &len, &err), -E2BIG);
	assert_non_null(strstr(err.text, "roots"));
	message_finish(&message);
	assert_int_equal(
		ONE(MSG_ALLOCATION, "chunk_bytes",
			"\xdc\x00\x41"
			"01234567890123456789012345678901234567890123456789012345678901234"),
		-EPROTO);
	assert_non_null(strstr(err.text, "chunk_bytes: 65 elements pass the limit of 64"));
}

static void test_header(void **state)
{
	static const struct frame_header sent = {MSG_HOLD, 0x1234, 3, 0x0123456789abcdef};
	uint8_t bytes[FRAME_HEADER_BYTES];
	struct frame_header got;
	struct error err;

	(void)state;
	frame_header_put(bytes, &sent);
	assert_memory_equal(bytes,
		"STRW\x01\x00\x16\x00\x34\x12\x00\x00\x03\x00\x00\x00"
		"\xef\xcd\xab\x89\x67\x45\x23\x01",
		sizeof(bytes));
	assert_int_equal(frame_header_get(bytes, &got, &err), 0);
	assert_int_equal(got.type, MSG_HOLD);
	assert_int_equal(got.payload_bytes, 0x1234);
	assert_int_equal(got.fds, 3);
	assert_true(got.serial == sent.serial);

	memset(&got, 0xa5, sizeof(got));
	bytes[4] = 9;
	assert_int_equal(frame_header_get(bytes, &got, &err), -EPROTO);
	assert_non_null(strstr(err.text, "protocol 9"));
	assert_non_null(strstr(err.text, "this side 1"));
	bytes[4] = 1;
	bytes[0] = 'G';
	assert_int_equal(frame_header_get(bytes, &got, &err), -EPROTO);
	bytes[0] = 'S';
	bytes[12] = LIMIT_FRAME_FDS + 1;
	assert_int_equal(frame_header_get(bytes, &got, &err), -EPROTO);
	bytes[12] = 0;
	memcpy(bytes + 8, "\xe8\xff\x03\x00", 4); /* header and payload: 256 KiB */
	assert_int_equal(frame_header_get(bytes, &got, &err), 0);
	bytes[8]++;
	memset(&got, 0xa5, sizeof(got));
	assert_int_equal(frame_header_get(bytes, &got, &err), -E2BIG);
	assert_int_equal(got.type, 0xa5a5); /* untouched */
}

static void test_too_long_and_unknown(void **state)
{
	struct message message;
	uint8_t *frame = NULL;
	struct error err;
	size_t len;

	(void)state;
	message_init(&message, MSG_PART, 0);
	message.u.part.of = PART_LAYOUT;
	message.u.part.bytes = calloc(1, LIMIT_FRAME_BYTES);
	message.u.part.nbytes = LIMIT_FRAME_BYTES - FRAME_HEADER_BYTES;
	assert_int_equal(message_encode(&message, &frame, &len, &err), -E2BIG);
	assert_non_null(strstr(err.text, "message part"));
	free((void *)(uintptr_t)message.u.part.bytes);

	assert_int_equal(decode_only(77, (const uint8_t *)"\x80", 1, &err), -EPROTO);
	assert_non_null(strstr(err.text, "77"));
}

/* These very bytes stand in docs/protocol.md. */
static void test_bytes_of_the_document(void **state)
{
	static const char hello[] =
		"\x53\x54\x52\x57\x01\x00\x01\x00\x39\x00\x00\x00\x01\x00\x00\x00"
		"\x01\x00\x00\x00\x00\x00\x00\x00\x85\xa8\x70\x72\x6f\x74\x6f\x63"
		"\x6f\x6c\x01\xa4\x72\x6f\x6c\x65\x01\xa3\x70\x69\x64\xcd\x10\x1b"
		"\xad\x70\x69\x64\x5f\x6e\x61\x6d\x65\x73\x70\x61\x63\x65\xce\xef"
		"\xff\xff\xfc\xa7\x6c\x69\x62\x72\x61\x72\x79\xa5\x30\x2e\x31\x2e"
		"\x30";
	struct message message;
	uint8_t *frame;
	struct error err;
	size_t len;

	(void)state;
	message_init(&message, MSG_HELLO, 1);
	message.u.hello = (struct msg_hello){.protocol = 1,
		.role = ROLE_WORKER,
		.pid = 4123,
		.pid_namespace = 4026531836,
		.library = "0.1.0"};
	message.nfds = 1;
	assert_int_equal(message_encode(&message, &frame, &len, &err), 0);
	assert_int_equal(len, sizeof(hello) - 1);
	assert_memory_equal(frame, hello, len);
	free(frame);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_round_trip),
		cmocka_unit_test(test_names_and_keys),
		cmocka_unit_test(test_truncated_everywhere),
		cmocka_unit_test(test_flipped_bits),
		cmocka_unit_test(test_random_bytes),
		cmocka_unit_test(test_keys_dropped_doubled_retyped),
		cmocka_unit_test(test_values_out_of_range),
		cmocka_unit_test(test_values_ill_formed),
		cmocka_unit_test(test_longest_strings),
		cmocka_unit_test(test_lies),
		cmocka_unit_test(test_scan_limits),
		cmocka_unit_test(test_lists_over_their_limit),
		cmocka_unit_test(test_header),
		cmocka_unit_test(test_too_long_and_unknown),
		cmocka_unit_test(test_bytes_of_the_document),
	};

	return TEST_RUN(tests);
}
