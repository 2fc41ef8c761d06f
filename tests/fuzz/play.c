#include "fuzz/play.h"
#include "base/clock.h"
#include "base/util.h"
#include <errno.h>
#include <limits.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define SETTLE_TURNS 12
#define UPDATE_EVERY 8
#define READS 64 /* messages that an end takes in one turn */

struct play play;

/* Between inputs. */
static unsigned fds_before;
static long mappings_before;

static void allow_signals(void)
{
	sigset_t set;

	/* The broker takes them for itself; whoever runs a fuzzer wants to stop it. */
	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGINT);
	sigprocmask(SIG_UNBLOCK, &set, NULL);
}

static void play_start(enum play_role role)
{
	struct server_options options = {.socket = "/nowhere/strew",
		.listen = role == PLAY_LEADS ? "127.0.0.1:1" : NULL,
		.join = role == PLAY_JOINS ? "127.0.0.1:1" : NULL,
		.backend = GPU_HOST,
		.slot_bytes = LIMIT_SLOT_BYTES_MIN,
		.slots = LIMIT_SLOTS_MIN,
		.ready_fd = -1,
		.join_timeout_s = 60};
	struct error err;

	stand_ins_reset();
	memset(&play, 0, sizeof(play));
	play_blob(0); /* makes what stays before it is counted */
	/* Anew each time: the sanitizers open descriptors when they first name a function. */
	fds_before = fuzz_open_fds();
	mappings_before = fuzz_mappings();
	CLAIM(server_create(&options, &play.server, &err) == 0);
	allow_signals();
	server_start(play.server);
	play_turn(1);
}

struct end *play_end(enum end_kind kind, int fd)
{
	for (unsigned i = 0; i < ENDS; i++) {
		struct end *end = &play.ends[i];

		if (end->kind == END_NONE) {
			memset(end, 0, sizeof(*end));
			end->kind = kind;
			end->page.fd = -1;
			CLAIM(conn_create(fd, kind == END_CLIENT, &end->conn) == 0);
			return end;
		}
	}
	close(fd);
	return NULL;
}

void end_close(struct end *end)
{
	if (end->kind != END_NONE) {
		conn_destroy(end->conn);
		page_finish(&end->page);
		blob_finish(&end->blob);
		end->kind = END_NONE;
	}
}

void end_send_bytes(struct end *end, const uint8_t *bytes, size_t n, const int *fds, unsigned nfds)
{
	size_t first = MIN(end->cut, n);
	enum end_kind kind = end->kind;

	if (n == 0 || kind == END_NONE) {
		return;
	}
	end->cut = 0;
	if (first == 0) {
		says_send(conn_fd(end->conn), bytes, n, fds, nfds);
		return;
	}
	says_send(conn_fd(end->conn), bytes, first, fds, nfds);
	play_turn(1);
	/* It may have been closed, or be another one by now. */
	if (end->kind == kind && first < n) {
		says_send(conn_fd(end->conn), bytes + first, n - first, NULL, 0);
	}
}

void end_send(struct end *end, struct message *message)
{
	size_t len = 0;
	uint8_t *frame = says_encode(message, &len);

	if (frame) {
		end_send_bytes(end, frame, len, message->fds, message->nfds);
	}
	free(frame);
	message_close_fds(message);
	says_finish(message);
}

static void heard(struct end *end, struct message *message)
{
	end->heard[message->type]++;
	if (end->kind == END_CLIENT) {
		client_heard(end, message);
	} else if (end->kind == END_MEMBER) {
		member_heard(end, message);
	} else if (end->kind == END_LEAD) {
		lead_heard(end, message);
	}
}

static void drop_bytes(int fd)
{
	static char bytes[1 << 16];

	while (recv(fd, bytes, sizeof(bytes), MSG_DONTWAIT) > 0) {
	}
}

static void end_read(struct end *end)
{
	struct message message;
	struct error err;
	int rc = 1;

	if (end->kind == END_DATA) {
		drop_bytes(conn_fd(end->conn));
		return;
	}
	for (unsigned i = 0; rc == 1 && i < READS && end->kind != END_NONE; i++) {
		rc = conn_receive(end->conn, &message, &err);
		if (rc == 1) {
			heard(end, &message);
			message_finish(&message);
		}
	}
	if (rc < 0) {
		/* Whatever is said to it, a broker keeps to the protocol. */
		CLAIM(rc != -EPROTO && rc != -E2BIG && rc != -ENOTSUP);
		end_close(end);
	}
}

/* The connections that the broker has made: to its lead, and one that carries buckets. */
static void take_dialled(void)
{
	struct end *end;
	bool tcp, linked = false;
	int fd;

	while ((fd = sockets_dialled(&tcp)) >= 0) {
		for (unsigned i = 0; i < ENDS; i++) {
			linked |= play.ends[i].kind == END_LEAD;
		}
		end = play_end(linked ? END_DATA : END_LEAD, fd);
		if (end && end->kind == END_DATA) {
			/* What the carrier says first: the epoch, bucket 0, no bytes. */
			uint64_t header[3] = {play.server->lead.pending.epoch, 0, 0};

			end_send_bytes(end, (const uint8_t *)header, sizeof(header), NULL, 0);
		} else if (end) {
			end->automatic = true;
		}
	}
}

