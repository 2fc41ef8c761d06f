/* What is published and does not fit: named in the report, and workers' memory untouched. */
#include "base/util.h"
#include "broker/one.h"
#include "broker/peers.h"
#include <errno.h>
#include <signal.h>
#include <string.h>

static const struct rows whole[] = {{"w", STREW_F32, 16, 32, 0, 16}};
static const struct rows upper[] = {{"w", STREW_F32, 16, 32, 0, 8}};
static const struct rows lower[] = {{"w", STREW_F32, 16, 32, 8, 8}};
static const struct rows both[] = {{"w", STREW_F32, 16, 32, 0, 16}, {"b", STREW_F32, 4, 32, 0, 4}};

static void start_worker(struct worker *worker, struct strew_agent_options options,
	const struct rows *rows, size_t nrows)
{
	int rc = worker_start(worker, &one_broker, options, rows, nrows);

	if (rc) {
		print_error("%s\n", strew_error());
	}
	assert_int_equal(rc, 0);
}

static void start_trainer(
	struct trainer *trainer, const char *model, const struct rows *rows, size_t nrows)
{
	int rc = trainer_start(
		trainer, &one_broker, (struct strew_trainer_options){.model = model}, rows, nrows);

	if (rc) {
		print_error("%s\n", strew_error());
	}
	assert_int_equal(rc, 0);
}

static void publish(struct trainer *trainer, uint64_t version, unsigned flags)
{
	trainer_write(trainer, version);
	assert_int_equal(
		strew_trainer_publish(trainer->trainer, version, NULL, flags, PATIENCE_MS), 0);
}

static void test_versions(void **state)
{
	static const uint64_t refused[] = {5, 4, 1};
	struct strew_report report;
	struct trainer trainer;
	struct worker worker;

	(void)state;
	start_worker(&worker, (struct strew_agent_options){.model = "versions"}, whole, 1);
	start_trainer(&trainer, "versions", whole, 1);
	assert_int_equal(trainer_publish(&trainer, 0, 0, 1000, &report), -EINVAL);
	worker_is_poisoned(&worker);
	trainer_commits(&trainer, 5);
	for (size_t i = 0; i < ARRAY_LEN(refused); i++) {
		assert_int_equal(trainer_publish(&trainer, refused[i], 0, 1000, &report), -ESTALE);
		assert_non_null(strstr(strew_error(), "5"));
		worker_holds(&worker, 5);
	}
	trainer_commits(&trainer, 6);
	/* Another trainer knows no more than the broker: the version stays. */
	trainer_stop(&trainer);
	start_trainer(&trainer, "versions", both, 2);
	assert_int_equal(trainer_publish(&trainer, 6, 0, 1000, &report), -ESTALE);
	trainer_commits(&trainer, (uint64_t)1 << 63);
	worker_holds(&worker, (uint64_t)1 << 63);
	trainer_stop(&trainer);
	worker_stop(&worker);
}

/* The largest number means "written in part" inside the broker; nobody may publish it. */
static void test_the_largest_version(void **state)
{
	struct message message;
	struct trainer trainer;
	struct worker worker;
	struct draft draft;
	struct raw raw;

	(void)state;
	start_worker(&worker, (struct strew_agent_options){.model = "largest"}, whole, 1);
	draft_trainer(&draft, "largest", 0, whole, 1);
	raw_open(&raw, &one_broker, ROLE_TRAINER);
	draft_register(&raw, &draft);
	message_init(&message, MSG_PUBLISH, 30);
	message.u.publish.version = UINT64_MAX;
	raw_send(&raw, &message);
	raw_expect_error(&raw, -ERANGE, "version");
	raw_close(&raw);
	draft_finish(&draft);
	worker_is_poisoned(&worker);
	start_trainer(&trainer, "largest", whole, 1);
	trainer_commits(&trainer, 1);
	trainer_stop(&trainer);
	worker_stop(&worker);
}

