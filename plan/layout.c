#include "plan/layout.h"
#include "base/util.h"
#include "plan/block.h"
#include "plan/cast.h"
#include "plan/tensor_table.h"
#include "plan/view.h"
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/* Keeps every sum and difference of offsets within a signed 64-bit number. */
#define MEMORY_BYTES_MAX (1ull << 62)

void layout_init(struct layout *layout)
{
	*layout = (struct layout){0};
}

void layout_finish(struct layout *layout)
{
	free(layout->tensors);
	free(layout->parameters);
	free(layout->pieces);
	arena_destroy(layout->arena);
	name_index_destroy(layout->tensor_index);
	name_index_destroy(layout->parameter_index);
	layout_init(layout);
}

static int all_zero(int ndim, const uint64_t *v)
{
	for (int i = 0; i < ndim; i++) {
		if (v[i]) {
			return 0;
		}
	}
	return 1;
}

static int check_unsealed(const struct layout *layout, struct error *err)
{
	if (layout->sealed) {
		return error_set(err, -EINVAL, "the layout is sealed");
	}
	return 0;
}

static int check_parameter(const struct parameter *parameter, struct error *err)
{
	struct tensor dims = {
		.name = parameter->name, .dtype = parameter->dtype, .ndim = parameter->ndim};
	uint64_t span;
	int r;

	memcpy(dims.shape, parameter->shape, sizeof(dims.shape));
	r = tensor_check_as("parameter", &dims, err);
	if (r < 0) {
		return r;
	}
	if (dims_span(parameter->ndim, parameter->shape, parameter->stride, &span) < 0 ||
		span > MEMORY_BYTES_MAX / strew_dtype_size(parameter->dtype)) {
		return error_set(err, -ERANGE,
			"parameter %.128s: its strides reach over 2^62 bytes", parameter->name);
	}
	if (parameter->offset_bytes >
		MEMORY_BYTES_MAX - span * strew_dtype_size(parameter->dtype)) {
		return error_set(err, -ERANGE,
			"parameter %.128s: it ends more than 2^62 bytes into its allocation",
			parameter->name);
	}
	return 0;
}

int layout_add_parameter(struct layout *layout, const struct parameter *parameter,
	uint32_t *ret_index, struct error *err)
{
	struct parameter copy = *parameter;
	int r = check_unsealed(layout, err);

	if (r < 0) {
		return r;
	}
	/* All strides 0 say row-major and dense, as in the public structs. */
	if (copy.ndim > 0 && copy.ndim <= STREW_MAX_DIMS && all_zero(copy.ndim, copy.stride)) {
		dims_dense(copy.ndim, copy.shape, copy.stride);
	}
	r = check_parameter(&copy, err);
	if (r < 0) {
		return r;
	}
	if (name_index_find(layout->parameter_index, copy.name) >= 0) {
		return error_set(
			err, -EEXIST, "parameter %.128s: the name is declared already", copy.name);
	}
	if (layout->nparameters >= LIMIT_PARAMETERS) {
		return error_set(err, -E2BIG, "parameter %.128s: more than %u parameters",
			copy.name, LIMIT_PARAMETERS);
	}
	r = names_prepare(&layout->arena, &layout->parameter_index, err);
	if (r < 0) {
		return r;
	}
	r = plan_grow(&layout->parameters, &layout->cap_parameters, layout->nparameters + 1,
		sizeof(*layout->parameters), err);
	if (r < 0) {
		return r;
	}
	copy.name = arena_string(layout->arena, copy.name);
	if (!copy.name || name_index_add(layout->parameter_index, copy.name,
				  (uint32_t)layout->nparameters) < 0) {
		return error_set(err, -ENOMEM, "out of memory for names");
	}
	layout->parameters[layout->nparameters] = copy;
	*ret_index = (uint32_t)layout->nparameters++;
	return 0;
}

int layout_add_tensor(
	struct layout *layout, const struct tensor *tensor, uint32_t *ret_index, struct error *err)
{
	struct tensor_table table = {&layout->tensors, &layout->ntensors, &layout->cap_tensors,
		&layout->arena, &layout->tensor_index};
	int r = check_unsealed(layout, err);

	return r < 0 ? r : tensor_table_add(&table, tensor, ret_index, err);
}

/* What is wrong with a piece, after its names. */
#define PIECE_ERROR(err, code, tensor, parameter, format, ...)                                     \
	error_set(err, code, "parameter %.64s, tensor %.64s: " format, (parameter)->name,          \
		(tensor)->name, __VA_ARGS__)

