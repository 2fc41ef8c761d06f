/* The cuda backend: devices with their primary contexts, streams and events. */
#include "base/util.h"
#include "gpu/cuda_backend.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

struct cuda_backend_stream {
	struct gpu_stream head;
	struct cuda_device *device;
	struct cuda_stream *stream;
};

struct cuda_backend_event {
	struct gpu_event head;
	struct cuda_device *device;
	struct cuda_event *event;
	bool recorded;
};

int cuda_enter(struct cuda_device *device, struct error *err)
{
	return CUDA(err, cuCtxSetCurrent, device->ctx);
}

/*
 * The copy returns when the bytes are staged, and may still be on its way then; the streams that a
 * kernel reads them from do not wait for the one that it goes by.
 */
int cuda_upload(cuda_ptr dst, const void *src, size_t len_bytes, struct error *err)
{
	int rc = CUDA(err, cuMemcpyHtoD, dst, src, len_bytes);

	return rc ? rc : CUDA(err, cuStreamSynchronize, NULL);
}

int cuda_ordinal(const struct cuda_gpu *gpu, const uint8_t uuid[GPU_UUID_BYTES])
{
	for (int i = 0; i < gpu->head.info.ndevices; i++) {
		if (memcmp(gpu->uuids[i], uuid, GPU_UUID_BYTES) == 0) {
			return i;
		}
	}
	return -1;
}

bool cuda_reaches(const struct gpu *base, const uint8_t *from, const uint8_t *to)
{
	const struct cuda_gpu *gpu = (const struct cuda_gpu *)base;
	int here = cuda_ordinal(gpu, from), there = cuda_ordinal(gpu, to);

	return here < 0 || there < 0 || gpu->reaches[here * gpu->head.info.ndevices + there];
}

bool cuda_attribute(cuda_ptr address, enum cuda_pointer_attribute attribute, uint64_t *ret_value)
{
	/* Attributes are 1, 4 or 8 bytes long; all GPUs' hosts are little-endian. */
	uint64_t value = 0;

	if (cuda_driver.cuPointerGetAttribute(&value, attribute, address) != CUDA_OK) {
		return false;
	}
	*ret_value = value;
	return true;
}

static void device_close(struct cuda_device *device)
{
	if (!device) {
		return;
	}
	if (device->module && cuda_enter(device, NULL) == 0) {
		CUDA(NULL, cuModuleUnload, device->module);
	}
	CUDA(NULL, cuCtxSetCurrent, NULL);
	CUDA(NULL, cuDevicePrimaryCtxRelease, device->ordinal);
	free(device);
}

static void cuda_close(struct gpu *base)
{
	struct cuda_gpu *gpu = (struct cuda_gpu *)base;

	for (int i = 0; gpu->devices && i < gpu->head.info.ndevices; i++) {
		device_close(gpu->devices[i]);
	}
	free(gpu->devices);
	free(gpu->uuids);
	free(gpu->reaches);
	free(gpu);
}

static int cuda_find(struct gpu *base, const char *device, uint8_t *ret_uuid, struct error *err)
{
	struct cuda_gpu *gpu = (struct cuda_gpu *)base;
	int n = gpu->head.info.ndevices;
	char first[UUID_TEXT_BYTES];
	uint8_t uuid[GPU_UUID_BYTES];
	uint64_t index = 0;

	if (device && uuid_parse(device, uuid) == 0) {
		if (cuda_ordinal(gpu, uuid) >= 0) {
			memcpy(ret_uuid, uuid, GPU_UUID_BYTES);
			return 0;
		}
	} else if (!device || parse_u64(device, 0, (uint64_t)n - 1, &index) == 0) {
		memcpy(ret_uuid, gpu->uuids[index], GPU_UUID_BYTES);
		return 0;
	}
	return error_set(err, -ENODEV,
		"there is no GPU %s; this process sees 0 to %d, the first is %s", device, n - 1,
		gpu_uuid_format(first, sizeof(first), gpu->uuids[0]));
}

/* Own memory of one device is then within reach of kernels that run on another, where that can be.
 */
