/*
 * Catching up out of a sibling's parameters, against plain loops over every element: what is held
 * where, what is wanted where, and bytes that nobody wanted written.
 */
#include "base/util.h"
#include "plan/cast.h"
#include "plan/copies.h"
#include "plan_reference.h"
#include <errno.h>

#define WORLDS 4000
#define MEMBERS 4
#define PARAMETERS 24
#define TENSORS 4
#define ELEMENTS 1024
#define SPACES (2 * MEMBERS * (PARAMETERS + 1))
#define FIRST(group, member) ((uint32_t)(((group)*MEMBERS + (member)) * (PARAMETERS + 1)))

/* Each parameter has an allocation of its own. */
struct side {
	struct layout layout[MEMBERS];
	struct ref_memory memory[MEMBERS][PARAMETERS];
	size_t n;
};

static struct tensor tensors[TENSORS];
static size_t ntensors;
static struct side sides[2];		 /* from, to */
static uint32_t held[TENSORS][ELEMENTS]; /* by a sibling, a bit for each dtype */

static void begin(size_t nfrom, size_t nto)
{
	memset(sides, 0, sizeof(sides));
	memset(held, 0, sizeof(held));
	sides[0].n = nfrom;
	sides[1].n = nto;
	ntensors = 0;
	for (size_t g = 0; g < 2; g++) {
		for (size_t m = 0; m < sides[g].n; m++) {
			layout_init(&sides[g].layout[m]);
		}
	}
}

static void end(void)
{
	for (size_t g = 0; g < 2; g++) {
		for (size_t m = 0; m < sides[g].n; m++) {
			for (size_t p = 0; p < sides[g].layout[m].nparameters; p++) {
				ref_free(&sides[g].memory[m][p]);
			}
			layout_finish(&sides[g].layout[m]);
		}
	}
}

static uint32_t tensor(const char *name, enum strew_dtype dtype, int ndim, const uint64_t *shape)
{
	struct tensor *t = &tensors[ntensors];

	*t = (struct tensor){.name = name, .dtype = dtype, .ndim = ndim};
	memcpy(t->shape, shape, sizeof(*shape) * (size_t)ndim);
	assert_true(ref_count(ndim, shape) <= ELEMENTS);
	return (uint32_t)ntensors++;
}

/* The value of a tensor's element, as it is in a parameter of that dtype. */
static void value_as(uint32_t t, uint64_t linear, enum strew_dtype dtype, unsigned char *ret)
{
	uint64_t value = ref_value(t, linear);

	if (dtype == tensors[t].dtype) {
		memcpy(ret, &value, ref_size(dtype));
	} else {
		ref_cast_at(ret, &value, tensors[t].dtype, dtype);
	}
}

static uint64_t place(const struct layout *l, const struct piece *piece, const uint64_t *index)
{
	const struct parameter *parameter = &l->parameters[piece->parameter];
	uint64_t at = piece->offset;

	for (int i = 0; i < piece->ndim; i++) {
		at += index[i] * piece->stride[i];
	}
	return parameter->offset_bytes + at * ref_size(parameter->dtype);
}

/* A parameter of one piece, whose box lies in it densely or by these strides. */
static void hold_at(unsigned side, size_t member, uint32_t t, struct piece piece,
	enum strew_dtype dtype, uint64_t span)
{
	struct layout *l = &sides[side].layout[member];
	struct parameter parameter = {.dtype = dtype,
		.ndim = 1,
		.stride = {1},
		.allocation = (uint32_t)l->nparameters,
		.offset_bytes = test_random_below(40)};
	char name[32];
	struct error err = {0};

