/*
 * What strew push asks the broker as an observer, beside its work as a trainer: before a checkpoint
 * is read, whether the version has anywhere to go; when an answer is late, what it waits for.
 * A lead alone knows; where other nodes may have workers, the update itself finds out.
 */
#ifndef CLI_PUSH_LOOK_H
#define CLI_PUSH_LOOK_H

#include "base/error.h"
#include "cli/checkpoint.h"

struct push_look {
	const char *socket, *model;
	uint64_t version;
	/* NULL unless the checkpoint may leave parameters uncovered: then one of its tensors at
	 * least must be a worker's. */
	const struct checkpoint *partial;
};

/* 0, or what is certain to be refused, as a sentence; an answer that does not come is none. */
int push_look(const struct push_look *look, struct error *err);

/* "; registered here are a, b" or "; no worker is registered here" into text. */
void push_look_models(const char *socket, char text[LIMIT_TEXT_BYTES]);

/* "; version 3 of m: accepting, waits for …" into text, or that a lead may be silent; "" where
 * nothing is in the way. */
void push_look_progress(const char *socket, const char *model, char text[LIMIT_TEXT_BYTES]);

#endif
