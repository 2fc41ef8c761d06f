/*
 * The node's Unix socket: agents come, say hello, register or declare, and are
 * answered. What a message means is session.c's; this file carries out verdicts,
 * owns the connections, and hands memory to the mover to map and unmap.
 *
 * A client that is gone stays allocated until the mover has unmapped its memory:
 * `jobs` counts what the mover still holds of it.
 */
#include "base/clock.h"
#include "base/log.h"
#include "base/util.h"
#include "broker/server.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

static void on_client(void *data, uint32_t events);

void client_send(struct client *client, struct message *message)
{
	struct error err;

	if (client->gone) {
		message_close_fds(message);
		return;
	}
	if (conn_send(client->conn, message, &err)) {
		/* The end of file will be seen by the loop; dropping here would surprise callers.
		 */
		log_debug("client %llu: %s", (unsigned long long)client->id, err.text);
		return;
	}
	loop_modify(client->source, (uint32_t)conn_events(client->conn));
}

void client_error(struct client *client, uint64_t serial, int code, const char *text)
{
	struct message message;

	message_init(&message, MSG_ERROR, serial);
	message.u.error.code = error_to_wire(code);
	string_copy(message.u.error.text, sizeof(message.u.error.text), text);
	client_send(client, &message);
}

void client_ok(struct client *client, uint64_t serial, uint64_t value)
{
	struct message message;

	message_init(&message, MSG_OK, serial);
	message.u.ok.value = value;
	client_send(client, &message);
}

static void client_free(struct client *client)
{
	struct client **link = &client->server->clients;

	while (*link != client) {
		link = &(*link)->next;
	}
	*link = client->next;
	client->server->nclients--;
	client->server->nlookers -= client->looker;
	page_finish(&client->theirs);
	page_finish(&client->ours);
	session_finish(&client->session);
	free(client);
}

static void client_put(struct client *client)
{
	if (client->gone && client->jobs == 0 && !client->release_due) {
		client_free(client);
	}
}

void client_job_done(struct client *client)
{
	client->jobs--;
	client_put(client);
}

static void released(struct job *job)
{
	struct job_release *work = (struct job_release *)job;
	struct client *client = work->data;

	client->jobs--;
	/* The mover has emptied them. */
	free(client->session.worker);
	free(client->session.holder);
	client->session.worker = NULL;
	client->session.holder = NULL;
	/* What ended badly before it may still copy: then only our process's end is a promise. */
	if (client->gone && !client->server->abandoned) {
		page_store(&client->ours, WORD_QUIET, 1);
	}
	if (!client->gone) {
		client->session.state = SESSION_OPEN;
		client_ok(client, client->withdraw_serial, 0);
		log_info("worker %d was withdrawn from model %s", (int)client->peer.pid,
			client->session.reg.model);
	}
	free(work);
	client_put(client);
}

/* Hands the client's memory to the mover, which unmaps it after what it runs now. */
static void client_release(struct client *client, uint64_t crew_key)
{
	struct job_release *work = calloc(1, sizeof(*work));

	if (!work) {
		server_fatal(client->server, "out of memory");
		return;
	}
	work->job.run = job_release_run;
	work->job.done = released;
	work->moves = client->server->moves;
	work->worker = client->session.worker;
	work->holder = client->session.holder;
	work->crew_key = crew_key;
	work->data = client;
	client->jobs++;
	mover_submit(client->server->mover, &work->job);
}

void client_drop(struct client *client, const char *why)
{
	bool known = client->session.state >= SESSION_SEALED;

	if (client->gone) {
		return;
	}
	if (why && known) {
		log_info("%s %d of model %s: %s", client->session.worker ? "worker" : "trainer",
			(int)client->peer.pid,
			client->session.worker ? client->session.reg.model
					       : client->session.trainer.model,
			why);
	} else if (why) {
		log_debug("client %llu: %s", (unsigned long long)client->id, why);
	}
	client->gone = true;
	mover_unwatch(client->server->mover, &client->watch);
	loop_remove(client->source);
	client->source = NULL;
	conn_destroy(client->conn);
	client->conn = NULL;
	if (client->session.state < SESSION_SEALED && client->ours.words) {
		page_store(&client->ours, WORD_QUIET, 1); /* none of its memory was mapped */
	}
	if (client->session.state == SESSION_LEAVING) {
		/* Its release is under way. */
	} else if (client->session.state >= SESSION_SEALED) {
		uint64_t key = client->team ? client->team->key : 0;

		team_leave(client, true);
		rank_gone(client);
		/* A commit may still need the plans of what the trainer had declared. */
		if (client->session.holder && client->server->node.stage != NODE_IDLE) {
			client->release_due = true;
		} else {
			client_release(client, key);
		}
	}
	client_put(client);
}

