/*
 * For strew verify: the layouts of the workers here, what trainer ranks have declared, and
 * stretches of their live memory. Whoever may read all of it must be the broker's own user. One
 * job a reader, of a bounded length, and none while the node is in an update: so no update waits
 * for more than one.
 */
#include "base/util.h"
#include "broker/server.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* What may be read of it; NULL: nothing. */
static struct exports *readable(const struct client *client)
{
	const struct session *session = &client->session;

	if (client->gone || session->state != SESSION_LIVE) {
		return NULL;
	}
	if (client->team && session->worker) {
		return &session->worker->exports;
	}
	return client->model && client->declared && session->holder ? &session->holder->exports
								    : NULL;
}

/* What it holds: a group's version, or the last one that was committed of a trainer's model. */
static void tell_version(const struct client *client, uint32_t *ret_state, uint64_t *ret_version)
{
	*ret_state = client->team ? group_state(&client->team->group) : STREW_GROUP_CURRENT;
	*ret_version = client->team ? client->team->group.version : client->model->committed;
}

static bool allowed(struct client *client, const struct message *message)
{
	if (client->peer.uid == geteuid()) {
		return true;
	}
	client_error(client, message->serial, -EPERM,
		"the memory of workers and trainers is read for the broker's own user alone");
	return false;
}

static int list_twins(const struct exports *exports, struct msg_laid_out *said)
{
	said->twins = calloc(exports->nhandles + 1, sizeof(*said->twins));
	for (size_t i = 0; said->twins && i < exports->nhandles; i++) {
		if (exports->handles[i].pull) {
			said->twins[said->ntwins++] = i;
		}
	}
	return said->twins ? 0 : -ENOMEM;
}

static void tell_who(const struct client *client, struct msg_laid_out *said)
{
	said->worker = client->id;
	said->pid = (uint64_t)client->peer.pid;
	tell_version(client, &said->state, &said->version);
	if (!client->team) {
		string_copy(said->model, sizeof(said->model), client->model->name);
		said->member = client->session.holder->rank;
		return;
	}
	string_copy(said->model, sizeof(said->model), client->team->group.model);
	said->replica = client->team->group.replica;
	said->part = client->team->group.part;
	said->member = client->member;
	said->partial = client->session.reg.partial != 0;
}

static int lay_out(struct client *asker, const struct client *client, struct msg_laid_out *said,
	struct error *err)
{
	const struct holder *holder = client->session.holder;
	struct blob blob = {0};
	int rc = client->team ? blob_from_layout(&client->session.worker->layout, &blob, err)
			      : blob_from_manifest(&holder->declared, holder->sources, &blob, err);

	/* The answer is queued as a whole. */
	if (rc == 0 && blob.len > LIMIT_OUTBOX_BYTES / 2) {
		rc = error_set(err, -E2BIG, "%zu bytes are not sent to who only looks", blob.len);
	}
	if (rc == 0 && list_twins(readable(client), said)) {
		rc = error_set(err, -ENOMEM, "out of memory");
	}
	if (rc == 0) {
		tell_who(client, said);
		said->parts = blob_parts(&blob);
		said->bytes = blob.len;
		said->hash = blob_hash(&blob);
		rc = blob_send(
			asker->conn, &blob, client->team ? PART_LAYOUT : PART_DECLARATION, err);
	}
	blob_finish(&blob);
	return rc;
}

/* By id, so that none is met twice when others come and go meanwhile. */
void layout_answer(struct client *client, const struct message *message)
{
	const struct client *found = NULL;
	struct message answer;
	struct error err;
	int rc = 0;

	if (!allowed(client, message)) {
		return;
	}
	for (const struct client *each = client->server->clients; each; each = each->next) {
		if (readable(each) && (each->team == NULL) == (message->u.layout.trainers != 0) &&
			each->id > message->u.layout.after && (!found || each->id < found->id)) {
			found = each;
		}
	}
	message_init(&answer, MSG_LAID_OUT, message->serial);
	if (found) {
		rc = lay_out(client, found, &answer.u.laid_out, &err);
	}
	if (rc) {
		client_error(client, message->serial, rc, err.text);
	} else {
		client_send(client, &answer);
	}
	message_finish(&answer);
}

