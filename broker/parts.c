/*
 * Updates in parts: what their ranks put, judged at the lead, and what a node moves for each put.
 * The update is of the whole manifest; each part is one of the model's subsets, and together they
 * are all tensors, each once.
 */
#include "base/util.h"
#include "broker/server.h"
#include "plan/subset.h"
#include <errno.h>
#include <string.h>

static bool was_put(const struct update *update, uint32_t subset)
{
	return update->put >> (subset - 1) & 1;
}

/* A tensor that is in a subset that was put, or is in none; of the chosen ones, or (NULL) of all.
 * NULL: there is none such. */
static const char *find_tensor(const struct model *model, const uint8_t *among, bool put_already)
{
	const struct manifest *whole = &model->publication->manifest;

	for (size_t i = 0; i < whole->ntensors; i++) {
		bool put = false;

		for (uint32_t n = 1; n <= model->nsubsets && !put; n++) {
			put = was_put(&model->update, n) &&
			      bits_has(model->subsets[n - 1]->tensors, i);
		}
		if (put == put_already && (!among || bits_has(among, i))) {
			return whole->tensors[i].name;
		}
	}
	return NULL;
}

static int check_tensors(const struct model *model, uint32_t subset, struct error *err)
{
	const uint8_t *tensors = subset ? model->subsets[subset - 1]->tensors : NULL;
	const char *name = find_tensor(model, tensors, subset != 0);

	if (subset && name) {
		return error_set(err, -EINVAL,
			"put: tensor %.128s of subset %u has been put already, with another one",
			name, subset);
	}
	if (name) {
		return error_set(
			err, -EINVAL, "put: tensor %.128s is in no part that was put", name);
	}
	return 0;
}

int lead_take_put(
	struct model *model, uint32_t rank, uint64_t version, uint32_t subset, struct error *err)
{
	struct update tried = model->update;
	int rc = update_put(&tried, rank, version, subset, err);

	if (rc) {
		return rc;
	}
	if (!model->publication || !model_publication(model, subset)) {
		return error_set(err, -ENOENT,
			"put: not every rank of the trainer has named subset %u", subset);
	}
	rc = check_tensors(model, subset, err);
	return rc ? rc : update_put(&model->update, rank, version, subset, err);
}

/* A lead names only what all brokers have; but a rank here may have gone since. */
int node_part_begin(struct server *server, uint32_t subset, struct error *err)
{
	struct node *node = &server->node;
	const struct model *model = model_find(server, node->publication->model, false);
	const uint8_t *tensors;
	size_t n = node->publication->manifest.ntensors;

	if (!model || model->publication != node->publication || !subset ||
		!model_publication(model, subset)) {
		return error_set(err, -ENOENT, "subset %u of model %.100s is not known here",
			subset, node->publication->model);
	}
	tensors = model->subsets[subset - 1]->tensors;
	slot_types_choose(&node->wanted, tensors, n, &node->part_wanted);
	slot_types_choose(&node->slot_types, tensors, n, &node->part_types);
	node->part = subset;
	node->moving = model->subsets[subset - 1]->publication;
	node->moving->references++;
	return 0;
}

void node_part_end(struct server *server)
{
	struct publication *publication = server->node.moving;

	server->node.part = 0;
	server->node.moving = NULL;
	if (publication && --publication->references == 0) {
		publication_retire(server, publication);
	}
}
