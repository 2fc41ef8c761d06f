/*
 * Memory and copies: one small interface with two backends, chosen at run time.
 * `cuda` is the driver API, opened with dlopen; `host` is memfds and memcpy with
 * the same semantics. Nothing above this room and wire/ knows which one it has.
 *
 * The broker's half (struct gpu and below) is used by one thread, the mover,
 * except gpu_open(), gpu_info() and gpu_reaches(). The processes' half (export) is in gpu/export.h.
 *
 * -ENOTRECOVERABLE from any call: the device has failed for good, as far as this process goes.
 */
#ifndef GPU_GPU_H
#define GPU_GPU_H

#include "base/error.h"
#include "plan/plan.h"
#include <stdbool.h>
#include <stdint.h>

enum gpu_kind { GPU_AUTO = 0, GPU_HOST = 1, GPU_CUDA = 2 };

#define GPU_UUID_BYTES 16
#define GPU_IPC_BYTES 64

/* How one allocation is shared. The numbers travel on the wire. */
enum handle_kind {
	HANDLE_MEMFD = 1, /* one fd; both backends take it (cuda registers it as pinned memory) */
	HANDLE_CUDA_IPC = 2, /* legacy IPC handle, no fd */
	HANDLE_CUDA_VMM = 3, /* POSIX fds, one a chunk, to be mapped side by side */
	HANDLE_PULL = 4,     /* on the wire only: a twin, which is a memfd or has an IPC handle */
};

/* An allocation as its owner describes it. A value: fds are owned by whoever holds it. */
struct handle {
	enum handle_kind kind;
	uint64_t base; /* address in the exporter, for messages and checks */
	uint64_t size_bytes;
	uint64_t buffer_id;	      /* the driver's, 0 for memfd */
	uint8_t uuid[GPU_UUID_BYTES]; /* of the GPU, zeros for host memory */
	uint8_t ipc[GPU_IPC_BYTES];   /* HANDLE_CUDA_IPC */
	uint32_t nchunks;	      /* fds: 1 for memfd, one a chunk for VMM, else 0 */
	int *fds;		      /* nchunks, -1 where taken; malloc'd */
	uint64_t *chunk_bytes;	      /* nchunks; malloc'd */
	bool pull; /* a twin of memory that cannot be exported: its owner copies to or from it */
};
/* Closes the fds that are left and frees the arrays. */
void handle_finish(struct handle *handle);

struct gpu;	   /* a backend, opened */
struct gpu_device; /* a GPU in which the broker has a context; the host backend has one */
struct gpu_memory; /* an imported allocation, or one of the broker's own (slot, shadow) */
struct gpu_hashes; /* sums of hashes of bytes that go over a wire */
struct gpu_copies; /* copies whose descriptors lie where the executor wants them */
struct gpu_stream;
struct gpu_event;

struct gpu_info {
	enum gpu_kind kind;
	const char *kind_name; /* "cuda" or "host" */
	int ndevices;
	int driver_version; /* 13000 for 13.0; 0 for host */
};

/*
 * Opens a backend. GPU_AUTO takes cuda where the driver finds a GPU, else host.
 * GPU_CUDA without a driver or a GPU: -ENODEV and the reason. Makes no context.
 */
int gpu_open(enum gpu_kind kind, struct gpu **ret_gpu, struct error *err);
void gpu_close(struct gpu *gpu); /* NULL is fine; everything made from it is gone before */
const struct gpu_info *gpu_info(const struct gpu *gpu);

/* UUID of "GPU-…" text or of a decimal index; NULL: the first GPU. -ENODEV names what exists. */
int gpu_find(
	struct gpu *gpu, const char *device, uint8_t ret_uuid[GPU_UUID_BYTES], struct error *err);
/*
 * May a GPU copy to and from the memory of another, as the driver said when the backend was opened?
 * All reach themselves and host memory (zeros). Of one that is not here nothing is known: true, as
 * its memory is refused for that reason.
 */
bool gpu_reaches(const struct gpu *gpu, const uint8_t from[GPU_UUID_BYTES],
	const uint8_t to[GPU_UUID_BYTES]);
/* "GPU-0123…" or "host" into buf, which is returned. */
const char *gpu_uuid_format(char *buf, size_t buf_bytes, const uint8_t uuid[GPU_UUID_BYTES]);

/* The device with that UUID, with a context made at the first call (primary, blocking sync). */
int gpu_device(struct gpu *gpu, const uint8_t uuid[GPU_UUID_BYTES], struct gpu_device **ret_device,
	struct error *err);
const uint8_t *gpu_device_uuid(const struct gpu_device *device);
bool gpu_device_reaches(const struct gpu_device *device, const uint8_t to[GPU_UUID_BYTES]);
/* Bytes that the driver reports free and in all; both 0 on the host backend. */
int gpu_device_free(struct gpu_device *device, uint64_t *ret_free, uint64_t *ret_total);

/*
 * Maps another process's allocation for copies issued by `device`. Counted: the same
 * handle with the same buffer id is mapped once. Takes nothing of *handle; the fds may be
 * closed afterwards. `write` false maps read-only where the backend can. Sizes are
 * checked against what is really mapped (-ERANGE); -EINVAL for an unsealed or
 * short memfd; what the device does not reach is refused by both names.
 */
int gpu_import(struct gpu_device *device, const struct handle *handle, bool write,
	struct gpu_memory **ret_memory, struct error *err);

/*
 * What two imports of the same bytes have in common, whatever size was claimed for either: a
 * memfd's device and inode, the address at which the driver maps a legacy handle. Zeros where
 * nothing tells: VMM chunks' descriptors.
 */
