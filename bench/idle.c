/* strew-bench idle: does strew slow an engine, when it does nothing and while it updates? */
#include "bench/load.h"
#include "bench/scene.h"
#include <stdlib.h>
#include <string.h>

static const char help[] =
	"Usage: strew-bench idle [options]\n"
	"\n"
	"The speed of an engine-like load on a GPU: alone, with strew attached and idle (a\n"
	"broker, a group of workers and a sealed trainer, on that GPU where no other is named\n"
	"for them), and during updates, one after another. The load is a loop of bf16\n"
	"products of 4096 x 4096 matrices and one that is bound by memory, by cuBLAS, in\n"
	"another process. Each round does all of it once, strew starting anew; a figure is\n"
	"steps a second, and the 99th percentile of the times between events behind single\n"
	"steps, both beside the load alone; bytes updated a second stand beside nothing.\n"
	"Memory of the workers is poisoned before each stretch of updates, and every byte\n"
	"compared after it.\n"
	"\n"
	"  --seconds S        of load for each figure and round, 0.01 to 3600 (default 1)\n"
	"  --bytes SIZE       of the model that is updated (default 1G)\n"
	"  --path PATH        as of strew-bench update: node (default), wire or host\n"
	"  --trainer-device GPU   trainer's memory there instead of on --device, the load's\n"
	"  --worker-devices L GPUs of the two workers, e.g. 0,1 (default: --device for both)\n"
	"  --cublas PATH      libcublas.so, where the linker does not find it\n" BENCH_OPTIONS_HELP;

enum state { ALONE, IDLE, DIRECT, STAGED, STATES };

static const char *const state_names[STATES] = {
	"alone", "attached, idle", "updates, direct", "updates, staged"};

struct idle {
	struct bench_options options;
	struct report *report;
	enum gpu_kind kind;
	const char *seconds_text, *path;
	double seconds;
	uint64_t bytes;
	const char *cublas, *trainer_device, *worker_devices;
	struct child load;
	struct load_part part;
	struct samples rate[LOAD_KINDS][STATES], p99[LOAD_KINDS][STATES];
	struct samples update_rate[LOAD_KINDS][STATES]; /* bytes a second */
	uint64_t seed;					/* of the values, another for each phase */
	struct compared compared;
};

static void note(struct idle *idle, enum load_kind kind, enum state state,
	const struct letter *answer, struct load_result *ret_result)
{
	memcpy(ret_result, answer->bytes, sizeof(*ret_result));
	samples_add(&idle->rate[kind][state], ret_result->steps_per_s);
	samples_add(&idle->p99[kind][state], ret_result->p99_s);
}

static void ask_load(struct idle *idle, enum load_kind kind)
{
	const struct load_run run = {kind, idle->seconds};

	child_say(&idle->load, 0, &run, sizeof(run));
}

static void measure(struct idle *idle, enum state state)
{
	struct load_result result;
	struct letter letter;

	for (int kind = 0; kind < LOAD_KINDS; kind++) {
		ask_load(idle, (enum load_kind)kind);
		child_receive(&idle->load, &letter, SCENE_ANSWER_S);
		note(idle, (enum load_kind)kind, state, &letter, &result);
	}
}

/* The trainer publishes until the load has answered; what counts is what it did while the load was
 * measured. Only that can have written what is compared after it: neither an update before it, nor
 * a shadow that one has left. */
static void measure_updates(struct idle *idle, struct scene *scene, enum state state)
{
	struct load_result result;
	struct letter letter;

	for (int kind = 0; kind < LOAD_KINDS; kind++) {
		struct repeated repeated = {
			.most_s = SCENE_ANSWER_S / 2, .first = scene->version + 1};
		struct beside beside = {0};

		scene_renew(scene, ++idle->seed);
		ask_load(idle, (enum load_kind)kind);
		child_say(&scene->trainer, PART_REPEAT, &repeated, sizeof(repeated));
		child_receive(&idle->load, &letter, SCENE_ANSWER_S);
		note(idle, (enum load_kind)kind, state, &letter, &result);
		beside.start_ns = result.start_ns;
		beside.end_ns = result.end_ns;
		child_say(&scene->trainer, PART_BESIDE, &beside, sizeof(beside));
		child_receive(&scene->trainer, &letter, SCENE_ANSWER_S);
		memcpy(&repeated, letter.bytes, sizeof(repeated));
		scene->version += repeated.updates;
		child_receive(&scene->trainer, &letter, SCENE_ANSWER_S);
		memcpy(&beside, letter.bytes, sizeof(beside));
		if (beside.seconds <= 0) {
			bench_fail(EXIT_RUNTIME, "no update was under way beside the load");
		}
		samples_add(&idle->update_rate[kind][state],
			beside.updates * (double)idle->bytes / beside.seconds);
		scene_compare(scene, idle->seed, &idle->compared);
	}
}

