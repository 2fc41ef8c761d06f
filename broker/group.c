/*
 * The story of a group in one update.
 *
 *   IDLE ─begin─► CHECKING ─all checked─► (direct, held: HOLDING ─all ready─►) ACCEPTED
 *   ACCEPTED ─go─► MOVING ─moved─► (staged, held: GATING ─all ready─►) PREPARED
 *   PREPARED ─commit─► (staged: COMMITTING ─copied─►) IDLE, CURRENT
 *
 * Until the first byte of live memory changes, anything that goes wrong sends
 * the group OUT: it tells the lead, and waits there to hear whether the others
 * committed (then it is STALE) or not (then nothing happened). After that byte
 * only a commit makes it CURRENT again; everything else leaves it DIRTY, and a
 * DIRTY group's engine does not get its memory back before a whole update.
 * A member that dies makes the group LOST; it stands again when its place is
 * taken, as STALE unless all members hold the same version.
 *
 * What becomes of a group that was prepared when the lead went away is in group_doubt.c, of its
 * members in group_members.c.
 *
 * A group that catches up goes the same way, with a version that others have: its broker tells it
 * begin, go and commit by itself (broker/catchup.c), and whatever goes wrong ends in an abort.
 *
 * A resume is answered at once unless the group's live memory is being written,
 * or will be: from HOLDING (direct) or GATING (staged) to the end.
 */
#include "broker/group_internal.h"
#include <stdio.h>
#include <string.h>

void group_act(struct group_actions *actions, enum group_action_type type, uint32_t member,
	enum strew_outcome outcome)
{
	actions->v[actions->n++] = (struct group_action){type, member, outcome};
}

void group_act_all(struct group *group, struct group_actions *actions, enum group_action_type type,
	enum strew_outcome outcome)
{
	for (uint32_t i = 0; i < group->nmembers; i++) {
		if (group->members[i].present) {
			group_act(actions, type, i, outcome);
		}
	}
}

void group_init(struct group *group, const char *model, uint32_t replica, uint32_t part,
	uint32_t nmembers, enum strew_gate gate, enum strew_apply apply)
{
	memset(group, 0, sizeof(*group));
	snprintf(group->model, sizeof(group->model), "%s", model);
	group->replica = replica;
	group->part = part;
	group->nmembers = nmembers;
	group->gate = gate;
	group->apply = apply;
	group->state = STREW_GROUP_FORMING;
}

static bool all_checked(const struct group *group)
{
	for (uint32_t i = 0; i < group->nmembers; i++) {
		if (!group->members[i].checked) {
			return false;
		}
	}
	return true;
}

bool group_gate_held(const struct group *group)
{
	if (group->gate == STREW_GATE_LIVE) {
		return true;
	}
	for (uint32_t i = 0; i < group->nmembers; i++) {
		if (!group->members[i].ready) {
			return false;
		}
	}
	return true;
}

/* True while the engine must not touch its memory because of this update. */
static bool gate_closed(const struct group *group)
{
	switch (group->phase) {
	case PHASE_HOLDING:
	case PHASE_GATING:
	case PHASE_COMMITTING:
	case PHASE_PREPARED:
		return true;
	case PHASE_ACCEPTED:
	case PHASE_MOVING:
		return group->apply == STREW_APPLY_DIRECT;
	default:
		return false;
	}
}

/* Answers the resumes that wait, as far as phase and state allow. */
static void answer_resumes(struct group *group, struct group_actions *actions)
{
	if (gate_closed(group)) {
		return;
	}
	for (uint32_t i = 0; i < group->nmembers; i++) {
		struct group_member *member = &group->members[i];

		if (!member->present || !member->asking) {
			continue;
		}
		member->asking = false;
		if (group->state == STREW_GROUP_DIRTY || member->version == GROUP_VERSION_MIXED) {
			group_act(actions, GA_DENY, i, STREW_OUTCOME_DIRTY);
		} else {
			member->ready = false;
			group_act(actions, GA_GRANT, i, STREW_OUTCOME_NONE);
		}
	}
}

void group_set_text(struct group *group, const char *text)
{
	if (text != group->text) {
		snprintf(group->text, sizeof(group->text), "%s", text ? text : "");
	}
}

