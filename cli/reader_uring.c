/*
 * One ring, one thread: blocks go out until READER_DEPTH are in flight, each completion makes
 * room for the next. A window of the destination is registered (its pages pinned once, in one call)
 * when its first block goes out, in the place of a window whose blocks have all come back. After an
 * error nothing more goes out, and the loop ends when the kernel has given every block
 * back: until then it writes to the caller's memory.
 */
#include "base/util.h"
#include "cli/reader_internal.h"
#include <errno.h>
#include <liburing.h>
#include <stdio.h>
#include <string.h>

#define NO_WINDOW UINT64_MAX

struct request {
	struct reader_block block;
	bool direct;
	unsigned place; /* its window's in the registered table */
};

struct uring {
	struct reader *reader;
	struct io_uring ring;
	struct reader_pages *pages;
	struct request requests[READER_DEPTH];
	unsigned spare[READER_DEPTH], nspare; /* requests that are not in flight */
	bool registered;
	uint64_t window[READER_WINDOWS]; /* its number */
	unsigned flying[READER_WINDOWS]; /* blocks of it in flight */
	struct reader_block waiting;	 /* for a place in the table; bytes 0: none */
};

static uint64_t memory_at(const struct uring *uring, const struct reader_block *block)
{
	return (uint64_t)(reader_to(uring->reader, block) - uring->reader->options.memory);
}

/* Registers the window that has the byte `at`, whose place is free. */
static void take_window(struct uring *uring, uint64_t at, unsigned place)
{
	const struct reader_options *options = &uring->reader->options;
	uint64_t begin = at - at % READER_WINDOW_BYTES;
	struct iovec iov = {
		options->memory + begin, MIN(READER_WINDOW_BYTES, options->memory_bytes - begin)};
	int rc = io_uring_register_buffers_update_tag(&uring->ring, place, &iov, NULL, 1);

	if (rc == 1) {
		uring->window[place] = begin;
		return;
	}
	uring->registered = false;
	reader_fall_back(uring->reader, "the buffers are not registered: %s",
		strerrordesc_np(rc < 0 ? -rc : EINVAL));
}

static void put(struct uring *uring, unsigned index)
{
	struct request *request = &uring->requests[index];
	const struct reader_block *block = &request->block;
	struct io_uring_sqe *sqe = io_uring_get_sqe(&uring->ring); /* there are as many */
	int fd = uring->reader->files[block->file].fd;
	unsigned char *to = reader_to(uring->reader, block);
	unsigned bytes;

	request->direct = reader_is_direct(uring->reader, block->file);
	bytes = (unsigned)reader_request(block, request->direct);
	if (request->place < READER_WINDOWS) {
		io_uring_prep_read_fixed(sqe, fd, to, bytes, block->offset, (int)request->place);
	} else {
		io_uring_prep_read(sqe, fd, to, bytes, block->offset);
	}
	io_uring_sqe_set_data64(sqe, index);
}

/* Sends a block on its way. 0, or -EBUSY: its window has no place yet. */
static int send_block(struct uring *uring, const struct reader_block *block)
{
	uint64_t at = memory_at(uring, block), begin = at - at % READER_WINDOW_BYTES;
	unsigned place = (unsigned)(begin / READER_WINDOW_BYTES % READER_WINDOWS);
	unsigned index = uring->spare[uring->nspare - 1];
	uint64_t end = uring->registered ? begin + READER_WINDOW_BYTES : at + block->bytes;
	int rc;

	if (uring->registered && uring->window[place] != begin && uring->flying[place]) {
		return -EBUSY;
	}
	rc = pages_wait(uring->pages, end);
	if (rc) {
		reader_fail(uring->reader, -1, rc, "no memory for the tensors");
		return 0;
	}
	if (uring->registered && uring->window[place] != begin) {
		take_window(uring, at, place);
	}
	if (!uring->registered) {
		place = READER_WINDOWS;
	} else {
		uring->flying[place]++;
	}
	uring->nspare--;
	uring->requests[index] = (struct request){.block = *block, .place = place};
	put(uring, index);
	return 0;
}

