/*
 * The layouts that engines use, by name. Each case builds one worker's pieces
 * and then compares the parameter, element by element, with an index map of its
 * own, written down from the engines' formulas.
 */
#include "plan_reference.h"
#include <errno.h>

#define UNTOUCHED (-1)

struct at {
	int64_t tensor; /* number in the manifest, or UNTOUCHED */
	uint64_t linear;
};

static struct ref_world *world;
static struct layout *layout;

static void start(void)
{
	world = ref_create(1);
	layout = &world->workers[0].layout;
}

static uint32_t hold(const char *name, int ndim, const uint64_t *shape)
{
	struct tensor tensor = {.name = name, .dtype = STREW_F32, .ndim = ndim};
	struct box box = {{0}, {0}};
	uint64_t stride[STREW_MAX_DIMS];
	struct error err;
	uint32_t t;

	memcpy(tensor.shape, shape, sizeof(*shape) * (size_t)ndim);
	memcpy(box.extent, shape, sizeof(*shape) * (size_t)ndim);
	assert_int_equal(manifest_add_tensor(&world->manifest, &tensor, &t, &err), 0);
	dims_dense(ndim, shape, stride);
	ref_hold(world, t, 0, &box, 0, stride);
	return t;
}

static uint32_t parameter(const char *name, int ndim, const uint64_t *shape)
{
	struct ref_worker *worker = &world->workers[0];
	struct parameter p = {.name = name,
		.allocation = (uint32_t)worker->nallocations,
		.dtype = STREW_F32,
		.ndim = ndim};
	struct error err;
	uint32_t index;

	memcpy(p.shape, shape, sizeof(*shape) * (size_t)ndim);
	assert_int_equal(layout_add_parameter(layout, &p, &index, &err), 0);
	ref_alloc(&worker->allocations[worker->nallocations++], 4 * ref_count(ndim, shape));
	return index;
}

static void add(uint32_t tensor, uint32_t param, struct piece piece)
{
	struct error err = {0};

	assert_int_equal(
		layout_add_tensor(layout, &world->manifest.tensors[tensor], &piece.tensor, &err),
		0);
	piece.parameter = param;
	if (!piece.ndim) {
		piece.ndim = layout->tensors[piece.tensor].ndim;
		memcpy(piece.view, layout->tensors[piece.tensor].shape, sizeof(piece.view));
	}
	if (layout_add_piece(layout, &piece, &err) < 0) {
		fail_msg("%s", err.text);
	}
}

/* Rows [first, first + rows) of [_, columns] to row `to` of a parameter as wide. */
static void add_rows(
	uint32_t t, uint32_t p, uint64_t first, uint64_t rows, uint64_t columns, uint64_t to)
{
	add(t, p,
		(struct piece){.box = {{first, 0}, {rows, columns}},
			.offset = to * columns,
			.stride = {columns, 1}});
}

/* Runs through several slot lengths and compares parameter 0 with the map. */
static void run_and_compare(struct at (*map)(uint64_t linear, const void *how), const void *how)
{
	struct ref_memory *memory = &world->workers[0].allocations[0];
	unsigned char *before = malloc(memory->len);

	memcpy(before, memory->bytes, memory->len);
	ref_run(world, 64 + test_random_below(4096));
	for (uint64_t i = 0; i < memory->len / 4; i++) {
		struct at at = map(i, how);
		uint64_t value = ref_value((uint32_t)at.tensor, at.linear);

		if (at.tensor == UNTOUCHED) {
			assert_memory_equal(memory->bytes + 4 * i, before + 4 * i, 4);
		} else {
			assert_memory_equal(memory->bytes + 4 * i, &value, 4);
		}
	}
	free(before);
	ref_destroy(world);
}

struct shard {
	uint64_t t, r, a, b, c;
};

static struct at column_map(uint64_t i, const void *how)
{
	const struct shard *s = how;

	return (struct at){0, s->r * (s->a / s->t) * s->b + i};
}

static void column_parallel(void **state)
{
	(void)state;
	for (uint64_t t = 1; t <= 8; t *= 2) {
		for (uint64_t r = 0; r < t; r++) {
			struct shard s = {.t = t, .r = r, .a = 32, .b = 7};
			uint64_t rows = s.a / t;

			start();
			hold("up_proj.weight", 2, (uint64_t[]){s.a, s.b});
			parameter("up", 2, (uint64_t[]){rows, s.b});
			add_rows(0, 0, r * rows, rows, s.b, 0);
			run_and_compare(column_map, &s);
		}
	}
}

