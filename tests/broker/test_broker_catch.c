/*
 * Groups that have missed a version take it from a sibling at their broker, between updates: who
 * does, who does not, when its gate is asked, and what happens if somebody goes or an update comes.
 */
#include "base/util.h"
#include "broker/catcher.h"
#include "broker/one.h"
#include "broker/subset.h"
#include "gpu/memfd.h"
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

static const struct rows whole[] = {
	{"w", STREW_F32, 16, 32, 0, 16}, {"norm", STREW_F32, 1, 40, 0, 1}};
static const struct rows upper[] = {
	{"w", STREW_F32, 16, 32, 0, 8}, {"norm", STREW_F32, 1, 40, 0, 1}};
static const struct rows lower[] = {
	{"w", STREW_F32, 16, 32, 8, 8}, {"norm", STREW_F32, 1, 40, 0, 1}};

static void start(struct worker *worker, const char *model, uint32_t replica,
	struct strew_agent_options options, const struct rows *rows)
{
	int rc;

	options.model = model;
	options.replica = replica;
	options.timeout_ms = 5000;
	rc = worker_start(worker, &one_broker, options, rows, 2);
	if (rc) {
		print_error("%s\n", strew_error());
	}
	assert_int_equal(rc, 0);
}

static void start_trainer(struct trainer *trainer, const char *model)
{
	int rc = trainer_start(
		trainer, &one_broker, (struct strew_trainer_options){.model = model}, whole, 2);

	if (rc) {
		print_error("%s\n", strew_error());
	}
	assert_int_equal(rc, 0);
}

/* Replica 0 at version 1, and nobody who could publish another one. */
static void start_sibling(struct worker *worker, const char *model)
{
	struct trainer trainer;

	start(worker, model, 0, (struct strew_agent_options){0}, whole);
	start_trainer(&trainer, model);
	trainer_commits(&trainer, 1);
	trainer_stop(&trainer);
}

static const enum strew_apply applies[] = {STREW_APPLY_DIRECT, STREW_APPLY_STAGED};

/* No trainer is left. Its gate is live: nothing is asked of anybody. */
static void test_a_new_engine(void **state)
{
	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(applies); i++) {
		const char *model = i ? "new staged" : "new direct";
		struct worker sibling, late, again;

		start_sibling(&sibling, model);
		start(&late, model, 1, (struct strew_agent_options){.apply = applies[i]}, whole);
		worker_is_current(&late, 1);
		/* Its successor in the same place has nothing again. */
		worker_stop(&late);
		start(&again, model, 1, (struct strew_agent_options){.apply = applies[i]}, whole);
		worker_is_current(&again, 1);
		worker_holds(&sibling, 1);
		worker_stop(&again);
		worker_stop(&sibling);
	}
	assert_true(broker_said(&one_broker,
		"model new staged replica 1 part 0 caught up with version 1 from replica 0 part "
		"0, 2.2 KiB in "));
}