/* Ends the update for the group: tells its members, answers their resumes. */
void group_finish(struct group *group, struct group_actions *actions, enum strew_outcome outcome)
{
	group->phase = PHASE_IDLE;
	group->settling = false;
	group_act_all(group, actions, GA_SEND_DONE, outcome);
	answer_resumes(group, actions);
}

/* Written in part, every member: it stays so when siblings come and go. */
void group_make_dirty(struct group *group)
{
	for (uint32_t i = 0; i < group->nmembers; i++) {
		group->members[i].version = GROUP_VERSION_MIXED;
	}
	if (group->state != STREW_GROUP_LOST) {
		group->state = STREW_GROUP_DIRTY;
	}
}

static enum strew_outcome outcome_out(const struct group *group)
{
	return group->state == STREW_GROUP_LOST	   ? STREW_OUTCOME_LOST
	       : group->state == STREW_GROUP_DIRTY ? STREW_OUTCOME_DIRTY
						   : STREW_OUTCOME_SAT_OUT;
}

/* Tells the lead that the group is out, with the message that the lead waits for. */
void group_go_out(struct group *group, struct group_actions *actions, const char *text)
{
	enum group_action_type answer = GA_PREPARED;

	group_set_text(group, text);
	if (group->settling) {
		/* Others have committed, and this group has not got it. */
		if (group->state == STREW_GROUP_IN_DOUBT) {
			group->state = STREW_GROUP_STALE;
		}
		group_finish(group, actions, outcome_out(group));
		return;
	}
	if (group->phase == PHASE_CHECKING || group->phase == PHASE_HOLDING) {
		answer = GA_ACCEPT;
	} else if (group->phase == PHASE_COMMITTING) {
		answer = GA_APPLIED;
	}
	/* In ACCEPTED nothing is owed yet: the lead hears of it with prepared. */
	if (group->phase != PHASE_ACCEPTED) {
		group_act(actions, answer, 0, outcome_out(group));
	}
	group->phase = PHASE_OUT;
	answer_resumes(group, actions);
}

static void try_accept(struct group *group, struct group_actions *actions)
{
	bool was_checking = group->phase == PHASE_CHECKING;

	if (was_checking && !all_checked(group)) {
		return;
	}
	if (group->settling) {
		group_settle(group, actions);
		return;
	}
	if (group->apply == STREW_APPLY_DIRECT && !group_gate_held(group)) {
		if (was_checking) {
			group->phase = PHASE_HOLDING;
			group_act_all(group, actions, GA_SEND_HOLD, STREW_OUTCOME_NONE);
		}
		return;
	}
	group->phase = PHASE_ACCEPTED;
	group_act(actions, GA_ACCEPT, 0, STREW_OUTCOME_NONE);
}

static void try_prepare(struct group *group, struct group_actions *actions)
{
	if (group->settling) {
		group_settle(group, actions);
		return;
	}
	if (group->apply == STREW_APPLY_STAGED && !group_gate_held(group)) {
		if (group->phase == PHASE_MOVING) {
			group->phase = PHASE_GATING;
			group_act_all(group, actions, GA_SEND_HOLD, STREW_OUTCOME_NONE);
		}
		return;
	}
	group->phase = PHASE_PREPARED;
	group_act(actions, GA_PREPARED, 0, STREW_OUTCOME_NONE);
}

void group_committed(struct group *group, struct group_actions *actions)
{
	group->state = STREW_GROUP_CURRENT;
	group->version = group->update_version;
	for (uint32_t i = 0; i < group->nmembers; i++) {
		group->members[i].version = group->version;
		group->members[i].stale = false;
	}
	group_set_text(group, "");
	group_act(actions, GA_APPLIED, 0, STREW_OUTCOME_COMMITTED);
	group_finish(group, actions, STREW_OUTCOME_COMMITTED);
}

static bool any_pulls(const struct group *group)
{
	for (uint32_t i = 0; i < group->nmembers; i++) {
		if (group->members[i].pulls) {
			return true;
		}
	}
	return false;
}

/* Live memory changes only now: by our copy, by the members' own, or by both side by side. */
bool group_copies_at_commit(const struct group *group)
{
	return group->apply == STREW_APPLY_STAGED || any_pulls(group);
}

