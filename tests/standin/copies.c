/* The stand-in driver: copies, enqueued on a stream or done on return. */
#include "bench/driver.h"
#include "tests/standin/driver.h"
#include <stdlib.h>
#include <string.h>

static bool is_host(cuda_ptr address)
{
	struct space space;

	return space_find(address, &space) &&
	       (space.kind == SPACE_HOST || space.kind == SPACE_REGISTERED);
}

unsigned cuMemcpyAsync(cuda_ptr dst, cuda_ptr src, size_t len_bytes, struct cuda_stream *stream)
{
	static struct standin_cell *_Atomic host_copies;
	ENTER_CTX(cuMemcpyAsync);
	if (fault.kind == FAULT_NONE && (is_host(dst) || is_host(src))) {
		fault = standin_enter("host_copy", &host_copies);
	}
	return stream_copy(ctx, stream, &fault, dst, src, len_bytes);
}

unsigned cuMemcpyDtoDAsync_v2(
	cuda_ptr dst, cuda_ptr src, size_t len_bytes, struct cuda_stream *stream)
{
	ENTER_CTX(cuMemcpyDtoDAsync);
	return stream_copy(ctx, stream, &fault, dst, src, len_bytes);
}

unsigned standin_bytes(int device, uint64_t address, void *host, size_t len_bytes, bool to_device)
{
	unsigned result = CUDA_OK;

	spaces_hold();
	while (len_bytes && result == CUDA_OK) {
		size_t n = len_bytes;
		char *at = space_reach(device, address, &n, to_device ? MAY_WRITE : MAY_READ);

		if (!at) {
			result = CUDA_ILLEGAL_ADDRESS;
		} else {
			memcpy(to_device ? at : host, to_device ? host : at, n);
		}
		address += n;
		host = (char *)host + n;
		len_bytes -= n;
	}
	spaces_release();
	return result;
}

/* Done on return; what is wrong is found before anything runs. */
static unsigned copy_now(
	const struct cuda_ctx *ctx, cuda_ptr address, void *host, size_t len_bytes, bool to_device)
{
	return standin_bytes(ctx->device, address, host, len_bytes, to_device) ? CUDA_INVALID_VALUE
									       : CUDA_OK;
}

/* What cuMemcpyHtoD has taken out of pageable memory, and has not put into its place yet. */
struct staged {
	cuda_ptr dst;
	size_t len_bytes;
	unsigned char bytes[];
};

static unsigned land(int device, void *data)
{
	struct staged *staged = data;
	unsigned result = CUDA_OK;

	if (device >= 0) {
		result = standin_bytes(device, staged->dst, staged->bytes, staged->len_bytes, true);
	}
	free(staged);
	return result;
}

/* Done on return, unless the plan makes it slow: the real one may return before, if pageable. */
unsigned cuMemcpyHtoD_v2(cuda_ptr dst, const void *src, size_t len_bytes)
{
	struct staged *staged;

	ENTER_CTX(cuMemcpyHtoD);
	if (fault.kind == FAULT_SLOW && !is_host((uintptr_t)src)) {
		staged = malloc(sizeof(*staged) + len_bytes);
		if (!staged) {
			return CUDA_OUT_OF_MEMORY;
		}
		*staged = (struct staged){dst, len_bytes};
		memcpy(staged->bytes, src, len_bytes);
		return stream_call(ctx, NULL, &fault, land, staged);
	}
	return copy_now(ctx, dst, (void *)(uintptr_t)src, len_bytes, true);
}

unsigned cuMemcpyDtoH_v2(void *dst, cuda_ptr src, size_t len_bytes)
{
	ENTER_CTX(cuMemcpyDtoH);
	stream_drain_legacy(ctx);
	return copy_now(ctx, src, dst, len_bytes, false);
}

/* What the driver says of a batch: no stream 0, attributes for all, each from its first copy on. */
static bool batch_is_sound(const size_t *sizes, size_t n,
	const struct bench_batch_attributes *attributes, const size_t *first, size_t nfirst,
	const struct cuda_stream *stream)
{
	if (!n || !nfirst || nfirst > n || first[0] || (uintptr_t)stream <= 2) {
		return false;
	}
	for (size_t i = 0; i < nfirst; i++) {
		/* 1 to 3: in stream order, during the call, at any time. */
		if (!attributes[i].source_order || attributes[i].source_order > 3 ||
			(i && first[i] <= first[i - 1]) || first[i] >= n) {
			return false;
		}
	}
	for (size_t i = 0; i < n; i++) {
		if (!sizes[i]) {
			return false;
		}
	}
	return true;
}

