/*
 * A real lead, and brokers that are played at its port: what they recall of an update that another
 * lead has left undecided, or this one, and what the lead makes of it. Workers that register at
 * the lead say what their memory holds.
 */
#include "base/clock.h"
#include "base/util.h"
#include "broker/joiner.h"
#include <errno.h>
#include <stdio.h>
#include <string.h>

#define OLD_LEAD 77u

static struct broker lead;
static char address[32];
static uint64_t update = 5000; /* of leads before this one */
static uint64_t version = 50;
static const struct rows whole[] = {{"w", STREW_F32, 16, 32, 0, 16}};

static int start(void **state)
{
	(void)state;
	free_address(address);
	broker_start(&lead, (const char *[]){"--listen", address, "--verbose", NULL});
	return 0;
}

static int finish(void **state)
{
	(void)state;
	broker_finish(&lead);
	return 0;
}

/* What a lead has learnt of models it keeps: each case has a lead of its own. */
static int check(void **state)
{
	broker_wait_brokers(&lead, 1);
	broker_check(&lead);
	broker_finish(&lead);
	memset(&lead, 0, sizeof(lead));
	return start(state);
}

/* The joiners' old epoch, of which each of them can tell. */
struct old {
	uint64_t update, version, brokers[LIMIT_BROKERS];
	size_t nbrokers;
	struct group_name own[2];
	size_t nown;
};

static void old_epoch(struct old *old, const struct joiner *joiners, size_t n)
{
	memset(old, 0, sizeof(*old));
	old->update = ++update;
	old->version = ++version;
	old->brokers[0] = OLD_LEAD;
	old->nbrokers = n + 1;
	for (size_t i = 0; i < n; i++) {
		old->brokers[1 + i] = joiners[i].join.broker_id;
	}
}

static void joins(struct joiner *joiners, size_t n)
{
	for (size_t i = 0; i < n; i++) {
		struct msg_join join = joiner_join();

		joiner_joins(&joiners[i], address, &join);
	}
}

static void leave(struct joiner *joiners, size_t n)
{
	for (size_t i = 0; i < n; i++) {
		raw_close(&joiners[i].raw);
	}
}

static void recall_of(struct joiner *joiner, const struct old *old, const char *model,
	enum recall_how how, uint32_t *replicas, size_t nreplicas)
{
	struct message message;
	struct msg_recall *said = &message.u.recall;
	struct old copy = *old;

	message_init(&message, MSG_RECALL, 0);
	string_copy(said->model, sizeof(said->model), model);
	said->update = old->update;
	said->version = old->version;
	said->how = how;
	said->brokers = copy.brokers;
	said->nbrokers = old->nbrokers;
	said->replicas = replicas;
	said->nreplicas = nreplicas;
	said->own = copy.own;
	said->nown = old->nown;
	raw_send(&joiner->raw, &message);
}

/* Replica n is joiner n's, and nobody else's. */
static void recall(struct joiner *joiner, const struct old *old, enum recall_how how, uint32_t n)
{
	uint32_t replicas[] = {0, 1, 2};

	recall_of(joiner, old, "m", how, how == RECALL_COMMITTED ? replicas : &n,
		how == RECALL_COMMITTED ? 3
		: how == RECALL_ABORTED ? 0
					: 1);
}

/* The next word that is none of a new epoch's. */
static void take_settled(struct joiner *joiner, const struct old *old, enum recall_how how,
	const uint32_t *replicas, size_t nreplicas)
{
	const struct msg_settled *said;
	struct message message;

	for (;;) {
		joiner_hears(joiner, &message);
		if (message.type != MSG_EPOCH) {
			break;
		}
		message_finish(&message);
	}
	assert_int_equal(message.type, MSG_SETTLED);
	said = &message.u.settled;
	assert_string_equal(said->model, "m");
	assert_true(said->update == old->update && said->version == old->version);
	assert_int_equal(said->how, how);
	assert_int_equal(said->nreplicas, nreplicas);
	/* In any order. */
	for (size_t i = 0; i < nreplicas; i++) {
		size_t k = 0;

		while (k < nreplicas && said->replicas[k] != replicas[i]) {
			k++;
		}
		assert_true(k < nreplicas);
	}
	message_finish(&message);
}

