/*
 * usage: nccl_check [DEVICE [PEER_DEVICE]]. DEVICE "host" is the host backend, for the library
 * fake_nccl alone (named by STREW_NCCL), so that this program can be tried without a GPU. With two
 * devices the ranks are of one host, and talk as NCCL finds best; with one (the first GPU, if none
 * is named) they stand for two hosts.
 */
#include "base/clock.h"
#include "base/util.h"
#include "check.h"
#include <dirent.h>
#include <errno.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define JOIN_MS 30000
#define ALL_S 240 /* the whole check; a hang ends it */

struct counts *counts;

/* Rank 0's own. */
struct lead {
	struct rank rank;
	int parent; /* socket */
};

void check(bool good, const char *format, ...)
{
	va_list ap;

	counts->checks++;
	counts->failed += !good;
	printf("%s ", good ? "ok  " : "FAIL");
	va_start(ap, format);
	vprintf(format, ap);
	va_end(ap);
	putchar('\n');
	fflush(stdout);
}

void must(int rc, const char *what, const struct error *err)
{
	if (rc) {
		check(false, "%s: %s (%d)", what, err ? err->text : "", rc);
		_exit(1);
	}
}

double seconds_since(uint64_t start_ns)
{
	return (double)(clock_ns() - start_ns) / 1e9;
}

static void ask(struct lead *lead, const struct request *request, struct reply *ret_reply)
{
	if (send(lead->parent, request, sizeof(*request), MSG_NOSIGNAL) != sizeof(*request) ||
		recv(lead->parent, ret_reply, sizeof(*ret_reply), 0) != sizeof(*ret_reply)) {
		must(-EPIPE, "talking to the parent", NULL);
	}
}

/* A new communicator with a new peer. */
static int begin(struct lead *lead, enum peer_task task, struct carrier **ret_carrier, int *ret_pid,
	struct error *err)
{
	struct request request = {.task = task};
	struct reply reply;

	must(nccl_unique_id(request.id, err), "a unique id", err);
	ask(lead, &request, &reply);
	*ret_pid = reply.pid;
	return rank_carrier(&lead->rank, request.id, JOIN_MS, NULL, ret_carrier, err);
}

static int end_of(struct lead *lead, int pid)
{
	struct request request = {.pid = pid};
	struct reply reply;

	ask(lead, &request, &reply);
	return reply.status;
}

static void check_exchange(struct lead *lead, const char *name)
{
	struct carrier *carrier = NULL;
	struct error err = {0};
	uint64_t start = clock_ns();
	int pid, rc;

	rc = begin(lead, PEER_EXCHANGE, &carrier, &pid, &err);
	check(rc == 0, "%s: communicator with a new peer process in %.2f s %s", name,
		seconds_since(start), err.text);
	if (rc) {
		kill(pid, SIGKILL);
		end_of(lead, pid);
		return;
	}
	start = clock_ns();
	rc = rank_exchange(&lead->rank, carrier, &err);
	check(rc == 0, "%s: all sizes from both roots bit by bit in %.2f s %s", name,
		seconds_since(start), err.text);
	start = clock_ns();
	rc = carrier_destroy(carrier, false);
	check(rc == 0 && seconds_since(start) < LIMIT_ABORT_MS / 2e3, "%s: ended in order, %.3f s",
		name, seconds_since(start));
	rc = end_of(lead, pid);
	check(rc == 0, "%s: the peer's bytes and end (status %d)", name, rc);
}

/* The peer never comes: init ends by its deadline, or when it is given up. */
static void check_absent(struct lead *lead, bool given_up)
{
	const char *name = given_up ? "given up" : "never joins";
	int timeout_ms = given_up ? JOIN_MS : 3000;
	atomic_int cancel = given_up;
	struct carrier *carrier = NULL;
	uint8_t id[UNIQUE_ID_BYTES];
	struct error err = {0};
	uint64_t start;
	int rc;

	must(nccl_unique_id(id, &err), "a unique id", &err);
	start = clock_ns();
	rc = rank_carrier(&lead->rank, id, timeout_ms, &cancel, &carrier, &err);
	check(rc == (given_up ? -ECANCELED : -ETIMEDOUT) && !carrier &&
			seconds_since(start) < (given_up ? 1 : timeout_ms / 1e3 + 1),
		"%s: %d after %.2f s: %s", name, rc, seconds_since(start), err.text);
}

