/* The trainer of a bench: declares a model's tensors, publishes versions, and moves the same
 * bytes by the raw ways in between. */
#include "base/clock.h"
#include "bench/parts.h"
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>

struct trainer {
	const struct part *part;
	struct shapes shapes;
	struct memory *memory;
	unsigned char **data; /* of each tensor */
	struct strew_trainer *trainer;
	struct raw *raw;
	struct gpu_stream *stream; /* that it computes on */
	int fd;			   /* of questions */
	uint64_t repeat_ns;	   /* when the last PART_REPEAT began, */
	struct samples ends;	   /* and when its updates ended, in ns */
};

static void must(int rc, const char *what)
{
	if (rc < 0) {
		bench_fail(EXIT_RUNTIME, "trainer: %s: %s", what, strew_error());
	}
}

static void join(struct trainer *trainer, struct joined *joined)
{
	const struct part *part = trainer->part;
	const struct shapes *shapes = &trainer->shapes;
	struct strew_trainer_options options = {.socket = part->socket,
		.model = BENCH_MODEL,
		.timeout_ms = (int)part->timeout_s * 1000};
	uint64_t start = clock_ns();

	must(strew_trainer_open(&options, &trainer->trainer), "open");
	for (size_t i = 0; i < shapes->ntensors; i++) {
		struct strew_tensor tensor = {.name = shapes->tensors[i].name,
			.dtype = shapes->tensors[i].dtype,
			.ndim = shapes->tensors[i].ndim,
			.data = trainer->data[i]};

		memcpy(tensor.shape, shapes->tensors[i].shape, sizeof(shapes->tensors[i].shape));
		must(strew_trainer_declare(trainer->trainer, &tensor), tensor.name);
	}
	joined->describe_s = (double)(clock_ns() - start) * 1e-9;
	start = clock_ns();
	must(strew_trainer_seal(trainer->trainer), "seal");
	joined->register_s = (double)(clock_ns() - start) * 1e-9;
}

static void publish(struct trainer *trainer, uint64_t version, struct published *published)
{
	int timeout_ms = (int)trainer->part->timeout_s * 1000;
	uint64_t start = clock_ns();

	must(strew_trainer_publish(trainer->trainer, version, gpu_stream_native(trainer->stream),
		     trainer->part->hash ? STREW_PUBLISH_HASH : 0, timeout_ms),
		"publish");
	must(strew_trainer_wait_released(trainer->trainer, timeout_ms), "released");
	must(strew_trainer_wait_report(trainer->trainer, timeout_ms, &published->report), "report");
	published->host_s = (double)(clock_ns() - start) * 1e-9;
	published->groups = published->report.ngroups;
	published->committed = 0;
	for (size_t i = 0; i < published->report.ngroups; i++) {
		const struct strew_group_report *group = &published->report.groups[i];

		if (group->outcome == STREW_OUTCOME_COMMITTED) {
			published->committed++;
		} else {
			fprintf(stderr, "strew-bench: a group: %s: %s\n",
				strew_outcome_name(group->outcome), group->text);
		}
	}
	if (published->committed != published->groups || !published->groups) {
		bench_fail(EXIT_RUNTIME, "version %llu reached %llu of %llu groups: %s",
			(unsigned long long)version, (unsigned long long)published->committed,
			(unsigned long long)published->groups, published->report.text);
	}
	strew_report_finish(&(struct strew_report){
		.ngroups = published->report.ngroups, .groups = published->report.groups});
}

static void repeat(struct trainer *trainer, struct repeated *repeated)
{
	struct pollfd next = {.fd = trainer->fd, .events = POLLIN};
	struct published published;
	uint64_t now;

	samples_finish(&trainer->ends);
	trainer->repeat_ns = clock_ns();
	repeated->updates = 0;
	do {
		publish(trainer, repeated->first + repeated->updates, &published);
		repeated->updates++;
		now = clock_ns();
		samples_add(&trainer->ends, (double)now);
	} while (poll(&next, 1, 0) == 0 &&
		 (double)(now - trainer->repeat_ns) * 1e-9 < repeated->most_s);
}

