/*
 * An engine-like load in a process of its own: steps of bf16 matrix products, or steps that
 * only move memory, both by cuBLAS; on the host backend a loop of float products. It is
 * measured by itself: steps a second, and how long single steps took.
 */
#ifndef BENCH_LOAD_H
#define BENCH_LOAD_H

#include "bench/bench.h"

enum load_kind { LOAD_PRODUCTS, LOAD_MEMORY, LOAD_KINDS };

struct load_part {
	enum gpu_kind kind;
	const char *device, *cublas; /* NULL: the usual names */
};

struct load_run {
	enum load_kind kind;
	double seconds;
};

struct load_result {
	double steps_per_s, p50_s,
		p99_s;		   /* single steps: from one event on the stream to the next */
	uint64_t start_ns, end_ns; /* of what was measured; monotonic */
};

/* For child_start(); answers a struct load_run by a struct load_result. */
int part_load(int fd, void *load_part);

extern const char *const load_names[LOAD_KINDS];

#endif
