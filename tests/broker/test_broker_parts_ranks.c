/*
 * Updates in parts by two ranks, at any of three real brokers: they advance together, and
 * when one of them dies in between, the update ends at once.
 */
#include "base/clock.h"
#include "base/util.h"
#include "broker/nodes.h"
#include "broker/subset.h"
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

/* Rank 0 and 1 hold half of "a" each; "b" is rank 0's alone, "c" rank 1's. */
enum { A, B, C, ALL, HELD = 2, WORKERS = 4 };

static uint64_t cols;
static struct rows held[2][HELD], whole[ALL];
/* As bits of what each rank holds: a, b, c. */
static const unsigned parts[ALL][2] = {{1, 1}, {2, 0}, {0, 2}};

static void draw_rows(void)
{
	uint64_t n = 2 + test_random_below(300);
	uint64_t cut = 1 + test_random_below(n - 1);

	cols = 1 + test_random_below(100);
	whole[A] = (struct rows){"a", STREW_F32, n, cols, 0, n};
	whole[B] = (struct rows){"b", STREW_F32, 7, cols, 0, 7};
	whole[C] = (struct rows){"c", STREW_F32, 300, cols, 0, 300};
	held[0][0] = (struct rows){"a", STREW_F32, n, cols, 0, cut};
	held[1][0] = (struct rows){"a", STREW_F32, n, cols, cut, n - cut};
	held[0][1] = whole[B];
	held[1][1] = whole[C];
}

/* Naming a part waits for the other rank, so each starts by itself; in the end at that version. */
struct part_rank {
	struct trainer trainer;
	uint32_t rank;
	unsigned node;
	pthread_t thread;
};

static void *begin(void *data)
{
	struct part_rank *rank = data;

	assert_int_equal(trainer_start(&rank->trainer, &nodes[rank->node],
				 (struct strew_trainer_options){
					 .model = "p", .rank = rank->rank, .ranks = 2},
				 held[rank->rank], HELD),
		0);
	for (uint32_t i = 0; i < ALL; i++) {
		assert_int_equal(name_subset(&rank->trainer, parts[i][rank->rank]), i + 1);
	}
	return NULL;
}

static void begin_both(struct part_rank ranks[2], unsigned first, unsigned second)
{
	for (uint32_t i = 0; i < 2; i++) {
		ranks[i].rank = i;
		ranks[i].node = i ? second : first;
		assert_int_equal(pthread_create(&ranks[i].thread, NULL, begin, &ranks[i]), 0);
	}
	for (uint32_t i = 0; i < 2; i++) {
		assert_int_equal(pthread_join(ranks[i].thread, NULL), 0);
	}
}

static void send_part(struct part_rank *rank, unsigned part, uint64_t number)
{
	write_subset(&rank->trainer, number, parts[part][rank->rank]);
	assert_int_equal(strew_trainer_put(rank->trainer.trainer, part + 1, NULL), 0);
}

static void released(struct part_rank *rank, int code)
{
	int rc = strew_trainer_wait_released(rank->trainer.trainer, PATIENCE_MS);

	if (rc != code) {
		print_error("rank %u: %d, %s\n", rank->rank, rc, strew_error());
	}
	assert_int_equal(rc, code);
}

/* Two at each of two brokers, one of them staged. */
static void start_workers(struct worker workers[WORKERS])
{
	for (unsigned i = 0; i < WORKERS; i++) {
		assert_int_equal(
			worker_start(&workers[i], &nodes[i / 2],
				(struct strew_agent_options){.model = "p",
					.replica = i,
					.apply = i % 2 ? STREW_APPLY_STAGED : STREW_APPLY_DIRECT},
				whole, ALL),
			0);
	}
}

static void whole_version(
	struct part_rank ranks[2], const struct worker workers[WORKERS], uint64_t number)
{
	struct strew_report report;

	for (uint32_t i = 0; i < 2; i++) {
		trainer_write(&ranks[i].trainer, number);
		assert_int_equal(strew_trainer_publish(
					 ranks[i].trainer.trainer, number, NULL, 0, PATIENCE_MS),
			0);
	}
	for (uint32_t i = 0; i < 2; i++) {
		trainer_reports(&ranks[i].trainer, STREW_OUTCOME_COMMITTED, "", &report);
		strew_report_finish(&report);
	}
	for (unsigned i = 0; i < WORKERS; i++) {
		worker_holds(&workers[i], number);
	}
}

