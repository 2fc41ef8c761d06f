/*
 * What strew verify asks of a broker: who is there, worker by worker or trainer rank by trainer
 * rank, and stretches of their live memory while no update is under way.
 */
#ifndef CLI_READBACK_H
#define CLI_READBACK_H

#include "ipc/blob.h"
#include "ipc/conn.h"

/*
 * The worker (trainers: the trainer rank) with the next id above `after`. 1: it is there, with the
 * parts of its layout or declaration, and the caller frees said->twins; 0: there are no more.
 */
int readback_next(struct conn *conn, uint64_t after, bool trainers, struct msg_laid_out *ret_said,
	struct blob *ret_blob, struct error *err);

#define READBACK_MS 120000 /* patience for an update to end */

/*
 * Reads bytes of one of its allocations, waiting while an update is under way, at most busy_ms for
 * each stretch (-EBUSY). -ESTALE if what it holds is not the version any more that `said` names.
 */
int readback_read(struct conn *conn, const struct msg_laid_out *said, uint32_t allocation,
	uint64_t offset, uint64_t bytes, void *to, int busy_ms, struct error *err);

#endif
