/*
 * A reference for plans that shares no code with plan/: a small world of
 * tensors, ranks' boxes and workers' parameters in real memory. What a plan
 * should do is found by walking every element of every piece with plain loops:
 * a view has its tensor's elements in the same row-major order, so an element's
 * number in the view is its number in the tensor.
 */
#ifndef UNIT_PLAN_REFERENCE_H
#define UNIT_PLAN_REFERENCE_H

#include "base/util.h"
#include "plan/plan.h"
#include "plan/stretches.h"
#include "support/test_main.h"
#include "unit/cast_reference.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define REF_WORKERS 3
#define REF_SPACES 64
#define REF_BOXES 1024
#define REF_ROOTS 3

struct ref_memory {
	unsigned char *bytes, *expected;
	size_t len;
};

struct ref_worker {
	struct layout layout;
	struct ref_memory allocations[8];
	size_t nallocations;
};

struct ref_world {
	struct manifest manifest;
	struct source sources[REF_BOXES];
	struct ref_memory trainer[REF_BOXES]; /* sources[i].memory is i */
	struct ref_worker workers[REF_WORKERS];
	size_t nworkers;
	uint32_t roots[16];
	size_t nroots;
};

struct ref_space {
	unsigned char *bytes;
	size_t len;
};

/* The value that box `box` holds for element `linear` of its tensor. */
static inline uint64_t ref_value(uint32_t box, uint64_t linear)
{
	uint64_t z = ((uint64_t)box << 40) + linear + 0x9e3779b97f4a7c15u;

	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
	z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
	return z ^ (z >> 31);
}

static inline size_t ref_size(enum strew_dtype dtype)
{
	switch (dtype) {
	case STREW_F64:
	case STREW_I64:
	case STREW_U64:
		return 8;
	case STREW_F32:
	case STREW_I32:
	case STREW_U32:
		return 4;
	case STREW_F16:
	case STREW_BF16:
	case STREW_I16:
	case STREW_U16:
		return 2;
	default:
		return 1;
	}
}

/* Steps an odometer; 0 when it has gone round. */
static inline int ref_next(int ndim, const uint64_t *extent, uint64_t *index)
{
	for (int i = ndim - 1; i >= 0; i--) {
		if (++index[i] < extent[i]) {
			return 1;
		}
		index[i] = 0;
	}
	return 0;
}

static inline uint64_t ref_count(int ndim, const uint64_t *dims)
{
	uint64_t n = 1;

	for (int i = 0; i < ndim; i++) {
		n *= dims[i];
	}
	return n;
}

static inline uint64_t ref_linear(
	int ndim, const uint64_t *shape, const uint64_t *start, const uint64_t *index)
{
	uint64_t linear = 0;

	for (int i = 0; i < ndim; i++) {
		linear = linear * shape[i] + start[i] + index[i];
	}
	return linear;
}

/* The box that element `linear` should come from: the lowest rank's, of those the first. */
static inline uint32_t ref_owner(const struct manifest *m, uint32_t tensor, uint64_t linear)
{
	const struct tensor *t = &m->tensors[tensor];
	uint64_t at[STREW_MAX_DIMS] = {0};
	uint32_t best = UINT32_MAX;

	for (int i = t->ndim - 1; i >= 0; i--) {
		at[i] = linear % t->shape[i];
		linear /= t->shape[i];
	}
	for (size_t b = 0; b < m->nboxes; b++) {
		const struct held_box *h = &m->boxes[b];
		int in = h->tensor == tensor;

		for (int i = 0; i < t->ndim && in; i++) {
			in = at[i] >= h->box.start[i] && at[i] - h->box.start[i] < h->box.extent[i];
		}
		if (in && (best == UINT32_MAX || h->rank < m->boxes[best].rank)) {
			best = (uint32_t)b;
		}
	}
	return best;
}

