/* Streams with their events, which of them an issue goes by, and waiting for them. */
#include "base/clock.h"
#include "broker/moves_internal.h"
#include <errno.h>
#include <sched.h>
#include <string.h>
#include <time.h>

void lane_finish(struct lane *lane)
{
	for (size_t i = 0; i < LIMIT_SLOTS_MAX; i++) {
		gpu_event_destroy(lane->events[i]);
	}
	gpu_stream_destroy(lane->stream);
	memset(lane, 0, sizeof(*lane));
}

int lane_open(struct lane *lane, struct gpu_device *device, bool urgent, struct error *err)
{
	int rc;

	if (lane->stream) {
		return 0;
	}
	lane->device = device;
	rc = urgent ? gpu_stream_create_urgent(device, &lane->stream, err)
		    : gpu_stream_create(device, &lane->stream, err);
	for (size_t i = 0; rc == 0 && i < LIMIT_SLOTS_MAX; i++) {
		rc = gpu_event_create(device, &lane->events[i], err);
	}
	if (rc) {
		lane_finish(lane);
	}
	return rc;
}

int moves_local_lane(struct moves *moves, struct gpu_device *device,
	const uint8_t other[GPU_UUID_BYTES], bool inbound, struct lane **ret_lane,
	struct error *err)
{
	struct lane *lane = moves->local;
	int rc;

	for (size_t i = 0; i < moves->nlocal; i++, lane++) {
		if (lane->device == device && lane->inbound == inbound &&
			memcmp(lane->other, other, GPU_UUID_BYTES) == 0) {
			*ret_lane = lane;
			return 0;
		}
	}
	if (moves->nlocal == LANES_MAX) {
		return error_set(err, -E2BIG, "over %d pairs of GPUs", LANES_MAX);
	}
	rc = lane_open(lane, device, false, err);
	if (rc) {
		return rc;
	}
	memcpy(lane->other, other, GPU_UUID_BYTES);
	lane->inbound = inbound;
	moves->nlocal++;
	*ret_lane = lane;
	return 0;
}

int issue_out(
	struct moves *moves, const struct issue *issue, struct lane **ret_lane, struct error *err)
{
	return moves_local_lane(moves, issue->device, issue->target, false, ret_lane, err);
}

int issue_in(
	struct moves *moves, const struct issue *issue, struct lane **ret_lane, struct error *err)
{
	return issue->bounce ? moves_local_lane(moves, issue->far, gpu_device_uuid(issue->device),
				       true, ret_lane, err)
			     : issue_out(moves, issue, ret_lane, err);
}

int issue_run(const struct issue *issue, size_t range, uint64_t slot, struct lane *out,
	struct lane *in, struct error *err)
{
	return issue->bounce
		       ? gpu_bounce_run(issue->bounce, range, slot, out->stream, in->stream, err)
		       : gpu_copies_run(issue->copies, range, slot, in->stream, err);
}

#define SPIN_NS 200000u /* an event is looked at without sleeping for this long */
#define SLEEP_NS 20000u

void event_pause(struct job *job, uint64_t waited_ns)
{
	mover_look(job->mover);
	if (waited_ns > SPIN_NS) {
		struct timespec nap = {0, SLEEP_NS};

		nanosleep(&nap, NULL);
	} else {
		sched_yield();
	}
}

int event_wait(struct gpu_event *event, struct job *job, uint64_t deadline, struct error *err)
{
	uint64_t start = clock_ns();

	for (;;) {
		int rc = gpu_event_query(event, err);
		uint64_t now;

		if (rc) {
			return rc < 0 ? rc : 0;
		}
		now = clock_ns();
		if (now >= deadline) {
			return error_set(
				err, -ETIMEDOUT, "copying did not end before the deadline");
		}
		event_pause(job, now - start);
	}
}

int moves_wait_local(struct moves *moves, struct job *job, uint64_t deadline, struct error *err)
{
	int rc = 0;

	for (size_t i = 0; rc == 0 && i < moves->nlocal; i++) {
		struct lane *lane = &moves->local[i];

		rc = gpu_event_record(lane->events[0], lane->stream, err);
		rc = rc ? rc : event_wait(lane->events[0], job, deadline, err);
	}
	return rc;
}

void moves_quiet_local(struct moves *moves, struct job *job)
{
	struct error why;

	if (moves_wait_local(moves, job, deadline_in_ms(LIMIT_ABORT_MS), &why)) {
		error_prefix(&why, "%.100s; its copies cannot be waited for", job->err.text);
		job->err = why;
		job->hung = true;
	}
}
