/*
 * One tensor-parallel rank of an inference engine, without the inference: it
 * allocates its parameters the way vLLM lays them out, tells strew about them,
 * and then runs steps while new versions of the weights arrive in its memory.
 *
 *   tp_worker --config config.json --model NAME --rank R --size T
 *
 * Read main() first, then describe(), then serve().
 */
#include "examples/model.h"
#include "examples/options.h"
#include "examples/shard.h"
#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <strew/strew.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define NONE UINT64_MAX

struct worker {
	/* what the command line said */
	const char *config, *model_name, *socket, *dump;
	uint64_t rank, size, replica;
	uint64_t device;   /* NONE: host memory */
	bool ordinary;	   /* which is that of malloc() */
	uint64_t versions; /* NONE: until SIGTERM */
	uint64_t seed;	   /* NONE: values are not checked */
	const char *only;  /* see values.h */
	uint64_t patience; /* seconds to wait for another broker when this one is gone */
	bool live, direct, partial;
	/* what follows from it */
	struct model model;
	struct shard shard; /* the parameters' memory, as an engine has it */
	struct strew_agent *agent;
	/* how far it has come */
	uint64_t version;   /* in memory; 0: none */
	uint64_t committed; /* updates that ended well */
	uint64_t mismatches;
	bool held, lost;
};

static volatile sig_atomic_t stopped;

static void on_signal(int number)
{
	stopped = number;
}

/* Tells strew what parameter i is and which boxes of which tensors make it up. */
static int describe(struct worker *worker, size_t i)
{
	const struct model *model = &worker->model;
	const struct model_parameter *parameter = &model->parameters[i];
	/* Strides all 0: row-major and dense, as nearly every parameter is. */
	struct strew_parameter declared = {
		.name = parameter->name,
		.data = worker->shard.data[i],
		.dtype = parameter->dtype,
		.ndim = parameter->ndim,
		.shape = {parameter->rows, parameter->cols},
	};
	struct model_box boxes[3];
	int nboxes = model_boxes(model, parameter, (uint32_t)worker->rank, boxes);
	uint32_t id;
	int rc;

	if (parameter->ndim == 1) {
		declared.shape[1] = 0; /* entries of a dimension that is not there stay 0 */
	}
	rc = strew_agent_declare(worker->agent, &declared, &id);
	for (int k = 0; k < nboxes && rc >= 0; k++) {
		const struct model_tensor *tensor = &model->tensors[boxes[k].tensor];
		/* Box [start, start + extent) of the trainer's tensor goes to element `offset`. */
		struct strew_piece piece = {
			.tensor = tensor->name,
			.dtype = tensor->dtype,
			.ndim = tensor->ndim,
			.shape = {tensor->rows, tensor->cols},
			.start = {boxes[k].row, boxes[k].col},
			.extent = {boxes[k].rows, boxes[k].cols},
			.parameter = id,
			.offset = boxes[k].at * parameter->cols,
		};

		if (tensor->ndim == 1) {
			piece.shape[1] = piece.start[1] = piece.extent[1] = 0;
		}
		rc = strew_agent_piece(worker->agent, &piece);
	}
	if (rc < 0) {
		fprintf(stderr, "worker %" PRIu64 ": %s: %s\n", worker->rank, parameter->name,
			strew_error());
	}
	return rc;
}

/* Connects to this node's broker and registers; from then on updates may come. */
static int join(struct worker *worker)
{
	struct strew_agent_options options = {
		.socket = worker->socket, /* NULL: $STREW_SOCKET */
		.model = worker->model_name,
		.replica = (uint32_t)worker->replica,
		.member = (uint32_t)worker->rank,
		.members = (uint32_t)worker->size,
		.gate = worker->live ? STREW_GATE_LIVE : STREW_GATE_HELD,
		.apply = worker->direct ? STREW_APPLY_DIRECT : STREW_APPLY_STAGED,
		.partial = worker->partial,
		/* With a live gate nothing is ever asked of the engine: a thread can answer. */
		.serve_thread = worker->live,
	};

	if (strew_agent_open(&options, &worker->agent) < 0) {
		fprintf(stderr, "worker %" PRIu64 ": %s\n", worker->rank, strew_error());
		return -1;
	}
	for (size_t i = 0; i < worker->model.nparameters; i++) {
		if (describe(worker, i) < 0) {
			return -1;
		}
	}
	if (strew_agent_register(worker->agent) < 0) {
		fprintf(stderr, "worker %" PRIu64 ": %s\n", worker->rank, strew_error());
		return -1;
	}
	return 0;
}

