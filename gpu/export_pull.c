/*
 * Memory that cannot be exported, and its twins. A twin is exportable memory, one for all
 * such host memory of the set and one for that of each GPU, in which every range has a place; the
 * broker reads and writes there, and this process carries the bytes over when it is told to.
 *
 * Host memory is carried by pread() and pwrite() on the twin's memfd, which is not even mapped
 * here: memory that was unmapped meanwhile is then an error, not the end of somebody's engine.
 */
#include "base/util.h"
#include "gpu/export_set.h"
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define MINCORE_BYTES ((uint64_t)64 << 20) /* a look's, so that its answer is small */

/* Index of the first range that starts behind the address; before they are settled. */
static size_t range_behind(const struct export_set *set, uint64_t address)
{
	return upper_bound(set->pulls, set->npulls, sizeof(*set->pulls),
		offsetof(struct export_range, base), address);
}

const struct export_range *export_pull_find(const struct export_set *set, uint64_t address)
{
	for (size_t i = 0; i < set->ntwins; i++) {
		const struct export_range *ranges = &set->pulls[set->twins[i].first];
		size_t at = upper_bound(ranges, set->twins[i].nranges, sizeof(*ranges),
			offsetof(struct export_range, base), address);

		if (at > 0 && address - ranges[at - 1].base < ranges[at - 1].len_bytes) {
			return &ranges[at - 1];
		}
	}
	return NULL;
}

/* Every page of the range is somebody's: -EFAULT if not. */
static int check_mapped(uint64_t base, uint64_t len_bytes, struct error *err)
{
	unsigned char resident[MINCORE_BYTES / 4096];
	uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
	uint64_t at = base & ~(page - 1);
	uint64_t end = base + len_bytes;

	while (at < end) {
		uint64_t n = MIN(end - at, MINCORE_BYTES);

		if (mincore((void *)(uintptr_t)at, n, resident) < 0 && errno == ENOMEM) {
			return error_set(err, -EFAULT,
				"%" PRIu64 " bytes at 0x%" PRIx64 " are nobody's memory", len_bytes,
				base);
		}
		at += n;
	}
	return 0;
}

/* Ranges that overlap (tied parameters, columns of one matrix) become one. */
int export_pull_add(struct export_set *set, const struct export_range *added, struct error *err)
{
	struct export_range range = *added;
	uint64_t end = range.base + range.len_bytes;
	size_t at = range_behind(set, range.base);
	size_t past;
	int rc = range.ordinal < 0 ? check_mapped(range.base, range.len_bytes, err) : 0;

	if (rc) {
		return rc;
	}
	if (at > 0 && set->pulls[at - 1].base + set->pulls[at - 1].len_bytes > range.base) {
		at--;
		range.base = set->pulls[at].base;
		range.buffer_id = set->pulls[at].buffer_id;
	}
	for (past = at; past < set->npulls && set->pulls[past].base < end; past++) {
		end = MAX(end, set->pulls[past].base + set->pulls[past].len_bytes);
	}
	range.len_bytes = end - range.base;
	rc = array_grow(
		(void **)&set->pulls, &set->cap_pulls, set->npulls + 1, sizeof(*set->pulls));
	if (rc) {
		return error_set(err, rc, "no memory for %zu ranges", set->npulls + 1);
	}
	memmove(&set->pulls[at + 1], &set->pulls[past], (set->npulls - past) * sizeof(*set->pulls));
	set->pulls[at] = range;
	set->npulls = set->npulls + 1 - (past - at);
	return 0;
}

/* By the memory that they are of, then by address: those of one twin lie together. */
static int compare_ranges(const void *a, const void *b)
{
	const struct export_range *x = a;
	const struct export_range *y = b;

	if (x->ordinal != y->ordinal) {
		return x->ordinal < y->ordinal ? -1 : 1;
	}
	return (x->base > y->base) - (x->base < y->base);
}

/* The last twin, or the next one if the range is of other memory. NULL: too many. */
static struct export_twin *twin_of(struct export_set *set, const struct export_range *range)
{
	struct export_twin *twin = &set->twins[set->ntwins];

	if (set->ntwins && twin[-1].ordinal == range->ordinal) {
		return twin - 1;
	}
	if (set->ntwins == ARRAY_LEN(set->twins)) {
		return NULL;
	}
	*twin = (struct export_twin){.base = range->base,
		.ordinal = range->ordinal,
		.fd = -1,
		.first = (size_t)(range - set->pulls)};
	memcpy(twin->uuid, range->uuid, GPU_UUID_BYTES);
	set->ntwins++;
	return twin;
}

static int make_twin(struct export_set *set, struct export_twin *twin, struct error *err)
{
	uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
	int rc;

	if (twin->ordinal >= 0) {
		return export_cuda_twin(set, twin, err);
	}
	twin->size_bytes = align_up(twin->size_bytes, page);
	rc = memfd_create_sealed("strew-twin", twin->size_bytes, &twin->fd);
	return rc ? error_set(err, rc, "a twin of %" PRIu64 " bytes: %s", twin->size_bytes,
			    strerror(-rc))
		  : 0;
}

/* A range keeps its place within 256 bytes, so that copies are as well aligned as they can be. */
int export_pull_settle(struct export_set *set, struct error *err)
{
	int rc = 0;

	if (set->npulls) {
		qsort(set->pulls, set->npulls, sizeof(*set->pulls), compare_ranges);
	}
	for (size_t i = 0; i < set->npulls; i++) {
		struct export_range *range = &set->pulls[i];
		struct export_twin *twin = twin_of(set, range);

		if (!twin) {
			return error_set(
				err, -E2BIG, "memory of more than %zu GPUs", ARRAY_LEN(set->twins));
		}
		twin->nranges++;
		range->twin = (uint32_t)(twin - set->twins);
		range->twin_offset = align_up(twin->size_bytes, 256) + range->base % 256;
		twin->size_bytes = range->twin_offset + range->len_bytes;
	}
	for (size_t i = 0; i < set->ntwins && rc == 0; i++) {
		rc = make_twin(set, &set->twins[i], err);
	}
	return rc;
}

