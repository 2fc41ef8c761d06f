#include "cli/explain_hash.h"
#include "base/util.h"
#include "cli/ask.h"
#include "cli/dense.h"
#include "cli/readback.h"
#include "plan/cast.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define BUSY_MS 1000 /* for an update to end: who explains wants to know what holds it up */

/* A tensor as the trainer ranks have it. */
struct whole {
	struct whole *next;
	char model[LIMIT_MODEL_BYTES], name[LIMIT_NAME_BYTES];
	unsigned char *bytes; /* NULL: see why */
	char why[LIMIT_TEXT_BYTES];
};

struct hashing {
	struct conn *conn;
	struct whole *wholes;
	bool busy, refused; /* nothing is to be had any more */
};

int hashing_create(struct conn *conn, struct hashing **ret_hashing)
{
	struct hashing *hashing = calloc(1, sizeof(*hashing));

	if (!hashing) {
		return -ENOMEM;
	}
	hashing->conn = conn;
	*ret_hashing = hashing;
	return 0;
}

void hashing_destroy(struct hashing *hashing)
{
	while (hashing && hashing->wholes) {
		struct whole *whole = hashing->wholes;

		hashing->wholes = whole->next;
		free(whole->bytes);
		free(whole);
	}
	free(hashing);
}

bool hashing_refused(const struct hashing *hashing)
{
	return hashing->refused;
}

/* "[3, 4096]"; the number of dimensions, or -1. */
static int parse_dims(const char *text, uint64_t dims[STREW_MAX_DIMS])
{
	int n = 0;

	memset(dims, 0, STREW_MAX_DIMS * sizeof(*dims));
	for (const char *at = text; (at = strpbrk(at, "0123456789")) != NULL; n++) {
		char *end;

		if (n == STREW_MAX_DIMS) {
			return -1;
		}
		dims[n] = strtoull(at, &end, 10);
		at = end;
	}
	return n;
}

/* The row's box, in its tensor's shape or in its view of that, and its strides. */
static bool parse_row(
	const struct explained *row, struct dense_box *box, uint64_t stride[STREW_MAX_DIMS])
{
	bool held = row->kind == EXPLAINED_HELD;
	uint64_t all, n;

	box->ndim = parse_dims(held ? row->shape : row->view, box->shape);
	return box->ndim >= 0 && parse_dims(row->start, box->box.start) == box->ndim &&
	       parse_dims(row->extent, box->box.extent) == box->ndim &&
	       parse_dims(row->stride, stride) == box->ndim && dense_count(box, &all, &n);
}

/* Its dtype where it lies. */
static enum strew_dtype dtype_of(const struct explained *row)
{
	return (enum strew_dtype)(row->kind == EXPLAINED_HELD ? row->dtype : row->parameter_dtype);
}

/* Who has it, as the other requests name him; and the version that he must still hold. */
static struct msg_laid_out owner_of(const struct explained *row)
{
	struct msg_laid_out said = {.worker = row->worker,
		.state = row->kind == EXPLAINED_HELD ? STREW_GROUP_CURRENT : row->state,
		.version = row->version};

	string_copy(said.model, sizeof(said.model), row->model);
	return said;
}

/* After one of these nothing more is tried. */
static int give_up(struct hashing *hashing, int rc, struct error *err)
{
	hashing->busy = hashing->busy || rc == -EBUSY;
	hashing->refused = hashing->refused || rc == -EPERM;
	if (hashing->refused) {
		return error_set(err, -EPERM, "it is for the broker's own user alone");
	}
	return hashing->busy ? error_set(err, -EBUSY, "an update is under way") : rc;
}

/* The bytes of the row's box, dense, to be freed. */
static int read_row(struct hashing *hashing, const struct explained *row,
	const struct dense_box *box, const uint64_t *stride, unsigned char **ret_dense,
	uint64_t *ret_bytes, struct error *err)
{
	struct msg_laid_out owner = owner_of(row);
	size_t size = strew_dtype_size(dtype_of(row));
	unsigned char *memory, *dense;
	uint64_t span, bytes;
	int rc = dims_span(box->ndim, box->box.extent, stride, &span);

	if (rc || size == 0 || mul_overflows(span, size, &span) ||
		mul_overflows(box_count(box->ndim, &box->box), size, &bytes)) {
		return error_set(err, -EPROTO, "the broker says what makes no sense");
	}
	rc = give_up(hashing, 0, err);
	if (rc) {
		return rc;
	}
	memory = malloc(span + 1);
	dense = malloc(bytes + 1);
	rc = memory && dense ? 0 : error_set(err, -ENOMEM, "out of memory");
	rc = rc ? rc
		: readback_read(hashing->conn, &owner, row->allocation, row->offset, span, memory,
			  BUSY_MS, err);
	if (rc) {
		free(memory);
		free(dense);
		return give_up(hashing, rc, err);
	}
	dense_take(box, stride, size, memory, dense);
	free(memory);
	*ret_dense = dense;
	*ret_bytes = bytes;
	return 0;
}

