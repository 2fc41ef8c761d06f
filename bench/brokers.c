#include "bench/brokers.h"
#include "base/clock.h"
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define READY_S 90
#define STATUS_S 30

void brokers_prepare(struct brokers *ret_brokers, bool two)
{
	struct brokers brokers = {.folder = "/tmp/strew-bench-XXXXXX"};

	if (!mkdtemp(brokers.folder)) {
		bench_fail(EXIT_RUNTIME, "%s: %s", brokers.folder, strerror(errno));
	}
	snprintf(brokers.lead_socket, sizeof(brokers.lead_socket), "%s/lead.sock", brokers.folder);
	snprintf(brokers.node_socket, sizeof(brokers.node_socket), "%s/%s.sock", brokers.folder,
		two ? "node" : "lead");
	*ret_brokers = brokers;
	bench_logs(ret_brokers->folder);
}

/* A port that nobody has now, for the lead to take at once. */
static unsigned free_port(void)
{
	struct sockaddr_in address = {
		.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	socklen_t len = sizeof(address);
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (fd < 0 || bind(fd, (struct sockaddr *)&address, len) < 0 ||
		getsockname(fd, (struct sockaddr *)&address, &len) < 0) {
		bench_fail(EXIT_RUNTIME, "no free port: %s", strerror(errno));
	}
	close(fd);
	return ntohs(address.sin_port);
}

static void wait_ready(const char *name, int fd)
{
	struct pollfd polled = {.fd = fd, .events = POLLIN};
	char text[16];

	if (poll(&polled, 1, READY_S * 1000) != 1 || read(fd, text, sizeof(text)) <= 0) {
		bench_fail(EXIT_RUNTIME, "the %s broker did not become ready", name);
	}
	close(fd);
}

static void start(struct brokers *brokers, const struct brokers_options *options, bool lead,
	const char *where)
{
	char program[512], slot[32], slots[32], ready[16], log[128];
	const char *argv[24], *env[3] = {NULL};
	const char *device = lead ? options->lead_device : options->node_device;
	const char *name = lead ? "lead" : "joining";
	int pair[2], log_fd;
	size_t n = 0;

	bench_program(program, sizeof(program), "strewd");
	snprintf(log, sizeof(log), "%s/%s.log", brokers->folder, lead ? "lead" : "node");
	log_fd = open(log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
	if (log_fd < 0 || pipe2(pair, 0) < 0) {
		bench_fail(EXIT_RUNTIME, "%s: %s", log, strerror(errno));
	}
	fcntl(pair[0], F_SETFD, FD_CLOEXEC);
	snprintf(slot, sizeof(slot), "%llu", (unsigned long long)options->slot_bytes);
	snprintf(slots, sizeof(slots), "%llu", (unsigned long long)options->slots);
	snprintf(ready, sizeof(ready), "%d", pair[1]);
	argv[n++] = program;
	argv[n++] = "--socket";
	argv[n++] = lead ? brokers->lead_socket : brokers->node_socket;
	argv[n++] = "--backend";
	argv[n++] = options->kind == GPU_CUDA ? "cuda" : "host";
	argv[n++] = "--ready-fd";
	argv[n++] = ready;
	if (where) {
		argv[n++] = lead ? "--listen" : "--join";
		argv[n++] = where;
	}
	if (device && options->kind == GPU_CUDA) {
		argv[n++] = "--device";
		argv[n++] = device;
	}
	if (options->slot_bytes) {
		argv[n++] = "--slot";
		argv[n++] = slot;
	}
	if (options->slots) {
		argv[n++] = "--slots";
		argv[n++] = slots;
	}
	if (options->pinned_shadows) {
		argv[n++] = "--shadow";
		argv[n++] = "host";
	}
	argv[n] = NULL;
	/* On one GPU the two pass for two nodes; with a GPU each, NCCL takes the link between them.
	 */
	if (where && bench_same_gpu(options->lead_device, options->node_device)) {
		env[0] = lead ? "NCCL_HOSTID=strew-bench-lead" : "NCCL_HOSTID=strew-bench-node";
	}
	child_exec(lead ? &brokers->lead : &brokers->node, name, (char *const *)(uintptr_t)argv,
		env, log_fd);
	close(log_fd);
	close(pair[1]);
	wait_ready(name, pair[0]);
}

void brokers_start(struct brokers *brokers, const struct brokers_options *options)
{
	char where[32];

	snprintf(where, sizeof(where), "127.0.0.1:%u", options->two ? free_port() : 0);
	setenv("NCCL_SOCKET_IFNAME", "lo", 0);
	start(brokers, options, true, options->two ? where : NULL);
	if (options->two) {
		start(brokers, options, false, where);
	}
}

static void read_output(const char *path, char *text, size_t text_bytes)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t n = fd < 0 ? -1 : read(fd, text, text_bytes - 1);

	if (n < 0) {
		bench_fail(EXIT_RUNTIME, "%s: %s", path, strerror(errno));
	}
	text[n] = '\0';
	close(fd);
}

double brokers_ask(const struct brokers *brokers, char **argv, unsigned timeout_s, char *ret_text,
	size_t text_bytes)
{
	char program[512], log[128];
	struct child child;
	uint64_t start;
	double seconds;
	int fd, code;

	bench_program(program, sizeof(program), "strew");
	argv[0] = program;
	snprintf(log, sizeof(log), "%s/strew.log", brokers->folder);
	fd = open(log, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	if (fd < 0) {
		bench_fail(EXIT_RUNTIME, "%s: %s", log, strerror(errno));
	}
	start = clock_ns();
	child_exec(&child, "strew", argv, NULL, fd);
	code = child_wait(&child, timeout_s);
	seconds = (double)(clock_ns() - start) * 1e-9;
	close(fd);
	read_output(log, ret_text, text_bytes);
	unlink(log);
	if (code) {
		bench_fail(EXIT_RUNTIME, "strew %s ended with %d: %s", argv[1], code, ret_text);
	}
	return seconds;
}

uint64_t brokers_plans(const struct brokers *brokers)
{
	char text[8192];
	char *argv[] = {
		"strew", "status", "--socket", (char *)(uintptr_t)brokers->lead_socket, NULL};
	unsigned long long plans;
	char *at;

	brokers_ask(brokers, argv, STATUS_S, text, sizeof(text));
	at = strstr(text, " plans made");
	while (at && at > text && at[-1] >= '0' && at[-1] <= '9') {
		at--;
	}
	if (!at || sscanf(at, "%llu plans made", &plans) != 1) {
		bench_fail(EXIT_RUNTIME, "strew status does not say how many plans were made: %s",
			text);
	}
	return plans;
}

void brokers_stop(struct brokers *brokers)
{
	static const char *const files[] = {"lead.log", "node.log", "lead.sock", "node.sock"};
	char path[128];

	child_stop(&brokers->node);
	child_stop(&brokers->lead);
	if (!brokers->folder[0]) {
		return;
	}
	bench_logs(NULL);
	for (size_t i = 0; i < ARRAY_LEN(files); i++) {
		snprintf(path, sizeof(path), "%s/%s", brokers->folder, files[i]);
		unlink(path);
	}
	rmdir(brokers->folder);
	brokers->folder[0] = '\0';
}
