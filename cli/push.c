/* strew push: a checkpoint's tensors into the workers that run now, as a trainer would. */
#include "base/clock.h"
#include "base/util.h"
#include "cli/checkpoint.h"
#include "cli/cli.h"
#include "cli/push_look.h"
#include "cli/reader.h"
#include "ipc/socket.h"
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <strew/strew.h>
#include <string.h>
#include <sys/param.h>
#include <unistd.h>

#define BAR_COLUMNS 32
#define BAR_BYTES (8u << 20) /* between two looks of it */

static const char help[] =
	"Usage: strew push PATH --model NAME --version N [options]\n"
	"\n"
	"Puts the tensors of a checkpoint into all workers of that model, which go on running.\n"
	"PATH is a safetensors file, or a directory with model.safetensors or with\n"
	"model.safetensors.index.json and the shards that it names.\n"
	"\n"
	"  --model NAME       the model that the workers registered for\n"
	"  --version N        its number, above the committed one\n"
	"  --socket PATH      the broker's socket (default: $STREW_SOCKET, else\n"
	"                     $XDG_RUNTIME_DIR/strew/broker.sock, else "
	"/tmp/strew-UID/broker.sock)\n"
	"  --hash             compare what goes over the wire at both ends, also where workers "
	"are\n"
	"                     written directly (staged: always)\n"
	"  --partial          parameters that it does not cover keep their values\n"
	"  --timeout SECONDS  deadline of the update, and of each answer before it (default 60)\n"
	"  --help\n"
	"\n"
	"Ends with 0 if every group took the version and there was at least one. Ctrl-C ends this\n"
	"program and not an update that is under way: the version may still be committed (see\n"
	"strew events).\n"
	"\n"
	"Example: strew push checkpoints/step-200 --model llama --version 200\n";

struct push {
	const char *path, *socket, *model;
	uint64_t version, timeout_s;
	bool partial, hash;
	struct checkpoint checkpoint;
	unsigned char *image; /* the shards, in memory that the broker can map */
	struct reader_file *files;
	struct reader *reader;
	bool on_terminal;
	uint64_t shown; /* bytes, by the bar … */
	bool bar_open;	/* … which a sentence must not be written behind */
	struct strew_trainer *trainer;
};

/* Called from the reader's threads, one at a time. */
static void progress(void *arg, uint64_t done)
{
	struct push *push = arg;
	uint64_t whole = push->checkpoint.file_bytes;
	unsigned filled;
	char bytes[32];

	if (!push->on_terminal || (done < whole && done - push->shown < BAR_BYTES)) {
		return;
	}
	push->shown = done;
	filled = (unsigned)((double)done / (double)whole * BAR_COLUMNS);
	fprintf(stderr, "\rreading [%.*s%*s] %s%s", (int)filled, "################################",
		(int)(BAR_COLUMNS - filled), "", format_bytes(bytes, sizeof(bytes), done),
		done == whole ? "\n" : "");
}

/* What a call has ended with; behind a deadline, also what the broker is waiting for. */
static void say_failure(const struct push *push, int rc, const char *why)
{
	char progress[LIMIT_TEXT_BYTES] = "";

	if (rc == -ETIMEDOUT) {
		push_look_progress(push->socket, push->model, progress);
	}
	fprintf(stderr, "%sstrew push: %s%s\n", push->bar_open ? "\n" : "", why, progress);
}

/* Lets the shards be read into memory of the broker's reach, by threads. */
static int start_reading(struct push *push, struct error *err)
{
	const struct checkpoint *checkpoint = &push->checkpoint;
	struct reader_options options = {
		.memory_bytes = checkpoint->image_bytes, .progress = progress, .arg = push};
	void *image = NULL;
	int rc = strew_host_alloc(checkpoint->image_bytes, &image);

	if (rc < 0) {
		return error_set(err, rc, "%s", strew_error());
	}
	push->image = options.memory = image;
	push->files = calloc(checkpoint->nshards, sizeof(*push->files));
	if (!push->files) {
		return error_set(err, -ENOMEM, "no memory for %zu files", checkpoint->nshards);
	}
	for (size_t i = 0; i < checkpoint->nshards; i++) {
		const struct shard *shard = &checkpoint->shards[i];

		push->files[i] = (struct reader_file){.fd = shard->file.fd,
			.path = shard->path,
			.bytes = shard->bytes,
			.to = push->image + shard->place};
	}
	push->on_terminal = isatty(STDERR_FILENO);
	return reader_start(&options, push->files, checkpoint->nshards, &push->reader, err);
}

