#include "plan/slot_types.h"
#include "base/util.h"
#include "plan/subset.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define FULL UINT32_MAX /* in n, while runs are added: they do not fit */

static enum slot_type type_of(uint32_t run)
{
	return (enum slot_type)(run & 3);
}

static uint32_t count_of(uint32_t run)
{
	return run >> 2;
}

static void add_run(struct slot_types *types, uint32_t count, enum slot_type type)
{
	uint32_t *last = types->n && types->n != FULL ? &types->runs[types->n - 1] : NULL;

	if (last && type_of(*last) == type && count_of(*last) + count <= UINT32_MAX >> 2) {
		*last += count << 2;
	} else if (types->n >= LIMIT_SLOT_TYPES) {
		types->n = FULL;
	} else {
		types->runs[types->n++] = count << 2 | type;
	}
}

/* Ends adding. Of those that do not fit nothing is kept. */
static void end_runs(struct slot_types *types)
{
	bool own = types->n == FULL;

	own = own || (types->n == 1 && type_of(types->runs[0]) == SLOT_OWN);
	if (own) {
		types->n = 0;
	}
}

static enum slot_type both(enum slot_type a, enum slot_type b)
{
	return a == b || b == SLOT_ANY ? a : a == SLOT_ANY ? b : SLOT_OWN;
}

/* Marks the tensors that other brokers gather at least in part. */
static void find_elsewhere(const struct manifest *manifest, const uint32_t *roots, size_t nroots,
	uint32_t rank, bool *elsewhere)
{
	for (size_t i = 0; i < manifest->nboxes; i++) {
		const struct held_box *held = &manifest->boxes[i];

		if (held->rank >= nroots || roots[held->rank] != rank) {
			elsewhere[held->tensor] = true;
		}
	}
}

static void want(const struct manifest *manifest, const struct layout *layout,
	const bool *elsewhere, uint8_t *wanted)
{
	for (size_t i = 0; i < layout->npieces; i++) {
		const struct piece *piece = &layout->pieces[i];
		enum strew_dtype to = layout->parameters[piece->parameter].dtype;
		enum slot_type type = to == STREW_F16	 ? SLOT_F16
				      : to == STREW_BF16 ? SLOT_BF16
							 : SLOT_OWN;
		int64_t t = manifest_find(manifest, layout->tensors[piece->tensor].name);

		if (t < 0 || !elsewhere[t] || box_empty(piece->ndim, &piece->box)) {
			continue;
		}
		if (manifest->tensors[t].dtype != STREW_F32) {
			type = SLOT_OWN;
		}
		wanted[t] = (uint8_t)both((enum slot_type)wanted[t], type);
	}
}

int slot_types_wanted(const struct manifest *manifest, const uint32_t *roots, size_t nroots,
	uint32_t rank, const struct layout *const *layouts, size_t nlayouts,
	struct slot_types *ret_types)
{
	bool *elsewhere = calloc(manifest->ntensors + 1, sizeof(*elsewhere));
	uint8_t *wanted = malloc(manifest->ntensors + 1);
	int rc = elsewhere && wanted ? 0 : -ENOMEM;

	if (rc == 0) {
		memset(wanted, SLOT_ANY, manifest->ntensors);
		find_elsewhere(manifest, roots, nroots, rank, elsewhere);
		for (size_t i = 0; i < nlayouts; i++) {
			want(manifest, layouts[i], elsewhere, wanted);
		}
		ret_types->n = 0;
		for (size_t i = 0; i < manifest->ntensors; i++) {
			add_run(ret_types, 1, (enum slot_type)wanted[i]);
		}
		end_runs(ret_types);
	}
	free(elsewhere);
	free(wanted);
	return rc;
}

/* Two tables side by side: each step is a stretch in which both have one type. */
struct pair {
	const struct slot_types *a, *b;
	uint32_t i, j;		 /* the runs under way … */
	uint32_t left_a, left_b; /* … and what is left of them */
};

/* The length of the next stretch; 0 at the end, or where only one has ended. */
static uint32_t step(struct pair *pair, enum slot_type *ret_a, enum slot_type *ret_b)
{
	uint32_t n;

	while (!pair->left_a && pair->i < pair->a->n) {
		pair->left_a = count_of(pair->a->runs[pair->i++]);
	}
	while (!pair->left_b && pair->j < pair->b->n) {
		pair->left_b = count_of(pair->b->runs[pair->j++]);
	}
	n = MIN(pair->left_a, pair->left_b);
	if (n) {
		*ret_a = type_of(pair->a->runs[pair->i - 1]);
		*ret_b = type_of(pair->b->runs[pair->j - 1]);
		pair->left_a -= n;
		pair->left_b -= n;
	}
	return n;
}

