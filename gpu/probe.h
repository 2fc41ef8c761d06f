/*
 * What the driver says of this machine's GPUs, for a person who looks for what is wrong: nothing
 * here makes a context or allocates, so it may be asked beside any engine.
 */
#ifndef GPU_PROBE_H
#define GPU_PROBE_H

#include "gpu/gpu.h"

#define GPU_PROBE_DEVICES 16 /* of those that there are; a node has 8 */

struct gpu_probe_device {
	char name[64];
	uint8_t uuid[GPU_UUID_BYTES];
	bool mig;	/* a slice of a GPU, which has no IPC */
	bool posix_fds; /* chunks can be exported as descriptors (expandable segments) */
	uint32_t peers; /* bit i: device i's memory is within its reach */
};

struct gpu_probe {
	struct error driver; /* code 0: it was opened and initialised */
	int version;	     /* 13000 for 13.0 */
	int ndevices;
	int nprobed; /* of them in devices[] */
	struct gpu_probe_device devices[GPU_PROBE_DEVICES];
};

/* Loads the driver if it is there. What fails is in ret_probe->driver. */
void gpu_probe(struct gpu_probe *ret_probe);

#endif
