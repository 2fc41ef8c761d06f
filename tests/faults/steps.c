/*
 * An engine's steps while thousands of updates run: each step reads all of its weights, every
 * element of which is the number of its version, beside what strew_agent_peek() says before and
 * after. A step that sees two versions, or another one than the page names, is torn. The trainer's
 * reports give the updates' times, and the broker must have as many descriptors, and about as much
 * memory, of the host and of the GPU, at the end as near the beginning. On the stand-in for the
 * driver (tests/standin), which counts what a process takes, it must have exactly as much of the
 * GPU's.
 *
 *     steps STREWD [--updates N] [--apply staged|direct] [--read always|seldom]
 *         [--device INDEX [--worker-device INDEX]]
 *
 * By default a step follows the other without a pause, on the same cores and GPU as the update:
 * "seldom" takes one step in a hundred updates, for times in which the engine has no part.
 */
#include "examples/memory.h"
#include "examples/options.h"
#include <dirent.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <strew/strew.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define MODEL "stamps"
#define TENSORS 16
#define STAMPS 512 /* in each */
#define WAIT_MS 60000
#define GROWTH_KIB 1024
#define GROWTH_DEVICE_KIB 2048 /* what the driver takes at once */
#define SELDOM 100	       /* updates for a step */

struct usage {
	unsigned fds, threads;
	uint64_t kib, device_kib; /* of the device: what is left */
	bool counted;		  /* by the stand-in: to the byte */
};

struct engine {
	struct strew_agent *agent;
	struct memory *memory;
	uint64_t *weights;
	uint64_t seen[TENSORS * STAMPS];
	uint64_t version, steps, committed, torn;
	bool paused, seldom;
};

static char directory[] = "/tmp/strew-steps-XXXXXX";
static char socket_path[64];
static pid_t broker, trainer;
static int engine_side[2]; /* a byte: it is there; the end: it has seen all */

static void end_children(void)
{
	char path[80];

	if (trainer > 0) {
		kill(trainer, SIGKILL);
		waitpid(trainer, NULL, 0);
	}
	if (broker > 0) {
		kill(broker, SIGTERM);
		waitpid(broker, NULL, 0);
	}
	unlink(socket_path);
	snprintf(path, sizeof(path), "%s.lock", socket_path);
	unlink(path);
	snprintf(path, sizeof(path), "%s/%d.cuda", directory, (int)broker);
	unlink(path);
	rmdir(directory);
}

__attribute__((noreturn)) static void fail(const char *what)
{
	fprintf(stderr, "steps: %s: %s\n", what, strew_error());
	exit(1);
}

static void start_broker(const char *program, bool cuda)
{
	char text[16], byte;
	int ready[2];

	if (pipe(ready) < 0) {
		fail("pipe");
	}
	broker = fork();
	if (broker == 0) {
		close(ready[0]);
		setenv("STANDIN_DIR", directory, 1); /* where the stand-in counts */
		snprintf(text, sizeof(text), "%d", ready[1]);
		execl(program, program, "--socket", socket_path, "--backend",
			cuda ? "cuda" : "host", "--ready-fd", text, (char *)NULL);
		_exit(127);
	}
	close(ready[1]);
	if (read(ready[0], &byte, 1) != 1) {
		fail("the broker is not ready");
	}
	close(ready[0]);
}

/* What the broker has taken of the GPU by the stand-in's count; false: it is a real one. */
static bool counted_bytes(uint64_t *ret_bytes)
{
	struct {
		char name[56];
		uint64_t value;
	} record;
	bool found = false;
	char path[80];
	FILE *counts;

	snprintf(path, sizeof(path), "%s/%d.cuda", directory, (int)broker);
	counts = fopen(path, "re");
	while (counts && !found && fread(&record, sizeof(record), 1, counts) == 1) {
		found = strncmp(record.name, "open.bytes", sizeof(record.name)) == 0;
		*ret_bytes = record.value;
	}
	if (counts) {
		fclose(counts);
	}
	return found;
}

