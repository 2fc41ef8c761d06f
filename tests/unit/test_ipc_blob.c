/* Blobs: layouts, declarations and manifests there and back, in parts, and what is wrong with them.
 */
#include "base/clock.h"
#include "base/util.h"
#include "ipc/blob.h"
#include "ipc/items.h"
#include "plan/cast.h"
#include "support/test_main.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

static void any_dims(int ndim, uint64_t dims[STREW_MAX_DIMS], uint64_t most)
{
	for (int i = 0; i < ndim; i++) {
		dims[i] = 1 + test_random_below(most);
	}
}

static void any_name(char *name, size_t bytes, const char *what, unsigned i)
{
	int n = snprintf(name, bytes, "%s %u é", what, i);

	/* Now and then as long as may be. */
	if (test_random_below(8) == 0) {
		memset(name + n, 'x', bytes - (size_t)n - 1);
		name[bytes - 1] = '\0';
	}
}

static uint64_t any_offset(void)
{
	return 8 * (test_random() >> (20 + test_random_below(44)));
}

/* Parameter i is filled by a box of tensor i, somewhere inside it. */
static void add_random(struct layout *layout, unsigned i)
{
	char tensor_name[LIMIT_NAME_BYTES], name[LIMIT_NAME_BYTES];
	struct tensor tensor = {.name = tensor_name,
		.dtype = (enum strew_dtype)(1 + test_random_below(STREW_BOOL)),
		.ndim = (int)test_random_below(STREW_MAX_DIMS + 1)};
	struct parameter parameter = {.name = name,
		.allocation = (uint32_t)test_random_below(LIMIT_ALLOCATIONS),
		/* far apart: no two share memory */
		.offset_bytes = (1 + (uint64_t)i) << 48 | any_offset(),
		.dtype = tensor.dtype,
		.ndim = tensor.ndim};
	struct piece piece = {.ndim = tensor.ndim, .cast = test_random_below(2)};
	struct error err;
	int rc;

	if (piece.cast && cast_known(tensor.dtype, STREW_F32)) {
		parameter.dtype = (enum strew_dtype)(STREW_F32 + test_random_below(3));
	}
	any_name(tensor_name, sizeof(tensor_name), "tensor", i);
	any_name(name, sizeof(name), "parameter", i);
	any_dims(tensor.ndim, parameter.shape, 5);
	dims_dense(parameter.ndim, parameter.shape, parameter.stride);
	for (int k = 0; k < tensor.ndim; k++) {
		piece.box.start[k] = test_random_below(300);
		piece.box.extent[k] = parameter.shape[k];
		tensor.shape[k] = piece.box.start[k] + piece.box.extent[k] + test_random_below(300);
		piece.view[k] = tensor.shape[k];
		piece.stride[k] = parameter.stride[k];
	}
	rc = layout_add_tensor(layout, &tensor, &piece.tensor, &err);
	rc = rc ? rc : layout_add_parameter(layout, &parameter, &piece.parameter, &err);
	rc = rc ? rc : layout_add_piece(layout, &piece, &err);
	if (rc) {
		fail_msg("%s", err.text);
	}
}

/* The example of docs/protocol.md: the rotary permutation of 4 heads of size 8. */
static void add_rotary(struct layout *layout)
{
	const struct tensor tensor = {"q_proj", STREW_BF16, 2, {32, 16}};
	const struct parameter parameter = {"qkv", 0, 4096, STREW_BF16, 2, {32, 16}, {16, 1}};
	struct piece piece = {.ndim = 4,
		.view = {4, 4, 2, 16},
		.box = {{0}, {4, 4, 2, 16}},
		.stride = {128, 16, 64, 1}};
	struct error err;

	assert_int_equal(layout_add_tensor(layout, &tensor, &piece.tensor, &err), 0);
	assert_int_equal(layout_add_parameter(layout, &parameter, &piece.parameter, &err), 0);
	assert_int_equal(layout_add_piece(layout, &piece, &err), 0);
}

static void make_layout(struct layout *layout, unsigned n)
{
	struct error err;

	layout_init(layout);
	add_rotary(layout);
	for (unsigned i = 0; i < n; i++) {
		add_random(layout, i);
	}
	assert_int_equal(layout_seal(layout, false, &err), 0);
}

static void assert_dims(int ndim, const uint64_t *a, const uint64_t *b)
{
	assert_memory_equal(a, b, (size_t)ndim * sizeof(*a));
}

