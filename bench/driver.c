#include "bench/driver.h"
#include <dlfcn.h>
#include <errno.h>
#include <string.h>

struct bench_driver bench_driver;

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
	return 0;
}
