/* Driver calls that only the checks make, and the stand-in has, beside those of gpu/cuda_driver.h.
 */
#ifndef TESTS_GPU_EXTRA_CALLS_H
#define TESTS_GPU_EXTRA_CALLS_H

#include "gpu/cuda_driver.h"

#define EXTRA_CALLS(X)                                                                             \
	X(cuMemcpyDtoH, cuMemcpyDtoH_v2, (void *, cuda_ptr, size_t))                               \
	X(cuMemcpyDtoDAsync, cuMemcpyDtoDAsync_v2,                                                 \
		(cuda_ptr, cuda_ptr, size_t, struct cuda_stream *))                                \
	X(cuMemCreate, cuMemCreate,                                                                \
		(unsigned long long *, size_t, const struct cuda_alloc_prop *,                     \
			unsigned long long))                                                       \
	X(cuMemAllocManaged, cuMemAllocManaged, (cuda_ptr *, size_t, unsigned))                    \
	X(cuMemsetD8Async, cuMemsetD8Async,                                                        \
		(cuda_ptr, unsigned char, size_t, struct cuda_stream *))                           \
	X(cuCtxSynchronize, cuCtxSynchronize, (void))                                              \
	X(cuEventElapsedTime, cuEventElapsedTime,                                                  \
		(float *, struct cuda_event *, struct cuda_event *))

#endif
