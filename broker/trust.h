/*
 * Who has spoilt the making of a communicator, and may not join again at once. Pure: no clock, no
 * socket. A broker is known by its GPU, or where it has none by its host and name, as that is the
 * same when its process is another one (on host backends the name has the pid: there a new
 * process is a new broker).
 *
 * A making costs every other broker the updates that it could not begin meanwhile. So who spoilt
 * one is kept out for four times as long as that took, twice as long with each time more, at least
 * blame_min_ms and at most blame_max_ms; an epoch with it forgets all. Who is only one of several
 * that it may have been has the first time free.
 */
#ifndef BROKER_TRUST_H
#define BROKER_TRUST_H

#include "ipc/messages.h"
#include <stdbool.h>

struct trust_entry {
	uint64_t host_id;
	uint8_t uuid[UUID_BYTES];
	char name[ADDRESS_BYTES]; /* "" where there is a GPU */
	unsigned failures;	  /* in a row, at least 1 */
	uint64_t until;		  /* kept out; it is on the list for longer */
};

#define TRUST_ENTRIES (2 * LIMIT_BROKERS)

struct trust {
	struct trust_entry entries[TRUST_ENTRIES];
	size_t n;
};

/* It has spoilt a making that took `cost_ns`. `sure`: it and no other. */
void trust_failed(
	struct trust *trust, const struct msg_join *who, bool sure, uint64_t cost_ns, uint64_t now);
/* It stands in an epoch. */
void trust_stands(struct trust *trust, const struct msg_join *who);
/* Until when it is kept out, which may have passed; 0: it is not on the list. */
uint64_t trust_until(struct trust *trust, const struct msg_join *who, uint64_t now);

#endif