/* Nothing but what belongs to epochs for a while. */
static void hears_nothing(struct joiner *joiner)
{
	uint64_t until = deadline_in_ms(120);
	struct message message;
	struct error err;
	int rc;

	while ((rc = conn_receive_wait(joiner->raw.conn, until, &message, &err)) == 1) {
		assert_true(message.type == MSG_EPOCH || message.type == MSG_ALIVE ||
			    message.type == MSG_MANIFEST || message.type == MSG_PART);
		message_finish(&message);
	}
	assert_int_equal(rc, -ETIMEDOUT);
}

static const uint32_t all[] = {0, 1, 2};

static void test_one_has_committed(void **state)
{
	struct joiner joiners[2];
	struct old old;

	(void)state;
	joins(joiners, 2);
	old_epoch(&old, joiners, 2);
	/* Whichever speaks first; and with one silent member more. */
	old.brokers[old.nbrokers++] = 4242;
	recall(&joiners[0], &old, RECALL_PREPARED, 0);
	hears_nothing(&joiners[0]);
	recall(&joiners[1], &old, RECALL_COMMITTED, 1);
	take_settled(&joiners[0], &old, RECALL_COMMITTED, all, 3);
	hears_nothing(&joiners[1]);
	/* Said again, it is answered again: the broker may have lost the connection before. */
	recall(&joiners[0], &old, RECALL_PREPARED, 0);
	take_settled(&joiners[0], &old, RECALL_COMMITTED, all, 3);
	leave(joiners, 2);
}

static void test_one_has_aborted(void **state)
{
	struct joiner joiners[2];
	struct old old;

	(void)state;
	joins(joiners, 2);
	old_epoch(&old, joiners, 2);
	old.brokers[old.nbrokers++] = 4242;
	recall(&joiners[1], &old, RECALL_ABORTED, 1);
	recall(&joiners[0], &old, RECALL_PREPARED, 0);
	take_settled(&joiners[0], &old, RECALL_ABORTED, NULL, 0);
	leave(joiners, 2);
}

/* All of the old epoch are here and none has heard of a commit. */
static void test_all_are_prepared(void **state)
{
	struct joiner joiners[3];
	struct old old;

	(void)state;
	joins(joiners, 3);
	old_epoch(&old, joiners, 3);
	recall(&joiners[0], &old, RECALL_PREPARED, 0);
	recall(&joiners[1], &old, RECALL_PREPARED, 1);
	hears_nothing(&joiners[0]);
	recall(&joiners[2], &old, RECALL_PREPARED, 2);
	for (size_t i = 0; i < 3; i++) {
		take_settled(&joiners[i], &old, RECALL_ABORTED, NULL, 0);
	}
	leave(joiners, 3);
}

