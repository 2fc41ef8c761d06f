/* The mover without its thread, and the event loop without io_uring, which is slow to make. */
#include "base/util.h"
#include "broker/loop_internal.h"
#include "fuzz/fuzz.h"
#include "fuzz/stand_ins.h"
#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <sys/eventfd.h>

struct mover {
	int eventfd;
	struct job *queued, **queued_end;
	struct job *ended, **ended_end;
	struct watch *watches;
	unsigned pending;
};

int loop_uring_create(struct loop **ret_loop)
{
	(void)ret_loop;
	return -ENOSYS;
}

int mover_create(void (*broken)(void *data, const char *text), void *data, struct mover **ret_mover,
	struct error *err)
{
	struct mover *mover = calloc(1, sizeof(*mover));

	(void)broken; /* host memory does not fail */
	(void)data;
	if (!mover) {
		return error_set(err, -ENOMEM, "out of memory");
	}
	mover->queued_end = &mover->queued;
	mover->ended_end = &mover->ended;
	mover->eventfd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	CLAIM(mover->eventfd >= 0);
	*ret_mover = mover;
	return 0;
}

void mover_run(struct mover *mover, unsigned n)
{
	while (mover->queued && n-- > 0) {
		struct job *job = mover->queued;

		mover->queued = job->next;
		if (!mover->queued) {
			mover->queued_end = &mover->queued;
		}
		job->run(job);
		job->next = NULL;
		*mover->ended_end = job;
		mover->ended_end = &job->next;
		eventfd_write(mover->eventfd, 1);
	}
}

void mover_look_at_all(struct mover *mover)
{
	for (struct watch *watch = mover->watches; watch; watch = watch->next) {
		if (!watch->fired && page_load(watch->page, watch->word) >= watch->value) {
			watch->fired = true;
			eventfd_write(mover->eventfd, 1);
		}
	}
}

void mover_destroy(struct mover *mover)
{
	if (!mover) {
		return;
	}
	while (mover->queued || mover->ended) {
		mover_run(mover, UINT_MAX);
		mover_reap(mover);
	}
	CLAIM(mover->pending == 0);
	fd_close(&mover->eventfd);
	free(mover);
}

uint64_t mover_due(struct mover *mover)
{
	(void)mover;
	return UINT64_MAX; /* jobs end within the call that runs them */
}

int mover_fd(const struct mover *mover)
{
	return mover->eventfd;
}

static void report_notes(struct job *job)
{
	unsigned notes = atomic_load(&job->notes);

	if (job->noted && notes != job->notes_seen) {
		unsigned fresh = notes & ~job->notes_seen;

		job->notes_seen = notes;
		job->noted(job, fresh);
	}
}

static void unlink_watch(struct mover *mover, struct watch *watch)
{
	struct watch **link = &mover->watches;

	while (*link && *link != watch) {
		link = &(*link)->next;
	}
	if (*link) {
		*link = watch->next;
	}
	watch->active = false;
}

void mover_reap(struct mover *mover)
{
	struct watch *watch;
	eventfd_t count;

	eventfd_read(mover->eventfd, &count);
	while (mover->ended) {
		struct job *job = mover->ended;

		mover->ended = job->next;
		if (!mover->ended) {
			mover->ended_end = &mover->ended;
		}
		report_notes(job);
		mover->pending--;
		job->done(job);
	}
	do {
		for (watch = mover->watches; watch && !watch->fired; watch = watch->next) {
		}
		if (watch) {
			unlink_watch(mover, watch);
			watch->hit(watch);
		}
	} while (watch);
}

void mover_submit(struct mover *mover, struct job *job)
{
	job->mover = mover;
	job->next = NULL;
	job->rc = 0;
	error_clear(&job->err);
	atomic_store(&job->notes, 0);
	job->notes_seen = 0;
	mover->pending++;
	*mover->queued_end = job;
	mover->queued_end = &job->next;
}

unsigned mover_pending(struct mover *mover)
{
	return mover->pending;
}

void mover_watch(struct mover *mover, struct watch *watch)
{
	watch->fired = false;
	watch->active = true;
	watch->next = mover->watches;
	mover->watches = watch;
}

void mover_unwatch(struct mover *mover, struct watch *watch)
{
	if (watch->active) {
		unlink_watch(mover, watch);
	}
}

void mover_note(struct job *job, unsigned notes)
{
	atomic_fetch_or(&job->notes, notes);
}

void mover_look(struct mover *mover)
{
	mover_look_at_all(mover);
}
