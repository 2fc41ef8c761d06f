/*
 * Which groups were there when a version was committed last, so that half a replica is not taken
 * for a whole one: its other half may be at a broker that was lost, or that is back before its
 * workers are. Such a group is awaited as scope=all awaits its broker (missed.c): for
 * LIMIT_MISSED_MS since that was lost. Who was withdrawn, or whose broker has left in order, is
 * not, nor who has gone from a broker that is there: that is for its engine to know.
 *
 * The lead's memory alone has this. One that was started again takes for a replica what it meets.
 */
#include "base/clock.h"
#include "base/util.h"
#include "broker/server.h"
#include <stdlib.h>

static bool is_there(const struct server *server, uint64_t broker)
{
	if (broker == server->broker_id) {
		return true;
	}
	for (const struct member *member = server->members; member; member = member->next) {
		if (member->state == MEMBER_IN_EPOCH && member->join.broker_id == broker) {
			return true;
		}
	}
	return false;
}

static bool is_awaited(const struct server *server, const struct seen_group *group, uint64_t now)
{
	return now < group->until && !is_there(server, group->broker);
}

void seen_await(const struct server *server, struct model *model, uint64_t now)
{
	const struct seen *seen = &model->seen;
	struct update *update = &model->update;

	update->nawaited = 0;
	for (size_t i = 0; i < seen->n; i++) {
		const struct seen_group *group = &seen->v[i];
		struct group_awaited *awaited = &update->awaited[update->nawaited];

		if (!is_awaited(server, group, now)) {
			continue;
		}
		*awaited = (struct group_awaited){group->replica, group->part, 0};
		/* Several nodes may have workers of one part. */
		for (size_t k = 0; k < seen->n; k++) {
			awaited->groups += seen->v[k].replica == group->replica &&
					   seen->v[k].part == group->part;
		}
		update->nawaited++;
	}
}

/* Of one that was lost while it was being decided; else 0. */
static uint64_t until_of(const struct server *server, const struct seen *seen, uint64_t broker)
{
	if (is_there(server, broker)) {
		return 0;
	}
	for (size_t i = 0; i < seen->n; i++) {
		if (seen->v[i].broker == broker && seen->v[i].until) {
			return seen->v[i].until;
		}
	}
	return deadline_in_ms(LIMIT_MISSED_MS);
}

/* Those of the update, and those that are awaited still. Without memory nobody is. */
void seen_commit(const struct server *server, struct model *model)
{
	const struct update *update = &model->update;
	struct seen *old = &model->seen, seen = {0};
	uint64_t now = clock_ns();

	seen.v = calloc(LIMIT_REPORT_GROUPS, sizeof(*seen.v));
	for (size_t i = 0; seen.v && i < update->ngroups; i++) {
		const struct group_outcome *group = &update->groups[i];
		uint64_t broker =
			group->node ? server->epoch.brokers[group->node] : server->broker_id;

		seen.v[seen.n++] = (struct seen_group){
			group->replica, group->part, broker, until_of(server, old, broker)};
	}
	for (size_t i = 0; seen.v && i < old->n && seen.n < LIMIT_REPORT_GROUPS; i++) {
		const struct seen_group *group = &old->v[i];

		if (is_awaited(server, group, now) &&
			update_awaits(update, group->replica, group->part)) {
			seen.v[seen.n++] = *group;
		}
	}
	free(old->v);
	*old = seen;
}

void seen_lost(const struct member *member)
{
	for (struct model *model = member->server->models; model; model = model->next) {
		struct seen *seen = &model->seen;
		size_t kept = 0;

		for (size_t i = 0; i < seen->n; i++) {
			struct seen_group group = seen->v[i];

			if (group.broker == member->join.broker_id) {
				group.until = deadline_in_ms(LIMIT_MISSED_MS);
			}
			if (group.broker != member->join.broker_id || !member->left) {
				seen->v[kept++] = group;
			}
		}
		seen->n = kept;
	}
}

void seen_free(struct seen *seen)
{
	free(seen->v);
	*seen = (struct seen){0};
}
