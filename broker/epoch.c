/*
 * The lead's brokers and their communicator.
 *
 *   NONE ─a broker joined or was lost, or the carrier broke─► GATHERING
 *   GATHERING ─a moment has passed, no update runs─► NAMING ─unique id─► MAKING
 *   MAKING ─every member's communicator is warm─► READY
 *   MAKING ─deadline, or a failure─► the members that are not ready are dropped, GATHERING
 *
 * With no other broker there is no communicator: NAMING ends the last one, and
 * the state is NONE. Updates begin in NONE and READY only. A broker that is
 * dropped joins again by itself.
 */
#include "base/clock.h"
#include "base/log.h"
#include "base/util.h"
#include "broker/alive.h"
#include "broker/server.h"
#include "wire/handshake.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

static void on_member(void *data, uint32_t events);

struct member *member_by_rank(struct server *server, uint32_t rank)
{
	for (struct member *member = server->members; member; member = member->next) {
		if (member->state == MEMBER_IN_EPOCH && member->rank == rank) {
			return member;
		}
	}
	return NULL;
}

void member_send(struct member *member, struct message *message)
{
	struct error err;

	if (conn_send(member->conn, message, &err)) {
		log_debug("broker %s: %s", member->join.name, err.text);
		return;
	}
	loop_modify(member->source, EPOLLIN | (conn_wants_write(member->conn) ? EPOLLOUT : 0));
}

void member_refuse(struct member *member, uint64_t serial, const struct error *err)
{
	struct message message;

	message_init(&message, MSG_ERROR, serial);
	message.u.error.code = error_to_wire(err->code);
	string_copy(message.u.error.text, sizeof(message.u.error.text), err->text);
	member_send(member, &message);
}

static void member_free(struct member *member)
{
	struct member **link = &member->server->members;

	while (*link != member) {
		link = &(*link)->next;
	}
	*link = member->next;
	loop_remove(member->source);
	conn_destroy(member->conn);
	fd_close(&member->data_fd);
	blob_finish(&member->blob);
	member_recalls_free(member);
	free(member);
}

static void member_drop(struct member *member, const char *why)
{
	struct server *server = member->server;
	bool counted = member->state != MEMBER_CONNECTED;
	bool in_epoch = member->state == MEMBER_IN_EPOCH;
	uint32_t rank = member->rank;
	char name[ADDRESS_BYTES];

	string_copy(name, sizeof(name), member->join.name);
	if (counted) {
		log_warn("broker %s is gone: %s", name, why);
	} else {
		log_debug("a connection to the control port ended: %s", why);
	}
	missed_lost(member);
	/* First the ranks there: an update says whose memory it has lost. */
	member_ranks_lost(member);
	member_free(member);
	if (in_epoch) {
		lead_member_lost(server, rank, name);
	}
	if (counted) {
		epoch_changed(server);
	}
}

void members_drop_lost(struct server *server, const bool lost[LIMIT_BROKERS])
{
	struct member *next;

	for (struct member *member = server->members; member; member = next) {
		next = member->next;
		if (member->state == MEMBER_IN_EPOCH && lost[member->rank]) {
			member_drop(member, "it did not answer in an update");
		}
	}
}

void epoch_changed(struct server *server)
{
	struct epoch *epoch = &server->epoch;

	if (epoch->state == EPOCH_MAKING || epoch->state == EPOCH_NAMING) {
		atomic_store(&epoch->job.cancel, 1);
	}
	epoch->state = EPOCH_GATHERING;
	epoch->deadline = clock_ns() + LIMIT_GATHER_MS * 1000000ull;
}

static void end_ready(struct server *server)
{
	struct epoch *epoch = &server->epoch;

	epoch->state = EPOCH_READY;
	missed_stand(server);
	log_info("epoch %llu stands: %u brokers, %s", (unsigned long long)epoch->number,
		epoch->ranks, epoch->carrier == CARRIER_NCCL ? "NCCL" : "TCP");
	lead_ready(server);
}

static void check_ready(struct server *server)
{
	struct epoch *epoch = &server->epoch;

	if (epoch->state != EPOCH_MAKING || !epoch->own_ready) {
		return;
	}
	for (struct member *member = server->members; member; member = member->next) {
		if (member->state == MEMBER_IN_EPOCH && !member->ready) {
			return;
		}
	}
	end_ready(server);
}

