/*
 * An update as its lead sees it: from the first rank's publish to the report.
 * Pure: calls are the events, the returned set of actions says what the lead must
 * do now, and the time is handed in. broker/lead.c carries the actions out.
 */
#ifndef BROKER_UPDATE_H
#define BROKER_UPDATE_H

#include "base/error.h"
#include "ipc/messages.h"
#include "plan/slot_types.h"
#include <stdbool.h>

enum update_state {
	UPDATE_IDLE,
	UPDATE_RANKS,  /* some ranks have published; or their streams are not done */
	UPDATE_QUEUED, /* every rank's stream is done; begin is due as soon as the epoch is free */
	UPDATE_ACCEPTING,  /* begin is out */
	UPDATE_MOVING,	   /* go is out */
	UPDATE_PUTTING,	   /* in parts: one has moved; the ranks' next put is due */
	UPDATE_COMMITTING, /* commit is out: irrevocable */
	UPDATE_ABORTING,   /* abort is out: waits for every node to be quiet */
	UPDATE_STATES,
};

/* What the lead must do, as a set. */
enum update_action {
	UPDATE_DO_BEGIN = 1,	/* send begin to every node */
	UPDATE_DO_GO = 2,	/* send go, with the replicas that go on */
	UPDATE_DO_COMMIT = 4,	/* send commit, with the replicas that are committed */
	UPDATE_DO_ABORT = 8,	/* send abort */
	UPDATE_DO_RELEASE = 16, /* tell the lead's own ranks that their memory is theirs again */
	UPDATE_DO_REPORT = 32,	/* report to every rank; then the state is IDLE */
};

/* A part of a replica that was there at the last commit, and whose broker was lost since. */
struct group_awaited {
	uint32_t replica, part;
	uint32_t groups; /* that have it, if all are back */
};

struct update {
	enum update_state state;
	uint64_t serial, version;
	uint32_t flags;
	uint32_t subset; /* 0: everything … */
	uint64_t base;	 /* … else on this version */
	uint64_t deadline_ns;
	bool published[LIMIT_RANKS], done[LIMIT_RANKS]; /* in parts: of the put that is due */
	/* in parts */
	bool parts;
	uint32_t part;	/* the subset that moves, or moved last; 0: all are there */
	uint64_t put;	/* bit n - 1: subset n has been put */
	bool next_said; /* a rank has said what comes next … */
	uint32_t next;	/* … this subset; 0: nothing, all are there */
	uint32_t nranks;
	bool released; /* the lead's own ranks, of `part`; another broker tells its own */
	/* nodes */
	uint32_t nnodes;
	bool answered[LIMIT_BROKERS];
	bool lost[LIMIT_BROKERS];
	/* outcomes so far, by group */
	struct group_outcome groups[LIMIT_REPORT_GROUPS];
	size_t ngroups;
	uint32_t replicas[LIMIT_REPORT_GROUPS]; /* those that go on */
	size_t nreplicas;
	struct group_awaited awaited[LIMIT_REPORT_GROUPS]; /* the lead fills it in at begin */
	size_t nawaited;
	uint64_t unwanted;	      /* the least of what the nodes said */
	struct slot_types slot_types; /* what all that have accepted want; settled with go */
	bool slot_types_said;
	bool hash; /* some node wants what it receives compared with what was sent */
	struct stages stages;
	/* times */
	uint64_t published_ns, begun_ns, accepted_ns, moved_ns, ended_ns;
	enum strew_outcome outcome;
	char text[LIMIT_TEXT_BYTES];
};

void update_init(struct update *update, uint32_t nranks);

/*
 * A rank publishes. The first one sets version, subset, flags and deadline. Refused, with a
 * sentence and nothing changed: -ESTALE (not above `committed`, or a subset not on it), -EINVAL
 * (another version than the first rank's, or the like), -EBUSY (the last update has not ended, or
 * this rank has published already).
 */
int update_publish(struct update *update, uint32_t rank, const struct msg_publish *publish,
	uint64_t committed, uint64_t now, struct error *err);

/* The rank's stream was seen done. True when all are: the state is then QUEUED. */
bool update_stream_done(struct update *update, uint32_t rank, uint64_t now);

/*
 * A rank says the next subset of an update in parts, or 0: it has put all. From the first part's go
 * on. Refused, with a sentence and nothing changed: -ESTALE (that version is not under way in
 * parts), -EINVAL (another subset than the first rank's, or one that has been put), -EBUSY (too
 * early, said already).
 */
int update_put(
	struct update *update, uint32_t rank, uint64_t version, uint32_t subset, struct error *err);

/*
 * May a rank give up that version, which is on its way in parts? -ESTALE: it has ended, or all
 * ranks have put everything. update_cancel() aborts it if so; `where` as of update_rank_lost().
 */
int update_check_cancel(const struct update *update, uint64_t version, struct error *err);
unsigned update_cancel(struct update *update, uint32_t rank, uint64_t version, const char *where,
	const char *why, uint64_t now);

/* The stream of what the rank has put was seen done. */
unsigned update_put_done(struct update *update, uint32_t rank);

/* A broker that was lost is not back. With scope=all an update that is QUEUED ends; others do not
 * ask for it. */
unsigned update_missed(struct update *update, const char *name, uint64_t now);

/* One that is QUEUED can never begin. */
unsigned update_give_up(struct update *update, const char *why, uint64_t now);

/* What is known to be committed now may have been learnt since the publish: an update that is not
 * above it ends, as long as it is not decided. */
unsigned update_overtaken(struct update *update, uint64_t committed, uint64_t now);

/* Begins with nnodes nodes (0 is the lead's own). Only in QUEUED. */
unsigned update_begin(struct update *update, uint64_t serial, uint32_t nnodes, uint64_t now);

/* Is that part awaited, and not among what the nodes have said? Its replica sits out. */
bool update_awaits(const struct update *update, uint32_t replica, uint32_t part);

/* Answers of nodes. An answer that is not due is ignored (late, doubled, of an old update). */
unsigned update_accept(
	struct update *update, uint32_t node, const struct msg_groups *answer, uint64_t now);
unsigned update_moved(
	struct update *update, uint32_t node, const struct msg_groups *answer, uint64_t now);
unsigned update_prepared(
	struct update *update, uint32_t node, const struct msg_groups *answer, uint64_t now);
unsigned update_applied(
	struct update *update, uint32_t node, const struct msg_groups *answer, uint64_t now);

/* No gather or copy of the lead's node reads its ranks' memory any more. */
unsigned update_released(struct update *update);

unsigned update_node_lost(struct update *update, uint32_t node, const char *name, uint64_t now);
/* `released`: its broker reads its memory no more. `where`: " at node 1, broker x," or "". */
unsigned update_rank_lost(
	struct update *update, uint32_t rank, bool released, const char *where, uint64_t now);
unsigned update_tick(struct update *update, uint64_t now);

/* When update_tick() is due: a deadline, or UINT64_MAX in IDLE only. */
uint64_t update_due(const struct update *update);

const char *update_state_name(enum update_state state);

#endif
