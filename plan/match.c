/* Manifest against layouts: do they fit, and what does one leave uncovered of the other. */
#include "plan/by_tensor.h"
#include "plan/plan.h"
#include "plan/tensor_table.h"
#include <errno.h>
#include <stdlib.h>

static int match_piece(const struct manifest *manifest, const struct layout *layout,
	const struct piece *piece, bool partial, struct error *err)
{
	const struct tensor *wanted = &layout->tensors[piece->tensor];
	int64_t found = manifest_find(manifest, wanted->name);
	char a[72], b[72];

	if (found < 0) {
		if (partial) {
			return 0;
		}
		return error_set(err, -ENOENT, "parameter %.88s: no tensor %.88s is published",
			layout->parameters[piece->parameter].name, wanted->name);
	}
	if (!tensor_same(&manifest->tensors[found], wanted)) {
		return error_set(err, -EINVAL,
			"tensor %.72s: the trainer has %s, the layout expects %s", wanted->name,
			tensor_format(a, sizeof(a), &manifest->tensors[found]),
			tensor_format(b, sizeof(b), wanted));
	}
	return 0;
}

int plan_match(const struct manifest *manifest, const struct layout *layout, bool partial,
	struct error *err)
{
	bool *seen = calloc(layout->ntensors + 1, sizeof(*seen));
	int r = 0;

	if (!seen) {
		return error_set(err, -ENOMEM, "out of memory for %zu tensors", layout->ntensors);
	}
	for (size_t i = 0; i < layout->npieces && r == 0; i++) {
		const struct piece *piece = &layout->pieces[i];

		if (!seen[piece->tensor]) {
			seen[piece->tensor] = true;
			r = match_piece(manifest, layout, piece, partial, err);
		}
	}
	free(seen);
	return r;
}

/* Marks what the layout's pieces take, and counts its parameters that get nothing. */
static int uncovered_by_layout(const struct manifest *manifest, const struct layout *layout,
	bool *taken, struct plan_uncovered *uncovered)
{
	bool *written = calloc(layout->nparameters + 1, sizeof(*written));

	if (!written) {
		return -ENOMEM;
	}
	for (size_t i = 0; i < layout->npieces; i++) {
		const struct piece *piece = &layout->pieces[i];
		int64_t found;

		if (box_empty(piece->ndim, &piece->box)) {
			continue;
		}
		found = manifest_find(manifest, layout->tensors[piece->tensor].name);
		if (found >= 0) {
			taken[found] = true;
			written[piece->parameter] = true;
		}
	}
	for (size_t i = 0; i < layout->nparameters; i++) {
		const struct parameter *parameter = &layout->parameters[i];

		if (!written[i] && parameter_span_bytes(parameter)) {
			if (!uncovered->parameters++) {
				uncovered->first_parameter = parameter->name;
			}
		}
	}
	free(written);
	return 0;
}

int plan_uncovered(const struct manifest *manifest, const struct layout *const *layouts,
	size_t nlayouts, struct plan_uncovered *ret_uncovered)
{
	bool *taken = calloc(manifest->ntensors + 1, sizeof(*taken));
	struct plan_uncovered uncovered = {0};
	int r = taken ? 0 : -ENOMEM;

	for (size_t i = 0; i < nlayouts && r == 0; i++) {
		r = uncovered_by_layout(manifest, layouts[i], taken, &uncovered);
	}
	for (size_t i = 0; i < manifest->ntensors && r == 0; i++) {
		if (!taken[i] && tensor_bytes(&manifest->tensors[i])) {
			if (!uncovered.tensors++) {
				uncovered.first_tensor = manifest->tensors[i].name;
			}
		}
	}
	free(taken);
	if (r == 0) {
		*ret_uncovered = uncovered;
	}
	return r;
}
