/*
 * The move of an update. At its root, bucket k waits until slot k mod n is free,
 * is gathered into it and broadcast from it; elsewhere it is received into the
 * slot and scattered from it. Workers on the root's node are fed straight
 * from the trainer's memory, lump by lump, by local lanes beside the wire.
 *
 * Where both ends hash what was sent and received, they do so beside the wire: the root behind the
 * gather, the others behind the scatter, each before the slot is used again.
 *
 * Copies between GPUs that do not reach each other bounce: where above a copy is issued, the
 * source's GPU then packs in that stream, or the target's unpacks in it, and the other side has a
 * lane.
 *
 * Streams order the stages by events; the host only looks, before a slot is used
 * again, whether the ring has come round. So at most a ring of buckets is
 * enqueued ahead, and a cancel or a deadline is seen within one bucket.
 */
#include "base/clock.h"
#include "base/util.h"
#include "broker/moves_internal.h"
#include "broker/plans_internal.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* An update being moved. */
struct run {
	struct job *job;
	struct moves *moves;
	uint64_t start, deadline;
	const atomic_int *cancel;
	struct plan_crew **crews;
	size_t ncrews;
	struct plan_base *base;
	bool hash; /* what goes over the wire */
	bool wire; /* the carrier is used, so its errors are this run's */
	struct job_move *work;
	uint64_t soon;	     /* when the event loop is woken for the end; 0: not known, or it was */
	size_t lump, nlumps; /* local: the next one to be enqueued, and how many there are */
};

#define LUMPS_AHEAD 2 /* enqueued: one that runs, and the next */

/*
 * The event loop has slept through the move, and takes some 0.1 ms to wake: it is woken a little
 * before the end that the bytes so far let expect, and stays awake for longer than that is early.
 */
#define SOON_NS 200000u

static void count_done(struct run *run, uint64_t len_bytes)
{
	double elapsed = (double)(clock_ns() - run->start);
	uint64_t done = atomic_fetch_add(&run->work->done_bytes, len_bytes) + len_bytes;

	run->soon = run->start - SOON_NS +
		    (uint64_t)(elapsed * (double)run->work->total_bytes / (double)done);
}

static void tell_soon(struct run *run, uint64_t now)
{
	if (run->soon && now >= run->soon) {
		run->soon = 0;
		mover_note(run->job, 0);
	}
}

/* An issue of local copies of some crew, and its lanes: one in which it reads, one in which it
 * writes. They are one unless it bounces. */
struct local_at {
	size_t crew, next;
	const struct issue *issue;
	struct lane *out, *in;
};

/* 1 and the next of all crews' issues; 0 at the end. */
static int next_local(struct run *run, struct local_at *at, struct error *err)
{
	while (at->crew < run->ncrews && at->next == run->crews[at->crew]->local.n) {
		at->crew++;
		at->next = 0;
	}
	if (at->crew == run->ncrews) {
		return 0;
	}
	at->issue = &run->crews[at->crew]->local.v[at->next++];
	if (issue_out(run->moves, at->issue, &at->out, err) ||
		issue_in(run->moves, at->issue, &at->in, err)) {
		return err->code;
	}
	return 1;
}

/* Enqueues the lumps for which there is room. Never waits. */
static int advance_local(struct run *run, struct error *err)
{
	while (run->lump < run->nlumps) {
		size_t turn = run->lump % LUMPS_AHEAD;
		struct local_at at = {0};
		int rc;

		while ((rc = next_local(run, &at, err)) > 0) {
			rc = gpu_event_query(at.in->events[turn], err);
			if (rc <= 0) {
				return rc;
			}
		}
		if (run->lump >= LUMPS_AHEAD) {
			const struct buckets *lumps = &run->base->lumps;

			count_done(run, lumps->v[run->lump - LUMPS_AHEAD].len_bytes);
		}
		/* Groups share lanes: all are looked at before the first is given work. */
		at = (struct local_at){0};
		while (rc == 0 && (rc = next_local(run, &at, err)) > 0) {
			rc = issue_run(at.issue, run->lump, 0, at.out, at.in, err);
			rc = rc ? rc : gpu_event_record(at.in->events[turn], at.in->stream, err);
		}
		if (rc < 0) {
			return rc;
		}
		run->lump++;
	}
	return 0;
}