/* Drops the members whose communicator is not made; they join again. */
static void drop_late(struct server *server)
{
	struct member *next;

	for (struct member *member = server->members; member; member = next) {
		next = member->next;
		if (member->state == MEMBER_IN_EPOCH && !member->ready) {
			member_drop(member, "it did not make its communicator in time");
		}
	}
	epoch_changed(server);
}

void epoch_made(struct job *job)
{
	struct job_epoch *work = (struct job_epoch *)job;
	struct server *server = work->data;
	struct epoch *epoch = &server->epoch;

	epoch->job_running = false;
	/* If there is a carrier for them, it has taken the descriptors, never the array. */
	for (uint32_t i = 0; work->carrier.data_fds && i < work->carrier.ranks; i++) {
		if (job->rc || work->carrier.kind != CARRIER_TCP) {
			fd_close(&work->carrier.data_fds[i]);
		}
	}
	free(work->carrier.data_fds);
	if (work->carrier.ranks > 1) {
		server_count_epoch(server);
	}
	if (!server_is_lead(server)) {
		join_epoch_made(server, work);
		return;
	}
	if (job->rc && job->rc != -ECANCELED) {
		log_warn("epoch %llu: %s", (unsigned long long)epoch->number, job->err.text);
	}
	if (epoch->state == EPOCH_NAMING && epoch->ranks == 1) {
		epoch->state = EPOCH_NONE;
		lead_ready(server);
	} else if (epoch->state == EPOCH_MAKING) {
		if (job->rc) {
			drop_late(server);
			return;
		}
		epoch->own_ready = true;
		log_info("communicator of epoch %llu was made in %.1f ms",
			(unsigned long long)epoch->number, (double)work->elapsed_ns / 1e6);
		check_ready(server);
	}
}

/* Hands the making of a communicator to the mover. Takes data_fds. */
void epoch_submit(struct server *server, const struct msg_epoch *said, int *data_fds)
{
	struct job_epoch *work = &server->epoch.job;

	memset(work, 0, sizeof(*work));
	work->job.run = job_epoch_run;
	work->job.done = epoch_made;
	work->moves = server->moves;
	work->carrier.kind = said->ranks > 1 ? (enum carrier_kind)said->carrier : CARRIER_NONE;
	work->carrier.epoch = said->epoch;
	work->carrier.rank = said->rank;
	work->carrier.ranks = said->ranks;
	memcpy(work->carrier.unique_id, said->unique_id, sizeof(work->carrier.unique_id));
	work->carrier.data_fds = data_fds;
	work->deadline = deadline_in_ms(LIMIT_EPOCH_MS);
	work->data = server;
	server->epoch.job_running = true;
	mover_submit(server->mover, &work->job);
}

/* Begins our own part once every data connection is there (NCCL needs none). */
static void try_submit(struct server *server)
{
	struct epoch *epoch = &server->epoch;
	struct msg_epoch said = {.epoch = epoch->number,
		.ranks = epoch->ranks,
		.carrier = epoch->carrier,
		.slot_bytes = epoch->slot_bytes};
	int *fds;

	if (epoch->state != EPOCH_MAKING || epoch->job_running || epoch->own_submitted) {
		return;
	}
	for (struct member *member = server->members; member; member = member->next) {
		if (epoch->carrier == CARRIER_TCP && member->state == MEMBER_IN_EPOCH &&
			member->data_fd < 0) {
			return;
		}
	}
	fds = malloc(epoch->ranks * sizeof(*fds));
	if (!fds) {
		server_fatal(server, "out of memory");
		return;
	}
	for (uint32_t i = 0; i < epoch->ranks; i++) {
		struct member *member = i ? member_by_rank(server, i) : NULL;

		fds[i] = member ? fd_take(&member->data_fd) : -1;
	}
	memcpy(said.unique_id, epoch->unique_id, sizeof(said.unique_id));
	epoch->own_submitted = true;
	epoch_submit(server, &said, fds);
}

