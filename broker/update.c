/*
 * The story of an update at the lead.
 *
 *   IDLE ─first publish─► RANKS ─all published, all streams done─► QUEUED
 *   QUEUED ─the epoch is free─► ACCEPTING ─every node accepted─► MOVING
 *   MOVING ─every node prepared─► COMMITTING ─every node applied─► report, IDLE
 *   in parts: MOVING ─every node moved─► PUTTING ─all put the next, streams done─► MOVING
 *
 * An update in parts moves once for each subset that its ranks put, one after another, and a last
 * time, with nothing to move, when all have said that all is there: then nodes prepare. What
 * a rank puts while others still move the last part is kept until they have.
 *
 * Groups are judged by replica: one that a group refuses sits out, the others
 * go on; with scope=all one refusal aborts all. Before COMMITTING the loss of
 * a node, of a rank whose memory is still read, or of time aborts: ABORTING
 * waits until every node is quiet, so that the memory can be released and the
 * next update does not meet the last one's copies. In COMMITTING nothing is
 * taken back: a node that is lost then is named in the report.
 * Every state but IDLE has a deadline. ABORTING has one too: a node that does not
 * answer it is taken for lost; but for our own the end waits while it reads the trainer's memory.
 *
 * What ranks say is in update_publish.c, who goes on in update_judge.c.
 */
#include "base/clock.h"
#include "base/util.h"
#include "broker/update_internal.h"
#include "strew/trainer.h"
#include <stdio.h>
#include <string.h>

static void expect_answers(struct update *update)
{
	memset(update->answered, 0, sizeof(update->answered));
}

static bool all_answered(const struct update *update)
{
	for (uint32_t i = 0; i < update->nnodes; i++) {
		if (!update->answered[i] && !update->lost[i]) {
			return false;
		}
	}
	return true;
}

unsigned update_begin(struct update *update, uint64_t serial, uint32_t nnodes, uint64_t now)
{
	if (update->state != UPDATE_QUEUED) {
		return 0;
	}
	update->state = UPDATE_ACCEPTING;
	update->serial = serial;
	update->nnodes = nnodes;
	update->begun_ns = now;
	update->unwanted = UINT64_MAX;
	memset(&update->stages, 0, sizeof(update->stages));
	update->slot_types_said = false;
	update->hash = false;
	expect_answers(update);
	return UPDATE_DO_BEGIN;
}

static unsigned release(struct update *update)
{
	if (update->released) {
		return 0;
	}
	update->released = true;
	return UPDATE_DO_RELEASE;
}

/* Of a commit that is not everywhere. One that is nowhere was decided all the same: nobody knows
 * what the groups that were lost have of it, and its number is not given twice. */
static void say_why(struct update *update)
{
	for (size_t i = 0; i < update->ngroups && !update->text[0]; i++) {
		const struct group_outcome *group = &update->groups[i];

		if (group->outcome != STREW_OUTCOME_COMMITTED) {
			snprintf(update->text, sizeof(update->text),
				"%sreplica %u part %u on node %u: %.130s",
				update->outcome == STREW_OUTCOME_LOST
					? "it was decided, and no group has it: the next one needs "
					  "another version; "
					: "",
				group->replica, group->part, group->node, group->text);
		}
	}
}

/* Ends the update. Groups that nobody decided are as the update's outcome says. */
static unsigned report(struct update *update, uint64_t now)
{
	/* What was put and has not begun to move is nobody's to read either. */
	unsigned actions = release(update) | (update->next_said ? UPDATE_DO_RELEASE : 0);
	size_t committed = 0;

	for (size_t i = 0; i < update->ngroups; i++) {
		if (update->groups[i].outcome == STREW_OUTCOME_NONE) {
			update->groups[i].outcome = STREW_OUTCOME_ABORTED;
		}
		committed += update->groups[i].outcome == STREW_OUTCOME_COMMITTED;
	}
	if (update->outcome != STREW_OUTCOME_ABORTED) {
		update->outcome = committed && committed == update->ngroups
					  ? STREW_OUTCOME_COMMITTED
				  : committed ? STREW_OUTCOME_SAT_OUT
					      : STREW_OUTCOME_LOST;
		say_why(update);
	}
	update->ended_ns = now;
	update->state = UPDATE_IDLE;
	return actions | UPDATE_DO_REPORT;
}

