/* strew push: a checkpoint's tensors into the workers that run now, as a trainer would. */
#include "base/clock.h"
#include "base/util.h"
#include "cli/cli.h"
#include "cli/safetensors.h"
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <strew/strew.h>
#include <string.h>
#include <sys/param.h>
#include <unistd.h>

#define CHUNK_BYTES (8u << 20)
#define BAR_COLUMNS 32

static const char help[] =
	"Usage: strew push FILE.safetensors --model NAME --version N [options]\n"
	"\n"
	"Puts the tensors of a checkpoint into all workers of that model, which go on running.\n"
	"\n"
	"  --model NAME       the model that the workers registered for\n"
	"  --version N        its number, above the committed one\n"
	"  --socket PATH      the broker's socket (default: $STREW_SOCKET, else\n"
	"                     $XDG_RUNTIME_DIR/strew/broker.sock, else "
	"/tmp/strew-UID/broker.sock)\n"
	"  --partial          parameters that the file does not cover keep their values\n"
	"  --timeout SECONDS  deadline of the update, and of each answer before it (default 60)\n"
	"  --help\n"
	"\n"
	"Ends with 0 if every group took the version and there was at least one.\n"
	"\n"
	"Example: strew push step-200.safetensors --model llama --version 200\n";

struct push {
	const char *path, *socket, *model;
	uint64_t version, timeout_s;
	int partial;
	struct safetensors file;
	unsigned char *data; /* the file's data, in memory that the broker can map */
	struct strew_trainer *trainer;
};

static void progress(const struct push *push, uint64_t done, int last)
{
	uint64_t all = push->file.data_bytes;
	unsigned filled = all ? (unsigned)(done * BAR_COLUMNS / all) : BAR_COLUMNS;
	char bytes[32];

	if (!isatty(STDERR_FILENO)) {
		return;
	}
	fprintf(stderr, "\rreading [%.*s%*s] %s%s", (int)filled, "################################",
		(int)(BAR_COLUMNS - filled), "", format_bytes(bytes, sizeof(bytes), done),
		last ? "\n" : "");
}

static int read_data(struct push *push, struct error *err)
{
	uint64_t done = 0;
	void *data = NULL;
	int rc = strew_host_alloc(MAX(push->file.data_bytes, 1), &data);

	if (rc < 0) {
		return error_set(err, rc, "%s", strew_error());
	}
	push->data = data;
	while (done < push->file.data_bytes) {
		uint64_t want = MIN(push->file.data_bytes - done, CHUNK_BYTES);
		ssize_t n = pread(push->file.fd, push->data + done, want,
			(off_t)(push->file.data_offset + done));

		if (n < 0 && errno == EINTR) {
			continue;
		}
		if (n < 0) {
			return error_set(err, -errno, "%.160s: reading failed: %s", push->path,
				strerror(errno));
		}
		if (n == 0) {
			return error_set(err, -EINVAL,
				"%.160s: the file became shorter while it was read", push->path);
		}
		done += (uint64_t)n;
		progress(push, done, done == push->file.data_bytes);
	}
	return 0;
}

static int declare(struct push *push)
{
	int rc = 0;

	for (size_t i = 0; i < push->file.ntensors && rc >= 0; i++) {
		const struct safetensors_tensor *from = &push->file.tensors[i];
		struct strew_tensor tensor = {
			.name = from->tensor.name,
			.dtype = from->tensor.dtype,
			.ndim = from->tensor.ndim,
			.data = push->data + from->offset,
		};

		if (!from->bytes) {
			fprintf(stderr, "strew push: tensor \"%.80s\" is empty, nothing to send\n",
				tensor.name);
			continue;
		}
		memcpy(tensor.shape, from->tensor.shape, sizeof(tensor.shape));
		rc = strew_trainer_declare(push->trainer, &tensor);
	}
	return rc < 0 ? rc : strew_trainer_seal(push->trainer);
}

static void print_groups(const struct strew_report *report)
{
	for (size_t i = 0; i < report->ngroups; i++) {
		const struct strew_group_report *group = &report->groups[i];
		int said = group->text && group->text[0];

		printf("node %u replica %u part %u: %s, %s%s%s\n", group->node, group->replica,
			group->part, strew_outcome_name(group->outcome),
			strew_group_state_name(group->state), said ? ": " : "",
			said ? group->text : "");
	}
}

/* Says how it went. True if every group has the version. */
static bool print_report(const struct push *push, const struct strew_report *report)
{
	char bytes[32], wire[32];
	bool all = report->ngroups > 0 && report->outcome == STREW_OUTCOME_COMMITTED;

	print_groups(report);
	for (size_t i = 0; i < report->ngroups; i++) {
		all &= report->groups[i].outcome == STREW_OUTCOME_COMMITTED;
	}
	if (report->unwanted) {
		printf("no worker wants %" PRIu64 " of %" PRIu64 " tensors\n", report->unwanted,
			report->tensors);
	}
	if (all) {
		printf("version %" PRIu64 " of %s committed in %zu %s: %" PRIu64 " tensors, %s "
		       "(%s to other brokers) in %.3f s (wait %.3f, accept %.3f, move %.3f, "
		       "commit %.3f)\n",
			report->version, push->model, report->ngroups,
			report->ngroups == 1 ? "group" : "groups", report->tensors,
			format_bytes(bytes, sizeof(bytes), report->bytes),
			format_bytes(wire, sizeof(wire), report->wire_bytes), report->total_s,
			report->wait_s, report->accept_s, report->move_s, report->commit_s);
	} else if (!report->ngroups) {
		fprintf(stderr, "strew push: version %" PRIu64 " went nowhere: %s\n",
			report->version,
			report->text && report->text[0] ? report->text
							: "no worker has registered for the model");
	} else {
		const char *text = report->text;

		for (size_t i = 0; (!text || !text[0]) && i < report->ngroups; i++) {
			text = report->groups[i].text;
		}
		fprintf(stderr, "strew push: version %" PRIu64 " of %s is not in every group: %s\n",
			report->version, push->model, text ? text : "");
	}
	return all;
}

