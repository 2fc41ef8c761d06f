/*
 * The host backend: memory is memfds and anonymous pages, streams and events are
 * placeholders, because a copy has happened when the call that enqueues it returns.
 */
#include "gpu/host.h"
#include "base/util.h"
#include "gpu/memfd.h"
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sysinfo.h>

struct host_memory {
	struct gpu_memory head;
	struct host_device *device;
	struct host_memory *next; /* of the device's imports; NULL for own memory */
	struct memfd_id id;
	bool imported, write;
	unsigned references;
};

struct host_device {
	struct gpu_device head;
	struct host_memory *imports;
};

struct host_gpu {
	struct gpu head;
	struct host_device device;
};

static void host_close(struct gpu *gpu)
{
	free(gpu);
}

static int host_find(struct gpu *gpu, const char *device, uint8_t *ret_uuid, struct error *err)
{
	(void)gpu;
	if (device && strcmp(device, "host") != 0 && strcmp(device, "0") != 0) {
		return error_set(err, -ENODEV, "there is no device %s, only \"host\"", device);
	}
	memset(ret_uuid, 0, GPU_UUID_BYTES);
	return 0;
}

static bool host_reaches(const struct gpu *gpu, const uint8_t *from, const uint8_t *to)
{
	(void)gpu;
	(void)from;
	(void)to;
	return true;
}

static int host_device(
	struct gpu *gpu, const uint8_t *uuid, struct gpu_device **ret_device, struct error *err)
{
	char text[UUID_TEXT_BYTES];

	if (!uuid_is_host(uuid)) {
		return error_set(err, -ENODEV, "%s: the host backend has no GPUs",
			gpu_uuid_format(text, sizeof(text), uuid));
	}
	*ret_device = &((struct host_gpu *)gpu)->device.head;
	return 0;
}

static int host_device_free(struct gpu_device *device, uint64_t *ret_free, uint64_t *ret_total)
{
	(void)device;
	*ret_free = 0;
	*ret_total = 0;
	return 0;
}

static int host_device_enter(struct gpu_device *device, struct error *err)
{
	(void)device;
	(void)err;
	return 0;
}

static int host_import(struct gpu_device *base, const struct handle *handle, bool write,
	struct gpu_memory **ret_memory, struct error *err)
{
	struct host_device *device = (struct host_device *)base;
	struct host_memory *memory;
	struct memfd_id id;
	void *ptr;
	int rc;

	if (handle->kind != HANDLE_MEMFD) {
		return error_set(err, -ENOTSUP, "GPU memory cannot be mapped by the host backend");
	}
	rc = memfd_identify(handle->fds[0], &id);
	if (rc) {
		return error_set(err, rc, "the memfd is unusable: %s", strerror(-rc));
	}
	for (memory = device->imports; memory; memory = memory->next) {
		if (memory->id.device == id.device && memory->id.inode == id.inode &&
			memory->write == write && memory->head.len_bytes == handle->size_bytes) {
			memory->references++;
			*ret_memory = &memory->head;
			return 0;
		}
	}
	memory = calloc(1, sizeof(*memory));
	if (!memory) {
		return error_set(err, -ENOMEM, "no memory for an import");
	}
	rc = memfd_map(handle->fds[0], handle->size_bytes, write, &ptr, err);
	if (rc) {
		free(memory);
		return rc;
	}
	memory->head.ops = device->head.ops;
	memory->head.identity = memfd_identity(&id);
	memory->head.address = (uint64_t)(uintptr_t)ptr;
	memory->head.len_bytes = handle->size_bytes;
	memory->device = device;
	memory->id = id;
	memory->imported = true;
	memory->write = write;
	memory->references = 1;
	memory->next = device->imports;
	device->imports = memory;
	*ret_memory = &memory->head;
	return 0;
}

static int host_alloc(struct gpu_device *base, uint64_t len_bytes, struct gpu_memory **ret_memory,
	struct error *err)
{
	struct host_memory *memory = calloc(1, sizeof(*memory));
	char wanted[32], left[32];
	struct sysinfo info = {0};
	void *ptr;

