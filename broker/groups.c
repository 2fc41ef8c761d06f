/*
 * The groups of this node: who has which place, and what the pure machine's
 * actions mean here: messages to workers, words to the node's part in an update.
 */
#include "base/log.h"
#include "base/util.h"
#include "broker/server.h"
#include "plan/subset.h"
#include "strew/trainer.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static struct team *find_team(struct server *server, const struct msg_register *reg)
{
	for (struct team *team = server->teams; team; team = team->next) {
		if (strcmp(team->group.model, reg->model) == 0 &&
			team->group.replica == reg->replica && team->group.part == reg->part) {
			return team;
		}
	}
	return NULL;
}

struct team *team_next(struct server *server, struct team *after, const char *model)
{
	struct team *team = after ? after->next : server->teams;

	while (team && strcmp(team->group.model, model) != 0) {
		team = team->next;
	}
	return team;
}

static void team_remove(struct server *server, struct team *team)
{
	struct team **link = &server->teams;

	while (*link != team) {
		link = &(*link)->next;
	}
	*link = team->next;
	free(team);
}

static bool team_unused(const struct team *team)
{
	for (uint32_t i = 0; i < team->group.nmembers; i++) {
		if (team->clients[i]) {
			return false;
		}
	}
	return !team->taking_part && !team->catching.job_running && team->group.npresent == 0;
}

/* Adds an empty group, in the place of a LOST one that nobody came back to if it must be. */
static struct team *add_team(struct server *server, const struct msg_register *reg)
{
	struct team *team, *unused = NULL;
	size_t n = 0;

	for (team = server->teams; team; team = team->next) {
		n++;
		if (team_unused(team)) {
			unused = team;
		}
	}
	if (n >= LIMIT_GROUPS) {
		if (!unused) {
			return NULL;
		}
		team_remove(server, unused);
	}
	team = calloc(1, sizeof(*team));
	if (!team) {
		return NULL;
	}
	group_init(&team->group, reg->model, reg->replica, reg->part, reg->members,
		(enum strew_gate)reg->gate, (enum strew_apply)reg->apply);
	team->key = ++server->next_key;
	team->next = server->teams;
	server->teams = team;
	return team;
}

int team_place(struct client *client, struct error *err)
{
	const struct msg_register *reg = &client->session.reg;
	struct team *team = find_team(client->server, reg);
	const struct group *group;

	if (team && team_unused(team)) {
		team_remove(client->server, team);
		team = NULL;
	}
	if (!team) {
		team = add_team(client->server, reg);
		if (!team) {
			return error_set(err, -E2BIG, "there are %u groups on this node already",
				LIMIT_GROUPS);
		}
	}
	group = &team->group;
	if (group->nmembers != reg->members || group->gate != (enum strew_gate)reg->gate ||
		group->apply != (enum strew_apply)reg->apply) {
		return error_set(err, -EINVAL,
			"model %s replica %u part %u: its other workers declared %u members, a %s "
			"gate "
			"and %s apply; all members must declare the same",
			reg->model, reg->replica, reg->part, group->nmembers,
			group->gate == STREW_GATE_LIVE ? "live" : "held",
			group->apply == STREW_APPLY_DIRECT ? "direct" : "staged");
	}
	if (team->clients[reg->member]) {
		return error_set(err, -EEXIST,
			"model %s replica %u part %u: member %u is registered already, by process "
			"%d",
			reg->model, reg->replica, reg->part, reg->member,
			(int)team->clients[reg->member]->peer.pid);
	}
	/* Taken from now on, so that two cannot map for one place. */
	team->clients[reg->member] = client;
	client->team = team;
	client->member = reg->member;
	return 0;
}

static void say_registered(struct client *client)
{
	struct team *team = client->team;
	enum strew_group_state state = group_state(&team->group);
	struct message message;

	/* STALE also in the middle of an update: FORMING would leave it what it said it was. */
	if (state != STREW_GROUP_PENDING) {
		state = group_member_state(&team->group, client->member);
	}
	message_init(&message, MSG_REGISTERED, client->session.seal_serial);
	message.u.registered.state = state;
	message.u.registered.version = group_member_version(&team->group, client->member);
	message.u.registered.bytes = layout_bytes(&client->session.worker->layout);
	message.u.registered.shadow = client->session.worker->shadow_bytes;
	client_send(client, &message);
}

/*
 * The last version that a worker of it holds, whatever the group is, and whatever its other
 * workers hold: only a commit has put it there. What is written in part is of none.
 */
static uint64_t held_version(const struct group *group)
{
	uint64_t version = 0;

	for (uint32_t i = 0; i < group->nmembers; i++) {
		const struct group_member *member = &group->members[i];

		if (member->present && member->version != GROUP_VERSION_MIXED) {
			version = MAX(version, member->version);
		}
	}
	return version;
}