void group_commit(struct group *group, struct group_actions *actions)
{
	if (!group_copies_at_commit(group)) {
		group_committed(group, actions);
		return;
	}
	group->phase = PHASE_COMMITTING;
	group->copied = false;
	group_act(actions, GA_COPY, 0, STREW_OUTCOME_NONE);
	for (uint32_t i = 0; i < group->nmembers; i++) {
		group->members[i].pulled = false;
		if (group->members[i].pulls) {
			group_act(actions, GA_SEND_APPLY, i, STREW_OUTCOME_NONE);
		}
	}
}

static void try_committed(struct group *group, struct group_actions *actions)
{
	for (uint32_t i = 0; i < group->nmembers; i++) {
		if (group->members[i].pulls && !group->members[i].pulled) {
			return;
		}
	}
	if (group->copied) {
		group_committed(group, actions);
	}
}

void group_ask_checks(struct group *group, struct group_actions *actions)
{
	group->phase = PHASE_CHECKING;
	for (uint32_t i = 0; i < group->nmembers; i++) {
		group->members[i].checked = false;
	}
	group_act_all(group, actions, GA_SEND_CHECK, STREW_OUTCOME_NONE);
}

static void on_begin(
	struct group *group, const struct group_event *event, struct group_actions *actions)
{
	group->update = event->update;
	group->update_version = event->version;
	/* What it was prepared for will be written over. */
	group_end_doubt(group);
	group->catching = event->catching;
	group_set_text(group, "");
	group_ask_checks(group, actions);
}

static void on_failed(
	struct group *group, const struct group_event *event, struct group_actions *actions)
{
	bool committing = group->phase == PHASE_COMMITTING;
	bool touched = event->touched && (group->apply == STREW_APPLY_DIRECT || committing);

	/* Our copy may not have begun; members that pull were told to. */
	if (touched || (committing && any_pulls(group))) {
		group_make_dirty(group);
	}
	group_go_out(group, actions, event->text);
}

/* The lead gave up, or went on without us: nothing of this update is to be kept. */
void group_abort(
	struct group *group, const struct group_event *event, struct group_actions *actions)
{
	enum strew_outcome outcome = STREW_OUTCOME_ABORTED;

	if (event->touched && group->apply == STREW_APPLY_DIRECT && group->phase >= PHASE_MOVING &&
		group->phase <= PHASE_PREPARED) {
		group_make_dirty(group);
	}
	if (group->state == STREW_GROUP_DIRTY) {
		outcome = STREW_OUTCOME_DIRTY;
	} else if (group->state == STREW_GROUP_LOST) {
		outcome = STREW_OUTCOME_LOST;
	}
	if (group->phase != PHASE_OUT || !group->text[0]) {
		group_set_text(group, event->text);
	}
	group_finish(group, actions, outcome);
}

/* Others committed; this group was not among them. */
static void on_out_commit(struct group *group, struct group_actions *actions)
{
	enum strew_outcome outcome = STREW_OUTCOME_SAT_OUT;

	if (group->state == STREW_GROUP_CURRENT || group->state == STREW_GROUP_IN_DOUBT) {
		group->state = STREW_GROUP_STALE;
	}
	if (group->state == STREW_GROUP_DIRTY) {
		outcome = STREW_OUTCOME_DIRTY;
	} else if (group->state == STREW_GROUP_LOST) {
		outcome = STREW_OUTCOME_LOST;
	}
	group_act(actions, GA_APPLIED, 0, outcome);
	group_finish(group, actions, outcome);
}

#define P(phase) (1u << PHASE_##phase)
#define IN_UPDATE (P(CHECKING) | P(HOLDING) | P(ACCEPTED) | P(MOVING) | P(GATING) | P(PREPARED))