/* The lead's own node had a group too: its worker must have said that it has nothing of it. */
static void test_the_old_leads_workers(void **state)
{
	static const struct {
		enum memory_holds holds;
		bool staged, other;  /* of another update */
		enum recall_how how; /* 0: nothing follows */
	} cases[] = {
		{HOLDS_NOTHING, true, false, RECALL_ABORTED},
		{HOLDS_NOTHING, false, false, RECALL_ABORTED},
		{HOLDS_NOTHING, true, true, 0},
		{HOLDS_ALL, true, false, RECALL_SEEN},
		{HOLDS_ALL, false, false, RECALL_SEEN},
		{HOLDS_ALL, true, true, 0},
		{HOLDS_SOME, true, false, RECALL_SEEN},
		{HOLDS_SOME, false, false, 0}, /* direct: written before any decision */
		{HOLDS_UNKNOWN, true, false, 0},
	};

	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
		for (unsigned first = 0; first < 2; first++) {
			uint32_t seen[] = {7, 0};
			struct joiner joiner;
			struct draft draft;
			struct raw raw;
			struct old old;

			check(NULL);
			joins(&joiner, 1);
			old_epoch(&old, &joiner, 1);
			old.own[old.nown++] = (struct group_name){7, 3};
			draft_worker(&draft, "m", whole, 1);
			draft.reg.replica = 7;
			draft.reg.part = 3;
			draft.reg.apply = cases[i].staged ? STREW_APPLY_STAGED : STREW_APPLY_DIRECT;
			draft.reg.update = old.update - cases[i].other;
			draft.reg.holds = cases[i].holds;
			draft.reg.state = cases[i].holds == HOLDS_ALL ? STREW_GROUP_CURRENT
								      : STREW_GROUP_IN_DOUBT;
			draft.reg.version = old.version - (cases[i].holds != HOLDS_ALL);
			raw_open(&raw, &lead, ROLE_WORKER);
			if (first) {
				draft_register(&raw, &draft);
			}
			recall(&joiner, &old, RECALL_PREPARED, 0);
			if (!first) {
				hears_nothing(&joiner);
				draft_register(&raw, &draft);
			}
			if (cases[i].how) {
				take_settled(&joiner, &old, cases[i].how, seen,
					cases[i].how == RECALL_SEEN ? 2 : 0);
			} else {
				hears_nothing(&joiner);
			}
			/* What was only in doubt of that update is CURRENT when it is none. */
			if (cases[i].how == RECALL_ABORTED) {
				broker_wait_state(&lead, "m", STREW_GROUP_CURRENT);
			}
			leave(&joiner, 1);
			draft_finish(&draft);
			raw_close(&raw);
		}
	}
}

/* Half of a group is not the group. */
static void test_a_worker_is_missing(void **state)
{
	struct joiner joiner;
	struct draft draft;
	struct raw raws[2];
	struct old old;

	(void)state;
	joins(&joiner, 1);
	old_epoch(&old, &joiner, 1);
	old.own[old.nown++] = (struct group_name){0, 0};
	recall(&joiner, &old, RECALL_PREPARED, 1);
	for (uint32_t i = 0; i < 2; i++) {
		hears_nothing(&joiner);
		draft_worker(&draft, "m", whole, 1);
		draft.reg.members = 2;
		draft.reg.member = i;
		draft.reg.apply = STREW_APPLY_STAGED;
		draft.reg.state = STREW_GROUP_IN_DOUBT;
		draft.reg.update = old.update;
		draft.reg.holds = HOLDS_NOTHING;
		raw_open(&raws[i], &lead, ROLE_WORKER);
		draft_register(&raws[i], &draft);
		draft_finish(&draft);
	}
	take_settled(&joiner, &old, RECALL_ABORTED, NULL, 0);
	leave(&joiner, 1);
	raw_close(&raws[0]);
	raw_close(&raws[1]);
}

/* What a broker that was started again has heard of its workers. */
static void test_seen_elsewhere(void **state)
{
	uint32_t seen[] = {5, 6, 0};
	struct joiner joiners[2];
	struct old old, told;

	(void)state;
	joins(joiners, 2);
	old_epoch(&old, joiners, 1);
	old.brokers[old.nbrokers++] = 4242;
	recall(&joiners[0], &old, RECALL_PREPARED, 0);
	hears_nothing(&joiners[0]);
	told = old;
	told.nbrokers = 0;
	recall_of(&joiners[1], &told, "m", RECALL_SEEN, seen, 2);
	take_settled(&joiners[0], &old, RECALL_SEEN, seen, 3);
	leave(joiners, 2);
	/* That is what it recalls from then on, with its epoch; and it is good for others. */
	joins(joiners, 2);
	old.brokers[1] = joiners[0].join.broker_id;
	old.brokers[2] = joiners[1].join.broker_id;
	recall_of(&joiners[0], &old, "m", RECALL_SEEN, seen, 3);
	recall(&joiners[1], &old, RECALL_PREPARED, 1);
	take_settled(&joiners[1], &old, RECALL_SEEN, (uint32_t[]){5, 6, 0, 1}, 4);
	leave(joiners, 2);
}

/* Who contradicts another is not believed, and neither is the other. */
static void test_contradictions(void **state)
{
	struct joiner joiners[3];
	struct old old;

	(void)state;
	joins(joiners, 3);
	old_epoch(&old, joiners, 3);
	recall(&joiners[1], &old, RECALL_ABORTED, 1);
	recall(&joiners[2], &old, RECALL_COMMITTED, 2);
	recall(&joiners[0], &old, RECALL_PREPARED, 0);
	hears_nothing(&joiners[0]);
	leave(joiners, 3);
}

