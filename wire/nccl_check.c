/* Where nccl.h is found, the compiler compares it with what we declare ourselves. */
#include "wire/nccl_table.h"

#if defined(__has_include)
#if __has_include(<nccl.h>) && __has_include(<cuda_runtime.h>)
#include <nccl.h>

_Static_assert(sizeof(ncclUniqueId) == sizeof(struct nccl_id), "unique id");
_Static_assert((int)ncclSuccess == NCCL_SUCCESS, "success");
_Static_assert((int)ncclInProgress == NCCL_IN_PROGRESS, "in progress");
_Static_assert((int)ncclUint8 == NCCL_UINT8, "uint8");
_Static_assert(
	offsetof(ncclConfig_t, blocking) == offsetof(struct nccl_config, blocking), "config");
_Static_assert(offsetof(ncclConfig_t, maxCTAs) == offsetof(struct nccl_config, max_ctas), "config");
_Static_assert(offsetof(ncclConfig_t, netName) == offsetof(struct nccl_config, net_name), "config");
_Static_assert(
	offsetof(ncclConfig_t, splitShare) == offsetof(struct nccl_config, split_share), "config");
_Static_assert(offsetof(ncclConfig_t, trafficClass) == offsetof(struct nccl_config, traffic_class),
	"config");
_Static_assert(NCCL_CONFIG_UNDEF_INT == NCCL_UNDEFINED, "undefined");
#endif
#endif
