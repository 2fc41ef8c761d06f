/*
 * The event loop: descriptors with callbacks, on epoll. Callbacks may remove any
 * source, their own too: what is removed is freed after the round. One thread.
 */
#ifndef BROKER_LOOP_H
#define BROKER_LOOP_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/epoll.h>

struct loop;
struct loop_source;
typedef void loop_callback(void *data, uint32_t events); /* events: EPOLLIN and its like */

int loop_create(struct loop **ret_loop);
void loop_destroy(
	struct loop *loop); /* NULL is fine; sources that are left are freed, fds not closed */

/* Watches fd, which stays the caller's and must be removed before it is closed. */
int loop_add(struct loop *loop, int fd, uint32_t events, loop_callback *callback, void *data,
	struct loop_source **ret_source);
int loop_modify(struct loop_source *source, uint32_t events);
void loop_remove(struct loop_source *source); /* NULL is fine */

/* Waits until the deadline at most (base/clock.h) and calls back what is ready. */
int loop_round(struct loop *loop, uint64_t deadline);

#endif
