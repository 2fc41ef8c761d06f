/* What join.c and join_epoch.c share. */
#ifndef BROKER_JOIN_INTERNAL_H
#define BROKER_JOIN_INTERNAL_H

#include "broker/server.h"

/* Begins our part in the epoch that the lead names. -EPROTO: it does not name us as it must. */
int join_take_epoch(struct server *server, const struct msg_epoch *said, struct error *err);
/* The epoch that was named last is none any more. */
void join_forget_epoch(struct lead_link *link);

#endif