	assert_true(l->nparameters < PARAMETERS);
	snprintf(name, sizeof(name), "parameter.%zu", l->nparameters);
	parameter.name = name;
	parameter.shape[0] = piece.offset + span + test_random_below(3);
	ref_alloc(&sides[side].memory[member][l->nparameters],
		parameter.offset_bytes + parameter.shape[0] * ref_size(dtype) + 16);
	piece.cast = dtype != tensors[t].dtype;
	assert_int_equal(layout_add_parameter(l, &parameter, &piece.parameter, &err), 0);
	assert_int_equal(layout_add_tensor(l, &tensors[t], &piece.tensor, &err), 0);
	if (layout_add_piece(l, &piece, &err) < 0) {
		fail_msg("%s", err.text);
	}
}

static void hold(
	unsigned side, size_t member, uint32_t t, struct piece piece, enum strew_dtype dtype)
{
	if (!piece.ndim) {
		piece.ndim = tensors[t].ndim;
		memcpy(piece.view, tensors[t].shape, sizeof(piece.view));
	}
	dims_dense(piece.ndim, piece.box.extent, piece.stride);
	hold_at(side, member, t, piece, dtype, ref_count(piece.ndim, piece.box.extent));
}

/* Rows [first, first + n) of a matrix. */
static void hold_rows(unsigned side, size_t member, uint32_t t, uint64_t first, uint64_t n)
{
	hold(side, member, t, (struct piece){.box = {{first, 0}, {n, tensors[t].shape[1]}}},
		tensors[t].dtype);
}

/* Which of the tensors it is a piece of. */
static uint32_t tensor_of(const struct layout *layout, const struct piece *piece)
{
	uint32_t t = 0;

	while (strcmp(tensors[t].name, layout->tensors[piece->tensor].name)) {
		t++;
	}
	return t;
}

/* What the sibling has, into its memory and into `held`. */
static void fill_from(void)
{
	for (size_t m = 0; m < sides[0].n; m++) {
		const struct layout *l = &sides[0].layout[m];

		for (size_t p = 0; p < l->npieces; p++) {
			const struct piece *piece = &l->pieces[p];
			const struct parameter *parameter = &l->parameters[piece->parameter];
			uint64_t index[STREW_MAX_DIMS] = {0};
			uint32_t t = tensor_of(l, piece);

			if (!ref_count(piece->ndim, piece->box.extent)) {
				continue;
			}
			do {
				uint64_t linear = ref_linear(
					piece->ndim, piece->view, piece->box.start, index);

				value_as(t, linear, parameter->dtype,
					sides[0].memory[m][piece->parameter].bytes +
						place(l, piece, index));
				held[t][linear] |= 1u << parameter->dtype;
			} while (ref_next(piece->ndim, piece->box.extent, index));
		}
		for (size_t p = 0; p < l->nparameters; p++) {
			struct ref_memory *memory = &sides[0].memory[m][p];

			memcpy(memory->expected, memory->bytes, memory->len);
		}
	}
}

/* What ours should be afterwards, into `expected`. False: the sibling has not all of it. */
static bool expect_to(void)
{
	bool covered = true;

	for (size_t m = 0; m < sides[1].n; m++) {
		const struct layout *l = &sides[1].layout[m];

		for (size_t p = 0; p < l->npieces; p++) {
			const struct piece *piece = &l->pieces[p];
			const struct parameter *parameter = &l->parameters[piece->parameter];
			uint64_t index[STREW_MAX_DIMS] = {0};
			uint32_t t = tensor_of(l, piece);

			if (!ref_count(piece->ndim, piece->box.extent)) {
				continue;
			}
			do {
				uint64_t linear = ref_linear(
					piece->ndim, piece->view, piece->box.start, index);
				uint32_t serve = 1u << parameter->dtype | 1u << tensors[t].dtype;

				covered = covered && (held[t][linear] & serve);
				value_as(t, linear, parameter->dtype,
					sides[1].memory[m][piece->parameter].expected +
						place(l, piece, index));
			} while (ref_next(piece->ndim, piece->box.extent, index));
		}
	}
	return covered;
}

