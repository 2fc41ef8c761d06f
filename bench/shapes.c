#include "bench/shapes.h"
#include "base/util.h"
#include "bench/child.h"
#include <jansson.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* One pass over a model: emits tensors, parameters and pieces for one rank. */
struct maker {
	struct shapes *out;
	json_t *config;
	const char *path;
	uint32_t size, rank;
	enum strew_dtype dtype;
	uint64_t hidden;
	char prefix[64]; /* of the names, "model.layers.3." */
};

static uint64_t field(const struct maker *maker, const char *name, uint64_t missing)
{
	json_t *value = json_object_get(maker->config, name);

	if (!json_is_integer(value)) {
		if (missing == UINT64_MAX) {
			bench_fail(1, "%s: \"%s\" is missing", maker->path, name);
		}
		return missing;
	}
	return (uint64_t)json_integer_value(value);
}

static uint64_t need_field(const struct maker *maker, const char *name)
{
	return field(maker, name, UINT64_MAX);
}

uint64_t shape_bytes(const struct shape_tensor *shape)
{
	uint64_t bytes = strew_dtype_size(shape->dtype);

	for (int i = 0; i < shape->ndim; i++) {
		bytes *= shape->shape[i];
	}
	return bytes;
}

static void grow(void *array, size_t *cap, size_t n, size_t size)
{
	if (array_grow(array, cap, n + 1, size)) {
		bench_fail(1, "out of memory");
	}
}

/* cols 0: one dimension. */
static uint32_t tensor(struct maker *maker, const char *name, uint64_t rows, uint64_t cols)
{
	struct shapes *out = maker->out;
	struct shape_tensor *one;

	grow(&out->tensors, &out->cap_tensors, out->ntensors, sizeof(*one));
	one = &out->tensors[out->ntensors];
	*one = (struct shape_tensor){
		.dtype = maker->dtype, .ndim = cols ? 2 : 1, .shape = {rows, cols}};
	snprintf(one->name, sizeof(one->name), "%s%s", maker->prefix, name);
	out->bytes += shape_bytes(one);
	return (uint32_t)out->ntensors++;
}

static uint32_t parameter(
	struct maker *maker, const char *name, int ndim, uint64_t a, uint64_t b, uint64_t c)
{
	struct shapes *out = maker->out;
	struct shape_tensor *one;

	grow(&out->parameters, &out->cap_parameters, out->nparameters, sizeof(*one));
	one = &out->parameters[out->nparameters];
	*one = (struct shape_tensor){.dtype = maker->dtype, .ndim = ndim, .shape = {a, b, c}};
	snprintf(one->name, sizeof(one->name), "%s%s", maker->prefix, name);
	out->worker_bytes += shape_bytes(one);
	return (uint32_t)out->nparameters++;
}

static void piece(struct maker *maker, const struct shape_piece *one)
{
	struct shapes *out = maker->out;

	grow(&out->pieces, &out->cap_pieces, out->npieces, sizeof(*one));
	out->pieces[out->npieces++] = *one;
}

/* This rank's share of n, which the ranks divide. */
static uint64_t share(const struct maker *maker, uint64_t n, const char *what)
{
	if (n % maker->size) {
		bench_fail(1, "%s: %llu %s cannot be divided among %u ranks", maker->path,
			(unsigned long long)n, what, maker->size);
	}
	return n / maker->size;
}

/* A vector or matrix that every rank has whole. */
static void replicated(struct maker *maker, const char *name, uint64_t rows, uint64_t cols)
{
	uint32_t t = tensor(maker, name, rows, cols);
	uint32_t p = parameter(maker, name, cols ? 2 : 1, rows, cols, 0);

	piece(maker, &(struct shape_piece){.tensor = t,
			     .parameter = p,
			     .extent = {rows, MAX(cols, 1)},
			     .row_stride = MAX(cols, 1)});
}

/* Rows of one tensor, this rank's stretch of them from `row` on, at row `at` of a parameter. */
static void rows_of(
	struct maker *maker, uint32_t t, uint64_t row, uint64_t rows, uint32_t p, uint64_t at)
{
	uint64_t cols = MAX(maker->out->tensors[t].shape[1], 1);

