/*
 * The lead compares what the nodes have hashed of an update's buckets: all must be equal, since
 * each has sent or received every bucket. What differs ends the update before its commit.
 */
#include "base/util.h"
#include "broker/plans_internal.h"
#include "broker/server.h"
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define NAMED_BYTES 120 /* of a sentence */

void lead_hashes_forget(struct server *server)
{
	free(server->hashes.v);
	memset(&server->hashes, 0, sizeof(server->hashes));
}

/* The tensors behind that sum, for the sentence. Made anew: this is rare, and the end. */
static void name_tensors(
	struct server *server, const struct model *model, size_t sum, char text[NAMED_BYTES])
{
	const struct update *update = &model->update;
	const struct publication *publication =
		model_publication(model, update->part ? update->part : update->subset);
	struct slot_types types = update->slot_types;
	struct buckets buckets = {0};
	size_t fold, first, last;
	uint8_t *dtypes;

	snprintf(text, NAMED_BYTES, "bucket %zu", sum);
	if (!publication) {
		return; /* it goes with a rank, which a move that has read it all does without */
	}
	if (update->part) {
		slot_types_choose(&update->slot_types, model->subsets[update->part - 1]->tensors,
			model->publication->manifest.ntensors, &types);
	}
	if (slot_types_expand(&types, &publication->manifest, &dtypes, NULL)) {
		return;
	}
	if (buckets_make_as(&publication->manifest, dtypes, server->epoch.slot_bytes,
		    publication->roots, publication->nroots, &buckets, NULL) == 0) {
		const struct manifest *manifest = &publication->manifest;

		fold = hashes_fold(&buckets);
		first = MIN(sum * fold, buckets.n - 1);
		last = MIN(first + fold, buckets.n) - 1;
		first = buckets.v[first].first;
		last = buckets.v[last].first + buckets.v[last].count - 1;
		snprintf(text, NAMED_BYTES, "bucket %zu, tensors %.40s to %.40s,", sum * fold,
			manifest->tensors[manifest->boxes[buckets.entries[first].box].tensor].name,
			manifest->tensors[manifest->boxes[buckets.entries[last].box].tensor].name);
		buckets_finish(&buckets);
	}
	free(dtypes);
}

/* The first answer is kept, each further one compared with it. */
bool lead_hashes_agree(struct server *server, const struct model *model, uint32_t node,
	const struct msg_groups *answer, char text[LIMIT_TEXT_BYTES])
{
	struct hashes_said *said = &server->hashes;
	size_t bytes = answer->nhashes * sizeof(*answer->hashes), at = 0;
	char what[NAMED_BYTES];

	if (!said->v) {
		said->v = malloc(bytes + 1);
		if (!said->v) {
			snprintf(text, LIMIT_TEXT_BYTES, "out of memory for hashes");
			return false;
		}
		if (bytes) {
			memcpy(said->v, answer->hashes, bytes);
		}
		said->n = answer->nhashes;
		said->node = node;
		return true;
	}
	if (answer->nhashes != said->n) {
		snprintf(text, LIMIT_TEXT_BYTES, "%zu hashes, but node %u has %zu", answer->nhashes,
			said->node, said->n);
		return false;
	}
	while (at < said->n && answer->hashes[at] == said->v[at]) {
		at++;
	}
	if (at == said->n) {
		return true;
	}
	name_tensors(server, model, at, what);
	snprintf(text, LIMIT_TEXT_BYTES,
		"%s has other bytes here than at node %u (hash %016" PRIx64 ", not %016" PRIx64
		"): changed on the wire",
		what, said->node, answer->hashes[at], said->v[at]);
	return false;
}
