/*
 * The mover's work on an update: plans for it, the ring of slots between gather,
 * carrier and scatter, and the commit's copies. Also what it does between
 * updates: mapping, unmapping, shadows, communicators. Each is a job (mover.h)
 * that embeds `struct job` first; the event loop fills one in and submits it.
 */
#ifndef BROKER_MOVES_H
#define BROKER_MOVES_H

#include "broker/mover.h"
#include "broker/plans.h"
#include "wire/carrier.h"

struct moves; /* the mover's own state: plans, slots, streams, carrier */

struct moves_options {
	struct gpu *gpu;
	const char *device; /* borrowed; NULL: chosen at the first need */
	uint64_t slot_bytes;
	uint32_t slots;
	bool pinned_shadows; /* else on each worker's own GPU */
};

int moves_create(const struct moves_options *options, struct moves **ret_moves);
/* After the mover has stopped, and with every session released. */
void moves_destroy(struct moves *moves);
/* Those between GPUs without peer access that are in use, and the GPU of the slots (NULL: none is
 * chosen yet); any thread. */
const struct rings *moves_rings(const struct moves *moves);
uint64_t moves_plans_made(const struct moves *moves); /* plans_made() */
const uint8_t *moves_slots_uuid(const struct moves *moves);

/* Maps what a worker (and reserves its shadow) or a trainer rank has exported. */
struct job_import {
	struct job job;
	struct moves *moves;
	struct worker *worker; /* one of the two */
	struct holder *holder;
	uint64_t elapsed_ns;
	void *data; /* the event loop's */
};
void job_import_run(struct job *job);

/* Unmaps and frees what the struct holds, and forgets the plans of crew_key. */
struct job_release {
	struct job job;
	struct moves *moves;
	struct worker *worker;		 /* may be NULL */
	struct holder *holder;		 /* may be NULL */
	uint64_t crew_key;		 /* 0: none */
	struct publication *publication; /* its plans are forgotten; may be NULL */
	void *data;
};
void job_release_run(struct job *job);

/*
 * Makes the plans of an update for each crew, with the slot types that are likely; a crew that
 * does not fit gets its own error.
 */
struct job_plan {
	struct job job; /* rc: the publication itself cannot be planned */
	struct moves *moves;
	struct plan_for plan_for;
	struct crew *crews;
	size_t ncrews;
	struct error *errors; /* one a crew; code 0: planned */
	uint64_t unwanted;
	struct slot_types wanted; /* by the crews that were planned */
	void *data;
};
void job_plan_run(struct job *job);

/* Moves every bucket: gathers and sends, receives and scatters, or copies locally. */
#define NOTE_RELEASED 1u /* no trainer memory is read any more */
struct job_move {
	struct job job;
	struct moves *moves;
	struct plan_for plan_for;
	bool wire;			 /* buckets are sent this time: some other node goes on */
	bool hash;			 /* … and hashed at both ends */
	const struct crew *crews;	 /* those that go on; planned before */
	const struct slot_types *wanted; /* what was said that they want */
	size_t ncrews;
	uint64_t deadline;
	atomic_int cancel;   /* the event loop sets it to end the move early */
	atomic_bool touched; /* live or shadow memory may have been written */
	uint64_t wire_bytes;
	atomic_ullong done_bytes, total_bytes; /* read by the event loop meanwhile */
	struct stages stages;
	uint64_t *hashes; /* the result, malloc'd: whoever takes it owns it */
	size_t nhashes;
	void *data;
};
void job_move_run(struct job *job);

/* Copies the shadows of staged crews to live memory. */
struct job_commit {
	struct job job;
	struct moves *moves;
	struct plan_for plan_for;
	const struct crew *crews;
	size_t ncrews;
	uint64_t deadline;
	void *data;
};
void job_commit_run(struct job *job);

/* The same for one crew outside any update, by plans that are not kept. */
struct job_settle {
	struct job job;
	struct moves *moves;
	const struct publication *publication; /* its manifest is what was moved */
	struct crew crew;		       /* its workers are the event loop's to free */
	uint64_t deadline;
	bool touched; /* live memory may have been written */
	void *data;
};
void job_settle_run(struct job *job);
/*
 * A crew catches up out of a sibling's live memory, in steps: whether that covers it (-ENOENT) and
 * the plans; copies for a short while, again until none are left; the shadows to live memory.
 */
enum catch_step { CATCH_PLAN, CATCH_MOVE, CATCH_COMMIT };
struct job_catch {
	struct job job;
	struct moves *moves;
	enum catch_step step;
	struct crew from; /* plan, move: mapped, and not written meanwhile */
	struct crew to;
	/* So many were begun, which may be looked at while they are; 0 before the first move … */
	atomic_size_t lump;
	bool more;	   /* … and move again while it says so */
	uint64_t deadline; /* of this step's copies, from when it runs */
	uint64_t elapsed_ns;
	void *data;
};
void job_catch_run(struct job *job);

/* Reads a stretch of what a worker or trainer has exported into a memfd. Between updates. */
struct job_read {
	struct job job;
	struct moves *moves;
	struct exports *exports; /* mapped; stays so, as unmapping is a job too */
	uint32_t allocation;
	uint64_t offset, bytes; /* inside it */
	int fd;			/* the result, -1: none; owned */
	void *reader, *owner;	/* the event loop's */
	uint64_t serial;
};
void job_read_run(struct job *job);

/* Makes a communicator; the old one, if any, is aborted first, since its ranks may be gone. */
struct job_epoch {
	struct job job;
	struct moves *moves;
	struct carrier_options carrier; /* device is filled in by the job */
	uint64_t deadline;
	atomic_int cancel;
	uint64_t began_ns, elapsed_ns;
	bool given; /* there was a communicator, whatever became of it */
	void *data;
};
void job_epoch_run(struct job *job);

#endif