void clients_release_due(struct server *server)
{
	struct client *next;

	for (struct client *client = server->clients; client; client = next) {
		next = client->next;
		if (client->release_due) {
			client->release_due = false;
			client_release(client, 0);
		}
	}
}

static void log_mapped(const struct client *client, uint64_t elapsed_ns)
{
	const struct session *session = &client->session;
	const struct exports *exports =
		session->worker ? &session->worker->exports : &session->holder->exports;
	char text[32], shadow[32];

	log_info("%s %d mapped %zu allocations, %s, shadow %s, in %.1f ms",
		session->worker ? "worker" : "trainer", (int)client->peer.pid, exports->nhandles,
		format_bytes(text, sizeof(text), exports_bytes(exports)),
		format_bytes(shadow, sizeof(shadow),
			session->worker ? session->worker->shadow_bytes : 0),
		(double)elapsed_ns / 1e6);
}

static void imported(struct job *job)
{
	struct job_import *work = (struct job_import *)job;
	struct client *client = work->data;

	client->jobs--;
	if (client->gone) {
		client_put(client);
	} else if (job->rc) {
		client_error(client, client->session.seal_serial, job->rc, job->err.text);
		client_drop(client, job->err.text);
	} else {
		client->session.state = SESSION_LIVE;
		log_mapped(client, work->elapsed_ns);
		if (client->session.worker) {
			team_join(client);
		} else {
			rank_mapped(client);
		}
	}
	free(work);
}

/* A registration or declaration is whole: takes its place, then has its memory mapped. */
static void import(struct client *client)
{
	struct session *session = &client->session;
	struct job_import *work;
	struct error err;
	int rc = session->worker ? team_place(client, &err) : rank_place(client, &err);

	if (rc) {
		client_error(client, session->seal_serial, rc, err.text);
		session_reset(session);
		return;
	}
	work = calloc(1, sizeof(*work));
	if (!work) {
		client_drop(client, "out of memory");
		return;
	}
	work->job.run = job_import_run;
	work->job.done = imported;
	work->moves = client->server->moves;
	work->worker = session->worker;
	work->holder = session->holder;
	work->data = client;
	client->jobs++;
	mover_submit(client->server->mover, &work->job);
}

static int welcome(struct client *client, struct message *hello, struct error *err)
{
	struct server *server = client->server;
	struct message message;
	int rc = room_welcomes(client, err);

	if (rc) {
		log_warn("refused process %d: %s", (int)client->peer.pid, err->text);
		return rc;
	}
	if (hello->nfds) {
		rc = page_map(hello->fds[0], &client->theirs, err);
		if (rc) {
			return rc;
		}
	} else if (client->session.hello.role != ROLE_OBSERVER) {
		return error_set(err, -EPROTO, "hello came without the process's page");
	}
	rc = page_create(&client->ours, err);
	if (rc) {
		return rc;
	}
	page_store(&client->ours, WORD_WRITTEN, WRITTEN_NONE);
	message_init(&message, MSG_WELCOME, hello->serial);
	message.u.welcome.protocol = PROTOCOL_VERSION;
	message.u.welcome.broker_id = server->broker_id;
	message.u.welcome.pid = (uint64_t)getpid();
	message.u.welcome.pid_namespace = socket_pid_namespace();
	string_copy(message.u.welcome.backend, sizeof(message.u.welcome.backend),
		gpu_info(server->gpu)->kind_name);
	string_copy(message.u.welcome.library, sizeof(message.u.welcome.library), STREW_VERSION);
	message.fds[0] = dup(client->ours.fd);
	message.fds[1] = socket_pidfd(getpid());
	message.nfds = message.fds[1] >= 0 ? 2 : 1;
	if (message.fds[0] < 0) {
		message_finish(&message);
		return error_set(err, -EMFILE, "no descriptor is left");
	}
	client_send(client, &message);
	client->deadline = DEADLINE_NEVER;
	return 0;
}

static void step_member(struct client *client, enum group_event_type type, const char *text)
{
	struct group_event event = {.type = type, .member = client->member, .text = text};

	if (client->team) {
		team_step(client->server, client->team, &event);
		node_advance(client->server);
	}
}

void client_watch(
	struct client *client, size_t word, uint64_t value, void (*hit)(struct watch *watch))
{
	struct mover *mover = client->server->mover;