struct gpu_identity {
	uint64_t v[2];
};
struct gpu_identity gpu_memory_identity(const struct gpu_memory *memory);

/* The broker's own memory. -ENOMEM says how many bytes were wanted and how many are free. */
int gpu_alloc(struct gpu_device *device, uint64_t len_bytes, struct gpu_memory **ret_memory,
	struct error *err);

/* Pinned host memory within reach of every device; plain on the host backend. Errors likewise. */
int gpu_alloc_pinned(struct gpu_device *device, uint64_t len_bytes, struct gpu_memory **ret_memory,
	struct error *err);

void gpu_memory_release(struct gpu_memory *memory); /* NULL is fine; after its last copy */
uint64_t gpu_memory_address(const struct gpu_memory *memory);
uint64_t gpu_memory_bytes(const struct gpu_memory *memory);
/* UUID of the GPU the bytes lie on; zeros for host memory. */
const uint8_t *gpu_memory_uuid(const struct gpu_memory *memory);

/* Streams and events. On the host backend work is done when it is enqueued. */
int gpu_stream_create(struct gpu_device *device, struct gpu_stream **ret_stream, struct error *err);
/* The same, before all others where the GPU has a choice: its kernels are not kept waiting. */
int gpu_stream_create_urgent(
	struct gpu_device *device, struct gpu_stream **ret_stream, struct error *err);
void gpu_stream_destroy(struct gpu_stream *stream);
/*
 * Lets the GPU turn to this process while the host still talks: a kernel that does nothing. After
 * another process's work that takes it 0.1 ms. Does nothing before the first copies were made.
 */
void gpu_stream_wake(struct gpu_stream *stream);
void *gpu_stream_native(struct gpu_stream *stream); /* CUstream for NCCL; NULL on host */
int gpu_event_create(struct gpu_device *device, struct gpu_event **ret_event, struct error *err);
void gpu_event_destroy(struct gpu_event *event);
int gpu_event_record(struct gpu_event *event, struct gpu_stream *stream, struct error *err);
/* Makes the stream wait for the event's last record; the host does not wait. */
int gpu_stream_wait(struct gpu_stream *stream, struct gpu_event *event, struct error *err);
/* 1 when everything before the last record has finished (or nothing was recorded), 0 when not
 * yet, or the driver's error. Never blocks. */
int gpu_event_query(struct gpu_event *event, struct error *err);

/*
 * Compiles copies for repeated runs: descriptors stay on the device, one build per plan.
 * bases[space] is an address, for sources and destinations alike; every space of the copies is
 * < nbases. A base of 0 means "given at the run": the slot; GPU_OUT_OF_REACH that none of these
 * copies may name that space. Nothing is kept of the arguments.
 */
#define GPU_OUT_OF_REACH UINT64_MAX
int gpu_copies_create(struct gpu_device *device, const struct copies *copies, const uint64_t *bases,
	size_t nbases, struct gpu_copies **ret_copies, struct error *err);
void gpu_copies_destroy(struct gpu_copies *copies);
/*
 * From now on runs leave room on the GPU for other kernels: for copies that a link limits, or
 * that go beside NCCL's, for which they leave more. Alone on a GPU they are slower by some percent.
 */
enum gpu_share { GPU_SHARE_LINK = 1, GPU_SHARE_CARRIER };
void gpu_copies_share(struct gpu_copies *copies, enum gpu_share share);

/*
 * Enqueues one range; slot_address stands for the base that was 0. An empty range does nothing.
 */
int gpu_copies_run(struct gpu_copies *copies, size_t range, uint64_t slot_address,
	struct gpu_stream *stream, struct error *err);

/* Bytes that are hashed (gpu/hash.h). */
struct gpu_span {
	uint64_t address; /* in_slot: an offset in the slot that the run is given */
	uint64_t len_bytes;
	uint64_t position; /* of its first byte, a multiple of 8: the same bytes elsewhere count
			      differently */
	uint32_t sum;	   /* number of the sum that they are added to, < nsums */
	bool in_slot;
};

/*
 * Compiles ranges of spans, range r being spans[first[r] .. first[r + 1]), for repeated runs that
 * add to nsums sums. Nothing is kept of the arguments. The sums are zeros at first.
 */
int gpu_hashes_create(struct gpu_device *device, const struct gpu_span *spans, const size_t *first,
	size_t nranges, size_t nsums, struct gpu_hashes **ret_hashes, struct error *err);
void gpu_hashes_destroy(struct gpu_hashes *hashes); /* NULL is fine */
/* Each enqueues: makes all sums zeros; adds one range; takes the sums to the host. */
int gpu_hashes_clear(struct gpu_hashes *hashes, struct gpu_stream *stream, struct error *err);
int gpu_hashes_run(struct gpu_hashes *hashes, size_t range, uint64_t slot_address,
	struct gpu_stream *stream, struct error *err);
int gpu_hashes_fetch(struct gpu_hashes *hashes, struct gpu_stream *stream, struct error *err);
/* nsums values, once the stream has done the last fetch. */
const uint64_t *gpu_hashes_values(const struct gpu_hashes *hashes);

/* Plain copy of bytes between addresses of this device's reach, on the stream. */
int gpu_copy(struct gpu_device *device, uint64_t dst, uint64_t src, uint64_t len_bytes,
	struct gpu_stream *stream, struct error *err);

/* Makes the device's context current in the calling thread (NCCL needs it); no-op on host. */
int gpu_device_enter(struct gpu_device *device, struct error *err);

#endif
