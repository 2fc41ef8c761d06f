/*
 * The event loop: descriptors with callbacks, on io_uring, or on epoll where that is
 * forbidden, as it is in most containers. Callbacks may remove any source, their own too:
 * what is removed is freed after the round. Events are levels: what a callback leaves is
 * reported again. One thread.
 */
#ifndef BROKER_LOOP_H
#define BROKER_LOOP_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/epoll.h>

struct loop;
struct loop_source;
typedef void loop_callback(void *data, uint32_t events); /* events: EPOLLIN and its like */

enum loop_kind { LOOP_AUTO, LOOP_URING, LOOP_EPOLL };

/* LOOP_AUTO: io_uring if it can be had, else epoll. Negative errno if it cannot be made. */
int loop_create(enum loop_kind kind, struct loop **ret_loop);
/* NULL is fine; sources that are left are freed, fds not closed */
void loop_destroy(struct loop *loop);
/* "io_uring", or "epoll"; of an epoll that was not asked for, why: "io_uring: Operation not
 * permitted". Lives as long as the loop. */
const char *loop_name(const struct loop *loop);
const char *loop_why(const struct loop *loop);

/* Watches fd, which stays the caller's and must be removed before it is closed. */
int loop_add(struct loop *loop, int fd, uint32_t events, loop_callback *callback, void *data,
	struct loop_source **ret_source);
int loop_modify(struct loop_source *source, uint32_t events);
void loop_remove(struct loop_source *source); /* NULL is fine */

/* Waits until the deadline at most (base/clock.h) and calls back what is ready. */
int loop_round(struct loop *loop, uint64_t deadline);
bool loop_stirred(const struct loop *loop); /* the last round has called somebody back */

#endif
