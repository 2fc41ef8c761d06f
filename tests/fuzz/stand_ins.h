/*
 * What stands in for the world, so that a whole broker or agent runs in one thread, at once
 * and always alike: time that only the target (and a wait in which nothing comes) moves on,
 * connections that are socket pairs, random numbers that are not, and a mover that works when it
 * is told to. Each stand-in has all functions of one file of strew, which then is not linked.
 */
#ifndef FUZZ_STAND_INS_H
#define FUZZ_STAND_INS_H

#include "broker/mover.h"
#include <stdbool.h>
#include <stdint.h>

/* Before every input. */
void stand_ins_reset(void);

/* stand_in_time.c for base/clock.c; also poll(2), epoll_wait(2) and nanosleep(2), which pass the
 * time that they are given instead of waiting. A poll without a deadline in which nothing comes is
 * a hang, and ends the process. */
void time_pass(uint64_t ms);
/* Called by a poll in which nothing has come; true: look again, something was done. NULL: nobody.
 */
extern bool (*world_turn)(void);

/*
 * stand_in_sockets.c for ipc/socket.c and ipc/address.c. A listener accepts what was queued for
 * it; who connects gets one end of a pair whose other end is queued here.
 */
void sockets_accept_next(int listener, int fd); /* takes fd */
int sockets_dialled(bool *ret_tcp);		/* the oldest other end, or -1 */
void sockets_dial_next(int fd);			/* takes fd: what the next Unix connection gets */
void sockets_refuse(bool refuse);		/* connections fail from now on */
void sockets_drop(void);			/* closes what nobody has taken */

/* stand_in_mover.c for broker/mover.c: runs up to n jobs, or all. */
void mover_run(struct mover *mover, unsigned n);
void mover_look_at_all(struct mover *mover); /* at the watches, as its thread does */

#endif