static void enable_peers(struct cuda_device *device)
{
	struct cuda_gpu *gpu = device->gpu;

	for (int i = 0; i < gpu->head.info.ndevices; i++) {
		struct cuda_device *peer = gpu->devices[i];

		if (!peer || peer == device) {
			continue;
		}
		if (cuda_enter(device, NULL) == 0) {
			cuda_driver.cuCtxEnablePeerAccess(peer->ctx, 0);
		}
		if (cuda_enter(peer, NULL) == 0) {
			cuda_driver.cuCtxEnablePeerAccess(device->ctx, 0);
		}
	}
}

static int cuda_device_open(
	struct gpu *base, const uint8_t *uuid, struct gpu_device **ret_device, struct error *err)
{
	struct cuda_gpu *gpu = (struct cuda_gpu *)base;
	int ordinal = cuda_ordinal(gpu, uuid);
	struct cuda_device *device;
	char text[UUID_TEXT_BYTES];
	int value = 0;
	int rc;

	if (ordinal < 0) {
		return error_set(err, -ENODEV, "there is no GPU %s",
			gpu_uuid_format(text, sizeof(text), uuid));
	}
	if (gpu->devices[ordinal]) {
		*ret_device = &gpu->devices[ordinal]->head;
		return 0;
	}
	device = calloc(1, sizeof(*device));
	if (!device) {
		return error_set(err, -ENOMEM, "no memory for a device");
	}
	device->head.ops = base->ops;
	device->head.gpu = base;
	memcpy(device->head.uuid, uuid, GPU_UUID_BYTES);
	device->gpu = gpu;
	rc = CUDA(err, cuDeviceGet, &device->ordinal, ordinal);
	if (rc) {
		goto free_device;
	}
	rc = CUDA(err, cuDeviceGetAttribute, &device->multiprocessors,
		CUDA_ATTRIBUTE_MULTIPROCESSORS, device->ordinal);
	if (rc) {
		goto free_device;
	}
	if (cuda_driver.cuDeviceGetAttribute(
		    &value, CUDA_ATTRIBUTE_READ_ONLY_REGISTER, device->ordinal) == CUDA_OK) {
		device->read_only_register = value != 0;
	}
	/* Fails where the context is in use already, with the flags of whoever came first. */
	cuda_driver.cuDevicePrimaryCtxSetFlags(device->ordinal, CUDA_SCHED_BLOCKING_SYNC);
	rc = CUDA(err, cuDevicePrimaryCtxRetain, &device->ctx, device->ordinal);
	if (rc) {
		error_prefix(err, "no context on %s", gpu_uuid_format(text, sizeof(text), uuid));
		goto free_device;
	}
	gpu->devices[ordinal] = device;
	enable_peers(device);
	*ret_device = &device->head;
	return 0;

free_device:
	free(device);
	return rc;
}

static int cuda_device_free(struct gpu_device *base, uint64_t *ret_free, uint64_t *ret_total)
{
	struct cuda_device *device = (struct cuda_device *)base;
	size_t free_bytes, total_bytes;
	int rc;

	rc = cuda_enter(device, NULL);
	if (rc == 0) {
		rc = CUDA(NULL, cuMemGetInfo, &free_bytes, &total_bytes);
	}
	if (rc == 0) {
		*ret_free = free_bytes;
		*ret_total = total_bytes;
	}
	return rc;
}

static int cuda_device_enter(struct gpu_device *device, struct error *err)
{
	return cuda_enter((struct cuda_device *)device, err);
}

static int cuda_stream_create(
	struct gpu_device *base, bool urgent, struct gpu_stream **ret_stream, struct error *err)
{
	struct cuda_device *device = (struct cuda_device *)base;
	struct cuda_backend_stream *stream = calloc(1, sizeof(*stream));
	int rc;