static void stop(struct part_rank *rank)
{
	trainer_stop(&rank->trainer);
}

static const unsigned places[][2] = {{0, 0}, {0, 1}, {1, 0}, {1, 1}, {1, 2}};

static void test_ranks_advance_together(void **state)
{
	(void)state;
	for (size_t p = 0; p < ARRAY_LEN(places); p++) {
		struct worker workers[WORKERS];
		struct part_rank ranks[2];
		uint64_t number = ++version;

		draw_rows();
		begin_both(ranks, places[p][0], places[p][1]);
		start_workers(workers);
		whole_version(ranks, workers, number);
		for (unsigned turn = 0; turn < 3; turn++) {
			struct strew_report report;

			number++;
			for (uint32_t i = 0; i < 2; i++) {
				assert_int_equal(strew_trainer_open_parts(ranks[i].trainer.trainer,
							 number, 0, PATIENCE_MS),
					0);
			}
			for (unsigned k = 0; k < ALL; k++) {
				unsigned part = (k + turn) % ALL;
				unsigned ahead = (unsigned)test_random_below(2);

				send_part(&ranks[ahead], part, number);
				/* Alone it goes nowhere; another one is refused, by itself. */
				assert_int_equal(strew_trainer_wait_released(
							 ranks[ahead].trainer.trainer, 20),
					-ETIMEDOUT);
				if (k) {
					send_part(&ranks[1 - ahead], (part + 1) % ALL, number);
					released(&ranks[1 - ahead], -EINVAL);
				}
				send_part(&ranks[1 - ahead], part, number);
				released(&ranks[0], 0);
				released(&ranks[1], 0);
			}
			for (uint32_t i = 0; i < 2; i++) {
				write_subset(&ranks[i].trainer, number, 0);
				assert_int_equal(
					strew_trainer_close_parts(ranks[i].trainer.trainer), 0);
			}
			for (uint32_t i = 0; i < 2; i++) {
				trainer_reports(
					&ranks[i].trainer, STREW_OUTCOME_COMMITTED, "", &report);
				assert_int_equal(report.version, number);
				assert_int_equal(report.tensors, ALL);
				strew_report_finish(&report);
			}
			for (unsigned i = 0; i < WORKERS; i++) {
				worker_holds(&workers[i], number);
			}
		}
		version = number + 1;
		whole_version(ranks, workers, version);
		for (unsigned i = 0; i < WORKERS; i++) {
			worker_stop(&workers[i]);
		}
		stop(&ranks[0]);
		stop(&ranks[1]);
		broker_wait_no_ranks(&nodes[0]);
	}
}

/* Rank 1 in a process of its own: takes part in a whole version and then in so many puts. */
static void play_rank(int said, unsigned node, unsigned puts)
{
	struct part_rank rank = {.rank = 1, .node = node};
	struct strew_report report;

	begin(&rank);
	trainer_write(&rank.trainer, version);
	assert_int_equal(
		strew_trainer_publish(rank.trainer.trainer, version, NULL, 0, PATIENCE_MS), 0);
	trainer_reports(&rank.trainer, STREW_OUTCOME_COMMITTED, "", &report);
	assert_int_equal(
		strew_trainer_open_parts(rank.trainer.trainer, version + 1, 0, 4 * PATIENCE_MS), 0);
	for (unsigned part = 0; part < puts; part++) {
		send_part(&rank, part, version + 1);
		released(&rank, 0);
	}
	if (write(said, "p", 1) != 1) {
		_exit(1);
	}
	pause();
	_exit(0);
}

static pid_t fork_rank(unsigned node, unsigned puts, int *ret_said)
{
	int pipes[2];
	pid_t pid;

	assert_int_equal(pipe2(pipes, O_CLOEXEC), 0);
	pid = fork();
	assert_true(pid >= 0);
	if (pid == 0) {
		/* A failed assertion must not go on with the parent's tests. */
		setenv("CMOCKA_TEST_ABORT", "1", 1);
		alarm(60);
		close(pipes[0]);
		play_rank(pipes[1], node, puts);
	}
	close(pipes[1]);
	*ret_said = pipes[0];
	return pid;
}

