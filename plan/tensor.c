#define STREW_BUILDING
#include "plan/tensor.h"
#include "base/util.h"
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define TENSOR_BYTES_MAX (1ull << 62)

static const struct {
	const char *name, *safetensors;
	size_t bytes;
} dtypes[] = {
	[STREW_F32] = {"f32", "F32", 4},
	[STREW_F16] = {"f16", "F16", 2},
	[STREW_BF16] = {"bf16", "BF16", 2},
	[STREW_F8_E4M3] = {"f8_e4m3", "F8_E4M3", 1},
	[STREW_F8_E5M2] = {"f8_e5m2", "F8_E5M2", 1},
	[STREW_I8] = {"i8", "I8", 1},
	[STREW_U8] = {"u8", "U8", 1},
	[STREW_I16] = {"i16", "I16", 2},
	[STREW_U16] = {"u16", "U16", 2},
	[STREW_I32] = {"i32", "I32", 4},
	[STREW_U32] = {"u32", "U32", 4},
	[STREW_I64] = {"i64", "I64", 8},
	[STREW_U64] = {"u64", "U64", 8},
	[STREW_F64] = {"f64", "F64", 8},
	[STREW_BOOL] = {"bool", "BOOL", 1},
};

bool dtype_valid(unsigned dtype)
{
	return dtype > STREW_DTYPE_INVALID && dtype < ARRAY_LEN(dtypes);
}

enum strew_dtype dtype_parse(const char *name)
{
	for (unsigned i = STREW_DTYPE_INVALID + 1; i < ARRAY_LEN(dtypes); i++) {
		if (!strcmp(name, dtypes[i].name) || !strcmp(name, dtypes[i].safetensors)) {
			return (enum strew_dtype)i;
		}
	}
	return STREW_DTYPE_INVALID;
}

size_t strew_dtype_size(enum strew_dtype dtype)
{
	return dtype_valid((unsigned)dtype) ? dtypes[dtype].bytes : 0;
}

const char *strew_dtype_name(enum strew_dtype dtype)
{
	return dtype_valid((unsigned)dtype) ? dtypes[dtype].name : "invalid";
}

int dims_count(int ndim, const uint64_t *dims, uint64_t *ret_count)
{
	uint64_t count = 1;

	for (int i = 0; i < ndim; i++) {
		if (!dims[i]) {
			*ret_count = 0;
			return 0;
		}
	}
	for (int i = 0; i < ndim; i++) {
		if (mul_overflows(count, dims[i], &count)) {
			return -ERANGE;
		}
	}
	*ret_count = count;
	return 0;
}

void dims_dense(int ndim, const uint64_t *dims, uint64_t *ret_stride)
{
	uint64_t stride = 1;

	for (int i = ndim - 1; i >= 0; i--) {
		ret_stride[i] = stride;
		stride *= dims[i];
	}
}

int dims_span(int ndim, const uint64_t *dims, const uint64_t *stride, uint64_t *ret_span)
{
	uint64_t span = 1;

	for (int i = 0; i < ndim; i++) {
		if (!dims[i]) {
			*ret_span = 0;
			return 0;
		}
	}
	for (int i = 0; i < ndim; i++) {
		uint64_t reach;

		if (mul_overflows(dims[i] - 1, stride[i], &reach) ||
			add_overflows(span, reach, &span)) {
			return -ERANGE;
		}
	}
	*ret_span = span;
	return 0;
}

bool dims_injective(int ndim, const uint64_t *dims, const uint64_t *stride)
{
	int order[STREW_MAX_DIMS], n = 0;
	uint64_t span = 1;

	for (int i = 0; i < ndim; i++) {
		int at = n;

		if (!dims[i]) {
			return true;
		}
		if (dims[i] == 1) {
			continue;
		}
		while (at > 0 && stride[order[at - 1]] > stride[i]) {
			order[at] = order[at - 1];
			at--;
		}
		order[at] = i;
		n++;
	}
	for (int k = 0; k < n; k++) {
		uint64_t reach;

		if (stride[order[k]] < span ||
			mul_overflows(dims[order[k]] - 1, stride[order[k]], &reach) ||
			add_overflows(span, reach, &span)) {
			return false;
		}
	}
	return true;
}

