/*
 * Two trainer ranks at two of three real brokers: what happens when a rank, its broker or the lead
 * goes away, or another broker comes.
 */
#include "base/util.h"
#include "broker/catcher.h"
#include "broker/nodes.h"
#include "gpu/gpu.h"
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

/* A trainer rank by hand, at a node that joined. */
static void raw_rank(struct raw *raw, struct scene *scene, unsigned node, struct starting *other)
{
	struct message message;
	struct draft draft;

	draft_trainer(&draft, "m", 1, scene->held[1], 2);
	raw_open(raw, &nodes[node], ROLE_TRAINER);
	draft_send(raw, &draft);
	raw_expect(raw, MSG_DECLARED, &message);
	message_finish(&message);
	draft_finish(&draft);
	rank_started(other, 0, "");
}

static void raw_publish(struct raw *raw, uint64_t number, bool done)
{
	static uint64_t word;
	struct message message;

	word++;
	message_init(&message, MSG_PUBLISH, ++raw->serial);
	message.u.publish.version = number;
	message.u.publish.word = word;
	message.u.publish.timeout_ms = PATIENCE_MS;
	if (done) {
		page_store(&raw->page, WORD_PUBLISH, word);
	}
	raw_send(raw, &message);
	raw_expect(raw, MSG_OK, &message);
	message_finish(&message);
}

static void trim(struct scene *scene)
{
	/* Small enough for a draft's memory; rank 0 has the rest. */
	scene->ntensors = scene->nheld[0] = scene->nheld[1] = 2;
	for (unsigned i = 0; i < 2; i++) {
		scene->held[1][i] = scene_cut(scene, i, 8, 16, 4, 4);
		scene->held[0][i] = scene_cut(scene, i, 8, 16, 0, 4);
	}
	scene->overlap = 0;
}

/* The rank's process is gone before its memory was read: the update ends and names it. */
static void test_a_rank_that_dies(void **state)
{
	(void)state;
	for (unsigned step = 0; step < 4; step++) {
		struct strew_agent_options options = {.model = "m",
			.gate = STREW_GATE_HELD,
			.apply = step == 3 ? STREW_APPLY_STAGED : STREW_APPLY_DIRECT};
		struct strew_report report;
		struct starting other;
		struct scene scene;
		struct worker *worker = &scene.workers[0];
		struct raw raw;

		scene_draw(&scene);
		trim(&scene);
		rank_start(&other, &scene, 0, 0);
		raw_rank(&raw, &scene, 1, &other);
		assert_int_equal(worker_start(worker, &nodes[2], options, scene.held[0], 2), 0);
		version++;
		assert_int_equal(rank_publish(&scene, 0, version, PATIENCE_MS), 0);
		broker_wait_ranks(&nodes[0], 2, "waiting for ranks");
		if (step > 0) {
			raw_publish(&raw, version, step > 1);
		}
		if (step > 1) {
			/* The engine does not stand still: not accepted yet, or not prepared. */
			worker_event(worker, STREW_EVENT_HOLD, STREW_OUTCOME_NONE);
		}
		if (step == 3) {
			struct message message;

			/* Its memory was gathered: nobody needs it any more. */
			raw_expect(&raw, MSG_RELEASED, &message);
			message_finish(&message);
			raw_close(&raw);
			assert_int_equal(strew_agent_ready(worker->agent, NULL), 0);
			worker_event(worker, STREW_EVENT_DONE, STREW_OUTCOME_COMMITTED);
			trainer_reports(&scene.ranks[0], STREW_OUTCOME_COMMITTED, "", &report);
		} else {
			raw_close(&raw);
			trainer_reports(&scene.ranks[0], STREW_OUTCOME_ABORTED,
				"trainer rank 1 at node", &report);
			assert_non_null(strstr(report.text, "was lost"));
			worker_is_poisoned(worker);
		}
		strew_report_finish(&report);
		broker_wait_ranks(&nodes[0], 1, "idle");
		/* Until it is declared again there is nothing to publish. */
		assert_int_equal(rank_publish(&scene, 0, version + 1, PATIENCE_MS), 0);
		assert_int_equal(
			strew_trainer_wait_report(scene.ranks[0].trainer, PATIENCE_MS, &report),
			-EBUSY);
		assert_non_null(strstr(strew_error(), "not every rank"));
		worker_stop(worker);
		/* Rank 0 stays; a new rank 1, on another node. */
		workers_start(&scene);
		rank_start(&other, &scene, 1, 1 + step % 2);
		rank_started(&other, 0, "");
		ranks_commit(&scene, ++version);
		workers_stop(&scene);
		ranks_stop(&scene);
	}
}