/* Broadcasts to a peer that gets a signal in the middle of them: an error or a deadline. */
static void check_lost(struct rank *rank, struct carrier *carrier, const char *name, int pid,
	int signal_number, struct error *err)
{
	uint64_t start;
	int rc = 0, n;

	for (n = 0; rc == 0 && n < 4; n++) {
		const struct carrier_part part = {
			gpu_memory_address(rank->buffer), CHECK_LOOP_BYTES};

		rc = carrier_broadcast(
			carrier, &part, 1, 0, rank->stream, deadline_in_ms(3000), NULL, err);
	}
	kill(pid, signal_number);
	start = clock_ns();
	for (n = 0; rc == 0 && n < 1000; n++) {
		rc = rank_broadcast(rank, carrier, CHECK_LOOP_BYTES, 0, 3000, err);
	}
	check((rc == -EIO || rc == -ECONNRESET || rc == -ETIMEDOUT) && seconds_since(start) < 6,
		"%s: %d after %.3f s and %d broadcasts: %s", name, rc, seconds_since(start),
		MAX(n - 1, 0), err->text);
}

/* `abort` false: the signal comes after the last broadcast, before the end in order. */
static void check_signal(struct lead *lead, const char *name, int signal_number, bool abort)
{
	struct carrier *carrier = NULL;
	struct error err = {0};
	uint64_t start = clock_ns();
	int pid, rc, n = 0;

	rc = begin(lead, PEER_LOOP, &carrier, &pid, &err);
	check(rc == 0, "%s: communicator in %.2f s %s", name, seconds_since(start), err.text);
	for (; rc == 0 && n < 20; n++) {
		rc = rank_broadcast(&lead->rank, carrier, CHECK_LOOP_BYTES, 0, 10000, &err);
	}
	check(rc == 0, "%s: %d broadcasts before %s", name, n, err.text);
	if (rc == 0 && abort) {
		check_lost(&lead->rank, carrier, name, pid, signal_number, &err);
	}
	kill(pid, signal_number);
	start = clock_ns();
	rc = carrier_destroy(carrier, abort);
	check(rc == 0 && seconds_since(start) < LIMIT_ABORT_MS / 1e3, "%s: %s %d after %.3f s",
		name, abort ? "aborted" : "ended in order", rc, seconds_since(start));
	start = clock_ns();
	rc = rank_drain(&lead->rank, NULL, 5000, &err);
	check(rc == 0, "%s: the stream was free %.3f s later", name, seconds_since(start));
	kill(pid, SIGKILL);
	end_of(lead, pid);
}

/* The rate that a caller sees, two broadcasts in flight. */
static void show_rate(struct lead *lead)
{
	struct carrier *carrier = NULL;
	struct error err = {0};
	uint64_t start;
	int pid, n = 0;
	int rc = begin(lead, PEER_LOOP, &carrier, &pid, &err);

	start = clock_ns();
	for (; rc == 0 && n < 32; n++) {
		const struct carrier_part part = {
			gpu_memory_address(lead->rank.buffer), CHECK_LOOP_BYTES};

		rc = carrier_broadcast(
			carrier, &part, 1, 0, lead->rank.stream, deadline_in_ms(10000), NULL, &err);
	}
	rc = rc ? rc : rank_drain(&lead->rank, carrier, 10000, &err);
	if (rc == 0) {
		printf("     %d broadcasts of 16 MiB: %.1f GB/s\n", n,
			n * (double)CHECK_LOOP_BYTES / 1e9 / seconds_since(start));
	}
	check(rc == 0, "rate: measured %s", err.text);
	carrier_destroy(carrier, true);
	kill(pid, SIGKILL);
	end_of(lead, pid);
}

static int count_entries(const char *path)
{
	DIR *dir = opendir(path);
	int n = -2;

	while (dir && readdir(dir)) {
		n++;
	}
	if (dir) {
		closedir(dir);
	}
	return n;
}

static void show_leaks(const char *when)
{
	printf("     %s: %d descriptors, %d threads\n", when, count_entries("/proc/self/fd"),
		count_entries("/proc/self/task"));
	fflush(stdout);
}

/* Each rank of its own host, unless they have GPUs of their own. */
static void set_host(uint32_t number, bool one_host)
{
	char text[64];

	snprintf(text, sizeof(text), "strew-check-%d-%u", (int)getppid(), one_host ? 0 : number);
	setenv("NCCL_HOSTID", text, 1);
}

