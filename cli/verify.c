/*
 * strew verify: reads the workers' live memory back through the broker, stretch by stretch while
 * no update is under way, and compares it with a checkpoint or with the trainer's own memory,
 * tensor by tensor.
 */
#include "base/util.h"
#include "cli/ask.h"
#include "cli/cli.h"
#include "cli/compare.h"
#include "cli/originals.h"
#include "cli/readback.h"
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char help[] =
	"Usage: strew verify FILE|DIRECTORY|--trainer [--model NAME] [--socket PATH]\n"
	"\n"
	"Reads the memory of the workers of this node back while they run, and compares it with a\n"
	"checkpoint, which is a safetensors file or a directory as for strew push. A line for "
	"each\n"
	"tensor that differs in a worker, or that a worker takes and the checkpoint does not "
	"have.\n"
	"What a worker pulls is compared in the broker's twin of it. It waits while an update is\n"
	"under way, and gives up if one was committed meanwhile.\n"
	"\n"
	"  --trainer      compare with what the trainer ranks of this node hold now: right after\n"
	"                 an update, as long as the trainer does not go on. It is read into this\n"
	"                 process, so there must be free memory for the model. A trainer that\n"
	"                 publishes in parts holds the last one alone, and cannot be compared "
	"with.\n"
	"  --model NAME   only workers of this model\n"
	"  --socket PATH  the broker's socket (default: $STREW_SOCKET, else\n"
	"                 $XDG_RUNTIME_DIR/strew/broker.sock, else /tmp/strew-UID/broker.sock)\n"
	"  --help\n"
	"\n"
	"Ends with 0 if there is a worker, and all that its layout maps is equal; else with 1.\n"
	"\n"
	"Example: strew verify checkpoints/step-200 && echo the engine runs step 200\n";

struct verify {
	const char *model;
	struct conn *conn;
	struct originals originals;
	/* the worker under way */
	struct msg_laid_out worker;
	struct layout layout;
	size_t *order;		    /* its pieces, by parameter */
	struct comparison *tensors; /* of its layout */
	/* all of them */
	uint64_t workers, compared, bytes, wrong, twins;
};

/* Compares all pieces of one parameter, which are order[first .. first + n). */
static int verify_parameter(struct verify *verify, const struct parameter *parameter, size_t first,
	size_t n, struct error *err)
{
	uint64_t bytes = parameter_span_bytes(parameter);
	unsigned char *memory = malloc(bytes + 1);
	int rc = memory ? 0 : error_set(err, -ENOMEM, "out of memory");

	rc = rc ? rc
		: readback_read(verify->conn, &verify->worker, parameter->allocation,
			  parameter->offset_bytes, bytes, memory, err);
	for (size_t i = first; rc == 0 && i < first + n; i++) {
		const struct piece *piece = &verify->layout.pieces[verify->order[i]];
		const struct tensor *tensor = &verify->layout.tensors[piece->tensor];
		const char *why;
		const struct original *original = originals_find(&verify->originals, tensor, &why);

		if (original) {
			compare_piece(tensor, original->bytes, piece, parameter, memory,
				&verify->tensors[piece->tensor]);
		}
	}
	for (size_t i = 0; i < verify->worker.ntwins; i++) {
		verify->twins += verify->worker.twins[i] == parameter->allocation;
	}
	verify->bytes += bytes;
	free(memory);
	return rc;
}

/* The number of an element as its index in the tensor. */
static const char *index_text(char *buf, size_t size, const struct tensor *tensor, uint64_t number)
{
	uint64_t index[STREW_MAX_DIMS];

	for (int d = tensor->ndim - 1; d >= 0; d--) {
		index[d] = number % tensor->shape[d];
		number /= tensor->shape[d];
	}
	return dims_format(buf, size, tensor->ndim, index);
}

static void say_worker(struct verify *verify)
{
	const struct msg_laid_out *worker = &verify->worker;

	verify->workers++;
	for (size_t i = 0; i < verify->layout.ntensors; i++) {
		const struct tensor *tensor = &verify->layout.tensors[i];
		const struct comparison *comparison = &verify->tensors[i];
		const char *why;
		char at[160];

		verify->compared++;
		if (originals_find(&verify->originals, tensor, &why) && !comparison->differ) {
			continue;
		}
		verify->wrong++;
		printf("%s: in model %s replica %u part %u worker %u (process %" PRIu64 ") ",
			tensor->name, worker->model, worker->replica, worker->part, worker->member,
			worker->pid);
		if (why) {
			printf("not compared: %s %s\n", verify->originals.owner, why);
		} else {
			printf("%" PRIu64 " of %" PRIu64 " elements differ, the first at %s\n",
				comparison->differ, comparison->elements,
				index_text(at, sizeof(at), tensor, comparison->first));
		}
	}
}

/* The worker behind that one. 1: it is there; 0: there are no more. */
static int take_worker(struct verify *verify, uint64_t after, struct error *err)
{
	struct blob blob;
	int rc = readback_next(verify->conn, after, false, &verify->worker, &blob, err);

	if (rc > 0) {
		int failed =
			blob_to_layout(&blob, verify->worker.partial != 0, &verify->layout, err);

		rc = failed ? failed : rc;
		blob_finish(&blob);
	}
	return rc;
}

