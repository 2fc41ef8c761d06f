/*
 * When is the last write of a process that was killed? A writer copies into this process's memory
 * without a pause, many copies ahead, and is killed in the middle; this process samples the
 * memory meanwhile, and notes when the writer's socket ends and when its pidfd says that it has.
 * What strew rests on (decision 7 of the house) is checked: nothing is written after the pidfd.
 * What comes between the end of the socket and the last write is only told.
 *
 *     last_write [ROUNDS] [--small]
 *
 * --small is for the stand-in driver, whose copies are the CPU's. The writer is this program again,
 * with --writer FD: CUDA must not be touched before a fork.
 */
#include "base/clock.h"
#include "base/util.h"
#include "check.h"
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define VALUES 61 /* sources whose words all have their own value */
#define SOURCE_BYTES (8ull << 20)
#define SOURCE_BYTES_SMALL (96ull << 10)
#define AHEAD 4096	  /* copies enqueued: tens of milliseconds of work */
#define AFTER_MS 300	  /* of sampling, once the writer is gone for good */
#define DEADLINE_MS 60000 /* of all else */

enum way { WAY_ENGINE, WAY_KERNEL, WAYS };
static const char *const way_names[WAYS] = {"copy engine", "kernel"};

struct order {
	enum way way;
	uint64_t seed;	       /* the values are seed + 0 .. VALUES - 1 */
	uint64_t source_bytes; /* each; the target is as long */
	struct handle handle;  /* of an IPC allocation: no arrays */
};

/* The writer */

struct writer {
	struct gpu *gpu;
	struct gpu_device *device;
	struct gpu_stream *stream;
	struct gpu_memory *target, *sources;
	uint64_t source_bytes;
	struct gpu_copies *copies; /* by kernel: range i is source i → the target's beginning */
};

static void fill_sources(struct writer *writer, uint64_t seed)
{
	uint64_t *words = malloc(writer->source_bytes);
	struct error err = {0};

	for (uint64_t i = 0; i < VALUES; i++) {
		for (size_t k = 0; k < writer->source_bytes / sizeof(*words); k++) {
			words[k] = seed + i;
		}
		must(CUDA(&err, cuMemcpyHtoD,
			     gpu_memory_address(writer->sources) + i * writer->source_bytes, words,
			     writer->source_bytes),
			"filling a source", &err);
	}
	free(words);
}

/* Rows of 768 bytes at a pitch of twice that, which is kernels' work. */
static void make_kernel(struct writer *writer)
{
	const uint64_t bases[] = {
		gpu_memory_address(writer->sources), gpu_memory_address(writer->target)};
	struct copy v[VALUES];
	size_t first[VALUES + 1];
	struct copies copies = {.v = v, .n = VALUES, .first = first, .nranges = VALUES};
	struct error err = {0};

	memset(v, 0, sizeof(v));
	for (size_t i = 0; i < VALUES; i++) {
		first[i] = i;
		v[i].src = i * writer->source_bytes;
		v[i].dst_space = 1;
		v[i].run_bytes = 768;
		v[i].ndim = 1;
		v[i].extent[0] = writer->source_bytes / 1536;
		v[i].src_stride[0] = v[i].dst_stride[0] = 1536;
	}
	first[VALUES] = VALUES;
	must(gpu_copies_create(writer->device, &copies, bases, 2, &writer->copies, &err),
		"compiling copies", &err);
}

static void write_one(struct writer *writer, enum way way, uint64_t number)
{
	uint64_t source = number % VALUES;
	struct error err = {0};
	int rc;

	if (way == WAY_KERNEL) {
		rc = gpu_copies_run(writer->copies, source, 0, writer->stream, &err);
	} else {
		rc = gpu_copy(writer->device, gpu_memory_address(writer->target),
			gpu_memory_address(writer->sources) + source * writer->source_bytes,
			writer->source_bytes, writer->stream, &err);
	}
	must(rc, "enqueueing", &err);
}

