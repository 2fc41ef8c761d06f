/* strew-bench update: whole updates through the real programs, beside the raw ways. */
#include "base/limits.h"
#include "bench/plain_nccl.h"
#include "bench/scene.h"
#include <stdlib.h>
#include <string.h>

static const char help[] =
	"Usage: strew-bench update --model CONFIG.json [options]\n"
	"       strew-bench update --cut N --bytes SIZE [options]\n"
	"\n"
	"Whole updates, from publish to the last worker's applied: a trainer, brokers and\n"
	"tensor-parallel workers as processes of their own. Every byte of the last update is\n"
	"compared after the timed region, into memory that was poisoned before it. Beside a raw\n"
	"figure stand the update (plain copies, copies to the peer, pinned copies, or NCCL's\n"
	"best), without --path wire the same beside one kernel over all pieces, and the pause of\n"
	"a held gate (a plain copy of the largest worker's bytes); the stages stand alone. From\n"
	"the host to several GPUs a pinned copy is made to each, one after another, of what its\n"
	"workers get, and the slowest stands beside the update.\n"
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
	"  --hash             compare what goes over the wire at both ends (staged: always)\n"
	"  --gate GATE        live (default), or held: the pause of the engine is measured too\n"
	"  --worker-devices L GPUs of the workers, e.g. 0,1 (default: --device for all)\n"
	"  --node-device GPU  of the joining broker's slots (wire)\n"
	"  --slot SIZE, --slots N, --shadow gpu|host   as strewd's\n" BENCH_OPTIONS_HELP;

#define WARM 2

/* What goes to the workers of one GPU, and how long plain copies of as many bytes take. */
struct way {
	const char *device; /* NULL: all workers, by the trainer's GPU */
	uint64_t bytes;
	struct samples raw;
};

struct update {
	struct bench_options options;
	const char *path, *apply, *gate, *node_device;
	const char *shadow;
	uint64_t slot_bytes, slots;
	enum gpu_kind kind;
	struct report *report;
	struct shapes shapes;
	uint64_t largest_worker;
	uint64_t home_workers; /* bytes of those on the trainer's GPU */
	struct brokers brokers;
	struct scene scene;
	struct way ways[SCENE_TP_MAX]; /* the raw ones; one at least */
	size_t nways;
	struct child *away; /* a worker on another GPU than the trainer's; NULL: there is none */
	struct plain_nccl nccl; /* where the wire is NCCL's */
	struct compared compared;
	struct samples update, wait, accept, move, commit, gather, local, wire, scatter, pieces,
		pause, pause_raw;
	uint64_t wire_bytes;
};

static bool is_wire(const struct update *update)
{
	return strcmp(update->path, "wire") == 0;
}

/* Of the joining broker: the trainer's where no other one is named. */
static const char *node_device(const struct update *update)
{
	return update->node_device ? update->node_device : update->options.device;
}

static void note_pause(void *data, uint32_t rank, const struct letter *answer)
{
	struct update *update = data;
	double seconds;

	memcpy(&seconds, answer->bytes, sizeof(seconds));
	if (rank == 0) {
		samples_add(&update->pause, seconds);
	} else if (seconds > update->pause.v[update->pause.n - 1]) {
		update->pause.v[update->pause.n - 1] = seconds;
	}
}

static bool is_away(const struct update *update, const char *device)
{
	return device && !bench_same_gpu(device, update->options.device);
}

static bool by_peer_link(const struct update *update)
{
	return update->away && strcmp(update->path, "node") == 0;
}

/* What a kernel moves within the GPU has nothing to do with bytes that cross a wire or a link. */
static bool has_pieces(const struct update *update)
{
	return !is_wire(update) && !by_peer_link(update);
}

static double measure_way(struct update *update, const struct way *way)
{
	struct child *trainer = &update->scene.trainer;
	struct raw_to to = {.len_bytes = way->bytes};
	struct letter letter;
	double seconds;

	if (!is_away(update, way->device)) {
		return scene_ask_seconds(trainer, PART_RAW_COPY, way->bytes);
	}
	string_copy(to.peer, sizeof(to.peer), way->device);
	child_ask(trainer, PART_RAW_PEER, &to, sizeof(to), &letter, SCENE_ANSWER_S);
	memcpy(&seconds, letter.bytes, sizeof(seconds));
	return seconds;
}

/* An update goes to all GPUs at once, and is held against the slowest of the raw copies, which are
 * made one after another: each link has the host to itself there, and the update has not. */
static const struct way *slowest(const struct update *update)
{
	const struct way *way = &update->ways[0];

	for (size_t i = 1; i < update->nways; i++) {
		if (samples_median(&update->ways[i].raw) > samples_median(&way->raw)) {
			way = &update->ways[i];
		}
	}
	return way;
}

