/* strew-bench update: whole updates through the real programs, beside the raw ways. */
#include "base/clock.h"
#include "bench/brokers.h"
#include "bench/parts.h"
#include <stdlib.h>
#include <string.h>

static const char help[] =
	"Usage: strew-bench update --model CONFIG.json [options]\n"
	"       strew-bench update --cut N --bytes SIZE [options]\n"
	"\n"
	"Whole updates, from publish to the last worker's applied: a trainer, brokers and\n"
	"tensor-parallel workers as processes of their own. Every byte of the last update is\n"
	"compared after the timed region, into memory that was poisoned before it.\n"
	"\n"
	"  --model CONFIG     a config.json as published (see bench/models/)\n"
	"  --layers N         the first N layers (default: all)\n"
	"  --cut N            instead of a model: N tensors of equal length,\n"
	"  --bytes SIZE       this long in all (default 1G)\n"
	"  --tp N             tensor-parallel workers (default 2)\n"
	"  --path PATH        node: one broker, trainer and workers on its GPUs (default);\n"
	"                     wire: two brokers, on one GPU by NCCL over sockets; host: one "
	"broker,\n"
	"                     the trainer's tensors in host memory\n"
	"  --apply APPLY      direct (default) or staged\n"
	"  --gate GATE        live (default), or held: the pause of the engine is measured too\n"
	"  --worker-devices L GPUs of the workers, e.g. 0,1 (default: --device for all)\n"
	"  --node-device GPU  of the joining broker's slots (wire)\n"
	"  --slot SIZE, --slots N, --shadow gpu|host   as strewd's\n" BENCH_OPTIONS_HELP;

#define TP_MAX 64
#define WARM 2

struct update {
	struct bench_options options;
	struct bench_model model;
	const char *path, *apply, *gate, *worker_devices, *node_device;
	const char *shadow;
	uint64_t slot_bytes, slots;
	enum gpu_kind kind;
	struct report *report;
	struct shapes shapes;
	uint64_t largest_worker;
	struct brokers brokers;
	struct child trainer, workers[TP_MAX], nccl[2];
	struct part parts[TP_MAX + 3];
	uint64_t version, unused_bytes;
	double first_s;
	struct samples update, wait, accept, move, commit, gather, local, wire, scatter, raw,
		pieces, pause, pause_raw;
	struct samples nccl_times[3];
	uint64_t wire_bytes;
};

static const uint64_t nccl_pieces[3] = {64ull << 20, 256ull << 20, 1ull << 30};
static const char *const nccl_names[3] = {"NCCL, 64 MiB", "NCCL, 256 MiB", "NCCL, 1 GiB"};

static bool is_wire(const struct update *update)
{
	return strcmp(update->path, "wire") == 0;
}

static double ask_seconds(struct child *child, uint32_t what, uint64_t number)
{
	struct letter letter;
	double seconds;

	child_ask(child, what, &number, sizeof(number), &letter, 600);
	memcpy(&seconds, letter.bytes, sizeof(seconds));
	return seconds;
}

static uint64_t ask_number(struct child *child, uint32_t what, uint64_t number)
{
	struct letter letter;

	child_ask(child, what, &number, sizeof(number), &letter, 600);
	memcpy(&number, letter.bytes, sizeof(number));
	return number;
}

/* The i-th of "0,1", as long as there are any, else the last. */
static const char *device_of(const struct update *update, uint32_t rank)
{
	const char *at = update->worker_devices;
	char one[64];

	if (!at) {
		return update->options.device;
	}
	for (uint32_t i = 0; i < rank && strchr(at, ','); i++) {
		at = strchr(at, ',') + 1;
	}
	snprintf(one, sizeof(one), "%.*s", (int)strcspn(at, ","), at);
	return strdup(one); /* lives as long as the bench */
}

static void start_parts(struct update *update)
{
	uint32_t tp = (uint32_t)update->model.tp;
	struct part common = {.kind = update->kind,
		.device = update->options.device,
		.model = update->model,
		.gate = strcmp(update->gate, "held") == 0 ? STREW_GATE_HELD : STREW_GATE_LIVE,
		.apply = strcmp(update->apply, "staged") == 0 ? STREW_APPLY_STAGED
							      : STREW_APPLY_DIRECT,
		.timeout_s = 300};

	for (uint32_t i = 0; i < tp; i++) {
		struct part *part = &update->parts[i];

		*part = common;
		part->rank = i;
		part->device = device_of(update, i);
		part->socket = update->brokers.node_socket;
		child_start(&update->workers[i], "a worker", part_worker, part);
	}
	update->parts[tp] = common;
	update->parts[tp].socket = update->brokers.lead_socket;
	update->parts[tp].on_host = strcmp(update->path, "host") == 0;
	child_start(&update->trainer, "the trainer", part_trainer, &update->parts[tp]);
	for (uint32_t i = 0; i < 2 && is_wire(update) && update->kind == GPU_CUDA; i++) {
		struct part *part = &update->parts[tp + 1 + i];

		*part = common;
		part->rank = i;
		part->one_gpu = !update->node_device;
		part->device =
			i && update->node_device ? update->node_device : update->options.device;
		child_start(&update->nccl[i], "plain NCCL", part_nccl, part);
	}
}