/* Waits on the host until the event is done; lumps go on meanwhile. */
static int wait_event(struct run *run, struct gpu_event *event, struct error *err)
{
	uint64_t start = clock_ns();

	for (;;) {
		int rc = gpu_event_query(event, err);
		uint64_t now;

		if (rc) {
			return rc < 0 ? rc : 0;
		}
		if (run->cancel && atomic_load(run->cancel)) {
			return error_set(err, -ECANCELED, "the update was given up");
		}
		rc = run->wire && run->moves->carrier ? carrier_poll(run->moves->carrier, err) : 0;
		if (rc == 0) {
			rc = advance_local(run, err);
		}
		if (rc) {
			return rc;
		}
		now = clock_ns();
		if (now >= run->deadline) {
			return error_set(err, -ETIMEDOUT, "moving did not end before the deadline");
		}
		tell_soon(run, now);
		event_pause(run->job, now - start);
	}
}

/* Its last bucket was gathered here, sent and hashed, or received, scattered and hashed. */
static int wait_slot(struct run *run, size_t turn, struct error *err)
{
	int rc = wait_event(run, run->moves->wire.events[turn], err);

	rc = rc ? rc : wait_event(run, run->moves->gather.events[turn], err);
	return rc ? rc : wait_event(run, run->moves->scatter.events[turn], err);
}

/* All stretches of a bucket at once: from where they lie, or by the slot. */
static int broadcast(
	struct run *run, size_t number, uint32_t root, uint64_t slot, struct error *err)
{
	const struct stretches *stretches = &run->base->stretches;
	const struct stretch *v = stretches->v + stretches->first[number];
	size_t n = stretches->first[number + 1] - stretches->first[number];
	struct carrier_part *parts = run->base->parts;

	for (size_t i = 0; i < n; i++) {
		parts[i].address = v[i].space == STRETCH_PACKED ? slot + v[i].offset : v[i].src;
		parts[i].len_bytes = v[i].len_bytes;
	}
	return carrier_broadcast(run->moves->carrier, parts, n, root, run->moves->wire.stream,
		run->deadline, run->cancel, err);
}

/* Is something of the bucket gathered, so that it waits for that? */
static bool is_packed(const struct run *run, size_t number)
{
	const struct stretches *stretches = &run->base->stretches;

	for (size_t i = stretches->first[number]; i < stretches->first[number + 1]; i++) {
		if (stretches->v[i].space == STRETCH_PACKED) {
			return true;
		}
	}
	return false;
}

/* Into the slot, in the gather's stream. */
static int gather(
	struct run *run, const struct issue *issue, size_t number, uint64_t slot, struct error *err)
{
	struct lane *lane = &run->moves->gather, *out = lane;
	int rc = issue->bounce ? issue_out(run->moves, issue, &out, err) : 0;

	return rc ? rc : issue_run(issue, number, slot, out, lane, err);
}

/* Out of the slot, in the scatter's stream. */
static int scatter(
	struct run *run, const struct issue *issue, size_t number, uint64_t slot, struct error *err)
{
	struct lane *lane = &run->moves->scatter, *in = lane;
	int rc = issue->bounce ? issue_in(run->moves, issue, &in, err) : 0;

	return rc ? rc : issue_run(issue, number, slot, lane, in, err);
}

static int scatter_all(struct run *run, size_t number, uint64_t slot, struct error *err)
{
	int rc = 0;

	for (size_t i = 0; i < run->ncrews; i++) {
		const struct issues *issues = &run->crews[i]->scatter;

		for (size_t k = 0; rc == 0 && k < issues->n; k++) {
			rc = scatter(run, &issues->v[k], number, slot, err);
		}
	}
	return rc;
}