/* One round: every raw way once, then an update. */
static void measure(struct update *update, bool last)
{
	struct published published;
	double seconds;

	for (size_t i = 0; i < update->nways; i++) {
		samples_add(&update->ways[i].raw, measure_way(update, &update->ways[i]));
	}
	seconds = has_pieces(update) ? scene_ask_seconds(&update->scene.trainer, PART_RAW_PIECES, 0)
				     : -1;
	if (seconds > 0) {
		samples_add(&update->pieces, seconds);
	}
	samples_add(&update->pause_raw,
		scene_ask_seconds(&update->scene.trainer, PART_RAW_WITHIN, update->largest_worker));
	if (plain_nccl_there(&update->nccl)) {
		plain_nccl_measure(&update->nccl);
	}
	if (last) {
		scene_renew(&update->scene, update->options.seed + 1);
	}
	scene_publish(&update->scene, &published);
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
		scene_ask_workers(&update->scene, PART_PAUSE, 0, note_pause, update);
	}
}

/* Device memory free on the trainer's GPU and on another one, if there is a worker. */
static void ask_free(struct update *update, uint64_t ret_bytes[2])
{
	ret_bytes[0] = scene_ask_number(&update->scene.trainer, PART_FREE, 0);
	ret_bytes[1] = update->away ? scene_ask_number(update->away, PART_FREE, 0) : 0;
}

/* What brokers took of the trainer's GPU, and how much of it each has for itself: context, module,
 * communicator, plans. Slots are there where there is a wire, and a context where slots or shadows
 * are. Beside a communicator stands what NCCL takes for itself in a rank that has nothing else. */
static void report_memory(struct update *update, uint64_t taken_bytes)
{
	uint64_t slots = (update->slot_bytes ? update->slot_bytes : DEFAULT_SLOT_BYTES) *
			 (update->slots ? update->slots : DEFAULT_SLOTS);
	bool staged = strcmp(update->apply, "staged") == 0;
	bool joiner =
		is_wire(update) && bench_same_gpu(node_device(update), update->options.device);
	uint64_t buffers = is_wire(update) ? slots * (joiner ? 2 : 1) : 0;
	unsigned brokers = 1;

	if (staged && strcmp(update->shadow, "gpu") == 0) {
		buffers += update->home_workers;
	}
	if (is_wire(update) && (joiner || (staged && update->home_workers))) {
		brokers = 2;
	}
	report_number(update->report, "device memory taken by brokers, slots and shadows", "MiB",
		(double)taken_bytes / 1048576);
	report_number(update->report, "device memory of a broker besides slots and shadows", "MiB",
		(double)(taken_bytes - MIN(taken_bytes, buffers)) / brokers / 1048576);
	if (plain_nccl_there(&update->nccl)) {
		report_number(update->report,
			"device memory of a plain NCCL rank besides its buffer", "MiB",
			update->nccl.own_bytes / 1048576);
	}
}

/* Everything up to the first update, and what it costs on the device. */
static void set_up(struct update *update)
{
	struct brokers_options options = {.kind = update->kind,
		.two = is_wire(update),
		/* One without takes the GPU of whoever registers first. */
		.lead_device = bench_gpu(update->options.device),
		.node_device = bench_gpu(node_device(update)),
		.slot_bytes = update->slot_bytes,
		.slots = update->slots,
		.pinned_shadows = strcmp(update->shadow, "host") == 0};
	struct published published;
	struct joined workers, trainer;
	uint64_t before[2], after[2];

	brokers_prepare(&update->brokers, options.two);
	update->scene.brokers = &update->brokers;
	scene_start(&update->scene);
	if (is_wire(update) && update->kind == GPU_CUDA) {
		plain_nccl_start(&update->nccl, update->options.device, node_device(update),
			update->shapes.bytes);
	}
	scene_renew(&update->scene, update->options.seed);
	for (size_t i = 0; i < update->nways; i++) {
		measure_way(update, &update->ways[i]);
	}
	scene_ask_seconds(&update->scene.trainer, PART_RAW_WITHIN, update->largest_worker);
	if (has_pieces(update)) {
		scene_ask_seconds(&update->scene.trainer, PART_RAW_PIECES, 0);
	}
	if (plain_nccl_there(&update->nccl)) {
		plain_nccl_join(&update->nccl);
	}
	ask_free(update, before);
	brokers_start(&update->brokers, &options);
	scene_join(&update->scene, &workers, &trainer);
	scene_publish(&update->scene, &published);
	ask_free(update, after);
	report_number(update->report, "describing, slowest worker", "s", workers.describe_s);
	report_number(update->report, "registering, slowest worker", "s", workers.register_s);
	report_number(update->report, "describing, trainer", "s", trainer.describe_s);
	report_number(update->report, "sealing, trainer", "s", trainer.register_s);
	report_number(update->report, "first update, plans made in it", "s", published.host_s);
	report_memory(update, before[0] - MIN(before[0], after[0]));
	if (update->away) {
		report_number(update->report,
			"device memory taken by brokers on another GPU than the trainer's", "MiB",
			(double)(before[1] - MIN(before[1], after[1])) / 1048576);
	}
	for (int i = 0; i < WARM; i++) {
		scene_publish(&update->scene, &published);
	}
}

