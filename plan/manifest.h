/*
 * A manifest: all tensors of a trainer and the boxes of them that each rank
 * holds, in publishing order. Immutable once sealed. Where the boxes lie in
 * memory is kept apart (struct source), by the broker of that rank.
 */
#ifndef PLAN_MANIFEST_H
#define PLAN_MANIFEST_H

#include "plan/tensor.h"

struct held_box {
	uint32_t tensor; /* index into manifest.tensors */
	uint32_t rank;
	struct box box; /* in the tensor's shape */
	bool adjacent;	/* lies behind the box before it, its rank's, as it will in a slot */
};

struct manifest {
	struct tensor *tensors;
	size_t ntensors, cap_tensors;
	struct held_box *boxes; /* in publishing order: rank 0's first, then rank 1's, … */
	size_t nboxes, cap_boxes;
	struct arena *arena;
	struct name_index *tensor_index;
	uint64_t bytes; /* of all tensors, once sealed */
	bool sealed;
};

/* source.memory of a box that lies with another broker; no plan reads it here. */
#define SOURCE_ELSEWHERE UINT32_MAX

/* Where a held box lies: manifest.boxes[i] has sources[i]. Strides by the tensor's dimensions. */
struct source {
	uint32_t memory;       /* index of an allocation, the caller's numbering (copy.src_space) */
	uint64_t offset_bytes; /* of the box's first element in it */
	uint64_t stride[STREW_MAX_DIMS]; /* elements */
};

void manifest_init(struct manifest *manifest);
void manifest_finish(struct manifest *manifest);

/* Finds or adds, as layout_add_tensor(). */
int manifest_add_tensor(struct manifest *manifest, const struct tensor *tensor, uint32_t *ret_index,
	struct error *err);
int manifest_add_box(struct manifest *manifest, const struct held_box *box, struct error *err);

/*
 * Notes which boxes of a rank are dense and lie behind each other, each from the next SLOT_ALIGN
 * on: those can go over the wire in one piece, and the brokers that receive them must know.
 */
void manifest_mark_adjacent(struct manifest *manifest, const struct source *sources);

/* Ends building: every element of every tensor is held by some rank (-EINVAL names the tensor). */
int manifest_seal(struct manifest *manifest, struct error *err);

/* Index of the tensor of that name, or -ENOENT. */
int64_t manifest_find(const struct manifest *manifest, const char *name);

uint64_t manifest_bytes(const struct manifest *manifest); /* of the tensors, each once */

/*
 * Buckets: a pure function of manifest, slot types and slot length. Entries follow
 * publishing order; where boxes overlap, the lowest rank's is taken; a box that
 * does not fit is cut along its outermost dimension longer than 1 (again and
 * again, down to single elements of that dimension, then the next). Each entry
 * starts on SLOT_ALIGN and is dense row-major in the slot. All entries of a
 * bucket have the same root. The first and the last buckets are shorter than
 * a slot (plan/buckets.c).
 */
struct bucket_entry {
	uint32_t box;	 /* index into manifest.boxes: who holds it */
	struct box part; /* in the tensor's shape, inside that box */
	uint64_t slot_offset_bytes;
	enum strew_dtype dtype; /* in the slot */
};

struct bucket {
	size_t first, count; /* entries */
	uint64_t len_bytes;  /* used length of the slot */
	uint32_t root;	     /* roots[rank] of its boxes */
};

struct buckets {
	struct bucket_entry *entries;
	size_t nentries;
	struct bucket *v;
	size_t n;
};

/*
 * `roots[rank]` is the broker (its number in the epoch) that gathers a trainer
 * rank's boxes; nroots ranks. -EINVAL if one element exceeds the slot, -ENOMEM.
 */
int buckets_make(const struct manifest *manifest, uint64_t slot_len_bytes, const uint32_t *roots,
	size_t nroots, struct buckets *ret_buckets, struct error *err);
/*
 * The same with the dtype that each of the manifest's tensors has in slots, by
 * plan/slot_types.h; slot_types NULL: each its own.
 */
int buckets_make_as(const struct manifest *manifest, const uint8_t *slot_types,
	uint64_t slot_len_bytes, const uint32_t *roots, size_t nroots, struct buckets *ret_buckets,
	struct error *err);
/* The same without the shorter ones, for stretches that go by no slot. */
int buckets_make_even(const struct manifest *manifest, uint64_t len_bytes, const uint32_t *roots,
	size_t nroots, struct buckets *ret_buckets, struct error *err);
void buckets_finish(struct buckets *buckets);

#endif
