/*
 * The cover of a manifest: which part of each held box is taken, when every
 * element is to be taken once and from the lowest rank that holds it (and of
 * that rank's boxes, from the first). A pure function of the manifest.
 */
#ifndef PLAN_COVER_H
#define PLAN_COVER_H

#include "plan/manifest.h"

struct cover {
	struct cover_box *boxes; /* one for each of the manifest's */
	struct box *parts;	 /* of boxes that are taken in part */
	size_t nparts, cap_parts;
	uint64_t steps; /* that it took to make, of some 10 ns */
};

/* -ENOMEM; -E2BIG, and the tensor's name, if it takes more than LIMIT_COVER_STEPS to make. */
int cover_make(const struct manifest *manifest, struct cover *ret_cover, struct error *err);
void cover_finish(struct cover *cover);

/* The disjoint parts of box i that are taken. Borrowed from manifest or cover. */
size_t cover_parts(const struct cover *cover, const struct manifest *manifest, size_t i,
	const struct box **ret_parts);

#endif