static int check_dtypes(const struct tensor *tensor, const struct parameter *parameter,
	const struct piece *piece, struct error *err)
{
	const char *from = strew_dtype_name(tensor->dtype),
		   *to = strew_dtype_name(parameter->dtype);

	if (tensor->dtype == parameter->dtype) {
		return 0;
	}
	if (!piece->cast) {
		return PIECE_ERROR(err, -ENOTSUP, tensor, parameter,
			"the tensor is %s, the parameter %s, and the piece declares no cast", from,
			to);
	}
	if (!cast_known(tensor->dtype, parameter->dtype)) {
		return PIECE_ERROR(err, -ENOTSUP, tensor, parameter,
			"a cast of %s to %s, but casts are between f32, f16 and bf16", from, to);
	}
	return 0;
}

static int check_box(const struct tensor *tensor, const struct parameter *parameter,
	const struct piece *piece, struct error *err)
{
	struct view_map map;
	char a[72], b[72];

	if (!view_map_make(tensor->ndim, tensor->shape, piece->ndim, piece->view, &map)) {
		return PIECE_ERROR(err, -EINVAL, tensor, parameter,
			"view %s does not refine shape %s",
			dims_format(a, sizeof(a), piece->ndim, piece->view),
			dims_format(b, sizeof(b), tensor->ndim, tensor->shape));
	}
	if (!box_inside(piece->ndim, piece->view, &piece->box)) {
		return PIECE_ERROR(err, -ERANGE, tensor, parameter,
			"a box at %s of extent %s is not inside the tensor",
			dims_format(a, sizeof(a), piece->ndim, piece->box.start),
			dims_format(b, sizeof(b), piece->ndim, piece->box.extent));
	}
	return 0;
}

static int check_destination(const struct tensor *tensor, const struct parameter *parameter,
	const struct piece *piece, struct error *err)
{
	uint64_t elements = parameter_span_bytes(parameter) / strew_dtype_size(parameter->dtype);
	uint64_t span;
	char a[72], b[72];

	if (box_empty(piece->ndim, &piece->box)) {
		return 0;
	}
	if (dims_span(piece->ndim, piece->box.extent, piece->stride, &span) < 0 ||
		span > elements || piece->offset > elements - span) {
		return PIECE_ERROR(err, -ERANGE, tensor, parameter,
			"offset %" PRIu64 ", extent %s, strides %s pass its %" PRIu64 " elements",
			piece->offset, dims_format(a, sizeof(a), piece->ndim, piece->box.extent),
			dims_format(b, sizeof(b), piece->ndim, piece->stride), elements);
	}
	if (!dims_injective(piece->ndim, piece->box.extent, piece->stride)) {
		return PIECE_ERROR(err, -EINVAL, tensor, parameter,
			"extent %s with strides %s writes one element twice, or its dimensions "
			"interleave",
			dims_format(a, sizeof(a), piece->ndim, piece->box.extent),
			dims_format(b, sizeof(b), piece->ndim, piece->stride));
	}
	return 0;
}

static int check_piece(const struct layout *layout, const struct piece *piece, struct error *err)
{
	const struct tensor *tensor;
	const struct parameter *parameter;
	int r;

	if (piece->tensor >= layout->ntensors) {
		return error_set(err, -EINVAL, "a piece of tensor number %u, but there are %zu",
			piece->tensor, layout->ntensors);
	}
	if (piece->parameter >= layout->nparameters) {
		return error_set(err, -EINVAL, "a piece of parameter number %u, but there are %zu",
			piece->parameter, layout->nparameters);
	}
	tensor = &layout->tensors[piece->tensor];
	parameter = &layout->parameters[piece->parameter];
	if (piece->ndim < 0 || piece->ndim > STREW_MAX_DIMS) {
		return PIECE_ERROR(err, -EINVAL, tensor, parameter,
			"a view of %d dimensions, but at most %d are supported", piece->ndim,
			STREW_MAX_DIMS);
	}
	r = check_dtypes(tensor, parameter, piece, err);
	if (r < 0) {
		return r;
	}
	r = check_box(tensor, parameter, piece, err);
	return r < 0 ? r : check_destination(tensor, parameter, piece, err);
}

int layout_add_piece(struct layout *layout, const struct piece *piece, struct error *err)
{
	struct piece copy = *piece;
	int r = check_unsealed(layout, err);

	if (r < 0) {
		return r;
	}
	if (copy.ndim > 0 && copy.ndim <= STREW_MAX_DIMS && all_zero(copy.ndim, copy.stride)) {
		dims_dense(copy.ndim, copy.box.extent, copy.stride);
	}
	r = check_piece(layout, &copy, err);
	if (r < 0) {
		return r;
	}
	if (layout->npieces >= LIMIT_PIECES) {
		return error_set(err, -E2BIG, "parameter %.128s: more than %u pieces",
			layout->parameters[copy.parameter].name, LIMIT_PIECES);
	}
	r = plan_grow(&layout->pieces, &layout->cap_pieces, layout->npieces + 1,
		sizeof(*layout->pieces), err);
	if (r < 0) {
		return r;
	}
	layout->pieces[layout->npieces++] = copy;
	return 0;
}

