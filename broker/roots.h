/*
 * Where the trainer ranks' brokers are. A manifest names them by id, begin by their numbers in its
 * epoch.
 */
#ifndef BROKER_ROOTS_H
#define BROKER_ROOTS_H

#include "broker/server.h"

/* Lead: the number of each rank's broker. -EHOSTUNREACH, and a sentence: it is not in the epoch. */
int roots_find(const struct server *server, const struct publication *publication,
	uint32_t ret_roots[LIMIT_RANKS], struct error *err);
/* The node's, as begin says. False: what is here must be here, and nothing else. */
bool roots_take(struct server *server, const struct publication *publication,
	const struct msg_begin *begin);

#endif
