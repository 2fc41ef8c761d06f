/* The mover's part of reading others' memory back: one bounded copy into a memfd. */
#include "base/clock.h"
#include "base/util.h"
#include "broker/moves_internal.h"
#include "gpu/memfd.h"
#include <errno.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define SLEEP_NS 20000u

/* One for which it is mapped already: no context is made for reading alone where there is one. */
static int find_address(const struct job_read *work, struct gpu_device **ret_device,
	uint64_t *ret_address, struct error *err)
{
	struct exports *exports = work->exports;
	const struct gpu_memory *memory;
	int rc;

	if (!exports_find(exports, work->allocation, ret_device, &memory)) {
		rc = plans_device(work->moves->plans, exports->handles[work->allocation].uuid,
			ret_device, err);
		rc = rc ? rc : exports_map(exports, *ret_device, err);
		if (rc) {
			return rc;
		}
		memory = exports_memory(exports, *ret_device)[work->allocation];
	}
	*ret_address = gpu_memory_address(memory) + work->offset;
	return 0;
}

/* False: it is not done, and nobody knows whether it ever will be. */
static bool wait_copy(struct job *job, struct gpu_event *event)
{
	uint64_t deadline = deadline_in_ms(LIMIT_READ_MS);

	for (;;) {
		struct timespec nap = {0, SLEEP_NS};
		int rc = gpu_event_query(event, &job->err);

		if (rc) {
			job->rc = rc < 0 ? rc : 0;
			return true;
		}
		if (deadline_passed(deadline)) {
			job->rc = error_set(&job->err, -ETIMEDOUT, "the GPU did not copy in %d s",
				LIMIT_READ_MS / 1000);
			return false;
		}
		mover_look(job->mover);
		nanosleep(&nap, NULL);
	}
}

void job_read_run(struct job *job)
{
	struct job_read *work = (struct job_read *)job;
	struct handle handle = {.kind = HANDLE_MEMFD, .nchunks = 1, .fds = &work->fd};
	struct gpu_memory *memory = NULL;
	struct gpu_device *device;
	uint64_t address = 0;
	struct lane *lane;

	handle.size_bytes = align_up(work->bytes, (uint64_t)sysconf(_SC_PAGESIZE));
	handle.chunk_bytes = &handle.size_bytes;
	job->rc = memfd_create_sealed("strew-read", handle.size_bytes, &work->fd);
	if (job->rc) {
		error_set(&job->err, job->rc, "memfd_create: %s", strerror(-job->rc));
		return;
	}
	job->rc = find_address(work, &device, &address, &job->err);
	if (job->rc == 0) {
		job->rc = moves_local_lane(
			work->moves, device, gpu_device_uuid(device), false, &lane, &job->err);
	}
	if (job->rc == 0) {
		job->rc = gpu_import(device, &handle, true, &memory, &job->err);
	}
	if (job->rc) {
		return;
	}
	job->rc = gpu_copy(
		device, gpu_memory_address(memory), address, work->bytes, lane->stream, &job->err);
	job->rc = job->rc ? job->rc : gpu_event_record(lane->events[0], lane->stream, &job->err);
	/* What may still be written to stays mapped, for ever. */
	if (job->rc || wait_copy(job, lane->events[0])) {
		gpu_memory_release(memory);
	}
}
