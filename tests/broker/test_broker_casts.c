/*
 * Casts from end to end: a trainer's f32 tensor into workers that want bf16, f16 and f32, on its
 * own node and on another one, with live memory compared element by element with a cast that is
 * worked out in doubles. Random bits: NaNs, infinities and subnormals are among them.
 */
#include "base/util.h"
#include "broker/peers.h"
#include "unit/cast_reference.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define ROWS 96
#define COLS 130 /* no multiple of a vector */
#define FIRST 7	 /* rows [FIRST, FIRST + TAKEN) are taken */
#define TAKEN 61

static struct broker lead, node;

static int start(void **state)
{
	char address[32];

	(void)state;
	free_address(address);
	broker_start(&lead, (const char *[]){"--listen", address, "--slot", "64K", NULL});
	broker_start(&node, (const char *[]){"--join", address, "--slot", "64K", NULL});
	broker_wait_brokers(&lead, 2);
	return 0;
}

static int finish(void **state)
{
	(void)state;
	broker_finish(&node);
	broker_finish(&lead);
	return 0;
}

struct taker {
	struct strew_agent *agent;
	enum strew_dtype dtype;
	unsigned char *data;
	size_t len_bytes;
};

/* A replica of its own: rows of "w", cast where the dtypes differ. Returns register's outcome. */
static int taker_start(struct taker *taker, const struct broker *broker, const char *model,
	uint32_t replica, enum strew_dtype dtype, enum strew_apply apply, int cast)
{
	struct strew_agent_options options = {.socket = broker->socket,
		.model = model,
		.replica = replica,
		.members = 1,
		.gate = STREW_GATE_LIVE,
		.apply = apply,
		.serve_thread = 1};
	struct strew_parameter parameter = {
		.name = "p", .dtype = dtype, .ndim = 2, .shape = {TAKEN, COLS}};
	struct strew_piece piece = {.tensor = "w",
		.dtype = STREW_F32,
		.ndim = 2,
		.shape = {ROWS, COLS},
		.start = {FIRST, 0},
		.extent = {TAKEN, COLS},
		.cast = cast};
	void *data;
	int rc;

	taker->dtype = dtype;
	taker->len_bytes = TAKEN * COLS * strew_dtype_size(dtype);
	assert_int_equal(strew_host_alloc(taker->len_bytes, &data), 0);
	taker->data = data;
	memset(data, 0xa5, taker->len_bytes);
	parameter.data = data;
	assert_int_equal(strew_agent_open(&options, &taker->agent), 0);
	assert_int_equal(strew_agent_declare(taker->agent, &parameter, &piece.parameter), 0);
	rc = strew_agent_piece(taker->agent, &piece);
	return rc ? rc : strew_agent_register(taker->agent);
}

static void taker_stop(struct taker *taker)
{
	strew_agent_close(taker->agent);
	strew_host_free(taker->data);
}

static void taker_holds(const struct taker *taker, const uint32_t *values)
{
	size_t size = strew_dtype_size(taker->dtype);

	for (size_t i = 0; i < TAKEN * COLS; i++) {
		uint32_t from = values[FIRST * COLS + i], got = 0;
		uint32_t want =
			taker->dtype == STREW_F32 ? from : ref_cast(from, STREW_F32, taker->dtype);

		memcpy(&got, taker->data + i * size, size);
		if (got != want) {
			print_error("element %zu: f32 0x%08x became 0x%x, 0x%x is wanted\n", i,
				from, got, want);
			fail();
		}
	}
}

/* Returns the bytes that went by wire. */
static uint64_t publish(struct strew_trainer *trainer, uint64_t number)
{
	struct strew_report report;
	uint64_t wire_bytes;

	assert_int_equal(strew_trainer_publish(trainer, number, NULL, 0, PATIENCE_MS), 0);
	assert_int_equal(strew_trainer_wait_report(trainer, PATIENCE_MS, &report), 0);
	assert_int_equal(report.outcome, STREW_OUTCOME_COMMITTED);
	wire_bytes = report.wire_bytes;
	strew_report_finish(&report);
	return wire_bytes;
}

