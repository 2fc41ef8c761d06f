/* Manifests and declarations as blobs: tensors, then boxes; a declaration's boxes say where they
 * lie. */
#include "ipc/items.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define MANIFEST "strew-manifest"
#define DECLARATION "strew-declaration"

int blob_from_manifest(const struct manifest *manifest, const struct source *sources,
	struct blob *ret_blob, struct error *err)
{
	uint64_t counts[] = {manifest->ntensors, manifest->nboxes};
	struct item_writer writer;

	items_begin(&writer, sources ? DECLARATION : MANIFEST, counts, 2);
	for (size_t i = 0; i < manifest->ntensors; i++) {
		items_tensor(&writer, &manifest->tensors[i]);
	}
	for (size_t i = 0; i < manifest->nboxes; i++) {
		const struct held_box *box = &manifest->boxes[i];
		int ndim = manifest->tensors[box->tensor].ndim;

		items_array(&writer, sources ? 7 : 5);
		items_number(&writer, box->tensor);
		items_number(&writer, box->rank);
		items_numbers(&writer, box->box.start, ndim);
		items_numbers(&writer, box->box.extent, ndim);
		if (sources) {
			items_number(&writer, sources[i].memory);
			items_number(&writer, sources[i].offset_bytes);
			items_numbers(&writer, sources[i].stride, ndim);
		} else {
			items_number(&writer, box->adjacent);
		}
	}
	return items_end(&writer, ret_blob, err);
}

static int read_box(struct item_reader *reader, const struct manifest *manifest,
	struct held_box *ret_box, struct source *ret_source)
{
	struct held_box box = {0};
	struct source source = {0};
	uint64_t tensor = 0, rank = 0, memory = 0, adjacent = 0;
	int ndim;
	int rc = items_next(reader, ret_source ? 7 : 5);

	rc = rc ? rc : items_get_number(reader, UINT32_MAX, &tensor);
	if (rc == 0 && tensor >= manifest->ntensors) {
		return error_set(reader->err, -EPROTO, "a box names tensor %llu of %zu",
			(unsigned long long)tensor, manifest->ntensors);
	}
	if (rc) {
		return rc;
	}
	ndim = manifest->tensors[tensor].ndim;
	rc = rc ? rc : items_get_number(reader, LIMIT_RANKS - 1, &rank);
	rc = rc ? rc : items_get_numbers(reader, box.box.start, &ndim);
	rc = rc ? rc : items_get_numbers(reader, box.box.extent, &ndim);
	if (ret_source) {
		rc = rc ? rc : items_get_number(reader, LIMIT_ALLOCATIONS, &memory);
		rc = rc ? rc : items_get_number(reader, UINT64_MAX, &source.offset_bytes);
		rc = rc ? rc : items_get_numbers(reader, source.stride, &ndim);
		source.memory = (uint32_t)memory;
		*ret_source = source;
	} else {
		rc = rc ? rc : items_get_number(reader, 1, &adjacent);
	}
	box.adjacent = adjacent;
	box.tensor = (uint32_t)tensor;
	box.rank = (uint32_t)rank;
	*ret_box = box;
	return rc;
}

static int read_tensors(struct item_reader *reader, struct manifest *manifest, uint64_t n)
{
	char name[LIMIT_NAME_BYTES + 1];

	for (uint64_t i = 0; i < n; i++) {
		struct tensor tensor;
		uint32_t index;
		int rc = items_get_tensor(reader, &tensor, name);

		if (rc == 0) {
			rc = manifest_add_tensor(manifest, &tensor, &index, reader->err);
		}
		if (rc == 0 && index != i) {
			rc = error_set(reader->err, -EPROTO, "tensor %s is there twice", name);
		}
		if (rc) {
			return rc;
		}
	}
	return 0;
}

/* sources NULL: a manifest; else one is malloc'd for each box. rank NULL: boxes of any. */
static int read_all(struct item_reader *reader, const uint32_t *rank, struct manifest *manifest,
	struct source **sources)
{
	static const uint64_t limits[] = {LIMIT_TENSORS, LIMIT_BOXES};
	uint64_t counts[2];
	int rc = items_header(reader, sources ? DECLARATION : MANIFEST, counts, limits, 2);

	rc = rc ? rc : read_tensors(reader, manifest, counts[0]);
	if (rc == 0 && sources) {
		*sources = calloc(counts[1] + 1, sizeof(**sources));
		if (!*sources) {
			return error_set(reader->err, -ENOMEM, "out of memory");
		}
	}
	for (uint64_t i = 0; rc == 0 && i < counts[1]; i++) {
		struct held_box box;

		rc = read_box(reader, manifest, &box, sources ? *sources + i : NULL);
		if (rc == 0 && rank && box.rank != *rank) {
			rc = error_set(reader->err, -EPROTO, "rank %u declares a box of rank %u",
				*rank, box.rank);
		}
		if (rc == 0 && box.adjacent &&
			(i == 0 || box.rank != manifest->boxes[i - 1].rank)) {
			rc = error_set(reader->err, -EPROTO,
				"box %llu is said to lie behind one of its rank, and there is none",
				(unsigned long long)i);
		}
		if (rc == 0) {
			rc = manifest_add_box(manifest, &box, reader->err);
		}
	}
	return rc ? rc : items_ended(reader);
}

int blob_to_declaration(const struct blob *blob, uint32_t rank, struct manifest *ret_manifest,
	struct source **ret_sources, struct error *err)
{
	struct source *sources = NULL;
	struct manifest manifest;
	struct item_reader reader;
	int rc;

	manifest_init(&manifest);
	items_open(&reader, blob, err);
	rc = read_all(&reader, &rank, &manifest, &sources);
	items_close(&reader);
	if (rc) {
		manifest_finish(&manifest);
		free(sources);
		return rc;
	}
	manifest_mark_adjacent(&manifest, sources);
	*ret_manifest = manifest;
	*ret_sources = sources;
	return 0;
}

static int read_manifest(const struct blob *blob, const uint32_t *rank, bool seal,
	struct manifest *ret_manifest, struct error *err)
{
	struct manifest manifest;
	struct item_reader reader;
	int rc;

	manifest_init(&manifest);
	items_open(&reader, blob, err);
	rc = read_all(&reader, rank, &manifest, NULL);
	items_close(&reader);
	if (rc == 0 && seal) {
		rc = manifest_seal(&manifest, err);
	}
	if (rc) {
		manifest_finish(&manifest);
		return rc;
	}
	*ret_manifest = manifest;
	return 0;
}

int blob_to_manifest(const struct blob *blob, struct manifest *ret_manifest, struct error *err)
{
	return read_manifest(blob, NULL, true, ret_manifest, err);
}

int blob_to_share(
	const struct blob *blob, uint32_t rank, struct manifest *ret_manifest, struct error *err)
{
	return read_manifest(blob, &rank, false, ret_manifest, err);
}
