/*
 * This broker's part in an update, whoever leads it: it asks its groups, has the
 * mover plan, move and commit, and answers the lead when every group has said
 * its word. On the lead's own node the answers are function calls.
 *
 *   IDLE ─begin─► PLANNING ─accept─► ACCEPTED ─go─► MOVING ─prepared─► PREPARED
 *        ─commit─► COMMITTING ─applied─► IDLE
 *   in parts: MOVING ─moved─► PUTTING ─go─► MOVING; the last go moves nothing, and prepares
 *
 * An abort ends it from any stage before commit; while the mover runs, the abort
 * cancels it first and is carried out when the mover is quiet (STOPPING), so that
 * "applied" after an abort means that nothing moves any more.
 *
 * Who takes part, and what the lead hears of each, is in node_teams.c; the mover's jobs are in
 * node_jobs.c.
 */
#include "base/clock.h"
#include "base/log.h"
#include "base/util.h"
#include "broker/node_internal.h"
#include "broker/roots.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const char *node_stage_name(enum node_stage stage)
{
	static const char *const names[] = {"idle", "planning", "accepted", "moving", "putting",
		"prepared", "committing", "stopping"};

	return names[stage];
}

static void forget_hashes(struct node *node)
{
	free(node->hashes);
	node->hashes = NULL;
	node->nhashes = 0;
}

void node_released(struct server *server)
{
	if (server_is_lead(server)) {
		lead_released(server, server->node.serial);
	} else {
		ranks_released(server);
	}
}

static void go_idle(struct server *server)
{
	struct node *node = &server->node;
	struct publication *publication = node->publication;

	for (size_t i = 0; i < node->nteams; i++) {
		struct team *team = node->teams[i];

		/* What lost a worker or failed in the commit's copy has heard no end yet. */
		team_step(server, team,
			&(struct group_event){.type = GE_ABORT, .text = team->group.text});
		team->taking_part = false;
	}
	node_forget_crews(node);
	forget_hashes(node);
	sums_free(node->sums);
	node->sums = NULL;
	node->nteams = node->nabsent = 0;
	node->stage = NODE_IDLE;
	if (publication) {
		/* A lead that we have joined meanwhile may have told of others' commits. */
		teams_missed(server, publication->model);
	}
	if (!server_is_lead(server)) {
		ranks_node_idle(server);
	}
	node->publication = NULL;
	if (publication && --publication->references == 0) {
		publication_retire(server, publication);
	}
	clients_release_due(server);
}

static bool all_said(const struct node *node)
{
	for (size_t i = 0; i < node->nteams; i++) {
		if (!node->teams[i]->said) {
			return false;
		}
	}
	return true;
}

static void expect(struct node *node)
{
	for (size_t i = 0; i < node->nteams; i++) {
		/* Groups that are out already have nothing more to say before the decision. */
		node->teams[i]->said = node->teams[i]->group.phase == PHASE_OUT;
	}
}

void node_advance(struct server *server)
{
	struct node *node = &server->node;

	if (node->job_running || !all_said(node)) {
		return;
	}
	switch (node->stage) {
	case NODE_PLANNING:
		node->stage = NODE_ACCEPTED;
		node_answer(server, MSG_ACCEPT, 0, NULL);
		break;
	case NODE_MOVING:
		node->stage = NODE_PREPARED;
		recall_prepared(server);
		node_answer(server, MSG_PREPARED, 0, NULL);
		break;
	case NODE_COMMITTING:
		node_answer(server, MSG_APPLIED, 0, NULL);
		history_node(server, STREW_OUTCOME_COMMITTED, "");
		sums_commit(server);
		go_idle(server);
		if (server_is_lead(server)) {
			lead_ready(server);
		}
		break;
	default:
		break;
	}
}

void node_said(struct server *server, struct team *team, enum group_action_type said,
	enum strew_outcome outcome)
{
	struct node *node = &server->node;

	if (!team->taking_part) {
		return;
	}
	team->outcome = outcome;
	if ((said == GA_ACCEPT && node->stage == NODE_PLANNING) ||
		(said == GA_PREPARED && node->stage == NODE_MOVING) ||
		(said == GA_APPLIED && node->stage == NODE_COMMITTING)) {
		team->said = true;
	}
}

