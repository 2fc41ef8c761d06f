/* What broker/moves.c, move.c, commit.c, catch_move.c and lanes.c share: the mover's own state. */
#ifndef BROKER_MOVES_INTERNAL_H
#define BROKER_MOVES_INTERNAL_H

#include "broker/moves.h"

/* A stream and one event for each slot of the ring. */
struct lane {
	struct gpu_device *device;
	/* local lanes: where the copies go, or (inbound) where they come from by host memory */
	uint8_t other[GPU_UUID_BYTES];
	bool inbound;
	struct gpu_stream *stream;
	struct gpu_event *events[LIMIT_SLOTS_MAX];
};

#define LANES_MAX 128 /* 8 GPUs have 64 ways, and each of 56 may have two ends */

struct moves {
	struct gpu *gpu;
	struct plans *plans;
	struct carrier *carrier;
	uint64_t slot_bytes;
	uint32_t nslots;
	bool pinned_shadows;
	struct worker *workers;			   /* mapped, the last one first */
	struct gpu_memory *slots[LIMIT_SLOTS_MAX]; /* made with the first communicator */
	struct lane gather, wire, scatter;	   /* on the slots' device */
	struct lane local[LANES_MAX]; /* local copies and commits, by device and the other end */
	size_t nlocal;
};

/* Urgent: its kernels go before those of the other lanes. */
int lane_open(struct lane *lane, struct gpu_device *device, bool urgent, struct error *err);
int moves_local_lane(struct moves *moves, struct gpu_device *device,
	const uint8_t other[GPU_UUID_BYTES], bool inbound, struct lane **ret_lane,
	struct error *err);
void lane_finish(struct lane *lane);

/* The local lane in which an issue reads, and that in which it writes: one, unless it bounces. */
int issue_out(
	struct moves *moves, const struct issue *issue, struct lane **ret_lane, struct error *err);
int issue_in(
	struct moves *moves, const struct issue *issue, struct lane **ret_lane, struct error *err);
/* Enqueues a range in such lanes, or in those of the slots; `slot` is its address, if it has one.
 */
int issue_run(const struct issue *issue, size_t range, uint64_t slot, struct lane *out,
	struct lane *in, struct error *err);

int moves_slots(struct moves *moves, struct error *err);

/*
 * Finds the plans that job_plan made; they are kept, so this makes nothing, unless the lead has
 * decided on other slot types than job_plan took for likely. One for each crew, the array to be
 * freed; ret_base may be NULL.
 */
int moves_plans(struct moves *moves, const struct plan_for *plan_for, const struct crew *crews,
	size_t ncrews, struct plan_base **ret_base, struct plan_crew ***ret_crews,
	struct error *err);

/* Between two looks at an event that has been waited for so long: yields, later sleeps; and looks
 * at the words that are watched. */
void event_pause(struct job *job, uint64_t waited_ns);
/* Waits on the host, and looks at the words that are watched meanwhile. -ETIMEDOUT. */
int event_wait(struct gpu_event *event, struct job *job, uint64_t deadline, struct error *err);
/* Until all that was enqueued in the local lanes is done. */
int moves_wait_local(struct moves *moves, struct job *job, uint64_t deadline, struct error *err);
/* The same after a failure of the job: nothing of it may be in flight when it ends. If something
 * may be, the job has hung. */
void moves_quiet_local(struct moves *moves, struct job *job);

/* commit.c: copies the shadows of these crews, and waits. Quiet behind a failure, or it has hung.
 */
int commit_crews(struct moves *moves, struct job *job, struct plan_crew *const *crews,
	size_t ncrews, uint64_t deadline);

#endif
