/*
 * The thread sleeps on a condition while it has neither jobs nor watches. With watches it looks at
 * their words, as often as pace.h says.
 */
#include "broker/mover.h"
#include "base/clock.h"
#include "base/thread.h"
#include "base/util.h"
#include "broker/pace.h"
#include <errno.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

struct mover {
	pthread_t thread;
	pthread_mutex_t lock;
	pthread_cond_t wake;
	int eventfd;
	bool stop;
	struct job *queued, **queued_end;
	struct job *running;
	atomic_ullong running_due; /* UINT64_MAX: none is running */
	void (*broken)(void *data, const char *text);
	void *data;
	struct job *ended, **ended_end;
	struct watch *watches;
	struct pace pace;
	unsigned pending;
};

static void kick(struct mover *mover)
{
	uint64_t one = 1;

	if (write(mover->eventfd, &one, sizeof(one)) < 0) {
		/* The counter is full: the loop has been told often enough. */
	}
}

/* Returns whether any watch is still waiting, and whether one was hit now. The lock is held. */
static bool look_locked(struct mover *mover, bool *ret_hit)
{
	bool waiting = false;

	*ret_hit = false;
	for (struct watch *watch = mover->watches; watch; watch = watch->next) {
		if (watch->fired) {
			continue;
		}
		if (page_load(watch->page, watch->word) >= watch->value) {
			watch->fired = *ret_hit = true;
			kick(mover);
		} else {
			waiting = true;
		}
	}
	return waiting;
}

void mover_look(struct mover *mover)
{
	bool hit;

	if (pthread_mutex_trylock(&mover->lock) == 0) {
		look_locked(mover, &hit);
		pthread_mutex_unlock(&mover->lock);
	}
}

void mover_note(struct job *job, unsigned notes)
{
	atomic_fetch_or(&job->notes, notes);
	kick(job->mover);
}

static uint64_t due_of(const struct job *job)
{
	uint64_t limit_ms = job->limit_ms ? job->limit_ms : LIMIT_JOB_MS;

	return job->due ? job->due : clock_ns() + limit_ms * 1000000u;
}

static void run_one(struct mover *mover)
{
	struct job *job = mover->queued;

	mover->queued = job->next;
	if (!mover->queued) {
		mover->queued_end = &mover->queued;
	}
	mover->running = job;
	atomic_store(&mover->running_due, due_of(job));
	pthread_mutex_unlock(&mover->lock);
	job->run(job);
	pthread_mutex_lock(&mover->lock);
	mover->running = NULL;
	atomic_store(&mover->running_due, UINT64_MAX);
	job->next = NULL;
	*mover->ended_end = job;
	mover->ended_end = &job->next;
	kick(mover);
}

static void sleep_locked(struct mover *mover, uint64_t sleep_ns)
{
	struct timespec until = clock_timespec(clock_ns() + sleep_ns);

	pthread_cond_timedwait(&mover->wake, &mover->lock, &until);
}

/* Between jobs: looks at the words, then rests for as long as it may. The lock is held. */
static void rest_locked(struct mover *mover)
{
	bool hit, waiting = look_locked(mover, &hit);
	uint64_t rest_ns;

	if (hit) {
		pace_stirred(&mover->pace, clock_ns());
	}
	rest_ns = pace_next(&mover->pace, clock_ns(), waiting);
	if (rest_ns == PACE_AWAKE) {
		pthread_mutex_unlock(&mover->lock);
		sched_yield();
		pthread_mutex_lock(&mover->lock);
	} else if (rest_ns == PACE_CALLED) {
		pthread_cond_wait(&mover->wake, &mover->lock);
	} else {
		sleep_locked(mover, rest_ns);
	}
}

static void *mover_main(void *data)
{
	struct mover *mover = data;

	/* The default lets a sleep of 5 us take 55. */
	prctl(PR_SET_TIMERSLACK, 1000ul);
	pthread_mutex_lock(&mover->lock);
	for (;;) {
		if (mover->queued) {
			run_one(mover);
			pace_stirred(&mover->pace, clock_ns());
		} else if (mover->stop) {
			break;
		} else {
			rest_locked(mover);
		}
	}
	pthread_mutex_unlock(&mover->lock);
	return NULL;
}

int mover_create(void (*broken)(void *data, const char *text), void *data, struct mover **ret_mover,
	struct error *err)
{
	struct mover *mover = calloc(1, sizeof(*mover));
	pthread_condattr_t attr;
	int rc;