static void list_spaces(struct plan_worker workers[2][MEMBERS], struct ref_space *spaces)
{
	memset(spaces, 0, SPACES * sizeof(*spaces));
	for (size_t g = 0; g < 2; g++) {
		for (size_t m = 0; m < sides[g].n; m++) {
			workers[g][m] = (struct plan_worker){
				.layout = &sides[g].layout[m], .space_base = FIRST(g, m)};
			for (size_t p = 0; p < sides[g].layout[m].nparameters; p++) {
				spaces[FIRST(g, m) + p] = (struct ref_space){
					sides[g].memory[m][p].bytes, sides[g].memory[m][p].len};
			}
		}
	}
}

static uint64_t wanted_bytes(void)
{
	uint64_t bytes = 0;

	for (size_t m = 0; m < sides[1].n; m++) {
		bytes += layout_bytes(&sides[1].layout[m]);
	}
	return bytes;
}

static void compare(void)
{
	for (size_t g = 0; g < 2; g++) {
		for (size_t m = 0; m < sides[g].n; m++) {
			for (size_t p = 0; p < sides[g].layout[m].nparameters; p++) {
				struct ref_memory *memory = &sides[g].memory[m][p];

				assert_memory_equal(memory->bytes, memory->expected, memory->len);
			}
		}
	}
}

/* Bytes of each range; the number of copies. */
static size_t check_lumps(const struct copies *copies, uint64_t lump)
{
	for (size_t range = 0; range < copies->nranges; range++) {
		size_t first = copies->first[range];
		struct copies one = *copies;
		uint64_t bytes;

		one.v += first;
		one.n = copies->first[range + 1] - first;
		bytes = copies_bytes(&one);
		assert_true(bytes > 0 && bytes <= lump);
	}
	return copies->n;
}

/* Runs it, into shadows too. Returns the number of copies, or a negative code. */
static int run(uint64_t lump, struct error *err)
{
	struct plan_worker workers[2][MEMBERS];
	struct ref_space spaces[SPACES];
	struct copies copies, commit;
	uint64_t *offsets[MEMBERS];
	size_t n;
	int rc;

	list_spaces(workers, spaces);
	rc = plan_catch_up(workers[0], sides[0].n, workers[1], sides[1].n, lump, &copies, err);
	if (rc) {
		return rc;
	}
	assert_int_equal(copies_bytes(&copies), wanted_bytes());
	n = check_lumps(&copies, lump);
	for (size_t i = 0; i < copies.nranges; i++) {
		ref_execute(&copies, i, spaces, SPACES, spaces, SPACES);
	}
	copies_finish(&copies);
	compare();
	/* Once more through shadows, over memory that is poisoned. */
	for (size_t m = 0; m < sides[1].n; m++) {
		struct ref_space *shadow = &spaces[FIRST(1, m) + PARAMETERS];

		offsets[m] = calloc(PARAMETERS + 1, sizeof(uint64_t));
		shadow->len = plan_shadow(workers[1][m].layout, NULL, offsets[m]);
		shadow->bytes = malloc(shadow->len + 1);
		test_random_fill(shadow->bytes, shadow->len);
		workers[1][m].shadow_offset = offsets[m];
		workers[1][m].shadow_space = FIRST(1, m) + PARAMETERS;
	}
	assert_int_equal(
		plan_catch_up(workers[0], sides[0].n, workers[1], sides[1].n, lump, &copies, err),
		0);
	for (size_t i = 0; i < copies.nranges; i++) {
		ref_execute(&copies, i, spaces, SPACES, spaces, SPACES);
	}
	compare(); /* nothing of what is live has changed */
	for (size_t m = 0; m < sides[1].n; m++) {
		for (size_t p = 0; p < sides[1].layout[m].npieces; p++) {
			const struct piece *piece = &sides[1].layout[m].pieces[p];
			uint64_t index[STREW_MAX_DIMS] = {0};

			while (ref_count(piece->ndim, piece->box.extent)) {
				sides[1].memory[m][piece->parameter]
					.bytes[place(&sides[1].layout[m], piece, index)] ^= 0xff;
				if (!ref_next(piece->ndim, piece->box.extent, index)) {
					break;
				}
			}
		}
	}
	assert_int_equal(plan_commit(NULL, workers[1], sides[1].n, &commit, err), 0);
	ref_execute(&commit, 0, spaces, SPACES, spaces, SPACES);
	compare();
	for (size_t m = 0; m < sides[1].n; m++) {
		free(spaces[FIRST(1, m) + PARAMETERS].bytes);
		free(offsets[m]);
	}
	copies_finish(&copies);
	copies_finish(&commit);
	return (int)n;
}

