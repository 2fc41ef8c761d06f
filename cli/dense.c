#include "cli/dense.h"
#include "base/util.h"
#include "gpu/cast.h"
#include "gpu/hash.h"
#include <string.h>

bool dense_count(const struct dense_box *box, uint64_t *ret_all, uint64_t *ret_in_box)
{
	uint64_t end;

	*ret_all = *ret_in_box = 1;
	for (int d = 0; d < box->ndim; d++) {
		if (add_overflows(box->box.start[d], box->box.extent[d], &end) ||
			end > box->shape[d] || mul_overflows(*ret_all, box->shape[d], ret_all) ||
			mul_overflows(*ret_in_box, box->box.extent[d], ret_in_box)) {
			return false;
		}
	}
	return true;
}

/* The rows of a box: runs along its last dimension. */
struct rows {
	const struct dense_box *box;
	int outer;    /* dimensions but the last */
	uint64_t run; /* elements of a row; 0: there are none */
	uint64_t index[STREW_MAX_DIMS];
};

static struct rows rows_of(const struct dense_box *box)
{
	struct rows rows = {.box = box, .outer = box->ndim ? box->ndim - 1 : 0};

	rows.run = box_empty(box->ndim, &box->box) ? 0
		   : box->ndim			   ? box->box.extent[rows.outer]
						   : 1;
	return rows;
}

static bool next_row(struct rows *rows)
{
	for (int d = rows->outer - 1; d >= 0; d--) {
		if (++rows->index[d] < rows->box->box.extent[d]) {
			return true;
		}
		rows->index[d] = 0;
	}
	return false;
}

/* The number in the whole of a row's first element. */
static uint64_t first_of(const struct rows *rows)
{
	const struct dense_box *box = rows->box;
	uint64_t number = 0;

	for (int d = 0; d < box->ndim; d++) {
		number = number * box->shape[d] + box->box.start[d] + rows->index[d];
	}
	return number;
}

void dense_take(const struct dense_box *box, const uint64_t *stride, size_t size,
	const unsigned char *memory, unsigned char *dense)
{
	struct rows rows = rows_of(box);
	uint64_t step = box->ndim ? stride[rows.outer] : 1;

	if (!rows.run) {
		return;
	}
	do {
		uint64_t at = 0;

		for (int d = 0; d < rows.outer; d++) {
			at += rows.index[d] * stride[d];
		}
		for (uint64_t i = 0; step != 1 && i < rows.run; i++) {
			memcpy(dense + i * size, memory + (at + i * step) * size, size);
		}
		if (step == 1) {
			memcpy(dense, memory + at * size, rows.run * size);
		}
		dense += rows.run * size;
	} while (next_row(&rows));
}

void dense_put(
	const struct dense_box *box, size_t size, const unsigned char *dense, unsigned char *whole)
{
	struct rows rows = rows_of(box);

	if (!rows.run) {
		return;
	}
	do {
		memcpy(whole + first_of(&rows) * size, dense, rows.run * size);
		dense += rows.run * size;
	} while (next_row(&rows));
}

static void cast_row(const unsigned char *from_at, enum strew_dtype from, unsigned char *to_at,
	enum strew_dtype to, uint64_t n)
{
	size_t from_bytes = strew_dtype_size(from), to_bytes = strew_dtype_size(to);

	for (uint64_t i = 0; i < n; i++) {
		uint32_t bits = 0;

		/* The lower half comes first, as on all hosts of GPUs. */
		memcpy(&bits, from_at + i * from_bytes, from_bytes);
		bits = cast_narrow(cast_widen(bits, from), to);
		memcpy(to_at + i * to_bytes, &bits, to_bytes);
	}
}

void dense_cut(const struct dense_box *box, const unsigned char *whole, enum strew_dtype from,
	enum strew_dtype to, unsigned char *dense)
{
	struct rows rows = rows_of(box);

	if (!rows.run) {
		return;
	}
	do {
		const unsigned char *row = whole + first_of(&rows) * strew_dtype_size(from);

		if (from == to) {
			memcpy(dense, row, rows.run * strew_dtype_size(from));
		} else {
			cast_row(row, from, dense, to, rows.run);
		}
		dense += rows.run * strew_dtype_size(to);
	} while (next_row(&rows));
}

uint64_t dense_hash(const unsigned char *dense, uint64_t len_bytes)
{
	uint64_t sum = 0, word;

	for (uint64_t at = 0; at < len_bytes; at += sizeof(word)) {
		word = 0;
		memcpy(&word, dense + at, MIN(len_bytes - at, sizeof(word)));
		sum += hash_word(word, at / sizeof(word));
	}
	return sum;
}
