/*
 * Heartbeats between brokers: who has said nothing for LIMIT_ALIVE_MS says that it is alive, and
 * who has not been heard for LIMIT_SILENT_MS is given up, whether its host is gone or it was
 * stopped. Times are looked at after a round of the event loop, so that what has arrived is heard.
 */
#ifndef BROKER_ALIVE_H
#define BROKER_ALIVE_H

#include "ipc/conn.h"
#include <sys/param.h>

#define ALIVE_NS (LIMIT_ALIVE_MS * 1000000ull)
#define SILENT_NS (LIMIT_SILENT_MS * 1000000ull)

/* When one of the two is next to be looked at. */
static inline uint64_t alive_due(const struct conn *conn)
{
	return MIN(conn_said_ns(conn) + ALIVE_NS, conn_heard_ns(conn) + SILENT_NS);
}

static inline bool alive_is_silent(const struct conn *conn, uint64_t now)
{
	return now >= conn_heard_ns(conn) + SILENT_NS;
}

static inline bool alive_is_to_speak(const struct conn *conn, uint64_t now)
{
	return now >= conn_said_ns(conn) + ALIVE_NS;
}

#endif
