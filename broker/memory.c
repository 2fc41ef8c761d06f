#include "broker/memory.h"
#include "base/util.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* What agents call tensors that are no parameters of the engine, but what its own loader is given
 * after an update. */
#define LOADER_PREFIX "loader:"

void exports_uuid(const struct exports *exports, uint8_t ret_uuid[GPU_UUID_BYTES])
{
	static const uint8_t none[GPU_UUID_BYTES];

	memset(ret_uuid, 0, GPU_UUID_BYTES);
	for (size_t i = 0; i < exports->nhandles; i++) {
		if (memcmp(exports->handles[i].uuid, none, GPU_UUID_BYTES) != 0) {
			memcpy(ret_uuid, exports->handles[i].uuid, GPU_UUID_BYTES);
			return;
		}
	}
}

struct gpu_memory *const *exports_memory(
	const struct exports *exports, const struct gpu_device *device)
{
	for (size_t i = 0; i < exports->nmaps; i++) {
		if (exports->maps[i].device == device) {
			return exports->maps[i].v;
		}
	}
	return NULL;
}

static void release_all(struct gpu_memory **v, size_t n)
{
	for (size_t i = 0; i < n; i++) {
		gpu_memory_release(v[i]);
	}
	free(v);
}

int exports_map(struct exports *exports, struct gpu_device *device, struct error *err)
{
	struct gpu_memory **v;
	int rc;

	if (exports_memory(exports, device)) {
		return 0;
	}
	if (exports->nmaps == MEMORY_DEVICES) {
		return error_set(
			err, -E2BIG, "memory is mapped for %d GPUs already", MEMORY_DEVICES);
	}
	v = calloc(exports->nhandles + 1, sizeof(*v));
	if (!v) {
		return error_set(err, -ENOMEM, "out of memory");
	}
	for (size_t i = 0; i < exports->nhandles; i++) {
		if (!gpu_device_reaches(device, exports->handles[i].uuid)) {
			continue;
		}
		rc = gpu_import(device, &exports->handles[i], exports->write, &v[i], err);
		if (rc) {
			error_prefix(err, "allocation %zu at 0x%llx", i,
				(unsigned long long)exports->handles[i].base);
			release_all(v, i);
			return rc;
		}
	}
	exports->maps[exports->nmaps].device = device;
	exports->maps[exports->nmaps].v = v;
	exports->nmaps++;
	return 0;
}

void exports_bases(const struct exports *exports, struct gpu_device *device, uint64_t *ret_bases)
{
	struct gpu_memory *const *v = exports_memory(exports, device);

	for (size_t i = 0; v && i < exports->nhandles; i++) {
		ret_bases[i] = v[i] ? gpu_memory_address(v[i]) : GPU_OUT_OF_REACH;
	}
}

bool exports_find(const struct exports *exports, uint32_t allocation,
	struct gpu_device **ret_device, const struct gpu_memory **ret_memory)
{
	for (size_t i = 0; i < exports->nmaps; i++) {
		if (exports->maps[i].v[allocation]) {
			*ret_device = exports->maps[i].device;
			*ret_memory = exports->maps[i].v[allocation];
			return true;
		}
	}
	return false;
}

void exports_unmap(struct exports *exports)
{
	for (size_t i = 0; i < exports->nmaps; i++) {
		release_all(exports->maps[i].v, exports->nhandles);
	}
	exports->nmaps = 0;
}

uint64_t exports_bytes(const struct exports *exports)
{
	uint64_t bytes = 0;

	for (size_t i = 0; i < exports->nhandles; i++) {
		bytes += exports->handles[i].size_bytes;
	}
	return bytes;
}

static void exports_finish(struct exports *exports)
{
	exports_unmap(exports);
	for (size_t i = 0; i < exports->nhandles; i++) {
		handle_finish(&exports->handles[i]);
	}
	free(exports->handles);
	memset(exports, 0, sizeof(*exports));
}

static bool in_twin(const struct worker *worker, const struct parameter *parameter)
{
	return parameter_span_bytes(parameter) &&
	       parameter->allocation < worker->exports.nhandles &&
	       worker->exports.handles[parameter->allocation].pull;
}

uint64_t worker_pulled(const struct worker *worker)
{
	uint64_t n = 0;

	for (size_t i = 0; i < worker->layout.nparameters; i++) {
		n += in_twin(worker, &worker->layout.parameters[i]);
	}
	return n;
}