/* Members of other numbers, with a gate that is held: nothing is written before both stand. */
static void test_the_gate(void **state)
{
	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(applies); i++) {
		const char *model = i ? "gate staged" : "gate direct";
		struct strew_agent_options options = {
			.gate = STREW_GATE_HELD, .apply = applies[i], .members = 2};
		struct worker sibling, late[2];

		start_sibling(&sibling, model);
		for (uint32_t m = 0; m < 2; m++) {
			options.member = m;
			start(&late[m], model, 1, options, m ? lower : upper);
		}
		/* Both are asked for their memory first, then to hold. */
		worker_hears_nothing(&late[0]);
		worker_event(&late[1], STREW_EVENT_HOLD, STREW_OUTCOME_NONE);
		worker_event(&late[0], STREW_EVENT_HOLD, STREW_OUTCOME_NONE);
		assert_int_equal(strew_agent_ready(late[0].agent, NULL), 0);
		assert_int_equal(strew_agent_resume(late[0].agent, 300), -ETIMEDOUT);
		for (unsigned m = 0; m < 2; m++) {
			worker_is_poisoned(&late[m]);
		}
		assert_int_equal(group_place(&one_broker, model, 1, 0).state, STREW_GROUP_STALE);
		assert_int_equal(strew_agent_ready(late[1].agent, NULL), 0);
		for (unsigned m = 0; m < 2; m++) {
			worker_event(&late[m], STREW_EVENT_DONE, STREW_OUTCOME_COMMITTED);
			assert_int_equal(strew_agent_resume(late[m].agent, PATIENCE_MS), 0);
			worker_is_current(&late[m], 1);
		}
		/* Two of them to one, as well. */
		worker_stop(&sibling);
		start(&sibling, model, 0, (struct strew_agent_options){0}, whole);
		worker_is_current(&sibling, 1);
		for (unsigned m = 0; m < 2; m++) {
			worker_stop(&late[m]);
		}
		worker_stop(&sibling);
	}
}

/* It was late for version 2, takes it afterwards, and so has the base of a subset above it. */
static void test_one_that_sat_out(void **state)
{
	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(applies); i++) {
		const char *model = i ? "sat staged" : "sat direct";
		struct worker sibling, late;
		struct strew_report report;
		struct trainer trainer;
		uint64_t held[PEER_ROWS] = {2, 3};

		start(&sibling, model, 0, (struct strew_agent_options){0}, whole);
		start(&late, model, 1,
			(struct strew_agent_options){.gate = STREW_GATE_HELD, .apply = applies[i]},
			whole);
		start_trainer(&trainer, model);
		assert_int_equal(name_subset(&trainer, 2), 1);
		trainer_write(&trainer, 2);
		assert_int_equal(strew_trainer_publish(trainer.trainer, 2, NULL, 0, 400), 0);
		trainer_reports(&trainer, STREW_OUTCOME_SAT_OUT, "", &report);
		report_group(&report, 1, STREW_OUTCOME_SAT_OUT, "gate");
		strew_report_finish(&report);
		worker_sits_out(&late);
		worker_is_poisoned(&late);
		worker_takes(&late, 2);
		assert_int_equal(strew_agent_ready(late.agent, NULL), 0);
		write_subset(&trainer, 3, 2);
		assert_int_equal(strew_trainer_publish_subset(
					 trainer.trainer, 1, 2, 3, NULL, 0, PATIENCE_MS),
			0);
		worker_event(&late, STREW_EVENT_DONE, STREW_OUTCOME_COMMITTED);
		trainer_reports(&trainer, STREW_OUTCOME_COMMITTED, "", &report);
		strew_report_finish(&report);
		worker_holds_each(&late, held);
		worker_stop(&late);
		worker_stop(&sibling);
		trainer_stop(&trainer);
	}
}

static void map_draft(const struct draft *draft, uint32_t **ret_memory)
{
	void *memory = mmap(NULL, 65536, PROT_READ | PROT_WRITE, MAP_SHARED, draft->fd, 0);

	assert_true(memory != MAP_FAILED);
	*ret_memory = memory;
}

/* What is DIRTY gets a whole set of bytes, and is CURRENT with its siblings' version. */
static void test_dirty_is_healed(void **state)
{
	struct worker sibling;
	struct message message;
	struct draft draft;
	struct raw raw;
	uint32_t *memory;

	(void)state;
	start_sibling(&sibling, "dirty");
	draft_worker(&draft, "dirty", whole, 2);
	draft.reg.replica = 1;
	draft.reg.state = STREW_GROUP_DIRTY;
	draft.reg.version = 1;
	map_draft(&draft, &memory);
	raw_open(&raw, &one_broker, ROLE_WORKER);
	draft_register(&raw, &draft);
	raw_checked(&raw);
	raw_expect(&raw, MSG_DONE, &message);
	assert_int_equal(message.u.done.state, STREW_GROUP_CURRENT);
	assert_int_equal(message.u.done.version, 1);
	message_finish(&message);
	assert_memory_equal(memory, sibling.memory, 16 * 32 * 4);
	munmap(memory, 65536);
	raw_close(&raw);
	draft_finish(&draft);
	worker_stop(&sibling);
}

