/* strew status: asks the broker what it has, as an observer, and prints a table. */
#include "base/util.h"
#include "cli/ask.h"
#include "cli/cli.h"
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <strew/strew.h>

static const char help[] =
	"Usage: strew status [--socket PATH] [--watch] [--json]\n"
	"       strew status --limits [--json]\n"
	"\n"
	"Says what this node's broker has: groups of workers with their states and versions,\n"
	"trainers, the brokers of the epoch (the lead has them all, one that joined only itself),\n"
	"and GPUs without peer access between them.\n"
	"\n"
	"  --socket PATH  the broker's socket (default: $STREW_SOCKET, else\n"
	"                 $XDG_RUNTIME_DIR/strew/broker.sock, else /tmp/strew-UID/broker.sock)\n"
	"  --watch        prints a line whenever an update gets further: its stage, the bytes "
	"that\n"
	"                 this broker has moved, who is awaited; until Ctrl-C (0), or until the\n"
	"                 broker goes (1)\n"
	"  --limits       instead: what strew takes at most, by the names of base/limits.h\n"
	"  --json         the same as JSON, for scripts; with --watch one object a line\n"
	"  --help\n"
	"\n"
	"Example: strew status --json | python3 -m json.tool\n";

const char *status_gate(uint32_t gate)
{
	return gate == STREW_GATE_LIVE ? "live" : gate == STREW_GATE_HELD ? "held" : "unknown";
}

const char *status_apply(uint32_t apply)
{
	return apply == STREW_APPLY_DIRECT   ? "direct"
	       : apply == STREW_APPLY_STAGED ? "staged"
					     : "unknown";
}

const char *status_proof(uint32_t proof)
{
	return proof == STREW_PROVED ? "proved" : proof == STREW_UNPROVED ? "unproved" : "-";
}

static void print_broker(const struct msg_status_reply *status)
{
	char slot[32];

	printf("broker   pid %" PRIu64 ", up %" PRIu64 " s, strew %s, backend %s", status->pid,
		status->uptime_ms / 1000, status->library, status->backend);
	if (status->device[0]) {
		printf(", device %s", status->device);
	}
	printf("\n         %s, epoch %" PRIu64 ", carrier %s",
		status->lead ? "lead" : "not the lead", status->epoch, status->carrier);
	if (status->nccl) {
		printf(", NCCL %u", status->nccl);
	}
	printf(", %" PRIu64 " slots of %s, %" PRIu64 " updates, %" PRIu64 " aborted, %" PRIu64
	       " plans made\n",
		status->slots, format_bytes(slot, sizeof(slot), status->slot_bytes),
		status->updates, status->aborted, status->plans);
}

static void print_groups(const struct msg_status_reply *status)
{
	if (!status->ngroups) {
		puts("\nno workers");
		return;
	}
	printf("\n%-16s %7s %4s %7s %-9s %10s %-5s %-7s %10s %10s %6s %6s %6s %7s %s\n", "MODEL",
		"REPLICA", "PART", "WORKERS", "STATE", "VERSION", "GATE", "APPLY", "BYTES",
		"SHADOW", "RAW", "PULL", "LOADER", "REFUSED", "PROOF");
	for (size_t i = 0; i < status->ngroups; i++) {
		const struct status_group *group = &status->groups[i];
		char workers[32], bytes[32], shadow[32];

		snprintf(workers, sizeof(workers), "%u/%u", group->present, group->members);
		printf("%-16s %7u %4u %7s %-9s %10" PRIu64 " %-5s %-7s %10s %10s %6" PRIu64
		       " %6" PRIu64 " %6" PRIu64 " %7" PRIu64 " %s\n",
			group->model, group->replica, group->part, workers,
			strew_group_state_name((enum strew_group_state)group->state),
			group->version, status_gate(group->gate), status_apply(group->apply),
			format_bytes(bytes, sizeof(bytes), group->bytes),
			format_bytes(shadow, sizeof(shadow), group->shadow), group->raw,
			group->pull, group->loader, group->refused, status_proof(group->proof));
	}
}

