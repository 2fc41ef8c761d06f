/*
 * Copies on a GPU: descriptors and tiles are uploaded once; a run is a launch over the
 * range's tiles and a call for each run that a copy engine takes.
 */
#include "base/util.h"
#include "gpu/cuda_backend.h"
#include "gpu/tiles.h"
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/*
 * A shared run has a block on each multiprocessor. Measured with two H100s, 31 GB to a peer while
 * half as much is copied within the GPU: 1 took 42.0 ms, 2 as long, 4 46.3, all that fit 51.4,
 * and one on every second multiprocessor 50.3; the link alone needs 39.1.
 * Beside NCCL's kernels it has one on every second, by bulk copies: on two H200s Llama's buckets
 * took 45.07 ms so, 45.24 with one on each, and as long with one on every fourth; Qwen's 86.96 and
 * 87.67.
 */
#define CARRIER_PART 2

struct cuda_copies {
	struct gpu_copies head;
	struct cuda_device *device;
	struct scatter_run *runs;
	struct scatter_range *ranges;
	enum gpu_share share;	     /* 0: with nobody */
	cuda_ptr descriptors, tiles; /* on the device; 0: none */
	/* Where a range has both, copy engines work here while the kernel does: over a link neither
	 * fills it alone. */
	struct cuda_stream *beside;
	struct cuda_event *forked, *joined;
};

/* Machine code for this GPU if the build has it, else the text, which the driver compiles: the
 * newer one, unless it is refused. */
int cuda_load_kernels(struct cuda_device *device, struct error *err)
{
	struct cuda_module *module = NULL;
	int rc = -ENOENT;

	if (device->module) {
		return 0;
	}
	if (scatter_fatbin_bytes) {
		rc = CUDA(NULL, cuModuleLoadData, &module, scatter_fatbin);
	}
	if (rc) {
		rc = CUDA(NULL, cuModuleLoadData, &module, scatter_90_ptx);
	}
	if (rc) {
		rc = CUDA(err, cuModuleLoadData, &module, scatter_ptx);
	}
	if (rc) {
		return rc;
	}
	rc = CUDA(err, cuModuleGetFunction, &device->scatter, module, "strew_scatter");
	rc = rc ? rc
		: CUDA(err, cuModuleGetFunction, &device->scatter_few, module, "strew_scatter_few");
	if (rc) {
		CUDA(NULL, cuModuleUnload, module);
		return rc;
	}
	device->module = module;
	return 0;
}

static int find_cast_kernel(struct cuda_device *device, struct error *err)
{
	if (device->scatter_cast) {
		return 0;
	}
	if (CUDA(NULL, cuModuleGetFunction, &device->scatter_cast, device->module,
		    "strew_scatter_cast")) {
		device->scatter_cast = NULL;
		return error_set(err, -ENOTSUP,
			"this build's kernel is older than casts: its gpu/scatter.ptx has to be "
			"made anew (target scatter_ptx)");
	}
	return 0;
}

/*
 * Where the memory behind a base lies. Of what was imported the driver names the GPU that it was
 * mapped for, so the import is asked first. NULL: nowhere that is known.
 */
static const uint8_t *find_uuid(struct cuda_device *device, uint64_t base)
{
	const struct cuda_gpu *gpu = device->gpu;
	const uint8_t *uuid = cuda_import_uuid(device, base);
	uint64_t ordinal;

	if (!uuid && cuda_attribute(base, CUDA_POINTER_ORDINAL, &ordinal) &&
		ordinal < (uint64_t)gpu->head.info.ndevices) {
		uuid = gpu->uuids[ordinal];
	}
	return uuid;
}

/*
 * Is the memory behind this base somewhere else, seen from the device? A kernel can only
 * reach a peer's memory where the driver allows peer access.
 */
static int locate_base(
	struct cuda_device *device, uint64_t base, enum place *ret_place, struct error *err)
{
	char ours[UUID_TEXT_BYTES], theirs[UUID_TEXT_BYTES];
	uint64_t type = CUDA_MEMORY_DEVICE;
	const uint8_t *uuid;

	*ret_place = PLACE_HERE;
	if (base == 0 || base == GPU_OUT_OF_REACH) {
		return 0;
	}
	if (cuda_attribute(base, CUDA_POINTER_MEMORY_TYPE, &type) && type == CUDA_MEMORY_HOST) {
		*ret_place = PLACE_HOST;
		return 0;
	}
	uuid = find_uuid(device, base);
	if (!uuid || memcmp(uuid, device->head.uuid, GPU_UUID_BYTES) == 0) {
		return 0;
	}
	*ret_place = PLACE_PEER;
	if (!gpu_device_reaches(&device->head, uuid)) {
		return error_set(err, -ENOTSUP, "%s has no peer access to %s",
			gpu_uuid_format(ours, sizeof(ours), device->head.uuid),
			gpu_uuid_format(theirs, sizeof(theirs), uuid));
	}
	return 0;
}

