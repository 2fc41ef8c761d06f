#include "examples/parts.h"
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

static uint64_t tensor_bytes(const struct model_tensor *tensor)
{
	return tensor->rows * tensor->cols * strew_dtype_size(tensor->dtype);
}

void parts_cut(const struct model *model, size_t n, struct parts *ret_parts)
{
	uint64_t all = 0, before = 0;
	size_t part, last = SIZE_MAX;

	memset(ret_parts, 0, sizeof(*ret_parts));
	for (size_t i = 0; i < model->ntensors; i++) {
		all += tensor_bytes(&model->tensors[i]);
	}
	for (size_t i = 0; i < model->ntensors; i++) {
		/* Where its middle lies, so that a large tensor goes where most of it belongs. */
		uint64_t middle = before + tensor_bytes(&model->tensors[i]) / 2;

		part = (size_t)((double)middle / (double)all * (double)n);
		if (part != last) {
			ret_parts->first[ret_parts->n++] = i;
			last = part;
		}
		before += tensor_bytes(&model->tensors[i]);
	}
	ret_parts->first[ret_parts->n] = model->ntensors;
}

static uint64_t part_bytes(const struct parts *parts, size_t k, const uint64_t *bytes)
{
	uint64_t n = 0;

	for (size_t i = parts->first[k]; i < parts->first[k + 1]; i++) {
		n += memory_length(bytes[i]);
	}
	return n;
}

void parts_place(const struct parts *parts, struct memory *memory, const uint64_t *bytes,
	unsigned char **ret_data)
{
	uint64_t largest = 0, all = 0;
	unsigned char *area;

	for (size_t k = 0; k < parts->n; k++) {
		uint64_t n = part_bytes(parts, k, bytes);

		largest = n > largest ? n : largest;
		all += n;
	}
	printf("trainer: %zu parts in %" PRIu64 " bytes of memory, not %" PRIu64 "\n", parts->n,
		largest, all);
	area = memory_take(memory, largest);
	for (size_t k = 0; k < parts->n; k++) {
		unsigned char *at = area; /* again: only one part is there at a time */

		for (size_t i = parts->first[k]; i < parts->first[k + 1]; i++) {
			ret_data[i] = bytes[i] ? at : NULL;
			at += memory_length(bytes[i]);
		}
	}
}

int parts_publish(const struct parts *parts, struct strew_trainer *strew, uint64_t version,
	unsigned flags, int timeout_ms, const char *(*make)(void *data, size_t part), void *data)
{
	/* Says nothing to anybody yet: the first put does. */
	int rc = strew_trainer_open_parts(strew, version, flags, timeout_ms);

	for (size_t k = 0; k < parts->n && rc >= 0; k++) {
		/* The part before is released: its memory may be written. */
		const char *failed = make(data, k);

		if (failed) {
			rc = strew_trainer_cancel_parts(strew, failed);
			return rc == -ECANCELED ? 0 : rc; /* the report names us */
		}
		rc = strew_trainer_put(strew, parts->subset[k], NULL);
		/* All ranks have put it, and nobody reads it any more. */
		rc = rc < 0 ? rc : strew_trainer_wait_released(strew, timeout_ms);
		if (rc >= 0) {
			printf("trainer: version %" PRIu64 " part %zu of %zu released\n", version,
				k + 1, parts->n);
		}
	}
	rc = rc < 0 ? rc : strew_trainer_close_parts(strew);
	/* It has ended without us: a rank or a broker was lost, or its time is over. */
	return rc == -ECANCELED ? 0 : rc;
}
