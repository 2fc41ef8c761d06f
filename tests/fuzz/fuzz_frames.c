/*
 * Bytes into the reader of a connection, in pieces; what comes out as a message is encoded
 * and decoded again, which must change nothing. The first byte says how: bytes by a socket that
 * may carry descriptors or not, the payload of one frame straight to the decoder, or a frame that
 * is made by the tables and then damaged.
 */
#include "base/util.h"
#include "fuzz/says.h"
#include "ipc/conn.h"
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define FDS_SENT 4u
#define MESSAGES 32 /* of one input */

static uint8_t *encode(const struct message *message, size_t *ret_len)
{
	struct error err;
	uint8_t *frame = NULL;

	CLAIM(message_encode(message, &frame, ret_len, &err) == 0);
	return frame;
}

/* What was decoded says the same after another turn. */
static void turn_around(const struct message *message)
{
	size_t len, again_len;
	uint8_t *frame = encode(message, &len), *payload, *again;
	struct message second;
	struct error err;

	payload = malloc(len - FRAME_HEADER_BYTES + 1);
	CLAIM(payload);
	memcpy(payload, frame + FRAME_HEADER_BYTES, len - FRAME_HEADER_BYTES);
	CLAIM(message_decode(message->type, message->serial, payload, len - FRAME_HEADER_BYTES,
		      &second, &err) == 0);
	second.nfds = message->nfds; /* so that the header says as many */
	again = encode(&second, &again_len);
	second.nfds = 0;
	CLAIM(len == again_len && memcmp(frame, again, len) == 0);
	message_finish(&second);
	free(frame);
	free(again);
}

static void decode(unsigned type, uint64_t serial, const uint8_t *bytes, size_t len)
{
	uint8_t *payload = malloc(len ? len : 1);
	struct message message;
	struct error err;

	CLAIM(payload);
	memcpy(payload, bytes, len);
	if (message_decode(type, serial, payload, len, &message, &err) == 0) {
		turn_around(&message);
		message_finish(&message);
	} else {
		CLAIM(err.code < 0 && err.text[0]);
	}
}

/* Takes what is there. False: the connection has failed, and says so again. */
static bool receive(struct conn *conn, unsigned *budget)
{
	struct message message;
	struct error err = {0};
	int rc;

	while ((rc = conn_receive(conn, &message, &err)) == 1) {
		CLAIM(message.nfds <= LIMIT_FRAME_FDS);
		turn_around(&message);
		message_finish(&message);
		if (--*budget == 0) {
			return false;
		}
	}
	if (rc < 0) {
		CLAIM(err.code == rc && err.text[0]);
		CLAIM(conn_receive(conn, &message, &err) < 0);
	}
	return rc == 0;
}

static void send_piece(int fd, const uint8_t *bytes, size_t n, unsigned nfds)
{
	union {
		struct cmsghdr align;
		char bytes[CMSG_SPACE(FDS_SENT * sizeof(int))];
	} control = {0};
	struct iovec iov = {(void *)(uintptr_t)bytes, n};
	struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};

	if (nfds) {
		struct cmsghdr *cmsg;
		int fds[FDS_SENT] = {fd, fd, fd, fd};

		msg.msg_control = control.bytes;
		msg.msg_controllen = CMSG_SPACE(nfds * sizeof(int));
		cmsg = CMSG_FIRSTHDR(&msg);
		cmsg->cmsg_level = SOL_SOCKET;
		cmsg->cmsg_type = SCM_RIGHTS;
		cmsg->cmsg_len = CMSG_LEN(nfds * sizeof(int));
		memcpy(CMSG_DATA(cmsg), fds, nfds * sizeof(int));
	}
	if (sendmsg(fd, &msg, MSG_DONTWAIT | MSG_NOSIGNAL) < 0) {
		CLAIM(errno == EAGAIN || errno == EPIPE);
	}
}

/* Pieces: each begins with a byte, its length and how many descriptors come with it. */
static void stream(struct input *input, bool with_fds)
{
	unsigned budget = MESSAGES;
	struct conn *conn;
	int pair[2];

	CLAIM(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) == 0);
	CLAIM(conn_create(pair[0], with_fds, &conn) == 0);
	while (input->left > 1) {
		uint8_t how = input_byte(input);
		size_t n = how & 1 ? input->left : 1u + (how >> 3);
		unsigned nfds = how & 4 ? 1 + (how >> 3 & 3) % FDS_SENT : 0;

		n = MIN(n, input->left);
		send_piece(pair[1], input->at, n, how & 2 ? nfds : 0);
		input->at += n;
		input->left -= n;
		if (!receive(conn, &budget)) {
			break;
		}
	}
	close(pair[1]);
	receive(conn, &budget);
	conn_destroy(conn);
}

/* A message of the tables' making, with some of its bytes replaced. */
static void damaged(struct input *input)
{
	struct message message;
	size_t len = 0;
	uint8_t *frame;

	message_init(&message, says_type(input_byte(input)), 1);
	says_change(input, &message);
	frame = says_encode(&message, &len);
	says_finish(&message);
	while (frame && input->left >= 3) {
		size_t at = FRAME_HEADER_BYTES + input_u16(input);

		if (at < len) {
			frame[at] = input_byte(input);
		}
	}
	if (frame) {
		decode(message.type, message.serial, frame + FRAME_HEADER_BYTES,
			len - FRAME_HEADER_BYTES);
	}
	free(frame);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct input input = {data, size};
	unsigned fds = fuzz_open_fds();

	switch (input_byte(&input) % 4) {
	case 0:
		stream(&input, true);
		break;
	case 1:
		stream(&input, false);
		break;
	case 2: {
		unsigned type = input_byte(&input);

		decode(type, 1, input.at, input.left);
		break;
	}
	default:
		damaged(&input);
	}
	CLAIM(fuzz_open_fds() == fds);
	return 0;
}
