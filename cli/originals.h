/*
 * What strew verify compares workers with: the tensors of a checkpoint, or those that the trainer
 * ranks of this node hold, put together.
 */
#ifndef CLI_ORIGINALS_H
#define CLI_ORIGINALS_H

#include "cli/checkpoint.h"
#include "ipc/conn.h"
#include "plan/manifest.h"

struct original {
	const struct tensor *tensor;
	const unsigned char *bytes; /* dense; NULL: it cannot be told, as … */
	bool shared; /* … another tensor lies where it does; else not all is here */
};

struct originals {
	const char *owner;  /* "the checkpoint", for sentences */
	struct original *v; /* by name */
	size_t n;
	/* a checkpoint's */
	struct checkpoint checkpoint;
	unsigned char **images; /* one a shard, mapped */
	/* a trainer's */
	struct manifest manifest; /* of all ranks here, not sealed */
	unsigned char *memory;
	size_t memory_bytes;
	char model[LIMIT_MODEL_BYTES];
	uint64_t twins; /* boxes that were read from their twins */
};

int originals_of_checkpoint(const char *path, struct originals *ret, struct error *err);
/*
 * Reads all that the trainer ranks of this node hold of `model` (NULL: of the only model that has
 * any; -EINVAL where there are more) into memory of this process, as many bytes as the model has.
 * Of an element that several ranks hold, the lowest rank's is taken, as in an update.
 */
int originals_of_trainer(
	struct conn *conn, const char *model, struct originals *ret, struct error *err);
void originals_close(struct originals *originals); /* also after a failure */

/* NULL: *ret_why says why it cannot be compared. */
const struct original *originals_find(
	const struct originals *originals, const struct tensor *wanted, const char **ret_why);

#endif