static void read_done(struct job *job)
{
	struct job_read *work = (struct job_read *)job;
	struct client *reader = work->reader, *owner = work->owner;
	struct message answer;

	reader->reading = false;
	if (job->rc) {
		client_error(reader, work->serial, job->rc, job->err.text);
	} else if (!readable(owner)) {
		client_error(reader, work->serial, -ECONNRESET, "it has left");
	} else {
		message_init(&answer, MSG_READ_OUT, work->serial);
		tell_version(owner, &answer.u.read_out.state, &answer.u.read_out.version);
		answer.fds[answer.nfds++] = fd_take(&work->fd);
		client_send(reader, &answer);
		reader->read_out = true;
	}
	fd_close(&work->fd);
	free(work);
	client_job_done(owner);
	client_job_done(reader);
}

/* Between updates, and not in a reader's own way. */
static bool idle(const struct client *reader)
{
	const struct server *server = reader->server;

	return server->node.stage == NODE_IDLE && !lead_busy(server) && !server->draining;
}

static int find(const struct client *reader, const struct msg_read *asked,
	struct client **ret_owner, struct error *err)
{
	struct client *owner = reader->server->clients;
	const struct exports *exports;
	const struct handle *handle;

	while (owner && (owner->id != asked->worker || !readable(owner))) {
		owner = owner->next;
	}
	if (!owner) {
		return error_set(err, -ENOENT, "it has left");
	}
	exports = readable(owner);
	if (asked->allocation >= exports->nhandles) {
		return error_set(err, -ERANGE, "it has no allocation %u", asked->allocation);
	}
	handle = &exports->handles[asked->allocation];
	if (asked->bytes == 0 || asked->bytes > LIMIT_READ_BYTES ||
		asked->offset > handle->size_bytes ||
		asked->bytes > handle->size_bytes - asked->offset) {
		return error_set(err, -ERANGE,
			"%llu bytes from %llu of an allocation of %llu: at most %u are read at "
			"once",
			(unsigned long long)asked->bytes, (unsigned long long)asked->offset,
			(unsigned long long)handle->size_bytes, LIMIT_READ_BYTES);
	}
	*ret_owner = owner;
	return 0;
}

/* An answer holds up to LIMIT_READ_BYTES until the reader has it, wherever it waits: one at a time.
 */
static bool has_taken(struct client *reader)
{
	reader->read_out = reader->read_out && !conn_is_taken(reader->conn);
	return !reader->read_out;
}

void read_begin(struct client *client, const struct message *message)
{
	const struct msg_read *asked = &message->u.read;
	struct client *owner = NULL;
	struct job_read *work;
	struct error err;
	int rc;

	if (!allowed(client, message)) {
		return;
	}
	rc = find(client, asked, &owner, &err);
	if (rc == 0 && !idle(client)) {
		rc = error_set(&err, -EBUSY, "an update is under way");
	} else if (rc == 0 && client->reading) {
		rc = error_set(&err, -EBUSY, "the last read is not answered yet");
	} else if (rc == 0 && !has_taken(client)) {
		rc = error_set(&err, -EBUSY, "read the answer to the last read first");
	}
	work = rc ? NULL : calloc(1, sizeof(*work));
	if (rc == 0 && !work) {
		rc = error_set(&err, -ENOMEM, "out of memory");
	}
	if (rc) {
		client_error(client, message->serial, rc, err.text);
		return;
	}
	work->job.run = job_read_run;
	work->job.done = read_done;
	work->moves = client->server->moves;
	work->exports = readable(owner);
	work->allocation = asked->allocation;
	work->offset = asked->offset;
	work->bytes = asked->bytes;
	work->fd = -1;
	work->reader = client;
	work->owner = owner;
	work->serial = message->serial;
	client->reading = true;
	client->jobs++;
	owner->jobs++;
	mover_submit(client->server->mover, &work->job);
}