/* Compares all memory with what the version in it should be. */
static void check(struct worker *worker, const char *what)
{
	uint64_t differ;

	printf("worker %" PRIu64 ": version %" PRIu64 " %s", worker->rank, worker->version, what);
	if (worker->version == 0 || worker->seed != NONE) {
		differ = shard_check(&worker->shard, worker->version, worker->seed, worker->only);
		worker->mismatches += differ;
		printf(" bytes=%" PRIu64 " mismatches=%" PRIu64, worker->shard.bytes, differ);
	}
	printf("\n");
}

/* Takes the memory back for the next step; false: it stays paused. */
static bool resume(struct worker *worker, const char *why)
{
	while (worker->held && !stopped) {
		int rc = strew_agent_resume(worker->agent, 1000);

		if (rc == -ETIMEDOUT || rc == -EINTR) {
			continue; /* the next update is being written already */
		}
		if (rc == -EUCLEAN) {
			/* Written in part: no step may use it. A whole update heals it. */
			printf("worker %" PRIu64 ": dirty: %s\n", worker->rank, why);
			return false;
		}
		if (rc < 0) {
			return false; /* the broker is gone: the next event says so */
		}
		worker->held = false;
	}
	return true;
}

/* An update has ended: take the memory back, then look at it. */
static void done(struct worker *worker, const struct strew_event *event)
{
	if (!resume(worker, event->text)) {
		return;
	}
	worker->version = event->version;
	if (!worker->live) {
		/* Before resume was granted, the next update may have come and gone too. */
		strew_agent_state(worker->agent, NULL, &worker->version);
	}
	if (event->outcome == STREW_OUTCOME_COMMITTED) {
		worker->committed++;
		check(worker, "ok");
	} else {
		printf("worker %" PRIu64 ": update %s, %s: %s\n", worker->rank,
			strew_outcome_name(event->outcome), strew_group_state_name(event->state),
			event->text);
		if (event->state != STREW_GROUP_DIRTY) {
			check(worker, "kept");
		}
	}
}

/* The broker is gone. Whoever starts another finds this worker where it was left. */
static void join_again(struct worker *worker)
{
	time_t last = time(NULL) + (time_t)worker->patience;
	enum strew_group_state state;

	worker->lost = true;
	while (!stopped && worker->lost && time(NULL) < last) {
		usleep(100000);
		worker->lost = strew_agent_reconnect(worker->agent, 1000) < 0;
	}
	if (worker->lost) {
		fprintf(stderr, "worker %" PRIu64 ": %s\n", worker->rank, strew_error());
		return;
	}
	strew_agent_state(worker->agent, &state, NULL);
	printf("worker %" PRIu64 ": registered again with version %" PRIu64 ", %s\n", worker->rank,
		worker->version, strew_group_state_name(state));
	/* The new broker does not know that this engine is paused, if it is. */
	if (worker->held && strew_agent_ready(worker->agent, NULL) == 0) {
		resume(worker, "the broker went in the middle of an update");
	}
}

/* The engine's loop: a step, then a look at what strew has to say. */
static void serve(struct worker *worker)
{
	struct strew_event event;

	while (!stopped && !worker->lost && worker->committed < worker->versions) {
		int rc;

		if (!worker->held) {
			usleep(1000); /* the step's computing */
			rc = strew_agent_dispatch(worker->agent, &event);
		} else {
			rc = strew_agent_wait(worker->agent, 200, &event);
		}
		if (rc == 0 || rc == -ETIMEDOUT || rc == -EINTR) {
			continue;
		}
		if (rc < 0 || event.type == STREW_EVENT_LOST) {
			fprintf(stderr, "worker %" PRIu64 ": the broker is gone: %s\n",
				worker->rank, rc < 0 ? strew_error() : event.text);
			join_again(worker);
		} else if (event.type == STREW_EVENT_HOLD) {
			/*
			 * The step is finished, and nothing of this process reads the
			 * parameters until resume. An engine passes the stream that its
			 * last step runs on, and all its ranks do this at the same step.
			 */
			worker->held = strew_agent_ready(worker->agent, NULL) >= 0;
		} else if (event.type == STREW_EVENT_DONE) {
			done(worker, &event);
		}
	}
}