static void look_beside(const struct trainer *trainer, struct beside *beside)
{
	double before = (double)trainer->repeat_ns, start = (double)beside->start_ns;
	double end = (double)beside->end_ns;

	beside->updates = beside->seconds = 0;
	for (size_t i = 0; i < trainer->ends.n; i++) {
		double after = trainer->ends.v[i];
		double shared = MIN(after, end) - MAX(before, start);

		if (shared > 0) {
			beside->updates += shared / (after - before);
			beside->seconds += shared * 1e-9;
		}
		before = after;
	}
}

static void answer(void *data, struct letter *letter)
{
	struct trainer *trainer = data;
	struct published published = {0};
	struct joined joined = {0};
	struct repeated repeated;
	struct beside beside;
	struct raw_to to;
	uint64_t number;
	double seconds;

	memcpy(&number, letter->bytes, sizeof(number));
	switch (letter->what) {
	case PART_JOIN:
		join(trainer, &joined);
		letter_put(letter, &joined, sizeof(joined));
		break;
	case PART_FILL:
		values_fill(trainer->memory, &trainer->shapes, trainer->data, number);
		break;
	case PART_PUBLISH:
		publish(trainer, number, &published);
		letter_put(letter, &published, sizeof(published));
		break;
	case PART_REPEAT:
		memcpy(&repeated, letter->bytes, sizeof(repeated));
		repeat(trainer, &repeated);
		letter_put(letter, &repeated, sizeof(repeated));
		break;
	case PART_BESIDE:
		memcpy(&beside, letter->bytes, sizeof(beside));
		look_beside(trainer, &beside);
		letter_put(letter, &beside, sizeof(beside));
		break;
	case PART_RAW_WITHIN:
		seconds = raw_within(trainer->raw, number);
		letter_put(letter, &seconds, sizeof(seconds));
		break;
	case PART_RAW_COPY:
		seconds = raw_copy(trainer->raw, number);
		letter_put(letter, &seconds, sizeof(seconds));
		break;
	case PART_RAW_PEER:
		memcpy(&to, letter->bytes, sizeof(to));
		seconds = raw_peer(trainer->raw, to.peer, to.len_bytes);
		letter_put(letter, &seconds, sizeof(seconds));
		break;
	case PART_RAW_PIECES:
		seconds = raw_pieces(trainer->raw);
		letter_put(letter, &seconds, sizeof(seconds));
		break;
	case PART_FREE:
		number = memory_free(trainer->memory);
		letter_put(letter, &number, sizeof(number));
		break;
	default:
		letter->rc = -EINVAL;
	}
}

int part_trainer(int fd, void *arg)
{
	struct trainer trainer = {.part = arg, .fd = fd};
	struct error err = {0};
	size_t n;

	bench_shapes(&trainer.part->model, 0, &trainer.shapes);
	n = trainer.shapes.ntensors;
	trainer.memory =
		memory_create(trainer.part->kind, trainer.part->device, trainer.part->on_host);
	memory_reserve(trainer.memory, MIN(trainer.shapes.bytes + 256 * n, 1ull << 30));
	trainer.data = calloc(n, sizeof(*trainer.data));
	if (!trainer.data) {
		return EXIT_RUNTIME;
	}
	for (size_t i = 0; i < n; i++) {
		trainer.data[i] =
			memory_take(trainer.memory, shape_bytes(&trainer.shapes.tensors[i]));
	}
	bench_must(gpu_stream_create(memory_device(trainer.memory), &trainer.stream, &err),
		"a stream", &err);
	trainer.raw = raw_create(trainer.memory, &trainer.shapes, trainer.data, trainer.part);
	letter_serve(fd, answer, &trainer);
	strew_trainer_close(trainer.trainer);
	samples_finish(&trainer.ends);
	raw_destroy(trainer.raw);
	gpu_stream_destroy(trainer.stream);
	memory_destroy(trainer.memory);
	free(trainer.data);
	shapes_finish(&trainer.shapes);
	return EXIT_OK;
}
