/* What crews want of a publication, all of them together: found out once, and kept. */
#include "broker/plans_internal.h"
#include <errno.h>
#include <stdlib.h>
#include <xxhash.h>

/*
 * Names what crews want of a publication at this root. Keys are small numbers, of which sums are
 * soon equal: who took another's slot types for its own would be written in another dtype's values.
 */
static uint64_t mark_of(
	const struct publication *publication, const struct crew *const *crews, size_t ncrews)
{
	const uint64_t first[] = {publication->key, publication->own_root};
	uint64_t mark = XXH3_64bits(first, sizeof(first));

	for (size_t i = 0; i < ncrews; i++) {
		mark = XXH3_64bits_withSeed(&crews[i]->key, sizeof(crews[i]->key), mark);
	}
	return mark ? mark : 1;
}

/* Their layouts; malloc'd, NULL without memory. */
static const struct layout **layouts_of(
	const struct crew *const *crews, size_t ncrews, size_t *ret_n)
{
	const struct layout **layouts;
	size_t n = 0;

	for (size_t i = 0; i < ncrews; i++) {
		n += crews[i]->nworkers;
	}
	layouts = calloc(n + 1, sizeof(*layouts));
	n = 0;
	for (size_t i = 0; layouts && i < ncrews; i++) {
		for (size_t k = 0; k < crews[i]->nworkers; k++) {
			layouts[n++] = &crews[i]->workers[k]->layout;
		}
	}
	*ret_n = n;
	return layouts;
}

int plans_wanted(struct plans *plans, const struct plan_for *plan_for,
	const struct crew *const *crews, size_t ncrews, struct slot_types *ret_types)
{
	const struct publication *publication = plan_for->publication;
	uint64_t mark = mark_of(publication, crews, ncrews);
	size_t at = mark % MARKS_MAX;
	int rc = 0;

	if (plans->wanted[at].mark != mark) {
		size_t n;
		const struct layout **layouts = layouts_of(crews, ncrews, &n);

		rc = layouts ? slot_types_wanted(&publication->manifest, publication->roots,
				       publication->nroots, publication->own_root, layouts, n,
				       &plans->wanted[at].types)
			     : -ENOMEM;
		free(layouts);
		plans->wanted[at].mark = rc ? 0 : mark;
	}
	if (rc == 0) {
		*ret_types = plans->wanted[at].types;
	}
	return rc;
}

int plans_guess(struct plans *plans, const struct plan_for *plan_for,
	const struct crew *const *crews, size_t ncrews, struct slot_types *ret_types)
{
	const struct plan_base *last = NULL;
	int rc;

	for (size_t i = 0; i < plans->nbases; i++) {
		const struct plan_base *base = plans->bases[i];

		if (base->key == plan_for->publication->key &&
			base->slot_bytes == plan_for->slot_bytes &&
			(!last || base->last_use > last->last_use)) {
			last = base;
		}
	}
	if (last) {
		*ret_types = last->slot_types;
		return 0;
	}
	rc = plans_wanted(plans, plan_for, crews, ncrews, ret_types);
	if (rc == 0) {
		slot_types_settle(ret_types);
	}
	return rc;
}

int plans_unwanted(struct plans *plans, const struct publication *publication,
	const struct crew *const *crews, size_t ncrews, uint64_t *ret_unwanted)
{
	uint64_t mark = mark_of(publication, crews, ncrews);
	size_t at = mark % MARKS_MAX;
	struct plan_uncovered uncovered;
	int rc;

	if (plans->unwanted[at].mark != mark) {
		size_t n;
		const struct layout **layouts = layouts_of(crews, ncrews, &n);

		if (!layouts) {
			return -ENOMEM;
		}
		rc = plan_uncovered(&publication->manifest, layouts, n, &uncovered);
		free(layouts);
		if (rc) {
			return rc;
		}
		plans->unwanted[at].tensors = uncovered.tensors;
		plans->unwanted[at].mark = mark;
	}
	*ret_unwanted = plans->unwanted[at].tensors;
	return 0;
}