static int upload(
	const void *array, size_t n, size_t size, cuda_ptr *ret_address, struct error *err)
{
	cuda_ptr address;
	int rc;

	if (n == 0) {
		*ret_address = 0;
		return 0;
	}
	rc = CUDA(err, cuMemAlloc, &address, n * size);
	if (rc) {
		return error_prefix(err, "%zu bytes of descriptors", n * size);
	}
	rc = cuda_upload(address, array, n * size, err);
	if (rc) {
		CUDA(NULL, cuMemFree, address);
		return rc;
	}
	*ret_address = address;
	return 0;
}

static bool has_casts(const struct copies *copies)
{
	for (size_t i = 0; i < copies->n; i++) {
		if (copies->v[i].from) {
			return true;
		}
	}
	return false;
}

static int build_table(struct cuda_device *device, const struct copies *copies,
	const uint64_t *bases, size_t nbases, struct scatter_table *ret_table, struct error *err)
{
	enum place *places = calloc(nbases ? nbases : 1, sizeof(*places));
	int rc = 0;

	if (!places) {
		return error_set(err, -ENOMEM, "no memory for %zu spaces", nbases);
	}
	for (size_t i = 0; i < nbases && rc == 0; i++) {
		rc = locate_base(device, bases[i], &places[i], err);
	}
	if (rc == 0) {
		rc = tiles_build(copies, bases, places, ret_table, err);
	}
	free(places);
	return rc;
}

static bool has_both(const struct cuda_copies *copies)
{
	for (size_t i = 0; i < copies->head.nranges; i++) {
		if (copies->ranges[i].nruns && copies->ranges[i].ntiles) {
			return true;
		}
	}
	return false;
}

static int make_beside(struct cuda_copies *copies, struct error *err)
{
	int rc =
		CUDA(err, cuStreamCreateWithPriority, &copies->beside, CUDA_STREAM_NON_BLOCKING, 0);

	rc = rc ? rc : CUDA(err, cuEventCreate, &copies->forked, CUDA_EVENT_DISABLE_TIMING);
	return rc ? rc : CUDA(err, cuEventCreate, &copies->joined, CUDA_EVENT_DISABLE_TIMING);
}

int cuda_copies_create(struct gpu_device *base, const struct copies *source, const uint64_t *bases,
	size_t nbases, struct gpu_copies **ret_copies, struct error *err)
{
	struct cuda_device *device = (struct cuda_device *)base;
	struct cuda_copies *copies;
	struct scatter_table table;
	int rc;

	rc = cuda_enter(device, err);
	if (rc == 0) {
		rc = cuda_load_kernels(device, err);
	}
	if (rc == 0 && has_casts(source)) {
		rc = find_cast_kernel(device, err);
	}
	if (rc) {
		return rc;
	}
	copies = calloc(1, sizeof(*copies));
	if (!copies) {
		return error_set(err, -ENOMEM, "no memory for copies");
	}
	copies->head.ops = base->ops;
	copies->head.nranges = source->nranges;
	copies->device = device;
	rc = build_table(device, source, bases, nbases, &table, err);
	if (rc) {
		goto free_copies;
	}
	rc = upload(table.descriptors, table.ndescriptors, sizeof(*table.descriptors),
		&copies->descriptors, err);
	if (rc == 0) {
		rc = upload(table.tiles, table.ntiles, sizeof(*table.tiles), &copies->tiles, err);
	}
	if (rc == 0) {
		copies->runs = table.runs;
		copies->ranges = table.ranges;
		table.runs = NULL;
		table.ranges = NULL;
	}
	tiles_finish(&table);
	if (rc == 0 && has_both(copies)) {
		rc = make_beside(copies, err);
	}
	if (rc) {
		goto free_copies;
	}
	*ret_copies = &copies->head;
	return 0;

free_copies:
	cuda_copies_destroy(&copies->head);
	return rc;
}

void cuda_copies_destroy(struct gpu_copies *base)
{
	struct cuda_copies *copies = (struct cuda_copies *)base;

	cuda_enter(copies->device, NULL);
	if (copies->beside) {
		CUDA(NULL, cuStreamDestroy, copies->beside);
	}
	if (copies->forked) {
		CUDA(NULL, cuEventDestroy, copies->forked);
	}
	if (copies->joined) {
		CUDA(NULL, cuEventDestroy, copies->joined);
	}
	if (copies->descriptors) {
		CUDA(NULL, cuMemFree, copies->descriptors);
	}
	if (copies->tiles) {
		CUDA(NULL, cuMemFree, copies->tiles);
	}
	free(copies->runs);
	free(copies->ranges);
	free(copies);
}

