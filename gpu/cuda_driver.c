#include "gpu/cuda_driver.h"
#include "base/util.h"
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <string.h>

#define LIBRARY "libcuda.so.1"

struct cuda_driver cuda_driver;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static bool loaded;

static int resolve(void *library, struct cuda_driver *ret_table, struct error *err)
{
	struct cuda_driver table;
	void *symbol;

#define CUDA_RESOLVE(name, versioned, parameters)                                                  \
	symbol = dlsym(library, #versioned);                                                       \
	if (!symbol) {                                                                             \
		return error_set(                                                                  \
			err, -ENODEV, LIBRARY " has no %s: the driver is too old", #versioned);    \
	}                                                                                          \
	_Static_assert(sizeof(table.name) == sizeof(symbol), "function pointers fit");             \
	memcpy(&table.name, &symbol, sizeof(symbol));
	CUDA_CALLS(CUDA_RESOLVE)
#undef CUDA_RESOLVE
	*ret_table = table;
	return 0;
}

int cuda_driver_load(bool only_if_loaded, struct error *err)
{
	void *library;
	int rc = 0;

	pthread_mutex_lock(&lock);
	if (!loaded) {
		library =
			dlopen(LIBRARY, RTLD_NOW | RTLD_LOCAL | (only_if_loaded ? RTLD_NOLOAD : 0));
		if (!library) {
			const char *why = only_if_loaded ? NULL : dlerror();

			rc = error_set(err, -ENODEV, "no NVIDIA driver: %s",
				why ? why : LIBRARY " is not loaded");
		} else {
			rc = resolve(library, &cuda_driver, err);
			if (rc) {
				dlclose(library);
			} else {
				loaded = true;
			}
		}
	}
	pthread_mutex_unlock(&lock);
	return rc;
}

/* Results after which the context is of no use: every later call of it fails too. */
static bool is_sticky(unsigned result)
{
	switch (result) {
	case CUDA_ECC_UNCORRECTABLE:
	case CUDA_NVLINK_UNCORRECTABLE:
	case CUDA_CONTAINED:
	case CUDA_ILLEGAL_ADDRESS:
	case CUDA_LAUNCH_TIMEOUT:
	case CUDA_CONTEXT_IS_DESTROYED:
	case CUDA_ASSERT:
	case CUDA_HARDWARE_STACK_ERROR:
	case CUDA_ILLEGAL_INSTRUCTION:
	case CUDA_MISALIGNED_ADDRESS:
	case CUDA_INVALID_ADDRESS_SPACE:
	case CUDA_INVALID_PC:
	case CUDA_LAUNCH_FAILED:
	case CUDA_EXTERNAL_DEVICE:
		return true;
	default:
		return false;
	}
}

int cuda_outcome(struct error *err, const char *call, unsigned result)
{
	const char *name = NULL;
	const char *text = NULL;
	int code;

	if (result == CUDA_OK) {
		return 0;
	}
	if (cuda_driver.cuGetErrorName(result, &name) != CUDA_OK) {
		name = NULL;
	}
	if (cuda_driver.cuGetErrorString(result, &text) != CUDA_OK) {
		text = NULL;
	}
	switch (result) {
	case CUDA_OUT_OF_MEMORY:
		code = -ENOMEM;
		break;
	case CUDA_NO_DEVICE:
		code = -ENODEV;
		break;
	case CUDA_NOT_SUPPORTED:
		code = -ENOTSUP;
		break;
	default:
		code = is_sticky(result) ? -ENOTRECOVERABLE : -EIO;
	}
	return error_set(err, code, "%s: %s %u (%s)", call, name ? name : "error", result,
		text ? text : "unknown to the driver");
}
