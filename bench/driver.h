/* Driver calls that only the bench makes: plain copies, timing, memory of its own. */
#ifndef BENCH_DRIVER_H
#define BENCH_DRIVER_H

#include "gpu/cuda_driver.h"

/* CUDA_MEMCPY2D: rows of bytes at a pitch on either side. */
struct bench_rows_end {
	size_t x_bytes, y;
	unsigned memory_type;
	void *host;
	cuda_ptr device;
	void *array;
	size_t pitch_bytes;
};
struct bench_rows {
	struct bench_rows_end src, dst;
	size_t width_bytes, height;
};
#define BENCH_MEMORY_UNIFIED 4 /* addresses say where they are */

/* CUmemcpyAttributes: of copies of a batch. */
struct bench_batch_attributes {
	unsigned source_order;
	struct cuda_location source, target; /* hints */
	unsigned flags;
};
#define BENCH_SOURCE_IN_STREAM_ORDER 1

#define BENCH_CALLS(X)                                                                             \
	X(cuMemcpy2DAsync, cuMemcpy2DAsync_v2, (const struct bench_rows *, struct cuda_stream *))  \
	X(cuMemcpyDtoH, cuMemcpyDtoH_v2, (void *, cuda_ptr, size_t))                               \
	X(cuMemsetD8Async, cuMemsetD8Async,                                                        \
		(cuda_ptr, unsigned char, size_t, struct cuda_stream *))                           \
	X(cuCtxSynchronize, cuCtxSynchronize, (void))                                              \
	X(cuEventElapsedTime, cuEventElapsedTime,                                                  \
		(float *, struct cuda_event *, struct cuda_event *))

struct bench_driver {
#define BENCH_FIELD(name, symbol, parameters) unsigned(*name) parameters;
	BENCH_CALLS(BENCH_FIELD)
#undef BENCH_FIELD
};
extern struct bench_driver bench_driver;

/*
 * cuMemcpyBatchAsync: since CUDA 12.8, without fail_index since 13.0 (_v2), where only that may be
 * there. NULL: the driver has none of that kind. Sizes and addresses are read before it returns.
 */
struct bench_batch {
	unsigned (*now)(const cuda_ptr *dsts, const cuda_ptr *srcs, const size_t *sizes, size_t n,
		const struct bench_batch_attributes *attributes, const size_t *first, size_t nfirst,
		struct cuda_stream *stream);
	unsigned (*before_13)(const cuda_ptr *dsts, const cuda_ptr *srcs, const size_t *sizes,
		size_t n, const struct bench_batch_attributes *attributes, const size_t *first,
		size_t nfirst, size_t *ret_failed, struct cuda_stream *stream);
};
extern struct bench_batch bench_batch;
bool bench_batch_there(void);
/* n copies in no order among themselves, by one call. */
int bench_batch_copy(const cuda_ptr *dsts, const cuda_ptr *srcs, const size_t *sizes, size_t n,
	struct cuda_stream *stream, struct error *err);

/* Fills the table; the driver is there (gpu_open() has taken cuda). */
int bench_driver_load(struct error *err);

/* As CUDA() of gpu/cuda_driver.h. */
#define BENCH_CUDA(err, call, ...) cuda_outcome((err), #call, bench_driver.call(__VA_ARGS__))

#endif
