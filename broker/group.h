/*
 * A group: the workers of one node that hold one part of one replica, and what
 * an update does to them. A pure state machine: an event goes in, actions come
 * out; no system call, no clock, no memory but the struct. The broker carries
 * out the actions (broker/node.c), tests and fuzzers drive it directly.
 */
#ifndef BROKER_GROUP_H
#define BROKER_GROUP_H

#include "base/limits.h"
#include "strew/types.h"
#include <stdbool.h>
#include <stdint.h>

/* Where the group stands in the update under way. */
enum group_phase {
	PHASE_IDLE,	  /* no update */
	PHASE_CHECKING,	  /* members are asked whether their memory is as registered */
	PHASE_HOLDING,	  /* direct, held: waiting for the gate before accept */
	PHASE_ACCEPTED,	  /* accept was said; nothing is written */
	PHASE_MOVING,	  /* buckets arrive; direct: live memory changes */
	PHASE_GATING,	  /* staged, held: all received, waiting for the gate before prepared */
	PHASE_PREPARED,	  /* prepared was said: only the lead's decision ends this */
	PHASE_COMMITTING, /* staged: shadow → live is running; pulled: its members copy from twins
			   */
	PHASE_OUT,	  /* sits this update out; waits to hear whether others committed */
	PHASE_COUNT,
};

enum group_event_type {
	GE_JOIN,    /* member registered; version: what its memory holds; stale: not the last one;
		       update: if only for that one, of which it has nothing and no decision is known
		     */
	GE_LEAVE,   /* member withdrew */
	GE_LOSE,    /* member died or broke the protocol */
	GE_READY,   /* member holds the gate (its stream was seen done) */
	GE_RESUME,  /* member asks for its memory back */
	GE_BEGIN,   /* update, version */
	GE_CHECKED, /* member: all is as registered */
	GE_REFUSE,  /* text: a member's check failed, or no plan could be made */
	GE_GO,
	GE_SKIP,   /* the lead goes on without this group's replica */
	GE_MOVED,  /* everything was received (staged) or written (direct) */
	GE_FAILED, /* text, touched: moving or the commit's copies failed or were late */
	GE_LATE,   /* text: the gate's deadline passed */
	GE_COMMIT,
	GE_COPIED,  /* staged: shadow → live is done */
	GE_PULLED,  /* member: twin → memory is done */
	GE_ABORT,   /* text, touched: given up by the lead before its commit */
	GE_DOUBT,   /* the lead is gone after prepared; gate lets go of staged groups */
	GE_MISSED,  /* version was committed; a group that holds less has missed it */
	GE_SETTLED, /* outcome: how the update that it is in doubt about, to version, has ended */
	GE_COUNT,
};

struct group_event {
	enum group_event_type type;
	uint32_t member;
	uint64_t update, version;
	bool touched;		    /* live memory may have been written */
	bool stale;		    /* others may have committed a later version */
	bool pulls;		    /* join: the member has twins, and copies out of them itself */
	bool catching;		    /* begin: what others have committed already, from a sibling */
	enum strew_outcome outcome; /* settled: COMMITTED, ABORTED, or SAT_OUT: others committed */
	const char *text;
};

enum group_action_type {
	GA_SEND_CHECK, /* to member */
	GA_SEND_HOLD,  /* to member */
	GA_SEND_APPLY, /* to member: answered by GE_PULLED or GE_FAILED */
	GA_SEND_DONE,  /* to member: outcome, text; state and version are the group's */
	GA_GRANT,      /* member's resume */
	GA_DENY,       /* member's resume: the group is DIRTY */
	GA_ACCEPT,     /* outcome NONE: takes part; else SAT_OUT with the text */
	GA_PREPARED,   /* outcome NONE: prepared; else it is out */
	GA_COPY,       /* run the commit's copy, answer with GE_COPIED or GE_FAILED */
	GA_APPLIED,    /* outcome: how it ended */
};

struct group_action {
	enum group_action_type type;
	uint32_t member;
	enum strew_outcome outcome;
};

#define GROUP_ACTIONS (3 * LIMIT_MEMBERS + 4)

struct group_actions {
	struct group_action v[GROUP_ACTIONS];
	unsigned n;
};

/* A member's version when its memory was written in part. */
#define GROUP_VERSION_MIXED UINT64_MAX

struct group_member {
	bool present;
	bool checked;
	bool ready;  /* the gate is held by this member */
	bool asking; /* its resume waits for an answer */
	bool stale;  /* it came with less than others may have committed */
	bool pulls;  /* it has twins … */
	bool pulled; /* … and has copied out of them in this commit */
	uint64_t version;
	uint64_t doubt; /* stale, but only if that update was committed; 0: not so */
};

/* The last update, if its lead was gone before its decision was heard. */
struct group_doubt {
	uint64_t update; /* 0: there is no doubt */
	bool prepared;	 /* a commit would be this group's too: all of its bytes are here */
	bool current;	 /* an abort makes the group CURRENT at the version that it holds */
};

struct group {
	char model[LIMIT_MODEL_BYTES];
	uint32_t replica, part, nmembers;
	enum strew_gate gate;
	enum strew_apply apply;
	enum strew_group_state state; /* as others see it: group_state() */
	enum group_phase phase;
	uint64_t version; /* committed */
	uint64_t update, update_version;
	bool copied; /* in this commit: shadow → live, where there is a shadow */
	struct group_doubt doubt;
	bool settling; /* it carries out a commit of which it was in doubt, apart from any update */
	bool catching; /* what is under way, or was last, is what it has missed, from a sibling */
	char text[LIMIT_TEXT_BYTES]; /* why it is out, or DIRTY */
	struct group_member members[LIMIT_MEMBERS];
	uint32_t npresent;
};

void group_init(struct group *group, const char *model, uint32_t replica, uint32_t part,
	uint32_t nmembers, enum strew_gate gate, enum strew_apply apply);

/* One event; events that mean nothing in the phase are ignored (the table in group.c). */
void group_step(
	struct group *group, const struct group_event *event, struct group_actions *ret_actions);

/* Live memory is, or may have been, written in what is under way. */
bool group_writes(const struct group *group);

/* PENDING while an update is under way whose end can change its state, else its state. */
enum strew_group_state group_state(const struct group *group);

/* As one member is told it, who keeps it: of a group that does not stand, what its own memory is.
 */
enum strew_group_state group_member_state(const struct group *group, uint32_t member);
/* … and which version that is: members differ until a whole update. */
uint64_t group_member_version(const struct group *group, uint32_t member);

/* Can it take part in an update that begins now? Else why not, into text. */
bool group_stands(const struct group *group, char text[LIMIT_TEXT_BYTES]);

#endif