void play_turn(unsigned n)
{
	while (n-- > 0 && !play.server->stop) {
		mover_look_at_all(play.server->mover);
		server_round(play.server);
		take_dialled();
		if (!play.held) {
			mover_run(play.server->mover, UINT_MAX);
		}
		for (unsigned i = 0; i < ENDS; i++) {
			if (play.ends[i].kind != END_NONE && !play.ends[i].mute) {
				end_read(&play.ends[i]);
			}
			if (play.ends[i].kind == END_MEMBER) {
				member_turn(&play.ends[i]);
			}
		}
	}
}

/* A process that does nothing wrong is served, whoever else is there. */
static void claim_served(void)
{
	struct end *end = client_connect();
	struct message message;

	if (!end) {
		end_close(&play.ends[0]);
		end = client_connect();
	}
	CLAIM(end);
	client_hello(end, ROLE_OBSERVER);
	message_init(&message, MSG_STATUS, 2);
	end_send(end, &message);
	play_turn(4);
	if (play.server->stop) {
		return; /* its lead has refused it */
	}
	CLAIM(end->kind == END_CLIENT);
	CLAIM(end->heard[MSG_WELCOME] == 1 && end->heard[MSG_STATUS_REPLY] == 1);
	end_close(end);
}

/* Silent peers end in time what they are waited for; the longest update has an hour. */
static void claim_ends(void)
{
	for (unsigned i = 0; i < 3; i++) {
		time_pass(LIMIT_UPDATE_MAX_MS + 1000);
		play_turn(3);
	}
	play_turn(3);
	if (server_is_lead(play.server)) {
		CLAIM(!lead_busy(play.server));
		CLAIM(play.server->node.stage == NODE_IDLE);
	}
	CLAIM(play.server->stop || mover_pending(play.server->mover) == 0);
}

static void claim_left(void)
{
	for (unsigned i = 0; i < ENDS; i++) {
		end_close(&play.ends[i]);
	}
	for (unsigned i = 0; i < 3; i++) {
		time_pass(1000);
		play_turn(2);
	}
	CLAIM(!play.server->clients && play.server->nclients == 0);
	CLAIM(!play.server->members && !lead_busy(play.server));
	for (const struct model *model = play.server->models; model; model = model->next) {
		CLAIM(model->ranks == 0);
	}
	for (const struct team *team = play.server->teams; team; team = team->next) {
		CLAIM(team->group.npresent == 0);
	}
}

/* One version at once, or in two parts. */
static void publish_good(struct end *trainer, bool parts)
{
	if (!parts) {
		client_publish(trainer, 7);
		play_turn(SETTLE_TURNS);
		return;
	}
	client_subset(trainer, 1, 5);
	client_subset(trainer, 2, 2);
	client_open_parts(trainer, 7, 2);
	play_turn(SETTLE_TURNS);
	CLAIM(trainer->heard[MSG_RELEASED] == 1 && trainer->heard[MSG_REPORT] == 0);
	client_put(trainer, 1);
	play_turn(SETTLE_TURNS);
	CLAIM(trainer->heard[MSG_RELEASED] == 2 && trainer->heard[MSG_REPORT] == 0);
	client_put(trainer, 0);
	play_turn(SETTLE_TURNS);
}

static void claim_update(bool parts)
{
	struct msg_register reg = {.model = "good",
		.members = 1,
		.gate = STREW_GATE_HELD,
		.apply = STREW_APPLY_STAGED};
	struct end *worker = client_connect(), *trainer = client_connect();

	play_poison_memory();
	worker->automatic = trainer->automatic = true;
	client_hello(worker, ROLE_WORKER);
	client_hello(trainer, ROLE_TRAINER);
	client_register(worker, reg, play_blob(SAID_LAYOUT));
	client_declare(
		trainer, (struct msg_trainer){.model = "good", .ranks = 1}, play_blob(SAID_WHOLE));
	play_turn(4);
	CLAIM(worker->heard[MSG_REGISTERED] == 1 && trainer->heard[MSG_DECLARED] == 1);
	publish_good(trainer, parts);
	CLAIM(trainer->heard[MSG_REPORT] == 1 && trainer->outcome == STREW_OUTCOME_COMMITTED);
	CLAIM(worker->heard[MSG_DONE] == 1 && play_memory_arrived());
	end_close(worker);
	end_close(trainer);
	play_turn(2);
}

static void play_stop(bool update, bool parts)
{
	bool alone = server_is_lead(play.server);

	play.held = false;
	sockets_refuse(false);
	for (unsigned i = 0; i < ENDS; i++) {
		play.ends[i].mute = false;
	}
	CLAIM(!alone || !play.server->stop);
	if (!play.server->stop) {
		play_turn(2);
		claim_served();
		claim_ends();
	}
	if (alone) {
		claim_left();
		if (update) {
			claim_update(parts);
		}
		CLAIM(!play.server->stop);
	}
	server_destroy(play.server);
	for (unsigned i = 0; i < ENDS; i++) {
		end_close(&play.ends[i]);
	}
	sockets_drop();
	CLAIM(fuzz_open_fds() == fds_before);
	CLAIM(fuzz_mappings() == mappings_before);
}

void play_input(
	enum play_role role, const uint8_t *data, size_t size, play_op *const *ops, size_t nops)
{
	struct input input = {data, size};
	unsigned sum = 0;

	for (size_t i = 0; i < size; i++) {
		sum = sum * 31 + data[i];
	}
	play_start(role);
	play_script(&input, ops, nops);
	play_stop(sum % UPDATE_EVERY == 0, sum % (2 * UPDATE_EVERY) == 0);
}
