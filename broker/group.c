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
 * A group that catches up goes the same way, with a version that others have: its broker tells it
 * begin, go and commit by itself (broker/catchup.c), and whatever goes wrong ends in an abort.
 *
 * A resume is answered at once unless the group's live memory is being written,
 * or will be: from HOLDING (direct) or GATING (staged) to the end.
 */
#include "broker/group.h"
#include <stdio.h>
#include <string.h>

static void act(struct group_actions *actions, enum group_action_type type, uint32_t member,
	enum strew_outcome outcome)
{
	actions->v[actions->n++] = (struct group_action){type, member, outcome};
}

static void act_all(struct group *group, struct group_actions *actions, enum group_action_type type,
	enum strew_outcome outcome)
{
	for (uint32_t i = 0; i < group->nmembers; i++) {
		if (group->members[i].present) {
			act(actions, type, i, outcome);
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

enum strew_group_state group_state(const struct group *group)
{
	if (group->phase != PHASE_IDLE && group->phase != PHASE_OUT && !group->catching &&
		group->state != STREW_GROUP_LOST) {
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

bool group_stands(const struct group *group, char text[LIMIT_TEXT_BYTES])
{
	if (group->npresent < group->nmembers) {
		snprintf(text, LIMIT_TEXT_BYTES, "%s: %u of %u members are registered",
			group->state == STREW_GROUP_LOST ? "lost a worker" : "forming",
			group->npresent, group->nmembers);
		return false;
	}
	return true;
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

static bool gate_held(const struct group *group)
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
			act(actions, GA_DENY, i, STREW_OUTCOME_DIRTY);
		} else {
			member->ready = false;
			act(actions, GA_GRANT, i, STREW_OUTCOME_NONE);
		}
	}
}

static void set_text(struct group *group, const char *text)
{
	if (text != group->text) {
		snprintf(group->text, sizeof(group->text), "%s", text ? text : "");
	}
}

/* Ends the update for the group: tells its members, answers their resumes. */
static void finish(struct group *group, struct group_actions *actions, enum strew_outcome outcome)
{
	group->phase = PHASE_IDLE;
	act_all(group, actions, GA_SEND_DONE, outcome);
	answer_resumes(group, actions);
}

/* Written in part, every member: it stays so when siblings come and go. */
static void make_dirty(struct group *group)
{
	for (uint32_t i = 0; i < group->nmembers; i++) {
		group->members[i].version = GROUP_VERSION_MIXED;
	}
	if (group->state != STREW_GROUP_LOST) {
		group->state = STREW_GROUP_DIRTY;
	}
}

/* Tells the lead that the group is out, with the message that the lead waits for. */
static void go_out(struct group *group, struct group_actions *actions, const char *text)
{
	enum group_action_type answer = GA_PREPARED;

	set_text(group, text);
	if (group->phase == PHASE_CHECKING || group->phase == PHASE_HOLDING) {
		answer = GA_ACCEPT;
	} else if (group->phase == PHASE_COMMITTING) {
		answer = GA_APPLIED;
	}
	/* In ACCEPTED nothing is owed yet: the lead hears of it with prepared. */
	if (group->phase != PHASE_ACCEPTED) {
		act(actions, answer, 0,
			group->state == STREW_GROUP_LOST    ? STREW_OUTCOME_LOST
			: group->state == STREW_GROUP_DIRTY ? STREW_OUTCOME_DIRTY
							    : STREW_OUTCOME_SAT_OUT);
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
	if (group->apply == STREW_APPLY_DIRECT && !gate_held(group)) {
		if (was_checking) {
			group->phase = PHASE_HOLDING;
			act_all(group, actions, GA_SEND_HOLD, STREW_OUTCOME_NONE);
		}
		return;
	}
	group->phase = PHASE_ACCEPTED;
	act(actions, GA_ACCEPT, 0, STREW_OUTCOME_NONE);
}

static void try_prepare(struct group *group, struct group_actions *actions)
{
	if (group->apply == STREW_APPLY_STAGED && !gate_held(group)) {
		if (group->phase == PHASE_MOVING) {
			group->phase = PHASE_GATING;
			act_all(group, actions, GA_SEND_HOLD, STREW_OUTCOME_NONE);
		}
		return;
	}
	group->phase = PHASE_PREPARED;
	act(actions, GA_PREPARED, 0, STREW_OUTCOME_NONE);
}

static void committed(struct group *group, struct group_actions *actions)
{
	group->state = STREW_GROUP_CURRENT;
	group->version = group->update_version;
	for (uint32_t i = 0; i < group->nmembers; i++) {
		group->members[i].version = group->version;
		group->members[i].stale = false;
	}
	set_text(group, "");
	act(actions, GA_APPLIED, 0, STREW_OUTCOME_COMMITTED);
	finish(group, actions, STREW_OUTCOME_COMMITTED);
}

/* Live memory changes only now: by our copy, by the members' own, or by both side by side. */
static bool copies_at_commit(const struct group *group)
{
	for (uint32_t i = 0; i < group->nmembers; i++) {
		if (group->members[i].pulls) {
			return true;
		}
	}
	return group->apply == STREW_APPLY_STAGED;
}

static void on_commit(struct group *group, struct group_actions *actions)
{
	if (!copies_at_commit(group)) {
		committed(group, actions);
		return;
	}
	group->phase = PHASE_COMMITTING;
	group->copied = false;
	act(actions, GA_COPY, 0, STREW_OUTCOME_NONE);
	for (uint32_t i = 0; i < group->nmembers; i++) {
		group->members[i].pulled = false;
		if (group->members[i].pulls) {
			act(actions, GA_SEND_APPLY, i, STREW_OUTCOME_NONE);
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
		committed(group, actions);
	}
}

static void on_begin(
	struct group *group, const struct group_event *event, struct group_actions *actions)
{
	group->phase = PHASE_CHECKING;
	group->update = event->update;
	group->update_version = event->version;
	group->catching = event->catching;
	set_text(group, "");
	for (uint32_t i = 0; i < group->nmembers; i++) {
		group->members[i].checked = false;
	}
	act_all(group, actions, GA_SEND_CHECK, STREW_OUTCOME_NONE);
}

static void on_join(
	struct group *group, const struct group_event *event, struct group_actions *actions)
{
	struct group_member *member = &group->members[event->member];

	(void)actions;
	memset(member, 0, sizeof(*member));
	member->present = true;
	member->version = event->version;
	member->stale = event->stale;
	member->pulls = event->pulls;
	group->npresent++;
	if (group->npresent < group->nmembers) {
		return;
	}
	group->state = STREW_GROUP_CURRENT;
	group->version = group->members[0].version;
	set_text(group, "");
	for (uint32_t i = 0; i < group->nmembers; i++) {
		if (group->members[i].version == GROUP_VERSION_MIXED) {
			group->state = STREW_GROUP_DIRTY;
			group->version = 0;
			set_text(group, "the memory of its workers was written in part");
			return;
		}
		if (group->members[i].version != group->version) {
			group->state = STREW_GROUP_STALE;
			set_text(group, "its workers hold different versions");
		} else if (group->members[i].stale && group->state == STREW_GROUP_CURRENT) {
			group->state = STREW_GROUP_STALE;
			set_text(group, "a version was committed without it");
		}
	}
}

/* A member is gone. What was written stays written, so its siblings may be in trouble. */
static void on_gone(
	struct group *group, const struct group_event *event, struct group_actions *actions)
{
	bool lost = event->type == GE_LOSE;
	bool writing = (group->apply == STREW_APPLY_DIRECT && group->phase >= PHASE_MOVING &&
			       group->phase <= PHASE_PREPARED) ||
		       group->phase == PHASE_COMMITTING;
	bool in_update = group->phase != PHASE_IDLE && group->phase != PHASE_OUT;
	char text[LIMIT_TEXT_BYTES];

	memset(&group->members[event->member], 0, sizeof(group->members[0]));
	group->npresent--;
	if (writing) {
		/* The mover still runs; its end, or the lead's decision, is awaited in OUT. */
		make_dirty(group);
	}
	group->state = lost ? STREW_GROUP_LOST : STREW_GROUP_FORMING;
	snprintf(text, sizeof(text), "worker %u %s", event->member,
		lost ? "is gone" : "was withdrawn");
	if (in_update) {
		go_out(group, actions, text);
	} else {
		set_text(group, text);
	}
}

static void on_failed(
	struct group *group, const struct group_event *event, struct group_actions *actions)
{
	bool touched = event->touched &&
		       (group->apply == STREW_APPLY_DIRECT || group->phase == PHASE_COMMITTING);

	if (touched) {
		make_dirty(group);
	}
	go_out(group, actions, event->text);
}

/* The lead gave up, or went on without us: nothing of this update is to be kept. */
static void on_abort(
	struct group *group, const struct group_event *event, struct group_actions *actions)
{
	enum strew_outcome outcome = STREW_OUTCOME_ABORTED;

	if (event->touched && group->apply == STREW_APPLY_DIRECT && group->phase >= PHASE_MOVING &&
		group->phase <= PHASE_PREPARED) {
		make_dirty(group);
	}
	if (group->state == STREW_GROUP_DIRTY) {
		outcome = STREW_OUTCOME_DIRTY;
	} else if (group->state == STREW_GROUP_LOST) {
		outcome = STREW_OUTCOME_LOST;
	}
	if (group->phase != PHASE_OUT || !group->text[0]) {
		set_text(group, event->text);
	}
	finish(group, actions, outcome);
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
	act(actions, GA_APPLIED, 0, outcome);
	finish(group, actions, outcome);
}

static void on_doubt(struct group *group, struct group_actions *actions)
{
	if (group->phase == PHASE_OUT && group->state == STREW_GROUP_CURRENT) {
		group->state = STREW_GROUP_STALE;
	}
	set_text(group, "the lead is gone and its decision is not known");
	if (group->phase != PHASE_PREPARED) {
		struct group_event abort = {.type = GE_ABORT, .touched = true, .text = group->text};

		on_abort(group, &abort, actions);
		return;
	}
	if (group->apply == STREW_APPLY_DIRECT) {
		make_dirty(group);
	} else {
		group->state = STREW_GROUP_IN_DOUBT;
	}
	finish(group, actions,
		group->apply == STREW_APPLY_DIRECT ? STREW_OUTCOME_DIRTY : STREW_OUTCOME_NONE);
}

static void on_missed(struct group *group, const struct group_event *event)
{
	if ((group->state == STREW_GROUP_CURRENT || group->state == STREW_GROUP_IN_DOUBT) &&
		group->version < event->version) {
		group->state = STREW_GROUP_STALE;
		set_text(group, "a version was committed without it");
	}
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
		on_join(group, event, actions);
		break;
	case GE_LEAVE:
	case GE_LOSE:
		on_gone(group, event, actions);
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
		go_out(group, actions, event->text);
		break;
	case GE_GO:
		group->phase = PHASE_MOVING;
		break;
	case GE_SKIP:
		/* The lead knows; nothing is said, and what was prepared is dropped. */
		if (event->touched && group->apply == STREW_APPLY_DIRECT &&
			group->phase >= PHASE_MOVING) {
			make_dirty(group);
		}
		set_text(group, event->text);
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
			on_commit(group, actions);
		}
		break;
	case GE_COPIED:
		group->copied = true;
		try_committed(group, actions);
		break;
	case GE_ABORT:
		on_abort(group, event, actions);
		break;
	case GE_DOUBT:
		on_doubt(group, actions);
		break;
	case GE_MISSED:
		on_missed(group, event);
		break;
	default:
		break;
	}
}

void group_step(
	struct group *group, const struct group_event *event, struct group_actions *ret_actions)
{
	ret_actions->n = 0;
	if (!(allowed[event->type] & (1u << group->phase))) {
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

const char *group_phase_name(enum group_phase phase)
{
	static const char *const names[PHASE_COUNT] = {"idle", "checking", "holding", "accepted",
		"moving", "gating", "prepared", "committing", "out"};

	return (unsigned)phase < PHASE_COUNT ? names[phase] : "?";
}