void node_member_gone(struct server *server, struct team *team)
{
	if (!team->taking_part) {
		return;
	}
	if (team->group.phase == PHASE_OUT) {
		team->said = true;
	}
	node_advance(server);
}

static void step_all(struct server *server, const struct group_event *event)
{
	for (size_t i = 0; i < server->node.nteams; i++) {
		team_step(server, server->node.teams[i], event);
	}
}

/* Copies of a group that catches up, or what is left of the last update, are about to end:
 * node_tick() begins then. */
static void keep_begin(struct node *node, const struct msg_begin *begin)
{
	node->begin = *begin;
	node->begin.roots = node->begin_roots;
	node->begin.nroots = MIN(begin->nroots, LIMIT_RANKS);
	memmove(node->begin_roots, begin->roots, node->begin.nroots * sizeof(node->begin_roots[0]));
	node->begin_came = clock_ns();
	node->begin_waits = true;
}

static void begin_kept(struct server *server)
{
	struct node *node = &server->node;
	struct msg_begin begin = node->begin;
	uint64_t waited_ms = (clock_ns() - node->begin_came) / 1000000u;

	begin.timeout_ms -= (uint32_t)MIN(waited_ms, begin.timeout_ms);
	node->begin_waits = false;
	node_begin(server, &begin);
}

/* Of a begin that waits for the end of another update nothing has happened here. */
static void abort_kept(struct server *server)
{
	struct msg_groups nothing = {
		.epoch = server->node.begin.epoch, .update = server->node.begin.update};

	server->node.begin_waits = false;
	join_answer(server, MSG_APPLIED, &nothing);
}

void node_begin(struct server *server, const struct msg_begin *begin)
{
	struct node *node = &server->node;
	struct model *model = model_find(server, begin->model, false);
	struct publication *publication =
		model && model->publication ? model_publication(model, begin->subset) : NULL;
	uint64_t timeout_ns = (uint64_t)begin->timeout_ms * 1000000u;
	char text[LIMIT_TEXT_BYTES];

	/* Of a lead before this one: it ends by itself, and no lead is heard any more. */
	if (node->stage == NODE_COMMITTING || node->stage == NODE_STOPPING) {
		keep_begin(node, begin);
		return;
	}
	if (node->stage != NODE_IDLE) {
		log_warn("ignored a begin in the middle of an update");
		return;
	}
	node->epoch = begin->epoch;
	node->serial = begin->update;
	if (!catchup_yield(server, begin->model, is_whole(begin->flags, begin->subset))) {
		keep_begin(node, begin);
		return;
	}
	node->version = begin->version;
	node->flags = begin->flags;
	node->subset = begin->subset;
	node->base = begin->base;
	node->unwanted = 0;
	node->wanted.n = node->slot_types.n = 0;
	node->touched = false;
	node->wire_bytes = 0;
	memset(&node->stages, 0, sizeof(node->stages));
	/* Gates that are late leave time for the move; the move leaves time for the gates after it.
	 */
	node->deadline = clock_ns() + timeout_ns / 2;
	events_begun(server->events, clock_ns());
	node->gate_deadline = clock_ns() + timeout_ns - timeout_ns / 8;
	node->update_deadline = clock_ns() + timeout_ns;
	if (!publication || publication->hash != begin->manifest_hash ||
		begin->slot_bytes != server->epoch.slot_bytes) {
		snprintf(text, sizeof(text), "the manifest of model %.100s is not known here",
			begin->model);
		node->nteams = node->nabsent = 0;
		node_answer(server, MSG_ACCEPT, -ENOENT, text);
		return;
	}
	if (!roots_take(server, publication, begin)) {
		node->nteams = node->nabsent = 0;
		node_answer(server, MSG_ACCEPT, -EINVAL,
			"begin names other brokers for the trainer ranks than the manifest");
		return;
	}
	node->publication = publication;
	node->publication->references++;
	node->stage = NODE_PLANNING;
	recall_begin(server);
	settle_yield(server, begin->model);
	node_collect_teams(server, begin->model);
	step_all(server,
		&(struct group_event){
			.type = GE_BEGIN, .update = begin->update, .version = begin->version});
	node_start_plan(server);
}

