/*
 * The part of NCCL's interface that strew calls, declared by itself so that
 * building needs no NCCL. nccl_check.c compares it with nccl.h where that is found.
 */
#ifndef WIRE_NCCL_TABLE_H
#define WIRE_NCCL_TABLE_H

#include "ipc/messages.h"
#include <limits.h>
#include <stddef.h>

typedef struct nccl_comm *nccl_comm;

enum nccl_result { NCCL_SUCCESS = 0, NCCL_IN_PROGRESS = 7 };
enum nccl_type { NCCL_UINT8 = 1 };

struct nccl_id {
	char bytes[UNIQUE_ID_BYTES];
};

/*
 * ncclConfig_t as of 2.28, by its own rules: a size, a magic and the version that the caller was
 * written against come first; a library reads no field beyond `size`.
 */
struct nccl_config {
	size_t size;
	unsigned magic, version;
	int blocking, cga_cluster_size, min_ctas, max_ctas;
	const char *net_name;
	int split_share, traffic_class;
};
#define NCCL_CONFIG_MAGIC 0xcafebeefu
#define NCCL_CONFIG_VERSION 22700u /* the version that has all the fields above */
#define NCCL_UNDEFINED INT_MIN

struct nccl_table {
	int (*get_version)(int *);
	int (*get_unique_id)(struct nccl_id *);
	int (*init_rank_config)(nccl_comm *, int, struct nccl_id, int, struct nccl_config *);
	int (*get_async_error)(nccl_comm, int *);
	int (*broadcast)(const void *, void *, size_t, int, int, nccl_comm, void *);
	int (*abort)(nccl_comm);
	int (*finalize)(nccl_comm);
	int (*destroy)(nccl_comm);
	const char *(*get_error_string)(int);
	const char *(*get_last_error)(nccl_comm);
};

/* NULL before nccl_open(). */
const struct nccl_table *nccl_table(void);

/*
 * Calls nccl->NAME(ARGS) and returns 0, or -EIO with the call, its name and NCCL's text. A call
 * that goes on by itself (NCCL_IN_PROGRESS) is no error.
 */
#define NCCL_CALL(nccl, err, name, ...) nccl_checked(err, "nccl " #name, (nccl)->name(__VA_ARGS__))
int nccl_checked(struct error *err, const char *call, int result);

#endif