static void test_requests_that_make_no_sense(void **state)
{
	struct msg_publish wrong[] = {{.version = 0}, {.version = 1, .flags = 8},
		{.version = 1, .flags = ~0u}, {.version = 1, .timeout_ms = LIMIT_UPDATE_MAX_MS + 1},
		{.version = 1, .timeout_ms = UINT32_MAX}};
	static const int codes[] = {-ESTALE, -ENOTSUP, -ENOTSUP, -ERANGE, -ERANGE};
	struct message message;
	struct draft draft;
	struct raw raw;

	(void)state;
	draft_trainer(&draft, "senseless", 0, whole, 1);
	raw_open(&raw, &one_broker, ROLE_TRAINER);
	draft_register(&raw, &draft);
	for (size_t i = 0; i < ARRAY_LEN(wrong); i++) {
		message_init(&message, MSG_PUBLISH, 30 + i);
		message.u.publish = wrong[i];
		raw_send(&raw, &message);
		raw_expect_error(&raw, codes[i], i ? "publish" : "version 0");
	}
	/* Twice at once: the second is refused, and the first reported when it is given up. */
	for (unsigned i = 0; i < 2; i++) {
		message_init(&message, MSG_PUBLISH, 40 + i);
		message.u.publish =
			(struct msg_publish){.version = 1, .word = 7, .timeout_ms = 300};
		raw_send(&raw, &message);
		if (i == 0) {
			raw_expect(&raw, MSG_OK, &message);
			message_finish(&message);
		} else {
			raw_expect_error(&raw, -EBUSY, "version 1");
		}
	}
	raw_expect(&raw, MSG_RELEASED, &message);
	message_finish(&message);
	raw_expect(&raw, MSG_REPORT, &message);
	assert_int_equal(message.u.report.outcome, STREW_OUTCOME_ABORTED);
	assert_non_null(strstr(message.u.report.text, "rank 0"));
	message_finish(&message);
	raw_close(&raw);
	draft_finish(&draft);
}

/* What the trainer has of "w" is not what the worker wants. */
static void misfit(const struct rows *has, enum strew_apply apply)
{
	struct strew_report report;
	struct trainer trainer;
	struct worker worker, other;

	start_worker(&worker,
		(struct strew_agent_options){.model = "misfit", .replica = 1, .apply = apply},
		whole, 1);
	start_trainer(&trainer, "misfit", has, 1);
	publish(&trainer, 1, 0);
	trainer_reports(&trainer, STREW_OUTCOME_ABORTED, "tensor w", &report);
	report_group(&report, 1, STREW_OUTCOME_ABORTED, "tensor w");
	strew_report_finish(&report);
	worker_is_poisoned(&worker);
	/* Beside a replica that fits it is no worse, unless it is all or none. */
	start_worker(
		&other, (struct strew_agent_options){.model = "misfit", .apply = apply}, has, 1);
	publish(&trainer, 2, STREW_PUBLISH_SCOPE_ALL);
	trainer_reports(&trainer, STREW_OUTCOME_ABORTED, "scope=all", &report);
	strew_report_finish(&report);
	worker_is_poisoned(&other);
	publish(&trainer, 2, 0);
	trainer_reports(&trainer, STREW_OUTCOME_SAT_OUT, "w", &report);
	report_group(&report, 1, STREW_OUTCOME_SAT_OUT, "tensor w");
	report_group(&report, 0, STREW_OUTCOME_COMMITTED, "");
	strew_report_finish(&report);
	worker_is_poisoned(&worker);
	worker_holds(&other, 2);
	worker_stop(&worker);
	worker_stop(&other);
	trainer_stop(&trainer);
}

