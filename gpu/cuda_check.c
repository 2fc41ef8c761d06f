/*
 * Compiled for its assertions alone: our declarations of the driver API agree with the
 * vendor's header, where one is installed.
 */
#if defined(__has_include)
#if __has_include(<cuda.h>)
#define HAVE_VENDOR_HEADER 1
#endif
#endif

#ifdef HAVE_VENDOR_HEADER
#include <cuda.h>

#include "gpu/cuda_driver.h"

#define SAME_SIZE(ours, theirs)                                                                    \
	_Static_assert(sizeof(ours) == sizeof(theirs), #theirs " has another size")
#define SAME_PLACE(ours, field, theirs, their_field)                                               \
	_Static_assert(offsetof(ours, field) == offsetof(theirs, their_field),                     \
		#theirs "." #their_field " is elsewhere")
#define SAME_VALUE(ours, theirs) _Static_assert((int)(ours) == (int)(theirs), #theirs " differs")

SAME_SIZE(struct cuda_uuid, CUuuid);
SAME_SIZE(struct cuda_ipc_handle, CUipcMemHandle);
SAME_SIZE(struct cuda_location, CUmemLocation);
SAME_SIZE(struct cuda_access, CUmemAccessDesc);
SAME_SIZE(struct cuda_alloc_prop, CUmemAllocationProp);
SAME_PLACE(struct cuda_location, id, CUmemLocation, id);
SAME_PLACE(struct cuda_access, flags, CUmemAccessDesc, flags);
SAME_PLACE(struct cuda_alloc_prop, handle_types, CUmemAllocationProp, requestedHandleTypes);
SAME_PLACE(struct cuda_alloc_prop, location, CUmemAllocationProp, location);
SAME_PLACE(struct cuda_alloc_prop, win32, CUmemAllocationProp, win32HandleMetaData);
SAME_PLACE(struct cuda_alloc_prop, flags, CUmemAllocationProp, allocFlags);

SAME_VALUE(CUDA_OK, CUDA_SUCCESS);
SAME_VALUE(CUDA_INVALID_VALUE, CUDA_ERROR_INVALID_VALUE);
SAME_VALUE(CUDA_OUT_OF_MEMORY, CUDA_ERROR_OUT_OF_MEMORY);
SAME_VALUE(CUDA_NO_DEVICE, CUDA_ERROR_NO_DEVICE);
SAME_VALUE(CUDA_INVALID_CONTEXT, CUDA_ERROR_INVALID_CONTEXT);
SAME_VALUE(CUDA_NOT_PERMITTED, CUDA_ERROR_NOT_PERMITTED);
SAME_VALUE(CUDA_ALREADY_MAPPED, CUDA_ERROR_ALREADY_MAPPED);
SAME_VALUE(CUDA_NOT_READY, CUDA_ERROR_NOT_READY);
SAME_VALUE(CUDA_HOST_ALREADY_REGISTERED, CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED);
SAME_VALUE(CUDA_NOT_SUPPORTED, CUDA_ERROR_NOT_SUPPORTED);
SAME_VALUE(CUDA_POINTER_MEMORY_TYPE, CU_POINTER_ATTRIBUTE_MEMORY_TYPE);
SAME_VALUE(CUDA_POINTER_BUFFER_ID, CU_POINTER_ATTRIBUTE_BUFFER_ID);
SAME_VALUE(CUDA_POINTER_IS_MANAGED, CU_POINTER_ATTRIBUTE_IS_MANAGED);
SAME_VALUE(CUDA_POINTER_ORDINAL, CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL);
SAME_VALUE(CUDA_POINTER_LEGACY_IPC, CU_POINTER_ATTRIBUTE_IS_LEGACY_CUDA_IPC_CAPABLE);
SAME_VALUE(CUDA_POINTER_HANDLE_TYPES, CU_POINTER_ATTRIBUTE_ALLOWED_HANDLE_TYPES);
#if CUDA_VERSION >= 12000
SAME_VALUE(CUDA_POINTER_MAPPING_SIZE, CU_POINTER_ATTRIBUTE_MAPPING_SIZE);
SAME_VALUE(CUDA_POINTER_MAPPING_BASE, CU_POINTER_ATTRIBUTE_MAPPING_BASE_ADDR);
SAME_VALUE(CUDA_POINTER_BLOCK_ID, CU_POINTER_ATTRIBUTE_MEMORY_BLOCK_ID);
#endif
SAME_VALUE(CUDA_MEMORY_HOST, CU_MEMORYTYPE_HOST);
SAME_VALUE(CUDA_MEMORY_DEVICE, CU_MEMORYTYPE_DEVICE);
SAME_VALUE(
	CUDA_ATTRIBUTE_READ_ONLY_REGISTER, CU_DEVICE_ATTRIBUTE_READ_ONLY_HOST_REGISTER_SUPPORTED);
SAME_VALUE(CUDA_SCHED_BLOCKING_SYNC, CU_CTX_SCHED_BLOCKING_SYNC);
SAME_VALUE(CUDA_STREAM_NON_BLOCKING, CU_STREAM_NON_BLOCKING);
SAME_VALUE(CUDA_EVENT_DISABLE_TIMING, CU_EVENT_DISABLE_TIMING);
SAME_VALUE(CUDA_IPC_LAZY_PEER, CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS);
SAME_VALUE(CUDA_REGISTER_PORTABLE, CU_MEMHOSTREGISTER_PORTABLE);
SAME_VALUE(CUDA_REGISTER_DEVICEMAP, CU_MEMHOSTREGISTER_DEVICEMAP);
SAME_VALUE(CUDA_REGISTER_READ_ONLY, CU_MEMHOSTREGISTER_READ_ONLY);
SAME_VALUE(CUDA_HANDLE_POSIX_FD, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR);
SAME_VALUE(CUDA_ALLOCATION_PINNED, CU_MEM_ALLOCATION_TYPE_PINNED);
SAME_VALUE(CUDA_LOCATION_DEVICE, CU_MEM_LOCATION_TYPE_DEVICE);
SAME_VALUE(CUDA_ACCESS_READ, CU_MEM_ACCESS_FLAGS_PROT_READ);
SAME_VALUE(CUDA_ACCESS_READ_WRITE, CU_MEM_ACCESS_FLAGS_PROT_READWRITE);
SAME_VALUE(CUDA_GRANULARITY_MINIMUM, CU_MEM_ALLOC_GRANULARITY_MINIMUM);

/* From here on the table's parameter lists speak of the vendor's structs. */
#define cuda_ctx CUctx_st
#define cuda_stream CUstream_st
#define cuda_event CUevent_st
#define cuda_module CUmod_st
#define cuda_function CUfunc_st
#define cuda_uuid CUuuid_st
#define cuda_ipc_handle CUipcMemHandle_st
#define cuda_access CUmemAccessDesc_st
#define cuda_alloc_prop CUmemAllocationProp_st
#define SAME_SIGNATURE(name, symbol, parameters)                                                   \
	_Static_assert(_Generic(&symbol, unsigned(*) parameters : 1, default : 0),                 \
		#symbol " has another signature");
CUDA_CALLS(SAME_SIGNATURE)
#else
extern int cuda_check_nothing;
#endif