struct worker_routes worker_routes(const struct worker *worker)
{
	struct worker_routes routes = {0};

	for (size_t i = 0; i < worker->layout.nparameters; i++) {
		const struct parameter *parameter = &worker->layout.parameters[i];

		if (strncmp(parameter->name, LOADER_PREFIX, strlen(LOADER_PREFIX)) == 0) {
			continue; /* it feeds what the worker counts itself */
		}
		if (in_twin(worker, parameter)) {
			routes.pull++;
		} else {
			routes.raw++;
		}
	}
	return routes;
}

/* Where a twin holds a parameter it is the shadow too. Freed by the caller. */
static bool *pulled_allocations(const struct exports *exports)
{
	bool *pulled = calloc(exports->nhandles + 1, sizeof(*pulled));

	for (size_t i = 0; pulled && i < exports->nhandles; i++) {
		pulled[i] = exports->handles[i].pull;
	}
	return pulled;
}

int worker_reserve(struct worker *worker, struct gpu_device *device, bool pinned, struct error *err)
{
	bool *pulled;
	int rc;

	if (!worker->staged || worker->shadow) {
		return 0;
	}
	pulled = pulled_allocations(&worker->exports);
	worker->shadow_offset = calloc(worker->layout.nparameters + 1, sizeof(uint64_t));
	if (!pulled || !worker->shadow_offset) {
		free(pulled);
		return error_set(err, -ENOMEM, "out of memory");
	}
	worker->shadow_bytes = plan_shadow(&worker->layout, pulled, worker->shadow_offset);
	free(pulled);
	if (!worker->shadow_bytes) {
		return 0;
	}
	rc = pinned ? gpu_alloc_pinned(device, worker->shadow_bytes, &worker->shadow, err)
		    : gpu_alloc(device, worker->shadow_bytes, &worker->shadow, err);
	if (rc) {
		error_prefix(err,
			"no shadow memory for staged apply (apply directly instead, free some, or "
			"choose another place: strewd --shadow)");
	}
	return rc;
}

static int range_check(const struct exports *exports, uint32_t allocation, uint64_t offset,
	uint64_t span, const char *what, const char *name, struct error *err)
{
	uint64_t end;

	if (allocation >= exports->nhandles) {
		return error_set(
			err, -ERANGE, "%s %s: allocation %u was not sent", what, name, allocation);
	}
	if (add_overflows(offset, span, &end) || end > exports->handles[allocation].size_bytes) {
		return error_set(err, -ERANGE,
			"%s %s: %llu bytes at %llu pass the end of allocation %u, which has %llu",
			what, name, (unsigned long long)span, (unsigned long long)offset,
			allocation, (unsigned long long)exports->handles[allocation].size_bytes);
	}
	return 0;
}

int worker_check(const struct worker *worker, struct error *err)
{
	for (size_t i = 0; i < worker->layout.nparameters; i++) {
		const struct parameter *parameter = &worker->layout.parameters[i];
		int rc = range_check(&worker->exports, parameter->allocation,
			parameter->offset_bytes, parameter_span_bytes(parameter), "parameter",
			parameter->name, err);

		if (rc) {
			return rc;
		}
	}
	return 0;
}

int holder_check(const struct holder *holder, struct error *err)
{
	for (size_t i = 0; i < holder->declared.nboxes; i++) {
		const struct held_box *box = &holder->declared.boxes[i];
		const struct tensor *tensor = &holder->declared.tensors[box->tensor];
		const struct source *source = &holder->sources[i];
		uint64_t span;
		int rc;

		if (dims_span(tensor->ndim, box->box.extent, source->stride, &span) ||
			mul_overflows(span, strew_dtype_size(tensor->dtype), &span)) {
			return error_set(
				err, -ERANGE, "tensor %s: its strides overflow", tensor->name);
		}
		rc = range_check(&holder->exports, source->memory, source->offset_bytes, span,
			"tensor", tensor->name, err);
		if (rc) {
			return rc;
		}
	}
	return 0;
}

void worker_finish(struct worker *worker)
{
	exports_finish(&worker->exports);
	gpu_memory_release(worker->shadow);
	worker->shadow = NULL;
	free(worker->shadow_offset);
	worker->shadow_offset = NULL;
	layout_finish(&worker->layout);
}

void holder_finish(struct holder *holder)
{
	exports_finish(&holder->exports);
	manifest_finish(&holder->declared);
	free(holder->sources);
	holder->sources = NULL;
}
