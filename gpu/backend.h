/*
 * What the two backends fill in: a table of operations and the common head of each
 * object of gpu/gpu.h. gpu.c dispatches through `ops`; a backend embeds the heads as
 * the first member of its own structs and checks nothing that gpu.c checked.
 */
#ifndef GPU_BACKEND_H
#define GPU_BACKEND_H

#include "gpu/gpu.h"

struct gpu_ops {
	void (*close)(struct gpu *gpu);
	int (*find)(struct gpu *gpu, const char *device, uint8_t *ret_uuid, struct error *err);
	bool (*reaches)(const struct gpu *gpu, const uint8_t *from, const uint8_t *to);
	int (*device)(struct gpu *gpu, const uint8_t *uuid, struct gpu_device **ret_device,
		struct error *err);
	int (*device_free)(struct gpu_device *device, uint64_t *ret_free, uint64_t *ret_total);
	int (*device_enter)(struct gpu_device *device, struct error *err);
	int (*import)(struct gpu_device *device, const struct handle *handle, bool write,
		struct gpu_memory **ret_memory, struct error *err);
	int (*alloc)(struct gpu_device *device, uint64_t len_bytes, struct gpu_memory **ret_memory,
		struct error *err);
	int (*alloc_pinned)(struct gpu_device *device, uint64_t len_bytes,
		struct gpu_memory **ret_memory, struct error *err);
	void (*memory_release)(struct gpu_memory *memory);
	int (*stream_create)(struct gpu_device *device, bool urgent, struct gpu_stream **ret_stream,
		struct error *err);
	void (*stream_destroy)(struct gpu_stream *stream);
	void (*stream_wake)(struct gpu_stream *stream); /* NULL: nobody sleeps */
	void *(*stream_native)(struct gpu_stream *stream);
	int (*event_create)(
		struct gpu_device *device, struct gpu_event **ret_event, struct error *err);
	void (*event_destroy)(struct gpu_event *event);
	int (*event_record)(struct gpu_event *event, struct gpu_stream *stream, struct error *err);
	int (*stream_wait)(struct gpu_stream *stream, struct gpu_event *event, struct error *err);
	int (*event_query)(struct gpu_event *event, struct error *err);
	int (*copies_create)(struct gpu_device *device, const struct copies *copies,
		const uint64_t *bases, size_t nbases, struct gpu_copies **ret_copies,
		struct error *err);
	void (*copies_destroy)(struct gpu_copies *copies);
	/* NULL: nothing to share */
	void (*copies_share)(struct gpu_copies *copies, enum gpu_share share);
	int (*copies_run)(struct gpu_copies *copies, size_t range, uint64_t slot_address,
		struct gpu_stream *stream, struct error *err);
	int (*hashes_create)(struct gpu_device *device, const struct gpu_span *spans,
		const size_t *first, size_t nranges, size_t nsums, struct gpu_hashes **ret_hashes,
		struct error *err);
	void (*hashes_destroy)(struct gpu_hashes *hashes);
	int (*hashes_clear)(
		struct gpu_hashes *hashes, struct gpu_stream *stream, struct error *err);
	int (*hashes_run)(struct gpu_hashes *hashes, size_t range, uint64_t slot_address,
		struct gpu_stream *stream, struct error *err);
	int (*hashes_fetch)(
		struct gpu_hashes *hashes, struct gpu_stream *stream, struct error *err);
	int (*copy)(struct gpu_device *device, uint64_t dst, uint64_t src, uint64_t len_bytes,
		struct gpu_stream *stream, struct error *err);
};

struct gpu {
	const struct gpu_ops *ops;
	struct gpu_info info;
};

struct gpu_device {
	const struct gpu_ops *ops;
	const struct gpu *gpu;
	uint8_t uuid[GPU_UUID_BYTES];
};

struct gpu_memory {
	const struct gpu_ops *ops;
	struct gpu_identity identity; /* of an import; zeros: none to compare by */
	uint64_t address;
	uint64_t len_bytes;
	uint8_t uuid[GPU_UUID_BYTES];
};

struct gpu_copies {
	const struct gpu_ops *ops;
	size_t nranges;
};

struct gpu_hashes {
	const struct gpu_ops *ops;
	size_t nranges, nsums;
	const uint64_t *values;
};

struct gpu_stream {
	const struct gpu_ops *ops;
};

struct gpu_event {
	const struct gpu_ops *ops;
};

int host_backend_open(struct gpu **ret_gpu, struct error *err);
int cuda_backend_open(struct gpu **ret_gpu, struct error *err);

/* True for the UUID of host memory: zeros. */
bool uuid_is_host(const uint8_t uuid[GPU_UUID_BYTES]);
/* "GPU-01234567-89ab-…", upper or lower case, to bytes. Returns 0 or -EINVAL. */
int uuid_parse(const char *text, uint8_t ret_uuid[GPU_UUID_BYTES]);
#define UUID_TEXT_BYTES 41 /* with the NUL */

#endif
