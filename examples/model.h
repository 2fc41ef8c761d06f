/*
 * A model as two lists that follow from its config.json: the tensors of its
 * checkpoint (Hugging Face's names and shapes), which a trainer holds, and the
 * parameters that a tensor-parallel rank allocates for them as vLLM lays them
 * out (fused, sharded, padded). Llama family (llama, mistral, qwen2) and BERT.
 * Nothing here knows strew's library except for its element types.
 */
#ifndef EXAMPLES_MODEL_H
#define EXAMPLES_MODEL_H

#include <stdbool.h>
#include <strew/types.h>

#define MODEL_NAME_BYTES 128
#define VOCABULARY_PADDING 64

/* How a parameter is cut out of its tensors. */
enum parameter_kind {
	REPLICATED,	 /* the whole tensor on every rank: norms, row-parallel biases */
	COLUMN_PARALLEL, /* a stretch of the rows */
	ROW_PARALLEL,	 /* a stretch of the columns */
	FUSED_QKV,	 /* rows of q, k and v below each other, by heads */
	FUSED_GATE_UP,	 /* rows of gate, then as many of up */
	VOCABULARY,	 /* a stretch of the rows of the padded vocabulary */
};

struct model_tensor {
	char name[MODEL_NAME_BYTES];
	enum strew_dtype dtype;
	int ndim; /* 1: cols is 1 */
	uint64_t rows, cols;
};

/* A parameter takes tensor `first` and, if it is fused, the one or two after it. */
struct model_parameter {
	char name[MODEL_NAME_BYTES];
	enum parameter_kind kind;
	uint32_t first;
	enum strew_dtype dtype;
	int ndim;
	uint64_t rows, cols; /* on one rank */
};

struct model {
	bool bert;
	bool qkv_bias;
	bool tied; /* lm_head is embed_tokens: one storage, one tensor */
	enum strew_dtype dtype;
	uint64_t layers, hidden, heads, kv_heads, head_size, intermediate;
	uint64_t vocabulary, padded_vocabulary, positions, types;
	uint32_t size; /* ranks of tensor parallelism */
	struct model_tensor *tensors;
	size_t ntensors;
	struct model_parameter *parameters;
	size_t nparameters;
};

/* Reads a config.json for `size` ranks. Prints what is wrong and returns -1. */
int model_load(const char *path, uint32_t size, struct model *ret_model);
void model_finish(struct model *model);

/* A box of a tensor and the row of the parameter where it goes; its columns fill the parameter. */
struct model_box {
	uint32_t tensor;
	uint64_t row, rows, col, cols;
	uint64_t at;
};

/* The boxes (at most three) that make up a parameter on that rank; returns how many. */
int model_boxes(const struct model *model, const struct model_parameter *parameter, uint32_t rank,
	struct model_box boxes[3]);

#endif