static void test_a_stream_that_is_not_done(void **state)
{
	struct strew_report report;
	struct starting other;
	struct message message;
	struct scene scene;
	struct raw raw;

	(void)state;
	scene_draw(&scene);
	trim(&scene);
	rank_start(&other, &scene, 0, 0);
	raw_rank(&raw, &scene, 1, &other);
	assert_int_equal(rank_publish(&scene, 0, ++version, 300), 0);
	raw_publish(&raw, version, false);
	/* A second one in the middle is refused here. */
	message_init(&message, MSG_PUBLISH, ++raw.serial);
	message.u.publish.version = version;
	raw_send(&raw, &message);
	raw_expect_error(&raw, -EBUSY, "still being published");
	trainer_reports(&scene.ranks[0], STREW_OUTCOME_ABORTED,
		"rank 1 published, but its stream was not done", &report);
	strew_report_finish(&report);
	raw_expect(&raw, MSG_RELEASED, &message);
	message_finish(&message);
	raw_expect(&raw, MSG_REPORT, &message);
	assert_int_equal(message.u.report.outcome, STREW_OUTCOME_ABORTED);
	message_finish(&message);
	/* What is wrong in itself does not get to the lead. */
	message_init(&message, MSG_PUBLISH, ++raw.serial);
	message.u.publish.version = version;
	message.u.publish.flags = 64;
	raw_send(&raw, &message);
	raw_expect_error(&raw, -ENOTSUP, "flag");
	raw_close(&raw);
	trainer_stop(&scene.ranks[0]);
}

/* Its broker was killed: at once, or, as the kernel may take its time to close, in the wait. */
static void rank_hears_of_its_end(struct scene *scene, uint32_t rank, uint64_t number)
{
	struct strew_report report;
	int rc = rank_publish(scene, rank, number, PATIENCE_MS);

	if (rc == 0) {
		rc = strew_trainer_wait_report(scene->ranks[rank].trainer, PATIENCE_MS, &report);
	}
	assert_int_equal(rc, -ECONNRESET);
}

/* The whole broker of a rank is killed: idle, or in the middle of an update. */
static void test_a_broker_that_dies(void **state)
{
	(void)state;
	for (unsigned busy = 0; busy < 2; busy++) {
		struct strew_agent_options options = {
			.model = "m", .gate = STREW_GATE_HELD, .apply = STREW_APPLY_DIRECT};
		struct strew_report report;
		struct starting start_again;
		struct scene scene;
		struct worker held;

		scene_draw(&scene);
		ranks_start(&scene, 0, 1);
		if (busy) {
			assert_int_equal(
				worker_start(&held, &nodes[2], options, scene.held[0], 2), 0);
			version++;
			assert_int_equal(rank_publish(&scene, 0, version, PATIENCE_MS), 0);
			assert_int_equal(rank_publish(&scene, 1, version, PATIENCE_MS), 0);
			worker_event(&held, STREW_EVENT_HOLD, STREW_OUTCOME_NONE);
		}
		assert_int_equal(broker_stop(&nodes[1], SIGKILL), 256 + SIGKILL);
		if (busy) {
			trainer_reports(&scene.ranks[0], STREW_OUTCOME_ABORTED,
				"trainer rank 1 at node", &report);
			strew_report_finish(&report);
			worker_is_poisoned(&held);
			worker_stop(&held);
			assert_int_equal(
				strew_trainer_wait_released(scene.ranks[1].trainer, PATIENCE_MS),
				-ECONNRESET);
			assert_int_equal(strew_trainer_wait_report(
						 scene.ranks[1].trainer, PATIENCE_MS, &report),
				-ECONNRESET);
		}
		rank_hears_of_its_end(&scene, 1, version + 1);
		trainer_stop(&scene.ranks[1]);
		broker_wait_brokers(&nodes[0], NODES - 1);
		assert_int_equal(rank_publish(&scene, 0, version + 1, PATIENCE_MS), 0);
		assert_int_equal(
			strew_trainer_wait_report(scene.ranks[0].trainer, PATIENCE_MS, &report),
			-EBUSY);
		/* The broker comes back, and a rank 1 with it. */
		node_join(1);
		broker_wait_brokers(&nodes[0], NODES);
		rank_start(&start_again, &scene, 1, 1);
		rank_started(&start_again, 0, "");
		workers_start(&scene);
		ranks_commit(&scene, ++version);
		workers_hold(&scene, version);
		workers_stop(&scene);
		ranks_stop(&scene);
	}
}