static void send_epoch(struct server *server)
{
	struct epoch *epoch = &server->epoch;
	struct message message;

	epoch->state = EPOCH_MAKING;
	epoch->own_ready = epoch->own_submitted = false;
	epoch->deadline = deadline_in_ms(LIMIT_EPOCH_MS);
	for (struct member *member = server->members; member; member = member->next) {
		if (member->state != MEMBER_IN_EPOCH) {
			continue;
		}
		message_init(&message, MSG_EPOCH, 0);
		message.u.epoch.epoch = epoch->number;
		message.u.epoch.rank = member->rank;
		message.u.epoch.ranks = epoch->ranks;
		message.u.epoch.carrier = epoch->carrier;
		message.u.epoch.slot_bytes = epoch->slot_bytes;
		message.u.epoch.brokers = epoch->brokers;
		message.u.epoch.nbrokers = epoch->ranks;
		memcpy(message.u.epoch.unique_id, epoch->unique_id, UNIQUE_ID_BYTES);
		memcpy(message.u.epoch.token, epoch->token, TOKEN_BYTES);
		member_send(member, &message);
	}
	try_submit(server);
}

struct id_job {
	struct job job;
	struct server *server;
	uint64_t epoch;
	uint8_t id[UNIQUE_ID_BYTES];
};

static void run_id(struct job *job)
{
	struct id_job *work = (struct id_job *)job;

	job->rc = nccl_unique_id(work->id, &job->err);
}

static void id_made(struct job *job)
{
	struct id_job *work = (struct id_job *)job;
	struct server *server = work->server;
	struct epoch *epoch = &server->epoch;

	if (epoch->state == EPOCH_NAMING && epoch->number == work->epoch) {
		if (job->rc) {
			server_fatal(server, job->err.text);
		} else {
			memcpy(epoch->unique_id, work->id, sizeof(work->id));
			send_epoch(server);
		}
	}
	free(work);
}

static void make_id(struct server *server)
{
	struct id_job *work = calloc(1, sizeof(*work));

	if (!work) {
		server_fatal(server, "out of memory");
		return;
	}
	work->job.run = run_id;
	work->job.done = id_made;
	work->server = server;
	work->epoch = server->epoch.number;
	mover_submit(server->mover, &work->job);
}

static void send_manifests(struct member *member)
{
	for (struct model *model = member->server->models; model; model = model->next) {
		lead_send_manifest(model, member);
	}
}

static void epoch_start(struct server *server)
{
	struct epoch *epoch = &server->epoch;
	struct msg_epoch alone = {.ranks = 1};

	epoch->number++;
	epoch->ranks = 1;
	epoch->rank = 0;
	epoch->brokers[0] = server->broker_id;
	epoch->slot_bytes = server->options.slot_bytes;
	for (struct member *member = server->members; member; member = member->next) {
		if (member->state == MEMBER_CONNECTED) {
			continue;
		}
		if (member->state == MEMBER_JOINED) {
			/* Not before: an update that runs meanwhile would be missed unsaid. */
			send_manifests(member);
		}
		member->state = MEMBER_IN_EPOCH;
		member->rank = epoch->ranks++;
		epoch->brokers[member->rank] = member->join.broker_id;
		member->ready = false;
		fd_close(&member->data_fd);
		epoch->slot_bytes = MIN(epoch->slot_bytes, member->join.slot_bytes);
	}
	epoch->carrier = epoch->ranks == 1			   ? CARRIER_NONE
			 : gpu_info(server->gpu)->kind == GPU_CUDA ? CARRIER_NCCL
								   : CARRIER_TCP;
	epoch->state = EPOCH_NAMING;
	epoch->deadline = deadline_in_ms(LIMIT_EPOCH_MS);
	if (random_bytes(epoch->token, sizeof(epoch->token))) {
		server_fatal(server, "no random numbers from the kernel");
	} else if (epoch->ranks == 1) {
		epoch_submit(server, &alone, NULL);
	} else if (epoch->carrier == CARRIER_NCCL) {
		make_id(server);
	} else {
		send_epoch(server);
	}
}

static void member_tick(struct member *member, uint64_t now)
{
	struct message alive;
	char text[64];

	if (member->state == MEMBER_CONNECTED) {
		if (now >= member->deadline) {
			member_drop(member, "join did not come in time");
		}
	} else if (alive_is_silent(member->conn, now)) {
		snprintf(text, sizeof(text), "it was not heard for %u s", LIMIT_SILENT_MS / 1000);
		member_drop(member, text);
	} else if (alive_is_to_speak(member->conn, now)) {
		message_init(&alive, MSG_ALIVE, 0);
		member_send(member, &alive);
	}
}