static void assert_tensors(const struct tensor *a, const struct tensor *b, size_t n)
{
	for (size_t i = 0; i < n; i++) {
		assert_string_equal(a[i].name, b[i].name);
		assert_int_equal(a[i].dtype, b[i].dtype);
		assert_int_equal(a[i].ndim, b[i].ndim);
		assert_dims(a[i].ndim, a[i].shape, b[i].shape);
	}
}

static void assert_layouts(const struct layout *a, const struct layout *b)
{
	assert_int_equal(a->ntensors, b->ntensors);
	assert_int_equal(a->nparameters, b->nparameters);
	assert_int_equal(a->npieces, b->npieces);
	assert_tensors(a->tensors, b->tensors, a->ntensors);
	for (size_t i = 0; i < a->nparameters; i++) {
		const struct parameter *p = &a->parameters[i], *q = &b->parameters[i];

		assert_string_equal(p->name, q->name);
		assert_int_equal(p->allocation, q->allocation);
		assert_true(p->offset_bytes == q->offset_bytes);
		assert_int_equal(p->dtype, q->dtype);
		assert_int_equal(p->ndim, q->ndim);
		assert_dims(p->ndim, p->shape, q->shape);
		assert_dims(p->ndim, p->stride, q->stride);
	}
	for (size_t i = 0; i < a->npieces; i++) {
		const struct piece *p = &a->pieces[i], *q = &b->pieces[i];

		assert_int_equal(p->tensor, q->tensor);
		assert_int_equal(p->parameter, q->parameter);
		assert_int_equal(p->ndim, q->ndim);
		assert_true(p->offset == q->offset);
		assert_int_equal(p->cast, q->cast);
		assert_dims(p->ndim, p->view, q->view);
		assert_dims(p->ndim, p->box.start, q->box.start);
		assert_dims(p->ndim, p->box.extent, q->box.extent);
		assert_dims(p->ndim, p->stride, q->stride);
	}
}

static void test_layouts(void **state)
{
	(void)state;
	for (unsigned turn = 0; turn < 50; turn++) {
		struct layout layout, back;
		struct blob blob, again;
		struct error err;

		make_layout(&layout, (unsigned)test_random_below(40));
		assert_int_equal(blob_from_layout(&layout, &blob, &err), 0);
		memset(&back, 0xa5, sizeof(back));
		assert_int_equal(blob_to_layout(&blob, false, &back, &err), 0);
		assert_true(back.sealed);
		assert_layouts(&layout, &back);
		assert_int_equal(blob_from_layout(&back, &again, &err), 0);
		assert_int_equal(blob.len, again.len);
		assert_true(blob_hash(&blob) == blob_hash(&again));
		blob_finish(&blob);
		blob_finish(&again);
		layout_finish(&layout);
		layout_finish(&back);
	}
}

/* These very bytes stand in docs/protocol.md. */
static void test_bytes_of_the_document(void **state)
{
	static const char bytes[] =
		"\x95\xac\x73\x74\x72\x65\x77\x2d\x6c\x61\x79\x6f\x75\x74\x01\x01"
		"\x01\x01\x93\xa6\x71\x5f\x70\x72\x6f\x6a\x03\x92\x20\x10\x96\xa3"
		"\x71\x6b\x76\x00\xcd\x10\x00\x03\x92\x20\x10\x92\x10\x01\x98\x00"
		"\x00\x00\x94\x04\x04\x02\x10\x94\x00\x00\x00\x00\x94\x04\x04\x02"
		"\x10\x94\xcc\x80\x10\x40\x01\x00";
	struct layout layout;
	struct blob blob;
	struct error err;

	(void)state;
	make_layout(&layout, 0);
	assert_int_equal(blob_from_layout(&layout, &blob, &err), 0);
	assert_int_equal(blob.len, sizeof(bytes) - 1);
	assert_memory_equal(blob.bytes, bytes, blob.len);
	assert_true(blob_hash(&blob) == 0x4d34209a1e90dc3eu);
	layout_finish(&layout);
	blob_finish(&blob);
}

