/*
 * Two brokers, two GPUs that do not reach each other: f32 into bf16, f16 and f32, bf16 into f32, in
 * rows that lie apart and in columns, into memory of either kind and on either GPU, also of one
 * worker on both; from a trainer on each. All of every allocation is compared, so that what nobody
 * takes must be as it was.
 */
#include "base/util.h"
#include "broker/play.h"
#include "gpu/cuda_driver.h"
#include "strew/strew.h"
#include "unit/cast_reference.h"
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define AREA_BYTES (2u << 20)
#define POISON 0xa5

/* "w", f32: of it a box goes into rows that lie PITCH elements apart. */
#define ROWS 96
#define COLS 130
#define FIRST_ROW 7
#define TAKEN_ROWS 61
#define FIRST_COL 3
#define TAKEN_COLS 77
#define PITCH 90
/* "h", bf16: all of it goes into f32, its columns behind each other. */
#define H_ROWS 40
#define H_COLS 64

static struct broker lead, node;
static struct cuda_ctx *ctx[2];
static unsigned (*to_host)(void *, cuda_ptr, size_t);
static unsigned (*create_chunk)(
	unsigned long long *, size_t, const struct cuda_alloc_prop *, unsigned long long);

static void find_symbol(const char *name, void *entry)
{
	void *symbol = dlsym(dlopen("libcuda.so.1", RTLD_NOW | RTLD_NOLOAD), name);

	assert_non_null(symbol);
	memcpy(entry, &symbol, sizeof(symbol));
}

static void enter(int device)
{
	assert_int_equal(cuda_driver.cuCtxSetCurrent(ctx[device]), CUDA_OK);
}

