/*
 * A broker that joined, and leads that are played one after another: what it recalls of the last
 * update at each step of it, and what it does when it hears how that has ended.
 */
#include "base/util.h"
#include "broker/leader.h"
#include "broker/peers.h"
#include <errno.h>
#include <string.h>

static struct broker broker;
static uint64_t epoch, update = 100;
static const struct rows whole[] = {{"w", STREW_F32, 16, 32, 0, 16}};

static int start(void **state)
{
	(void)state;
	leader_start(&broker);
	return 0;
}

static int finish(void **state)
{
	(void)state;
	leader_finish(&broker);
	return 0;
}

struct scene {
	struct raw link, data;
	struct worker worker;
	uint64_t hash, sequence;
};

static void scene_start(struct scene *scene, enum strew_gate gate, enum strew_apply apply)
{
	struct strew_agent_options options = {
		.model = "m", .gate = gate, .apply = apply, .serve_thread = 1, .timeout_ms = 3000};

	memset(scene, 0, sizeof(*scene));
	assert_int_equal(worker_start(&scene->worker, &broker, options, whole, 1), 0);
}

static void scene_stop(struct scene *scene)
{
	raw_close(&scene->link);
	raw_close(&scene->data);
	worker_stop(&scene->worker);
}

static void lead_stands(struct scene *scene)
{
	leader_makes_epoch(&scene->link, &scene->data, ++epoch);
	scene->hash = leader_rows(&scene->link, whole);
	scene->sequence = 0;
}

static void lead_dies(struct scene *scene)
{
	raw_close(&scene->link);
	raw_close(&scene->data);
}

static void decide(struct scene *scene, enum message_type type)
{
	struct group_name own[] = {{4, 0}, {4, 1}};
	uint32_t replica = 0;
	struct message message;

	message_init(&message, type, 0);
	message.u.decision.epoch = epoch;
	message.u.decision.update = update;
	message.u.decision.replicas = &replica;
	message.u.decision.nreplicas = 1;
	message.u.decision.wire = 1;
	message.u.decision.met = &replica;
	message.u.decision.nmet = 1;
	message.u.decision.own = own;
	message.u.decision.nown = 2;
	raw_send(&scene->link, &message);
}

static void begin(struct scene *scene)
{
	update++;
	scene->sequence++;
	leader_begin(&scene->link, epoch, update, scene->hash, 0);
	assert_int_equal(leader_groups(&scene->link, MSG_ACCEPT, update, 0), WIRE_OK);
}

static void hold(struct scene *scene)
{
	worker_event(&scene->worker, STREW_EVENT_HOLD, STREW_OUTCOME_NONE);
	assert_int_equal(strew_agent_ready(scene->worker.agent, NULL), 0);
}

static void prepare(struct scene *scene, bool held)
{
	begin(scene);
	decide(scene, MSG_GO);
	leader_bucket(&scene->data, epoch, scene->sequence, whole, update);
	if (held) {
		hold(scene);
	}
	assert_int_equal(leader_groups(&scene->link, MSG_PREPARED, update, 0), WIRE_OK);
}

static void commit(struct scene *scene)
{
	decide(scene, MSG_COMMIT);
	assert_int_equal(
		leader_groups(&scene->link, MSG_APPLIED, update, STREW_OUTCOME_COMMITTED), WIRE_OK);
	worker_event(&scene->worker, STREW_EVENT_DONE, STREW_OUTCOME_COMMITTED);
}

/* A lead, and a version that the group has from it. */
static void first_version(struct scene *scene, bool held)
{
	leader_join(&scene->link);
	lead_stands(scene);
	prepare(scene, held);
	commit(scene);
	if (held) {
		assert_int_equal(strew_agent_resume(scene->worker.agent, PATIENCE_MS), 0);
	}
	worker_holds(&scene->worker, update);
}

