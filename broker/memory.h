/*
 * Other processes' memory as the mover sees it: what a session exported, mapped
 * for the devices that issue copies, and the shadows of staged workers. Used by
 * the mover's thread alone, after the session's protocol has filled it in.
 */
#ifndef BROKER_MEMORY_H
#define BROKER_MEMORY_H

#include "gpu/gpu.h"
#include "plan/plan.h"

#define MEMORY_DEVICES 8 /* devices for which one session's memory is mapped */

/* What one process exported. The handles' fds are closed once everything is mapped. */
struct exports {
	struct handle *handles;
	size_t nhandles;
	bool write; /* a worker's */
	struct {
		struct gpu_device *device;
		struct gpu_memory **v; /* nhandles; NULL: out of its reach */
	} maps[MEMORY_DEVICES];
	size_t nmaps;
};

/* A worker: its layout and where it lies. */
struct worker {
	struct exports exports;
	struct layout layout;
	bool staged;
	struct gpu_memory *shadow; /* staged; on the worker's own GPU, or pinned */
	uint64_t *shadow_offset;   /* one a parameter */
	uint64_t shadow_bytes;
	struct worker *next; /* of those that are mapped */
};

/* A trainer rank: what it declared and where it lies. */
struct holder {
	uint32_t rank;
	struct exports exports;
	struct manifest declared;
	struct source *sources; /* one a box */
};

/* The UUID of the GPU that most of the exports lie on; zeros when it is all host memory. */
void exports_uuid(const struct exports *exports, uint8_t ret_uuid[GPU_UUID_BYTES]);

/* Maps for the device what it reaches, unless that was done. */
int exports_map(struct exports *exports, struct gpu_device *device, struct error *err);
/* Addresses for the device, nhandles of them, to ret_bases; GPU_OUT_OF_REACH where it has none.
 * Mapped before. */
void exports_bases(const struct exports *exports, struct gpu_device *device, uint64_t *ret_bases);
/* What is mapped for the device, nhandles of them, NULL what is out of its reach; NULL: nothing is.
 */
struct gpu_memory *const *exports_memory(
	const struct exports *exports, const struct gpu_device *device);
/* Any device for which the allocation is mapped, and what it is there; false: none. */
bool exports_find(const struct exports *exports, uint32_t allocation,
	struct gpu_device **ret_device, const struct gpu_memory **ret_memory);
void exports_unmap(struct exports *exports);
uint64_t exports_bytes(const struct exports *exports);

/* Parameters that lie in twins: their worker copies them to where they belong. */
uint64_t worker_pulled(const struct worker *worker);
/* Its parameters by their route: those in twins, and the rest. What feeds its engine's own loader
 * is left out: how many that fills the worker says itself. */
struct worker_routes {
	uint64_t raw, pull;
};
struct worker_routes worker_routes(const struct worker *worker);

/*
 * Reserves the shadow of a staged worker: on `device`, or pinned in host memory. -ENOMEM names the
 * bytes that are missing.
 */
int worker_reserve(
	struct worker *worker, struct gpu_device *device, bool pinned, struct error *err);

/*
 * Do pieces and boxes lie inside the allocations? -ERANGE names the parameter or tensor.
 * By the sizes claimed, which mapping has checked against the real ones.
 */
int worker_check(const struct worker *worker, struct error *err);
int holder_check(const struct holder *holder, struct error *err);

/*
 * Does the worker claim bytes that one of `others` has claimed before it? It is mapped for the same
 * devices as they were. -EEXIST names the parameters. Memory without an identity (gpu.h) is not
 * found out.
 */
int worker_check_overlap(
	const struct worker *worker, const struct worker *others, struct error *err);

/* Unmap and free everything but the struct. Nothing may be in flight. */
void worker_finish(struct worker *worker);
void holder_finish(struct holder *holder);

#endif