static void test_share_of_the_document(void **state)
{
	static const char bytes[] =
		"\x94\xae\x73\x74\x72\x65\x77\x2d\x6d\x61\x6e\x69\x66\x65\x73\x74"
		"\x01\x01\x01\x93\xa1\x77\x01\x92\x04\x02\x95\x00\x01\x92\x02\x00"
		"\x92\x02\x02\x00";
	const struct tensor tensor = {"w", STREW_F32, 2, {4, 2}};
	struct held_box box = {.rank = 1, .box = {{2, 0}, {2, 2}}};
	struct manifest manifest;
	struct blob blob;
	struct error err;

	(void)state;
	manifest_init(&manifest);
	assert_int_equal(manifest_add_tensor(&manifest, &tensor, &box.tensor, &err), 0);
	assert_int_equal(manifest_add_box(&manifest, &box, &err), 0);
	assert_int_equal(blob_from_manifest(&manifest, NULL, &blob, &err), 0);
	assert_int_equal(blob.len, sizeof(bytes) - 1);
	assert_memory_equal(blob.bytes, bytes, blob.len);
	assert_true(blob_hash(&blob) == 0xa130ef6b8bd6db2du);
	manifest_finish(&manifest);
	blob_finish(&blob);
}

/* What `partial` refuses and takes: a parameter without a piece. */
static void test_partial(void **state)
{
	const struct parameter parameter = {"alone", 0, 0, STREW_F32, 1, {4}, {1}};
	struct layout layout, back;
	struct blob blob;
	struct error err;
	uint32_t index;

	(void)state;
	layout_init(&layout);
	add_rotary(&layout);
	assert_int_equal(layout_add_parameter(&layout, &parameter, &index, &err), 0);
	assert_int_equal(blob_from_layout(&layout, &blob, &err), 0);
	assert_int_equal(blob_to_layout(&blob, false, &back, &err), -EINVAL);
	assert_non_null(strstr(err.text, "alone"));
	assert_int_equal(blob_to_layout(&blob, true, &back, &err), 0);
	layout_finish(&back);
	layout_finish(&layout);
	blob_finish(&blob);
}

/* n tensors; rank r of `ranks` holds a stretch of rows of each. Only `only` adds its boxes. */
static struct source *make_manifest(struct manifest *manifest, unsigned n, uint32_t ranks, int only)
{
	struct source *sources = calloc((size_t)n * ranks + 1, sizeof(*sources));
	struct error err;

	manifest_init(manifest);
	for (uint32_t rank = 0; rank < ranks; rank++) {
		for (unsigned i = 0; i < n && (only < 0 || rank == (uint32_t)only); i++) {
			char name[LIMIT_NAME_BYTES];
			struct tensor tensor = {name, STREW_F16, 1 + (int)(i % 4), {0}};
			struct held_box box = {.rank = rank};
			struct source *source = &sources[manifest->nboxes];

			snprintf(name, sizeof(name), "model.layers.%u.weight", i);
			for (int k = 0; k < tensor.ndim; k++) {
				tensor.shape[k] = (k ? 1 : ranks) * (1 + (i * 7 + (unsigned)k) % 9);
				box.box.extent[k] = tensor.shape[k] / (k ? 1 : ranks);
				source->stride[k] = test_random() >> 20;
			}
			box.box.start[0] = rank * box.box.extent[0];
			source->memory = (uint32_t)test_random_below(LIMIT_ALLOCATIONS);
			source->offset_bytes = test_random();
			assert_int_equal(
				manifest_add_tensor(manifest, &tensor, &box.tensor, &err), 0);
			assert_int_equal(manifest_add_box(manifest, &box, &err), 0);
		}
	}
	return sources;
}

static void assert_manifests(const struct manifest *a, const struct manifest *b)
{
	assert_int_equal(a->ntensors, b->ntensors);
	assert_int_equal(a->nboxes, b->nboxes);
	assert_tensors(a->tensors, b->tensors, a->ntensors);
	for (size_t i = 0; i < a->nboxes; i++) {
		int ndim = a->tensors[a->boxes[i].tensor].ndim;

		assert_int_equal(a->boxes[i].tensor, b->boxes[i].tensor);
		assert_int_equal(a->boxes[i].rank, b->boxes[i].rank);
		assert_dims(ndim, a->boxes[i].box.start, b->boxes[i].box.start);
		assert_dims(ndim, a->boxes[i].box.extent, b->boxes[i].box.extent);
	}
}

static void test_manifests(void **state)
{
	(void)state;
	for (unsigned turn = 0; turn < 50; turn++) {
		uint32_t ranks = 1 + (uint32_t)test_random_below(5);
		struct manifest manifest, back;
		struct source *sources;
		struct blob blob;
		struct error err;

		sources = make_manifest(&manifest, 1 + (unsigned)test_random_below(60), ranks, -1);
		assert_int_equal(manifest_seal(&manifest, &err), 0);
		assert_int_equal(blob_from_manifest(&manifest, NULL, &blob, &err), 0);
		assert_int_equal(blob_to_manifest(&blob, &back, &err), 0);
		assert_true(back.sealed);
		assert_manifests(&manifest, &back);
		manifest_finish(&back);
		manifest_finish(&manifest);
		blob_finish(&blob);
		free(sources);
	}
}

