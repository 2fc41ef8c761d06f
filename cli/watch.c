/*
 * strew status --watch: asks five times a second, and prints a line when a model's progress has
 * changed, and one for each update that has ended: of these none is missed, however short it was.
 * On a terminal a line of which only the bytes change is written over.
 */
#include "base/util.h"
#include "cli/ask.h"
#include "cli/cli.h"
#include "cli/json.h"
#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define POLL_MS 200

struct watcher {
	bool json, terminal;
	bool begun;
	uint64_t last_event;
	struct progress last[LIMIT_MODELS];
	size_t nlast;
	bool open;		       /* the terminal's last line may be written over … */
	char model[LIMIT_MODEL_BYTES]; /* … with more about this model */
};

static void leave(int number)
{
	(void)number;
	_exit(EXIT_OK);
}

static void print_line(struct watcher *watcher, const struct progress *now, bool bytes_only)
{
	char text[64] = "", done[32], total[32];
	time_t seconds = time(NULL);
	struct tm local;

	if (watcher->open) {
		fputs(bytes_only && strcmp(watcher->model, now->model) == 0 ? "\r\033[K" : "\n",
			stdout);
	}
	strftime(text, sizeof(text), "%H:%M:%S", localtime_r(&seconds, &local));
	printf("%s %s: ", text, now->model);
	if (now->version) {
		printf("version %" PRIu64 " ", now->version);
	}
	fputs(now->stage, stdout);
	if (now->outcome) {
		printf(", %s", json_outcome(now->outcome));
	}
	if (now->version && now->version == now->committed && !now->outcome) {
		fputs(", committed", stdout);
	}
	if (now->text[0]) {
		printf(": %s", now->text);
	}
	if (now->total) {
		printf(", %s of %s", format_bytes(done, sizeof(done), now->done),
			format_bytes(total, sizeof(total), now->total));
	}
	if (now->awaited[0]) {
		printf(", waits for %s", now->awaited);
	}
	watcher->open = watcher->terminal;
	string_copy(watcher->model, sizeof(watcher->model), now->model);
	if (!watcher->open) {
		putchar('\n');
	}
}

static void print_object(const struct progress *now)
{
	json_t *object = json_object();
	struct timespec time;

	clock_gettime(CLOCK_REALTIME, &time);
	json_put(object, "unix_ms",
		(uint64_t)time.tv_sec * 1000u + (uint64_t)time.tv_nsec / 1000000u);
	json_put_text(object, "model", now->model);
	json_put_text(object, "stage", now->stage);
	json_put(object, "version", now->version);
	json_put(object, "committed", now->committed);
	json_put(object, "done_bytes", now->done);
	json_put(object, "total_bytes", now->total);
	json_put_text(object, "awaited", now->awaited);
	json_put_text(object, "outcome", json_outcome(now->outcome));
	json_put_text(object, "text", now->text);
	json_line(object);
}

static void show(struct watcher *watcher, const struct msg_progress_reply *reply)
{
	for (size_t i = 0; i < reply->nmodels; i++) {
		const struct progress *now = &reply->models[i];
		struct progress *before = NULL;
		bool bytes_only;

		for (size_t j = 0; j < watcher->nlast; j++) {
			if (strcmp(watcher->last[j].model, now->model) == 0) {
				before = &watcher->last[j];
			}
		}
		if (before && memcmp(before, now, sizeof(*now)) == 0) {
			continue;
		}
		/* How it became idle is said by the event, if there was an update. */
		if (before && strcmp(now->stage, "idle") == 0) {
			continue;
		}
		bytes_only = before && strcmp(before->stage, now->stage) == 0 &&
			     strcmp(before->awaited, now->awaited) == 0 &&
			     before->version == now->version;
		if (watcher->json) {
			print_object(now);
		} else {
			print_line(watcher, now, bytes_only);
		}
	}
	if (!watcher->begun && !reply->nmodels && !watcher->json) {
		puts("no model yet");
	}
	watcher->begun = true;
	watcher->nlast = MIN(reply->nmodels, LIMIT_MODELS);
	memcpy(watcher->last, reply->models, watcher->nlast * sizeof(*watcher->last));
	fflush(stdout);
}

/* Prints the updates that have ended since the last look. */
static int show_events(struct watcher *watcher, struct conn *conn, struct error *err)
{
	for (;;) {
		uint64_t after = watcher->begun ? watcher->last_event : UINT64_MAX;
		struct message answer;
		int rc = event_ask(conn, after, &answer, err);

		if (rc) {
			return rc;
		}
		if (!watcher->begun) { /* what was before is for strew events to say */
			watcher->last_event = answer.u.event.last;
			message_finish(&answer);
			return 0;
		}
		if (answer.u.event.number <= after) {
			message_finish(&answer);
			return 0;
		}
		watcher->last_event = answer.u.event.number;
		if (watcher->open) {
			putchar('\n');
			watcher->open = false;
		}
		event_print(&answer.u.event, watcher->json);
		message_finish(&answer);
	}
}

int status_watch(const char *socket, bool json)
{
	struct watcher *watcher = calloc(1, sizeof(*watcher));
	struct error err = {0};
	struct conn *conn;
	int rc = 0, code;

	if (!watcher) {
		return EXIT_RUNTIME;
	}
	code = ask_open("strew status", socket, &conn);
	if (code) {
		free(watcher);
		return code;
	}
	watcher->json = json;
	watcher->terminal = !json && isatty(STDOUT_FILENO);
	signal(SIGINT, leave);
	signal(SIGTERM, leave);
	/* Who can't be written to any more is watched for by nobody: main says so. */
	for (uint64_t serial = 2; rc == 0 && !ferror(stdout); serial++) {
		struct pollfd hangup = {conn_fd(conn), POLLIN, 0};
		struct message question, reply;

		rc = show_events(watcher, conn, &err);
		message_init(&question, MSG_PROGRESS, serial);
		rc = rc ? rc : ask(conn, &question, MSG_PROGRESS_REPLY, &reply, &err);
		if (rc == 0) {
			show(watcher, &reply.u.progress_reply);
			message_finish(&reply);
			poll(&hangup, 1, POLL_MS);
		}
	}
	if (watcher->open) {
		putchar('\n');
	}
	fflush(stdout);
	conn_destroy(conn);
	free(watcher);
	if (rc && ask_failed("strew status", rc, &err) == EXIT_UNREACHABLE) {
		fputs("strew status: the broker is gone\n", stderr);
	}
	return EXIT_RUNTIME;
}