static struct usage broker_usage(struct engine *engine)
{
	struct usage usage = {0};
	char path[64], line[256];
	uint64_t bytes = 0;
	FILE *status;
	DIR *fds;

	snprintf(path, sizeof(path), "/proc/%d/fd", (int)broker);
	fds = opendir(path);
	while (fds && readdir(fds)) {
		usage.fds++;
	}
	if (fds) {
		closedir(fds);
	}
	snprintf(path, sizeof(path), "/proc/%d/status", (int)broker);
	status = fopen(path, "re");
	while (status && fgets(line, sizeof(line), status)) {
		(void)sscanf(line, "VmRSS: %" SCNu64, &usage.kib);
		(void)sscanf(line, "Threads: %u", &usage.threads);
	}
	if (status) {
		fclose(status);
	}
	/* Nobody else's may change meanwhile: of ours only the broker's does. */
	usage.device_kib = memory_left(engine->memory) >> 10;
	usage.counted = counted_bytes(&bytes);
	if (usage.counted) {
		usage.device_kib -= bytes >> 10; /* it leaves out what others have */
	}
	return usage;
}

static void tensor_name(char name[16], unsigned i)
{
	snprintf(name, 16, "t%u", i);
}

static int by_time(const void *a, const void *b)
{
	double left = *(const double *)a, right = *(const double *)b;

	return (left > right) - (left < right);
}

/* Of each update, in ms: all of it, and its stages as the report has them. */
enum stage { TOTAL, WAIT, ACCEPT, MOVE, COMMIT, STAGES };

struct times {
	double *v[STAGES];
	uint64_t n;
};

static void times_add(struct times *times, const struct strew_report *report)
{
	const double seconds[STAGES] = {report->total_s, report->wait_s, report->accept_s,
		report->move_s, report->commit_s};

	for (unsigned i = 0; i < STAGES; i++) {
		times->v[i][times->n] = seconds[i] * 1e3;
	}
	times->n++;
}

static void times_say(const struct times *times, size_t bytes)
{
	static const char *const names[STAGES] = {"", "wait", "accept", "move", "commit"};

	for (unsigned i = 0; i < STAGES; i++) {
		qsort(times->v[i], times->n, sizeof(double), by_time);
	}
	printf("steps: updates of %zu KiB: p50 %.3f ms, p99 %.3f ms, worst %.3f ms, p99/p50 %.2f\n",
		bytes >> 10, times->v[TOTAL][times->n / 2], times->v[TOTAL][times->n * 99 / 100],
		times->v[TOTAL][times->n - 1],
		times->v[TOTAL][times->n * 99 / 100] / times->v[TOTAL][times->n / 2]);
	printf("steps: p50 and p99 of stages, ms:");
	for (unsigned i = WAIT; i < STAGES; i++) {
		printf(" %s %.3f %.3f%s", names[i], times->v[i][times->n / 2],
			times->v[i][times->n * 99 / 100], i + 1 < STAGES ? "," : "\n");
	}
	fflush(stdout);
}