/* Asks all workers at once, since they wait for each other. */
static void ask_workers(struct update *update, uint32_t what, uint64_t number,
	void (*each)(struct update *update, uint32_t rank, const struct letter *answer))
{
	struct letter *letter = calloc(1, sizeof(*letter));

	if (!letter) {
		bench_fail(EXIT_RUNTIME, "out of memory");
	}
	letter->what = what;
	letter->len_bytes = sizeof(number);
	memcpy(letter->bytes, &number, sizeof(number));
	for (uint32_t i = 0; i < update->model.tp; i++) {
		child_send(&update->workers[i], letter);
	}
	for (uint32_t i = 0; i < update->model.tp; i++) {
		child_receive(&update->workers[i], letter, 600);
		if (each) {
			each(update, i, letter);
		}
	}
	free(letter);
}

static void init_nccl(struct update *update)
{
	struct letter id, letter;

	if (!update->nccl[0].pid) {
		return;
	}
	setenv("NCCL_SOCKET_IFNAME", "lo", 0);
	child_ask(&update->nccl[0], PART_ID, NULL, 0, &id, 60);
	id.what = PART_INIT;
	for (int i = 0; i < 2; i++) {
		child_send(&update->nccl[i], &id);
	}
	for (int i = 0; i < 2; i++) {
		child_receive(&update->nccl[i], &letter, 120);
	}
}

/* From when both ranks were called to when both were done. */
static double broadcast(struct update *update, uint64_t len_bytes, uint64_t piece_bytes)
{
	const struct broadcast question = {len_bytes, piece_bytes};
	struct letter letter = {.what = PART_BROADCAST, .len_bytes = sizeof(question)};
	struct broadcast_times times;
	uint64_t start = 0, end = 0;

	memcpy(letter.bytes, &question, sizeof(question));
	/* The receiver first, so that it stands ready as a broker's does after `go`. */
	for (int i = 2; i-- > 0;) {
		child_send(&update->nccl[i], &letter);
	}
	for (int i = 0; i < 2; i++) {
		child_receive(&update->nccl[i], &letter, 600);
		memcpy(&times, letter.bytes, sizeof(times));
		start = MAX(start, times.start_ns);
		end = MAX(end, times.end_ns);
	}
	return (double)(end - start) * 1e-9;
}

static void publish(struct update *update, struct published *ret_published)
{
	struct letter letter;
	uint64_t version = ++update->version;

	child_ask(&update->trainer, PART_PUBLISH, &version, sizeof(version), &letter, 600);
	memcpy(ret_published, letter.bytes, sizeof(*ret_published));
}

static void note_pause(struct update *update, uint32_t rank, const struct letter *answer)
{
	double seconds;

	memcpy(&seconds, answer->bytes, sizeof(seconds));
	if (rank == 0) {
		samples_add(&update->pause, seconds);
	} else if (seconds > update->pause.v[update->pause.n - 1]) {
		update->pause.v[update->pause.n - 1] = seconds;
	}
}

/* One round: every raw way once, then an update. */
static void measure(struct update *update, bool last)
{
	struct published published;
	double seconds;

	samples_add(
		&update->raw, ask_seconds(&update->trainer, PART_RAW_COPY, update->shapes.bytes));
	seconds = ask_seconds(&update->trainer, PART_RAW_PIECES, 0);
	if (seconds > 0) {
		samples_add(&update->pieces, seconds);
	}
	samples_add(&update->pause_raw,
		ask_seconds(&update->trainer, PART_RAW_COPY, update->largest_worker));
	for (int i = 0; i < 3 && update->nccl[0].pid; i++) {
		samples_add(&update->nccl_times[i],
			broadcast(update, update->shapes.bytes, nccl_pieces[i]));
	}
	if (last) {
		ask_workers(update, PART_POISON, 0, NULL);
		ask_number(&update->trainer, PART_FILL, update->options.seed + 1);
	}
	publish(update, &published);
	samples_add(&update->update, published.host_s);
	samples_add(&update->wait, published.report.wait_s);
	samples_add(&update->accept, published.report.accept_s);
	samples_add(&update->move, published.report.move_s);
	samples_add(&update->commit, published.report.commit_s);
	samples_add(&update->gather, published.report.gather_s);
	samples_add(&update->local, published.report.local_s);
	samples_add(&update->wire, published.report.wire_s);
	samples_add(&update->scatter, published.report.scatter_s);
	update->wire_bytes = published.report.wire_bytes;
	if (strcmp(update->gate, "held") == 0) {
		ask_workers(update, PART_PAUSE, 0, note_pause);
	}
}

