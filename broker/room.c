/*
 * Is there room for what processes have registered, or are registering? Each of them may fill its
 * own quota (LIMIT_PARTS_BYTES, LIMIT_CHUNKS), but not all of them together: a registration that
 * is never sealed holds as much as one that is.
 *
 * And for one more connection? Who holds all LIMIT_CONNECTIONS must not keep out who wants to see
 * that: LIMIT_LOOKERS more may come, as observers alone. Nobody keeps such a place for ever, since
 * one more ends one of those that are there.
 */
#include "base/util.h"
#include "broker/server.h"
#include <errno.h>

bool room_check(const struct client *asking, struct error *err)
{
	uint64_t bytes = 0, chunks = 0;
	size_t n = 0;

	if (asking->session.state != SESSION_FILLING || asking->session.failed.code) {
		return true;
	}
	for (const struct client *client = asking->server->clients; client; client = client->next) {
		/* What was refused holds nothing any more. */
		if (client->session.state >= SESSION_FILLING && !client->session.failed.code) {
			bytes += client->session.blob.len;
			chunks += client->session.chunks;
			n++;
		}
	}
	if (n > LIMIT_SESSIONS) {
		error_set(err, -E2BIG, "%u workers and trainers are registered here already",
			LIMIT_SESSIONS);
	} else if (bytes > LIMIT_ALL_PARTS_BYTES) {
		error_set(err, -E2BIG,
			"the layouts that are being registered here pass %u bytes together",
			LIMIT_ALL_PARTS_BYTES);
	} else if (chunks > LIMIT_ALL_CHUNKS) {
		error_set(err, -E2BIG,
			"the chunks of memory that are registered here pass %u together",
			LIMIT_ALL_CHUNKS);
	} else {
		return true;
	}
	return false;
}

/* One that has not said hello, else the one that has been there longest. */
static struct client *looker_to_go(struct server *server)
{
	struct client *found = NULL;

	/* The newest is the first. */
	for (struct client *client = server->clients; client; client = client->next) {
		if (client->looker && !client->gone &&
			(!found || client->session.state == SESSION_HELLO ||
				found->session.state != SESSION_HELLO)) {
			found = client;
		}
	}
	return found;
}

bool room_for_client(struct server *server, bool *ret_looker)
{
	struct client *last;

	*ret_looker = server->nclients - server->nlookers >= LIMIT_CONNECTIONS;
	if (*ret_looker && server->nlookers >= LIMIT_LOOKERS) {
		last = looker_to_go(server);
		if (last) {
			client_drop(last, "others came to look");
		}
	}
	/* Who was dropped is there until the mover has read what it asked for. */
	return !*ret_looker || server->nlookers < LIMIT_LOOKERS;
}

int room_welcomes(const struct client *client, struct error *err)
{
	if (!client->looker || client->session.hello.role == ROLE_OBSERVER) {
		return 0;
	}
	return error_set(err, -E2BIG,
		"%u connections are open here already: one more may only look", LIMIT_CONNECTIONS);
}
