/*
 * Three real brokers, two of which have joined the first; trainer ranks at any two of them that
 * hold a model together, and a worker at each. Shapes, cuts and names (on which the values
 * depend) are random.
 */
#ifndef BROKER_NODES_H
#define BROKER_NODES_H

#include "broker/peers.h"
#include <pthread.h>

#define NODES 3 /* the lead and two that join */

enum { HALVES, OVERLAP, FIRST, SECOND, BIG, TENSORS };

extern struct broker nodes[NODES];
extern char nodes_address[32];
extern uint64_t version; /* the last one that somebody published */

/* A model that two ranks hold. */
struct scene {
	char names[TENSORS][32];
	struct rows held[2][TENSORS]; /* BIG and HALVES: cut in two */
	size_t nheld[2];
	unsigned ntensors;
	uint64_t overlap; /* rows of OVERLAP that both have; rank 1's are wrong */
	struct trainer ranks[2];
	struct worker workers[NODES];
};

struct starting {
	struct trainer *trainer;
	const struct broker *broker;
	struct strew_trainer_options options;
	const struct rows *rows;
	size_t nrows;
	int rc;
	char text[240];
	pthread_t thread;
};

/* Rows of that tensor of the scene. */
struct rows scene_cut(const struct scene *scene, unsigned tensor, uint64_t rows, uint64_t cols,
	uint64_t first, uint64_t n);
void scene_draw(struct scene *scene);

/* A seal waits for the other ranks' seals, so that each starts in a thread. */
void *rank_starts(void *starting);
void rank_start(struct starting *start, struct scene *scene, uint32_t rank, unsigned node);
void rank_started(struct starting *start, int code, const char *word);
void ranks_start(struct scene *scene, unsigned first, unsigned second);
void ranks_stop(struct scene *scene);

/* A replica of its own on each node, with random rows of every tensor. */
void workers_start(struct scene *scene);
void workers_stop(struct scene *scene);
void workers_hold(const struct scene *scene, uint64_t number);

/* Writes the version's values (wrong ones where rank 0's count) and publishes them. */
int rank_publish(struct scene *scene, uint32_t rank, uint64_t number, int timeout_ms);
/* Both publish and hear the same; the bytes that went by wire. */
uint64_t ranks_commit(struct scene *scene, uint64_t number);

void node_join(unsigned node);
int nodes_start(void **state);
int nodes_finish(void **state);
/* A teardown: between the cases all brokers stand, and nobody is left. */
int nodes_check(void **state);

#endif
