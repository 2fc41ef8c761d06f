/*
 * What groups should hold: what the last commit decided. A commit whose lead is lost before anybody
 * has heard of it, or holds any of it, was none.
 */
#include "tests/explore/world.h"
#include <string.h>

void note_begin(uint8_t serial)
{
	now->content_of[serial % SERIALS] = now->round;
	now->halves_of[serial % SERIALS] = round_halves(now->round_kind);
	/* What is there of a decision before this one stays. */
	if (now->decided_serial != serial) {
		now->decided_serial = 0;
	}
}

static void keep_undo(void)
{
	now->undo = (struct w_decision){.version = now->decided_version};
	memcpy(now->undo.content, now->decided, sizeof(now->decided));
	memcpy(now->undo.before, now->before, sizeof(now->before));
	for (unsigned n = 0; n < config.nodes; n++) {
		now->undo.excused |= now->node[n].excused ? (uint8_t)(1u << n) : 0;
	}
}

void note_decision(uint8_t committed_before, const struct w_update *before, uint8_t version)
{
	uint8_t halves = now->halves_of[before->serial % SERIALS];

	if (!now->node[0].alive || live[0].model.committed == committed_before ||
		(before->state != UPDATE_MOVING && before->state != UPDATE_PUTTING)) {
		return;
	}
	keep_undo();
	for (unsigned h = 0; h < HALVES; h++) {
		/* What a subset does not bring is as its trainer says: of the base. */
		now->decided[h] = halves >> h & 1 ? now->content_of[before->serial % SERIALS]
				  : now->round_base == now->undo.version ? now->undo.content[h]
									 : now->undo.before[h];
	}
	memcpy(now->before, now->undo.content, sizeof(now->before));
	now->decided_version = version;
	now->decided_serial = before->serial;
	now->decided_lead = now->node[0].born;
	for (unsigned n = 0; n < config.nodes; n++) {
		now->node[n].excused =
			!now->node[n].alive || live[n].server.node.serial != before->serial;
	}
}

static bool knows_commit(const struct w_recall *recall, uint8_t serial)
{
	return recall->update == serial &&
	       (recall->how == RECALL_COMMITTED || recall->how == RECALL_SEEN);
}

/* In its memory, or as it has said to its broker. */
static bool has_commit(unsigned g, const struct w_worker *worker, uint8_t serial)
{
	bool staged = config.apply[g] == STREW_APPLY_STAGED;
	bool lives = worker->stage != W_DEAD;
	bool held = worker->holds == HOLDS_ALL || (staged && worker->holds == HOLDS_SOME);
	bool said = worker->said_holds == HOLDS_ALL || (staged && worker->said_holds == HOLDS_SOME);

	/* Whoever has caught up with it knows its version. */
	if ((lives && worker->holds == HOLDS_ALL &&
		    worker->heard_version == now->decided_version) ||
		(worker->session && worker->said_holds == HOLDS_ALL &&
			worker->said_version == now->decided_version)) {
		return true;
	}
	return (lives && worker->heard_update == serial && held) ||
	       (lives && staged && worker->written == serial) ||
	       (worker->session && worker->said_update == serial && said);
}

/* Has anybody who lives begun to carry it out, or heard of it, or is he about to? */
static bool commit_lives(uint8_t serial)
{
	for (unsigned i = 0; i < LETTERS; i++) {
		const struct w_letter *letter = &now->to_node[i];

		if (knows_commit(&now->to_lead[i].recall, serial)) {
			return true;
		}
		if ((letter->kind == LETTER_COMMIT && letter->update == serial) ||
			(letter->kind == LETTER_SETTLED && knows_commit(&letter->recall, serial))) {
			return true;
		}
	}
	for (unsigned n = 0; n < config.nodes; n++) {
		if (now->node[n].committed >= now->decided_version) {
			return true;
		}
	}
	for (unsigned g = 0; g < config.ngroups; g++) {
		for (unsigned m = 0; m < config.members[g]; m++) {
			if (has_commit(g, &now->worker[g][m], serial)) {
				return true;
			}
		}
	}
	return knows_commit(&now->node[0].recall, serial) ||
	       knows_commit(&now->node[1].recall, serial) ||
	       knows_commit(&now->member_recall, serial);
}

void forget_decision(void)
{
	bool lives = now->node[0].alive && now->node[0].born == now->decided_lead;

	if (!now->decided_serial || lives || commit_lives(now->decided_serial)) {
		return;
	}
	if (now->reported == now->content_of[now->decided_serial % SERIALS]) {
		return; /* the trainer was told: so it must be */
	}
	memcpy(now->decided, now->undo.content, sizeof(now->decided));
	memcpy(now->before, now->undo.before, sizeof(now->before));
	now->decided_version = now->undo.version;
	now->decided_serial = 0;
	for (unsigned n = 0; n < config.nodes; n++) {
		now->node[n].excused = now->undo.excused >> n & 1;
	}
}
