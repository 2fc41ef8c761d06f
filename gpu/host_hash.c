#include "base/util.h"
#include "gpu/hash.h"
#include "gpu/host.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

struct host_hashes {
	struct gpu_hashes head;
	struct gpu_span *spans;
	size_t *first;
	uint64_t *sums;
};

int host_hashes_create(struct gpu_device *device, const struct gpu_span *spans, const size_t *first,
	size_t nranges, size_t nsums, struct gpu_hashes **ret_hashes, struct error *err)
{
	struct host_hashes *hashes = calloc(1, sizeof(*hashes));

	if (hashes) {
		hashes->head = (struct gpu_hashes){device->ops, nranges, nsums, NULL};
		hashes->spans = calloc(first[nranges] + 1, sizeof(*spans));
		hashes->first = calloc(nranges + 1, sizeof(*first));
		hashes->sums = calloc(nsums + 1, sizeof(*hashes->sums));
	}
	if (!hashes || !hashes->spans || !hashes->first || !hashes->sums) {
		host_hashes_destroy(hashes ? &hashes->head : NULL);
		return error_set(err, -ENOMEM, "no memory for %zu hashes", nsums);
	}
	memcpy(hashes->spans, spans, first[nranges] * sizeof(*spans));
	memcpy(hashes->first, first, (nranges + 1) * sizeof(*first));
	hashes->head.values = hashes->sums;
	*ret_hashes = &hashes->head;
	return 0;
}

void host_hashes_destroy(struct gpu_hashes *base)
{
	struct host_hashes *hashes = (struct host_hashes *)base;

	if (hashes) {
		free(hashes->spans);
		free(hashes->first);
		free(hashes->sums);
		free(hashes);
	}
}

int host_hashes_clear(struct gpu_hashes *base, struct gpu_stream *stream, struct error *err)
{
	struct host_hashes *hashes = (struct host_hashes *)base;

	(void)stream;
	(void)err;
	memset(hashes->sums, 0, base->nsums * sizeof(*hashes->sums));
	return 0;
}

static uint64_t sum_span(const unsigned char *at, uint64_t len_bytes, uint64_t position)
{
	uint64_t sum = 0, word;

	for (; len_bytes >= sizeof(word); len_bytes -= sizeof(word), at += sizeof(word)) {
		memcpy(&word, at, sizeof(word)); /* little-endian, as all hosts of GPUs are */
		sum += hash_word(word, position++);
	}
	if (len_bytes) {
		word = 0;
		memcpy(&word, at, len_bytes);
		sum += hash_word(word, position);
	}
	return sum;
}

int host_hashes_run(struct gpu_hashes *base, size_t range, uint64_t slot_address,
	struct gpu_stream *stream, struct error *err)
{
	struct host_hashes *hashes = (struct host_hashes *)base;

	(void)stream;
	(void)err;
	for (size_t i = hashes->first[range]; i < hashes->first[range + 1]; i++) {
		const struct gpu_span *span = &hashes->spans[i];
		uint64_t address = span->address + (span->in_slot ? slot_address : 0);

		hashes->sums[span->sum] += sum_span((const unsigned char *)(uintptr_t)address,
			span->len_bytes, span->position / sizeof(uint64_t));
	}
	return 0;
}

int host_hashes_fetch(struct gpu_hashes *hashes, struct gpu_stream *stream, struct error *err)
{
	(void)hashes; /* they are there */
	(void)stream;
	(void)err;
	return 0;
}
