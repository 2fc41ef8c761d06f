#include "base/util.h"
#include "cli/reader_internal.h"
#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#define PAGES_STEP_BYTES (4u << 20)

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

struct reader_pages {
	unsigned char *memory;
	uint64_t len_bytes;
	unsigned nthreads;
	pthread_t threads[READER_PAGE_THREADS];
	pthread_mutex_t lock;
	pthread_cond_t changed;
	/* Under the lock: [0, next) was given out; thread i works on the step at begun[i]. */
	uint64_t next;
	uint64_t begun[READER_PAGE_THREADS]; /* UINT64_MAX: on none */
	int error;
	bool stop;
};

/* Makes the pages of a step, which nothing else writes to yet. */
static int make_pages(unsigned char *at, uint64_t bytes)
{
	uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);

	if (madvise(at, bytes, MADV_POPULATE_WRITE) == 0) {
		return 0;
	}
	if (errno != EINVAL) {
		return errno == EFAULT ? -ENOMEM : -errno;
	}
	for (uint64_t i = 0; i < bytes; i += page) { /* before Linux 5.14 */
		*(volatile unsigned char *)(at + i) = 0;
	}
	return 0;
}

struct worker {
	struct reader_pages *pages;
	unsigned index;
};

static void *run(void *arg)
{
	struct worker worker = *(struct worker *)arg;
	struct reader_pages *pages = worker.pages;
	int rc = 0;

	free(arg);
	pthread_mutex_lock(&pages->lock);
	while (!pages->stop && !pages->error && pages->next < pages->len_bytes) {
		uint64_t at = pages->next;
		uint64_t bytes = MIN(PAGES_STEP_BYTES, pages->len_bytes - at);

		pages->next += bytes;
		pages->begun[worker.index] = at;
		pthread_mutex_unlock(&pages->lock);
		rc = make_pages(pages->memory + at, bytes);
		pthread_mutex_lock(&pages->lock);
		pages->begun[worker.index] = UINT64_MAX;
		pages->error = rc ? rc : pages->error;
		pthread_cond_broadcast(&pages->changed);
	}
	pthread_mutex_unlock(&pages->lock);
	return NULL;
}

static int add_thread(struct reader_pages *pages)
{
	struct worker *worker = malloc(sizeof(*worker));
	int rc;

	if (!worker) {
		return -ENOMEM;
	}
	*worker = (struct worker){pages, pages->nthreads};
	rc = -pthread_create(&pages->threads[pages->nthreads], NULL, run, worker);
	if (rc) {
		free(worker);
		return rc;
	}
	pages->nthreads++;
	return 0;
}

int pages_start(unsigned char *memory, uint64_t len_bytes, struct reader_pages **ret_pages)
{
	struct reader_pages *pages = calloc(1, sizeof(*pages));
	long cores = sysconf(_SC_NPROCESSORS_ONLN);
	unsigned wanted = (unsigned)MIN(MAX(cores, 1), (long)READER_PAGE_THREADS);
	int rc = 0;

	if (!pages) {
		return -ENOMEM;
	}
	pages->memory = memory;
	pages->len_bytes = len_bytes;
	pthread_mutex_init(&pages->lock, NULL);
	pthread_cond_init(&pages->changed, NULL);
	for (unsigned i = 0; i < READER_PAGE_THREADS; i++) {
		pages->begun[i] = UINT64_MAX;
	}
	/* Where the system has them, a huge page is one fault and one pin instead of 512. */
	(void)madvise(memory, len_bytes, MADV_HUGEPAGE);
	while (rc == 0 && pages->nthreads < wanted) {
		rc = add_thread(pages);
	}
	if (!pages->nthreads) {
		pages_finish(pages);
		return rc;
	}
	*ret_pages = pages;
	return 0;
}

int pages_wait(struct reader_pages *pages, uint64_t end)
{
	int rc;

	end = MIN(end, pages->len_bytes);
	pthread_mutex_lock(&pages->lock);
	for (;;) {
		uint64_t there = pages->next;

		for (unsigned i = 0; i < pages->nthreads; i++) {
			there = MIN(there, pages->begun[i]);
		}
		rc = pages->error ? pages->error : (pages->stop ? -ECANCELED : 0);
		if (rc || there >= end) {
			break;
		}
		pthread_cond_wait(&pages->changed, &pages->lock);
	}
	pthread_mutex_unlock(&pages->lock);
	return rc;
}

void pages_finish(struct reader_pages *pages)
{
	if (!pages) {
		return;
	}
	pthread_mutex_lock(&pages->lock);
	pages->stop = true;
	pthread_cond_broadcast(&pages->changed);
	pthread_mutex_unlock(&pages->lock);
	for (unsigned i = 0; i < pages->nthreads; i++) {
		pthread_join(pages->threads[i], NULL);
	}
	pthread_cond_destroy(&pages->changed);
	pthread_mutex_destroy(&pages->lock);
	free(pages);
}