/* Four replicas: both nodes, all three types, direct and staged; two versions. */
static void test_every_way(void **state)
{
	static const struct {
		struct broker *broker;
		enum strew_dtype dtype;
		enum strew_apply apply;
	} table[] = {
		{&lead, STREW_BF16, STREW_APPLY_DIRECT},
		{&lead, STREW_F16, STREW_APPLY_STAGED},
		{&node, STREW_BF16, STREW_APPLY_STAGED},
		{&node, STREW_F16, STREW_APPLY_DIRECT},
		{&node, STREW_F32, STREW_APPLY_DIRECT},
	};
	struct taker takers[ARRAY_LEN(table)];
	struct strew_trainer *trainer;
	struct strew_tensor tensor = {
		.name = "w", .dtype = STREW_F32, .ndim = 2, .shape = {ROWS, COLS}};
	void *values;

	(void)state;
	for (uint32_t i = 0; i < ARRAY_LEN(table); i++) {
		assert_int_equal(taker_start(&takers[i], table[i].broker, "casts", i,
					 table[i].dtype, table[i].apply, 1),
			0);
	}
	assert_int_equal(strew_host_alloc(ROWS * COLS * 4, &values), 0);
	tensor.data = values;
	assert_int_equal(strew_trainer_open(&(struct strew_trainer_options){.socket = lead.socket,
						    .model = "casts"},
				 &trainer),
		0);
	assert_int_equal(strew_trainer_declare(trainer, &tensor), 0);
	assert_int_equal(strew_trainer_seal(trainer), 0);
	for (uint64_t number = 1; number <= 2; number++) {
		test_random_fill(values, ROWS * COLS * 4);
		publish(trainer, number);
		for (size_t i = 0; i < ARRAY_LEN(takers); i++) {
			taker_holds(&takers[i], values);
		}
	}
	strew_trainer_close(trainer);
	for (size_t i = 0; i < ARRAY_LEN(takers); i++) {
		taker_stop(&takers[i]);
	}
	strew_host_free(values);
}

/*
 * Where all receivers by wire want the same 16 bits, those are what travels, whatever the
 * trainer's own node wants; one who comes and wants something else gets it from then on.
 */
static void test_before_the_wire(void **state)
{
	const uint64_t all = ROWS * COLS * 4;
	struct taker local, remote, third;
	struct strew_trainer *trainer;
	struct strew_tensor tensor = {
		.name = "w", .dtype = STREW_F32, .ndim = 2, .shape = {ROWS, COLS}};
	void *values;
	uint64_t number = 0;

	(void)state;
	assert_int_equal(
		taker_start(&local, &lead, "wire", 0, STREW_F32, STREW_APPLY_DIRECT, 0), 0);
	assert_int_equal(
		taker_start(&remote, &node, "wire", 1, STREW_BF16, STREW_APPLY_STAGED, 1), 0);
	assert_int_equal(strew_host_alloc(all, &values), 0);
	tensor.data = values;
	assert_int_equal(strew_trainer_open(&(struct strew_trainer_options){.socket = lead.socket,
						    .model = "wire"},
				 &trainer),
		0);
	assert_int_equal(strew_trainer_declare(trainer, &tensor), 0);
	assert_int_equal(strew_trainer_seal(trainer), 0);
	for (int turn = 0; turn < 3; turn++) {
		uint64_t wire_bytes;

		test_random_fill(values, all);
		wire_bytes = publish(trainer, ++number);
		assert_in_range(wire_bytes, all / 2, all / 2 + 4096);
		taker_holds(&local, values);
		taker_holds(&remote, values);
	}
	assert_int_equal(
		taker_start(&third, &node, "wire", 2, STREW_F32, STREW_APPLY_DIRECT, 0), 0);
	for (int turn = 0; turn < 2; turn++) {
		uint64_t wire_bytes;

		test_random_fill(values, all);
		wire_bytes = publish(trainer, ++number);
		assert_in_range(wire_bytes, all, all + 4096);
		taker_holds(&local, values);
		taker_holds(&remote, values);
		taker_holds(&third, values);
	}
	taker_stop(&third);
	test_random_fill(values, all);
	assert_in_range(publish(trainer, ++number), all / 2, all / 2 + 4096);
	taker_holds(&remote, values);
	strew_trainer_close(trainer);
	taker_stop(&remote);
	taker_stop(&local);
	strew_host_free(values);
}

