#include "base/clock.h"
#include "base/util.h"
#include "check.h"
#include "gpu/cuda_backend.h"
#include "tests/unit/hash_reference.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define PAGE_BYTES 4096

struct broker {
	struct gpu *gpu;
	struct gpu_device *device;
	struct gpu_stream *stream;
	struct gpu_memory *slot;
	int socket;
	volatile uint64_t *page;
};

static int ask(struct broker *broker, enum request_type type)
{
	struct request request = {.type = type};
	struct reply reply = {0};
	int rc = worker_ask(broker->socket, &request, &reply);

	handle_finish(&reply.handle);
	must(rc, "talking to the worker", NULL);
	if (reply.code && type == REQUEST_CHECK) {
		printf("worker: %s\n", reply.text);
	}
	return reply.code;
}

static int ask_make(struct broker *broker, enum memory_kind kind, uint64_t seed, uint64_t offset,
	struct reply *ret_reply)
{
	struct request request = {
		.type = REQUEST_MAKE, .kind = kind, .seed = seed, .offset = offset};

	memset(ret_reply, 0, sizeof(*ret_reply));
	must(worker_ask(broker->socket, &request, ret_reply), "talking to the worker", NULL);
	return ret_reply->code;
}

/* The slot after ranges 0 and 1, as it must be. */
static bool slot_is_right(
	struct broker *broker, uint64_t seed, const struct copies *copies, uint64_t offset)
{
	char *slot = malloc(CHECK_BYTES), *memory = malloc(CHECK_BYTES), *got = malloc(CHECK_BYTES);
	bool right;

	make_pattern(seed, memory, CHECK_BYTES);
	make_pattern(seed + 1, slot, CHECK_BYTES);
	for (size_t range = 0; range < copies->nranges; range++) {
		run_reference(copies, range, slot, memory + offset);
	}
	right = extra.cuMemcpyDtoH(got, gpu_memory_address(broker->slot), CHECK_BYTES) == 0 &&
		memcmp(got, slot, CHECK_BYTES) == 0;
	free(slot);
	free(memory);
	free(got);
	return right;
}

/* Random strides both ways between the slot and the worker's memory. */
static void check_copies(struct broker *broker, const char *name, enum memory_kind kind,
	uint64_t seed, uint64_t offset)
{
	struct error err = {0};
	struct gpu_memory *memory, *again;
	struct gpu_copies *compiled;
	struct copies copies;
	struct reply reply;
	uint64_t bases[2] = {0};
	uint64_t started;
	char *pattern = malloc(CHECK_BYTES);
	int rc;

	rc = ask_make(broker, kind, seed, offset, &reply);
	check(rc == 0, "%s: exported, %u descriptors %s", name, reply.nfds, reply.text);
	if (rc) {
		goto out;
	}
	started = clock_ns();
	rc = gpu_import(broker->device, &reply.handle, true, &memory, &err);
	check(rc == 0, "%s: imported in %.2f ms %s", name, (double)(clock_ns() - started) / 1e6,
		err.text);
	if (rc) {
		goto out;
	}
	rc = gpu_import(broker->device, &reply.handle, true, &again, &err);
	check(rc == 0 && (again == memory) == (kind != MEMORY_VMM), "%s: imported again", name);
	gpu_memory_release(again);
	check(gpu_memory_bytes(memory) >= CHECK_BYTES && reply.handle.base + reply.offset > 0 &&
			memcmp(gpu_memory_uuid(memory), reply.handle.uuid, GPU_UUID_BYTES) == 0,
		"%s: %llu bytes", name, (unsigned long long)gpu_memory_bytes(memory));

	make_pattern(seed + 1, pattern, CHECK_BYTES);
	must(CUDA(&err, cuMemcpyHtoD, gpu_memory_address(broker->slot), pattern, CHECK_BYTES),
		"filling the slot", &err);
	make_copies(seed, CHECK_BYTES - offset, &copies);
	bases[1] = gpu_memory_address(memory) + reply.offset;
	must(gpu_copies_create(broker->device, &copies, bases, 2, &compiled, &err), "copies", &err);
	for (size_t range = 0; range < copies.nranges; range++) {
		must(gpu_copies_run(compiled, range, gpu_memory_address(broker->slot),
			     broker->stream, &err),
			"running copies", &err);
	}
	drain(broker->device, broker->stream);
	check(slot_is_right(broker, seed, &copies, offset), "%s: the slot bit by bit", name);
	check(ask(broker, REQUEST_CHECK) == 0, "%s: the worker's memory bit by bit", name);
	gpu_copies_destroy(compiled);
	free(copies.v);
	free(copies.first);
	gpu_memory_release(memory);
out:
	ask(broker, REQUEST_FREE);
	handle_finish(&reply.handle);
	free(pattern);
}

