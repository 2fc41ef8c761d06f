/* What crews want of a publication is kept, and never taken for what others want of another. */
#include "base/util.h"
#include "broker/plans.h"
#include "support/test_main.h"

#define PUBLICATIONS 24
#define CREWS 400

static struct publication publication; /* "a" and "b" in f32, which lie at root 0 */
static uint32_t roots[] = {0};
static struct plans *plans;

/* A crew of one worker that takes these tensors in this dtype. */
struct taker {
	struct worker worker, *workers[1];
	struct crew crew;
};

static void take(struct layout *layout, const char *name, enum strew_dtype dtype)
{
	struct tensor tensor = {.name = name, .dtype = STREW_F32, .ndim = 1, .shape = {8}};
	struct parameter parameter = {
		.name = name, .dtype = dtype, .ndim = 1, .shape = {8}, .stride = {1}};
	struct piece piece = {.ndim = 1,
		.view = {8},
		.box = {.extent = {8}},
		.stride = {1},
		.cast = dtype != STREW_F32};
	struct error err;

	assert_int_equal(layout_add_tensor(layout, &tensor, &piece.tensor, &err), 0);
	assert_int_equal(layout_add_parameter(layout, &parameter, &piece.parameter, &err), 0);
	assert_int_equal(layout_add_piece(layout, &piece, &err), 0);
}

static void taker_init(struct taker *taker, enum strew_dtype dtype, bool both)
{
	layout_init(&taker->worker.layout);
	take(&taker->worker.layout, "a", dtype);
	if (both) {
		take(&taker->worker.layout, "b", dtype);
	}
	taker->workers[0] = &taker->worker;
	taker->crew = (struct crew){.workers = taker->workers, .nworkers = 1};
}

static int start(void **state)
{
	static const char *const names[] = {"a", "b"};
	struct error err;

	(void)state;
	manifest_init(&publication.manifest);
	for (size_t i = 0; i < ARRAY_LEN(names); i++) {
		struct tensor tensor = {
			.name = names[i], .dtype = STREW_F32, .ndim = 1, .shape = {8}};
		struct held_box held = {.box = {.extent = {8}}};

		assert_int_equal(
			manifest_add_tensor(&publication.manifest, &tensor, &held.tensor, &err), 0);
		assert_int_equal(manifest_add_box(&publication.manifest, &held, &err), 0);
	}
	publication.roots = roots;
	publication.nroots = ARRAY_LEN(roots);
	publication.own_root = ROOT_NONE;
	return plans_create(NULL, NULL, &plans);
}

static int finish(void **state)
{
	(void)state;
	plans_destroy(plans);
	manifest_finish(&publication.manifest);
	return 0;
}

/*
 * Publications and crews with keys as a broker gives them, in any order: the answer is that of the
 * crew that is asked for, whether it was kept, driven out, or never known.
 */
static void test_none_for_another(void **state)
{
	struct plan_for plan_for = {.publication = &publication};
	struct taker takers[2];

	(void)state;
	taker_init(&takers[0], STREW_BF16, true);
	taker_init(&takers[1], STREW_F32, false);
	for (unsigned turn = 0; turn < 20000; turn++) {
		uint64_t key = 1 + test_random_below(PUBLICATIONS);
		uint64_t crew = 1 + test_random_below(CREWS);
		struct taker *taker = &takers[(crew % 7 + key) % 2];
		const struct crew *crews[] = {&taker->crew};
		bool own = taker == &takers[1];
		struct slot_types types;
		uint64_t unwanted;

		taker->crew.key = crew;
		publication.key = key;
		assert_int_equal(plans_wanted(plans, &plan_for, crews, 1, &types), 0);
		slot_types_settle(&types);
		assert_int_equal(types.n, own ? 0 : 1);
		assert_int_equal(plans_unwanted(plans, &publication, crews, 1, &unwanted), 0);
		assert_int_equal(unwanted, own ? 1 : 0);
	}
	layout_finish(&takers[0].worker.layout);
	layout_finish(&takers[1].worker.layout);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_none_for_another, start, finish),
	};

	return TEST_RUN(tests);
}
