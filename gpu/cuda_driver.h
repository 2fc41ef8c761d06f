/*
 * The driver API's entry points in use, declared by us so that building needs no
 * CUDA toolkit; cuda_check.c compares them with the vendor's header where there is one.
 * libcuda.so.1 is opened at run time and never closed. Thread-safe once loaded.
 */
#ifndef GPU_CUDA_DRIVER_H
#define GPU_CUDA_DRIVER_H

#include "base/error.h"
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef unsigned long long cuda_ptr; /* CUdeviceptr */
struct cuda_ctx;
struct cuda_stream;
struct cuda_event;
struct cuda_module;
struct cuda_function;

struct cuda_uuid {
	char bytes[16];
};

struct cuda_ipc_handle {
	char reserved[64];
};

struct cuda_location {
	unsigned type;
	int id;
};

struct cuda_access {
	struct cuda_location location;
	unsigned flags;
};

struct cuda_alloc_prop {
	unsigned type;
	unsigned handle_types;
	struct cuda_location location;
	void *win32;
	unsigned char flags[8];
};

enum cuda_result {
	CUDA_OK = 0,
	CUDA_INVALID_VALUE = 1,
	CUDA_OUT_OF_MEMORY = 2,
	CUDA_NO_DEVICE = 100,
	CUDA_INVALID_CONTEXT = 201,
	CUDA_ALREADY_MAPPED = 208,
	CUDA_ECC_UNCORRECTABLE = 214,
	CUDA_NVLINK_UNCORRECTABLE = 220,
	CUDA_CONTAINED = 226,
	CUDA_NOT_READY = 600,
	CUDA_ILLEGAL_ADDRESS = 700,
	CUDA_LAUNCH_TIMEOUT = 702,
	CUDA_CONTEXT_IS_DESTROYED = 709,
	CUDA_ASSERT = 710,
	CUDA_HOST_ALREADY_REGISTERED = 712,
	CUDA_HARDWARE_STACK_ERROR = 714,
	CUDA_ILLEGAL_INSTRUCTION = 715,
	CUDA_MISALIGNED_ADDRESS = 716,
	CUDA_INVALID_ADDRESS_SPACE = 717,
	CUDA_INVALID_PC = 718,
	CUDA_LAUNCH_FAILED = 719,
	CUDA_NOT_PERMITTED = 800,
	CUDA_NOT_SUPPORTED = 801,
	CUDA_EXTERNAL_DEVICE = 911,
};

enum cuda_pointer_attribute {
	CUDA_POINTER_MEMORY_TYPE = 2,
	CUDA_POINTER_BUFFER_ID = 7,
	CUDA_POINTER_IS_MANAGED = 8,
	CUDA_POINTER_ORDINAL = 9,
	CUDA_POINTER_LEGACY_IPC = 10,
	CUDA_POINTER_HANDLE_TYPES = 14,
	CUDA_POINTER_MAPPING_SIZE = 18,
	CUDA_POINTER_MAPPING_BASE = 19,
	CUDA_POINTER_BLOCK_ID = 20,
};

enum {
	CUDA_MEMORY_HOST = 1,
	CUDA_MEMORY_DEVICE = 2,
	CUDA_ATTRIBUTE_MULTIPROCESSORS = 16,
	CUDA_ATTRIBUTE_POSIX_FDS = 103,
	CUDA_ATTRIBUTE_READ_ONLY_REGISTER = 113,
	CUDA_SCHED_BLOCKING_SYNC = 4,
	CUDA_STREAM_NON_BLOCKING = 1,
	CUDA_EVENT_DISABLE_TIMING = 2,
	CUDA_IPC_LAZY_PEER = 1,
	CUDA_REGISTER_PORTABLE = 1,
	CUDA_REGISTER_DEVICEMAP = 2,
	CUDA_REGISTER_READ_ONLY = 8,
	CUDA_HANDLE_POSIX_FD = 1,
	CUDA_ALLOCATION_PINNED = 1,
	CUDA_LOCATION_DEVICE = 1,
	CUDA_ACCESS_READ = 1,
	CUDA_ACCESS_READ_WRITE = 3,
	CUDA_GRANULARITY_MINIMUM = 0,
};

