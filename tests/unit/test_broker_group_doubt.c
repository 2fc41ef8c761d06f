/*
 * A group whose lead was lost, and the end of the update, of which it hears late: the rows of the
 * state machine that belong to it, and random walks in which doubts come and go.
 */
#include "broker/group.h"
#include "support/test_main.h"
#include <string.h>

#define UPDATE 7u
#define VERSION 3u

static struct group group;
static struct group_actions acts;

static void step_event(struct group_event event)
{
	event.text = "because";
	group_step(&group, &event, &acts);
}

static void step(enum group_event_type type, uint32_t member)
{
	step_event((struct group_event){
		.type = type, .member = member, .update = UPDATE, .version = VERSION});
}

static void join(uint32_t member, uint64_t version, bool stale, uint64_t doubt)
{
	step_event((struct group_event){.type = GE_JOIN,
		.member = member,
		.version = version,
		.stale = stale,
		.update = doubt});
}

static void settle(enum strew_outcome outcome)
{
	step_event((struct group_event){
		.type = GE_SETTLED, .update = UPDATE, .version = VERSION, .outcome = outcome});
}

static unsigned count(enum group_action_type type)
{
	unsigned n = 0;

	for (unsigned i = 0; i < acts.n; i++) {
		n += acts.v[i].type == type;
	}
	return n;
}

static void told_done(enum strew_outcome outcome)
{
	assert_int_equal(count(GA_SEND_DONE), group.npresent);
	for (unsigned i = 0; i < acts.n; i++) {
		if (acts.v[i].type == GA_SEND_DONE) {
			assert_int_equal(acts.v[i].outcome, outcome);
		}
	}
}

static void stand(enum strew_gate gate, enum strew_apply apply)
{
	group_init(&group, "m", 0, 0, 2, gate, apply);
	join(0, 2, false, 0);
	join(1, 2, false, 0);
	assert_int_equal(group_state(&group), STREW_GROUP_CURRENT);
}

static void prepare(void)
{
	bool held = group.gate == STREW_GATE_HELD, direct = group.apply == STREW_APPLY_DIRECT;

	step(GE_BEGIN, 0);
	step(GE_CHECKED, 0);
	step(GE_CHECKED, 1);
	for (uint32_t i = 0; held && direct && i < 2; i++) {
		step(GE_READY, i);
	}
	step(GE_GO, 0);
	step(GE_MOVED, 0);
	for (uint32_t i = 0; held && !direct && i < 2; i++) {
		step(GE_READY, i);
	}
	assert_int_equal(group.phase, PHASE_PREPARED);
}

static void doubt(enum strew_gate gate, enum strew_apply apply)
{
	stand(gate, apply);
	prepare();
	step(GE_DOUBT, 0);
	assert_int_equal(group_state(&group),
		apply == STREW_APPLY_DIRECT ? STREW_GROUP_DIRTY : STREW_GROUP_IN_DOUBT);
	assert_int_equal(group.version, 2);
}

static void is_committed(void)
{
	told_done(STREW_OUTCOME_COMMITTED);
	assert_int_equal(group_state(&group), STREW_GROUP_CURRENT);
	assert_int_equal(group.version, VERSION);
	assert_int_equal(group.phase, PHASE_IDLE);
	assert_false(group.settling);
	/* It is settled once. */
	settle(STREW_OUTCOME_COMMITTED);
	assert_int_equal(acts.n, 0);
}

static void test_commit_staged_live(void **state)
{
	(void)state;
	doubt(STREW_GATE_LIVE, STREW_APPLY_STAGED);
	/* Of another update it means nothing. */
	step_event((struct group_event){
		.type = GE_SETTLED, .update = 8, .outcome = STREW_OUTCOME_COMMITTED});
	assert_int_equal(acts.n, 0);
	assert_int_equal(group_state(&group), STREW_GROUP_IN_DOUBT);
	settle(STREW_OUTCOME_COMMITTED);
	/* First they look whether their memory is as it was. */
	assert_int_equal(count(GA_SEND_CHECK), 2);
	assert_int_equal(count(GA_COPY), 0);
	assert_int_equal(group_state(&group), STREW_GROUP_PENDING);
	step(GE_CHECKED, 0);
	assert_int_equal(acts.n, 0);
	step(GE_CHECKED, 1);
	assert_int_equal(count(GA_COPY), 1);
	assert_int_equal(acts.n, 1); /* nobody waits for accept or prepared */
	assert_true(group_writes(&group));
	step(GE_COPIED, 0);
	is_committed();
}

