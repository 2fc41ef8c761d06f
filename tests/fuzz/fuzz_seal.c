/*
 * A sealed connection with somebody on the way. The peer knows the key and says some messages;
 * the input says what becomes of its bytes: they come in pieces, changed, left out, twice, in
 * another order, cut, with others between them, or are the reader's own words turned round. What
 * must come out are the messages whose bytes came unaltered and in their place, up to the first
 * byte that is not as the peer has said it, and not one more.
 */
#include "base/util.h"
#include "fuzz/says.h"
#include "ipc/conn.h"
#include "wire/seal.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define SAID_MAX 8u /* fewer than this by the peer */

enum deed { WHOLE, WHOLE_TOO, CHANGED, LEFT_OUT, ANY, TURNED_ROUND, RAW, CUT, DEEDS };

struct said {
	uint8_t *bytes; /* with their tag */
	size_t len;
};

struct scene {
	struct conn *conn; /* the reader */
	struct conn_guard *peer;
	int fd; /* the peer's end */
	struct said said[SAID_MAX];
	unsigned nsaid, next, received;
	/* How far what was sent is what the peer has said. */
	unsigned whole;
	size_t at;
	bool other; /* a byte that is not, or not the same keys */
	int rc;	    /* of the reader, once it has ended */
};

static const uint8_t nonces[2][NONCE_BYTES] = {"the joiner's", "the lead's"};

static struct seal_key make_key(const char *text)
{
	struct seal_key key;

	CLAIM(seal_key_make((const uint8_t *)text, strlen(text), &key) == 0);
	return key;
}

static bool decodes(const struct said *said, struct message *ret_message)
{
	size_t len = said->len - FRAME_HEADER_BYTES - CONN_TAG_BYTES;
	uint8_t *payload = malloc(len + 1);
	struct error err;

	CLAIM(payload);
	memcpy(payload, said->bytes + FRAME_HEADER_BYTES, len);
	return message_decode((unsigned)(said->bytes[6] | said->bytes[7] << 8), 0, payload, len,
		       ret_message, &err) == 0;
}

/* The peer says something: its serial is its place. */
static void say(struct scene *scene, struct input *input)
{
	struct said *said = &scene->said[scene->nsaid];
	struct message message;
	uint8_t *frame;

	message_init(&message, says_type(input_byte(input)), scene->nsaid + 1);
	says_change(input, &message);
	frame = says_encode(&message, &said->len);
	says_finish(&message);
	if (!frame) {
		return;
	}
	said->bytes = realloc(frame, said->len + CONN_TAG_BYTES);
	CLAIM(said->bytes);
	scene->peer->put(scene->peer, said->bytes, said->bytes + FRAME_HEADER_BYTES,
		said->len - FRAME_HEADER_BYTES, said->bytes + said->len);
	said->len += CONN_TAG_BYTES;
	scene->nsaid++;
}

static void count(struct scene *scene, const uint8_t *bytes, size_t n)
{
	for (size_t i = 0; i < n && !scene->other; i++) {
		const struct said *said = &scene->said[scene->whole];

		if (scene->whole == scene->nsaid || bytes[i] != said->bytes[scene->at]) {
			scene->other = true;
		} else if (++scene->at == said->len) {
			scene->whole++;
			scene->at = 0;
		}
	}
}

/* What came is what was said in that place. */
static void compare(struct scene *scene, const struct message *message)
{
	struct message said;
	uint8_t *frames[2];
	size_t lens[2];

	CLAIM(scene->received < scene->whole);
	CLAIM(message->serial == scene->received + 1 && message->nfds == 0);
	CLAIM(decodes(&scene->said[scene->received], &said));
	said.serial = message->serial;
	frames[0] = says_encode(message, &lens[0]);
	frames[1] = says_encode(&said, &lens[1]);
	CLAIM(frames[0] && frames[1] && lens[0] == lens[1]);
	CLAIM(memcmp(frames[0], frames[1], lens[0]) == 0);
	free(frames[0]);
	free(frames[1]);
	message_finish(&said);
	scene->received++;
}

static void receive(struct scene *scene)
{
	struct message message;
	struct error err = {0};

	do {
		uint64_t heard = conn_heard_ns(scene->conn);
		unsigned before = scene->received;

		scene->rc = conn_receive(scene->conn, &message, &err);
		if (scene->rc == 1) {
			compare(scene, &message);
			message_finish(&message);
		} else if (scene->rc == 0) {
			/* Bytes that nobody has proven are no sign of life. */
			CLAIM(conn_heard_ns(scene->conn) == heard && scene->received == before);
		}
	} while (scene->rc == 1);
	if (scene->rc < 0) {
		CLAIM(err.code == scene->rc && err.text[0]);
		CLAIM(conn_receive(scene->conn, &message, &err) == scene->rc);
	}
}

/* In pieces of that length, 0: all at once. */
static void deliver(struct scene *scene, const uint8_t *bytes, size_t n, size_t piece)
{
	count(scene, bytes, n);
	for (size_t at = 0, some; at < n && scene->rc == 0; at += some) {
		some = piece ? MIN(piece, n - at) : n - at;
		says_send(scene->fd, bytes + at, some, NULL, 0);
		receive(scene);
	}
}

