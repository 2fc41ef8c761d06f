#include "bench/samples.h"
#include "base/util.h"
#include "bench/child.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void samples_add(struct samples *samples, double value)
{
	if (samples->n == samples->cap) {
		samples->cap = MAX(samples->cap * 2, 16u);
		samples->v = bench_need(realloc(samples->v, samples->cap * sizeof(*samples->v)));
	}
	samples->v[samples->n++] = value;
}

void samples_finish(struct samples *samples)
{
	free(samples->v);
	*samples = (struct samples){0};
}

static int by_value(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

double samples_at(const struct samples *samples, double share)
{
	double *sorted, at, value;
	size_t below;

	if (!samples->n) {
		return 0;
	}
	sorted = bench_need(malloc(samples->n * sizeof(*sorted)));
	memcpy(sorted, samples->v, samples->n * sizeof(*sorted));
	qsort(sorted, samples->n, sizeof(*sorted), by_value);
	at = share * (double)(samples->n - 1);
	below = (size_t)at;
	value = sorted[below];
	if (below + 1 < samples->n) {
		value += (at - (double)below) * (sorted[below + 1] - value);
	}
	free(sorted);
	return value;
}

double samples_median(const struct samples *samples)
{
	return samples_at(samples, 0.5);
}
