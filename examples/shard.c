#include "examples/shard.h"
#include "examples/values.h"
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#define GUARD_BYTES 256 /* before and after each parameter; nobody may write there */

static void *allocate(size_t len_bytes)
{
	void *memory = malloc(len_bytes);

	if (!memory) {
		perror("malloc");
		exit(1);
	}
	return memory;
}

static size_t parameter_bytes(const struct model_parameter *parameter)
{
	return parameter->rows * parameter->cols * strew_dtype_size(parameter->dtype);
}

void shard_init(struct shard *shard, const struct model *model, uint32_t rank, int device)
{
	*shard = (struct shard){.model = model, .rank = rank};
	shard->memory = memory_create(device, POISON);
	shard->data = allocate(model->nparameters * sizeof(*shard->data));
	for (size_t i = 0; i < model->nparameters; i++) {
		size_t bytes = parameter_bytes(&model->parameters[i]);

		shard->data[i] = memory_take(shard->memory, bytes + 2 * GUARD_BYTES);
		shard->data[i] += GUARD_BYTES;
		shard->bytes += bytes;
	}
}

void shard_finish(struct shard *shard)
{
	memory_destroy(shard->memory);
	free(shard->data);
	*shard = (struct shard){0};
}

uint64_t shard_check(const struct shard *shard, uint64_t version, uint64_t seed, const char *only)
{
	uint64_t differ = 0;

	for (size_t i = 0; i < shard->model->nparameters; i++) {
		const struct model_parameter *parameter = &shard->model->parameters[i];
		size_t bytes = parameter_bytes(parameter);
		unsigned char *copy = allocate(bytes + 2 * GUARD_BYTES);

		memory_read(
			shard->memory, copy, shard->data[i] - GUARD_BYTES, bytes + 2 * GUARD_BYTES);
		for (size_t k = 0; k < GUARD_BYTES; k++) {
			differ += copy[k] != POISON;
			differ += copy[GUARD_BYTES + bytes + k] != POISON;
		}
		differ += values_check(shard->model, parameter, shard->rank, version, seed, only,
			copy + GUARD_BYTES);
		free(copy);
	}
	return differ;
}

static void dump_parameter(const struct shard *shard, size_t i, FILE *data, FILE *index)
{
	const struct model_parameter *p = &shard->model->parameters[i];
	size_t bytes = parameter_bytes(p);
	unsigned char *copy = allocate(bytes);

	fprintf(index, "%s\n", i ? "," : "");
	fprintf(index, "{\"name\": \"%s\", \"dtype\": \"%s\", ", p->name,
		strew_dtype_name(p->dtype));
	fprintf(index, "\"rows\": %" PRIu64 ", \"cols\": %" PRIu64 ", \"offset\": %ld}", p->rows,
		p->cols, ftell(data));
	memory_read(shard->memory, copy, shard->data[i], bytes);
	fwrite(copy, 1, bytes, data);
	free(copy);
}

int shard_dump(const struct shard *shard, uint64_t version, const char *path)
{
	char index_path[4096];
	FILE *data = fopen(path, "wb"), *index;
	int failed;

	snprintf(index_path, sizeof(index_path), "%s.json", path);
	index = fopen(index_path, "w");
	if (!data || !index) {
		perror(data ? index_path : path);
		exit(1);
	}
	fprintf(index, "{\"rank\": %u, \"size\": %u, ", shard->rank, shard->model->size);
	fprintf(index, "\"version\": %" PRIu64 ", \"poison\": %d, ", version, POISON);
	fprintf(index, "\"parameters\": [");
	for (size_t i = 0; i < shard->model->nparameters; i++) {
		dump_parameter(shard, i, data, index);
	}
	fprintf(index, "\n]}\n");
	failed = ferror(data) | ferror(index);
	failed |= fclose(data) | fclose(index);
	if (failed) {
		fprintf(stderr, "%s: could not be written\n", path);
		return -1;
	}
	return 0;
}
