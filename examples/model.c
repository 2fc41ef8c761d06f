#include "examples/model.h"
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* A list of tensors and parameters grows by one call for each parameter. */
static void *grow(void *array, size_t count, size_t size)
{
	if (count & (count - 1)) {
		return array; /* room is doubled at powers of two */
	}
	array = realloc(array, (count ? 2 * count : 1) * size);
	if (!array) {
		perror("realloc");
		exit(1);
	}
	return array;
}

static uint32_t add_tensor(
	struct model *model, const char *name, enum strew_dtype dtype, uint64_t rows, uint64_t cols)
{
	struct model_tensor *tensor;

	model->tensors = grow(model->tensors, model->ntensors, sizeof(*tensor));
	tensor = &model->tensors[model->ntensors];
	memset(tensor, 0, sizeof(*tensor));
	snprintf(tensor->name, sizeof(tensor->name), "%s", name);
	tensor->dtype = dtype;
	tensor->ndim = cols ? 2 : 1;
	tensor->rows = rows;
	tensor->cols = cols ? cols : 1;
	return (uint32_t)model->ntensors++;
}

static void add_parameter(struct model *model, const char *prefix, const char *name,
	enum parameter_kind kind, uint32_t first, uint64_t rows, uint64_t cols)
{
	struct model_parameter *parameter;

	model->parameters = grow(model->parameters, model->nparameters, sizeof(*parameter));
	parameter = &model->parameters[model->nparameters++];
	memset(parameter, 0, sizeof(*parameter));
	snprintf(parameter->name, sizeof(parameter->name), "%s%s", prefix, name);
	parameter->kind = kind;
	parameter->first = first;
	parameter->dtype = model->tensors[first].dtype;
	parameter->ndim = model->tensors[first].ndim;
	parameter->rows = rows;
	parameter->cols = cols;
}

/* One tensor [rows, cols] (cols 0: [rows]) and the parameter that is made of it alone. */
static void add(struct model *model, const char *prefix, const char *name, enum parameter_kind kind,
	uint64_t rows, uint64_t cols)
{
	char full[MODEL_NAME_BYTES];
	uint64_t local_rows = rows, local_cols = cols ? cols : 1;
	uint32_t first;

	snprintf(full, sizeof(full), "%s%s", prefix, name);
	first = add_tensor(model, full, model->dtype, rows, cols);
	if (kind == COLUMN_PARALLEL) {
		local_rows = rows / model->size;
	} else if (kind == ROW_PARALLEL) {
		local_cols = cols / model->size;
	} else if (kind == VOCABULARY) {
		local_rows = model->padded_vocabulary / model->size;
	}
	add_parameter(model, prefix, name, kind, first, local_rows, local_cols);
}

/* The three tensors of an attention's input and the parameter that they are fused into. */
static void add_qkv(struct model *model, const char *prefix, const char *const names[3],
	const char *suffix, const char *fused, uint64_t cols)
{
	uint64_t kv_heads = model->kv_heads > model->size ? model->kv_heads / model->size : 1;
	uint64_t rows = (model->heads / model->size + 2 * kv_heads) * model->head_size;
	uint32_t first = 0;

	for (int i = 0; i < 3; i++) {
		char name[MODEL_NAME_BYTES];
		uint64_t heads = i == 0 ? model->heads : model->kv_heads;
		uint32_t index;

		snprintf(name, sizeof(name), "%s%s%s", prefix, names[i], suffix);
		index = add_tensor(model, name, model->dtype, heads * model->head_size, cols);
		first = i == 0 ? index : first;
	}
	add_parameter(model, prefix, fused, FUSED_QKV, first, rows, cols ? cols : 1);
}

static void list_llama(struct model *model)
{
	static const char *const qkv[] = {
		"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"};
	uint64_t hidden = model->hidden;

	add(model, "model.", "embed_tokens.weight", VOCABULARY, model->vocabulary, hidden);
	for (uint64_t layer = 0; layer < model->layers; layer++) {
		char prefix[64], name[MODEL_NAME_BYTES];
		uint32_t gate;

		snprintf(prefix, sizeof(prefix), "model.layers.%u.", (unsigned)layer);
		add(model, prefix, "input_layernorm.weight", REPLICATED, hidden, 0);
		add_qkv(model, prefix, qkv, ".weight", "self_attn.qkv_proj.weight", hidden);
		if (model->qkv_bias) {
			add_qkv(model, prefix, qkv, ".bias", "self_attn.qkv_proj.bias", 0);
		}
		add(model, prefix, "self_attn.o_proj.weight", ROW_PARALLEL, hidden,
			model->heads * model->head_size);
		add(model, prefix, "post_attention_layernorm.weight", REPLICATED, hidden, 0);
		snprintf(name, sizeof(name), "%smlp.gate_proj.weight", prefix);
		gate = add_tensor(model, name, model->dtype, model->intermediate, hidden);
		snprintf(name, sizeof(name), "%smlp.up_proj.weight", prefix);
		add_tensor(model, name, model->dtype, model->intermediate, hidden);
		add_parameter(model, prefix, "mlp.gate_up_proj.weight", FUSED_GATE_UP, gate,
			2 * (model->intermediate / model->size), hidden);
		add(model, prefix, "mlp.down_proj.weight", ROW_PARALLEL, hidden,
			model->intermediate);
	}
	add(model, "model.", "norm.weight", REPLICATED, hidden, 0);
	if (!model->tied) {
		add(model, "", "lm_head.weight", VOCABULARY, model->vocabulary, hidden);
	}
}