static const struct layout *sorting; /* qsort has no argument of the caller's */

static int by_parameter(const void *a, const void *b)
{
	uint32_t left = sorting->pieces[*(const size_t *)a].parameter;
	uint32_t right = sorting->pieces[*(const size_t *)b].parameter;

	return (left > right) - (left < right);
}

static int verify_worker(struct verify *verify, struct error *err)
{
	const struct layout *layout = &verify->layout;
	int rc = 0;

	verify->order = calloc(layout->npieces + 1, sizeof(*verify->order));
	verify->tensors = calloc(layout->ntensors + 1, sizeof(*verify->tensors));
	if (!verify->order || !verify->tensors) {
		rc = error_set(err, -ENOMEM, "out of memory");
	}
	for (size_t i = 0; rc == 0 && i < layout->npieces; i++) {
		verify->order[i] = i;
	}
	sorting = layout;
	if (rc == 0) {
		qsort(verify->order, layout->npieces, sizeof(*verify->order), by_parameter);
	}
	for (size_t i = 0, n; rc == 0 && i < layout->npieces; i += n) {
		uint32_t parameter = layout->pieces[verify->order[i]].parameter;

		for (n = 1; i + n < layout->npieces &&
			    layout->pieces[verify->order[i + n]].parameter == parameter;
			n++) {
		}
		rc = verify_parameter(verify, &layout->parameters[parameter], i, n, err);
	}
	if (rc == 0) {
		say_worker(verify);
	}
	return rc;
}

static void forget_worker(struct verify *verify)
{
	layout_finish(&verify->layout);
	layout_init(&verify->layout);
	free(verify->worker.twins);
	free(verify->order);
	free(verify->tensors);
	verify->worker.twins = NULL;
	verify->order = NULL;
	verify->tensors = NULL;
}

static int verify_all(struct verify *verify)
{
	char bytes[32];
	struct error err = {0};
	uint64_t after = 0;
	int rc = 1;

	while (rc > 0) {
		rc = take_worker(verify, after, &err);
		after = verify->worker.worker;
		if (rc > 0 &&
			(!verify->model || strcmp(verify->model, verify->worker.model) == 0)) {
			int failed = verify_worker(verify, &err);

			rc = failed ? failed : rc;
		}
		forget_worker(verify);
	}
	if (rc < 0) {
		return ask_failed("strew verify", rc, &err);
	}
	if (!verify->workers) {
		fputs("strew verify: there is no worker to compare with\n", stderr);
		return EXIT_RUNTIME;
	}
	printf("%" PRIu64 " workers, %" PRIu64 " tensors in them, %s compared", verify->workers,
		verify->compared, format_bytes(bytes, sizeof(bytes), verify->bytes));
	if (verify->twins) {
		printf(", %" PRIu64 " parameters in their twins", verify->twins);
	}
	if (verify->originals.twins) {
		printf(", %" PRIu64 " boxes of the trainer in their twins",
			verify->originals.twins);
	}
	printf(": %" PRIu64 " differ\n", verify->wrong);
	return verify->wrong ? EXIT_RUNTIME : EXIT_OK;
}

/* path NULL: the trainer's memory. */
static int run(struct verify *verify, const char *path, const char *socket)
{
	struct error err = {0};
	int code = EXIT_OK, rc = 0;

	layout_init(&verify->layout);
	if (path && originals_of_checkpoint(path, &verify->originals, &err)) {
		fprintf(stderr, "strew verify: %s\n", err.text);
		code = EXIT_RUNTIME;
	}
	code = code ? code : ask_open("strew verify", socket, &verify->conn);
	if (code == EXIT_OK && !path) {
		rc = originals_of_trainer(verify->conn, verify->model, &verify->originals, &err);
		verify->model = verify->originals.model;
		code = rc ? ask_failed("strew verify", rc, &err) : EXIT_OK;
	}
	code = code ? code : verify_all(verify);
	if (verify->conn) {
		conn_destroy(verify->conn);
	}
	originals_close(&verify->originals);
	return code;
}

int cmd_verify(int argc, char **argv)
{
	static const struct option options[] = {{"socket", required_argument, NULL, 's'},
		{"model", required_argument, NULL, 'm'}, {"trainer", no_argument, NULL, 't'},
		{"help", no_argument, NULL, 'h'}, {NULL, 0, NULL, 0}};
	struct verify verify = {0};
	const char *socket = NULL;
	bool trainer = false;
	int option;

	while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) {
		switch (option) {
		case 's':
			socket = optarg;
			break;
		case 'm':
			verify.model = optarg;
			break;
		case 't':
			trainer = true;
			break;
		case 'h':
			fputs(help, stdout);
			return EXIT_OK;
		default:
			return EXIT_USAGE;
		}
	}
	if (optind + !trainer != argc) {
		fprintf(stderr, "strew verify: one FILE or DIRECTORY is wanted, or --trainer; see "
				"strew verify --help\n");
		return EXIT_USAGE;
	}
	return run(&verify, argv[optind], socket);
}