/* In which phases an event means something. docs/architecture.md shows the same table. */
static const unsigned allowed[GE_COUNT] = {
	[GE_JOIN] = P(IDLE) | P(OUT),
	[GE_LEAVE] = ~0u,
	[GE_LOSE] = ~0u,
	[GE_READY] = ~0u,
	[GE_RESUME] = ~0u,
	[GE_BEGIN] = P(IDLE),
	[GE_CHECKED] = P(CHECKING),
	[GE_REFUSE] = P(CHECKING) | P(HOLDING) | P(ACCEPTED),
	[GE_GO] = P(ACCEPTED),
	[GE_SKIP] = IN_UPDATE,
	[GE_MOVED] = P(MOVING),
	[GE_FAILED] = P(MOVING) | P(GATING) | P(COMMITTING),
	[GE_LATE] = P(CHECKING) | P(HOLDING) | P(GATING),
	[GE_COMMIT] = P(PREPARED) | P(OUT),
	[GE_COPIED] = P(COMMITTING),
	[GE_PULLED] = P(COMMITTING),
	[GE_ABORT] = IN_UPDATE | P(OUT),
	[GE_DOUBT] = IN_UPDATE | P(OUT),
	[GE_MISSED] = P(IDLE),
	[GE_SETTLED] = P(IDLE),
};

static void step_member(
	struct group *group, const struct group_event *event, struct group_actions *actions)
{
	struct group_member *member = &group->members[event->member];

	if (event->member >= group->nmembers || member->present == (event->type == GE_JOIN)) {
		return;
	}
	switch (event->type) {
	case GE_JOIN:
		group_join(group, event);
		break;
	case GE_LEAVE:
	case GE_LOSE:
		group_gone(group, event, actions);
		break;
	case GE_READY:
		member->ready = true;
		if (group->phase == PHASE_HOLDING) {
			try_accept(group, actions);
		} else if (group->phase == PHASE_GATING) {
			try_prepare(group, actions);
		}
		break;
	case GE_RESUME:
		member->asking = true;
		answer_resumes(group, actions);
		break;
	case GE_CHECKED:
		member->checked = true;
		try_accept(group, actions);
		break;
	case GE_PULLED:
		member->pulled = true;
		try_committed(group, actions);
		break;
	default:
		break;
	}
}

static void step_update(
	struct group *group, const struct group_event *event, struct group_actions *actions)
{
	switch (event->type) {
	case GE_BEGIN:
		on_begin(group, event, actions);
		break;
	case GE_REFUSE:
	case GE_LATE:
		group_go_out(group, actions, event->text);
		break;
	case GE_GO:
		group->phase = PHASE_MOVING;
		break;
	case GE_SKIP:
		/* The lead knows; nothing is said, and what was prepared is dropped. */
		if (event->touched && group->apply == STREW_APPLY_DIRECT &&
			group->phase >= PHASE_MOVING) {
			group_make_dirty(group);
		}
		group_set_text(group, event->text);
		group->phase = PHASE_OUT;
		answer_resumes(group, actions);
		break;
	case GE_MOVED:
		try_prepare(group, actions);
		break;
	case GE_FAILED:
		on_failed(group, event, actions);
		break;
	case GE_COMMIT:
		if (group->phase == PHASE_OUT) {
			on_out_commit(group, actions);
		} else {
			group_commit(group, actions);
		}
		break;
	case GE_COPIED:
		group->copied = true;
		try_committed(group, actions);
		break;
	case GE_ABORT:
		group_abort(group, event, actions);
		break;
	case GE_DOUBT:
		group_to_doubt(group, actions);
		break;
	case GE_MISSED:
		group_missed(group, event);
		break;
	case GE_SETTLED:
		group_settled(group, event, actions);
		break;
	default:
		break;
	}
}

/* What a lead decides of an update is not meant for a group that settles by itself. */
static bool of_lead(enum group_event_type type)
{
	return type == GE_SKIP || type == GE_ABORT || type == GE_DOUBT;
}

void group_step(
	struct group *group, const struct group_event *event, struct group_actions *ret_actions)
{
	ret_actions->n = 0;
	if (!(allowed[event->type] & (1u << group->phase)) ||
		(group->settling && of_lead(event->type))) {
		return;
	}
	switch (event->type) {
	case GE_JOIN:
	case GE_LEAVE:
	case GE_LOSE:
	case GE_READY:
	case GE_RESUME:
	case GE_CHECKED:
	case GE_PULLED:
		step_member(group, event, ret_actions);
		break;
	default:
		step_update(group, event, ret_actions);
		break;
	}
}