static struct at row_map(uint64_t i, const void *how)
{
	const struct shard *s = how;
	uint64_t width = s->b / s->t;

	return (struct at){0, i / width * s->b + s->r * width + i % width};
}

static void row_parallel(void **state)
{
	(void)state;
	for (uint64_t t = 1; t <= 8; t *= 2) {
		for (uint64_t r = 0; r < t; r++) {
			struct shard s = {.t = t, .r = r, .a = 9, .b = 32};
			uint64_t width = s.b / t;

			start();
			hold("o_proj.weight", 2, (uint64_t[]){s.a, s.b});
			parameter("o", 2, (uint64_t[]){s.a, width});
			add(0, 0,
				(struct piece){.box = {{0, r * width}, {s.a, width}},
					.stride = {width, 1}});
			run_and_compare(row_map, &s);
		}
	}
}

#define HEADS 32
#define KV_HEADS 8
#define HEAD 4

static struct at qkv_map(uint64_t i, const void *how)
{
	const struct shard *s = how;
	uint64_t row = i / s->c, column = i % s->c, nh = HEADS / s->t;
	uint64_t nk = s->t >= KV_HEADS ? 1 : KV_HEADS / s->t;
	uint64_t rep = s->t >= KV_HEADS ? s->t / KV_HEADS : 1;
	int64_t tensor = 0;
	uint64_t source = s->r * nh * HEAD + row;

	if (row >= nh * HEAD) {
		tensor = row < (nh + nk) * HEAD ? 1 : 2;
		source = s->r / rep * nk * HEAD + (row - nh * HEAD) % (nk * HEAD);
	}
	return (struct at){tensor, source * s->c + column};
}

static void fused_qkv(void **state)
{
	static const uint64_t sizes[] = {1, 2, 4, 16};

	(void)state;
	for (size_t k = 0; k < 4; k++) {
		for (uint64_t r = 0; r < sizes[k]; r++) {
			struct shard s = {.t = sizes[k], .r = r, .c = 5};
			uint64_t q = HEADS * HEAD / s.t, kv = KV_HEADS * HEAD / s.t, from = r * kv;

			if (s.t > KV_HEADS) {
				kv = HEAD;
				from = r / (s.t / KV_HEADS) * HEAD;
			}
			start();
			hold("q_proj", 2, (uint64_t[]){HEADS * HEAD, s.c});
			hold("k_proj", 2, (uint64_t[]){KV_HEADS * HEAD, s.c});
			hold("v_proj", 2, (uint64_t[]){KV_HEADS * HEAD, s.c});
			parameter("qkv", 2, (uint64_t[]){q + 2 * kv, s.c});
			add_rows(0, 0, r * q, q, s.c, 0);
			add_rows(1, 0, from, kv, s.c, q);
			add_rows(2, 0, from, kv, s.c, q + kv);
			run_and_compare(qkv_map, &s);
		}
	}
}

static struct at gate_up_map(uint64_t i, const void *how)
{
	const struct shard *s = how;
	uint64_t rows = s->a / s->t, row = i / s->b;

	return (struct at){row >= rows, (s->r * rows + row % rows) * s->b + i % s->b};
}

static void gate_up(void **state)
{
	(void)state;
	for (uint64_t r = 0; r < 4; r++) {
		struct shard s = {.t = 4, .r = r, .a = 24, .b = 6};

		start();
		hold("gate_proj", 2, (uint64_t[]){s.a, s.b});
		hold("up_proj", 2, (uint64_t[]){s.a, s.b});
		parameter("gate_up", 2, (uint64_t[]){2 * s.a / s.t, s.b});
		add_rows(0, 0, r * 6, 6, s.b, 0);
		add_rows(1, 0, r * 6, 6, s.b, 6);
		run_and_compare(gate_up_map, &s);
	}
}

/* a experts of b rows and c columns; tensors 2e and 2e + 1 are expert e's gate and up. */
static struct at w13_map(uint64_t i, const void *how)
{
	const struct shard *s = how;
	uint64_t rows = s->b / s->t, row = i / s->c % (2 * rows), e = i / s->c / (2 * rows);

	return (struct at){
		(int64_t)(2 * e + (row >= rows)), (s->r * rows + row % rows) * s->c + i % s->c};
}