static void expect_ended(struct part_rank *left)
{
	uint64_t before = clock_ns();
	struct strew_report report;

	trainer_reports(&left->trainer, STREW_OUTCOME_ABORTED, "trainer rank 1", &report);
	/* At once, not at the update's deadline. */
	assert_true(clock_ns() - before < PATIENCE_MS * UINT64_C(500000));
	assert_non_null(strstr(report.text, "was lost"));
	assert_int_equal(report.version, version + 1);
	for (uint32_t i = 0; i < WORKERS; i++) {
		report_group(&report, i, i % 2 ? STREW_OUTCOME_ABORTED : STREW_OUTCOME_DIRTY, "");
	}
	strew_report_finish(&report);
	assert_int_equal(strew_trainer_wait_released(left->trainer.trainer, 0), 0);
	assert_int_equal(strew_trainer_put(left->trainer.trainer, 3, NULL), -EINVAL);
}

/* Killed behind its first or second put; the other rank has put the next one, or has not. */
static void kill_between(unsigned first, unsigned second, unsigned puts, bool ahead)
{
	struct worker workers[WORKERS];
	struct part_rank ranks[2] = {{.rank = 0, .node = first}, {.rank = 1, .node = second}};
	struct strew_report report;
	char what = 0;
	int said;
	pid_t pid;

	draw_rows();
	version++;
	pid = fork_rank(second, puts, &said);
	start_workers(workers);
	begin(&ranks[0]);
	trainer_write(&ranks[0].trainer, version);
	assert_int_equal(
		strew_trainer_publish(ranks[0].trainer.trainer, version, NULL, 0, PATIENCE_MS), 0);
	trainer_reports(&ranks[0].trainer, STREW_OUTCOME_COMMITTED, "", &report);
	strew_report_finish(&report);
	assert_int_equal(
		strew_trainer_open_parts(ranks[0].trainer.trainer, version + 1, 0, 4 * PATIENCE_MS),
		0);
	for (unsigned part = 0; part < puts; part++) {
		send_part(&ranks[0], part, version + 1);
		released(&ranks[0], 0);
	}
	if (ahead) {
		send_part(&ranks[0], puts, version + 1);
	}
	assert_int_equal(read(said, &what, 1), 1);
	assert_int_equal(what, 'p');
	/* Every node has moved it, so that all direct groups are touched. */
	broker_wait_ranks(&nodes[0], 2, "putting");
	kill(pid, SIGKILL);
	assert_int_equal(waitpid(pid, NULL, 0), pid);
	close(said);
	expect_ended(&ranks[0]);
	for (unsigned i = 1; i < WORKERS; i += 2) {
		worker_holds(&workers[i], version);
	}
	/* Its place is taken again; the next whole version heals all. */
	stop(&ranks[0]);
	broker_wait_no_ranks(&nodes[0]);
	begin_both(ranks, first, second);
	whole_version(ranks, workers, ++version);
	for (unsigned i = 0; i < WORKERS; i++) {
		worker_stop(&workers[i]);
	}
	stop(&ranks[0]);
	stop(&ranks[1]);
	broker_wait_no_ranks(&nodes[0]);
}

static void test_a_rank_dies_between_two_puts(void **state)
{
	(void)state;
	for (size_t p = 0; p < ARRAY_LEN(places); p++) {
		for (unsigned puts = 1; puts < 3; puts++) {
			kill_between(places[p][0], places[p][1], puts, (p + puts) % 2);
		}
	}
}

static void open_both(struct part_rank ranks[2], uint64_t number)
{
	for (uint32_t i = 0; i < 2; i++) {
		assert_int_equal(
			strew_trainer_open_parts(ranks[i].trainer.trainer, number, 0, PATIENCE_MS),
			0);
	}
}

static void part_of_both(struct part_rank ranks[2], unsigned part, uint64_t number)
{
	send_part(&ranks[0], part, number);
	send_part(&ranks[1], part, number);
	released(&ranks[0], 0);
	released(&ranks[1], 0);
}

enum { NOTHING_PUT, BETWEEN, OTHER_AHEAD, SELF_AHEAD, TIMES };

