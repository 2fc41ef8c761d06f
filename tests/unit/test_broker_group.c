/* The group's state machine: its story step by step, and random walks under invariants. */
#include "broker/group.h"
#include "support/test_main.h"
#include <string.h>

static struct group group;
static struct group_actions acts;

static void fresh(enum strew_gate gate, enum strew_apply apply, uint32_t members)
{
	group_init(&group, "m", 0, 0, members, gate, apply);
}

static void step(enum group_event_type type, uint32_t member)
{
	struct group_event event = {
		.type = type, .member = member, .update = 7, .version = 3, .text = "because"};

	if (type == GE_JOIN) {
		event.version = 0; /* as a restarted worker holds it */
	}
	group_step(&group, &event, &acts);
}

static void step_touched(enum group_event_type type)
{
	struct group_event event = {.type = type, .touched = true, .text = "because"};

	group_step(&group, &event, &acts);
}

static unsigned count(enum group_action_type type)
{
	unsigned n = 0;

	for (unsigned i = 0; i < acts.n; i++) {
		n += acts.v[i].type == type;
	}
	return n;
}

static enum strew_outcome outcome(enum group_action_type type)
{
	for (unsigned i = 0; i < acts.n; i++) {
		if (acts.v[i].type == type) {
			return acts.v[i].outcome;
		}
	}
	fail_msg("no action %d", (int)type);
	return STREW_OUTCOME_NONE;
}

static void stand(enum strew_gate gate, enum strew_apply apply)
{
	char text[LIMIT_TEXT_BYTES];

	fresh(gate, apply, 2);
	assert_false(group_stands(&group, text));
	step(GE_JOIN, 0);
	assert_int_equal(group_state(&group), STREW_GROUP_FORMING);
	step(GE_JOIN, 1);
	assert_int_equal(group_state(&group), STREW_GROUP_CURRENT);
	assert_true(group_stands(&group, text));
}

static void begin_checked(void)
{
	step(GE_BEGIN, 0);
	assert_int_equal(count(GA_SEND_CHECK), 2);
	assert_int_equal(group_state(&group), STREW_GROUP_PENDING);
	step(GE_CHECKED, 0);
	assert_int_equal(acts.n, 0);
	step(GE_CHECKED, 1);
}

static void test_direct_live(void **state)
{
	(void)state;
	stand(STREW_GATE_LIVE, STREW_APPLY_DIRECT);
	begin_checked();
	assert_int_equal(outcome(GA_ACCEPT), STREW_OUTCOME_NONE);
	step(GE_GO, 0);
	step(GE_MOVED, 0);
	assert_int_equal(outcome(GA_PREPARED), STREW_OUTCOME_NONE);
	step(GE_COMMIT, 0);
	assert_int_equal(outcome(GA_APPLIED), STREW_OUTCOME_COMMITTED);
	assert_int_equal(count(GA_SEND_DONE), 2);
	assert_int_equal(group.version, 3);
	assert_int_equal(group_state(&group), STREW_GROUP_CURRENT);
}

static void test_direct_held(void **state)
{
	(void)state;
	stand(STREW_GATE_HELD, STREW_APPLY_DIRECT);
	begin_checked();
	assert_int_equal(count(GA_SEND_HOLD), 2);
	assert_int_equal(count(GA_ACCEPT), 0);
	step(GE_READY, 0);
	assert_int_equal(acts.n, 0);
	step(GE_READY, 1);
	assert_int_equal(outcome(GA_ACCEPT), STREW_OUTCOME_NONE);
	/* The engine wants its memory back: not before the end. */
	step(GE_RESUME, 0);
	assert_int_equal(acts.n, 0);
	step(GE_GO, 0);
	step(GE_MOVED, 0);
	assert_int_equal(count(GA_GRANT), 0);
	step(GE_COMMIT, 0);
	assert_int_equal(count(GA_GRANT), 1);
	step(GE_RESUME, 1);
	assert_int_equal(count(GA_GRANT), 1);
}

