/* The answer to progress: how far each model's update is, and who has to do what before it goes
 * on. Only looks. */
#include "base/util.h"
#include "broker/server.h"
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Adds to a list in a text that ends in "…" when it is full. */
__attribute__((format(printf, 2, 3))) static void add(char *text, const char *format, ...)
{
	size_t n = strlen(text), left = LIMIT_TEXT_BYTES - n;
	char one[LIMIT_TEXT_BYTES];
	va_list args;

	va_start(args, format);
	vsnprintf(one, sizeof(one), format, args);
	va_end(args);
	if (n && strlen(one) + 8 > left) {
		if (left > 6 && strcmp(text + n - 3, "…") != 0) {
			memcpy(text + n, ", …", 6);
		}
		return;
	}
	snprintf(text + n, left, "%s%s", n ? ", " : "", one);
}

static const char *place_of(const struct client *client, char *buf, size_t size)
{
	snprintf(buf, size, "process %d", client ? (int)client->peer.pid : 0);
	return buf;
}

/* What members of a group that has not said its word have still to do. */
static void await_team(const struct team *team, char *awaited)
{
	const struct group *group = &team->group;
	char place[32];

	for (uint32_t i = 0; i < group->nmembers; i++) {
		const struct group_member *member = &group->members[i];

		place_of(team->clients[i], place, sizeof(place));
		if (group->phase == PHASE_CHECKING && !member->checked) {
			add(awaited, "%s to look at its memory", place);
		} else if ((group->phase == PHASE_HOLDING || group->phase == PHASE_GATING) &&
			   !member->ready) {
			add(awaited, "the gate of %s", place);
		} else if (group->phase == PHASE_COMMITTING && member->pulls && !member->pulled) {
			add(awaited, "%s to copy what it pulls", place);
		}
	}
}

/* What this broker's own part waits for. */
static void await_here(const struct server *server, char *awaited)
{
	const struct node *node = &server->node;

	if (node->job_running) {
		add(awaited, "%s",
			node->stage == NODE_PLANNING   ? "plans"
			: node->stage == NODE_STOPPING ? "copies to end"
						       : "copies");
	}
	for (size_t i = 0; i < node->nteams; i++) {
		if (!node->teams[i]->said) {
			await_team(node->teams[i], awaited);
		}
	}
}

/* Groups that carry out a commit of which they have heard late. */
static void await_settling(struct server *server, const char *model, char *awaited)
{
	for (struct team *team = team_next(server, NULL, model); team;
		team = team_next(server, team, model)) {
		if (team->group.settling) {
			await_team(team, awaited);
		}
	}
}

/* Between updates: groups that are on their way to what they have missed. False: there are none. */
static bool fill_catching(
	const struct server *server, const struct model *model, struct progress *said)
{
	for (const struct team *team = server->teams; team; team = team->next) {
		if (team->catching.stage == CATCH_UNDER_WAY &&
			strcmp(team->group.model, model->name) == 0) {
			said->version = team->catching.version;
			string_copy(said->stage, sizeof(said->stage), "catching up");
			add(said->awaited, "replica %u part %u", team->group.replica,
				team->group.part);
			await_team(team, said->awaited);
		}
	}
	return said->awaited[0];
}

static void await_nodes(const struct server *server, const struct update *update, char *awaited)
{
	for (uint32_t node = 1; node < update->nnodes; node++) {
		const struct member *member = server->members;

		if (update->answered[node] || update->lost[node]) {
			continue;
		}
		while (member && (member->state != MEMBER_IN_EPOCH || member->rank != node)) {
			member = member->next;
		}
		add(awaited, "node %u%s%s", node, member ? " " : "",
			member ? member->join.name : "");
	}
	if (!update->answered[0]) {
		await_here(server, awaited);
	}
}

static void await_ranks(const struct model *model, char *awaited)
{
	for (uint32_t i = 0; i < model->update.nranks; i++) {
		if (!model->update.published[i]) {
			add(awaited,
				model->update.state == UPDATE_PUTTING
					? "rank %u to put its next part"
					: "rank %u to publish",
				i);
		} else if (!model->update.done[i]) {
			add(awaited, "the stream of rank %u", i);
		}
	}
}

static void await_turn(const struct server *server, char *awaited)
{
	if (server->active) {
		add(awaited, "the update of model %s", server->active->name);
	} else if (server->epoch.state != EPOCH_NONE && server->epoch.state != EPOCH_READY) {
		add(awaited, "the brokers' new communicator");
	}
}

static void fill_moved(const struct server *server, struct progress *said)
{
	const struct node *node = &server->node;

	if (node->stage == NODE_MOVING || node->stage == NODE_PREPARED ||
		node->stage == NODE_COMMITTING || node->stage == NODE_STOPPING) {
		said->total = node->move.total_bytes;
		said->done = MIN(node->move.done_bytes, said->total);
	}
}

static void fill_lead(const struct server *server, const struct model *model, struct progress *said)
{
	const struct update *update = &model->update;

	string_copy(said->stage, sizeof(said->stage), update_state_name(update->state));
	said->version = update->version;
	switch (update->state) {
	case UPDATE_IDLE:
		if (fill_catching(server, model, said)) {
			break;
		}
		said->version = update->version ? update->version : model->committed;
		said->outcome = update->outcome;
		string_copy(said->text, sizeof(said->text), update->text);
		break;
	case UPDATE_RANKS:
	case UPDATE_PUTTING:
		await_ranks(model, said->awaited);
		break;
	case UPDATE_QUEUED:
		await_turn(server, said->awaited);
		break;
	default:
		await_nodes(server, update, said->awaited);
		fill_moved(server, said);
	}
}

static void fill_member(
	const struct server *server, const struct model *model, struct progress *said)
{
	const struct node *node = &server->node;
	bool ours = node->publication && strcmp(node->publication->model, model->name) == 0;

	string_copy(
		said->stage, sizeof(said->stage), node_stage_name(ours ? node->stage : NODE_IDLE));
	if (!ours || node->stage == NODE_IDLE) {
		said->version = model->committed;
		fill_catching(server, model, said);
		return;
	}
	said->version = node->version;
	fill_moved(server, said);
	await_here(server, said->awaited);
	if (!said->awaited[0]) {
		add(said->awaited, "the lead");
	}
}

void progress_answer(struct client *client, uint64_t serial)
{
	struct server *server = client->server;
	struct msg_progress_reply *reply;
	struct message message;

	message_init(&message, MSG_PROGRESS_REPLY, serial);
	reply = &message.u.progress_reply;
	reply->models = calloc(LIMIT_MODELS, sizeof(*reply->models));
	for (struct model *model = server->models;
		reply->models && model && reply->nmodels < LIMIT_MODELS; model = model->next) {
		struct progress *said = &reply->models[reply->nmodels++];

		string_copy(said->model, sizeof(said->model), model->name);
		said->committed = model->committed;
		if (server_is_lead(server)) {
			fill_lead(server, model, said);
		} else {
			fill_member(server, model, said);
		}
		await_settling(server, model->name, said->awaited);
	}
	if (reply->models) {
		client_send(client, &message);
	}
	message_finish(&message);
}
