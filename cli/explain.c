/* strew explain: the way of one tensor, from the trainer ranks that hold it into the workers. */
#include "base/util.h"
#include "cli/ask.h"
#include "cli/cli.h"
#include "cli/json.h"
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <strew/strew.h>
#include <string.h>

static const char help[] =
	"Usage: strew explain NAME [--model NAME] [--socket PATH] [--json]\n"
	"\n"
	"Says where the bytes of a tensor come from and where they go: the box that each trainer\n"
	"rank holds, and each piece of it in the workers of this node, with its place, its cast,\n"
	"and its route. NAME may also be a worker's parameter: then all tensors that go into it.\n"
	"\n"
	"  box        start + extent, in the tensor's shape or in the piece's view of it\n"
	"  at         bytes from the beginning of the allocation that is shared, and the distance\n"
	"             in elements from one index to the next of each dimension\n"
	"  raw, pull  the broker writes the memory; or the worker copies from a twin of it; by\n"
	"             pinned host memory, where one GPU does not reach the other\n"
	"\n"
	"  --model NAME   of this model alone\n"
	"  --socket PATH  the broker's socket (default: $STREW_SOCKET, else\n"
	"                 $XDG_RUNTIME_DIR/strew/broker.sock, else /tmp/strew-UID/broker.sock)\n"
	"  --json         one object a line\n"
	"  --help\n"
	"\n"
	"Example: strew explain model.layers.0.self_attn.q_proj.weight\n";

static void print_held(const struct explained *row)
{
	printf("  rank %u", row->rank);
	if (row->pid) {
		printf(" (process %" PRIu64 ")", row->pid);
	} else if (row->where[0]) {
		printf(" (broker %s)", row->where);
	}
	printf(" holds %s + %s", row->start, row->extent);
	if (row->here) {
		printf(" at byte %" PRIu64 " of allocation %u (%s, %s), strides %s, %s",
			row->offset, row->allocation, row->device, row->handle, row->stride,
			row->route);
	} else {
		printf(", at another node");
	}
	if (row->bounce[0]) {
		printf(", to %s by pinned host memory", row->bounce);
	}
	if (row->version) {
		printf("; version %" PRIu64 " was committed last", row->version);
	}
	putchar('\n');
}

static void print_piece(const struct explained *row)
{
	printf("  replica %u part %u worker %u (process %" PRIu64 ") takes %s + %s", row->replica,
		row->part, row->member, row->pid, row->start, row->extent);
	if (strcmp(row->view, row->shape) != 0) {
		printf(" of it seen as %s", row->view);
	}
	printf("\n    into %s, %s %s%s,\n    at byte %" PRIu64
	       " of allocation %u (%s, %s), strides "
	       "%s;\n    %s%s%s, %s, %s at version %" PRIu64 "\n",
		row->parameter, strew_dtype_name((enum strew_dtype)row->parameter_dtype),
		row->parameter_shape, row->cast ? " by a cast" : "", row->offset, row->allocation,
		row->device, row->handle, row->stride, row->route,
		row->bounce[0] ? ", by pinned host memory from " : "", row->bounce,
		row->staged ? "staged" : "direct",
		strew_group_state_name((enum strew_group_state)row->state), row->version);
}

/* "[3, 4096]" is JSON already. */
static void put_dims(json_t *object, const char *key, const char *dims)
{
	json_t *list = json_loads(dims, 0, NULL);

	json_object_set_new(object, key, list ? list : json_array());
}