	if (!stream) {
		return error_set(err, -ENOMEM, "no memory for a stream");
	}
	stream->head.ops = base->ops;
	stream->device = device;
	rc = cuda_enter(device, err);
	if (rc == 0) {
		/* The driver takes the nearest priority that there is; lower numbers go first. */
		rc = CUDA(err, cuStreamCreateWithPriority, &stream->stream,
			CUDA_STREAM_NON_BLOCKING, urgent ? -100 : 0);
	}
	if (rc) {
		free(stream);
		return rc;
	}
	*ret_stream = &stream->head;
	return 0;
}

static void cuda_stream_wake(struct gpu_stream *base)
{
	struct cuda_backend_stream *stream = (struct cuda_backend_stream *)base;
	cuda_ptr nothing = 0;
	uint64_t slot = 0;
	uint32_t ntiles = 0;
	void *arguments[] = {&nothing, &nothing, &slot, &ntiles};

	if (stream->device->scatter_few && cuda_enter(stream->device, NULL) == 0) {
		CUDA(NULL, cuLaunchKernel, stream->device->scatter_few, 1, 1, 1, 32, 1, 1, 0,
			stream->stream, arguments, NULL);
	}
}

static void cuda_stream_destroy(struct gpu_stream *base)
{
	struct cuda_backend_stream *stream = (struct cuda_backend_stream *)base;

	if (cuda_enter(stream->device, NULL) == 0) {
		CUDA(NULL, cuStreamDestroy, stream->stream);
	}
	free(stream);
}

static void *cuda_stream_native(struct gpu_stream *base)
{
	return ((struct cuda_backend_stream *)base)->stream;
}

static int cuda_event_create(
	struct gpu_device *base, struct gpu_event **ret_event, struct error *err)
{
	struct cuda_device *device = (struct cuda_device *)base;
	struct cuda_backend_event *event = calloc(1, sizeof(*event));
	int rc;

	if (!event) {
		return error_set(err, -ENOMEM, "no memory for an event");
	}
	event->head.ops = base->ops;
	event->device = device;
	rc = cuda_enter(device, err);
	if (rc == 0) {
		rc = CUDA(err, cuEventCreate, &event->event, CUDA_EVENT_DISABLE_TIMING);
	}
	if (rc) {
		free(event);
		return rc;
	}
	*ret_event = &event->head;
	return 0;
}

static void cuda_event_destroy(struct gpu_event *base)
{
	struct cuda_backend_event *event = (struct cuda_backend_event *)base;

	if (cuda_enter(event->device, NULL) == 0) {
		CUDA(NULL, cuEventDestroy, event->event);
	}
	free(event);
}

static int cuda_event_record(struct gpu_event *base, struct gpu_stream *stream, struct error *err)
{
	struct cuda_backend_event *event = (struct cuda_backend_event *)base;
	int rc = cuda_enter(event->device, err);

	if (rc == 0) {
		rc = CUDA(err, cuEventRecord, event->event,
			((struct cuda_backend_stream *)stream)->stream);
	}
	if (rc == 0) {
		event->recorded = true;
	}
	return rc;
}

static int cuda_stream_wait(struct gpu_stream *base, struct gpu_event *event, struct error *err)
{
	struct cuda_backend_stream *stream = (struct cuda_backend_stream *)base;
	int rc = cuda_enter(stream->device, err);

	if (rc == 0) {
		rc = CUDA(err, cuStreamWaitEvent, stream->stream,
			((struct cuda_backend_event *)event)->event, 0);
	}
	return rc;
}

static int cuda_event_query(struct gpu_event *base, struct error *err)
{
	struct cuda_backend_event *event = (struct cuda_backend_event *)base;
	unsigned result;
	int rc;

	if (!event->recorded) {
		return 1;
	}
	rc = cuda_enter(event->device, err);
	if (rc) {
		return rc;
	}
	result = cuda_driver.cuEventQuery(event->event);
	if (result == CUDA_OK) {
		return 1;
	}
	if (result == CUDA_NOT_READY) {
		return 0;
	}
	return cuda_outcome(err, "cuEventQuery", result);
}