uint64_t teams_version(struct server *server, const char *name)
{
	uint64_t version = 0;

	for (struct team *team = team_next(server, NULL, name); team;
		team = team_next(server, team, name)) {
		version = MAX(version, held_version(&team->group));
	}
	return version;
}

void teams_missed(struct server *server, const char *name)
{
	struct model *model = model_find(server, name, false);
	struct group_event event = {.type = GE_MISSED,
		.version = model ? model->committed : teams_version(server, name)};

	for (struct team *team = team_next(server, NULL, name); team;
		team = team_next(server, team, name)) {
		team_step(server, team, &event);
	}
}

static bool is_updated(const struct server *server, const char *name)
{
	const struct node *node = &server->node;

	return node->stage != NODE_IDLE && node->publication &&
	       strcmp(node->publication->model, name) == 0;
}

/* Has memory of that version missed what this broker knows of, or what is under way without it? */
static bool has_missed(struct server *server, const char *name, uint64_t version)
{
	struct model *model = model_find(server, name, false);

	if (is_updated(server, name)) {
		return true;
	}
	if (!model) {
		return version < teams_version(server, name);
	}
	if (model->decided) {
		return version != model->committed || version < model->doubted;
	}
	return version < MAX(model->committed, model->doubted);
}

/*
 * What a worker says that its memory holds. Only a version that it took for CURRENT is believed
 * to be whole and the last one; what it doubts may be written in part, unless it is sure that
 * nothing was. Who has nothing to say has missed all that was committed.
 */
static void read_held(struct client *client, struct group_event *event)
{
	const struct msg_register *reg = &client->session.reg;

	switch (reg->state) {
	case STREW_GROUP_CURRENT:
		/* The greatest one is GROUP_VERSION_MIXED, and cannot be published. */
		event->version = reg->version;
		break;
	case STREW_GROUP_IN_DOUBT:
		if (reg->holds == HOLDS_NOTHING) {
			event->version = reg->version;
			event->stale = true;
			event->update = reg->update;
			break;
		}
		event->version = GROUP_VERSION_MIXED;
		return;
	case STREW_GROUP_PENDING:
	case STREW_GROUP_DIRTY:
		event->version = GROUP_VERSION_MIXED;
		return;
	default:
		/* Whole, of a version that was committed; but others may have a later one. */
		event->version = reg->version;
		event->stale = reg->version || reg->state == STREW_GROUP_STALE;
		break;
	}
	if (has_missed(client->server, reg->model, event->version)) {
		event->stale = true;
		event->update = 0;
	}
}

/* Its workers may hold a version that this broker knows nothing of: one before it has committed it.
 */
void team_learn(struct server *server, const struct team *team)
{
	struct model *model = model_find(server, team->group.model, false);

	if (model && !model->decided) {
		model->committed = MAX(model->committed, held_version(&team->group));
	}
	teams_missed(server, team->group.model);
}

void team_join(struct client *client)
{
	struct team *team = client->team;
	struct group_event event = {.type = GE_JOIN,
		.member = client->member,
		.pulls = worker_pulled(client->session.worker) != 0};

	read_held(client, &event);
	if (team->group.npresent == 0 && team->group.phase == PHASE_IDLE) {
		team->group.state = STREW_GROUP_FORMING;
	}
	team->key = ++client->server->next_key;
	if (event.version == GROUP_VERSION_MIXED) {
		/* Written before it came here. */
		memset(&team->written, 0, sizeof(team->written));
	}
	team_step(client->server, team, &event);
	team_learn(client->server, team);
	say_registered(client);
	recall_worker(client);
	if (team->group.npresent == team->group.nmembers) {
		log_info("model %s replica %u part %u stands: %u workers, %s gate, %s apply",
			team->group.model, team->group.replica, team->group.part,
			team->group.nmembers, team->group.gate == STREW_GATE_LIVE ? "live" : "held",
			team->group.apply == STREW_APPLY_DIRECT ? "direct" : "staged");
	}
}

void team_leave(struct client *client, bool lost)
{
	struct team *team = client->team;
	struct group_event event = {.type = lost ? GE_LOSE : GE_LEAVE, .member = client->member};

	if (!team) {
		return;
	}
	client->team = NULL;
	team->clients[client->member] = NULL;
	team->key = ++client->server->next_key;
	team_step(client->server, team, &event);
	node_member_gone(client->server, team);
	if (!lost && team_unused(team)) {
		team_remove(client->server, team);
	}
}

static void send_check(struct team *team, struct client *client)
{
	struct message message;

	message_init(&message, MSG_CHECK, 0);
	message.u.check.update = team->group.update;
	message.u.check.version = team->group.update_version;
	client_send(client, &message);
}

static void send_hold(struct team *team, struct client *client)
{
	struct message message;

	message_init(&message, MSG_HOLD, 0);
	message.u.hold.update = team->group.update;
	message.u.hold.version = team->group.update_version;
	client_send(client, &message);
}

