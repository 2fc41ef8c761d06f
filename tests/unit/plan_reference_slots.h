/* Slot types in a world of plan_reference.h: what they should be, and the way through such slots.
 */
#ifndef UNIT_PLAN_REFERENCE_SLOTS_H
#define UNIT_PLAN_REFERENCE_SLOTS_H

#include "plan/slot_types.h"
#include "plan_reference.h"

/* The 16-bit dtype that all pieces of an f32 tensor want, or 0. */
static inline uint8_t ref_wanted(const struct ref_world *world, const struct tensor *tensor)
{
	uint8_t wanted = 0;

	for (size_t w = 0; w < world->nworkers; w++) {
		const struct layout *l = &world->workers[w].layout;

		for (size_t p = 0; p < l->npieces; p++) {
			const struct piece *piece = &l->pieces[p];
			uint8_t dtype = (uint8_t)l->parameters[piece->parameter].dtype;

			if (strcmp(l->tensors[piece->tensor].name, tensor->name) ||
				!ref_count(piece->ndim, piece->box.extent)) {
				continue;
			}
			if (tensor->dtype != STREW_F32 || ref_size(dtype) != 2 ||
				(wanted && wanted != dtype)) {
				return 0;
			}
			wanted = dtype;
		}
	}
	return wanted;
}

static unsigned long ref_cast_worlds;

/* After ref_run(): through slots in which what all workers want smaller is smaller already. */
static inline void ref_run_cast(struct ref_world *world, uint64_t slot)
{
	const struct manifest *m = &world->manifest;
	const struct layout *layouts[REF_WORKERS];
	uint8_t *want = calloc(m->ntensors + 1, 1), *got;
	struct slot_types types;
	struct buckets buckets;
	struct error err = {0};
	bool any = false;

	for (size_t t = 0; t < m->ntensors; t++) {
		want[t] = ref_wanted(world, &m->tensors[t]);
		any = any || want[t];
	}
	for (size_t w = 0; w < world->nworkers; w++) {
		layouts[w] = &world->workers[w].layout;
	}
	assert_int_equal(slot_types_wanted(m, world->roots, world->nroots, REF_ROOTS, layouts,
				 world->nworkers, &types),
		0);
	slot_types_settle(&types);
	assert_int_equal(slot_types_expand(&types, m, &got, &err), 0);
	assert_int_equal(got != NULL, any);
	if (got) {
		ref_poison(world);
		assert_memory_equal(got, want, m->ntensors);
		assert_int_equal(
			buckets_make_as(m, got, slot, world->roots, world->nroots, &buckets, &err),
			0);
		ref_check_buckets(world, &buckets, slot, want);
		ref_run_slots(world, &buckets, slot, 0);
		ref_compare(world);
		ref_poison(world);
		ref_run_local(world, &buckets);
		ref_compare(world);
		buckets_finish(&buckets);
		ref_cast_worlds++;
	}
	free(want);
	free(got);
}

#endif
