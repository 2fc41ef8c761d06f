/* What nodes say of their groups, and which replicas go on after that. */
#include "broker/update_internal.h"
#include "strew/trainer.h"
#include <stdio.h>

static struct group_outcome *find_group(
	struct update *update, uint32_t node, uint32_t replica, uint32_t part)
{
	for (size_t i = 0; i < update->ngroups; i++) {
		struct group_outcome *group = &update->groups[i];

		if (group->node == node && group->replica == replica && group->part == part) {
			return group;
		}
	}
	return NULL;
}

static bool is_back(const struct update *update, const struct group_awaited *awaited)
{
	uint32_t n = 0;

	for (size_t i = 0; i < update->ngroups; i++) {
		n += update->groups[i].replica == awaited->replica &&
		     update->groups[i].part == awaited->part;
	}
	return n >= awaited->groups;
}

/* The first part of the replica that is not back; NULL: all are. */
static const struct group_awaited *find_awaited(const struct update *update, uint32_t replica)
{
	for (size_t i = 0; i < update->nawaited; i++) {
		if (update->awaited[i].replica == replica &&
			!is_back(update, &update->awaited[i])) {
			return &update->awaited[i];
		}
	}
	return NULL;
}

static void say_awaited(const struct group_awaited *awaited, struct group_outcome *group)
{
	snprintf(group->text, sizeof(group->text),
		"part %u of replica %u is not back since its broker was lost", awaited->part,
		awaited->replica);
}

void update_merge_answer(struct update *update, uint32_t node, const struct msg_groups *answer)
{
	for (size_t i = 0; i < answer->ngroups; i++) {
		const struct group_outcome *said = &answer->groups[i];
		struct group_outcome *group = find_group(update, node, said->replica, said->part);
		const struct group_awaited *awaited;

		if (!group) {
			/* Only accept adds groups; what registers later waits for the next begin.
			 */
			if (update->state != UPDATE_ACCEPTING) {
				continue;
			}
			if (update->ngroups == LIMIT_REPORT_GROUPS) {
				snprintf(update->text, sizeof(update->text),
					"more than the %u groups that one update may have: "
					"replica %u part %u on node %u is one too many",
					LIMIT_REPORT_GROUPS, said->replica, said->part, node);
				return;
			}
			group = &update->groups[update->ngroups++];
		}
		*group = *said;
		group->node = node;
		awaited = find_awaited(update, said->replica);
		if (awaited && update->state == UPDATE_COMMITTING &&
			group->outcome == STREW_OUTCOME_SAT_OUT) {
			/* Its broker does not know why. */
			say_awaited(awaited, group);
		}
	}
}

bool update_awaits(const struct update *update, uint32_t replica, uint32_t part)
{
	for (size_t i = 0; i < update->nawaited; i++) {
		const struct group_awaited *awaited = &update->awaited[i];

		if (awaited->replica == replica && awaited->part == part) {
			return !is_back(update, awaited);
		}
	}
	return false;
}

/* Siblings of a refusing group, or of one that is awaited, sit out with it, and say because of
 * whom. */
static void sit_out(const struct update *update, struct group_outcome *group)
{
	const struct group_awaited *awaited = find_awaited(update, group->replica);

	group->outcome = STREW_OUTCOME_SAT_OUT;
	if (awaited) {
		say_awaited(awaited, group);
	} else {
		snprintf(group->text, sizeof(group->text),
			"another group of replica %u cannot take part", group->replica);
	}
}

/* The replicas all of whose groups are there, and still undecided, go on. */
static void choose_replicas(struct update *update)
{
	update->nreplicas = 0;
	for (size_t i = 0; i < update->ngroups; i++) {
		uint32_t replica = update->groups[i].replica;
		bool known = false, whole = !find_awaited(update, replica);

		for (size_t k = 0; k < update->nreplicas; k++) {
			known = known || update->replicas[k] == replica;
		}
		for (size_t k = 0; k < update->ngroups; k++) {
			whole = whole && (update->groups[k].replica != replica ||
						 update->groups[k].outcome == STREW_OUTCOME_NONE);
		}
		if (!known && whole) {
			update->replicas[update->nreplicas++] = replica;
		}
	}
	for (size_t i = 0; i < update->ngroups; i++) {
		struct group_outcome *group = &update->groups[i];
		bool on = false;

		for (size_t k = 0; k < update->nreplicas; k++) {
			on = on || update->replicas[k] == group->replica;
		}
		if (!on && group->outcome == STREW_OUTCOME_NONE) {
			sit_out(update, group);
		}
	}
}

const char *update_judge(struct update *update, char text[LIMIT_TEXT_BYTES])
{
	size_t undecided = 0;

	choose_replicas(update);
	for (size_t i = 0; i < update->ngroups; i++) {
		const struct group_outcome *group = &update->groups[i];

		undecided += group->outcome == STREW_OUTCOME_NONE;
		if ((update->flags & STREW_PUBLISH_SCOPE_ALL) &&
			group->outcome != STREW_OUTCOME_NONE) {
			snprintf(text, LIMIT_TEXT_BYTES,
				"scope=all, and replica %u part %u on node %u: %.120s",
				group->replica, group->part, group->node, group->text);
			return text;
		}
	}
	if (update->ngroups == 0) {
		return "no worker of this model is registered";
	}
	if (undecided == 0) {
		snprintf(text, LIMIT_TEXT_BYTES, "no replica can take part; replica %u: %.150s",
			update->groups[0].replica, update->groups[0].text);
		return text;
	}
	return NULL;
}
