/*
 * What the files of the stand-in driver share. Three locks: the one of contexts and streams
 * (streams.c), the one of address spaces (memory.c), and that of the plan; none is held when
 * another one's owner is called, but that spaces are read while a stream works.
 */
#ifndef STANDIN_DRIVER_H
#define STANDIN_DRIVER_H

#include "tests/gpu/extra_calls.h"
#include "tests/standin/standin.h"
#include <pthread.h>
#include <stddef.h>
#include <sys/types.h>

#define DEVICES_MAX 8
#define GRANULARITY (2u << 20)

enum {
	NOT_INITIALIZED = 3,
	INVALID_DEVICE = 101,
	INVALID_IMAGE = 200,
	PEER_UNSUPPORTED = 217,
	INVALID_HANDLE = 400,
	NOT_FOUND = 500,
	PEER_ENABLED = 704,
	HOST_NOT_REGISTERED = 713,
};

#define DECLARE(name, symbol, parameters) STANDIN_EXPORT unsigned symbol parameters;
CUDA_CALLS(DECLARE)
EXTRA_CALLS(DECLARE)
#undef DECLARE
struct bench_rows;
struct bench_batch_attributes;
STANDIN_EXPORT unsigned cuMemcpyBatchAsync_v2(const cuda_ptr *dsts, const cuda_ptr *srcs,
	const size_t *sizes, size_t n, const struct bench_batch_attributes *attributes,
	const size_t *first, size_t nfirst, struct cuda_stream *stream);
STANDIN_EXPORT unsigned cuMemcpyBatchAsync(const cuda_ptr *dsts, const cuda_ptr *srcs,
	const size_t *sizes, size_t n, const struct bench_batch_attributes *attributes,
	const size_t *first, size_t nfirst, size_t *ret_failed, struct cuda_stream *stream);
STANDIN_EXPORT unsigned cuMemcpy2DAsync_v2(
	const struct bench_rows *rows, struct cuda_stream *stream);

/*
 * Begins an entry point that needs cuInit(): says its name, and returns if a fault says so. The
 * second one needs a context too, and leaves it in `ctx`, and a fault of its work in `fault`.
 */
#define ENTER(call)                                                                                \
	do {                                                                                       \
		static struct standin_cell *_Atomic cell_;                                         \
		unsigned result_ = driver_enter(#call, &cell_);                                    \
		if (result_) {                                                                     \
			return result_;                                                            \
		}                                                                                  \
	} while (0)
#define ENTER_CTX(call)                                                                            \
	static struct standin_cell *_Atomic cell_;                                                 \
	struct fault fault = {FAULT_NONE, 0, 0};                                                   \
	struct cuda_ctx *ctx = NULL;                                                               \
	do {                                                                                       \
		unsigned result_ = driver_enter_ctx(#call, &cell_, &ctx, &fault);                  \
		if (result_) {                                                                     \
			return result_;                                                            \
		}                                                                                  \
		(void)ctx;                                                                         \
		(void)fault;                                                                       \
	} while (0)

unsigned driver_enter(const char *call, struct standin_cell *_Atomic *cell);
unsigned driver_enter_ctx(const char *call, struct standin_cell *_Atomic *cell,
	struct cuda_ctx **ret_ctx, struct fault *ret_fault);

struct cuda_ctx {
	int device;
	unsigned retained;
	unsigned flags;
	atomic_uint broken; /* result of everything from now on */
	bool peers[DEVICES_MAX];
	struct cuda_stream *streams; /* under the streams' lock */
	struct cuda_stream *legacy;  /* stream 0, at its first use */
};

int driver_devices(void);
struct cuda_ctx *driver_ctx(int device);
bool driver_peers(int device, int other);
void driver_break(struct cuda_ctx *ctx, unsigned code);

/* Streams (streams.c). */
struct work;
unsigned stream_copy(struct cuda_ctx *ctx, struct cuda_stream *stream, const struct fault *fault,
	cuda_ptr dst, cuda_ptr src, size_t len_bytes);
/* `call` frees `data`; if it is not enqueued, nobody does. */
unsigned stream_call(struct cuda_ctx *ctx, struct cuda_stream *stream, const struct fault *fault,
	standin_call *call, void *data);
unsigned stream_kernel(struct cuda_ctx *ctx, struct cuda_stream *stream, const struct fault *fault,
	const void *launch, size_t launch_bytes);
/* Waits until all streams of the context are empty: what frees memory does. */
void streams_drain(struct cuda_ctx *ctx);
void stream_drain_legacy(struct cuda_ctx *ctx);

/* Address spaces (memory.c). */
enum space_kind {
	SPACE_MEMORY = 1,
	SPACE_MANAGED,
	SPACE_IMPORT,
	SPACE_CHUNK, /* mapped VMM memory */
	SPACE_HOST,
	SPACE_REGISTERED,
};

enum { MAY_READ = 1, MAY_WRITE = 2 };

struct space {
	enum space_kind kind;
	cuda_ptr base;
	size_t size;
	char *host; /* where the CPU may reach it */
	int device; /* whose context made it */
	int owner;  /* physical GPU that has it */
	uint64_t buffer_id;
	int fd; /* of memory that can be exported; -1 */
	struct chunk *chunk;
	unsigned char access[DEVICES_MAX]; /* of chunks; others: all or nothing */
	bool read_only;			   /* registered so */
	/* of an import: how often it was opened, and what it is */
	unsigned opens;
	pid_t exporter;
	uint64_t exported_base;
	ino_t inode;
};

/* Notes it; takes what it has. The range must be nobody's. */
unsigned space_add(const struct space *space);
/* A copy of the space that holds the address; false: none does. */
bool space_find(cuda_ptr address, struct space *ret_space);
/* Takes out the one that begins there, for its new owner; false: none of that kind does. */
bool space_take(cuda_ptr base, enum space_kind kind, struct space *ret_space);
/* Calls f for each under the lock until it returns true; so does this then. */
bool spaces_each(bool (*f)(struct space *, void *), void *data);
uint64_t space_new_id(void);
/* Addresses that nothing may touch. 0: none are left. */
cuda_ptr space_reserve(size_t size, size_t align);
/* Undoes `host`, addresses and descriptor. */
void space_drop(struct space *space);
unsigned space_fits(int device, size_t size);

/*
 * For work on a stream, between these two: where the CPU finds [address, + *len_bytes) for a GPU
 * that may do so much there; *len_bytes is cut at the end of its space. NULL: an illegal address.
 */
void spaces_hold(void);
void spaces_release(void);
char *space_reach(int device, cuda_ptr address, size_t *len_bytes, unsigned access);

/* In which ways the chunk may be shared (chunks.c). */
int chunk_types(const struct chunk *chunk);

/* Kernels (kernels.c). `launch` is what kernel_launch() has made, on the stream by kernel_run(). */
unsigned kernel_run(int device, const void *launch);

#endif
