/*
 * What epoch.c (states), door.c (connections) and blame.c (whose fault it was) share of the lead's
 * brokers.
 */
#ifndef BROKER_EPOCH_H
#define BROKER_EPOCH_H

#include "broker/server.h"

/* Longer than a joiner waits before its next try, so that who is dropped by mistake, or has lost
 * its connection alone, is back before an epoch is made without it. */
#define REGATHER_MS (10 * LIMIT_RETRY_MIN_MS)

/* epoch.c */
void epoch_gather(struct server *server, uint32_t at_least_ms);
void epoch_check_ready(struct server *server);
void epoch_try_submit(struct server *server); /* our own part, once all that it needs is there */
/* The making is as good as over: whoever is at fault has a moment to say so himself. */
void epoch_fails_soon(struct server *server);

/* door.c */
void member_drop(struct member *member, const char *why);
void member_tick(struct member *member, uint64_t now);

/* blame.c */
/* 0, or -EBUSY with for how long: it has spoilt a making, or others that may have go first. */
int blame_admits(struct server *server, const struct msg_join *join, struct error *err);
/* It has said that its communicator has failed; -EIO if it is to be dropped for it. */
int blame_word(struct member *member, const struct msg_epoch_ready *said, struct error *err);
/* Its connection has ended, or it is not heard any more (`sure`). Before it is dropped. */
void blame_lost(struct member *member, bool sure);
/* The making has failed: drops who is at fault, and gathers. */
void blame_making(struct server *server);
/* The epoch stands: all in it are trusted again. */
void blame_none(struct server *server);

#endif