static inline void ref_alloc(struct ref_memory *memory, size_t len)
{
	memory->len = len;
	memory->bytes = malloc(len + 1);
	memory->expected = malloc(len + 1);
	assert_non_null(memory->bytes);
	assert_non_null(memory->expected);
	test_random_fill(memory->bytes, len);
	memcpy(memory->expected, memory->bytes, len);
}

static inline void ref_free(struct ref_memory *memory)
{
	free(memory->bytes);
	free(memory->expected);
}

/* Adds a box of which memory is made: `stride` elements, from offset_bytes on. */
static inline void ref_hold(struct ref_world *world, uint32_t tensor, uint32_t rank,
	const struct box *box, uint64_t offset_bytes, const uint64_t *stride)
{
	struct manifest *m = &world->manifest;
	const struct tensor *t = &m->tensors[tensor];
	struct held_box held = {.tensor = tensor, .rank = rank, .box = *box};
	uint32_t b = (uint32_t)m->nboxes;
	size_t size = ref_size(t->dtype), len = offset_bytes + size;
	uint64_t index[STREW_MAX_DIMS] = {0};
	struct error err = {0};

	assert_true(b < REF_BOXES);
	assert_int_equal(manifest_add_box(m, &held, &err), 0);
	for (int i = 0; i < t->ndim; i++) {
		len += box->extent[i] ? (box->extent[i] - 1) * stride[i] * size : 0;
		world->sources[b].stride[i] = stride[i];
	}
	world->sources[b].memory = b;
	world->sources[b].offset_bytes = offset_bytes;
	ref_alloc(&world->trainer[b], len);
	if (!ref_count(t->ndim, box->extent)) {
		return;
	}
	do {
		uint64_t linear = ref_linear(t->ndim, t->shape, box->start, index), at = 0;
		uint64_t value = ref_value(b, linear);

		for (int i = 0; i < t->ndim; i++) {
			at += index[i] * stride[i];
		}
		memcpy(world->trainer[b].bytes + offset_bytes + at * size, &value, size);
	} while (ref_next(t->ndim, box->extent, index));
	memcpy(world->trainer[b].expected, world->trainer[b].bytes, len);
}

/* What the pieces should make of the worker's memory, into `expected`. */
static inline void ref_expect(struct ref_world *world, struct ref_worker *worker)
{
	const struct layout *l = &worker->layout;

	for (size_t p = 0; p < l->npieces; p++) {
		const struct piece *piece = &l->pieces[p];
		const struct tensor *t = &l->tensors[piece->tensor];
		const struct parameter *param = &l->parameters[piece->parameter];
		struct ref_memory *memory = &worker->allocations[param->allocation];
		uint64_t index[STREW_MAX_DIMS] = {0};
		size_t size = ref_size(param->dtype);
		uint32_t mt = 0;

		while (strcmp(world->manifest.tensors[mt].name, t->name)) {
			mt++;
		}
		if (!ref_count(piece->ndim, piece->box.extent)) {
			continue;
		}
		do {
			uint64_t linear =
				ref_linear(piece->ndim, piece->view, piece->box.start, index);
			uint64_t value = ref_value(ref_owner(&world->manifest, mt, linear), linear);
			uint64_t at = piece->offset;

			for (int i = 0; i < piece->ndim; i++) {
				at += index[i] * piece->stride[i];
			}
			at = param->offset_bytes + at * size;
			assert_true(at + size <= memory->len);
			if (t->dtype == param->dtype) {
				memcpy(memory->expected + at, &value, size);
			} else {
				assert_true(piece->cast);
				ref_cast_at(memory->expected + at, &value, t->dtype, param->dtype);
			}
		} while (ref_next(piece->ndim, piece->box.extent, index));
	}
}

static unsigned long ref_casts; /* runs of them */

