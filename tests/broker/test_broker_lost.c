/*
 * Workers that die, leave or keep silent at every moment of an update that can be met: the
 * others go on, the report names it, and after registering again the next update commits.
 */
#include "base/clock.h"
#include "base/util.h"
#include "broker/one.h"
#include "broker/peers.h"
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define CLEANED_MS 3000 /* all takes longer there */
#else
#define CLEANED_MS 1000
#endif

static const struct rows upper[] = {{"w", STREW_F32, 16, 32, 0, 8}};
static const struct rows lower[] = {{"w", STREW_F32, 16, 32, 8, 8}};
static const struct rows whole[] = {{"w", STREW_F32, 16, 32, 0, 16}};

/* A worker in a process of its own, which tells how far it got and can be killed. */
struct child {
	pid_t pid;
	int said; /* 'r' registered, 'c' check came */
};

static void say(int fd, char what)
{
	if (write(fd, &what, 1) != 1) {
		_exit(1);
	}
}

/* Answers nothing after `until`, and waits for its end. */
static void play_worker(int said, const struct draft *draft, enum message_type until)
{
	struct message message;
	struct raw raw;

	raw_open(&raw, &one_broker, ROLE_WORKER);
	draft_register(&raw, draft);
	say(said, 'r');
	if (until == MSG_CHECK) {
		raw_expect(&raw, MSG_CHECK, &message);
		say(said, 'c');
	}
	pause();
}

static void child_start(struct child *child, const struct draft *draft, enum message_type until)
{
	int pipes[2];

	assert_int_equal(pipe2(pipes, O_CLOEXEC), 0);
	child->pid = fork();
	assert_true(child->pid >= 0);
	if (child->pid == 0) {
		/* A failed assertion must not go on with the parent's tests. */
		setenv("CMOCKA_TEST_ABORT", "1", 1);
		alarm(30);
		close(pipes[0]);
		play_worker(pipes[1], draft, until);
		_exit(0);
	}
	close(pipes[1]);
	child->said = pipes[0];
}

static void child_expect(struct child *child, char what)
{
	char said = 0;

	assert_int_equal(read(child->said, &said, 1), 1);
	assert_int_equal(said, what);
}

static void child_kill(struct child *child)
{
	kill(child->pid, SIGKILL);
	assert_int_equal(waitpid(child->pid, NULL, 0), child->pid);
	close(child->said);
}

static void start_worker(
	struct worker *worker, struct strew_agent_options options, const struct rows *rows)
{
	int rc = worker_start(worker, &one_broker, options, rows, 1);

	if (rc) {
		print_error("%s\n", strew_error());
	}
	assert_int_equal(rc, 0);
}

static void start_trainer(struct trainer *trainer, const char *model)
{
	int rc = trainer_start(
		trainer, &one_broker, (struct strew_trainer_options){.model = model}, whole, 1);

	if (rc) {
		print_error("%s\n", strew_error());
	}
	assert_int_equal(rc, 0);
}

static void publish(struct trainer *trainer, uint64_t version, int timeout_ms)
{
	trainer_write(trainer, version);
	assert_int_equal(strew_trainer_publish(trainer->trainer, version, NULL, 0, timeout_ms), 0);
}

/* Two members in replica 0, of which the first is killed; replica 1 goes on. */
static void kill_one(const char *model, enum message_type until, enum strew_apply apply)
{
	struct worker sibling, replica, again;
	struct strew_report report;
	struct trainer trainer;
	struct child child;
	struct draft draft;

	draft_worker(&draft, model, upper, 1);
	draft.reg.members = 2;
	draft.reg.apply = apply;
	child_start(&child, &draft, until);
	child_expect(&child, 'r');
	start_worker(&sibling,
		(struct strew_agent_options){
			.model = model, .member = 1, .members = 2, .apply = apply},
		lower);
	start_worker(&replica,
		(struct strew_agent_options){.model = model, .replica = 1, .apply = apply}, whole);
	start_trainer(&trainer, model);
	if (until == MSG_CHECK) {
		publish(&trainer, 1, PATIENCE_MS);
		child_expect(&child, 'c');
		child_kill(&child);
		trainer_reports(&trainer, STREW_OUTCOME_SAT_OUT, "worker 0 is gone", &report);
		report_group(&report, 0, STREW_OUTCOME_LOST, "worker 0 is gone");
	} else {
		child_kill(&child);
		sleep_ms(20);
		publish(&trainer, 1, PATIENCE_MS);
		trainer_reports(&trainer, STREW_OUTCOME_SAT_OUT, "lost a worker", &report);
		report_group(&report, 0, STREW_OUTCOME_SAT_OUT, "1 of 2 members");
	}
	report_group(&report, 1, STREW_OUTCOME_COMMITTED, "");
	strew_report_finish(&report);
	worker_is_poisoned(&sibling);
	worker_holds(&replica, 1);
	start_worker(&again,
		(struct strew_agent_options){.model = model, .members = 2, .apply = apply}, upper);
	trainer_commits(&trainer, 2);
	worker_holds(&again, 2);
	worker_holds(&sibling, 2);
	worker_holds(&replica, 2);
	worker_stop(&again);
	worker_stop(&sibling);
	worker_stop(&replica);
	trainer_stop(&trainer);
	draft_finish(&draft);
}