/* Copies until it is killed, or until the socket's other end is gone. */
static int writer_main(int socket)
{
	struct writer writer = {0};
	struct error err = {0};
	struct gpu_event *events[2];
	struct order order;

	if (recv(socket, &order, sizeof(order), 0) != sizeof(order)) {
		return 1;
	}
	writer.source_bytes = order.source_bytes;
	must(gpu_open(GPU_CUDA, &writer.gpu, &err), "opening the backend", &err);
	must(gpu_device(writer.gpu, order.handle.uuid, &writer.device, &err), "a context", &err);
	must(gpu_stream_create(writer.device, &writer.stream, &err), "a stream", &err);
	must(gpu_import(writer.device, &order.handle, true, &writer.target, &err), "import", &err);
	must(gpu_alloc(writer.device, VALUES * order.source_bytes, &writer.sources, &err),
		"sources", &err);
	fill_sources(&writer, order.seed);
	make_kernel(&writer);
	for (int i = 0; i < 2; i++) {
		must(gpu_event_create(writer.device, &events[i], &err), "an event", &err);
	}
	must(send(socket, "w", 1, 0) == 1 ? 0 : -EPIPE, "saying so", NULL);
	for (uint64_t number = 0;; number++) {
		struct gpu_event *event = events[number / (AHEAD / 2) % 2];

		if (number % (AHEAD / 2) == 0) {
			while (gpu_event_query(event, &err) == 0) {
				struct timespec nap = {.tv_nsec = 100000};

				nanosleep(&nap, NULL);
			}
			if (send(socket, ".", 1, MSG_DONTWAIT | MSG_NOSIGNAL) < 0 &&
				errno == EPIPE) {
				return 1;
			}
		}
		write_one(&writer, order.way, number);
		if (number % (AHEAD / 2) == AHEAD / 2 - 1) {
			must(gpu_event_record(event, writer.stream, &err), "recording", &err);
		}
	}
}

/* The owner of the memory */

struct owner {
	cuda_ptr memory;
	uint64_t bytes;
	struct export_set *set;
	struct handle handle;
};

/* What a round saw, in ns from the kill; 0: not seen. */
struct sighting {
	uint64_t socket_end, pidfd_end;
	uint64_t last_change; /* the sample that was new ended then */
	uint64_t after;	      /* … and the one before it began then: so the write is younger */
	unsigned changes;     /* behind the kill */
	uint64_t widest;      /* between two samples */
};

static uint64_t sample(const struct owner *owner)
{
	uint64_t word = 0;
	struct error err = {0};

	must(cuda_outcome(&err, "cuMemcpyDtoH",
		     extra.cuMemcpyDtoH(
			     &word, owner->memory + owner->bytes / 1536 / 2 * 1536, sizeof(word))),
		"sampling", &err);
	return word;
}

static pid_t start_writer(int *ret_socket)
{
	char number[16];
	int pair[2];
	pid_t pid;

	must(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair) ? -errno : 0, "a socket", NULL);
	snprintf(number, sizeof(number), "%d", pair[1]);
	pid = fork();
	if (pid == 0) {
		close(pair[0]);
		execl("/proc/self/exe", "last_write", "--writer", number, (char *)NULL);
		_exit(127);
	}
	close(pair[1]);
	must(pid < 0 ? -errno : 0, "fork", NULL);
	*ret_socket = pair[0];
	return pid;
}

/* Has the peer's end gone? Its dots are thrown away. */
static bool socket_ended(int socket)
{
	char dots[64];
	ssize_t n;

	do {
		n = recv(socket, dots, sizeof(dots), MSG_DONTWAIT);
	} while (n > 0);
	return n == 0 || (errno != EAGAIN && errno != EINTR);
}

static bool pidfd_ended(int pidfd)
{
	struct pollfd end = {.fd = pidfd, .events = POLLIN};

	return poll(&end, 1, 0) == 1;
}

static void watch(const struct owner *owner, int socket, int pidfd, struct sighting *ret)
{
	uint64_t killed = clock_ns(), before = killed, until = UINT64_MAX;
	uint64_t value = sample(owner);

	while (clock_ns() < until) {
		uint64_t begin, now, word;

		/* Looked at before the sample: a change that it shows is then younger than this. */
		if (!ret->socket_end && socket_ended(socket)) {
			ret->socket_end = clock_ns() - killed;
		}
		if (!ret->pidfd_end && pidfd_ended(pidfd)) {
			ret->pidfd_end = clock_ns() - killed;
			until = clock_ns() + AFTER_MS * 1000000ull;
		}
		begin = clock_ns();
		word = sample(owner);
		now = clock_ns();
		if (word != value) {
			value = word;
			ret->changes++;
			ret->last_change = now - killed;
			ret->after = before - killed;
		}
		ret->widest = MAX(ret->widest, now - before);
		before = begin;
		must(now - killed > DEADLINE_MS * 1000000ull ? -ETIMEDOUT : 0, "the writer's end",
			NULL);
	}
}