static unsigned abort_update(struct update *update, uint64_t now, const char *text)
{
	update->outcome = STREW_OUTCOME_ABORTED;
	snprintf(update->text, sizeof(update->text), "%s", text);
	for (size_t i = 0; i < update->ngroups; i++) {
		struct group_outcome *group = &update->groups[i];

		if (group->outcome == STREW_OUTCOME_NONE && !group->text[0]) {
			snprintf(group->text, sizeof(group->text), "%s", text);
		}
	}
	if (update->state == UPDATE_RANKS || update->state == UPDATE_QUEUED) {
		return report(update, now);
	}
	update->state = UPDATE_ABORTING;
	update->deadline_ns = now + LIMIT_ABORT_MS * 2000000ull;
	expect_answers(update);
	return UPDATE_DO_ABORT;
}

/* Takes a node's answer; 0 if it is not due. */
static bool take_answer(struct update *update, enum update_state due, uint32_t node,
	const struct msg_groups *answer)
{
	if (node >= update->nnodes || update->answered[node] || update->lost[node] ||
		answer->update != update->serial) {
		return false;
	}
	if (update->state != due) {
		return false;
	}
	update->answered[node] = true;
	update_merge_answer(update, node, answer);
	return true;
}

static void merge_slot_types(struct update *update, const struct msg_groups *answer)
{
	struct slot_types said = {.n = (uint32_t)answer->nslot_types};

	if (said.n) {
		memcpy(said.runs, answer->slot_types, said.n * sizeof(said.runs[0]));
	}
	if (!update->slot_types_said) {
		update->slot_types = said;
		update->slot_types_said = true;
		return;
	}
	slot_types_merge(&update->slot_types, &said);
}

static unsigned go(struct update *update)
{
	update->state = UPDATE_MOVING;
	expect_answers(update);
	if (update->parts) {
		update->next_said = false;
		memset(update->published, 0, sizeof(update->published));
		memset(update->done, 0, sizeof(update->done));
	}
	return UPDATE_DO_GO;
}

/* Every node has moved the last part, and every rank has put the next. */
static unsigned try_next(struct update *update)
{
	if (update->state != UPDATE_PUTTING || !update->next_said || !update_all_done(update)) {
		return 0;
	}
	update->part = update->next;
	update->put |= update_put_bit(update->part);
	update->released = !update->part;
	return go(update);
}

unsigned update_put_done(struct update *update, uint32_t rank)
{
	if ((update->state != UPDATE_MOVING && update->state != UPDATE_PUTTING) ||
		!update->published[rank] || !update->next_said) {
		return 0;
	}
	update->done[rank] = true;
	return try_next(update);
}

unsigned update_accept(
	struct update *update, uint32_t node, const struct msg_groups *answer, uint64_t now)
{
	char text[LIMIT_TEXT_BYTES];
	const char *why;

	if (!take_answer(update, UPDATE_ACCEPTING, node, answer)) {
		return 0;
	}
	if (answer->code) {
		snprintf(text, sizeof(text), "node %u: %.200s", node, answer->text);
		return abort_update(update, now, text);
	}
	if (update->text[0]) { /* update_merge_answer()'s */
		string_copy(text, sizeof(text), update->text);
		return abort_update(update, now, text);
	}
	if (answer->ngroups && answer->unwanted < update->unwanted) {
		update->unwanted = answer->unwanted;
	}
	merge_slot_types(update, answer);
	update->hash = update->hash || answer->hash;
	if (!all_answered(update)) {
		return 0;
	}
	why = update_judge(update, text);
	if (why) {
		return abort_update(update, now, why);
	}
	slot_types_settle(&update->slot_types);
	update->accepted_ns = now;
	return go(update);
}

/* The slowest broker's, each. */
static void merge_stages(struct stages *all, const struct stages *one)
{
	all->gather_ns = MAX(all->gather_ns, one->gather_ns);
	all->local_ns = MAX(all->local_ns, one->local_ns);
	all->wire_ns = MAX(all->wire_ns, one->wire_ns);
	all->scatter_ns = MAX(all->scatter_ns, one->scatter_ns);
}

