/* strew-bench copy: bare copies between two processes' memory by a third, as a broker makes them.
 */
#include "bench/copy.h"
#include "bench/plot.h"
#include "bench/scene.h"
#include <stdlib.h>
#include <string.h>

static const char help[] =
	"Usage: strew-bench copy [options]\n"
	"\n"
	"Two processes export memory, a third imports and copies it, as a broker does: within a\n"
	"GPU, to and from a peer, from host memory; by copy engine in one call, in many, and in a\n"
	"batch by one call (from CUDA 12.8 on), and by strew's executor; contiguous and in rows;\n"
	"issued on the source's GPU, on the target's, and on the one that is neither.\n"
	"Each figure stands beside one plain copy of as many bytes within the third process;\n"
	"rows are whole, and so may be fewer bytes than the length that they stand under.\n"
	"Every byte of one copy of each kind and length is compared, into memory that was\n"
	"poisoned before, and what lies around it.\n"
	"\n"
	"  --peer GPU         copies to, from and within this one too (default: none)\n"
	"  --least SIZE       the shortest (default 4K); each next is four times as long\n"
	"  --most SIZE        the longest (default 1G)\n"
	"  --row SIZE         of a row, at a pitch of twice that (default 768)\n"
	"  --plot FILE        an SVG of rates by length\n" BENCH_OPTIONS_HELP;

#define PATHS_MAX 7
#define ANSWER_S 120
#define AROUND_BYTES (1u << 20) /* looked at behind a copy */

/* From where to where; by whom, if by neither. */
struct path {
	const char *name;
	const char *source, *target, *issuer;
	bool on_host, two_gpus;
};

struct copy_bench {
	struct bench_options options;
	const char *peer, *plot;
	uint64_t least_bytes, most_bytes, row_bytes;
	enum gpu_kind kind;
	struct report *report;
	struct compared compared;
	struct plot_panel panels[2 * PATHS_MAX];
	bool batch_is_missing; /* said once */
	size_t npanels;
};

/* The processes of one path. */
struct play {
	struct copy_owner owners[2];
	struct copy_mover mover;
	struct child children[2], copier;
};

static void ask(struct child *child, uint32_t what, const void *question, size_t len_bytes,
	void *ret_answer, size_t answer_bytes)
{
	struct letter letter;

	child_ask(child, what, question, len_bytes, &letter, ANSWER_S);
	if (answer_bytes) {
		memcpy(ret_answer, letter.bytes, answer_bytes);
	}
}

static void start(struct copy_bench *bench, const struct path *path, struct play *play)
{
	struct letter letter;

	*play = (struct play){.mover = {.kind = bench->kind,
				      .source = path->source,
				      .target = path->target,
				      .issuer = path->issuer,
				      .on_host = path->on_host,
				      .len_bytes = bench->most_bytes,
				      .row_bytes = bench->row_bytes}};
	for (int i = 0; i < 2; i++) {
		play->owners[i] = (struct copy_owner){.kind = bench->kind,
			.device = i ? path->target : path->source,
			.on_host = !i && path->on_host,
			.len_bytes = bench->most_bytes};
		child_start(&play->children[i], i ? "the target's owner" : "the source's owner",
			part_copy_owner, &play->owners[i]);
	}
	child_start(&play->copier, "the mover", part_copy_mover, &play->mover);
	for (int i = 0; i < 2; i++) {
		child_ask(&play->children[i], COPY_EXPORT, NULL, 0, &letter, ANSWER_S);
		letter.what = COPY_TAKE;
		child_send(&play->copier, &letter);
		for (uint32_t k = 0; k < letter.nfds; k++) {
			fd_close(&letter.fds[k]);
		}
		child_receive(&play->copier, &letter, ANSWER_S);
	}
	ask(&play->children[0], COPY_FILL, &bench->options.seed, sizeof(bench->options.seed), NULL,
		0);
}

/* The copier first: what it has imported is the owners'. */
static void stop(struct play *play)
{
	child_stop(&play->copier);
	child_stop(&play->children[0]);
	child_stop(&play->children[1]);
}

static bool is_rows(uint32_t method)
{
	return method == COPY_ROWS_KERNEL || method == COPY_ROWS_ENGINE;
}

