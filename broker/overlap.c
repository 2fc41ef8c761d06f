/*
 * Two workers that claim the same bytes would overwrite one another's weights. What a worker
 * claims is a set of extents: bytes from begin to end of memory that has an identity.
 */
#include "base/util.h"
#include "broker/memory.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

struct extent {
	struct gpu_identity identity;
	uint64_t begin, end;
	uint64_t reach; /* the furthest end of this one and those before it in the same memory */
	const char *name;
};

static int compare_identities(const void *a, const void *b)
{
	return memcmp(a, b, sizeof(struct gpu_identity));
}

/* By memory, then by place. */
static int compare_extents(const void *a, const void *b)
{
	const struct extent *one = a, *two = b;
	int order = compare_identities(&one->identity, &two->identity);

	return order ? order : (one->begin > two->begin) - (one->begin < two->begin);
}

static bool is_known(const struct gpu_identity *identity)
{
	return identity->v[0] || identity->v[1];
}

/* Zeros where there is no memory: out of the device's reach. */
static struct gpu_identity identity_of(const struct gpu_memory *memory)
{
	return memory ? gpu_memory_identity(memory) : (struct gpu_identity){{0, 0}};
}

/* The memories that the worker has, sorted; those without an identity are left out. */
static size_t identify(const struct exports *exports, struct gpu_memory *const *memory,
	struct gpu_identity *ret_identities)
{
	size_t n = 0;

	for (size_t i = 0; i < exports->nhandles; i++) {
		ret_identities[n] = identity_of(memory[i]);
		n += is_known(&ret_identities[n]);
	}
	qsort(ret_identities, n, sizeof(*ret_identities), compare_identities);
	return n;
}

static bool share_memory(const struct gpu_identity *identities, size_t n,
	const struct exports *other, struct gpu_memory *const *memory)
{
	for (size_t i = 0; i < other->nhandles; i++) {
		struct gpu_identity identity = identity_of(memory[i]);

		if (bsearch(&identity, identities, n, sizeof(identity), compare_identities)) {
			return true;
		}
	}
	return false;
}

/* A parameter's bytes; false: it has none, or nothing tells which they are. */
static bool extent_of(const struct worker *worker, struct gpu_memory *const *memory, size_t i,
	struct extent *ret_extent)
{
	const struct parameter *parameter = &worker->layout.parameters[i];
	uint64_t span = parameter_span_bytes(parameter);

	if (!span) {
		return false;
	}
	ret_extent->identity = identity_of(memory[parameter->allocation]);
	ret_extent->begin = parameter->offset_bytes;
	ret_extent->end = parameter->offset_bytes + span;
	ret_extent->name = parameter->name;
	return is_known(&ret_extent->identity);
}

/* Freed by the caller; NULL: out of memory. */
static struct extent *collect(
	const struct worker *worker, struct gpu_memory *const *memory, size_t *ret_n)
{
	struct extent *extents = calloc(worker->layout.nparameters + 1, sizeof(*extents));
	size_t n = 0;

	for (size_t i = 0; extents && i < worker->layout.nparameters; i++) {
		n += extent_of(worker, memory, i, &extents[n]);
	}
	if (extents) {
		qsort(extents, n, sizeof(*extents), compare_extents);
	}
	for (size_t i = 0; extents && i < n; i++) {
		bool first = i == 0 || compare_identities(
					       &extents[i - 1].identity, &extents[i].identity) != 0;

		extents[i].reach = first || extents[i - 1].reach < extents[i].end
					   ? extents[i].end
					   : extents[i - 1].reach;
	}
	*ret_n = n;
	return extents;
}

/* One of the sorted extents that has bytes in common with `wanted`, or NULL. */
static const struct extent *find_overlap(
	const struct extent *extents, size_t n, const struct extent *wanted)
{
	struct extent end = {.identity = wanted->identity, .begin = wanted->end};
	size_t low = 0, high = n;

	while (low < high) { /* the first that starts at the end of `wanted` or behind it */
		size_t middle = low + (high - low) / 2;

		if (compare_extents(&extents[middle], &end) < 0) {
			low = middle + 1;
		} else {
			high = middle;
		}
	}
	if (low == 0 || compare_identities(&extents[low - 1].identity, &wanted->identity) != 0 ||
		extents[low - 1].reach <= wanted->begin) {
		return NULL;
	}
	while (extents[low - 1].end <= wanted->begin) {
		low--;
	}
	return &extents[low - 1];
}

static int check_pair(const struct extent *extents, size_t n, const struct worker *other,
	struct gpu_memory *const *memory, struct error *err)
{
	for (size_t i = 0; i < other->layout.nparameters; i++) {
		const struct extent *mine;
		struct extent theirs;

		if (!extent_of(other, memory, i, &theirs)) {
			continue;
		}
		mine = find_overlap(extents, n, &theirs);
		if (mine) {
			return error_set(err, -EEXIST,
				"parameter %.128s lies in memory that another worker has "
				"registered (as %.128s)",
				mine->name, theirs.name);
		}
	}
	return 0;
}

/* By what both are mapped as for the one device. */
static int check_for(const struct worker *worker, const struct worker *others,
	const struct gpu_device *device, struct error *err)
{
	struct gpu_memory *const *memory = exports_memory(&worker->exports, device);
	struct gpu_identity *identities = calloc(worker->exports.nhandles + 1, sizeof(*identities));
	struct extent *extents = NULL;
	size_t nidentities, n = 0;
	int rc = identities ? 0 : error_set(err, -ENOMEM, "out of memory");

	nidentities = rc ? 0 : identify(&worker->exports, memory, identities);
	for (; rc == 0 && others; others = others->next) {
		struct gpu_memory *const *theirs = exports_memory(&others->exports, device);

		if (!theirs || !share_memory(identities, nidentities, &others->exports, theirs)) {
			continue;
		}
		if (!extents) {
			extents = collect(worker, memory, &n);
		}
		rc = extents ? check_pair(extents, n, others, theirs, err)
			     : error_set(err, -ENOMEM, "out of memory");
	}
	free(extents);
	free(identities);
	return rc;
}

int worker_check_overlap(
	const struct worker *worker, const struct worker *others, struct error *err)
{
	int rc = 0;

	for (size_t i = 0; i < worker->exports.nmaps && rc == 0; i++) {
		rc = check_for(worker, others, worker->exports.maps[i].device, err);
	}
	return rc;
}
