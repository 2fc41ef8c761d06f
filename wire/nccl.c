#include "wire/nccl.h"
#include "base/util.h"
#include "wire/nccl_table.h"
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static struct nccl_table table;
static unsigned version; /* 0: not open */

const struct nccl_table *nccl_table(void)
{
	return version ? &table : NULL;
}

int nccl_checked(struct error *err, const char *call, int result)
{
	const char *last;

	if (result == NCCL_SUCCESS || result == NCCL_IN_PROGRESS) {
		return 0;
	}
	last = table.get_last_error ? table.get_last_error(NULL) : "";
	return error_set(err, -EIO, "%s: %s%s%.120s", call, table.get_error_string(result),
		last && *last ? ": " : "", last ? last : "");
}

static int load(void *library, struct error *err)
{
	const struct {
		const char *name;
		void *to;
	} entries[] = {
		{"ncclGetVersion", &table.get_version},
		{"ncclGetUniqueId", &table.get_unique_id},
		{"ncclCommInitRankConfig", &table.init_rank_config},
		{"ncclCommGetAsyncError", &table.get_async_error},
		{"ncclBroadcast", &table.broadcast},
		{"ncclCommAbort", &table.abort},
		{"ncclCommFinalize", &table.finalize},
		{"ncclCommDestroy", &table.destroy},
		{"ncclGetErrorString", &table.get_error_string},
		{"ncclGetLastError", &table.get_last_error},
	};

	for (size_t i = 0; i < ARRAY_LEN(entries); i++) {
		void *entry = dlsym(library, entries[i].name);

		if (!entry) {
			return error_set(err, -ENOSYS, "NCCL lacks %s; 2.18 or later is wanted",
				entries[i].name);
		}
		memcpy(entries[i].to, &entry, sizeof(entry));
	}
	return 0;
}

int nccl_open(struct error *err)
{
	const char *named = getenv("STREW_NCCL");
	void *library = dlopen("libnccl.so.2", RTLD_NOW | RTLD_LOCAL | RTLD_NOLOAD);
	int number = 0, rc;

	if (version) {
		return 0;
	}
	if (!library) {
		library = dlopen(named && *named ? named : "libnccl.so.2", RTLD_NOW | RTLD_LOCAL);
	}
	if (!library) {
		return error_set(err, -ENOENT,
			"several brokers on the cuda backend need NCCL: %.120s (STREW_NCCL may "
			"name one)",
			dlerror());
	}
	rc = load(library, err);
	if (rc == 0) {
		rc = NCCL_CALL(&table, err, get_version, &number);
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
	int rc = NCCL_CALL(&table, err, get_unique_id, &id);

	if (rc == 0) {
		memcpy(ret_id, id.bytes, UNIQUE_ID_BYTES);
	}
	return rc;
}
