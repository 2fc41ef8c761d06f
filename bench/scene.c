#include "bench/scene.h"
#include <stdlib.h>
#include <string.h>

const char *scene_device(const struct scene *scene, uint32_t rank)
{
	const char *at = scene->worker_devices;
	static char names[SCENE_TP_MAX][64]; /* all scenes of a run have the same */

	if (!at) {
		return scene->device;
	}
	for (uint32_t i = 0; i < rank && strchr(at, ','); i++) {
		at = strchr(at, ',') + 1;
	}
	snprintf(names[rank], sizeof(names[rank]), "%.*s", (int)strcspn(at, ","), at);
	return names[rank];
}

void scene_start(struct scene *scene)
{
	uint32_t tp = (uint32_t)scene->model.tp;
	struct part common = {.kind = scene->kind,
		.device = scene->device,
		.model = scene->model,
		.gate = scene->gate,
		.apply = scene->apply,
		.hash = scene->hash,
		.timeout_s = SCENE_ANSWER_S / 2};

	for (uint32_t i = 0; i < tp; i++) {
		struct part *part = &scene->parts[i];

		*part = common;
		part->rank = i;
		part->device = scene_device(scene, i);
		part->socket = scene->brokers->node_socket;
		child_start(&scene->workers[i], "a worker", part_worker, part);
	}
	if (scene->no_trainer) {
		return;
	}
	scene->parts[tp] = common;
	scene->parts[tp].socket = scene->brokers->lead_socket;
	scene->parts[tp].on_host = scene->on_host;
	child_start(&scene->trainer, "the trainer", part_trainer, &scene->parts[tp]);
}

void scene_stop(struct scene *scene)
{
	for (uint32_t i = 0; i < scene->model.tp; i++) {
		child_stop(&scene->workers[i]);
	}
	child_stop(&scene->trainer);
}

void scene_ask_workers(struct scene *scene, uint32_t what, uint64_t number,
	void (*each)(void *data, uint32_t rank, const struct letter *answer), void *data)
{
	struct letter *letter = bench_need(calloc(1, sizeof(*letter)));

	for (uint32_t i = 0; i < scene->model.tp; i++) {
		child_say(&scene->workers[i], what, &number, sizeof(number));
	}
	for (uint32_t i = 0; i < scene->model.tp; i++) {
		child_receive(&scene->workers[i], letter, SCENE_ANSWER_S);
		if (each) {
			each(data, i, letter);
		}
	}
	free(letter);
}

uint64_t scene_ask_number(struct child *child, uint32_t what, uint64_t number)
{
	struct letter letter;

	child_ask(child, what, &number, sizeof(number), &letter, SCENE_ANSWER_S);
	memcpy(&number, letter.bytes, sizeof(number));
	return number;
}

double scene_ask_seconds(struct child *child, uint32_t what, uint64_t number)
{
	struct letter letter;
	double seconds;

	child_ask(child, what, &number, sizeof(number), &letter, SCENE_ANSWER_S);
	memcpy(&seconds, letter.bytes, sizeof(seconds));
	return seconds;
}

static void note_joined(void *data, uint32_t rank, const struct letter *answer)
{
	struct joined *slowest = data, joined;

	(void)rank;
	memcpy(&joined, answer->bytes, sizeof(joined));
	slowest->describe_s = MAX(slowest->describe_s, joined.describe_s);
	slowest->register_s = MAX(slowest->register_s, joined.register_s);
}

void scene_join(struct scene *scene, struct joined *ret_workers, struct joined *ret_trainer)
{
	struct letter letter;

	*ret_workers = (struct joined){0};
	scene_ask_workers(scene, PART_JOIN, 0, note_joined, ret_workers);
	child_ask(&scene->trainer, PART_JOIN, NULL, 0, &letter, SCENE_ANSWER_S);
	memcpy(ret_trainer, letter.bytes, sizeof(*ret_trainer));
}

void scene_publish(struct scene *scene, struct published *ret_published)
{
	struct letter letter;
	uint64_t version = ++scene->version;

	child_ask(
		&scene->trainer, PART_PUBLISH, &version, sizeof(version), &letter, SCENE_ANSWER_S);
	memcpy(ret_published, letter.bytes, sizeof(*ret_published));
}

static void note_compared(void *data, uint32_t rank, const struct letter *answer)
{
	struct compared *all = data, compared;

	(void)rank;
	memcpy(&compared, answer->bytes, sizeof(compared));
	all->bytes += compared.bytes;
	all->wrong += compared.wrong;
}

void scene_renew(struct scene *scene, uint64_t seed)
{
	scene_ask_workers(scene, PART_POISON, 0, NULL, NULL);
	scene_ask_number(&scene->trainer, PART_FILL, seed);
}

void scene_compare(struct scene *scene, uint64_t seed, struct compared *sum)
{
	scene_ask_workers(scene, PART_COMPARE, seed, note_compared, sum);
}

void compared_report(const struct compared *compared, struct report *report)
{
	report_number(report, "bytes compared", "bytes", (double)compared->bytes);
	report_number(report, "bytes wrong", "bytes", (double)compared->wrong);
}

int compared_verdict(const struct compared *compared)
{
	if (!compared->bytes) {
		fputs("strew-bench: no byte was compared\n", stderr);
	} else if (compared->wrong) {
		fprintf(stderr, "strew-bench: %llu of %llu bytes are wrong\n",
			(unsigned long long)compared->wrong, (unsigned long long)compared->bytes);
	}
	return compared->wrong || !compared->bytes ? EXIT_RUNTIME : EXIT_OK;
}