static void test_killed_while_idle(void **state)
{
	(void)state;
	kill_one("idle direct", MSG_REGISTER, STREW_APPLY_DIRECT);
	kill_one("idle staged", MSG_REGISTER, STREW_APPLY_STAGED);
}

/* As idle as at its start, when nothing of anybody is mapped. */
static bool is_idle(void)
{
	return broker_fds_now(&one_broker) == one_broker.fds &&
	       broker_memfds_mapped(&one_broker) == 0;
}

static bool is_lost(void)
{
	return broker_group_state(&one_broker, "cleaned") == STREW_GROUP_LOST;
}

static void wait_for(bool (*condition)(void), uint64_t deadline)
{
	while (!condition()) {
		assert_false(deadline_passed(deadline));
		sleep_ms(5);
	}
}

/* A second later the broker has nothing of it, and everybody can see that it is lost. */
static void test_killed_while_idle_is_cleaned_up(void **state)
{
	(void)state;
	for (unsigned i = 0; i < 4; i++) {
		uint64_t deadline;
		struct child child;
		struct draft draft;

		draft_worker(&draft, "cleaned", whole, 1);
		draft.reg.apply = i % 2 ? STREW_APPLY_STAGED : STREW_APPLY_DIRECT;
		child_start(&child, &draft, MSG_REGISTER);
		child_expect(&child, 'r');
		assert_true(broker_fds_now(&one_broker) > one_broker.fds);
		assert_true(broker_memfds_mapped(&one_broker) > 0);
		child_kill(&child);
		deadline = deadline_in_ms(CLEANED_MS);
		wait_for(is_lost, deadline);
		wait_for(is_idle, deadline); /* asks nobody, as an answer takes descriptors */
		draft_finish(&draft);
	}
}

static void test_killed_between_check_and_checked(void **state)
{
	(void)state;
	kill_one("check direct", MSG_CHECK, STREW_APPLY_DIRECT);
	kill_one("check staged", MSG_CHECK, STREW_APPLY_STAGED);
}

/* The only worker: the update aborts, and its place can be taken while it does. */
static void test_the_only_worker_is_killed(void **state)
{
	struct strew_report report;
	struct trainer trainer;
	struct worker again;
	struct child child;
	struct draft draft;

	(void)state;
	draft_worker(&draft, "only", whole, 1);
	start_trainer(&trainer, "only");
	for (uint64_t version = 1; version < 6; version++) {
		child_start(&child, &draft, MSG_CHECK);
		child_expect(&child, 'r');
		publish(&trainer, version, PATIENCE_MS);
		child_expect(&child, 'c');
		child_kill(&child);
		trainer_reports(&trainer, STREW_OUTCOME_ABORTED, "is gone", &report);
		report_group(&report, 0, STREW_OUTCOME_LOST, "is gone");
		strew_report_finish(&report);
		assert_int_equal(broker_group_state(&one_broker, "only"), STREW_GROUP_LOST);
		start_worker(&again, (struct strew_agent_options){.model = "only"}, whole);
		trainer_commits(&trainer, version);
		worker_holds(&again, version);
		worker_stop(&again);
	}
	trainer_stop(&trainer);
	draft_finish(&draft);
}