static void moe_w13_by_expert(void **state)
{
	(void)state;
	for (uint64_t r = 0; r < 2; r++) {
		struct shard s = {.t = 2, .r = r, .a = 4, .b = 8, .c = 5};

		start();
		for (uint32_t e = 0; e < 2 * s.a; e++) {
			char name[32];

			snprintf(name, sizeof(name), "experts.%u.%s", e / 2, e % 2 ? "up" : "gate");
			hold(name, 2, (uint64_t[]){s.b, s.c});
		}
		parameter("w13", 3, (uint64_t[]){s.a, s.b, s.c});
		for (uint32_t e = 0; e < 2 * s.a; e++) {
			add_rows(e, 0, r * 4, 4, s.c, e * 4);
		}
		run_and_compare(w13_map, &s);
	}
}

/* The same from two tensors of all experts, gate [E, I, in] and up [E, I, in]. */
static struct at w13_whole_map(uint64_t i, const void *how)
{
	const struct shard *s = how;
	uint64_t rows = s->b / s->t, row = i / s->c % (2 * rows), e = i / s->c / (2 * rows);

	return (struct at){row >= rows, (e * s->b + s->r * rows + row % rows) * s->c + i % s->c};
}

static void moe_w13_whole(void **state)
{
	(void)state;
	for (uint64_t r = 0; r < 2; r++) {
		struct shard s = {.t = 2, .r = r, .a = 3, .b = 8, .c = 5};
		uint64_t rows = s.b / s.t;

		start();
		hold("gate", 3, (uint64_t[]){s.a, s.b, s.c});
		hold("up", 3, (uint64_t[]){s.a, s.b, s.c});
		parameter("w13", 3, (uint64_t[]){s.a, 2 * rows, s.c});
		for (uint32_t k = 0; k < 2; k++) {
			add(k, 0,
				(struct piece){.box = {{0, r * rows, 0}, {s.a, rows, s.c}},
					.offset = k * rows * s.c,
					.stride = {2 * rows * s.c, s.c, 1}});
		}
		run_and_compare(w13_whole_map, &s);
	}
}

/* w2 [E, in, I/t]: experts of a list, columns of a shard. */
static const uint64_t experts[] = {1, 4, 5};

static struct at w2_map(uint64_t i, const void *how)
{
	const struct shard *s = how;
	uint64_t width = s->c / s->t, row = i / width;

	return (struct at){
		0, (experts[row / s->b] * s->b + row % s->b) * s->c + s->r * width + i % width};
}

static void moe_w2_expert_parallel(void **state)
{
	(void)state;
	for (uint64_t r = 0; r < 2; r++) {
		struct shard s = {.t = 2, .r = r, .a = 6, .b = 5, .c = 8};
		uint64_t width = s.c / s.t;

		start();
		hold("w2", 3, (uint64_t[]){s.a, s.b, s.c});
		parameter("w2", 3, (uint64_t[]){3, s.b, width});
		for (uint64_t e = 0; e < 3; e++) {
			add(0, 0,
				(struct piece){.box = {{experts[e], 0, r * width}, {1, s.b, width}},
					.offset = e * s.b * width,
					.stride = {s.b * width, width, 1}});
		}
		run_and_compare(w2_map, &s);
	}
}

/* a: V, b: width, c: rows a rank. */
static struct at vocabulary_map(uint64_t i, const void *how)
{
	const struct shard *s = how;
	uint64_t row = s->r * s->c + i / s->b;

	return (struct at){row < s->a ? 0 : UNTOUCHED, row * s->b + i % s->b};
}

static void vocabulary_padding(void **state)
{
	/* 32001 as it is, narrow; then ones of which a rank has padding alone. */
	static const uint64_t cases[][2] = {{32001, 2}, {128, 2}, {97, 4}, {65, 8}, {1, 4}};

	(void)state;
	for (size_t k = 0; k < 5; k++) {
		for (uint64_t r = 0; r < cases[k][1]; r++) {
			uint64_t v = cases[k][0], t = cases[k][1], p = (v + 63) / 64 * 64;
			struct shard s = {.t = t, .r = r, .a = v, .b = k ? 3 : 1, .c = p / t};
			uint64_t first = MIN(r * s.c, v), last = MIN((r + 1) * s.c, v);

			if (k == 0) {
				assert_int_equal(p, 32064);
				assert_int_equal(last - first, r ? 15969 : 16032);
			}
			start();
			hold("embed_tokens", 2, (uint64_t[]){v, s.b});
			parameter("embed", 2, (uint64_t[]){s.c, s.b});
			add_rows(0, 0, first, last - first, s.b, 0);
			run_and_compare(vocabulary_map, &s);
		}
	}
}