/*
 * X(name, symbol, parameters): the name people know, and the versioned symbol that the
 * vendor's header maps it to. Enumerations are passed as unsigned.
 */
#define CUDA_CALLS(X)                                                                              \
	X(cuInit, cuInit, (unsigned))                                                              \
	X(cuDriverGetVersion, cuDriverGetVersion, (int *))                                         \
	X(cuGetErrorName, cuGetErrorName, (unsigned, const char **))                               \
	X(cuGetErrorString, cuGetErrorString, (unsigned, const char **))                           \
	X(cuDeviceGetCount, cuDeviceGetCount, (int *))                                             \
	X(cuDeviceGet, cuDeviceGet, (int *, int))                                                  \
	X(cuDeviceGetName, cuDeviceGetName, (char *, int, int))                                    \
	X(cuDeviceGetUuid, cuDeviceGetUuid_v2, (struct cuda_uuid *, int))                          \
	X(cuDeviceGetAttribute, cuDeviceGetAttribute, (int *, unsigned, int))                      \
	X(cuDeviceCanAccessPeer, cuDeviceCanAccessPeer, (int *, int, int))                         \
	X(cuDevicePrimaryCtxSetFlags, cuDevicePrimaryCtxSetFlags_v2, (int, unsigned))              \
	X(cuDevicePrimaryCtxRetain, cuDevicePrimaryCtxRetain, (struct cuda_ctx **, int))           \
	X(cuDevicePrimaryCtxRelease, cuDevicePrimaryCtxRelease_v2, (int))                          \
	X(cuCtxSetCurrent, cuCtxSetCurrent, (struct cuda_ctx *))                                   \
	X(cuCtxPushCurrent, cuCtxPushCurrent_v2, (struct cuda_ctx *))                              \
	X(cuCtxPopCurrent, cuCtxPopCurrent_v2, (struct cuda_ctx **))                               \
	X(cuCtxEnablePeerAccess, cuCtxEnablePeerAccess, (struct cuda_ctx *, unsigned))             \
	X(cuMemGetInfo, cuMemGetInfo_v2, (size_t *, size_t *))                                     \
	X(cuMemAlloc, cuMemAlloc_v2, (cuda_ptr *, size_t))                                         \
	X(cuMemFree, cuMemFree_v2, (cuda_ptr))                                                     \
	X(cuMemGetAddressRange, cuMemGetAddressRange_v2, (cuda_ptr *, size_t *, cuda_ptr))         \
	X(cuPointerGetAttribute, cuPointerGetAttribute, (void *, unsigned, cuda_ptr))              \
	X(cuIpcGetMemHandle, cuIpcGetMemHandle, (struct cuda_ipc_handle *, cuda_ptr))              \
	X(cuIpcOpenMemHandle, cuIpcOpenMemHandle_v2,                                               \
		(cuda_ptr *, struct cuda_ipc_handle, unsigned))                                    \
	X(cuIpcCloseMemHandle, cuIpcCloseMemHandle, (cuda_ptr))                                    \
	X(cuMemHostAlloc, cuMemHostAlloc, (void **, size_t, unsigned))                             \
	X(cuMemFreeHost, cuMemFreeHost, (void *))                                                  \
	X(cuMemHostRegister, cuMemHostRegister_v2, (void *, size_t, unsigned))                     \
	X(cuMemHostUnregister, cuMemHostUnregister, (void *))                                      \
	X(cuMemHostGetDevicePointer, cuMemHostGetDevicePointer_v2, (cuda_ptr *, void *, unsigned)) \
	X(cuMemAddressReserve, cuMemAddressReserve,                                                \
		(cuda_ptr *, size_t, size_t, cuda_ptr, unsigned long long))                        \
	X(cuMemAddressFree, cuMemAddressFree, (cuda_ptr, size_t))                                  \
	X(cuMemMap, cuMemMap, (cuda_ptr, size_t, size_t, unsigned long long, unsigned long long))  \
	X(cuMemUnmap, cuMemUnmap, (cuda_ptr, size_t))                                              \
	X(cuMemSetAccess, cuMemSetAccess, (cuda_ptr, size_t, const struct cuda_access *, size_t))  \
	X(cuMemRelease, cuMemRelease, (unsigned long long))                                        \
	X(cuMemRetainAllocationHandle, cuMemRetainAllocationHandle,                                \
		(unsigned long long *, void *))                                                    \
	X(cuMemExportToShareableHandle, cuMemExportToShareableHandle,                              \
		(void *, unsigned long long, unsigned, unsigned long long))                        \
	X(cuMemImportFromShareableHandle, cuMemImportFromShareableHandle,                          \
		(unsigned long long *, void *, unsigned))                                          \
	X(cuMemGetAllocationGranularity, cuMemGetAllocationGranularity,                            \
		(size_t *, const struct cuda_alloc_prop *, unsigned))                              \
	X(cuMemcpyAsync, cuMemcpyAsync, (cuda_ptr, cuda_ptr, size_t, struct cuda_stream *))        \
	X(cuMemcpyHtoD, cuMemcpyHtoD_v2, (cuda_ptr, const void *, size_t))                         \
	X(cuStreamCreateWithPriority, cuStreamCreateWithPriority,                                  \
		(struct cuda_stream **, unsigned, int))                                            \
	X(cuStreamQuery, cuStreamQuery, (struct cuda_stream *))                                    \
	X(cuStreamDestroy, cuStreamDestroy_v2, (struct cuda_stream *))                             \
	X(cuStreamSynchronize, cuStreamSynchronize, (struct cuda_stream *))                        \
	X(cuStreamWaitEvent, cuStreamWaitEvent,                                                    \
		(struct cuda_stream *, struct cuda_event *, unsigned))                             \
	X(cuStreamWriteValue64, cuStreamWriteValue64_v2,                                           \
		(struct cuda_stream *, cuda_ptr, uint64_t, unsigned))                              \
	X(cuEventCreate, cuEventCreate, (struct cuda_event **, unsigned))                          \
	X(cuEventDestroy, cuEventDestroy_v2, (struct cuda_event *))                                \
	X(cuEventRecord, cuEventRecord, (struct cuda_event *, struct cuda_stream *))               \
	X(cuEventQuery, cuEventQuery, (struct cuda_event *))                                       \
	X(cuModuleLoadData, cuModuleLoadData, (struct cuda_module **, const void *))               \
	X(cuModuleUnload, cuModuleUnload, (struct cuda_module *))                                  \
	X(cuModuleGetFunction, cuModuleGetFunction,                                                \
		(struct cuda_function **, struct cuda_module *, const char *))                     \
	X(cuLaunchKernel, cuLaunchKernel,                                                          \
		(struct cuda_function *, unsigned, unsigned, unsigned, unsigned, unsigned,         \
			unsigned, unsigned, struct cuda_stream *, void **, void **))

struct cuda_driver {
#define CUDA_FIELD(name, symbol, parameters) unsigned(*name) parameters;
	CUDA_CALLS(CUDA_FIELD)
#undef CUDA_FIELD
};

/*
 * Opens libcuda.so.1 and resolves the table, once a process. With `only_if_loaded` the
 * library is taken only where somebody else has it open: a pointer cannot be the
 * driver's in a process without the driver. Does not call cuInit(). -ENODEV names
 * what is missing. The table lives as long as the process.
 */
int cuda_driver_load(bool only_if_loaded, struct error *err);

/* The table. Only valid after a cuda_driver_load() that returned 0. */
extern struct cuda_driver cuda_driver;

/* Turns a result into 0, or an errno value and the sentence "call: NAME (text)". */
int cuda_outcome(struct error *err, const char *call, unsigned result);

/* Every driver call whose failure is an error goes through this: CUDA(err, cuMemFree, ptr). */
#define CUDA(err, call, ...) cuda_outcome((err), #call, cuda_driver.call(__VA_ARGS__))

#endif
