/* strew explain: the way of one tensor, from the trainer ranks that hold it into the workers. */
#include "base/util.h"
#include "cli/ask.h"
#include "cli/cli.h"
#include "cli/explain_hash.h"
#include "cli/json.h"
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <strew/strew.h>
#include <string.h>

static const char help[] =
	"Usage: strew explain NAME [--model NAME] [--no-hash] [--socket PATH] [--json]\n"
	"\n"
	"Says where the bytes of a tensor come from and where they go: the box that each trainer\n"
	"rank holds, and each piece of it in the workers of this node, with its place, its cast,\n"
	"and its route. NAME may also be a worker's parameter: then all tensors that go into it.\n"
	"Between updates it also reads what lies there now, and says a hash of it; for the\n"
	"broker's own user alone.\n"
	"\n"
	"  box        start + extent, in the tensor's shape or in the piece's view of it\n"
	"  at         bytes from the beginning of the allocation that is shared, and the distance\n"
	"             in elements from one index to the next of each dimension\n"
	"  raw, pull  the broker writes the memory; or the worker copies from a twin of it; by\n"
	"             pinned host memory, where one GPU does not reach the other\n"
	"  hash       of the elements of that box, row by row (of a worker's twin, if it pulls);\n"
	"             a worker's beside that of the trainer's same box, as it is when it is cast.\n"
	"             The trainer's memory is its own after an update: it may have gone on\n"
	"  slot       the last committed update that went over the wire: buckets with some of the\n"
	"             tensor, and the sum that all nodes have of each, if it was hashed\n"
	"\n"
	"  --model NAME   of this model alone\n"
	"  --no-hash      reads no memory, and does not wait for an update to end\n"
	"  --socket PATH  the broker's socket (default: $STREW_SOCKET, else\n"
	"                 $XDG_RUNTIME_DIR/strew/broker.sock, else /tmp/strew-UID/broker.sock)\n"
	"  --json         one object a line\n"
	"  --help\n"
	"\n"
	"Example: strew explain model.layers.0.self_attn.q_proj.weight\n";

/* What is printed of one row: its hashes belong to it. */
struct told {
	const struct explained *row;
	bool hashed; /* they were asked for */
	struct found_hash here, trainer;
};

static void print_hash(const struct told *told)
{
	if (!told->hashed) {
		return;
	}
	if (!told->here.known) {
		printf("    no hash: %s\n", told->here.why);
		return;
	}
	printf("    hash %016" PRIx64, told->here.v);
	if (told->row->kind == EXPLAINED_HELD) {
		putchar('\n');
	} else if (!told->trainer.known) {
		printf(", with no trainer's to compare: %s\n", told->trainer.why);
	} else {
		printf(", the trainer's same box %016" PRIx64 ": %s\n", told->trainer.v,
			told->here.v == told->trainer.v ? "equal" : "differs");
	}
}

static void print_held(const struct told *told)
{
	const struct explained *row = told->row;

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
	print_hash(told);
}

static void print_slot(const struct explained *row)
{
	printf("  slot: in bucket %" PRIu64 " of version %" PRIu64, row->bucket, row->version);
	if (!row->fold) {
		puts(", no hash: that update was not hashed");
		return;
	}
	printf(", sum %016" PRIx64, row->sum);
	if (row->fold > 1) {
		printf(" (of %u buckets)", row->fold);
	}
	printf(" at nodes 0 to %u alike\n", row->nodes - 1);
}

static void print_piece(const struct told *told)
{
	const struct explained *row = told->row;

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
	print_hash(told);
}

/* "[3, 4096]" is JSON already. */
static void put_dims(json_t *object, const char *key, const char *dims)
{
	json_t *list = json_loads(dims, 0, NULL);

	json_object_set_new(object, key, list ? list : json_array());
}

/* A string of 16 digits, or null. */
static void put_hash(json_t *object, const char *key, bool known, uint64_t hash)
{
	char text[20];

	snprintf(text, sizeof(text), "%016" PRIx64, hash);
	json_object_set_new(object, key, known ? json_string(text) : json_null());
}

static void put_hashes(json_t *object, const struct told *told)
{
	const struct found_hash *here = &told->here, *trainer = &told->trainer;
	bool both = here->known && trainer->known;

	put_hash(object, "hash", here->known, here->v);
	json_put_text(object, "hash_why", here->why);
	if (told->row->kind == EXPLAINED_PIECE) {
		put_hash(object, "trainer_hash", trainer->known, trainer->v);
		json_put_text(object, "trainer_hash_why", trainer->why);
		json_object_set_new(
			object, "equal", both ? json_boolean(here->v == trainer->v) : json_null());
	}
}

static void put_slot(json_t *object, const struct explained *row)
{
	json_put(object, "version", row->version);
	json_put(object, "bucket", row->bucket);
	put_hash(object, "sum", row->fold != 0, row->sum);
	json_put(object, "buckets_in_sum", row->fold);
	json_put(object, "nodes", row->nodes);
}

static void put_piece(json_t *object, const struct explained *row)
{
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
	json_put_text(object, "state", strew_group_state_name((enum strew_group_state)row->state));
}

static void put_place(json_t *object, const struct explained *row)
{
	json_put(object, "allocation", row->allocation);
	json_put(object, "offset", row->offset);
	put_dims(object, "stride", row->stride);
	json_put_text(object, "device", row->device);
	json_put_text(object, "handle", row->handle);
	json_put_text(object, "route", row->route);
	json_put_text(object, "bounce", row->bounce);
}