/* Another layout, other tensors, or a twin: these wait for the next version. */
static void test_who_is_not_covered(void **state)
{
	static const struct rows other[] = {
		{"w", STREW_F32, 16, 32, 0, 16}, {"x", STREW_F32, 1, 40, 0, 1}};
	struct strew_agent_options partial = {.partial = 1};
	struct worker sibling, workers[3];
	struct trainer trainer;

	(void)state;
	start(&sibling, "covered", 0, (struct strew_agent_options){0}, upper);
	start_trainer(&trainer, "covered");
	trainer_commits(&trainer, 1);
	start(&workers[0], "covered", 1, (struct strew_agent_options){0}, whole);
	start(&workers[1], "covered", 2, partial, other);
	peers_ordinary = true;
	start(&workers[2], "covered", 3, (struct strew_agent_options){0}, upper);
	peers_ordinary = false;
	for (unsigned i = 0; i < 3; i++) {
		worker_hears_nothing(&workers[i]);
		worker_is_poisoned(&workers[i]);
		assert_int_equal(
			group_place(&one_broker, "covered", i + 1, 0).state, STREW_GROUP_STALE);
	}
	assert_true(broker_said(&one_broker,
		"model covered replica 1 part 0 cannot take version 1 from replica 0 part 0: "
		"parameter parameter.0.w: the sibling does not hold all of tensor w"));
	worker_stop(&workers[1]);
	trainer_commits(&trainer, 2);
	worker_is_current(&workers[0], 2);
	worker_is_current(&workers[2], 2);
	/* Out of a twin nothing is taken either: the upper half is in one alone now. */
	worker_stop(&workers[0]);
	worker_stop(&sibling);
	start(&workers[0], "covered", 1, (struct strew_agent_options){0}, upper);
	worker_hears_nothing(&workers[0]);
	worker_is_poisoned(&workers[0]);
	worker_stop(&workers[0]);
	worker_stop(&workers[2]);
	trainer_stop(&trainer);
}

/* Two siblings, of which the first has not all: the other one is asked. */
static void test_the_next_sibling(void **state)
{
	struct worker all, half, late;
	struct trainer trainer;

	(void)state;
	for (unsigned order = 0; order < 2; order++) {
		const char *model = order ? "half first" : "all first";

		start(order ? &half : &all, model, 0, (struct strew_agent_options){0},
			order ? upper : whole);
		start(order ? &all : &half, model, 1, (struct strew_agent_options){0},
			order ? whole : upper);
		start_trainer(&trainer, model);
		trainer_commits(&trainer, 1);
		start(&late, model, 2, (struct strew_agent_options){0}, whole);
		worker_is_current(&late, 1);
		worker_stop(&late);
		worker_stop(&half);
		worker_stop(&all);
		trainer_stop(&trainer);
	}
}

