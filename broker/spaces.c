/* What the numbers of spaces in a plan's copies stand for: where each lies, and its address for a
 * GPU. */
#include "base/util.h"
#include "broker/plans_internal.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

static const uint8_t host[GPU_UUID_BYTES];

size_t spaces_count(const struct spaces *spaces)
{
	size_t n = (spaces->sources ? spaces->sources->nspaces : 0) + spaces->slot;

	for (size_t i = 0; spaces->crew && i < spaces->crew->nworkers; i++) {
		n += spaces->crew->workers[i]->exports.nhandles + 1;
	}
	return n;
}

int spaces_where(const struct spaces *spaces, const uint8_t *home, const uint8_t ***ret_where,
	struct error *err)
{
	const struct publication *sources = spaces->sources;
	const uint8_t **where = calloc(spaces_count(spaces) + 1, sizeof(*where));
	size_t n = sources ? sources->nspaces : 0;

	if (!where) {
		return error_set(err, -ENOMEM, "out of memory");
	}
	for (size_t rank = 0; sources && rank < sources->nroots; rank++) {
		const struct holder *holder = sources->holders[rank];

		for (size_t i = 0; holder && i < holder->exports.nhandles; i++) {
			where[sources->space_base[rank] + i] = holder->exports.handles[i].uuid;
		}
	}
	if (spaces->slot) {
		where[n++] = home;
	}
	for (size_t i = 0; spaces->crew && i < spaces->crew->nworkers; i++) {
		const struct worker *worker = spaces->crew->workers[i];

		for (size_t k = 0; k < worker->exports.nhandles; k++) {
			where[n++] = worker->exports.handles[k].uuid;
		}
		where[n++] = worker->shadow ? gpu_memory_uuid(worker->shadow) : host;
	}
	*ret_where = where;
	return 0;
}

static int source_bases(const struct publication *sources, struct gpu_device *device,
	uint64_t *bases, struct error *err)
{
	int rc = 0;

	for (size_t rank = 0; rank < sources->nroots && rc == 0; rank++) {
		struct holder *holder = sources->holders[rank];

		if (holder) {
			rc = exports_map(&holder->exports, device, err);
		}
		if (holder && rc == 0) {
			exports_bases(&holder->exports, device, bases + sources->space_base[rank]);
		}
	}
	return rc;
}

/* Its allocations, and behind them its shadow. */
static int worker_bases(
	struct worker *worker, struct gpu_device *device, uint64_t *bases, struct error *err)
{
	const struct gpu_memory *shadow = worker->shadow;
	int rc = exports_map(&worker->exports, device, err);

	if (rc) {
		return rc;
	}
	exports_bases(&worker->exports, device, bases);
	if (shadow) {
		bases[worker->exports.nhandles] =
			gpu_device_reaches(device, gpu_memory_uuid(shadow))
				? gpu_memory_address(shadow)
				: GPU_OUT_OF_REACH;
	}
	return 0;
}

int spaces_bases(const struct spaces *spaces, struct gpu_device *device, uint64_t **ret_bases,
	struct error *err)
{
	uint64_t *bases = calloc(spaces_count(spaces) + 1, sizeof(*bases));
	size_t n = (spaces->sources ? spaces->sources->nspaces : 0) + spaces->slot;
	int rc = bases ? 0 : error_set(err, -ENOMEM, "out of memory");

	if (rc == 0 && spaces->sources) {
		rc = source_bases(spaces->sources, device, bases, err);
	}
	for (size_t i = 0; rc == 0 && spaces->crew && i < spaces->crew->nworkers; i++) {
		struct worker *worker = spaces->crew->workers[i];

		rc = worker_bases(worker, device, bases + n, err);
		n += worker->exports.nhandles + 1;
	}
	if (rc) {
		free(bases);
		return rc;
	}
	*ret_bases = bases;
	return 0;
}

int spaces_workers(const struct spaces *spaces, struct plan_worker **ret_workers, struct error *err)
{
	const struct crew *crew = spaces->crew;
	struct plan_worker *workers = calloc(crew->nworkers + 1, sizeof(*workers));
	uint32_t next = (spaces->sources ? spaces->sources->nspaces : 0) + spaces->slot;

	if (!workers) {
		return error_set(err, -ENOMEM, "out of memory");
	}
	for (size_t i = 0; i < crew->nworkers; i++) {
		const struct worker *worker = crew->workers[i];

		workers[i].layout = &worker->layout;
		workers[i].space_base = next;
		next += (uint32_t)worker->exports.nhandles;
		if (worker->staged) {
			workers[i].shadow_offset = worker->shadow_offset;
			workers[i].shadow_space = next;
		}
		next++;
	}
	*ret_workers = workers;
	return 0;
}