static int start(void **state)
{
	char address[32];

	(void)state;
	assert_int_equal(cuda_driver_load(false, NULL), 0);
	assert_int_equal(cuda_driver.cuInit(0), CUDA_OK);
	for (int i = 0; i < 2; i++) {
		assert_int_equal(cuda_driver.cuDevicePrimaryCtxRetain(&ctx[i], i), CUDA_OK);
	}
	find_symbol("cuMemcpyDtoH_v2", &to_host);
	find_symbol("cuMemCreate", &create_chunk);
	free_address(address);
	setenv("NCCL_HOSTID", "lead", 1);
	broker_start(&lead,
		(const char *[]){"--backend", "cuda", "--device", "0", "--listen", address, NULL});
	setenv("NCCL_HOSTID", "node", 1);
	broker_start(&node,
		(const char *[]){"--backend", "cuda", "--device", "0", "--join", address, NULL});
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

/* Memory on a GPU, and what it should hold. */
struct area {
	int device;
	bool chunk;
	cuda_ptr address;
	unsigned char *want;
};

static cuda_ptr map_chunk(int device)
{
	struct cuda_alloc_prop prop = {.type = CUDA_ALLOCATION_PINNED,
		.handle_types = CUDA_HANDLE_POSIX_FD,
		.location = {.type = CUDA_LOCATION_DEVICE, .id = device}};
	struct cuda_access access = {.location = prop.location, .flags = CUDA_ACCESS_READ_WRITE};
	unsigned long long chunk;
	cuda_ptr address;

	assert_int_equal(create_chunk(&chunk, AREA_BYTES, &prop, 0), CUDA_OK);
	assert_int_equal(cuda_driver.cuMemAddressReserve(&address, AREA_BYTES, 0, 0, 0), CUDA_OK);
	assert_int_equal(cuda_driver.cuMemMap(address, AREA_BYTES, 0, chunk, 0), CUDA_OK);
	assert_int_equal(cuda_driver.cuMemSetAccess(address, AREA_BYTES, &access, 1), CUDA_OK);
	assert_int_equal(cuda_driver.cuMemRelease(chunk), CUDA_OK);
	return address;
}

static void area_open(struct area *area, int device, bool chunk)
{
	*area = (struct area){.device = device, .chunk = chunk, .want = malloc(AREA_BYTES)};
	memset(area->want, POISON, AREA_BYTES);
	enter(device);
	if (chunk) {
		area->address = map_chunk(device);
	} else {
		assert_int_equal(cuda_driver.cuMemAlloc(&area->address, AREA_BYTES), CUDA_OK);
	}
	assert_int_equal(cuda_driver.cuMemcpyHtoD(area->address, area->want, AREA_BYTES), CUDA_OK);
}

static void area_close(struct area *area)
{
	enter(area->device);
	if (area->chunk) {
		assert_int_equal(cuda_driver.cuMemUnmap(area->address, AREA_BYTES), CUDA_OK);
		assert_int_equal(cuda_driver.cuMemAddressFree(area->address, AREA_BYTES), CUDA_OK);
	} else {
		assert_int_equal(cuda_driver.cuMemFree(area->address), CUDA_OK);
	}
	free(area->want);
}

static void area_check(const struct area *area, const char *what, unsigned number)
{
	unsigned char *got = malloc(AREA_BYTES);

	enter(area->device);
	assert_int_equal(to_host(got, area->address, AREA_BYTES), CUDA_OK);
	for (size_t i = 0; i < AREA_BYTES; i++) {
		if (got[i] != area->want[i]) {
			print_error("taker %u, %s: byte %zu is 0x%02x, 0x%02x is wanted\n", number,
				what, i, got[i], area->want[i]);
			fail();
		}
	}
	free(got);
}

/* A replica of its own: p takes of "w", q of "h". */
struct taker {
	struct broker *broker;
	enum strew_dtype dtype; /* of p */
	enum strew_apply apply;
	int p_device, q_device;
	bool chunks;
	struct strew_agent *agent;
	struct area p, q;
};

#define P_AT 52 /* bytes into the area: aligned to elements, and to no vector */
#define Q_AT 4096

static void taker_start(struct taker *taker, uint32_t replica)
{
	struct strew_agent_options options = {.socket = taker->broker->socket,
		.model = "m",
		.replica = replica,
		.members = 1,
		.gate = STREW_GATE_LIVE,
		.apply = taker->apply,
		.serve_thread = 1};
	struct strew_parameter p = {.name = "p",
		.dtype = taker->dtype,
		.ndim = 2,
		.shape = {TAKEN_ROWS, TAKEN_COLS},
		.stride = {PITCH, 1}};
	struct strew_parameter q = {.name = "q",
		.dtype = STREW_F32,
		.ndim = 2,
		.shape = {H_ROWS, H_COLS},
		.stride = {1, H_ROWS}};
	struct strew_piece of_w = {.tensor = "w",
		.dtype = STREW_F32,
		.ndim = 2,
		.shape = {ROWS, COLS},
		.start = {FIRST_ROW, FIRST_COL},
		.extent = {TAKEN_ROWS, TAKEN_COLS},
		.stride = {PITCH, 1},
		.cast = 1};
	struct strew_piece of_h = {.tensor = "h",
		.dtype = STREW_BF16,
		.ndim = 2,
		.shape = {H_ROWS, H_COLS},
		.extent = {H_ROWS, H_COLS},
		.stride = {1, H_ROWS},
		.cast = 1};

	area_open(&taker->p, taker->p_device, taker->chunks);
	area_open(&taker->q, taker->q_device, false);
	p.data = (void *)(uintptr_t)(taker->p.address + P_AT);
	q.data = (void *)(uintptr_t)(taker->q.address + Q_AT);
	assert_int_equal(strew_agent_open(&options, &taker->agent), 0);
	assert_int_equal(strew_agent_declare(taker->agent, &p, &of_w.parameter), 0);
	assert_int_equal(strew_agent_declare(taker->agent, &q, &of_h.parameter), 0);
	assert_int_equal(strew_agent_piece(taker->agent, &of_w), 0);
	assert_int_equal(strew_agent_piece(taker->agent, &of_h), 0);
	if (strew_agent_register(taker->agent)) {
		print_error("taker %u: %s\n", replica, strew_error());
		fail();
	}
}

static void taker_stop(struct taker *taker)
{
	strew_agent_close(taker->agent);
	area_close(&taker->p);
	area_close(&taker->q);
}

static void taker_holds(struct taker *taker, unsigned number, const uint32_t *w, const uint16_t *h)
{
	size_t size = strew_dtype_size(taker->dtype);

	for (size_t row = 0; row < TAKEN_ROWS; row++) {
		for (size_t col = 0; col < TAKEN_COLS; col++) {
			uint32_t bits = w[(FIRST_ROW + row) * COLS + FIRST_COL + col];

			bits = taker->dtype == STREW_F32 ? bits
							 : ref_cast(bits, STREW_F32, taker->dtype);
			memcpy(taker->p.want + P_AT + (row * PITCH + col) * size, &bits, size);
		}
	}
	for (size_t row = 0; row < H_ROWS; row++) {
		for (size_t col = 0; col < H_COLS; col++) {
			uint32_t bits = ref_cast(h[row * H_COLS + col], STREW_BF16, STREW_F32);

			memcpy(taker->q.want + Q_AT + (col * H_ROWS + row) * sizeof(bits), &bits,
				sizeof(bits));
		}
	}
	area_check(&taker->p, "p", number);
	area_check(&taker->q, "q", number);
}

/* Random bits, NaNs and subnormals among them, from a trainer whose tensors lie on that GPU. */
static void publish_from(int device, bool chunk, struct taker *takers, size_t ntakers,
	uint64_t first, uint64_t versions)
{
	uint32_t w[ROWS * COLS];
	uint16_t h[H_ROWS * H_COLS];
	struct strew_tensor tensors[] = {
		{.name = "w", .dtype = STREW_F32, .ndim = 2, .shape = {ROWS, COLS}},
		{.name = "h", .dtype = STREW_BF16, .ndim = 2, .shape = {H_ROWS, H_COLS}},
	};
	struct strew_trainer *trainer;
	struct area area;

	area_open(&area, device, chunk);
	tensors[0].data = (void *)(uintptr_t)area.address;
	tensors[1].data = (void *)(uintptr_t)(area.address + sizeof(w) + 2);
	assert_int_equal(strew_trainer_open(&(struct strew_trainer_options){.socket = lead.socket,
						    .model = "m"},
				 &trainer),
		0);
	assert_int_equal(strew_trainer_declare(trainer, &tensors[0]), 0);
	assert_int_equal(strew_trainer_declare(trainer, &tensors[1]), 0);
	assert_int_equal(strew_trainer_seal(trainer), 0);
	for (uint64_t version = first; version < first + versions; version++) {
		struct strew_report report;

		test_random_fill(w, sizeof(w));
		test_random_fill(h, sizeof(h));
		memcpy(area.want, w, sizeof(w));
		memcpy(area.want + sizeof(w) + 2, h, sizeof(h));
		enter(device);
		assert_int_equal(
			cuda_driver.cuMemcpyHtoD(area.address, area.want, AREA_BYTES), CUDA_OK);
		assert_int_equal(strew_trainer_publish(trainer, version, NULL, 0, PATIENCE_MS), 0);
		assert_int_equal(strew_trainer_wait_report(trainer, PATIENCE_MS, &report), 0);
		if (report.outcome != STREW_OUTCOME_COMMITTED) {
			print_error("version %d: %s\n", (int)version, report.text);
			fail();
		}
		strew_report_finish(&report);
		for (unsigned i = 0; i < ntakers; i++) {
			taker_holds(&takers[i], i, w, h);
		}
	}
	strew_trainer_close(trainer);
	area_close(&area);
}

static void test_every_way(void **state)
{
	struct taker takers[] = {
		{&lead, STREW_BF16, STREW_APPLY_DIRECT, 1, 1, false, NULL, {0}, {0}},
		{&lead, STREW_F16, STREW_APPLY_STAGED, 1, 1, true, NULL, {0}, {0}},
		{&lead, STREW_F32, STREW_APPLY_STAGED, 1, 0, false, NULL, {0}, {0}},
		{&lead, STREW_BF16, STREW_APPLY_STAGED, 0, 1, true, NULL, {0}, {0}},
		{&lead, STREW_F32, STREW_APPLY_DIRECT, 0, 0, false, NULL, {0}, {0}},
		{&node, STREW_BF16, STREW_APPLY_STAGED, 1, 1, false, NULL, {0}, {0}},
		{&node, STREW_F16, STREW_APPLY_DIRECT, 1, 0, true, NULL, {0}, {0}},
		{&node, STREW_F32, STREW_APPLY_STAGED, 0, 1, false, NULL, {0}, {0}},
		{&node, STREW_F32, STREW_APPLY_DIRECT, 0, 0, true, NULL, {0}, {0}},
	};

	(void)state;
	for (uint32_t i = 0; i < ARRAY_LEN(takers); i++) {
		taker_start(&takers[i], i);
	}
	publish_from(0, false, takers, ARRAY_LEN(takers), 1, 2);
	publish_from(1, false, takers, ARRAY_LEN(takers), 3, 2);
	publish_from(1, true, takers, ARRAY_LEN(takers), 5, 1);
	for (uint32_t i = 0; i < ARRAY_LEN(takers); i++) {
		taker_stop(&takers[i]);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_every_way),
	};

	test_seed();
	return test_finish(cmocka_run_group_tests(tests, start, finish), test_fds_at_start);
}