static double run(struct play *play, uint32_t what, const struct copy_run *run)
{
	double seconds;

	ask(&play->copier, what, run, sizeof(*run), &seconds, sizeof(seconds));
	return seconds;
}

/* One copy into poisoned memory, looked at by the target's owner. */
static void compare(struct copy_bench *bench, struct play *play, struct copy_run once)
{
	struct copy_check check = {.seed = bench->options.seed,
		.len_bytes = once.len_bytes,
		.row_bytes = is_rows(once.method) ? bench->row_bytes : 0,
		.span_bytes = 2 * once.len_bytes + AROUND_BYTES};
	struct compared compared;

	once.once = true;
	ask(&play->children[1], COPY_WIPE, &check.span_bytes, sizeof(check.span_bytes), NULL, 0);
	run(play, COPY_RUN, &once);
	ask(&play->children[1], COPY_CHECK, &check, sizeof(check), &compared, sizeof(compared));
	bench->compared.bytes += compared.bytes;
	bench->compared.wrong += compared.wrong;
}

/* All methods of one length, in turn; the first round is for warmth. Rows are whole, and may be
 * fewer bytes than the length: a plain copy of as many stands beside them then. */
static void measure(struct copy_bench *bench, struct play *play, struct plot_panel *panel,
	const uint32_t *methods, bool by_target, uint64_t len_bytes)
{
	const uint64_t rows_bytes = len_bytes / bench->row_bytes * bench->row_bytes;
	const bool differs = rows_bytes != len_bytes;
	struct samples samples[COPY_METHODS] = {{0}}, raw = {0}, raw_rows = {0};
	char name[256], length[32];

	for (uint64_t round = 0; round <= bench->options.samples; round++) {
		const struct copy_run rows = {.by_target = by_target, .len_bytes = rows_bytes};
		struct copy_run one = {.by_target = by_target, .len_bytes = len_bytes};
		double seconds = run(play, COPY_RAW, &one);
		double rows_seconds = differs ? run(play, COPY_RAW, &rows) : seconds;

		if (round) {
			samples_add(&raw, seconds);
			samples_add(&raw_rows, rows_seconds);
		}
		for (size_t i = 0; i < panel->nlines; i++) {
			one.method = methods[i];
			seconds = run(play, COPY_RUN, &one);
			if (round) {
				samples_add(&samples[i], seconds);
			}
		}
	}
	format_bytes(length, sizeof(length), len_bytes);
	for (size_t i = 0; i < panel->nlines; i++) {
		struct plot_line *line = &panel->lines[i];
		uint64_t bytes = is_rows(methods[i]) ? rows_bytes : len_bytes;

		snprintf(name, sizeof(name), "%s, %s, %s", panel->title, line->name, length);
		report_times(bench->report, name, bytes, &samples[i], "plain copy",
			is_rows(methods[i]) ? &raw_rows : &raw);
		line->len_bytes[line->n] = len_bytes;
		line->rate[line->n++] = (double)bytes / samples_median(&samples[i]);
		samples_finish(&samples[i]);
		compare(bench, play,
			(struct copy_run){.method = methods[i],
				.by_target = by_target,
				.len_bytes = len_bytes});
	}
	samples_finish(&raw);
	samples_finish(&raw_rows);
}

/* The ways that there are, by their numbers. */
static size_t list_methods(struct copy_bench *bench, struct play *play, uint32_t *methods)
{
	size_t n = 0;

	for (uint32_t method = 0; method < COPY_METHODS; method++) {
		uint64_t can;

		ask(&play->copier, COPY_CAN, &method, sizeof(method), &can, sizeof(can));
		if (can) {
			methods[n++] = method;
		} else if (method == COPY_BATCH && bench->kind == GPU_CUDA &&
			   !bench->batch_is_missing) {
			bench->batch_is_missing = true;
			report_text(bench->report, "left out",
				"batches: this driver has no cuMemcpyBatchAsync, which came with "
				"CUDA 12.8");
		}
	}
	return n;
}

/* Four times as long, and the longest at the end, whatever it is; 0 behind it. */
static uint64_t next_length(const struct copy_bench *bench, uint64_t len_bytes)
{
	if (len_bytes == bench->most_bytes) {
		return 0;
	}
	return len_bytes > bench->most_bytes / 4 ? bench->most_bytes : len_bytes * 4;
}

