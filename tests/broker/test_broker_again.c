/* Workers that register memory which an agent before them had registered, and new ones. */
#include "broker/catcher.h"
#include "broker/one.h"
#include <errno.h>
#include <string.h>

static const struct rows whole[] = {{"w", STREW_F32, 16, 32, 0, 16}};

static void start_trainer(struct trainer *trainer, const char *model)
{
	assert_int_equal(trainer_start(trainer, &one_broker,
				 (struct strew_trainer_options){.model = model}, whole, 1),
		0);
}

static void start_worker(struct worker *worker, struct strew_agent_options options)
{
	assert_int_equal(worker_start(worker, &one_broker, options, whole, 1), 0);
}

static void register_as(struct raw *raw, const char *model, uint32_t replica,
	enum strew_group_state state, uint64_t version)
{
	struct draft draft;

	draft_worker(&draft, model, whole, 1);
	draft.reg.replica = replica;
	draft.reg.state = state;
	draft.reg.version = version;
	raw_open(raw, &one_broker, ROLE_WORKER);
	draft_register(raw, &draft);
	draft_finish(&draft);
}

static void test_what_was_said(void **state)
{
	static const struct {
		const char *model;
		enum strew_group_state said;
		uint64_t version;
		enum strew_group_state expected;
	} cases[] = {
		{"new", (enum strew_group_state)0, 0, STREW_GROUP_CURRENT},
		{"forming", STREW_GROUP_FORMING, 0, STREW_GROUP_CURRENT},
		{"current", STREW_GROUP_CURRENT, 5, STREW_GROUP_CURRENT},
		{"stale", STREW_GROUP_STALE, 5, STREW_GROUP_STALE},
		{"lost", STREW_GROUP_LOST, 5, STREW_GROUP_STALE},
		{"pending", STREW_GROUP_PENDING, 5, STREW_GROUP_DIRTY},
		{"doubt", STREW_GROUP_IN_DOUBT, 5, STREW_GROUP_DIRTY},
		{"dirty", STREW_GROUP_DIRTY, 5, STREW_GROUP_DIRTY},
	};

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		bool whole_one = cases[i].expected != STREW_GROUP_DIRTY;
		struct raw raw;

		register_as(&raw, cases[i].model, 0, cases[i].said, cases[i].version);
		assert_int_equal(group_place(&one_broker, cases[i].model, 0, 0).version,
			whole_one ? cases[i].version : 0);
		assert_int_equal(
			broker_group_state(&one_broker, cases[i].model), cases[i].expected);
		raw_close(&raw);
	}
}

/* A version that a worker has brought was committed: it is not published again. */
static void test_versions_are_learnt(void **state)
{
	struct strew_report report;
	struct trainer trainer;
	struct raw raw;

	(void)state;
	for (int before = 0; before < 2; before++) {
		const char *model = before ? "before" : "after";
		struct raw other;

		if (before) {
			start_trainer(&trainer, model);
		}
		register_as(&other, model, 1, STREW_GROUP_CURRENT, 4);
		assert_int_equal(broker_group_state(&one_broker, model), STREW_GROUP_CURRENT);
		raw_close(&other);
		register_as(&raw, model, 0, STREW_GROUP_CURRENT, 5);
		if (!before) {
			start_trainer(&trainer, model);
		}
		assert_int_equal(trainer_publish(&trainer, 5, 0, PATIENCE_MS, &report), -ESTALE);
		trainer_stop(&trainer);
		raw_close(&raw);
	}
}

/* What has missed a commit is STALE, whether new or not, and the next one heals it. */
static void test_missed(void **state)
{
	struct worker first, second;
	struct trainer trainer;

	(void)state;
	start_trainer(&trainer, "missed");
	start_worker(&first, (struct strew_agent_options){.model = "missed"});
	trainer_commits(&trainer, 1);
	worker_stop(&first);
	start_worker(&second, (struct strew_agent_options){.model = "missed"});
	assert_int_equal(broker_group_state(&one_broker, "missed"), STREW_GROUP_STALE);
	trainer_commits(&trainer, 2);
	assert_int_equal(broker_group_state(&one_broker, "missed"), STREW_GROUP_CURRENT);
	worker_holds(&second, 2);
	worker_stop(&second);
	trainer_stop(&trainer);
}

static void page_says(const struct worker *worker, enum strew_group_state state, uint64_t version)
{
	enum strew_group_state told_state, page_state;
	uint64_t told, page;

	assert_int_equal(strew_agent_peek(worker->agent, &page_state, &page), 0);
	assert_int_equal(strew_agent_state(worker->agent, &told_state, &told), 0);
	assert_int_equal(page_state, state);
	assert_int_equal(page, version);
	assert_int_equal(told, version);
}

/* A member that came anew beside one that has the last version: each is told of its own memory. */
static void test_members_that_differ(void **state)
{
	const struct strew_agent_options options[2] = {
		{.model = "apart", .member = 0, .members = 2, .serve_thread = 1},
		{.model = "apart", .member = 1, .members = 2, .serve_thread = 1}};
	struct worker workers[2], other;
	struct strew_report report;
	struct trainer trainer;

	(void)state;
	start_trainer(&trainer, "apart");
	start_worker(&workers[0], options[0]);
	start_worker(&workers[1], options[1]);
	trainer_commits(&trainer, 1);
	for (unsigned i = 0; i < 2; i++) {
		worker_event(&workers[i], STREW_EVENT_DONE, STREW_OUTCOME_COMMITTED);
	}
	worker_stop(&workers[0]);
	start_worker(&other, options[0]);
	assert_int_equal(broker_group_state(&one_broker, "apart"), STREW_GROUP_STALE);
	/* All or nothing, and a group that nobody serves: no version for anybody. */
	start_worker(&workers[0],
		(struct strew_agent_options){
			.model = "apart", .replica = 1, .members = 2, .serve_thread = 1});
	assert_int_equal(
		trainer_publish(&trainer, 2, STREW_PUBLISH_SCOPE_ALL, PATIENCE_MS, &report),
		STREW_OUTCOME_ABORTED);
	strew_report_finish(&report);
	worker_event(&workers[1], STREW_EVENT_DONE, STREW_OUTCOME_ABORTED);
	worker_event(&other, STREW_EVENT_DONE, STREW_OUTCOME_ABORTED);
	page_says(&workers[1], STREW_GROUP_STALE, 1);
	page_says(&other, STREW_GROUP_STALE, 0);
	worker_stop(&workers[0]);
	trainer_commits(&trainer, 3);
	worker_event(&workers[1], STREW_EVENT_DONE, STREW_OUTCOME_COMMITTED);
	worker_event(&other, STREW_EVENT_DONE, STREW_OUTCOME_COMMITTED);
	page_says(&workers[1], STREW_GROUP_CURRENT, 3);
	page_says(&other, STREW_GROUP_CURRENT, 3);
	worker_stop(&workers[1]);
	worker_stop(&other);
	trainer_stop(&trainer);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_members_that_differ),
		cmocka_unit_test(test_what_was_said),
		cmocka_unit_test(test_versions_are_learnt),
		cmocka_unit_test(test_missed),
	};

	return test_finish(cmocka_run_group_tests(tests, one_start, one_finish), test_fds_at_start);
}
