/*
 * A broker that has made many communicators starts itself anew by exec: its process does not end,
 * and yet those who do not come back must have their memory at once.
 */
#include "base/clock.h"
#include "broker/joiner.h"
#include "broker/nodes.h"
#include <errno.h>
#include <string.h>

#define QUICK_MS 5000

static struct broker lead;
static char address[32];
static const struct rows whole[] = {{"w", STREW_F32, 16, 32, 0, 16}};

static int start(void **state)
{
	const char *args[] = {"--listen", address, NULL};

	(void)state;
	free_address(address);
	broker_start(&lead, args);
	return 0;
}

static int finish(void **state)
{
	(void)state;
	broker_count_fds(&lead);
	broker_finish(&lead);
	return 0;
}

static void start_worker(struct worker *worker, uint32_t replica, int serve_thread)
{
	struct strew_agent_options options = {.model = "m",
		.replica = replica,
		.serve_thread = serve_thread,
		.gate = STREW_GATE_LIVE,
		.timeout_ms = QUICK_MS};

	assert_int_equal(worker_start(worker, &lead, options, whole, 1), 0);
}

static void start_ranks(struct trainer trainers[2])
{
	struct starting starts[2];

	/* Who came last is dropped first, and so hears nothing of the end of what it publishes. */
	for (uint32_t i = 2; i-- > 0;) {
		starts[i] = (struct starting){.trainer = &trainers[i],
			.broker = &lead,
			.options = {.model = "m", .rank = i, .ranks = 2, .timeout_ms = QUICK_MS},
			.rows = whole,
			.nrows = 1};
		assert_int_equal(
			pthread_create(&starts[i].thread, NULL, rank_starts, &starts[i]), 0);
		if (i) {
			broker_wait_ranks(&lead, 1, "idle");
		}
	}
	rank_started(&starts[0], 0, "");
	rank_started(&starts[1], 0, "");
}

static void test_memory_is_ones_own(void **state)
{
	struct trainer trainers[2];
	struct worker workers[3];
	uint64_t since;

	(void)state;
	for (uint32_t i = 0; i < 3; i++) {
		start_worker(&workers[i], i, i == 1);
	}
	start_ranks(trainers);
	/* Lent to an update that waits for the other rank, and so is none that is waited for. */
	trainer_write(&trainers[0], 1);
	assert_int_equal(strew_trainer_publish(trainers[0].trainer, 1, NULL, 0, 600000), 0);
	broker_wait_ranks(&lead, 2, "waiting for ranks");
	lead_starts_anew(&lead, address);
	for (uint32_t i = 0; i < 3; i++) {
		worker_event(&workers[i], STREW_EVENT_LOST, STREW_OUTCOME_NONE);
	}
	since = clock_ns();
	/* What it has published is lost with the connection; its memory is not lent any more. */
	assert_int_equal(strew_trainer_wait_released(trainers[0].trainer, QUICK_MS), -ECONNRESET);
	assert_int_equal(strew_trainer_wait_released(trainers[0].trainer, QUICK_MS), 0);
	assert_int_equal(strew_agent_withdraw(workers[0].agent), 0);
	assert_int_equal(strew_agent_withdraw(workers[1].agent), 0);
	for (uint32_t i = 0; i < 3; i++) {
		worker_stop(&workers[i]);
	}
	trainer_stop(&trainers[0]);
	trainer_stop(&trainers[1]);
	assert_in_range((clock_ns() - since) / 1000000u, 0, QUICK_MS - 1);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_memory_is_ones_own),
	};

	return test_finish(cmocka_run_group_tests(tests, start, finish), test_fds_at_start);
}
