/* The event loop on epoll. */
#include "base/clock.h"
#include "base/util.h"
#include "broker/loop_internal.h"
#include <errno.h>
#include <stdlib.h>

struct epoll_loop {
	struct loop head;
	int epoll;
};

static void epoll_destroy(struct loop *base)
{
	struct epoll_loop *loop = (struct epoll_loop *)base;

	fd_close(&loop->epoll);
	free(loop);
}

static int control(struct loop_source *source, int operation)
{
	struct epoll_loop *loop = (struct epoll_loop *)source->loop;
	struct epoll_event event = {.events = source->events, .data.ptr = source};

	return epoll_ctl(loop->epoll, operation, source->fd, &event) < 0 ? -errno : 0;
}

static int epoll_add(struct loop_source *source)
{
	return control(source, EPOLL_CTL_ADD);
}

static int epoll_modify(struct loop_source *source)
{
	return control(source, EPOLL_CTL_MOD);
}

static void epoll_remove(struct loop_source *source)
{
	control(source, EPOLL_CTL_DEL);
}

static int epoll_round(struct loop *base, uint64_t deadline)
{
	struct epoll_loop *loop = (struct epoll_loop *)base;
	struct epoll_event events[LOOP_ROUND_EVENTS];
	int n = epoll_wait(loop->epoll, events, LOOP_ROUND_EVENTS, deadline_left_ms(deadline));

	if (n < 0) {
		return errno == EINTR ? 0 : -errno;
	}
	for (int i = 0; i < n; i++) {
		struct loop_source *source = events[i].data.ptr;

		if (source->callback) {
			base->stirred = true;
			source->callback(source->data, events[i].events);
		}
	}
	return 0;
}

static const struct loop_ops epoll_ops = {
	.name = "epoll",
	.destroy = epoll_destroy,
	.add = epoll_add,
	.modify = epoll_modify,
	.remove = epoll_remove,
	.round = epoll_round,
};

int loop_epoll_create(struct loop **ret_loop)
{
	struct epoll_loop *loop = calloc(1, sizeof(*loop));

	if (!loop) {
		return -ENOMEM;
	}
	loop->head.ops = &epoll_ops;
	loop->epoll = epoll_create1(EPOLL_CLOEXEC);
	if (loop->epoll < 0) {
		int rc = -errno;

		free(loop);
		return rc;
	}
	*ret_loop = &loop->head;
	return 0;
}