static void works(size_t most_copies)
{
	struct error err = {0};
	int rc;

	fill_from();
	assert_true(expect_to());
	rc = run(1 << 20, &err);
	if (rc < 0) {
		fail_msg("%s", err.text);
	}
	assert_true((size_t)rc <= most_copies);
	end();
}

static void refused(const char *word)
{
	struct error err = {0};

	fill_from();
	assert_int_equal(run(1 << 20, &err), -ENOENT);
	if (!strstr(err.text, word)) {
		fail_msg("\"%s\" is not in: %s", word, err.text);
	}
	end();
}

/* Row-parallel shards of T members and a norm that all hold, to as many members or to others. */
static void sizes(void **state)
{
	(void)state;
	for (size_t from = 1; from <= 4; from *= 2) {
		for (size_t to = 1; to <= 4; to *= 2) {
			size_t n[2] = {from, to};

			begin(from, to);
			tensor("w", STREW_BF16, 2, (uint64_t[]){16, 8});
			tensor("norm", STREW_F32, 1, (uint64_t[]){8});
			for (unsigned g = 0; g < 2; g++) {
				for (size_t m = 0; m < n[g]; m++) {
					hold_rows(g, m, 0, m * 16 / n[g], 16 / n[g]);
					hold(g, m, 1, (struct piece){.box = {{0}, {8}}}, STREW_F32);
				}
			}
			/* Contiguous, so one copy each where two shards meet, and one a norm. */
			works(MAX(from, to) + to);
		}
	}
}

/* Equal layouts: each member is fed by the one in its place, what all hold too. */
static void equal_layouts(void **state)
{
	struct plan_worker workers[2][MEMBERS];
	struct ref_space spaces[SPACES];
	struct copies copies;
	struct error err = {0};

	(void)state;
	begin(3, 3);
	tensor("w", STREW_F32, 2, (uint64_t[]){12, 5});
	tensor("all", STREW_F32, 2, (uint64_t[]){4, 4});
	for (unsigned g = 0; g < 2; g++) {
		for (size_t m = 0; m < 3; m++) {
			hold_rows(g, m, 0, 4 * m, 4);
			hold_rows(g, m, 1, 0, 4);
		}
	}
	list_spaces(workers, spaces);
	assert_int_equal(plan_catch_up(workers[0], 3, workers[1], 3, 1 << 20, &copies, &err), 0);
	assert_int_equal(copies.n, 6);
	for (size_t i = 0; i < copies.n; i++) {
		assert_int_equal(
			copies.v[i].src_space - FIRST(0, 0), copies.v[i].dst_space - FIRST(1, 0));
	}
	copies_finish(&copies);
	works(6);
}

/* The rotary permutation on one side alone: 4 heads of 8, halves interleaved in the tensor. */
static void rotary(void **state)
{
	struct piece permuted = {.ndim = 4,
		.view = {4, 4, 2, 3},
		.box = {{0}, {4, 4, 2, 3}},
		.stride = {24, 3, 12, 1}};

	(void)state;
	for (unsigned side = 0; side < 2; side++) {
		begin(1, 1);
		tensor("q", STREW_F32, 2, (uint64_t[]){32, 3});
		hold_at(side, 0, 0, permuted, STREW_F32, 96);
		hold_rows(!side, 0, 0, 0, 32);
		works(8);
	}
	/* In both, of a shard of heads and of all of them. */
	begin(2, 1);
	tensor("q", STREW_F32, 2, (uint64_t[]){32, 3});
	for (unsigned m = 0; m < 2; m++) {
		permuted.box = (struct box){{2 * m}, {2, 4, 2, 3}};
		hold_at(0, m, 0, permuted, STREW_F32, 48);
	}
	permuted.box = (struct box){{0}, {4, 4, 2, 3}};
	hold_at(1, 0, 0, permuted, STREW_F32, 96);
	works(2);
}

