/* Faults put into the machine of a group on purpose: the explorer must find each. */
#include "tests/explore/world.h"
#include <string.h>

void __real_group_step(
	struct group *group, const struct group_event *event, struct group_actions *ret_actions);
void __wrap_group_step(
	struct group *group, const struct group_event *event, struct group_actions *ret_actions);

static bool mutation(const char *name)
{
	return config.mutation && strcmp(config.mutation, name) == 0;
}

void __wrap_group_step(
	struct group *group, const struct group_event *event, struct group_actions *ret_actions)
{
	enum group_phase before = group->phase;
	struct group_event bent = *event;

	/* The gate's deadline is not told. */
	if (mutation("late-unheard") && event->type == GE_LATE) {
		ret_actions->n = 0;
		return;
	}
	/* An abort forgets that live memory was written. */
	if (mutation("abort-clean") && event->type == GE_ABORT) {
		bent.touched = false;
	}
	/* A direct group is prepared, so it is taken for committed. */
	if (mutation("prepared-commits") && event->type == GE_DOUBT) {
		bent.type = GE_COMMIT;
	}
	/* A failed copy of the commit is taken for a whole one. */
	if (mutation("copy-clean") && event->type == GE_FAILED && before == PHASE_COMMITTING) {
		bent.type = GE_COPIED;
	}
	/* What a worker says of its memory when it comes is not listened to. */
	if (mutation("join-clean") && event->type == GE_JOIN) {
		bent.version = 0;
		bent.stale = false;
	}
	/* A member's memory that was written in part is forgotten when another one goes. */
	if (mutation("loss-clean") && event->type == GE_LOSE) {
		for (uint32_t i = 0; i < group->nmembers; i++) {
			group->members[i].version = group->version;
		}
	}
	/* Catching up does not ask for the gate. */
	if (mutation("catch-ungated") && group->catching &&
		(event->type == GE_CHECKED || event->type == GE_MOVED)) {
		for (uint32_t i = 0; i < group->nmembers; i++) {
			group->members[i].ready = true;
		}
	}
	__real_group_step(group, &bent, ret_actions);
	if (event->type == GE_BEGIN) {
		now->prepared &= (uint8_t) ~(1u << group->part);
	} else if (group->phase == PHASE_PREPARED) {
		now->prepared |= (uint8_t)(1u << group->part);
	}
	/* A resume is granted while the memory is being written. */
	if (mutation("grant-early") && event->type == GE_RESUME && before == PHASE_MOVING &&
		group->members[event->member].asking) {
		group->members[event->member].asking = false;
		ret_actions->v[ret_actions->n++] =
			(struct group_action){GA_GRANT, event->member, STREW_OUTCOME_NONE};
	}
}
