/*
 * Copies to work: which runs a copy engine takes, and descriptors and tiles for the
 * kernel. Pure: no driver call, so that it can be tested and interpreted without a GPU.
 */
#ifndef GPU_TILES_H
#define GPU_TILES_H

#include "gpu/scatter.h"
#include "plan/plan.h"

/* A contiguous run for a copy engine. src and dst as in a descriptor. */
struct scatter_run {
	uint64_t src, dst;
	uint64_t len_bytes;
	uint32_t slot;
};

enum place { PLACE_HERE, PLACE_PEER, PLACE_HOST };

struct scatter_range {
	size_t first_tile, ntiles; /* of bytes … */
	size_t first_cast, ncasts; /* … and those of casts, which another kernel takes */
	size_t first_run, nruns;
};

struct scatter_table {
	struct scatter_descriptor *descriptors;
	size_t ndescriptors, cap_descriptors;
	struct scatter_tile *tiles;
	size_t ntiles, cap_tiles;
	struct scatter_run *runs;
	size_t nruns, cap_runs;
	struct scatter_range *ranges;
	size_t nranges;
};

/*
 * bases as in gpu_copies_create(); places[space] says where a space lies, seen from the
 * device that runs the copies. Spaces are checked by the caller.
 * -ENOMEM, -ERANGE for a copy whose rows are too many. Finish with tiles_finish().
 */
int tiles_build(const struct copies *copies, const uint64_t *bases, const enum place *places,
	struct scatter_table *ret_table, struct error *err);
void tiles_finish(struct scatter_table *table);

/* See scatter.h. value 1 .. 2^31. */
struct scatter_divisor tiles_divisor(uint32_t value);

#endif