/* Takes the answer to a go. True: it was the last one, and some replicas go on. */
static bool take_move(struct update *update, uint32_t node, const struct msg_groups *answer,
	uint64_t now, unsigned *ret_actions)
{
	char text[LIMIT_TEXT_BYTES];
	const char *why;

	if (!take_answer(update, UPDATE_MOVING, node, answer)) {
		return false;
	}
	if (answer->code) {
		snprintf(text, sizeof(text), "node %u: %.200s", node, answer->text);
		*ret_actions = abort_update(update, now, text);
		return false;
	}
	merge_stages(&update->stages, &answer->stages);
	if (!all_answered(update)) {
		return false;
	}
	why = update_judge(update, text);
	if (why) {
		*ret_actions = abort_update(update, now, why);
	}
	return !why;
}

unsigned update_moved(
	struct update *update, uint32_t node, const struct msg_groups *answer, uint64_t now)
{
	unsigned actions = 0;

	if (!update->part || !take_move(update, node, answer, now, &actions)) {
		return actions;
	}
	update->state = UPDATE_PUTTING;
	actions = release(update);
	return actions | try_next(update);
}

unsigned update_prepared(
	struct update *update, uint32_t node, const struct msg_groups *answer, uint64_t now)
{
	unsigned actions = 0;

	if (update->part || !take_move(update, node, answer, now, &actions)) {
		return actions;
	}
	update->state = UPDATE_COMMITTING;
	update->moved_ns = now;
	/* The commit stands whatever comes; only waiting for its answers has an end. */
	update->deadline_ns = now + LIMIT_UPDATE_MS * 1000000ull;
	expect_answers(update);
	return UPDATE_DO_COMMIT | release(update);
}

unsigned update_applied(
	struct update *update, uint32_t node, const struct msg_groups *answer, uint64_t now)
{
	enum update_state due =
		update->state == UPDATE_ABORTING ? UPDATE_ABORTING : UPDATE_COMMITTING;

	if (!take_answer(update, due, node, answer)) {
		return 0;
	}
	return all_answered(update) ? report(update, now) : 0;
}

unsigned update_released(struct update *update)
{
	return update->state == UPDATE_MOVING || update->state == UPDATE_COMMITTING
		       ? release(update)
		       : 0;
}

static void lose_groups(struct update *update, uint32_t node, const char *text)
{
	for (size_t i = 0; i < update->ngroups; i++) {
		struct group_outcome *group = &update->groups[i];

		if (group->node == node && group->outcome == STREW_OUTCOME_NONE) {
			group->outcome = STREW_OUTCOME_LOST;
			group->state = STREW_GROUP_LOST;
			snprintf(group->text, sizeof(group->text), "%s", text);
		}
	}
}

unsigned update_node_lost(struct update *update, uint32_t node, const char *name, uint64_t now)
{
	char text[LIMIT_TEXT_BYTES];

	if (update->state < UPDATE_ACCEPTING || node >= update->nnodes || update->lost[node]) {
		return 0;
	}
	snprintf(text, sizeof(text), "node %u, broker %.100s, was lost", node, name);
	update->lost[node] = true;
	lose_groups(update, node, text);
	if (update->state == UPDATE_COMMITTING || update->state == UPDATE_ABORTING) {
		return all_answered(update) ? report(update, now) : 0;
	}
	return abort_update(update, now, text);
}

unsigned update_rank_lost(
	struct update *update, uint32_t rank, bool released, const char *where, uint64_t now)
{
	char text[LIMIT_TEXT_BYTES];

	/* A commit follows the last node's prepared, and so every release. In parts there is more
	 * to come from each rank. */
	if (update->state == UPDATE_IDLE || update->state >= UPDATE_COMMITTING ||
		(update->state == UPDATE_MOVING && released && !update->part)) {
		return 0;
	}
	snprintf(text, sizeof(text), "trainer rank %u%s was lost", rank, where);
	return abort_update(update, now, text);
}

