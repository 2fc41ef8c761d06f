/*
 * The compilation of a plan: manifest × layouts → the copies of each bucket.
 * A copy is a strided block of bytes; neighbouring rows are merged into the
 * longest contiguous runs. Executing copies is gpu/'s business.
 */
#ifndef PLAN_PLAN_H
#define PLAN_PLAN_H

#include "plan/layout.h"
#include "plan/manifest.h"

/*
 * For every index i of extent[0..ndim): run_bytes from
 * src + sum(i_k * src_stride[k]) to dst + sum(i_k * dst_stride[k]).
 * src and dst are byte offsets in spaces: an index into a table of base
 * addresses that only the executor knows. ndim 0: one contiguous run.
 * Dimensions are outermost first by destination stride; extents are >= 2.
 * A cast reads elements of `from` and writes elements of `to`; run_bytes are then
 * those written, and copy_source_run() (plan/cast.h) those read.
 */
struct copy {
	uint64_t src, dst;
	uint32_t src_space, dst_space;
	uint64_t run_bytes;
	uint32_t ndim;
	uint16_t from, to; /* enum strew_dtype, never equal; both 0: bytes as they are */
	uint64_t extent[STREW_MAX_DIMS];
	uint64_t src_stride[STREW_MAX_DIMS]; /* bytes */
	uint64_t dst_stride[STREW_MAX_DIMS]; /* bytes */
};

/* Copies in ranges: range i is v[first[i] .. first[i + 1]). */
struct copies {
	struct copy *v;
	size_t n, cap;
	size_t *first; /* nranges + 1 */
	size_t nranges;
};

void copies_init(struct copies *copies);
void copies_finish(struct copies *copies);
uint64_t copies_bytes(const struct copies *copies); /* that are written, all ranges */

/* Gather: trainer memory (src_space = source.memory) → slot (dst_space 0). A range per bucket;
 * buckets whose root is not `root` stay empty. */
int plan_gather(const struct manifest *manifest, const struct buckets *buckets,
	const struct source *sources, uint32_t root, struct copies *ret_copies, struct error *err);

/* One worker of a plan. */
struct plan_worker {
	const struct layout *layout;
	uint32_t space_base; /* dst_space = space_base + parameter's allocation … */
	/* … or, if set (staged apply): dst_space = shadow_space, dst = shadow_offset[parameter] + …
	 */
	const uint64_t *shadow_offset;
	uint32_t shadow_space;
};

/* Instead of an offset: the parameter has none in the shadow, as what lies in its allocation is
 * one already (the twin of memory that cannot be exported). */
#define SHADOW_NONE UINT64_MAX

/* Where element 0 of the parameter is: a byte of *ret_space, in the shadow where it has one. */
uint64_t plan_parameter_at(
	const struct plan_worker *worker, uint32_t parameter, uint32_t *ret_space);

/* Scatter: slot (src_space 0) → the workers' parameters. A range per bucket. */
int plan_scatter(const struct manifest *manifest, const struct buckets *buckets,
	const struct plan_worker *workers, size_t nworkers, struct copies *ret_copies,
	struct error *err);

/* Local: trainer memory → the workers' parameters, no slot. A range per bucket. */
int plan_local(const struct manifest *manifest, const struct buckets *buckets,
	const struct source *sources, const struct plan_worker *workers, size_t nworkers,
	struct copies *ret_copies, struct error *err);

/*
 * Commit: a worker's shadow → its live parameters, only bytes that pieces of the manifest's
 * tensors cover: what a partial update leaves out keeps its live bytes. NULL: of all tensors. One
 * range.
 */
int plan_commit(const struct manifest *manifest, const struct plan_worker *workers, size_t nworkers,
	struct copies *ret_copies, struct error *err);

/*
 * Catching up: live parameters of a sibling group (`from`, no shadows) → those that `to` has, in
 * its shadows where there are. Every element that a piece of `to` wants is copied once, out of a
 * piece of `from` that has it in the tensor's own dtype or in that of the parameter it goes to.
 * -ENOENT names the parameter and the tensor of which there is something in no such piece. As many
 * ranges as it takes for none to have more than lump_bytes, which is at least 64.
 */
int plan_catch_up(const struct plan_worker *from, size_t nfrom, const struct plan_worker *to,
	size_t nto, uint64_t lump_bytes, struct copies *ret_copies, struct error *err);

/*
 * Where each parameter starts in a worker's shadow: ret_offset[nparameters]; returns its length.
 * Those in an allocation with pulled[allocation] have no place there (pulled NULL: none).
 */
uint64_t plan_shadow(const struct layout *layout, const bool *pulled, uint64_t *ret_offset);

/*
 * Apply: each piece from its place in its allocation to the same place. The agent copies so
 * from a twin to the memory that it stands for. Only pieces in allocations from `first` on, and
 * not of tensors whose bit in `missing` is set (NULL: none is). A copy a piece, not merged, as
 * neighbours in a twin may be none in memory. One range.
 */
int plan_apply(const struct layout *layout, uint32_t first, const uint8_t *missing,
	struct copies *ret_copies, struct error *err);

/*
 * Does the manifest fit the layout? A tensor that a piece wants must have the same dtype and
 * shape (-EINVAL, named). One that is missing: -ENOENT, named with the parameter, unless
 * `partial`. Run before any plan of the two is compiled.
 */
int plan_match(const struct manifest *manifest, const struct layout *layout, bool partial,
	struct error *err);

/*
 * What is left uncovered: tensors of the manifest that no piece of any layout takes an element
 * of (count, and the first one's name, borrowed), parameters in which no byte is written
 * under this manifest (the same).
 */
struct plan_uncovered {
	uint64_t tensors, parameters;
	const char *first_tensor, *first_parameter;
};
int plan_uncovered(const struct manifest *manifest, const struct layout *const *layouts,
	size_t nlayouts, struct plan_uncovered *ret_uncovered);

#endif