	if (!memory) {
		return error_set(err, -ENOMEM, "no memory for an allocation");
	}
	ptr = mmap(NULL, len_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (ptr == MAP_FAILED) {
		free(memory);
		sysinfo(&info);
		return error_set(err, -ENOMEM, "%s of host memory wanted, %s are free",
			format_bytes(wanted, sizeof(wanted), len_bytes),
			format_bytes(left, sizeof(left), (uint64_t)info.freeram * info.mem_unit));
	}
	memory->head.ops = base->ops;
	memory->head.address = (uint64_t)(uintptr_t)ptr;
	memory->head.len_bytes = len_bytes;
	memory->device = (struct host_device *)base;
	memory->references = 1;
	*ret_memory = &memory->head;
	return 0;
}

static void host_memory_release(struct gpu_memory *base)
{
	struct host_memory *memory = (struct host_memory *)base;
	struct host_memory **link = &memory->device->imports;

	if (--memory->references > 0) {
		return;
	}
	if (memory->imported) {
		while (*link != memory) {
			link = &(*link)->next;
		}
		*link = memory->next;
	}
	munmap((void *)(uintptr_t)memory->head.address, memory->head.len_bytes);
	free(memory);
}

static int host_stream_create(
	struct gpu_device *device, bool urgent, struct gpu_stream **ret_stream, struct error *err)
{
	struct gpu_stream *stream = calloc(1, sizeof(*stream));

	(void)urgent;
	if (!stream) {
		return error_set(err, -ENOMEM, "no memory for a stream");
	}
	stream->ops = device->ops;
	*ret_stream = stream;
	return 0;
}

static void host_stream_destroy(struct gpu_stream *stream)
{
	free(stream);
}

static void *host_stream_native(struct gpu_stream *stream)
{
	(void)stream;
	return NULL;
}

static int host_event_create(
	struct gpu_device *device, struct gpu_event **ret_event, struct error *err)
{
	struct gpu_event *event = calloc(1, sizeof(*event));

	if (!event) {
		return error_set(err, -ENOMEM, "no memory for an event");
	}
	event->ops = device->ops;
	*ret_event = event;
	return 0;
}

static void host_event_destroy(struct gpu_event *event)
{
	free(event);
}

static int host_event_record(struct gpu_event *event, struct gpu_stream *stream, struct error *err)
{
	(void)event;
	(void)stream;
	(void)err;
	return 0;
}

static int host_stream_wait(struct gpu_stream *stream, struct gpu_event *event, struct error *err)
{
	(void)stream;
	(void)event;
	(void)err;
	return 0;
}

static int host_event_query(struct gpu_event *event, struct error *err)
{
	(void)event;
	(void)err;
	return 1;
}

static int host_copy(struct gpu_device *device, uint64_t dst, uint64_t src, uint64_t len_bytes,
	struct gpu_stream *stream, struct error *err)
{
	(void)device;
	(void)stream;
	(void)err;
	memcpy((void *)(uintptr_t)dst, (const void *)(uintptr_t)src, len_bytes);
	return 0;
}

static const struct gpu_ops host_ops = {
	.close = host_close,
	.find = host_find,
	.reaches = host_reaches,
	.device = host_device,
	.device_free = host_device_free,
	.device_enter = host_device_enter,
	.import = host_import,
	.alloc = host_alloc,
	.alloc_pinned = host_alloc,
	.memory_release = host_memory_release,
	.stream_create = host_stream_create,
	.stream_destroy = host_stream_destroy,
	.stream_native = host_stream_native,
	.event_create = host_event_create,
	.event_destroy = host_event_destroy,
	.event_record = host_event_record,
	.stream_wait = host_stream_wait,
	.event_query = host_event_query,
	.copies_create = host_copies_create,
	.copies_destroy = host_copies_destroy,
	.copies_run = host_copies_run,
	.hashes_create = host_hashes_create,
	.hashes_destroy = host_hashes_destroy,
	.hashes_clear = host_hashes_clear,
	.hashes_run = host_hashes_run,
	.hashes_fetch = host_hashes_fetch,
	.copy = host_copy,
};

int host_backend_open(struct gpu **ret_gpu, struct error *err)
{
	struct host_gpu *gpu = calloc(1, sizeof(*gpu));

	if (!gpu) {
		return error_set(err, -ENOMEM, "no memory for the host backend");
	}
	gpu->head.ops = &host_ops;
	gpu->head.info.kind = GPU_HOST;
	gpu->head.info.kind_name = "host";
	gpu->head.info.ndevices = 1;
	gpu->device.head.ops = &host_ops;
	gpu->device.head.gpu = &gpu->head;
	*ret_gpu = &gpu->head;
	return 0;
}