	piece(maker, &(struct shape_piece){.tensor = t,
			     .parameter = p,
			     .start = {row, 0},
			     .extent = {rows, cols},
			     .offset = at * cols,
			     .row_stride = cols});
}

/* A parameter of a stretch of the rows. */
static void column_parallel(struct maker *maker, const char *name, uint64_t rows, uint64_t cols)
{
	uint32_t t = tensor(maker, name, rows, cols);
	uint64_t own = share(maker, rows, "rows");
	uint32_t p = parameter(maker, name, 2, own, cols, 0);

	rows_of(maker, t, maker->rank * own, own, p, 0);
}

/* A stretch of the columns of tensor t at `offset` of a parameter, dense there. */
static void columns_of(struct maker *maker, uint32_t t, uint32_t p, uint64_t offset)
{
	const struct shape_tensor *from = &maker->out->tensors[t];
	uint64_t own = share(maker, from->shape[1], "columns");

	piece(maker, &(struct shape_piece){.tensor = t,
			     .parameter = p,
			     .start = {0, maker->rank * own},
			     .extent = {from->shape[0], own},
			     .offset = offset,
			     .row_stride = own});
}

static void row_parallel(struct maker *maker, const char *name, uint64_t rows, uint64_t cols)
{
	uint32_t t = tensor(maker, name, rows, cols);
	uint32_t p = parameter(maker, name, 2, rows, share(maker, cols, "columns"), 0);

	columns_of(maker, t, p, 0);
}

/* gate_proj and up_proj below each other, then down_proj; `name` is "mlp." or the like. */
static void feed_forward(struct maker *maker, const char *name, uint64_t inner)
{
	uint64_t own = share(maker, inner, "rows");
	char text[SHAPE_NAME_BYTES];
	uint32_t gate, up, p;

	snprintf(text, sizeof(text), "%sgate_proj.weight", name);
	gate = tensor(maker, text, inner, maker->hidden);
	snprintf(text, sizeof(text), "%sup_proj.weight", name);
	up = tensor(maker, text, inner, maker->hidden);
	snprintf(text, sizeof(text), "%sgate_up_proj.weight", name);
	p = parameter(maker, text, 2, 2 * own, maker->hidden, 0);
	rows_of(maker, gate, maker->rank * own, own, p, 0);
	rows_of(maker, up, maker->rank * own, own, p, own);
	snprintf(text, sizeof(text), "%sdown_proj.weight", name);
	row_parallel(maker, text, maker->hidden, inner);
}

/* Experts stacked: w13 [E, 2 I / size, H], w2 [E, H, I / size]. */
static void experts(struct maker *maker, uint64_t count, uint64_t inner)
{
	uint64_t own = share(maker, inner, "rows of an expert");
	uint32_t w13 = parameter(maker, "mlp.experts.w13_weight", 3, count, 2 * own, maker->hidden);
	uint32_t w2 = parameter(maker, "mlp.experts.w2_weight", 3, count, maker->hidden, own);

	for (uint64_t e = 0; e < count; e++) {
		char text[SHAPE_NAME_BYTES];
		uint32_t t;

		snprintf(text, sizeof(text), "mlp.experts.%u.gate_proj.weight", (unsigned)e);
		t = tensor(maker, text, inner, maker->hidden);
		rows_of(maker, t, maker->rank * own, own, w13, e * 2 * own);
		snprintf(text, sizeof(text), "mlp.experts.%u.up_proj.weight", (unsigned)e);
		t = tensor(maker, text, inner, maker->hidden);
		rows_of(maker, t, maker->rank * own, own, w13, e * 2 * own + own);
		snprintf(text, sizeof(text), "mlp.experts.%u.down_proj.weight", (unsigned)e);
		t = tensor(maker, text, maker->hidden, inner);
		columns_of(maker, t, w2, e * maker->hidden * own);
	}
}

/* Query, key and value fused by heads; key and value heads are copied where there are fewer of
 * them than ranks. bias: three vectors more. */
