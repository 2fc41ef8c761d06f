/*
 * Who issues a copy. From one GPU's context a copy within another GPU would cross the link
 * twice, and host memory reaches each GPU by that GPU's own link: so every copy is issued by
 * the GPU that its bytes come from, or, out of host memory, by the one that they go to. The
 * copies to each target go by a stream of their own: links work side by side.
 *
 * Where the source's GPU does not reach the target's, each of the two copies its own side: the
 * bytes bounce through host memory.
 */
#include "base/util.h"
#include "broker/plans_internal.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

static const uint8_t host[GPU_UUID_BYTES];

/* From where to where; `together`: with all others that the given issuer reaches at both ends. */
struct route {
	const uint8_t *source, *target;
	bool together;
};

/* What the making of issues goes by. */
struct making {
	struct plans *plans;
	const struct spaces *spaces;
	const uint8_t **where; /* UUIDs of all spaces */
	struct gpu_device *issuer;
};

static struct route route_of(const struct making *making, const struct copy *copy)
{
	struct route route = {
		making->where[copy->src_space], making->where[copy->dst_space], false};

	route.together = making->issuer && gpu_device_reaches(making->issuer, route.source) &&
			 gpu_device_reaches(making->issuer, route.target);
	return route;
}

static bool same_route(const struct route *a, const struct route *b)
{
	if (a->together || b->together) {
		return a->together == b->together;
	}
	return memcmp(a->source, b->source, GPU_UUID_BYTES) == 0 &&
	       memcmp(a->target, b->target, GPU_UUID_BYTES) == 0;
}

/* The copies that go by the route, in the same ranges. */
static int pick(const struct making *making, const struct copies *copies, const struct route *route,
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
			struct route own = route_of(making, &copies->v[i]);

			if (same_route(&own, route)) {
				picked.v[picked.n++] = copies->v[i];
			}
		}
		picked.first[range + 1] = picked.n;
	}
	*ret_picked = picked;
	return 0;
}

/* By one GPU, which reaches both ends. */
static int make_plain(const struct making *making, const struct copies *picked, bool by_link,
	struct issue *issue, struct error *err)
{
	uint64_t *bases;
	int rc = spaces_bases(making->spaces, issue->device, &bases, err);

	if (rc) {
		return rc;
	}
	rc = gpu_copies_create(
		issue->device, picked, bases, spaces_count(making->spaces), &issue->copies, err);
	free(bases);
	if (rc == 0 && by_link) {
		gpu_copies_share(issue->copies, GPU_SHARE_LINK);
	}
	return rc;
}

/* By both, each on its own side of the ring. */
static int make_bounce(const struct making *making, const struct copies *picked,
	struct issue *issue, struct error *err)
{
	uint64_t *from = NULL, *to = NULL;
	struct gpu_ring *ring;
	int rc = plans_device(making->plans, issue->target, &issue->far, err);

	rc = rc ? rc : plans_ring(making->plans, issue->device, issue->far, &ring, err);
	rc = rc ? rc : spaces_bases(making->spaces, issue->device, &from, err);
	rc = rc ? rc : spaces_bases(making->spaces, issue->far, &to, err);
	rc = rc ? rc
		: gpu_bounce_create(ring, picked, from, to, spaces_count(making->spaces),
			  &issue->bounce, err);
	free(from);
	free(to);
	return rc;
}

/* In whose streams such a copy has to be at one of its ends, as the slot is there. */
static bool ends_at_issuer(const struct making *making, const struct route *route)
{
	const uint8_t *uuid = making->issuer ? gpu_device_uuid(making->issuer) : NULL;

	return uuid && (memcmp(route->source, uuid, GPU_UUID_BYTES) == 0 ||
			       memcmp(route->target, uuid, GPU_UUID_BYTES) == 0);
}

static int make_one(const struct making *making, const struct copies *picked,
	const struct route *route, struct issue *issue, struct error *err)
{
	bool from_host = memcmp(route->source, host, GPU_UUID_BYTES) == 0;
	bool by_link = memcmp(route->source, route->target, GPU_UUID_BYTES) != 0;
	int rc;

	if (route->together) {
		issue->device = making->issuer;
		memcpy(issue->target, gpu_device_uuid(issue->device), GPU_UUID_BYTES);
		return make_plain(making, picked, false, issue, err);
	}
	memcpy(issue->target, route->target, GPU_UUID_BYTES);
	rc = plans_device(
		making->plans, from_host ? route->target : route->source, &issue->device, err);
	if (rc) {
		return rc;
	}
	if (from_host || (!ends_at_issuer(making, route) &&
				 gpu_device_reaches(issue->device, route->target))) {
		return make_plain(making, picked, by_link, issue, err);
	}
	return make_bounce(making, picked, issue, err);
}

/* The distinct routes, at most ISSUES_MAX. */
static int list_routes(const struct making *making, const struct copies *copies,
	struct route *ret_routes, size_t *ret_n, struct error *err)
{
	size_t n = 0;

	for (size_t i = 0; i < copies->n; i++) {
		struct route route = route_of(making, &copies->v[i]);
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

static int make_all(const struct making *making, const struct copies *copies, struct issues *issues,
	struct error *err)
{
	struct route routes[ISSUES_MAX];
	size_t n = 0;
	int rc = list_routes(making, copies, routes, &n, err);

	for (size_t i = 0; rc == 0 && i < n; i++) {
		struct copies picked;

		rc = pick(making, copies, &routes[i], &picked, err);
		if (rc) {
			break;
		}
		rc = make_one(making, &picked, &routes[i], &issues->v[issues->n++], err);
		copies_finish(&picked);
	}
	return rc;
}

int issues_make(struct plans *plans, const struct spaces *spaces, const struct copies *copies,
	struct gpu_device *issuer, struct issues *ret_issues, struct error *err)
{
	struct making making = {.plans = plans, .spaces = spaces, .issuer = issuer};
	struct issues issues = {0};
	struct gpu_device *home;
	int rc = plans_home(plans, NULL, &home, err);

	rc = rc ? rc : spaces_where(spaces, gpu_device_uuid(home), &making.where, err);
	if (rc) {
		return rc;
	}
	rc = make_all(&making, copies, &issues, err);
	free(making.where);
	if (rc) {
		issues_finish(&issues);
		return rc;
	}
	*ret_issues = issues;
	return 0;
}

void issues_share(const struct issues *issues, enum gpu_share share)
{
	for (size_t i = 0; i < issues->n; i++) {
		if (issues->v[i].copies) {
			gpu_copies_share(issues->v[i].copies, share);
		}
	}
}

void issues_finish(struct issues *issues)
{
	for (size_t i = 0; i < issues->n; i++) {
		gpu_copies_destroy(issues->v[i].copies);
		gpu_bounce_destroy(issues->v[i].bounce);
	}
	issues->n = 0;
}
