/* What a broker answers to those who only look: progress, the way of a tensor,
 * what lies in a worker. */
#include "base/clock.h"
#include "base/util.h"
#include "broker/one.h"
#include "broker/peers.h"
#include "strew/strew.h"
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
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

#define PIECES 150 /* more than two pages */
#define COLS 8
#define PARAMETER_BYTES (PIECES * COLS * 4)

/* A worker that takes each row of a bf16 tensor by a piece of its own, the last row first, into
 * columns of an f32 parameter. */
static struct strew_agent *start_scattered(void *memory)
{
	struct strew_agent_options options = {.socket = one_broker.socket,
		.model = "scattered",
		.members = 1,
		.gate = STREW_GATE_LIVE,
		.serve_thread = 1};
	struct strew_parameter parameter = {.name = "columns",
		.data = (char *)memory + 64,
		.dtype = STREW_F32,
		.ndim = 2,
		.shape = {COLS, PIECES}};
	struct strew_agent *agent;
	uint32_t id;

	assert_int_equal(strew_agent_open(&options, &agent), 0);
	assert_int_equal(strew_agent_declare(agent, &parameter, &id), 0);
	for (uint64_t row = 0; row < PIECES; row++) {
		struct strew_piece piece = {.tensor = "layers.3.rows",
			.dtype = STREW_BF16,
			.ndim = 2,
			.shape = {PIECES, COLS},
			.view_ndim = 3,
			.view = {PIECES / 2, 2, COLS},
			.start = {row / 2, row % 2, 0},
			.extent = {1, 1, COLS},
			.parameter = id,
			.offset = PIECES - 1 - row,
			.stride = {1, 1, PIECES},
			.cast = 1};

		assert_int_equal(strew_agent_piece(agent, &piece), 0);
	}
	assert_int_equal(strew_agent_register(agent), 0);
	return agent;
}

static void ask_explain(struct raw *raw, const char *name, const char *model, uint64_t from)
{
	struct message message;

	message_init(&message, MSG_EXPLAIN, ++raw->serial);
	string_copy(message.u.explain.name, sizeof(message.u.explain.name), name);
	string_copy(message.u.explain.model, sizeof(message.u.explain.model), model);
	message.u.explain.from = from;
	raw_send(raw, &message);
}

static void check_scattered(const struct explained *row, uint64_t number)
{
	char start[64];

	snprintf(start, sizeof(start), "[%d, %d, 0]", (int)number / 2, (int)number % 2);
	assert_int_equal(row->kind, EXPLAINED_PIECE);
	assert_string_equal(row->model, "scattered");
	assert_string_equal(row->tensor, "layers.3.rows");
	assert_int_equal(row->dtype, STREW_BF16);
	assert_string_equal(row->shape, "[150, 8]");
	assert_string_equal(row->view, "[75, 2, 8]");
	assert_string_equal(row->start, start);
	assert_string_equal(row->extent, "[1, 1, 8]");
	assert_string_equal(row->stride, "[1, 1, 150]");
	assert_string_equal(row->parameter, "columns");
	assert_int_equal(row->parameter_dtype, STREW_F32);
	assert_string_equal(row->parameter_shape, "[8, 150]");
	assert_true(row->cast == 1 && row->staged == 1 && row->here == 1);
	assert_true(row->pid == (uint64_t)getpid());
	/* The allocation begins where the host memory does. */
	assert_true(row->offset == 64 + (PIECES - 1 - number) * 4);
	assert_string_equal(row->route, "raw");
	assert_string_equal(row->handle, "memfd");
	assert_string_equal(row->device, "host");
}