/* A fault of the call is that of its first copy. */
unsigned cuMemcpyBatchAsync_v2(const cuda_ptr *dsts, const cuda_ptr *srcs, const size_t *sizes,
	size_t n, const struct bench_batch_attributes *attributes, const size_t *first,
	size_t nfirst, struct cuda_stream *stream)
{
	unsigned result = CUDA_OK;

	ENTER_CTX(cuMemcpyBatchAsync);
	if (!batch_is_sound(sizes, n, attributes, first, nfirst, stream)) {
		return CUDA_INVALID_VALUE;
	}
	for (size_t i = 0; i < n && result == CUDA_OK; i++) {
		result = stream_copy(ctx, stream, &fault, dsts[i], srcs[i], sizes[i]);
		fault = (struct fault){FAULT_NONE, 0, 0};
	}
	return result;
}

/* As it was before CUDA 13: it names the copy that is wrong, or SIZE_MAX. */
unsigned cuMemcpyBatchAsync(const cuda_ptr *dsts, const cuda_ptr *srcs, const size_t *sizes,
	size_t n, const struct bench_batch_attributes *attributes, const size_t *first,
	size_t nfirst, size_t *ret_failed, struct cuda_stream *stream)
{
	*ret_failed = SIZE_MAX;
	return cuMemcpyBatchAsync_v2(dsts, srcs, sizes, n, attributes, first, nfirst, stream);
}

/* Rows of one value or of another place's bytes. */
struct rows {
	cuda_ptr dst, src; /* src 0: `value` */
	size_t dst_pitch, src_pitch, width, height;
	unsigned char value;
};

static unsigned run_rows(int device, void *data)
{
	struct rows *rows = data;
	unsigned char *row = malloc(rows->width);
	unsigned result = row ? CUDA_OK : CUDA_OUT_OF_MEMORY;

	if (row) {
		memset(row, rows->value, rows->width);
	}
	for (size_t i = 0; i < rows->height && device >= 0 && result == CUDA_OK; i++) {
		if (rows->src) {
			result = standin_bytes(
				device, rows->src + i * rows->src_pitch, row, rows->width, false);
		}
		result = result ? result
				: standin_bytes(device, rows->dst + i * rows->dst_pitch, row,
					  rows->width, true);
	}
	free(row);
	free(rows);
	return result;
}

static unsigned enqueue_rows(struct cuda_ctx *ctx, struct cuda_stream *stream,
	const struct fault *fault, const struct rows *described)
{
	struct rows *rows = malloc(sizeof(*rows));
	unsigned result = CUDA_OUT_OF_MEMORY;

	if (rows) {
		*rows = *described;
		result = stream_call(ctx, stream, fault, run_rows, rows);
	}
	if (result) {
		free(rows);
	}
	return result;
}

unsigned cuMemcpy2DAsync_v2(const struct bench_rows *said, struct cuda_stream *stream)
{
	struct rows rows = {said->dst.device, said->src.device, said->dst.pitch_bytes,
		said->src.pitch_bytes, said->width_bytes, said->height, 0};

	ENTER_CTX(cuMemcpy2DAsync);
	if (said->dst.memory_type != BENCH_MEMORY_UNIFIED ||
		said->src.memory_type != BENCH_MEMORY_UNIFIED || said->src.x_bytes || said->src.y ||
		said->dst.x_bytes || said->dst.y || !rows.dst || !rows.src ||
		rows.width > rows.dst_pitch || rows.width > rows.src_pitch) {
		return CUDA_INVALID_VALUE;
	}
	return enqueue_rows(ctx, stream, &fault, &rows);
}

unsigned cuMemsetD8Async(
	cuda_ptr dst, unsigned char value, size_t len_bytes, struct cuda_stream *stream)
{
	struct rows rows = {.dst = dst, .width = len_bytes, .height = 1, .value = value};

	ENTER_CTX(cuMemsetD8Async);
	return enqueue_rows(ctx, stream, &fault, &rows);
}
