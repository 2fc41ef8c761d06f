#include "base/clock.h"
#include "base/util.h"
#include "check.h"
#include "gpu/memfd.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#define GUARD_BYTES 64u
#define POISON 0xa5

static const uint64_t sizes[] = {
	1, 0, 4095, 65537, 1u << 20, (8u << 20) + 3, CHECK_BYTES - GUARD_BYTES};

static int open_staging(struct rank *rank, struct error *err)
{
	uint64_t bytes = CHECK_BYTES;
	struct handle handle = {.kind = HANDLE_MEMFD,
		.size_bytes = bytes,
		.nchunks = 1,
		.fds = &rank->memfd,
		.chunk_bytes = &bytes};
	void *host;
	int rc = memfd_create_sealed("nccl_check", bytes, &rank->memfd);

	if (rc) {
		return error_set(err, rc, "a memfd: %s", strerror(-rc));
	}
	rc = memfd_map(rank->memfd, bytes, true, &host, err);
	if (rc) {
		return rc;
	}
	rank->host = host;
	handle.base = (uint64_t)(uintptr_t)host;
	return gpu_import(rank->device, &handle, true, &rank->staging, err);
}

int rank_open(struct rank *rank, uint32_t number, const char *device, struct error *err)
{
	enum gpu_kind kind = GPU_CUDA;
	uint8_t uuid[GPU_UUID_BYTES];
	int rc;

	memset(rank, 0, sizeof(*rank));
	rank->number = number;
	rank->memfd = -1;
	if (device && strcmp(device, "host") == 0) {
		kind = GPU_HOST;
		device = NULL;
	}
	rc = gpu_open(kind, &rank->gpu, err);
	if (rc == 0) {
		rc = nccl_open(err);
	}
	if (rc == 0) {
		rc = gpu_find(rank->gpu, device, uuid, err);
	}
	if (rc == 0) {
		rc = gpu_device(rank->gpu, uuid, &rank->device, err);
	}
	if (rc == 0) {
		rc = gpu_stream_create(rank->device, &rank->stream, err);
	}
	if (rc == 0) {
		rc = gpu_event_create(rank->device, &rank->event, err);
	}
	if (rc == 0) {
		rc = gpu_alloc(rank->device, CHECK_BYTES, &rank->buffer, err);
	}
	return rc ? rc : open_staging(rank, err);
}

void rank_close(struct rank *rank)
{
	gpu_memory_release(rank->staging);
	gpu_memory_release(rank->buffer);
	gpu_event_destroy(rank->event);
	gpu_stream_destroy(rank->stream);
	if (rank->host) {
		munmap(rank->host, CHECK_BYTES);
	}
	fd_close(&rank->memfd);
	gpu_close(rank->gpu);
}

int rank_carrier(struct rank *rank, const uint8_t id[UNIQUE_ID_BYTES], int timeout_ms,
	const atomic_int *cancel, struct carrier **ret_carrier, struct error *err)
{
	struct carrier_options options = {.kind = CARRIER_NCCL,
		.epoch = 1,
		.rank = rank->number,
		.ranks = 2,
		.device = rank->device};

	memcpy(options.unique_id, id, sizeof(options.unique_id));
	return carrier_create(&options, deadline_in_ms(timeout_ms), cancel, ret_carrier, err);
}

int rank_drain(struct rank *rank, struct carrier *carrier, int timeout_ms, struct error *err)
{
	uint64_t deadline = deadline_in_ms(timeout_ms);
	const struct timespec pause = {.tv_nsec = 50000};
	int rc = gpu_event_record(rank->event, rank->stream, err);

	while (rc == 0) {
		rc = gpu_event_query(rank->event, err);
		if (rc) {
			return rc < 0 ? rc : 0;
		}
		rc = carrier ? carrier_poll(carrier, err) : 0;
		if (rc == 0 && deadline_passed(deadline)) {
			rc = error_set(err, -ETIMEDOUT, "the stream is not done");
		}
		nanosleep(&pause, NULL);
	}
	return rc;
}

int rank_broadcast(struct rank *rank, struct carrier *carrier, uint64_t len_bytes, uint32_t root,
	int timeout_ms, struct error *err)
{
	const struct carrier_part part = {gpu_memory_address(rank->buffer), len_bytes};
	int rc = carrier_broadcast(
		carrier, &part, 1, root, rank->stream, deadline_in_ms(timeout_ms), NULL, err);

	return rc ? rc : rank_drain(rank, carrier, timeout_ms, err);
}

/* What bucket `number` holds, known to both ranks without talking. */
static void fill(uint64_t number, uint8_t *buf, uint64_t len_bytes)
{
	uint64_t z = 20261123u + number * 0x9e3779b97f4a7c15u;

	for (uint64_t i = 0; i < len_bytes; i++) {
		z = z * 6364136223846793005u + 1442695040888963407u;
		buf[i] = (uint8_t)(z >> 56);
	}
}

static int copy(struct rank *rank, bool to_device, uint64_t len_bytes, struct error *err)
{
	uint64_t device = gpu_memory_address(rank->buffer);
	uint64_t host = gpu_memory_address(rank->staging);
	int rc = gpu_copy(rank->device, to_device ? device : host, to_device ? host : device,
		len_bytes, rank->stream, err);

	return rc ? rc : rank_drain(rank, NULL, 10000, err);
}

static int exchange_one(struct rank *rank, struct carrier *carrier, uint64_t number,
	uint64_t len_bytes, uint32_t root, uint8_t *want, struct error *err)
{
	int rc;

	fill(number, want, len_bytes);
	memset(want + len_bytes, POISON, GUARD_BYTES);
	memset(rank->host, POISON, len_bytes + GUARD_BYTES);
	if (rank->number == root) {
		memcpy(rank->host, want, len_bytes);
	}
	rc = copy(rank, true, len_bytes + GUARD_BYTES, err);
	if (rc == 0) {
		rc = rank_broadcast(rank, carrier, len_bytes, root, 20000, err);
	}
	memset(rank->host, ~POISON & 0xff, len_bytes + GUARD_BYTES);
	if (rc == 0) {
		rc = copy(rank, false, len_bytes + GUARD_BYTES, err);
	}
	if (rc == 0 && memcmp(rank->host, want, len_bytes + GUARD_BYTES) != 0) {
		rc = error_set(err, -EILSEQ, "%llu bytes from rank %u came out wrong",
			(unsigned long long)len_bytes, root);
	}
	return rc;
}

int rank_exchange(struct rank *rank, struct carrier *carrier, struct error *err)
{
	uint8_t *want = malloc(CHECK_BYTES);
	int rc = want ? 0 : error_set(err, -ENOMEM, "out of memory");

	for (size_t i = 0; rc == 0 && i < ARRAY_LEN(sizes); i++) {
		for (uint32_t root = 0; rc == 0 && root < 2; root++) {
			rc = exchange_one(rank, carrier, i * 2 + root, sizes[i], root, want, err);
		}
	}
	free(want);
	return rc;
}
