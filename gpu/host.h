/* What the host backend's files share: its device, and the executors of host_copies.c and
 * host_hash.c. */
#ifndef GPU_HOST_H
#define GPU_HOST_H

#include "gpu/backend.h"

int host_copies_create(struct gpu_device *device, const struct copies *copies,
	const uint64_t *bases, size_t nbases, struct gpu_copies **ret_copies, struct error *err);
void host_copies_destroy(struct gpu_copies *copies);
int host_copies_run(struct gpu_copies *copies, size_t range, uint64_t slot_address,
	struct gpu_stream *stream, struct error *err);

int host_hashes_create(struct gpu_device *device, const struct gpu_span *spans, const size_t *first,
	size_t nranges, size_t nsums, struct gpu_hashes **ret_hashes, struct error *err);
void host_hashes_destroy(struct gpu_hashes *hashes);
int host_hashes_clear(struct gpu_hashes *hashes, struct gpu_stream *stream, struct error *err);
int host_hashes_run(struct gpu_hashes *hashes, size_t range, uint64_t slot_address,
	struct gpu_stream *stream, struct error *err);
int host_hashes_fetch(struct gpu_hashes *hashes, struct gpu_stream *stream, struct error *err);

#endif