#define HASH_SPANS 24

/* Random spans of the slot, against the reference; then a bit is flipped. */
static void check_hash(struct broker *broker, uint64_t seed)
{
	struct gpu_span spans[HASH_SPANS];
	size_t first[3] = {0, HASH_SPANS / 2, HASH_SPANS};
	uint64_t wanted[2] = {0}, got[3][2], state = seed * 2654435761u + 1;
	unsigned char *pattern = malloc(CHECK_BYTES);
	struct gpu_hashes *hashes;
	struct error err = {0};

	make_pattern(seed, pattern, CHECK_BYTES);
	for (size_t i = 0; i < HASH_SPANS; i++) {
		struct gpu_span *span = &spans[i];
		uint64_t at;

		state = state * 6364136223846793005u + 1442695040888963407u;
		span->len_bytes = (state >> 33) % (i % 2 ? CHECK_BYTES / 3 : 300);
		at = (state >> 20) % (CHECK_BYTES - span->len_bytes);
		at &= i % 3 ? ~255ull : ~0ull;
		span->in_slot = i % 4 == 0;
		span->address = at + (span->in_slot ? 0 : gpu_memory_address(broker->slot));
		span->position = (state >> 12) & 0xffffffff8u;
		span->sum = i >= HASH_SPANS / 2;
		wanted[span->sum] += ref_hash(pattern + at, span->len_bytes, span->position);
	}
	must(gpu_hashes_create(broker->device, spans, first, 2, 2, &hashes, &err), "hashes", &err);
	for (int round = 0; round < 3; round++) {
		const unsigned char *flipped =
			pattern + (spans[1].address - gpu_memory_address(broker->slot));

		if (round == 2) {
			pattern[flipped - pattern] ^= 0x10;
		}
		must(CUDA(&err, cuMemcpyHtoD, gpu_memory_address(broker->slot), pattern,
			     CHECK_BYTES),
			"filling the slot", &err);
		must(gpu_hashes_clear(hashes, broker->stream, &err), "hashes", &err);
		for (size_t range = 0; range < 2; range++) {
			must(gpu_hashes_run(hashes, range, gpu_memory_address(broker->slot),
				     broker->stream, &err),
				"hashing", &err);
		}
		must(gpu_hashes_fetch(hashes, broker->stream, &err), "hashes", &err);
		drain(broker->device, broker->stream);
		memcpy(got[round], gpu_hashes_values(hashes), sizeof(got[round]));
	}
	check(memcmp(got[0], wanted, sizeof(wanted)) == 0 &&
			memcmp(got[1], wanted, sizeof(wanted)) == 0,
		"hash %llu: twice as the reference has it", (unsigned long long)seed);
	check(spans[1].len_bytes == 0 || got[2][0] != wanted[0],
		"hash %llu: a flipped bit is found", (unsigned long long)seed);
	gpu_hashes_destroy(hashes);
	free(pattern);
}

static void check_import_fails(
	struct broker *broker, const char *name, const struct handle *handle, int code)
{
	struct gpu_memory *memory;
	struct error err = {0};
	int rc = gpu_import(broker->device, handle, true, &memory, &err);

	check(rc < 0 && (code == 0 || rc == code), "%s: %d %s", name, rc, err.text);
	if (rc == 0) {
		gpu_memory_release(memory);
	}
}

static void check_lies(struct broker *broker)
{
	struct reply reply;

	must(ask_make(broker, MEMORY_PLAIN, 3, 0, &reply), "a worker's memory", NULL);
	reply.handle.size_bytes += CHECK_CHUNK;
	check_import_fails(broker, "ipc: a size that lies", &reply.handle, -ERANGE);
	reply.handle.size_bytes -= CHECK_CHUNK;
	reply.handle.uuid[3] ^= 1;
	check_import_fails(broker, "ipc: a GPU that is not here", &reply.handle, -ENODEV);
	reply.handle.uuid[3] ^= 1;
	check(ask(broker, REQUEST_REMAKE) == -ESTALE, "export_verify sees a reallocation");
	check_import_fails(broker, "ipc: an allocation that is gone", &reply.handle, 0);
	ask(broker, REQUEST_FREE);
	handle_finish(&reply.handle);

	must(ask_make(broker, MEMORY_VMM, 3, 0, &reply), "a worker's memory", NULL);
	reply.handle.chunk_bytes[1] += CHECK_CHUNK;
	reply.handle.size_bytes += CHECK_CHUNK;
	check_import_fails(broker, "vmm: a chunk that lies", &reply.handle, -ERANGE);
	reply.handle.chunk_bytes[1] -= CHECK_CHUNK + 4096;
	reply.handle.size_bytes -= CHECK_CHUNK + 4096;
	check_import_fails(broker, "vmm: a chunk of odd size", &reply.handle, -EINVAL);
	check(ask(broker, REQUEST_REMAKE) == -ESTALE, "export_verify sees new chunks");
	ask(broker, REQUEST_FREE);
	handle_finish(&reply.handle);
}

