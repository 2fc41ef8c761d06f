/* The tables are private to their file, and are wanted here: so that file is part of this one. */
#include "fuzz/says.h"
#include "ipc/messages.c"
#include <sys/socket.h>

#define CHANGES 4u  /* fewer than this at once */
#define ELEMENTS 9u /* fewer in a list */

uint64_t says_known[SAYS_KNOWN];

unsigned says_types(void)
{
	return ARRAY_LEN(known);
}

enum message_type says_type(unsigned number)
{
	return known[number % ARRAY_LEN(known)].type;
}

uint64_t says_number(struct input *input)
{
	uint8_t which = input_byte(input);

	if (which < 160) {
		return which;
	}
	if (which < 160 + SAYS_KNOWN) {
		return says_known[which - 160];
	}
	if (which < 192) {
		return says_known[which % SAYS_KNOWN] + (which % 3) - 1;
	}
	return which < 250 ? input_edge((uint8_t)(which - 192)) : input_u64(input);
}

static void change_fields(struct input *input, const struct table *table, void *to);

static void change_list(struct input *input, const struct field *field, void *to)
{
	size_t n = MIN(input_below(input, ELEMENTS), field->max);
	size_t size = field->kind == FIELD_U32_LIST   ? sizeof(uint32_t)
		      : field->kind == FIELD_U64_LIST ? sizeof(uint64_t)
						      : field->size;
	char *list = calloc(n + 1, size);

	CLAIM(list);
	for (size_t i = 0; i < n; i++) {
		if (field->kind == FIELD_STRUCTS) {
			change_fields(input, field->table, list + i * size);
		} else if (field->kind == FIELD_U32_LIST) {
			((uint32_t *)(void *)list)[i] = (uint32_t)says_number(input);
		} else {
			((uint64_t *)(void *)list)[i] = says_number(input);
		}
	}
	memcpy((char *)to + field->offset, &list, sizeof(list));
	memcpy((char *)to + field->count, &n, sizeof(n));
}

static void change_field(struct input *input, const struct field *field, void *to)
{
	char *at = (char *)to + field->offset;
	const uint8_t *bytes;
	size_t n;

	switch (field->kind) {
	case FIELD_U32:
		*(uint32_t *)(void *)at = (uint32_t)says_number(input);
		break;
	case FIELD_U64:
		*(uint64_t *)(void *)at = says_number(input);
		break;
	case FIELD_STRING:
	case FIELD_BYTES:
		bytes = input_bytes(input, field->size - (field->kind == FIELD_STRING), &n);
		memset(at, 0, field->size);
		memcpy(at, bytes, n);
		break;
	case FIELD_BLOB:
		bytes = input_bytes(input, 1024, &n);
		memcpy(at, &bytes, sizeof(bytes));
		memcpy((char *)to + field->count, &n, sizeof(n));
		break;
	default:
		change_list(input, field, to);
	}
}

static void change_fields(struct input *input, const struct table *table, void *to)
{
	unsigned n = input_below(input, CHANGES);

	for (unsigned i = 0; i < n && table->n; i++) {
		const struct field *field = &table->fields[input_below(input, (uint32_t)table->n)];
		bool list = field->kind == FIELD_U32_LIST || field->kind == FIELD_U64_LIST ||
			    field->kind == FIELD_STRUCTS;
		void *before;

		memcpy(&before, (char *)to + field->offset, list ? sizeof(before) : 0);
		change_field(input, field, to);
		if (list) {
			free(before);
		}
	}
}

void says_change(struct input *input, struct message *message)
{
	const struct known *entry = find(message->type);

	if (entry && entry->table) {
		change_fields(input, entry->table, &message->u);
	}
}

uint8_t *says_encode(const struct message *message, size_t *ret_len)
{
	struct error err;
	uint8_t *frame;

	return message_encode(message, &frame, ret_len, &err) == 0 ? frame : NULL;
}

void says_finish(struct message *message)
{
	const struct known *entry = find(message->type);

	if (entry && entry->table) {
		schema_finish(entry->table, &message->u);
	}
}

void says_send(int fd, const uint8_t *bytes, size_t n, const int *fds, unsigned nfds)
{
	union {
		struct cmsghdr align;
		char bytes[CMSG_SPACE(LIMIT_FRAME_FDS * sizeof(int))];
	} control;
	struct iovec iov = {(void *)(uintptr_t)bytes, n};
	struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};

	if (nfds) {
		struct cmsghdr *cmsg;

		memset(&control, 0, sizeof(control));
		msg.msg_control = control.bytes;
		msg.msg_controllen = CMSG_SPACE(nfds * sizeof(int));
		cmsg = CMSG_FIRSTHDR(&msg);
		cmsg->cmsg_level = SOL_SOCKET;
		cmsg->cmsg_type = SCM_RIGHTS;
		cmsg->cmsg_len = CMSG_LEN(nfds * sizeof(int));
		memcpy(CMSG_DATA(cmsg), fds, nfds * sizeof(int));
	}
	/* A full socket loses the rest: a peer may do that too. */
	(void)sendmsg(fd, &msg, MSG_DONTWAIT | MSG_NOSIGNAL);
}