static void test_declarations(void **state)
{
	struct manifest manifest, back;
	struct source *sources, *got;
	struct blob blob;
	struct error err;

	(void)state;
	sources = make_manifest(&manifest, 100, 3, 1);
	assert_int_equal(blob_from_manifest(&manifest, sources, &blob, &err), 0);
	assert_int_equal(blob_to_declaration(&blob, 1, &back, &got, &err), 0);
	assert_false(back.sealed); /* a third of each tensor is no whole */
	assert_manifests(&manifest, &back);
	for (size_t i = 0; i < manifest.nboxes; i++) {
		int ndim = manifest.tensors[manifest.boxes[i].tensor].ndim;

		assert_int_equal(got[i].memory, sources[i].memory);
		assert_true(got[i].offset_bytes == sources[i].offset_bytes);
		assert_dims(ndim, got[i].stride, sources[i].stride);
	}
	manifest_finish(&back);
	free(got);
	/* Another rank's boxes; a blob of another kind. */
	assert_int_equal(blob_to_declaration(&blob, 2, &back, &got, &err), -EPROTO);
	assert_non_null(strstr(err.text, "rank 2 declares a box of rank 1"));
	assert_int_equal(blob_to_manifest(&blob, &back, &err), -EPROTO);
	assert_non_null(strstr(err.text, "another kind"));
	manifest_finish(&manifest);
	blob_finish(&blob);
	free(sources);
}

/* What a broker passes on of one of its ranks. */
static void test_shares(void **state)
{
	struct manifest manifest, back;
	struct source *sources;
	struct blob blob;
	struct error err;

	(void)state;
	sources = make_manifest(&manifest, 100, 3, 1);
	assert_int_equal(blob_from_manifest(&manifest, NULL, &blob, &err), 0);
	assert_int_equal(blob_to_share(&blob, 1, &back, &err), 0);
	assert_false(back.sealed);
	assert_manifests(&manifest, &back);
	manifest_finish(&back);
	assert_int_equal(blob_to_share(&blob, 0, &back, &err), -EPROTO);
	assert_non_null(strstr(err.text, "rank 0 declares a box of rank 1"));
	/* A share is no manifest: most of every tensor is missing. */
	assert_int_equal(blob_to_manifest(&blob, &back, &err), -EINVAL);
	blob_finish(&blob);
	/* Where its boxes lie is nobody else's business. */
	assert_int_equal(blob_from_manifest(&manifest, sources, &blob, &err), 0);
	assert_int_equal(blob_to_share(&blob, 1, &back, &err), -EPROTO);
	assert_non_null(strstr(err.text, "another kind"));
	blob_finish(&blob);
	manifest_finish(&manifest);
	free(sources);
}

/* The first box lies behind none, and one of another rank not behind this one's. */
static void test_adjacent_to_nothing(void **state)
{
	const struct tensor tensor = {"w", STREW_F32, 2, {6, 2}};
	struct manifest manifest, back;
	struct blob blob;
	struct error err;

	(void)state;
	manifest_init(&manifest);
	for (uint32_t i = 0; i < 3; i++) {
		struct held_box box = {
			.rank = i / 2, .box = {{i * 2ull, 0}, {2, 2}}, .adjacent = i == 1};

		assert_int_equal(manifest_add_tensor(&manifest, &tensor, &box.tensor, &err), 0);
		assert_int_equal(manifest_add_box(&manifest, &box, &err), 0);
	}
	for (size_t wrong = 0; wrong < 4; wrong++) {
		bool is_wrong = wrong == 0 || wrong == 2;

		if (is_wrong) {
			manifest.boxes[wrong].adjacent = true;
		}
		assert_int_equal(blob_from_manifest(&manifest, NULL, &blob, &err), 0);
		assert_int_equal(blob_to_manifest(&blob, &back, &err), is_wrong ? -EPROTO : 0);
		if (is_wrong) {
			manifest.boxes[wrong].adjacent = false;
			assert_non_null(strstr(err.text, "and there is none"));
		} else {
			assert_manifests(&manifest, &back);
			manifest_finish(&back);
		}
		blob_finish(&blob);
	}
	manifest_finish(&manifest);
}

