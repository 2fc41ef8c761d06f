/*
 * Hashes on a GPU: the tiles of all ranges are uploaded once, a run is one launch. The sums are on
 * the device; a pinned copy of them is what the host reads, behind it zeros to clear them with.
 */
#include "base/util.h"
#include "gpu/cuda_backend.h"
#include "gpu/hash.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

struct cuda_hashes {
	struct gpu_hashes head;
	struct cuda_device *device;
	size_t *first;	/* tile of each range, and the end */
	cuda_ptr tiles; /* on the device; 0: none */
	cuda_ptr sums;
	uint64_t *pinned; /* nsums values, nsums zeros */
};

static int find_kernel(struct cuda_device *device, struct error *err)
{
	int rc = cuda_load_kernels(device, err);

	if (rc || device->hash) {
		return rc;
	}
	if (CUDA(NULL, cuModuleGetFunction, &device->hash, device->module, "strew_hash")) {
		device->hash = NULL;
		return error_set(err, -ENOTSUP,
			"this build's kernels are older than hashes: its gpu/scatter.ptx has to be "
			"made anew (target scatter_ptx)");
	}
	return 0;
}

static size_t count_tiles(const struct gpu_span *span)
{
	return (span->len_bytes + HASH_TILE_BYTES - 1) / HASH_TILE_BYTES;
}

static void cut(const struct gpu_span *span, struct hash_tile *tiles)
{
	for (size_t i = 0, n = count_tiles(span); i < n; i++) {
		uint64_t at = (uint64_t)i * HASH_TILE_BYTES;

		tiles[i] = (struct hash_tile){.address = span->address + at,
			.position = (span->position + at) / sizeof(uint64_t),
			.len_bytes = (uint32_t)MIN(span->len_bytes - at, HASH_TILE_BYTES),
			.in_slot = span->in_slot,
			.sum = span->sum};
	}
}

static int upload_tiles(struct cuda_hashes *hashes, const struct gpu_span *spans,
	const size_t *first, struct error *err)
{
	size_t nranges = hashes->head.nranges, n = 0;
	struct hash_tile *tiles;
	int rc = 0;

	for (size_t i = 0; i < first[nranges]; i++) {
		n += count_tiles(&spans[i]);
	}
	tiles = calloc(n + 1, sizeof(*tiles));
	if (!tiles) {
		return error_set(err, -ENOMEM, "no memory for %zu tiles", n);
	}
	n = 0;
	for (size_t range = 0; range < nranges; range++) {
		hashes->first[range] = n;
		for (size_t i = first[range]; i < first[range + 1]; i++) {
			cut(&spans[i], tiles + n);
			n += count_tiles(&spans[i]);
		}
	}
	hashes->first[nranges] = n;
	if (n) {
		rc = CUDA(err, cuMemAlloc, &hashes->tiles, n * sizeof(*tiles));
		rc = rc ? rc : cuda_upload(hashes->tiles, tiles, n * sizeof(*tiles), err);
	}
	free(tiles);
	return rc;
}

static int make_sums(struct cuda_hashes *hashes, struct error *err)
{
	size_t bytes = (hashes->head.nsums + 1) * sizeof(uint64_t);
	void *pinned;
	int rc = CUDA(err, cuMemAlloc, &hashes->sums, bytes);

	rc = rc ? rc
		: CUDA(err, cuMemHostAlloc, &pinned, 2 * bytes,
			  CUDA_REGISTER_PORTABLE | CUDA_REGISTER_DEVICEMAP);
	if (rc == 0) {
		hashes->pinned = pinned;
		memset(hashes->pinned, 0, 2 * bytes);
		hashes->head.values = hashes->pinned;
		rc = CUDA(err, cuMemcpyHtoD, hashes->sums, hashes->pinned, bytes);
	}
	return rc;
}

int cuda_hashes_create(struct gpu_device *base, const struct gpu_span *spans, const size_t *first,
	size_t nranges, size_t nsums, struct gpu_hashes **ret_hashes, struct error *err)
{
	struct cuda_device *device = (struct cuda_device *)base;
	struct cuda_hashes *hashes;
	int rc = cuda_enter(device, err);

	rc = rc ? rc : find_kernel(device, err);
	if (rc) {
		return rc;
	}
	hashes = calloc(1, sizeof(*hashes));
	if (!hashes) {
		return error_set(err, -ENOMEM, "no memory for hashes");
	}
	hashes->head = (struct gpu_hashes){base->ops, nranges, nsums, NULL};
	hashes->device = device;
	hashes->first = calloc(nranges + 1, sizeof(*hashes->first));
	rc = hashes->first ? upload_tiles(hashes, spans, first, err)
			   : error_set(err, -ENOMEM, "no memory for hashes");
	rc = rc ? rc : make_sums(hashes, err);
	if (rc) {
		cuda_hashes_destroy(&hashes->head);
		return rc;
	}
	*ret_hashes = &hashes->head;
	return 0;
}

void cuda_hashes_destroy(struct gpu_hashes *base)
{
	struct cuda_hashes *hashes = (struct cuda_hashes *)base;

	cuda_enter(hashes->device, NULL);
	if (hashes->tiles) {
		CUDA(NULL, cuMemFree, hashes->tiles);
	}
	if (hashes->sums) {
		CUDA(NULL, cuMemFree, hashes->sums);
	}
	if (hashes->pinned) {
		CUDA(NULL, cuMemFreeHost, hashes->pinned);
	}
	free(hashes->first);
	free(hashes);
}

int cuda_hashes_clear(struct gpu_hashes *base, struct gpu_stream *stream, struct error *err)
{
	struct cuda_hashes *hashes = (struct cuda_hashes *)base;
	const uint64_t *zeros = hashes->pinned + base->nsums + 1;
	int rc = cuda_enter(hashes->device, err);

	return rc ? rc
		  : CUDA(err, cuMemcpyAsync, hashes->sums, (uintptr_t)zeros,
			    base->nsums * sizeof(*zeros), gpu_stream_native(stream));
}

int cuda_hashes_run(struct gpu_hashes *base, size_t range, uint64_t slot_address,
	struct gpu_stream *stream, struct error *err)
{
	struct cuda_hashes *hashes = (struct cuda_hashes *)base;
	size_t first = hashes->first[range], n = hashes->first[range + 1] - first;
	cuda_ptr tiles = hashes->tiles + first * sizeof(struct hash_tile);
	cuda_ptr sums = hashes->sums;
	void *arguments[] = {&tiles, &slot_address, &sums};
	int rc;

	if (n == 0) {
		return 0;
	}
	rc = cuda_enter(hashes->device, err);
	return rc ? rc
		  : CUDA(err, cuLaunchKernel, hashes->device->hash, (unsigned)n, 1, 1, HASH_THREADS,
			    1, 1, 0, gpu_stream_native(stream), arguments, NULL);
}

int cuda_hashes_fetch(struct gpu_hashes *base, struct gpu_stream *stream, struct error *err)
{
	struct cuda_hashes *hashes = (struct cuda_hashes *)base;
	int rc = cuda_enter(hashes->device, err);

	return rc ? rc
		  : CUDA(err, cuMemcpyAsync, (uintptr_t)hashes->pinned, hashes->sums,
			    base->nsums * sizeof(*hashes->pinned), gpu_stream_native(stream));
}