/* A replica of two groups goes on only as a whole; if it was just started, each by itself. */
static void test_a_replica_of_two_groups(void **state)
{
	struct strew_agent_options held = {.gate = STREW_GATE_HELD};
	struct worker sibling, parts[2], single;
	struct strew_report report;
	struct trainer trainer;

	(void)state;
	start(&sibling, "parts", 0, (struct strew_agent_options){0}, whole);
	start_trainer(&trainer, "parts");
	trainer_commits(&trainer, 1);
	for (uint32_t part = 0; part < 2; part++) {
		held.part = part;
		start(&parts[part], "parts", 1, held, part ? lower : upper);
		worker_takes(&parts[part], 1);
	}
	held.part = 0;
	start(&single, "parts", 2, held, whole);
	worker_takes(&single, 1);
	trainer_write(&trainer, 2);
	assert_int_equal(strew_trainer_publish(trainer.trainer, 2, NULL, 0, 400), 0);
	trainer_reports(&trainer, STREW_OUTCOME_SAT_OUT, "", &report);
	strew_report_finish(&report);
	for (unsigned part = 0; part < 2; part++) {
		worker_sits_out(&parts[part]);
		worker_hears_nothing(&parts[part]);
		worker_holds(&parts[part], 1);
	}
	worker_sits_out(&single);
	worker_takes(&single, 2);
	worker_stop(&single);
	worker_stop(&parts[0]);
	worker_stop(&parts[1]);
	worker_stop(&sibling);
	trainer_stop(&trainer);
}

/* While the gate is awaited the sibling goes: before its bytes were copied there is nothing to be
 * had any more; a shadow that has them all is enough. */
static void test_the_sibling_goes(void **state)
{
	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(applies); i++) {
		const char *model = i ? "gone staged" : "gone direct";
		struct worker sibling, late;

		start_sibling(&sibling, model);
		start(&late, model, 1,
			(struct strew_agent_options){.gate = STREW_GATE_HELD, .apply = applies[i]},
			whole);
		worker_event(&late, STREW_EVENT_HOLD, STREW_OUTCOME_NONE);
		worker_stop(&sibling);
		if (applies[i] == STREW_APPLY_DIRECT) {
			worker_event(&late, STREW_EVENT_DONE, STREW_OUTCOME_ABORTED);
			worker_is_poisoned(&late);
			assert_int_equal(
				group_place(&one_broker, model, 1, 0).state, STREW_GROUP_STALE);
		} else {
			assert_int_equal(strew_agent_ready(late.agent, NULL), 0);
			worker_event(&late, STREW_EVENT_DONE, STREW_OUTCOME_COMMITTED);
			worker_is_current(&late, 1);
		}
		worker_stop(&late);
	}
}

/* A member goes while the gate is awaited, another one comes, and all begins anew. */
static void test_a_member_goes(void **state)
{
	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(applies); i++) {
		const char *model = i ? "left staged" : "left direct";
		struct worker sibling, late;
		struct message message;
		struct draft draft;
		struct raw raw;

		start_sibling(&sibling, model);
		draft_worker(&draft, model, whole, 2);
		draft.reg.replica = 1;
		draft.reg.gate = STREW_GATE_HELD;
		draft.reg.apply = applies[i];
		raw_open(&raw, &one_broker, ROLE_WORKER);
		draft_register(&raw, &draft);
		raw_checked(&raw);
		raw_expect(&raw, MSG_HOLD, &message);
		message_finish(&message);
		raw_close(&raw);
		group_wait(&one_broker, model, 1, 0, STREW_GROUP_LOST, 0);
		start(&late, model, 1,
			(struct strew_agent_options){.gate = STREW_GATE_HELD, .apply = applies[i]},
			whole);
		worker_takes(&late, 1);
		worker_stop(&late);
		worker_stop(&sibling);
		draft_finish(&draft);
	}
}

/* It finds that its memory has moved: it is left alone until the next version. */
static void test_a_check_that_fails(void **state)
{
	struct worker sibling;
	struct message message;
	struct draft draft;
	uint64_t update;
	struct raw raw;

	(void)state;
	start_sibling(&sibling, "moved");
	draft_worker(&draft, "moved", whole, 2);
	draft.reg.replica = 1;
	raw_open(&raw, &one_broker, ROLE_WORKER);
	draft_register(&raw, &draft);
	raw_expect(&raw, MSG_CHECK, &message);
	update = message.u.check.update;
	message_finish(&message);
	message_init(&message, MSG_CHECKED, 0);
	message.u.checked.update = update;
	message.u.checked.code = error_to_wire(-EIO);
	string_copy(message.u.checked.text, sizeof(message.u.checked.text), "it has moved");
	raw_send(&raw, &message);
	raw_expect(&raw, MSG_DONE, &message);
	assert_int_equal(message.u.done.outcome, STREW_OUTCOME_ABORTED);
	assert_int_equal(message.u.done.state, STREW_GROUP_STALE);
	assert_non_null(strstr(message.u.done.text, "it has moved"));
	message_finish(&message);
	raw_expect_silence(&raw, 300);
	raw_close(&raw);
	draft_finish(&draft);
	worker_stop(&sibling);
}

