#include "plan/tensor_table.h"
#include "base/util.h"
#include <errno.h>
#include <stdio.h>
#include <string.h>

int plan_grow(void *array, size_t *cap, size_t need, size_t size, struct error *err)
{
	void *v;
	int r;

	memcpy(&v, array, sizeof(v));
	r = array_grow(&v, cap, need, size);
	if (r < 0) {
		return error_set(err, r, "out of memory for %zu entries of %zu bytes", need, size);
	}
	memcpy(array, &v, sizeof(v));
	return 0;
}

int names_prepare(struct arena **arena, struct name_index **index, struct error *err)
{
	if (!*arena) {
		*arena = arena_create();
	}
	if (!*index) {
		*index = name_index_create();
	}
	if (!*arena || !*index) {
		return error_set(err, -ENOMEM, "out of memory for names");
	}
	return 0;
}

const char *tensor_format(char *buf, size_t buf_bytes, const struct tensor *tensor)
{
	int n = snprintf(buf, buf_bytes, "%s ", strew_dtype_name(tensor->dtype));

	if (n > 0 && (size_t)n < buf_bytes) {
		dims_format(buf + n, buf_bytes - (size_t)n, tensor->ndim, tensor->shape);
	}
	return buf;
}

bool tensor_same(const struct tensor *a, const struct tensor *b)
{
	return a->dtype == b->dtype && a->ndim == b->ndim &&
	       !memcmp(a->shape, b->shape, sizeof(a->shape[0]) * (size_t)a->ndim);
}

int tensor_table_add(const struct tensor_table *table, const struct tensor *tensor,
	uint32_t *ret_index, struct error *err)
{
	struct tensor copy = {0};
	int64_t found;
	int r;

	r = tensor_check(tensor, err);
	if (r < 0) {
		return r;
	}
	found = name_index_find(*table->index, tensor->name);
	if (found >= 0) {
		const struct tensor *old = &(*table->v)[found];
		char a[80], b[80];

		if (!tensor_same(old, tensor)) {
			return error_set(err, -EINVAL, "tensor %.80s: declared as %s and as %s",
				tensor->name, tensor_format(a, sizeof(a), old),
				tensor_format(b, sizeof(b), tensor));
		}
		*ret_index = (uint32_t)found;
		return 0;
	}
	if (*table->n >= LIMIT_TENSORS) {
		return error_set(err, -E2BIG, "tensor %.80s: more than %u tensors", tensor->name,
			LIMIT_TENSORS);
	}
	r = names_prepare(table->arena, table->index, err);
	if (r < 0) {
		return r;
	}
	r = plan_grow(table->v, table->cap, *table->n + 1, sizeof(**table->v), err);
	if (r < 0) {
		return r;
	}
	copy.name = arena_string(*table->arena, tensor->name);
	if (!copy.name || name_index_add(*table->index, copy.name, (uint32_t)*table->n) < 0) {
		return error_set(err, -ENOMEM, "out of memory for names");
	}
	copy.dtype = tensor->dtype;
	copy.ndim = tensor->ndim;
	memcpy(copy.shape, tensor->shape, sizeof(copy.shape[0]) * (size_t)tensor->ndim);
	(*table->v)[*table->n] = copy;
	*ret_index = (uint32_t)(*table->n)++;
	return 0;
}
