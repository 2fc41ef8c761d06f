#include "examples/values.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* splitmix64's output function: every bit of the result depends on every bit of z. */
static uint64_t mix(uint64_t z)
{
	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
	z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
	return z ^ (z >> 31);
}

static uint64_t key_of(const char *tensor, uint64_t version, uint64_t seed)
{
	uint64_t hash = 0xcbf29ce484222325u; /* FNV-1a */

	for (; *tensor; tensor++) {
		hash = (hash ^ (unsigned char)*tensor) * 0x100000001b3u;
	}
	return mix(hash ^ mix(seed ^ version * 0x9e3779b97f4a7c15u));
}

static void fill(uint64_t key, uint64_t offset, unsigned char *dst, size_t len_bytes)
{
	while (len_bytes) {
		uint64_t word = mix(key + offset / 8);
		size_t skip = offset % 8, n = 8 - skip;

		if (n == 8 && len_bytes >= 8) {
			memcpy(dst, &word, 8);
		} else {
			n = n < len_bytes ? n : len_bytes;
			memcpy(dst, (unsigned char *)&word + skip, n);
		}
		dst += n;
		offset += n;
		len_bytes -= n;
	}
}

void values_fill(const char *tensor, uint64_t version, uint64_t seed, uint64_t offset, void *dst,
	size_t len_bytes)
{
	fill(key_of(tensor, version, seed), offset, dst, len_bytes);
}

struct origin {
	uint32_t tensor;
	uint64_t row, col;
};

/*
 * Where row `local` of the fused QKV comes from. A rank's heads are its query
 * heads, then the keys and then the values of the kv heads that they attend to.
 * Query head h attends to kv head h / (heads / kv_heads).
 */
static struct origin qkv_origin(
	const struct model *model, uint32_t first, uint32_t rank, uint64_t local)
{
	uint64_t head = local / model->head_size, in_head = local % model->head_size;
	uint64_t own = model->heads / model->size, group = model->heads / model->kv_heads;
	uint64_t first_kv = rank * own / group;
	uint64_t last_kv = (rank * own + own - 1) / group;
	uint64_t nkv = last_kv - first_kv + 1;

	if (head < own) {
		return (struct origin){first, (rank * own + head) * model->head_size + in_head, 0};
	}
	head -= own;
	return (struct origin){first + (head < nkv ? 1 : 2),
		(first_kv + head % nkv) * model->head_size + in_head, 0};
}

/* Which row and first column of which tensor row `local` holds; false: none, it is padding. */
static bool origin(const struct model *model, const struct model_parameter *parameter,
	uint32_t rank, uint64_t local, struct origin *ret_origin)
{
	const struct model_tensor *tensor = &model->tensors[parameter->first];
	uint64_t own, row;

	switch (parameter->kind) {
	case REPLICATED:
		*ret_origin = (struct origin){parameter->first, local, 0};
		return true;
	case COLUMN_PARALLEL:
		row = tensor->rows / model->size * rank + local;
		*ret_origin = (struct origin){parameter->first, row, 0};
		return true;
	case ROW_PARALLEL:
		*ret_origin =
			(struct origin){parameter->first, local, tensor->cols / model->size * rank};
		return true;
	case FUSED_QKV:
		*ret_origin = qkv_origin(model, parameter->first, rank, local);
		return true;
	case FUSED_GATE_UP:
		own = model->intermediate / model->size;
		*ret_origin = (struct origin){
			parameter->first + (local >= own), rank * own + local % own, 0};
		return true;
	case VOCABULARY:
		row = model->padded_vocabulary / model->size * rank + local;
		*ret_origin = (struct origin){parameter->first, row, 0};
		return row < model->vocabulary;
	}
	return false;
}

static uint64_t compare(const struct model_parameter *parameter, uint64_t row, uint64_t before,
	const unsigned char *memory, const unsigned char *wanted, size_t len_bytes)
{
	uint64_t differ = 0;

	for (size_t i = 0; i < len_bytes; i++) {
		if (memory[i] == wanted[i]) {
			continue;
		}
		if (!before && !differ) {
			fprintf(stderr, "%s: row %llu, byte %zu is %02x and should be %02x\n",
				parameter->name, (unsigned long long)row, i, memory[i], wanted[i]);
		}
		differ++;
	}
	return differ;
}

uint64_t values_version(const char *tensor, uint64_t version, const char *only)
{
	return !only || !version || strstr(tensor, only) ? version : 1;
}

uint64_t values_check(const struct model *model, const struct model_parameter *parameter,
	uint32_t rank, uint64_t version, uint64_t seed, const char *only,
	const unsigned char *memory)
{
	size_t element = strew_dtype_size(parameter->dtype);
	size_t width = parameter->cols * element;
	unsigned char *wanted = malloc(width);
	uint64_t keys[3] = {0}, differ = 0;

	if (!wanted) {
		perror("malloc");
		exit(1);
	}
	for (uint32_t i = 0; i < 3 && parameter->first + i < model->ntensors; i++) {
		const char *name = model->tensors[parameter->first + i].name;

		keys[i] = key_of(name, values_version(name, version, only), seed);
	}
	for (uint64_t row = 0; row < parameter->rows; row++, memory += width) {
		struct origin from;

		if (version && origin(model, parameter, rank, row, &from)) {
			uint64_t cols = model->tensors[from.tensor].cols;

			fill(keys[from.tensor - parameter->first],
				(from.row * cols + from.col) * element, wanted, width);
		} else {
			memset(wanted, POISON, width);
		}
		if (memcmp(memory, wanted, width) != 0) {
			differ += compare(parameter, row, differ, memory, wanted, width);
		}
	}
	free(wanted);
	return differ;
}
