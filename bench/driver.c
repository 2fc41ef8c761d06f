#include "bench/driver.h"
#include <dlfcn.h>
#include <errno.h>
#include <string.h>

struct bench_driver bench_driver;
struct bench_batch bench_batch;

int bench_driver_load(struct error *err)
{
	void *library, *symbol;
	int rc = cuda_driver_load(false, err);

	if (rc) {
		return rc;
	}
	library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL); /* stays open, as the table */
	if (!library) {
		return error_set(err, -ENODEV, "%.200s", dlerror());
	}
#define BENCH_RESOLVE(name, versioned, parameters)                                                 \
	symbol = dlsym(library, #versioned);                                                       \
	if (!symbol) {                                                                             \
		return error_set(err, -ENODEV, "the driver has no %s", #versioned);                \
	}                                                                                          \
	memcpy(&bench_driver.name, &symbol, sizeof(symbol));
	BENCH_CALLS(BENCH_RESOLVE)
#undef BENCH_RESOLVE
	symbol = dlsym(library, "cuMemcpyBatchAsync_v2");
	memcpy(&bench_batch.now, &symbol, sizeof(symbol));
	symbol = dlsym(library, "cuMemcpyBatchAsync");
	memcpy(&bench_batch.before_13, &symbol, sizeof(symbol));
	return 0;
}

bool bench_batch_there(void)
{
	return bench_batch.now || bench_batch.before_13;
}

int bench_batch_copy(const cuda_ptr *dsts, const cuda_ptr *srcs, const size_t *sizes, size_t n,
	struct cuda_stream *stream, struct error *err)
{
	const struct bench_batch_attributes attributes = {
		.source_order = BENCH_SOURCE_IN_STREAM_ORDER};
	size_t first = 0, failed = SIZE_MAX;
	unsigned result;

	if (bench_batch.now) {
		result = bench_batch.now(dsts, srcs, sizes, n, &attributes, &first, 1, stream);
	} else {
		result = bench_batch.before_13(
			dsts, srcs, sizes, n, &attributes, &first, 1, &failed, stream);
	}
	return cuda_outcome(err, "cuMemcpyBatchAsync", result);
}