static void test_staged_held(void **state)
{
	(void)state;
	stand(STREW_GATE_HELD, STREW_APPLY_STAGED);
	begin_checked();
	assert_int_equal(outcome(GA_ACCEPT), STREW_OUTCOME_NONE);
	assert_int_equal(count(GA_SEND_HOLD), 0);
	step(GE_GO, 0);
	/* While the shadow fills the engine runs: resume is granted. */
	step(GE_READY, 0);
	step(GE_RESUME, 0);
	assert_int_equal(count(GA_GRANT), 1);
	step(GE_MOVED, 0);
	assert_int_equal(count(GA_SEND_HOLD), 2);
	step(GE_READY, 0);
	step(GE_READY, 1);
	assert_int_equal(outcome(GA_PREPARED), STREW_OUTCOME_NONE);
	step(GE_COMMIT, 0);
	assert_int_equal(count(GA_COPY), 1);
	assert_int_equal(count(GA_APPLIED), 0);
	step(GE_COPIED, 0);
	assert_int_equal(outcome(GA_APPLIED), STREW_OUTCOME_COMMITTED);
}

static void test_abort(void **state)
{
	(void)state;
	/* Before the first byte nothing has happened. */
	stand(STREW_GATE_HELD, STREW_APPLY_DIRECT);
	begin_checked();
	step(GE_ABORT, 0);
	assert_int_equal(outcome(GA_SEND_DONE), STREW_OUTCOME_ABORTED);
	assert_int_equal(group_state(&group), STREW_GROUP_CURRENT);

	/* After it a direct group is DIRTY, its resume refused, until a whole update. */
	begin_checked();
	step(GE_READY, 0);
	step(GE_READY, 1);
	step(GE_GO, 0);
	step_touched(GE_ABORT);
	assert_int_equal(outcome(GA_SEND_DONE), STREW_OUTCOME_DIRTY);
	assert_int_equal(group_state(&group), STREW_GROUP_DIRTY);
	step(GE_RESUME, 0);
	assert_int_equal(count(GA_DENY), 1);
	begin_checked();
	step(GE_GO, 0);
	step(GE_MOVED, 0);
	step(GE_COMMIT, 0);
	assert_int_equal(group_state(&group), STREW_GROUP_CURRENT);
	step(GE_RESUME, 0);
	assert_int_equal(count(GA_GRANT), 1);

	/* A staged group keeps the old version, prepared or not. */
	stand(STREW_GATE_LIVE, STREW_APPLY_STAGED);
	begin_checked();
	step(GE_GO, 0);
	step(GE_MOVED, 0);
	step_touched(GE_ABORT);
	assert_int_equal(group_state(&group), STREW_GROUP_CURRENT);
	assert_int_equal(group.version, 0);
}

static void test_sits_out(void **state)
{
	(void)state;
	stand(STREW_GATE_HELD, STREW_APPLY_DIRECT);
	begin_checked();
	step(GE_LATE, 0);
	assert_int_equal(outcome(GA_ACCEPT), STREW_OUTCOME_SAT_OUT);
	assert_string_equal(group.text, "because");
	step(GE_COMMIT, 0);
	assert_int_equal(outcome(GA_APPLIED), STREW_OUTCOME_SAT_OUT);
	assert_int_equal(group_state(&group), STREW_GROUP_STALE);

	/* When nobody committed it is not STALE. */
	stand(STREW_GATE_HELD, STREW_APPLY_DIRECT);
	step(GE_BEGIN, 0);
	step(GE_REFUSE, 0);
	assert_int_equal(outcome(GA_ACCEPT), STREW_OUTCOME_SAT_OUT);
	step(GE_ABORT, 0);
	assert_int_equal(group_state(&group), STREW_GROUP_CURRENT);
}

static void test_lost(void **state)
{
	(void)state;
	stand(STREW_GATE_LIVE, STREW_APPLY_DIRECT);
	begin_checked();
	step(GE_GO, 0);
	step(GE_LOSE, 1);
	assert_int_equal(outcome(GA_PREPARED), STREW_OUTCOME_LOST);
	assert_int_equal(group_state(&group), STREW_GROUP_LOST);
	step_touched(GE_ABORT);
	assert_int_equal(group_state(&group), STREW_GROUP_LOST);
	/* The survivor was written in part: its new sibling does not make it whole. */
	step(GE_JOIN, 1);
	assert_int_equal(group_state(&group), STREW_GROUP_DIRTY);
	/* A whole update does. */
	begin_checked();
	step(GE_GO, 0);
	step(GE_MOVED, 0);
	step(GE_COMMIT, 0);
	assert_int_equal(group_state(&group), STREW_GROUP_CURRENT);

	/* Lost while idle: the newcomer holds another version. */
	step(GE_LOSE, 0);
	assert_int_equal(group_state(&group), STREW_GROUP_LOST);
	step(GE_JOIN, 0);
	assert_int_equal(group_state(&group), STREW_GROUP_STALE);
}

