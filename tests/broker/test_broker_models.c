/* More models than a broker knows at once, one after another: what is in use is not forgotten. */
#include "broker/nodes.h"
#include <signal.h>
#include <stdio.h>
#include <string.h>

static const struct rows whole[] = {{"w", STREW_F32, 16, 32, 0, 16}};

static void start_trainer(struct trainer *trainer, unsigned node, const char *model)
{
	assert_int_equal(trainer_start(trainer, &nodes[node],
				 (struct strew_trainer_options){.model = model}, whole, 1),
		0);
}

static void passes_by(unsigned node, unsigned i)
{
	struct trainer trainer;
	char name[16];

	snprintf(name, sizeof(name), "m%u", i);
	start_trainer(&trainer, node, name);
	trainer_stop(&trainer);
}

/*
 * A model whose only worker is at one node: the other one has nothing of it but its manifest,
 * which every publish refers to.
 */
static void test_a_model_that_is_used_elsewhere(void **state)
{
	struct trainer trainer;
	struct worker worker;

	(void)state;
	start_trainer(&trainer, 0, "A");
	assert_int_equal(worker_start(&worker, &nodes[1],
				 (struct strew_agent_options){.model = "A"}, whole, 1),
		0);
	trainer_commits(&trainer, 1);
	for (unsigned i = 1; i <= LIMIT_MODELS + 1; i++) {
		passes_by(i % 2 ? 0 : 2, i);
	}
	trainer_commits(&trainer, 2);
	worker_holds(&worker, 2);
	worker_stop(&worker);
	trainer_stop(&trainer);
	broker_wait_no_ranks(&nodes[0]);
}

/* All places taken, and each of them given back: whoever is told of a new one has room for it. */
static void test_as_many_as_there_may_be(void **state)
{
	struct trainer trainers[LIMIT_MODELS];
	char name[16];

	(void)state;
	for (unsigned turn = 0; turn < 2; turn++) {
		for (unsigned i = 0; i < LIMIT_MODELS; i++) {
			snprintf(name, sizeof(name), "t%u.%u", turn, i);
			start_trainer(&trainers[i], i % NODES, name);
		}
		for (unsigned i = 0; i < LIMIT_MODELS; i++) {
			trainer_stop(&trainers[i]);
		}
		broker_wait_no_ranks(&nodes[0]);
	}
	assert_false(broker_said(&nodes[1], "is gone"));
	assert_false(broker_said(&nodes[2], "is gone"));
}

/* What the lead of before has announced is void at the next, and in nobody's way. */
static void test_manifests_of_a_lead_that_was_lost(void **state)
{
	struct trainer trainers[LIMIT_MODELS];
	char name[16];

	(void)state;
	for (unsigned i = 0; i < LIMIT_MODELS; i++) {
		snprintf(name, sizeof(name), "b%u", i);
		start_trainer(&trainers[i], 0, name);
	}
	for (unsigned i = 0; i < LIMIT_MODELS; i++) {
		trainer_stop(&trainers[i]);
	}
	broker_stop(&nodes[0], SIGKILL);
	broker_start(&nodes[0], (const char *[]){"--listen", nodes_address, NULL});
	broker_wait_brokers(&nodes[0], NODES);
	for (unsigned i = 0; i < LIMIT_MODELS; i++) {
		snprintf(name, sizeof(name), "c%u", i);
		start_trainer(&trainers[i], 0, name);
	}
	for (unsigned i = 0; i < LIMIT_MODELS; i++) {
		trainer_stop(&trainers[i]);
	}
	broker_wait_no_ranks(&nodes[0]);
	broker_wait_brokers(&nodes[0], NODES);
	assert_false(broker_said(&nodes[1], "no place for it"));
}

#define CASE(name) cmocka_unit_test_teardown(name, nodes_check)

int main(void)
{
	const struct CMUnitTest tests[] = {
		CASE(test_a_model_that_is_used_elsewhere),
		CASE(test_as_many_as_there_may_be),
		CASE(test_manifests_of_a_lead_that_was_lost),
	};

	return test_finish(
		cmocka_run_group_tests(tests, nodes_start, nodes_finish), test_fds_at_start);
}