static uint64_t wrong_bytes, compared_bytes;

static void note_compared(struct update *update, uint32_t rank, const struct letter *answer)
{
	struct compared compared;

	(void)update;
	(void)rank;
	memcpy(&compared, answer->bytes, sizeof(compared));
	wrong_bytes += compared.wrong;
	compared_bytes += compared.bytes;
}

static double joined_s, described_s;

static void note_joined(struct update *update, uint32_t rank, const struct letter *answer)
{
	struct joined joined;

	(void)update;
	(void)rank;
	memcpy(&joined, answer->bytes, sizeof(joined));
	joined_s = MAX(joined_s, joined.register_s);
	described_s = MAX(described_s, joined.describe_s);
}

/* Everything up to the first update, and what it costs on the device. */
static void set_up(struct update *update)
{
	struct brokers_options options = {.kind = update->kind,
		.two = is_wire(update),
		.lead_device = update->options.device,
		.node_device = update->node_device ? update->node_device : update->options.device,
		.slot_bytes = update->slot_bytes,
		.slots = update->slots,
		.pinned_shadows = strcmp(update->shadow, "host") == 0};
	struct published published;
	struct letter letter;
	struct joined joined;
	uint64_t before, after;

	brokers_prepare(&update->brokers, options.two);
	start_parts(update);
	ask_workers(update, PART_POISON, 0, NULL);
	ask_number(&update->trainer, PART_FILL, update->options.seed);
	ask_seconds(&update->trainer, PART_RAW_COPY, update->shapes.bytes);
	ask_seconds(&update->trainer, PART_RAW_PIECES, 0);
	init_nccl(update);
	if (update->nccl[0].pid) {
		broadcast(update, MIN(update->shapes.bytes, nccl_pieces[2]), nccl_pieces[2]);
	}
	before = ask_number(&update->trainer, PART_FREE, 0);
	brokers_start(&update->brokers, &options);
	ask_workers(update, PART_JOIN, 0, note_joined);
	child_ask(&update->trainer, PART_JOIN, NULL, 0, &letter, 600);
	memcpy(&joined, letter.bytes, sizeof(joined));
	publish(update, &published);
	after = ask_number(&update->trainer, PART_FREE, 0);
	update->first_s = published.host_s;
	update->unused_bytes = before > after ? before - after : 0;
	report_number(update->report, "describing, slowest worker", "s", described_s);
	report_number(update->report, "registering, slowest worker", "s", joined_s);
	report_number(update->report, "describing, trainer", "s", joined.describe_s);
	report_number(update->report, "sealing, trainer", "s", joined.register_s);
	report_number(update->report, "first update, plans made in it", "s", published.host_s);
	report_number(update->report, "device memory taken by brokers, slots and shadows", "MiB",
		(double)update->unused_bytes / 1048576);
	for (int i = 0; i < WARM; i++) {
		publish(update, &published);
	}
}

static const struct samples *best_nccl(const struct update *update, const char **ret_name)
{
	int best = 0;

	for (int i = 1; i < 3; i++) {
		if (samples_median(&update->nccl_times[i]) <
			samples_median(&update->nccl_times[best])) {
			best = i;
		}
	}
	*ret_name = nccl_names[best];
	return &update->nccl_times[best];
}

/* A stage that this way has. */
static void print_stage(struct update *update, const char *name, const struct samples *seconds)
{
	if (samples_median(seconds) > 0) {
		report_times(update->report, name, update->shapes.bytes, seconds, NULL, NULL);
	}
}

static void print(struct update *update)
{
	const char *raw_name = strcmp(update->path, "host") == 0 ? "pinned copy" : "plain copy";
	const struct samples *raw = &update->raw;
	struct report *report = update->report;
	uint64_t bytes = update->shapes.bytes;

	if (update->nccl[0].pid) {
		raw = best_nccl(update, &raw_name);
		for (int i = 0; i < 3; i++) {
			report_times(
				report, nccl_names[i], bytes, &update->nccl_times[i], NULL, NULL);
		}
	}
	report_times(report, "update", bytes, &update->update, raw_name, raw);
	if (update->pieces.n) {
		report_times(report, "update, beside one kernel over all pieces", bytes,
			&update->update, "kernel", &update->pieces);
		report_times(report, "kernel over all pieces", bytes, &update->pieces, "plain copy",
			&update->raw);
	}
	report_number(report, "slack beside raw", "ms",
		(samples_median(&update->update) - samples_median(raw)) * 1e3);
	report_times(report, "  publish to every stream done", 0, &update->wait, NULL, NULL);
	report_times(report, "  accept", 0, &update->accept, NULL, NULL);
	report_times(report, "  move", bytes, &update->move, NULL, NULL);
	print_stage(update, "    gather done", &update->gather);
	print_stage(update, "    local copies done", &update->local);
	print_stage(update, "    wire done", &update->wire);
	print_stage(update, "    scatter done", &update->scatter);
	report_times(report, "  commit", 0, &update->commit, NULL, NULL);
	if (update->pause.n) {
		report_times(report, "pause of the held gate, slowest worker",
			update->largest_worker, &update->pause, "plain copy", &update->pause_raw);
	}
	report_number(report, "bytes compared", "bytes", (double)compared_bytes);
	report_number(report, "bytes wrong", "bytes", (double)wrong_bytes);
}

