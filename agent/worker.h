/*
 * The worker's face from inside. worker.c has the public functions, worker_register.c sends
 * the layout and the memory, worker_dispatch.c hears what the broker says between and in updates.
 */
#ifndef AGENT_WORKER_H
#define AGENT_WORKER_H

#include "agent/session.h"
#include "gpu/export.h"
#include "plan/layout.h"
#include <strew/agent.h>

enum worker_stage {
	WORKER_DECLARING,
	WORKER_REGISTERING, /* all was sent; the answer is awaited */
	WORKER_REGISTERED,
	WORKER_WITHDRAWING, /* the answer is awaited */
	WORKER_OVER,	    /* withdrawn, or refused */
};

/* Events that wait for the user. More come only if he does not look: then the oldest go. */
#define WORKER_EVENTS 32

struct strew_agent {
	struct agent_session session;
	struct msg_register reg; /* who we are; the last two are filled in when registering */
	enum worker_stage stage;
	bool accepted; /* registered at some broker, and not withdrawn since */
	struct layout layout;
	const void **data; /* of each parameter; NULL where there are no bytes */
	size_t cap_data;
	struct export_set *set;
	int (*check)(void *data, char *ret_text, size_t text_bytes); /* the user's, or NULL */
	void *check_data;
	struct export_page *words;
	struct agent_request request; /* register, then withdraw */
	struct agent_request resume;
	/* the group, as last heard */
	enum strew_group_state state;
	uint64_t version;
	bool done;	 /* `state` is that of an update's end, not the one it registered with */
	bool pending;	 /* an update is under way: check or hold was seen, done was not */
	uint64_t update; /* that one, else the last one whose done was seen */
	uint32_t holds;	 /* not pending: enum memory_holds, of `update` */
	bool ready;	 /* ready was said, and resume was not granted */
	uint64_t ready_count; /* what the page's ready word gets to */
	/* events */
	struct strew_event events[WORKER_EVENTS];
	size_t first_event, nevents;
	bool lost_told;
};

/* agent_handler of workers. */
int worker_handle(void *data, struct message *message, struct error *err);

/* Takes the oldest event, or LOST once when the broker is gone; false if there is none. */
bool worker_next_event(struct strew_agent *agent, struct strew_event *ret_event);

/* What is known of the group's memory now, both of one moment: see LOST in strew/agent.h. */
enum strew_group_state worker_state(const struct strew_agent *agent, uint64_t *ret_version);
/* The same for a registration that follows: STALE if others may have committed without it, and what
 * was passed on to this one if it has heard nothing itself of its memory. */
void worker_left(const struct strew_agent *agent, uint32_t *ret_state, uint64_t *ret_version);
/* The session is open again, and the broker before has ended: completes that in agent->reg by what
 * its page says of the update that was under way. `before`: agent->reg before worker_left(). */
void worker_found(struct strew_agent *agent, const struct msg_register *before);

/* Sends everything and awaits the answer; called again after -ETIMEDOUT it only awaits. */
int worker_register(struct strew_agent *agent, uint64_t deadline, struct error *err);

/*
 * Once the broker is gone: registers the same at the broker that serves the socket now, and says
 * what the memory holds. On failure it may be called again.
 */
int worker_reconnect(struct strew_agent *agent, uint64_t deadline, struct error *err);

/*
 * Until nothing writes to the memory any more: waits for the broker's answer, or for its end if
 * it is gone. Nothing to do if nothing was registered.
 */
int worker_withdraw(struct strew_agent *agent, uint64_t deadline, struct error *err);

#endif
