/*
 * Why each verdict is right. A lead commits when every broker of the epoch has said prepared, and
 * never takes that back; it aborts for good, or not at all.
 *
 *   Somebody has heard the commit, or holds what only a commit wrote: it was a commit.
 *   Somebody has heard the abort, or never said prepared: it was none, and will be none.
 *   All were prepared, none has heard more, and the lead's own node has not begun to commit: nobody
 *   has, and nobody will, as each of them has left the lead. Whatever the lead had decided, an
 *   abort is what has happened.
 *
 * A broker that was started again is silent here, under its old id, for ever.
 */
#include "broker/recovery.h"
#include <string.h>

bool recall_has(const struct recall *recall, uint32_t replica)
{
	for (size_t i = 0; i < recall->nreplicas; i++) {
		if (recall->replicas[i] == replica) {
			return true;
		}
	}
	return false;
}

void recall_add(struct recall *recall, uint32_t replica)
{
	if (!recall_has(recall, replica) && recall->nreplicas < LIMIT_REPORT_GROUPS) {
		recall->replicas[recall->nreplicas++] = replica;
	}
}

static bool took_part(const struct recall *asked, uint64_t broker)
{
	for (size_t i = 0; i < asked->nbrokers; i++) {
		if (asked->brokers[i] == broker) {
			return true;
		}
	}
	return false;
}

/* Is it about that update, by somebody who can know? */
static bool counts(const struct recall *asked, const struct recovery_word *word)
{
	const struct recall *recall = word->recall;

	return recall->update == asked->update &&
	       (!recall->version || recall->version == asked->version) &&
	       (recall->how == RECALL_SEEN || took_part(asked, word->broker));
}

static bool all_prepared(
	const struct recall *asked, const struct recovery_word *words, size_t nwords)
{
	for (size_t i = 1; i < asked->nbrokers; i++) {
		bool said = false;

		for (size_t k = 0; k < nwords; k++) {
			said = said ||
			       (words[k].broker == asked->brokers[i] && counts(asked, &words[k]) &&
				       words[k].recall->how == RECALL_PREPARED);
		}
		if (!said) {
			return false;
		}
	}
	return asked->nbrokers > 1;
}

/* Two that have heard the same commit have heard the same replicas. */
static bool same_commit(const struct recall *a, const struct recall *b)
{
	return a->nreplicas == b->nreplicas &&
	       memcmp(a->replicas, b->replicas, a->nreplicas * sizeof(a->replicas[0])) == 0;
}

bool recovery_judge(const struct recall *asked, const struct recovery_word *words, size_t nwords,
	bool untouched, struct recall *ret_verdict)
{
	const struct recall *committed = NULL;
	bool seen = false, aborted = false;

	memset(ret_verdict, 0, sizeof(*ret_verdict));
	ret_verdict->update = asked->update;
	ret_verdict->version = asked->version;
	for (size_t i = 0; i < nwords; i++) {
		const struct recall *recall = words[i].recall;

		if (!counts(asked, &words[i])) {
			continue;
		}
		if (recall->how == RECALL_COMMITTED) {
			if (committed && !same_commit(committed, recall)) {
				return false;
			}
			committed = recall;
		}
		aborted = aborted || recall->how == RECALL_ABORTED;
		seen = seen || recall->how == RECALL_SEEN;
		for (size_t k = 0; recall->how == RECALL_SEEN && k < recall->nreplicas; k++) {
			recall_add(ret_verdict, recall->replicas[k]);
		}
	}
	if ((committed || seen) && aborted) {
		return false; /* somebody is wrong */
	}
	if (committed) {
		for (size_t i = 0; i < ret_verdict->nreplicas; i++) {
			if (!recall_has(committed, ret_verdict->replicas[i])) {
				return false; /* the same */
			}
		}
		ret_verdict->how = RECALL_COMMITTED;
		ret_verdict->nreplicas = committed->nreplicas;
		memcpy(ret_verdict->replicas, committed->replicas, sizeof(committed->replicas));
		return true;
	}
	if (seen) {
		ret_verdict->how = RECALL_SEEN;
		for (size_t i = 0; i < asked->nreplicas; i++) {
			recall_add(ret_verdict, asked->replicas[i]);
		}
		return true;
	}
	ret_verdict->how = RECALL_ABORTED;
	return aborted || (untouched && all_prepared(asked, words, nwords));
}