static void join(uint32_t member, uint64_t version, bool stale)
{
	struct group_event event = {
		.type = GE_JOIN, .member = member, .version = version, .stale = stale};

	group_step(&group, &event, &acts);
}

/* What workers say that their memory holds, and what was committed here. */
static void test_versions_at_joining(void **state)
{
	static const struct {
		uint64_t versions[2];
		bool stale[2];
		enum strew_group_state expected;
		uint64_t version;
	} cases[] = {
		{{0, 0}, {false, false}, STREW_GROUP_CURRENT, 0},
		{{5, 5}, {false, false}, STREW_GROUP_CURRENT, 5},
		{{5, 5}, {true, true}, STREW_GROUP_STALE, 5},
		{{5, 5}, {false, true}, STREW_GROUP_STALE, 5},
		{{0, 0}, {true, true}, STREW_GROUP_STALE, 0},
		{{5, 6}, {false, false}, STREW_GROUP_STALE, 5},
		{{GROUP_VERSION_MIXED, 6}, {false, false}, STREW_GROUP_DIRTY, 0},
		{{6, GROUP_VERSION_MIXED}, {true, false}, STREW_GROUP_DIRTY, 0},
	};

	(void)state;
	for (size_t i = 0; i < 2 * sizeof(cases) / sizeof(cases[0]); i++) {
		bool direct = i & 1, dirty;
		size_t n = i / 2;

		dirty = cases[n].expected == STREW_GROUP_DIRTY;
		fresh(STREW_GATE_HELD, direct ? STREW_APPLY_DIRECT : STREW_APPLY_STAGED, 2);
		join(0, cases[n].versions[0], cases[n].stale[0]);
		assert_int_equal(group_state(&group), STREW_GROUP_FORMING);
		assert_int_equal(group_member_state(&group, 0),
			cases[n].versions[0] == GROUP_VERSION_MIXED ? STREW_GROUP_DIRTY
			: cases[n].stale[0]			    ? STREW_GROUP_STALE
								    : STREW_GROUP_FORMING);
		join(1, cases[n].versions[1], cases[n].stale[1]);
		assert_int_equal(group_state(&group), cases[n].expected);
		assert_int_equal(group.version, cases[n].version);
		assert_int_equal(group.text[0] == '\0', cases[n].expected == STREW_GROUP_CURRENT);
		/* Whoever was written in part gets its memory back behind a whole update only. */
		for (uint32_t member = 0; member < 2; member++) {
			step(GE_RESUME, member);
			assert_int_equal(count(GA_GRANT), !dirty);
			assert_int_equal(count(GA_DENY), dirty);
		}
	}
}

static void test_doubt(void **state)
{
	(void)state;
	stand(STREW_GATE_HELD, STREW_APPLY_STAGED);
	begin_checked();
	step(GE_GO, 0);
	step(GE_READY, 0);
	step(GE_READY, 1);
	step(GE_MOVED, 0);
	step(GE_RESUME, 0);
	step(GE_DOUBT, 0);
	assert_int_equal(group_state(&group), STREW_GROUP_IN_DOUBT);
	assert_int_equal(count(GA_GRANT), 1);

	stand(STREW_GATE_LIVE, STREW_APPLY_DIRECT);
	begin_checked();
	step(GE_GO, 0);
	step(GE_MOVED, 0);
	step(GE_DOUBT, 0);
	assert_int_equal(group_state(&group), STREW_GROUP_DIRTY);
}

static void test_commit_copy_fails(void **state)
{
	(void)state;
	stand(STREW_GATE_LIVE, STREW_APPLY_STAGED);
	begin_checked();
	step(GE_GO, 0);
	step(GE_MOVED, 0);
	step(GE_COMMIT, 0);
	step_touched(GE_FAILED);
	assert_int_equal(outcome(GA_APPLIED), STREW_OUTCOME_DIRTY);
	assert_int_equal(group_state(&group), STREW_GROUP_DIRTY);
}

