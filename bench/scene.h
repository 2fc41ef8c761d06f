/*
 * The trainer and the workers of a bench, around brokers that run already or will: started as
 * processes, asked all at once, stopped. What they answer is in bench/parts.h.
 */
#ifndef BENCH_SCENE_H
#define BENCH_SCENE_H

#include "bench/brokers.h"
#include "bench/parts.h"

#define SCENE_TP_MAX 64
#define SCENE_ANSWER_S 600

struct scene {
	/* set before scene_start(): */
	enum gpu_kind kind;
	const char *device;	    /* of the trainer, and of workers without their own */
	const char *worker_devices; /* "0,1", or NULL */
	struct bench_model model;
	enum strew_gate gate;
	enum strew_apply apply;
	bool hash;	 /* the trainer's, as in the part */
	bool on_host;	 /* the trainer's memory */
	bool no_trainer; /* workers alone */
	const struct brokers *brokers;
	/* the scene's: */
	struct child trainer, workers[SCENE_TP_MAX];
	struct part parts[SCENE_TP_MAX + 1];
	uint64_t version;
};

/* The device of a worker: the rank-th of "0,1", the last for all after it. */
const char *scene_device(const struct scene *scene, uint32_t rank);

/* Forks them; their memory is made at once, nothing is registered. */
void scene_start(struct scene *scene);
void scene_stop(struct scene *scene);

/* Asks all workers at once, since they wait for each other; `each` (may be NULL) sees the answers.
 */
void scene_ask_workers(struct scene *scene, uint32_t what, uint64_t number,
	void (*each)(void *data, uint32_t rank, const struct letter *answer), void *data);
/* A child's answer that is one number, or seconds. */
uint64_t scene_ask_number(struct child *child, uint32_t what, uint64_t number);
double scene_ask_seconds(struct child *child, uint32_t what, uint64_t number);

/* Workers register, then the trainer seals. *ret_workers: the slowest of each. */
void scene_join(struct scene *scene, struct joined *ret_workers, struct joined *ret_trainer);
/* The next version. */
void scene_publish(struct scene *scene, struct published *ret_published);
/* Poisons all that the workers have, and gives the trainer the values of another seed: what
 * scene_compare() finds right afterwards, an update has written that was published in between. */
void scene_renew(struct scene *scene, uint64_t seed);
/* Every byte of every worker with the values of a seed; adds to *sum. */
void scene_compare(struct scene *scene, uint64_t seed, struct compared *sum);
/* What was compared, as two figures. */
void compared_report(const struct compared *compared, struct report *report);
/* The exit code of a bench, said on stderr too if bytes are wrong, or if there were none. */
int compared_verdict(const struct compared *compared);

#endif
