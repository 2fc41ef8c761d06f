/*
 * Brokers that are missed: they were in an epoch that stood, were lost without a word, and have not
 * come back. An update with scope=all asks every group of every node, and so does not begin
 * without them. Who leaves in order is not missed, and nobody for longer than LIMIT_MISSED_MS:
 * a host that was given up must not end such updates for ever.
 *
 * One that starts itself anew has said that it comes back, and takes a moment: such an update waits
 * for it, and ends only if it is not back by LIMIT_AGAIN_MS, when it is like any that was lost.
 */
#include "base/clock.h"
#include "base/log.h"
#include "base/util.h"
#include "broker/server.h"
#include <string.h>

static void forget(struct server *server, size_t i)
{
	server->missed[i] = server->missed[--server->nmissed];
}

void missed_lost(const struct member *member)
{
	struct server *server = member->server;

	if (!member->stood || member->left) {
		return;
	}
	if (server->nmissed == LIMIT_BROKERS) {
		forget(server, 0);
	}
	server->missed[server->nmissed++] = (struct missed){.join = member->join,
		.until = deadline_in_ms(LIMIT_MISSED_MS),
		.back_by = member->again ? deadline_in_ms(LIMIT_AGAIN_MS) : UINT64_MAX};
}

/* The same one, or the next in its place: one GPU of one host has one broker. */
static bool is_back(const struct missed *missed, const struct msg_join *join, bool same)
{
	return same ? missed->join.broker_id == join->broker_id
		    : missed->join.host_id == join->host_id &&
			       memcmp(missed->join.uuid, join->uuid, sizeof(join->uuid)) == 0;
}

/* Without GPUs several brokers of a host look alike: each that comes is one of them. */
static void came_back(struct server *server, const struct msg_join *join)
{
	for (int same = 1; same >= 0; same--) {
		for (size_t i = 0; i < server->nmissed; i++) {
			if (is_back(&server->missed[i], join, same)) {
				forget(server, i);
				return;
			}
		}
	}
}

void missed_stand(struct server *server)
{
	for (struct member *member = server->members; member; member = member->next) {
		if (member->state == MEMBER_IN_EPOCH && !member->stood) {
			came_back(server, &member->join);
		}
	}
}

const char *missed_name(struct server *server, uint64_t now)
{
	for (size_t i = 0; i < server->nmissed;) {
		if (server->missed[i].back_by != UINT64_MAX) {
			i++;
		} else if (now < server->missed[i].until) {
			return server->missed[i].join.name;
		} else {
			log_warn("broker %s was lost %u s ago: scope=all does without it now",
				server->missed[i].join.name, LIMIT_MISSED_MS / 1000);
			forget(server, i);
		}
	}
	return NULL;
}

bool missed_come_back(const struct server *server)
{
	return missed_due(server) != UINT64_MAX;
}

void missed_tick(struct server *server, uint64_t now)
{
	for (size_t i = 0; i < server->nmissed; i++) {
		struct missed *missed = &server->missed[i];

		if (now >= missed->back_by) {
			missed->back_by = UINT64_MAX;
			log_warn("broker %s started itself anew %u s ago and has not come back",
				missed->join.name, LIMIT_AGAIN_MS / 1000);
		}
	}
}

uint64_t missed_due(const struct server *server)
{
	uint64_t due = UINT64_MAX;

	for (size_t i = 0; i < server->nmissed; i++) {
		due = MIN(due, server->missed[i].back_by);
	}
	return due;
}