/* Silence: the group sits out when half the time is over, and what it says later is ignored. */
static void test_a_check_that_is_not_answered(void **state)
{
	struct strew_report report;
	struct trainer trainer;
	struct worker replica;
	struct draft draft;
	struct message message;
	uint64_t update;
	struct raw raw;

	(void)state;
	draft_worker(&draft, "silent", whole, 1);
	raw_open(&raw, &one_broker, ROLE_WORKER);
	draft_register(&raw, &draft);
	/* It has half of what the silent one wants, who so cannot catch up from it. */
	start_worker(
		&replica, (struct strew_agent_options){.model = "silent", .replica = 1}, upper);
	start_trainer(&trainer, "silent");
	publish(&trainer, 1, 400);
	trainer_reports(&trainer, STREW_OUTCOME_SAT_OUT, "deadline", &report);
	report_group(&report, 0, STREW_OUTCOME_SAT_OUT, "deadline");
	report_group(&report, 1, STREW_OUTCOME_COMMITTED, "");
	strew_report_finish(&report);
	worker_holds(&replica, 1);
	raw_answer_check(&raw, 0, "");
	raw_expect(&raw, MSG_DONE, &message);
	assert_int_equal(message.u.done.outcome, STREW_OUTCOME_SAT_OUT);
	assert_int_equal(message.u.done.state, STREW_GROUP_STALE);
	message_finish(&message);
	/* The next time it refuses, then it answers twice, which is once too often and harmless. */
	publish(&trainer, 2, PATIENCE_MS);
	raw_answer_check(&raw, -EIO, "allocation 0 has moved");
	trainer_reports(&trainer, STREW_OUTCOME_SAT_OUT, "allocation 0 has moved", &report);
	strew_report_finish(&report);
	raw_expect(&raw, MSG_DONE, &message);
	message_finish(&message);
	publish(&trainer, 3, PATIENCE_MS);
	raw_answer_check(&raw, 0, "");
	trainer_reports(&trainer, STREW_OUTCOME_COMMITTED, "", &report);
	strew_report_finish(&report);
	raw_expect(&raw, MSG_DONE, &message);
	assert_int_equal(message.u.done.version, 3);
	assert_int_equal(message.u.done.outcome, STREW_OUTCOME_COMMITTED);
	update = message.u.done.update;
	message_finish(&message);
	for (unsigned i = 0; i < 3; i++) {
		message_init(&message, MSG_CHECKED, 0);
		message.u.checked.update = update + i;
		message.u.checked.code = i;
		raw_send(&raw, &message);
	}
	trainer_stop(&trainer);
	worker_stop(&replica);
	raw_close(&raw);
	draft_finish(&draft);
}

/* Withdrawn between check and checked; the answer comes when nothing writes any more. */
static void test_withdrawn_in_the_middle(void **state)
{
	struct strew_report report;
	struct trainer trainer;
	struct message message;
	struct draft draft;
	struct raw raw;

	(void)state;
	draft_worker(&draft, "withdrawn", whole, 1);
	start_trainer(&trainer, "withdrawn");
	raw_open(&raw, &one_broker, ROLE_WORKER);
	draft_register(&raw, &draft);
	publish(&trainer, 1, PATIENCE_MS);
	raw_expect(&raw, MSG_CHECK, &message);
	message_finish(&message);
	message_init(&message, MSG_WITHDRAW, 99);
	raw_send(&raw, &message);
	raw_expect(&raw, MSG_OK, &message);
	assert_int_equal(message.serial, 99);
	message_finish(&message);
	trainer_reports(&trainer, STREW_OUTCOME_ABORTED, "withdrawn", &report);
	strew_report_finish(&report);
	raw_close(&raw);
	trainer_stop(&trainer);
	draft_finish(&draft);
}

/* A member registers while its group's update runs: it takes part from the next one on. */
static void test_registered_in_the_middle(void **state)
{
	struct strew_report report;
	struct worker first, second;
	struct trainer trainer;
	struct message message;
	struct draft draft;
	struct raw raw;

	(void)state;
	start_worker(&first, (struct strew_agent_options){.model = "late", .members = 2}, upper);
	draft_worker(&draft, "late", whole, 1);
	draft.reg.replica = 1;
	raw_open(&raw, &one_broker, ROLE_WORKER);
	draft_register(&raw, &draft);
	start_trainer(&trainer, "late");
	publish(&trainer, 1, PATIENCE_MS);
	raw_expect(&raw, MSG_CHECK, &message);
	start_worker(&second,
		(struct strew_agent_options){.model = "late", .member = 1, .members = 2}, lower);
	message_finish(&message);
	raw_close(&raw);
	trainer_reports(&trainer, STREW_OUTCOME_ABORTED, "", &report);
	strew_report_finish(&report);
	trainer_commits(&trainer, 1);
	worker_holds(&first, 1);
	worker_holds(&second, 1);
	worker_stop(&first);
	worker_stop(&second);
	trainer_stop(&trainer);
	draft_finish(&draft);
}

#define CASE(name) cmocka_unit_test_teardown(name, one_check)

int main(void)
{
	const struct CMUnitTest tests[] = {
		CASE(test_killed_while_idle),
		CASE(test_killed_while_idle_is_cleaned_up),
		CASE(test_killed_between_check_and_checked),
		CASE(test_the_only_worker_is_killed),
		CASE(test_a_check_that_is_not_answered),
		CASE(test_withdrawn_in_the_middle),
		CASE(test_registered_in_the_middle),
	};

	return test_finish(cmocka_run_group_tests(tests, one_start, one_finish), test_fds_at_start);
}