static void print_object(const struct told *told)
{
	static const char *const kinds[] = {
		[EXPLAINED_HELD] = "held", [EXPLAINED_PIECE] = "piece", [EXPLAINED_SLOT] = "slot"};
	const struct explained *row = told->row;
	json_t *object = json_object();

	json_put_text(object, "kind", kinds[row->kind]);
	json_put_text(object, "model", row->model);
	json_put_text(object, "tensor", row->tensor);
	json_put_text(object, "dtype", strew_dtype_name((enum strew_dtype)row->dtype));
	put_dims(object, "shape", row->shape);
	if (row->kind == EXPLAINED_SLOT) {
		put_slot(object, row);
		json_line(object);
		return;
	}
	put_dims(object, "start", row->start);
	put_dims(object, "extent", row->extent);
	json_put(object, "pid", row->pid);
	json_put(object, "version", row->version);
	if (row->kind == EXPLAINED_HELD) {
		json_put(object, "rank", row->rank);
		json_put_text(object, "broker", row->where);
	} else {
		put_piece(object, row);
	}
	if (row->here) {
		put_place(object, row);
	}
	if (told->hashed) {
		put_hashes(object, told);
	}
	json_line(object);
}

/* The tensor's line goes before the rows that are about it. */
static void print_text(const struct told *told, struct explained *before)
{
	const struct explained *row = told->row;

	if (strcmp(row->tensor, before->tensor) != 0 || strcmp(row->model, before->model) != 0) {
		printf("%s  %s %s, model %s\n", row->tensor,
			strew_dtype_name((enum strew_dtype)row->dtype), row->shape, row->model);
	}
	*before = *row;
	if (row->kind == EXPLAINED_HELD) {
		print_held(told);
	} else if (row->kind == EXPLAINED_SLOT) {
		print_slot(row);
	} else {
		print_piece(told);
	}
}

/* What the command line wants, and what has come of it so far. */
struct explaining {
	const char *name, *model;
	bool json;
	struct hashing *hashing; /* NULL: no hashes */
	struct explained before;
	bool slot; /* there was one */
};

static void tell(struct explaining *explaining, const struct explained *row)
{
	struct told told = {.row = row};

	explaining->slot = explaining->slot || row->kind == EXPLAINED_SLOT;
	if (explaining->hashing && row->kind != EXPLAINED_SLOT) {
		told.hashed = true;
		hashing_row(explaining->hashing, row, &told.here, &told.trainer);
	}
	if (explaining->json) {
		print_object(&told);
	} else {
		print_text(&told, &explaining->before);
	}
}

static int explain(struct conn *conn, struct explaining *explaining)
{
	struct error err = {0};
	uint64_t from = 0, total = 1;

	while (from < total) {
		struct message question, answer;
		size_t n;
		int rc;

		message_init(&question, MSG_EXPLAIN, 2);
		string_copy(
			question.u.explain.name, sizeof(question.u.explain.name), explaining->name);
		string_copy(question.u.explain.model, sizeof(question.u.explain.model),
			explaining->model);
		question.u.explain.from = from;
		rc = ask(conn, &question, MSG_EXPLAINED, &answer, &err);
		if (rc) {
			return ask_failed("strew explain", rc, &err);
		}
		n = answer.u.explained.nrows;
		for (size_t i = 0; i < n; i++) {
			tell(explaining, &answer.u.explained.rows[i]);
		}
		from += n;
		total = n ? answer.u.explained.total : 0; /* fewer may be left by now */
		message_finish(&answer);
	}
	if (explaining->hashing && !explaining->slot && !explaining->json) {
		printf("  slot: no hash: %s\n",
			hashing_refused(explaining->hashing)
				? "it is for the broker's own user alone"
				: "no committed update has taken it over the wire here");
	}
	return EXIT_OK;
}

int cmd_explain(int argc, char **argv)
{
	static const struct option options[] = {{"socket", required_argument, NULL, 's'},
		{"model", required_argument, NULL, 'm'}, {"no-hash", no_argument, NULL, 'n'},
		{"json", no_argument, NULL, 'j'}, {"help", no_argument, NULL, 'h'},
		{NULL, 0, NULL, 0}};
	struct explaining explaining = {.model = ""};
	const char *socket = NULL;
	struct conn *conn;
	bool hashes = true;
	int option, code;

	while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) {
		switch (option) {
		case 's':
			socket = optarg;
			break;
		case 'm':
			explaining.model = optarg;
			break;
		case 'n':
			hashes = false;
			break;
		case 'j':
			explaining.json = true;
			break;
		case 'h':
			fputs(help, stdout);
			return EXIT_OK;
		default:
			return EXIT_USAGE;
		}
	}
	if (optind + 1 != argc || strlen(argv[optind]) >= LIMIT_NAME_BYTES ||
		strlen(explaining.model) >= LIMIT_MODEL_BYTES) {
		fprintf(stderr, "strew explain: one NAME of a tensor or a parameter is wanted; see "
				"strew explain --help\n");
		return EXIT_USAGE;
	}
	explaining.name = argv[optind];
	code = ask_open("strew explain", socket, &conn);
	if (code) {
		return code;
	}
	if (hashes && hashing_create(conn, &explaining.hashing)) {
		fprintf(stderr, "strew explain: out of memory\n");
		code = EXIT_RUNTIME;
	}
	code = code ? code : explain(conn, &explaining);
	hashing_destroy(explaining.hashing);
	conn_destroy(conn);
	return code;
}
