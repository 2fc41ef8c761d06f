/* What the event loop's three files share: loop.c is the front of the two others. */
#ifndef BROKER_LOOP_INTERNAL_H
#define BROKER_LOOP_INTERNAL_H

#include "broker/loop.h"

struct arm; /* io_uring's, of a source */

struct loop_source {
	struct loop *loop;
	int fd;
	uint32_t events;
	loop_callback *callback; /* NULL: removed */
	void *data;
	struct loop_source *next; /* loop.sources, then loop.removed */
	struct arm *arm;
};

struct loop_ops {
	const char *name;
	void (*destroy)(struct loop *loop);
	int (*add)(struct loop_source *source);
	int (*modify)(struct loop_source *source); /* source->events are the new ones */
	void (*remove)(struct loop_source *source);
	int (*round)(struct loop *loop, uint64_t deadline);
};

/* A backend embeds this as its first member and is freed by its destroy. */
struct loop {
	const struct loop_ops *ops;
	char why[64];
	struct loop_source *sources;
	struct loop_source *removed; /* freed after the round */
	bool stirred;		     /* set by a round that calls somebody back */
};

#define LOOP_ROUND_EVENTS 64

int loop_epoll_create(struct loop **ret_loop);
int loop_uring_create(struct loop **ret_loop);

#endif
