/*
 * Two real brokers whose lead is played, and goes away between prepared and the last word: what
 * becomes of their groups at the real lead that takes its place.
 */
#include "base/clock.h"
#include "base/util.h"
#include "broker/leader.h"
#include "broker/peers.h"
#include <errno.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>

#define JOINERS 2u

static struct broker joiners[JOINERS], lead;
static uint64_t ids[JOINERS + 1] = {LEADER_ID};
static uint64_t epoch, update = 100;
static const struct rows whole[] = {{"w", STREW_F32, 16, 32, 0, 16}};

/* The old lead, with the workers that it leads: each joiner has a replica of its own. */
struct scene {
	struct raw links[JOINERS], data[JOINERS];
	struct worker workers[JOINERS];
	enum strew_gate gate;
	enum strew_apply apply;
	uint64_t hash, sequence;
};

static uint64_t id_of(const struct broker *broker)
{
	struct message reply;
	uint64_t id;

	broker_status(broker, &reply);
	id = reply.u.status_reply.broker_id;
	message_finish(&reply);
	return id;
}

static int start(void **state)
{
	char text[16];
	int ready;

	(void)state;
	leader_start(&joiners[0]);
	for (unsigned i = 1; i < JOINERS; i++) {
		struct raw link;

		broker_launch(
			&joiners[i], (const char *[]){"--join", leader_address, NULL}, &ready);
		/* The first one may come in between, and comes again. */
		do {
			leader_join(&link);
			raw_close(&link);
		} while (leader_joiner == id_of(&joiners[0]));
		assert_true(read(ready, text, sizeof(text)) > 0);
		close(ready);
	}
	return 0;
}

static int finish(void **state)
{
	(void)state;
	for (unsigned i = 0; i < JOINERS; i++) {
		broker_finish(&joiners[i]);
	}
	leader_leaves();
	return 0;
}

/* Both join, in any order, and are told the manifest; the epoch stands. */
static void old_lead_stands(struct scene *scene)
{
	epoch++;
	for (unsigned i = 0; i < JOINERS; i++) {
		ids[1 + i] = id_of(&joiners[i]);
	}
	for (unsigned n = 0; n < JOINERS; n++) {
		struct raw link;

		leader_join(&link);
		scene->links[leader_joiner == ids[1] ? 0 : 1] = link;
	}
	for (unsigned i = 0; i < JOINERS; i++) {
		scene->hash = leader_rows(&scene->links[i], whole);
		leader_epoch_of(&scene->links[i], epoch, 1 + i, ids, JOINERS + 1);
	}
	for (unsigned i = 0; i < JOINERS; i++) {
		leader_data(&scene->data[i], epoch);
		leader_warm(&scene->data[i], epoch);
	}
	for (unsigned i = 0; i < JOINERS; i++) {
		assert_int_equal(leader_ready(&scene->links[i], epoch), WIRE_OK);
	}
	scene->sequence = 0;
}

static void scene_start(struct scene *scene, enum strew_gate gate, enum strew_apply apply)
{
	memset(scene, 0, sizeof(*scene));
	scene->gate = gate;
	scene->apply = apply;
	for (unsigned i = 0; i < JOINERS; i++) {
		struct strew_agent_options options = {.model = "m",
			.replica = i,
			.gate = gate,
			.apply = apply,
			.serve_thread = 1};

		assert_int_equal(
			worker_start(&scene->workers[i], &joiners[i], options, whole, 1), 0);
	}
	old_lead_stands(scene);
}

static void hold(struct scene *scene, unsigned i)
{
	if (scene->gate == STREW_GATE_HELD) {
		worker_event(&scene->workers[i], STREW_EVENT_HOLD, STREW_OUTCOME_NONE);
		assert_int_equal(strew_agent_ready(scene->workers[i].agent, NULL), 0);
	}
}

static void resume(struct scene *scene, unsigned i, int rc)
{
	if (scene->gate == STREW_GATE_HELD) {
		assert_int_equal(strew_agent_resume(scene->workers[i].agent, PATIENCE_MS), rc);
	}
}