static void test_truncated_and_flipped(void **state)
{
	struct layout layout, back;
	struct blob blob;
	struct error err;
	size_t len;

	(void)state;
	make_layout(&layout, 12);
	assert_int_equal(blob_from_layout(&layout, &blob, &err), 0);
	len = blob.len;
	for (blob.len = 0; blob.len < len; blob.len++) {
		error_clear(&err);
		assert_int_equal(blob_to_layout(&blob, false, &back, &err), -EPROTO);
		assert_int_equal(err.code, -EPROTO);
	}
	for (unsigned turn = 0; turn < 20000; turn++) {
		size_t bit = test_random_below(8 * len);
		int rc;

		blob.bytes[bit / 8] ^= (uint8_t)(1u << bit % 8);
		rc = blob_to_layout(&blob, false, &back, &err);
		if (rc == 0) {
			layout_finish(&back);
		}
		if (turn % 4 != 3) { /* sometimes the harm adds up */
			blob.bytes[bit / 8] ^= (uint8_t)(1u << bit % 8);
		}
	}
	layout_finish(&layout);
	blob_finish(&blob);
}

static long resident_kb(void)
{
	struct rusage usage;

	getrusage(RUSAGE_SELF, &usage);
	return usage.ru_maxrss;
}

/* A header item alone, with counts that nothing stands behind. */
static int decode_counts(const char *kind, const uint64_t *counts, unsigned n, struct error *err)
{
	struct item_writer writer;
	struct manifest manifest;
	struct layout layout;
	struct source *sources;
	struct blob blob;
	int rc;

	items_begin(&writer, kind, counts, n);
	assert_int_equal(items_end(&writer, &blob, err), 0);
	if (n == 3) {
		rc = blob_to_layout(&blob, true, &layout, err);
	} else {
		rc = blob_to_declaration(&blob, 0, &manifest, &sources, err);
	}
	blob_finish(&blob);
	return rc;
}

static void test_lying_counts(void **state)
{
	const uint64_t most[] = {LIMIT_TENSORS, LIMIT_PARAMETERS, LIMIT_PIECES};
	const uint64_t over[] = {0, 0, LIMIT_PIECES + 1};
	const uint64_t huge[] = {0, UINT64_MAX};
	const uint64_t boxes[] = {0, LIMIT_BOXES};
	long before = resident_kb();
	struct error err;

	(void)state;
	assert_int_equal(decode_counts("strew-layout", most, 3, &err), -EPROTO);
	assert_non_null(strstr(err.text, "1441792 items in 0 bytes"));
	assert_int_equal(decode_counts("strew-layout", over, 3, &err), -E2BIG);
	assert_non_null(strstr(err.text, "1048577 items passes the limit of 1048576"));
	assert_int_equal(decode_counts("strew-declaration", huge, 2, &err), -E2BIG);
	assert_int_equal(decode_counts("strew-declaration", boxes, 2, &err), -EPROTO);
	assert_non_null(strstr(err.text, "1048576 items in 0 bytes"));
	assert_int_equal(decode_counts("strew-layout", boxes, 2, &err), -EPROTO);
	assert_true(resident_kb() - before < 1024);
}

/* One tensor item more or less than the header says, an index that is nobody's, a name twice. */
static void test_items_that_do_not_fit(void **state)
{
	static const struct {
		uint64_t counts[2];
		uint64_t tensor;
		const char *second, *text;
	} cases[] = {
		{{2, 1}, 0, "b", NULL},
		{{1, 1}, 0, "b", "another length"},
		{{3, 0}, 0, "b", "another length"},
		{{2, 0}, 0, "b", "bytes behind its end"},
		{{2, 2}, 0, "b", "fewer items than announced"},
		{{2, 1}, 2, "b", "names tensor 2 of 2"},
		{{2, 1}, 0, "a", "tensor a is there twice"},
	};

	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
		const struct tensor a = {"a", STREW_F32, 1, {4}};
		const struct tensor b = {cases[i].second, STREW_F32, 1, {4}};
		const uint64_t start = 0, extent = 4;
		struct item_writer writer;
		struct manifest manifest;
		struct source *sources;
		struct blob blob;
		struct error err;
		int rc;

		items_begin(&writer, "strew-declaration", cases[i].counts, 2);
		items_tensor(&writer, &a);
		items_tensor(&writer, &b);
		items_array(&writer, 7);
		items_number(&writer, cases[i].tensor);
		items_number(&writer, 0);
		items_numbers(&writer, &start, 1);
		items_numbers(&writer, &extent, 1);
		items_number(&writer, 0);
		items_number(&writer, 0);
		items_numbers(&writer, &extent, 1);
		assert_int_equal(items_end(&writer, &blob, &err), 0);
		rc = blob_to_declaration(&blob, 0, &manifest, &sources, &err);
		if (!cases[i].text) {
			assert_int_equal(rc, 0);
			manifest_finish(&manifest);
			free(sources);
		} else {
			assert_int_equal(rc, -EPROTO);
			if (!strstr(err.text, cases[i].text)) {
				fail_msg("\"%s\" does not say \"%s\"", err.text, cases[i].text);
			}
		}
		blob_finish(&blob);
	}
}