static int declare_shard(struct push *push, const struct shard *shard)
{
	const unsigned char *data = push->image + shard->place + shard->file.data_offset;
	int rc = 0;

	for (size_t i = 0; i < shard->file.ntensors && rc >= 0; i++) {
		const struct safetensors_tensor *from = &shard->file.tensors[i];
		struct strew_tensor tensor = {
			.name = from->tensor.name,
			.dtype = from->tensor.dtype,
			.ndim = from->tensor.ndim,
			.data = data + from->offset,
		};

		if (!from->bytes) {
			fprintf(stderr, "strew push: tensor \"%.80s\" is empty, nothing to send\n",
				tensor.name);
			continue;
		}
		memcpy(tensor.shape, from->tensor.shape, sizeof(tensor.shape));
		rc = strew_trainer_declare(push->trainer, &tensor);
	}
	return rc;
}

/* The broker maps the memory, and pins it for a GPU, which takes a while: reading goes on. */
static int declare(struct push *push)
{
	int rc = 0;

	for (size_t i = 0; i < push->checkpoint.nshards && rc >= 0; i++) {
		rc = declare_shard(push, &push->checkpoint.shards[i]);
	}
	return rc < 0 ? rc : strew_trainer_seal(push->trainer);
}

static void print_read(const struct push *push, const struct reader_result *result)
{
	const struct checkpoint *checkpoint = &push->checkpoint;
	char bytes[32];

	printf("read %zu tensors, %s, from %zu file%s in %.3f s (%.1f GB/s, %s)\n",
		checkpoint->ntensors, format_bytes(bytes, sizeof(bytes), checkpoint->data_bytes),
		checkpoint->nshards, checkpoint->nshards == 1 ? "" : "s", result->seconds,
		(double)result->bytes / MAX(result->seconds, 1e-9) * 1e-9, result->how);
}

/* Until every byte is there and the broker has mapped it. */
static int read_and_declare(struct push *push)
{
	struct reader_result result;
	struct error err = {0}, read_err = {0};
	int rc = start_reading(push, &err), read_rc;

	if (rc >= 0) {
		rc = declare(push);
		if (rc < 0) {
			error_set(&err, rc, "%s", strew_error());
			reader_cancel(push->reader);
		}
		read_rc = reader_finish(push->reader, &result, &read_err);
		push->reader = NULL;
		if (read_rc < 0 && read_rc != -ECANCELED) {
			rc = read_rc;
			err = read_err;
		}
	}
	if (rc < 0) {
		push->bar_open = push->on_terminal && push->shown;
		say_failure(push, rc, err.text);
		return rc;
	}
	print_read(push, &result);
	return 0;
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

/* No group was asked, as a rule since there is none. */
static void say_nowhere(const struct push *push, const struct strew_report *report)
{
	static const char nobody[] = "no worker of this model is registered";
	const char *text = report->text && report->text[0] ? report->text : nobody;
	char more[LIMIT_TEXT_BYTES];

	if (strcmp(text, nobody) == 0) {
		push_look_models(push->socket, more);
	} else {
		push_look_progress(push->socket, push->model, more);
	}
	fprintf(stderr, "strew push: version %" PRIu64 " of %s went nowhere: %s%s\n",
		report->version, push->model, text, more);
}

/* Says how it went. True if every group has the version. */
static bool print_report(const struct push *push, const struct strew_report *report)
{
	char bytes[32], wire[32];
	bool all = report->ngroups > 0 && report->outcome == STREW_OUTCOME_COMMITTED;
	bool nothing;

	print_groups(report);
	for (size_t i = 0; i < report->ngroups; i++) {
		all &= report->groups[i].outcome == STREW_OUTCOME_COMMITTED;
	}
	nothing = all && report->tensors && report->unwanted == report->tensors;
	if (report->unwanted) {
		printf("no worker wants %" PRIu64 " of %" PRIu64 " tensors\n", report->unwanted,
			report->tensors);
	}
	if (nothing) {
		fprintf(stderr,
			"strew push: version %" PRIu64
			" of %s is committed and has changed nothing: "
			"no worker wants any of the checkpoint's tensors\n",
			report->version, push->model);
	} else if (all) {
		printf("version %" PRIu64 " of %s committed in %zu %s: %" PRIu64 " tensors, %s "
		       "(%s to other brokers) in %.3f s (wait %.3f, accept %.3f, move %.3f, "
		       "commit %.3f)\n",
			report->version, push->model, report->ngroups,
			report->ngroups == 1 ? "group" : "groups", report->tensors,
			format_bytes(bytes, sizeof(bytes), report->bytes),
			format_bytes(wire, sizeof(wire), report->wire_bytes), report->total_s,
			report->wait_s, report->accept_s, report->move_s, report->commit_s);
	} else if (!report->ngroups) {
		say_nowhere(push, report);
	} else {
		const char *text = report->text;

		for (size_t i = 0; (!text || !text[0]) && i < report->ngroups; i++) {
			text = report->groups[i].text;
		}
		fprintf(stderr, "strew push: version %" PRIu64 " of %s is not in every group: %s\n",
			report->version, push->model, text ? text : "");
	}
	return all && !nothing;
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
		(push->partial ? STREW_PUBLISH_PARTIAL : 0) | (push->hash ? STREW_PUBLISH_HASH : 0),
		timeout_ms);
	if (rc >= 0) {
		rc = strew_trainer_wait_released(push->trainer, wait_ms);
	}
	if (rc >= 0) {
		rc = strew_trainer_wait_report(push->trainer, wait_ms, &report);
	}
	if (rc < 0) {
		say_failure(push, rc, strew_error());
		return EXIT_RUNTIME;
	}
	all = print_report(push, &report);
	strew_report_finish(&report);
	return all ? EXIT_OK : EXIT_RUNTIME;
}