/* Written in part, and then a member goes and another comes: it is still written in part. */
static void test_dirty_outlives_members(void **state)
{
	(void)state;
	for (int how = 0; how < 4; how++) {
		stand(STREW_GATE_HELD, STREW_APPLY_DIRECT);
		begin_checked();
		step(GE_READY, 0);
		step(GE_READY, 1);
		step(GE_GO, 0);
		if (how >= 2) {
			step(GE_MOVED, 0);
		}
		step_touched(how == 0	? GE_FAILED
			     : how == 1 ? GE_ABORT
			     : how == 2 ? GE_SKIP
					: GE_DOUBT);
		step(GE_ABORT, 0);
		assert_int_equal(group_state(&group), STREW_GROUP_DIRTY);
		step(how % 2 ? GE_LOSE : GE_LEAVE, 1);
		step(GE_RESUME, 0);
		assert_int_equal(count(GA_DENY), 1);
		assert_int_equal(group_member_state(&group, 0), STREW_GROUP_DIRTY);
		step(GE_JOIN, 1);
		assert_int_equal(group_state(&group), STREW_GROUP_DIRTY);
		/* A whole update heals it. */
		begin_checked();
		step(GE_READY, 1);
		step(GE_GO, 0);
		step(GE_MOVED, 0);
		step(GE_COMMIT, 0);
		assert_int_equal(group_state(&group), STREW_GROUP_CURRENT);
		step(GE_RESUME, 0);
		assert_int_equal(count(GA_GRANT), 1);
	}
}

/* Out of an update of which it does not know how it ends. */
static void test_out_is_not_current(void **state)
{
	(void)state;
	stand(STREW_GATE_LIVE, STREW_APPLY_STAGED);
	step(GE_BEGIN, 0);
	step(GE_REFUSE, 0);
	assert_int_equal(group_state(&group), STREW_GROUP_PENDING);
	step(GE_ABORT, 0);
	assert_int_equal(group_state(&group), STREW_GROUP_CURRENT);
	step(GE_BEGIN, 0);
	step(GE_REFUSE, 0);
	step(GE_DOUBT, 0);
	assert_int_equal(group_state(&group), STREW_GROUP_STALE);
}

static void test_missed(void **state)
{
	struct group_event event = {.type = GE_MISSED, .version = 4};

	(void)state;
	fresh(STREW_GATE_LIVE, STREW_APPLY_STAGED, 1);
	join(0, 4, false);
	group_step(&group, &event, &acts);
	assert_int_equal(group_state(&group), STREW_GROUP_CURRENT);
	event.version = 5;
	group_step(&group, &event, &acts);
	assert_int_equal(group_state(&group), STREW_GROUP_STALE);
	assert_int_equal(group.version, 4);
}

static void begin_catching(uint64_t version)
{
	struct group_event event = {
		.type = GE_BEGIN, .update = 9, .version = version, .catching = true};

	group_step(&group, &event, &acts);
	assert_int_equal(count(GA_SEND_CHECK), 2);
	step(GE_CHECKED, 0);
	step(GE_CHECKED, 1);
}

/* One that sat out, or that is new, or that was written in part. */
static enum strew_group_state fall_behind(
	unsigned how, enum strew_gate gate, enum strew_apply apply)
{
	static const enum strew_group_state states[] = {
		STREW_GROUP_STALE, STREW_GROUP_STALE, STREW_GROUP_DIRTY};

	fresh(gate, apply, 2);
	join(0, how == 2 ? GROUP_VERSION_MIXED : 0, how == 1);
	join(1, 0, how == 1);
	if (how == 0) {
		step(GE_BEGIN, 0);
		step(GE_REFUSE, 0);
		step(GE_COMMIT, 0);
	}
	assert_int_equal(group_state(&group), states[how]);
	return states[how];
}

