#include "broker/place.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/util.h"
#include "broker/lookup.h"
#include "broker/waits.h"
#include <errno.h>
#include <string.h>
#include <sys/epoll.h>

/* The address leads nowhere, for now or for good. What it led to before is still tried. */
static void not_placed(struct server *server, int rc, const struct error *err)
{
	struct lead_link *link = &server->lead;

	if (!link->joined_once && (rc == -EINVAL || rc == -EPERM)) {
		/* The address itself is wrong: no other try will mend it. */
		log_error("--join: %s", err->text);
		server->exit_code = 1;
		server->stop = true;
	}
	string_copy(link->place_why, sizeof(link->place_why), err->text);
	link->look_up_at = link->placed ? deadline_in_ms(waits.lookup_ms) : 0;
}

void place_first(struct server *server)
{
	struct lead_link *link = &server->lead;
	struct error err;
	int rc = socket_look_up(
		server->options.join, server->options.key_file != NULL, &link->place, &err);

	link->placed = rc == 0;
	link->look_up_at = deadline_in_ms(waits.lookup_ms);
	if (rc) {
		not_placed(server, rc, &err);
	}
}

void place_lost(struct lead_link *link)
{
	link->look_up_at = deadline_in_ms(waits.lookup_ms);
}

void place_end(struct lead_link *link)
{
	loop_remove(link->lookup_source);
	link->lookup_source = NULL;
	lookup_destroy(link->lookup);
	link->lookup = NULL;
}

static void on_lookup(void *data, uint32_t events)
{
	struct server *server = data;
	struct lead_link *link = &server->lead;
	struct socket_place place;
	struct error err = {0};
	int rc = lookup_result(link->lookup, &place, &err);

	(void)events;
	if (rc == -EAGAIN) {
		return;
	}
	place_end(link);
	if (rc) {
		not_placed(server, rc, &err);
		return;
	}
	if (!link->conn && link->connecting < 0) {
		link->retry_at = 0; /* it may be another lead: it is tried at once */
	}
	link->place = place;
	link->placed = true;
	link->look_up_at = deadline_in_ms(waits.lookup_ms);
}

void place_look(struct server *server)
{
	struct lead_link *link = &server->lead;
	int rc;

	if (link->lookup || (link->placed && link->place.numeric) ||
		!deadline_passed(link->look_up_at)) {
		return;
	}
	rc = lookup_create(server->options.join, server->options.key_file != NULL, &link->lookup);
	if (rc == 0) {
		rc = loop_add(server->loop, lookup_fd(link->lookup), EPOLLIN, on_lookup, server,
			&link->lookup_source);
	}
	if (rc) {
		log_warn("cannot look up %s: %s", server->options.join, strerror(-rc));
		place_end(link);
		link->look_up_at = deadline_in_ms(waits.lookup_ms);
	}
}