unsigned update_cancel(struct update *update, uint32_t rank, uint64_t version, const char *where,
	const char *why, uint64_t now)
{
	char text[LIMIT_TEXT_BYTES];

	if (update_check_cancel(update, version, NULL)) {
		return 0;
	}
	snprintf(text, sizeof(text), "trainer rank %u%.110s gave it up%s%.90s", rank, where,
		why[0] ? ": " : "", why);
	return abort_update(update, now, text);
}

unsigned update_give_up(struct update *update, const char *why, uint64_t now)
{
	return update->state == UPDATE_QUEUED ? abort_update(update, now, why) : 0;
}

unsigned update_overtaken(struct update *update, uint64_t committed, uint64_t now)
{
	bool decided = update->state == UPDATE_COMMITTING || update->state == UPDATE_ABORTING;
	struct error err;

	if (update->state == UPDATE_IDLE || decided ||
		update_check_version(update->version, committed, &err) == 0) {
		return 0;
	}
	return abort_update(update, now, err.text);
}

unsigned update_missed(struct update *update, const char *name, uint64_t now)
{
	char text[LIMIT_TEXT_BYTES];

	if (update->state != UPDATE_QUEUED || !(update->flags & STREW_PUBLISH_SCOPE_ALL)) {
		return 0;
	}
	snprintf(text, sizeof(text),
		"scope=all, and broker %.100s, which was lost, has not come back", name);
	return abort_update(update, now, text);
}

static unsigned ranks_late(struct update *update, uint64_t now)
{
	char text[LIMIT_TEXT_BYTES];
	uint32_t rank = 0;

	while (rank + 1 < update->nranks && update->done[rank]) {
		rank++;
	}
	snprintf(text, sizeof(text), "trainer rank %u %s before the deadline", rank,
		update->published[rank]		? "published, but its stream was not done"
		: update->state == UPDATE_RANKS ? "did not publish"
						: "did not put its next part");
	return abort_update(update, now, text);
}

static unsigned nodes_late(struct update *update, uint64_t now)
{
	char text[LIMIT_TEXT_BYTES];
	uint32_t node = 0;

	while (node + 1 < update->nnodes && (update->answered[node] || update->lost[node])) {
		node++;
	}
	snprintf(text, sizeof(text), "node %u did not answer %s before the deadline", node,
		update->state == UPDATE_ACCEPTING ? "begin" : "go");
	return abort_update(update, now, text);
}

/* Takes those that have not answered for lost, and ends. */
static unsigned answers_late(struct update *update, uint64_t now)
{
	/* Time alone gives no trainer its memory back: our own mover may still read it. */
	bool reads = update->state == UPDATE_ABORTING && !update->released &&
		     !update->answered[0] && !update->lost[0];

	for (uint32_t i = reads; i < update->nnodes; i++) {
		if (!update->answered[i]) {
			update->lost[i] = true;
			lose_groups(update, i, "its node did not answer before the deadline");
		}
	}
	if (reads) {
		update->deadline_ns = now + LIMIT_ABORT_MS * 1000000ull;
		return 0;
	}
	return report(update, now);
}

unsigned update_tick(struct update *update, uint64_t now)
{
	if (update->state == UPDATE_IDLE || now < update->deadline_ns) {
		return 0;
	}
	switch (update->state) {
	case UPDATE_RANKS:
	case UPDATE_PUTTING:
		return ranks_late(update, now);
	case UPDATE_QUEUED:
		return abort_update(update, now, "the brokers were not ready before the deadline");
	case UPDATE_ACCEPTING:
	case UPDATE_MOVING:
		return nodes_late(update, now);
	default:
		return answers_late(update, now);
	}
}

uint64_t update_due(const struct update *update)
{
	return update->state == UPDATE_IDLE ? UINT64_MAX : update->deadline_ns;
}

const char *update_state_name(enum update_state state)
{
	static const char *const names[UPDATE_STATES] = {"idle", "waiting for ranks", "queued",
		"accepting", "moving", "putting", "committing", "aborting"};

	return (unsigned)state < UPDATE_STATES ? names[state] : "?";
}
