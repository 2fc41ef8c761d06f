/* Layouts as blobs: tensors, then parameters, then pieces. */
#include "ipc/items.h"
#include <errno.h>
#include <string.h>

#define KIND "strew-layout"

int blob_from_layout(const struct layout *layout, struct blob *ret_blob, struct error *err)
{
	uint64_t counts[] = {layout->ntensors, layout->nparameters, layout->npieces};
	struct item_writer writer;

	items_begin(&writer, KIND, counts, 3);
	for (size_t i = 0; i < layout->ntensors; i++) {
		items_tensor(&writer, &layout->tensors[i]);
	}
	for (size_t i = 0; i < layout->nparameters; i++) {
		const struct parameter *parameter = &layout->parameters[i];

		items_array(&writer, 6);
		items_string(&writer, parameter->name);
		items_number(&writer, parameter->allocation);
		items_number(&writer, parameter->offset_bytes);
		items_number(&writer, parameter->dtype);
		items_numbers(&writer, parameter->shape, parameter->ndim);
		items_numbers(&writer, parameter->stride, parameter->ndim);
	}
	for (size_t i = 0; i < layout->npieces; i++) {
		const struct piece *piece = &layout->pieces[i];

		items_array(&writer, 8);
		items_number(&writer, piece->tensor);
		items_number(&writer, piece->parameter);
		items_number(&writer, piece->offset);
		items_numbers(&writer, piece->view, piece->ndim);
		items_numbers(&writer, piece->box.start, piece->ndim);
		items_numbers(&writer, piece->box.extent, piece->ndim);
		items_numbers(&writer, piece->stride, piece->ndim);
		items_number(&writer, piece->cast);
	}
	return items_end(&writer, ret_blob, err);
}

static int read_parameter(struct item_reader *reader, struct layout *layout, struct error *err)
{
	char name[LIMIT_NAME_BYTES + 1];
	struct parameter parameter = {.name = name, .ndim = -1};
	uint64_t allocation = 0, dtype = 0;
	uint32_t index;
	int rc = items_next(reader, 6);

	rc = rc ? rc : items_get_string(reader, name, sizeof(name));
	rc = rc ? rc : items_get_number(reader, LIMIT_ALLOCATIONS, &allocation);
	rc = rc ? rc : items_get_number(reader, UINT64_MAX, &parameter.offset_bytes);
	rc = rc ? rc : items_get_number(reader, UINT8_MAX, &dtype);
	rc = rc ? rc : items_get_numbers(reader, parameter.shape, &parameter.ndim);
	rc = rc ? rc : items_get_numbers(reader, parameter.stride, &parameter.ndim);
	if (rc) {
		return rc;
	}
	parameter.allocation = (uint32_t)allocation;
	parameter.dtype = (enum strew_dtype)dtype;
	return layout_add_parameter(layout, &parameter, &index, err);
}

static int read_piece(struct item_reader *reader, struct layout *layout, struct error *err)
{
	struct piece piece = {.ndim = -1};
	uint64_t tensor = 0, parameter = 0, cast = 0;
	int rc = items_next(reader, 8);

	rc = rc ? rc : items_get_number(reader, UINT32_MAX, &tensor);
	rc = rc ? rc : items_get_number(reader, UINT32_MAX, &parameter);
	rc = rc ? rc : items_get_number(reader, UINT64_MAX, &piece.offset);
	rc = rc ? rc : items_get_numbers(reader, piece.view, &piece.ndim);
	rc = rc ? rc : items_get_numbers(reader, piece.box.start, &piece.ndim);
	rc = rc ? rc : items_get_numbers(reader, piece.box.extent, &piece.ndim);
	rc = rc ? rc : items_get_numbers(reader, piece.stride, &piece.ndim);
	rc = rc ? rc : items_get_number(reader, 1, &cast);
	if (rc) {
		return rc;
	}
	if (tensor >= layout->ntensors || parameter >= layout->nparameters) {
		return error_set(err, -EPROTO,
			"a piece names tensor %llu and parameter %llu of %zu and %zu",
			(unsigned long long)tensor, (unsigned long long)parameter, layout->ntensors,
			layout->nparameters);
	}
	piece.tensor = (uint32_t)tensor;
	piece.parameter = (uint32_t)parameter;
	piece.cast = cast;
	return layout_add_piece(layout, &piece, err);
}

static int read_layout(struct item_reader *reader, struct layout *layout, struct error *err)
{
	static const uint64_t limits[] = {LIMIT_TENSORS, LIMIT_PARAMETERS, LIMIT_PIECES};
	char name[LIMIT_NAME_BYTES + 1];
	uint64_t counts[3];
	int rc = items_header(reader, KIND, counts, limits, 3);

	for (uint64_t i = 0; rc == 0 && i < counts[0]; i++) {
		struct tensor tensor;
		uint32_t index;

		rc = items_get_tensor(reader, &tensor, name);
		if (rc == 0) {
			rc = layout_add_tensor(layout, &tensor, &index, err);
		}
		if (rc == 0 && index != i) {
			rc = error_set(err, -EPROTO, "tensor %s is there twice", name);
		}
	}
	for (uint64_t i = 0; rc == 0 && i < counts[1]; i++) {
		rc = read_parameter(reader, layout, err);
	}
	for (uint64_t i = 0; rc == 0 && i < counts[2]; i++) {
		rc = read_piece(reader, layout, err);
	}
	return rc ? rc : items_ended(reader);
}

int blob_to_layout(
	const struct blob *blob, bool partial, struct layout *ret_layout, struct error *err)
{
	struct item_reader reader;
	struct layout layout;
	int rc;

	layout_init(&layout);
	items_open(&reader, blob, err);
	rc = read_layout(&reader, &layout, err);
	items_close(&reader);
	if (rc == 0) {
		rc = layout_seal(&layout, partial, err);
	}
	if (rc) {
		layout_finish(&layout);
		return rc;
	}
	*ret_layout = layout;
	return 0;
}