static bool ended(const struct pair *pair)
{
	return !pair->left_a && !pair->left_b;
}

void slot_types_merge(struct slot_types *types, const struct slot_types *other)
{
	struct slot_types merged = {.n = 0};
	struct pair pair = {.a = types, .b = other};
	enum slot_type a, b;
	uint32_t n;

	while ((n = step(&pair, &a, &b)) > 0 && merged.n != FULL) {
		add_run(&merged, n, both(a, b));
	}
	end_runs(&merged);
	if (!ended(&pair)) {
		merged.n = 0;
	}
	*types = merged;
}

void slot_types_choose(const struct slot_types *types, const uint8_t *chosen, size_t n,
	struct slot_types *ret_types)
{
	struct slot_types made = {.n = 0};
	size_t at = 0;

	for (uint32_t i = 0; i < types->n; i++) {
		for (uint32_t k = 0; k < count_of(types->runs[i]) && at < n; k++, at++) {
			if (bits_has(chosen, at)) {
				add_run(&made, 1, type_of(types->runs[i]));
			}
		}
	}
	end_runs(&made);
	*ret_types = made;
}

void slot_types_settle(struct slot_types *types)
{
	struct slot_types settled = {.n = 0};

	for (uint32_t i = 0; i < types->n; i++) {
		enum slot_type type = type_of(types->runs[i]);

		add_run(&settled, count_of(types->runs[i]), type == SLOT_ANY ? SLOT_OWN : type);
	}
	end_runs(&settled);
	*types = settled;
}

bool slot_types_equal(const struct slot_types *a, const struct slot_types *b)
{
	return a->n == b->n && memcmp(a->runs, b->runs, a->n * sizeof(a->runs[0])) == 0;
}

bool slot_types_serve(const struct slot_types *types, const struct slot_types *wanted)
{
	struct pair pair = {.a = types, .b = wanted};
	enum slot_type a, b;

	if (types->n == 0) {
		return true;
	}
	while (step(&pair, &a, &b) > 0) {
		if (a != SLOT_OWN && b != SLOT_ANY && a != b) {
			return false;
		}
	}
	return ended(&pair);
}

/* One run, of tensors from `first` on. */
static int expand_run(uint32_t run, const struct manifest *manifest, size_t first, uint8_t *dtypes,
	struct error *err)
{
	enum slot_type type = type_of(run);
	uint32_t n = count_of(run);

	if (n > manifest->ntensors - first || type == SLOT_ANY) {
		return error_set(err, -EINVAL, "slot types that are not of this manifest");
	}
	for (size_t t = first; t < first + n && type != SLOT_OWN; t++) {
		if (manifest->tensors[t].dtype != STREW_F32) {
			return error_set(err, -EINVAL,
				"tensor %.128s: %s, and not to be cast before the wire",
				manifest->tensors[t].name,
				strew_dtype_name(manifest->tensors[t].dtype));
		}
		dtypes[t] = type == SLOT_F16 ? STREW_F16 : STREW_BF16;
	}
	return 0;
}

int slot_types_expand(const struct slot_types *types, const struct manifest *manifest,
	uint8_t **ret_dtypes, struct error *err)
{
	uint8_t *dtypes;
	size_t first = 0;
	int rc = 0;

	if (types->n == 0) {
		*ret_dtypes = NULL;
		return 0;
	}
	dtypes = calloc(manifest->ntensors + 1, 1);
	if (!dtypes) {
		return error_set(err, -ENOMEM, "out of memory");
	}
	for (uint32_t i = 0; i < types->n && rc == 0; i++) {
		rc = expand_run(types->runs[i], manifest, first, dtypes, err);
		first += count_of(types->runs[i]);
	}
	if (rc == 0 && first != manifest->ntensors) {
		rc = error_set(err, -EINVAL, "slot types of %zu tensors, but there are %zu", first,
			manifest->ntensors);
	}
	if (rc) {
		free(dtypes);
		return rc;
	}
	*ret_dtypes = dtypes;
	return 0;
}