static int push_checkpoint(struct push *push)
{
	struct strew_trainer_options options = {.socket = push->socket,
		.model = push->model,
		.timeout_ms = (int)push->timeout_s * 1000};
	const struct push_look look = {.socket = push->socket,
		.model = push->model,
		.version = push->version,
		.partial = push->partial ? &push->checkpoint : NULL};
	struct error err = {0};
	int rc = checkpoint_open(push->path, &push->checkpoint, &err);

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
	if (push_look(&look, &err)) {
		fprintf(stderr, "strew push: %s\n", err.text);
		return EXIT_RUNTIME;
	}
	return read_and_declare(push) < 0 ? EXIT_RUNTIME : publish(push);
}

/* 0, or the exit code. *ret_help: help was printed. */
static int parse(int argc, char **argv, struct push *push, bool *ret_help)
{
	static const struct option options[] = {{"model", required_argument, NULL, 'm'},
		{"version", required_argument, NULL, 'v'}, {"socket", required_argument, NULL, 's'},
		{"timeout", required_argument, NULL, 't'}, {"partial", no_argument, NULL, 'p'},
		{"hash", no_argument, NULL, 'H'}, {"help", no_argument, NULL, 'h'},
		{NULL, 0, NULL, 0}};
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
			push->partial = true;
			break;
		case 'H':
			push->hash = true;
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
		fputs("strew push: one PATH, --model NAME and --version N are wanted; see strew "
		      "push --help\n",
			stderr);
		return EXIT_USAGE;
	}
	push->path = argv[optind];
	return EXIT_OK;
}

int cmd_push(int argc, char **argv)
{
	struct push push = {.timeout_s = LIMIT_UPDATE_MS / 1000};
	bool helped = false;
	int code = parse(argc, argv, &push, &helped);
	struct error err = {0};
	char path[108];

	if (code || helped) {
		return code;
	}
	if (socket_path(push.socket, path, &err)) {
		fprintf(stderr, "strew push: %s\n", err.text);
		return EXIT_USAGE;
	}
	setvbuf(stdout, NULL, _IOLBF, 0);
	code = push_checkpoint(&push);
	strew_trainer_close(push.trainer);
	strew_host_free(push.image);
	free(push.files);
	checkpoint_close(&push.checkpoint);
	return code;
}