/* A run of bytes, or of elements that are cast, out of the `left` bytes at `from`. */
static inline void ref_run_of(
	const struct copy *copy, unsigned char *to, const unsigned char *from, uint64_t left)
{
	uint64_t n = copy->run_bytes, step = 1, source_step = 1;

	if (copy->from || copy->to) {
		step = ref_size(copy->to);
		source_step = ref_size(copy->from);
		assert_true(copy->from != copy->to && n % step == 0);
		n /= step;
	}
	assert_true(n * source_step <= left);
	ref_casts += copy->from != 0;
	for (uint64_t i = 0; i < n; i++) {
		if (copy->from) {
			ref_cast_at(to + i * step, from + i * source_step, copy->from, copy->to);
		} else {
			to[i] = from[i];
		}
	}
}

/* Executes a range element by element within bounds, and checks the form that plan.h promises. */
static inline void ref_execute(const struct copies *copies, size_t range,
	const struct ref_space *src, size_t nsrc, const struct ref_space *dst, size_t ndst)
{
	for (size_t c = copies->first[range]; c < copies->first[range + 1]; c++) {
		const struct copy *copy = &copies->v[c];
		uint64_t index[STREW_MAX_DIMS] = {0};

		if (c > copies->first[range]) {
			assert_true(copy[-1].dst_space < copy->dst_space ||
				    (copy[-1].dst_space == copy->dst_space &&
					    copy[-1].dst < copy->dst));
		}
		assert_true(copy->src_space < nsrc && copy->dst_space < ndst);
		assert_true(copy->ndim <= STREW_MAX_DIMS && copy->run_bytes > 0);
		for (uint32_t k = 0; k < copy->ndim; k++) {
			assert_true(copy->extent[k] >= 2);
			assert_true(!k || copy->dst_stride[k - 1] > copy->dst_stride[k]);
		}
		do {
			uint64_t from = copy->src, to = copy->dst;

			for (uint32_t k = 0; k < copy->ndim; k++) {
				from += index[k] * copy->src_stride[k];
				to += index[k] * copy->dst_stride[k];
			}
			assert_true(from <= src[copy->src_space].len);
			assert_true(to + copy->run_bytes <= dst[copy->dst_space].len);
			ref_run_of(copy, dst[copy->dst_space].bytes + to,
				src[copy->src_space].bytes + from, src[copy->src_space].len - from);
		} while (ref_next((int)copy->ndim, copy->extent, index));
	}
}

static inline void ref_compare(struct ref_world *world)
{
	for (size_t w = 0; w < world->nworkers; w++) {
		for (size_t a = 0; a < world->workers[w].nallocations; a++) {
			struct ref_memory *memory = &world->workers[w].allocations[a];

			assert_memory_equal(memory->bytes, memory->expected, memory->len);
		}
	}
	for (size_t b = 0; b < world->manifest.nboxes; b++) {
		assert_memory_equal(
			world->trainer[b].bytes, world->trainer[b].expected, world->trainer[b].len);
	}
}

/* Each worker's allocations are spaces from 8 * w on; shadows are from 8 * REF_WORKERS on. */
static inline void ref_spaces(
	struct ref_world *world, struct ref_space *dst, struct plan_worker *workers)
{
	for (size_t w = 0; w < world->nworkers; w++) {
		workers[w] = (struct plan_worker){
			.layout = &world->workers[w].layout, .space_base = (uint32_t)(8 * w)};
		for (size_t a = 0; a < world->workers[w].nallocations; a++) {
			struct ref_memory *memory = &world->workers[w].allocations[a];

			dst[8 * w + a] = (struct ref_space){memory->bytes, memory->len};
		}
	}
}

/* Ruins what the pieces cover, so that each way has to write it again. */
static inline void ref_poison(struct ref_world *world)
{
	for (size_t w = 0; w < world->nworkers; w++) {
		const struct layout *l = &world->workers[w].layout;

		for (size_t p = 0; p < l->npieces; p++) {
			const struct piece *piece = &l->pieces[p];
			const struct parameter *param = &l->parameters[piece->parameter];
			uint64_t index[STREW_MAX_DIMS] = {0};
			size_t size = ref_size(param->dtype);

			if (!ref_count(piece->ndim, piece->box.extent)) {
				continue;
			}
			do {
				uint64_t at = piece->offset;

				for (int i = 0; i < piece->ndim; i++) {
					at += index[i] * piece->stride[i];
				}
				test_random_fill(
					world->workers[w].allocations[param->allocation].bytes +
						param->offset_bytes + at * size,
					size);
			} while (ref_next(piece->ndim, piece->box.extent, index));
		}
	}
}

