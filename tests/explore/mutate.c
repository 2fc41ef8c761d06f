/*
 * Faults put into the machines on purpose, between what they call of each other: the explorer must
 * find each.
 */
#include "tests/explore/mutate.h"
#include "strew/trainer.h"
#include "tests/explore/world.h"
#include <string.h>

const struct mutation mutations[] = {
	{"late-unheard", "remote", PUBLISH_WHOLE, 0, 2, 0},
	{"abort-clean", "remote", PUBLISH_WHOLE, 0, 2, 0},
	{"abort-clean", "one", PUBLISH_IN_PARTS, 0, 1, 0},
	{"prepared-commits", "remote", PUBLISH_WHOLE, 0, 2, 0},
	{"grant-early", "remote", PUBLISH_WHOLE, 0, 2, 0},
	{"copy-clean", "remote", PUBLISH_WHOLE, 0, 2, 0},
	{"join-clean", "remote", PUBLISH_WHOLE, 0, 2, 0},
	{"loss-clean", "pair", PUBLISH_WHOLE, 0, 2, 0},
	{"settle-aborts", "replicas", PUBLISH_WHOLE, 0, 2, 0},
	{"settle-commits", "remote", PUBLISH_WHOLE, 0, 2, 0},
	{"page-silent", "remote", PUBLISH_WHOLE, 0, 2, 0},
	{"late-pull-clean", "remote", PUBLISH_WHOLE, 1, 2, 0},
	{"late-apply-whole", "remote", PUBLISH_FIRST, 1, 1, 0},
	{"pulls-unknown", "one", PUBLISH_WHOLE, 1, 1, 0},
	{"pulled-unawaited", "pair", PUBLISH_WHOLE, 3, 1, 0},
	{"copied-unawaited", "one", PUBLISH_WHOLE, 1, 1, 0},
	{"pull-clean", "one", PUBLISH_WHOLE, 1, 1, 0},
	{"pull-late-unheard", "one", PUBLISH_WHOLE, 1, 1, 0},
	{"base-unlooked-at", "one", PUBLISH_FIRST, 0, 1, 0},
	{"base-unchecked", "one", PUBLISH_FIRST, 0, 1, 0},
	{"close-unchecked", "one", PUBLISH_IN_PARTS, 0, 1, 0},
	{"part-commits", "one", PUBLISH_IN_PARTS, 0, 1, 0},
	{"part-released-early", "one", PUBLISH_IN_PARTS, 0, 1, 0},
	{"put-never-released", "one", PUBLISH_IN_PARTS, 0, 1, 0},
	{"put-unanswered", "far", PUBLISH_IN_PARTS, 0, 1, 0},
	{"put-before-others", "both", PUBLISH_IN_PARTS, 0, 1, 0},
	{"rank-unmissed", "one", PUBLISH_IN_PARTS, 0, 1, 0},
	{"rank-released-early", "far", PUBLISH_IN_PARTS, 0, 1, 0},
	{"rank-unreported", "far", PUBLISH_IN_PARTS, 0, 1, 0},
	{"catch-ungated", "siblings", PUBLISH_WHOLE, 0, 1, 1},
	{"catch-early", "siblings", PUBLISH_WHOLE, 0, 1, 1},
	{"catch-clean", "siblings", PUBLISH_WHOLE, 0, 2, 1},
	{"catch-unyielding", "siblings", PUBLISH_WHOLE, 0, 1, 2},
	{"catch-unyielding", "together", PUBLISH_WHOLE, 0, 1, 2},
	{"catch-granted", "siblings", PUBLISH_WHOLE, 0, 2, 1},
	{"catch-silent", "siblings", PUBLISH_WHOLE, 0, 2, 1},
	{NULL, NULL, 0, 0, 0, 0},
};

static bool mutated(const char *name)
{
	return config.mutation && strcmp(config.mutation, name) == 0;
}

/* The machine of a group */

void __real_group_step(
	struct group *group, const struct group_event *event, struct group_actions *ret_actions);
void __wrap_group_step(
	struct group *group, const struct group_event *event, struct group_actions *ret_actions);