/* Brokers come and go; the trainers are not asked again. */
static void test_joining_in_the_middle(void **state)
{
	struct strew_report report;
	struct scene scene;

	(void)state;
	scene_draw(&scene);
	ranks_start(&scene, 0, 1);
	for (unsigned turn = 0; turn < 3; turn++) {
		int ready;

		assert_int_equal(broker_stop(&nodes[2], SIGTERM), 0);
		broker_wait_brokers(&nodes[0], NODES - 1);
		broker_launch(&nodes[2], (const char *[]){"--join", nodes_address, NULL}, &ready);
		for (unsigned i = 0; i < 3; i++) {
			/* Nobody has workers yet. */
			version++;
			assert_int_equal(rank_publish(&scene, 0, version, PATIENCE_MS), 0);
			assert_int_equal(rank_publish(&scene, 1, version, PATIENCE_MS), 0);
			for (uint32_t rank = 0; rank < 2; rank++) {
				trainer_reports(&scene.ranks[rank], STREW_OUTCOME_ABORTED,
					"no worker", &report);
				strew_report_finish(&report);
			}
			sleep_ms(20);
		}
		broker_wait_brokers(&nodes[0], NODES);
		close(ready);
		workers_start(&scene);
		for (unsigned i = 0; i < 3; i++) {
			ranks_commit(&scene, ++version);
			workers_hold(&scene, version);
		}
		workers_stop(&scene);
	}
	ranks_stop(&scene);
}

/* The lead is killed and comes back: a rank at another broker is declared to it anew. */
static void test_the_lead_is_started_again(void **state)
{
	struct strew_report report;
	struct starting again;
	struct scene scene;

	(void)state;
	scene_draw(&scene);
	ranks_start(&scene, 0, 1);
	for (unsigned turn = 0; turn < 2; turn++) {
		/* Only rank 1 has published when the lead goes away. */
		assert_int_equal(rank_publish(&scene, 1, ++version, PATIENCE_MS), 0);
		assert_int_equal(
			strew_trainer_wait_released(scene.ranks[1].trainer, 100), -ETIMEDOUT);
		assert_int_equal(
			broker_stop(&nodes[0], turn ? SIGTERM : SIGKILL), turn ? 0 : 256 + SIGKILL);
		assert_int_equal(
			strew_trainer_wait_released(scene.ranks[1].trainer, PATIENCE_MS), 0);
		trainer_reports(
			&scene.ranks[1], STREW_OUTCOME_ABORTED, turn ? "" : "the lead at", &report);
		strew_report_finish(&report);
		trainer_stop(&scene.ranks[0]);
		broker_start(&nodes[0], (const char *[]){"--listen", nodes_address, NULL});
		broker_wait_brokers(&nodes[0], NODES);
		rank_start(&again, &scene, 0, 0);
		rank_started(&again, 0, "");
		workers_start(&scene);
		ranks_commit(&scene, ++version);
		workers_hold(&scene, version);
		workers_stop(&scene);
	}
	ranks_stop(&scene);
}

static bool has_ended_in(const struct broker *broker, const char *stage)
{
	struct message message;
	bool as_said;

	broker_last_event(broker, &message);
	as_said = message.u.event.report.outcome == STREW_OUTCOME_LOST &&
		  strcmp(message.u.event.ended_in, stage) == 0;
	if (!as_said) {
		print_error("outcome %u, ended in \"%s\": %s\n", message.u.event.report.outcome,
			message.u.event.ended_in, message.u.event.report.text);
	}
	message_finish(&message);
	return as_said;
}

/* The only worker is gone when all is decided: nobody has the commit, and both brokers say where
 * it was lost. */
