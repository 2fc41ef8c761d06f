/*
 * Processes that are stopped (SIGSTOP) in the middle of an update, for longer than it lasts, and go
 * on: what they do then is late, and must harm nobody.
 */
#include "base/clock.h"
#include "base/util.h"
#include "broker/leader.h"
#include "broker/nodes.h"
#include "broker/subset.h"
#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#define CALL_MS 300
#define LATE_MS 200 /* for what is late to come */

static const struct rows whole[] = {{"w", STREW_F32, 16, 32, 0, 16}};
static const struct rows two[] = {{"w", STREW_F32, 16, 32, 0, 16}, {"v", STREW_F32, 8, 8, 0, 8}};

static void stop(pid_t pid)
{
	int status;

	assert_int_equal(kill(pid, SIGSTOP), 0);
	assert_int_equal(waitpid(pid, &status, WUNTRACED), pid);
	assert_true(WIFSTOPPED(status));
}

static void poison(struct worker *worker)
{
	memset(worker->memory, POISON, worker->bytes);
}

/* The bucket as leader_bucket() sends it, in two halves. */
static void send_half(struct raw *data, uint64_t epoch, uint64_t number, bool second)
{
	uint32_t values[16 * 32];
	struct trainer trainer = {.nrows = 1, .memory = values};
	uint64_t header[3] = {epoch, 1, sizeof(values)};
	const char *at = (const char *)values + (second ? sizeof(values) / 2 : 0);

	trainer.rows[0] = whole[0];
	trainer_write(&trainer, number);
	if (!second) {
		assert_int_equal(send(conn_fd(data->conn), header, sizeof(header), MSG_NOSIGNAL),
			sizeof(header));
	}
	assert_int_equal(send(conn_fd(data->conn), at, sizeof(values) / 2, MSG_NOSIGNAL),
		sizeof(values) / 2);
}

/* A broker is stopped while it moves into live memory, and its worker wants that back. */
static void run_stopped_in_a_move(const struct broker *broker, bool close)
{
	uint64_t epoch = 10 + close, update = 100 + close, hash;
	struct strew_agent_options options = {
		.model = "m", .apply = STREW_APPLY_DIRECT, .timeout_ms = CALL_MS};
	struct worker worker;
	struct raw link, data;

	assert_int_equal(worker_start(&worker, broker, options, whole, 1), 0);
	leader_stands(&link, &data, epoch);
	hash = leader_rows(&link, whole);
	leader_begin(&link, epoch, update, hash, 0);
	assert_int_equal(leader_groups(&link, MSG_ACCEPT, update, 0), WIRE_OK);
	leader_decides(&link, MSG_GO, epoch, update);
	send_half(&data, epoch, update, false);
	sleep_ms(50);
	stop(broker->pid);
	if (close) {
		assert_int_equal(strew_agent_close(worker.agent), -ETIMEDOUT);
		assert_non_null(strstr(strew_error(), "in time"));
		worker.agent = NULL;
	} else {
		assert_int_equal(strew_agent_withdraw(worker.agent), -ETIMEDOUT);
	}
	worker_is_poisoned(&worker);
	send_half(&data, epoch, update, true);
	assert_int_equal(kill(broker->pid, SIGCONT), 0);
	if (close) {
		/* Who was told that it is not his own sees it written. */
		broker_wait_state(broker, "m", STREW_GROUP_FORMING);
		sleep_ms(LATE_MS);
		worker_holds(&worker, update);
	} else {
		uint64_t deadline = deadline_in_ms(PATIENCE_MS);
		int rc;

		do {
			rc = strew_agent_withdraw(worker.agent);
		} while (rc == -ETIMEDOUT && !deadline_passed(deadline));
		assert_int_equal(rc, 0);
	}
	poison(&worker);
	sleep_ms(LATE_MS);
	worker_is_poisoned(&worker);
	raw_close(&link);
	raw_close(&data);
	worker_stop(&worker);
}

static void test_stopped_in_a_move(void **state)
{
	struct broker broker = {0};

	(void)state;
	leader_start(&broker);
	run_stopped_in_a_move(&broker, false);
	run_stopped_in_a_move(&broker, true);
	leader_finish(&broker);
}

static void wait_aborted(struct trainer *trainer, const char *word)
{
	struct strew_report report;

	/* The abort waits for who is stopped, but not for ever. */
	assert_int_equal(strew_trainer_wait_report(trainer->trainer, 3 * PATIENCE_MS, &report), 0);
	assert_int_equal(report.outcome, STREW_OUTCOME_ABORTED);
	if (!strstr(report.text, word)) {
		print_error("\"%s\" was expected: %s\n", word, report.text);
		fail();
	}
	strew_report_finish(&report);
}

