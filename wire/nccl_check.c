/*
 * Compiled for its assertions alone: our declarations of NCCL agree with the vendor's header, where
 * one is installed. Layouts are compared with 2.28, which they were taken from.
 */
#if defined(__has_include)
#if __has_include(<nccl.h>) && __has_include(<cuda_runtime.h>)
#define HAVE_VENDOR_HEADER 1
#endif
#endif

#ifdef HAVE_VENDOR_HEADER
/* Where the header is not in a system folder, its own faults are not ours. */
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wundef"
#pragma GCC diagnostic ignored "-Wstrict-prototypes"
#include <nccl.h>
#pragma GCC diagnostic pop

#include "wire/nccl_table.h"

#define SAME_VALUE(ours, theirs) _Static_assert((int)(ours) == (int)(theirs), #theirs " differs")
#define SAME_PLACE(field, their_field)                                                             \
	_Static_assert(                                                                            \
		offsetof(struct nccl_config, field) == offsetof(ncclConfig_t, their_field) &&      \
			sizeof(((struct nccl_config *)0)->field) ==                                \
				sizeof(((ncclConfig_t *)0)->their_field),                          \
		"ncclConfig_t." #their_field " is elsewhere")

_Static_assert(sizeof(nccl_id) == sizeof(ncclUniqueId), "ncclUniqueId has another size");
SAME_VALUE(NCCL_SUCCESS, ncclSuccess);
SAME_VALUE(NCCL_REMOTE_ERROR, ncclRemoteError);
SAME_VALUE(NCCL_IN_PROGRESS, ncclInProgress);
SAME_VALUE(NCCL_UINT8, ncclUint8);
SAME_VALUE(NCCL_UNDEFINED, NCCL_CONFIG_UNDEF_INT);
SAME_PLACE(size, size);
SAME_PLACE(magic, magic);
SAME_PLACE(version, version);
SAME_PLACE(blocking, blocking);
SAME_PLACE(max_ctas, maxCTAs);
#if NCCL_VERSION_CODE >= NCCL_VERSION(2, 28, 0) && NCCL_VERSION_CODE < NCCL_VERSION(2, 29, 0)
SAME_VALUE(sizeof(struct nccl_config), sizeof(ncclConfig_t));
SAME_PLACE(cga_cluster_size, cgaClusterSize);
SAME_PLACE(min_ctas, minCTAs);
SAME_PLACE(net_name, netName);
SAME_PLACE(split_share, splitShare);
SAME_PLACE(traffic_class, trafficClass);
SAME_PLACE(comm_name, commName);
SAME_PLACE(collnet_enable, collnetEnable);
SAME_PLACE(cta_policy, CTAPolicy);
SAME_PLACE(shrink_share, shrinkShare);
SAME_PLACE(nvls_ctas, nvlsCTAs);
SAME_PLACE(channels_per_net_peer, nChannelsPerNetPeer);
SAME_PLACE(nvlink_centric, nvlinkCentricSched);
#endif

/* From here on the table's parameter lists speak of the vendor's types. */
#define nccl_id ncclUniqueId
#define nccl_comm ncclComm
#define nccl_stream CUstream_st
#if NCCL_VERSION_CODE >= NCCL_VERSION(2, 28, 0) && NCCL_VERSION_CODE < NCCL_VERSION(2, 29, 0)
#define nccl_config ncclConfig_v22800
#define SAME_SIGNATURE(name, parameters)                                                           \
	_Static_assert(_Generic(&name, unsigned(*) parameters : 1, default : 0),                   \
		#name " has another signature");
NCCL_CALLS(SAME_SIGNATURE)
_Static_assert(_Generic(&ncclGetErrorString, const char *(*)(unsigned) : 1, default : 0),
	"ncclGetErrorString has another signature");
_Static_assert(_Generic(&ncclGetLastError, const char *(*)(struct ncclComm *) : 1, default : 0),
	"ncclGetLastError has another signature");
#endif
#else
extern int nccl_check_nothing;
#endif