static void test_commit_staged_held(void **state)
{
	(void)state;
	doubt(STREW_GATE_HELD, STREW_APPLY_STAGED);
	step(GE_RESUME, 0);
	assert_int_equal(count(GA_GRANT), 1);
	settle(STREW_OUTCOME_COMMITTED);
	step(GE_CHECKED, 0);
	step(GE_RESUME, 1); /* the engine runs while it is asked */
	assert_int_equal(count(GA_GRANT), 1);
	step(GE_CHECKED, 1);
	assert_int_equal(count(GA_SEND_HOLD), 2);
	assert_int_equal(count(GA_COPY), 0);
	step(GE_READY, 0);
	assert_int_equal(acts.n, 0);
	step(GE_RESUME, 0); /* not before the end */
	assert_int_equal(acts.n, 0);
	step(GE_READY, 1);
	assert_int_equal(count(GA_COPY), 1);
	step(GE_COPIED, 0);
	assert_int_equal(count(GA_GRANT), 1);
	is_committed();
}

/* All bytes are in live memory: there is nothing to be copied. */
static void test_commit_direct(void **state)
{
	(void)state;
	for (int held = 0; held < 2; held++) {
		doubt(held ? STREW_GATE_HELD : STREW_GATE_LIVE, STREW_APPLY_DIRECT);
		step(GE_RESUME, 0);
		assert_int_equal(count(GA_DENY), 1);
		settle(STREW_OUTCOME_COMMITTED);
		is_committed();
		step(GE_RESUME, 0);
		assert_int_equal(count(GA_GRANT), 1);
	}
}

/* Of a member with twins the update itself is prepared, and its memory is not. */
static void test_commit_pulled(void **state)
{
	(void)state;
	for (int staged = 0; staged < 2; staged++) {
		enum strew_apply apply = staged ? STREW_APPLY_STAGED : STREW_APPLY_DIRECT;

		group_init(&group, "m", 0, 0, 2, STREW_GATE_LIVE, apply);
		step_event((struct group_event){.type = GE_JOIN, .version = 2, .pulls = true});
		join(1, 2, false, 0);
		prepare();
		step(GE_DOUBT, 0);
		settle(STREW_OUTCOME_COMMITTED);
		assert_int_equal(count(GA_SEND_CHECK), 2);
		step(GE_CHECKED, 1);
		step(GE_CHECKED, 0);
		assert_int_equal(count(GA_COPY), 1);
		assert_int_equal(count(GA_SEND_APPLY), 1);
		step(GE_COPIED, 0);
		assert_int_equal(count(GA_SEND_DONE), 0);
		step(GE_PULLED, 0);
		is_committed();
	}
}

static void test_abort(void **state)
{
	(void)state;
	for (int held = 0; held < 2; held++) {
		doubt(held ? STREW_GATE_HELD : STREW_GATE_LIVE, STREW_APPLY_STAGED);
		settle(STREW_OUTCOME_ABORTED);
		told_done(STREW_OUTCOME_ABORTED);
		assert_int_equal(group_state(&group), STREW_GROUP_CURRENT);
		assert_int_equal(group.version, 2);
		assert_string_equal(group.text, "");
		step(GE_RESUME, 0);
		assert_int_equal(count(GA_GRANT), 1);
	}
	/* What was written stays written. */
	doubt(STREW_GATE_HELD, STREW_APPLY_DIRECT);
	settle(STREW_OUTCOME_ABORTED);
	assert_int_equal(acts.n, 0);
	assert_int_equal(group_state(&group), STREW_GROUP_DIRTY);
	step(GE_RESUME, 0);
	assert_int_equal(count(GA_DENY), 1);
	/* It is known to be no commit now. */
	settle(STREW_OUTCOME_COMMITTED);
	assert_int_equal(group_state(&group), STREW_GROUP_DIRTY);
}

static void test_sat_out(void **state)
{
	(void)state;
	doubt(STREW_GATE_LIVE, STREW_APPLY_STAGED);
	settle(STREW_OUTCOME_SAT_OUT);
	told_done(STREW_OUTCOME_SAT_OUT);
	assert_int_equal(group_state(&group), STREW_GROUP_STALE);
	doubt(STREW_GATE_LIVE, STREW_APPLY_DIRECT);
	settle(STREW_OUTCOME_SAT_OUT);
	assert_int_equal(group_state(&group), STREW_GROUP_DIRTY);
}