/* A broker is stopped behind its move, and misses the deadline, the abort and the next version. */
static void test_stopped_beyond_the_deadline(void **state)
{
	struct strew_agent_options options = {
		.model = "m", .gate = STREW_GATE_HELD, .serve_thread = 1};
	struct trainer trainer;
	struct worker worker;

	(void)state;
	nodes_start(state);
	assert_int_equal(worker_start(&worker, &nodes[1], options, whole, 1), 0);
	assert_int_equal(trainer_start(&trainer, &nodes[0],
				 (struct strew_trainer_options){.model = "m"}, whole, 1),
		0);
	assert_int_equal(strew_agent_ready(worker.agent, NULL), 0);
	trainer_commits(&trainer, 1);
	assert_int_equal(strew_agent_resume(worker.agent, PATIENCE_MS), 0);
	worker_event(&worker, STREW_EVENT_DONE, STREW_OUTCOME_COMMITTED);
	trainer_write(&trainer, 2);
	assert_int_equal(strew_trainer_publish(trainer.trainer, 2, NULL, 0, 1000), 0);
	worker_event(&worker, STREW_EVENT_HOLD, STREW_OUTCOME_NONE);
	stop(nodes[1].pid);
	/* It finds everything that it has waited for when it goes on, and its time is over. */
	assert_int_equal(strew_agent_ready(worker.agent, NULL), 0);
	wait_aborted(&trainer, "node ");
	assert_int_equal(kill(nodes[1].pid, SIGCONT), 0);
	broker_wait_brokers(&nodes[0], NODES);
	sleep_ms(LATE_MS);
	worker_holds(&worker, 1);
	assert_int_equal(strew_agent_resume(worker.agent, PATIENCE_MS), 0);
	worker_holds(&worker, 1);
	assert_int_equal(strew_agent_ready(worker.agent, NULL), 0);
	trainer_commits(&trainer, 2);
	worker_holds(&worker, 2);
	assert_int_equal(strew_agent_resume(worker.agent, PATIENCE_MS), 0);
	worker_stop(&worker);
	trainer_stop(&trainer);
	nodes_finish(state);
}

static int stopping_trainer(const struct broker *broker)
{
	struct strew_report report;
	struct trainer trainer;
	uint32_t first, second;
	int rc;

	if (trainer_start(&trainer, broker, (struct strew_trainer_options){.model = "s"}, two, 2)) {
		return 10;
	}
	first = name_subset(&trainer, 1);
	second = name_subset(&trainer, 2);
	trainer_commits(&trainer, 1);
	if (strew_trainer_open_parts(trainer.trainer, 2, 0, 500)) {
		return 11;
	}
	write_subset(&trainer, 2, 1);
	if (strew_trainer_put(trainer.trainer, first, NULL) ||
		strew_trainer_wait_released(trainer.trainer, PATIENCE_MS)) {
		return 12;
	}
	raise(SIGSTOP);
	write_subset(&trainer, 2, 2);
	rc = strew_trainer_put(trainer.trainer, second, NULL);
	rc = rc ? rc : strew_trainer_wait_released(trainer.trainer, PATIENCE_MS);
	if (rc != -ECANCELED) {
		return 13;
	}
	if (strew_trainer_wait_report(trainer.trainer, PATIENCE_MS, &report) ||
		report.outcome != STREW_OUTCOME_ABORTED ||
		!strstr(report.text, "did not put its next part")) {
		return 14;
	}
	strew_report_finish(&report);
	/* The same number again: nobody has it. */
	trainer_commits(&trainer, 2);
	trainer_stop(&trainer);
	return 0;
}

/* A trainer is stopped between two parts: the deadline ends its update, and nobody has any of it.
 */
static void test_a_trainer_stops(void **state)
{
	struct broker broker = {0};
	struct worker worker;
	int status;
	pid_t pid;

	(void)state;
	broker_start(&broker, (const char *[]){NULL});
	assert_int_equal(
		worker_start(&worker, &broker,
			(struct strew_agent_options){.model = "s", .apply = STREW_APPLY_STAGED},
			two, 2),
		0);
	pid = fork();
	assert_true(pid >= 0);
	if (pid == 0) {
		_exit(stopping_trainer(&broker));
	}
	assert_int_equal(waitpid(pid, &status, WUNTRACED), pid);
	assert_true(WIFSTOPPED(status));
	worker_event(&worker, STREW_EVENT_DONE, STREW_OUTCOME_COMMITTED);
	worker_event(&worker, STREW_EVENT_DONE, STREW_OUTCOME_ABORTED);
	worker_holds(&worker, 1);
	sleep_ms(LATE_MS);
	worker_holds(&worker, 1);
	assert_int_equal(kill(pid, SIGCONT), 0);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
	worker_event(&worker, STREW_EVENT_DONE, STREW_OUTCOME_COMMITTED);
	worker_holds(&worker, 2);
	worker_stop(&worker);
	broker_finish(&broker);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_stopped_in_a_move),
		cmocka_unit_test(test_stopped_beyond_the_deadline),
		cmocka_unit_test(test_a_trainer_stops),
	};

	return test_finish(cmocka_run_group_tests(tests, NULL, NULL), test_fds_at_start);
}
