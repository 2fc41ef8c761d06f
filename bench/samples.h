/* Times or rates that were measured several times: median, spread, percentiles. */
#ifndef BENCH_SAMPLES_H
#define BENCH_SAMPLES_H

#include <stddef.h>

struct samples {
	double *v; /* in the order of measuring */
	size_t n, cap;
};

/* Zero-initialise before the first. Ends the program if memory runs out. */
void samples_add(struct samples *samples, double value);
void samples_finish(struct samples *samples);

/* 0 for none. share in [0, 1]: 0 the least, 0.5 the median, 1 the greatest; between two
 * values linear. */
double samples_at(const struct samples *samples, double share);
double samples_median(const struct samples *samples);

#endif
