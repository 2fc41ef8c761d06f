/* The stand-in driver: copies, enqueued on a stream or done on return. */
#include "tests/standin/driver.h"
#include <string.h>

unsigned cuMemcpyAsync(cuda_ptr dst, cuda_ptr src, size_t len_bytes, struct cuda_stream *stream)
{
	ENTER_CTX(cuMemcpyAsync);
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

unsigned cuMemcpyHtoD_v2(cuda_ptr dst, const void *src, size_t len_bytes)
{
	ENTER_CTX(cuMemcpyHtoD);
	return copy_now(ctx, dst, (void *)(uintptr_t)src, len_bytes, true);
}

unsigned cuMemcpyDtoH_v2(void *dst, cuda_ptr src, size_t len_bytes)
{
	ENTER_CTX(cuMemcpyDtoH);
	stream_drain_legacy(ctx);
	return copy_now(ctx, src, dst, len_bytes, false);
}