/* The version that others have committed is known, and not published again. */
static void test_the_version_is_learnt(void **state)
{
	struct strew_trainer_options options = {.model = "m"};
	struct strew_report report;
	struct joiner joiner;
	struct trainer trainer;
	struct old old;

	(void)state;
	joins(&joiner, 1);
	old_epoch(&old, &joiner, 1);
	recall(&joiner, &old, RECALL_COMMITTED, 0);
	hears_nothing(&joiner);
	assert_int_equal(trainer_start(&trainer, &lead, options, whole, 1), 0);
	assert_int_equal(trainer_publish(&trainer, old.version, 0, PATIENCE_MS, &report), -ESTALE);
	trainer_stop(&trainer);
	leave(&joiner, 1);
}

static void test_against_the_protocol(void **state)
{
	(void)state;
	for (unsigned i = 0; i < 7; i++) {
		struct joiner joiner;
		char model[8] = "m";
		struct old old;

		joins(&joiner, 1);
		old_epoch(&old, &joiner, 1);
		old.brokers[old.nbrokers++] = 4243; /* which is not here, so that nothing follows */
		switch (i) {
		case 0: /* it was not in that epoch */
			old.brokers[1] = 4242;
			break;
		case 1: /* it was its lead */
			old.brokers[0] = joiner.join.broker_id;
			old.brokers[1] = 4242;
			break;
		case 2:
			old.nbrokers = 0;
			break;
		case 3:
			old.update = 0;
			break;
		case 4:
			model[0] = '\0';
			break;
		case 5: /* of more models than there may be */
			for (unsigned k = 0; k < LIMIT_MODELS; k++) {
				snprintf(model, sizeof(model), "m%u", k);
				recall_of(&joiner, &old, model, RECALL_PREPARED, NULL, 0);
			}
			hears_nothing(&joiner);
			model[0] = 'x';
			break;
		default:
			break;
		}
		if (i == 6) { /* workers were seen, and an epoch is named in which it was not */
			old.brokers[1] = 4242;
			struct message message;

			message_init(&message, MSG_RECALL, 0);
			string_copy(message.u.recall.model, sizeof(message.u.recall.model), "m");
			message.u.recall.update = old.update;
			message.u.recall.how = RECALL_SEEN;
			message.u.recall.brokers = old.brokers;
			message.u.recall.nbrokers = 2;
			raw_send(&joiner.raw, &message);
		} else {
			recall_of(&joiner, &old, model, RECALL_PREPARED, NULL, 0);
		}
		joiner_ends(&joiner);
		leave(&joiner, 1);
	}
}

/* Before it has joined nobody recalls anything. */
static void test_before_join(void **state)
{
	struct msg_join join = joiner_join();
	struct joiner joiner = {.join = join};
	struct old old;

	(void)state;
	old_epoch(&old, &joiner, 1);
	tcp_open(&joiner.raw, address);
	recall(&joiner, &old, RECALL_COMMITTED, 0);
	raw_expect_error(&joiner.raw, -EPROTO, "join");
	raw_close(&joiner.raw);
}

/* One update of this lead, up to the played broker's prepared; the worker at the lead takes part.
 */
static void run_to_prepared(struct joiner *joiner, struct trainer *trainer, uint64_t *ret_update)
{
	struct group_outcome group = {.replica = 9, .state = STREW_GROUP_CURRENT};
	struct message message;

	version++;
	trainer_write(trainer, version);
	assert_int_equal(strew_trainer_publish(trainer->trainer, version, NULL, 0, PATIENCE_MS), 0);
	joiner_expect(joiner, MSG_BEGIN, &message);
	*ret_update = message.u.begin.update;
	message_finish(&message);
	joiner_answer(joiner, MSG_ACCEPT, joiner->epoch.epoch, *ret_update, &group, 1);
	joiner_expect(joiner, MSG_GO, &message);
	/* The lead's own group, and that each replica has one group in all. */
	assert_int_equal(message.u.decision.nown, 1);
	assert_int_equal(message.u.decision.own[0].replica, 0);
	assert_int_equal(message.u.decision.nreplicas, 2);
	assert_int_equal(message.u.decision.nmet, 2);
	assert_int_equal(message.u.decision.met[0] + message.u.decision.met[1], 9);
	message_finish(&message);
}

