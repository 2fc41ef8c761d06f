#include "fuzz/broker_side.h"
#include "base/clock.h"
#include "base/util.h"
#include "fuzz/says.h"
#include "fuzz/stand_ins.h"
#include "ipc/conn.h"
#include "ipc/page.h"
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <strew/types.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#define SLACK_MS 20000 /* a wait of a moment counts as a second */

static struct {
	struct input *input;
	struct conn *conn; /* NULL: the agent has hung up, or nobody was there */
	struct page page;
	int life; /* an eventfd that stands for the process: readable when it has ended */
	enum message_type due;
	uint64_t due_serial, version;
	bool releases, reports; /* what is still to be said of what was published */
	unsigned fds;		/* open before all of it */
	long mappings;
	uint8_t *rest; /* of a frame that was sent in two pieces */
	size_t nrest;
} side;

static void hang_up(void)
{
	conn_destroy(side.conn);
	side.conn = NULL;
	page_finish(&side.page);
	side.page.fd = -1;
	free(side.rest);
	side.rest = NULL;
	side.due = 0;
	side.releases = side.reports = false;
}

static void die(void)
{
	hang_up();
	if (side.life >= 0) {
		eventfd_write(side.life, 1);
	}
}

/* `first`: bytes of the frame that go now; the rest goes at the next turn. 0: all. */
static void say(struct message *message, size_t first)
{
	size_t len = 0;
	uint8_t *frame = says_encode(message, &len);

	if (frame && first && first < len) {
		says_send(conn_fd(side.conn), frame, first, message->fds, message->nfds);
		side.nrest = len - first;
		side.rest = malloc(side.nrest);
		CLAIM(side.rest);
		memcpy(side.rest, frame + first, side.nrest);
	} else if (frame) {
		says_send(conn_fd(side.conn), frame, len, message->fds, message->nfds);
	}
	free(frame);
	message_close_fds(message);
	says_finish(message);
}

static int copy_of(int fd)
{
	int copy = fcntl(fd, F_DUPFD_CLOEXEC, 0);

	CLAIM(copy >= 0);
	return copy;
}

static void welcome(struct message *message)
{
	struct msg_welcome *said = &message->u.welcome;

	said->protocol = PROTOCOL_VERSION;
	said->broker_id = 7;
	said->pid = 4123;
	said->pid_namespace = 42;
	string_copy(said->backend, sizeof(said->backend), "host");
	string_copy(said->library, sizeof(said->library), "0.1.0");
	message->fds[message->nfds++] = copy_of(side.page.fd);
	message->fds[message->nfds++] = copy_of(side.life);
}

/* What a good broker would say of that type now. */
static void fill(struct message *message)
{
	switch (message->type) {
	case MSG_WELCOME:
		welcome(message);
		break;
	case MSG_REGISTERED:
		message->u.registered.state = STREW_GROUP_CURRENT;
		break;
	case MSG_CHECK:
		message->u.check.update = message->u.check.version = side.version + 1;
		break;
	case MSG_HOLD:
		message->u.hold.update = message->u.hold.version = side.version + 1;
		break;
	case MSG_DONE:
		message->u.done.update = message->u.done.version = ++side.version;
		message->u.done.outcome = STREW_OUTCOME_COMMITTED;
		message->u.done.state = STREW_GROUP_CURRENT;
		break;
	case MSG_RELEASED:
		message->u.released.version = side.version;
		break;
	case MSG_REPORT:
		message->u.report.version = side.version;
		message->u.report.outcome = STREW_OUTCOME_COMMITTED;
		break;
	default:
		break;
	}
}

static bool answer(void)
{
	struct message message;

	if (side.due) {
		message_init(&message, side.due, side.due_serial);
		side.due = 0;
	} else if (side.releases) {
		message_init(&message, MSG_RELEASED, 0);
		side.releases = false;
	} else if (side.reports) {
		message_init(&message, MSG_REPORT, 0);
		side.reports = false;
	} else {
		return false;
	}
	fill(&message);
	say(&message, 0);
	return true;
}

static void heard(const struct message *message)
{
	static const struct {
		enum message_type said, due;
	} answers[] = {{MSG_HELLO, MSG_WELCOME}, {MSG_REGISTER, MSG_REGISTERED},
		{MSG_TRAINER, MSG_DECLARED}, {MSG_WITHDRAW, MSG_OK}, {MSG_RESUME, MSG_OK},
		{MSG_PUBLISH, MSG_OK}, {MSG_SUBSET, MSG_OK}, {MSG_PUT, MSG_OK},
		{MSG_CANCEL, MSG_OK}};

	for (size_t i = 0; i < ARRAY_LEN(answers); i++) {
		if (answers[i].said == message->type) {
			side.due = answers[i].due;
			side.due_serial = message->serial;
		}
	}
	if (message->type == MSG_PUBLISH) {
		side.releases = true;
		side.reports = !(message->u.publish.flags & PUBLISH_PARTS);
		side.version = message->u.publish.version;
	} else if (message->type == MSG_PUT) {
		side.releases = message->u.put.subset != 0;
		side.reports = message->u.put.subset == 0;
	} else if (message->type == MSG_CANCEL) {
		side.reports = true;
	}
	says_known[message->serial % SAYS_KNOWN] = message->serial;
}