static bool listed(const struct msg_decision *decision, uint32_t replica)
{
	for (size_t i = 0; i < decision->nreplicas; i++) {
		if (decision->replicas[i] == replica) {
			return true;
		}
	}
	return false;
}

void node_go(struct server *server, const struct msg_decision *go)
{
	struct node *node = &server->node;

	bool again = node->stage == NODE_PUTTING;
	struct error err;

	if ((node->stage != NODE_ACCEPTED && !again) || go->update != node->serial) {
		return;
	}
	node->stage = NODE_MOVING;
	node->wire = go->wire;
	node->hash = go->hash;
	node->slot_types.n = (uint32_t)go->nslot_types;
	if (go->nslot_types) {
		memcpy(node->slot_types.runs, go->slot_types,
			go->nslot_types * sizeof(go->slot_types[0]));
	}
	node->deadline = node->gate_deadline;
	for (size_t i = 0; i < node->nteams; i++) {
		bool on = listed(go, node->teams[i]->group.replica);

		if (on) {
			brought_go(server, node->teams[i]);
		}
		team_step(server, node->teams[i],
			&(struct group_event){.type = on ? GE_GO : GE_SKIP,
				.touched = node->touched,
				.text = "its replica sits this update out"});
	}
	recall_go(server, go);
	catchup_go(server, go);
	expect(node);
	if (again && !go->part) {
		/* All is there: gates, then prepared. */
		step_all(server, &(struct group_event){.type = GE_MOVED});
		node_advance(server);
		return;
	}
	if (node_in_parts(node) && node_part_begin(server, go->part, &err)) {
		node->stage = NODE_PUTTING;
		node_answer(server, MSG_MOVED, err.code, err.text);
		return;
	}
	node_gather(node, PHASE_MOVING);
	if (node->wire || node->ngoing) {
		node_start_move(server);
		return;
	}
	node_released(server);
	if (node_in_parts(node)) {
		node_part_moved(server, 0, NULL);
		return;
	}
	node_advance(server);
}

void node_part_moved(struct server *server, int code, const char *text)
{
	node_part_end(server);
	server->node.stage = NODE_PUTTING;
	node_answer(server, MSG_MOVED, code, text);
}

void node_copy(struct server *server, struct team *team)
{
	/* All copies of a commit run as one job: node_commit() gathers them by their phase. */
	(void)server;
	(void)team;
}

void node_commit(struct server *server, const struct msg_decision *commit)
{
	struct node *node = &server->node;
	struct model *model;

	if (node->stage != NODE_PREPARED || commit->update != node->serial) {
		return;
	}
	node->stage = NODE_COMMITTING;
	recall_committed(server, commit);
	/* What is left of the update's time; never longer than the lead waits for us. */
	node->deadline = MAX(node->update_deadline, clock_ns() + LIMIT_PULL_MS * 1000000ull);
	node->deadline = MIN(node->deadline, clock_ns() + LIMIT_UPDATE_MS * 1000000ull * 3 / 4);
	if (!server_is_lead(server)) {
		ranks_committed(server);
	}
	for (size_t i = 0; i < node->nteams; i++) {
		node->teams[i]->said = false;
	}
	for (size_t i = 0; i < node->nteams; i++) {
		struct team *team = node->teams[i];

		if (!listed(commit, team->group.replica) && team->group.phase == PHASE_PREPARED) {
			team_step(server, team,
				&(struct group_event){.type = GE_SKIP,
					.touched = node->touched,
					.text = "its replica sits this update out"});
		}
		team_step(server, team, &(struct group_event){.type = GE_COMMIT});
	}
	model = model_find(server, node->publication->model, false);
	if (model && commit->nreplicas) {
		model->committed = node->version;
		model->committed_subset = node->subset;
		model->committed_base = node->base;
		model->doubted = 0;
		model->decided = true;
		catchup_committed(server);
	}
	node_gather(node, PHASE_COMMITTING);
	if (node->ngoing == 0) {
		node_advance(server);
		return;
	}
	node_start_commit(server);
}