static const char *name_way(
	const struct update *update, const struct way *way, char *buf, size_t buf_bytes)
{
	if (strcmp(update->path, "host") != 0) {
		return by_peer_link(update) ? "copy to the peer" : "plain copy";
	}
	snprintf(buf, buf_bytes, "pinned copy%s%s", way->device ? " to GPU " : "",
		way->device ? way->device : "");
	return buf;
}

/* Of several each by itself. */
static void print_ways(const struct update *update)
{
	char name[96];

	for (size_t i = 0; i < update->nways && update->nways > 1; i++) {
		const struct way *way = &update->ways[i];

		report_times(update->report, name_way(update, way, name, sizeof(name)), way->bytes,
			&way->raw, NULL, NULL);
	}
}

/* A stage that there is. */
static void print_stage(struct update *update, const char *name, const struct samples *seconds)
{
	if (samples_median(seconds) > 0) {
		report_times(update->report, name, update->shapes.bytes, seconds, NULL, NULL);
	}
}

static void print(struct update *update)
{
	const struct way *way = slowest(update);
	const struct samples *raw = &way->raw;
	struct report *report = update->report;
	uint64_t bytes = update->shapes.bytes;
	char name[96];
	const char *raw_name = name_way(update, way, name, sizeof(name));

	print_ways(update);
	if (plain_nccl_there(&update->nccl)) {
		raw = plain_nccl_best(&update->nccl, &raw_name);
		plain_nccl_report(&update->nccl, report);
	}
	report_times(report, "update", bytes, &update->update, raw_name, raw);
	if (update->pieces.n) {
		report_times(report, "update, beside one kernel over all pieces", bytes,
			&update->update, "kernel", &update->pieces);
		report_times(report, "kernel over all pieces", bytes, &update->pieces, "plain copy",
			&way->raw);
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
	if (is_wire(update)) {
		report_number(report, "bytes over the wire", "bytes", (double)update->wire_bytes);
	}
	compared_report(&update->compared, report);
}

/* Raw NCCL moves the model's bytes, so that an update has to, too: no casts are declared here.
 * In a slot each tensor begins where SLOT_ALIGN says. */
static int verdict(const struct update *update)
{
	uint64_t most = update->shapes.bytes + update->shapes.ntensors * SLOT_ALIGN;

	if (is_wire(update) &&
		(update->wire_bytes < update->shapes.bytes || update->wire_bytes > most)) {
		fprintf(stderr, "strew-bench: %llu bytes went over the wire, %llu have to\n",
			(unsigned long long)update->wire_bytes,
			(unsigned long long)update->shapes.bytes);
		return EXIT_RUNTIME;
	}
	return compared_verdict(&update->compared);
}

static void stop(struct update *update)
{
	scene_stop(&update->scene);
	plain_nccl_stop(&update->nccl);
	brokers_stop(&update->brokers);
}

/* Workers on named GPUs: what goes to each. */
static void add_to_way(struct update *update, uint32_t rank, uint64_t bytes)
{
	const char *device = scene_device(&update->scene, rank);
	size_t k = 0;

	if (!update->scene.worker_devices) {
		return;
	}
	while (k < update->nways && !bench_same_gpu(update->ways[k].device, device)) {
		k++;
	}
	update->nways = MAX(update->nways, k + 1);
	update->ways[k].device = device;
	update->ways[k].bytes += bytes;
}

/* From the host each GPU has a link of its own, and between GPUs the busiest one counts. Else it is
 * the trainer's GPU that moves all. */
static void choose_ways(struct update *update)
{
	bool host = strcmp(update->path, "host") == 0;
	struct way all = {.bytes = update->shapes.bytes}, busiest = {0};

	for (size_t i = 0; i < update->nways; i++) {
		const struct way *way = &update->ways[i];

		if (way->bytes > busiest.bytes && (host || is_away(update, way->device))) {
			busiest = *way;
		}
	}
	if (host && update->away) {
		return;
	}
	if (busiest.bytes) {
		all.bytes = busiest.bytes;
		all.device = by_peer_link(update) ? busiest.device : NULL;
	}
	update->ways[0] = all;
	update->nways = 1;
}

static void describe(struct update *update)
{
	char bytes[32];

	for (uint32_t rank = 0; rank < update->scene.model.tp; rank++) {
		struct shapes shapes;

		bench_shapes(&update->scene.model, rank, &shapes);
		update->largest_worker = MAX(update->largest_worker, shapes.worker_bytes);
		add_to_way(update, rank, shapes.worker_bytes);
		if (!is_away(update, scene_device(&update->scene, rank))) {
			update->home_workers += shapes.worker_bytes;
		} else {
			update->away = &update->scene.workers[rank];
		}
		shapes_finish(&shapes);
	}
	bench_shapes(&update->scene.model, 0, &update->shapes);
	choose_ways(update);
	report_text(update->report, "model", "%s, %zu tensors, %s, TP = %llu",
		update->scene.model.config ? update->scene.model.config : "cut",
		update->shapes.ntensors, format_bytes(bytes, sizeof(bytes), update->shapes.bytes),
		(unsigned long long)update->scene.model.tp);
	if (update->scene.model.config) {
		report_text(update->report, "layers", "%llu of %llu",
			(unsigned long long)update->shapes.layers,
			(unsigned long long)update->shapes.all_layers);
	}
	report_text(update->report, "way", "%s, %s apply, %s gate%s%s", update->path, update->apply,
		update->gate, update->scene.hash ? ", hashes" : "",
		strcmp(update->shadow, "host") == 0 ? ", shadows in host memory" : "");
	if (update->scene.worker_devices || update->node_device) {
		report_text(update->report, "GPUs", "trainer %s, workers %s, joining broker %s",
			bench_gpu(update->options.device),
			update->scene.worker_devices ? update->scene.worker_devices : "beside it",
			is_wire(update) ? bench_gpu(node_device(update)) : "none");
	}
}

static void parse(struct update *update, int argc, char **argv)
{
	const struct bench_option own[] = {{.name = "model", .text = &update->scene.model.config},
		{.name = "layers", .number = &update->scene.model.layers},
		{.name = "cut", .number = &update->scene.model.cut},
		{.name = "bytes", .bytes = &update->scene.model.bytes},
		{.name = "tp", .number = &update->scene.model.tp},
		{.name = "path", .text = &update->path}, {.name = "apply", .text = &update->apply},
		{.name = "hash", .flag = &update->scene.hash},
		{.name = "gate", .text = &update->gate},
		{.name = "worker-devices", .text = &update->scene.worker_devices},
		{.name = "node-device", .text = &update->node_device},
		{.name = "slot", .bytes = &update->slot_bytes},
		{.name = "slots", .number = &update->slots},
		{.name = "shadow", .text = &update->shadow}, {0}};

	bench_parse(argc, argv, help, &update->options, own);
	if (!update->scene.model.config == !update->scene.model.cut ||
		update->scene.model.tp > SCENE_TP_MAX ||
		!bench_one_of(update->path, "node", "wire", "host") ||
		!bench_one_of(update->apply, "direct", "staged", NULL) ||
		!bench_one_of(update->gate, "live", "held", NULL) ||
		!bench_one_of(update->shadow, "gpu", "host", NULL)) {
		fprintf(stderr,
			"%s: --model or --cut, at most %d ranks, --path node|wire|host, "
			"--apply direct|staged, --gate live|held and --shadow gpu|host are wanted; "
			"see %s --help\n",
			argv[0], SCENE_TP_MAX, argv[0]);
		exit(EXIT_USAGE);
	}
	bench_same_gpu(update->options.device, node_device(update)); /* can it be told? */
}

int cmd_update(int argc, char **argv)
{
	static struct update update = {.path = "node",
		.apply = "direct",
		.gate = "live",
		.shadow = "gpu",
		.scene.model = {.tp = 2, .bytes = 1ull << 30}};
	int code;

	parse(&update, argc, argv);
	update.report = report_create("update", update.options.json);
	update.kind = bench_machine(&update.options, update.report);
	update.scene.kind = update.kind;
	update.scene.device = update.options.device;
	update.scene.gate = strcmp(update.gate, "held") == 0 ? STREW_GATE_HELD : STREW_GATE_LIVE;
	update.scene.apply =
		strcmp(update.apply, "staged") == 0 ? STREW_APPLY_STAGED : STREW_APPLY_DIRECT;
	update.scene.on_host = strcmp(update.path, "host") == 0;
	describe(&update);
	set_up(&update);
	for (uint64_t i = 0; i < update.options.samples; i++) {
		measure(&update, i + 1 == update.options.samples);
	}
	scene_compare(&update.scene, update.options.seed + 1, &update.compared);
	print(&update);
	stop(&update);
	report_print(update.report, stdout);
	report_destroy(update.report);
	code = verdict(&update);
	shapes_finish(&update.shapes);
	return code;
}
