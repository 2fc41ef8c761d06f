/* Which group catches up, and from which: the rules are in docs/architecture.md, Catching up. */
#include "broker/catchup.h"

uint64_t catch_version(struct server *server, const char *name)
{
	const struct model *model = model_find(server, name, false);

	if (!model) {
		return teams_version(server, name);
	}
	return model->committed >= model->doubted ? model->committed : 0;
}

/* Twins hold what was moved last, which need not be what was committed. */
static bool has_twins(const struct group *group)
{
	for (uint32_t i = 0; i < group->nmembers; i++) {
		if (group->members[i].pulls) {
			return true;
		}
	}
	return false;
}

bool catch_member_is_fresh(const struct team *team, uint32_t member)
{
	const struct msg_register *reg = &team->clients[member]->session.reg;

	return !team->group.members[member].version && !reg->version &&
	       reg->state != STREW_GROUP_STALE;
}

bool catch_is_fresh(const struct team *team)
{
	for (uint32_t i = 0; i < team->group.nmembers; i++) {
		if (!catch_member_is_fresh(team, i)) {
			return false;
		}
	}
	return true;
}

/* Has its replica no other group? Without a network all of them are here; else it is as the lead
 * has said with the last commit, but not one before that. */
static bool is_alone(struct server *server, const struct team *team)
{
	uint64_t version = catch_version(server, team->group.model);

	for (struct team *other = team_next(server, NULL, team->group.model); other;
		other = team_next(server, other, team->group.model)) {
		if (other != team && other->group.replica == team->group.replica) {
			return false;
		}
	}
	return (version && team->alone_at == version) ||
	       (!server->options.listen && !server->options.join);
}

bool catch_wanted(struct server *server, const struct team *team)
{
	const struct group *group = &team->group;

	return group->phase == PHASE_IDLE && group->npresent == group->nmembers &&
	       (group->state == STREW_GROUP_STALE || group->state == STREW_GROUP_DIRTY) &&
	       !has_twins(group) && (catch_is_fresh(team) || is_alone(server, team));
}

bool catch_holds(const struct team *team, uint64_t version)
{
	const struct group *group = &team->group;

	return group->phase == PHASE_IDLE && group->state == STREW_GROUP_CURRENT &&
	       group->npresent == group->nmembers && group->version == version && version &&
	       !has_twins(group);
}

static bool was_tried(const struct team *team, const struct team *from, uint64_t version)
{
	const struct catching *catching = &team->catching;

	if (catching->tried_key != team->key || catching->tried_version != version) {
		return false;
	}
	for (size_t i = 0; i < catching->ntried; i++) {
		if (catching->tried_from[i] == from->key) {
			return true;
		}
	}
	return false;
}

void catch_note_tried(struct team *team)
{
	struct catching *catching = &team->catching;

	if (catching->tried_key != team->key || catching->tried_version != catching->version ||
		catching->ntried == LIMIT_GROUPS) {
		catching->ntried = 0;
	}
	catching->tried_key = team->key;
	catching->tried_version = catching->version;
	catching->tried_from[catching->ntried++] = catching->from_key;
}

struct team *catch_sibling(struct server *server, const struct team *team, uint64_t version)
{
	struct team *from = team_next(server, NULL, team->group.model);

	while (from &&
		(from == team || !catch_holds(from, version) || was_tried(team, from, version))) {
		from = team_next(server, from, team->group.model);
	}
	return from;
}
