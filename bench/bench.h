/*
 * strew-bench: subcommands and what they share. The parent process measures nothing and
 * touches no GPU: it forks the processes of a bench, asks them, and prints.
 */
#ifndef BENCH_BENCH_H
#define BENCH_BENCH_H

#include "base/util.h"
#include "bench/child.h"
#include "bench/report.h"
#include "gpu/gpu.h"

enum { EXIT_OK = 0, EXIT_RUNTIME = 1, EXIT_USAGE = 2, EXIT_NO_DEVICE = 3 };

/* What every subcommand takes. */
struct bench_options {
	enum gpu_kind backend;
	const char *device; /* UUID or index, NULL: the first */
	uint64_t samples;   /* 7 */
	uint64_t seed;	    /* 0: from the clock; printed */
	bool json;
};

#define BENCH_OPTIONS_HELP                                                                         \
	"  --backend KIND     auto (default), cuda or host\n"                                      \
	"  --device GPU       UUID or index (default: the first)\n"                                \
	"  --samples N        how often each figure is measured, 5 to 1000 (default 7)\n"          \
	"  --seed N           of the data (default: fresh)\n"                                      \
	"  --json             one object on standard output instead of the table\n"                \
	"  --help\n"

/* A subcommand's own option; one of the pointers says where it goes. */
struct bench_option {
	const char *name; /* without the dashes */
	const char **text;
	uint64_t *number; /* >= 1 */
	uint64_t *bytes;  /* "64M" */
	bool *flag;
};

/*
 * Takes the common options and `own` (ended by a NULL name) out of argv; argv[0] is for
 * messages ("strew-bench copy"). Ends the program for --help (0, `help` on stdout) and for what is
 * wrong (2, a line on stderr). No other arguments are taken.
 */
void bench_parse(int argc, char **argv, const char *help, struct bench_options *options,
	const struct bench_option *own);

/* The name of a GPU, as of --device; NULL: the first. */
const char *bench_gpu(const char *device);

/* Do two such names stand for one GPU? */
bool bench_same_gpu(const char *a, const char *b);

/* A word of an option that takes one of two (c: NULL) or three. */
bool bench_one_of(const char *text, const char *a, const char *b, const char *c);

/*
 * Asks a process that lives for this alone for the machine (device, driver, memory) and writes
 * it into the report; NCCL's version where it is found. Decides GPU_AUTO: returns the kind.
 */
enum gpu_kind bench_machine(const struct bench_options *options, struct report *report);

/* The path of a program beside this one ("strewd") into buf, which is returned. */
const char *bench_program(char *buf, size_t buf_bytes, const char *name);

int cmd_copy(int argc, char **argv);
int cmd_idle(int argc, char **argv);
int cmd_push(int argc, char **argv);
int cmd_register(int argc, char **argv);
int cmd_shapes(int argc, char **argv);
int cmd_update(int argc, char **argv);

#endif
