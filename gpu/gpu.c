#include "gpu/gpu.h"
#include "base/util.h"
#include "gpu/backend.h"
#include "plan/cast.h"
#include <errno.h>
#include <inttypes.h>

int gpu_open(enum gpu_kind kind, struct gpu **ret_gpu, struct error *err)
{
	struct error why = {0};
	int rc;

	switch (kind) {
	case GPU_HOST:
		return host_backend_open(ret_gpu, err);
	case GPU_CUDA:
		return cuda_backend_open(ret_gpu, err);
	case GPU_AUTO:
		if (cuda_backend_open(ret_gpu, &why) == 0) {
			return 0;
		}
		rc = host_backend_open(ret_gpu, err);
		if (rc == 0) {
			/* Not an error, but a caller that logs can say why there is no GPU. */
			error_set(err, 0, "%s", why.text);
		}
		return rc;
	}
	return error_set(err, -EINVAL, "no backend has number %d", (int)kind);
}

void gpu_close(struct gpu *gpu)
{
	if (gpu) {
		gpu->ops->close(gpu);
	}
}

const struct gpu_info *gpu_info(const struct gpu *gpu)
{
	return &gpu->info;
}

int gpu_find(
	struct gpu *gpu, const char *device, uint8_t ret_uuid[GPU_UUID_BYTES], struct error *err)
{
	return gpu->ops->find(gpu, device, ret_uuid, err);
}

bool gpu_reaches(
	const struct gpu *gpu, const uint8_t from[GPU_UUID_BYTES], const uint8_t to[GPU_UUID_BYTES])
{
	return gpu->ops->reaches(gpu, from, to);
}

int gpu_device(struct gpu *gpu, const uint8_t uuid[GPU_UUID_BYTES], struct gpu_device **ret_device,
	struct error *err)
{
	return gpu->ops->device(gpu, uuid, ret_device, err);
}

const uint8_t *gpu_device_uuid(const struct gpu_device *device)
{
	return device->uuid;
}

bool gpu_device_reaches(const struct gpu_device *device, const uint8_t to[GPU_UUID_BYTES])
{
	return gpu_reaches(device->gpu, device->uuid, to);
}

int gpu_device_free(struct gpu_device *device, uint64_t *ret_free, uint64_t *ret_total)
{
	return device->ops->device_free(device, ret_free, ret_total);
}

int gpu_device_enter(struct gpu_device *device, struct error *err)
{
	return device->ops->device_enter(device, err);
}

int gpu_import(struct gpu_device *device, const struct handle *handle, bool write,
	struct gpu_memory **ret_memory, struct error *err)
{
	uint64_t sum = 0;
	uint64_t end;

	if (handle->size_bytes == 0 || add_overflows(handle->base, handle->size_bytes, &end)) {
		return error_set(err, -EINVAL, "an allocation of %" PRIu64 " bytes at 0x%" PRIx64,
			handle->size_bytes, handle->base);
	}
	switch (handle->kind) {
	case HANDLE_MEMFD:
		if (handle->nchunks != 1 || !handle->fds || handle->fds[0] < 0) {
			return error_set(
				err, -EINVAL, "a memfd allocation comes with one descriptor");
		}
		break;
	case HANDLE_CUDA_IPC:
		break;
	case HANDLE_CUDA_VMM:
		if (handle->nchunks == 0 || !handle->fds || !handle->chunk_bytes) {
			return error_set(err, -EINVAL, "an allocation of chunks comes with none");
		}
		for (uint32_t i = 0; i < handle->nchunks; i++) {
			if (handle->fds[i] < 0 || handle->chunk_bytes[i] == 0 ||
				add_overflows(sum, handle->chunk_bytes[i], &sum)) {
				return error_set(err, -EINVAL, "chunk %" PRIu32 " is empty", i);
			}
		}
		if (sum != handle->size_bytes) {
			return error_set(err, -EINVAL,
				"chunks of %" PRIu64 " bytes make no allocation of %" PRIu64, sum,
				handle->size_bytes);
		}
		break;
	case HANDLE_PULL:
		return error_set(err, -EINVAL, "a twin is imported by what it is made of");
	default:
		return error_set(
			err, -EINVAL, "no kind of handle has number %d", (int)handle->kind);
	}
	return device->ops->import(device, handle, write, ret_memory, err);
}

int gpu_alloc(struct gpu_device *device, uint64_t len_bytes, struct gpu_memory **ret_memory,
	struct error *err)
{
	if (len_bytes == 0) {
		return error_set(err, -EINVAL, "an allocation of 0 bytes");
	}
	return device->ops->alloc(device, len_bytes, ret_memory, err);
}

int gpu_alloc_pinned(struct gpu_device *device, uint64_t len_bytes, struct gpu_memory **ret_memory,
	struct error *err)
{
	if (len_bytes == 0) {
		return error_set(err, -EINVAL, "an allocation of 0 bytes");
	}
	return device->ops->alloc_pinned(device, len_bytes, ret_memory, err);
}

void gpu_memory_release(struct gpu_memory *memory)
{
	if (memory) {
		memory->ops->memory_release(memory);
	}
}

uint64_t gpu_memory_address(const struct gpu_memory *memory)
{
	return memory->address;
}

uint64_t gpu_memory_bytes(const struct gpu_memory *memory)
{
	return memory->len_bytes;
}

struct gpu_identity gpu_memory_identity(const struct gpu_memory *memory)
{
	return memory->identity;
}

const uint8_t *gpu_memory_uuid(const struct gpu_memory *memory)
{
	return memory->uuid;
}

int gpu_stream_create(struct gpu_device *device, struct gpu_stream **ret_stream, struct error *err)
{
	return device->ops->stream_create(device, false, ret_stream, err);
}

