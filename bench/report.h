/*
 * What a bench prints: the machine, then figures, each with median and spread, and
 * where it has one, beside a raw figure of the same bytes of the same run with their
 * ratio. A table for people while it runs, or with --json one object at the end.
 */
#ifndef BENCH_REPORT_H
#define BENCH_REPORT_H

#include "bench/samples.h"
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

struct report;

/* `what` is the subcommand with its options, for the reader of the output. */
struct report *report_create(const char *what, bool json);
void report_destroy(struct report *report); /* NULL is fine */

/* A line about the machine or the run: "device", "NVIDIA H100 80GB HBM3". */
void report_text(struct report *report, const char *key, const char *format, ...)
	__attribute__((format(printf, 3, 4)));

/*
 * A figure: seconds that moving `bytes` took (0: a time without bytes). With `raw`, which may
 * be NULL, also those of the raw way of the same bytes, and the ratio of the medians
 * raw ÷ figure, which is 1 for a figure that costs nothing beyond the raw way.
 */
void report_times(struct report *report, const char *name, uint64_t bytes,
	const struct samples *seconds, const char *raw_name, const struct samples *raw_seconds);

/* A figure in a unit of its own, e.g. products a second, and its raw counterpart or NULL; the
 * ratio is figure ÷ raw. */
void report_values(struct report *report, const char *name, const char *unit,
	const struct samples *values, const char *raw_name, const struct samples *raw_values);

/* One number. */
void report_number(struct report *report, const char *name, const char *unit, double value);

/* Ends the output. With --json prints the object to `file`. */
void report_print(struct report *report, FILE *file);

#endif
