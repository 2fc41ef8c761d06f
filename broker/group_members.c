/* The members of a group, who come and go, and what others see of it. */
#include "broker/group_internal.h"
#include <stdio.h>
#include <string.h>

enum strew_group_state group_state(const struct group *group)
{
	if (group->phase != PHASE_IDLE && group->phase != PHASE_OUT &&
		(!group->catching || group_writes(group)) && group->state != STREW_GROUP_LOST) {
		return STREW_GROUP_PENDING;
	}
	/* Out, it may be the last one before others commit, or after. */
	if (group->phase == PHASE_OUT && group->state == STREW_GROUP_CURRENT) {
		return STREW_GROUP_PENDING;
	}
	return group->state;
}

enum strew_group_state group_member_state(const struct group *group, uint32_t member)
{
	const struct group_member *of = &group->members[member];
	bool apart = group->state == STREW_GROUP_FORMING || group->state == STREW_GROUP_LOST;

	if (of->version == GROUP_VERSION_MIXED) {
		return STREW_GROUP_DIRTY;
	}
	return of->stale && apart ? STREW_GROUP_STALE : group->state;
}

uint64_t group_member_version(const struct group *group, uint32_t member)
{
	const struct group_member *of = &group->members[member];

	return of->present && of->version != GROUP_VERSION_MIXED ? of->version : group->version;
}

bool group_writes(const struct group *group)
{
	bool direct = group->apply == STREW_APPLY_DIRECT;

	return group->phase == PHASE_COMMITTING ||
	       (direct && group->phase >= PHASE_MOVING && group->phase <= PHASE_PREPARED);
}

bool group_stands(const struct group *group, char text[LIMIT_TEXT_BYTES])
{
	if (group->settling) {
		snprintf(text, LIMIT_TEXT_BYTES, "version %llu is being copied in",
			(unsigned long long)group->update_version);
		return false;
	}
	if (group->npresent < group->nmembers) {
		snprintf(text, LIMIT_TEXT_BYTES, "%s: %u of %u members are registered",
			group->state == STREW_GROUP_LOST ? "lost a worker" : "forming",
			group->npresent, group->nmembers);
		return false;
	}
	return true;
}

void group_join(struct group *group, const struct group_event *event)
{
	struct group_member *member = &group->members[event->member];

	memset(member, 0, sizeof(*member));
	member->present = true;
	member->version = event->version;
	member->stale = event->stale;
	member->doubt = event->stale ? event->update : 0;
	member->pulls = event->pulls;
	group->npresent++;
	group_end_doubt(group);
	if (group->npresent < group->nmembers) {
		return;
	}
	group->state = STREW_GROUP_CURRENT;
	group->version = group->members[0].version;
	group_set_text(group, "");
	for (uint32_t i = 0; i < group->nmembers; i++) {
		if (group->members[i].version == GROUP_VERSION_MIXED) {
			group->state = STREW_GROUP_DIRTY;
			group->version = 0;
			group_set_text(group, "the memory of its workers was written in part");
			return;
		}
		if (group->members[i].version != group->version) {
			group->state = STREW_GROUP_STALE;
			group_set_text(group, "its workers hold different versions");
		} else if (group->members[i].stale && group->state == STREW_GROUP_CURRENT) {
			group->state = STREW_GROUP_STALE;
			group_set_text(group, "a version was committed without it");
		}
	}
	group->doubt = group_joined_doubt(group);
}

/* A member is gone. What was written stays written, so its siblings may be in trouble. */
void group_gone(struct group *group, const struct group_event *event, struct group_actions *actions)
{
	bool lost = event->type == GE_LOSE;
	bool writing = group_writes(group);
	bool in_update = group->phase != PHASE_IDLE && group->phase != PHASE_OUT;
	char text[LIMIT_TEXT_BYTES];

	memset(&group->members[event->member], 0, sizeof(group->members[0]));
	group->npresent--;
	group_end_doubt(group);
	if (writing) {
		/* The mover still runs; its end, or the lead's decision, is awaited in OUT. */
		group_make_dirty(group);
	}
	group->state = lost ? STREW_GROUP_LOST : STREW_GROUP_FORMING;
	snprintf(text, sizeof(text), "worker %u %s", event->member,
		lost ? "is gone" : "was withdrawn");
	if (in_update) {
		group_go_out(group, actions, text);
	} else {
		group_set_text(group, text);
	}
}