void epoch_tick(struct server *server, uint64_t now)
{
	struct epoch *epoch = &server->epoch;

	for (struct member *member = server->members, *next; member; member = next) {
		next = member->next;
		member_tick(member, now);
	}
	if (epoch->state == EPOCH_GATHERING && now >= epoch->deadline && !lead_busy(server) &&
		server->node.stage == NODE_IDLE && !epoch->job_running) {
		epoch_start(server);
	} else if (epoch->state == EPOCH_MAKING && now >= epoch->deadline && !epoch->job_running) {
		drop_late(server);
	}
}

uint64_t epoch_due(const struct server *server)
{
	const struct epoch *epoch = &server->epoch;
	uint64_t due = UINT64_MAX;

	if ((epoch->state == EPOCH_GATHERING && !lead_busy(server) &&
		    server->node.stage == NODE_IDLE && !epoch->job_running) ||
		(epoch->state == EPOCH_MAKING && !epoch->job_running)) {
		due = epoch->deadline;
	}
	for (const struct member *member = server->members; member; member = member->next) {
		due = MIN(due, member->state == MEMBER_CONNECTED ? member->deadline
								 : alive_due(member->conn));
	}
	return due;
}

static int take_join(struct member *member, const struct message *message, struct error *err)
{
	struct server *server = member->server;
	struct msg_join known[LIMIT_BROKERS];
	struct message reply;
	size_t n = 0;
	int rc;

	join_fill(server, &known[n++]);
	for (struct member *other = server->members; other; other = other->next) {
		if (other->state != MEMBER_CONNECTED && n < LIMIT_BROKERS) {
			known[n++] = other->join;
		}
	}
	member->join = message->u.join;
	rc = admit_check(&message->u.join, known, n, err);
	if (rc) {
		return rc;
	}
	member->state = MEMBER_JOINED;
	conn_set_most(member->conn, LIMIT_FRAME_BYTES);
	log_info("broker %s joined", member->join.name);
	message_init(&reply, MSG_JOINED, message->serial);
	reply.u.joined.broker_id = server->broker_id;
	member_send(member, &reply);
	epoch_changed(server);
	return 0;
}

/* A data connection: it belongs to the member of that rank from now on. */
static int take_data(struct member *connection, const struct msg_data *data, struct error *err)
{
	struct server *server = connection->server;
	struct epoch *epoch = &server->epoch;
	struct member *member = member_by_rank(server, data->rank);
	uint8_t token[TOKEN_BYTES];

	if (epoch->state != EPOCH_MAKING || epoch->own_submitted || data->epoch != epoch->number ||
		!member || member->data_fd >= 0) {
		return error_set(err, -EPROTO, "a data connection that no epoch waits for");
	}
	seal_token(conn_guard(member->conn), epoch->number, member->rank, epoch->token, token);
	if (!seal_token_equal(data->token, token)) {
		return error_set(err, -EPROTO, "a data connection that no epoch waits for");
	}
	member->data_fd = dup(conn_fd(connection->conn));
	if (member->data_fd < 0) {
		return error_set(err, -EMFILE, "no descriptor is left");
	}
	member_free(connection);
	try_submit(server);
	return 0;
}

/* One message; 0 if the member still stands and more may be read. */
static int member_message(struct member *member, const struct message *message, struct error *err)
{
	struct server *server = member->server;

	if (member->state == MEMBER_CONNECTED) {
		if (member_keyed(member, message, err)) {
			return err->code;
		}
		if (message->type == MSG_NONCE && !conn_guard(member->conn)) {
			return member_nonce(member, &message->u.nonce, err);
		}
		if (message->type == MSG_JOIN) {
			return take_join(member, message, err);
		}
		if (message->type == MSG_DATA) {
			int rc = take_data(member, &message->u.data, err);

			return rc ? rc : 1;
		}
		return error_set(
			err, -EPROTO, "message %s came before join", message_name(message->type));
	}
	switch (message->type) {
	case MSG_EPOCH_READY:
		if (message->u.epoch_ready.epoch != server->epoch.number ||
			server->epoch.state != EPOCH_MAKING) {
			return 0; /* of an epoch that was given up */
		}
		if (message->u.epoch_ready.code) {
			return error_set(err, -EIO, "it could not make its communicator: %.180s",
				message->u.epoch_ready.text);
		}
		if (!server->epoch.own_submitted) {
			return error_set(err, -EPROTO,
				"epoch_ready without a data connection: nothing can be ready "
				"before the lead's own part has begun");
		}
		member->ready = true;
		check_ready(server);
		return 0;
	case MSG_ACCEPT:
	case MSG_MOVED:
	case MSG_PREPARED:
	case MSG_APPLIED:
		if (member->state == MEMBER_IN_EPOCH) {
			lead_answer(server, member->rank, message->type, &message->u.groups);
		}
		return 0;
	case MSG_PART:
		return member_part(member, &message->u.part, err);
	case MSG_DECLARE:
		return member_declare(member, message, err);
	case MSG_UNDECLARE:
		return member_undeclare(member, message, err);
	case MSG_RANK_PUBLISH:
		return member_publish(member, message, err);
	case MSG_RANK_PUT:
		return member_put(member, message, err);
	case MSG_RANK_CANCEL:
		return member_cancel(member, message, err);
	case MSG_RANK_SUBSET:
		return member_subset(member, message, err);
	case MSG_RANK_DONE:
		return member_done(member, &message->u.rank_done, err);
	case MSG_RECALL:
		return member_recall(member, &message->u.recall, err);
	case MSG_ALIVE:
		return 0;
	case MSG_BYE:
		member->left = true;
		return error_set(err, -ECONNRESET, "it left");
	default:
		return error_set(err, -EPROTO, "message %s is not for the lead",
			message_name(message->type));
	}
}

