#include "plan/subset.h"
#include <errno.h>
#include <stdlib.h>

int bits_check(const uint8_t *bits, size_t nbytes, size_t n, struct error *err)
{
	if (nbytes != bits_bytes(n)) {
		return error_set(err, -EINVAL, "a subset of %zu tensors in %zu bytes", n, nbytes);
	}
	if (n % 8 && bits[n / 8] >> n % 8) {
		return error_set(err, -EINVAL, "a subset has tensors behind the last of %zu", n);
	}
	return 0;
}

static int add_boxes(const struct manifest *whole, const uint8_t *chosen, struct manifest *manifest,
	uint32_t *boxes, struct error *err)
{
	for (size_t i = 0; i < whole->nboxes; i++) {
		struct held_box box = whole->boxes[i];
		int rc;

		if (!bits_has(chosen, box.tensor)) {
			continue;
		}
		/* The box before it may have been left out. */
		box.adjacent = box.adjacent && bits_has(chosen, whole->boxes[i - 1].tensor);
		boxes[manifest->nboxes] = (uint32_t)i;
		rc = manifest_add_tensor(manifest, &whole->tensors[box.tensor], &box.tensor, err);
		if (rc == 0) {
			rc = manifest_add_box(manifest, &box, err);
		}
		if (rc) {
			return rc;
		}
	}
	return 0;
}

int manifest_choose(const struct manifest *whole, const uint8_t *chosen,
	struct manifest *ret_manifest, uint32_t **ret_boxes, struct error *err)
{
	uint32_t *boxes = calloc(whole->nboxes + 1, sizeof(*boxes));
	struct manifest manifest;
	int rc;

	if (!boxes) {
		return error_set(err, -ENOMEM, "out of memory");
	}
	manifest_init(&manifest);
	rc = add_boxes(whole, chosen, &manifest, boxes, err);
	if (rc == 0 && !manifest.ntensors) {
		rc = error_set(err, -EINVAL, "a subset without a tensor");
	}
	if (rc == 0) {
		rc = manifest_seal(&manifest, err);
	}
	if (rc) {
		manifest_finish(&manifest);
		free(boxes);
		return rc;
	}
	*ret_manifest = manifest;
	*ret_boxes = boxes;
	return 0;
}
