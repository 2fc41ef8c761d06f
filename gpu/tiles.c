#include "gpu/tiles.h"
#include "base/util.h"
#include "gpu/cast.h"
#include "plan/cast.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

_Static_assert(SCATTER_DIMS == STREW_MAX_DIMS, "a descriptor takes every copy");
_Static_assert(sizeof(struct scatter_descriptor) == 48 + 32 * SCATTER_DIMS, "no padding");
_Static_assert(sizeof(struct scatter_tile) == 16, "one load a tile");
_Static_assert(
	(int)CAST_F32 == STREW_F32 && (int)CAST_F16 == STREW_F16 && (int)CAST_BF16 == STREW_BF16,
	"the kernel's numbers are those of the API");

#define RUN_MAX_BYTES (1ull << 30) /* so that a row's vectors fit 31 bits */
#define ROWS_MAX (1ull << 30)	   /* the same for a descriptor's rows */
#define PEEL_MIN_BYTES 1024	   /* an odd run that is shorter is copied in small vectors */
#define PART_VECTORS 16		   /* parts of a row start on this many vectors */

/* A range that is this few runs of at least this length goes by cuMemcpy within a GPU. */
#define ENGINE_RUNS 8
#define ENGINE_BYTES (4ull << 20)
/*
 * Runs to and from host memory do from the first length on, those to and from peers from the
 * second: over NVLink a copy engine makes 224 GB/s of 1 MiB and 368 of 16 MiB, the kernel 374 of
 * anything; from host memory the engine is ahead as soon as its calls are worth it. Strided rows
 * stay with the kernel: 16 GB of Llama to two GPUs took 22.0 ms so, and 23.3 with cuMemcpy2DAsync
 * for rows of 4 and 14 KiB, though that makes 393 GB/s alone.
 */
#define ENGINE_HOST_BYTES (1ull << 20)
#define ENGINE_PEER_BYTES (16ull << 20)
/*
 * Beside the kernel, which fills a link to 366 GB/s where an engine makes 396, shorter runs go by
 * the engine too, one for so many bytes that the kernel takes: the calls stay few. Qwen3-30B-A3B's
 * 31 GB to two GPUs took 42.67 ms without that, 42.59 with one in 15 MiB, 42.46 with one in 7.
 */
#define ENGINE_SHARE_BYTES (1ull << 20)
#define ENGINE_EACH_BYTES (7ull << 20)

/* What the policy wants to know of a range. */
struct shape {
	uint64_t nruns; /* saturated */
	uint64_t shortest_bytes;
	uint64_t kernel_bytes; /* to or from a peer, since an engine took a shorter run */
};

/* Rows of a copy, saturated; 0 if it is empty. */
static uint64_t copy_rows(const struct copy *copy)
{
	uint64_t rows = copy->run_bytes ? 1 : 0;

	for (unsigned k = 0; k < copy->ndim; k++) {
		if (copy->extent[k] == 0) {
			return 0;
		}
		if (mul_overflows(rows, copy->extent[k], &rows)) {
			rows = UINT64_MAX / 2;
		}
	}
	return rows;
}

/*
 * The policy. A copy engine leaves the multiprocessors to the engine, but a call costs
 * microseconds; the kernel takes any number of pieces in one launch.
 */
static bool by_copy_engine(const struct copy *copy, enum place place, struct shape *range)
{
	uint64_t rows = copy_rows(copy), bytes;

	if (copy->from) {
		return false;
	}
	if (range->nruns <= ENGINE_RUNS && range->shortest_bytes >= ENGINE_BYTES) {
		return true;
	}
	if (place != PLACE_PEER) {
		return place == PLACE_HOST && copy->run_bytes >= ENGINE_HOST_BYTES;
	}
	if (copy->run_bytes >= ENGINE_PEER_BYTES) {
		return true;
	}
	if (rows == 1 && copy->run_bytes >= ENGINE_SHARE_BYTES &&
		range->kernel_bytes >= ENGINE_EACH_BYTES) {
		range->kernel_bytes = 0;
		return true;
	}
	range->kernel_bytes += mul_overflows(rows, copy->run_bytes, &bytes) ? 0 : bytes;
	return false;
}

struct scatter_divisor tiles_divisor(uint32_t value)
{
	struct scatter_divisor divisor = {.value = value};
	unsigned log = 0;

	if (value > 1) {
		while ((1ull << log) < value) {
			log++;
		}
		divisor.magic = (uint32_t)(((1ull << (31 + log)) + value - 1) / value);
		divisor.shift = log - 1;
	}
	return divisor;
}

static int add_tile(struct scatter_table *table, const struct scatter_tile *tile)
{
	int rc = array_grow((void **)&table->tiles, &table->cap_tiles, table->ntiles + 1,
		sizeof(*table->tiles));

	if (rc == 0) {
		table->tiles[table->ntiles++] = *tile;
	}
	return rc;
}