/* A publish comes while the gate is awaited: the group takes part in that update instead. */
static void test_a_publish_comes(void **state)
{
	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(applies); i++) {
		const char *model = i ? "comes staged" : "comes direct";
		struct worker sibling, late;
		struct strew_report report;
		struct trainer trainer;

		start(&sibling, model, 0, (struct strew_agent_options){0}, whole);
		start_trainer(&trainer, model);
		trainer_commits(&trainer, 1);
		start(&late, model, 1,
			(struct strew_agent_options){.gate = STREW_GATE_HELD, .apply = applies[i]},
			whole);
		worker_event(&late, STREW_EVENT_HOLD, STREW_OUTCOME_NONE);
		trainer_write(&trainer, 2);
		assert_int_equal(
			strew_trainer_publish(trainer.trainer, 2, NULL, 0, PATIENCE_MS), 0);
		worker_event(&late, STREW_EVENT_DONE, STREW_OUTCOME_ABORTED);
		worker_is_poisoned(&late);
		worker_takes(&late, 2);
		trainer_reports(&trainer, STREW_OUTCOME_COMMITTED, "", &report);
		assert_true(report.wait_s < 2);
		strew_report_finish(&report);
		worker_holds(&sibling, 2);
		worker_stop(&late);
		worker_stop(&sibling);
		trainer_stop(&trainer);
	}
}

static const struct rows big[] = {
	{"w", STREW_F32, 3000, 1500, 0, 3000}, {"norm", STREW_F32, 1, 40, 0, 1}};

/*
 * The sibling is withdrawn at any moment, and its memory is another's as soon as that is answered.
 * What caught up has all, what did not has nothing, or (direct) says that it is in part.
 */
static void test_the_sibling_goes_at_any_moment(void **state)
{
	unsigned caught = 0, dirty = 0;

	(void)state;
	for (unsigned i = 0; i < 12; i++) {
		enum strew_apply apply = applies[i & 1];
		struct timespec nap = {0, (long)test_random_below(5000000)};
		struct worker sibling, late;
		enum strew_group_state state_heard;
		struct trainer trainer;
		struct place place;

		assert_int_equal(worker_start(&sibling, &one_broker,
					 (struct strew_agent_options){.model = "leaves"}, big, 2),
			0);
		assert_int_equal(trainer_start(&trainer, &one_broker,
					 (struct strew_trainer_options){.model = "leaves"}, big, 2),
			0);
		trainer_commits(&trainer, 2 * i + 1);
		assert_int_equal(worker_start(&late, &one_broker,
					 (struct strew_agent_options){
						 .model = "leaves", .replica = 1, .apply = apply},
					 big, 2),
			0);
		nanosleep(&nap, NULL);
		assert_int_equal(strew_agent_withdraw(sibling.agent), 0);
		memset(sibling.memory, 0x77, sibling.bytes);
		worker_stop(&sibling);
		/* Until it has heard how that ended. */
		do {
			sleep_ms(20);
			assert_int_equal(strew_agent_state(late.agent, &state_heard, NULL), 0);
		} while (state_heard == STREW_GROUP_PENDING);
		place = group_place(&one_broker, "leaves", 1, 0);
		if (place.state == STREW_GROUP_CURRENT) {
			assert_int_equal(place.version, 2 * i + 1);
			worker_holds(&late, 2 * i + 1);
			caught++;
		} else if (place.state == STREW_GROUP_DIRTY) {
			assert_int_equal(apply, STREW_APPLY_DIRECT);
			dirty++;
		} else {
			assert_int_equal(place.state, STREW_GROUP_STALE);
			worker_is_poisoned(&late);
		}
		trainer_commits(&trainer, 2 * i + 2);
		worker_holds(&late, 2 * i + 2);
		worker_stop(&late);
		trainer_stop(&trainer);
	}
	printf("%u of 12 had caught up before, %u were DIRTY\n", caught, dirty);
}