static void test_shapes_and_types_that_do_not_fit(void **state)
{
	static const struct rows narrow[] = {{"w", STREW_F32, 16, 16, 0, 16}};
	static const struct rows flat[] = {{"w", STREW_F32, 8, 64, 0, 8}};
	static const struct rows integers[] = {{"w", STREW_I32, 16, 32, 0, 16}};
	static const struct rows *const has[] = {narrow, flat, integers};
	struct message reply;

	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(has); i++) {
		/* A broker of its own, as versions are remembered. */
		struct broker kept = one_broker;

		memset(&one_broker, 0, sizeof(one_broker));
		broker_start(&one_broker, NULL);
		misfit(has[i], i % 2 ? STREW_APPLY_DIRECT : STREW_APPLY_STAGED);
		broker_status(&one_broker, &reply);
		assert_int_equal(reply.u.status_reply.updates, 3);
		assert_int_equal(reply.u.status_reply.aborted, 2);
		message_finish(&reply);
		broker_finish(&one_broker);
		one_broker = kept;
	}
}

static void partial(enum strew_apply apply, const char *model)
{
	struct strew_report report;
	struct trainer trainer;
	struct worker worker;

	start_worker(
		&worker, (struct strew_agent_options){.model = model, .apply = apply}, both, 2);
	start_trainer(&trainer, model, whole, 1);
	publish(&trainer, 1, 0);
	trainer_reports(&trainer, STREW_OUTCOME_ABORTED, "parameter.1.b", &report);
	strew_report_finish(&report);
	worker_is_poisoned(&worker);
	for (uint64_t version = 1; version < 4; version++) {
		publish(&trainer, version, STREW_PUBLISH_PARTIAL);
		trainer_reports(&trainer, STREW_OUTCOME_COMMITTED, "", &report);
		strew_report_finish(&report);
		worker_holds_some(&worker, version, 1);
	}
	/* Plans are remembered, and the one with `partial` is not for those without. */
	publish(&trainer, 4, 0);
	trainer_reports(&trainer, STREW_OUTCOME_ABORTED, "parameter.1.b", &report);
	strew_report_finish(&report);
	worker_holds_some(&worker, 3, 1);
	trainer_stop(&trainer);
	worker_stop(&worker);
}

static void test_parameters_that_no_tensor_covers(void **state)
{
	(void)state;
	partial(STREW_APPLY_DIRECT, "partial direct");
	partial(STREW_APPLY_STAGED, "partial staged");
}

static void test_tensors_that_nobody_wants(void **state)
{
	struct strew_report report;
	struct trainer trainer;
	struct worker workers[2];

	(void)state;
	start_trainer(&trainer, "unwanted", both, 2);
	publish(&trainer, 1, 0);
	trainer_reports(&trainer, STREW_OUTCOME_ABORTED, "no worker", &report);
	assert_int_equal(report.ngroups, 0);
	strew_report_finish(&report);
	for (uint32_t i = 0; i < 2; i++) {
		start_worker(&workers[i],
			(struct strew_agent_options){
				.model = "unwanted", .member = i, .members = 2},
			i ? lower : upper, 1);
		if (i == 0) {
			publish(&trainer, 1, 0);
			trainer_reports(&trainer, STREW_OUTCOME_ABORTED, "1 of 2 members", &report);
			strew_report_finish(&report);
		}
	}
	publish(&trainer, 1, 0);
	trainer_reports(&trainer, STREW_OUTCOME_COMMITTED, "", &report);
	assert_int_equal(report.tensors, 2);
	assert_int_equal(report.unwanted, 1);
	assert_int_equal(report.bytes, 20 * 32 * 4);
	assert_int_equal(report.wire_bytes, 0);
	strew_report_finish(&report);
	for (unsigned i = 0; i < 2; i++) {
		worker_holds(&workers[i], 1);
		worker_stop(&workers[i]);
	}
	trainer_stop(&trainer);
}

#define CASE(name) cmocka_unit_test_teardown(name, one_check)

int main(void)
{
	const struct CMUnitTest tests[] = {
		CASE(test_versions),
		CASE(test_the_largest_version),
		CASE(test_requests_that_make_no_sense),
		CASE(test_shapes_and_types_that_do_not_fit),
		CASE(test_parameters_that_no_tensor_covers),
		CASE(test_tensors_that_nobody_wants),
	};

	return test_finish(cmocka_run_group_tests(tests, one_start, one_finish), test_fds_at_start);
}
