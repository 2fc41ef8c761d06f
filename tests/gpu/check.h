/*
 * gpu_check: what the files share. It runs where there is a GPU, without a test frame, so
 * that one binary can be carried to such a machine. The parent plays the broker, a
 * forked child the worker; CUDA is first touched after the fork, in each by itself.
 */
#ifndef TESTS_GPU_CHECK_H
#define TESTS_GPU_CHECK_H

#include "gpu/cuda_driver.h"
#include "gpu/export.h"
#include "gpu/gpu.h"
#include "tests/gpu/extra_calls.h"

struct extra {
#define EXTRA_FIELD(name, symbol, parameters) unsigned(*name) parameters;
	EXTRA_CALLS(EXTRA_FIELD)
#undef EXTRA_FIELD
};
extern struct extra extra;
int extra_load(void);

/* Counts a check and prints its line. */
void check(bool good, const char *format, ...) __attribute__((format(printf, 2, 3)));
extern unsigned check_count, check_failed;
extern bool check_small; /* --small: no rates, and less to wait for; for a stand-in's CPU */

/* Ends the program with a line if `rc` is an error: for what the checks stand on. */
void must(int rc, const char *what, const struct error *err);

/* Waits until everything on the stream is done, at most 20 s. */
void drain(struct gpu_device *device, struct gpu_stream *stream);

#define CHECK_BYTES (8u << 20) /* of a slot and of a worker's allocation */
#define CHECK_CHUNK (2u << 20) /* of VMM memory */
#define CHECK_COPIES 48u

/*
 * What both sides know without talking. Ranges: 0 slot → memory in random strides, half of
 * them casts, 1 memory → slot in the same way, 2 slot → memory, one run that a copy engine takes.
 * Space 0 is the slot, space 1 the memory, whose first byte is at the offset of the declared
 * pointer. Finish with free(v) and free(first).
 */
void make_copies(uint64_t seed, uint64_t memory_bytes, struct copies *ret_copies);
void make_pattern(uint64_t seed, void *buf, size_t len_bytes);
/* The plain meaning of a range. */
void run_reference(const struct copies *copies, size_t range, char *slot, char *memory);

/* How the worker makes its memory. */
enum memory_kind {
	MEMORY_PLAIN = 1,
	MEMORY_VMM = 2,
	MEMORY_VMM_UNSHARED = 3,
	MEMORY_PINNED = 4,
	MEMORY_MANAGED = 5,
	MEMORY_HOST = 6,
};

enum request_type {
	REQUEST_MAKE = 1,   /* kind, seed, offset → code, handle */
	REQUEST_CHECK = 2,  /* the memory holds what ranges 0 and 2 leave */
	REQUEST_REMAKE = 3, /* free and allocate again: export_verify() must notice */
	REQUEST_FREE = 4,
	REQUEST_PAGE = 5, /* word, value: behind work of the stream */
};

struct request {
	enum request_type type;
	enum memory_kind kind;
	uint64_t seed;
	uint64_t offset; /* of the declared pointer */
	uint64_t word, value;
};

struct reply {
	int code;
	char text[LIMIT_TEXT_BYTES];
	struct handle handle; /* without its arrays */
	uint64_t offset;      /* of the declared pointer in the allocation */
	uint64_t chunk_bytes[16];
	uint32_t nfds;
};

/* The child's life: answers requests until the socket closes. */
void worker_main(int socket, uint64_t *page_words, size_t page_bytes);
/* The parent's side; fds land in ret_reply->handle, which is to be finished. */
int worker_ask(int socket, const struct request *request, struct reply *ret_reply);

/* Bytes by pinned host memory, between the first two GPUs, or from the only one to itself. */
void bounce_checks(struct gpu *gpu);
int count_fds(void); /* of this process */

/* Prints the table of rates; `kernel` says whose machine code runs. */
void rates(struct gpu_device *device, const char *kernel);

#endif
