/* Processes that register and never come to an end take no more than there is room for. */
#include "broker/one.h"
#include "broker/peers.h"
#include <errno.h>
#include <string.h>

static const struct rows whole[] = {{"w", STREW_F32, 16, 32, 0, 16}};

static void begin_only(struct raw *raw)
{
	struct message message;

	raw_open(raw, &one_broker, ROLE_TRAINER);
	message_init(&message, MSG_TRAINER, 0);
	strcpy(message.u.trainer.model, "begun");
	message.u.trainer.ranks = 1;
	raw_send(raw, &message);
}

static void test_unsealed(void **state)
{
	static struct raw raws[LIMIT_SESSIONS];
	struct worker worker;
	struct raw raw;
	struct draft draft;
	int rc;

	(void)state;
	for (unsigned i = 0; i < LIMIT_SESSIONS; i++) {
		begin_only(&raws[i]);
	}
	sleep_ms(100);
	/* One more is refused, at its seal, and may ask again. */
	draft_worker(&draft, "late", whole, 1);
	raw_open(&raw, &one_broker, ROLE_WORKER);
	draft_refused(&raw, &draft, -E2BIG, "256 workers and trainers");
	raw_close(&raws[0]);
	sleep_ms(100);
	draft_register(&raw, &draft);
	draft_finish(&draft);
	raw_close(&raw);
	for (unsigned i = 1; i < LIMIT_SESSIONS; i++) {
		raw_close(&raws[i]);
	}
	for (int tries = 0; tries < 100; tries++) {
		rc = worker_start(&worker, &one_broker,
			(struct strew_agent_options){.model = "later"}, whole, 1);
		worker_stop(&worker);
		if (rc != -E2BIG) {
			break;
		}
		sleep_ms(20);
	}
	assert_int_equal(rc, 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_teardown(test_unsealed, one_check),
	};

	return test_finish(cmocka_run_group_tests(tests, one_start, one_finish), test_fds_at_start);
}