/* The event as a machine that is wrong would take it; false: not at all. */
static bool bend(struct group *group, struct group_event *event)
{
	enum group_phase phase = group->phase;

	/* The gate's deadline is not told. */
	if (mutated("late-unheard") && event->type == GE_LATE) {
		return false;
	}
	/* Nor that a worker does not copy out of its twins in time. */
	if (mutated("pull-late-unheard") && event->type == GE_FAILED && phase == PHASE_COMMITTING) {
		return false;
	}
	/* An abort forgets that live memory was written. */
	if (mutated("abort-clean") && event->type == GE_ABORT) {
		event->touched = false;
	}
	/* A direct group is prepared, so it is taken for committed. */
	if (mutated("prepared-commits") && event->type == GE_DOUBT) {
		event->type = GE_COMMIT;
	}
	/* The same of one that catches up alone. */
	if (mutated("catch-clean") && event->type == GE_ABORT && group->catching) {
		event->touched = false;
	}
	/* A failed copy of the commit is taken for a whole one, of the broker or of a worker. */
	if (mutated("copy-clean") && event->type == GE_FAILED && phase == PHASE_COMMITTING) {
		event->type = GE_COPIED;
	}
	if (mutated("pull-clean") && event->type == GE_FAILED && phase == PHASE_COMMITTING) {
		event->type = GE_PULLED;
	}
	/* What a worker says of its memory when it comes is not listened to. */
	if (mutated("join-clean") && event->type == GE_JOIN) {
		event->version = 0;
		event->stale = false;
	}
	if (mutated("pulls-unknown") && event->type == GE_JOIN) {
		event->pulls = false;
	}
	return true;
}

/* What a machine that is wrong would have forgotten. */
static void forget(struct group *group, const struct group_event *event)
{
	for (uint32_t i = 0; i < group->nmembers; i++) {
		/* A member's memory that was written in part, when another one goes. */
		if (mutated("loss-clean") && event->type == GE_LOSE) {
			group->members[i].version = group->version;
		}
		/* That more than one member copies out of its twins. */
		if (mutated("pulled-unawaited") && event->type == GE_PULLED) {
			group->members[i].pulled = true;
		}
		/* In a commit that is learnt late, that members copy beside the broker. */
		if (mutated("late-pull-clean") && event->type == GE_FAILED && group->settling) {
			group->members[i].pulls = false;
		}
	}
	/* That the gate is to be held before it catches up. */
	for (uint32_t i = 0; i < group->nmembers && mutated("catch-ungated"); i++) {
		group->members[i].ready = group->members[i].ready || group->catching;
	}
	/* That the broker itself copies too. */
	if (mutated("copied-unawaited") && event->type == GE_PULLED) {
		group->copied = true;
	}
}

void __wrap_group_step(
	struct group *group, const struct group_event *event, struct group_actions *ret_actions)
{
	enum group_phase before = group->phase;
	struct group_event bent = *event;

	ret_actions->n = 0;
	if (!bend(group, &bent)) {
		return;
	}
	forget(group, event);
	__real_group_step(group, &bent, ret_actions);
	if (event->type == GE_BEGIN) {
		now->prepared &= (uint8_t) ~(1u << group->part);
	} else if (group->phase == PHASE_PREPARED) {
		now->prepared |= (uint8_t)(1u << group->part);
	}
	/* What catches up is taken for whole as soon as its copies begin. */
	if (mutated("catch-early") && event->type == GE_GO && group->catching) {
		__real_group_step(group, &(struct group_event){.type = GE_MOVED}, ret_actions);
	}
	/* A resume is granted while the memory is being written. */
	if ((mutated("grant-early") || (mutated("catch-granted") && group->catching)) &&
		event->type == GE_RESUME && before == PHASE_MOVING &&
		group->members[event->member].asking) {
		group->members[event->member].asking = false;
		ret_actions->v[ret_actions->n++] =
			(struct group_action){GA_GRANT, event->member, STREW_OUTCOME_NONE};
	}
}

bool __real_group_writes(const struct group *group);
bool __wrap_group_writes(const struct group *group);

