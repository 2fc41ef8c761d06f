/*
 * The last updates that ended, for who asks later what has happened: a ring in memory, nothing is
 * on disk. A lead keeps every update that somebody published, with all groups; a broker that
 * joined keeps its own part. Both keep what their groups have caught up with. Belongs to the event
 * loop's thread.
 */
#ifndef BROKER_EVENTS_H
#define BROKER_EVENTS_H

#include "ipc/messages.h"

struct events;

int events_create(struct events **ret_events);
void events_destroy(struct events *events); /* NULL is fine, here and below: then none are kept */

/* When this broker's part in an update begins: its event says how long that took. */
void events_begun(struct events *events, uint64_t now);
uint64_t events_begun_ns(const struct events *events);

/* Keeps a copy, with the next number; the oldest goes if the ring is full. `ended_in`: the stage
 * in which it failed, else "". If there is no memory for its groups, it is kept without. */
void events_add(struct events *events, const char *model, const char *ended_in,
	const struct msg_report *report, uint64_t unix_ms);

/* The first that is left behind that number, NULL: none. Borrowed until the next call. */
const struct msg_event *events_after(const struct events *events, uint64_t number);
uint64_t events_last(const struct events *events); /* its number, 0: there were none */

#endif