static void measure_issuer(
	struct copy_bench *bench, const struct path *path, struct play *play, bool by_target)
{
	struct plot_panel *panel = &bench->panels[bench->npanels++];
	uint32_t methods[COPY_METHODS];

	snprintf(panel->title, sizeof(panel->title), "%s%s", path->name,
		!path->two_gpus ? ""
		: by_target	? ", by its target"
				: ", by its source");
	panel->nlines = list_methods(bench, play, methods);
	for (size_t i = 0; i < panel->nlines; i++) {
		panel->lines[i].name = copy_method_names[methods[i]];
	}
	for (uint64_t bytes = bench->least_bytes; bytes; bytes = next_length(bench, bytes)) {
		measure(bench, play, panel, methods, by_target, bytes);
	}
}

static void measure_path(struct copy_bench *bench, const struct path *path)
{
	struct play play;

	start(bench, path, &play);
	measure_issuer(bench, path, &play, false);
	if (path->two_gpus) {
		measure_issuer(bench, path, &play, true);
	}
	stop(&play);
}

static void measure_all(struct copy_bench *bench)
{
	const char *device = bench->options.device;
	const struct path paths[PATHS_MAX] = {
		{.name = bench->kind == GPU_CUDA ? "within the GPU" : "within the host",
			.source = device,
			.target = device},
		{.name = "host to GPU", .target = device, .on_host = true},
		{.name = "to the peer", .source = device, .target = bench->peer, .two_gpus = true},
		{.name = "from the peer",
			.source = bench->peer,
			.target = device,
			.two_gpus = true},
		{.name = "within the peer", .source = bench->peer, .target = bench->peer},
		/* These cross the link twice. */
		{.name = "within the GPU, by the peer",
			.source = device,
			.target = device,
			.issuer = bench->peer},
		{.name = "within the peer, by the GPU",
			.source = bench->peer,
			.target = bench->peer,
			.issuer = bench_gpu(device)}};

	for (size_t i = 0; i < PATHS_MAX; i++) {
		bool there = i == 0 || (bench->kind == GPU_CUDA && (i == 1 || bench->peer));

		if (there) {
			measure_path(bench, &paths[i]);
		}
	}
}

static void parse(struct copy_bench *bench, int argc, char **argv)
{
	const struct bench_option own[] = {{.name = "peer", .text = &bench->peer},
		{.name = "plot", .text = &bench->plot},
		{.name = "least", .bytes = &bench->least_bytes},
		{.name = "most", .bytes = &bench->most_bytes},
		{.name = "row", .bytes = &bench->row_bytes}, {0}};
	uint64_t n = 0;

	bench_parse(argc, argv, help, &bench->options, own);
	for (uint64_t bytes = MIN(bench->least_bytes, bench->most_bytes); bytes;
		bytes = next_length(bench, bytes)) {
		n++;
	}
	if (bench->least_bytes > bench->most_bytes || bench->row_bytes > bench->least_bytes ||
		n > PLOT_POINTS || bench->most_bytes > 16ull << 30) {
		fprintf(stderr,
			"%s: --row up to --least, --least up to --most, --most up to 16G and at "
			"most %d lengths are wanted; see %s --help\n",
			argv[0], PLOT_POINTS, argv[0]);
		exit(EXIT_USAGE);
	}
}

int cmd_copy(int argc, char **argv)
{
	static struct copy_bench bench = {
		.least_bytes = 4096, .most_bytes = 1ull << 30, .row_bytes = 768};
	char length[32];

	parse(&bench, argc, argv);
	bench.report = report_create("copy", bench.options.json);
	bench.kind = bench_machine(&bench.options, bench.report);
	report_text(bench.report, "rows", "%s at a pitch of twice that",
		format_bytes(length, sizeof(length), bench.row_bytes));
	measure_all(&bench);
	compared_report(&bench.compared, bench.report);
	report_print(bench.report, stdout);
	report_destroy(bench.report);
	if (bench.plot) {
		plot_write(bench.plot, "strew-bench copy: payload rate by length", bench.panels,
			bench.npanels);
	}
	return compared_verdict(&bench.compared);
}