static void on_member(void *data, uint32_t events)
{
	struct member *member = data;
	struct message message;
	struct error err;
	int rc, budget = MESSAGES_A_ROUND;

	if (events & EPOLLOUT) {
		conn_flush(member->conn);
		loop_modify(
			member->source, EPOLLIN | (conn_wants_write(member->conn) ? EPOLLOUT : 0));
	}
	do {
		bool joining = member->state == MEMBER_CONNECTED;

		rc = conn_receive(member->conn, &message, &err);
		if (rc == 0) {
			return;
		}
		if (rc > 0) {
			rc = member_message(member, &message, &err);
			if (rc < 0 && joining) {
				member_warn(member, err.text);
				member_refuse(member, message.serial, &err);
			}
			message_finish(&message);
		} else if (rc == -EPERM) {
			if (joining) {
				member_warn(member, err.text);
			} else {
				log_warn(
					"dropping the broker at %s: %s", member->address, err.text);
			}
			/* With another key it cannot read this, and says just that. */
			member_refuse(member, 0, &err);
		}
	} while (rc == 0 && --budget > 0);
	if (rc < 0) {
		member_drop(member, err.text);
	}
}

/*
 * There are at most twice as many connections as brokers. One too many ends the oldest of those
 * that have not joined, so that who holds them all open keeps out nobody who comes and joins.
 */
static void make_room(struct server *server)
{
	struct member *oldest = NULL;
	unsigned n = 0;

	for (struct member *member = server->members; member; member = member->next, n++) {
		oldest = member->state == MEMBER_CONNECTED ? member : oldest;
	}
	if (n >= 2 * LIMIT_BROKERS && oldest) {
		member_drop(oldest, "others came, and it had not joined");
	}
}

void members_accept(void *data, uint32_t events)
{
	struct server *server = data;
	struct member *member;
	int fd, rc = 0, budget = LIMIT_BROKERS;

	(void)events;
	/* Who connects without end is not served without end: the rest comes in the next round. */
	while (budget-- > 0 && (rc = socket_accept(server->tcp_listener, &fd)) == 0) {
		make_room(server);
		member = calloc(1, sizeof(*member));
		if (!member) {
			close(fd);
			continue;
		}
		member->server = server;
		member->data_fd = -1;
		socket_remote(fd, member->address);
		member->deadline = deadline_in_ms(LIMIT_HELLO_MS);
		if (conn_create(fd, false, &member->conn)) {
			close(fd);
			free(member);
			continue;
		}
		conn_set_most(member->conn, LIMIT_FIRST_FRAME_BYTES);
		if (loop_add(server->loop, conn_fd(member->conn), EPOLLIN, on_member, member,
			    &member->source)) {
			conn_destroy(member->conn);
			free(member);
			continue;
		}
		member->next = server->members;
		server->members = member;
	}
	if (rc) {
		server_accept_ended(server, rc);
	}
}

void members_drop_all(struct server *server)
{
	struct message message;

	while (server->members) {
		message_init(&message, MSG_BYE, 0);
		member_send(server->members, &message);
		member_ranks_lost(server->members);
		member_free(server->members);
	}
}
