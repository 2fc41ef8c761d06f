#include "plan/by_tensor.h"
#include <errno.h>
#include <stdlib.h>

/* A counting sort. Element i of n, `size` bytes apart, has its tensor's number at `numbers`. */
static int sort_by_tensor(const uint32_t *numbers, size_t n, size_t size, size_t ntensors,
	struct by_tensor *ret_index)
{
	const char *at = (const char *)numbers;
	size_t *first = calloc(ntensors + 2, sizeof(*first));
	uint32_t *items = malloc((n + 1) * sizeof(*items));

	*ret_index = (struct by_tensor){first, items};
	if (!first || !items) {
		return -ENOMEM;
	}
	/* first[t + 2] counts, then first[t + 1] runs from the start of t to its end. */
	for (size_t i = 0; i < n; i++) {
		first[*(const uint32_t *)(const void *)(at + i * size) + 2]++;
	}
	for (size_t t = 2; t < ntensors + 2; t++) {
		first[t] += first[t - 1];
	}
	for (size_t i = 0; i < n; i++) {
		uint32_t t = *(const uint32_t *)(const void *)(at + i * size);

		items[first[t + 1]++] = (uint32_t)i;
	}
	return 0;
}

int by_tensor_of_boxes(const struct manifest *manifest, struct by_tensor *ret_index)
{
	return sort_by_tensor(manifest->nboxes ? &manifest->boxes->tensor : NULL, manifest->nboxes,
		sizeof(*manifest->boxes), manifest->ntensors, ret_index);
}

int by_tensor_of_pieces(const struct layout *layout, struct by_tensor *ret_index)
{
	return sort_by_tensor(layout->npieces ? &layout->pieces->tensor : NULL, layout->npieces,
		sizeof(*layout->pieces), layout->ntensors, ret_index);
}

void by_tensor_finish(struct by_tensor *index)
{
	free(index->first);
	free(index->items);
	*index = (struct by_tensor){0};
}