void cuda_copies_share(struct gpu_copies *base, enum gpu_share share)
{
	((struct cuda_copies *)base)->share = share;
}

/* Blocks of a shared run. */
static unsigned few_blocks(const struct cuda_copies *copies)
{
	unsigned n = (unsigned)copies->device->multiprocessors;

	return MAX(copies->share == GPU_SHARE_CARRIER ? n / CARRIER_PART : n, 1);
}

/* `fewer`: at most so many blocks, which take the tiles in turn; 0: a block a tile. */
static int launch(struct cuda_copies *copies, struct cuda_function *kernel, size_t first_tile,
	size_t count, uint64_t slot, unsigned fewer, struct cuda_stream *stream, struct error *err)
{
	cuda_ptr descriptors = copies->descriptors;
	cuda_ptr tiles = copies->tiles + first_tile * sizeof(struct scatter_tile);
	uint32_t ntiles = (uint32_t)count;
	void *arguments[] = {&descriptors, &tiles, &slot, &ntiles}; /* only few take the last */

	return CUDA(err, cuLaunchKernel, kernel, fewer ? fewer : ntiles, 1, 1, SCATTER_THREADS, 1,
		1, 0, stream, arguments, NULL);
}

static int run_tiles(struct cuda_copies *copies, const struct scatter_range *range, uint64_t slot,
	struct cuda_stream *stream, struct error *err)
{
	struct cuda_device *device = copies->device;
	unsigned few = few_blocks(copies);
	bool shares = copies->share && range->ntiles > few;
	int rc = 0;

	if (range->ntiles) {
		rc = launch(copies, shares ? device->scatter_few : device->scatter,
			range->first_tile, range->ntiles, slot, shares ? few : 0, stream, err);
	}
	if (rc == 0 && range->ncasts) {
		/* Casts are rare enough to have no shared form. */
		rc = launch(copies, device->scatter_cast, range->first_cast, range->ncasts, slot, 0,
			stream, err);
	}
	return rc;
}

static int run_engines(struct cuda_copies *copies, const struct scatter_range *range, uint64_t slot,
	struct cuda_stream *stream, struct error *err)
{
	int rc = 0;

	for (size_t i = 0; i < range->nruns && rc == 0; i++) {
		const struct scatter_run *run = &copies->runs[range->first_run + i];

		rc = CUDA(err, cuMemcpyAsync, run->dst + (run->slot & SCATTER_DST_SLOT ? slot : 0),
			run->src + (run->slot & SCATTER_SRC_SLOT ? slot : 0), run->len_bytes,
			stream);
	}
	return rc;
}

/* At once; the stream goes on behind both, after a failure too. */
static int run_both(struct cuda_copies *copies, const struct scatter_range *range, uint64_t slot,
	struct cuda_stream *stream, struct error *err)
{
	struct error ignored;
	int joined, rc = CUDA(err, cuEventRecord, copies->forked, stream);

	rc = rc ? rc : CUDA(err, cuStreamWaitEvent, copies->beside, copies->forked, 0);
	if (rc) {
		return rc;
	}
	rc = run_tiles(copies, range, slot, stream, err);
	rc = rc ? rc : run_engines(copies, range, slot, copies->beside, err);
	joined = CUDA(rc ? &ignored : err, cuEventRecord, copies->joined, copies->beside);
	joined = joined ? joined
			: CUDA(rc ? &ignored : err, cuStreamWaitEvent, stream, copies->joined, 0);
	return rc ? rc : joined;
}

int cuda_copies_run(struct gpu_copies *base, size_t index, uint64_t slot_address,
	struct gpu_stream *stream, struct error *err)
{
	struct cuda_copies *copies = (struct cuda_copies *)base;
	const struct scatter_range *range = &copies->ranges[index];
	struct cuda_stream *native = gpu_stream_native(stream);
	int rc;

	if (range->ntiles == 0 && range->ncasts == 0 && range->nruns == 0) {
		return 0;
	}
	rc = cuda_enter(copies->device, err);
	if (rc == 0 && range->ntiles && range->nruns) {
		return run_both(copies, range, slot_address, native, err);
	}
	rc = rc ? rc : run_tiles(copies, range, slot_address, native, err);
	return rc ? rc : run_engines(copies, range, slot_address, native, err);
}

int cuda_copy(struct gpu_device *base, uint64_t dst, uint64_t src, uint64_t len_bytes,
	struct gpu_stream *stream, struct error *err)
{
	int rc = cuda_enter((struct cuda_device *)base, err);

	if (rc == 0) {
		rc = CUDA(err, cuMemcpyAsync, dst, src, len_bytes, gpu_stream_native(stream));
	}
	return rc;
}