static int publish(struct push *push)
{
	int timeout_ms = (int)push->timeout_s * 1000;
	/* The report comes after the deadline if something hangs; wait a little longer. */
	int wait_ms = timeout_ms + LIMIT_ABORT_MS + LIMIT_CALL_MS;
	struct strew_report report;
	bool all;
	int rc;

	rc = strew_trainer_publish(push->trainer, push->version, NULL,
		push->partial ? STREW_PUBLISH_PARTIAL : 0, timeout_ms);
	if (rc >= 0) {
		rc = strew_trainer_wait_released(push->trainer, wait_ms);
	}
	if (rc >= 0) {
		rc = strew_trainer_wait_report(push->trainer, wait_ms, &report);
	}
	if (rc < 0) {
		fprintf(stderr, "strew push: %s\n", strew_error());
		return EXIT_RUNTIME;
	}
	all = print_report(push, &report);
	strew_report_finish(&report);
	return all ? EXIT_OK : EXIT_RUNTIME;
}

static int push_file(struct push *push)
{
	struct strew_trainer_options options = {.socket = push->socket,
		.model = push->model,
		.timeout_ms = (int)push->timeout_s * 1000};
	struct error err = {0};
	uint64_t start = clock_ns();
	char bytes[32];
	int rc;

	rc = safetensors_open(push->path, &push->file, &err);
	if (!rc && !push->file.data_bytes) {
		rc = error_set(&err, -EINVAL, "%.160s: it has no data", push->path);
	}
	if (rc) {
		fprintf(stderr, "strew push: %s\n", err.text);
		return EXIT_RUNTIME;
	}
	/* Before the data is read: a broker that is not there need not wait for that. */
	rc = strew_trainer_open(&options, &push->trainer);
	if (rc < 0) {
		fprintf(stderr, "strew push: %s\n", strew_error());
		return rc == -EINVAL || rc == -E2BIG || rc == -EPROTO ? EXIT_RUNTIME
								      : EXIT_UNREACHABLE;
	}
	if (read_data(push, &err) < 0) {
		fprintf(stderr, "strew push: %s\n", err.text);
		return EXIT_RUNTIME;
	}
	printf("read %zu tensors, %s, in %.3f s\n", push->file.ntensors,
		format_bytes(bytes, sizeof(bytes), push->file.data_bytes),
		(double)(clock_ns() - start) * 1e-9);
	if (declare(push) < 0) {
		fprintf(stderr, "strew push: %s\n", strew_error());
		return EXIT_RUNTIME;
	}
	return publish(push);
}

/* 0, or the exit code. *ret_help: help was printed. */
static int parse(int argc, char **argv, struct push *push, bool *ret_help)
{
	static const struct option options[] = {{"model", required_argument, NULL, 'm'},
		{"version", required_argument, NULL, 'v'}, {"socket", required_argument, NULL, 's'},
		{"timeout", required_argument, NULL, 't'}, {"partial", no_argument, NULL, 'p'},
		{"help", no_argument, NULL, 'h'}, {NULL, 0, NULL, 0}};
	int option, bad = 0;

	while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) {
		switch (option) {
		case 'm':
			push->model = optarg;
			break;
		case 's':
			push->socket = optarg;
			break;
		case 'p':
			push->partial = 1;
			break;
		case 'v':
			bad = parse_u64(optarg, 1, UINT64_MAX, &push->version);
			break;
		case 't':
			bad = parse_u64(optarg, 1, LIMIT_UPDATE_MAX_MS / 1000, &push->timeout_s);
			break;
		case 'h':
			fputs(help, stdout);
			*ret_help = true;
			return EXIT_OK;
		default:
			return EXIT_USAGE;
		}
		if (bad) {
			fprintf(stderr, "strew push: --%s %s: %s; see strew push --help\n",
				option == 'v' ? "version" : "timeout", optarg,
				option == 'v' ? "a whole number from 1 on is wanted"
					      : "1 to 3600 seconds are wanted");
			return EXIT_USAGE;
		}
	}
	if (optind + 1 != argc || !push->model || !push->model[0] || !push->version) {
		fputs("strew push: one FILE, --model NAME and --version N are wanted; see strew "
		      "push --help\n",
			stderr);
		return EXIT_USAGE;
	}
	push->path = argv[optind];
	return EXIT_OK;
}

int cmd_push(int argc, char **argv)
{
	struct push push = {.timeout_s = LIMIT_UPDATE_MS / 1000, .file = {.fd = -1}};
	bool helped = false;
	int code = parse(argc, argv, &push, &helped);

	if (code || helped) {
		return code;
	}
	setvbuf(stdout, NULL, _IOLBF, 0);
	code = push_file(&push);
	strew_trainer_close(push.trainer);
	strew_host_free(push.data);
	safetensors_close(&push.file);
	return code;
}