static void settle(struct scene *scene, uint64_t number, enum recall_how how)
{
	uint32_t replica = 0;
	struct message message;

	message_init(&message, MSG_SETTLED, 0);
	string_copy(message.u.settled.model, sizeof(message.u.settled.model), "m");
	message.u.settled.update = number;
	message.u.settled.version = update;
	message.u.settled.how = how;
	message.u.settled.replicas = &replica;
	message.u.settled.nreplicas = how != RECALL_ABORTED;
	raw_send(&scene->link, &message);
}

/* Joins another lead, and says what it recalls. */
static void recalls(struct scene *scene, enum recall_how how, size_t nreplicas)
{
	const struct msg_recall *said;
	struct message message;

	leader_join(&scene->link);
	raw_expect(&scene->link, MSG_RECALL, &message);
	said = &message.u.recall;
	assert_string_equal(said->model, "m");
	assert_true(said->update == update && said->version == update);
	assert_int_equal(said->how, how);
	assert_int_equal(said->nbrokers, 2);
	assert_true(said->brokers[0] == LEADER_ID && said->brokers[1] == leader_joiner);
	assert_int_equal(said->nreplicas, nreplicas);
	assert_true(!nreplicas || said->replicas[0] == 0);
	if (how == RECALL_PREPARED) {
		assert_int_equal(said->nown, 2);
		assert_true(said->own[1].replica == 4 && said->own[1].part == 1);
	}
	message_finish(&message);
}

/* At every step what is true if the lead is not heard again. */
static void test_what_it_recalls(void **state)
{
	(void)state;
	for (unsigned step = 0; step < 6; step++) {
		struct scene scene;

		scene_start(&scene, STREW_GATE_LIVE, STREW_APPLY_STAGED);
		first_version(&scene, false);
		if (step < 2) {
			begin(&scene);
			if (step == 1) {
				decide(&scene, MSG_GO);
				sleep_ms(20);
			}
		} else {
			prepare(&scene, false);
		}
		if (step == 3) {
			commit(&scene);
		} else if (step == 4) {
			leader_decides(&scene.link, MSG_ABORT, epoch, update);
			leader_groups(&scene.link, MSG_APPLIED, update, STREW_OUTCOME_ABORTED);
		}
		lead_dies(&scene);
		recalls(&scene,
			step == 3		 ? RECALL_COMMITTED
			: step == 2 || step == 5 ? RECALL_PREPARED
						 : RECALL_ABORTED,
			step == 2 || step == 3 || step == 5);
		if (step == 5) {
			/* And again to the next, until it is known. */
			raw_close(&scene.link);
			recalls(&scene, RECALL_PREPARED, 1);
			settle(&scene, update, RECALL_ABORTED);
			broker_wait_state(&broker, "m", STREW_GROUP_CURRENT);
			raw_close(&scene.link);
			recalls(&scene, RECALL_ABORTED, 0);
		}
		scene_stop(&scene);
	}
}

/* An update that begins before the engine holds the gate is the better cure. */
static void test_another_update_comes(void **state)
{
	struct scene scene;

	(void)state;
	scene_start(&scene, STREW_GATE_HELD, STREW_APPLY_STAGED);
	first_version(&scene, true);
	prepare(&scene, true);
	lead_dies(&scene);
	recalls(&scene, RECALL_PREPARED, 1);
	worker_event(&scene.worker, STREW_EVENT_DONE, STREW_OUTCOME_NONE);
	assert_int_equal(strew_agent_resume(scene.worker.agent, PATIENCE_MS), 0);
	settle(&scene, update - 1, RECALL_COMMITTED); /* of another one */
	settle(&scene, update, RECALL_COMMITTED);
	settle(&scene, update, RECALL_ABORTED); /* what is settled is so for good */
	worker_event(&scene.worker, STREW_EVENT_HOLD, STREW_OUTCOME_NONE);
	broker_wait_state(&broker, "m", STREW_GROUP_PENDING);
	worker_holds(&scene.worker, update - 1);
	lead_stands(&scene);
	begin(&scene);
	/* It has sat that commit out, and takes part in this. */
	worker_event(&scene.worker, STREW_EVENT_DONE, STREW_OUTCOME_SAT_OUT);
	decide(&scene, MSG_GO);
	leader_bucket(&scene.data, epoch, scene.sequence, whole, update);
	hold(&scene);
	assert_int_equal(leader_groups(&scene.link, MSG_PREPARED, update, 0), WIRE_OK);
	commit(&scene);
	worker_holds(&scene.worker, update);
	broker_wait_state(&broker, "m", STREW_GROUP_CURRENT);
	scene_stop(&scene);
}

