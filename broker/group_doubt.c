/*
 * The doubt of a group. One that was prepared when the lead went away waits to hear, perhaps from
 * another lead, how the update ended. It then carries out a commit by itself (settling), in phases
 * CHECKING, GATING and COMMITTING, in which nobody waits for its word; if it cannot, it is STALE.
 * A whole update, or catching up, ends the doubt: what was prepared is written over.
 */
#include "broker/group_internal.h"
#include <string.h>

void group_end_doubt(struct group *group)
{
	memset(&group->doubt, 0, sizeof(group->doubt));
}

/* The memory is as it was registered, or the gate is held: what is missing still? */
void group_settle(struct group *group, struct group_actions *actions)
{
	if (group_gate_held(group)) {
		group_commit(group, actions);
	} else if (group->phase == PHASE_CHECKING) {
		group->phase = PHASE_GATING;
		group_act_all(group, actions, GA_SEND_HOLD, STREW_OUTCOME_NONE);
	}
}

static void make_current(struct group *group)
{
	group->state = STREW_GROUP_CURRENT;
	for (uint32_t i = 0; i < group->nmembers; i++) {
		group->members[i].stale = false;
		group->members[i].doubt = 0;
	}
	group_set_text(group, "");
}

void group_settled(
	struct group *group, const struct group_event *event, struct group_actions *actions)
{
	struct group_doubt doubt = group->doubt;

	if (!doubt.update || doubt.update != event->update) {
		return;
	}
	group_end_doubt(group);
	group->catching = false;
	group->update = event->update;
	group->update_version = event->version;
	if (event->outcome == STREW_OUTCOME_COMMITTED && doubt.prepared) {
		group->settling = true;
		if (group_copies_at_commit(group)) {
			group_ask_checks(group, actions);
		} else {
			group_committed(group, actions);
		}
	} else if (event->outcome == STREW_OUTCOME_ABORTED) {
		if (doubt.current) {
			make_current(group);
			group_finish(group, actions, STREW_OUTCOME_ABORTED);
		} else if (group->state == STREW_GROUP_DIRTY) {
			group_set_text(group, "it was written by an update that was given up");
		}
	} else if (group->state == STREW_GROUP_IN_DOUBT) {
		group->state = STREW_GROUP_STALE;
		group_set_text(group, "a version was committed without it");
		group_finish(group, actions, STREW_OUTCOME_SAT_OUT);
	}
}

/* All hold the same, and have missed at most the same update, if that was committed. */
struct group_doubt group_joined_doubt(const struct group *group)
{
	struct group_doubt doubt = {.current = true};

	for (uint32_t i = 0; i < group->nmembers; i++) {
		const struct group_member *member = &group->members[i];

		if (member->version != group->version || (member->stale && !member->doubt) ||
			(member->stale && doubt.update && member->doubt != doubt.update)) {
			return (struct group_doubt){0};
		}
		doubt.update = member->stale ? member->doubt : doubt.update;
	}
	return doubt.update ? doubt : (struct group_doubt){0};
}

void group_to_doubt(struct group *group, struct group_actions *actions)
{
	bool current = group->state == STREW_GROUP_CURRENT;

	if (group->phase == PHASE_OUT && current) {
		group->state = STREW_GROUP_STALE;
		group->doubt = (struct group_doubt){.update = group->update, .current = true};
	}
	group_set_text(group, "the lead is gone and its decision is not known");
	if (group->phase != PHASE_PREPARED) {
		struct group_event abort = {.type = GE_ABORT, .touched = true, .text = group->text};

		group_abort(group, &abort, actions);
		return;
	}
	group->doubt = (struct group_doubt){.update = group->update,
		.prepared = true,
		.current = current && group->apply == STREW_APPLY_STAGED};
	if (group->apply == STREW_APPLY_DIRECT) {
		group_make_dirty(group);
	} else if (current) {
		group->state = STREW_GROUP_IN_DOUBT;
	}
	group_finish(group, actions,
		group->apply == STREW_APPLY_DIRECT ? STREW_OUTCOME_DIRTY : STREW_OUTCOME_NONE);
}

void group_missed(struct group *group, const struct group_event *event)
{
	group->doubt.current = group->doubt.current && group->version >= event->version;
	if ((group->state == STREW_GROUP_CURRENT || group->state == STREW_GROUP_IN_DOUBT) &&
		group->version < event->version) {
		group->state = STREW_GROUP_STALE;
		group_set_text(group, "a version was committed without it");
	}
}