static const struct gpu_ops cuda_ops = {
	.close = cuda_close,
	.find = cuda_find,
	.reaches = cuda_reaches,
	.device = cuda_device_open,
	.device_free = cuda_device_free,
	.device_enter = cuda_device_enter,
	.import = cuda_import,
	.alloc = cuda_alloc,
	.alloc_pinned = cuda_alloc_pinned,
	.memory_release = cuda_memory_release,
	.stream_create = cuda_stream_create,
	.stream_destroy = cuda_stream_destroy,
	.stream_wake = cuda_stream_wake,
	.stream_native = cuda_stream_native,
	.event_create = cuda_event_create,
	.event_destroy = cuda_event_destroy,
	.event_record = cuda_event_record,
	.stream_wait = cuda_stream_wait,
	.event_query = cuda_event_query,
	.copies_create = cuda_copies_create,
	.copies_destroy = cuda_copies_destroy,
	.copies_share = cuda_copies_share,
	.copies_run = cuda_copies_run,
	.hashes_create = cuda_hashes_create,
	.hashes_destroy = cuda_hashes_destroy,
	.hashes_clear = cuda_hashes_clear,
	.hashes_run = cuda_hashes_run,
	.hashes_fetch = cuda_hashes_fetch,
	.copy = cuda_copy,
};

static int list_devices(struct cuda_gpu *gpu, struct error *err)
{
	int n = gpu->head.info.ndevices;
	int rc = 0;

	gpu->uuids = calloc((size_t)n, sizeof(*gpu->uuids));
	gpu->devices = calloc((size_t)n, sizeof(struct cuda_device *));
	gpu->reaches = calloc((size_t)n, (size_t)n * sizeof(*gpu->reaches));
	if (!gpu->uuids || !gpu->devices || !gpu->reaches) {
		return error_set(err, -ENOMEM, "no memory for %d devices", n);
	}
	for (int i = 0; i < n && rc == 0; i++) {
		struct cuda_uuid uuid;
		int device;

		rc = CUDA(err, cuDeviceGet, &device, i);
		if (rc == 0) {
			rc = CUDA(err, cuDeviceGetUuid, &uuid, device);
		}
		if (rc == 0) {
			memcpy(gpu->uuids[i], uuid.bytes, GPU_UUID_BYTES);
		}
	}
	return rc;
}

/* Needs no context. What the driver does not tell is taken for no: bytes get there all the same. */
static void list_reaches(struct cuda_gpu *gpu)
{
	int n = gpu->head.info.ndevices;

	for (int from = 0; from < n; from++) {
		for (int to = 0; to < n; to++) {
			int device, peer, reachable = 0;

			if (from != to && cuda_driver.cuDeviceGet(&device, from) == CUDA_OK &&
				cuda_driver.cuDeviceGet(&peer, to) == CUDA_OK) {
				cuda_driver.cuDeviceCanAccessPeer(&reachable, device, peer);
			}
			gpu->reaches[from * n + to] = from == to || reachable;
		}
	}
}

int cuda_backend_open(struct gpu **ret_gpu, struct error *err)
{
	struct cuda_gpu *gpu;
	int rc;

	rc = cuda_driver_load(false, err);
	if (rc) {
		return rc;
	}
	rc = CUDA(err, cuInit, 0);
	if (rc) {
		if (err) {
			err->code = -ENODEV;
		}
		return -ENODEV;
	}
	gpu = calloc(1, sizeof(*gpu));
	if (!gpu) {
		return error_set(err, -ENOMEM, "no memory for the cuda backend");
	}
	gpu->head.ops = &cuda_ops;
	gpu->head.info.kind = GPU_CUDA;
	gpu->head.info.kind_name = "cuda";
	rc = CUDA(err, cuDriverGetVersion, &gpu->head.info.driver_version);
	if (rc == 0) {
		rc = CUDA(err, cuDeviceGetCount, &gpu->head.info.ndevices);
	}
	if (rc == 0 && gpu->head.info.ndevices == 0) {
		rc = error_set(err, -ENODEV, "the driver finds no GPU");
	}
	if (rc == 0) {
		rc = list_devices(gpu, err);
	}
	if (rc) {
		cuda_close(&gpu->head);
		return rc;
	}
	list_reaches(gpu);
	*ret_gpu = &gpu->head;
	return 0;
}