/* The engine goes away instead of holding the gate. */
static void test_the_worker_goes(void **state)
{
	struct scene scene;

	(void)state;
	scene_start(&scene, STREW_GATE_HELD, STREW_APPLY_STAGED);
	first_version(&scene, true);
	prepare(&scene, true);
	lead_dies(&scene);
	recalls(&scene, RECALL_PREPARED, 1);
	worker_event(&scene.worker, STREW_EVENT_DONE, STREW_OUTCOME_NONE);
	assert_int_equal(strew_agent_resume(scene.worker.agent, PATIENCE_MS), 0);
	settle(&scene, update, RECALL_COMMITTED);
	worker_event(&scene.worker, STREW_EVENT_HOLD, STREW_OUTCOME_NONE);
	strew_agent_withdraw(scene.worker.agent);
	broker_wait_state(&broker, "m", 0);
	worker_holds(&scene.worker, update - 1);
	scene_stop(&scene);
}

/* A replica that the commit did not have, and one of which nothing is known. */
static void test_other_replicas(void **state)
{
	(void)state;
	for (unsigned known = 0; known < 2; known++) {
		uint32_t replica = 9;
		struct message message;
		struct scene scene;

		scene_start(&scene, STREW_GATE_LIVE, STREW_APPLY_STAGED);
		first_version(&scene, false);
		prepare(&scene, false);
		lead_dies(&scene);
		recalls(&scene, RECALL_PREPARED, 1);
		broker_wait_state(&broker, "m", STREW_GROUP_IN_DOUBT);
		message_init(&message, MSG_SETTLED, 0);
		string_copy(message.u.settled.model, sizeof(message.u.settled.model), "m");
		message.u.settled.update = message.u.settled.version = update;
		message.u.settled.how = known ? RECALL_COMMITTED : RECALL_SEEN;
		message.u.settled.replicas = &replica;
		message.u.settled.nreplicas = 1;
		raw_send(&scene.link, &message);
		/* Either way a version was committed without it, as far as it knows. */
		broker_wait_state(&broker, "m", STREW_GROUP_STALE);
		worker_holds(&scene.worker, update - 1);
		scene_stop(&scene);
	}
}

static void test_epochs_without_it(void **state)
{
	(void)state;
	for (unsigned i = 0; i < 4; i++) {
		uint64_t brokers[] = {LEADER_ID, 0, 4242};
		struct raw link;

		leader_join(&link);
		brokers[1] = i == 0 ? 4242 : leader_joiner;
		leader_epoch_of(&link, ++epoch, i == 1 ? 0 : 1, brokers, i == 2 ? 3 : 2);
		if (i == 2) {
			struct raw data;

			leader_data(&data, epoch); /* a good one */
			raw_close(&data);
		} else if (i == 3) {
			struct message message;

			/* Fewer than there are. */
			message_init(&message, MSG_EPOCH, 0);
			message.u.epoch.epoch = epoch;
			message.u.epoch.rank = 1;
			message.u.epoch.ranks = 3;
			message.u.epoch.carrier = CARRIER_TCP;
			message.u.epoch.slot_bytes = LIMIT_SLOT_BYTES_MIN;
			message.u.epoch.brokers = brokers;
			message.u.epoch.nbrokers = 2;
			raw_send(&link, &message);
			raw_expect_end(&link);
		} else {
			raw_expect_end(&link);
		}
		raw_close(&link);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_what_it_recalls),
		cmocka_unit_test(test_another_update_comes),
		cmocka_unit_test(test_the_worker_goes),
		cmocka_unit_test(test_other_replicas),
		cmocka_unit_test(test_epochs_without_it),
	};

	return test_finish(cmocka_run_group_tests(tests, start, finish), test_fds_at_start);
}
