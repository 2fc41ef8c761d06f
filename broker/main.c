/* strewd: options and exit codes. */
#include "base/log.h"
#include "base/output.h"
#include "base/util.h"
#include "broker/ending.h"
#include "broker/server.h"
#include "broker/waits.h"
#include "ipc/socket.h"
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char help[] =
	"Usage: strewd [options]\n"
	"\n"
	"The broker of one node: takes the tensors that a trainer publishes once and scatters\n"
	"their parts into the live memory of every inference worker on this node.\n"
	"\n"
	"  --socket PATH          Unix socket for the node's processes (default: $STREW_SOCKET, "
	"else\n"
	"                         $XDG_RUNTIME_DIR/strew/broker.sock, else "
	"/tmp/strew-UID/broker.sock)\n"
	"  --listen HOST:PORT     be the lead, and let other brokers join here (loopback only,\n"
	"                         if there is no --key-file)\n"
	"  --join HOST:PORT       join the lead there; retries with a growing delay\n"
	"  --join-timeout SECONDS give up if the first join takes longer (default 60)\n"
	"  --key-file FILE        key that all brokers have a copy of: 32 to 256 random bytes, in "
	"a file\n"
	"                         of this user or root with mode 0600 (default: none)\n"
	"  --backend auto|cuda|host  cuda needs a driver and a GPU, host needs neither (default "
	"auto)\n"
	"  --device UUID|INDEX    GPU of the slots, and of some 530 MiB besides (default: that of\n"
	"                         whoever registers first; where a trainer has another GPU than\n"
	"                         the engines, name that)\n"
	"  --slot SIZE            length of a slot, e.g. 256M (default 256M, 64K to 4G)\n"
	"  --slots N              slots in the ring (default 3, 2 to 16)\n"
	"  --shadow gpu|host      where staged updates wait for their commit: on each worker's "
	"GPU\n"
	"                         (default), or in pinned host memory\n"
	"  --ready-fd FD          write READY=1 to this descriptor when the broker serves\n"
	"  --verbose              log more\n"
	"  --help, --version\n"
	"\n"
	"Without --listen and --join it serves this node alone, with no network and no NCCL.\n"
	"SIGTERM ends it after the update under way, a second one at once.\n"
	"Exit codes: 0 in order, 1 failure, 2 usage, 3 no usable device, 4 the lead is "
	"unreachable.\n"
	"\n"
	"Example, two nodes:\n"
	"  strewd --listen 127.0.0.1:7700           beside the trainer\n"
	"  strewd --join 127.0.0.1:7700             beside the workers\n"
	"Across hosts: head -c 32 /dev/urandom > key; chmod 600 key; copy it to all of them, and "
	"give\n"
	"each broker --key-file key. What NCCL sends has no key: use a network that you trust.\n";

enum option_value {
	OPT_SOCKET = 256,
	OPT_LISTEN,
	OPT_JOIN,
	OPT_JOIN_TIMEOUT,
	OPT_KEY_FILE,
	OPT_BACKEND,
	OPT_DEVICE,
	OPT_SLOT,
	OPT_SLOTS,
	OPT_SHADOW,
	OPT_READY_FD,
	OPT_VERBOSE,
	OPT_HELP,
	OPT_VERSION,
};

static const struct option long_options[] = {
	{"socket", required_argument, NULL, OPT_SOCKET},
	{"listen", required_argument, NULL, OPT_LISTEN},
	{"join", required_argument, NULL, OPT_JOIN},
	{"join-timeout", required_argument, NULL, OPT_JOIN_TIMEOUT},
	{"key-file", required_argument, NULL, OPT_KEY_FILE},
	{"backend", required_argument, NULL, OPT_BACKEND},
	{"device", required_argument, NULL, OPT_DEVICE},
	{"slot", required_argument, NULL, OPT_SLOT},
	{"slots", required_argument, NULL, OPT_SLOTS},
	{"shadow", required_argument, NULL, OPT_SHADOW},
	{"ready-fd", required_argument, NULL, OPT_READY_FD},
	{"verbose", no_argument, NULL, OPT_VERBOSE},
	{"help", no_argument, NULL, OPT_HELP},
	{"version", no_argument, NULL, OPT_VERSION},
	{NULL, 0, NULL, 0},
};

static void usage(const char *option, const char *value, const char *wanted)
{
	fprintf(stderr, "strewd: --%s %s: %s; see strewd --help\n", option, value, wanted);
	exit(2);
}

static void set_backend(struct server_options *options, const char *text)
{
	if (strcmp(text, "auto") == 0) {
		options->backend = GPU_AUTO;
	} else if (strcmp(text, "cuda") == 0) {
		options->backend = GPU_CUDA;
	} else if (strcmp(text, "host") == 0) {
		options->backend = GPU_HOST;
	} else {
		usage("backend", text, "auto, cuda or host is wanted");
	}
}

static void set_shadow(struct server_options *options, const char *text)
{
	options->pinned_shadows = strcmp(text, "host") == 0;
	if (!options->pinned_shadows && strcmp(text, "gpu") != 0) {
		usage("shadow", text, "gpu or host is wanted");
	}
}