static void old_of(const struct joiner *joiner, uint64_t number, struct old *old)
{
	memset(old, 0, sizeof(*old));
	old->update = number;
	old->version = version;
	old->nbrokers = joiner->nbrokers;
	memcpy(old->brokers, joiner->brokers, sizeof(old->brokers));
	old->own[old->nown++] = (struct group_name){0, 0};
}

/* A broker that was lost around the decision comes back to the lead that has decided. */
static void test_a_lost_joiner_returns(void **state)
{
	(void)state;
	for (unsigned commits = 0; commits < 2; commits++) {
		struct strew_trainer_options options = {.model = "m"};
		struct strew_agent_options held = {.model = "m",
			.gate = STREW_GATE_HELD,
			.apply = STREW_APPLY_STAGED,
			.serve_thread = 1};
		struct strew_report report;
		struct joiner joiner;
		struct trainer trainer;
		struct worker worker;
		struct msg_join join;
		uint64_t number;
		struct raw data;
		struct old old;

		assert_int_equal(worker_start(&worker, &lead, held, whole, 1), 0);
		assert_int_equal(trainer_start(&trainer, &lead, options, whole, 1), 0);
		joiner_stands(&joiner, &data, address);
		assert_true(joiner.nbrokers == 2 &&
			    joiner.brokers[joiner.epoch.rank] == joiner.join.broker_id);
		run_to_prepared(&joiner, &trainer, &number);
		old_of(&joiner, number, &old);
		join = joiner.join;
		worker_event(&worker, STREW_EVENT_HOLD, STREW_OUTCOME_NONE);
		if (commits) {
			/* Its prepared is the last one. */
			struct group_outcome group = {.replica = 9, .state = STREW_GROUP_CURRENT};

			assert_int_equal(strew_agent_ready(worker.agent, NULL), 0);
			joiner_answer(&joiner, MSG_PREPARED, joiner.epoch.epoch, number, &group, 1);
			joiner_takes(&joiner, MSG_COMMIT, number);
		}
		raw_close(&joiner.raw);
		raw_close(&data);
		trainer_reports(&trainer, commits ? STREW_OUTCOME_SAT_OUT : STREW_OUTCOME_ABORTED,
			"", &report);
		strew_report_finish(&report);
		worker_event(&worker, STREW_EVENT_DONE,
			commits ? STREW_OUTCOME_COMMITTED : STREW_OUTCOME_ABORTED);
		joiner_joins(&joiner, address, &join);
		recall(&joiner, &old, RECALL_PREPARED, 9);
		if (commits) {
			take_settled(&joiner, &old, RECALL_COMMITTED, (uint32_t[]){0, 9}, 2);
		} else {
			take_settled(&joiner, &old, RECALL_ABORTED, NULL, 0);
		}
		/* Of an update that it has forgotten the lead says nothing, whoever is there. */
		old.update++;
		recall(&joiner, &old, RECALL_PREPARED, 9);
		hears_nothing(&joiner);
		leave(&joiner, 1);
		trainer_stop(&trainer);
		worker_stop(&worker);
		broker_wait_no_ranks(&lead);
	}
}

#define CASE(name) cmocka_unit_test_teardown(name, check)

int main(void)
{
	const struct CMUnitTest tests[] = {
		CASE(test_one_has_committed),
		CASE(test_one_has_aborted),
		CASE(test_all_are_prepared),
		CASE(test_the_old_leads_workers),
		CASE(test_a_worker_is_missing),
		CASE(test_seen_elsewhere),
		CASE(test_contradictions),
		CASE(test_the_version_is_learnt),
		CASE(test_against_the_protocol),
		CASE(test_before_join),
		CASE(test_a_lost_joiner_returns),
	};

	return test_finish(cmocka_run_group_tests(tests, start, finish), test_fds_at_start);
}
