/* A tensor-parallel worker of a bench: its parameters are written by updates, and compared. */
#include "base/clock.h"
#include "bench/parts.h"
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>

struct worker {
	const struct part *part;
	struct shapes shapes;
	struct memory *memory;
	unsigned char **data; /* of each parameter */
	struct strew_agent *agent;
	double pause_s;
	bool held;
	uint64_t held_at;
};

void bench_shapes(const struct bench_model *model, uint32_t rank, struct shapes *ret_shapes)
{
	if (model->config) {
		shapes_load(model->config, model->layers, (uint32_t)model->tp, rank, ret_shapes);
	} else {
		shapes_cut(model->cut, model->bytes, (uint32_t)model->tp, rank, ret_shapes);
	}
}

static void must(int rc, const char *what)
{
	if (rc < 0) {
		bench_fail(EXIT_RUNTIME, "%s: %s", what, strew_error());
	}
}

static void describe(struct worker *worker)
{
	const struct shapes *shapes = &worker->shapes;

	for (size_t i = 0; i < shapes->nparameters; i++) {
		const struct shape_tensor *shape = &shapes->parameters[i];
		struct strew_parameter parameter = {.name = shape->name,
			.data = worker->data[i],
			.dtype = shape->dtype,
			.ndim = shape->ndim};
		uint32_t id;

		memcpy(parameter.shape, shape->shape, sizeof(shape->shape));
		must(strew_agent_declare(worker->agent, &parameter, &id), shape->name);
	}
	for (size_t i = 0; i < shapes->npieces; i++) {
		const struct shape_piece *from = &shapes->pieces[i];
		const struct shape_tensor *tensor = &shapes->tensors[from->tensor];
		struct strew_piece piece = {.tensor = tensor->name,
			.dtype = tensor->dtype,
			.ndim = tensor->ndim,
			.parameter = from->parameter,
			.offset = from->offset};

		for (int k = 0; k < tensor->ndim; k++) {
			piece.shape[k] = tensor->shape[k];
			piece.start[k] = from->start[k];
			piece.extent[k] = from->extent[k];
		}
		must(strew_agent_piece(worker->agent, &piece), tensor->name);
	}
}

static void join(struct worker *worker, struct letter *letter)
{
	const struct part *part = worker->part;
	struct strew_agent_options options = {.socket = part->socket,
		.model = BENCH_MODEL,
		.member = part->rank,
		.members = (uint32_t)part->model.tp,
		.gate = part->gate,
		.apply = part->apply,
		.serve_thread = part->gate == STREW_GATE_LIVE,
		.timeout_ms = (int)part->timeout_s * 1000};
	struct joined joined;
	uint64_t start = clock_ns();

	must(strew_agent_open(&options, &worker->agent), "worker");
	describe(worker);
	joined.describe_s = (double)(clock_ns() - start) * 1e-9;
	start = clock_ns();
	must(strew_agent_register(worker->agent), "worker");
	joined.register_s = (double)(clock_ns() - start) * 1e-9;
	letter_put(letter, &joined, sizeof(joined));
}

static void answer(void *data, struct letter *letter)
{
	struct worker *worker = data;
	struct compared compared;
	uint64_t seed, free_bytes;

	memcpy(&seed, letter->bytes, sizeof(seed));
	switch (letter->what) {
	case PART_JOIN:
		join(worker, letter);
		break;
	case PART_POISON:
		memory_poison(worker->memory, 0xa5);
		break;
	case PART_COMPARE:
		compared.wrong = values_compare(
			worker->memory, &worker->shapes, worker->data, seed, &compared.bytes);
		letter_put(letter, &compared, sizeof(compared));
		break;
	case PART_PAUSE:
		letter_put(letter, &worker->pause_s, sizeof(worker->pause_s));
		break;
	case PART_FREE:
		free_bytes = memory_free(worker->memory);
		letter_put(letter, &free_bytes, sizeof(free_bytes));
		break;
	default:
		letter->rc = -EINVAL;
	}
}

/* Held gate: what an engine does at the end of its step. */
static void dispatch(struct worker *worker)
{
	struct strew_event event;
	int rc;

	while ((rc = strew_agent_dispatch(worker->agent, &event)) > 0) {
		if (event.type == STREW_EVENT_HOLD) {
			worker->held_at = clock_ns();
			must(strew_agent_ready(worker->agent, NULL), "ready");
			worker->held = true;
		}
		if (worker->held) {
			rc = strew_agent_resume(worker->agent, (int)worker->part->timeout_s * 1000);
			must(rc, "resume");
			worker->pause_s = (double)(clock_ns() - worker->held_at) * 1e-9;
			worker->held = false;
		}
	}
	must(rc, "worker");
}

static void prepare(struct worker *worker)
{
	const struct part *part = worker->part;

	bench_shapes(&part->model, part->rank, &worker->shapes);
	worker->memory = memory_create(part->kind, part->device, false);
	memory_reserve(worker->memory,
		MIN(worker->shapes.worker_bytes + 256 * worker->shapes.nparameters, 1ull << 30));
	worker->data = bench_need(calloc(worker->shapes.nparameters, sizeof(*worker->data)));
	for (size_t i = 0; i < worker->shapes.nparameters; i++) {
		worker->data[i] =
			memory_take(worker->memory, shape_bytes(&worker->shapes.parameters[i]));
	}
	memory_poison(worker->memory, 0xa5);
}

int part_worker(int fd, void *arg)
{
	struct worker worker = {.part = arg};
	struct letter *letter = bench_need(calloc(1, sizeof(*letter)));
	struct pollfd polled[2] = {{.fd = fd, .events = POLLIN}, {.fd = -1, .events = POLLIN}};

	prepare(&worker);
	for (;;) {
		if (worker.agent && worker.part->gate == STREW_GATE_HELD) {
			polled[1].fd = strew_agent_fd(worker.agent);
		}
		if (poll(polled, 2, -1) < 0 && errno != EINTR) {
			return EXIT_RUNTIME;
		}
		if (polled[1].revents) {
			dispatch(&worker);
		}
		if (polled[0].revents && !letter_turn(fd, letter, answer, &worker)) {
			break;
		}
	}
	strew_agent_close(worker.agent);
	memory_destroy(worker.memory);
	free(worker.data);
	shapes_finish(&worker.shapes);
	free(letter);
	return EXIT_OK;
}