int gpu_stream_create_urgent(
	struct gpu_device *device, struct gpu_stream **ret_stream, struct error *err)
{
	return device->ops->stream_create(device, true, ret_stream, err);
}

void gpu_stream_destroy(struct gpu_stream *stream)
{
	if (stream) {
		stream->ops->stream_destroy(stream);
	}
}

void gpu_stream_wake(struct gpu_stream *stream)
{
	if (stream && stream->ops->stream_wake) {
		stream->ops->stream_wake(stream);
	}
}

void *gpu_stream_native(struct gpu_stream *stream)
{
	return stream->ops->stream_native(stream);
}

int gpu_event_create(struct gpu_device *device, struct gpu_event **ret_event, struct error *err)
{
	return device->ops->event_create(device, ret_event, err);
}

void gpu_event_destroy(struct gpu_event *event)
{
	if (event) {
		event->ops->event_destroy(event);
	}
}

int gpu_event_record(struct gpu_event *event, struct gpu_stream *stream, struct error *err)
{
	return event->ops->event_record(event, stream, err);
}

int gpu_stream_wait(struct gpu_stream *stream, struct gpu_event *event, struct error *err)
{
	return stream->ops->stream_wait(stream, event, err);
}

int gpu_event_query(struct gpu_event *event, struct error *err)
{
	return event->ops->event_query(event, err);
}

int gpu_copies_create(struct gpu_device *device, const struct copies *copies, const uint64_t *bases,
	size_t nbases, struct gpu_copies **ret_copies, struct error *err)
{
	for (size_t i = 0; i < copies->n; i++) {
		const struct copy *copy = &copies->v[i];

		if (copy->src_space >= nbases || copy->dst_space >= nbases ||
			copy->ndim > STREW_MAX_DIMS) {
			return error_set(err, -EINVAL,
				"copy %zu: spaces %" PRIu32 " and %" PRIu32 " of %zu, %" PRIu32
				" dimensions",
				i, copy->src_space, copy->dst_space, nbases, copy->ndim);
		}
		if (bases[copy->src_space] == GPU_OUT_OF_REACH ||
			bases[copy->dst_space] == GPU_OUT_OF_REACH) {
			return error_set(err, -EINVAL,
				"copy %zu: spaces %" PRIu32 " and %" PRIu32 " are not both within "
				"reach",
				i, copy->src_space, copy->dst_space);
		}
		if ((copy->from || copy->to) &&
			(!cast_known(copy->from, copy->to) || copy->from == copy->to ||
				copy->run_bytes % strew_dtype_size(copy->to))) {
			return error_set(err, -EINVAL,
				"copy %zu: %" PRIu64 " bytes cast from dtype %u to %u", i,
				copy->run_bytes, copy->from, copy->to);
		}
	}
	return device->ops->copies_create(device, copies, bases, nbases, ret_copies, err);
}

void gpu_copies_destroy(struct gpu_copies *copies)
{
	if (copies) {
		copies->ops->copies_destroy(copies);
	}
}

void gpu_copies_share(struct gpu_copies *copies, enum gpu_share share)
{
	if (copies->ops->copies_share) {
		copies->ops->copies_share(copies, share);
	}
}

int gpu_copies_run(struct gpu_copies *copies, size_t range, uint64_t slot_address,
	struct gpu_stream *stream, struct error *err)
{
	if (range >= copies->nranges) {
		return error_set(err, -EINVAL, "range %zu of %zu", range, copies->nranges);
	}
	if (slot_address % SLOT_ALIGN) {
		return error_set(err, -EINVAL, "a slot at 0x%" PRIx64 " is not aligned to %u",
			slot_address, SLOT_ALIGN);
	}
	return copies->ops->copies_run(copies, range, slot_address, stream, err);
}

int gpu_hashes_create(struct gpu_device *device, const struct gpu_span *spans, const size_t *first,
	size_t nranges, size_t nsums, struct gpu_hashes **ret_hashes, struct error *err)
{
	for (size_t i = 0; i < first[nranges]; i++) {
		if (spans[i].position % sizeof(uint64_t) || spans[i].sum >= nsums) {
			return error_set(err, -EINVAL,
				"span %zu: position %" PRIu64 ", sum %" PRIu32 " of %zu", i,
				spans[i].position, spans[i].sum, nsums);
		}
	}
	return device->ops->hashes_create(device, spans, first, nranges, nsums, ret_hashes, err);
}

void gpu_hashes_destroy(struct gpu_hashes *hashes)
{
	if (hashes) {
		hashes->ops->hashes_destroy(hashes);
	}
}

int gpu_hashes_clear(struct gpu_hashes *hashes, struct gpu_stream *stream, struct error *err)
{
	return hashes->ops->hashes_clear(hashes, stream, err);
}

int gpu_hashes_run(struct gpu_hashes *hashes, size_t range, uint64_t slot_address,
	struct gpu_stream *stream, struct error *err)
{
	if (range >= hashes->nranges) {
		return error_set(err, -EINVAL, "range %zu of %zu", range, hashes->nranges);
	}
	return hashes->ops->hashes_run(hashes, range, slot_address, stream, err);
}

int gpu_hashes_fetch(struct gpu_hashes *hashes, struct gpu_stream *stream, struct error *err)
{
	return hashes->ops->hashes_fetch(hashes, stream, err);
}

const uint64_t *gpu_hashes_values(const struct gpu_hashes *hashes)
{
	return hashes->values;
}

int gpu_copy(struct gpu_device *device, uint64_t dst, uint64_t src, uint64_t len_bytes,
	struct gpu_stream *stream, struct error *err)
{
	if (len_bytes == 0) {
		return 0;
	}
	return device->ops->copy(device, dst, src, len_bytes, stream, err);
}
