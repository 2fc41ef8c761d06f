#include "cli/push_look.h"
#include "base/util.h"
#include "cli/ask.h"
#include "cli/cli.h"
#include "ipc/socket.h"
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <strew/types.h>
#include <string.h>

/* NULL: nobody answers. */
static struct conn *open_quietly(const char *socket)
{
	struct error err = {0};
	struct message welcome;
	struct conn *conn = NULL;
	char path[108];

	if (socket_path(socket, path, &err) < 0 || ask_connect(path, &conn, &welcome, &err)) {
		return NULL;
	}
	message_finish(&welcome);
	return conn;
}

/* Each model once, as long as there is room. */
static void list_models(const struct msg_status_reply *status, char text[LIMIT_TEXT_BYTES])
{
	size_t n = 0;

	text[0] = '\0';
	for (size_t i = 0; i < status->ngroups; i++) {
		const char *name = status->groups[i].model;
		bool said = false;

		for (size_t j = 0; j < i; j++) {
			said = said || strcmp(status->groups[j].model, name) == 0;
		}
		if (!said && n + strlen(name) + 32 < LIMIT_TEXT_BYTES) {
			n += (size_t)snprintf(text + n, LIMIT_TEXT_BYTES - n, "%s%s",
				n ? ", " : "; registered here: ", name);
		}
	}
	if (!n) {
		string_copy(text, LIMIT_TEXT_BYTES, "; no worker is registered here");
	}
}

void push_look_models(const char *socket, char text[LIMIT_TEXT_BYTES])
{
	struct conn *conn = open_quietly(socket);
	struct error err = {0};
	struct message reply;

	text[0] = '\0';
	if (conn && status_ask(conn, &reply, &err) == 0) {
		list_models(&reply.u.status_reply, text);
		message_finish(&reply);
	}
	conn_destroy(conn);
}

/* The version that the lead will want to be exceeded: the model's, else its workers'. */
static uint64_t committed_version(const struct msg_status_reply *status, const char *model)
{
	uint64_t version = 0;

	for (size_t i = 0; i < status->ntrainers; i++) {
		if (strcmp(status->trainers[i].model, model) == 0) {
			return status->trainers[i].version;
		}
	}
	for (size_t i = 0; i < status->ngroups; i++) {
		const struct status_group *group = &status->groups[i];

		if (strcmp(group->model, model) == 0 && group->state == STREW_GROUP_CURRENT) {
			version = MAX(version, group->version);
		}
	}
	return version;
}

static int look_at_status(
	const struct push_look *look, const struct msg_status_reply *status, struct error *err)
{
	uint64_t committed = committed_version(status, look->model);
	char models[LIMIT_TEXT_BYTES];
	bool any = false;

	if (look->version <= committed) {
		return error_set(err, -ESTALE,
			"version %" PRIu64 " of %s is not above the committed version %" PRIu64,
			look->version, look->model, committed);
	}
	for (size_t i = 0; i < status->ngroups; i++) {
		any = any || strcmp(status->groups[i].model, look->model) == 0;
	}
	if (!any && status->nbrokers <= 1) {
		list_models(status, models);
		return error_set(err, -ENOENT,
			"version %" PRIu64 " of %s has nowhere to go: no worker of this model is "
			"registered%s",
			look->version, look->model, models);
	}
	return 0;
}

/* Is the tensor a worker's of that model? 1: yes, 0: no, else nobody knows. */
static int is_wanted(struct conn *conn, const char *model, const char *name)
{
	struct error err = {0};
	uint64_t from = 0, total = 1;
	bool wanted = false;

	while (from < total && !wanted) {
		struct message question, answer;
		size_t n;
		int rc;

		message_init(&question, MSG_EXPLAIN, 3);
		string_copy(question.u.explain.name, sizeof(question.u.explain.name), name);
		string_copy(question.u.explain.model, sizeof(question.u.explain.model), model);
		question.u.explain.from = from;
		rc = ask(conn, &question, MSG_EXPLAINED, &answer, &err);
		if (rc) {
			return rc == -ENOENT ? 0 : rc;
		}
		n = answer.u.explained.nrows;
		for (size_t i = 0; i < n; i++) {
			const struct explained *row = &answer.u.explained.rows[i];

			/* The name may be a parameter's, too. */
			wanted = wanted ||
				 (row->kind == EXPLAINED_PIECE && strcmp(row->tensor, name) == 0);
		}
		from += n;
		total = n ? answer.u.explained.total : 0;
		message_finish(&answer);
	}
	return wanted;
}

static int look_at_tensors(const struct push_look *look, struct conn *conn, struct error *err)
{
	const struct checkpoint *checkpoint = look->partial;

	for (size_t i = 0; i < checkpoint->nshards; i++) {
		const struct safetensors *file = &checkpoint->shards[i].file;

		for (size_t j = 0; j < file->ntensors; j++) {
			if (is_wanted(conn, look->model, file->tensors[j].tensor.name)) {
				return 0;
			}
		}
	}
	return error_set(err, -ENOENT,
		"no worker of %s wants any of the checkpoint's %zu tensors: version %" PRIu64
		" would change nothing",
		look->model, checkpoint->ntensors, look->version);
}

int push_look(const struct push_look *look, struct error *err)
{
	struct conn *conn = open_quietly(look->socket);
	struct error unsaid = {0};
	struct message reply;
	bool alone;
	int rc = 0;

	if (!conn || status_ask(conn, &reply, &unsaid)) {
		conn_destroy(conn);
		return 0;
	}
	if (reply.u.status_reply.lead) {
		rc = look_at_status(look, &reply.u.status_reply, err);
	}
	alone = reply.u.status_reply.lead && reply.u.status_reply.nbrokers <= 1;
	message_finish(&reply);
	if (rc == 0 && look->partial && alone) {
		rc = look_at_tensors(look, conn, err);
	}
	conn_destroy(conn);
	return rc;
}

/* The model's, if it has an update; else one that is in the way, since a broker has one at a time.
 */
static const struct progress *find_progress(
	const struct msg_progress_reply *reply, const char *model)
{
	const struct progress *found = NULL;

	for (size_t i = 0; i < reply->nmodels; i++) {
		const struct progress *now = &reply->models[i];

		if (strcmp(now->stage, "idle") == 0) {
			continue;
		}
		if (strcmp(now->model, model) == 0) {
			return now;
		}
		found = now;
	}
	return found;
}

void push_look_progress(const char *socket, const char *model, char text[LIMIT_TEXT_BYTES])
{
	struct conn *conn = open_quietly(socket);
	struct message question, progress, status;
	struct error err = {0};
	const struct progress *now;

	text[0] = '\0';
	message_init(&question, MSG_PROGRESS, 2);
	if (!conn || ask(conn, &question, MSG_PROGRESS_REPLY, &progress, &err)) {
		conn_destroy(conn);
		return;
	}
	now = find_progress(&progress.u.progress_reply, model);
	if (now) {
		error_set(&err, 0, "; version %" PRIu64 " of %s: %s%s%s", now->version, now->model,
			now->stage, now->awaited[0] ? ", waits for " : "", now->awaited);
		string_copy(text, LIMIT_TEXT_BYTES, err.text); /* cut where it is too long */
	} else if (status_ask(conn, &status, &err) == 0) {
		if (!status.u.status_reply.lead) {
			string_copy(text, LIMIT_TEXT_BYTES,
				"; no update is under way here: the lead, which it asks, may be "
				"the silent one");
		}
		message_finish(&status);
	}
	message_finish(&progress);
	conn_destroy(conn);
}