int tensor_check_as(const char *what, const struct tensor *tensor, struct error *err)
{
	uint64_t count;

	if (!tensor->name || !tensor->name[0]) {
		return error_set(err, -EINVAL, "a %s without a name", what);
	}
	if (strnlen(tensor->name, LIMIT_NAME_BYTES + 1) > LIMIT_NAME_BYTES) {
		return error_set(err, -E2BIG, "%s %.64s...: the name is longer than %u bytes", what,
			tensor->name, LIMIT_NAME_BYTES);
	}
	if (!dtype_valid((unsigned)tensor->dtype)) {
		return error_set(err, -EINVAL, "%s %.128s: dtype %u is unknown", what, tensor->name,
			(unsigned)tensor->dtype);
	}
	if (tensor->ndim < 0 || tensor->ndim > STREW_MAX_DIMS) {
		return error_set(err, -EINVAL,
			"%s %.128s: %d dimensions, but at most %d are supported", what,
			tensor->name, tensor->ndim, STREW_MAX_DIMS);
	}
	if (dims_count(tensor->ndim, tensor->shape, &count) < 0 ||
		count > TENSOR_BYTES_MAX / strew_dtype_size(tensor->dtype)) {
		char text[160];

		dims_format(text, sizeof(text), tensor->ndim, tensor->shape);
		return error_set(err, -ERANGE, "%s %.64s: %s of %s is more than 2^62 bytes", what,
			tensor->name, text, strew_dtype_name(tensor->dtype));
	}
	return 0;
}

int tensor_check(const struct tensor *tensor, struct error *err)
{
	return tensor_check_as("tensor", tensor, err);
}

uint64_t tensor_bytes(const struct tensor *tensor)
{
	uint64_t count = 0;

	if (dims_count(tensor->ndim, tensor->shape, &count) < 0) {
		return 0;
	}
	return count * strew_dtype_size(tensor->dtype);
}

bool box_inside(int ndim, const uint64_t *shape, const struct box *box)
{
	for (int i = 0; i < ndim; i++) {
		if (box->start[i] > shape[i] || box->extent[i] > shape[i] - box->start[i]) {
			return false;
		}
	}
	return true;
}

bool box_empty(int ndim, const struct box *box)
{
	for (int i = 0; i < ndim; i++) {
		if (!box->extent[i]) {
			return true;
		}
	}
	return false;
}

uint64_t box_count(int ndim, const struct box *box)
{
	uint64_t count = 0;

	return dims_count(ndim, box->extent, &count) < 0 ? 0 : count;
}

bool box_intersect(int ndim, const struct box *a, const struct box *b, struct box *ret)
{
	struct box both = {{0}, {0}};

	for (int i = 0; i < ndim; i++) {
		uint64_t start = MAX(a->start[i], b->start[i]);
		uint64_t end = MIN(a->start[i] + a->extent[i], b->start[i] + b->extent[i]);

		if (start >= end) {
			return false;
		}
		both.start[i] = start;
		both.extent[i] = end - start;
	}
	*ret = both;
	return true;
}

int box_subtract(
	int ndim, const struct box *a, const struct box *b, struct box ret[2 * STREW_MAX_DIMS])
{
	struct box rest = *a, both;
	int n = 0;

	if (box_empty(ndim, a)) {
		return 0;
	}
	if (!box_intersect(ndim, a, b, &both)) {
		ret[0] = *a;
		return 1;
	}
	/* Slabs before and after `both`, dimension by dimension; `rest` shrinks to `both`. */
	for (int i = 0; i < ndim; i++) {
		uint64_t end = rest.start[i] + rest.extent[i];
		uint64_t both_end = both.start[i] + both.extent[i];

		if (both.start[i] > rest.start[i]) {
			ret[n] = rest;
			ret[n++].extent[i] = both.start[i] - rest.start[i];
		}
		if (both_end < end) {
			ret[n] = rest;
			ret[n].start[i] = both_end;
			ret[n++].extent[i] = end - both_end;
		}
		rest.start[i] = both.start[i];
		rest.extent[i] = both.extent[i];
	}
	return n;
}

const char *dims_format(char *buf, size_t buf_bytes, int ndim, const uint64_t *dims)
{
	size_t used = 0;

	for (int i = 0; i < ndim && used < buf_bytes; i++) {
		int n = snprintf(
			buf + used, buf_bytes - used, "%s%" PRIu64, i ? ", " : "[", dims[i]);

		used += n > 0 ? (size_t)n : 0;
	}
	if (used < buf_bytes) {
		snprintf(buf + used, buf_bytes - used, "%s", ndim > 0 ? "]" : "[]");
	}
	return buf;
}
