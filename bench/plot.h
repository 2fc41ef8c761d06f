/* Rates by length as an SVG, a panel for each path: lengths by powers of two, lines by method. */
#ifndef BENCH_PLOT_H
#define BENCH_PLOT_H

#include <stddef.h>
#include <stdint.h>

#define PLOT_LINES 8
#define PLOT_POINTS 16

struct plot_line {
	const char *name;
	uint64_t len_bytes[PLOT_POINTS];
	double rate[PLOT_POINTS]; /* bytes a second */
	size_t n;
};

struct plot_panel {
	char title[128];
	struct plot_line lines[PLOT_LINES];
	size_t nlines;
};

/* Ends the program if the file cannot be written. */
void plot_write(
	const char *path, const char *title, const struct plot_panel *panels, size_t npanels);

#endif