/* Both replicas go on, each wholly at its broker. */
static void decide(struct scene *scene, unsigned i, enum message_type type)
{
	uint32_t replicas[JOINERS] = {0, 1}, met[JOINERS] = {0, 1};
	struct message message;

	message_init(&message, type, 0);
	message.u.decision.epoch = epoch;
	message.u.decision.update = update;
	message.u.decision.replicas = replicas;
	message.u.decision.nreplicas = JOINERS;
	message.u.decision.wire = 1;
	if (type == MSG_GO) {
		message.u.decision.met = met;
		message.u.decision.nmet = JOINERS;
	}
	raw_send(&scene->links[i], &message);
}

/* Up to both brokers' prepared; the version is the update's number. */
static void prepare(struct scene *scene)
{
	update++;
	scene->sequence++;
	for (unsigned i = 0; i < JOINERS; i++) {
		leader_begin(&scene->links[i], epoch, update, scene->hash, 0);
		if (scene->apply == STREW_APPLY_DIRECT) {
			hold(scene, i);
		}
		assert_int_equal(leader_groups(&scene->links[i], MSG_ACCEPT, update, 0), WIRE_OK);
		decide(scene, i, MSG_GO);
		leader_bucket(&scene->data[i], epoch, scene->sequence, whole, update);
	}
	for (unsigned i = 0; i < JOINERS; i++) {
		if (scene->apply == STREW_APPLY_STAGED) {
			hold(scene, i);
		}
		assert_int_equal(leader_groups(&scene->links[i], MSG_PREPARED, update, 0), WIRE_OK);
	}
}

static void commit(struct scene *scene, unsigned i)
{
	decide(scene, i, MSG_COMMIT);
	assert_int_equal(
		leader_groups(&scene->links[i], MSG_APPLIED, update, STREW_OUTCOME_COMMITTED),
		WIRE_OK);
	worker_event(&scene->workers[i], STREW_EVENT_DONE, STREW_OUTCOME_COMMITTED);
	worker_holds(&scene->workers[i], update);
	resume(scene, i, 0);
}

static void old_lead_dies(struct scene *scene)
{
	for (unsigned i = 0; i < JOINERS; i++) {
		raw_close(&scene->links[i]);
		raw_close(&scene->data[i]);
	}
	leader_leaves();
}

/* In doubt: a staged group has its old version, and its engine goes on with it. */
static void is_in_doubt(struct scene *scene, unsigned i)
{
	bool direct = scene->apply == STREW_APPLY_DIRECT;

	worker_event(&scene->workers[i], STREW_EVENT_DONE,
		direct ? STREW_OUTCOME_DIRTY : STREW_OUTCOME_NONE);
	broker_wait_state(&joiners[i], "m", direct ? STREW_GROUP_DIRTY : STREW_GROUP_IN_DOUBT);
	if (!direct) {
		worker_holds(&scene->workers[i], update - 1);
	}
	resume(scene, i, direct ? -EUCLEAN : 0);
}

static void new_lead(void)
{
	broker_start(&lead, (const char *[]){"--listen", leader_address, NULL});
}

static void scene_stop(struct scene *scene)
{
	for (unsigned i = 0; i < JOINERS; i++) {
		worker_stop(&scene->workers[i]);
	}
	broker_finish(&lead);
	leader_returns();
}

/* A new trainer's whole update gets everywhere. */
static void heal(struct scene *scene, unsigned first)
{
	const struct strew_trainer_options options = {.model = "m"};
	struct trainer trainer;

	update++;
	assert_int_equal(trainer_start(&trainer, &lead, options, whole, 1), 0);
	trainer_write(&trainer, update);
	assert_int_equal(strew_trainer_publish(trainer.trainer, update, NULL, 0, PATIENCE_MS), 0);
	for (unsigned i = first; i < JOINERS; i++) {
		struct strew_report report;

		hold(scene, i);
		if (i == JOINERS - 1) {
			trainer_reports(&trainer, STREW_OUTCOME_COMMITTED, "", &report);
			strew_report_finish(&report);
		}
	}
	for (unsigned i = first; i < JOINERS; i++) {
		worker_event(&scene->workers[i], STREW_EVENT_DONE, STREW_OUTCOME_COMMITTED);
		worker_holds(&scene->workers[i], update);
		resume(scene, i, 0);
	}
	trainer_stop(&trainer);
}

