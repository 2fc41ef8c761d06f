/*
 * What the cuda backend's files share. A cuda_device is a GPU in which this process has
 * retained the primary context; objects keep a borrowed pointer to theirs. Every operation
 * makes the device's context current in the calling thread and leaves it so: the caller is
 * the mover, whose thread belongs to the broker.
 */
#ifndef GPU_CUDA_BACKEND_H
#define GPU_CUDA_BACKEND_H

#include "gpu/backend.h"
#include "gpu/cuda_driver.h"

struct cuda_memory;

struct cuda_device {
	struct gpu_device head;
	struct cuda_gpu *gpu;
	int ordinal; /* the driver's device number */
	struct cuda_ctx *ctx;
	bool read_only_register;
	struct cuda_module *module; /* loaded at the first copies */
	struct cuda_function *scatter, *scatter_few;
	struct cuda_function *scatter_cast; /* NULL until a plan has casts */
	struct cuda_function *hash;	    /* NULL until something is hashed */
	int multiprocessors;
	struct cuda_memory *imports;
};

struct cuda_gpu {
	struct gpu head;
	uint8_t (*uuids)[GPU_UUID_BYTES]; /* by ordinal */
	bool *reaches;			  /* [from * ndevices + to]: the driver's word */
	struct cuda_device **devices;	  /* by ordinal; NULL until gpu_device() */
};

int cuda_enter(struct cuda_device *device, struct error *err);
/* Pageable memory to the GPU whose context is current; it is there on return. */
int cuda_upload(cuda_ptr dst, const void *src, size_t len_bytes, struct error *err);
/* The driver's number of the GPU, or -1. */
int cuda_ordinal(const struct cuda_gpu *gpu, const uint8_t uuid[GPU_UUID_BYTES]);
/* See gpu_reaches(). */
bool cuda_reaches(const struct gpu *gpu, const uint8_t *from, const uint8_t *to);
/* An attribute of an address; false if the driver does not know it. */
bool cuda_attribute(cuda_ptr address, enum cuda_pointer_attribute attribute, uint64_t *ret_value);

int cuda_import(struct gpu_device *device, const struct handle *handle, bool write,
	struct gpu_memory **ret_memory, struct error *err);
/* Where an imported address lies, as its exporter said; NULL: not imported for this device. */
const uint8_t *cuda_import_uuid(const struct cuda_device *device, cuda_ptr address);
int cuda_alloc(struct gpu_device *device, uint64_t len_bytes, struct gpu_memory **ret_memory,
	struct error *err);
int cuda_alloc_pinned(struct gpu_device *device, uint64_t len_bytes, struct gpu_memory **ret_memory,
	struct error *err);
void cuda_memory_release(struct gpu_memory *memory);

/* Neighbouring chunks under one range of addresses (cuda_vmm.c). */
int cuda_vmm_map(struct cuda_device *device, const struct handle *handle, bool write,
	cuda_ptr *ret_address, struct error *err);
void cuda_vmm_unmap(cuda_ptr address, uint64_t len_bytes);

/* Loads the module and finds the kernels of plain copies, unless that was done. */
int cuda_load_kernels(struct cuda_device *device, struct error *err);
int cuda_copies_create(struct gpu_device *device, const struct copies *copies,
	const uint64_t *bases, size_t nbases, struct gpu_copies **ret_copies, struct error *err);
void cuda_copies_destroy(struct gpu_copies *copies);
void cuda_copies_share(struct gpu_copies *copies, enum gpu_share share);
int cuda_copies_run(struct gpu_copies *copies, size_t range, uint64_t slot_address,
	struct gpu_stream *stream, struct error *err);
int cuda_hashes_create(struct gpu_device *device, const struct gpu_span *spans, const size_t *first,
	size_t nranges, size_t nsums, struct gpu_hashes **ret_hashes, struct error *err);
void cuda_hashes_destroy(struct gpu_hashes *hashes);
int cuda_hashes_clear(struct gpu_hashes *hashes, struct gpu_stream *stream, struct error *err);
int cuda_hashes_run(struct gpu_hashes *hashes, size_t range, uint64_t slot_address,
	struct gpu_stream *stream, struct error *err);
int cuda_hashes_fetch(struct gpu_hashes *hashes, struct gpu_stream *stream, struct error *err);
int cuda_copy(struct gpu_device *device, uint64_t dst, uint64_t src, uint64_t len_bytes,
	struct gpu_stream *stream, struct error *err);

/* The kernel, as the build embedded it (scatter_image.c). */
extern const unsigned char scatter_ptx[];    /* text with its NUL, for all since 8.0 */
extern const unsigned char scatter_90_ptx[]; /* … for compute capability 9.0 and later */
extern const unsigned char scatter_fatbin[]; /* machine code, where nvcc was found */
extern const uint64_t scatter_fatbin_bytes;  /* 0: not there */

#endif
