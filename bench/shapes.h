/*
 * A model as the bench sees it: the tensors of its checkpoint (Hugging Face's names and
 * shapes, from the published config.json) and, for one tensor-parallel rank, the
 * parameters that an engine makes of them (fused, sharded, experts stacked, as vLLM lays
 * them out) with the boxes that fill them. Layers can be cut so that it fits. Or a model
 * that is cut into a number of equal tensors, for what depends on their number alone.
 */
#ifndef BENCH_SHAPES_H
#define BENCH_SHAPES_H

#include <stddef.h>
#include <stdint.h>
#include <strew/types.h>

#define SHAPE_NAME_BYTES 96
#define SHAPE_DIMS 3

struct shape_tensor {
	char name[SHAPE_NAME_BYTES];
	enum strew_dtype dtype;
	int ndim;
	uint64_t shape[SHAPE_DIMS];
};

/* The box [start, start + extent) of a tensor, row-major at `offset` elements of a parameter,
 * whose rows are `row_stride` elements apart (ndim 2; ndim 1 is dense). */
struct shape_piece {
	uint32_t tensor, parameter;
	uint64_t start[2], extent[2];
	uint64_t offset, row_stride;
};

struct shapes {
	struct shape_tensor *tensors;
	size_t ntensors, cap_tensors;
	struct shape_tensor *parameters; /* of this rank */
	size_t nparameters, cap_parameters;
	struct shape_piece *pieces; /* all tensors have at most two dimensions */
	size_t npieces, cap_pieces;
	uint64_t bytes;	       /* of all tensors */
	uint64_t worker_bytes; /* of this rank's parameters */
	uint64_t layers, all_layers;
};

/*
 * Reads config.json for rank `rank` of `size`; layers 0: all. Families: llama, mistral, qwen2,
 * qwen3, qwen3_moe, deepseek_v3. Ends the program with a sentence if it cannot.
 */
void shapes_load(
	const char *path, uint64_t layers, uint32_t size, uint32_t rank, struct shapes *ret_shapes);
/* `count` tensors of equal length, `bytes` in all (rounded to what divides), in bf16. */
void shapes_cut(
	uint64_t count, uint64_t bytes, uint32_t size, uint32_t rank, struct shapes *ret_shapes);
void shapes_finish(struct shapes *shapes);

/* Bytes of a tensor or parameter. */
uint64_t shape_bytes(const struct shape_tensor *shape);

#endif