/* All rows of boxes that trainer ranks hold of one tensor; to be freed. */
static int ask_held(struct hashing *hashing, const struct whole *whole, struct explained **ret_rows,
	size_t *ret_n, struct error *err)
{
	struct explained *rows = NULL;
	uint64_t from = 0, total = 1;
	size_t n = 0, cap = 0;
	int rc = 0;

	while (rc == 0 && from < total) {
		struct message question, answer;

		message_init(&question, MSG_EXPLAIN, 2);
		string_copy(question.u.explain.name, sizeof(question.u.explain.name), whole->name);
		string_copy(
			question.u.explain.model, sizeof(question.u.explain.model), whole->model);
		question.u.explain.from = from;
		rc = ask(hashing->conn, &question, MSG_EXPLAINED, &answer, err);
		if (rc) {
			break;
		}
		for (size_t i = 0; rc == 0 && i < answer.u.explained.nrows; i++) {
			const struct explained *row = &answer.u.explained.rows[i];

			if (row->kind != EXPLAINED_HELD || strcmp(row->tensor, whole->name) != 0) {
				continue;
			}
			rc = array_grow((void **)&rows, &cap, n + 1, sizeof(*rows));
			if (rc == 0) {
				rows[n++] = *row;
			}
		}
		from += answer.u.explained.nrows;
		total = answer.u.explained.nrows ? answer.u.explained.total : 0;
		message_finish(&answer);
	}
	if (rc) {
		free(rows);
		return rc;
	}
	*ret_rows = rows;
	*ret_n = n;
	return 0;
}

/* The highest first, so that the lowest rank's bytes are those that stay, as in an update. */
static int by_rank(const void *a, const void *b)
{
	const struct explained *one = a, *two = b;

	return (one->rank < two->rank) - (one->rank > two->rank);
}

static int put_row(struct hashing *hashing, const struct explained *row, struct whole *whole,
	struct error *err)
{
	size_t size = strew_dtype_size((enum strew_dtype)row->dtype);
	uint64_t stride[STREW_MAX_DIMS], bytes, all, n;
	unsigned char *dense;
	struct dense_box box;
	int rc;

	if (!row->here) {
		return error_set(err, -ENOENT, "not all of it is at this node");
	}
	if (!parse_row(row, &box, stride) || !dense_count(&box, &all, &n) ||
		mul_overflows(all, size, &all)) {
		return error_set(err, -EPROTO, "the broker says what makes no sense");
	}
	if (!whole->bytes) {
		whole->bytes = calloc(1, all + 1);
	}
	if (!whole->bytes) {
		return error_set(err, -ENOMEM, "out of memory");
	}
	rc = read_row(hashing, row, &box, stride, &dense, &bytes, err);
	if (rc == 0) {
		dense_put(&box, size, dense, whole->bytes);
		free(dense);
	}
	return rc;
}

static void read_whole(struct hashing *hashing, struct whole *whole)
{
	struct explained *rows = NULL;
	struct error err = {0};
	size_t n = 0;
	int rc = ask_held(hashing, whole, &rows, &n, &err);

	if (rc == 0 && n == 0) {
		rc = error_set(&err, -ENOENT, "no trainer has it now");
	}
	if (rc == 0) {
		qsort(rows, n, sizeof(*rows), by_rank);
	}
	for (size_t i = 0; i < n && rc == 0; i++) {
		rc = put_row(hashing, &rows[i], whole, &err);
	}
	free(rows);
	if (rc) {
		free(whole->bytes);
		whole->bytes = NULL;
		string_copy(whole->why, sizeof(whole->why), err.text);
	}
}

/* NULL: out of memory. */
static const struct whole *find_whole(struct hashing *hashing, const struct explained *row)
{
	struct whole *whole = hashing->wholes;

	while (whole && (strcmp(whole->name, row->tensor) || strcmp(whole->model, row->model))) {
		whole = whole->next;
	}
	if (whole) {
		return whole;
	}
	whole = calloc(1, sizeof(*whole));
	if (whole) {
		string_copy(whole->model, sizeof(whole->model), row->model);
		string_copy(whole->name, sizeof(whole->name), row->tensor);
		read_whole(hashing, whole);
		whole->next = hashing->wholes;
		hashing->wholes = whole;
	}
	return whole;
}

static void refuse(struct found_hash *hash, const char *why)
{
	hash->known = false;
	string_copy(hash->why, sizeof(hash->why), why);
}

/* The piece's box out of the trainer's tensor; `dense` is room for it. */
static void hash_trainers(struct hashing *hashing, const struct explained *row,
	const struct dense_box *box, unsigned char *dense, uint64_t bytes, struct found_hash *ret)
{
	const struct whole *whole = find_whole(hashing, row);
	enum strew_dtype from = (enum strew_dtype)row->dtype;
	struct dense_box tensor = {0};
	uint64_t here, there, n;

	if (!whole || !whole->bytes) {
		refuse(ret, whole ? whole->why : "out of memory");
		return;
	}
	tensor.ndim = parse_dims(row->shape, tensor.shape);
	/* A view has as many elements as its tensor. */
	if (tensor.ndim < 0 || !dense_count(&tensor, &there, &n) || !dense_count(box, &here, &n) ||
		here != there || (from != dtype_of(row) && !cast_known(from, dtype_of(row)))) {
		refuse(ret, "the broker says what makes no sense");
		return;
	}
	dense_cut(box, whole->bytes, from, dtype_of(row), dense);
	*ret = (struct found_hash){.known = true, .v = dense_hash(dense, bytes)};
}

void hashing_row(struct hashing *hashing, const struct explained *row, struct found_hash *ret_here,
	struct found_hash *ret_trainer)
{
	uint64_t stride[STREW_MAX_DIMS], bytes;
	unsigned char *dense = NULL;
	struct error err = {0};
	struct dense_box box;

	*ret_here = *ret_trainer = (struct found_hash){0};
	if (!row->here || !row->worker) {
		refuse(ret_here, "it is at another node");
		return;
	}
	if (!parse_row(row, &box, stride)) {
		refuse(ret_here, "the broker says what makes no sense");
		return;
	}
	if (read_row(hashing, row, &box, stride, &dense, &bytes, &err)) {
		refuse(ret_here, err.text);
		return;
	}
	*ret_here = (struct found_hash){.known = true, .v = dense_hash(dense, bytes)};
	if (row->kind == EXPLAINED_PIECE) {
		hash_trainers(hashing, row, &box, dense, bytes, ret_trainer);
	}
	free(dense);
}
