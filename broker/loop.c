#include "broker/loop_internal.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int loop_create(enum loop_kind kind, struct loop **ret_loop)
{
	int uring = -ENOSYS;
	int rc;

	if (kind != LOOP_EPOLL) {
		uring = loop_uring_create(ret_loop);
		if (uring == 0 || kind == LOOP_URING) {
			return uring;
		}
	}
	rc = loop_epoll_create(ret_loop);
	if (rc == 0 && kind == LOOP_AUTO) {
		snprintf((*ret_loop)->why, sizeof((*ret_loop)->why), "io_uring: %s",
			strerror(-uring));
	}
	return rc;
}

static void free_list(struct loop_source **list)
{
	while (*list) {
		struct loop_source *source = *list;

		*list = source->next;
		free(source);
	}
}

void loop_destroy(struct loop *loop)
{
	if (!loop) {
		return;
	}
	while (loop->sources) {
		loop_remove(loop->sources);
	}
	free_list(&loop->removed);
	loop->ops->destroy(loop);
}

const char *loop_name(const struct loop *loop)
{
	return loop->ops->name;
}

const char *loop_why(const struct loop *loop)
{
	return loop->why;
}

int loop_add(struct loop *loop, int fd, uint32_t events, loop_callback *callback, void *data,
	struct loop_source **ret_source)
{
	struct loop_source *source = calloc(1, sizeof(*source));
	int rc;

	if (!source) {
		return -ENOMEM;
	}
	*source = (struct loop_source){.loop = loop,
		.fd = fd,
		.events = events,
		.callback = callback,
		.data = data,
		.next = loop->sources};
	rc = loop->ops->add(source);
	if (rc) {
		free(source);
		return rc;
	}
	loop->sources = source;
	*ret_source = source;
	return 0;
}

int loop_modify(struct loop_source *source, uint32_t events)
{
	uint32_t before = source->events;
	int rc;

	if (before == events) {
		return 0;
	}
	source->events = events;
	rc = source->loop->ops->modify(source);
	if (rc) {
		source->events = before;
	}
	return rc;
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
	source->callback = NULL;
	source->loop->ops->remove(source);
	source->next = source->loop->removed;
	source->loop->removed = source;
}

int loop_round(struct loop *loop, uint64_t deadline)
{
	int rc;

	loop->stirred = false;
	rc = loop->ops->round(loop, deadline);
	free_list(&loop->removed);
	return rc;
}

bool loop_stirred(const struct loop *loop)
{
	return loop->stirred;
}