/* Which tensors of the worker's layout the update does not bring; free it. NULL: without memory. */
static uint8_t *find_missing(
	const struct publication *publication, const struct layout *layout, size_t *ret_nbytes)
{
	uint8_t *missing = calloc(layout->ntensors / 8 + 1, 1);

	for (size_t i = 0; missing && i < layout->ntensors; i++) {
		if (manifest_find(&publication->manifest, layout->tensors[i].name) < 0) {
			bits_set(missing, i);
		}
	}
	*ret_nbytes = missing ? layout->ntensors / 8 + 1 : 0;
	return missing;
}

static void send_apply(struct server *server, struct team *team, struct client *client)
{
	const struct publication *publication = server->node.publication;
	bool partial = node_partial(&server->node);
	uint8_t *missing = NULL;
	struct message message;

	if (team->group.settling) {
		const struct model *model = model_find(server, team->group.model, false);

		publication = model ? model->remembered.publication : NULL;
		partial = !publication || model->remembered.partial;
	}
	message_init(&message, MSG_APPLY, 0);
	message.u.apply.update = team->group.update;
	message.u.apply.version = team->group.update_version;
	if (partial && publication) {
		missing = find_missing(
			publication, &client->session.worker->layout, &message.u.apply.nmissing);
	}
	message.u.apply.missing = missing;
	if (missing || !partial) {
		client_send(client, &message);
	}
	/* Without memory nothing is sent, and the deadline says so: the group is DIRTY then. */
	free(missing);
}

static void send_done(
	struct team *team, uint32_t member, struct client *client, enum strew_outcome outcome)
{
	struct message message;

	message_init(&message, MSG_DONE, 0);
	message.u.done.update = team->group.update;
	message.u.done.version = group_member_version(&team->group, member);
	message.u.done.outcome = outcome;
	message.u.done.catching = team->group.catching;
	message.u.done.state = group_member_state(&team->group, member);
	string_copy(message.u.done.text, sizeof(message.u.done.text), team->group.text);
	client_send(client, &message);
}

static void carry_out(struct server *server, struct team *team, const struct group_action *action)
{
	struct client *client = team->clients[action->member];
	char text[LIMIT_TEXT_BYTES];

	switch (action->type) {
	case GA_SEND_CHECK:
		send_check(team, client);
		break;
	case GA_SEND_HOLD:
		send_hold(team, client);
		break;
	case GA_SEND_APPLY:
		send_apply(server, team, client);
		break;
	case GA_SEND_DONE:
		send_done(team, action->member, client, action->outcome);
		break;
	case GA_GRANT:
		/* A ready word that is not reached yet would speak of a gate that is open again. */
		mover_unwatch(server->mover, &client->watch);
		client_ok(client, client->resume_serial,
			group_member_version(&team->group, action->member));
		break;
	case GA_DENY:
		snprintf(text, sizeof(text), "the group is DIRTY: %.180s",
			team->group.text[0] ? team->group.text : "an update ended in the middle");
		client_error(client, client->resume_serial, -EUCLEAN, text);
		break;
	case GA_ACCEPT:
	case GA_PREPARED:
	case GA_APPLIED:
		node_said(server, team, action->type, action->outcome);
		break;
	case GA_COPY:
		if (team->group.settling) {
			settle_copy(server, team);
		} else {
			node_copy(server, team);
		}
		break;
	}
}

/* Members read their group's state without a system call. */
static void update_pages(struct team *team)
{
	for (uint32_t i = 0; i < team->group.nmembers; i++) {
		struct client *client = team->clients[i];

		if (!client || !team->group.members[i].present || !client->ours.words) {
			continue;
		}
		page_tell_group(&client->ours, group_state(&team->group),
			group_member_version(&team->group, i));
		if (group_writes(&team->group)) {
			page_store(&client->ours, WORD_WRITTEN, team->group.update);
		}
	}
}

void team_step(struct server *server, struct team *team, const struct group_event *event)
{
	enum strew_group_state before = team->group.state;
	struct group_actions actions;

	group_step(&team->group, event, &actions);
	update_pages(team);
	for (unsigned i = 0; i < actions.n; i++) {
		carry_out(server, team, &actions.v[i]);
	}
	/* A late commit has ended, and an update is under way without the group. */
	if (before != STREW_GROUP_CURRENT && team->group.state == STREW_GROUP_CURRENT &&
		!team->taking_part && is_updated(server, team->group.model)) {
		group_step(&team->group,
			&(struct group_event){.type = GE_MISSED, .version = server->node.version},
			&actions);
		update_pages(team);
	}
	if (team->group.state != before && team->group.state != STREW_GROUP_CURRENT &&
		team->group.state != STREW_GROUP_FORMING) {
		log_warn("model %s replica %u part %u: %s", team->group.model, team->group.replica,
			team->group.part, team->group.text);
	}
}

void teams_free(struct server *server)
{
	while (server->teams) {
		catchup_free(server->teams);
		team_remove(server, server->teams);
	}
}