/* A process of its own: fork() is before anything of CUDA. */
static int run_trainer(int device, uint64_t updates)
{
	struct strew_trainer_options options = {.socket = socket_path, .model = MODEL};
	struct memory *memory = memory_create(device, 0);
	uint64_t *weights = memory_take(memory, TENSORS * STAMPS * sizeof(*weights));
	struct strew_trainer *strew;
	struct times times = {.n = 0};
	static uint64_t values[TENSORS * STAMPS];
	char name[16];

	for (unsigned i = 0; i < STAGES; i++) {
		times.v[i] = calloc(updates + 1, sizeof(*times.v[i]));
	}
	if (!times.v[STAGES - 1] || strew_trainer_open(&options, &strew)) {
		fail("trainer");
	}
	for (unsigned i = 0; i < TENSORS; i++) {
		struct strew_tensor tensor = {.name = name,
			.dtype = STREW_U64,
			.ndim = 1,
			.shape = {STAMPS},
			.data = weights + i * STAMPS};

		tensor_name(name, i);
		if (strew_trainer_declare(strew, &tensor)) {
			fail("declare");
		}
	}
	if (strew_trainer_seal(strew)) {
		fail("seal");
	}
	close(engine_side[1]);
	if (read(engine_side[0], name, 1) != 1) {
		return 1;
	}
	for (uint64_t version = 1; version <= updates; version++) {
		struct strew_report report;

		for (unsigned i = 0; i < TENSORS * STAMPS; i++) {
			values[i] = version;
		}
		memory_write(memory, weights, values, sizeof(values));
		if (strew_trainer_publish(strew, version, NULL, 0, WAIT_MS) ||
			strew_trainer_wait_released(strew, WAIT_MS) ||
			strew_trainer_wait_report(strew, WAIT_MS, &report)) {
			fail("publish");
		}
		if (report.outcome != STREW_OUTCOME_COMMITTED || report.ngroups != 1) {
			fprintf(stderr, "steps: version %" PRIu64 ": %s\n", version, report.text);
			return 1;
		}
		times_add(&times, &report);
		strew_report_finish(&report);
	}
	times_say(&times, sizeof(values));
	(void)!read(engine_side[0], name, 1);
	strew_trainer_close(strew);
	memory_destroy(memory);
	for (unsigned i = 0; i < STAGES; i++) {
		free(times.v[i]);
	}
	return 0;
}

static void join(struct engine *engine, bool direct, int device)
{
	struct strew_agent_options options = {.socket = socket_path,
		.model = MODEL,
		.apply = direct ? STREW_APPLY_DIRECT : STREW_APPLY_STAGED};
	char name[16];

	memset(engine->seen, 0, sizeof(engine->seen));
	engine->memory = memory_create(device, 0xa5);
	engine->weights = memory_take(engine->memory, sizeof(engine->seen));
	memory_write(engine->memory, engine->weights, engine->seen, sizeof(engine->seen));
	if (strew_agent_open(&options, &engine->agent)) {
		fail("agent");
	}
	/* The last tensor first, so that what lies together did not so at the trainer. */
	for (unsigned i = 0; i < TENSORS; i++) {
		struct strew_parameter parameter = {.name = name,
			.data = engine->weights + i * STAMPS,
			.dtype = STREW_U64,
			.ndim = 1,
			.shape = {STAMPS}};
		struct strew_piece piece = {
			.tensor = name, .dtype = STREW_U64, .ndim = 1, .shape = {STAMPS}};

		tensor_name(name, TENSORS - 1 - i);
		if (strew_agent_declare(engine->agent, &parameter, &piece.parameter) ||
			strew_agent_piece(engine->agent, &piece)) {
			fail("declare");
		}
	}
	if (strew_agent_register(engine->agent) ||
		strew_agent_wait_current(engine->agent, WAIT_MS)) {
		fail("register");
	}
}

/* Reads all weights, as a step does. */
static void step(struct engine *engine)
{
	enum strew_group_state before, after;
	uint64_t first, last, mixed = 0;
	int rc = strew_agent_peek(engine->agent, &before, &first);

	memory_read(engine->memory, engine->seen, engine->weights, sizeof(engine->seen));
	rc = rc ? rc : strew_agent_peek(engine->agent, &after, &last);
	for (unsigned i = 1; i < TENSORS * STAMPS; i++) {
		mixed += engine->seen[i] != engine->seen[0];
	}
	engine->torn += mixed || engine->seen[0] < engine->version;
	if (rc == 0 && before == STREW_GROUP_CURRENT && after == STREW_GROUP_CURRENT &&
		first == last) {
		engine->torn += engine->seen[0] != first;
		engine->steps++;
	}
	engine->version = engine->seen[0];
}

/* An engine that is seldom in a step waits for what comes. */
static int next_event(struct engine *engine, struct strew_event *ret_event)
{
	bool due = !engine->seldom || engine->committed / SELDOM >= engine->steps;

	if (!engine->paused && due) {
		step(engine);
	}
	return engine->paused || engine->seldom
		       ? strew_agent_wait(engine->agent, WAIT_MS, ret_event)
		       : strew_agent_dispatch(engine->agent, ret_event);
}

