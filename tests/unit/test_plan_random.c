/* Random worlds: every way that bytes can take must give what plain loops give. */
#include "base/util.h"
#include "plan/cast.h"
#include "plan_reference.h"
#include "plan_reference_slots.h"

#define WORLDS 3000

static const enum strew_dtype dtypes[] = {STREW_F32, STREW_F32, STREW_BF16, STREW_F16, STREW_U8,
	STREW_BF16, STREW_F32, STREW_F64, STREW_F8_E4M3, STREW_F16, STREW_I8, STREW_I16, STREW_U16,
	STREW_I32, STREW_U32, STREW_I64, STREW_U64, STREW_BOOL, STREW_F8_E5M2};

static uint64_t between(uint64_t lo, uint64_t hi)
{
	return lo + test_random_below(hi - lo + 1);
}

static void shuffle(int *v, int n)
{
	for (int i = n - 1; i > 0; i--) {
		int j = (int)test_random_below((uint64_t)i + 1), swap = v[i];

		v[i] = v[j];
		v[j] = swap;
	}
}

/* Injective strides for the extents, dimensions in a random order or not, with gaps or not. */
static uint64_t random_strides(int ndim, const uint64_t *extent, uint64_t *ret_stride)
{
	int order[STREW_MAX_DIMS + 1];
	int permute = test_random_below(2) == 0, gaps = test_random_below(2) == 0;
	uint64_t span = 1;

	for (int i = 0; i < ndim; i++) {
		order[i] = ndim - 1 - i;
	}
	if (permute) {
		shuffle(order, ndim);
	}
	for (int i = 0; i < ndim; i++) {
		uint64_t *stride = &ret_stride[order[i]];

		*stride = span + (gaps ? test_random_below(4) : 0);
		span = extent[order[i]] ? (extent[order[i]] - 1) * *stride + span : span;
		if (!gaps) {
			span = extent[order[i]] ? extent[order[i]] * *stride : span;
		}
	}
	return span;
}

static void random_shape(struct tensor *tensor)
{
	do {
		tensor->ndim = (int)test_random_below(STREW_MAX_DIMS + 1);
		for (int i = 0; i < tensor->ndim; i++) {
			tensor->shape[i] = between(1, tensor->ndim > 3 ? 6 : 24);
			if (test_random_below(60) == 0) {
				tensor->shape[i] = 0;
			}
		}
	} while (ref_count(tensor->ndim, tensor->shape) > 1500);
}

/* A grid of boxes over random ranks, then boxes that overlap it. */
static void random_boxes(struct ref_world *world, const uint32_t *tensors, size_t ntensors,
	uint32_t ranks, struct held_box *held, size_t *nheld)
{
	for (size_t t = 0; t < ntensors; t++) {
		const struct tensor *tensor = &world->manifest.tensors[tensors[t]];
		uint64_t cut[STREW_MAX_DIMS], parts[STREW_MAX_DIMS], index[STREW_MAX_DIMS] = {0};
		size_t extra = test_random_below(3) ? 0 : test_random_below(4);

		for (int i = 0; i < tensor->ndim; i++) {
			cut[i] = test_random_below(2) ? MAX(tensor->shape[i], 1)
						      : between(1, MAX(tensor->shape[i], 1));
			parts[i] = (MAX(tensor->shape[i], 1) + cut[i] - 1) / cut[i];
		}
		if (ref_count(tensor->ndim, parts) > 40) {
			memcpy(cut, tensor->shape, sizeof(cut));
			for (int i = 0; i < tensor->ndim; i++) {
				parts[i] = 1;
			}
		}
		do {
			struct held_box *h = &held[(*nheld)++];

			*h = (struct held_box){
				.tensor = tensors[t], .rank = (uint32_t)test_random_below(ranks)};
			for (int i = 0; i < tensor->ndim; i++) {
				h->box.start[i] = index[i] * cut[i];
				h->box.extent[i] = MIN(cut[i], tensor->shape[i] - h->box.start[i]);
			}
		} while (ref_next(tensor->ndim, parts, index));
		for (size_t k = 0; k < extra; k++) {
			struct held_box *h = &held[*nheld];

			*h = (struct held_box){
				.tensor = tensors[t], .rank = (uint32_t)test_random_below(ranks)};
			for (int i = 0; i < tensor->ndim; i++) {
				h->box.start[i] = test_random_below(tensor->shape[i] + 1);
				h->box.extent[i] =
					test_random_below(tensor->shape[i] - h->box.start[i] + 1);
			}
			if (test_random_below(3) == 0) {
				h->box = held[*nheld - 1].box;
			}
			++*nheld;
		}
	}
}

static void random_manifest(struct ref_world *world)
{
	size_t ntensors = between(1, 5), nheld = 0;
	uint32_t tensors[8], ranks = (uint32_t)between(1, 4);
	struct held_box held[REF_BOXES];
	struct error err = {0};

	for (size_t t = 0; t < ntensors; t++) {
		char name[48];
		struct tensor tensor = {
			.name = name, .dtype = dtypes[test_random_below(ARRAY_LEN(dtypes))]};

		snprintf(name, sizeof(name), "layers.%zu.weight", t);
		random_shape(&tensor);
		assert_int_equal(
			manifest_add_tensor(&world->manifest, &tensor, &tensors[t], &err), 0);
	}
	random_boxes(world, tensors, ntensors, ranks, held, &nheld);
	for (uint32_t rank = 0; rank < ranks; rank++) {
		world->roots[rank] = (uint32_t)test_random_below(3);
		for (size_t i = 0; i < nheld; i++) {
			const struct tensor *tensor = &world->manifest.tensors[held[i].tensor];
			uint64_t stride[STREW_MAX_DIMS];

			if (held[i].rank == rank) {
				random_strides(tensor->ndim, held[i].box.extent, stride);
				ref_hold(world, held[i].tensor, rank, &held[i].box,
					test_random_below(40), stride);
			}
		}
	}
	world->nroots = ranks;
}