static void check_read_only(struct broker *broker, const char *name, enum memory_kind kind)
{
	char *want = malloc(CHECK_BYTES), *got = malloc(CHECK_BYTES);
	struct gpu_memory *memory;
	struct error err = {0};
	struct reply reply;
	int rc;

	must(ask_make(broker, kind, 5, 0, &reply), "a worker's memory", NULL);
	rc = gpu_import(broker->device, &reply.handle, false, &memory, &err);
	if (rc == 0) {
		make_pattern(5, want, CHECK_BYTES);
		must(gpu_copy(broker->device, gpu_memory_address(broker->slot),
			     gpu_memory_address(memory) + reply.offset, CHECK_BYTES, broker->stream,
			     &err),
			"a copy", &err);
		drain(broker->device, broker->stream);
		extra.cuMemcpyDtoH(got, gpu_memory_address(broker->slot), CHECK_BYTES);
		gpu_memory_release(memory);
	}
	check(rc == 0 && memcmp(got, want, CHECK_BYTES) == 0, "%s: read-only %s", name, err.text);
	ask(broker, REQUEST_FREE);
	handle_finish(&reply.handle);
	free(want);
	free(got);
}

static void check_page(struct broker *broker, uint64_t word)
{
	struct request request = {.type = REQUEST_PAGE, .word = word, .value = 1000 + word};
	uint64_t deadline = deadline_in_ms(5000);
	struct reply made, reply = {0};
	uint64_t before;

	must(ask_make(broker, MEMORY_PLAIN, 7, 0, &made), "a worker's memory", NULL);
	must(worker_ask(broker->socket, &request, &reply), "talking to the worker", NULL);
	before = broker->page[word];
	while (broker->page[word] != request.value && !deadline_passed(deadline)) {
		struct timespec pause = {.tv_nsec = 100000};

		nanosleep(&pause, NULL);
	}
	check(reply.code == 0 && before == 0 && broker->page[word] == request.value,
		"page: word %llu behind the %s stream's work %s", (unsigned long long)word,
		word ? "worker's" : "default", reply.text);
	handle_finish(&made.handle);
	handle_finish(&reply.handle);
	ask(broker, REQUEST_FREE);
}

static void check_device(struct broker *broker)
{
	struct gpu_memory *memory;
	struct error err = {0};
	uint64_t free_bytes = 0, total_bytes = 0;
	uint8_t uuid[GPU_UUID_BYTES];
	char text[64];

	must(gpu_device_free(broker->device, &free_bytes, &total_bytes), "free memory", NULL);
	check(free_bytes > 0 && free_bytes < total_bytes, "memory: %.1f of %.1f GiB free",
		(double)free_bytes / (1 << 30), (double)total_bytes / (1 << 30));
	check(gpu_alloc(broker->device, total_bytes * 2, &memory, &err) == -ENOMEM, "%s", err.text);
	gpu_uuid_format(text, sizeof(text), gpu_device_uuid(broker->device));
	check(gpu_find(broker->gpu, text, uuid, &err) == 0 &&
			memcmp(uuid, gpu_device_uuid(broker->device), sizeof(uuid)) == 0,
		"found by name: %s", text);
	check(gpu_find(broker->gpu, "99", uuid, &err) == -ENODEV, "%s", err.text);
}

/* From here on with the kernel that the driver compiles from the text in the repository. */
static void use_ptx(struct broker *broker, const void *text, const char *name)
{
	struct cuda_device *device = (struct cuda_device *)broker->device;
	struct cuda_module *module;
	struct error err = {0};
	uint64_t started = clock_ns();

	must(CUDA(&err, cuModuleLoadData, &module, text), name, &err);
	must(CUDA(&err, cuModuleUnload, device->module), "unloading machine code", &err);
	device->module = module;
	must(CUDA(&err, cuModuleGetFunction, &device->scatter, module, "strew_scatter"),
		"the kernel", &err);
	must(CUDA(&err, cuModuleGetFunction, &device->scatter_few, module, "strew_scatter_few"),
		"the kernel that shares", &err);
	device->scatter_cast = device->hash = NULL; /* found again when they are needed */
	check(true, "%s: compiled by the driver in %.1f ms", name,
		(double)(clock_ns() - started) / 1e6);
}

