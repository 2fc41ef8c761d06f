/*
 * A trainer without the training: it holds a model's tensors in its memory,
 * changes every value in each step, and publishes the result to all workers.
 *
 *   trainer --config config.json --model NAME
 *
 * With --rank and --ranks several of them hold a stretch of every tensor's rows
 * each, as a sharded trainer does. With --parts it has memory for a part of them
 * only. Read main() first, then declare() and step().
 */
#include "examples/memory.h"
#include "examples/model.h"
#include "examples/options.h"
#include "examples/parts.h"
#include "examples/values.h"
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <strew/strew.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define STAGING_BYTES ((size_t)16 << 20) /* values are computed here, then copied */

struct trainer {
	const char *config, *model_name, *socket;
	uint64_t rank, ranks;
	uint64_t versions, first, seed, interval_ms;
	uint64_t device; /* UINT64_MAX: host memory */
	int timeout_ms;
	uint64_t patience; /* seconds to wait for another broker when this one is gone */
	bool by_line, partial, hash;
	bool ordinary;	  /* memory of malloc() */
	const char *only; /* above version 1 publish only tensors whose names contain it */
	uint32_t subset;  /* those */
	uint64_t nparts;  /* 0: all tensors at once */
	struct parts parts;
	uint64_t version; /* of the parts that are being made */
	struct model model;
	struct memory *memory;
	unsigned char **data; /* of each tensor's box, NULL: this rank has none of it */
	unsigned char *staging;
	struct strew_trainer *strew;
};

/* The rows of a tensor that this rank holds. */
static uint64_t first_row(const struct trainer *trainer, size_t i, uint64_t rank)
{
	return trainer->model.tensors[i].rows * rank / trainer->ranks;
}

static size_t row_bytes(const struct model_tensor *tensor)
{
	return tensor->cols * strew_dtype_size(tensor->dtype);
}

/* Each box has memory of its own; in parts those of one part have, and all parts the same. */
static int place(struct trainer *trainer)
{
	size_t n = trainer->model.ntensors;
	uint64_t *bytes = calloc(n + 1, sizeof(*bytes));

	for (size_t i = 0; bytes && i < n; i++) {
		bytes[i] = first_row(trainer, i, trainer->rank + 1) -
			   first_row(trainer, i, trainer->rank);
		bytes[i] *= row_bytes(&trainer->model.tensors[i]);
		if (bytes[i] && !trainer->parts.n) { /* else the other ranks have it */
			trainer->data[i] = memory_take(trainer->memory, bytes[i]);
		}
	}
	if (!bytes) {
		return -ENOMEM;
	}
	if (trainer->parts.n) {
		parts_place(&trainer->parts, trainer->memory, bytes, trainer->data);
	}
	free(bytes);
	return 0;
}

/* Tells strew where this rank's box of tensor i is. The memory must keep its address. */
static int declare(struct trainer *trainer, size_t i)
{
	const struct model_tensor *tensor = &trainer->model.tensors[i];
	uint64_t row = first_row(trainer, i, trainer->rank);
	uint64_t rows = first_row(trainer, i, trainer->rank + 1) - row;
	struct strew_tensor box = {
		.name = tensor->name,
		.dtype = tensor->dtype,
		.ndim = tensor->ndim,
		.shape = {tensor->rows, tensor->ndim > 1 ? tensor->cols : 0},
		.start = {row, 0},
		.extent = {rows, tensor->ndim > 1 ? tensor->cols : 0},
		.data = trainer->data[i],
	};

	return rows ? strew_trainer_declare(trainer->strew, &box) : 0;
}

/*
 * The tensors from `first` to before `last` whose names contain `only`: once, so that publishing
 * them says nothing of tensors. Waits until all ranks have done the same.
 */
static int name_subset(
	struct trainer *trainer, size_t first, size_t last, const char *only, uint32_t *ret_subset)
{
	const char **names = calloc(last - first + 1, sizeof(*names));
	size_t n = 0;
	int rc;