static void print_others(const struct msg_status_reply *status)
{
	if (status->ntrainers) {
		printf("\n%-16s %7s %10s %10s %10s %s\n", "MODEL", "RANKS", "TENSORS", "BYTES",
			"VERSION", "STAGE");
	}
	for (size_t i = 0; i < status->ntrainers; i++) {
		const struct status_trainer *trainer = &status->trainers[i];
		char ranks[32], bytes[32];

		snprintf(ranks, sizeof(ranks), "%u/%u", trainer->present, trainer->ranks);
		printf("%-16s %7s %10" PRIu64 " %10s %10" PRIu64 " %s", trainer->model, ranks,
			trainer->tensors, format_bytes(bytes, sizeof(bytes), trainer->bytes),
			trainer->version, trainer->stage);
		if (trainer->subset) {
			printf(" (subset %u on version %" PRIu64 ")", trainer->subset,
				trainer->base);
		}
		printf("\n");
	}
	if (status->nbrokers) {
		printf("\n%-6s %-24s %s\n", "BROKER", "NAME", "DEVICE");
	}
	for (size_t i = 0; i < status->nbrokers; i++) {
		printf("%-6u %-24s %s\n", status->brokers[i].rank, status->brokers[i].name,
			status->brokers[i].device);
	}
}

static void print_bounces(const struct msg_status_reply *status)
{
	for (size_t i = 0; i < status->nbounces; i++) {
		const struct status_bounce *bounce = &status->bounces[i];
		char bytes[32];

		printf("%s%s and %s have no peer access: bytes from the one to the other go "
		       "through "
		       "%s of pinned host memory\n",
			i ? "" : "\n", bounce->from, bounce->to,
			format_bytes(bytes, sizeof(bytes), bounce->bytes));
	}
}

int status_ask(struct conn *conn, struct message *ret_reply, struct error *err)
{
	struct message question;

	message_init(&question, MSG_STATUS, 2);
	return ask(conn, &question, MSG_STATUS_REPLY, ret_reply, err);
}

static int run(const char *socket, int json)
{
	struct error err = {0};
	struct message reply;
	struct conn *conn;
	int rc, code = ask_open("strew status", socket, &conn);

	if (code) {
		return code;
	}
	rc = status_ask(conn, &reply, &err);
	conn_destroy(conn);
	if (rc < 0) {
		return ask_failed("strew status", rc, &err);
	}
	if (json) {
		status_print_json(&reply.u.status_reply);
	} else {
		print_broker(&reply.u.status_reply);
		print_groups(&reply.u.status_reply);
		print_others(&reply.u.status_reply);
		print_bounces(&reply.u.status_reply);
	}
	message_finish(&reply);
	return EXIT_OK;
}

int cmd_status(int argc, char **argv)
{
	static const struct option options[] = {{"socket", required_argument, NULL, 's'},
		{"json", no_argument, NULL, 'j'}, {"watch", no_argument, NULL, 'w'},
		{"limits", no_argument, NULL, 'l'}, {"help", no_argument, NULL, 'h'},
		{NULL, 0, NULL, 0}};
	const char *socket = NULL;
	int option, json = 0, watch = 0, limits = 0;

	while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) {
		switch (option) {
		case 's':
			socket = optarg;
			break;
		case 'j':
			json = 1;
			break;
		case 'w':
			watch = 1;
			break;
		case 'l':
			limits = 1;
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
	if (limits && (watch || socket)) {
		fprintf(stderr,
			"strew status: --limits asks no broker: no --%s with it; see strew status "
			"--help\n",
			watch ? "watch" : "socket");
		return EXIT_USAGE;
	}
	if (limits) {
		status_limits(json);
		return EXIT_OK;
	}
	return watch ? status_watch(socket, json) : run(socket, json);
}