static void stop(struct update *update)
{
	for (uint32_t i = 0; i < update->model.tp; i++) {
		child_stop(&update->workers[i]);
	}
	child_stop(&update->trainer);
	child_stop(&update->nccl[0]);
	child_stop(&update->nccl[1]);
	brokers_stop(&update->brokers);
}

static void describe(struct update *update)
{
	char bytes[32];

	for (uint32_t rank = 0; rank < update->model.tp; rank++) {
		struct shapes shapes;

		bench_shapes(&update->model, rank, &shapes);
		update->largest_worker = MAX(update->largest_worker, shapes.worker_bytes);
		shapes_finish(&shapes);
	}
	bench_shapes(&update->model, 0, &update->shapes);
	report_text(update->report, "model", "%s, %zu tensors, %s, TP = %llu",
		update->model.config ? update->model.config : "cut", update->shapes.ntensors,
		format_bytes(bytes, sizeof(bytes), update->shapes.bytes),
		(unsigned long long)update->model.tp);
	if (update->model.config) {
		report_text(update->report, "layers", "%llu of %llu",
			(unsigned long long)update->shapes.layers,
			(unsigned long long)update->shapes.all_layers);
	}
	report_text(update->report, "way", "%s, %s apply, %s gate", update->path, update->apply,
		update->gate);
}

static bool one_of(const char *text, const char *a, const char *b, const char *c)
{
	return strcmp(text, a) == 0 || strcmp(text, b) == 0 || (c && strcmp(text, c) == 0);
}

static void parse(struct update *update, int argc, char **argv)
{
	const struct bench_option own[] = {{.name = "model", .text = &update->model.config},
		{.name = "layers", .number = &update->model.layers},
		{.name = "cut", .number = &update->model.cut},
		{.name = "bytes", .bytes = &update->model.bytes},
		{.name = "tp", .number = &update->model.tp},
		{.name = "path", .text = &update->path}, {.name = "apply", .text = &update->apply},
		{.name = "gate", .text = &update->gate},
		{.name = "worker-devices", .text = &update->worker_devices},
		{.name = "node-device", .text = &update->node_device},
		{.name = "slot", .bytes = &update->slot_bytes},
		{.name = "slots", .number = &update->slots},
		{.name = "shadow", .text = &update->shadow}, {0}};

	bench_parse(argc, argv, help, &update->options, own);
	if (!update->model.config == !update->model.cut || update->model.tp > TP_MAX ||
		!one_of(update->path, "node", "wire", "host") ||
		!one_of(update->apply, "direct", "staged", NULL) ||
		!one_of(update->gate, "live", "held", NULL) ||
		!one_of(update->shadow, "gpu", "host", NULL)) {
		fprintf(stderr,
			"%s: --model or --cut, at most %d ranks, --path node|wire|host, "
			"--apply direct|staged, --gate live|held and --shadow gpu|host are wanted; "
			"see %s --help\n",
			argv[0], TP_MAX, argv[0]);
		exit(EXIT_USAGE);
	}
}

int cmd_update(int argc, char **argv)
{
	static struct update update = {.path = "node",
		.apply = "direct",
		.gate = "live",
		.shadow = "gpu",
		.model = {.tp = 2, .bytes = 1ull << 30}};

	parse(&update, argc, argv);
	update.report = report_create("update", update.options.json);
	update.kind = bench_machine(&update.options, update.report);
	describe(&update);
	set_up(&update);
	for (uint64_t i = 0; i < update.options.samples; i++) {
		measure(&update, i + 1 == update.options.samples);
	}
	ask_workers(&update, PART_COMPARE, update.options.seed + 1, note_compared);
	print(&update);
	stop(&update);
	report_print(update.report, stdout);
	report_destroy(update.report);
	shapes_finish(&update.shapes);
	if (wrong_bytes) {
		fprintf(stderr, "strew-bench: %llu of %llu bytes are wrong\n",
			(unsigned long long)wrong_bytes, (unsigned long long)compared_bytes);
	}
	return wrong_bytes || !compared_bytes ? EXIT_RUNTIME : EXIT_OK;
}
