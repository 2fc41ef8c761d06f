/*
 * Stretches of buckets: random manifests in two allocations, in which boxes lie behind each other,
 * apart, strided or at odd places. What a root sends, packed or from where it lies, is compared
 * with each element's place in the slot; what a receiver makes of the manifest's blob, with the
 * root's.
 */
#include "base/util.h"
#include "ipc/blob.h"
#include "plan/stretches.h"
#include "support/test_main.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SPACES 2
#define SPACE_BYTES (256u << 10)
#define SLOT_MAX 16384u
#define TENSORS_MAX 24
#define WORLDS 1500

struct world {
	struct manifest manifest;
	struct source sources[2 * TENSORS_MAX];
	uint8_t *spaces[SPACES];
	uint64_t end[SPACES]; /* used so far */
	uint32_t last;	      /* the space of the last box */
	bool tidy;	      /* every box behind the one before, and dense */
	bool long_tensor;
};

static const uint32_t roots[] = {0, 0};

static enum strew_dtype any_dtype(void)
{
	static const enum strew_dtype dtypes[] = {STREW_U8, STREW_BF16, STREW_F32, STREW_F64};

	return dtypes[test_random_below(ARRAY_LEN(dtypes))];
}

/* Finds the box a place; sometimes with rows at a pitch, or where no vector starts. */
static void place(struct world *world, const struct tensor *tensor, const struct box *box,
	struct source *source)
{
	uint64_t size = strew_dtype_size(tensor->dtype), pitch = 0, bytes;
	uint64_t at;

	if (!world->tidy && test_random_below(4) == 0) {
		world->last = !world->last;
	}
	at = world->end[world->last];
	dims_dense(tensor->ndim, box->extent, source->stride);
	bytes = box_count(tensor->ndim, box) * size;
	if (!world->tidy) {
		at += test_random_below(4) == 0 ? size * test_random_below(300) : 0;
		if (tensor->ndim > 1 && test_random_below(4) == 0) {
			pitch = test_random_below(9);
			for (int d = 0; d < tensor->ndim - 1; d++) {
				source->stride[d] += pitch * source->stride[d];
			}
			bytes *= 1 + pitch;
		}
	}
	source->memory = world->last;
	source->offset_bytes = at;
	world->end[world->last] = at + align_up(bytes, SLOT_ALIGN);
	assert_true(world->end[world->last] <= SPACE_BYTES);
}

static void make_world(struct world *world, uint64_t slot)
{
	size_t ntensors = 1 + test_random_below(TENSORS_MAX);
	struct error err = {0};
	char name[32];

	memset(world, 0, sizeof(*world));
	manifest_init(&world->manifest);
	world->tidy = test_random_below(4) == 0;
	for (size_t i = 0; i < SPACES; i++) {
		world->spaces[i] = malloc(SPACE_BYTES);
		assert_non_null(world->spaces[i]);
		test_random_fill(world->spaces[i], SPACE_BYTES);
	}
	for (size_t i = 0; i < ntensors; i++) {
		struct tensor tensor = {.name = name, .dtype = any_dtype()};
		struct held_box box = {0};
		bool in_two;

		snprintf(name, sizeof(name), "t%zu", i);
		tensor.ndim = 1 + (int)test_random_below(3);
		for (int d = 0; d < tensor.ndim; d++) {
			tensor.shape[d] = 1 + test_random_below(d ? 9 : 20);
		}
		world->long_tensor |= tensor_bytes(&tensor) > slot;
		assert_int_equal(
			manifest_add_tensor(&world->manifest, &tensor, &box.tensor, &err), 0);
		memcpy(box.box.extent, tensor.shape, sizeof(tensor.shape));
		in_two = !world->tidy && tensor.shape[0] > 1 && test_random_below(4) == 0;
		if (in_two) {
			box.box.extent[0] = 1 + test_random_below(tensor.shape[0] - 1);
		}
		place(world, &tensor, &box.box, &world->sources[world->manifest.nboxes]);
		assert_int_equal(manifest_add_box(&world->manifest, &box, &err), 0);
		if (in_two) {
			box.box.start[0] = box.box.extent[0];
			box.box.extent[0] = tensor.shape[0] - box.box.start[0];
			place(world, &tensor, &box.box, &world->sources[world->manifest.nboxes]);
			assert_int_equal(manifest_add_box(&world->manifest, &box, &err), 0);
		}
	}
	manifest_mark_adjacent(&world->manifest, world->sources);
	assert_int_equal(manifest_seal(&world->manifest, &err), 0);
}

