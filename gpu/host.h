/* What the host backend's files share: its device, and the executor of host_copies.c. */
#ifndef GPU_HOST_H
#define GPU_HOST_H

#include "gpu/backend.h"

int host_copies_create(struct gpu_device *device, const struct copies *copies,
	const uint64_t *bases, size_t nbases, struct gpu_copies **ret_copies, struct error *err);
void host_copies_destroy(struct gpu_copies *copies);
int host_copies_run(struct gpu_copies *copies, size_t range, uint64_t slot_address,
	struct gpu_stream *stream, struct error *err);

#endif