	for (size_t i = first; names && i < last; i++) {
		if (trainer->data[i] && strstr(trainer->model.tensors[i].name, only)) {
			names[n++] = trainer->model.tensors[i].name;
		}
	}
	rc = names ? strew_trainer_subset(trainer->strew, names, n, ret_subset) : -ENOMEM;
	free(names);
	return rc;
}

static int join(struct trainer *trainer)
{
	struct strew_trainer_options options = {
		.socket = trainer->socket, /* NULL: $STREW_SOCKET */
		.model = trainer->model_name,
		.rank = (uint32_t)trainer->rank,
		.ranks = (uint32_t)trainer->ranks,
	};
	int rc = strew_trainer_open(&options, &trainer->strew);

	for (size_t i = 0; i < trainer->model.ntensors && rc >= 0; i++) {
		rc = declare(trainer, i);
	}
	/* Seal waits until all ranks have declared and the broker has mapped the memory. */
	rc = rc < 0 ? rc : strew_trainer_seal(trainer->strew);
	for (size_t k = 0; k < trainer->parts.n && rc >= 0; k++) {
		rc = name_subset(trainer, trainer->parts.first[k], trainer->parts.first[k + 1], "",
			&trainer->parts.subset[k]);
	}
	if (rc >= 0 && trainer->only) {
		rc = name_subset(
			trainer, 0, trainer->model.ntensors, trainer->only, &trainer->subset);
	}
	return rc;
}

/* The step: every value of those tensors becomes that of the new version. */
static void compute(struct trainer *trainer, uint64_t version, size_t first, size_t last)
{
	for (size_t i = first; i < last; i++) {
		const struct model_tensor *tensor = &trainer->model.tensors[i];
		uint64_t from = first_row(trainer, i, trainer->rank) * row_bytes(tensor);
		uint64_t to = first_row(trainer, i, trainer->rank + 1) * row_bytes(tensor);

		for (uint64_t at = from; at < to; at += STAGING_BYTES) {
			size_t n = to - at < STAGING_BYTES ? to - at : STAGING_BYTES;

			values_fill(tensor->name, version, trainer->seed, at, trainer->staging, n);
			memory_write(trainer->memory, trainer->data[i] + (at - from),
				trainer->staging, n);
		}
	}
}

static void print_report(const struct strew_report *report)
{
	char rate[48] = "";

	if (report->total_s > 0) {
		snprintf(rate, sizeof(rate), ", %.2f GB/s",
			(double)report->bytes / report->total_s * 1e-9);
	}
	printf("trainer: version %" PRIu64 " %s tensors=%" PRIu64 " unwanted=%" PRIu64
	       " bytes=%" PRIu64 " wire=%" PRIu64 " "
	       "groups=%zu in %.4f s (wait %.4f, accept %.4f, move %.4f, commit %.4f%s)\n",
		report->version, strew_outcome_name(report->outcome), report->tensors,
		report->unwanted, report->bytes, report->wire_bytes, report->ngroups,
		report->total_s, report->wait_s, report->accept_s, report->move_s, report->commit_s,
		rate);
	if (report->outcome != STREW_OUTCOME_COMMITTED) {
		printf("trainer: %s\n", report->text);
	}
	for (size_t i = 0; i < report->ngroups; i++) {
		const struct strew_group_report *group = &report->groups[i];

		if (group->outcome != STREW_OUTCOME_COMMITTED) {
			printf("trainer: node %u replica %u: %s, %s: %s\n", group->node,
				group->replica, strew_outcome_name(group->outcome),
				strew_group_state_name(group->state), group->text);
		}
	}
}

static bool line_comes(void)
{
	char line[256];

	return fgets(line, sizeof(line), stdin) != NULL;
}

