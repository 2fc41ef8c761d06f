/*
 * The processes that a bench of updates plays with: a trainer and tensor-parallel workers on
 * the public API, as users write them, and two ranks of plain NCCL for the raw figure. Each
 * is a function for child_start() with a struct part; questions and answers are below.
 */
#ifndef BENCH_PARTS_H
#define BENCH_PARTS_H

#include "bench/bench.h"
#include "bench/shapes.h"
#include "bench/values.h"
#include <strew/strew.h>

#define BENCH_MODEL "bench"

/* Which model, and cut how. */
struct bench_model {
	const char *config; /* or NULL: */
	uint64_t cut, bytes;
	uint64_t layers, tp;
};

void bench_shapes(const struct bench_model *model, uint32_t rank, struct shapes *ret_shapes);

struct part {
	enum gpu_kind kind;
	const char *device;
	struct bench_model model;
	uint32_t rank; /* of a worker, or in NCCL */
	const char *socket;
	bool on_host;	       /* the trainer's memory */
	bool one_gpu;	       /* NCCL: both ranks are on it, and pass for two nodes */
	uint64_t buffer_bytes; /* NCCL: of the longest piece */
	enum strew_gate gate;
	enum strew_apply apply;
	bool hash; /* trainer: what goes over the wire is compared at both ends */
	unsigned timeout_s;
};

enum part_question {
	PART_JOIN = 1, /* register, or declare and seal → joined */
	PART_FILL,     /* trainer: fresh values of a seed */
	PART_PUBLISH,  /* trainer: a version → published */
	PART_REPEAT,   /* trainer: one version after another until it is asked something else;
			  struct repeated, and so its answer */
	PART_BESIDE,   /* trainer: what of the last PART_REPEAT was in a span; struct beside, and so
			  its answer */
	PART_RAW_COPY, /* trainer: plain copies of as many bytes within the GPU, or to it from host
			  memory where the trainer's is → seconds */
	PART_RAW_WITHIN, /* trainer: within the GPU, wherever its memory is → seconds */
	PART_RAW_PEER,	 /* trainer: struct raw_to: to another GPU, from host memory where the
			    trainer's is → seconds */
	PART_RAW_PIECES, /* trainer: the pieces of all workers by one kernel → seconds, < 0: no
			    room, or memory that this process has not registered */
	PART_POISON,	 /* worker: all its parameters */
	PART_COMPARE,	 /* worker: with the values of a seed → compared */
	PART_PAUSE,	 /* worker: how long the last held gate was closed → seconds */
	PART_FREE,	 /* device memory free → bytes */
	PART_ID,	 /* NCCL rank 0: a unique id */
	PART_INIT,	 /* NCCL: the id → a communicator */
	PART_BROADCAST,	 /* NCCL: struct broadcast → broadcast_times */
};

struct joined {
	double describe_s, register_s;
};

struct published {
	double host_s; /* publish called to the report in hand, by the trainer's clock */
	struct strew_report report; /* without its strings and groups */
	uint64_t groups, committed;
};

struct repeated {
	double most_s;	  /* in: for so long at most */
	uint64_t first;	  /* in: version */
	uint64_t updates; /* out */
};

struct beside {
	uint64_t start_ns, end_ns; /* in: a span; monotonic */
	double updates;		   /* out: in it, with the parts of those that reach beyond it */
	double seconds;		   /* out: of it in which there were updates */
};

struct raw_to {
	uint64_t len_bytes;
	char peer[64];
};

struct compared {
	uint64_t bytes, wrong;
};

struct broadcast {
	uint64_t len_bytes, piece_bytes;
};

struct broadcast_times {
	uint64_t start_ns, end_ns; /* of one rank; monotonic */
};

int part_trainer(int fd, void *part);
int part_worker(int fd, void *part);
int part_nccl(int fd, void *part);

/* The raw ways, in the trainer's process. */
struct raw;
struct raw *raw_create(struct memory *memory, const struct shapes *shapes,
	unsigned char *const *data, const struct part *part);
void raw_destroy(struct raw *raw);
/* Moves len_bytes by plain copies; seconds by events on the stream. Within the GPU, and raw_copy()
 * to it from pinned memory where the part's memory is the host's. */
double raw_within(struct raw *raw, uint64_t len_bytes);
double raw_copy(struct raw *raw, uint64_t len_bytes);
/* To another GPU: from this one, or from the pinned memory, then issued by the other's context. */
double raw_peer(struct raw *raw, const char *peer, uint64_t len_bytes);
/* All pieces of all workers by the executor's kernel, into memory of this process; < 0:
 * no room, or memory that this process has not registered. */
double raw_pieces(struct raw *raw);

#endif