static int cut_rows(struct scatter_table *table, uint64_t rows, uint32_t vectors)
{
	uint32_t together = SCATTER_TILE_VECTORS / vectors;
	uint32_t parts = (vectors + SCATTER_TILE_VECTORS - 1) / SCATTER_TILE_VECTORS;
	uint32_t part = (uint32_t)align_up((vectors + parts - 1) / parts, PART_VECTORS);
	struct scatter_tile tile = {.descriptor = (uint32_t)(table->ndescriptors - 1)};
	int rc = 0;

	if (together > 0) {
		for (uint64_t row = 0; row < rows && rc == 0; row += together) {
			tile.row = (uint32_t)row;
			tile.count = (uint32_t)MIN(together, rows - row) * vectors;
			rc = add_tile(table, &tile);
		}
		return rc;
	}
	for (uint64_t row = 0; row < rows && rc == 0; row++) {
		for (uint32_t vector = 0; vector < vectors && rc == 0; vector += part) {
			tile.row = (uint32_t)row;
			tile.vector = vector;
			tile.count = MIN(part, vectors - vector);
			rc = add_tile(table, &tile);
		}
	}
	return rc;
}

/* Fills in width and the vectors of a row; what src and dst are aligned to are powers of two. */
static void choose_width(
	const struct copy *copy, uint64_t src, uint64_t dst, struct scatter_descriptor *d)
{
	uint64_t from, to, elements, wide;

	if (!copy->from) {
		uint64_t bits = src | dst | copy->run_bytes | 16;

		d->width = (uint32_t)(bits & -bits);
		d->vectors = tiles_divisor((uint32_t)(copy->run_bytes / d->width));
		return;
	}
	from = strew_dtype_size(copy->from);
	to = strew_dtype_size(copy->to);
	elements = copy->run_bytes / to;
	wide = from == to ? SCATTER_CAST_NARROW : SCATTER_CAST_WIDE;
	d->cast = SCATTER_CAST((uint32_t)copy->from, (uint32_t)copy->to);
	if (src % (wide * from) == 0 && dst % (wide * to) == 0 && elements % wide == 0) {
		d->width = (uint32_t)wide;
	} else {
		d->width = src % from == 0 && dst % to == 0;
	}
	d->vectors = tiles_divisor((uint32_t)(elements / MAX(d->width, 1)));
}

/* `copy` has absolute addresses or slot offsets by now, and fits the descriptor's numbers. */
static int add_descriptor(struct scatter_table *table, const struct copy *copy, uint32_t slot)
{
	struct scatter_descriptor *d;
	uint64_t src = copy->src, dst = copy->dst;
	int rc;

	rc = array_grow((void **)&table->descriptors, &table->cap_descriptors,
		table->ndescriptors + 1, sizeof(*table->descriptors));
	if (rc) {
		return rc;
	}
	if (table->ndescriptors >= UINT32_MAX) {
		return -ERANGE;
	}
	d = &table->descriptors[table->ndescriptors++];
	memset(d, 0, sizeof(*d));
	d->src = copy->src;
	d->dst = copy->dst;
	d->slot = slot;
	d->ndim = MAX(copy->ndim, 1);
	d->dim[0].extent = tiles_divisor(1);
	for (unsigned k = 0; k < copy->ndim; k++) {
		src |= copy->src_stride[k];
		dst |= copy->dst_stride[k];
		d->dim[k].extent = tiles_divisor((uint32_t)copy->extent[k]);
		d->dim[k].src_stride = copy->src_stride[k];
		d->dim[k].dst_stride = copy->dst_stride[k];
	}
	choose_width(copy, src, dst, d);
	return cut_rows(table, copy_rows(copy), d->vectors.value);
}

/*
 * How much of a long run to cut off in front so that what is left is aligned, or, if it is, how
 * much of it is whole vectors; in bytes written, 0: leave it as it is.
 */
static uint64_t peel(const struct copy *copy)
{
	uint64_t size = copy->from ? strew_dtype_size(copy->to) : 1;
	uint64_t from = copy->from ? strew_dtype_size(copy->from) : 1;
	uint64_t wide = copy->from ? 16 / MAX(size, from) : 16; /* elements of a vector */
	uint64_t head = (-copy->dst & (wide * size - 1)) / size;
	uint64_t elements = copy->run_bytes / size;

	if (copy->ndim || copy->run_bytes < PEEL_MIN_BYTES || copy->src % from ||
		copy->dst % size || (copy->src / from + head) % wide) {
		return 0;
	}
	if (!head && elements % wide) {
		head = elements - elements % wide;
	}
	return head * size;
}