/* Brute-force check of the buckets: each element once, from its owner, dense, aligned. */
static inline void ref_check_buckets(struct ref_world *world, const struct buckets *buckets,
	uint64_t slot, const uint8_t *slot_types)
{
	const struct manifest *m = &world->manifest;
	unsigned char **seen = calloc(m->ntensors + 1, sizeof(*seen));
	size_t entries = 0;

	for (size_t t = 0; t < m->ntensors; t++) {
		seen[t] = calloc(ref_count(m->tensors[t].ndim, m->tensors[t].shape) + 1, 1);
	}
	for (size_t b = 0; b < buckets->n; b++) {
		const struct bucket *bucket = &buckets->v[b];
		uint64_t end = 0;

		assert_true(bucket->count > 0 && bucket->first == entries);
		for (size_t i = 0; i < bucket->count; i++) {
			const struct bucket_entry *e = &buckets->entries[entries++];
			const struct held_box *held = &m->boxes[e->box];
			const struct tensor *t = &m->tensors[held->tensor];
			uint64_t index[STREW_MAX_DIMS] = {0};

			assert_true(e->slot_offset_bytes % 256 == 0);
			assert_true(e->slot_offset_bytes >= end);
			assert_true(e->slot_offset_bytes - end < 256);
			assert_int_equal(e->dtype, slot_types && slot_types[held->tensor]
							   ? slot_types[held->tensor]
							   : t->dtype);
			end = e->slot_offset_bytes +
			      ref_count(t->ndim, e->part.extent) * ref_size(e->dtype);
			assert_true(end <= slot && end > e->slot_offset_bytes);
			assert_int_equal(world->roots[held->rank], bucket->root);
			do {
				uint64_t linear =
					ref_linear(t->ndim, t->shape, e->part.start, index);

				assert_int_equal(ref_owner(m, held->tensor, linear), e->box);
				assert_int_equal(seen[held->tensor][linear]++, 0);
			} while (ref_next(t->ndim, e->part.extent, index));
		}
		assert_int_equal(bucket->len_bytes, end);
	}
	assert_int_equal(entries, buckets->nentries);
	for (size_t t = 0; t < m->ntensors; t++) {
		uint64_t n = ref_count(m->tensors[t].ndim, m->tensors[t].shape);

		for (uint64_t i = 0; i < n; i++) {
			assert_int_equal(seen[t][i], 1);
		}
		free(seen[t]);
	}
	free(seen);
}

static inline void ref_gather_all(
	struct ref_world *world, const struct buckets *buckets, struct copies *gathers)
{
	struct error err = {0};

	for (uint32_t root = 0; root < REF_ROOTS; root++) {
		struct copies *gather = &gathers[root];

		assert_int_equal(
			plan_gather(&world->manifest, buckets, world->sources, root, gather, &err),
			0);
		for (size_t k = 0; k < buckets->n; k++) {
			assert_true(buckets->v[k].root < REF_ROOTS);
			assert_int_equal(gather->first[k + 1] > gather->first[k],
				buckets->v[k].root == root);
		}
	}
}

static unsigned long ref_direct; /* stretches that were sent from where they lie */

