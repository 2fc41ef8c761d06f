/* Subsets of random manifests against what each box of theirs should be, found by its name. */
#include "base/util.h"
#include "plan/subset.h"
#include "support/test_main.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MOST = 40 };

/* Tensors of up to three boxes each, in memory in which some lie behind the one before. */
static void draw(struct manifest *manifest, size_t n)
{
	struct source *sources = calloc(MOST * 3, sizeof(*sources));
	uint64_t end = 0;
	struct error err;

	assert_non_null(sources);
	manifest_init(manifest);
	for (uint32_t i = 0; i < n; i++) {
		struct tensor tensor = {.dtype = STREW_F32, .ndim = 2};
		struct held_box box = {0};
		char name[16];

		snprintf(name, sizeof(name), "t%u", i);
		tensor.name = name;
		tensor.shape[0] = 1 + test_random_below(9);
		tensor.shape[1] = 1 + test_random_below(70);
		assert_int_equal(manifest_add_tensor(manifest, &tensor, &box.tensor, &err), 0);
		for (uint64_t row = 0; row < tensor.shape[0];) {
			struct source *source = &sources[manifest->nboxes];
			uint64_t rows = tensor.shape[0] - row;

			rows = manifest->nboxes + 3 < MOST * 3 && row == 0
				       ? 1 + test_random_below(rows)
				       : rows;
			box.box = (struct box){{row, 0}, {rows, tensor.shape[1]}};
			assert_int_equal(manifest_add_box(manifest, &box, &err), 0);
			source->offset_bytes = end + (test_random_below(3) ? 0 : 512);
			source->stride[0] = tensor.shape[1];
			source->stride[1] = 1;
			end = align_up(
				source->offset_bytes + rows * tensor.shape[1] * 4, SLOT_ALIGN);
			row += rows;
		}
	}
	manifest_mark_adjacent(manifest, sources);
	assert_int_equal(manifest_seal(manifest, &err), 0);
	free(sources);
}

static void check_boxes(const struct manifest *whole, const uint8_t *bits,
	const struct manifest *subset, const uint32_t *boxes)
{
	size_t next = 0;
	uint64_t bytes = 0;

	for (size_t i = 0; i < whole->nboxes; i++) {
		const struct held_box *box = &whole->boxes[i], *got = &subset->boxes[next];
		const struct tensor *tensor = &whole->tensors[box->tensor], *same;
		bool before = i && (bits[whole->boxes[i - 1].tensor / 8] &
					   1u << whole->boxes[i - 1].tensor % 8);

		if (!(bits[box->tensor / 8] & 1u << box->tensor % 8)) {
			continue;
		}
		assert_true(next < subset->nboxes);
		same = &subset->tensors[got->tensor];
		assert_string_equal(same->name, tensor->name);
		assert_memory_equal(same->shape, tensor->shape, sizeof(tensor->shape));
		assert_int_equal(same->dtype, tensor->dtype);
		assert_memory_equal(&got->box, &box->box, sizeof(box->box));
		assert_int_equal(got->rank, box->rank);
		assert_int_equal(boxes[next], i);
		/* It lies behind the one before it, and that one is here too. */
		assert_int_equal(got->adjacent, box->adjacent && before);
		bytes += box->box.extent[0] * box->box.extent[1] * 4;
		next++;
	}
	assert_int_equal(subset->nboxes, next);
	assert_true(subset->sealed);
	assert_true(manifest_bytes(subset) == bytes);
	assert_true(next == 0 || !subset->boxes[0].adjacent);
}

static void test_boxes_and_order(void **state)
{
	(void)state;
	for (unsigned turn = 0; turn < 300; turn++) {
		size_t n = 1 + test_random_below(MOST);
		struct manifest whole, subset;
		uint8_t bits[MOST / 8 + 1] = {0};
		size_t chosen = 0;
		uint32_t *boxes;
		struct error err;
		int rc;

		draw(&whole, n);
		for (size_t i = 0; i < n; i++) {
			if (turn % 5 == 0 || test_random_below(2)) {
				bits_set(bits, i);
				chosen++;
			}
		}
		assert_int_equal(bits_check(bits, bits_bytes(n), n, &err), 0);
		rc = manifest_choose(&whole, bits, &subset, &boxes, &err);
		assert_int_equal(rc, chosen ? 0 : -EINVAL);
		if (rc == 0) {
			assert_int_equal(subset.ntensors, chosen);
			check_boxes(&whole, bits, &subset, boxes);
			manifest_finish(&subset);
			free(boxes);
		}
		manifest_finish(&whole);
	}
}

static void test_bits(void **state)
{
	(void)state;
	for (size_t n = 0; n <= 17; n++) {
		uint8_t bits[4] = {0};
		struct error err;

		for (size_t i = 0; i < n; i++) {
			bits_set(bits, i);
			assert_true(bits_has(bits, i));
		}
		assert_int_equal(bits_check(bits, (n + 7) / 8, n, &err), 0);
		assert_int_equal(bits_check(bits, (n + 7) / 8 + 1, n, &err), -EINVAL);
		if (n % 8) {
			bits[n / 8] |= (uint8_t)(1u << n % 8);
			assert_int_equal(bits_check(bits, (n + 7) / 8, n, &err), -EINVAL);
		}
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_boxes_and_order),
		cmocka_unit_test(test_bits),
	};

	return test_finish(cmocka_run_group_tests(tests, NULL, NULL), test_fds_at_start);
}