/* As parts_publish() asks for it. A trainer would gather, merge or convert its tensors here. */
static const char *make_part(void *data, size_t part)
{
	struct trainer *trainer = data;

	if (part > 0 && trainer->by_line && !line_comes()) {
		return "its standard input has ended";
	}
	compute(trainer, trainer->version, trainer->parts.first[part],
		trainer->parts.first[part + 1]);
	return NULL;
}

static int publish(struct trainer *trainer, uint64_t version, unsigned flags)
{
	if (trainer->parts.n) {
		trainer->version = version;
		return parts_publish(&trainer->parts, trainer->strew, version, flags,
			trainer->timeout_ms, make_part, trainer);
	}
	compute(trainer, version, 0, trainer->model.ntensors);
	/* The stream: that of the optimizer's step. Ours has finished already. */
	return trainer->only && version > 1
		       ? strew_trainer_publish_subset(trainer->strew, trainer->subset, version - 1,
				 version, NULL, flags, trainer->timeout_ms)
		       : strew_trainer_publish(
				 trainer->strew, version, NULL, flags, trainer->timeout_ms);
}

/* One step and its publication. 0: every group has it. */
static int step(struct trainer *trainer, uint64_t version)
{
	unsigned flags = (trainer->partial ? STREW_PUBLISH_PARTIAL : 0) |
			 (trainer->hash ? STREW_PUBLISH_HASH : 0);
	struct strew_report report;
	int rc = publish(trainer, version, flags);

	if (rc < 0) {
		return rc;
	}
	/* From here on the values may change again: the next step could begin. */
	rc = strew_trainer_wait_released(trainer->strew, trainer->timeout_ms);
	if (rc < 0) {
		return rc;
	}
	rc = strew_trainer_wait_report(trainer->strew, trainer->timeout_ms, &report);
	if (rc < 0) {
		return rc;
	}
	print_report(&report);
	rc = report.outcome == STREW_OUTCOME_COMMITTED && report.ngroups ? 0 : 1;
	strew_report_finish(&report);
	return rc;
}

static const char usage[] =
	"usage: trainer --config config.json --model NAME [options]\n"
	"\n"
	"Holds a model, changes it in every step and publishes it to all workers.\n"
	"\n"
	"  --socket PATH      the broker's socket (else $STREW_SOCKET)\n"
	"  --rank R           this trainer rank (0) ...\n"
	"  --ranks N          ... of so many (1), which hold a stretch of all rows each\n"
	"  --versions N       how many to publish (1)\n"
	"  --first V          number of the first (1)\n"
	"  --seed S           what the values depend on (1); `tp_worker --check S` knows\n"
	"  --device INDEX     hold the model on that GPU (else in host memory)\n"
	"  --malloc           or in ordinary memory, which libstrew copies from itself\n"
	"  --interval-ms MS   pause between versions (0)\n"
	"  --reconnect S      when the broker is gone, wait S seconds for another one (0)\n"
	"  --by-line          publish, or put a part, when a line comes on standard input\n"
	"  --only TEXT        above version 1 publish only tensors whose names contain TEXT\n"
	"  --parts N          hold memory for an Nth of the model (1 to 64), make its tensors "
	"there\n"
	"                     one part after another, and publish them as one version\n"
	"  --hash             compare what goes over the wire at both ends, also for direct "
	"apply\n"
	"  --partial          parameters that no tensor covers are not an error\n"
	"  --timeout SECONDS  deadline of each update (60)\n"
	"\n"
	"example: trainer --config tiny-llama.json --model demo --versions 3 --seed 7\n";