static int check_covered(const struct layout *layout, struct error *err)
{
	bool *seen = calloc(layout->nparameters + 1, sizeof(*seen));
	int r = 0;

	if (!seen) {
		return error_set(
			err, -ENOMEM, "out of memory for %zu parameters", layout->nparameters);
	}
	for (size_t i = 0; i < layout->npieces; i++) {
		seen[layout->pieces[i].parameter] = true;
	}
	for (size_t i = 0; i < layout->nparameters && !r; i++) {
		if (!seen[i] && parameter_span_bytes(&layout->parameters[i])) {
			r = error_set(err, -EINVAL, "parameter %.128s: no piece fills it",
				layout->parameters[i].name);
		}
	}
	free(seen);
	return r;
}

static int refuse_shared(const struct layout *layout, const struct piece *a, const struct piece *b,
	struct error *err)
{
	const char *parameter_a = layout->parameters[a->parameter].name;
	const char *parameter_b = layout->parameters[b->parameter].name;
	const char *tensor_a = layout->tensors[a->tensor].name;
	const char *tensor_b = layout->tensors[b->tensor].name;

	if (a->parameter != b->parameter) {
		return error_set(err, -EINVAL,
			"parameters %.40s and %.40s share memory, and tensors %.40s and %.40s "
			"would "
			"both write it: write the storage once",
			parameter_a, parameter_b, tensor_a, tensor_b);
	}
	if (a->tensor != b->tensor) {
		return error_set(err, -EINVAL,
			"parameter %.56s: tensors %.56s and %.56s would write the same element: "
			"write the storage once",
			parameter_a, tensor_a, tensor_b);
	}
	return error_set(err, -EINVAL,
		"parameter %.80s: two pieces of tensor %.80s would write the same element",
		parameter_a, tensor_a);
}

static int refuse_tangled(const struct layout *layout, const struct piece *a, const struct piece *b,
	struct error *err)
{
	const char *parameter_a = layout->parameters[a->parameter].name;
	const char *parameter_b = layout->parameters[b->parameter].name;

	if (a->parameter != b->parameter) {
		return error_set(err, -E2BIG,
			"parameters %.56s and %.56s: their pieces interleave too irregularly to be "
			"checked in %u steps",
			parameter_a, parameter_b, LIMIT_SHARED_STEPS);
	}
	return error_set(err, -E2BIG,
		"parameter %.120s: its pieces interleave too irregularly to be checked in %u steps",
		parameter_a, LIMIT_SHARED_STEPS);
}

static int check_shared(const struct layout *layout, struct error *err)
{
	struct block *blocks = malloc((layout->npieces + 1) * sizeof(*blocks));
	uint64_t steps = LIMIT_SHARED_STEPS;
	uint32_t a, b;
	size_t n = 0;
	int r;

	if (!blocks) {
		return error_set(err, -ENOMEM, "out of memory for %zu pieces", layout->npieces);
	}
	for (size_t i = 0; i < layout->npieces; i++) {
		const struct piece *piece = &layout->pieces[i];
		const struct parameter *parameter = &layout->parameters[piece->parameter];
		uint64_t size = strew_dtype_size(parameter->dtype);

		if (box_empty(piece->ndim, &piece->box)) {
			continue;
		}
		block_make(piece->ndim, piece->box.extent, piece->stride, size,
			parameter->offset_bytes + piece->offset * size, &blocks[n]);
		blocks[n].space = parameter->allocation;
		blocks[n++].id = (uint32_t)i;
	}
	r = blocks_find_shared(blocks, n, &steps, &a, &b);
	free(blocks);
	if (r == 1) {
		return refuse_shared(layout, &layout->pieces[a], &layout->pieces[b], err);
	}
	if (r == -E2BIG) {
		return refuse_tangled(layout, &layout->pieces[a], &layout->pieces[b], err);
	}
	return r < 0 ? error_set(err, r, "out of memory for %zu pieces", layout->npieces) : 0;
}

int layout_seal(struct layout *layout, bool partial, struct error *err)
{
	int r = check_unsealed(layout, err);

	if (r == 0 && !partial) {
		r = check_covered(layout, err);
	}
	if (r == 0) {
		r = check_shared(layout, err);
	}
	if (r == 0) {
		layout->sealed = true;
	}
	return r;
}

uint64_t parameter_span_bytes(const struct parameter *parameter)
{
	uint64_t span = 0;

	if (dims_span(parameter->ndim, parameter->shape, parameter->stride, &span) < 0) {
		return 0;
	}
	return span * strew_dtype_size(parameter->dtype);
}

uint64_t layout_bytes(const struct layout *layout)
{
	uint64_t bytes = 0;

	for (size_t i = 0; i < layout->npieces; i++) {
		const struct piece *piece = &layout->pieces[i];

		bytes += box_count(piece->ndim, &piece->box) *
			 strew_dtype_size(layout->parameters[piece->parameter].dtype);
	}
	return bytes;
}