/* The phases of an update, by each way; the group shows what it is, until it is written. */
static void test_catches_up(void **state)
{
	(void)state;
	for (unsigned bits = 0; bits < 12; bits++) {
		enum strew_gate gate = bits & 1 ? STREW_GATE_HELD : STREW_GATE_LIVE;
		enum strew_apply apply = bits & 2 ? STREW_APPLY_STAGED : STREW_APPLY_DIRECT;
		bool held = gate == STREW_GATE_HELD, staged = apply == STREW_APPLY_STAGED;
		enum strew_group_state before = fall_behind(bits / 4, gate, apply);

		begin_catching(7);
		if (held && !staged) {
			/* Nothing is to be written before every member stands. */
			assert_int_equal(count(GA_SEND_HOLD), 2);
			assert_int_equal(group.phase, PHASE_HOLDING);
			step(GE_READY, 0);
			assert_int_equal(group.phase, PHASE_HOLDING);
			step(GE_READY, 1);
		}
		assert_int_equal(outcome(GA_ACCEPT), STREW_OUTCOME_NONE);
		step(GE_GO, 0);
		step(GE_MOVED, 0);
		if (held && staged) {
			assert_int_equal(count(GA_SEND_HOLD), 2);
			assert_int_equal(group.phase, PHASE_GATING);
			step(GE_READY, 1);
			step(GE_READY, 0);
		}
		assert_int_equal(group.phase, PHASE_PREPARED);
		assert_int_equal(group_state(&group), staged ? before : STREW_GROUP_PENDING);
		step(GE_COMMIT, 0);
		assert_int_equal(count(GA_COPY), staged);
		assert_int_equal(
			group_state(&group), staged ? STREW_GROUP_PENDING : STREW_GROUP_CURRENT);
		if (staged) {
			step(GE_COPIED, 0);
		}
		assert_int_equal(count(GA_SEND_DONE), 2);
		assert_int_equal(outcome(GA_SEND_DONE), STREW_OUTCOME_COMMITTED);
		assert_int_equal(group_state(&group), STREW_GROUP_CURRENT);
		assert_int_equal(group.version, 7);
		assert_int_equal(group_member_state(&group, 0), STREW_GROUP_CURRENT);
		/* The next update is one again. */
		step(GE_BEGIN, 0);
		assert_int_equal(group_state(&group), STREW_GROUP_PENDING);
	}
}

/* Given up in each phase: what it was, or DIRTY where live memory may have been written. */
static void test_catching_up_is_given_up(void **state)
{
	static const enum group_event_type way[] = {GE_GO, GE_MOVED, GE_COMMIT};

	(void)state;
	for (unsigned bits = 0; bits < 8; bits++) {
		enum strew_apply apply = bits & 1 ? STREW_APPLY_STAGED : STREW_APPLY_DIRECT;
		unsigned steps = bits / 2 % 3;
		bool touched = steps > 0;

		fall_behind(0, STREW_GATE_LIVE, apply);
		begin_catching(7);
		for (unsigned i = 0; i < steps; i++) {
			step(way[i], 0);
		}
		group_step(&group,
			&(struct group_event){
				.type = GE_ABORT, .touched = touched, .text = "an update begins"},
			&acts);
		assert_int_equal(group.phase, PHASE_IDLE);
		assert_int_equal(group.version, 0);
		assert_int_equal(count(GA_SEND_DONE), 2);
		assert_int_equal(group_state(&group), touched && apply == STREW_APPLY_DIRECT
							      ? STREW_GROUP_DIRTY
							      : STREW_GROUP_STALE);
	}
	/* A member that goes ends it. */
	fall_behind(0, STREW_GATE_HELD, STREW_APPLY_STAGED);
	begin_catching(7);
	step(GE_GO, 0);
	step(GE_MOVED, 0);
	step(GE_LOSE, 1);
	assert_int_equal(group.phase, PHASE_OUT);
	step_touched(GE_ABORT);
	assert_int_equal(group_state(&group), STREW_GROUP_LOST);
	assert_int_equal(group.members[0].version, 0);
	/* In the commit's copy it leaves the others written in part. */
	fall_behind(0, STREW_GATE_LIVE, STREW_APPLY_STAGED);
	begin_catching(7);
	step(GE_GO, 0);
	step(GE_MOVED, 0);
	step(GE_COMMIT, 0);
	step(GE_LOSE, 1);
	step(GE_ABORT, 0);
	assert_int_equal(group_member_state(&group, 0), STREW_GROUP_DIRTY);
}

/* A resume that waits for the others' gates is granted when they are not held in time. */
static void test_catching_up_is_late(void **state)
{
	(void)state;
	fall_behind(0, STREW_GATE_HELD, STREW_APPLY_DIRECT);
	begin_catching(7);
	step(GE_READY, 0);
	step(GE_RESUME, 0);
	assert_int_equal(count(GA_GRANT), 0);
	step(GE_LATE, 0);
	assert_int_equal(count(GA_GRANT), 1);
	step(GE_ABORT, 0);
	assert_int_equal(group_state(&group), STREW_GROUP_STALE);
}