static void set_number(struct server_options *options, int option, const char *text)
{
	uint64_t value;

	switch (option) {
	case OPT_SLOT:
		if (parse_bytes(text, &value) || value < LIMIT_SLOT_BYTES_MIN ||
			value > LIMIT_SLOT_BYTES_MAX) {
			usage("slot", text, "a size from 64K to 4G is wanted");
		}
		options->slot_bytes = align_up(value, SLOT_ALIGN);
		break;
	case OPT_SLOTS:
		if (parse_u64(text, LIMIT_SLOTS_MIN, LIMIT_SLOTS_MAX, &value)) {
			usage("slots", text, "a number from 2 to 16 is wanted");
		}
		options->slots = (uint32_t)value;
		break;
	case OPT_JOIN_TIMEOUT:
		if (parse_u64(text, 0, 86400, &value)) {
			usage("join-timeout", text, "seconds from 0 to 86400 are wanted");
		}
		options->join_timeout_s = (uint32_t)value;
		break;
	case OPT_READY_FD:
		if (parse_u64(text, 3, 1 << 20, &value) || fcntl((int)value, F_GETFD) < 0) {
			usage("ready-fd", text, "an open descriptor from 3 on is wanted");
		}
		options->ready_fd = (int)value;
		break;
	}
}

/* What one option says of another. */
static void check_options(const struct server_options *options, bool join_timeout)
{
	const char *address = options->listen ? options->listen : options->join;
	struct error err;

	if (options->listen && options->join) {
		fprintf(stderr,
			"strewd: --listen and --join exclude each other; see strewd --help\n");
		exit(2);
	}
	if (address && socket_check_address(address, &err)) {
		fprintf(stderr, "strewd: --%s: %s; see strewd --help\n",
			options->listen ? "listen" : "join", err.text);
		exit(2);
	}
	if (options->device && options->backend == GPU_HOST) {
		usage("device", options->device, "--backend host has no GPU for it");
	}
	/* Brokers of a job may be given the same options: said, not refused. */
	if (join_timeout && !options->join) {
		log_warn("--join-timeout does nothing without --join");
	}
}

static void parse_options(int argc, char **argv, struct server_options *options)
{
	bool join_timeout = false;
	int option;

	while ((option = getopt_long(argc, argv, "", long_options, NULL)) != -1) {
		switch (option) {
		case OPT_SOCKET:
			options->socket = optarg;
			break;
		case OPT_LISTEN:
			options->listen = optarg;
			break;
		case OPT_JOIN:
			options->join = optarg;
			break;
		case OPT_KEY_FILE:
			options->key_file = optarg;
			break;
		case OPT_BACKEND:
			set_backend(options, optarg);
			break;
		case OPT_DEVICE:
			options->device = optarg;
			break;
		case OPT_SHADOW:
			set_shadow(options, optarg);
			break;
		case OPT_VERBOSE:
			log_init("strewd", LOG_LEVEL_DEBUG);
			break;
		case OPT_HELP:
			fputs(help, stdout);
			exit(output_end("strewd", 0));
		case OPT_VERSION:
			puts("strewd " STREW_VERSION);
			exit(output_end("strewd", 0));
		case '?':
			/* getopt has said which one, on its line. */
			exit(2);
		default:
			join_timeout |= option == OPT_JOIN_TIMEOUT;
			set_number(options, option, optarg);
			break;
		}
	}
	if (optind < argc) {
		fprintf(stderr, "strewd: %s: no argument is wanted; see strewd --help\n",
			argv[optind]);
		exit(2);
	}
	check_options(options, join_timeout);
}

/* The same process image from its beginning; whoever waited for readiness has had his answer. */
static int start_again(char **argv, int ready_fd)
{
	if (ready_fd >= 0) {
		int null = open("/dev/null", O_WRONLY | O_CLOEXEC);

		if (null < 0 || dup2(null, ready_fd) < 0) {
			log_error("cannot start anew: %s", strerror(errno));
			return 1;
		}
	}
	execv("/proc/self/exe", argv);
	log_error("cannot start anew: %s", strerror(errno));
	return 1;
}

int main(int argc, char **argv)
{
	struct server_options options = {.slot_bytes = DEFAULT_SLOT_BYTES,
		.slots = DEFAULT_SLOTS,
		.ready_fd = -1,
		.join_timeout_s = 60};
	struct server *server;
	struct error err = {0};
	char path[108];
	bool again;
	int rc;

	log_init("strewd", LOG_LEVEL_INFO);
	parse_options(argc, argv, &options);
	if (socket_path(options.socket, path, &err)) {
		fprintf(stderr, "strewd: %s; see strewd --help\n", err.text);
		return 2;
	}
	rc = server_create(&options, &server, &err);
	if (rc) {
		fprintf(stderr, "strewd: %s\n", err.text);
		return rc == -ENODEV ? 3 : 1;
	}
	rc = server_run(server);
	if (server_abandoned(server)) {
		_exit(rc); /* only the end of the process makes memory quiet now */
	}
	again = server_starts_again(server);
	ending_within(waits.stop_ms);
	server_destroy(server);
	return again ? start_again(argv, options.ready_fd) : rc;
}
