#include "bench/report.h"
#include "base/util.h"
#include "bench/child.h"
#include <jansson.h>
#include <stdarg.h>
#include <stdlib.h>

struct report {
	bool json;
	bool heading; /* of the table, printed */
	json_t *object, *machine, *figures;
};

struct report *report_create(const char *what, bool json)
{
	struct report *report = bench_need(calloc(1, sizeof(*report)));

	report->json = json;
	report->object = bench_need(json_object());
	report->machine = bench_need(json_object());
	report->figures = bench_need(json_array());
	json_object_set_new(report->object, "bench", bench_need(json_string(what)));
	json_object_set_new(report->object, "strew", bench_need(json_string(STREW_VERSION)));
	if (!json) {
		printf("strew-bench %s\n", what);
	}
	return report;
}

void report_destroy(struct report *report)
{
	if (!report) {
		return;
	}
	json_decref(report->object);
	json_decref(report->machine);
	json_decref(report->figures);
	free(report);
}

void report_text(struct report *report, const char *key, const char *format, ...)
{
	char text[512];
	va_list args;

	va_start(args, format);
	vsnprintf(text, sizeof(text), format, args);
	va_end(args);
	json_object_set_new(report->machine, key, bench_need(json_string(text)));
	if (!report->json) {
		printf("  %-16s %s\n", key, text);
		fflush(stdout);
	}
}

static json_t *of_samples(const struct samples *samples, const char *unit)
{
	json_t *object = bench_need(json_object()), *all = bench_need(json_array());

	json_object_set_new(object, "unit", bench_need(json_string(unit)));
	json_object_set_new(object, "median", bench_need(json_real(samples_median(samples))));
	json_object_set_new(object, "min", bench_need(json_real(samples_at(samples, 0))));
	json_object_set_new(object, "max", bench_need(json_real(samples_at(samples, 1))));
	for (size_t i = 0; i < samples->n; i++) {
		json_array_append_new(all, bench_need(json_real(samples->v[i])));
	}
	json_object_set_new(object, "samples", all);
	return object;
}

static void heading(struct report *report)
{
	if (report->json || report->heading) {
		return;
	}
	report->heading = true;
	printf("\n%-44s %12s %21s %10s  %s\n", "figure", "median", "spread", "rate", "beside it");
}

/* Seconds in the unit that a person would choose. */
static const char *seconds_text(char *buf, size_t buf_bytes, double seconds)
{
	if (seconds < 1e-3) {
		snprintf(buf, buf_bytes, "%.1f us", seconds * 1e6);
	} else if (seconds < 1) {
		snprintf(buf, buf_bytes, "%.3f ms", seconds * 1e3);
	} else {
		snprintf(buf, buf_bytes, "%.3f s", seconds);
	}
	return buf;
}

static void print_times(const char *name, uint64_t bytes, const struct samples *seconds,
	const char *raw_name, const struct samples *raw, double ratio)
{
	char median[32], least[32], most[32], spread[72], rate[32] = "";

	seconds_text(median, sizeof(median), samples_median(seconds));
	seconds_text(least, sizeof(least), samples_at(seconds, 0));
	seconds_text(most, sizeof(most), samples_at(seconds, 1));
	snprintf(spread, sizeof(spread), "%s..%s", least, most);
	if (bytes && samples_median(seconds) > 0) {
		snprintf(rate, sizeof(rate), "%.1f GB/s",
			(double)bytes / samples_median(seconds) / 1e9);
	}
	printf("%-44s %12s %21s %10s", name, median, spread, rate);
	if (raw && raw->n) {
		printf("  %s %s, ratio %.3f", raw_name,
			seconds_text(median, sizeof(median), samples_median(raw)), ratio);
	}
	printf("\n");
	fflush(stdout);
}

void report_times(struct report *report, const char *name, uint64_t bytes,
	const struct samples *seconds, const char *raw_name, const struct samples *raw_seconds)
{
	json_t *figure = bench_need(json_object());
	double own = samples_median(seconds), ratio = 0;

	heading(report);
	json_object_set_new(figure, "name", bench_need(json_string(name)));
	json_object_set_new(figure, "time", of_samples(seconds, "s"));
	if (bytes) {
		json_object_set_new(figure, "bytes", bench_need(json_integer((json_int_t)bytes)));
		json_object_set_new(figure, "gb_per_s",
			bench_need(json_real(own > 0 ? (double)bytes / own / 1e9 : 0)));
	}
	if (raw_seconds && raw_seconds->n) {
		ratio = own > 0 ? samples_median(raw_seconds) / own : 0;
		json_object_set_new(figure, "raw_name", bench_need(json_string(raw_name)));
		json_object_set_new(figure, "raw", of_samples(raw_seconds, "s"));
		json_object_set_new(figure, "ratio", bench_need(json_real(ratio)));
	}
	json_array_append_new(report->figures, figure);
	if (!report->json) {
		print_times(name, bytes, seconds, raw_name, raw_seconds, ratio);
	}
}

void report_values(struct report *report, const char *name, const char *unit,
	const struct samples *values, const char *raw_name, const struct samples *raw_values)
{
	json_t *figure = bench_need(json_object());
	double own = samples_median(values), ratio = 0;

	heading(report);
	json_object_set_new(figure, "name", bench_need(json_string(name)));
	json_object_set_new(figure, "value", of_samples(values, unit));
	if (raw_values && raw_values->n) {
		ratio = samples_median(raw_values) > 0 ? own / samples_median(raw_values) : 0;
		json_object_set_new(figure, "raw_name", bench_need(json_string(raw_name)));
		json_object_set_new(figure, "raw", of_samples(raw_values, unit));
		json_object_set_new(figure, "ratio", bench_need(json_real(ratio)));
	}
	json_array_append_new(report->figures, figure);
	if (report->json) {
		return;
	}
	printf("%-44s %10.4g %s, %.4g..%.4g", name, own, unit, samples_at(values, 0),
		samples_at(values, 1));
	if (raw_values && raw_values->n) {
		printf("  %s %.4g, ratio %.3f", raw_name, samples_median(raw_values), ratio);
	}
	printf("\n");
	fflush(stdout);
}

void report_number(struct report *report, const char *name, const char *unit, double value)
{
	json_t *figure = bench_need(json_object());

	heading(report);
	json_object_set_new(figure, "name", bench_need(json_string(name)));
	json_object_set_new(figure, "unit", bench_need(json_string(unit)));
	json_object_set_new(figure, "number", bench_need(json_real(value)));
	json_array_append_new(report->figures, figure);
	if (!report->json) {
		printf("%-44s %10.6g %s\n", name, value, unit);
		fflush(stdout);
	}
}

void report_print(struct report *report, FILE *file)
{
	if (!report->json) {
		return;
	}
	json_object_set(report->object, "machine", report->machine);
	json_object_set(report->object, "figures", report->figures);
	json_dumpf(report->object, file, JSON_INDENT(1) | JSON_REAL_PRECISION(9));
	fputc('\n', file);
}