/* Two tensors in one place, of which one is cast: each put knows its own, and as much travels. */
static void test_in_parts(void **state)
{
	const uint64_t all = ROWS * COLS * 4;
	struct strew_trainer *trainer;
	struct taker local, remote;
	uint64_t number = 0, whole_bytes;
	uint32_t subsets[2];
	void *values, *kept;

	(void)state;
	kept = malloc(all);
	assert_non_null(kept);
	assert_int_equal(
		taker_start(&local, &lead, "parts", 0, STREW_F16, STREW_APPLY_DIRECT, 1), 0);
	assert_int_equal(
		taker_start(&remote, &node, "parts", 1, STREW_BF16, STREW_APPLY_STAGED, 1), 0);
	assert_int_equal(strew_host_alloc(all, &values), 0);
	assert_int_equal(strew_trainer_open(&(struct strew_trainer_options){.socket = lead.socket,
						    .model = "parts"},
				 &trainer),
		0);
	for (unsigned i = 0; i < 2; i++) {
		struct strew_tensor tensor = {.name = i ? "w" : "v",
			.dtype = STREW_F32,
			.ndim = 2,
			.shape = {ROWS, COLS},
			.data = values};

		assert_int_equal(strew_trainer_declare(trainer, &tensor), 0);
	}
	assert_int_equal(strew_trainer_seal(trainer), 0);
	for (unsigned i = 0; i < 2; i++) {
		assert_int_equal(strew_trainer_subset(
					 trainer, &(const char *){i ? "w" : "v"}, 1, &subsets[i]),
			0);
	}
	test_random_fill(values, all);
	whole_bytes = publish(trainer, ++number);
	for (unsigned turn = 0; turn < 4; turn++) {
		struct strew_report report;

		assert_int_equal(strew_trainer_open_parts(trainer, ++number, 0, PATIENCE_MS), 0);
		for (unsigned k = 0; k < 2; k++) {
			unsigned which = (k + turn) % 2;

			test_random_fill(values, all);
			if (which) {
				memcpy(kept, values, all);
			}
			assert_int_equal(strew_trainer_put(trainer, subsets[which], NULL), 0);
			assert_int_equal(strew_trainer_wait_released(trainer, PATIENCE_MS), 0);
		}
		test_random_fill(values, all);
		assert_int_equal(strew_trainer_close_parts(trainer), 0);
		assert_int_equal(strew_trainer_wait_report(trainer, PATIENCE_MS, &report), 0);
		assert_int_equal(report.outcome, STREW_OUTCOME_COMMITTED);
		assert_in_range(report.wire_bytes, whole_bytes - 4096, whole_bytes + 4096);
		strew_report_finish(&report);
		taker_holds(&local, kept);
		taker_holds(&remote, kept);
	}
	strew_trainer_close(trainer);
	taker_stop(&remote);
	taker_stop(&local);
	strew_host_free(values);
	free(kept);
}

/* Without the word, and between other types, it is refused by name before anything is mapped. */
static void test_refused(void **state)
{
	struct taker taker;

	(void)state;
	assert_int_equal(
		taker_start(&taker, &lead, "refused", 0, STREW_BF16, STREW_APPLY_DIRECT, 0),
		-ENOTSUP);
	assert_non_null(strstr(strew_error(), "no cast"));
	taker_stop(&taker);
	assert_int_equal(taker_start(&taker, &lead, "refused", 0, STREW_I8, STREW_APPLY_DIRECT, 1),
		-ENOTSUP);
	assert_non_null(strstr(strew_error(), "f32, f16 and bf16"));
	taker_stop(&taker);
}

int main(void)
{
	const struct CMUnitTest tests[] = {cmocka_unit_test(test_every_way),
		cmocka_unit_test(test_before_the_wire), cmocka_unit_test(test_in_parts),
		cmocka_unit_test(test_refused)};

	return test_finish(cmocka_run_group_tests(tests, start, finish), test_fds_at_start);
}
