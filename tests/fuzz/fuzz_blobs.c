/*
 * Layouts, declarations, shares and manifests as bytes. One that is taken is written and
 * read again, which must give the same bytes; a manifest and a layout that came together are
 * planned for, so that the planner meets all that a peer can make it meet.
 */
#include "base/util.h"
#include "fuzz/fuzz.h"
#include "ipc/blob.h"
#include "plan/plan.h"
#include <stdlib.h>
#include <string.h>

enum { LAYOUT, DECLARATION, SHARE, MANIFEST, PLANNED, KINDS };

#define PLAN_BYTES (1u << 22) /* of tensors: more would take long, which is no fault */

/* A copy of n bytes, in two parts where there are enough. */
static void fill(struct blob *blob, const uint8_t *bytes, size_t n)
{
	struct msg_part part = {.bytes = bytes, .nbytes = MIN(n, 40)};
	struct error err;

	memset(blob, 0, sizeof(*blob));
	if (n == 0) {
		return;
	}
	CLAIM(blob_append(blob, &part, &err) == 0);
	if (n > 40) {
		part.number = 1;
		part.bytes += 40;
		part.nbytes = n - 40;
		CLAIM(blob_append(blob, &part, &err) == 0);
	}
	CLAIM(blob_check(blob, blob->parts, n, blob_hash(blob), &err) == 0);
}

static void same(const struct blob *first, const struct blob *second)
{
	CLAIM(first->len == second->len && memcmp(first->bytes, second->bytes, first->len) == 0);
}

static void layout_again(const struct layout *layout, bool partial)
{
	struct layout copy;
	struct blob first, second;
	struct error err;

	CLAIM(blob_from_layout(layout, &first, &err) == 0);
	CLAIM(blob_to_layout(&first, partial, &copy, &err) == 0);
	CLAIM(blob_from_layout(&copy, &second, &err) == 0);
	same(&first, &second);
	CLAIM(layout_bytes(layout) == layout_bytes(&copy));
	layout_finish(&copy);
	blob_finish(&first);
	blob_finish(&second);
}

static void declaration(const struct blob *blob, uint32_t rank)
{
	struct manifest manifest, copy;
	struct source *sources, *copied;
	struct blob first, second;
	struct error err = {0};

	if (blob_to_declaration(blob, rank, &manifest, &sources, &err)) {
		CLAIM(err.code < 0 && err.text[0]);
		return;
	}
	CLAIM(blob_from_manifest(&manifest, sources, &first, &err) == 0);
	CLAIM(blob_to_declaration(&first, rank, &copy, &copied, &err) == 0);
	CLAIM(blob_from_manifest(&copy, copied, &second, &err) == 0);
	same(&first, &second);
	manifest_finish(&manifest);
	manifest_finish(&copy);
	free(sources);
	free(copied);
	blob_finish(&first);
	blob_finish(&second);
}

static void manifest_again(const struct manifest *manifest, bool share, uint32_t rank)
{
	struct blob first, second;
	struct manifest copy;
	struct error err;

	CLAIM(blob_from_manifest(manifest, NULL, &first, &err) == 0);
	CLAIM((share ? blob_to_share(&first, rank, &copy, &err)
		     : blob_to_manifest(&first, &copy, &err)) == 0);
	CLAIM(blob_from_manifest(&copy, NULL, &second, &err) == 0);
	same(&first, &second);
	manifest_finish(&copy);
	blob_finish(&first);
	blob_finish(&second);
}

static void plan(const struct manifest *manifest, const struct layout *layout)
{
	static const uint32_t roots[LIMIT_RANKS];
	const struct plan_worker worker = {.layout = layout, .space_base = 1};
	struct buckets buckets;
	struct copies copies;
	struct error err;

	if (manifest_bytes(manifest) > PLAN_BYTES || plan_match(manifest, layout, true, &err) ||
		buckets_make(manifest, LIMIT_SLOT_BYTES_MIN, roots, LIMIT_RANKS, &buckets, &err)) {
		return;
	}
	for (size_t i = 0; i < buckets.n; i++) {
		CLAIM(buckets.v[i].len_bytes <= LIMIT_SLOT_BYTES_MIN);
	}
	if (plan_scatter(manifest, &buckets, &worker, 1, &copies, &err) == 0) {
		CLAIM(copies.nranges == buckets.n);
		copies_finish(&copies);
	}
	buckets_finish(&buckets);
}

/* Two blobs: the first one's length is in front of them. */
static void planned(struct input *input)
{
	size_t n;
	const uint8_t *bytes = input_bytes(input, UINT16_MAX, &n);
	struct blob of_manifest, of_layout;
	struct manifest manifest;
	struct layout layout;
	struct error err;

	fill(&of_manifest, bytes, n);
	fill(&of_layout, input->at, input->left);
	if (blob_to_manifest(&of_manifest, &manifest, &err) == 0) {
		if (blob_to_layout(&of_layout, true, &layout, &err) == 0) {
			plan(&manifest, &layout);
			layout_finish(&layout);
		}
		manifest_finish(&manifest);
	}
	blob_finish(&of_manifest);
	blob_finish(&of_layout);
}

static void one(unsigned kind, bool partial, uint32_t rank, const struct blob *blob)
{
	struct error err = {0};
	struct manifest manifest;
	struct layout layout;
	int rc;

	if (kind == LAYOUT) {
		rc = blob_to_layout(blob, partial, &layout, &err);
		if (rc == 0) {
			layout_again(&layout, partial);
			layout_finish(&layout);
		}
	} else {
		rc = kind == SHARE ? blob_to_share(blob, rank, &manifest, &err)
				   : blob_to_manifest(blob, &manifest, &err);
		if (rc == 0) {
			manifest_again(&manifest, kind == SHARE, rank);
			manifest_finish(&manifest);
		}
	}
	CLAIM(rc == 0 || (err.code == rc && err.text[0]));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct input input = {data, size};
	uint8_t how = input_byte(&input);
	struct blob blob;

	if (how % KINDS == PLANNED) {
		planned(&input);
		return 0;
	}
	fill(&blob, input.at, input.left);
	if (how % KINDS == DECLARATION) {
		declaration(&blob, how / KINDS % 4);
	} else {
		one(how % KINDS, how & 0x80, how / KINDS % 4, &blob);
	}
	blob_finish(&blob);
	return 0;
}