static void round_of(const struct owner *owner, enum way way, uint64_t number)
{
	struct order order = {.way = way, .handle = owner->handle, .source_bytes = owner->bytes};
	uint64_t deadline = deadline_in_ms(DEADLINE_MS);
	struct sighting seen = {0};
	struct timespec nap;
	uint64_t jitter;
	int socket, pidfd, status;
	pid_t pid = start_writer(&socket);
	char word;

	must(random_bytes(&jitter, sizeof(jitter)), "random numbers", NULL);
	must(random_bytes(&order.seed, sizeof(order.seed)), "random numbers", NULL);
	pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
	must(pidfd < 0 ? -errno : 0, "pidfd_open", NULL);
	must(send(socket, &order, sizeof(order), 0) == sizeof(order) ? 0 : -EPIPE, "order", NULL);
	must(recv(socket, &word, 1, 0) == 1 && word == 'w' ? 0 : -EPIPE, "the writer", NULL);
	while (sample(owner) - order.seed >= VALUES) {
		must(deadline_passed(deadline) ? -ETIMEDOUT : 0, "the first write", NULL);
	}
	nap = (struct timespec){.tv_nsec = 20000000 + (long)(jitter % 80000000)};
	nanosleep(&nap, NULL);
	must(kill(pid, SIGKILL) ? -errno : 0, "kill", NULL);
	watch(owner, socket, pidfd, &seen);
	must(waitpid(pid, &status, 0) == pid ? 0 : -errno, "waitpid", NULL);
	check(WIFSIGNALED(status) && seen.socket_end && seen.pidfd_end &&
			(!seen.changes || seen.after <= seen.pidfd_end),
		"%s %llu: from the kill: socket's end %.3f ms, last new sample %.3f (%u of them; "
		"the "
		"write is younger than %.3f), pidfd %.3f; samples at most %.3f ms apart",
		way_names[way], (unsigned long long)number, (double)seen.socket_end / 1e6,
		(double)seen.last_change / 1e6, seen.changes, (double)seen.after / 1e6,
		(double)seen.pidfd_end / 1e6, (double)seen.widest / 1e6);
	close(pidfd);
	close(socket);
}

static void owner_start(struct owner *owner)
{
	struct error err = {0};
	struct cuda_ctx *ctx;
	int device = 0;

	must(extra_load(), "the driver's calls", NULL);
	must(CUDA(&err, cuInit, 0), "cuInit", &err);
	must(CUDA(&err, cuDeviceGet, &device, 0), "a device", &err);
	must(CUDA(&err, cuDevicePrimaryCtxRetain, &ctx, device), "a context", &err);
	must(CUDA(&err, cuCtxSetCurrent, ctx), "a context", &err);
	must(CUDA(&err, cuMemAlloc, &owner->memory, owner->bytes), "memory", &err);
	must(export_set_create(&owner->set), "a set", NULL);
	must(export_add(owner->set, (void *)(uintptr_t)owner->memory, owner->bytes, &err), "export",
		&err);
	must(export_settle(owner->set, &err), "export", &err);
	must(export_handle(owner->set, 0, &owner->handle, &err), "its handle", &err);
	must(CUDA(&err, cuCtxSetCurrent, ctx), "a context", &err);
}

int main(int argc, char **argv)
{
	bool small = argc > 1 && strcmp(argv[argc - 1], "--small") == 0;
	unsigned long rounds = argc > 1 + small ? strtoul(argv[1], NULL, 10) : 10;
	struct owner owner = {.bytes = small ? SOURCE_BYTES_SMALL : SOURCE_BYTES};
	struct error err = {0};

	if (argc == 3 && strcmp(argv[1], "--writer") == 0) {
		return writer_main(atoi(argv[2]));
	}
	if (cuda_driver_load(false, &err)) {
		printf("SKIP last_write: %s\n", err.text);
		return 77;
	}
	owner_start(&owner);
	for (unsigned way = 0; way < WAYS; way++) {
		for (unsigned long i = 0; i < rounds; i++) {
			round_of(&owner, way, i);
		}
	}
	export_set_destroy(owner.set);
	printf("last_write: %s checks=%u failed=%u\n", check_failed ? "failed" : "ok", check_count,
		check_failed);
	return check_failed ? 1 : 0;
}
