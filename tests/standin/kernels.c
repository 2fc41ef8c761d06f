/*
 * The stand-in driver: modules, and strew's kernels done by the CPU, from what gpu/scatter.h says
 * of descriptors and tiles: by plain division, an element at a time, with the casts of
 * unit/cast_reference.h and the hash of unit/hash_reference.h. Shares no code with the kernels, nor
 * with the host backend.
 */
#include "gpu/hash.h"
#include "gpu/scatter.h"
#include "tests/standin/driver.h"
#include "tests/unit/cast_reference.h"
#include "tests/unit/hash_reference.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum kernel { SCATTER, SCATTER_FEW, SCATTER_CASTS, HASH, KERNELS };
static const char *const kernel_names[KERNELS] = {
	"strew_scatter", "strew_scatter_few", "strew_scatter_cast", "strew_hash"};

struct cuda_function {
	enum kernel kernel;
	struct cuda_module *module;
};

struct cuda_module {
	bool has[KERNELS];
	struct cuda_function functions[KERNELS];
};

struct launch {
	enum kernel kernel;
	uint64_t descriptors, tiles, slot, sums;
	uint32_t ntiles;
};

/* An image is PTX, whose entries are looked for, or machine code, which is taken to have them all.
 */
unsigned cuModuleLoadData(struct cuda_module **ret_module, const void *image)
{
	const char *text = image;
	struct cuda_module *module;
	char entry[64];

	ENTER_CTX(cuModuleLoadData);
	if (!image) {
		return CUDA_INVALID_VALUE;
	}
	module = calloc(1, sizeof(*module));
	if (!module) {
		return CUDA_OUT_OF_MEMORY;
	}
	for (int i = 0; i < KERNELS; i++) {
		snprintf(entry, sizeof(entry), ".entry %s(", kernel_names[i]);
		module->has[i] = text[0] != '/' || strstr(text, entry);
		module->functions[i] = (struct cuda_function){(enum kernel)i, module};
	}
	COUNT(modules, 1);
	*ret_module = module;
	return CUDA_OK;
}

unsigned cuModuleUnload(struct cuda_module *module)
{
	ENTER_CTX(cuModuleUnload);
	streams_drain(ctx);
	free(module);
	COUNT(modules, -1);
	return CUDA_OK;
}

unsigned cuModuleGetFunction(
	struct cuda_function **ret_function, struct cuda_module *module, const char *name)
{
	ENTER_CTX(cuModuleGetFunction);
	for (int i = 0; i < KERNELS; i++) {
		if (module->has[i] && strcmp(name, kernel_names[i]) == 0) {
			*ret_function = &module->functions[i];
			return CUDA_OK;
		}
	}
	return NOT_FOUND;
}

unsigned cuLaunchKernel(struct cuda_function *function, unsigned grid_x, unsigned grid_y,
	unsigned grid_z, unsigned block_x, unsigned block_y, unsigned block_z, unsigned shared,
	struct cuda_stream *stream, void **parameters, void **extra)
{
	static struct standin_cell *_Atomic kernel_cells[KERNELS];
	struct launch launch = {0};
	struct fault named;

	ENTER_CTX(cuLaunchKernel);
	if (!function || !parameters || extra || !grid_x || grid_x > INT32_MAX || grid_y != 1 ||
		grid_z != 1 || !block_x || block_x > 1024 || block_y != 1 || block_z != 1 ||
		shared) {
		return CUDA_INVALID_VALUE;
	}
	launch.kernel = function->kernel;
	named = standin_enter(kernel_names[launch.kernel], &kernel_cells[launch.kernel]);
	if (named.kind == FAULT_FAIL) {
		return named.argument;
	}
	fault = named.kind ? named : fault;
	if (launch.kernel == HASH) {
		memcpy(&launch.tiles, parameters[0], sizeof(launch.tiles));
		memcpy(&launch.slot, parameters[1], sizeof(launch.slot));
		memcpy(&launch.sums, parameters[2], sizeof(launch.sums));
		launch.ntiles = grid_x;
		return block_x != HASH_THREADS
			       ? CUDA_INVALID_VALUE
			       : stream_kernel(ctx, stream, &fault, &launch, sizeof(launch));
	}
	memcpy(&launch.descriptors, parameters[0], sizeof(launch.descriptors));
	memcpy(&launch.tiles, parameters[1], sizeof(launch.tiles));
	memcpy(&launch.slot, parameters[2], sizeof(launch.slot));
	/* A block to a tile; "few" takes the number, and its blocks go on until all are done. */
	launch.ntiles = grid_x;
	if (launch.kernel == SCATTER_FEW) {
		memcpy(&launch.ntiles, parameters[3], sizeof(launch.ntiles));
	} else if (block_x != SCATTER_THREADS) {
		return CUDA_INVALID_VALUE;
	}
	return stream_kernel(ctx, stream, &fault, &launch, sizeof(launch));
}

/* All of [address, + len_bytes), or NULL: elements lie in one space, aligned ones in any case. */
static char *reach(int device, uint64_t address, size_t len_bytes, unsigned access)
{
	size_t n = len_bytes;
	char *at = space_reach(device, address, &n, access);

	return at && n == len_bytes ? at : NULL;
}

/* What element or vector `v` of a tile begins at, as bytes from the descriptor's two addresses. */
static void locate(const struct scatter_descriptor *d, const struct scatter_tile *tile, uint32_t v,
	size_t src_bytes, size_t dst_bytes, uint64_t *ret_src, uint64_t *ret_dst)
{
	uint64_t number = (uint64_t)tile->vector + v;
	uint64_t row = tile->row + number / d->vectors.value;
	uint64_t column = number % d->vectors.value;

	*ret_src = d->src + column * src_bytes;
	*ret_dst = d->dst + column * dst_bytes;
	for (uint32_t k = d->ndim; k-- > 0;) {
		uint64_t index = k ? row % d->dim[k].extent.value : row;

		*ret_src += index * d->dim[k].src_stride;
		*ret_dst += index * d->dim[k].dst_stride;
		row /= d->dim[k].extent.value;
	}
}