void export_pull_release(struct export_set *set)
{
	for (size_t i = 0; i < set->ntwins; i++) {
		fd_close(&set->twins[i].fd);
		export_cuda_twin_free(set, &set->twins[i]);
	}
	free(set->pulls);
	set->pulls = NULL;
	set->npulls = set->ntwins = 0;
}

int export_pull_verify(const struct export_set *set, struct error *err)
{
	int rc = 0;

	for (size_t i = 0; i < set->npulls && rc == 0; i++) {
		const struct export_range *range = &set->pulls[i];

		rc = range->ordinal < 0 ? check_mapped(range->base, range->len_bytes, err)
					: export_cuda_range_verify(set, range, err);
		rc = rc == -EFAULT ? -ESTALE : rc;
	}
	return rc;
}

bool export_pulls(const struct export_set *set, uint32_t allocation)
{
	return allocation >= set->nentries && allocation - set->nentries < set->ntwins;
}

/* The range that has its place there. A twin's places rise with addresses. */
static const struct export_range *range_at(
	const struct export_set *set, const struct export_twin *twin, uint64_t offset)
{
	const struct export_range *ranges = &set->pulls[twin->first];
	size_t at = upper_bound(ranges, twin->nranges, sizeof(*ranges),
		offsetof(struct export_range, twin_offset), offset);

	return at > 0 && offset - ranges[at - 1].twin_offset < ranges[at - 1].len_bytes
		       ? &ranges[at - 1]
		       : NULL;
}

/* Both ways between host memory and its twin. */
static int carry(int fd, uint64_t address, uint64_t offset, uint64_t len_bytes, bool to_twin,
	struct error *err)
{
	while (len_bytes) {
		char *at = (char *)(uintptr_t)address;
		ssize_t n = to_twin ? pwrite(fd, at, len_bytes, (off_t)offset)
				    : pread(fd, at, len_bytes, (off_t)offset);

		if (n < 0 && errno == EINTR) {
			continue;
		}
		if (n <= 0) {
			int code = n < 0 ? errno : EIO;

			return error_set(err, -code,
				"%" PRIu64 " bytes at 0x%" PRIx64 " cannot be %s: %s", len_bytes,
				address, to_twin ? "read" : "written", strerror(code));
		}
		address += (uint64_t)n;
		offset += (uint64_t)n;
		len_bytes -= (uint64_t)n;
	}
	return 0;
}

int export_twins_fill(const struct export_set *set, void *stream, struct error *err)
{
	int rc = 0;

	for (size_t i = 0; i < set->ntwins && rc == 0; i++) {
		/* What a stream has yet to write to host memory must be there when it is read. */
		if (set->twins[i].ordinal < 0) {
			rc = export_cuda_wait(set, stream, err);
		}
	}
	for (size_t i = 0; i < set->npulls && rc == 0; i++) {
		const struct export_range *range = &set->pulls[i];
		const struct export_twin *twin = &set->twins[range->twin];

		rc = range->ordinal < 0
			     ? carry(twin->fd, range->base, range->twin_offset, range->len_bytes,
				       true, err)
			     : export_cuda_carry(set, twin, twin->address + range->twin_offset,
				       range->base, range->len_bytes, stream, err);
	}
	return rc;
}

static int apply_run(const struct export_set *set, struct export_twin *twin,
	const struct export_range *range, uint64_t offset, uint64_t len_bytes, struct error *err)
{
	uint64_t live = range->base + (offset - range->twin_offset);

	return twin->ordinal < 0 ? carry(twin->fd, live, offset, len_bytes, false, err)
				 : export_cuda_carry(set, twin, live, twin->address + offset,
					   len_bytes, twin->stream, err);
}

static int apply_copy(struct export_set *set, const struct copy *copy, struct error *err)
{
	struct export_twin *twin = &set->twins[copy->src_space - set->nentries];
	const struct export_range *range = range_at(set, twin, copy->src);
	uint64_t index[STREW_MAX_DIMS] = {0};
	uint64_t at = copy->src;
	int rc = 0;

	if (!range) {
		return error_set(err, -EFAULT, "a piece lies in no range that was added");
	}
	for (;;) {
		uint32_t i = copy->ndim;

		rc = apply_run(set, twin, range, at, copy->run_bytes, err);
		if (rc) {
			return rc;
		}
		/* The next index, the innermost dimension first. */
		while (i > 0 && ++index[i - 1] == copy->extent[i - 1]) {
			at -= (copy->extent[i - 1] - 1) * copy->src_stride[i - 1];
			index[--i] = 0;
		}
		if (i == 0) {
			return 0;
		}
		at += copy->src_stride[i - 1];
	}
}

int export_twins_apply(struct export_set *set, const struct copies *copies, struct error *err)
{
	int rc = 0, waited;

	for (size_t i = 0; i < copies->n && rc == 0; i++) {
		if (!export_pulls(set, copies->v[i].src_space)) {
			return error_set(err, -EINVAL, "allocation %" PRIu32 " has no twin",
				copies->v[i].src_space);
		}
		rc = apply_copy(set, &copies->v[i], err);
	}
	/* Also after an error: what was begun ends before anybody is told. */
	for (size_t i = 0; i < set->ntwins; i++) {
		if (set->twins[i].stream) {
			waited = export_cuda_wait(set, set->twins[i].stream, rc ? NULL : err);
			rc = rc ? rc : waited;
		}
	}
	return rc;
}
