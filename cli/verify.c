/*
 * strew verify: reads the workers' live memory back through the broker, stretch by stretch while
 * no update is under way, and compares it with a checkpoint, tensor by tensor.
 */
#include "base/clock.h"
#include "base/util.h"
#include "cli/ask.h"
#include "cli/checkpoint.h"
#include "cli/cli.h"
#include "cli/compare.h"
#include "ipc/blob.h"
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <strew/strew.h>
#include <string.h>
#include <sys/mman.h>

#define BUSY_MS 50	   /* between two tries while an update is under way */
#define PATIENCE_MS 120000 /* for an update to end */

static const char help[] =
	"Usage: strew verify FILE|DIRECTORY [--model NAME] [--socket PATH]\n"
	"\n"
	"Reads the memory of the workers of this node back while they run, and compares it with a\n"
	"checkpoint, which is a safetensors file or a directory as for strew push. A line for "
	"each\n"
	"tensor that differs in a worker, or that a worker takes and the checkpoint does not "
	"have.\n"
	"What a worker pulls is compared in the broker's twin of it. It waits while an update is\n"
	"under way, and gives up if one was committed meanwhile.\n"
	"\n"
	"  --model NAME   only workers of this model\n"
	"  --socket PATH  the broker's socket (default: $STREW_SOCKET, else\n"
	"                 $XDG_RUNTIME_DIR/strew/broker.sock, else /tmp/strew-UID/broker.sock)\n"
	"  --help\n"
	"\n"
	"Ends with 0 if there is a worker, and all that its layout maps is equal; else with 1.\n"
	"\n"
	"Example: strew verify checkpoints/step-200 && echo the engine runs step 200\n";

struct original {
	const struct tensor *tensor;
	const unsigned char *bytes;
};

struct verify {
	const char *model;
	struct conn *conn;
	struct checkpoint checkpoint;
	unsigned char **images;	    /* one a shard, mapped */
	struct original *originals; /* one a tensor, by name */
	/* the worker under way */
	struct msg_laid_out worker;
	struct layout layout;
	size_t *order;		    /* its pieces, by parameter */
	struct comparison *tensors; /* of its layout */
	/* all of them */
	uint64_t workers, compared, bytes, wrong, twins;
};

static int by_name(const void *a, const void *b)
{
	return strcmp(((const struct original *)a)->tensor->name,
		((const struct original *)b)->tensor->name);
}

static int open_checkpoint(struct verify *verify, const char *path, struct error *err)
{
	struct checkpoint *checkpoint = &verify->checkpoint;
	size_t n = 0;
	int rc = checkpoint_open(path, checkpoint, err);

	if (rc) {
		return rc;
	}
	verify->images = calloc(checkpoint->nshards + 1, sizeof(*verify->images));
	verify->originals = calloc(checkpoint->ntensors + 1, sizeof(*verify->originals));
	if (!verify->images || !verify->originals) {
		return error_set(err, -ENOMEM, "out of memory");
	}
	for (size_t i = 0; i < checkpoint->nshards; i++) {
		const struct shard *shard = &checkpoint->shards[i];
		void *image = mmap(NULL, shard->bytes, PROT_READ, MAP_PRIVATE, shard->file.fd, 0);

		if (image == MAP_FAILED) {
			return error_set(err, -errno, "%s: %s", shard->path, strerror(errno));
		}
		verify->images[i] = image;
		for (size_t k = 0; k < shard->file.ntensors; k++) {
			const struct safetensors_tensor *tensor = &shard->file.tensors[k];

			verify->originals[n++] = (struct original){&tensor->tensor,
				verify->images[i] + shard->file.data_offset + tensor->offset};
		}
	}
	qsort(verify->originals, n, sizeof(*verify->originals), by_name);
	return 0;
}

/* The tensor of the checkpoint, or NULL and why it cannot be compared. */
static const struct original *find_original(
	const struct verify *verify, const struct tensor *wanted, const char **ret_why)
{
	struct original key = {wanted, NULL};
	const struct original *found =
		bsearch(&key, verify->originals, verify->checkpoint.ntensors, sizeof(key), by_name);

	*ret_why = !found ? "the checkpoint does not have it"
		   : found->tensor->dtype != wanted->dtype
			   ? "the checkpoint has it in another dtype"
		   : found->tensor->ndim != wanted->ndim ||
				   memcmp(found->tensor->shape, wanted->shape,
					   (size_t)wanted->ndim * sizeof(wanted->shape[0])) != 0
			   ? "the checkpoint has it in another shape"
			   : NULL;
	return *ret_why ? NULL : found;
}

/* The layout of the worker behind that one. 1: it is there; 0: there are no more. */
static int take_layout(struct verify *verify, uint64_t after, struct error *err)
{
	uint64_t deadline = deadline_in_ms(ASK_MS);
	struct blob blob = {0};
	struct message message;
	int rc;

	message_init(&message, MSG_LAYOUT, 2);
	message.u.layout.after = after;
	rc = conn_send_wait(verify->conn, &message, deadline, err);
	while (rc >= 0) {
		rc = conn_receive_wait(verify->conn, deadline, &message, err);
		if (rc < 0) {
			break;
		}
		if (message.type != MSG_PART) {
			break;
		}
		rc = blob_append(&blob, &message.u.part, err);
		message_finish(&message);
	}
	if (rc < 0) {
		blob_finish(&blob);
		return rc;
	}
	rc = ask_check(&message, MSG_LAID_OUT, err);
	if (rc == 0 && message.u.laid_out.worker) {
		const struct msg_laid_out *said = &message.u.laid_out;

		rc = blob_check(&blob, said->parts, said->bytes, said->hash, err);
		rc = rc ? rc : blob_to_layout(&blob, said->partial != 0, &verify->layout, err);
		if (rc == 0) {
			verify->worker = *said; /* with its list */
			message.u.laid_out.twins = NULL;
			rc = 1;
		}
	}
	blob_finish(&blob);
	message_finish(&message);
	return rc;
}