/* More than one slice of the mover's. */
static const struct rows huge[] = {{"w", STREW_F32, 34000, 1024, 0, 34000}};
#define HUGE_BYTES ((uint64_t)34000 * 1024 * 4)

static void draft_huge(struct draft *draft, const char *model, uint32_t replica)
{
	draft_worker(draft, model, huge, 1);
	draft->reg.replica = replica;
	draft->allocation.size = HUGE_BYTES;
	fd_close(&draft->fd);
	assert_int_equal(memfd_create_sealed("huge", HUGE_BYTES, &draft->fd), 0);
}

static bool is_zero(const uint8_t *at)
{
	return at[0] == 0 && memcmp(at, at + 1, HUGE_BYTES - 1) == 0;
}

/* The sibling dies in the middle. Returns what the group is then. */
static uint32_t die_between_slices(enum strew_apply apply)
{
	struct draft draft, source;
	struct raw raw, sibling;
	struct message message;
	uint8_t *memory, *from;
	uint32_t state;

	draft_huge(&source, "slices", 0);
	source.reg.state = STREW_GROUP_CURRENT;
	source.reg.version = 1;
	from = mmap(NULL, HUGE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, source.fd, 0);
	draft_huge(&draft, "slices", 1);
	draft.reg.apply = apply;
	memory = mmap(NULL, HUGE_BYTES, PROT_READ, MAP_SHARED, draft.fd, 0);
	assert_true(from != MAP_FAILED && memory != MAP_FAILED);
	memset(from, 0x3c, HUGE_BYTES);
	raw_open(&sibling, &one_broker, ROLE_WORKER);
	draft_register(&sibling, &source);
	raw_open(&raw, &one_broker, ROLE_WORKER);
	draft_register(&raw, &draft);
	raw_checked(&raw);
	sleep_ms(5);
	raw_close(&sibling);
	raw_expect(&raw, MSG_DONE, &message);
	state = message.u.done.state;
	message_finish(&message);
	if (state == STREW_GROUP_CURRENT) {
		assert_memory_equal(memory, from, HUGE_BYTES);
	} else if (state == STREW_GROUP_STALE) {
		assert_true(is_zero(memory));
	} else {
		assert_int_equal(apply, STREW_APPLY_DIRECT);
		assert_int_equal(state, STREW_GROUP_DIRTY);
		assert_int_equal(memory[0], 0x3c);
		assert_int_equal(memory[HUGE_BYTES - 1], 0);
	}
	munmap(memory, HUGE_BYTES);
	munmap(from, HUGE_BYTES);
	raw_close(&raw);
	draft_finish(&draft);
	draft_finish(&source);
	return state;
}

static void test_the_sibling_dies_between_slices(void **state)
{
	uint32_t direct = 0, staged = 0;

	(void)state;
	/* Whether the end of its connection is seen in time is the machine's affair. */
	for (unsigned i = 0; i < 20 && direct != STREW_GROUP_DIRTY; i++) {
		direct = die_between_slices(STREW_APPLY_DIRECT);
	}
	for (unsigned i = 0; i < 20 && staged != STREW_GROUP_STALE; i++) {
		staged = die_between_slices(STREW_APPLY_STAGED);
	}
	assert_int_equal(direct, STREW_GROUP_DIRTY);
	assert_int_equal(staged, STREW_GROUP_STALE);
}