	mover_unwatch(mover, &client->watch);
	client->watch.page = &client->theirs;
	client->watch.word = word;
	client->watch.value = value;
	client->watch.hit = hit;
	client->watch.data = client;
	mover_watch(mover, &client->watch);
}

static void gate_held(struct watch *watch)
{
	step_member(watch->data, GE_READY, NULL);
}

static void take_ready(struct client *client, const struct msg_ready *ready)
{
	client_watch(client, WORD_READY, ready->word, gate_held);
}

static void take_checked(struct client *client, const struct msg_checked *checked)
{
	char text[LIMIT_TEXT_BYTES];

	if (!client->team || client->team->group.update != checked->update) {
		return;
	}
	if (checked->code == WIRE_OK) {
		step_member(client, GE_CHECKED, NULL);
		return;
	}
	snprintf(text, sizeof(text), "worker %u: %.220s", client->member, checked->text);
	step_member(client, GE_REFUSE, text);
}

/* A copy that failed has written in part. */
static void take_pulled(struct client *client, const struct msg_checked *pulled)
{
	struct group_event event = {.type = GE_PULLED, .member = client->member, .touched = true};
	char text[LIMIT_TEXT_BYTES];

	if (!client->team || client->team->group.update != pulled->update) {
		return;
	}
	if (pulled->code != WIRE_OK) {
		snprintf(text, sizeof(text), "worker %u: %.220s", client->member, pulled->text);
		event.type = GE_FAILED;
		event.text = text;
	}
	if (client->team->group.phase == PHASE_COMMITTING) {
		team_step(client->server, client->team, &event);
		node_advance(client->server);
	}
}

static void take_withdraw(struct client *client, const struct message *message)
{
	uint64_t key = client->team ? client->team->key : 0;

	client->withdraw_serial = message->serial;
	mover_unwatch(client->server->mover, &client->watch);
	team_leave(client, false);
	client_release(client, key);
}

static void carry_out(struct client *client, struct message *message, enum session_verdict verdict,
	struct error *err)
{
	switch (verdict) {
	case VERDICT_NONE:
		break;
	case VERDICT_WELCOME:
		if (welcome(client, message, err)) {
			client_error(client, message->serial, err->code, err->text);
			client_drop(client, err->text);
		}
		break;
	case VERDICT_WORKER:
	case VERDICT_HOLDER:
		import(client);
		break;
	case VERDICT_WITHDRAW:
		take_withdraw(client, message);
		break;
	case VERDICT_CHECKED:
		take_checked(client, &message->u.checked);
		break;
	case VERDICT_PULLED:
		take_pulled(client, &message->u.checked);
		break;
	case VERDICT_READY:
		take_ready(client, &message->u.ready);
		break;
	case VERDICT_RESUME:
		client->resume_serial = message->serial;
		step_member(client, GE_RESUME, NULL);
		break;
	case VERDICT_PUBLISH:
		if (server_is_lead(client->server)) {
			lead_publish(client, message);
		} else {
			ranks_publish(client, message);
		}
		break;
	case VERDICT_PUT:
		if (server_is_lead(client->server)) {
			lead_put(client, message);
		} else {
			ranks_put(client, message);
		}
		break;
	case VERDICT_CANCEL:
		if (server_is_lead(client->server)) {
			lead_cancel(client, message);
		} else {
			ranks_cancel(client, message);
		}
		break;
	case VERDICT_SUBSET:
		if (server_is_lead(client->server)) {
			lead_subset(client, message);
		} else {
			ranks_subset(client, message);
		}
		break;
	case VERDICT_STATUS:
		status_answer(client, message->serial);
		break;
	case VERDICT_PROGRESS:
		progress_answer(client, message->serial);
		break;
	case VERDICT_EVENTS:
		events_answer(client, message);
		break;
	case VERDICT_EXPLAIN:
		explain_answer(client, message);
		break;
	case VERDICT_LAYOUT:
		layout_answer(client, message);
		break;
	case VERDICT_READ:
		read_begin(client, message);
		break;
	}
}

/* One message; false when the client is gone. */
static bool client_message(struct client *client, struct message *message)
{
	enum session_verdict verdict = VERDICT_NONE;
	struct error err, refusal;
	int rc = session_receive(&client->session, message,
		gpu_info(client->server->gpu)->kind_name, &verdict, &err);

	if (rc == 0 && !room_check(client, &refusal)) {
		session_refuse(&client->session, &refusal);
	}
	if (client->session.state == SESSION_FILLING && client->deadline == DEADLINE_NEVER) {
		client->deadline = deadline_in_ms(LIMIT_REGISTER_MS);
	} else if (client->session.state != SESSION_FILLING &&
		   client->session.state != SESSION_HELLO) {
		client->deadline = DEADLINE_NEVER;
	}
	if (rc) {
		client_error(client, message->serial, rc, err.text);
		if (rc == -EPROTO) {
			log_warn("dropping process %d: %s", (int)client->peer.pid, err.text);
			client_drop(client, err.text);
		}
		return !client->gone;
	}
	carry_out(client, message, verdict, &err);
	return !client->gone;
}

