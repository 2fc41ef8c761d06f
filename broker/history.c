/* What is remembered of an update when it ends, and the answer to who asks for it. */
#include "base/clock.h"
#include "base/log.h"
#include "base/util.h"
#include "broker/server.h"
#include <stdio.h>
#include <string.h>
#include <time.h>

static uint64_t unix_ms(void)
{
	struct timespec now;

	clock_gettime(CLOCK_REALTIME, &now);
	return (uint64_t)now.tv_sec * 1000u + (uint64_t)now.tv_nsec / 1000000u;
}

static void keep(struct server *server, const char *model, const char *ended_in,
	const struct msg_report *report)
{
	const struct stages *stages = &report->stages;

	events_add(server->events, model, ended_in, report, unix_ms());
	if (ended_in[0]) {
		log_warn("model %s version %llu ended while %s: of %.2f ms wait %.2f, accept "
			 "%.2f, move %.2f (gather %.2f, local %.2f, wire %.2f, scatter %.2f), "
			 "commit %.2f; %llu bytes by wire",
			model, (unsigned long long)report->version, ended_in,
			(double)report->total_ns / 1e6, (double)report->wait_ns / 1e6,
			(double)report->accept_ns / 1e6, (double)report->move_ns / 1e6,
			(double)stages->gather_ns / 1e6, (double)stages->local_ns / 1e6,
			(double)stages->wire_ns / 1e6, (double)stages->scatter_ns / 1e6,
			(double)report->commit_ns / 1e6, (unsigned long long)report->wire_bytes);
	}
}

void history_lead(struct server *server, const char *model, const struct msg_report *report)
{
	/* A stage that it has not ended has no time. */
	const char *stage = report->move_ns	? "committing"
			    : report->accept_ns ? "moving"
			    : report->wait_ns	? "accepting"
						: "waiting";

	keep(server, model,
		report->outcome == STREW_OUTCOME_ABORTED || report->outcome == STREW_OUTCOME_LOST
			? stage
			: "",
		report);
}

/* Were there groups here that carried the commit out, none of which has it? As an update at its
 * lead is lost; groups that sat out lose nothing. */
static bool is_lost(const struct node *node)
{
	for (size_t i = 0; i < node->nteams; i++) {
		if (node->teams[i]->outcome == STREW_OUTCOME_COMMITTED) {
			return false;
		}
	}
	return node->stage == NODE_COMMITTING && node->ngoing > 0;
}

void history_node(struct server *server, enum strew_outcome outcome, const char *text)
{
	const struct node *node = &server->node;
	/* It was in the move that the abort stopped. */
	enum node_stage stage = node->stage == NODE_STOPPING ? NODE_MOVING : node->stage;
	struct group_outcome groups[LIMIT_GROUPS * 2];
	struct msg_report report;

	/* A lead has its own, of all nodes. */
	if (server_is_lead(server) || !node->publication) {
		return;
	}
	if (outcome == STREW_OUTCOME_COMMITTED && is_lost(node)) {
		outcome = STREW_OUTCOME_LOST;
	}
	memset(&report, 0, sizeof(report));
	report.version = node->version;
	report.outcome = outcome;
	string_copy(report.text, sizeof(report.text), text);
	report.tensors = node->publication->manifest.ntensors;
	report.unwanted = node->unwanted;
	report.bytes = manifest_bytes(&node->publication->manifest);
	report.wire_bytes = node->wire_bytes;
	report.stages = node->stages;
	report.total_ns = clock_ns() - events_begun_ns(server->events);
	report.groups = groups;
	for (size_t i = 0; i < node->nteams; i++) {
		const struct team *team = node->teams[i];
		struct group_outcome *group = &groups[report.ngroups++];

		memset(group, 0, sizeof(*group));
		group->node = server->epoch.rank;
		group->replica = team->group.replica;
		group->part = team->group.part;
		group->outcome = team->outcome;
		group->state = group_state(&team->group);
		string_copy(group->text, sizeof(group->text), team->group.text);
	}
	keep(server, node->publication->model,
		outcome == STREW_OUTCOME_COMMITTED ? "" : node_stage_name(stage), &report);
}

/* Its stages are not those of an update: how long the mover copied is said. */
void history_catch(struct server *server, const struct team *team, uint64_t bytes)
{
	const struct catching *catching = &team->catching;
	struct group_outcome group = {.node = server->epoch.rank,
		.replica = team->group.replica,
		.part = team->group.part,
		.outcome = STREW_OUTCOME_COMMITTED,
		.state = group_state(&team->group)};
	struct msg_report report = {.version = catching->version,
		.outcome = STREW_OUTCOME_COMMITTED,
		.bytes = bytes,
		.total_ns = catching->mover_ns,
		.groups = &group,
		.ngroups = 1};

	snprintf(report.text, sizeof(report.text),
		"replica %u part %u caught up from replica %u part %u", group.replica, group.part,
		catching->from_replica, catching->from_part);
	keep(server, team->group.model, "", &report);
}

void events_answer(struct client *client, const struct message *message)
{
	const struct events *events = client->server->events;
	const struct msg_event *event = events_after(events, message->u.events.after);
	struct message answer;

	message_init(&answer, MSG_EVENT, message->serial);
	if (event) {
		answer.u.event = *event; /* its groups stay the ring's */
	}
	answer.u.event.last = events_last(events);
	client_send(client, &answer);
}
