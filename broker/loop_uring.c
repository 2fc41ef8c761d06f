/*
 * The event loop on io_uring. Each source has one poll request in the ring, its arm, which
 * completes once; after its callback it is armed again, and a request for what is ready
 * already completes at once: so events are levels, and a round is one system call however many
 * sources were ready.
 *
 * An arm outlives its source while its request is in the ring: removing cancels the request,
 * and only its completion, which comes in any case, frees the arm. So no completion ever
 * names freed memory.
 */
#include "base/clock.h"
#include "base/util.h"
#include "broker/loop_internal.h"
#include <errno.h>
#include <liburing.h>
#include <stdlib.h>

#define ENTRIES 256

/* What cancels and updates complete as; nobody waits for them. */
#define NOBODY 0

struct arm {
	struct loop_source *source; /* NULL: removed */
	bool in_ring;
	struct arm *next, **link; /* of those that were removed and are still in the ring */
};

struct uring_loop {
	struct loop head;
	struct io_uring ring;
	struct arm *orphans;
};

/* Never NULL: a full queue is handed over first. */
static struct io_uring_sqe *next_sqe(struct uring_loop *loop)
{
	struct io_uring_sqe *sqe;

	while (!(sqe = io_uring_get_sqe(&loop->ring))) {
		io_uring_submit(&loop->ring);
	}
	return sqe;
}

static void put_in_ring(struct uring_loop *loop, struct arm *arm)
{
	struct io_uring_sqe *sqe = next_sqe(loop);

	io_uring_prep_poll_add(sqe, arm->source->fd, arm->source->events);
	io_uring_sqe_set_data(sqe, arm);
	arm->in_ring = true;
}

static int uring_add(struct loop_source *source)
{
	source->arm = calloc(1, sizeof(*source->arm));
	if (!source->arm) {
		return -ENOMEM;
	}
	source->arm->source = source;
	put_in_ring((struct uring_loop *)source->loop, source->arm);
	return 0;
}

/* The source is called for it no more. */
static void forget(struct uring_loop *loop, struct arm *arm)
{
	struct io_uring_sqe *sqe;

	arm->source = NULL;
	if (!arm->in_ring) {
		free(arm);
		return;
	}
	arm->next = loop->orphans;
	arm->link = &loop->orphans;
	if (arm->next) {
		arm->next->link = &arm->next;
	}
	loop->orphans = arm;
	sqe = next_sqe(loop);
	io_uring_prep_poll_remove(sqe, (uintptr_t)arm);
	io_uring_sqe_set_data64(sqe, NOBODY);
}

/* By another arm: there is a call that changes a request's events, but not every kernel since 6.0
 * completes one that is ready at once by that. */
static int uring_modify(struct loop_source *source)
{
	struct uring_loop *loop = (struct uring_loop *)source->loop;
	struct arm *before = source->arm;

	/* Else its callback runs now, or its completion waits: it is armed anew after that. */
	if (before->in_ring) {
		int rc = uring_add(source);

		if (rc) {
			source->arm = before;
			return rc;
		}
		forget(loop, before);
	}
	return 0;
}

static void uring_remove(struct loop_source *source)
{
	struct uring_loop *loop = (struct uring_loop *)source->loop;
	struct arm *arm = source->arm;
	bool in_ring = arm->in_ring;

	source->arm = NULL;
	forget(loop, arm);
	if (in_ring) {
		/* At once: until then the request keeps the file open that the caller now closes.
		 */
		io_uring_submit(&loop->ring);
	}
}

static void free_orphan(struct arm *arm)
{
	*arm->link = arm->next;
	if (arm->next) {
		arm->next->link = arm->link;
	}
	free(arm);
}

/* A completion: its source, or NULL if nobody is to be called; *ret_events what is ready. */
static struct loop_source *settle(const struct io_uring_cqe *cqe, uint32_t *ret_events)
{
	struct arm *arm = io_uring_cqe_get_data(cqe);

	if (!arm) {
		return NULL;
	}
	arm->in_ring = false;
	if (!arm->source) {
		free_orphan(arm);
		return NULL;
	}
	/* A poll that the kernel gave up is an error of the descriptor, which its reader finds. */
	*ret_events = cqe->res >= 0 ? (uint32_t)cqe->res : EPOLLERR;
	return arm->source;
}

static int wait_round(struct uring_loop *loop, uint64_t deadline)
{
	uint64_t now = clock_ns();
	uint64_t left = deadline > now ? deadline - now : 0;
	struct __kernel_timespec time = {
		.tv_sec = (int64_t)(left / 1000000000u), .tv_nsec = (int64_t)(left % 1000000000u)};
	struct io_uring_cqe *cqe;
	int rc;

	if (deadline == DEADLINE_NEVER) {
		rc = io_uring_submit_and_wait(&loop->ring, 1);
	} else {
		rc = io_uring_submit_and_wait_timeout(&loop->ring, &cqe, 1, &time, NULL);
	}
	/* EBUSY: completions that did not fit are to be taken first. */
	return rc >= 0 || rc == -ETIME || rc == -EINTR || rc == -EBUSY || rc == -EAGAIN ? 0 : rc;
}

static int uring_round(struct loop *base, uint64_t deadline)
{
	struct uring_loop *loop = (struct uring_loop *)base;
	struct {
		struct loop_source *source;
		uint32_t events;
	} ready[LOOP_ROUND_EVENTS];
	struct io_uring_cqe *cqe;
	unsigned head, seen = 0;
	size_t n = 0;
	int rc = wait_round(loop, deadline);

	if (rc) {
		return rc;
	}
	io_uring_for_each_cqe(&loop->ring, head, cqe)
	{
		if (n == LOOP_ROUND_EVENTS) {
			break;
		}
		ready[n].source = settle(cqe, &ready[n].events);
		n += ready[n].source != NULL;
		seen++;
	}
	io_uring_cq_advance(&loop->ring, seen);
	for (size_t i = 0; i < n; i++) {
		struct loop_source *source = ready[i].source;

		/* Sources are freed after the round: one that was removed is still there to tell.
		 */
		if (source->callback) {
			base->stirred = true;
			source->callback(source->data, ready[i].events);
		}
		if (source->callback) {
			put_in_ring(loop, source->arm);
		}
	}
	return 0;
}

static void uring_destroy(struct loop *base)
{
	struct uring_loop *loop = (struct uring_loop *)base;

	/* What is in the ring ends with it. */
	io_uring_queue_exit(&loop->ring);
	while (loop->orphans) {
		free_orphan(loop->orphans);
	}
	free(loop);
}

static const struct loop_ops uring_ops = {
	.name = "io_uring",
	.destroy = uring_destroy,
	.add = uring_add,
	.modify = uring_modify,
	.remove = uring_remove,
	.round = uring_round,
};

/* Waiting with a timeout in the one call, completions that are never lost. */
#define NEEDED (IORING_FEAT_EXT_ARG | IORING_FEAT_NODROP)

int loop_uring_create(struct loop **ret_loop)
{
	struct uring_loop *loop = calloc(1, sizeof(*loop));
	struct io_uring_params params = {0};
	int rc;

	if (!loop) {
		return -ENOMEM;
	}
	loop->head.ops = &uring_ops;
	rc = io_uring_queue_init_params(ENTRIES, &loop->ring, &params);
	if (rc < 0) {
		free(loop);
		return rc;
	}
	if ((params.features & NEEDED) != NEEDED) {
		io_uring_queue_exit(&loop->ring);
		free(loop);
		return -EOPNOTSUPP; /* a kernel before 5.11 */
	}
	*ret_loop = &loop->head;
	return 0;
}
