/*
 * A joiner's part in an epoch: its data connection, its communicator, and what it says of them. The
 * last epoch that the lead has named counts; one that is still being made is given up for it.
 */
#include "base/clock.h"
#include "base/log.h"
#include "base/util.h"
#include "broker/join_internal.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

static void close_data(struct lead_link *link)
{
	loop_remove(link->data_source);
	link->data_source = NULL;
	fd_close(&link->data_connecting);
}

void join_forget_epoch(struct lead_link *link)
{
	close_data(link);
	if (link->data_fds) {
		fd_close(&link->data_fds[0]);
	}
	free(link->data_fds);
	link->data_fds = NULL;
	link->pending_due = link->submitted = false;
}

/* The mover makes one communicator at a time: a newer epoch waits until the older has ended. */
static void submit_pending(struct server *server)
{
	struct lead_link *link = &server->lead;
	int *fds = link->data_fds;

	if (!link->pending_due || server->epoch.job_running ||
		(link->pending.carrier == CARRIER_TCP && !fds)) {
		return;
	}
	link->pending_due = false;
	link->submitted = true;
	link->data_fds = NULL;
	epoch_submit(server, &link->pending, fds);
}

static void say_epoch(struct server *server, uint64_t epoch, int code, const char *text)
{
	struct message message;

	message_init(&message, MSG_EPOCH_READY, 0);
	message.u.epoch_ready.epoch = epoch;
	message.u.epoch_ready.code = code ? error_to_wire(code) : WIRE_OK;
	string_copy(message.u.epoch_ready.text, sizeof(message.u.epoch_ready.text), text);
	join_send(server, &message);
}

void join_epoch_made(struct server *server, struct job_epoch *job)
{
	struct epoch *epoch = &server->epoch;
	struct lead_link *link = &server->lead;

	if (!link->submitted) {
		/* A newer one was named, perhaps by another lead, while this one was made. */
		submit_pending(server);
		return;
	}
	if (job->job.rc) {
		log_warn("epoch %llu: %s", (unsigned long long)job->carrier.epoch,
			job->job.err.text);
		say_epoch(server, job->carrier.epoch, job->job.rc, job->job.err.text);
		return;
	}
	epoch->number = job->carrier.epoch;
	epoch->rank = job->carrier.rank;
	epoch->ranks = job->carrier.ranks;
	epoch->carrier = job->carrier.kind;
	epoch->slot_bytes = link->pending.slot_bytes;
	memcpy(epoch->brokers, link->pending_brokers, sizeof(epoch->brokers));
	epoch->state = EPOCH_READY;
	log_info("epoch %llu: rank %u of %u, communicator made in %.1f ms",
		(unsigned long long)epoch->number, epoch->rank, epoch->ranks,
		(double)job->elapsed_ns / 1e6);
	say_epoch(server, epoch->number, 0, "");
}

/* The data connection is decided: send its token, then it carries buckets only. */
static void on_data(void *data, uint32_t events)
{
	struct server *server = data;
	struct lead_link *link = &server->lead;
	struct message message;
	struct conn *conn;
	struct error err;
	int *fds;
	int rc;

	(void)events;
	rc = socket_connected(link->data_connecting, server->options.join, &err);
	loop_remove(link->data_source);
	link->data_source = NULL;
	fds = calloc(link->pending.ranks, sizeof(*fds));
	if (rc == 0 && !fds) {
		rc = error_set(&err, -ENOMEM, "out of memory");
	}
	for (uint32_t i = 0; fds && i < link->pending.ranks; i++) {
		fds[i] = -1;
	}
	if (rc == 0) {
		/* A copy of the descriptor goes to the carrier when the frame is out. */
		fds[0] = dup(link->data_connecting);
		rc = fds[0] < 0 ? error_set(&err, -EMFILE, "no descriptor is left")
				: conn_create(link->data_connecting, false, &conn);
	}
	if (rc == 0) {
		link->data_connecting = -1;
		message_init(&message, MSG_DATA, 0);
		message.u.data.epoch = link->pending.epoch;
		message.u.data.rank = link->pending.rank;
		seal_token(conn_guard(link->conn), link->pending.epoch, link->pending.rank,
			link->pending.token, message.u.data.token);
		rc = conn_send_wait(conn, &message, deadline_in_ms(1000), &err);
		conn_destroy(conn);
	}
	if (rc) {
		if (fds) {
			fd_close(&fds[0]);
		}
		free(fds);
		close_data(link);
		say_epoch(server, link->pending.epoch, rc, err.text);
		return;
	}
	link->data_fds = fds;
	submit_pending(server);
}

static int check_epoch(const struct server *server, const struct msg_epoch *said, struct error *err)
{
	if (said->nbrokers != said->ranks || !said->rank || said->rank >= said->ranks ||
		said->brokers[said->rank] != server->broker_id) {
		return error_set(err, -EPROTO,
			"epoch %llu does not name this broker as number %u "
			"of %u",
			(unsigned long long)said->epoch, said->rank, said->ranks);
	}
	/* What arrives is written into slots, which are as long as this broker has made them. */
	if (said->slot_bytes < LIMIT_SLOT_BYTES_MIN ||
		said->slot_bytes > server->options.slot_bytes) {
		return error_set(err, -EPROTO,
			"epoch %llu has slots of %llu bytes, this broker offers %llu",
			(unsigned long long)said->epoch, (unsigned long long)said->slot_bytes,
			(unsigned long long)server->options.slot_bytes);
	}
	return 0;
}

int join_take_epoch(struct server *server, const struct msg_epoch *said, struct error *ret_err)
{
	struct lead_link *link = &server->lead;
	char address[SOCKET_REMOTE_BYTES];
	struct error err;
	int rc = check_epoch(server, said, ret_err);

	if (rc) {
		return rc;
	}
	join_forget_epoch(link);
	link->pending = *said;
	link->pending.brokers = NULL;
	memcpy(link->pending_brokers, said->brokers, said->nbrokers * sizeof(*said->brokers));
	link->pending_due = true;
	server->epoch.state = EPOCH_MAKING;
	if (server->epoch.job_running) {
		atomic_store(&server->epoch.job.cancel, 1);
	}
	if (said->carrier == CARRIER_TCP) {
		/* To the very address that has shown the key: a name may have several, and looking
		 * it up may take longer than a lead waits for a word. */
		socket_remote(conn_fd(link->conn), address);
		rc = socket_connect_tcp(
			address, server->options.key_file != NULL, &link->data_connecting, &err);
		if (rc == 0) {
			rc = loop_add(server->loop, link->data_connecting, EPOLLOUT, on_data,
				server, &link->data_source);
		}
		if (rc) {
			close_data(link);
			say_epoch(server, said->epoch, rc, err.text);
		}
	} else {
		submit_pending(server);
	}
	return 0;
}