static void test_explain_in_pages(void **state)
{
	static const uint64_t froms[] = {0, 64, 128, 149, 150, UINT64_MAX};
	static const char *const names[] = {"layers.3.rows", "columns"};
	struct strew_agent *agent;
	struct message message;
	struct raw observer;
	void *memory;

	(void)state;
	assert_int_equal(strew_host_alloc(64 + PARAMETER_BYTES, &memory), 0);
	agent = start_scattered(memory);
	raw_open(&observer, &one_broker, ROLE_OBSERVER);
	for (size_t i = 0; i < ARRAY_LEN(froms) * ARRAY_LEN(names); i++) {
		uint64_t from = froms[i % ARRAY_LEN(froms)];
		uint64_t left = from < PIECES ? PIECES - from : 0;

		ask_explain(&observer, names[i / ARRAY_LEN(froms)], i % 2 ? "scattered" : "", from);
		raw_expect(&observer, MSG_EXPLAINED, &message);
		assert_true(message.serial == observer.serial);
		assert_int_equal(message.u.explained.total, PIECES);
		assert_int_equal(message.u.explained.nrows, MIN(left, 64));
		for (size_t k = 0; k < message.u.explained.nrows; k++) {
			check_scattered(&message.u.explained.rows[k], from + k);
		}
		message_finish(&message);
	}
	/* What is not there is refused, with what was perhaps meant; the connection goes on. */
	ask_explain(&observer, "layers.3.row", "", 0);
	raw_expect_error(&observer, -ENOENT, "there is layers.3.rows");
	ask_explain(&observer, "layers.3.rows", "other", 0);
	raw_expect_error(&observer, -ENOENT, "no tensor or parameter layers.3.rows");
	ask_explain(&observer, "nothing", "", 0);
	raw_expect_error(&observer, -ENOENT, "nothing is known here");
	strew_agent_close(agent);
	ask_explain(&observer, "layers.3.rows", "", 0);
	raw_expect_error(&observer, -ENOENT, "layers.3.rows is known here");
	strew_host_free(memory);
	raw_close(&observer);
}

static void ask_read(
	struct raw *raw, uint64_t worker, uint32_t allocation, uint64_t offset, uint64_t bytes)
{
	struct message message;

	message_init(&message, MSG_READ, ++raw->serial);
	message.u.read = (struct msg_read){
		.worker = worker, .allocation = allocation, .offset = offset, .bytes = bytes};
	raw_send(raw, &message);
}

/* The layout of the worker behind `after`; what is said with it, to be finished. */
static void ask_layout(
	struct raw *raw, uint64_t after, struct layout *ret_layout, struct message *ret_message)
{
	const struct msg_laid_out *said = &ret_message->u.laid_out;
	struct blob blob = {0};
	struct error err;
	int rc;

	message_init(ret_message, MSG_LAYOUT, ++raw->serial);
	ret_message->u.layout.after = after;
	raw_send(raw, ret_message);
	layout_init(ret_layout);
	for (;;) {
		assert_int_equal(conn_receive_wait(
					 raw->conn, deadline_in_ms(PATIENCE_MS), ret_message, &err),
			1);
		if (ret_message->type != MSG_PART) {
			break;
		}
		assert_int_equal(blob_append(&blob, &ret_message->u.part, &err), 0);
		message_finish(ret_message);
	}
	assert_int_equal(ret_message->type, MSG_LAID_OUT);
	if (said->worker) {
		rc = blob_check(&blob, said->parts, said->bytes, said->hash, &err);
		assert_int_equal(rc, 0);
		assert_int_equal(blob_to_layout(&blob, said->partial, ret_layout, &err), 0);
	}
	blob_finish(&blob);
}

#define LIVE_BYTES (3u << 20)