/* dst[h·d + s·d/2 + j] = src[h·d + 2j + s], for a shard of heads. a heads, b head size, c columns.
 */
static struct at rotary_map(uint64_t i, const void *how)
{
	const struct shard *s = how;
	uint64_t row = i / s->c, h = row / s->b, half = row % s->b / (s->b / 2);
	uint64_t j = row % (s->b / 2);

	h += s->r * (s->a / s->t);
	return (struct at){0, (h * s->b + 2 * j + half) * s->c + i % s->c};
}

static void rotary_permutation(void **state)
{
	(void)state;
	for (uint64_t t = 1; t <= 4; t *= 2) {
		for (uint64_t r = 0; r < t; r++) {
			struct shard s = {.t = t, .r = r, .a = 4, .b = 8, .c = 3};
			uint64_t n = s.a / t, d = s.b, c = s.c;

			start();
			hold("wq", 2, (uint64_t[]){s.a * d, c});
			parameter("q", 2, (uint64_t[]){n * d, c});
			add(0, 0,
				(struct piece){.ndim = 4,
					.view = {s.a, d / 2, 2, c},
					.box = {{r * n, 0, 0, 0}, {n, d / 2, 2, c}},
					.stride = {d * c, c, d / 2 * c, 1}});
			run_and_compare(rotary_map, &s);
		}
	}
}

/* Rotary in a fused parameter with plain v rows, and in a bias. */
static struct at rotary_bias_map(uint64_t i, const void *how)
{
	(void)how;
	if (i >= 16) {
		return (struct at){1, i - 16};
	}
	return (struct at){0, i / 8 * 8 + 2 * (i % 4) + i % 8 / 4};
}

static void rotary_bias(void **state)
{
	(void)state;
	start();
	hold("wq.bias", 1, (uint64_t[]){16});
	hold("wv.bias", 1, (uint64_t[]){6});
	parameter("qv.bias", 1, (uint64_t[]){22});
	add(0, 0,
		(struct piece){.ndim = 3,
			.view = {2, 4, 2},
			.box = {{0, 0, 0}, {2, 4, 2}},
			.stride = {8, 1, 4}});
	add(1, 0, (struct piece){.box = {{0}, {6}}, .offset = 16, .stride = {1}});
	run_and_compare(rotary_bias_map, NULL);
}

static struct at replicated_map(uint64_t i, const void *how)
{
	(void)how;
	return (struct at){0, i};
}

static void replicated(void **state)
{
	(void)state;
	start();
	hold("norm.weight", 1, (uint64_t[]){100});
	hold("scale", 0, (uint64_t[]){0});
	parameter("norm", 1, (uint64_t[]){100});
	parameter("scale", 0, (uint64_t[]){0});
	add(0, 0, (struct piece){.box = {{0}, {100}}, .stride = {1}});
	add(1, 1, (struct piece){.ndim = 0});
	run_and_compare(replicated_map, NULL);
}

/* Strides of 0 mean dense in a parameter and in a piece alike. */
static void dense_by_default(void **state)
{
	(void)state;
	start();
	hold("w", 2, (uint64_t[]){10, 10});
	parameter("w", 2, (uint64_t[]){10, 10});
	assert_int_equal(layout->parameters[0].stride[0], 10);
	add(0, 0, (struct piece){.box = {{0, 0}, {10, 10}}});
	run_and_compare(replicated_map, NULL);
}

int main(void)
{
	const struct CMUnitTest tests[] = {cmocka_unit_test(column_parallel),
		cmocka_unit_test(row_parallel), cmocka_unit_test(fused_qkv),
		cmocka_unit_test(gate_up), cmocka_unit_test(moe_w13_by_expert),
		cmocka_unit_test(moe_w13_whole), cmocka_unit_test(moe_w2_expert_parallel),
		cmocka_unit_test(vocabulary_padding), cmocka_unit_test(rotary_permutation),
		cmocka_unit_test(rotary_bias), cmocka_unit_test(replicated),
		cmocka_unit_test(dense_by_default)};

	test_seed();
	return TEST_RUN(tests);
}