/* A broker writes, and its page does not say so. */
bool __wrap_group_writes(const struct group *group)
{
	bool silent = mutated("page-silent") || (mutated("catch-silent") && group->catching);

	return !silent && __real_group_writes(group);
}

/* Catching up */

bool __real_catchup_yield(struct server *server, const char *model, bool whole);
bool __wrap_catchup_yield(struct server *server, const char *model, bool whole);

/* An update does not wait for copies of a group that catches up. */
bool __wrap_catchup_yield(struct server *server, const char *model, bool whole)
{
	return __real_catchup_yield(server, model, whole) || mutated("catch-unyielding");
}

/* What follows from what brokers recall */

void __real_recall_begin(struct server *server);
void __wrap_recall_begin(struct server *server);

void __wrap_recall_begin(struct server *server)
{
	__real_recall_begin(server);
	/* That it was a subset is forgotten. */
	if (mutated("late-apply-whole")) {
		server->models->remembered.partial = false;
	}
}

bool __real_recovery_judge(const struct recall *asked, const struct recovery_word *words,
	size_t nwords, bool untouched, struct recall *ret_verdict);
bool __wrap_recovery_judge(const struct recall *asked, const struct recovery_word *words,
	size_t nwords, bool untouched, struct recall *ret_verdict);

bool __wrap_recovery_judge(const struct recall *asked, const struct recovery_word *words,
	size_t nwords, bool untouched, struct recall *ret_verdict)
{
	bool known = __real_recovery_judge(asked, words, nwords, untouched, ret_verdict);

	/* What nobody knows is decided. */
	if (!known && mutated("settle-aborts")) {
		ret_verdict->how = RECALL_ABORTED;
		return true;
	}
	/* All are prepared, so it is taken for committed. */
	if (mutated("settle-commits") && (!known || ret_verdict->how == RECALL_ABORTED)) {
		ret_verdict->how = RECALL_COMMITTED;
		for (uint32_t i = 0; i < GROUPS; i++) {
			recall_add(ret_verdict, i);
		}
		return true;
	}
	return known;
}

/* An update at the lead */

int __real_update_publish(struct update *update, uint32_t rank, const struct msg_publish *publish,
	uint64_t committed, uint64_t at, struct error *err);
int __wrap_update_publish(struct update *update, uint32_t rank, const struct msg_publish *publish,
	uint64_t committed, uint64_t at, struct error *err);

int __wrap_update_publish(struct update *update, uint32_t rank, const struct msg_publish *publish,
	uint64_t committed, uint64_t at, struct error *err)
{
	struct msg_publish bent = *publish;

	/* A subset is taken for one on what was committed, whatever its trainer says. */
	if (mutated("base-unchecked")) {
		bent.base = committed;
	}
	return __real_update_publish(update, rank, &bent, committed, at, err);
}

unsigned __real_update_put_done(struct update *update, uint32_t rank);
unsigned __wrap_update_put_done(struct update *update, uint32_t rank);

unsigned __real_update_moved(
	struct update *update, uint32_t node, const struct msg_groups *answer, uint64_t at);
unsigned __wrap_update_moved(
	struct update *update, uint32_t node, const struct msg_groups *answer, uint64_t at);

unsigned __wrap_update_moved(
	struct update *update, uint32_t node, const struct msg_groups *answer, uint64_t at)
{
	unsigned actions = __real_update_moved(update, node, answer, at);

	/* The first part is taken for all. */
	if (mutated("part-commits") && update->state == UPDATE_PUTTING && !update->next_said) {
		update->next = 0;
		update->next_said = update->published[0] = true;
		memset(update->done, true, sizeof(update->done));
		actions |= __real_update_put_done(update, 0);
	}
	return actions;
}

unsigned __wrap_update_put_done(struct update *update, uint32_t rank)
{
	unsigned actions;

	/* The first rank's word stands for all. */
	if (mutated("put-before-others") && update->published[rank]) {
		memset(update->done, true, sizeof(update->done));
	}
	actions = __real_update_put_done(update, rank);
	/* What was put is given back as soon as it is asked for. */
	if ((actions & UPDATE_DO_GO) && mutated("part-released-early")) {
		update->released = true;
		actions |= UPDATE_DO_RELEASE;
	}
	return actions;
}