/* Out of it when the lead went: nothing of it is here. */
static void test_out(void **state)
{
	static const enum strew_outcome outcomes[] = {
		STREW_OUTCOME_COMMITTED, STREW_OUTCOME_SAT_OUT, STREW_OUTCOME_ABORTED};

	(void)state;
	for (unsigned i = 0; i < 3; i++) {
		stand(STREW_GATE_LIVE, STREW_APPLY_STAGED);
		step(GE_BEGIN, 0);
		step(GE_REFUSE, 0);
		step(GE_DOUBT, 0);
		assert_int_equal(group_state(&group), STREW_GROUP_STALE);
		settle(outcomes[i]);
		assert_int_equal(count(GA_SEND_CHECK), 0);
		assert_int_equal(group_state(&group), outcomes[i] == STREW_OUTCOME_ABORTED
							      ? STREW_GROUP_CURRENT
							      : STREW_GROUP_STALE);
	}
}

/* It had missed something before: an abort does not make it CURRENT, a commit does. */
static void test_stale_before(void **state)
{
	(void)state;
	for (int commit = 0; commit < 2; commit++) {
		group_init(&group, "m", 0, 0, 2, STREW_GATE_LIVE, STREW_APPLY_STAGED);
		join(0, 1, false, 0);
		join(1, 2, false, 0);
		assert_int_equal(group_state(&group), STREW_GROUP_STALE);
		prepare();
		step(GE_DOUBT, 0);
		assert_int_equal(group_state(&group), STREW_GROUP_STALE);
		settle(commit ? STREW_OUTCOME_COMMITTED : STREW_OUTCOME_ABORTED);
		if (commit) {
			step(GE_CHECKED, 0);
			step(GE_CHECKED, 1);
			step(GE_COPIED, 0);
			is_committed();
		}
		assert_int_equal(
			group_state(&group), commit ? STREW_GROUP_CURRENT : STREW_GROUP_STALE);
	}
}

/* A version that others committed is heard of before the end of the one in doubt. */
static void test_missed_before(void **state)
{
	(void)state;
	for (int commit = 0; commit < 2; commit++) {
		doubt(STREW_GATE_LIVE, STREW_APPLY_STAGED);
		step(GE_MISSED, 0);
		assert_int_equal(group_state(&group), STREW_GROUP_STALE);
		settle(commit ? STREW_OUTCOME_COMMITTED : STREW_OUTCOME_ABORTED);
		if (commit) {
			step(GE_CHECKED, 0);
			step(GE_CHECKED, 1);
			step(GE_COPIED, 0);
			is_committed();
		} else {
			assert_int_equal(group_state(&group), STREW_GROUP_STALE);
		}
	}
}

/* A new member has no shadow with the update's bytes. */
static void test_members_change(void **state)
{
	(void)state;
	for (int lose = 0; lose < 2; lose++) {
		doubt(STREW_GATE_LIVE, STREW_APPLY_STAGED);
		step(lose ? GE_LOSE : GE_LEAVE, 1);
		settle(STREW_OUTCOME_COMMITTED);
		assert_int_equal(acts.n, 0);
		join(1, 2, false, 0);
		settle(STREW_OUTCOME_COMMITTED);
		assert_int_equal(acts.n, 0);
		assert_int_equal(group.phase, PHASE_IDLE);
	}
}

/* Another update ends the doubt: what was prepared is written over. */
static void test_another_update(void **state)
{
	(void)state;
	doubt(STREW_GATE_LIVE, STREW_APPLY_STAGED);
	step_event((struct group_event){.type = GE_BEGIN, .update = 8, .version = 4});
	step_event((struct group_event){.type = GE_ABORT, .update = 8});
	assert_int_equal(group_state(&group), STREW_GROUP_IN_DOUBT);
	settle(STREW_OUTCOME_COMMITTED);
	assert_int_equal(acts.n, 0);
	assert_int_equal(group_state(&group), STREW_GROUP_IN_DOUBT);
	/* In doubt again, of that one alone: it may have missed the first. */
	step_event((struct group_event){.type = GE_BEGIN, .update = 8, .version = 4});
	step(GE_CHECKED, 0);
	step(GE_CHECKED, 1);
	step(GE_GO, 0);
	step(GE_MOVED, 0);
	step(GE_DOUBT, 0);
	step_event((struct group_event){
		.type = GE_SETTLED, .update = 8, .outcome = STREW_OUTCOME_ABORTED});
	assert_int_equal(group_state(&group), STREW_GROUP_IN_DOUBT);
}