static void test_a_commit_that_nobody_has(void **state)
{
	const struct rows rows[] = {{"w", STREW_F32, 16, 32, 0, 16}};
	struct strew_report report;
	struct trainer trainer;
	struct message message;
	struct draft draft;
	struct raw raw;

	(void)state;
	draft_worker(&draft, "gone", rows, 1);
	draft.allocation.kind = HANDLE_PULL;
	raw_open(&raw, &nodes[1], ROLE_WORKER);
	draft_register(&raw, &draft);
	assert_int_equal(trainer_start(&trainer, &nodes[0],
				 (struct strew_trainer_options){.model = "gone"}, rows, 1),
		0);
	trainer_write(&trainer, 1);
	assert_int_equal(strew_trainer_publish(trainer.trainer, 1, NULL, 0, PATIENCE_MS), 0);
	raw_answer_check(&raw, 0, "");
	raw_expect(&raw, MSG_APPLY, &message);
	message_finish(&message);
	raw_close(&raw);
	trainer_reports(&trainer, STREW_OUTCOME_LOST, "no group has it", &report);
	strew_report_finish(&report);
	assert_true(has_ended_in(&nodes[0], "committing"));
	assert_true(has_ended_in(&nodes[1], "committing"));
	trainer_stop(&trainer);
	draft_finish(&draft);
}

/*
 * A broker was away for the last version of a model, and its trainer has gone since: what that
 * broker's workers hold is not the last one, and nobody there takes it for that.
 */
static void test_away_and_nobody_publishes(void **state)
{
	const struct rows rows[] = {{"w", STREW_F32, 16, 32, 0, 16}};
	struct strew_agent_options options = {.model = "left"};
	struct worker here, away, fresh;
	struct trainer trainer;

	(void)state;
	assert_int_equal(worker_start(&here, &nodes[1], options, rows, 1), 0);
	options.replica = 1;
	assert_int_equal(worker_start(&away, &nodes[2], options, rows, 1), 0);
	assert_int_equal(trainer_start(&trainer, &nodes[0],
				 (struct strew_trainer_options){.model = "left"}, rows, 1),
		0);
	trainer_commits(&trainer, 1);
	assert_int_equal(broker_stop(&nodes[2], SIGKILL), 256 + SIGKILL);
	broker_wait_brokers(&nodes[0], NODES - 1);
	trainer_commits(&trainer, 2);
	trainer_stop(&trainer);
	broker_wait_no_ranks(&nodes[0]);
	node_join(2);
	broker_wait_brokers(&nodes[0], NODES);
	assert_int_equal(strew_agent_reconnect(away.agent, PATIENCE_MS), 0);
	group_wait(&nodes[2], "left", 1, 0, STREW_GROUP_STALE, 1);
	options.replica = 2;
	assert_int_equal(worker_start(&fresh, &nodes[2], options, rows, 1), 0);
	assert_int_equal(strew_agent_wait_current(fresh.agent, WHILE_MS), -ETIMEDOUT);
	assert_int_equal(strew_agent_wait_current(away.agent, WHILE_MS), -ETIMEDOUT);
	worker_holds(&away, 1);
	worker_is_poisoned(&fresh);
	assert_int_equal(trainer_start(&trainer, &nodes[0],
				 (struct strew_trainer_options){.model = "left"}, rows, 1),
		0);
	trainer_commits(&trainer, 3);
	assert_int_equal(strew_agent_wait_current(away.agent, PATIENCE_MS), 0);
	worker_holds(&here, 3);
	worker_holds(&away, 3);
	worker_holds(&fresh, 3);
	worker_stop(&here);
	worker_stop(&away);
	worker_stop(&fresh);
	trainer_stop(&trainer);
}

#define CASE(name) cmocka_unit_test_teardown(name, nodes_check)

int main(void)
{
	const struct CMUnitTest tests[] = {
		CASE(test_a_rank_that_dies),
		CASE(test_a_stream_that_is_not_done),
		CASE(test_a_broker_that_dies),
		CASE(test_joining_in_the_middle),
		CASE(test_the_lead_is_started_again),
		CASE(test_a_commit_that_nobody_has),
		CASE(test_away_and_nobody_publishes),
	};

	return test_finish(
		cmocka_run_group_tests(tests, nodes_start, nodes_finish), test_fds_at_start);
}