/* What the wire has to wait for; for nothing where all lies ready: that took 5 us a bucket. */
static int gather_bucket(struct run *run, size_t number, uint64_t slot, struct error *err)
{
	struct moves *moves = run->moves;
	struct gpu_event *gathered = moves->gather.events[number % moves->nslots];
	int rc = 0;

	if (!is_packed(run, number)) {
		return 0;
	}
	for (size_t i = 0; rc == 0 && i < run->base->gather.n; i++) {
		rc = gather(run, &run->base->gather.v[i], number, slot, err);
	}
	rc = rc ? rc : gpu_event_record(gathered, moves->gather.stream, err);
	return rc ? rc : gpu_stream_wait(moves->wire.stream, gathered, err);
}

/* Root: slot free → gather → broadcast. */
static int send_bucket(struct run *run, struct job_move *work, size_t number, struct error *err)
{
	struct moves *moves = run->moves;
	size_t turn = number % moves->nslots;
	uint64_t address = gpu_memory_address(moves->slots[turn]);
	int rc;

	rc = wait_slot(run, turn, err);
	rc = rc ? rc : gather_bucket(run, number, address, err);
	if (rc == 0) {
		rc = broadcast(run, number, work->plan_for.rank, address, err);
	}
	if (rc == 0) {
		rc = gpu_event_record(moves->wire.events[turn], moves->wire.stream, err);
	}
	if (rc == 0 && run->hash) {
		rc = gpu_hashes_run(run->base->hashes, number, address, moves->gather.stream, err);
		rc = rc ? rc
			: gpu_event_record(moves->gather.events[turn], moves->gather.stream, err);
	}
	return rc;
}

/* Elsewhere: slot free → receive → scatter. */
static int receive_bucket(struct run *run, struct job_move *work, size_t number,
	const struct bucket *bucket, struct error *err)
{
	struct moves *moves = run->moves;
	size_t turn = number % moves->nslots;
	uint64_t address = gpu_memory_address(moves->slots[turn]);
	int rc;

	rc = wait_slot(run, turn, err);
	if (rc) {
		return rc;
	}
	rc = broadcast(run, number, work->plan_for.roots[bucket->root], address, err);
	if (rc == 0) {
		rc = gpu_event_record(moves->wire.events[turn], moves->wire.stream, err);
	}
	if (rc == 0) {
		rc = gpu_stream_wait(moves->scatter.stream, moves->wire.events[turn], err);
	}
	if (rc == 0 && run->ncrews) {
		atomic_store(&work->touched, true);
	}
	rc = rc ? rc : scatter_all(run, number, address, err);
	if (rc == 0 && run->hash) {
		rc = gpu_hashes_run(run->base->hashes, number, address, moves->scatter.stream, err);
	}
	if (rc == 0) {
		rc = gpu_event_record(moves->scatter.events[turn], moves->scatter.stream, err);
	}
	return rc;
}

/* Notes how long the move has taken by now. */
static void stamp(const struct run *run, uint64_t *ret_ns)
{
	*ret_ns = clock_ns() - run->start;
}

static int wait_lane(struct run *run, struct lane *lane, struct error *err)
{
	int rc;

	if (!lane->stream) {
		return 0;
	}
	rc = gpu_event_record(lane->events[0], lane->stream, err);
	return rc ? rc : wait_event(run, lane->events[0], err);
}

/* Each issue's lump of that turn; others go on by themselves meanwhile. */
static int wait_turn(struct run *run, size_t turn, struct error *err)
{
	struct local_at at = {0};
	int rc = 0;

	while (rc == 0 && (rc = next_local(run, &at, err)) > 0) {
		rc = wait_event(run, at.in->events[turn], err);
	}
	return rc;
}

/* For the last lumps alone: behind them in their lanes may be what the wire has brought. */
static int wait_local(struct run *run, struct error *err)
{
	int rc = advance_local(run, err);

	while (rc == 0 && run->lump < run->nlumps) {
		rc = wait_turn(run, run->lump % LUMPS_AHEAD, err);
		rc = rc ? rc : advance_local(run, err);
	}
	for (size_t turn = 0; rc == 0 && turn < LUMPS_AHEAD; turn++) {
		rc = wait_turn(run, turn, err);
	}
	return rc;
}

