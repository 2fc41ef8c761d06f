/* What acts.c does to what surrounds the machines. */
#ifndef EXPLORE_SURROUND_H
#define EXPLORE_SURROUND_H

#include "tests/explore/world.h"

/* What its agent takes the memory for when nobody tells it any more. */
uint8_t worker_belief(unsigned group, const struct w_worker *worker);
void worker_loses_broker(unsigned group, unsigned member);
void job_writes(const struct w_job *job, bool whole);
void link_down(void);

/* brokers.c */
void act_of_broker(struct act act);
/* If a commit was decided in this act: from now on its content is what groups should hold. */
void note_decision(uint8_t committed_before, const struct w_update *before, uint8_t version);
/* If its lead is gone and nobody has begun to carry it out, or will hear of it: then it was none.
 */
void forget_decision(void);

#endif