static void finish_world(struct world *world)
{
	for (size_t i = 0; i < SPACES; i++) {
		free(world->spaces[i]);
	}
	manifest_finish(&world->manifest);
}

/* Element by element: what an entry's place in the slot has to hold. */
static void check_entry(
	const struct world *world, const struct bucket_entry *entry, const uint8_t *there)
{
	const struct held_box *held = &world->manifest.boxes[entry->box];
	const struct tensor *tensor = &world->manifest.tensors[held->tensor];
	const struct source *source = &world->sources[entry->box];
	uint64_t size = strew_dtype_size(tensor->dtype);
	uint64_t n = box_count(tensor->ndim, &entry->part);

	for (uint64_t i = 0; i < n; i++) {
		uint64_t left = i, at = 0;

		for (int d = tensor->ndim; d-- > 0;) {
			at += (left % entry->part.extent[d] + entry->part.start[d] -
				      held->box.start[d]) *
			      source->stride[d];
			left /= entry->part.extent[d];
		}
		assert_memory_equal(there + entry->slot_offset_bytes + i * size,
			world->spaces[source->memory] + source->offset_bytes + at * size, size);
	}
}

static void run_copies(const struct copy *v, size_t n, uint8_t *const *spaces, uint8_t *slot)
{
	for (size_t i = 0; i < n; i++) {
		uint64_t rows = 1;

		for (uint32_t k = 0; k < v[i].ndim; k++) {
			rows *= v[i].extent[k];
		}
		for (uint64_t row = 0; row < rows; row++) {
			uint64_t left = row, src = v[i].src, dst = v[i].dst;

			for (uint32_t k = v[i].ndim; k-- > 0;) {
				src += left % v[i].extent[k] * v[i].src_stride[k];
				dst += left % v[i].extent[k] * v[i].dst_stride[k];
				left /= v[i].extent[k];
			}
			memcpy(slot + dst, spaces[v[i].src_space] + src, v[i].run_bytes);
		}
	}
}

/* The receiver knows the manifest alone. */
static void check_receiver(
	const struct world *world, uint64_t slot, uint64_t least, const struct stretches *stretches)
{
	struct stretches there;
	struct manifest manifest;
	struct buckets buckets;
	struct blob blob;
	struct error err;

	assert_int_equal(blob_from_manifest(&world->manifest, NULL, &blob, &err), 0);
	assert_int_equal(blob_to_manifest(&blob, &manifest, &err), 0);
	assert_int_equal(buckets_make(&manifest, slot, roots, 1, &buckets, &err), 0);
	assert_int_equal(stretches_make(&manifest, &buckets, least, &there, &err), 0);
	assert_int_equal(there.n, stretches->n);
	assert_int_equal(there.longest, stretches->longest);
	assert_memory_equal(there.first, stretches->first,
		(stretches->nbuckets + 1) * sizeof(*stretches->first));
	for (size_t i = 0; i < there.n; i++) {
		assert_int_equal(there.v[i].offset, stretches->v[i].offset);
		assert_int_equal(there.v[i].len_bytes, stretches->v[i].len_bytes);
	}
	stretches_finish(&there);
	buckets_finish(&buckets);
	manifest_finish(&manifest);
	blob_finish(&blob);
}