/* The scatter's stream is empty: what has left it for a GPU out of reach has to arrive. */
static int wait_bounced(struct run *run, struct error *err)
{
	int rc = 0;

	for (size_t i = 0; i < run->ncrews; i++) {
		const struct issues *issues = &run->crews[i]->scatter;

		for (size_t k = 0; rc == 0 && k < issues->n; k++) {
			struct lane *lane;

			if (issues->v[k].bounce) {
				rc = issue_in(run->moves, &issues->v[k], &lane, err);
				rc = rc ? rc : wait_lane(run, lane, err);
			}
		}
	}
	return rc;
}

/* What this broker will move: by the wire what it sends or receives, and to its own workers. */
static uint64_t bytes_to_move(const struct run *run, const struct job_move *work)
{
	uint64_t bytes = 0;

	for (size_t i = 0; work->wire && i < run->base->buckets.n; i++) {
		bytes += run->base->buckets.v[i].len_bytes;
	}
	for (size_t i = 0; i < run->nlumps; i++) {
		bytes += run->base->lumps.v[i].len_bytes;
	}
	return bytes;
}

/* Zeros, before either stream adds to them. */
static int begin_hashes(struct run *run, struct error *err)
{
	struct moves *moves = run->moves;
	int rc = gpu_hashes_clear(run->base->hashes, moves->gather.stream, err);

	rc = rc ? rc : gpu_event_record(moves->gather.events[0], moves->gather.stream, err);
	return rc ? rc : gpu_stream_wait(moves->scatter.stream, moves->gather.events[0], err);
}

/* Behind all of both streams: the host has waited for the gather's. */
static int end_hashes(struct run *run, struct job_move *work, struct error *err)
{
	struct lane *gather = &run->moves->gather, *scatter = &run->moves->scatter;
	size_t n = hashes_count(&run->base->buckets);
	int rc = wait_lane(run, gather, err);

	rc = rc ? rc : gpu_hashes_fetch(run->base->hashes, scatter->stream, err);
	rc = rc ? rc : wait_lane(run, scatter, err);
	if (rc) {
		return rc;
	}
	work->hashes = malloc((n + 1) * sizeof(*work->hashes));
	if (!work->hashes) {
		return error_set(err, -ENOMEM, "out of memory");
	}
	memcpy(work->hashes, gpu_hashes_values(run->base->hashes), n * sizeof(*work->hashes));
	work->nhashes = n;
	return 0;
}

static int move_all(struct run *run, struct job_move *work, struct error *err)
{
	const struct buckets *buckets = &run->base->buckets;
	int rc = 0;

	if (publication_here(work->plan_for.publication) && run->ncrews) {
		run->nlumps = run->base->lumps.n;
		atomic_store(&work->touched, true);
	}
	work->total_bytes = bytes_to_move(run, work);
	if (run->nlumps) {
		rc = advance_local(run, err);
	}
	if (rc == 0 && run->hash) {
		rc = begin_hashes(run, err);
	}
	for (size_t i = 0; rc == 0 && work->wire && i < buckets->n; i++) {
		const struct bucket *bucket = &buckets->v[i];
		bool own = bucket->root == work->plan_for.publication->own_root;

		rc = own ? send_bucket(run, work, i, err)
			 : receive_bucket(run, work, i, bucket, err);
		work->wire_bytes += bucket->len_bytes;
		if (rc == 0 && i >= run->moves->nslots) { /* the slot was free again */
			count_done(run, buckets->v[i - run->moves->nslots].len_bytes);
		}
	}
	/* The trainer gets its memory back as soon as the last read of it is done; what a root
	 * sends from where it lies is hashed there too. */
	if (rc == 0 && work->wire && (run->base->gather.n || run->hash)) {
		rc = wait_lane(run, &run->moves->gather, err);
		stamp(run, &work->stages.gather_ns);
	}
	if (rc == 0 && run->nlumps) {
		rc = wait_local(run, err);
		stamp(run, &work->stages.local_ns);
	}
	if (rc == 0 && work->wire && run->base->sends_direct) {
		rc = wait_lane(run, &run->moves->wire, err);
	}
	if (rc == 0) {
		mover_note(&work->job, NOTE_RELEASED);
	}
	if (rc == 0 && work->wire) {
		rc = wait_lane(run, &run->moves->wire, err);
		stamp(run, &work->stages.wire_ns);
	}
	if (rc == 0 && work->wire) {
		rc = run->hash ? end_hashes(run, work, err)
			       : wait_lane(run, &run->moves->scatter, err);
		rc = rc ? rc : wait_bounced(run, err);
	}
	if (rc == 0) {
		work->done_bytes = work->total_bytes;
	}
	if (work->wire && run->ncrews && work->plan_for.publication->elsewhere) {
		stamp(run, &work->stages.scatter_ns);
	}
	return rc;
}

