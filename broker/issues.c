/*
 * Who issues a copy. From one GPU's context a copy within another GPU would cross the link
 * twice, and host memory reaches each GPU by that GPU's own link: so every copy is issued by
 * the GPU that its bytes come from, or, out of host memory, by the one that they go to. The
 * copies to each target go by a stream of their own: links work side by side.
 */
#include "base/util.h"
#include "broker/plans_internal.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

static const uint8_t host[GPU_UUID_BYTES];

/* UUIDs of all spaces, as plan_local() counts them; to be freed. NULL: out of memory. */
static const uint8_t **locate(const struct publication *publication, const struct crew *crew)
{
	size_t n = publication->nspaces;
	const uint8_t **where;

	for (size_t i = 0; i < crew->nworkers; i++) {
		n += crew->workers[i]->exports.nhandles + 1;
	}
	where = calloc(n + 1, sizeof(*where));
	if (!where) {
		return NULL;
	}
	for (size_t rank = 0; rank < publication->nroots; rank++) {
		const struct holder *holder = publication->holders[rank];

		for (size_t i = 0; holder && i < holder->exports.nhandles; i++) {
			where[publication->space_base[rank] + i] = holder->exports.handles[i].uuid;
		}
	}
	n = publication->nspaces;
	for (size_t i = 0; i < crew->nworkers; i++) {
		const struct worker *worker = crew->workers[i];

		for (size_t k = 0; k < worker->exports.nhandles; k++) {
			where[n++] = worker->exports.handles[k].uuid;
		}
		where[n++] = worker->shadow ? gpu_memory_uuid(worker->shadow) : host;
	}
	return where;
}

struct route {
	const uint8_t *source, *target;
};

static struct route route_of(const uint8_t *const *where, const struct copy *copy)
{
	return (struct route){where[copy->src_space], where[copy->dst_space]};
}

static bool same_route(const struct route *a, const struct route *b)
{
	return memcmp(a->source, b->source, GPU_UUID_BYTES) == 0 &&
	       memcmp(a->target, b->target, GPU_UUID_BYTES) == 0;
}

/* The copies that go by the route, in the same ranges. */
static int pick(const struct copies *copies, const uint8_t *const *where, const struct route *route,
	struct copies *ret_picked, struct error *err)
{
	struct copies picked = {.nranges = copies->nranges};

	picked.v = calloc(copies->n + 1, sizeof(*picked.v));
	picked.first = calloc(copies->nranges + 1, sizeof(*picked.first));
	if (!picked.v || !picked.first) {
		copies_finish(&picked);
		return error_set(err, -ENOMEM, "out of memory");
	}
	for (size_t range = 0; range < copies->nranges; range++) {
		for (size_t i = copies->first[range]; i < copies->first[range + 1]; i++) {
			struct route own = route_of(where, &copies->v[i]);

			if (same_route(&own, route)) {
				picked.v[picked.n++] = copies->v[i];
			}
		}
		picked.first[range + 1] = picked.n;
	}
	*ret_picked = picked;
	return 0;
}

static int make_one(struct plans *plans, const struct publication *publication,
	const struct crew *crew, const struct copies *picked, const struct route *route,
	struct issue *ret_issue, struct error *err)
{
	struct crew_spaces spaces;
	bool from_host = memcmp(route->source, host, GPU_UUID_BYTES) == 0;
	bool by_link = memcmp(route->source, route->target, GPU_UUID_BYTES) != 0;
	int rc = plans_device(
		plans, from_host ? route->target : route->source, &ret_issue->device, err);

	if (rc) {
		return rc;
	}
	memcpy(ret_issue->target, route->target, GPU_UUID_BYTES);
	rc = spaces_make(crew, publication->nspaces, ret_issue->device, &spaces, err);
	if (rc) {
		return rc;
	}
	rc = source_bases(publication, ret_issue->device, spaces.bases, err);
	if (rc == 0) {
		rc = gpu_copies_create(ret_issue->device, picked, spaces.bases, spaces.nbases,
			&ret_issue->copies, err);
	}
	if (rc == 0 && by_link) {
		gpu_copies_share(ret_issue->copies);
	}
	spaces_finish(&spaces);
	return rc;
}

/* The distinct routes, at most ISSUES_MAX. */
static int list_routes(const struct copies *copies, const uint8_t *const *where,
	struct route *ret_routes, size_t *ret_n, struct error *err)
{
	size_t n = 0;

	for (size_t i = 0; i < copies->n; i++) {
		struct route route = route_of(where, &copies->v[i]);
		size_t k = 0;

		while (k < n && !same_route(&ret_routes[k], &route)) {
			k++;
		}
		if (k == ISSUES_MAX) {
			return error_set(err, -E2BIG, "over %d pairs of GPUs", ISSUES_MAX);
		}
		if (k == n) {
			ret_routes[n++] = route;
		}
	}
	*ret_n = n;
	return 0;
}

int issues_make(struct plans *plans, const struct publication *publication, const struct crew *crew,
	const struct copies *copies, struct issue *ret_issues, size_t *ret_n, struct error *err)
{
	const uint8_t **where = locate(publication, crew);
	struct route routes[ISSUES_MAX];
	size_t n = 0;
	int rc;

	if (!where) {
		return error_set(err, -ENOMEM, "out of memory");
	}
	rc = list_routes(copies, where, routes, &n, err);
	for (size_t i = 0; rc == 0 && i < n; i++) {
		struct copies picked;

		rc = pick(copies, where, &routes[i], &picked, err);
		if (rc) {
			break;
		}
		ret_issues[i] = (struct issue){0};
		rc = make_one(plans, publication, crew, &picked, &routes[i], &ret_issues[i], err);
		copies_finish(&picked);
		*ret_n = i + (rc == 0);
	}
	free(where);
	return rc;
}

void issues_finish(struct issue *issues, size_t n)
{
	for (size_t i = 0; i < n; i++) {
		gpu_copies_destroy(issues[i].copies);
	}
}
