/*
 * How a group catches up: copies out of a sibling's live memory into its own, or into its shadows.
 * The slots' GPU issues them, as it does scatters, where it reaches both ends: the memory of all
 * workers is mapped for it, so that no context is made for this, and neither engine's GPU gets a
 * kernel of ours, unless it is that one. Else it is as with a trainer's memory (issues.c).
 */
#include "broker/plans_internal.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* Copied at once: an update that wants to begin waits for two of them at most. */
#define LUMP_BYTES (128ull << 20)

/* Both as one crew, so that their spaces are counted through. Its workers are to be freed. */
static int join_crews(
	const struct crew *from, const struct crew *to, struct crew *ret_both, struct error *err)
{
	struct crew both = {.nworkers = from->nworkers + to->nworkers};

	both.workers = calloc(both.nworkers + 1, sizeof(*both.workers));
	if (!both.workers) {
		return error_set(err, -ENOMEM, "out of memory");
	}
	memcpy(both.workers, from->workers, from->nworkers * sizeof(*both.workers));
	memcpy(both.workers + from->nworkers, to->workers, to->nworkers * sizeof(*both.workers));
	*ret_both = both;
	return 0;
}

static int make_copies(const struct spaces *spaces, size_t nfrom, size_t nto,
	struct copies *ret_copies, struct error *err)
{
	struct plan_worker *workers;
	int rc = spaces_workers(spaces, &workers, err);

	if (rc) {
		return rc;
	}
	/* What the sibling holds is its live memory, whatever its shadows have been filled with. */
	for (size_t i = 0; i < nfrom; i++) {
		workers[i].shadow_offset = NULL;
	}
	rc = plan_catch_up(workers, nfrom, workers + nfrom, nto, LUMP_BYTES, ret_copies, err);
	free(workers);
	return rc;
}

int catch_plan_make(struct plans *plans, const struct crew *from, const struct crew *to,
	struct plan_crew *plan, struct error *err)
{
	struct gpu_device *home;
	struct spaces spaces;
	struct copies copies;
	struct crew both;
	int rc = plans_home(plans, NULL, &home, err);

	rc = rc ? rc : join_crews(from, to, &both, err);
	if (rc) {
		return rc;
	}
	spaces = (struct spaces){.crew = &both};
	rc = make_copies(&spaces, from->nworkers, to->nworkers, &copies, err);
	if (rc == 0) {
		rc = issues_make(plans, &spaces, &copies, home, &plan->local, err);
		plan->nlumps = copies.nranges;
		copies_finish(&copies);
	}
	free(both.workers);
	if (rc == 0) {
		issues_share(&plan->local, GPU_SHARE_LINK);
	}
	return rc;
}