static int lead_main(int parent, const char *device, bool one_host)
{
	struct lead lead = {.parent = parent};
	struct error err = {0};
	char version[24];
	int rc;

	set_host(0, one_host);
	rc = rank_open(&lead.rank, 0, device, &err);
	if ((rc == -ENODEV && !lead.rank.gpu) || (rc == -ENOENT && !nccl_version())) {
		printf("SKIP nccl_check: %s\n", err.text);
		return 77;
	}
	must(rc, "rank 0", &err);
	printf("NCCL %s, driver %d, %s\n",
		nccl_version_format(version, sizeof(version), nccl_version()),
		gpu_info(lead.rank.gpu)->driver_version, one_host ? "two GPUs" : "one GPU");
	check_exchange(&lead, "first");
	show_rate(&lead);
	show_leaks("at first");
	check_absent(&lead, false);
	check_exchange(&lead, "after one that never joined");
	check_absent(&lead, true);
	check_exchange(&lead, "after one given up");
	check_signal(&lead, "killed", SIGKILL, true);
	check_exchange(&lead, "after a kill");
	check_signal(&lead, "stopped", SIGSTOP, true);
	check_exchange(&lead, "after a stop");
	check_signal(&lead, "killed, in order", SIGKILL, false);
	check_signal(&lead, "stopped, in order", SIGSTOP, false);
	check_exchange(&lead, "after all");
	show_leaks("at last");
	rank_close(&lead.rank);
	return 0;
}

static int peer_main(const struct request *request, const char *device, bool one_host)
{
	struct carrier *carrier = NULL;
	struct error err = {0};
	struct rank rank;
	int rc;

	set_host(1, one_host);
	must(rank_open(&rank, 1, device, &err), "rank 1", &err);
	must(rank_carrier(&rank, request->id, JOIN_MS, NULL, &carrier, &err),
		"rank 1's communicator", &err);
	if (request->task == PEER_EXCHANGE) {
		rc = rank_exchange(&rank, carrier, &err);
		must(rc, "rank 1's side of the exchange", &err);
		must(carrier_destroy(carrier, false), "rank 1's end in order", NULL);
		rank_close(&rank);
		return 0;
	}
	/* The lead ends us by a signal, or aborts. */
	do {
		rc = rank_broadcast(&rank, carrier, CHECK_LOOP_BYTES, 0, 10000, &err);
	} while (rc == 0);
	_exit(0);
}

static pid_t fork_bound(void)
{
	pid_t pid = fork();

	if (pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
	}
	return pid;
}

static int wait_peer(pid_t pid)
{
	uint64_t deadline = deadline_in_ms(30000);
	const struct timespec pause = {.tv_nsec = 1000000};
	int status = -1;

	while (waitpid(pid, &status, WNOHANG) == 0) {
		if (deadline_passed(deadline)) {
			kill(pid, SIGKILL);
			waitpid(pid, &status, 0);
			return -ETIMEDOUT;
		}
		nanosleep(&pause, NULL);
	}
	return status;
}

static void serve(int lead, const char *device, bool one_host)
{
	struct request request;

	while (recv(lead, &request, sizeof(request), 0) == sizeof(request)) {
		struct reply reply = {.pid = request.pid};

		if (request.task == 0) {
			reply.status = wait_peer(request.pid);
		} else {
			reply.pid = fork_bound();
			if (reply.pid == 0) {
				close(lead);
				exit(peer_main(&request, device, one_host));
			}
		}
		if (send(lead, &reply, sizeof(reply), MSG_NOSIGNAL) != sizeof(reply)) {
			return;
		}
	}
}

int main(int argc, char **argv)
{
	const char *device = argc > 1 ? argv[1] : NULL;
	const char *other = argc > 2 ? argv[2] : device;
	int pair[2], status = 0;
	pid_t lead;

	counts = mmap(
		NULL, sizeof(*counts), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (counts == MAP_FAILED || socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair)) {
		perror("nccl_check");
		return 1;
	}
	setvbuf(stdout, NULL, _IOLBF, 0);
	setenv("NCCL_RAS_ENABLE", "0", 0);
	setenv("NCCL_NVLS_ENABLE", "0", 0);
	if (argc < 3) {
		setenv("NCCL_SOCKET_IFNAME", "lo", 0);
	}
	alarm(ALL_S);
	lead = fork_bound();
	if (lead == 0) {
		close(pair[0]);
		exit(lead_main(pair[1], device, argc > 2));
	}
	close(pair[1]);
	serve(pair[0], other, argc > 2);
	waitpid(lead, &status, 0);
	if (WIFEXITED(status) && WEXITSTATUS(status) == 77) {
		return 77;
	}
	check(status == 0, "the lead's end (status %d)", status);
	printf("nccl_check: %s checks=%u failed=%u\n", counts->failed ? "failed" : "ok",
		counts->checks, counts->failed);
	return counts->failed ? 1 : 0;
}