static void parse(int argc, char **argv, struct trainer *trainer)
{
	uint64_t timeout_s = 60;
	const struct option_spec specs[] = {
		{.name = "config", .text = &trainer->config},
		{.name = "model", .text = &trainer->model_name},
		{.name = "socket", .text = &trainer->socket},
		{.name = "by-line", .flag = &trainer->by_line},
		{.name = "hash", .flag = &trainer->hash},
		{.name = "partial", .flag = &trainer->partial},
		{.name = "only", .text = &trainer->only},
		{.name = "parts", .number = &trainer->nparts},
		{.name = "rank", .number = &trainer->rank},
		{.name = "ranks", .number = &trainer->ranks},
		{.name = "versions", .number = &trainer->versions},
		{.name = "first", .number = &trainer->first},
		{.name = "seed", .number = &trainer->seed},
		{.name = "device", .number = &trainer->device},
		{.name = "malloc", .flag = &trainer->ordinary},
		{.name = "interval-ms", .number = &trainer->interval_ms},
		{.name = "timeout", .number = &timeout_s},
		{.name = "reconnect", .number = &trainer->patience},
		{.name = NULL},
	};

	options_parse(argc, argv, specs, usage);
	if (!trainer->config || !trainer->model_name || trainer->rank >= trainer->ranks ||
		trainer->ranks > 1024 || timeout_s < 1 || timeout_s > 3600) {
		options_refuse("trainer needs --config, --model, --rank below --ranks, and a "
			       "--timeout of 1 to 3600");
	}
	if (trainer->nparts > PARTS_MAX || (trainer->nparts && trainer->only)) {
		options_refuse(
			"--parts is a number up to 64, and publishes everything: not --only");
	}
	trainer->timeout_ms = (int)timeout_s * 1000;
}

/* The broker is gone, and the version with it. Whoever starts another gets the same tensors again.
 */
static int join_again(struct trainer *trainer, uint64_t version)
{
	time_t last = time(NULL) + (time_t)trainer->patience;
	int rc = -ECONNRESET;

	printf("trainer: version %" PRIu64 " lost: %s\n", version, strew_error());
	while (rc < 0 && time(NULL) < last) {
		usleep(100000);
		rc = strew_trainer_reconnect(trainer->strew, 5000);
	}
	return rc;
}

/* True if there is another version to publish; waits for its time. */
static bool next(const struct trainer *trainer, uint64_t version)
{
	if (version - trainer->first >= trainer->versions) {
		return false;
	}
	if (trainer->by_line) {
		return line_comes();
	}
	if (version > trainer->first && trainer->interval_ms) {
		usleep((useconds_t)trainer->interval_ms * 1000u);
	}
	return true;
}

int main(int argc, char **argv)
{
	struct trainer trainer = {
		.ranks = 1,
		.versions = 1,
		.first = 1,
		.seed = 1,
		.device = UINT64_MAX,
	};
	uint64_t version;
	int failed = 0, rc;

	setvbuf(stdout, NULL, _IOLBF, 0);
	parse(argc, argv, &trainer);
	if (model_load(trainer.config, 1, &trainer.model) < 0) {
		return 1;
	}
	trainer.memory = memory_create(trainer.ordinary		      ? MEMORY_MALLOC
				       : trainer.device == UINT64_MAX ? MEMORY_HOST
								      : (int)trainer.device,
		0);
	trainer.data = calloc(trainer.model.ntensors, sizeof(*trainer.data));
	trainer.staging = malloc(STAGING_BYTES);
	if (!trainer.data || !trainer.staging) {
		perror("malloc");
		return 1;
	}
	if (trainer.nparts) {
		parts_cut(&trainer.model, trainer.nparts, &trainer.parts);
	}
	rc = place(&trainer);
	rc = rc < 0 ? rc : join(&trainer);
	for (version = trainer.first; rc >= 0 && next(&trainer, version); version++) {
		rc = step(&trainer, version);
		failed |= rc;
		if (rc == -ECONNRESET && trainer.patience) {
			rc = join_again(&trainer, version);
		}
	}
	if (rc < 0) {
		fprintf(stderr, "trainer: %s\n", strew_error());
		failed = 1;
	}
	/* Waits for memory that is still lent; then it may be freed. */
	strew_trainer_close(trainer.strew);
	memory_destroy(trainer.memory);
	free(trainer.data);
	free(trainer.staging);
	model_finish(&trainer.model);
	return failed ? 1 : 0;
}