static void expect_given_up(const struct part_rank *rank, uint32_t who, bool touched)
{
	uint64_t before = clock_ns();
	struct strew_report report;
	char text[32];
	int rc;

	snprintf(text, sizeof(text), "trainer rank %u", who);
	/* What is lent is given back first; or the put and the end have crossed. */
	rc = strew_trainer_wait_released(rank->trainer.trainer, PATIENCE_MS);
	assert_true(rc == 0 || rc == -ECANCELED);
	trainer_reports((struct trainer *)&rank->trainer, STREW_OUTCOME_ABORTED, text, &report);
	assert_true(clock_ns() - before < PATIENCE_MS * UINT64_C(500000));
	assert_non_null(strstr(report.text, "gave it up: no memory"));
	for (uint32_t i = 0; touched && i < WORKERS; i++) {
		report_group(&report, i, i % 2 ? STREW_OUTCOME_ABORTED : STREW_OUTCOME_DIRTY, "");
	}
	strew_report_finish(&report);
}

/* One of two gives the version up, at once for both; the same version is put again and commits. */
static void give_up(struct part_rank ranks[2], const struct worker workers[WORKERS], uint32_t who,
	unsigned when)
{
	struct part_rank *self = &ranks[who], *other = &ranks[1 - who];
	uint64_t number = version + 1;

	open_both(ranks, number);
	if (when == NOTHING_PUT) {
		send_part(other, 0, number);
		broker_wait_ranks(&nodes[0], 2, "waiting for ranks");
	} else {
		part_of_both(ranks, 0, number);
		/* Every node has moved it, so that all direct groups are touched. */
		broker_wait_ranks(&nodes[0], 2, "putting");
	}
	if (when == OTHER_AHEAD || when == SELF_AHEAD) {
		send_part(when == SELF_AHEAD ? self : other, 1, number);
	}
	assert_int_equal(strew_trainer_cancel_parts(self->trainer.trainer, "no memory"),
		when == NOTHING_PUT ? -ENOENT : 0);
	expect_given_up(other, who, when != NOTHING_PUT);
	if (when != NOTHING_PUT) {
		expect_given_up(self, who, true);
	}
	assert_int_equal(strew_trainer_cancel_parts(self->trainer.trainer, NULL), -EINVAL);
	for (unsigned i = 1; i < WORKERS; i += 2) {
		worker_holds(&workers[i], version);
	}
	open_both(ranks, number);
	for (unsigned part = 0; part < ALL; part++) {
		part_of_both(ranks, part, number);
	}
	for (uint32_t i = 0; i < 2; i++) {
		assert_int_equal(strew_trainer_close_parts(ranks[i].trainer.trainer), 0);
	}
	for (uint32_t i = 0; i < 2; i++) {
		struct strew_report report;

		trainer_reports(&ranks[i].trainer, STREW_OUTCOME_COMMITTED, "", &report);
		strew_report_finish(&report);
		assert_int_equal(
			strew_trainer_cancel_parts(ranks[i].trainer.trainer, NULL), -EINVAL);
	}
	version = number;
	for (unsigned i = 0; i < WORKERS; i++) {
		worker_holds(&workers[i], version);
	}
}

static void test_a_rank_gives_it_up(void **state)
{
	(void)state;
	for (size_t p = 0; p < ARRAY_LEN(places); p++) {
		struct worker workers[WORKERS];
		struct part_rank ranks[2];

		draw_rows();
		begin_both(ranks, places[p][0], places[p][1]);
		start_workers(workers);
		whole_version(ranks, workers, ++version);
		for (unsigned when = 0; when < TIMES; when++) {
			give_up(ranks, workers, (p + when) % 2, when);
			give_up(ranks, workers, (p + when + 1) % 2, when);
		}
		for (unsigned i = 0; i < WORKERS; i++) {
			worker_stop(&workers[i]);
		}
		stop(&ranks[0]);
		stop(&ranks[1]);
		broker_wait_no_ranks(&nodes[0]);
	}
}

#define CASE(name) cmocka_unit_test_teardown(name, nodes_check)

int main(void)
{
	const struct CMUnitTest tests[] = {
		CASE(test_ranks_advance_together),
		CASE(test_a_rank_dies_between_two_puts),
		CASE(test_a_rank_gives_it_up),
	};

	return test_finish(
		cmocka_run_group_tests(tests, nodes_start, nodes_finish), test_fds_at_start);
}
