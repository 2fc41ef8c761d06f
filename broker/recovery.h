/*
 * How an update ended whose lead is gone before everybody heard its decision. Each broker
 * remembers how far it got in the last update of a model, and says so to the next lead, which
 * judges here what follows from all that was said. Pure. Whoever is wrong in a commit or an abort
 * mixes versions between nodes; that nothing follows is always right.
 */
#ifndef BROKER_RECOVERY_H
#define BROKER_RECOVERY_H

#include "ipc/messages.h"
#include <stdbool.h>

/* What is remembered of the last update of a model. */
struct recall {
	uint64_t update, version; /* the update's serial, 0: nothing; version 0: not known */
	enum recall_how how;
	/* Brokers of its epoch by number, the lead first. Not of what workers have told. */
	uint64_t brokers[LIMIT_BROKERS];
	size_t nbrokers;
	/* PREPARED: those of which all groups are here, so that a commit has them in any case.
	 * COMMITTED: those of the commit. SEEN: those of it that are known. */
	uint32_t replicas[LIMIT_REPORT_GROUPS];
	size_t nreplicas;
	struct group_name own[LIMIT_GROUPS]; /* the groups of the lead's node that may commit */
	size_t nown;
};

/* What a broker that is here remembers. */
struct recovery_word {
	uint64_t broker;
	const struct recall *recall;
};

/*
 * The end of the update of which `asked`, a broker of its epoch, knows only that it was prepared.
 * `untouched`: each group of the lead's node (asked->own) is here again, and each of its workers
 * says that nothing of the update is in its memory. True: the verdict's `how` is ABORTED,
 * COMMITTED or SEEN, with replicas as in a recall, and so it ended. False: it is not known.
 */
bool recovery_judge(const struct recall *asked, const struct recovery_word *words, size_t nwords,
	bool untouched, struct recall *ret_verdict);

bool recall_has(const struct recall *recall, uint32_t replica);
void recall_add(
	struct recall *recall, uint32_t replica); /* once; beyond the limit it is left out */

#endif