/* What can go wrong on the way: before the copy it is STALE, after it DIRTY. */
static void test_failures(void **state)
{
	(void)state;
	for (int how = 0; how < 6; how++) {
		doubt(STREW_GATE_HELD, STREW_APPLY_STAGED);
		step(GE_RESUME, 0);
		step(GE_RESUME, 1);
		settle(STREW_OUTCOME_COMMITTED);
		if (how == 0) {
			step(GE_REFUSE, 1);
		} else if (how == 1) {
			step(GE_LATE, 0);
		} else {
			step(GE_CHECKED, 0);
			step(GE_CHECKED, 1);
			assert_int_equal(group.phase, PHASE_GATING);
		}
		if (how == 2) {
			step(GE_LATE, 0);
		} else if (how == 3) {
			step(GE_LOSE, 0);
		} else if (how > 3) {
			step(GE_READY, 0);
			step(GE_READY, 1);
			step_event((struct group_event){.type = GE_FAILED, .touched = how == 4});
		}
		/* The update is over here: nobody else would end it. */
		assert_int_equal(group.phase, PHASE_IDLE);
		assert_false(group.settling);
		told_done(how == 3   ? STREW_OUTCOME_LOST
			  : how == 4 ? STREW_OUTCOME_DIRTY
				     : STREW_OUTCOME_SAT_OUT);
		assert_int_equal(group_state(&group), how == 3	 ? STREW_GROUP_LOST
						      : how == 4 ? STREW_GROUP_DIRTY
								 : STREW_GROUP_STALE);
		assert_int_equal(group.version, 2);
	}
}

/* The broker's own copy did not begin, but that of a member did. */
static void test_failed_beside_pulls(void **state)
{
	(void)state;
	for (int pulled = 0; pulled < 2; pulled++) {
		group_init(&group, "m", 0, 0, 2, STREW_GATE_LIVE, STREW_APPLY_STAGED);
		join(0, 2, false, 0);
		step_event((struct group_event){
			.type = GE_JOIN, .member = 1, .version = 2, .pulls = true});
		prepare();
		step(GE_DOUBT, 0);
		settle(STREW_OUTCOME_COMMITTED);
		step(GE_CHECKED, 0);
		step(GE_CHECKED, 1);
		if (pulled) {
			step(GE_PULLED, 1);
		}
		step_event((struct group_event){.type = GE_FAILED});
		told_done(STREW_OUTCOME_DIRTY);
		assert_int_equal(group_state(&group), STREW_GROUP_DIRTY);
	}
}

/* Workers that come back to another broker, and are sure that nothing of the update is in them. */
static void test_joined_in_doubt(void **state)
{
	static const struct {
		uint64_t versions[2];
		bool stale[2];
		uint64_t doubt[2];
		bool current; /* after an abort */
	} cases[] = {
		{{2, 2}, {true, true}, {UPDATE, UPDATE}, true},
		{{2, 2}, {true, false}, {UPDATE, 0}, true},
		{{2, 2}, {false, true}, {0, UPDATE}, true},
		{{2, 2}, {true, true}, {UPDATE, 0}, false},
		{{2, 2}, {true, true}, {0, UPDATE}, false},
		{{2, 2}, {true, true}, {UPDATE, 8}, false},
		{{2, 1}, {true, true}, {UPDATE, UPDATE}, false},
		{{2, GROUP_VERSION_MIXED}, {true, false}, {UPDATE, 0}, false},
	};

	(void)state;
	for (size_t i = 0; i < 2 * sizeof(cases) / sizeof(cases[0]); i++) {
		bool direct = i & 1;
		size_t n = i / 2;
		enum strew_group_state before;

		group_init(&group, "m", 0, 0, 2, STREW_GATE_HELD,
			direct ? STREW_APPLY_DIRECT : STREW_APPLY_STAGED);
		for (uint32_t k = 0; k < 2; k++) {
			join(k, cases[n].versions[k], cases[n].stale[k], cases[n].doubt[k]);
		}
		before = group_state(&group);
		assert_int_not_equal(before, STREW_GROUP_CURRENT);
		settle(STREW_OUTCOME_ABORTED);
		assert_int_equal(
			group_state(&group), cases[n].current ? STREW_GROUP_CURRENT : before);
		/* Nothing of it is here, so that a commit leaves it as it is. */
		if (cases[n].current) {
			for (uint32_t k = 0; k < 2; k++) {
				step(GE_LEAVE, k);
			}
			for (uint32_t k = 0; k < 2; k++) {
				join(k, cases[n].versions[k], cases[n].stale[k], cases[n].doubt[k]);
			}
			settle(STREW_OUTCOME_COMMITTED);
			assert_int_equal(group_state(&group), STREW_GROUP_STALE);
		}
	}
}