/* A piece that declares no cast, one that there is not, and a number that is neither 0 nor 1. */
static void test_bad_casts(void **state)
{
	static const struct {
		uint64_t from, to, cast;
		int code;
		const char *text;
	} cases[] = {
		{STREW_F32, STREW_BF16, 1, 0, ""},
		{STREW_I8, STREW_I8, 1, 0, ""},
		{STREW_F32, STREW_BF16, 0, -ENOTSUP, "parameter p, tensor t: the tensor is f32"},
		{STREW_I8, STREW_BF16, 1, -ENOTSUP, "parameter p, tensor t: a cast of i8 to bf16"},
		{STREW_F32, STREW_BF16, 2, -EPROTO, ""},
		{STREW_F32, STREW_BF16, UINT64_MAX, -EPROTO, ""},
	};
	const uint64_t counts[] = {1, 1, 1}, shape = 4, zero = 0, one = 1;

	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
		const struct tensor tensor = {"t", (enum strew_dtype)cases[i].from, 1, {4}};
		struct item_writer writer;
		struct layout layout;
		struct blob blob;
		struct error err = {0};

		items_begin(&writer, "strew-layout", counts, 3);
		items_tensor(&writer, &tensor);
		items_array(&writer, 6);
		items_string(&writer, "p");
		items_number(&writer, 0);
		items_number(&writer, 0);
		items_number(&writer, cases[i].to);
		items_numbers(&writer, &shape, 1);
		items_numbers(&writer, &one, 1);
		items_array(&writer, 8);
		items_number(&writer, 0);
		items_number(&writer, 0);
		items_number(&writer, 0);
		items_numbers(&writer, &shape, 1);
		items_numbers(&writer, &zero, 1);
		items_numbers(&writer, &shape, 1);
		items_numbers(&writer, &one, 1);
		items_number(&writer, cases[i].cast);
		assert_int_equal(items_end(&writer, &blob, &err), 0);
		assert_int_equal(blob_to_layout(&blob, false, &layout, &err), cases[i].code);
		if (cases[i].code) {
			assert_non_null(strstr(err.text, cases[i].text));
		} else {
			layout_finish(&layout);
		}
		blob_finish(&blob);
	}
}

/* msgpack-c has no pointer for an empty string: a name that is empty is still a sentence. */
static void test_empty_names(void **state)
{
	const uint64_t counts[] = {1, 0};
	const struct tensor nameless = {"", STREW_F32, 1, {4}};
	struct item_writer writer;
	struct manifest manifest;
	struct blob blob;
	struct error err;

	(void)state;
	items_begin(&writer, "strew-manifest", counts, 2);
	items_tensor(&writer, &nameless);
	assert_int_equal(items_end(&writer, &blob, &err), 0);
	assert_true(blob_to_manifest(&blob, &manifest, &err) < 0);
	assert_true(err.text[0] != '\0');
	blob_finish(&blob);
	items_begin(&writer, "", counts, 2);
	assert_int_equal(items_end(&writer, &blob, &err), 0);
	assert_int_equal(blob_to_manifest(&blob, &manifest, &err), -EPROTO);
	blob_finish(&blob);
}

