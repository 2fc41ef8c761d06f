/*
 * The broker's side of one connection of the Unix socket, as a pure state
 * machine: a message goes in, a verdict comes out that says what the broker has
 * to do about it. Collects what a worker registers or a trainer rank declares.
 */
#ifndef BROKER_SESSION_H
#define BROKER_SESSION_H

#include "broker/memory.h"
#include "ipc/blob.h"

enum session_state {
	SESSION_HELLO,	 /* only hello is allowed */
	SESSION_OPEN,	 /* register, trainer or status may come */
	SESSION_FILLING, /* allocations and parts come */
	SESSION_SEALED,	 /* all there; the mover maps it */
	SESSION_LIVE,	 /* registered or declared */
	SESSION_LEAVING, /* withdraw was asked; the mover unmaps */
	SESSION_STATES,
};

enum session_verdict {
	VERDICT_NONE,
	VERDICT_WELCOME, /* answer hello */
	VERDICT_WORKER,	 /* session->worker is whole: map it, then answer seal_serial */
	VERDICT_HOLDER,	 /* session->holder is whole */
	VERDICT_WITHDRAW,
	VERDICT_CHECKED,
	VERDICT_PULLED,
	VERDICT_READY,
	VERDICT_RESUME,
	VERDICT_PUBLISH,
	VERDICT_PUT,
	VERDICT_CANCEL,
	VERDICT_SUBSET,
	VERDICT_STATUS,
	VERDICT_PROGRESS,
	VERDICT_EVENTS,
	VERDICT_EXPLAIN,
	VERDICT_LAYOUT,
	VERDICT_READ,
};

struct session {
	enum session_state state;
	struct msg_hello hello;
	struct msg_register reg;    /* a worker's */
	struct msg_trainer trainer; /* a trainer's */
	struct worker *worker;	    /* from register on; the broker frees it after unmapping */
	struct holder *holder;
	/* filling */
	uint32_t allocation, chunk; /* the next ones */
	uint32_t chunks;	    /* so far, against LIMIT_CHUNKS */
	struct blob blob;
	struct error failed; /* what was wrong on the way; said in answer to seal */
	uint64_t seal_serial;
};

/*
 * Takes one message; fds that it keeps are taken out of message->fds. Returns 0 and the
 * verdict; -EPROTO: the peer broke the protocol, drop it; another error: the request is refused.
 * What is wrong with an allocation or a part is said in answer to the seal, since the peer
 * sends them all without waiting; the registration is then forgotten.
 */
int session_receive(struct session *session, struct message *message, const char *backend,
	enum session_verdict *ret_verdict, struct error *err);

/* A registration that is being filled is refused: what has come of it is given back, what still
 * comes is passed over, and the seal is answered with the error. */
void session_refuse(struct session *session, const struct error *err);

/* Back to OPEN. worker and holder must have been unmapped if they ever were mapped. */
void session_reset(struct session *session);
void session_finish(struct session *session);

const char *session_state_name(enum session_state state);

#endif