/* What takes milliseconds where models are large. Of those one is answered in a round, as 64 of
 * each of a few connections would be seconds for all others. */
static bool is_dear(enum message_type type)
{
	return type == MSG_EXPLAIN || type == MSG_LAYOUT || type == MSG_SUBSET || type == MSG_SEAL;
}

static void on_client(void *data, uint32_t events)
{
	struct client *client = data;
	struct message message;
	struct error err;
	int rc, budget = MESSAGES_A_ROUND;

	if (client->gone) {
		return;
	}
	client->jobs++; /* so that a drop inside does not free it under our feet */
	if (events & EPOLLOUT) {
		conn_flush(client->conn);
		loop_modify(client->source, (uint32_t)conn_events(client->conn));
	}
	/* A budget, so that one busy peer does not starve the others. */
	while (budget-- > 0) {
		bool on;

		rc = conn_receive(client->conn, &message, &err);
		if (rc < 0) {
			if (rc != -ECONNRESET) {
				client_error(client, 0, rc, err.text);
				log_warn(
					"dropping process %d: %s", (int)client->peer.pid, err.text);
			}
			client_drop(client, err.text);
			break;
		}
		if (rc == 0) {
			break;
		}
		budget = is_dear(message.type) ? 0 : budget;
		on = client_message(client, &message);
		message_finish(&message);
		if (!on) {
			break;
		}
	}
	client->jobs--;
	client_put(client);
}

static int client_create(struct server *server, int fd, bool looker)
{
	struct client *client = calloc(1, sizeof(*client));
	int rc;

	if (!client) {
		close(fd);
		return -ENOMEM;
	}
	client->server = server;
	client->id = ++server->next_id;
	client->looker = looker;
	client->theirs.fd = client->ours.fd = -1;
	client->deadline = deadline_in_ms(LIMIT_HELLO_MS);
	rc = socket_peer(fd, &client->peer);
	if (rc == 0 && client->peer.uid != geteuid() && client->peer.uid != 0) {
		log_warn("refused process %d of uid %d", (int)client->peer.pid,
			(int)client->peer.uid);
		rc = -EPERM;
	}
	if (rc) {
		close(fd);
		free(client);
		return rc;
	}
	rc = conn_create(fd, true, &client->conn);
	if (rc) {
		close(fd);
		free(client);
		return rc;
	}
	rc = loop_add(
		server->loop, conn_fd(client->conn), EPOLLIN, on_client, client, &client->source);
	if (rc) {
		conn_destroy(client->conn);
		free(client);
		return rc;
	}
	client->next = server->clients;
	server->clients = client;
	server->nclients++;
	server->nlookers += looker;
	return 0;
}

void clients_accept(void *data, uint32_t events)
{
	struct server *server = data;
	int fd, rc = 0, budget = ACCEPTS_A_ROUND;
	bool looker;

	(void)events;
	/* As for members: who connects and hangs up without end is not served without end. */
	while (budget-- > 0 && (rc = socket_accept(server->listener, &fd)) == 0) {
		if (!room_for_client(server, &looker)) {
			log_warn("refused a connection: %zu are open", server->nclients);
			close(fd);
			continue;
		}
		client_create(server, fd, looker);
	}
	if (rc) {
		server_accept_ended(server, rc);
	}
}

void clients_tick(struct server *server, uint64_t now)
{
	struct client *next;

	for (struct client *client = server->clients; client; client = next) {
		next = client->next;
		if (!client->gone && client->deadline <= now) {
			client_error(client, 0, -ETIMEDOUT,
				client->session.state == SESSION_HELLO
					? "hello did not come in time"
					: "the registration was not sealed in time");
			client_drop(client, "too slow");
		}
	}
}

uint64_t clients_due(const struct server *server)
{
	uint64_t due = UINT64_MAX;

	for (const struct client *client = server->clients; client; client = client->next) {
		if (!client->gone) {
			due = MIN(due, client->deadline);
		}
	}
	return due;
}

void clients_drop_all(struct server *server)
{
	struct client *client = server->clients;

	/* Dropping one may free it, and only it. */
	while (client) {
		struct client *next = client->next;

		client_drop(client, NULL);
		client = next;
	}
}