unsigned __real_update_tick(struct update *update, uint64_t at);
unsigned __wrap_update_tick(struct update *update, uint64_t at);
unsigned __real_update_applied(
	struct update *update, uint32_t node, const struct msg_groups *answer, uint64_t at);
unsigned __wrap_update_applied(
	struct update *update, uint32_t node, const struct msg_groups *answer, uint64_t at);

/* What was put and did not begin to move is not given back at the end. */
static unsigned keep(const struct update *update, unsigned actions)
{
	bool kept =
		mutated("put-never-released") && (actions & UPDATE_DO_REPORT) && update->next_said;

	return kept ? actions & ~(unsigned)UPDATE_DO_RELEASE : actions;
}

unsigned __wrap_update_tick(struct update *update, uint64_t at)
{
	return keep(update, __real_update_tick(update, at));
}

unsigned __wrap_update_applied(
	struct update *update, uint32_t node, const struct msg_groups *answer, uint64_t at)
{
	return keep(update, __real_update_applied(update, node, answer, at));
}

unsigned __real_update_rank_lost(
	struct update *update, uint32_t rank, bool released, const char *where, uint64_t at);
unsigned __wrap_update_rank_lost(
	struct update *update, uint32_t rank, bool released, const char *where, uint64_t at);

unsigned __wrap_update_rank_lost(
	struct update *update, uint32_t rank, bool released, const char *where, uint64_t at)
{
	/* Of a rank whose memory nobody reads it is forgotten that it has more to put. */
	if (mutated("rank-unmissed") && released && update->state >= UPDATE_MOVING) {
		return 0;
	}
	return __real_update_rank_lost(update, rank, released, where, at);
}

int __real_lead_take_put(
	struct model *model, uint32_t rank, uint64_t version, uint32_t subset, struct error *err);
int __wrap_lead_take_put(
	struct model *model, uint32_t rank, uint64_t version, uint32_t subset, struct error *err);

int __wrap_lead_take_put(
	struct model *model, uint32_t rank, uint64_t version, uint32_t subset, struct error *err)
{
	/* That all is there is believed. */
	if (mutated("close-unchecked") && !subset) {
		return update_put(&model->update, rank, version, subset, err);
	}
	return __real_lead_take_put(model, rank, version, subset, err);
}

/* A node, and the ranks there */

void __real_node_begin(struct server *server, const struct msg_begin *begin);
void __wrap_node_begin(struct server *server, const struct msg_begin *begin);

void __wrap_node_begin(struct server *server, const struct msg_begin *begin)
{
	struct group before[GROUPS];

	/* A subset is for all groups, whatever they hold. */
	for (unsigned g = 0; g < config.ngroups && mutated("base-unlooked-at"); g++) {
		struct team *team = live_team(g);

		if (team) {
			before[g] = team->group;
			team->group.version = begin->base;
			team->group.state = team->group.npresent == team->group.nmembers
						    ? STREW_GROUP_CURRENT
						    : team->group.state;
		}
	}
	__real_node_begin(server, begin);
	for (unsigned g = 0; g < config.ngroups && mutated("base-unlooked-at"); g++) {
		struct team *team = live_team(g);

		if (team) {
			team->group.version = before[g].version;
			team->group.state = before[g].state;
		}
	}
}

void __real_node_go(struct server *server, const struct msg_decision *go);
void __wrap_node_go(struct server *server, const struct msg_decision *go);

void __wrap_node_go(struct server *server, const struct msg_decision *go)
{
	__real_node_go(server, go);
	/* A joined broker gives its ranks their memory back when it has handed it to the mover. */
	if (mutated("rank-released-early") && !server_is_lead(server)) {
		ranks_released(server);
	}
}

void __real_ranks_node_idle(struct server *server);
void __wrap_ranks_node_idle(struct server *server);

void __wrap_ranks_node_idle(struct server *server)
{
	/* A joined broker whose lead is gone says nothing in its place. */
	if (!mutated("rank-unreported")) {
		__real_ranks_node_idle(server);
	}
}
