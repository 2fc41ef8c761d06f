/* What the tests of catching up share: one model's replicas, their states, and what may not come.
 */
#ifndef BROKER_CATCHER_H
#define BROKER_CATCHER_H

#include "broker/peers.h"

#define WHILE_MS 300 /* in which what should come would have come */

struct place {
	uint32_t state;
	uint64_t version;
};

/* State 0: no such group. */
struct place group_place(
	const struct broker *broker, const char *model, uint32_t replica, uint32_t part);
void group_wait(const struct broker *broker, const char *model, uint32_t replica, uint32_t part,
	uint32_t state, uint64_t version);

/* For a while nothing is asked of the worker, who stays what it is. */
void worker_hears_nothing(struct worker *worker);
/* Hears how the update that it was late for has ended. */
void worker_sits_out(struct worker *worker);
/* Takes the hold, stands still, and gets that version. */
void worker_takes(struct worker *worker, uint64_t version);
/* Its group is CURRENT at the version by the page and by what it has heard, and its memory. */
void worker_is_current(struct worker *worker, uint64_t version);

#endif
