/*
 * What was hashed of the buckets that a model's last committed update sent over the wire, kept for
 * who asks later (explain.c). The lead commits nothing that differed, so every broker of the epoch
 * has the same sums.
 */
#include "base/util.h"
#include "broker/node_internal.h"
#include <stdlib.h>
#include <string.h>

void sums_free(struct sums *sums)
{
	while (sums) {
		struct sums *next = sums->next;

		free(sums->v);
		free(sums);
		sums = next;
	}
}

/* Without memory they are not known later, and nothing else is lost. */
void sums_note(struct server *server)
{
	struct node *node = &server->node;
	const struct publication *publication = node->part ? node->moving : node->publication;
	struct sums *sums = node->wire ? calloc(1, sizeof(*sums)) : NULL;

	if (!sums) {
		return;
	}
	sums->version = node->version;
	sums->key = publication->key;
	sums->slot_bytes = server->epoch.slot_bytes;
	sums->slot_types = node->part ? node->part_types : node->slot_types;
	sums->nodes = server->epoch.ranks;
	sums->v = node->hash && node->nhashes ? calloc(node->nhashes, sizeof(*sums->v)) : NULL;
	if (sums->v) {
		memcpy(sums->v, node->hashes, node->nhashes * sizeof(*sums->v));
		sums->n = node->nhashes;
	}
	sums->next = node->sums;
	node->sums = sums;
}

void sums_commit(struct server *server)
{
	struct node *node = &server->node;
	struct model *model = model_find(server, node->publication->model, false);

	if (model && node->sums) {
		sums_free(model->sums);
		model->sums = node->sums;
		node->sums = NULL;
	}
}