static const struct kind {
	enum strew_gate gate;
	enum strew_apply apply;
	bool ordinary; /* memory that is pulled into */
} kinds[] = {
	{STREW_GATE_LIVE, STREW_APPLY_STAGED, false},
	{STREW_GATE_HELD, STREW_APPLY_STAGED, false},
	{STREW_GATE_LIVE, STREW_APPLY_DIRECT, false},
	{STREW_GATE_HELD, STREW_APPLY_DIRECT, false},
	{STREW_GATE_HELD, STREW_APPLY_STAGED, true},
	{STREW_GATE_LIVE, STREW_APPLY_DIRECT, true},
};

static void start_kind(struct scene *scene, const struct kind *kind)
{
	peers_ordinary = kind->ordinary;
	scene_start(scene, kind->gate, kind->apply);
	peers_ordinary = false;
	prepare(scene);
	for (unsigned i = 0; i < JOINERS; i++) {
		commit(scene, i);
	}
}

/* The lead has told one of them of its commit, and is gone: the other commits too. */
static void test_commit_that_one_has_heard(void **state)
{
	(void)state;
	for (size_t k = 0; k < ARRAY_LEN(kinds); k++) {
		struct scene scene;

		start_kind(&scene, &kinds[k]);
		prepare(&scene);
		commit(&scene, 0);
		old_lead_dies(&scene);
		if (kinds[k].ordinary && kinds[k].apply == STREW_APPLY_DIRECT) {
			/* What it has pulled into is DIRTY by the twin's state alone. */
			worker_event(&scene.workers[1], STREW_EVENT_DONE, STREW_OUTCOME_DIRTY);
		} else {
			is_in_doubt(&scene, 1);
		}
		new_lead();
		/* Staged with a held gate: the engine is asked once more. */
		if (kinds[k].apply == STREW_APPLY_STAGED) {
			hold(&scene, 1);
		}
		worker_event(&scene.workers[1], STREW_EVENT_DONE, STREW_OUTCOME_COMMITTED);
		for (unsigned i = 0; i < JOINERS; i++) {
			worker_holds(&scene.workers[i], update);
			broker_wait_state(&joiners[i], "m", STREW_GROUP_CURRENT);
		}
		resume(&scene, 1, 0);
		broker_wait_brokers(&lead, JOINERS + 1);
		assert_true(broker_said(&lead, "which its lead left undecided, was committed"));
		heal(&scene, 0);
		scene_stop(&scene);
	}
}

/* Nobody has heard of a commit: the old version stands everywhere, and engines go on. */
static void test_no_commit_at_all(void **state)
{
	(void)state;
	for (size_t k = 0; k < 4; k++) {
		bool direct = kinds[k].apply == STREW_APPLY_DIRECT;
		struct scene scene;

		start_kind(&scene, &kinds[k]);
		prepare(&scene);
		old_lead_dies(&scene);
		for (unsigned i = 0; i < JOINERS; i++) {
			is_in_doubt(&scene, i);
		}
		new_lead();
		broker_wait_brokers(&lead, JOINERS + 1);
		for (unsigned i = 0; i < JOINERS; i++) {
			if (direct) {
				broker_wait_state(&joiners[i], "m", STREW_GROUP_DIRTY);
				continue;
			}
			worker_event(&scene.workers[i], STREW_EVENT_DONE, STREW_OUTCOME_ABORTED);
			broker_wait_state(&joiners[i], "m", STREW_GROUP_CURRENT);
			worker_holds(&scene.workers[i], update - 1);
			resume(&scene, i, 0);
		}
		assert_true(broker_said(&lead, "which its lead left undecided, was aborted"));
		/* That version may be published again. */
		update -= !direct;
		if (!direct) {
			heal(&scene, 0);
		}
		scene_stop(&scene);
	}
}