static int settle_all(struct run *run, struct error *err)
{
	struct moves *moves = run->moves;
	struct run patient = *run;
	int rc;

	patient.nlumps = 0;   /* none that is not enqueued yet */
	patient.wire = false; /* what the carrier has failed at is no fault of these copies */
	patient.cancel = NULL;
	/* A broadcast whose peer is gone never ends by itself; abort ends it. What bounces out of a
	 * slot waits for it, so it comes before the lanes. */
	if (run->wire) {
		rc = carrier_destroy(moves->carrier, true);
		moves->carrier = NULL;
		if (rc) {
			return error_set(err, rc, "the communicator's abort did not return");
		}
	}
	patient.deadline = clock_ns() + LIMIT_ABORT_MS * 1000000ull;
	rc = moves_wait_local(moves, run->job, patient.deadline, err);
	if (rc || !run->wire) {
		return rc;
	}
	patient.deadline = clock_ns() + LIMIT_ABORT_MS * 1000000ull;
	rc = wait_lane(&patient, &moves->gather, err);
	rc = rc ? rc : wait_lane(&patient, &moves->wire, err);
	return rc ? rc : wait_lane(&patient, &moves->scatter, err);
}

/* After a failure: nothing of ours may be in flight when the job ends. False: something may be. */
static bool is_quiet(struct run *run, struct error *err)
{
	struct error why;

	if (settle_all(run, &why) == 0) {
		return true;
	}
	error_prefix(&why, "%.100s; its copies cannot be waited for", err->text);
	*err = why;
	return false;
}

int moves_plans(struct moves *moves, const struct plan_for *plan_for, const struct crew *crews,
	size_t ncrews, struct plan_base **ret_base, struct plan_crew ***ret_crews,
	struct error *err)
{
	struct plan_crew **found = calloc(ncrews + 1, sizeof(struct plan_crew *));
	struct plan_base *base;
	int rc = found ? plans_base(moves->plans, plan_for, &base, err)
		       : error_set(err, -ENOMEM, "out of memory");

	for (size_t i = 0; rc == 0 && i < ncrews; i++) {
		rc = plans_crew(moves->plans, plan_for, base, &crews[i], &found[i], err);
	}
	if (rc) {
		free(found);
		return rc;
	}
	if (ret_base) {
		*ret_base = base;
	}
	*ret_crews = found;
	return 0;
}

void job_move_run(struct job *job)
{
	struct job_move *work = (struct job_move *)job;
	struct run run = {.job = job,
		.moves = work->moves,
		.start = clock_ns(),
		.deadline = work->deadline,
		.cancel = &work->cancel,
		.wire = work->wire,
		.hash = work->wire && work->hash,
		.work = work};

	if (work->wire && !run.moves->carrier) {
		job->rc = error_set(&job->err, -ENOTCONN, "there is no communicator");
		return;
	}
	if (!slot_types_serve(work->plan_for.slot_types, work->wanted)) {
		job->rc = error_set(&job->err, -EPROTO,
			"the lead would have tensors cast that a worker here wants as they are");
		return;
	}
	job->rc = moves_plans(run.moves, &work->plan_for, work->crews, work->ncrews, &run.base,
		&run.crews, &job->err);
	run.ncrews = job->rc ? 0 : work->ncrews;
	if (job->rc == 0 && run.hash) {
		job->rc = plans_hashes(
			run.moves->plans, work->plan_for.publication, run.base, &job->err);
	}
	if (job->rc == 0) {
		job->rc = move_all(&run, work, &job->err);
		if (job->rc) {
			job->hung = !is_quiet(&run, &job->err);
		}
	}
	free(run.crews);
}
