#include "broker/loop.h"
#include "base/clock.h"
#include "base/util.h"
#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

#define ROUND_EVENTS 64

struct loop_source {
	struct loop *loop;
	int fd;
	uint32_t events;
	loop_callback *callback; /* NULL: removed */
	void *data;
	struct loop_source *next; /* loop.sources, then loop.removed */
};

struct loop {
	int epoll;
	struct loop_source *sources;
	struct loop_source *removed; /* freed after the round */
};

int loop_create(struct loop **ret_loop)
{
	struct loop *loop = calloc(1, sizeof(*loop));

	if (!loop) {
		return -ENOMEM;
	}
	loop->epoll = epoll_create1(EPOLL_CLOEXEC);
	if (loop->epoll < 0) {
		int rc = -errno;

		free(loop);
		return rc;
	}
	*ret_loop = loop;
	return 0;
}

static void free_list(struct loop_source *source)
{
	while (source) {
		struct loop_source *next = source->next;

		free(source);
		source = next;
	}
}

void loop_destroy(struct loop *loop)
{
	if (!loop) {
		return;
	}
	free_list(loop->sources);
	free_list(loop->removed);
	fd_close(&loop->epoll);
	free(loop);
}

int loop_add(struct loop *loop, int fd, uint32_t events, loop_callback *callback, void *data,
	struct loop_source **ret_source)
{
	struct loop_source *source = calloc(1, sizeof(*source));
	struct epoll_event event = {.events = events};
	int rc;

	if (!source) {
		return -ENOMEM;
	}
	*source = (struct loop_source){loop, fd, events, callback, data, loop->sources};
	event.data.ptr = source;
	if (epoll_ctl(loop->epoll, EPOLL_CTL_ADD, fd, &event) < 0) {
		rc = -errno;
		free(source);
		return rc;
	}
	loop->sources = source;
	*ret_source = source;
	return 0;
}

int loop_modify(struct loop_source *source, uint32_t events)
{
	struct epoll_event event = {.events = events, .data.ptr = source};

	if (source->events == events) {
		return 0;
	}
	if (epoll_ctl(source->loop->epoll, EPOLL_CTL_MOD, source->fd, &event) < 0) {
		return -errno;
	}
	source->events = events;
	return 0;
}

void loop_remove(struct loop_source *source)
{
	struct loop_source **link;

	if (!source) {
		return;
	}
	link = &source->loop->sources;
	while (*link != source) {
		link = &(*link)->next;
	}
	*link = source->next;
	epoll_ctl(source->loop->epoll, EPOLL_CTL_DEL, source->fd, NULL);
	source->callback = NULL;
	source->next = source->loop->removed;
	source->loop->removed = source;
}

int loop_round(struct loop *loop, uint64_t deadline)
{
	struct epoll_event events[ROUND_EVENTS];
	int n = epoll_wait(loop->epoll, events, ROUND_EVENTS, deadline_left_ms(deadline));

	if (n < 0) {
		return errno == EINTR ? 0 : -errno;
	}
	for (int i = 0; i < n; i++) {
		struct loop_source *source = events[i].data.ptr;

		if (source->callback) {
			source->callback(source->data, events[i].events);
		}
	}
	free_list(loop->removed);
	loop->removed = NULL;
	return 0;
}
