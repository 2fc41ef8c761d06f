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

void update_merge_answer(struct update *update, uint32_t node, const struct msg_groups *answer)
{
	for (size_t i = 0; i < answer->ngroups; i++) {
		const struct group_outcome *said = &answer->groups[i];
		struct group_outcome *group = find_group(update, node, said->replica, said->part);

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
	}
}

/* The replicas all of whose groups are still undecided go on. */
static void choose_replicas(struct update *update)
{
	update->nreplicas = 0;
	for (size_t i = 0; i < update->ngroups; i++) {
		uint32_t replica = update->groups[i].replica;
		bool known = false, whole = true;

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
	/* Siblings of a refusing group sit out with it, and say because of whom. */
	for (size_t i = 0; i < update->ngroups; i++) {
		struct group_outcome *group = &update->groups[i];
		bool on = false;

		for (size_t k = 0; k < update->nreplicas; k++) {
			on = on || update->replicas[k] == group->replica;
		}
		if (!on && group->outcome == STREW_OUTCOME_NONE) {
			group->outcome = STREW_OUTCOME_SAT_OUT;
			snprintf(group->text, sizeof(group->text),
				"another group of replica %u cannot take part", group->replica);
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
