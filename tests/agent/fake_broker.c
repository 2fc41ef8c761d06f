#include "fake_broker.h"
#include "base/clock.h"
#include "base/util.h"
#include "ipc/socket.h"
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#define PATIENCE_MS 10000

void fake_expect(struct fake *fake, enum message_type type, struct message *ret_message)
{
	struct error err = {0};
	int rc = conn_receive_wait(fake->conn, deadline_in_ms(PATIENCE_MS), ret_message, &err);

	if (rc != 1 || ret_message->type != type) {
		fprintf(stderr, "expected %s, got %s (%d, %s)\n", message_name(type),
			rc == 1 ? message_name(ret_message->type) : "nothing", rc, err.text);
		abort();
	}
	/* Only parts borrow from the payload, and they are read elsewhere. */
	free(ret_message->owned);
	ret_message->owned = NULL;
}

void fake_expect_end(struct fake *fake)
{
	struct message message;
	struct error err = {0};

	EXPECT(conn_receive_wait(fake->conn, deadline_in_ms(PATIENCE_MS), &message, &err) ==
		-ECONNRESET);
}

void fake_send(struct fake *fake, struct message *message)
{
	struct error err = {0};

	EXPECT(conn_send_wait(fake->conn, message, deadline_in_ms(PATIENCE_MS), &err) == 0);
}

void fake_ok(struct fake *fake, uint64_t serial)
{
	struct message message;

	message_init(&message, MSG_OK, serial);
	fake_send(fake, &message);
}

void fake_error(struct fake *fake, uint64_t serial, int code, const char *text)
{
	struct message message;

	message_init(&message, MSG_ERROR, serial);
	message.u.error.code = error_to_wire(code);
	string_copy(message.u.error.text, sizeof(message.u.error.text), text);
	fake_send(fake, &message);
}

void fake_take_share(struct fake *fake, enum message_type opening)
{
	struct message message;
	struct error err = {0};
	uint64_t serial;
	uint32_t count;

	fake_expect(fake, opening, &message);
	fake->reg = message.u.reg;
	serial = message.serial;
	count = message.u.reg.allocations;
	if (opening == MSG_TRAINER) {
		fake->trainer = message.u.trainer;
		count = message.u.trainer.allocations;
	}
	message_finish(&message);
	EXPECT(count <= FAKE_ALLOCATIONS);
	for (fake->nallocations = 0; fake->nallocations < count; fake->nallocations++) {
		fake_expect(fake, MSG_ALLOCATION, &message);
		EXPECT(message.serial == serial && message.nfds == 1);
		EXPECT(message.u.allocation.index == fake->nallocations);
		fake->allocations[fake->nallocations] = message.u.allocation;
		fake->allocations[fake->nallocations].chunk_bytes = NULL;
		fake->fds[fake->nallocations] = fd_take(&message.fds[0]);
		message_finish(&message);
	}
	for (;;) {
		EXPECT(conn_receive_wait(fake->conn, deadline_in_ms(PATIENCE_MS), &message, &err) ==
			1);
		if (message.type == MSG_SEAL) {
			break;
		}
		EXPECT(message.type == MSG_PART);
		EXPECT(blob_append(&fake->blob, &message.u.part, &err) == 0);
		message_finish(&message);
	}
	EXPECT(message.serial == serial);
	EXPECT(blob_check(&fake->blob, message.u.seal.parts, message.u.seal.bytes,
		       message.u.seal.hash, &err) == 0);
	fake->seal_serial = message.serial;
	message_finish(&message);
}

void fake_registered(struct fake *fake, enum strew_group_state state, uint64_t version)
{
	struct message message;

	message_init(&message, MSG_REGISTERED, fake->seal_serial);
	message.u.registered.state = state;
	message.u.registered.version = version;
	fake_send(fake, &message);
}

void fake_serve_register(struct fake *fake)
{
	fake_take_share(fake, MSG_REGISTER);
	fake_registered(fake, STREW_GROUP_CURRENT, 1);
}

static void ask_check(
	struct fake *fake, uint64_t update, uint64_t version, struct message *ret_message)
{
	struct message message;

	message_init(&message, MSG_CHECK, 0);
	message.u.check.update = update;
	message.u.check.version = version;
	fake_send(fake, &message);
	fake_expect(fake, MSG_CHECKED, ret_message);
	EXPECT(ret_message->u.checked.update == update);
}

void fake_check_says(struct fake *fake, uint64_t update, uint64_t version, const char *text)
{
	struct message message;

	ask_check(fake, update, version, &message);
	EXPECT(message.u.checked.code == WIRE_STALE_VERSION);
	EXPECT(strcmp(message.u.checked.text, text) == 0);
	message_finish(&message);
}

void fake_check(struct fake *fake, uint64_t update, uint64_t version, uint32_t expected_code)
{
	struct message message;

	ask_check(fake, update, version, &message);
	EXPECT(message.u.checked.code == expected_code);
	EXPECT((message.u.checked.text[0] != '\0') == (expected_code != WIRE_OK));
	message_finish(&message);
}

void fake_hold(struct fake *fake, uint64_t update, uint64_t version)
{
	struct message message;

	message_init(&message, MSG_HOLD, 0);
	message.u.hold.update = update;
	message.u.hold.version = version;
	fake_send(fake, &message);
}

