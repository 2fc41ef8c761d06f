/* Where the lead is: its name, looked up once before the loop runs, and anew beside the loop. */
#ifndef BROKER_PLACE_H
#define BROKER_PLACE_H

#include "broker/server.h"

/* Before the loop runs: this may wait for a name server. */
void place_first(struct server *server);
/* A try to connect begins: looks up again, beside the loop, if that has long been in vain. */
void place_look(struct server *server);
/* The lead was there, and is gone. */
void place_lost(struct lead_link *link);
void place_end(struct lead_link *link);

#endif
