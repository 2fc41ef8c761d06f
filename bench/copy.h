/*
 * strew-bench copy: the processes that it plays with. Two owners, who allocate and export as
 * strew's agents do, and a mover, who imports and copies as a broker does.
 */
#ifndef BENCH_COPY_H
#define BENCH_COPY_H

#include "bench/bench.h"
#include "bench/parts.h"

enum copy_method {
	COPY_ENGINE,	  /* one call of a copy engine */
	COPY_LOOP,	  /* the same bytes in calls of 64 KiB */
	COPY_BATCH,	  /* the same pieces by one cuMemcpyBatchAsync, where the driver has it */
	COPY_KERNEL,	  /* in pieces of 64 KiB, by strew's executor */
	COPY_ROWS_KERNEL, /* rows at a pitch of twice their length, by strew's executor */
	COPY_ROWS_ENGINE, /* the same by cuMemcpy2DAsync */
	COPY_METHODS
};
extern const char *const copy_method_names[COPY_METHODS];

#define COPY_POISON 0xa5

/* An owner's memory: len_bytes at a time, twice that in all, for rows at a pitch. */
struct copy_owner {
	enum gpu_kind kind;
	const char *device; /* NULL: the first */
	bool on_host;
	uint64_t len_bytes;
};

struct copy_mover {
	enum gpu_kind kind;
	const char *source, *target; /* GPUs; source NULL with on_host: host memory */
	const char *issuer;	     /* instead of the source's GPU; or NULL */
	bool on_host;
	uint64_t len_bytes, row_bytes;
	uint64_t seed;
};

enum copy_question {
	COPY_EXPORT = 1, /* owner → struct copy_handle and descriptors */
	COPY_FILL,	 /* owner: values of a seed (u64) */
	COPY_WIPE,	 /* owner: poison, so many bytes of it (u64) */
	COPY_CHECK,	 /* owner: struct copy_check → struct compared */
	COPY_TAKE, /* mover: struct copy_handle and descriptors; the source's, then the target's */
	COPY_RUN,  /* mover: struct copy_run → seconds */
	COPY_RAW,  /* mover: the same for a plain copy between memory of its own → seconds */
	COPY_CAN,  /* mover: enum copy_method (u32) → is there such a call? (u64) */
};

/* struct handle of gpu/gpu.h without its arrays. */
struct copy_handle {
	uint32_t kind, nchunks;
	uint64_t size_bytes, buffer_id, offset;
	uint8_t uuid[GPU_UUID_BYTES], ipc[GPU_IPC_BYTES];
	uint64_t chunk_bytes[CHILD_FDS];
};

struct copy_run {
	uint32_t method;
	bool by_target; /* issued by a context on the target's GPU, else on the source's or the
			   part's issuer */
	bool once;	/* one copy, for its bytes; else as many as a timing wants */
	uint64_t len_bytes;
};

struct copy_check {
	uint64_t seed, len_bytes, row_bytes; /* row_bytes 0: contiguous */
	uint64_t span_bytes;		     /* is looked at, from the start */
};

/* Functions for child_start(). */
int part_copy_owner(int fd, void *owner);
int part_copy_mover(int fd, void *mover);

#endif
