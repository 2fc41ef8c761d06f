/*
 * What a partial version leaves out. A publish with STREW_PUBLISH_PARTIAL whose manifest lacks
 * tensors that a group takes makes, as a subset does, a version out of what the group's memory
 * holds beside them. That is right where
 *  - the group is CURRENT;
 *  - its memory is as its engine has loaded it: nothing was written there that is not brought now;
 *  - all that it has missed, or that was written in part, came with this very manifest; or
 *  - the manifest has every tensor that the group takes, so that it is whole for it.
 * Another group sits out, or it would be CURRENT over a mixture.
 *
 * The lead knows which versions have come with the same manifest, and says in begin behind which
 * one that holds (`base`: the version of all other tensors). A node knows with which manifest it
 * wrote a group last. Manifests are told apart by their hash, a subset's by that of the whole.
 */
#include "base/util.h"
#include "broker/catchup.h"
#include "plan/plan.h"
#include <stdio.h>

/* Behind it all versions, as far as this lead has seen them, came with what is begun. */
static uint64_t base_of(const struct brought *brought, uint64_t committed)
{
	return brought->hash == brought->begun && brought->upto == committed ? brought->base
									     : committed;
}

uint64_t brought_begin(struct model *model)
{
	model->brought.begun = model->publication->hash;
	return base_of(&model->brought, model->committed);
}

void brought_commit(struct model *model, uint64_t version)
{
	struct brought *brought = &model->brought;

	brought->base = base_of(brought, model->committed);
	brought->hash = brought->begun;
	brought->upto = version;
}

void brought_go(struct server *server, struct team *team)
{
	const struct node *node = &server->node;
	const struct model *model = model_find(server, team->group.model, false);

	if (model && model->publication) {
		team->written = (struct written){.hash = model->publication->hash,
			.version = node->version,
			.committed = model->committed};
	}
}

/* But for what comes with that manifest, is the member's memory that of the last version? */
static bool member_fits(const struct team *team, uint32_t member, uint64_t hash, uint64_t base)
{
	uint64_t version = team->group.members[member].version;

	if (version == GROUP_VERSION_MIXED) {
		return team->written.hash == hash && team->written.committed >= base;
	}
	/* A worker that does not know which version it has missed holds none that could count. */
	return version >= base && (version || catch_member_is_fresh(team, member));
}

static bool group_fits(
	const struct team *team, const struct model *model, uint64_t hash, uint64_t base)
{
	/* Perhaps committed, and by what manifest only who was prepared for it knows. */
	if (model->doubted > model->committed &&
		(team->written.hash != hash || team->written.version != model->doubted)) {
		return false;
	}
	for (uint32_t i = 0; i < team->group.nmembers; i++) {
		if (!member_fits(team, i, hash, base)) {
			return false;
		}
	}
	return true;
}

bool brought_enough(struct server *server, const struct team *team, char text[LIMIT_TEXT_BYTES])
{
	const struct node *node = &server->node;
	const struct group *group = &team->group;
	const struct model *model = model_find(server, group->model, false);
	const struct manifest *manifest = &node->publication->manifest;
	struct error err;
	int rc = 0;

	if (!(node->flags & STREW_PUBLISH_PARTIAL) || node->subset ||
		group->state == STREW_GROUP_CURRENT || catch_is_fresh(team) ||
		group_fits(team, model, node->publication->hash, node->base)) {
		return true;
	}
	error_clear(&err);
	for (uint32_t i = 0; i < group->nmembers && rc == 0; i++) {
		rc = plan_match(manifest, &team->clients[i]->session.worker->layout, false, &err);
	}
	if (rc) {
		snprintf(text, LIMIT_TEXT_BYTES,
			"it %s, which a partial version does not heal: publish all of its tensors, "
			"or start its engine anew (%.100s)",
			group->state == STREW_GROUP_DIRTY ? "is DIRTY"
							  : "has missed other tensors' values",
			err.text);
	}
	return rc == 0;
}