static void send_bucket(const struct world *world, const struct buckets *buckets, size_t bucket,
	const struct stretches *stretches, const struct copies *gather)
{
	uint8_t slot[SLOT_MAX], there[SLOT_MAX];
	uint64_t end = 0;

	test_random_fill(slot, sizeof(slot));
	test_random_fill(there, sizeof(there));
	run_copies(gather->v + gather->first[bucket],
		gather->first[bucket + 1] - gather->first[bucket], world->spaces, slot);
	for (size_t i = stretches->first[bucket]; i < stretches->first[bucket + 1]; i++) {
		const struct stretch *s = &stretches->v[i];
		const uint8_t *from = slot + s->offset;

		/* In order, and nothing but an alignment's gap between them. */
		assert_true(s->len_bytes && s->offset >= end && s->offset - end < SLOT_ALIGN);
		end = s->offset + s->len_bytes;
		if (s->space != STRETCH_PACKED) {
			assert_true(s->src + s->len_bytes <= SPACE_BYTES);
			from = world->spaces[s->space] + s->src;
		}
		memcpy(there + s->offset, from, s->len_bytes);
	}
	assert_int_equal(end, buckets->v[bucket].len_bytes);
	for (size_t e = 0; e < buckets->v[bucket].count; e++) {
		check_entry(world, &buckets->entries[buckets->v[bucket].first + e], there);
	}
}

/* Some rows of a tensor, and then a part of one more: the second does not begin its box. */
static bool has_two_of_a_box(const struct buckets *buckets, size_t bucket)
{
	const struct bucket *at = &buckets->v[bucket];
	bool found = false;

	for (size_t e = at->first + 1; e < at->first + at->count; e++) {
		found |= buckets->entries[e].box == buckets->entries[e - 1].box;
	}
	return found;
}

static void test_random_worlds(void **state)
{
	uint64_t sent = 0, tidy = 0, brief = 0;

	(void)state;
	for (unsigned n = 0; n < WORLDS; n++) {
		uint64_t slot = SLOT_ALIGN << test_random_below(7);
		uint64_t least = 1 + test_random_below(3000);
		bool direct[SPACES] = {test_random_below(8) > 0, test_random_below(2)};
		struct stretches stretches;
		struct buckets buckets;
		struct copies gather;
		struct error err = {0};
		struct world world;
		uint64_t before;
		int64_t found;

		make_world(&world, slot);
		assert_int_equal(buckets_make(&world.manifest, slot, roots, 1, &buckets, &err), 0);
		assert_int_equal(
			stretches_make(&world.manifest, &buckets, least, &stretches, &err), 0);
		check_receiver(&world, slot, least, &stretches);
		assert_int_equal(
			plan_gather(&world.manifest, &buckets, world.sources, 0, &gather, &err), 0);
		before = copies_bytes(&gather);
		found = stretches_send_direct(&stretches, &gather, direct, &err);
		assert_true(found >= 0);
		for (size_t b = 0; b < buckets.n; b++) {
			send_bucket(&world, &buckets, b, &stretches, &gather);
		}
		if (world.tidy && direct[0] && !world.long_tensor) {
			/* A bucket is one stretch, long or short, which nobody gathers; but for
			 * those that hold two parts of one box. */
			for (size_t b = 0; b < buckets.n; b++) {
				if (has_two_of_a_box(&buckets, b)) {
					continue;
				}
				assert_int_equal(stretches.first[b + 1] - stretches.first[b], 1);
				assert_int_equal(gather.first[b + 1], gather.first[b]);
				brief += buckets.v[b].len_bytes < least;
			}
			tidy += buckets.n;
		}
		assert_true(copies_bytes(&gather) <= before);
		sent += (uint64_t)found;
		copies_finish(&gather);
		stretches_finish(&stretches);
		buckets_finish(&buckets);
		finish_world(&world);
	}
	printf("%llu stretches sent from where they lie, %llu whole buckets, %llu short\n",
		(unsigned long long)sent, (unsigned long long)tidy, (unsigned long long)brief);
	assert_true(sent > WORLDS / 4 && tidy > WORLDS / 30 && brief > WORLDS / 100);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_random_worlds),
	};

	return TEST_RUN(tests);
}