static void test_parts(void **state)
{
	struct blob sent = {0}, got = {0};
	struct message message;
	struct conn *a, *b;
	struct error err;
	int fds[2];
	uint64_t hash;

	(void)state;
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
	assert_int_equal(conn_create(fds[0], true, &a), 0);
	assert_int_equal(conn_create(fds[1], true, &b), 0);
	sent.len = (3u << 20) + 12345;
	sent.bytes = malloc(sent.len);
	test_random_fill(sent.bytes, sent.len);
	hash = blob_hash(&sent);
	assert_int_equal(blob_parts(&sent), 13);
	assert_int_equal(blob_send(a, &sent, PART_LAYOUT, &err), 0);
	for (unsigned i = 0; i < 13; i++) {
		int rc;

		while ((rc = conn_receive(b, &message, &err)) == 0) {
			conn_flush(a);
		}
		assert_int_equal(rc, 1);
		assert_int_equal(message.type, MSG_PART);
		assert_int_equal(message.u.part.of, PART_LAYOUT);
		if (i == 5) { /* out of order */
			message.u.part.number = 6;
			assert_int_equal(blob_append(&got, &message.u.part, &err), -EPROTO);
			assert_non_null(strstr(err.text, "part 6 came where part 5 was due"));
			message.u.part.number = 5;
		}
		assert_int_equal(blob_append(&got, &message.u.part, &err), 0);
		assert_int_equal(blob_append(&got, &message.u.part, &err), -EPROTO); /* again */
		message_finish(&message);
	}
	assert_int_equal(got.len, sent.len);
	assert_memory_equal(got.bytes, sent.bytes, sent.len);
	assert_int_equal(blob_check(&got, 13, sent.len, hash, &err), 0);
	assert_int_equal(blob_check(&got, 12, sent.len, hash, &err), -EPROTO);
	assert_int_equal(blob_check(&got, 13, sent.len - 1, hash, &err), -EPROTO);
	assert_int_equal(blob_check(&got, 13, sent.len, hash + 1, &err), -EPROTO);
	assert_non_null(strstr(err.text, "hash"));
	/* Nobody reads: the waiting sender's deadline passes. */
	assert_int_equal(
		blob_send_wait(a, &sent, PART_LAYOUT, deadline_in_ms(30), &err), -ETIMEDOUT);
	blob_finish(&sent);
	blob_finish(&got);
	conn_destroy(a);
	conn_destroy(b);
}

static void receive_parts(struct conn *from, struct conn *to, const struct blob *sent)
{
	struct blob got = {0};
	struct message message;
	struct error err;

	while (got.len < sent->len) {
		int rc = conn_receive(to, &message, &err);

		assert_true(rc >= 0);
		if (rc == 0) {
			assert_true(conn_flush(from) >= 0);
			continue;
		}
		assert_int_equal(blob_append(&got, &message.u.part, &err), 0);
		message_finish(&message);
	}
	assert_int_equal(blob_check(&got, blob_parts(sent), sent->len, blob_hash(sent), &err), 0);
	blob_finish(&got);
}

/* Far more than an outbox holds, with messages between; and the blob is there for as long as one
 * peer still has to get some of it. */
static void test_shared(void **state)
{
	struct shared_blob *shared;
	struct blob blob = {0};
	struct conn *a[2], *b[2];
	struct message message;
	struct error err;

	(void)state;
	blob.len = (9u << 20) + 4321;
	blob.bytes = malloc(blob.len);
	test_random_fill(blob.bytes, blob.len);
	shared = shared_blob_create(&blob);
	assert_non_null(shared);
	assert_null(blob.bytes);
	for (unsigned i = 0; i < 2; i++) {
		int fds[2];

		assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
		assert_int_equal(conn_create(fds[0], true, &a[i]), 0);
		assert_int_equal(conn_create(fds[1], true, &b[i]), 0);
		for (unsigned k = 0; k < LIMIT_OUTBOX_SOURCES; k++) {
			assert_int_equal(blob_send_shared(a[i], shared, PART_MANIFEST, &err), 0);
			message_init(&message, MSG_OK, 0);
			message.u.ok.value = k;
			assert_int_equal(conn_send(a[i], &message, &err), 0);
		}
	}
	for (unsigned k = 0; k < 3; k++) {
		receive_parts(a[0], b[0], &shared->blob);
		assert_int_equal(conn_receive(b[0], &message, &err), 1);
		assert_int_equal(message.type, MSG_OK);
		assert_int_equal(message.u.ok.value, k);
		message_finish(&message);
	}
	assert_false(conn_gave_up(a[0]));
	/* The others wait, and one more is one too many. */
	assert_int_equal(blob_send_shared(a[1], shared, PART_MANIFEST, &err), -E2BIG);
	assert_non_null(strstr(err.text, "does not read"));
	assert_true(conn_gave_up(a[1]));
	for (unsigned i = 0; i < 2; i++) {
		conn_destroy(a[i]);
		conn_destroy(b[i]);
	}
	assert_int_equal(shared->references, 1);
	shared_blob_put(shared);
	shared_blob_put(NULL);
}

