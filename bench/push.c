/* strew-bench push: a checkpoint on disk, by strew push as people call it, beside plain reads. */
#include "bench/disk.h"
#include "bench/scene.h"
#include <stdlib.h>
#include <string.h>

static const char help[] =
	"Usage: strew-bench push --model CONFIG.json --directory DIR [options]\n"
	"\n"
	"Makes a sharded checkpoint of random data in DIR, and removes it at the end. Each round\n"
	"takes it out of the page cache, reads it plainly with O_DIRECT, takes it out again and "
	"runs\n"
	"strew push DIR, from its start to its end, into tensor-parallel workers, in changing\n"
	"order. Their memory is poisoned before every push, and compared after the last. The push\n"
	"stands beside the faster of the plain reads, by one thread and by eight; its two parts\n"
	"stand alone.\n"
	"\n"
	"  --model CONFIG     a config.json as published (see bench/models/)\n"
	"  --layers N         the first N layers (default: all)\n"
	"  --directory DIR    on the disk that is meant; is made, or is empty\n"
	"  --shard SIZE       of a shard, at most (default 5G)\n"
	"  --tp N             tensor-parallel workers (default 2)\n"
	"  --worker-devices L GPUs of the workers, e.g. 0,1 (default: --device for "
	"all)\n" BENCH_OPTIONS_HELP "\n"
	"Exit code 3 too where the directory's file system keeps everything in memory.\n";

#define PUSH_S 900

struct push {
	struct bench_options options;
	const char *directory;
	uint64_t shard_bytes;
	enum gpu_kind kind;
	struct report *report;
	struct shapes shapes;
	struct disk disk;
	struct brokers brokers;
	struct scene scene;
	struct samples one, several, push, reading, update;
};

static struct push push = {.shard_bytes = 5000000000u, .scene.model = {.tp = 2}};

static void remove_disk(void)
{
	disk_remove(&push.disk);
}

/* The seconds that a line of strew push's output says, which begins so. */
static double said(const char *output, const char *begin)
{
	const char *line = strstr(output, begin), *at = line ? strstr(line, " in ") : NULL;
	double seconds = -1;

	for (; at && seconds < 0; at = strstr(at + 1, " in ")) {
		char unit[4] = "";

		if (sscanf(at, " in %lf %3s", &seconds, unit) != 2 || unit[0] != 's') {
			seconds = -1;
		}
	}
	if (seconds < 0) {
		bench_fail(EXIT_RUNTIME, "strew push does not say how long it took: %s", output);
	}
	return seconds;
}

/* From the start of the program to its end. */
static double run_push(double *ret_reading_s, double *ret_update_s)
{
	char version[32], text[4096];
	char *argv[] = {"strew", "push", push.disk.directory, "--model", BENCH_MODEL, "--version",
		version, "--socket", push.brokers.lead_socket, "--timeout", "600", NULL};
	double seconds;

	snprintf(version, sizeof(version), "%llu", (unsigned long long)++push.scene.version);
	seconds = brokers_ask(&push.brokers, argv, PUSH_S, text, sizeof(text));
	*ret_reading_s = said(text, "read ");
	*ret_update_s = said(text, "version ");
	return seconds;
}

/* In another order each time: what lies below the file system may keep what was read last. */
static void measure(uint64_t round)
{
	double one = 0, several = 0, whole = 0, reading = 0, update = 0;

	for (uint64_t i = round; i < round + 3; i++) {
		disk_drop(&push.disk);
		if (i % 3 == 0) {
			one = disk_read(&push.disk, 1);
		} else if (i % 3 == 1) {
			several = disk_read(&push.disk, DISK_THREADS);
		} else {
			scene_ask_workers(&push.scene, PART_POISON, 0, NULL, NULL);
			whole = run_push(&reading, &update);
		}
	}
	if (round) {
		samples_add(&push.one, one);
		samples_add(&push.several, several);
		samples_add(&push.push, whole);
		samples_add(&push.reading, reading);
		samples_add(&push.update, update);
	}
}

static void print(const struct compared *compared)
{
	bool alone = samples_median(&push.one) <= samples_median(&push.several);
	const struct samples *raw = alone ? &push.one : &push.several;
	uint64_t bytes = push.disk.bytes;

	report_times(push.report, "O_DIRECT reads, one thread", bytes, &push.one, NULL, NULL);
	report_times(
		push.report, "O_DIRECT reads, eight threads", bytes, &push.several, NULL, NULL);
	report_times(push.report, "strew push, start to end", bytes, &push.push,
		alone ? "one thread" : "eight threads", raw);
	report_number(push.report, "slack beside raw", "ms",
		(samples_median(&push.push) - samples_median(raw)) * 1e3);
	report_times(push.report, "  reading", bytes, &push.reading, NULL, NULL);
	report_times(push.report, "  update", push.shapes.bytes, &push.update, NULL, NULL);
	compared_report(compared, push.report);
}

static void set_up(void)
{
	struct brokers_options options = {.kind = push.kind, .lead_device = push.options.device};
	char bytes[32];

	bench_shapes(&push.scene.model, 0, &push.shapes);
	report_text(push.report, "model", "%s, %llu of %llu layers, %zu tensors, %s, TP = %llu",
		push.scene.model.config, (unsigned long long)push.shapes.layers,
		(unsigned long long)push.shapes.all_layers, push.shapes.ntensors,
		format_bytes(bytes, sizeof(bytes), push.shapes.bytes),
		(unsigned long long)push.scene.model.tp);
	brokers_prepare(&push.brokers, false);
	push.scene.brokers = &push.brokers;
	push.scene.no_trainer = true;
	scene_start(&push.scene);
	atexit(remove_disk);
	disk_make(&push.disk, push.directory, &push.shapes, push.shard_bytes, push.options.seed);
	report_text(push.report, "directory", "%s, %s, %zu shards", push.disk.directory,
		disk_system(&push.disk), push.disk.nfiles);
	disk_drop(&push.disk);
	brokers_start(&push.brokers, &options);
	scene_ask_workers(&push.scene, PART_JOIN, 0, NULL, NULL);
}

int cmd_push(int argc, char **argv)
{
	const struct bench_option own[] = {{.name = "model", .text = &push.scene.model.config},
		{.name = "layers", .number = &push.scene.model.layers},
		{.name = "tp", .number = &push.scene.model.tp},
		{.name = "directory", .text = &push.directory},
		{.name = "shard", .bytes = &push.shard_bytes},
		{.name = "worker-devices", .text = &push.scene.worker_devices}, {0}};
	struct compared compared = {0};

	bench_parse(argc, argv, help, &push.options, own);
	if (!push.scene.model.config || !push.directory || push.scene.model.tp > SCENE_TP_MAX) {
		fprintf(stderr,
			"%s: --model, --directory and at most %d ranks are wanted; see %s --help\n",
			argv[0], SCENE_TP_MAX, argv[0]);
		return EXIT_USAGE;
	}
	push.report = report_create("push", push.options.json);
	push.kind = bench_machine(&push.options, push.report);
	push.scene.kind = push.kind;
	push.scene.device = push.options.device;
	push.scene.gate = STREW_GATE_LIVE;
	push.scene.apply = STREW_APPLY_DIRECT;
	set_up();
	for (uint64_t i = 0; i <= push.options.samples; i++) {
		measure(i);
	}
	scene_compare(&push.scene, push.options.seed, &compared);
	print(&compared);
	scene_stop(&push.scene);
	brokers_stop(&push.brokers);
	report_print(push.report, stdout);
	report_destroy(push.report);
	shapes_finish(&push.shapes);
	return compared_verdict(&compared);
}