static void serve(struct engine *engine, uint64_t updates)
{
	struct strew_event event;

	while (engine->committed < updates) {
		int rc = next_event(engine, &event);

		if (rc < 0 || (rc == 1 && event.type == STREW_EVENT_LOST)) {
			fail("events");
		}
		if (rc == 1 && event.type == STREW_EVENT_HOLD) {
			engine->paused = strew_agent_ready(engine->agent, NULL) == 0;
		} else if (rc == 1 && event.type == STREW_EVENT_DONE) {
			engine->committed += event.outcome == STREW_OUTCOME_COMMITTED;
			if (engine->paused && strew_agent_resume(engine->agent, WAIT_MS)) {
				fail("resume");
			}
			engine->paused = false;
		}
		if (waitpid(trainer, &rc, WNOHANG) == trainer) {
			trainer = 0;
			fail("the trainer has ended");
		}
	}
}

static bool is_flat(const struct usage *early, const struct usage *late)
{
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
	/* The sanitizers keep what was freed for a while. */
	if (late->kib > early->kib + GROWTH_KIB) {
		fputs("steps: the broker's resident memory has grown\n", stderr);
		return false;
	}
#endif
	if (late->device_kib + (late->counted ? 0 : GROWTH_DEVICE_KIB) < early->device_kib) {
		fputs("steps: less is left on the GPU\n", stderr);
		return false;
	}
	if (early->fds != late->fds || early->threads != late->threads) {
		fputs("steps: descriptors or threads of the broker have become more or fewer\n",
			stderr);
		return false;
	}
	return true;
}

int main(int argc, char **argv)
{
	static struct engine engine;
	uint64_t updates = 500, device = UINT64_MAX, worker_device = UINT64_MAX;
	const char *apply = "staged", *reads = "always";
	const struct option_spec specs[] = {
		{.name = "updates", .number = &updates},
		{.name = "device", .number = &device},
		{.name = "worker-device", .number = &worker_device},
		{.name = "apply", .text = &apply},
		{.name = "read", .text = &reads},
		{.name = NULL},
	};
	struct usage early, late;
	int status;

	if (argc < 2) {
		options_refuse("steps: which strewd?");
	}
	options_parse(argc - 1, argv + 1, specs, "usage: steps STREWD [--updates N] ...\n");
	worker_device = worker_device == UINT64_MAX ? device : worker_device;
	if (!mkdtemp(directory)) {
		return 1;
	}
	snprintf(socket_path, sizeof(socket_path), "%s/socket", directory);
	start_broker(argv[1], device != UINT64_MAX);
	if (pipe(engine_side) < 0) {
		return 1;
	}
	trainer = fork();
	if (trainer == 0) {
		broker = 0;
		_exit(run_trainer((int)device, updates));
	}
	atexit(end_children);
	close(engine_side[0]);
	join(&engine, strcmp(apply, "direct") == 0, (int)worker_device);
	engine.seldom = strcmp(reads, "seldom") == 0;
	if (write(engine_side[1], "!", 1) != 1) {
		return 1;
	}
	serve(&engine, updates / 4);
	early = broker_usage(&engine);
	serve(&engine, updates);
	late = broker_usage(&engine);
	close(engine_side[1]);
	if (waitpid(trainer, &status, 0) != trainer || status) {
		return 1;
	}
	trainer = 0;
	strew_agent_close(engine.agent);
	memory_destroy(engine.memory);
	printf("steps: updates=%" PRIu64 " apply=%s steps=%" PRIu64 " torn=%" PRIu64
	       " descriptors %u -> %u, threads %u -> %u, resident %" PRIu64 " -> %" PRIu64 " KiB",
		engine.committed, apply, engine.steps, engine.torn, early.fds, late.fds,
		early.threads, late.threads, early.kib, late.kib);
	if (device != UINT64_MAX) {
		printf(", left on the GPU %.1f -> %.1f MiB", (double)early.device_kib / 1024,
			(double)late.device_kib / 1024);
	}
	putchar('\n');
	return engine.torn || engine.steps == 0 || !is_flat(&early, &late);
}
