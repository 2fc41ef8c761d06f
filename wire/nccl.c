#include "wire/nccl.h"
#include "base/util.h"
#include "wire/nccl_table.h"
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define LIBRARY "libnccl.so.2"

struct nccl_table nccl_table;
static unsigned version; /* 0: not open */

int nccl_outcome(struct error *err, const char *call, unsigned result)
{
	const char *last;

	if (result == NCCL_SUCCESS || result == NCCL_IN_PROGRESS) {
		return 0;
	}
	last = nccl_table.ncclGetLastError(NULL);
	/* Who only hears that another one has gone is not at fault (broker/blame.c). What else
	 * there is (a system call, an argument, NCCL itself) has failed here. */
	return error_set(err, result == NCCL_REMOTE_ERROR ? -ECONNRESET : -EIO, "%s: %s%s%.120s",
		call, nccl_table.ncclGetErrorString(result), last && *last ? ": " : "",
		last ? last : "");
}

static int resolve(void *library, struct nccl_table *ret_table, struct error *err)
{
	struct nccl_table table;
	void *symbol;

#define NCCL_RESOLVE(name, parameters)                                                             \
	symbol = dlsym(library, #name);                                                            \
	if (!symbol) {                                                                             \
		return error_set(                                                                  \
			err, -ENOSYS, "the NCCL library has no %s: it is too old", #name);         \
	}                                                                                          \
	_Static_assert(sizeof(table.name) == sizeof(symbol), "function pointers fit");             \
	memcpy(&table.name, &symbol, sizeof(symbol));
	NCCL_CALLS(NCCL_RESOLVE)
	NCCL_RESOLVE(ncclGetErrorString, )
	NCCL_RESOLVE(ncclGetLastError, )
#undef NCCL_RESOLVE
	*ret_table = table;
	return 0;
}

int nccl_open(struct error *err)
{
	const char *named = getenv("STREW_NCCL");
	int number = 0, rc;
	void *library;

	if (version) {
		return 0;
	}
	/* One that is loaded already (PyTorch's) must not meet a second one in this process. */
	library = dlopen(LIBRARY, RTLD_NOW | RTLD_LOCAL | RTLD_NOLOAD);
	if (!library) {
		library = dlopen(named && *named ? named : LIBRARY, RTLD_NOW | RTLD_LOCAL);
	}
	if (!library) {
		return error_set(err, -ENOENT,
			"several brokers on the cuda backend need NCCL: %.120s (STREW_NCCL may "
			"name one)",
			dlerror());
	}
	/* Read at NCCL's first call: its monitoring service would listen on a port, unasked. */
	setenv("NCCL_RAS_ENABLE", "0", 0);
	rc = resolve(library, &nccl_table, err);
	if (rc == 0) {
		rc = NCCL(err, ncclGetVersion, &number);
	}
	if (rc == 0 && number <= 0) {
		rc = error_set(err, -ENOSYS, "the NCCL library does not tell its version");
	}
	if (rc) {
		dlclose(library);
		return rc;
	}
	version = (unsigned)number;
	return 0;
}

unsigned nccl_version(void)
{
	return version;
}

const char *nccl_version_format(char *buf, size_t buf_bytes, unsigned number)
{
	if (number == 0) {
		snprintf(buf, buf_bytes, "none");
	} else {
		snprintf(buf, buf_bytes, "%u.%u.%u", number / 10000, number / 100 % 100,
			number % 100);
	}
	return buf;
}

int nccl_unique_id(uint8_t ret_id[UNIQUE_ID_BYTES], struct error *err)
{
	struct nccl_id id;
	int rc;

	if (!version) {
		return error_set(err, -ENOENT, "NCCL is not open");
	}
	rc = NCCL(err, ncclGetUniqueId, &id);
	if (rc == 0) {
		memcpy(ret_id, id.bytes, UNIQUE_ID_BYTES);
	}
	return rc;
}