static void print_object(const struct explained *row)
{
	bool held = row->kind == EXPLAINED_HELD;
	json_t *object = json_object();

	json_put_text(object, "kind", held ? "held" : "piece");
	json_put_text(object, "model", row->model);
	json_put_text(object, "tensor", row->tensor);
	json_put_text(object, "dtype", strew_dtype_name((enum strew_dtype)row->dtype));
	put_dims(object, "shape", row->shape);
	put_dims(object, "start", row->start);
	put_dims(object, "extent", row->extent);
	json_put(object, "pid", row->pid);
	json_put(object, "version", row->version);
	if (held) {
		json_put(object, "rank", row->rank);
		json_put_text(object, "broker", row->where);
	} else {
		put_dims(object, "view", row->view);
		json_put(object, "replica", row->replica);
		json_put(object, "part", row->part);
		json_put(object, "member", row->member);
		json_put_text(object, "parameter", row->parameter);
		json_put_text(object, "parameter_dtype",
			strew_dtype_name((enum strew_dtype)row->parameter_dtype));
		put_dims(object, "parameter_shape", row->parameter_shape);
		json_object_set_new(object, "cast", json_boolean(row->cast));
		json_put_text(object, "apply", row->staged ? "staged" : "direct");
		json_put_text(object, "state",
			strew_group_state_name((enum strew_group_state)row->state));
	}
	if (row->here) {
		json_put(object, "allocation", row->allocation);
		json_put(object, "offset", row->offset);
		put_dims(object, "stride", row->stride);
		json_put_text(object, "device", row->device);
		json_put_text(object, "handle", row->handle);
		json_put_text(object, "route", row->route);
		json_put_text(object, "bounce", row->bounce);
	}
	json_line(object);
}

/* The tensor's line goes before the rows that are about it. */
static void print_text(const struct explained *row, struct explained *before)
{
	if (strcmp(row->tensor, before->tensor) != 0 || strcmp(row->model, before->model) != 0) {
		printf("%s  %s %s, model %s\n", row->tensor,
			strew_dtype_name((enum strew_dtype)row->dtype), row->shape, row->model);
	}
	*before = *row;
	if (row->kind == EXPLAINED_HELD) {
		print_held(row);
	} else {
		print_piece(row);
	}
}

static int explain(struct conn *conn, const char *name, const char *model, bool json)
{
	struct explained before = {0};
	struct error err = {0};
	uint64_t from = 0, total = 1;

	while (from < total) {
		struct message question, answer;
		size_t n;
		int rc;

		message_init(&question, MSG_EXPLAIN, 2);
		string_copy(question.u.explain.name, sizeof(question.u.explain.name), name);
		string_copy(question.u.explain.model, sizeof(question.u.explain.model), model);
		question.u.explain.from = from;
		rc = ask(conn, &question, MSG_EXPLAINED, &answer, &err);
		if (rc) {
			return ask_failed("strew explain", rc, &err);
		}
		n = answer.u.explained.nrows;
		for (size_t i = 0; i < n; i++) {
			if (json) {
				print_object(&answer.u.explained.rows[i]);
			} else {
				print_text(&answer.u.explained.rows[i], &before);
			}
		}
		from += n;
		total = n ? answer.u.explained.total : 0; /* fewer may be left by now */
		message_finish(&answer);
	}
	return EXIT_OK;
}

int cmd_explain(int argc, char **argv)
{
	static const struct option options[] = {{"socket", required_argument, NULL, 's'},
		{"model", required_argument, NULL, 'm'}, {"json", no_argument, NULL, 'j'},
		{"help", no_argument, NULL, 'h'}, {NULL, 0, NULL, 0}};
	const char *socket = NULL, *model = "";
	struct conn *conn;
	bool json = false;
	int option, code;

	while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) {
		switch (option) {
		case 's':
			socket = optarg;
			break;
		case 'm':
			model = optarg;
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
	if (optind + 1 != argc || strlen(argv[optind]) >= LIMIT_NAME_BYTES ||
		strlen(model) >= LIMIT_MODEL_BYTES) {
		fprintf(stderr, "strew explain: one NAME of a tensor or a parameter is wanted; see "
				"strew explain --help\n");
		return EXIT_USAGE;
	}
	code = ask_open("strew explain", socket, &conn);
	if (code == EXIT_OK) {
		code = explain(conn, argv[optind], model, json);
		conn_destroy(conn);
	}
	return code;
}