/* Bucket b from its root's slot and sources to another broker's slot, in stretches. */
static inline void ref_send(const struct stretches *stretches, size_t b,
	const struct ref_space *src, const struct ref_space *slot, struct ref_space *there)
{
	uint64_t end = 0;

	for (size_t i = stretches->first[b]; i < stretches->first[b + 1]; i++) {
		const struct stretch *stretch = &stretches->v[i];
		const uint8_t *from = slot->bytes + stretch->offset;

		assert_true(stretch->len_bytes > 0 && stretch->offset >= end);
		assert_true(stretch->offset - end < SLOT_ALIGN);
		end = stretch->offset + stretch->len_bytes;
		assert_true(end <= slot->len);
		if (stretch->space != STRETCH_PACKED) {
			assert_true(stretch->len_bytes >= stretches->least_bytes ||
				    stretches->first[b + 1] - stretches->first[b] == 1);
			from = src[stretch->space].bytes + stretch->src;
			ref_direct++;
		}
		memcpy(there->bytes + stretch->offset, from, stretch->len_bytes);
	}
}

/* What each root does: stretches of its gather, by chance from some spaces alone. */
static inline void ref_stretch_all(const struct ref_world *world, const struct buckets *buckets,
	struct copies *gathers, struct stretches *stretches)
{
	uint64_t least = 1 + test_random_below(300);
	bool direct[REF_BOXES];
	struct error err = {0};

	for (size_t b = 0; b < REF_BOXES; b++) {
		direct[b] = test_random_below(4) > 0;
	}
	for (size_t r = 0; r < REF_ROOTS; r++) {
		uint64_t bytes = copies_bytes(&gathers[r]), sent = 0;
		int64_t n;

		assert_int_equal(
			stretches_make(&world->manifest, buckets, least, &stretches[r], &err), 0);
		n = stretches_send_direct(&stretches[r], &gathers[r], direct, &err);
		for (size_t i = 0; i < stretches[r].n; i++) {
			if (stretches[r].v[i].space != STRETCH_PACKED) {
				assert_true(direct[stretches[r].v[i].space]);
				sent += stretches[r].v[i].len_bytes;
				n--;
			}
		}
		assert_int_equal(n, 0);
		/* What is sent from where it lies is not gathered as well. */
		assert_int_equal(copies_bytes(&gathers[r]) + sent, bytes);
	}
}

/* Through slots; with `staged` into shadows first, which are then committed. */
static inline void ref_run_slots(
	struct ref_world *world, const struct buckets *buckets, uint64_t slot_len, int staged)
{
	struct ref_space src[REF_BOXES], dst[REF_SPACES] = {{0}},
					 slot = {malloc(slot_len), slot_len},
					 there = {malloc(slot_len), slot_len};
	struct plan_worker workers[REF_WORKERS];
	struct stretches stretches[REF_ROOTS];
	uint64_t *offsets[REF_WORKERS] = {0}, bytes = 0;
	struct copies scatter, commit, gathers[REF_ROOTS];
	struct error err = {0};

	ref_spaces(world, dst, workers);
	for (size_t b = 0; b < world->manifest.nboxes; b++) {
		src[b] = (struct ref_space){world->trainer[b].bytes, world->trainer[b].len};
	}
	for (size_t w = 0; w < world->nworkers; w++) {
		bytes += layout_bytes(workers[w].layout);
		if (staged) {
			size_t space = 8 * REF_WORKERS + w;

			offsets[w] = calloc(workers[w].layout->nparameters + 1, sizeof(uint64_t));
			dst[space].len = plan_shadow(workers[w].layout, NULL, offsets[w]);
			dst[space].bytes = malloc(dst[space].len + 1);
			test_random_fill(dst[space].bytes, dst[space].len);
			workers[w].shadow_offset = offsets[w];
			workers[w].shadow_space = (uint32_t)space;
		}
	}
	assert_int_equal(
		plan_scatter(&world->manifest, buckets, workers, world->nworkers, &scatter, &err),
		0);
	assert_int_equal(scatter.nranges, buckets->n);
	assert_int_equal(copies_bytes(&scatter), bytes);
	ref_gather_all(world, buckets, gathers);
	ref_stretch_all(world, buckets, gathers, stretches);
	for (size_t b = 0; b < buckets->n; b++) {
		uint32_t root = buckets->v[b].root;

		test_random_fill(slot.bytes, MIN(slot_len, 4096));
		test_random_fill(there.bytes, MIN(slot_len, 4096));
		ref_execute(&gathers[root], b, src, world->manifest.nboxes, &slot, 1);
		ref_send(&stretches[root], b, src, &slot, &there);
		ref_execute(&scatter, b, &there, 1, dst, REF_SPACES);
	}
	for (size_t r = 0; r < REF_ROOTS; r++) {
		copies_finish(&gathers[r]);
		stretches_finish(&stretches[r]);
	}
	if (staged) {
		assert_int_equal(
			plan_commit(&world->manifest, workers, world->nworkers, &commit, &err), 0);
		assert_int_equal(commit.nranges, 1);
		assert_int_equal(copies_bytes(&commit), bytes);
		ref_execute(&commit, 0, dst, REF_SPACES, dst, REF_SPACES);
		copies_finish(&commit);
	}
	for (size_t w = 0; w < world->nworkers; w++) {
		free(offsets[w]);
		free(staged ? dst[8 * REF_WORKERS + w].bytes : NULL);
	}
	copies_finish(&scatter);
	free(slot.bytes);
	free(there.bytes);
}