	if (!mover) {
		return error_set(err, -ENOMEM, "out of memory");
	}
	atomic_init(&mover->running_due, UINT64_MAX);
	mover->broken = broken;
	mover->data = data;
	mover->queued_end = &mover->queued;
	mover->ended_end = &mover->ended;
	mover->eventfd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (mover->eventfd < 0) {
		rc = -errno;
		free(mover);
		return error_set(err, rc, "eventfd: %s", strerror(-rc));
	}
	pthread_mutex_init(&mover->lock, NULL);
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&mover->wake, &attr);
	pthread_condattr_destroy(&attr);
	rc = thread_start(mover_main, mover, &mover->thread);
	if (rc) {
		fd_close(&mover->eventfd);
		free(mover);
		return error_set(err, rc, "cannot start the mover's thread: %s", strerror(-rc));
	}
	*ret_mover = mover;
	return 0;
}

void mover_destroy(struct mover *mover)
{
	if (!mover) {
		return;
	}
	pthread_mutex_lock(&mover->lock);
	mover->stop = true;
	pthread_cond_signal(&mover->wake);
	pthread_mutex_unlock(&mover->lock);
	pthread_join(mover->thread, NULL);
	mover_reap(mover);
	pthread_cond_destroy(&mover->wake);
	pthread_mutex_destroy(&mover->lock);
	fd_close(&mover->eventfd);
	free(mover);
}

int mover_fd(const struct mover *mover)
{
	return mover->eventfd;
}

void mover_submit(struct mover *mover, struct job *job)
{
	job->mover = mover;
	job->next = NULL;
	job->rc = 0;
	job->hung = false;
	error_clear(&job->err);
	atomic_store(&job->notes, 0);
	job->notes_seen = 0;
	pthread_mutex_lock(&mover->lock);
	mover->pending++;
	*mover->queued_end = job;
	mover->queued_end = &job->next;
	pthread_cond_signal(&mover->wake);
	pthread_mutex_unlock(&mover->lock);
}

uint64_t mover_due(struct mover *mover)
{
	return atomic_load(&mover->running_due);
}

unsigned mover_pending(struct mover *mover)
{
	unsigned pending;

	pthread_mutex_lock(&mover->lock);
	pending = mover->pending;
	pthread_mutex_unlock(&mover->lock);
	return pending;
}

void mover_watch(struct mover *mover, struct watch *watch)
{
	bool hit;

	pthread_mutex_lock(&mover->lock);
	watch->fired = false;
	watch->active = true;
	pace_watched(&mover->pace);
	watch->next = mover->watches;
	mover->watches = watch;
	look_locked(mover, &hit); /* it may have been reached before the thread is awake */
	pthread_cond_signal(&mover->wake);
	pthread_mutex_unlock(&mover->lock);
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

void mover_unwatch(struct mover *mover, struct watch *watch)
{
	if (!watch->active) {
		return;
	}
	pthread_mutex_lock(&mover->lock);
	unlink_watch(mover, watch);
	pthread_mutex_unlock(&mover->lock);
}

/* One watch that has fired, taken off the list; NULL when there is none. */
static struct watch *take_fired(struct mover *mover)
{
	struct watch *watch;

	pthread_mutex_lock(&mover->lock);
	for (watch = mover->watches; watch && !watch->fired; watch = watch->next) {
	}
	if (watch) {
		unlink_watch(mover, watch);
	}
	pthread_mutex_unlock(&mover->lock);
	return watch;
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

void mover_reap(struct mover *mover)
{
	struct job *ended, *running;
	struct watch *watch;
	uint64_t count;

	if (read(mover->eventfd, &count, sizeof(count)) < 0) {
		/* Nothing was written since: look all the same. */
	}
	pthread_mutex_lock(&mover->lock);
	ended = mover->ended;
	mover->ended = NULL;
	mover->ended_end = &mover->ended;
	running = mover->running;
	pthread_mutex_unlock(&mover->lock);
	while (ended) {
		struct job *next = ended->next;

		if (ended->hung || ended->rc == -ENOTRECOVERABLE) {
			mover->broken(mover->data, ended->err.text);
		}
		if (ended->hung) {
			return;
		}
		report_notes(ended);
		pthread_mutex_lock(&mover->lock);
		mover->pending--;
		pthread_mutex_unlock(&mover->lock);
		ended->done(ended);
		ended = next;
	}
	/* Only this thread frees jobs, and none of those that ended was `running`. */
	if (running) {
		report_notes(running);
	}
	while ((watch = take_fired(mover)) != NULL) {
		watch->hit(watch);
	}
}