/* One of them never comes back: the other stays in doubt, until a whole update. */
static void test_one_never_comes_back(void **state)
{
	(void)state;
	for (unsigned heard = 0; heard < 2; heard++) {
		struct strew_agent_options options = {.model = "m",
			.gate = STREW_GATE_HELD,
			.apply = STREW_APPLY_STAGED,
			.serve_thread = 1};
		struct scene scene;
		char text[16];
		int ready;

		start_kind(&scene, &kinds[1]);
		prepare(&scene);
		if (heard) {
			commit(&scene, 0);
		}
		assert_int_equal(broker_stop(&joiners[0], SIGKILL), 256 + SIGKILL);
		worker_event(&scene.workers[0], STREW_EVENT_LOST, STREW_OUTCOME_NONE);
		worker_stop(&scene.workers[0]);
		old_lead_dies(&scene);
		is_in_doubt(&scene, 1);
		new_lead();
		broker_wait_brokers(&lead, 2);
		sleep_ms(100);
		assert_int_equal(broker_group_state(&joiners[1], "m"), STREW_GROUP_IN_DOUBT);
		worker_holds(&scene.workers[1], update - 1);
		assert_true(broker_said(&lead, "is not known"));
		heal(&scene, 1);
		broker_wait_state(&joiners[1], "m", STREW_GROUP_CURRENT);
		/* For the next round. */
		broker_launch(
			&joiners[0], (const char *[]){"--join", leader_address, NULL}, &ready);
		assert_true(read(ready, text, sizeof(text)) > 0);
		close(ready);
		assert_int_equal(
			worker_start(&scene.workers[0], &joiners[0], options, whole, 1), 0);
		scene_stop(&scene);
	}
}

/* Its worker outlives the broker that had committed, and says so at the one that comes. */
static void test_workers_of_one_that_has_committed(void **state)
{
	char text[16];
	int ready;

	(void)state;
	for (size_t k = 0; k < 2; k++) {
		struct scene scene;

		start_kind(&scene, &kinds[k]);
		prepare(&scene);
		commit(&scene, 0);
		assert_int_equal(broker_stop(&joiners[0], SIGKILL), 256 + SIGKILL);
		worker_event(&scene.workers[0], STREW_EVENT_LOST, STREW_OUTCOME_NONE);
		old_lead_dies(&scene);
		is_in_doubt(&scene, 1);
		new_lead();
		broker_launch(
			&joiners[0], (const char *[]){"--join", leader_address, NULL}, &ready);
		assert_true(read(ready, text, sizeof(text)) > 0);
		close(ready);
		broker_wait_brokers(&lead, JOINERS + 1);
		sleep_ms(50);
		assert_int_equal(broker_group_state(&joiners[1], "m"), STREW_GROUP_IN_DOUBT);
		assert_int_equal(strew_agent_reconnect(scene.workers[0].agent, PATIENCE_MS), 0);
		hold(&scene, 1);
		worker_event(&scene.workers[1], STREW_EVENT_DONE, STREW_OUTCOME_COMMITTED);
		for (unsigned i = 0; i < JOINERS; i++) {
			worker_holds(&scene.workers[i], update);
			broker_wait_state(&joiners[i], "m", STREW_GROUP_CURRENT);
		}
		resume(&scene, 1, 0);
		heal(&scene, 0);
		scene_stop(&scene);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_commit_that_one_has_heard),
		cmocka_unit_test(test_no_commit_at_all),
		cmocka_unit_test(test_one_never_comes_back),
		cmocka_unit_test(test_workers_of_one_that_has_committed),
	};

	return test_finish(cmocka_run_group_tests(tests, start, finish), test_fds_at_start);
}