static void casts(void **state)
{
	static const struct {
		enum strew_dtype tensor, from, to;
		bool serves;
	} cases[] = {
		{STREW_F32, STREW_F32, STREW_BF16, true}, {STREW_F32, STREW_BF16, STREW_BF16, true},
		{STREW_BF16, STREW_F32, STREW_F32, true}, {STREW_F32, STREW_BF16, STREW_F32, false},
		{STREW_F32, STREW_BF16, STREW_F16, false},
		{STREW_BF16, STREW_F32, STREW_BF16, false}, /* a NaN that is not quiet would be */
	};

	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
		begin(1, 1);
		tensor("w", cases[i].tensor, 1, (uint64_t[]){300});
		hold(0, 0, 0, (struct piece){.box = {{0}, {300}}}, cases[i].from);
		hold(1, 0, 0, (struct piece){.box = {{20}, {280}}}, cases[i].to);
		if (cases[i].serves) {
			works(1);
		} else {
			refused("not as it is wanted");
		}
	}
}

static void not_covered(void **state)
{
	(void)state;
	/* One row. */
	begin(2, 1);
	tensor("w", STREW_F32, 2, (uint64_t[]){9, 4});
	hold_rows(0, 0, 0, 0, 4);
	hold_rows(0, 1, 0, 5, 4);
	hold_rows(1, 0, 0, 0, 9);
	refused("parameter.0: the sibling does not hold all of tensor w");
	/* A tensor. */
	begin(1, 1);
	tensor("w", STREW_F32, 2, (uint64_t[]){9, 4});
	tensor("x", STREW_F32, 2, (uint64_t[]){2, 2});
	hold_rows(0, 0, 0, 0, 9);
	hold_rows(1, 0, 0, 0, 9);
	hold_rows(1, 0, 1, 0, 2);
	refused("tensor x");
	/* Another one under its name. */
	begin(1, 1);
	tensor("w", STREW_F32, 2, (uint64_t[]){9, 4});
	hold_rows(0, 0, 0, 0, 9);
	tensors[0].shape[0] = 8;
	hold_rows(1, 0, 0, 0, 8);
	tensors[0].shape[0] = 9;
	refused("tensor w");
	/* Thirds and halves of a dimension. */
	begin(1, 1);
	tensor("w", STREW_F32, 1, (uint64_t[]){6});
	hold(0, 0, 0, (struct piece){.ndim = 2, .view = {2, 3}, .box = {{0}, {2, 3}}}, STREW_F32);
	hold(1, 0, 0, (struct piece){.ndim = 2, .view = {3, 2}, .box = {{0}, {3, 2}}}, STREW_F32);
	refused("do not fit");
	/* Seven dimensions together. */
	begin(1, 1);
	tensor("w", STREW_F32, 2, (uint64_t[]){16, 8});
	hold(0, 0, 0,
		(struct piece){.ndim = 5, .view = {2, 2, 2, 2, 8}, .box = {{0}, {2, 2, 2, 2, 8}}},
		STREW_F32);
	hold(1, 0, 0, (struct piece){.ndim = 4, .view = {16, 2, 2, 2}, .box = {{0}, {16, 2, 2, 2}}},
		STREW_F32);
	refused("do not fit");
}

