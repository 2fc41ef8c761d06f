/* The groups that take part in an update here, and what the lead hears of each. */
#include "base/util.h"
#include "broker/node_internal.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/*
 * A group that went out between two words that the lead waits for (a plan that failed after every
 * member was checked, a worker lost after accept) has said nothing: its state says it.
 */
static enum strew_outcome team_outcome(const struct team *team)
{
	if (team->outcome != STREW_OUTCOME_NONE || team->group.phase != PHASE_OUT) {
		return team->outcome;
	}
	return team->group.state == STREW_GROUP_LOST	? STREW_OUTCOME_LOST
	       : team->group.state == STREW_GROUP_DIRTY ? STREW_OUTCOME_DIRTY
							: STREW_OUTCOME_SAT_OUT;
}

/* A staged group must not take over what was changed on the way. */
static bool wants_hash(const struct node *node)
{
	for (size_t i = 0; i < node->nteams && node->publication; i++) {
		if (node->publication->elsewhere &&
			node->teams[i]->group.apply == STREW_APPLY_STAGED) {
			return true;
		}
	}
	return false;
}

void node_answer(struct server *server, enum message_type type, int code, const char *text)
{
	struct node *node = &server->node;
	struct group_outcome outcomes[LIMIT_GROUPS * 2];
	struct msg_groups groups;
	size_t n = 0;

	memset(&groups, 0, sizeof(groups));
	for (size_t i = 0; i < node->nteams; i++) {
		struct team *team = node->teams[i];
		struct group_outcome *outcome = &outcomes[n++];

		memset(outcome, 0, sizeof(*outcome));
		outcome->replica = team->group.replica;
		outcome->part = team->group.part;
		outcome->outcome = team_outcome(team);
		outcome->state = group_state(&team->group);
		string_copy(outcome->text, sizeof(outcome->text), team->group.text);
	}
	for (size_t i = 0; i < node->nabsent && type == MSG_ACCEPT; i++) {
		outcomes[n++] = node->absent[i];
	}
	groups.epoch = node->epoch;
	groups.update = node->serial;
	groups.groups = outcomes;
	groups.ngroups = n;
	groups.code = code ? error_to_wire(code) : WIRE_OK;
	groups.unwanted = node->unwanted;
	groups.stages = node->stages;
	if (node->hash && (type == MSG_MOVED || type == MSG_PREPARED)) {
		groups.hashes = node->hashes;
		groups.nhashes = node->nhashes;
	}
	if (type == MSG_ACCEPT) {
		groups.hash = wants_hash(node);
		groups.slot_types = node->wanted.runs;
		groups.nslot_types = node->wanted.n;
	}
	string_copy(groups.text, sizeof(groups.text), text ? text : "");
	if (server_is_lead(server)) {
		lead_answer(server, 0, type, &groups);
	} else {
		join_answer(server, type, &groups);
	}
}

static int add_crew(struct node *node, struct team *team)
{
	struct crew *crew = &node->crews[node->nteams];

	crew->workers = calloc(team->group.nmembers, sizeof(*crew->workers));
	if (!crew->workers) {
		return -ENOMEM;
	}
	crew->key = team->key;
	crew->nworkers = team->group.nmembers;
	for (uint32_t i = 0; i < team->group.nmembers; i++) {
		crew->workers[i] = team->clients[i]->session.worker;
	}
	error_clear(&node->errors[node->nteams]);
	node->teams[node->nteams++] = team;
	team->taking_part = true;
	team->said = false;
	team->outcome = STREW_OUTCOME_NONE;
	return 0;
}

/* A subset makes a version out of another one: of memory that holds anything else it would make a
 * mixture, and it never heals what is written in part. */
static bool has_base(
	const struct node *node, const struct group *group, char text[LIMIT_TEXT_BYTES])
{
	if (!node->subset ||
		(group->state == STREW_GROUP_CURRENT && group->version == node->base)) {
		return true;
	}
	snprintf(text, LIMIT_TEXT_BYTES,
		"a subset on version %llu is only for who is CURRENT at that; it holds version "
		"%llu%s",
		(unsigned long long)node->base, (unsigned long long)group->version,
		group->state == STREW_GROUP_CURRENT ? "" : ", if that");
	return false;
}

void node_collect_teams(struct server *server, const char *model)
{
	struct node *node = &server->node;
	char text[LIMIT_TEXT_BYTES];

	node->nteams = node->nabsent = 0;
	for (struct team *team = team_next(server, NULL, model); team;
		team = team_next(server, team, model)) {
		struct group_outcome *absent = &node->absent[node->nabsent];

		if (group_stands(&team->group, text) && has_base(node, &team->group, text) &&
			brought_enough(server, team, text)) {
			if (add_crew(node, team) == 0) {
				continue;
			}
			snprintf(text, sizeof(text), "out of memory");
		}
		if (team->group.npresent == 0) {
			continue; /* LOST with nobody left: there is nobody to wait for */
		}
		memset(absent, 0, sizeof(*absent));
		absent->replica = team->group.replica;
		absent->part = team->group.part;
		absent->outcome = STREW_OUTCOME_SAT_OUT;
		absent->state = team->group.state;
		string_copy(absent->text, sizeof(absent->text), text);
		node->nabsent++;
	}
}

void node_forget_crews(struct node *node)
{
	for (size_t i = 0; i < node->nteams; i++) {
		free(node->crews[i].workers);
		node->crews[i].workers = NULL;
	}
}