static unsigned copy_vector(int device, uint64_t src, uint64_t dst, uint32_t width)
{
	const char *from = reach(device, src, width, MAY_READ);
	char *to = reach(device, dst, width, MAY_WRITE);

	/* The hardware refuses a vector that is not aligned to its own length. */
	if (!from || !to || src % width || dst % width) {
		return CUDA_ILLEGAL_ADDRESS;
	}
	memcpy(to, from, width);
	return CUDA_OK;
}

static unsigned cast_elements(
	int device, const struct scatter_descriptor *d, uint64_t src, uint64_t dst)
{
	enum strew_dtype from = (enum strew_dtype)(d->cast & 0xff);
	enum strew_dtype to = (enum strew_dtype)(d->cast >> 8);
	size_t from_bytes = (size_t)ref_format(from).bytes;
	size_t to_bytes = (size_t)ref_format(to).bytes;
	uint32_t n = d->width ? d->width : 1;

	if (d->width && (src % (n * from_bytes) || dst % (n * to_bytes))) {
		return CUDA_ILLEGAL_ADDRESS;
	}
	for (uint32_t i = 0; i < n; i++) {
		/* What is aligned to nothing may lie across two chunks. */
		char element[4];

		for (size_t b = 0; b < from_bytes; b++) {
			const char *at = reach(device, src + i * from_bytes + b, 1, MAY_READ);

			if (!at) {
				return CUDA_ILLEGAL_ADDRESS;
			}
			element[b] = *at;
		}
		ref_cast_at(element, element, from, to);
		for (size_t b = 0; b < to_bytes; b++) {
			char *at = reach(device, dst + i * to_bytes + b, 1, MAY_WRITE);

			if (!at) {
				return CUDA_ILLEGAL_ADDRESS;
			}
			*at = element[b];
		}
	}
	return CUDA_OK;
}

static unsigned run_tile(int device, const struct launch *launch, uint32_t index)
{
	const char *at = reach(device, launch->tiles + index * sizeof(struct scatter_tile),
		sizeof(struct scatter_tile), MAY_READ);
	struct scatter_descriptor d;
	struct scatter_tile tile;
	size_t src_bytes, dst_bytes;
	unsigned result = CUDA_OK;

	if (!at) {
		return CUDA_ILLEGAL_ADDRESS;
	}
	memcpy(&tile, at, sizeof(tile));
	at = reach(device, launch->descriptors + tile.descriptor * sizeof(d), sizeof(d), MAY_READ);
	if (!at) {
		return CUDA_ILLEGAL_ADDRESS;
	}
	memcpy(&d, at, sizeof(d));
	/* A cast that another kernel got would be taken for bytes. */
	if ((d.cast != 0) != (launch->kernel == SCATTER_CASTS) || !d.vectors.value || !d.ndim ||
		d.ndim > SCATTER_DIMS || tile.count > SCATTER_TILE_VECTORS) {
		return CUDA_LAUNCH_FAILED;
	}
	d.src += d.slot & SCATTER_SRC_SLOT ? launch->slot : 0;
	d.dst += d.slot & SCATTER_DST_SLOT ? launch->slot : 0;
	src_bytes = dst_bytes = d.width;
	if (d.cast) {
		uint32_t n = d.width ? d.width : 1;

		src_bytes = n * (size_t)ref_format((enum strew_dtype)(d.cast & 0xff)).bytes;
		dst_bytes = n * (size_t)ref_format((enum strew_dtype)(d.cast >> 8)).bytes;
	}
	for (uint32_t v = 0; v < tile.count && result == CUDA_OK; v++) {
		uint64_t src, dst;

		locate(&d, &tile, v, src_bytes, dst_bytes, &src, &dst);
		result = d.cast ? cast_elements(device, &d, src, dst)
				: copy_vector(device, src, dst, d.width);
	}
	return result;
}

static unsigned run_hash(int device, const struct launch *launch, uint32_t index)
{
	struct hash_tile tile;
	const char *at =
		reach(device, launch->tiles + index * sizeof(tile), sizeof(tile), MAY_READ);
	uint64_t sum;
	char *to;

	if (!at) {
		return CUDA_ILLEGAL_ADDRESS;
	}
	memcpy(&tile, at, sizeof(tile));
	at = reach(
		device, tile.address + (tile.in_slot ? launch->slot : 0), tile.len_bytes, MAY_READ);
	to = reach(device, launch->sums + tile.sum * sizeof(sum), sizeof(sum), MAY_WRITE);
	if (!at || !to) {
		return CUDA_ILLEGAL_ADDRESS;
	}
	memcpy(&sum, to, sizeof(sum));
	sum += ref_hash(at, tile.len_bytes, tile.position * 8);
	memcpy(to, &sum, sizeof(sum));
	return CUDA_OK;
}

unsigned kernel_run(int device, const void *data)
{
	unsigned result = CUDA_OK;
	struct launch launch;

	memcpy(&launch, data, sizeof(launch));
	for (uint32_t i = 0; i < launch.ntiles && result == CUDA_OK; i++) {
		spaces_hold();
		result = launch.kernel == HASH ? run_hash(device, &launch, i)
					       : run_tile(device, &launch, i);
		spaces_release();
	}
	return result;
}