/* May the engine of a group in this phase use its memory? Written apart from group.c. */
static bool may_use(enum group_phase phase, enum strew_apply apply)
{
	bool direct = apply == STREW_APPLY_DIRECT;

	if (phase == PHASE_IDLE || phase == PHASE_CHECKING || phase == PHASE_OUT) {
		return true;
	}
	if (phase == PHASE_ACCEPTED || phase == PHASE_MOVING) {
		return !direct;
	}
	return false;
}

static void test_random_walks(void **state)
{
	(void)state;
	for (int walk = 0; walk < 20000; walk++) {
		enum strew_gate gate = test_random_below(2) ? STREW_GATE_LIVE : STREW_GATE_HELD;
		enum strew_apply apply =
			test_random_below(2) ? STREW_APPLY_DIRECT : STREW_APPLY_STAGED;
		uint64_t version = 0;

		fresh(gate, apply, 1 + (uint32_t)test_random_below(3));
		for (int i = 0; i < 60; i++) {
			enum group_phase before = group.phase;
			struct group_event event = {
				.type = (enum group_event_type)test_random_below(GE_COUNT),
				.member = (uint32_t)test_random_below(group.nmembers),
				.update = (uint64_t)i,
				.version = version + 1,
				.touched = before >= PHASE_MOVING && test_random_below(2),
				.catching = test_random_below(2),
				.text = "walk"};
			uint32_t present = 0;

			if (event.type == GE_JOIN) {
				event.version = 0;
			}
			/* The node begins only what stands. */
			if (event.type == GE_BEGIN && group.npresent < group.nmembers) {
				continue;
			}
			group_step(&group, &event, &acts);
			assert_true(acts.n <= GROUP_ACTIONS);
			for (uint32_t k = 0; k < group.nmembers; k++) {
				present += group.members[k].present;
			}
			assert_int_equal(present, group.npresent);
			for (unsigned k = 0; k < acts.n; k++) {
				const struct group_action *action = &acts.v[k];

				if (action->type == GA_GRANT) {
					assert_true(may_use(group.phase, apply));
					assert_int_not_equal(group.state, STREW_GROUP_DIRTY);
				}
				if (action->type == GA_SEND_CHECK || action->type == GA_SEND_HOLD ||
					action->type == GA_SEND_DONE || action->type == GA_GRANT ||
					action->type == GA_DENY) {
					assert_true(group.members[action->member].present);
				}
				if (action->type == GA_APPLIED &&
					action->outcome == STREW_OUTCOME_COMMITTED) {
					assert_true(before == PHASE_PREPARED ||
						    before == PHASE_COMMITTING);
					version = group.version;
				}
			}
			/* Held: no phase that writes live memory is entered without every member.
			 */
			if (gate == STREW_GATE_HELD && !may_use(group.phase, apply) &&
				group.phase != PHASE_HOLDING && group.phase != PHASE_GATING) {
				for (uint32_t k = 0; k < group.nmembers; k++) {
					assert_true(!group.members[k].present ||
						    group.members[k].ready);
				}
			}
			/* No member missing in a phase that goes on. */
			if (group.phase != PHASE_IDLE && group.phase != PHASE_OUT) {
				assert_int_equal(group.npresent, group.nmembers);
			}
		}
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_direct_live),
		cmocka_unit_test(test_direct_held),
		cmocka_unit_test(test_staged_held),
		cmocka_unit_test(test_abort),
		cmocka_unit_test(test_sits_out),
		cmocka_unit_test(test_lost),
		cmocka_unit_test(test_versions_at_joining),
		cmocka_unit_test(test_doubt),
		cmocka_unit_test(test_commit_copy_fails),
		cmocka_unit_test(test_dirty_outlives_members),
		cmocka_unit_test(test_out_is_not_current),
		cmocka_unit_test(test_missed),
		cmocka_unit_test(test_catches_up),
		cmocka_unit_test(test_catching_up_is_given_up),
		cmocka_unit_test(test_catching_up_is_late),
		cmocka_unit_test(test_random_walks),
	};

	return TEST_RUN(tests);
}