static void test_quota(void **state)
{
	static uint8_t bytes[LIMIT_FRAME_BYTES];
	struct msg_part part = {.of = PART_LAYOUT, .bytes = bytes};
	struct blob blob = {0};
	struct error err;
	int rc;

	(void)state;
	assert_int_equal(blob_append(&blob, &part, &err), -EPROTO); /* an empty one */
	assert_non_null(strstr(err.text, "part 0"));
	do {
		part.number = blob.parts;
		part.nbytes = sizeof(bytes);
		rc = blob_append(&blob, &part, &err);
	} while (rc == 0 && blob.parts < 10000);
	assert_int_equal(rc, -E2BIG);
	assert_int_equal(blob.len, LIMIT_PARTS_BYTES);
	part.nbytes = 1;
	assert_int_equal(blob_append(&blob, &part, &err), -E2BIG);
	blob_finish(&blob);
}

/* A layout of 100,000 pieces, as a large model has them: ten to a parameter. */
static void make_large(struct layout *layout)
{
	struct error err;

	layout_init(layout);
	for (unsigned i = 0; i < 10000; i++) {
		char name[64];
		struct tensor tensor = {name, STREW_BF16, 2, {1280, 4096}};
		struct parameter parameter = {
			name, 0, 10485760ull * i, STREW_BF16, 2, {1280, 4096}, {4096, 1}};
		struct piece piece = {.ndim = 2, .view = {1280, 4096}, .stride = {4096, 1}};

		snprintf(name, sizeof(name), "model.layers.%u.mlp.experts.w13_weight", i);
		assert_int_equal(layout_add_tensor(layout, &tensor, &piece.tensor, &err), 0);
		assert_int_equal(
			layout_add_parameter(layout, &parameter, &piece.parameter, &err), 0);
		for (unsigned k = 0; k < 10; k++) {
			piece.box = (struct box){{128 * k, 0}, {128, 4096}};
			piece.offset = 128ull * k * 4096;
			assert_int_equal(layout_add_piece(layout, &piece, &err), 0);
		}
	}
	assert_int_equal(layout_seal(layout, false, &err), 0);
}

static void test_large(void **state)
{
	struct layout layout, back;
	uint64_t began, encoded, read, decoded;
	struct item_reader reader;
	uint64_t counts[3];
	const uint64_t limits[] = {LIMIT_TENSORS, LIMIT_PARAMETERS, LIMIT_PIECES};
	struct blob blob;
	struct error err;

	(void)state;
	make_large(&layout);
	began = clock_ns();
	assert_int_equal(blob_from_layout(&layout, &blob, &err), 0);
	encoded = clock_ns();
	/* The items alone, without plan's checks. */
	items_open(&reader, &blob, &err);
	assert_int_equal(items_header(&reader, "strew-layout", counts, limits, 3), 0);
	for (uint64_t i = 0; i < counts[0] + counts[1] + counts[2]; i++) {
		uint32_t elements = i < counts[0] ? 3 : i < counts[0] + counts[1] ? 6 : 8;

		assert_int_equal(items_next(&reader, elements), 0);
	}
	assert_int_equal(items_ended(&reader), 0);
	items_close(&reader);
	read = clock_ns();
	assert_int_equal(blob_to_layout(&blob, false, &back, &err), 0);
	decoded = clock_ns();
	printf("100,000 pieces: %.1f MB in %u parts; encoded in %.1f ms, items read in %.1f ms, "
	       "decoded, checked and sealed in %.1f ms\n",
		(double)blob.len / 1e6, blob_parts(&blob), (double)(encoded - began) / 1e6,
		(double)(read - encoded) / 1e6, (double)(decoded - read) / 1e6);
	assert_true(decoded - began < 5000000000u);
	assert_layouts(&layout, &back);
	layout_finish(&back);
	layout_finish(&layout);
	blob_finish(&blob);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_layouts),
		cmocka_unit_test(test_bytes_of_the_document),
		cmocka_unit_test(test_share_of_the_document),
		cmocka_unit_test(test_partial),
		cmocka_unit_test(test_manifests),
		cmocka_unit_test(test_declarations),
		cmocka_unit_test(test_shares),
		cmocka_unit_test(test_adjacent_to_nothing),
		cmocka_unit_test(test_truncated_and_flipped),
		cmocka_unit_test(test_lying_counts),
		cmocka_unit_test(test_items_that_do_not_fit),
		cmocka_unit_test(test_bad_casts),
		cmocka_unit_test(test_empty_names),
		cmocka_unit_test(test_parts),
		cmocka_unit_test(test_shared),
		cmocka_unit_test(test_quota),
		cmocka_unit_test(test_large),
	};

	return TEST_RUN(tests);
}
