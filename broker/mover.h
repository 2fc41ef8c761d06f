/*
 * The mover: the one thread that enqueues GPU and NCCL work. The event loop hands
 * it jobs, which it runs one after another in order, and watches: words of pages
 * that it looks at between jobs (and inside long ones). An eventfd says that
 * something has ended. What a job works on belongs to it until its `done` has run.
 */
#ifndef BROKER_MOVER_H
#define BROKER_MOVER_H

#include "base/error.h"
#include "ipc/page.h"
#include <stdatomic.h>
#include <stdbool.h>

struct mover;

struct job {
	void (*run)(struct job *job);  /* in the mover; sets rc and err */
	void (*done)(struct job *job); /* in the event loop; owns the job again */
	void (*noted)(struct job *job,
		unsigned notes); /* in the event loop, while it runs; may be NULL */
	int rc;
	struct error err;
	bool hung;	   /* something of it may be in flight for ever: the process must end */
	uint64_t due;	   /* by when it must have ended, once it runs; 0: limit_ms from then */
	uint32_t limit_ms; /* 0: LIMIT_JOB_MS */
	/* the mover's */
	struct mover *mover;
	struct job *next;
	atomic_uint notes;
	unsigned notes_seen;
};

/* Waits for page->words[word] >= value; then `hit` is called once in the event loop. */
struct watch {
	const struct page *page;
	unsigned word;
	uint64_t value;
	void (*hit)(struct watch *watch);
	void *data;
	/* the mover's */
	struct watch *next;
	bool active, fired;
};

/*
 * `broken` is called in the event loop, before `done`, for a job that ends with -ENOTRECOVERABLE.
 * For one that has hung it is all that is called, and nothing for those behind it: nobody may hear
 * that memory is his own.
 */
int mover_create(void (*broken)(void *data, const char *text), void *data, struct mover **ret_mover,
	struct error *err);
/* Stops the thread after the jobs that are queued; their `done` have been called on return. */
void mover_destroy(struct mover *mover);

int mover_fd(const struct mover *mover); /* readable: call mover_reap() */
void mover_reap(struct mover *mover);	 /* event loop: calls done, noted and hit */

void mover_submit(struct mover *mover, struct job *job);
/* When the job that runs is overdue: a call of it does not return. UINT64_MAX: none is running. */
uint64_t mover_due(struct mover *mover);
unsigned mover_pending(struct mover *mover); /* jobs not done yet */

void mover_watch(struct mover *mover, struct watch *watch);
/* Looks at the watches now, if the mover's thread does not: for who is awake anyway, any thread. */
void mover_look(struct mover *mover);
void mover_unwatch(struct mover *mover, struct watch *watch); /* fine if it is not watched */

/* From within a running job: */
void mover_note(struct job *job, unsigned notes); /* sets bits for `noted` */

#endif