static void broker_main(struct broker *broker)
{
	struct error err = {0};
	uint8_t uuid[GPU_UUID_BYTES];
	char name[64] = "";
	int fds;

	must(extra_load(), "the check's own driver calls", NULL);
	must(gpu_find(broker->gpu, NULL, uuid, &err), "the first GPU", &err);
	must(gpu_device(broker->gpu, uuid, &broker->device, &err), "its context", &err);
	must(gpu_stream_create(broker->device, &broker->stream, &err), "a stream", &err);
	must(gpu_alloc(broker->device, CHECK_BYTES, &broker->slot, &err), "a slot", &err);
	cuda_driver.cuDeviceGetName(name, sizeof(name), 0);
	printf("device %s, driver %d\n", name, gpu_info(broker->gpu)->driver_version);
	check_device(broker);
	check_copies(broker, "ipc", MEMORY_PLAIN, 99, 0);
	check_copies(broker, "vmm", MEMORY_VMM, 99, 0);
	check_copies(broker, "memfd", MEMORY_HOST, 99, 0);
	fds = count_fds();
	for (uint64_t seed = 100; seed < 108; seed++) {
		if (seed == 105) {
			if (!check_small) {
				rates(broker->device, "as loaded");
			}
			use_ptx(broker, scatter_ptx, "ptx for 8.0");
		}
		check_copies(broker, "ipc", MEMORY_PLAIN, seed, seed % 2 ? 0 : 768 * (seed - 99));
		check_copies(broker, "vmm", MEMORY_VMM, seed, seed % 2 ? 0 : 771 * (seed - 99));
		check_copies(broker, "memfd", MEMORY_HOST, seed, seed % 2 ? 0 : 772 * (seed - 99));
	}
	for (uint64_t seed = 1; seed <= (check_small ? 3 : 20); seed++) {
		check_hash(broker, seed);
	}
	check_copies(broker, "pull: vmm without a handle type", MEMORY_VMM_UNSHARED, 99, 0);
	check_copies(broker, "pull: pinned host memory", MEMORY_PINNED, 99, 0);
	check_copies(broker, "pull: managed memory", MEMORY_MANAGED, 99, 0);
	check_read_only(broker, "vmm", MEMORY_VMM);
	check_read_only(broker, "memfd", MEMORY_HOST);
	check_lies(broker);
	check_page(broker, 0);
	check_page(broker, 3);
	check(count_fds() == fds, "%d descriptors before and after", fds);
	bounce_checks(broker->gpu); /* opens a second GPU, where there is one */
	check(((struct cuda_device *)broker->device)->imports == NULL, "no import is left");
	if (!check_small) {
		rates(broker->device, "ptx for 8.0");
	}
	gpu_memory_release(broker->slot);
	gpu_stream_destroy(broker->stream);
}

int main(int argc, char **argv)
{
	struct broker broker = {0};
	struct error err = {0};
	int pair[2], page, status;
	pid_t child;
	int rc;

	check_small = argc == 2 && strcmp(argv[1], "--small") == 0;
	if (argc != 1 + check_small) {
		fprintf(stderr, "usage: gpu_check [--small]\n");
		return 2;
	}
	page = memfd_create("page", MFD_CLOEXEC);
	if (page < 0 || ftruncate(page, PAGE_BYTES) ||
		socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair)) {
		perror("gpu_check");
		return 1;
	}
	broker.page = mmap(NULL, PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, page, 0);
	child = fork();
	if (child == 0) {
		char go;

		close(pair[0]);
		/* CUDA is not touched here unless the parent has found a GPU. */
		if (recv(pair[1], &go, 1, 0) == 1) {
			worker_main(pair[1], (uint64_t *)(uintptr_t)broker.page, PAGE_BYTES);
		}
		_exit(0);
	}
	close(pair[1]);
	broker.socket = pair[0];
	rc = gpu_open(GPU_CUDA, &broker.gpu, &err);
	if (rc == -ENODEV) {
		printf("SKIP gpu_check: %s\n", err.text);
		close(pair[0]);
		waitpid(child, &status, 0);
		return 77;
	}
	must(rc, "opening the backend", &err);
	must(send(pair[0], "g", 1, 0) == 1 ? 0 : -EPIPE, "starting the worker", NULL);
	broker_main(&broker);
	close(pair[0]);
	waitpid(child, &status, 0);
	check(status == 0, "the worker's end");
	gpu_close(broker.gpu);
	printf("gpu_check: %s checks=%u failed=%u\n", check_failed ? "failed" : "ok", check_count,
		check_failed);
	return check_failed ? 1 : 0;
}
