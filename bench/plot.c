#include "bench/plot.h"
#include "base/util.h"
#include "bench/bench.h"
#include <errno.h>
#include <math.h>
#include <string.h>

#define WIDTH 860
#define PANEL 320
#define TITLE 40
#define LEFT 70
#define PLOT_WIDTH 560
#define TOP 34
#define PLOT_HEIGHT 230
#define Y_STEPS 5

static const char *const colours[PLOT_LINES] = {
	"#1b6ca8", "#d1495b", "#3a7d44", "#e09f3e", "#6a4c93", "#4a4e69", "#00798c", "#8d5524"};

/* A text with what XML keeps for itself written in another way. */
static void print_text(FILE *file, const char *text)
{
	for (; *text; text++) {
		switch (*text) {
		case '&':
			fputs("&amp;", file);
			break;
		case '<':
			fputs("&lt;", file);
			break;
		case '>':
			fputs("&gt;", file);
			break;
		default:
			fputc(*text, file);
		}
	}
}

static void put_text(FILE *file, double x, double y, const char *anchor, const char *text)
{
	fprintf(file, "<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"%s\">", x, y, anchor);
	print_text(file, text);
	fputs("</text>\n", file);
}

/* 1, 2 or 5 times a power of ten, so that Y_STEPS of it hold `top`. */
static double choose_step(double top)
{
	double step = pow(10, floor(log10(MAX(top, 1e-9) / Y_STEPS)));

	while (step * Y_STEPS < top) {
		step *= step * 2 * Y_STEPS >= top ? 2 : step * 5 * Y_STEPS >= top ? 5 : 10;
	}
	return step;
}

struct scale {
	double x_from, x_to; /* log2 of lengths */
	double step;	     /* GB/s */
	double y0;	     /* of the panel */
};

static double x_of(const struct scale *scale, uint64_t len_bytes)
{
	double share =
		(log2((double)len_bytes) - scale->x_from) / MAX(scale->x_to - scale->x_from, 1);

	return LEFT + share * PLOT_WIDTH;
}

static double y_of(const struct scale *scale, double rate)
{
	return scale->y0 + TOP + PLOT_HEIGHT * (1 - rate * 1e-9 / (scale->step * Y_STEPS));
}

static void put_axes(FILE *file, const struct plot_panel *panel, const struct scale *scale)
{
	const struct plot_line *line = &panel->lines[0];
	double bottom = scale->y0 + TOP + PLOT_HEIGHT;
	char text[64];

	for (int i = 0; i <= Y_STEPS; i++) {
		double y = bottom - PLOT_HEIGHT * i / Y_STEPS;

		fprintf(file,
			"<line x1=\"%d\" y1=\"%.1f\" x2=\"%d\" y2=\"%.1f\" stroke=\"#ddd\"/>\n",
			LEFT, y, LEFT + PLOT_WIDTH, y);
		snprintf(text, sizeof(text), "%g", scale->step * i);
		put_text(file, LEFT - 6, y + 4, "end", text);
	}
	for (size_t i = 0; i < line->n; i++) {
		format_bytes(text, sizeof(text), line->len_bytes[i]);
		put_text(file, x_of(scale, line->len_bytes[i]), bottom + 16, "middle", text);
	}
	put_text(file, LEFT, scale->y0 + TOP - 12, "start", panel->title);
	put_text(file, LEFT - 6, scale->y0 + TOP - 12, "end", "GB/s");
}

static void put_lines(FILE *file, const struct plot_panel *panel, const struct scale *scale)
{
	for (size_t i = 0; i < panel->nlines; i++) {
		const struct plot_line *line = &panel->lines[i];
		double y = scale->y0 + TOP + 14 + 20.0 * (double)i;

		fprintf(file, "<polyline fill=\"none\" stroke=\"%s\" stroke-width=\"2\" points=\"",
			colours[i]);
		for (size_t k = 0; k < line->n; k++) {
			fprintf(file, "%s%.1f,%.1f", k ? " " : "", x_of(scale, line->len_bytes[k]),
				y_of(scale, line->rate[k]));
		}
		fprintf(file,
			"\"/>\n<line x1=\"%d\" y1=\"%.1f\" x2=\"%d\" y2=\"%.1f\" stroke=\"%s\" "
			"stroke-width=\"2\"/>\n",
			LEFT + PLOT_WIDTH + 16, y - 4, LEFT + PLOT_WIDTH + 40, y - 4, colours[i]);
		put_text(file, LEFT + PLOT_WIDTH + 46, y, "start", line->name);
	}
}

static void put_panel(FILE *file, const struct plot_panel *panel, double y0)
{
	struct scale scale = {.x_from = 64, .y0 = y0};
	double top = 0;

	for (size_t i = 0; i < panel->nlines; i++) {
		for (size_t k = 0; k < panel->lines[i].n; k++) {
			double log = log2((double)panel->lines[i].len_bytes[k]);

			scale.x_from = MIN(scale.x_from, log);
			scale.x_to = MAX(scale.x_to, log);
			top = MAX(top, panel->lines[i].rate[k] * 1e-9);
		}
	}
	scale.step = choose_step(top);
	put_axes(file, panel, &scale);
	put_lines(file, panel, &scale);
}

void plot_write(
	const char *path, const char *title, const struct plot_panel *panels, size_t npanels)
{
	FILE *file = fopen(path, "we");
	size_t height = TITLE + npanels * PANEL;

	if (!file) {
		bench_fail(EXIT_RUNTIME, "%s: %s", path, strerror(errno));
	}
	fprintf(file,
		"<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%d\" height=\"%zu\" "
		"viewBox=\"0 0 %d %zu\" font-family=\"sans-serif\" font-size=\"12\">\n"
		"<rect width=\"100%%\" height=\"100%%\" fill=\"white\"/>\n",
		WIDTH, height, WIDTH, height);
	put_text(file, LEFT, 22, "start", title);
	for (size_t i = 0; i < npanels; i++) {
		put_panel(file, &panels[i], (double)(TITLE + i * PANEL));
	}
	fputs("</svg>\n", file);
	if (fclose(file)) {
		bench_fail(EXIT_RUNTIME, "%s: %s", path, strerror(errno));
	}
}