/* Tensors of the sibling's that we do not want, and pieces of nothing, count for nothing. */
static void more_than_wanted(void **state)
{
	(void)state;
	begin(1, 2);
	tensor("w", STREW_F32, 2, (uint64_t[]){8, 4});
	tensor("x", STREW_I8, 2, (uint64_t[]){8, 4});
	tensor("none", STREW_F32, 2, (uint64_t[]){0, 4});
	hold_rows(0, 0, 0, 0, 8);
	hold_rows(0, 0, 1, 0, 8);
	hold_rows(1, 0, 0, 1, 2);
	hold_rows(1, 0, 2, 0, 0);
	hold_rows(1, 1, 0, 3, 5);
	works(2);
}

/* In pieces of at most 64 bytes, whatever the shape. */
static void lumps(void **state)
{
	struct error err = {0};

	(void)state;
	begin(1, 1);
	tensor("w", STREW_F64, 3, (uint64_t[]){3, 30, 7});
	hold(0, 0, 0, (struct piece){.box = {{0}, {3, 30, 7}}}, STREW_F64);
	hold(1, 0, 0, (struct piece){.box = {{0, 1, 0}, {3, 29, 7}}}, STREW_F64);
	fill_from();
	assert_true(expect_to());
	assert_true(run(64, &err) > 0);
	end();
}

static uint64_t between(uint64_t lo, uint64_t hi)
{
	return lo + test_random_below(hi - lo + 1);
}

/* Splits dimensions and strews in dimensions of 1. */
static void random_view(const struct tensor *t, struct piece *piece)
{
	piece->ndim = 0;
	for (int d = 0; d < t->ndim; d++) {
		uint64_t rest = t->shape[d];

		while (piece->ndim + t->ndim - d < STREW_MAX_DIMS && test_random_below(3) == 0) {
			uint64_t factor = between(1, rest);

			if (rest % factor == 0) {
				piece->view[piece->ndim++] = factor;
				rest /= factor;
			}
		}
		piece->view[piece->ndim++] = rest;
	}
}

/* A box of it in a parameter with gaps, its dimensions in any order. */
static void random_piece(unsigned side, size_t member, uint32_t t, unsigned whole_of_10)
{
	static const enum strew_dtype floats[] = {STREW_F32, STREW_F16, STREW_BF16};
	enum strew_dtype dtype = tensors[t].dtype;
	struct piece piece = {.offset = test_random_below(4)};
	int order[STREW_MAX_DIMS];
	uint64_t span = 1;

	random_view(&tensors[t], &piece);
	for (int i = 0; i < piece.ndim; i++) {
		bool whole = test_random_below(10) < whole_of_10;
		int j = (int)test_random_below((uint64_t)i + 1);

		piece.box.start[i] = whole ? 0 : test_random_below(piece.view[i] + 1);
		piece.box.extent[i] =
			whole ? piece.view[i]
			      : test_random_below(piece.view[i] - piece.box.start[i] + 1);
		order[i] = order[j];
		order[j] = i;
	}
	for (int i = 0; i < piece.ndim; i++) {
		piece.stride[order[i]] = span + test_random_below(3);
		span += MAX(piece.box.extent[order[i]], 1) * piece.stride[order[i]];
	}
	if (cast_known(dtype, STREW_F32) && test_random_below(6) == 0) {
		dtype = floats[test_random_below(3)];
	}
	hold_at(side, member, t, piece, dtype, span);
}

static int by_value(const void *pa, const void *pb)
{
	const uint64_t *a = pa, *b = pb;

	return *a < *b ? -1 : *a > *b;
}

