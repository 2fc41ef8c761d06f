/*
 * The lead's name, looked up in a thread of its own, since a name server that does not answer is
 * waited for, for many seconds, inside getaddrinfo(). The event loop polls a descriptor meanwhile.
 * One that is let go before it has ended goes on by itself, and frees what it has when it ends.
 */
#ifndef BROKER_LOOKUP_H
#define BROKER_LOOKUP_H

#include "ipc/socket.h"

struct lookup;

int lookup_create(const char *address, bool keyed, struct lookup **ret_lookup);
int lookup_fd(const struct lookup *lookup); /* readable: it has ended */
/* What it has found; -EAGAIN: nothing yet; else socket_look_up()'s code. */
int lookup_result(struct lookup *lookup, struct socket_place *ret_place, struct error *err);
void lookup_destroy(struct lookup *lookup); /* NULL is fine */

#endif
