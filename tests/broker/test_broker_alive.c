/*
 * Brokers that fall silent: a played joiner at a real lead, a played lead before a real broker,
 * and a real broker that is stopped and continued. All three at once, as each takes
 * LIMIT_SILENT_MS.
 */
#include "base/clock.h"
#include "broker/joiner.h"
#include "broker/leader.h"
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>

#define SLACK_MS 2500

/* What a silent peer hears until the connection ends. */
struct silence {
	struct raw *raw;
	pthread_t thread;
	unsigned alive, other;
	int64_t first_ms, end_ms; /* after its last word */
	int rc;
};

static int64_t since_ms(uint64_t start)
{
	return (int64_t)((clock_ns() - start) / 1000000u);
}

static void *keep_silent(void *data)
{
	struct silence *silence = data;
	uint64_t start = clock_ns();
	uint64_t deadline = deadline_in_ms(LIMIT_SILENT_MS + 2 * SLACK_MS);

	for (;;) {
		struct message message;
		struct error err;

		silence->rc = conn_receive_wait(silence->raw->conn, deadline, &message, &err);
		if (silence->rc != 1) {
			break;
		}
		if (message.type == MSG_ALIVE) {
			silence->first_ms = silence->alive++ ? silence->first_ms : since_ms(start);
		} else {
			silence->other++;
		}
		message_finish(&message);
	}
	silence->end_ms = since_ms(start);
	return NULL;
}

static void begin_silence(struct silence *silence, struct raw *raw)
{
	struct message alive;

	*silence = (struct silence){.raw = raw};
	message_init(&alive, MSG_ALIVE, 0);
	raw_send(raw, &alive);
	assert_int_equal(pthread_create(&silence->thread, NULL, keep_silent, silence), 0);
}

/* It was told in time that the other is there, and given up in time. */
static void end_silence(struct silence *silence)
{
	pthread_join(silence->thread, NULL);
	assert_int_equal(silence->rc, -ECONNRESET);
	assert_in_range(silence->first_ms, 0, LIMIT_ALIVE_MS + SLACK_MS);
	assert_in_range(silence->alive, LIMIT_SILENT_MS / LIMIT_ALIVE_MS - 2,
		LIMIT_SILENT_MS / LIMIT_ALIVE_MS + 1);
	assert_int_equal(silence->other, 0);
	assert_in_range(silence->end_ms, LIMIT_SILENT_MS - 100, LIMIT_SILENT_MS + SLACK_MS);
}

static const struct rows whole[] = {{"w", STREW_F32, 16, 32, 0, 16}};

/* A lead and a broker that has joined it, with a trainer here and a worker there. */
struct pair {
	struct broker lead, node;
	struct trainer trainer;
	struct worker worker;
	char address[32];
};

static void start_pair(struct pair *pair)
{
	const struct strew_trainer_options trainer = {.model = "m"};
	const struct strew_agent_options worker = {.model = "m"};

	free_address(pair->address);
	broker_start(&pair->lead, (const char *[]){"--listen", pair->address, NULL});
	broker_start(&pair->node, (const char *[]){"--join", pair->address, NULL});
	broker_wait_brokers(&pair->lead, 2);
	assert_int_equal(worker_start(&pair->worker, &pair->node, worker, whole, 1), 0);
	assert_int_equal(trainer_start(&pair->trainer, &pair->lead, trainer, whole, 1), 0);
	trainer_commits(&pair->trainer, 1);
	worker_holds(&pair->worker, 1);
}

static void stop_pair(struct pair *pair)
{
	trainer_stop(&pair->trainer);
	worker_stop(&pair->worker);
	broker_finish(&pair->node);
	broker_finish(&pair->lead);
}

static void test_silence(void **state)
{
	struct silence at_lead, at_node;
	struct raw link, link_data, data;
	struct broker lead, node;
	struct joiner joiner;
	struct pair pair = {0};
	char address[32];

	(void)state;
	memset(&lead, 0, sizeof(lead));
	memset(&node, 0, sizeof(node));
	start_pair(&pair);
	free_address(address);
	broker_start(&lead, (const char *[]){"--listen", address, "--verbose", NULL});
	leader_start(&node);
	joiner_stands(&joiner, &data, address);
	broker_wait_brokers(&lead, 2);
	leader_stands(&link, &link_data, 1);

	assert_int_equal(kill(pair.node.pid, SIGSTOP), 0);
	begin_silence(&at_lead, &joiner.raw);
	begin_silence(&at_node, &link);
	end_silence(&at_lead);
	end_silence(&at_node);

	/* The lead goes on alone, the broker joins again, and the stopped one comes back by itself.
	 */
	broker_wait_brokers(&lead, 1);
	assert_true(broker_said(&lead, "it was not heard for 15 s"));
	raw_close(&link);
	raw_close(&link_data);
	leader_join(&link);
	broker_wait_brokers(&pair.lead, 1);
	assert_int_equal(kill(pair.node.pid, SIGCONT), 0);
	broker_wait_brokers(&pair.lead, 2);
	trainer_commits(&pair.trainer, 2);
	worker_holds(&pair.worker, 2);

	raw_close(&link);
	raw_close(&data);
	raw_close(&joiner.raw);
	leader_finish(&node);
	broker_finish(&lead);
	stop_pair(&pair);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_silence),
	};

	return TEST_RUN(tests);
}