/* strew comes, is measured, and leaves. */
static void attach(struct idle *idle, enum state state)
{
	struct scene *scene = bench_need(calloc(1, sizeof(*scene)));
	struct brokers brokers;
	struct joined workers, trainer;
	struct published published;
	const bool two = strcmp(idle->path, "wire") == 0;

	brokers_prepare(&brokers, two);
	*scene = (struct scene){.kind = idle->kind,
		.device = idle->trainer_device,
		.worker_devices = idle->worker_devices,
		.model = {.cut = 64, .bytes = idle->bytes, .tp = 2},
		.gate = STREW_GATE_LIVE,
		.apply = state == STAGED ? STREW_APPLY_STAGED : STREW_APPLY_DIRECT,
		.on_host = strcmp(idle->path, "host") == 0,
		.brokers = &brokers};
	scene_start(scene);
	scene_ask_number(&scene->trainer, PART_FILL, ++idle->seed);
	/* A broker without a device takes the GPU of whoever registers first: the load's, maybe. */
	brokers_start(&brokers, &(struct brokers_options){.kind = idle->kind,
					.two = two,
					.lead_device = bench_gpu(scene->device),
					.node_device = two ? idle->options.device : NULL});
	scene_join(scene, &workers, &trainer);
	scene_publish(scene, &published);
	if (state == DIRECT) {
		measure(idle, IDLE);
	}
	measure_updates(idle, scene, state);
	scene_stop(scene);
	brokers_stop(&brokers);
	free(scene);
}

static void print(struct idle *idle)
{
	char name[80];

	for (int kind = 0; kind < LOAD_KINDS; kind++) {
		for (int state = 0; state < STATES; state++) {
			const struct samples *alone = &idle->rate[kind][ALONE];

			snprintf(
				name, sizeof(name), "%s, %s", load_names[kind], state_names[state]);
			report_values(idle->report, name, "steps/s", &idle->rate[kind][state],
				"alone", state == ALONE ? NULL : alone);
			snprintf(name, sizeof(name), "%s, %s: 99th percentile of a step",
				load_names[kind], state_names[state]);
			report_times(idle->report, name, 0, &idle->p99[kind][state], "alone",
				state == ALONE ? NULL : &idle->p99[kind][ALONE]);
			if (idle->update_rate[kind][state].n) {
				snprintf(name, sizeof(name), "%s, %s: bytes updated",
					load_names[kind], state_names[state]);
				report_values(idle->report, name, "bytes/s",
					&idle->update_rate[kind][state], NULL, NULL);
			}
		}
	}
	compared_report(&idle->compared, idle->report);
}

static void finish(struct idle *idle)
{
	for (int kind = 0; kind < LOAD_KINDS; kind++) {
		for (int state = 0; state < STATES; state++) {
			samples_finish(&idle->rate[kind][state]);
			samples_finish(&idle->p99[kind][state]);
			samples_finish(&idle->update_rate[kind][state]);
		}
	}
	report_print(idle->report, stdout);
	report_destroy(idle->report);
}

/* Where nobody said otherwise, all are on the load's GPU. */
static void place(struct idle *idle)
{
	const char *load = bench_gpu(idle->options.device);
	bool said = idle->trainer_device || idle->worker_devices;

	idle->trainer_device = idle->trainer_device ? idle->trainer_device : idle->options.device;
	idle->worker_devices = idle->worker_devices ? idle->worker_devices : load;
	if (said) {
		report_text(idle->report, "GPUs", "load %s, trainer %s, workers %s", load,
			bench_gpu(idle->trainer_device), idle->worker_devices);
	}
}

int cmd_idle(int argc, char **argv)
{
	static struct idle idle = {.seconds_text = "1", .path = "node", .bytes = 1ull << 30};
	const struct bench_option own[] = {{.name = "seconds", .text = &idle.seconds_text},
		{.name = "bytes", .bytes = &idle.bytes}, {.name = "path", .text = &idle.path},
		{.name = "trainer-device", .text = &idle.trainer_device},
		{.name = "worker-devices", .text = &idle.worker_devices},
		{.name = "cublas", .text = &idle.cublas}, {0}};

	char *end;

	bench_parse(argc, argv, help, &idle.options, own);
	idle.seconds = strtod(idle.seconds_text, &end);
	if (*end || !(idle.seconds >= 0.01 && idle.seconds <= 3600)) {
		fprintf(stderr, "%s: --seconds %s: 0.01 to 3600 is wanted; see %s --help\n",
			argv[0], idle.seconds_text, argv[0]);
		return EXIT_USAGE;
	}
	if (!bench_one_of(idle.path, "node", "wire", "host")) {
		fprintf(stderr, "%s: --path %s: node, wire or host is wanted; see %s --help\n",
			argv[0], idle.path, argv[0]);
		return EXIT_USAGE;
	}
	idle.seed = idle.options.seed;
	idle.report = report_create("idle", idle.options.json);
	idle.kind = bench_machine(&idle.options, idle.report);
	report_text(idle.report, "way", "%s", idle.path);
	place(&idle);
	idle.part = (struct load_part){idle.kind, idle.options.device, idle.cublas};
	child_start(&idle.load, "the load", part_load, &idle.part);
	for (uint64_t round = 0; round < idle.options.samples; round++) {
		measure(&idle, ALONE);
		attach(&idle, DIRECT);
		attach(&idle, STAGED);
	}
	child_stop(&idle.load);
	print(&idle);
	finish(&idle);
	return compared_verdict(&idle.compared);
}