/* Layout and bytes of a worker that this process is, and what is refused. */
static void test_reading_back(void **state)
{
	struct strew_agent *agent;
	struct message message;
	unsigned char *memory;
	struct layout layout;
	struct raw observer;
	uint64_t worker;

	(void)state;
	assert_int_equal(strew_host_alloc(LIVE_BYTES, (void **)&memory), 0);
	agent = start_scattered(memory);
	test_random_fill(memory, LIVE_BYTES);
	raw_open(&observer, &one_broker, ROLE_OBSERVER);
	ask_layout(&observer, 0, &layout, &message);
	worker = message.u.laid_out.worker;
	assert_true(worker != 0 && message.u.laid_out.pid == (uint64_t)getpid());
	assert_string_equal(message.u.laid_out.model, "scattered");
	assert_int_equal(message.u.laid_out.ntwins, 0);
	assert_int_equal(layout.npieces, PIECES);
	assert_string_equal(layout.parameters[0].name, "columns");
	assert_int_equal(layout.parameters[0].offset_bytes, 64);
	layout_finish(&layout);
	message_finish(&message);
	ask_layout(&observer, worker, &layout, &message);
	assert_true(message.u.laid_out.worker == 0);
	message_finish(&message);
	for (int i = 0; i < 50; i++) {
		uint64_t bytes = 1 + test_random_below(i % 2 ? 100 : LIVE_BYTES);
		uint64_t offset = test_random_below(LIVE_BYTES - bytes + 1);
		struct stat st;
		void *got;

		memory[offset] ^= 0xff; /* live means now */
		ask_read(&observer, worker, 0, offset, bytes);
		raw_expect(&observer, MSG_READ_OUT, &message);
		assert_int_equal(message.nfds, 1);
		assert_int_equal(fstat(message.fds[0], &st), 0);
		assert_true((uint64_t)st.st_size >= bytes);
		got = mmap(NULL, bytes, PROT_READ, MAP_SHARED, message.fds[0], 0);
		assert_ptr_not_equal(got, MAP_FAILED);
		assert_memory_equal(got, memory + offset, bytes);
		munmap(got, bytes);
		message_finish(&message);
	}
	ask_read(&observer, worker + 1000, 0, 0, 1);
	raw_expect_error(&observer, -ENOENT, "it has left");
	ask_read(&observer, worker, 1, 0, 1);
	raw_expect_error(&observer, -ERANGE, "no allocation 1");
	ask_read(&observer, worker, 0, 0, 0);
	raw_expect_error(&observer, -ERANGE, "0 bytes");
	ask_read(&observer, worker, 0, 0, LIMIT_READ_BYTES + 1);
	raw_expect_error(&observer, -ERANGE, "at most");
	ask_read(&observer, worker, 0, UINT64_MAX, 2);
	raw_expect_error(&observer, -ERANGE, "allocation of");
	/* Two at once: at most one is refused, and none is lost. */
	ask_read(&observer, worker, 0, 0, LIVE_BYTES);
	ask_read(&observer, worker, 0, 0, LIVE_BYTES);
	for (int i = 0; i < 2; i++) {
		struct error err;

		assert_int_equal(conn_receive_wait(observer.conn, deadline_in_ms(PATIENCE_MS),
					 &message, &err),
			1);
		assert_true(message.type == MSG_READ_OUT ||
			    (message.type == MSG_ERROR && message.u.error.code == WIRE_BUSY));
		message_finish(&message);
	}
	/* The reader and the worker go while it is read. */
	ask_read(&observer, worker, 0, 0, LIVE_BYTES);
	raw_close(&observer);
	raw_open(&observer, &one_broker, ROLE_OBSERVER);
	ask_read(&observer, worker, 0, 0, LIVE_BYTES);
	strew_agent_close(agent);
	raw_close(&observer);
	strew_host_free(memory);
}

static void expect_read_out(struct raw *observer, uint64_t serial)
{
	struct message message;

	raw_expect(observer, MSG_READ_OUT, &message);
	assert_int_equal(message.serial, serial);
	assert_int_equal(message.nfds, 1);
	message_finish(&message);
}

/* Reads on and on, and takes no answer: there is one, whose memory is all that is held for it. */
static void test_reading_back_without_taking_it(void **state)
{
	struct strew_agent *agent;
	struct message message;
	struct layout layout;
	struct raw observer;
	uint64_t worker, serial;
	void *memory;

	(void)state;
	assert_int_equal(strew_host_alloc(LIVE_BYTES, &memory), 0);
	agent = start_scattered(memory);
	raw_open(&observer, &one_broker, ROLE_OBSERVER);
	ask_layout(&observer, 0, &layout, &message);
	worker = message.u.laid_out.worker;
	layout_finish(&layout);
	message_finish(&message);
	for (int turn = 0; turn < 3; turn++) {
		struct pollfd pollfd = {.fd = conn_fd(observer.conn), .events = POLLIN};

		ask_read(&observer, worker, 0, 0, LIVE_BYTES);
		serial = observer.serial;
		assert_int_equal(poll(&pollfd, 1, PATIENCE_MS), 1);
		for (int i = 0; i < 8; i++) {
			ask_read(&observer, worker, 0, 0, LIVE_BYTES);
			broker_status(&one_broker, &message); /* it has been looked at by then */
			message_finish(&message);
		}
		expect_read_out(&observer, serial);
		for (int i = 0; i < 8; i++) {
			raw_expect_error(&observer, -EBUSY, "read the answer to the last read");
		}
	}
	raw_close(&observer);
	strew_agent_close(agent);
	strew_host_free(memory);
}

#define CASE(name) cmocka_unit_test_teardown(name, one_check)

int main(void)
{
	const struct CMUnitTest tests[] = {
		CASE(test_progress),
		CASE(test_explain_in_pages),
		CASE(test_reading_back),
		CASE(test_reading_back_without_taking_it),
	};

	return test_finish(cmocka_run_group_tests(tests, one_start, one_finish), test_fds_at_start);
}
