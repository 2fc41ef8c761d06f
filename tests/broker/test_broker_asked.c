/* What a broker answers to those who only look: progress. */
#include "base/clock.h"
#include "base/util.h"
#include "broker/one.h"
#include "broker/peers.h"
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static const struct rows whole[] = {{"w", STREW_F32, 16, 32, 0, 16}};
#define WHOLE_BYTES (16u * 32u * 4u)

/* What is said of that model. */
static struct progress progress_of(struct raw *raw, const char *model)
{
	struct progress found = {.stage = "not there"};
	struct message message;

	message_init(&message, MSG_PROGRESS, ++raw->serial);
	raw_send(raw, &message);
	raw_expect(raw, MSG_PROGRESS_REPLY, &message);
	assert_true(message.serial == raw->serial);
	for (size_t i = 0; i < message.u.progress_reply.nmodels; i++) {
		if (strcmp(message.u.progress_reply.models[i].model, model) == 0) {
			found = message.u.progress_reply.models[i];
		}
	}
	message_finish(&message);
	return found;
}

/* Waits until that is said of the model; what else is said with it. */
static struct progress stage_is(struct raw *raw, const char *model, const char *stage,
	uint64_t version, uint64_t committed, const char *awaited)
{
	uint64_t deadline = deadline_in_ms(PATIENCE_MS);
	struct progress said;

	for (;;) {
		said = progress_of(raw, model);
		if (strcmp(said.stage, stage) == 0 && said.version == version &&
			said.committed == committed && strcmp(said.awaited, awaited) == 0) {
			return said;
		}
		if (deadline_passed(deadline)) {
			fail_msg("stage %s, version %llu, committed %llu, awaited \"%s\"",
				said.stage, (unsigned long long)said.version,
				(unsigned long long)said.committed, said.awaited);
		}
		sleep_ms(2);
	}
}

/* A played worker has found nothing changed. */
static void send_checked(struct raw *raw, struct message *check)
{
	struct message message;

	message_init(&message, MSG_CHECKED, 0);
	message.u.checked.update = check->u.check.update;
	message.u.checked.code = WIRE_OK;
	raw_send(raw, &message);
}

static void start_trainer(struct trainer *trainer, const char *model)
{
	struct strew_trainer_options options = {.model = model, .ranks = 1, .timeout_ms = 3000};

	assert_int_equal(trainer_start(trainer, &one_broker, options, whole, 1), 0);
}

/* Every stage of an update whose worker takes its time, and its end. */
static void test_progress(void **state)
{
	(void)state;
	for (int apply = STREW_APPLY_DIRECT; apply <= STREW_APPLY_STAGED; apply++) {
		const char *model = apply == STREW_APPLY_DIRECT ? "slow direct" : "slow staged";
		struct raw worker, observer;
		struct strew_report report;
		struct trainer trainer;
		struct message message;
		struct progress said;
		struct draft draft;
		char awaited[64];

		raw_open(&observer, &one_broker, ROLE_OBSERVER);
		draft_worker(&draft, model, whole, 1);
		draft.reg.gate = STREW_GATE_HELD;
		draft.reg.apply = (uint32_t)apply;
		raw_open(&worker, &one_broker, ROLE_WORKER);
		draft_register(&worker, &draft);
		start_trainer(&trainer, model);
		said = stage_is(&observer, model, "idle", 0, 0, "");
		trainer_write(&trainer, 5);
		assert_int_equal(strew_trainer_publish(trainer.trainer, 5, NULL, 0, 1000), 0);
		raw_expect(&worker, MSG_CHECK, &message);
		snprintf(awaited, sizeof(awaited), "process %d to look at its memory",
			(int)getpid());
		said = stage_is(&observer, model, "accepting", 5, 0, awaited);
		assert_true(said.total == 0 && said.done == 0);
		send_checked(&worker, &message);
		message_finish(&message);
		raw_expect(&worker, MSG_HOLD, &message);
		message_finish(&message);
		snprintf(awaited, sizeof(awaited), "the gate of process %d", (int)getpid());
		said = stage_is(&observer, model,
			apply == STREW_APPLY_DIRECT ? "accepting" : "moving", 5, 0, awaited);
		/* A staged group has received it all when it waits for its gate. */
		assert_int_equal(said.total, apply == STREW_APPLY_STAGED ? WHOLE_BYTES : 0);
		assert_int_equal(said.done, said.total);
		trainer_reports(&trainer, STREW_OUTCOME_ABORTED, "gate", &report);
		strew_report_finish(&report);
		said = stage_is(&observer, model, "idle", 5, 0, "");
		assert_int_equal(said.outcome, STREW_OUTCOME_ABORTED);
		assert_non_null(strstr(said.text, "gate"));
		trainer_stop(&trainer);
		raw_close(&worker);
		raw_close(&observer);
		draft_finish(&draft);
	}
}

#define CASE(name) cmocka_unit_test_teardown(name, one_check)

int main(void)
{
	const struct CMUnitTest tests[] = {
		CASE(test_progress),
	};

	return test_finish(cmocka_run_group_tests(tests, one_start, one_finish), test_fds_at_start);
}
