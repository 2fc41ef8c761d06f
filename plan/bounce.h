/*
 * Copies whose two ends nobody reaches at once: bytes get from the one to the other by a ring of
 * buffers that both reach. What is to be copied is cut into loads, none longer than a buffer; each
 * is packed by copies from the sources into a buffer, and taken apart by copies out of it. Pure.
 */
#ifndef PLAN_BOUNCE_H
#define PLAN_BOUNCE_H

#include "plan/plan.h"

struct bounce {
	struct copies out; /* sources → ring: range l is load l, in buffer l mod nbuffers */
	struct copies in;  /* ring → destinations: the same loads */
	size_t *first;	   /* loads of range i of what was to be copied: first[i] .. first[i + 1] */
	size_t nranges;
};

/*
 * ring_space is the ring's number among the spaces of both lists; its buffers lie side by side,
 * each of buffer_bytes, a multiple of SLOT_ALIGN. A cast is done where fewer bytes are carried
 * for it. -ENOMEM, -E2BIG; else finish with bounce_finish().
 */
int bounce_make(const struct copies *copies, uint32_t ring_space, uint64_t buffer_bytes,
	uint32_t nbuffers, struct bounce *ret_bounce, struct error *err);
void bounce_finish(struct bounce *bounce);

#endif