/* The reader says something, which the peer takes for its word, and the reader does not. */
static void turn_round(struct scene *scene, struct input *input, size_t piece)
{
	uint8_t bytes[FRAME_HEADER_BYTES + 64 + CONN_TAG_BYTES];
	struct message message;
	struct error err;
	ssize_t n;

	message_init(&message, input_byte(input) & 1 ? MSG_ALIVE : MSG_JOINED, scene->next + 1);
	CLAIM(conn_send(scene->conn, &message, &err) == 0);
	n = recv(scene->fd, bytes, sizeof(bytes), MSG_DONTWAIT);
	CLAIM(n > (ssize_t)(FRAME_HEADER_BYTES + CONN_TAG_BYTES) && n < (ssize_t)sizeof(bytes));
	n -= CONN_TAG_BYTES;
	if (scene->peer->check(scene->peer, bytes, bytes + FRAME_HEADER_BYTES,
		    (size_t)n - FRAME_HEADER_BYTES, bytes + n, &err)) {
		CLAIM(err.code == -EPERM && scene->other);
	}
	deliver(scene, bytes, (size_t)n + CONN_TAG_BYTES, piece);
}

/* One deed of whoever stands between them. */
static void act(struct scene *scene, struct input *input)
{
	uint8_t how = input_byte(input);
	enum deed deed = how % DEEDS;
	size_t piece = how >> 3, n;
	const uint8_t *raw;
	struct said *said;
	uint8_t *copy;

	if (deed == TURNED_ROUND) {
		turn_round(scene, input, piece);
		return;
	}
	if (deed == RAW) {
		raw = input_bytes(input, 512, &n);
		deliver(scene, raw, n, piece);
		return;
	}
	said = deed == ANY		? &scene->said[input_below(input, SAID_MAX)]
	       : scene->next < SAID_MAX ? &scene->said[scene->next++]
					: NULL;
	if (!said || !said->len || deed == LEFT_OUT) {
		return;
	}
	copy = malloc(said->len);
	CLAIM(copy);
	memcpy(copy, said->bytes, said->len);
	n = said->len;
	if (deed == CHANGED) {
		size_t at = input_u16(input) % said->len;

		copy[at] ^= input_byte(input);
	} else if (deed == CUT) {
		n = input_u16(input) % said->len;
	}
	deliver(scene, copy, n, piece);
	free(copy);
}

/* The peer's nonce goes in clear, and may be changed too. False: the reader ends there. */
static bool greet(struct scene *scene, struct input *input, const struct seal_key *key, bool lead)
{
	const uint8_t *theirs = nonces[!lead], *ours = nonces[lead];
	struct conn_guard *guard;
	struct message message;
	struct error err;
	uint8_t *frame, how = input_byte(input);
	size_t len;

	message_init(&message, MSG_NONCE, 0);
	memcpy(message.u.nonce.nonce, theirs, NONCE_BYTES);
	frame = says_encode(&message, &len);
	CLAIM(frame);
	if (how & 1) {
		size_t at = input_byte(input) % len;

		frame[at] ^= input_byte(input);
	}
	says_send(scene->fd, frame, len, NULL, 0);
	free(frame);
	if (conn_receive(scene->conn, &message, &err) != 1) {
		return false;
	}
	if (message.type != MSG_NONCE) {
		message_finish(&message);
		return false;
	}
	if (memcmp(message.u.nonce.nonce, theirs, NONCE_BYTES) != 0) {
		scene->other = true;
	}
	theirs = message.u.nonce.nonce;
	CLAIM(seal_create(key, lead ? SEAL_LEAD : SEAL_JOINER, lead ? theirs : ours,
		      lead ? ours : theirs, &guard) == 0);
	conn_set_guard(scene->conn, guard);
	message_finish(&message);
	return true;
}

/* Nothing more comes: all that was to come has. */
static void check_end(struct scene *scene)
{
	unsigned good = 0;
	struct message message;

	while (good < scene->whole && decodes(&scene->said[good], &message)) {
		message_finish(&message);
		good++;
	}
	CLAIM(scene->received == good && scene->rc < 0);
	/* Who is not authenticated hears nothing of how a message is to be made. */
	if (good == scene->whole) {
		CLAIM(scene->rc == -EPERM || scene->rc == -ECONNRESET);
		CLAIM(scene->rc == -ECONNRESET || scene->other);
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct seal_key key = make_key("32 bytes that both have, or what"),
			another = make_key("32 bytes that only one end has..");
	struct input input = {data, size};
	struct scene scene = {.fd = -1};
	unsigned fds = fuzz_open_fds(), says;
	uint8_t how = input_byte(&input);
	bool lead = how & 1;
	int pair[2];

	CLAIM(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) == 0);
	CLAIM(conn_create(pair[0], false, &scene.conn) == 0);
	scene.fd = pair[1];
	scene.other = (how & 6) == 6;
	CLAIM(seal_create(&key, lead ? SEAL_JOINER : SEAL_LEAD, nonces[0], nonces[1],
		      &scene.peer) == 0);
	if (greet(&scene, &input, scene.other ? &another : &key, lead)) {
		says = input_below(&input, SAID_MAX);
		for (unsigned i = 0; i < says; i++) {
			say(&scene, &input);
		}
		while (input.left && scene.rc == 0) {
			act(&scene, &input);
		}
		shutdown(scene.fd, SHUT_WR);
		receive(&scene);
		check_end(&scene);
	}
	for (unsigned i = 0; i < scene.nsaid; i++) {
		free(scene.said[i].bytes);
	}
	scene.peer->destroy(scene.peer);
	conn_destroy(scene.conn);
	close(scene.fd);
	CLAIM(fuzz_open_fds() == fds);
	return 0;
}