static void fill(struct uring *uring)
{
	while (uring->nspare && !reader_stopped(uring->reader)) {
		if (!uring->waiting.bytes &&
			!reader_next(uring->reader, READER_BLOCK_BYTES, &uring->waiting)) {
			return;
		}
		if (send_block(uring, &uring->waiting)) {
			return;
		}
		uring->waiting.bytes = 0;
	}
}

static void completed(struct uring *uring, unsigned index, int res)
{
	struct request *request = &uring->requests[index];
	int done = reader_look(uring->reader, &request->block, request->direct, res);

	if (done == 0 && !reader_stopped(uring->reader)) {
		put(uring, index); /* the rest */
		return;
	}
	if (request->place < READER_WINDOWS) {
		uring->flying[request->place]--;
	}
	uring->spare[uring->nspare++] = index;
}

static int turn(struct uring *uring)
{
	struct io_uring_cqe *cqe;
	int rc = io_uring_submit_and_wait(&uring->ring, 1);

	if (rc < 0 && rc != -EINTR && rc != -EAGAIN && rc != -EBUSY) {
		return rc;
	}
	while (io_uring_peek_cqe(&uring->ring, &cqe) == 0) {
		unsigned index = (unsigned)io_uring_cqe_get_data64(cqe);
		int res = cqe->res;

		io_uring_cqe_seen(&uring->ring, cqe);
		completed(uring, index, res);
	}
	return 0;
}

/* Waits for what the kernel still has; what was never submitted it does not have. */
static void drain(struct uring *uring)
{
	while (READER_DEPTH - uring->nspare > io_uring_sq_ready(&uring->ring)) {
		struct io_uring_cqe *cqe;
		int rc = io_uring_wait_cqe(&uring->ring, &cqe);

		if (rc == 0) {
			uring->spare[uring->nspare++] = (unsigned)io_uring_cqe_get_data64(cqe);
			io_uring_cqe_seen(&uring->ring, cqe);
		} else if (rc != -EINTR && rc != -EAGAIN) {
			return;
		}
	}
}

static int open_ring(struct uring *uring)
{
	int rc = io_uring_queue_init(
		READER_DEPTH, &uring->ring, IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_COOP_TASKRUN);

	if (rc == -EINVAL) { /* before Linux 6.0 */
		rc = io_uring_queue_init(READER_DEPTH, &uring->ring, 0);
	}
	if (rc) {
		return rc;
	}
	rc = io_uring_register_buffers_sparse(&uring->ring, READER_WINDOWS);
	uring->registered = rc == 0;
	if (rc) { /* before Linux 5.19 */
		reader_fall_back(
			uring->reader, "the buffers are not registered: %s", strerrordesc_np(-rc));
	}
	return 0;
}

int reader_run_uring(struct reader *reader)
{
	struct uring uring = {.reader = reader, .nspare = READER_DEPTH};
	char text[96];
	int rc;

	for (unsigned i = 0; i < READER_DEPTH; i++) {
		uring.spare[i] = i;
	}
	for (unsigned i = 0; i < READER_WINDOWS; i++) {
		uring.window[i] = NO_WINDOW;
	}
	rc = open_ring(&uring);
	if (rc) {
		return rc;
	}
	rc = pages_start(reader->options.memory, reader->options.memory_bytes, &uring.pages);
	while (rc == 0) {
		fill(&uring);
		if (uring.nspare == READER_DEPTH) {
			break;
		}
		rc = turn(&uring);
	}
	if (rc) {
		snprintf(text, sizeof(text), "io_uring failed: %s", strerrordesc_np(-rc));
		reader_fail(reader, -1, rc, text);
		drain(&uring);
	}
	pages_finish(uring.pages);
	io_uring_queue_exit(&uring.ring);
	return 0;
}