static int copy_out(struct message *answer, uint64_t bytes, void *to, struct error *err)
{
	void *from;

	if (answer->nfds != 1) {
		return error_set(err, -EPROTO, "the broker sent no memory");
	}
	from = mmap(NULL, bytes, PROT_READ, MAP_SHARED, answer->fds[0], 0);
	if (from == MAP_FAILED) {
		return error_set(err, -errno, "mmap: %s", strerror(errno));
	}
	memcpy(to, from, bytes);
	munmap(from, bytes);
	return 0;
}

/* One stretch, waiting for an update to end. */
static int read_stretch(struct verify *verify, uint32_t allocation, uint64_t offset, uint64_t bytes,
	void *to, struct error *err)
{
	uint64_t deadline = deadline_in_ms(PATIENCE_MS);
	struct message question, answer;
	int rc;

	for (;;) {
		message_init(&question, MSG_READ, 3);
		question.u.read = (struct msg_read){.worker = verify->worker.worker,
			.allocation = allocation,
			.offset = offset,
			.bytes = bytes};
		rc = ask(verify->conn, &question, MSG_READ_OUT, &answer, err);
		if (rc != -EBUSY || deadline_passed(deadline)) {
			break;
		}
		poll(NULL, 0, BUSY_MS);
	}
	if (rc) {
		return rc;
	}
	if (answer.u.read_out.version != verify->worker.version ||
		answer.u.read_out.state != verify->worker.state) {
		rc = error_set(err, -ESTALE,
			"the group went from %s at version %" PRIu64 " to %s at version %" PRIu64
			" meanwhile: begin again",
			strew_group_state_name((enum strew_group_state)verify->worker.state),
			verify->worker.version,
			strew_group_state_name((enum strew_group_state)answer.u.read_out.state),
			answer.u.read_out.version);
	} else {
		rc = copy_out(&answer, bytes, to, err);
	}
	message_finish(&answer);
	return rc;
}

/* Compares all pieces of one parameter, which are order[first .. first + n). */
static int verify_parameter(struct verify *verify, const struct parameter *parameter, size_t first,
	size_t n, struct error *err)
{
	uint64_t bytes = parameter_span_bytes(parameter);
	unsigned char *memory = malloc(bytes + 1);
	int rc = memory ? 0 : error_set(err, -ENOMEM, "out of memory");

	for (uint64_t at = 0; rc == 0 && at < bytes; at += LIMIT_READ_BYTES) {
		rc = read_stretch(verify, parameter->allocation, parameter->offset_bytes + at,
			MIN(bytes - at, LIMIT_READ_BYTES), memory + at, err);
	}
	for (size_t i = first; rc == 0 && i < first + n; i++) {
		const struct piece *piece = &verify->layout.pieces[verify->order[i]];
		const struct tensor *tensor = &verify->layout.tensors[piece->tensor];
		const char *why;
		const struct original *original = find_original(verify, tensor, &why);

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
		if (find_original(verify, tensor, &why) && !comparison->differ) {
			continue;
		}
		verify->wrong++;
		printf("%s: in model %s replica %u part %u worker %u (process %" PRIu64 ") ",
			tensor->name, worker->model, worker->replica, worker->part, worker->member,
			worker->pid);
		if (why) {
			printf("not compared: %s\n", why);
		} else {
			printf("%" PRIu64 " of %" PRIu64 " elements differ, the first at %s\n",
				comparison->differ, comparison->elements,
				index_text(at, sizeof(at), tensor, comparison->first));
		}
	}
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
		rc = take_layout(verify, after, &err);
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
	printf(": %" PRIu64 " differ\n", verify->wrong);
	return verify->wrong ? EXIT_RUNTIME : EXIT_OK;
}

static int run(struct verify *verify, const char *path, const char *socket)
{
	struct error err = {0};
	int code;

	layout_init(&verify->layout);
	if (open_checkpoint(verify, path, &err)) {
		fprintf(stderr, "strew verify: %s\n", err.text);
		code = EXIT_RUNTIME;
	} else {
		code = ask_open("strew verify", socket, &verify->conn);
	}
	if (code == EXIT_OK) {
		code = verify_all(verify);
		conn_destroy(verify->conn);
	}
	for (size_t i = 0; verify->images && i < verify->checkpoint.nshards; i++) {
		if (verify->images[i]) {
			munmap(verify->images[i], verify->checkpoint.shards[i].bytes);
		}
	}
	free(verify->images);
	free(verify->originals);
	checkpoint_close(&verify->checkpoint);
	return code;
}

int cmd_verify(int argc, char **argv)
{
	static const struct option options[] = {{"socket", required_argument, NULL, 's'},
		{"model", required_argument, NULL, 'm'}, {"help", no_argument, NULL, 'h'},
		{NULL, 0, NULL, 0}};
	struct verify verify = {0};
	const char *socket = NULL;
	int option;

	while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) {
		switch (option) {
		case 's':
			socket = optarg;
			break;
		case 'm':
			verify.model = optarg;
			break;
		case 'h':
			fputs(help, stdout);
			return EXIT_OK;
		default:
			return EXIT_USAGE;
		}
	}
	if (optind + 1 != argc) {
		fprintf(stderr, "strew verify: one FILE or DIRECTORY is wanted; see strew verify "
				"--help\n");
		return EXIT_USAGE;
	}
	return run(&verify, argv[optind], socket);
}