static void listen_to_agent(void)
{
	struct message message;
	struct error err;
	int rc;

	while ((rc = conn_receive(side.conn, &message, &err)) == 1) {
		heard(&message);
		message_finish(&message);
	}
	if (rc < 0) {
		/* Whatever is said to it, an agent keeps to the protocol. */
		CLAIM(rc != -EPROTO && rc != -E2BIG && rc != -ENOTSUP);
		hang_up();
	}
}

static void say_anything(void)
{
	static const enum message_type types[] = {MSG_WELCOME, MSG_ERROR, MSG_OK, MSG_REGISTERED,
		MSG_CHECK, MSG_HOLD, MSG_DONE, MSG_DECLARED, MSG_RELEASED, MSG_REPORT};
	uint8_t which = input_byte(side.input), how = input_byte(side.input);
	struct message message;

	message_init(&message, which < 128 ? types[which % ARRAY_LEN(types)] : says_type(which),
		how & 1	  ? side.due_serial
		: how & 2 ? says_number(side.input)
			  : 0);
	fill(&message);
	if (how & 4) {
		says_change(side.input, &message);
	}
	if (how & 8 && message.nfds < 4) {
		message.fds[message.nfds++] = copy_of(how & 16 ? side.page.fd : side.life);
	}
	say(&message, how & 32 ? input_byte(side.input) : 0);
}

static void tell_page(void)
{
	static const uint8_t states[] = {
		STREW_GROUP_CURRENT, STREW_GROUP_STALE, STREW_GROUP_DIRTY, STREW_GROUP_PENDING};
	uint8_t how = input_byte(side.input);

	if (how & 0x80) {
		page_store(&side.page, how % 4, says_number(side.input));
	} else {
		page_tell_group(
			&side.page, states[how % ARRAY_LEN(states)], says_number(side.input));
	}
}

/* world_turn of stand_in_time.c. */
static bool turn(void)
{
	const uint8_t *bytes;
	size_t n;

	if (side.conn) {
		listen_to_agent();
	}
	if (!side.conn) {
		if (side.input->left == 0) {
			die(); /* so that those who wait for its end do not wait for long */
		}
		return false;
	}
	if (side.rest) {
		says_send(conn_fd(side.conn), side.rest, side.nrest, NULL, 0);
		free(side.rest);
		side.rest = NULL;
		return true;
	}
	if (side.input->left == 0) {
		return answer();
	}
	switch (input_byte(side.input) % 12) {
	case 0:
		return false; /* silence */
	case 1:
		bytes = input_bytes(side.input, 64, &n);
		says_send(conn_fd(side.conn), bytes, n, NULL, 0);
		return true;
	case 2:
		hang_up();
		return true;
	case 3:
		die();
		return true;
	case 4:
		tell_page();
		return true;
	case 5:
	case 6:
	case 7:
		say_anything();
		return true;
	default:
		return answer();
	}
}

void broker_side_offer(void)
{
	struct error err;
	int pair[2];

	hang_up();
	sockets_drop();
	fd_close(&side.life);
	side.life = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	CLAIM(side.life >= 0);
	CLAIM(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair) == 0);
	CLAIM(conn_create(pair[0], true, &side.conn) == 0);
	CLAIM(page_create(&side.page, &err) == 0);
	sockets_dial_next(pair[1]);
}

unsigned char *broker_side_start(struct input *input)
{
	static unsigned char *memory;

	stand_ins_reset();
	if (!memory) {
		CLAIM(strew_host_alloc(SIDE_MEMORY, (void **)&memory) == 0);
	}
	memset(&side, 0, sizeof(side));
	side.input = input;
	side.page.fd = side.life = -1;
	side.fds = fuzz_open_fds();
	side.mappings = fuzz_mappings();
	world_turn = turn;
	return memory;
}

void broker_side_stop(void)
{
	hang_up();
	fd_close(&side.life);
	sockets_drop();
	world_turn = NULL;
	CLAIM(fuzz_open_fds() == side.fds);
	CLAIM(fuzz_mappings() == side.mappings);
}

void broker_side_returned(int rc, uint64_t start_ns, uint64_t timeout_ms)
{
	CLAIM(rc >= 0 || strew_error()[0]);
	CLAIM(clock_ns() - start_ns <= (timeout_ms + SLACK_MS) * 1000000u);
}