static inline void ref_run_local(struct ref_world *world, const struct buckets *buckets)
{
	struct ref_space src[REF_BOXES], dst[REF_SPACES] = {{0}};
	struct plan_worker workers[REF_WORKERS];
	struct copies local;
	struct error err = {0};

	ref_spaces(world, dst, workers);
	for (size_t b = 0; b < world->manifest.nboxes; b++) {
		src[b] = (struct ref_space){world->trainer[b].bytes, world->trainer[b].len};
	}
	assert_int_equal(plan_local(&world->manifest, buckets, world->sources, workers,
				 world->nworkers, &local, &err),
		0);
	assert_int_equal(local.nranges, buckets->n);
	for (size_t b = 0; b < buckets->n; b++) {
		ref_execute(&local, b, src, world->manifest.nboxes, dst, REF_SPACES);
	}
	copies_finish(&local);
}

/* Seals, then runs every way over poisoned memory and compares all bytes after each. */
static inline void ref_run(struct ref_world *world, uint64_t slot)
{
	struct buckets buckets;
	struct error err = {0};

	assert_int_equal(manifest_seal(&world->manifest, &err), 0);
	for (size_t w = 0; w < world->nworkers; w++) {
		struct layout *layout = &world->workers[w].layout;
		int r = layout_seal(layout, false, &err);

		if (r < 0) {
			fail_msg("%s", err.text);
		}
		assert_int_equal(plan_match(&world->manifest, layout, false, &err), 0);
		ref_expect(world, &world->workers[w]);
	}
	assert_int_equal(
		buckets_make(&world->manifest, slot, world->roots, world->nroots, &buckets, &err),
		0);
	ref_check_buckets(world, &buckets, slot, NULL);
	ref_run_slots(world, &buckets, slot, 0);
	ref_compare(world);
	ref_poison(world);
	ref_run_local(world, &buckets);
	ref_compare(world);
	ref_poison(world);
	ref_run_slots(world, &buckets, slot, 1);
	ref_compare(world);
	buckets_finish(&buckets);
}

static inline struct ref_world *ref_create(size_t nworkers)
{
	struct ref_world *world = calloc(1, sizeof(*world));

	manifest_init(&world->manifest);
	world->nworkers = nworkers;
	world->nroots = 1;
	for (size_t w = 0; w < nworkers; w++) {
		layout_init(&world->workers[w].layout);
	}
	return world;
}

static inline void ref_destroy(struct ref_world *world)
{
	for (size_t b = 0; b < world->manifest.nboxes; b++) {
		ref_free(&world->trainer[b]);
	}
	for (size_t w = 0; w < world->nworkers; w++) {
		for (size_t a = 0; a < world->workers[w].nallocations; a++) {
			ref_free(&world->workers[w].allocations[a]);
		}
		layout_finish(&world->workers[w].layout);
	}
	manifest_finish(&world->manifest);
	free(world);
}

#endif