static void attention(struct maker *maker, bool bias, bool norms)
{
	uint64_t heads = need_field(maker, "num_attention_heads");
	uint64_t kv_heads = field(maker, "num_key_value_heads", heads);
	uint64_t head = field(maker, "head_dim", maker->hidden / heads);
	uint64_t own_q = share(maker, heads, "heads") * head;
	uint64_t own_kv = (kv_heads >= maker->size ? share(maker, kv_heads, "heads") : 1) * head;
	uint64_t kv_row = maker->rank * own_kv;
	static const char *const kinds[] = {"weight", "bias"};

	if (kv_heads < maker->size) {
		kv_row = maker->rank * kv_heads / maker->size * head;
	}
	for (int k = 0; k <= bias; k++) {
		static const char *const names[] = {"q", "k", "v"};
		uint64_t cols = k ? 0 : maker->hidden, at = 0;
		char text[SHAPE_NAME_BYTES];
		uint32_t p;

		snprintf(text, sizeof(text), "self_attn.qkv_proj.%s", kinds[k]);
		p = parameter(maker, text, k ? 1 : 2, own_q + 2 * own_kv, cols, 0);
		for (int i = 0; i < 3; i++) {
			uint64_t rows = (i ? kv_heads : heads) * head, own = i ? own_kv : own_q;
			uint32_t t;

			snprintf(text, sizeof(text), "self_attn.%s_proj.%s", names[i], kinds[k]);
			t = tensor(maker, text, rows, cols);
			rows_of(maker, t, i ? kv_row : maker->rank * own_q, own, p, at);
			at += own;
		}
	}
	if (norms) {
		replicated(maker, "self_attn.q_norm.weight", head, 0);
		replicated(maker, "self_attn.k_norm.weight", head, 0);
	}
	row_parallel(maker, "self_attn.o_proj.weight", maker->hidden, heads * head);
}

/* DeepSeek's latent attention. */
static void latent_attention(struct maker *maker)
{
	uint64_t heads = need_field(maker, "num_attention_heads");
	uint64_t q_rank = need_field(maker, "q_lora_rank");
	uint64_t kv_rank = need_field(maker, "kv_lora_rank");
	uint64_t nope = need_field(maker, "qk_nope_head_dim");
	uint64_t rope = need_field(maker, "qk_rope_head_dim");
	uint64_t value = need_field(maker, "v_head_dim");
	uint32_t q = tensor(maker, "self_attn.q_a_proj.weight", q_rank, maker->hidden);
	uint32_t kv =
		tensor(maker, "self_attn.kv_a_proj_with_mqa.weight", kv_rank + rope, maker->hidden);
	uint32_t p = parameter(maker, "self_attn.fused_qkv_a_proj.weight", 2,
		q_rank + kv_rank + rope, maker->hidden, 0);

	rows_of(maker, q, 0, q_rank, p, 0);
	rows_of(maker, kv, 0, kv_rank + rope, p, q_rank);
	replicated(maker, "self_attn.q_a_layernorm.weight", q_rank, 0);
	replicated(maker, "self_attn.kv_a_layernorm.weight", kv_rank, 0);
	column_parallel(maker, "self_attn.q_b_proj.weight", heads * (nope + rope), q_rank);
	column_parallel(maker, "self_attn.kv_b_proj.weight", heads * (nope + value), kv_rank);
	row_parallel(maker, "self_attn.o_proj.weight", maker->hidden, heads * value);
}

static void deepseek_mlp(struct maker *maker, uint64_t layer)
{
	uint64_t inner = need_field(maker, "moe_intermediate_size");
	uint64_t count = need_field(maker, "n_routed_experts");
	uint64_t shared = need_field(maker, "n_shared_experts");
	enum strew_dtype dtype = maker->dtype;

	if (layer < need_field(maker, "first_k_dense_replace")) {
		feed_forward(maker, "mlp.", need_field(maker, "intermediate_size"));
		return;
	}
	replicated(maker, "mlp.gate.weight", count, maker->hidden);
	maker->dtype = STREW_F32;
	replicated(maker, "mlp.gate.e_score_correction_bias", count, 0);
	maker->dtype = dtype;
	feed_forward(maker, "mlp.shared_experts.", inner * shared);
	experts(maker, count, inner);
}