/* Is there one view for all pieces of the tensor? By the strides of their views' dimensions. */
static bool views_fit(uint32_t t)
{
	uint64_t v[512], n = 0, kept = 0;

	for (size_t g = 0; g < 2; g++) {
		for (size_t m = 0; m < sides[g].n; m++) {
			const struct layout *l = &sides[g].layout[m];

			for (size_t p = 0; p < l->npieces; p++) {
				const struct piece *piece = &l->pieces[p];
				uint64_t stride = 1;

				if (strcmp(l->tensors[piece->tensor].name, tensors[t].name) ||
					!ref_count(piece->ndim, piece->box.extent)) {
					continue;
				}
				for (int i = piece->ndim - 1; i >= 0; i--) {
					if (piece->view[i] > 1) {
						v[n++] = stride;
					}
					stride *= piece->view[i];
				}
				assert_true(n < ARRAY_LEN(v) - STREW_MAX_DIMS);
			}
		}
	}
	qsort(v, n, sizeof(*v), by_value);
	for (size_t i = 0; i < n; i++) {
		if (!kept || v[kept - 1] != v[i]) {
			v[kept++] = v[i];
		}
	}
	for (size_t i = 1; i < kept; i++) {
		if (v[i] % v[i - 1]) {
			return false;
		}
	}
	return kept <= STREW_MAX_DIMS;
}

static bool all_views_fit(void)
{
	for (uint32_t t = 0; t < ntensors; t++) {
		bool wanted = false;

		for (size_t m = 0; m < sides[1].n; m++) {
			const struct layout *l = &sides[1].layout[m];

			for (size_t p = 0; p < l->npieces; p++) {
				wanted = wanted || (!strcmp(l->tensors[l->pieces[p].tensor].name,
							    tensors[t].name) &&
							   ref_count(l->pieces[p].ndim,
								   l->pieces[p].box.extent));
			}
		}
		if (wanted && !views_fit(t)) {
			return false;
		}
	}
	return true;
}

static void random_worlds(void **state)
{
	static const char *const names[] = {"a", "b", "c", "d"};
	static const enum strew_dtype dtypes[] = {
		STREW_F32, STREW_BF16, STREW_F16, STREW_U8, STREW_F64};
	static const uint64_t dims[] = {1, 2, 3, 4, 6, 8, 12};
	unsigned caught = 0, uncovered = 0, unfit = 0;

	(void)state;
	for (int w = 0; w < WORLDS; w++) {
		struct error err = {0};
		bool covered, fit;
		int rc;

		begin(between(1, MEMBERS), between(1, MEMBERS));
		for (size_t t = between(1, TENSORS); t > 0; t--) {
			uint64_t shape[STREW_MAX_DIMS];
			int ndim;

			do {
				ndim = (int)test_random_below(4);
				for (int i = 0; i < ndim; i++) {
					shape[i] = dims[test_random_below(ARRAY_LEN(dims))];
				}
			} while (ref_count(ndim, shape) > ELEMENTS);
			tensor(names[t - 1], dtypes[test_random_below(ARRAY_LEN(dtypes))], ndim,
				shape);
		}
		for (unsigned g = 0; g < 2; g++) {
			for (size_t m = 0; m < sides[g].n; m++) {
				size_t n = g ? between(1, 3) : between(1, 6);

				while (n-- > 0) {
					random_piece(g, m, (uint32_t)test_random_below(ntensors),
						g ? 4 : 9);
				}
			}
		}
		fill_from();
		covered = expect_to();
		fit = all_views_fit();
		rc = run(between(64, 700), &err);
		if (rc == -ENOENT) {
			assert_true(!covered || !fit);
			uncovered += !covered;
			unfit += !fit;
		} else {
			assert_true(rc >= 0 && covered && fit);
			caught++;
		}
		end();
	}
	printf("%u caught up, %u were not covered, %u had views that do not fit\n", caught,
		uncovered, unfit);
	assert_true(caught > WORLDS / 20 && uncovered > WORLDS / 20 && unfit > WORLDS / 50);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(sizes),
		cmocka_unit_test(equal_layouts),
		cmocka_unit_test(rotary),
		cmocka_unit_test(casts),
		cmocka_unit_test(not_covered),
		cmocka_unit_test(more_than_wanted),
		cmocka_unit_test(lumps),
		cmocka_unit_test(random_worlds),
	};

	test_seed();
	return TEST_RUN(tests);
}