static const char usage[] =
	"usage: tp_worker --config config.json --model NAME --rank R --size T [options]\n"
	"\n"
	"One tensor-parallel rank: registers its parameters with this node's broker and\n"
	"follows the versions that a trainer publishes.\n"
	"\n"
	"  --socket PATH   the broker's socket (else $STREW_SOCKET)\n"
	"  --replica N     which copy of the model it serves (0)\n"
	"  --gate GATE     held (default): paused while it is written; live: written at any time\n"
	"  --apply APPLY   staged (default): into shadow memory first; direct\n"
	"  --partial       accept versions that leave parameters uncovered\n"
	"  --device INDEX  keep the parameters on that GPU (else in host memory)\n"
	"  --malloc        or in ordinary memory, which libstrew copies to itself\n"
	"  --versions N    end after N versions (else at SIGTERM)\n"
	"  --reconnect S   when the broker is gone, wait S seconds for another one (0)\n"
	"  --check SEED    compare each version with what `trainer --seed SEED` sends\n"
	"  --only TEXT     versions above 1 bring only tensors whose names contain TEXT\n"
	"  --dump FILE     at the end, write all parameters to FILE, their places to FILE.json\n"
	"\n"
	"example: tp_worker --config tiny-llama.json --model demo --rank 0 --size 2 --check 7\n";

static void parse(int argc, char **argv, struct worker *worker)
{
	const char *gate = "held", *apply = "staged";
	const struct option_spec specs[] = {
		{.name = "config", .text = &worker->config},
		{.name = "model", .text = &worker->model_name},
		{.name = "socket", .text = &worker->socket},
		{.name = "dump", .text = &worker->dump},
		{.name = "only", .text = &worker->only},
		{.name = "gate", .text = &gate},
		{.name = "apply", .text = &apply},
		{.name = "partial", .flag = &worker->partial},
		{.name = "rank", .number = &worker->rank},
		{.name = "size", .number = &worker->size},
		{.name = "replica", .number = &worker->replica},
		{.name = "device", .number = &worker->device},
		{.name = "malloc", .flag = &worker->ordinary},
		{.name = "versions", .number = &worker->versions},
		{.name = "check", .number = &worker->seed},
		{.name = "reconnect", .number = &worker->patience},
		{.name = NULL},
	};

	options_parse(argc, argv, specs, usage);
	if (!worker->config || !worker->model_name || worker->rank >= worker->size ||
		worker->size > 1024) {
		options_refuse("tp_worker needs --config, --model, and --rank below --size");
	}
	worker->live = strcmp(gate, "live") == 0;
	worker->direct = strcmp(apply, "direct") == 0;
	if ((!worker->live && strcmp(gate, "held") != 0) ||
		(!worker->direct && strcmp(apply, "staged") != 0)) {
		options_refuse("tp_worker: --gate is live or held, --apply is direct or staged");
	}
}

int main(int argc, char **argv)
{
	struct worker worker = {.size = 1, .device = NONE, .versions = NONE, .seed = NONE};
	int rc = 1;

	setvbuf(stdout, NULL, _IOLBF, 0);
	parse(argc, argv, &worker);
	if (model_load(worker.config, (uint32_t)worker.size, &worker.model) < 0) {
		return 1;
	}
	sigaction(SIGTERM, &(struct sigaction){.sa_handler = on_signal}, NULL);
	sigaction(SIGINT, &(struct sigaction){.sa_handler = on_signal}, NULL);
	shard_init(&worker.shard, &worker.model, (uint32_t)worker.rank,
		worker.ordinary		? MEMORY_MALLOC
		: worker.device == NONE ? MEMORY_HOST
					: (int)worker.device);
	if (join(&worker) == 0) {
		printf("worker %" PRIu64 ": registered parameters=%zu bytes=%" PRIu64 "\n",
			worker.rank, worker.model.nparameters, worker.shard.bytes);
		serve(&worker);
		rc = worker.lost || worker.mismatches ||
		     (!stopped && worker.committed < worker.versions);
	}
	/* After this nothing writes to the parameters any more, and they may be freed. */
	strew_agent_close(worker.agent);
	if (stopped) {
		check(&worker, "at the end");
		rc |= worker.mismatches != 0;
	}
	if (worker.dump) {
		rc |= shard_dump(&worker.shard, worker.version, worker.dump) != 0;
	}
	shard_finish(&worker.shard);
	model_finish(&worker.model);
	return rc;
}