static void make_layer(struct maker *maker, const char *family, uint64_t layer)
{
	snprintf(maker->prefix, sizeof(maker->prefix), "model.layers.%u.", (unsigned)layer);
	replicated(maker, "input_layernorm.weight", maker->hidden, 0);
	if (strcmp(family, "deepseek_v3") == 0) {
		latent_attention(maker);
	} else {
		attention(maker, strcmp(family, "qwen2") == 0, strncmp(family, "qwen3", 5) == 0);
	}
	replicated(maker, "post_attention_layernorm.weight", maker->hidden, 0);
	if (strcmp(family, "deepseek_v3") == 0) {
		deepseek_mlp(maker, layer);
	} else if (strcmp(family, "qwen3_moe") == 0) {
		replicated(
			maker, "mlp.gate.weight", need_field(maker, "num_experts"), maker->hidden);
		experts(maker, need_field(maker, "num_experts"),
			need_field(maker, "moe_intermediate_size"));
	} else {
		feed_forward(maker, "mlp.", need_field(maker, "intermediate_size"));
	}
}

static const char *family_of(const struct maker *maker)
{
	static const char *const known[] = {
		"llama", "mistral", "qwen2", "qwen3", "qwen3_moe", "deepseek_v3"};
	const char *family = json_string_value(json_object_get(maker->config, "model_type"));

	for (size_t i = 0; family && i < ARRAY_LEN(known); i++) {
		if (strcmp(family, known[i]) == 0) {
			return family;
		}
	}
	bench_fail(1,
		"%s: model_type %s is none of llama, mistral, qwen2, qwen3, qwen3_moe, "
		"deepseek_v3",
		maker->path, family ? family : "(missing)");
}

void shapes_load(
	const char *path, uint64_t layers, uint32_t size, uint32_t rank, struct shapes *ret_shapes)
{
	struct maker maker = {.path = path, .size = size, .rank = rank, .dtype = STREW_BF16};
	json_error_t error;
	const char *family;
	uint64_t vocabulary;

	maker.config = json_load_file(path, 0, &error);
	if (!maker.config) {
		bench_fail(1, "%s: %s", path, error.text);
	}
	*ret_shapes = (struct shapes){0};
	maker.out = ret_shapes;
	family = family_of(&maker);
	maker.hidden = need_field(&maker, "hidden_size");
	vocabulary = need_field(&maker, "vocab_size");
	ret_shapes->all_layers = need_field(&maker, "num_hidden_layers");
	ret_shapes->layers = layers ? MIN(layers, ret_shapes->all_layers) : ret_shapes->all_layers;
	column_parallel(&maker, "model.embed_tokens.weight", vocabulary, maker.hidden);
	for (uint64_t i = 0; i < ret_shapes->layers; i++) {
		make_layer(&maker, family, i);
	}
	maker.prefix[0] = '\0';
	replicated(&maker, "model.norm.weight", maker.hidden, 0);
	if (!json_is_true(json_object_get(maker.config, "tie_word_embeddings"))) {
		column_parallel(&maker, "lm_head.weight", vocabulary, maker.hidden);
	}
	json_decref(maker.config);
}

#define CUT_COLS 256u /* elements; a row is 512 bytes */

void shapes_cut(
	uint64_t count, uint64_t bytes, uint32_t size, uint32_t rank, struct shapes *ret_shapes)
{
	struct maker maker = {.path = "--cut", .size = size, .rank = rank, .dtype = STREW_BF16};
	uint64_t rows = bytes / count / (CUT_COLS * 2) / size * size;

	*ret_shapes = (struct shapes){0};
	maker.out = ret_shapes;
	for (uint64_t i = 0; i < count; i++) {
		char name[32];

		snprintf(name, sizeof(name), "tensor.%u", (unsigned)i);
		column_parallel(&maker, name, MAX(rows, size), CUT_COLS);
	}
}

void shapes_finish(struct shapes *shapes)
{
	free(shapes->tensors);
	free(shapes->parameters);
	free(shapes->pieces);
	*shapes = (struct shapes){0};
}
