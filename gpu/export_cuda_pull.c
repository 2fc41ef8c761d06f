/* Twins on a GPU: memory with an IPC handle, for this process's memory that has none. */
#include "base/util.h"
#include "gpu/backend.h"
#include "gpu/export_set.h"
#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <time.h>

#define LOOK_NS 20000 /* between looks at a stream that is waited for */

int export_cuda_twin(const struct export_set *set, struct export_twin *twin, struct error *err)
{
	int rc = export_cuda_push(set, twin->ordinal, err);

	if (rc) {
		return rc;
	}
	rc = CUDA(err, cuMemAlloc, &twin->address, twin->size_bytes);
	if (rc) {
		error_prefix(err, "a twin of %" PRIu64 " bytes on GPU %d", twin->size_bytes,
			twin->ordinal);
	} else {
		rc = CUDA(err, cuStreamCreateWithPriority, &twin->stream, CUDA_STREAM_NON_BLOCKING,
			0);
	}
	export_cuda_pop();
	return rc;
}

void export_cuda_twin_free(const struct export_set *set, struct export_twin *twin)
{
	if (!twin->address || export_cuda_push(set, twin->ordinal, NULL)) {
		return;
	}
	if (twin->stream) {
		CUDA(NULL, cuStreamDestroy, twin->stream);
	}
	CUDA(NULL, cuMemFree, twin->address);
	twin->stream = NULL;
	twin->address = 0;
	export_cuda_pop();
}

int export_cuda_twin_handle(const struct export_set *set, const struct export_twin *twin,
	struct handle *handle, struct error *err)
{
	struct cuda_ipc_handle ipc;
	cuda_ptr base;
	size_t size;
	int rc = export_cuda_push(set, twin->ordinal, err);

	if (rc) {
		return rc;
	}
	rc = CUDA(err, cuMemGetAddressRange, &base, &size, twin->address);
	if (rc == 0) {
		rc = CUDA(err, cuIpcGetMemHandle, &ipc, twin->address);
	}
	if (rc == 0) {
		handle->size_bytes = size;
		memcpy(handle->ipc, ipc.reserved, GPU_IPC_BYTES);
		/* What is unknown stays 0: the broker then compares nothing. */
		(void)cuda_driver.cuPointerGetAttribute(
			&handle->buffer_id, CUDA_POINTER_BUFFER_ID, twin->address);
	}
	export_cuda_pop();
	return rc;
}

int export_cuda_range_verify(
	const struct export_set *set, const struct export_range *range, struct error *err)
{
	uint64_t id = 0;
	int rc = export_cuda_push(set, range->ordinal, err);

	if (rc) {
		return rc;
	}
	if (cuda_driver.cuPointerGetAttribute(&id, CUDA_POINTER_BUFFER_ID, range->base) !=
			CUDA_OK ||
		id != range->buffer_id) {
		rc = error_set(err, -ESTALE,
			"%" PRIu64 " bytes of GPU memory at 0x%" PRIx64
			" were freed or reallocated",
			range->len_bytes, range->base);
	}
	export_cuda_pop();
	return rc;
}

int export_cuda_carry(const struct export_set *set, const struct export_twin *twin, cuda_ptr dst,
	cuda_ptr src, uint64_t len_bytes, struct cuda_stream *stream, struct error *err)
{
	int rc = export_cuda_push(set, twin->ordinal, err);

	if (rc == 0) {
		rc = CUDA(err, cuMemcpyAsync, dst, src, len_bytes, stream);
		export_cuda_pop();
	}
	return rc;
}

int export_cuda_wait(const struct export_set *set, struct cuda_stream *stream, struct error *err)
{
	const struct timespec look = {.tv_nsec = LOOK_NS};
	unsigned result;
	int rc;

	if (set->ncontexts == 0) {
		return 0;
	}
	rc = export_cuda_push(set, set->contexts[0].ordinal, err);
	if (rc) {
		return rc;
	}
	while ((result = cuda_driver.cuStreamQuery(stream)) == CUDA_NOT_READY) {
		nanosleep(&look, NULL);
	}
	export_cuda_pop();
	return cuda_outcome(err, "cuStreamQuery", result);
}
