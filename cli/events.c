/* strew events: the last updates that ended, as the broker remembers them. */
#include "base/util.h"
#include "cli/ask.h"
#include "cli/cli.h"
#include "cli/json.h"
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <strew/strew.h>
#include <time.h>

static const char help[] =
	"Usage: strew events [--socket PATH] [--json]\n"
	"\n"
	"Says how the last 64 updates ended, the oldest first: version, outcome, how long each\n"
	"stage took, bytes, why, and every group that did not take it. A lead remembers whole\n"
	"updates, a broker that joined it its own part. A group that caught up from a sibling on\n"
	"its node is said too: all its time is the copying. Nothing is on disk.\n"
	"\n"
	"  wait    from the first rank's publish to the begin: other ranks, GPUs, other updates\n"
	"  accept  every node was asked, plans were made, gates of direct groups were held\n"
	"  move    bytes moved; in it, from its start: gather, local, wire, scatter were done\n"
	"  commit  staged groups copied from their shadows, pulled ones from their twins\n"
	"\n"
	"  --socket PATH  the broker's socket (default: $STREW_SOCKET, else\n"
	"                 $XDG_RUNTIME_DIR/strew/broker.sock, else /tmp/strew-UID/broker.sock)\n"
	"  --json         one object a line, with all groups\n"
	"  --help\n"
	"\n"
	"Example: strew events --json | tail -1 | python3 -m json.tool\n";

static json_t *outcome_json(const struct group_outcome *group)
{
	json_t *object = json_object();

	json_put(object, "node", group->node);
	json_put(object, "replica", group->replica);
	json_put(object, "part", group->part);
	json_put_text(object, "outcome", json_outcome(group->outcome));
	json_put_text(
		object, "state", strew_group_state_name((enum strew_group_state)group->state));
	json_put_text(object, "text", group->text);
	return object;
}

static void print_object(const struct msg_event *event)
{
	const struct msg_report *report = &event->report;
	json_t *object = json_object(), *groups = json_array();

	json_put(object, "number", event->number);
	json_put(object, "unix_ms", event->unix_ms);
	json_put_text(object, "model", event->model);
	json_put(object, "version", report->version);
	json_put_text(object, "outcome", json_outcome(report->outcome));
	json_put_text(object, "ended_in", event->ended_in);
	json_put_text(object, "text", report->text);
	json_put(object, "tensors", report->tensors);
	json_put(object, "unwanted", report->unwanted);
	json_put(object, "bytes", report->bytes);
	json_put(object, "wire_bytes", report->wire_bytes);
	json_put(object, "total_ns", report->total_ns);
	json_put(object, "wait_ns", report->wait_ns);
	json_put(object, "accept_ns", report->accept_ns);
	json_put(object, "move_ns", report->move_ns);
	json_put(object, "gather_ns", report->stages.gather_ns);
	json_put(object, "local_ns", report->stages.local_ns);
	json_put(object, "wire_ns", report->stages.wire_ns);
	json_put(object, "scatter_ns", report->stages.scatter_ns);
	json_put(object, "commit_ns", report->commit_ns);
	for (size_t i = 0; i < report->ngroups; i++) {
		json_array_append_new(groups, outcome_json(&report->groups[i]));
	}
	json_object_set_new(object, "groups", groups);
	json_line(object);
}

static void print_text(const struct msg_event *event)
{
	const struct msg_report *report = &event->report;
	time_t seconds = (time_t)(event->unix_ms / 1000u);
	char when[32] = "", bytes[32], wire[32];
	struct tm local;

	strftime(when, sizeof(when), "%F %H:%M:%S", localtime_r(&seconds, &local));
	printf("%s %s: version %" PRIu64 " %s", when, event->model, report->version,
		report->outcome ? json_outcome(report->outcome) : "not decided");
	if (event->ended_in[0]) {
		printf(" while %s", event->ended_in);
	}
	printf(", %.2f ms (wait %.2f, accept %.2f, move %.2f, commit %.2f), %s, %s by wire",
		(double)report->total_ns / 1e6, (double)report->wait_ns / 1e6,
		(double)report->accept_ns / 1e6, (double)report->move_ns / 1e6,
		(double)report->commit_ns / 1e6, format_bytes(bytes, sizeof(bytes), report->bytes),
		format_bytes(wire, sizeof(wire), report->wire_bytes));
	printf("%s%s\n", report->text[0] ? ": " : "", report->text);
	for (size_t i = 0; i < report->ngroups; i++) {
		const struct group_outcome *group = &report->groups[i];

		if (group->outcome != STREW_OUTCOME_COMMITTED) {
			printf("    node %u replica %u part %u: %s, %s: %s\n", group->node,
				group->replica, group->part,
				group->outcome ? json_outcome(group->outcome) : "not decided",
				strew_group_state_name((enum strew_group_state)group->state),
				group->text);
		}
	}
}

void event_print(const struct msg_event *event, bool json)
{
	if (json) {
		print_object(event);
	} else {
		print_text(event);
	}
}

int event_ask(struct conn *conn, uint64_t after, struct message *ret_event, struct error *err)
{
	struct message question;

	message_init(&question, MSG_EVENTS, 2);
	question.u.events.after = after;
	return ask(conn, &question, MSG_EVENT, ret_event, err);
}

static int run(const char *socket, bool json)
{
	struct error err = {0};
	uint64_t after = 0;
	struct conn *conn;
	bool more = true;
	int rc = 0, code = ask_open("strew events", socket, &conn);

	if (code) {
		return code;
	}
	while (rc == 0 && more) {
		struct message answer;

		rc = event_ask(conn, after, &answer, &err);
		if (rc == 0) {
			more = answer.u.event.number > after;
			after = answer.u.event.number;
			if (more) {
				event_print(&answer.u.event, json);
			}
			message_finish(&answer);
		}
	}
	conn_destroy(conn);
	return rc ? ask_failed("strew events", rc, &err) : EXIT_OK;
}

int cmd_events(int argc, char **argv)
{
	static const struct option options[] = {{"socket", required_argument, NULL, 's'},
		{"json", no_argument, NULL, 'j'}, {"help", no_argument, NULL, 'h'},
		{NULL, 0, NULL, 0}};
	const char *socket = NULL;
	bool json = false;
	int option;

	while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) {
		switch (option) {
		case 's':
			socket = optarg;
			break;
		case 'j':
			json = true;
			break;
		case 'h':
			fputs(help, stdout);
			return EXIT_OK;
		default:
			return EXIT_USAGE;
		}
	}
	if (has_argument(argc, argv)) {
		return EXIT_USAGE;
	}
	return run(socket, json);
}