/* Splits dimensions into factors and strews in dimensions of 1. */
static void random_view(const struct tensor *tensor, struct piece *piece)
{
	int left = STREW_MAX_DIMS;

	piece->ndim = 0;
	for (int t = 0; t < tensor->ndim; t++) {
		uint64_t rest = tensor->shape[t];

		left = STREW_MAX_DIMS - piece->ndim - (tensor->ndim - t);
		while (left > 0 && test_random_below(2)) {
			uint64_t factor = between(1, MAX(rest, 1));

			if (rest && rest % factor == 0) {
				piece->view[piece->ndim++] = factor;
				rest /= factor;
				left--;
			}
		}
		if (rest == 1 && test_random_below(2)) {
			continue;
		}
		piece->view[piece->ndim++] = rest;
	}
}

/*
 * A parameter: one to three pieces of one shape, interleaved at a random depth
 * of the destination, as fused parameters are.
 */
static void random_parameter(
	struct ref_world *world, struct ref_worker *worker, uint32_t number, uint64_t *cursor)
{
	const struct manifest *m = &world->manifest;
	const struct tensor *tensor = &m->tensors[test_random_below(m->ntensors)];
	uint32_t copies = (uint32_t)between(1, 3), t, p;
	uint64_t extent[STREW_MAX_DIMS + 1], stride[STREW_MAX_DIMS + 1] = {0}, span;
	struct piece piece = {0};
	struct parameter parameter = {.allocation = (uint32_t)(worker->nallocations - 1),
		.dtype = tensor->dtype,
		.ndim = 1,
		.stride = {1}};
	char name[32];
	struct error err = {0};

	random_view(tensor, &piece);
	for (int i = 0; i < piece.ndim; i++) {
		int whole = test_random_below(2) == 0;

		piece.box.start[i] = whole ? 0 : test_random_below(piece.view[i] + 1);
		piece.box.extent[i] = piece.view[i] - piece.box.start[i];
		if (!whole && piece.box.extent[i]) {
			piece.box.extent[i] = between(1, piece.box.extent[i]);
		}
		extent[i] = piece.box.extent[i];
	}
	extent[piece.ndim] = copies;
	span = random_strides(
		piece.ndim < STREW_MAX_DIMS ? piece.ndim + 1 : piece.ndim, extent, stride);
	if (piece.ndim == STREW_MAX_DIMS) {
		stride[piece.ndim] = span;
		span *= copies;
	}
	memcpy(piece.stride, stride, sizeof(piece.stride));
	piece.offset = test_random_below(5);
	snprintf(name, sizeof(name), "parameter.%u", number);
	parameter.name = name;
	piece.cast = test_random_below(2);
	if (piece.cast && cast_known(tensor->dtype, STREW_F32)) {
		static const enum strew_dtype to[] = {STREW_F32, STREW_F16, STREW_BF16};

		parameter.dtype = to[test_random_below(3)];
	}
	parameter.offset_bytes = *cursor + test_random_below(20);
	parameter.shape[0] = piece.offset + span + test_random_below(5);
	*cursor = parameter.offset_bytes + parameter.shape[0] * ref_size(parameter.dtype);
	assert_int_equal(layout_add_parameter(&worker->layout, &parameter, &p, &err), 0);
	assert_int_equal(layout_add_tensor(&worker->layout, tensor, &t, &err), 0);
	for (uint32_t c = 0; c < copies; c++) {
		piece.tensor = t;
		piece.parameter = p;
		if (layout_add_piece(&worker->layout, &piece, &err) < 0) {
			fail_msg("%s", err.text);
		}
		piece.offset += stride[piece.ndim];
		/* The next copy starts elsewhere in the tensor, if there is room. */
		for (int i = 0; i < piece.ndim; i++) {
			piece.box.start[i] =
				test_random_below(piece.view[i] - piece.box.extent[i] + 1);
		}
	}
}

static void random_worlds(void **state)
{
	(void)state;
	for (int n = 0; n < WORLDS; n++) {
		struct ref_world *world = ref_create(between(1, REF_WORKERS));
		static const uint64_t slots[] = {
			8, 16, 64, 255, 256, 264, 700, 1024, 5000, 1 << 20};

		random_manifest(world);
		for (size_t w = 0; w < world->nworkers; w++) {
			struct ref_worker *worker = &world->workers[w];
			size_t allocations = between(1, 3);
			uint32_t number = 0;

			while (worker->nallocations < allocations) {
				uint64_t cursor = 0;
				size_t parameters = between(1, 3);

				worker->nallocations++;
				for (size_t p = 0; p < parameters; p++) {
					random_parameter(world, worker, number++, &cursor);
				}
				ref_alloc(&worker->allocations[worker->nallocations - 1],
					cursor + 16);
			}
		}
		ref_run(world, slots[test_random_below(ARRAY_LEN(slots))]);
		ref_run_cast(world, slots[test_random_below(ARRAY_LEN(slots))]);
		ref_destroy(world);
	}
	assert_true(ref_casts > WORLDS);
	assert_true(ref_cast_worlds > WORLDS / 50);
	assert_true(ref_direct > WORLDS / 50);
	printf("%lu casts, %lu worlds with smaller slots, %lu stretches sent from where they lie\n",
		ref_casts, ref_cast_worlds, ref_direct);
}

int main(void)
{
	const struct CMUnitTest tests[] = {cmocka_unit_test(random_worlds)};

	test_seed();
	return TEST_RUN(tests);
}
