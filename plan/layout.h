/*
 * A layout: all pieces of one worker. Built by the agent (and by the broker
 * from the wire), sealed once, then immutable. It says where in a worker's
 * allocations each box of each tensor belongs; it holds no addresses.
 */
#ifndef PLAN_LAYOUT_H
#define PLAN_LAYOUT_H

#include "plan/tensor.h"

struct parameter {
	const char *name;
	uint32_t allocation;   /* index into the worker's allocations */
	uint64_t offset_bytes; /* of element 0 in the allocation */
	enum strew_dtype dtype;
	int ndim;
	uint64_t shape[STREW_MAX_DIMS];
	uint64_t stride[STREW_MAX_DIMS]; /* elements */
};

/* See struct strew_piece in strew/agent.h for the meaning of view, start, extent, stride. */
struct piece {
	uint32_t tensor;    /* index into layout.tensors */
	uint32_t parameter; /* index into layout.parameters */
	int ndim;	    /* of the view */
	uint64_t view[STREW_MAX_DIMS];
	struct box box;			 /* in the view */
	uint64_t offset;		 /* elements from the parameter's element 0 */
	uint64_t stride[STREW_MAX_DIMS]; /* elements of the parameter, by view dimension */
	bool cast;			 /* tensor and parameter may differ in dtype */
};

struct layout {
	struct tensor *tensors;
	size_t ntensors, cap_tensors;
	struct parameter *parameters;
	size_t nparameters, cap_parameters;
	struct piece *pieces;
	size_t npieces, cap_pieces;
	struct arena *arena; /* names */
	struct name_index *tensor_index, *parameter_index;
	bool sealed;
};

void layout_init(struct layout *layout);
void layout_finish(struct layout *layout);

/* Names are copied. -EEXIST: the name is taken. Returns 0 and the index. */
int layout_add_parameter(struct layout *layout, const struct parameter *parameter,
	uint32_t *ret_index, struct error *err);

/* Adds the tensor, or finds it: the same name must come with the same dtype and shape (-EINVAL). */
int layout_add_tensor(
	struct layout *layout, const struct tensor *tensor, uint32_t *ret_index, struct error *err);

/*
 * Checks and adds a piece: the view refines the tensor's shape, the box lies in
 * the view, the destination lies inside the parameter's span and is injective,
 * the dtypes are equal or the piece declares a cast that there is. The sentence
 * names tensor and parameter.
 */
int layout_add_piece(struct layout *layout, const struct piece *piece, struct error *err);

/*
 * Ends building: every parameter has a piece unless `partial` (-EINVAL names the first
 * without), no two pieces write the same element (-EINVAL names both). After it
 * the layout is immutable.
 */
int layout_seal(struct layout *layout, bool partial, struct error *err);

/* Bytes from element 0 to one past the last element of the parameter. */
uint64_t parameter_span_bytes(const struct parameter *parameter);

/* Bytes that the pieces write, all together. */
uint64_t layout_bytes(const struct layout *layout);

#endif