void fake_done(struct fake *fake, uint64_t update, uint64_t version, enum strew_outcome outcome,
	enum strew_group_state state)
{
	struct message message;

	message_init(&message, MSG_DONE, 0);
	message.u.done.update = update;
	message.u.done.version = version;
	message.u.done.outcome = outcome;
	message.u.done.state = state;
	if (outcome != STREW_OUTCOME_COMMITTED) {
		string_copy(message.u.done.text, sizeof(message.u.done.text), "because");
	}
	fake_send(fake, &message);
}

void fake_raw(struct fake *fake, const void *bytes, size_t len)
{
	EXPECT(send(conn_fd(fake->conn), bytes, len, MSG_NOSIGNAL) == (ssize_t)len);
}

void fake_drop(struct fake *fake)
{
	shutdown(conn_fd(fake->conn), SHUT_RDWR);
}

static void welcome(struct fake *fake, const struct message *hello)
{
	struct message message;
	struct error err = {0};

	EXPECT(page_map(hello->fds[0], &fake->theirs, &err) == 0);
	EXPECT(page_create(&fake->ours, &err) == 0);
	message_init(&message, MSG_WELCOME, hello->serial);
	message.u.welcome.protocol = PROTOCOL_VERSION;
	message.u.welcome.broker_id = 7;
	message.u.welcome.pid = (uint64_t)(fake->child ? fake->child : getpid());
	message.u.welcome.pid_namespace =
		fake->pid_namespace ? fake->pid_namespace : socket_pid_namespace();
	string_copy(message.u.welcome.backend, sizeof(message.u.welcome.backend),
		fake->backend ? fake->backend : "host");
	string_copy(message.u.welcome.library, sizeof(message.u.welcome.library), "0.1.0");
	message.fds[0] = dup(fake->ours.fd);
	message.fds[1] = socket_pidfd(fake->child ? fake->child : getpid());
	EXPECT(message.fds[0] >= 0 && message.fds[1] >= 0);
	message.nfds = 2;
	fake_send(fake, &message);
}

static void *serve(void *data)
{
	struct fake *fake = data;
	struct pollfd listener = {.fd = fake->listener, .events = POLLIN};
	struct message hello;
	int fd;

	EXPECT(poll(&listener, 1, PATIENCE_MS) == 1);
	EXPECT(socket_accept(fake->listener, &fd) == 0);
	EXPECT(conn_create(fd, true, &fake->conn) == 0);
	fake_expect(fake, MSG_HELLO, &hello);
	EXPECT(hello.nfds == 1 && hello.u.hello.protocol == PROTOCOL_VERSION);
	EXPECT(hello.u.hello.pid_namespace == socket_pid_namespace());
	if (fake->greeting) {
		fake->greeting(fake, &hello);
	} else {
		welcome(fake, &hello);
	}
	message_finish(&hello);
	if (fake->script) {
		fake->script(fake);
	}
	return NULL;
}

void fake_start(struct fake *fake)
{
	struct error err = {0};

	if (fake->mortal) {
		fake->child = fork();
		EXPECT(fake->child >= 0);
		if (fake->child == 0) {
			/* Who runs the tests waits for whoever has their output. */
			prctl(PR_SET_PDEATHSIG, SIGKILL);
			for (;;) {
				pause();
			}
		}
	}
	fake->theirs.fd = fake->ours.fd = -1;
	for (size_t i = 0; i < FAKE_ALLOCATIONS; i++) {
		fake->fds[i] = -1;
	}
	if (fake->at) {
		string_copy(fake->path, sizeof(fake->path), fake->at);
	} else {
		strcpy(fake->directory, "/tmp/strew-agent-XXXXXX");
		EXPECT(mkdtemp(fake->directory));
		snprintf(fake->path, sizeof(fake->path), "%s/socket", fake->directory);
	}
	if (socket_listen_unix(fake->path, &fake->listener, &err)) {
		fprintf(stderr, "%s\n", err.text);
		abort();
	}
	EXPECT(pthread_create(&fake->thread, NULL, serve, fake) == 0);
}

void fake_kill(struct fake *fake)
{
	if (fake->child) {
		kill(fake->child, SIGKILL);
		waitpid(fake->child, NULL, 0);
		fake->child = 0;
	}
}

void fake_stop(struct fake *fake)
{
	char lock[128];

	pthread_join(fake->thread, NULL);
	fake_kill(fake);
	conn_destroy(fake->conn);
	page_finish(&fake->theirs);
	page_finish(&fake->ours);
	blob_finish(&fake->blob);
	for (size_t i = 0; i < FAKE_ALLOCATIONS; i++) {
		fd_close(&fake->fds[i]);
	}
	close(fake->listener);
	unlink(fake->path);
	snprintf(lock, sizeof(lock), "%s.lock", fake->path);
	unlink(lock);
	if (!fake->at) {
		rmdir(fake->directory);
	}
	memset(fake, 0, sizeof(*fake));
}

int fake_memory_make(void **pointer)
{
	return strew_host_alloc(4096, *pointer);
}

int fake_memory_free(void **pointer)
{
	strew_host_free(*(void **)*pointer);
	return 0;
}
