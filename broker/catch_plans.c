/*
 * How a group catches up: copies out of a sibling's live memory into its own, or into its shadows.
 * The slots' GPU issues them, as it does scatters: the memory of all workers is mapped for it, so
 * no context is made, and neither engine's GPU gets a kernel of ours, unless it is that one.
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

int catch_plan_make(struct plans *plans, const struct crew *from, const struct crew *to,
	struct plan_crew *plan, struct error *err)
{
	struct issue *issue = &plan->local[0];
	struct crew_spaces spaces;
	struct gpu_device *home;
	struct copies copies;
	struct crew both;
	int rc = plans_home(plans, NULL, &home, err);

	rc = rc ? rc : join_crews(from, to, &both, err);
	if (rc) {
		return rc;
	}
	rc = spaces_make(&both, 0, home, &spaces, err);
	free(both.workers);
	if (rc) {
		return rc;
	}
	/* What the sibling holds is its live memory, whatever its shadows have been filled with. */
	for (size_t i = 0; i < from->nworkers; i++) {
		spaces.workers[i].shadow_offset = NULL;
	}
	rc = plan_catch_up(spaces.workers, from->nworkers, spaces.workers + from->nworkers,
		to->nworkers, LUMP_BYTES, &copies, err);
	if (rc == 0) {
		rc = gpu_copies_create(
			home, &copies, spaces.bases, spaces.nbases, &issue->copies, err);
		plan->nlumps = copies.nranges;
		copies_finish(&copies);
	}
	if (rc == 0) {
		gpu_copies_share(issue->copies);
		issue->device = home;
		memcpy(issue->target, gpu_device_uuid(home), GPU_UUID_BYTES);
		plan->nlocal = 1;
	}
	spaces_finish(&spaces);
	return rc;
}
