/*
 * Is there room for what processes have registered, or are registering? Each of them may fill its
 * own quota (LIMIT_PARTS_BYTES, LIMIT_CHUNKS), but not all of them together: a registration that
 * is never sealed holds as much as one that is.
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
