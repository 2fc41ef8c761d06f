/*
 * A stand-in for cuBLAS over the stand-in driver (standin.h): the load of strew-bench idle without
 * a GPU. Test code, never shipped. A step computes nothing: it takes its time on its stream, and is
 * counted for the GPU that it has run on.
 */
#include "tests/standin/standin.h"
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define STEP_US 50

enum { ALLOC_FAILED = 3, EXECUTION_FAILED = 13 };

struct handle {
	void *stream;
	unsigned (*stream_call)(void *stream, standin_call *call, void *data);
};

STANDIN_EXPORT int cublasCreate_v2(void **ret_handle);
STANDIN_EXPORT int cublasDestroy_v2(void *handle);
STANDIN_EXPORT int cublasSetStream_v2(void *handle, void *stream);
STANDIN_EXPORT int cublasGemmEx(void *handle);
STANDIN_EXPORT int cublasSaxpy_v2(void *handle);

int cublasCreate_v2(void **ret_handle)
{
	struct handle *handle = calloc(1, sizeof(*handle));
	void *library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_NOLOAD);
	void *call = library ? dlsym(library, "standin_stream_call") : NULL;

	if (library) {
		dlclose(library);
	}
	if (!handle || !call) {
		free(handle);
		return ALLOC_FAILED;
	}
	memcpy(&handle->stream_call, &call, sizeof(call));
	*ret_handle = handle;
	return 0;
}

int cublasDestroy_v2(void *handle)
{
	free(handle);
	return 0;
}

int cublasSetStream_v2(void *handle, void *stream)
{
	((struct handle *)handle)->stream = stream;
	return 0;
}

static unsigned step(int device, void *data)
{
	char name[56];

	(void)data;
	snprintf(name, sizeof(name), "steps.%d", device);
	atomic_fetch_add(&standin_cell(name)->value, 1);
	standin_nap(STEP_US);
	return 0;
}

static int enqueue(const struct handle *handle)
{
	return handle->stream_call(handle->stream, step, NULL) ? EXECUTION_FAILED : 0;
}

/* Of what they are called with only the handle is looked at. */
int cublasGemmEx(void *handle)
{
	return enqueue(handle);
}

int cublasSaxpy_v2(void *handle)
{
	return enqueue(handle);
}
