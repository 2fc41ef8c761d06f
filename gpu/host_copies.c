#include "base/util.h"
#include "gpu/cast.h"
#include "gpu/host.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

struct host_copies {
	struct gpu_copies head;
	struct copy *v;
	size_t *first;
	uint64_t *bases;
};

/* With all but the addresses and n known where it is called, a loop for each cast. */
__attribute__((always_inline)) static inline void cast_loop(
	char *dst, const char *src, size_t n, uint32_t from, uint32_t to)
{
	size_t from_bytes = from == CAST_F32 ? 4 : 2, to_bytes = to == CAST_F32 ? 4 : 2;

	for (size_t i = 0; i < n; i++) {
		uint32_t bits = 0;

		/* Nothing says that either side is aligned. The lower half comes first. */
		memcpy(&bits, src + i * from_bytes, from_bytes);
		bits = cast_narrow(cast_widen(bits, from), to);
		memcpy(dst + i * to_bytes, &bits, to_bytes);
	}
}

static void cast_run(const struct copy *copy, char *dst, const char *src)
{
	size_t n = copy->run_bytes / strew_dtype_size(copy->to);

	if (copy->from == STREW_F32 && copy->to == STREW_BF16) {
		cast_loop(dst, src, n, CAST_F32, CAST_BF16);
	} else if (copy->from == STREW_F32) {
		cast_loop(dst, src, n, CAST_F32, CAST_F16);
	} else if (copy->from == STREW_BF16 && copy->to == STREW_F32) {
		cast_loop(dst, src, n, CAST_BF16, CAST_F32);
	} else if (copy->from == STREW_BF16) {
		cast_loop(dst, src, n, CAST_BF16, CAST_F16);
	} else if (copy->to == STREW_F32) {
		cast_loop(dst, src, n, CAST_F16, CAST_F32);
	} else {
		cast_loop(dst, src, n, CAST_F16, CAST_BF16);
	}
}

static void copy_dims(const struct copy *copy, unsigned dim, char *dst, const char *src)
{
	if (dim == copy->ndim && copy->from) {
		cast_run(copy, dst, src);
		return;
	}
	if (dim == copy->ndim) {
		memcpy(dst, src, copy->run_bytes);
		return;
	}
	for (uint64_t i = 0; i < copy->extent[dim]; i++) {
		copy_dims(copy, dim + 1, dst, src);
		dst += copy->dst_stride[dim];
		src += copy->src_stride[dim];
	}
}

int host_copies_run(struct gpu_copies *base, size_t range, uint64_t slot_address,
	struct gpu_stream *stream, struct error *err)
{
	struct host_copies *copies = (struct host_copies *)base;

	(void)stream;
	(void)err;
	for (size_t i = copies->first[range]; i < copies->first[range + 1]; i++) {
		const struct copy *copy = &copies->v[i];
		uint64_t src = copies->bases[copy->src_space];
		uint64_t dst = copies->bases[copy->dst_space];

		src = (src ? src : slot_address) + copy->src;
		dst = (dst ? dst : slot_address) + copy->dst;
		copy_dims(copy, 0, (char *)(uintptr_t)dst, (const char *)(uintptr_t)src);
	}
	return 0;
}

/* An array of n elements that is not NULL when n is 0. */
static void *duplicate(const void *array, size_t n, size_t size)
{
	void *copy = calloc(n ? n : 1, size);

	if (copy && n) {
		memcpy(copy, array, n * size);
	}
	return copy;
}

int host_copies_create(struct gpu_device *device, const struct copies *source,
	const uint64_t *bases, size_t nbases, struct gpu_copies **ret_copies, struct error *err)
{
	static const size_t none[1];
	struct host_copies *copies = calloc(1, sizeof(*copies));

	if (copies) {
		copies->head.ops = device->ops;
		copies->head.nranges = source->nranges;
		copies->v = duplicate(source->v, source->n, sizeof(*source->v));
		copies->first = duplicate(source->nranges ? source->first : none,
			source->nranges + 1, sizeof(*source->first));
		copies->bases = duplicate(bases, nbases, sizeof(*bases));
	}
	if (!copies || !copies->v || !copies->first || !copies->bases) {
		host_copies_destroy(copies ? &copies->head : NULL);
		return error_set(err, -ENOMEM, "no memory for %zu copies", source->n);
	}
	*ret_copies = &copies->head;
	return 0;
}

void host_copies_destroy(struct gpu_copies *base)
{
	struct host_copies *copies = (struct host_copies *)base;

	if (copies) {
		free(copies->v);
		free(copies->first);
		free(copies->bases);
		free(copies);
	}
}