/* One comes at any moment of the copying: both end with the new version, and it is not kept. */
static void test_a_publish_at_any_moment(void **state)
{
	struct worker sibling, late;
	struct strew_report report;
	struct trainer trainer;
	unsigned caught = 0;

	(void)state;
	start(&sibling, "any", 0, (struct strew_agent_options){0}, big);
	assert_int_equal(trainer_start(&trainer, &one_broker,
				 (struct strew_trainer_options){.model = "any"}, big, 2),
		0);
	trainer_commits(&trainer, 1);
	trainer_write(&trainer, 2);
	for (uint64_t version = 2; version < 22; version++) {
		struct timespec nap = {0, (long)test_random_below(60000000)};

		start(&late, "any", 1, (struct strew_agent_options){.apply = applies[version & 1]},
			big);
		nanosleep(&nap, NULL);
		caught += group_place(&one_broker, "any", 1, 0).state == STREW_GROUP_CURRENT;
		/* What is new about a version is its number, as writing takes a while. */
		assert_int_equal(
			strew_trainer_publish(trainer.trainer, version, NULL, 0, PATIENCE_MS), 0);
		trainer_reports(&trainer, STREW_OUTCOME_COMMITTED, "", &report);
		assert_int_equal(report.ngroups, 2);
		/* One slice and the copy of a commit are waited for: this update copies more. */
		assert_true(report.wait_s < 0.5 + 2 * (report.move_s + report.commit_s));
		strew_report_finish(&report);
		assert_int_equal(group_place(&one_broker, "any", 1, 0).version, version);
		worker_holds(&late, 2);
		worker_stop(&late);
	}
	printf("%u of 20 had caught up before\n", caught);
	worker_holds(&sibling, 2);
	worker_stop(&sibling);
	trainer_stop(&trainer);
}

/* A group that waits for its gate does not keep the broker from stopping. */
static void test_the_broker_stops(void **state)
{
	struct strew_agent_options options = {.model = "stops"};
	struct worker sibling, late;
	struct broker alone = {0};
	struct trainer trainer;

	(void)state;
	broker_start(&alone, NULL);
	assert_int_equal(worker_start(&sibling, &alone, options, whole, 2), 0);
	assert_int_equal(trainer_start(&trainer, &alone,
				 (struct strew_trainer_options){.model = "stops"}, whole, 2),
		0);
	trainer_commits(&trainer, 1);
	options.replica = 1;
	options.gate = STREW_GATE_HELD;
	assert_int_equal(worker_start(&late, &alone, options, whole, 2), 0);
	worker_event(&late, STREW_EVENT_HOLD, STREW_OUTCOME_NONE);
	assert_int_equal(broker_stop(&alone, SIGTERM), 0);
	worker_is_poisoned(&late);
	worker_stop(&late);
	worker_stop(&sibling);
	trainer_stop(&trainer);
	broker_finish(&alone);
}

#define CASE(name) cmocka_unit_test_teardown(name, one_check)

int main(void)
{
	const struct CMUnitTest tests[] = {
		CASE(test_a_new_engine),
		CASE(test_the_gate),
		CASE(test_one_that_sat_out),
		CASE(test_dirty_is_healed),
		CASE(test_who_is_not_covered),
		CASE(test_the_next_sibling),
		CASE(test_a_replica_of_two_groups),
		CASE(test_the_sibling_goes),
		CASE(test_a_member_goes),
		CASE(test_a_check_that_fails),
		CASE(test_a_publish_comes),
		CASE(test_a_publish_at_any_moment),
		CASE(test_the_sibling_goes_at_any_moment),
		CASE(test_the_sibling_dies_between_slices),
		CASE(test_the_broker_stops),
	};

	test_seed();
	return test_finish(cmocka_run_group_tests(tests, one_start, one_finish), test_fds_at_start);
}