void node_abort(struct server *server, uint64_t serial, const char *text)
{
	struct node *node = &server->node;

	if (node->begin_waits && node->stage != NODE_IDLE && serial == node->begin.update) {
		abort_kept(server);
		return;
	}
	if (serial != node->serial || node->stage == NODE_COMMITTING) {
		return;
	}
	node->begin_waits = node->begin_waits && node->stage != NODE_IDLE;
	if (text != node->abort_text) {
		string_copy(node->abort_text, sizeof(node->abort_text), text);
	}
	recall_aborted(server);
	if (node->job_running) {
		node->stage = NODE_STOPPING;
		atomic_store(&node->move.cancel, 1);
		return;
	}
	if (node->stage != NODE_IDLE) {
		step_all(server, &(struct group_event){.type = GE_ABORT,
					 .touched = node->touched,
					 .text = node->abort_text});
		for (size_t i = 0; i < node->nteams; i++) {
			struct group *group = &node->teams[i]->group;

			node->teams[i]->outcome =
				group->state == STREW_GROUP_DIRTY  ? STREW_OUTCOME_DIRTY
				: group->state == STREW_GROUP_LOST ? STREW_OUTCOME_LOST
								   : STREW_OUTCOME_ABORTED;
		}
		history_node(server, STREW_OUTCOME_ABORTED, node->abort_text);
	}
	node_answer(server, MSG_APPLIED, 0, NULL);
	go_idle(server);
	if (server_is_lead(server)) {
		lead_ready(server);
	}
}

void node_doubt(struct server *server)
{
	struct node *node = &server->node;
	struct model *model;

	node->begin_waits = false;
	if (node->stage == NODE_IDLE || node->stage == NODE_COMMITTING) {
		return;
	}
	if (!recall_in_doubt(server)) {
		/* No lead commits without this node's word. */
		node_abort(server, node->serial, "the lead is gone");
		return;
	}
	model = model_find(server, node->publication->model, false);
	if (model) {
		model->doubted = MAX(model->doubted, node->version);
	}
	step_all(server, &(struct group_event){.type = GE_DOUBT});
	history_node(server, STREW_OUTCOME_NONE, "the lead is gone");
	go_idle(server);
}

/* Waits for what engines or workers do in their own time. */
static bool has_deadline(const struct node *node)
{
	return (node->stage == NODE_PLANNING || node->stage == NODE_MOVING ||
		       node->stage == NODE_COMMITTING) &&
	       !node->job_running;
}

void node_tick(struct server *server, uint64_t now)
{
	struct node *node = &server->node;
	struct group_event event = {
		.type = GE_LATE, .text = "its engine did not hold the gate before the deadline"};

	if (node->begin_waits && node->stage == NODE_IDLE &&
		catchup_yield(server, node->begin.model,
			is_whole(node->begin.flags, node->begin.subset))) {
		begin_kept(server);
	}
	if (node->stage == NODE_MOVING) {
		event.text =
			"its engine did not hold the gate in time after everything was received";
	} else if (node->stage == NODE_COMMITTING) {
		event = (struct group_event){.type = GE_FAILED,
			.touched = true,
			.text = "a worker did not copy what it pulls before the deadline"};
	}
	if (!has_deadline(node) || now < node->deadline) {
		return;
	}
	node->deadline = UINT64_MAX;
	step_all(server, &event);
	node_advance(server);
}

uint64_t node_due(const struct server *server)
{
	return has_deadline(&server->node) ? server->node.deadline : UINT64_MAX;
}

/* At the end of the process: the mover still runs what it has, nobody is told. */
void node_forget(struct server *server)
{
	struct node *node = &server->node;

	node_forget_crews(node);
	forget_hashes(node);
	sums_free(node->sums);
	node->sums = NULL;
	node->nteams = 0;
	node_part_end(server);
	if (node->publication && --node->publication->references == 0) {
		publication_retire(server, node->publication);
	}
	node->publication = NULL;
}