static struct group_event any_event(uint64_t turn)
{
	struct group_event event = {.type = (enum group_event_type)test_random_below(GE_COUNT),
		.member = (uint32_t)test_random_below(group.nmembers),
		.update = turn,
		.version = turn,
		.touched = group.phase >= PHASE_MOVING && test_random_below(2),
		.text = "walk"};

	if (event.type == GE_JOIN) {
		event.stale = test_random_below(2);
		event.version = test_random_below(3) ? group.version : GROUP_VERSION_MIXED;
		event.update = test_random_below(2) ? group.update : 0;
	}
	if (event.type == GE_SETTLED) {
		event.update = group.doubt.update;
		event.outcome =
			(enum strew_outcome)(STREW_OUTCOME_COMMITTED + test_random_below(3));
	}
	return event;
}

/* No member whose memory is written in part, or of another version, in a group that is CURRENT. */
static void check_current(void)
{
	for (uint32_t i = 0; group_state(&group) == STREW_GROUP_CURRENT && i < group.nmembers;
		i++) {
		assert_true(group.members[i].present);
		assert_true(group.members[i].version == group.version);
		assert_false(group.members[i].stale);
	}
}

static void test_random_walks(void **state)
{
	unsigned settled = 0;

	(void)state;
	for (int walk = 0; walk < 20000; walk++) {
		stand(test_random_below(2) ? STREW_GATE_LIVE : STREW_GATE_HELD,
			test_random_below(2) ? STREW_APPLY_DIRECT : STREW_APPLY_STAGED);
		prepare();
		step(GE_DOUBT, 0);
		for (uint64_t i = 10; i < 60; i++) {
			struct group_event event = any_event(i);
			enum group_phase before = group.phase;

			if (event.type == GE_BEGIN && group.npresent < group.nmembers) {
				continue;
			}
			group_step(&group, &event, &acts);
			assert_true(acts.n <= GROUP_ACTIONS);
			check_current();
			assert_true(!group.settling || group.phase == PHASE_CHECKING ||
				    group.phase == PHASE_GATING || group.phase == PHASE_COMMITTING);
			if (group.settling) {
				settled++;
				/* Nobody is told of it, and nothing is copied without the gate. */
				assert_int_equal(count(GA_ACCEPT) + count(GA_PREPARED), 0);
				for (uint32_t k = 0; count(GA_COPY) && k < group.nmembers; k++) {
					assert_true(group.gate == STREW_GATE_LIVE ||
						    group.members[k].ready);
				}
			}
			if (group.phase == PHASE_IDLE && before != PHASE_IDLE) {
				assert_int_equal(count(GA_SEND_DONE), group.npresent);
			}
		}
	}
	assert_true(settled > 1000);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_commit_staged_live),
		cmocka_unit_test(test_commit_staged_held),
		cmocka_unit_test(test_commit_direct),
		cmocka_unit_test(test_commit_pulled),
		cmocka_unit_test(test_abort),
		cmocka_unit_test(test_sat_out),
		cmocka_unit_test(test_out),
		cmocka_unit_test(test_stale_before),
		cmocka_unit_test(test_missed_before),
		cmocka_unit_test(test_members_change),
		cmocka_unit_test(test_another_update),
		cmocka_unit_test(test_failures),
		cmocka_unit_test(test_failed_beside_pulls),
		cmocka_unit_test(test_joined_in_doubt),
		cmocka_unit_test(test_random_walks),
	};

	return TEST_RUN(tests);
}
