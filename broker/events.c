#include "broker/events.h"
#include "base/util.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

struct events {
	struct msg_event ring[LIMIT_EVENTS]; /* number n is at (n - 1) % LIMIT_EVENTS */
	uint64_t last;
	uint64_t begun_ns;
};

int events_create(struct events **ret_events)
{
	*ret_events = calloc(1, sizeof(**ret_events));
	return *ret_events ? 0 : -ENOMEM;
}

void events_destroy(struct events *events)
{
	for (size_t i = 0; events && i < LIMIT_EVENTS; i++) {
		free(events->ring[i].report.groups);
	}
	free(events);
}

void events_begun(struct events *events, uint64_t now)
{
	if (events) {
		events->begun_ns = now;
	}
}

uint64_t events_begun_ns(const struct events *events)
{
	return events ? events->begun_ns : 0;
}

void events_add(struct events *events, const char *model, const char *ended_in,
	const struct msg_report *report, uint64_t unix_ms)
{
	size_t bytes = report->ngroups * sizeof(*report->groups);
	struct msg_event *event;

	if (!events) {
		return;
	}
	event = &events->ring[events->last++ % LIMIT_EVENTS];
	free(event->report.groups);
	memset(event, 0, sizeof(*event));
	event->number = events->last;
	event->unix_ms = unix_ms;
	string_copy(event->model, sizeof(event->model), model);
	string_copy(event->ended_in, sizeof(event->ended_in), ended_in);
	event->report = *report;
	event->report.groups = bytes ? malloc(bytes) : NULL;
	if (event->report.groups) {
		memcpy(event->report.groups, report->groups, bytes);
	} else {
		event->report.ngroups = 0;
	}
}

const struct msg_event *events_after(const struct events *events, uint64_t number)
{
	uint64_t oldest;

	if (!events || number >= events->last) {
		return NULL;
	}
	oldest = events->last > LIMIT_EVENTS ? events->last - LIMIT_EVENTS : 0;
	return &events->ring[MAX(number, oldest) % LIMIT_EVENTS];
}

uint64_t events_last(const struct events *events)
{
	return events ? events->last : 0;
}