static void list_bert(struct model *model)
{
	static const char *const qkv[] = {
		"attention.self.query", "attention.self.key", "attention.self.value"};
	static const char *const norms[] = {"LayerNorm.weight", "LayerNorm.bias"};
	const char *prefix = "embeddings.";
	uint64_t hidden = model->hidden;
	char buf[64];

	/* In the checkpoint, but no engine has a parameter for it: strew reports it as unwanted. */
	add_tensor(model, "embeddings.position_ids", STREW_I64, 1, model->positions);
	add(model, prefix, "word_embeddings.weight", VOCABULARY, model->vocabulary, hidden);
	add(model, prefix, "position_embeddings.weight", REPLICATED, model->positions, hidden);
	add(model, prefix, "token_type_embeddings.weight", REPLICATED, model->types, hidden);
	add(model, prefix, norms[0], REPLICATED, hidden, 0);
	add(model, prefix, norms[1], REPLICATED, hidden, 0);
	prefix = buf;
	for (uint64_t layer = 0; layer < model->layers; layer++) {
		snprintf(buf, sizeof(buf), "encoder.layer.%u.", (unsigned)layer);
		add_qkv(model, prefix, qkv, ".weight", "attention.self.qkv.weight", hidden);
		add_qkv(model, prefix, qkv, ".bias", "attention.self.qkv.bias", 0);
		add(model, prefix, "attention.output.dense.weight", ROW_PARALLEL, hidden, hidden);
		add(model, prefix, "attention.output.dense.bias", REPLICATED, hidden, 0);
		add(model, prefix, "attention.output.LayerNorm.weight", REPLICATED, hidden, 0);
		add(model, prefix, "attention.output.LayerNorm.bias", REPLICATED, hidden, 0);
		add(model, prefix, "intermediate.dense.weight", COLUMN_PARALLEL,
			model->intermediate, hidden);
		add(model, prefix, "intermediate.dense.bias", COLUMN_PARALLEL, model->intermediate,
			0);
		add(model, prefix, "output.dense.weight", ROW_PARALLEL, hidden,
			model->intermediate);
		add(model, prefix, "output.dense.bias", REPLICATED, hidden, 0);
		add(model, prefix, "output.LayerNorm.weight", REPLICATED, hidden, 0);
		add(model, prefix, "output.LayerNorm.bias", REPLICATED, hidden, 0);
	}
	add(model, "pooler.", "dense.weight", REPLICATED, hidden, hidden);
	add(model, "pooler.", "dense.bias", REPLICATED, hidden, 0);
}

static uint64_t number(const json_t *config, const char *key, uint64_t otherwise)
{
	const json_t *value = json_object_get(config, key);

	return json_is_integer(value) && json_integer_value(value) > 0
		       ? (uint64_t)json_integer_value(value)
		       : otherwise;
}

static enum strew_dtype parse_dtype(const char *name, enum strew_dtype otherwise)
{
	if (!name) {
		return otherwise;
	}
	if (strcmp(name, "float32") == 0) {
		return STREW_F32;
	}
	return strcmp(name, "float16") == 0 ? STREW_F16 : STREW_BF16;
}