/* Cuts what exceeds a descriptor's numbers, and what alignment would make slow. */
static int add_copy(struct scatter_table *table, struct copy copy, uint32_t slot)
{
	uint64_t cut;
	struct copy rest;
	int rc;

	if (copy_rows(&copy) == 0) {
		return 0;
	}
	cut = copy.run_bytes > RUN_MAX_BYTES ? RUN_MAX_BYTES : peel(&copy);
	rest = copy;
	if (cut) {
		copy.run_bytes = cut;
		rest.src += copy_source_run(&copy);
		rest.dst += cut;
		rest.run_bytes -= cut;
	} else if (copy_rows(&copy) > ROWS_MAX) {
		unsigned k = 0;

		while (copy.extent[k] < 2) {
			k++;
		}
		copy.extent[k] /= 2;
		rest.extent[k] -= copy.extent[k];
		rest.src += copy.extent[k] * copy.src_stride[k];
		rest.dst += copy.extent[k] * copy.dst_stride[k];
	} else {
		return add_descriptor(table, &copy, slot);
	}
	rc = add_copy(table, copy, slot);
	return rc ? rc : add_copy(table, rest, slot);
}

static int add_runs(struct scatter_table *table, const struct copy *copy, uint32_t slot)
{
	uint64_t rows = copy_rows(copy);
	int rc;

	for (uint64_t row = 0; row < rows; row++) {
		struct scatter_run run = {.src = copy->src,
			.dst = copy->dst,
			.len_bytes = copy->run_bytes,
			.slot = slot};
		uint64_t left = row;

		for (unsigned k = copy->ndim; k-- > 0;) {
			run.src += left % copy->extent[k] * copy->src_stride[k];
			run.dst += left % copy->extent[k] * copy->dst_stride[k];
			left /= copy->extent[k];
		}
		rc = array_grow((void **)&table->runs, &table->cap_runs, table->nruns + 1,
			sizeof(*table->runs));
		if (rc) {
			return rc;
		}
		table->runs[table->nruns++] = run;
	}
	return 0;
}

/* Those of the copies that are casts, or those that are not. */
static int add_range(struct scatter_table *table, const struct copy *v, size_t n, bool casts,
	const uint64_t *bases, const enum place *places)
{
	struct shape shape = {.shortest_bytes = UINT64_MAX};
	int rc = 0;

	for (size_t i = 0; i < n; i++) {
		uint64_t rows = copy_rows(&v[i]);

		if (rows && !v[i].from) {
			shape.nruns = MIN(shape.nruns + rows, UINT64_MAX / 2);
			shape.shortest_bytes = MIN(shape.shortest_bytes, v[i].run_bytes);
		}
	}
	for (size_t i = 0; i < n && rc == 0; i++) {
		struct copy copy = v[i];
		uint64_t src = bases[copy.src_space];
		uint64_t dst = bases[copy.dst_space];
		uint32_t slot = (src ? 0 : SCATTER_SRC_SLOT) | (dst ? 0 : SCATTER_DST_SLOT);
		enum place place = MAX(places[copy.src_space], places[copy.dst_space]);

		if ((copy.from != 0) != casts) {
			continue;
		}
		copy.src += src;
		copy.dst += dst;
		if (by_copy_engine(&copy, place, &shape)) {
			rc = add_runs(table, &copy, slot);
		} else {
			rc = add_copy(table, copy, slot);
		}
	}
	return rc;
}

int tiles_build(const struct copies *copies, const uint64_t *bases, const enum place *places,
	struct scatter_table *ret_table, struct error *err)
{
	struct scatter_table table = {0};
	int rc = 0;

	table.nranges = copies->nranges;
	table.ranges = calloc(copies->nranges ? copies->nranges : 1, sizeof(*table.ranges));
	if (!table.ranges) {
		rc = -ENOMEM;
	}
	for (size_t i = 0; i < copies->nranges && rc == 0; i++) {
		struct scatter_range *range = &table.ranges[i];
		const struct copy *v = copies->v + copies->first[i];
		size_t n = copies->first[i + 1] - copies->first[i];

		range->first_tile = table.ntiles;
		range->first_run = table.nruns;
		rc = add_range(&table, v, n, false, bases, places);
		range->ntiles = table.ntiles - range->first_tile;
		range->nruns = table.nruns - range->first_run;
		range->first_cast = table.ntiles;
		if (rc == 0) {
			rc = add_range(&table, v, n, true, bases, places);
		}
		range->ncasts = table.ntiles - range->first_cast;
		if (rc == 0 && MAX(range->ntiles, range->ncasts) > INT32_MAX) {
			rc = -ERANGE;
		}
	}
	if (rc) {
		tiles_finish(&table);
		return error_set(err, rc, "%zu copies cannot be compiled for the GPU: %s",
			copies->n, strerror(-rc));
	}
	*ret_table = table;
	return 0;
}

void tiles_finish(struct scatter_table *table)
{
	free(table->descriptors);
	free(table->tiles);
	free(table->runs);
	free(table->ranges);
	memset(table, 0, sizeof(*table));
}
