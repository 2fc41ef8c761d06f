/* Words of a page that a stream writes when it gets there, or the CPU where no GPU is used. */
#include "base/util.h"
#include "gpu/export_set.h"
#include <errno.h>
#include <stdlib.h>

struct export_page {
	uint64_t *words;
	size_t nwords;
	cuda_ptr address; /* on the GPU; 0: not registered */
	bool registered;  /* by us, so to be undone by us */
	int device;	  /* whose primary context is retained for that */
	struct cuda_ctx *ctx;
};

int export_page_create(void *page, size_t len_bytes, struct export_page **ret_page)
{
	struct export_page *result;

	if ((uintptr_t)page % sizeof(uint64_t) || len_bytes < sizeof(uint64_t)) {
		return -EINVAL;
	}
	result = calloc(1, sizeof(*result));
	if (!result) {
		return -ENOMEM;
	}
	result->words = page;
	result->nwords = len_bytes / sizeof(uint64_t);
	*ret_page = result;
	return 0;
}

void export_page_destroy(struct export_page *page)
{
	if (page && page->ctx) {
		if (page->registered && CUDA(NULL, cuCtxPushCurrent, page->ctx) == 0) {
			CUDA(NULL, cuMemHostUnregister, page->words);
			export_cuda_pop();
		}
		CUDA(NULL, cuDevicePrimaryCtxRelease, page->device);
	}
	free(page);
}

/* In the set's context. */
static int register_page(struct export_page *page, int ordinal, struct error *err)
{
	unsigned result;
	cuda_ptr address;
	int rc = 0;

	if (page->address) {
		return 0;
	}
	if (!page->ctx) {
		rc = CUDA(err, cuDeviceGet, &page->device, ordinal);
		if (rc == 0) {
			rc = CUDA(err, cuDevicePrimaryCtxRetain, &page->ctx, page->device);
		}
	}
	if (rc) {
		return rc;
	}
	result = cuda_driver.cuMemHostRegister(page->words, page->nwords * sizeof(uint64_t),
		CUDA_REGISTER_PORTABLE | CUDA_REGISTER_DEVICEMAP);
	if (result != CUDA_OK && result != CUDA_HOST_ALREADY_REGISTERED) {
		return cuda_outcome(err, "cuMemHostRegister", result);
	}
	page->registered = page->registered || result == CUDA_OK;
	rc = CUDA(err, cuMemHostGetDevicePointer, &address, page->words, 0);
	if (rc == 0) {
		page->address = address;
	}
	return rc;
}

int export_page_write(struct export_page *page, const struct export_set *set, void *stream,
	size_t word, uint64_t value, struct error *err)
{
	int ordinal, rc;

	if (word >= page->nwords) {
		return error_set(err, -EINVAL, "word %zu of %zu", word, page->nwords);
	}
	if (!set || !set->ncontexts) {
		__atomic_store_n(&page->words[word], value, __ATOMIC_RELEASE);
		return 0;
	}
	ordinal = set->contexts[0].ordinal;
	rc = export_cuda_push(set, ordinal, err);
	if (rc) {
		return rc;
	}
	/*
	 * A stream that has nothing left to do need not be asked to write. Not so the default
	 * streams (0, 1 and 2): to be behind other streams' work too is a matter of their launches.
	 */
	if ((uintptr_t)stream > 2 && cuda_driver.cuStreamQuery(stream) == CUDA_OK) {
		__atomic_store_n(&page->words[word], value, __ATOMIC_RELEASE);
	} else {
		rc = register_page(page, ordinal, err);
		/* Flags 0: the write is ordered behind all that the stream wrote before. */
		rc = rc ? rc
			: CUDA(err, cuStreamWriteValue64, stream,
				  page->address + word * sizeof(value), value, 0);
	}
	export_cuda_pop();
	return rc;
}
