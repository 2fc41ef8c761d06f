/* What strew doctor sees. */
#include "base/util.h"
#include "cli/ask.h"
#include "cli/doctor.h"
#include "ipc/socket.h"
#include <dlfcn.h>
#include <errno.h>
#include <liburing.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void look_at_path(struct doctor_facts *facts)
{
	char directory[108];
	char *slash;

	facts->has_socket = lstat(facts->path, &facts->node) == 0;
	string_copy(directory, sizeof(directory), facts->path);
	slash = strrchr(directory, '/');
	if (!slash) {
		string_copy(directory, sizeof(directory), ".");
	} else {
		slash[slash == directory] = '\0';
	}
	facts->has_directory = stat(directory, &facts->directory) == 0;
}

static void look_at_status(struct doctor_facts *facts, const struct msg_status_reply *status)
{
	facts->brokers = (uint32_t)status->nbrokers;
	facts->nccl = status->nccl;
	for (size_t i = 0; i < status->ngroups; i++) {
		facts->raw += status->groups[i].raw;
		facts->pull += status->groups[i].pull;
		facts->loader += status->groups[i].loader;
	}
}

static void look_at_broker(struct doctor_facts *facts)
{
	struct message welcome, question, reply;
	struct peer peer = {0};
	struct conn *conn;

	if (ask_connect(facts->path, &conn, &welcome, &facts->socket)) {
		return;
	}
	facts->welcome = welcome.u.welcome;
	message_finish(&welcome);
	if (socket_peer(conn_fd(conn), &peer) == 0) {
		facts->pid = (int)peer.pid;
	}
	message_init(&question, MSG_STATUS, 2);
	if (ask(conn, &question, MSG_STATUS_REPLY, &reply, &facts->socket) == 0) {
		look_at_status(facts, &reply.u.status_reply);
		message_finish(&reply);
	}
	conn_destroy(conn);
}

static void look_at_namespaces(struct doctor_facts *facts)
{
	static const char *const names[DOCTOR_NAMESPACES] = {"user", "pid", "ipc"};

	for (int i = 0; i < DOCTOR_NAMESPACES; i++) {
		struct stat st;
		char path[64];

		snprintf(path, sizeof(path), "/proc/self/ns/%s", names[i]);
		facts->own_ns[i] = stat(path, &st) == 0 ? st.st_ino : 0;
		snprintf(path, sizeof(path), "/proc/%d/ns/%s", facts->pid, names[i]);
		facts->broker_ns[i] = facts->pid > 0 && stat(path, &st) == 0 ? st.st_ino : 0;
	}
	/* The broker says this one itself, also where its process cannot be seen. */
	if (facts->welcome.pid_namespace) {
		facts->broker_ns[DOCTOR_PID] = facts->welcome.pid_namespace;
	}
}

/* "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.159.04  Fri …": the word with the dot. */
static void look_at_kernel_driver(struct doctor_facts *facts)
{
	FILE *file = fopen("/proc/driver/nvidia/version", "re");
	char line[256];
	char *rest = line, *word;

	if (!file) {
		return;
	}
	string_copy(facts->kernel_driver, sizeof(facts->kernel_driver), "of an unknown version");
	if (fgets(line, sizeof(line), file)) {
		while ((word = strsep(&rest, " \t\n"))) {
			if (word[0] >= '0' && word[0] <= '9' && strchr(word, '.')) {
				string_copy(
					facts->kernel_driver, sizeof(facts->kernel_driver), word);
				break;
			}
		}
	}
	fclose(file);
}

/* Only asked for its version; the brokers' own opening (wire/nccl.c) takes the same library. */
static void look_at_nccl(struct doctor_facts *facts)
{
	const char *named = getenv("STREW_NCCL");
	int (*get_version)(int *);
	void *library, *symbol;
	int version = 0;

	string_copy(facts->nccl_named, sizeof(facts->nccl_named), named ? named : "");
	/* NCCL's monitoring service would listen on a port, unasked. */
	setenv("NCCL_RAS_ENABLE", "0", 0);
	library = dlopen(named && *named ? named : "libnccl.so.2", RTLD_NOW | RTLD_LOCAL);
	if (!library) {
		error_set(&facts->nccl_error, -ENOENT, "%s", dlerror());
		return;
	}
	symbol = dlsym(library, "ncclGetVersion");
	_Static_assert(sizeof(get_version) == sizeof(symbol), "function pointers fit");
	memcpy(&get_version, &symbol, sizeof(symbol));
	if (!symbol || get_version(&version) || version <= 0) {
		error_set(&facts->nccl_error, -ENOSYS, "%s does not tell its version",
			named && *named ? named : "libnccl.so.2");
	} else {
		facts->nccl_found = (uint32_t)version;
	}
	/* It stays open: NCCL is not made to be closed. */
}

static int look_at_uring(void)
{
	struct io_uring ring;
	int rc = io_uring_queue_init(4, &ring, 0);

	if (rc == 0) {
		io_uring_queue_exit(&ring);
	}
	return rc;
}

/* The broker's own, where they can be read: it raises its soft limit, and was perhaps started by
 * another service with others. */
static void look_at_limits(struct doctor_facts *facts)
{
	char path[64], line[160];
	FILE *file;

	getrlimit(RLIMIT_NOFILE, &facts->descriptors);
	getrlimit(RLIMIT_MEMLOCK, &facts->memlock);
	snprintf(path, sizeof(path), "/proc/%d/limits", facts->pid);
	file = facts->pid > 0 ? fopen(path, "re") : NULL;
	if (!file) {
		return;
	}
	while (fgets(line, sizeof(line), file)) {
		unsigned long soft, hard;

		if (sscanf(line, "Max open files %lu %lu", &soft, &hard) == 2) {
			facts->descriptors = (struct rlimit){soft, hard};
			facts->broker_limits = true;
		}
	}
	fclose(file);
}

int doctor_look(
	const char *socket, enum gpu_kind wanted, struct doctor_facts *ret_facts, struct error *err)
{
	const char *allocator = getenv("PYTORCH_ALLOC_CONF");
	int rc;

	memset(ret_facts, 0, sizeof(*ret_facts));
	ret_facts->wanted = wanted;
	ret_facts->euid = geteuid();
	rc = socket_path(socket, ret_facts->path, err);
	if (rc) {
		return rc;
	}
	look_at_path(ret_facts);
	look_at_broker(ret_facts);
	look_at_namespaces(ret_facts);
	gpu_probe(&ret_facts->gpu);
	look_at_kernel_driver(ret_facts);
	if (!allocator) {
		allocator = getenv("PYTORCH_CUDA_ALLOC_CONF");
	}
	string_copy(ret_facts->allocator, sizeof(ret_facts->allocator), allocator ? allocator : "");
	look_at_nccl(ret_facts);
	ret_facts->uring = look_at_uring();
	look_at_limits(ret_facts);
	return 0;
}