static int read_config(const json_t *config, const char *path, struct model *model)
{
	const char *type = json_string_value(json_object_get(config, "model_type"));
	bool qwen2 = type && strcmp(type, "qwen2") == 0;

	model->bert = type && strcmp(type, "bert") == 0;
	if (!type || (!model->bert && !qwen2 && strcmp(type, "llama") != 0 &&
			     strcmp(type, "mistral") != 0)) {
		fprintf(stderr, "%s: model_type %s is none of llama, mistral, qwen2, bert\n", path,
			type ? type : "(missing)");
		return -1;
	}
	model->qkv_bias = qwen2 || json_is_true(json_object_get(config, "attention_bias"));
	model->tied = json_is_true(json_object_get(config, "tie_word_embeddings"));
	model->dtype = parse_dtype(json_string_value(json_object_get(config, "torch_dtype")),
		model->bert ? STREW_F32 : STREW_BF16);
	model->layers = number(config, "num_hidden_layers", 0);
	model->hidden = number(config, "hidden_size", 0);
	model->heads = number(config, "num_attention_heads", 0);
	model->kv_heads = number(config, "num_key_value_heads", model->heads);
	model->intermediate = number(config, "intermediate_size", 0);
	model->vocabulary = number(config, "vocab_size", 0);
	model->positions = number(config, "max_position_embeddings", 512);
	model->types = number(config, "type_vocab_size", 2);
	if (!model->layers || !model->hidden || !model->heads || !model->intermediate ||
		!model->vocabulary || model->layers > 1000) {
		fprintf(stderr,
			"%s: needs num_hidden_layers, hidden_size, num_attention_heads, "
			"intermediate_size and vocab_size\n",
			path);
		return -1;
	}
	model->head_size = number(config, "head_dim", model->hidden / model->heads);
	model->padded_vocabulary = (model->vocabulary + VOCABULARY_PADDING - 1) /
				   VOCABULARY_PADDING * VOCABULARY_PADDING;
	return 0;
}

int model_load(const char *path, uint32_t size, struct model *ret_model)
{
	struct model model = {.size = size};
	json_error_t why;
	json_t *config = json_load_file(path, JSON_REJECT_DUPLICATES, &why);
	int rc;

	if (!config) {
		fprintf(stderr, "%s: %s (line %d)\n", path, why.text, why.line);
		return -1;
	}
	rc = read_config(config, path, &model);
	json_decref(config);
	if (rc < 0) {
		return rc;
	}
	if (!size || model.heads % size || model.intermediate % size ||
		model.padded_vocabulary % size || model.heads % model.kv_heads ||
		(model.kv_heads % size && size % model.kv_heads)) {
		fprintf(stderr,
			"%s: heads, kv heads, intermediate size or vocabulary do not "
			"divide among %u ranks\n",
			path, size);
		return -1;
	}
	if (model.bert) {
		list_bert(&model);
	} else {
		list_llama(&model);
	}
	*ret_model = model;
	return 0;
}

void model_finish(struct model *model)
{
	free(model->tensors);
	free(model->parameters);
	memset(model, 0, sizeof(*model));
}

/*
 * Query heads are dealt out evenly. Key and value heads too while there are
 * enough; with more ranks than kv heads, neighbours share one (`share` of them).
 */
static int qkv_boxes(const struct model *model, const struct model_parameter *parameter,
	uint32_t rank, struct model_box boxes[3])
{
	uint64_t size = model->size, d = model->head_size;
	uint64_t q_rows = model->heads / size * d;
	uint64_t kv_rows = model->kv_heads >= size ? model->kv_heads / size * d : d;
	uint64_t share = model->kv_heads >= size ? 1 : size / model->kv_heads;

	for (uint32_t i = 0; i < 3; i++) {
		boxes[i] = (struct model_box){
			.tensor = parameter->first + i,
			.row = i == 0 ? rank * q_rows : rank / share * kv_rows,
			.rows = i == 0 ? q_rows : kv_rows,
			.cols = parameter->cols,
			.at = i == 0 ? 0 : q_rows + (i - 1) * kv_rows,
		};
	}
	return 3;
}

int model_boxes(const struct model *model, const struct model_parameter *parameter, uint32_t rank,
	struct model_box boxes[3])
{
	struct model_box *box = &boxes[0];
	uint64_t half = parameter->rows / 2;

	*box = (struct model_box){
		.tensor = parameter->first, .rows = parameter->rows, .cols = parameter->cols};
	switch (parameter->kind) {
	case REPLICATED:
		return 1;
	case COLUMN_PARALLEL:
		box->row = rank * parameter->rows;
		return 1;
	case ROW_PARALLEL:
		box->col = rank * parameter->cols;
		return 1;
	case FUSED_QKV:
		return qkv_boxes(model, parameter, rank, boxes);
	case FUSED_GATE_UP:
		*box = (struct model_box){parameter->first, rank * half, half, 0, box->cols, 0};
		boxes[1] = *box;
		boxes[1].tensor++;
		boxes[1].at = half;
		return 2;
	case VOCABULARY:
		/* The last ranks have fewer real rows, or none; the rest is padding. */
		box->row = rank * parameter->rows;
		if (box->row >= model->vocabulary) {
			return 0;
		}
		if (box->row + box->rows > model->vocabulary) {
			box->rows = model->vocabulary - box->row;
		}
		return 1;
	}
	return 0;
}
