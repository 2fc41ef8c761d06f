/* strew-bench register: what it costs to join, by the number of pieces and of workers. */
#include "bench/scene.h"
#include <stdlib.h>
#include <string.h>

static const char help[] =
	"Usage: strew-bench register [options]\n"
	"\n"
	"Time to register and to plan: N pieces a worker, each of a tensor of its own and 512 "
	"bytes\n"
	"or more. Register: from describing the first parameter to the broker's answer, the "
	"slowest\n"
	"worker. Plan: the first update less the median of the five after it, in which nothing is\n"
	"planned, as the broker's count of plans has to show. Each sample has new processes; the "
	"broker runs on, its context is made before.\n"
	"No figure stands beside a raw one. Every byte is compared after the first update, and\n"
	"after the five, before which the workers' memory is poisoned.\n"
	"\n"
	"  --pieces N         a worker (default: 100, 1,000, 10,000, 20,000, 40,000 and 100,000)\n"
	"  --tp N             workers (default: 2, and 1, 2, 4 and 8 with 10,000 "
	"pieces)\n" BENCH_OPTIONS_HELP;

#define LATER 5
#define PIECE_BYTES 512u

struct figures {
	struct samples describe, join, seal, plan, both, first, later;
};

struct bench {
	struct bench_options options;
	struct report *report;
	enum gpu_kind kind;
	struct brokers brokers;
	uint64_t version; /* goes up for as long as the brokers live */
	struct compared compared;
};

/* One sample: processes come, register, are updated, and leave. */
static void sample(struct bench *bench, uint64_t pieces, uint64_t tp, struct figures *figures)
{
	struct scene *scene = bench_need(calloc(1, sizeof(*scene)));
	struct joined workers, trainer;
	struct samples later = {0};
	struct published published;
	uint64_t plans;
	double plan;

	*scene = (struct scene){.kind = bench->kind,
		.device = bench->options.device,
		.model = {.cut = pieces, .bytes = pieces * tp * PIECE_BYTES, .tp = tp},
		.gate = STREW_GATE_LIVE,
		.apply = STREW_APPLY_DIRECT,
		.brokers = &bench->brokers,
		.version = bench->version};
	scene_start(scene);
	scene_ask_number(&scene->trainer, PART_FILL, bench->options.seed);
	scene_join(scene, &workers, &trainer);
	scene_publish(scene, &published);
	scene_compare(scene, bench->options.seed, &bench->compared);
	samples_add(&figures->first, published.host_s);
	plan = published.host_s;
	scene_renew(scene, bench->options.seed + 1);
	plans = brokers_plans(&bench->brokers);
	for (int i = 0; i < LATER; i++) {
		scene_publish(scene, &published);
		samples_add(&later, published.host_s);
	}
	plans = brokers_plans(&bench->brokers) - plans;
	if (plans) {
		bench_fail(EXIT_RUNTIME, "%llu plans were made in updates after the first",
			(unsigned long long)plans);
	}
	scene_compare(scene, bench->options.seed + 1, &bench->compared);
	plan -= samples_median(&later);
	samples_add(&figures->describe, workers.describe_s);
	samples_add(&figures->join, workers.register_s);
	samples_add(&figures->seal, trainer.describe_s + trainer.register_s);
	samples_add(&figures->plan, plan);
	samples_add(&figures->both, workers.describe_s + workers.register_s + plan);
	samples_add(&figures->later, samples_median(&later));
	samples_finish(&later);
	bench->version = scene->version;
	scene_stop(scene);
	free(scene);
}

static void print(struct bench *bench, const char *what, const struct samples *samples,
	uint64_t pieces, uint64_t tp)
{
	char name[80];

	snprintf(name, sizeof(name), "%llu x %llu pieces: %s", (unsigned long long)tp,
		(unsigned long long)pieces, what);
	report_times(bench->report, name, 0, samples, NULL, NULL);
}

static void figures_finish(struct figures *figures)
{
	samples_finish(&figures->describe);
	samples_finish(&figures->join);
	samples_finish(&figures->seal);
	samples_finish(&figures->plan);
	samples_finish(&figures->both);
	samples_finish(&figures->first);
	samples_finish(&figures->later);
}

static void measure(struct bench *bench, uint64_t pieces, uint64_t tp)
{
	struct figures figures = {0};

	for (uint64_t i = 0; i < bench->options.samples; i++) {
		sample(bench, pieces, tp, &figures);
	}
	print(bench, "describe", &figures.describe, pieces, tp);
	print(bench, "register", &figures.join, pieces, tp);
	print(bench, "plan", &figures.plan, pieces, tp);
	print(bench, "describe, register and plan", &figures.both, pieces, tp);
	print(bench, "trainer, declare and seal", &figures.seal, pieces, tp);
	print(bench, "first update", &figures.first, pieces, tp);
	print(bench, "later updates", &figures.later, pieces, tp);
	figures_finish(&figures);
}

int cmd_register(int argc, char **argv)
{
	static const uint64_t counts[] = {100, 1000, 10000, 20000, 40000, 100000};
	static const uint64_t crowds[] = {1, 4, 8};
	static struct bench bench;
	uint64_t pieces = 0, tp = 0;
	const struct bench_option own[] = {
		{.name = "pieces", .number = &pieces}, {.name = "tp", .number = &tp}, {0}};
	struct figures warm = {0};

	bench_parse(argc, argv, help, &bench.options, own);
	if (pieces > 1000000 || tp > SCENE_TP_MAX) {
		fprintf(stderr,
			"%s: at most 1000000 pieces and %d workers are wanted; see %s --help\n",
			argv[0], SCENE_TP_MAX, argv[0]);
		return EXIT_USAGE;
	}
	bench.report = report_create("register", bench.options.json);
	bench.kind = bench_machine(&bench.options, bench.report);
	brokers_prepare(&bench.brokers, false);
	brokers_start(&bench.brokers, &(struct brokers_options){.kind = bench.kind});
	sample(&bench, 1, 1, &warm); /* the broker's context */
	figures_finish(&warm);
	for (size_t i = 0; i < ARRAY_LEN(counts) && !pieces; i++) {
		measure(&bench, counts[i], tp ? tp : 2);
	}
	for (size_t i = 0; i < ARRAY_LEN(crowds) && !pieces && !tp; i++) {
		measure(&bench, 10000, crowds[i]);
	}
	if (pieces) {
		measure(&bench, pieces, tp ? tp : 2);
	}
	brokers_stop(&bench.brokers);
	compared_report(&bench.compared, bench.report);
	report_print(bench.report, stdout);
	report_destroy(bench.report);
	return compared_verdict(&bench.compared);
}
