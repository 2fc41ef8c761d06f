/*
 * What follows from what strew doctor has seen: for each thing a sentence, and where something is
 * to be done about it, another. Pure.
 */
#include "base/util.h"
#include "cli/doctor.h"
#include <errno.h>
#include <stdio.h>
#include <string.h>

/* What one expandable segment of an engine takes is a descriptor for each 2 or 20 MiB chunk. */
#define DESCRIPTORS_WANTED 65536u
/* Below it a node's connections and memfds do not fit. */
#define DESCRIPTORS_NEEDED 4096u
/* A window of the checkpoint reader's buffers, which io_uring pins for `strew push`. */
#define MEMLOCK_WANTED (64u << 20)

#define SAY(finding, ...) snprintf((finding)->text, sizeof((finding)->text), __VA_ARGS__)

#define ADVISE(finding, how_bad, ...)                                                              \
	do {                                                                                       \
		(finding)->grade = (how_bad);                                                      \
		snprintf((finding)->advice, sizeof((finding)->advice), __VA_ARGS__);               \
	} while (0)

static bool answered(const struct doctor_facts *facts)
{
	return facts->socket.code == 0;
}

static bool on_cuda(const struct doctor_facts *facts)
{
	return answered(facts) && strcmp(facts->welcome.backend, "cuda") == 0;
}

static bool has_gpu(const struct doctor_facts *facts)
{
	return facts->gpu.driver.code == 0 && facts->gpu.nprobed > 0;
}

static void judge_socket(const struct doctor_facts *facts, struct doctor_finding *finding)
{
	if (answered(facts)) {
		SAY(finding, "%s: the broker answers (process %llu, strew %s, backend %s)",
			facts->path, (unsigned long long)facts->welcome.pid, facts->welcome.library,
			facts->welcome.backend);
		if (facts->wanted != GPU_AUTO && (facts->wanted == GPU_CUDA) != on_cuda(facts)) {
			ADVISE(finding, DOCTOR_WRONG,
				"its backend is not the wanted one: see driver and devices below, "
				"then start "
				"strewd again with --backend %s",
				facts->wanted == GPU_CUDA ? "cuda" : "host");
		} else if (strcmp(facts->welcome.library, STREW_VERSION) != 0) {
			ADVISE(finding, DOCTOR_NOTE,
				"this is strew %s: start the broker again with it", STREW_VERSION);
		}
		return;
	}
	SAY(finding, "%s", facts->socket.text);
	if (facts->socket.code == -EACCES || facts->socket.code == -EPERM) {
		ADVISE(finding, DOCTOR_WRONG,
			"run as the user who started the broker, or give --socket");
	} else if (facts->has_socket && S_ISSOCK(facts->node.st_mode)) {
		ADVISE(finding, DOCTOR_WRONG,
			"a broker was here and is gone, or is stopped: start it again (strew run "
			"does that by itself)");
	} else {
		ADVISE(finding, DOCTOR_WRONG,
			"start the engine by `strew run -- COMMAND`, or strewd beside it; if one "
			"runs, its "
			"socket is another one: --socket or $STREW_SOCKET");
	}
}

static void judge_permissions(const struct doctor_facts *facts, struct doctor_finding *finding)
{
	const struct stat *directory = &facts->directory, *node = &facts->node;

	if (!facts->has_directory) {
		SAY(finding, "the socket's directory is not there yet; strewd makes it, for this "
			     "user alone");
		return;
	}
	SAY(finding, "the directory is uid %u's, mode %04o", (unsigned)directory->st_uid,
		(unsigned)directory->st_mode & 07777);
	if (directory->st_uid != facts->euid && directory->st_uid != 0) {
		ADVISE(finding, DOCTOR_WRONG,
			"it belongs to another user, who can put a socket of theirs there: choose "
			"another --socket");
	} else if (directory->st_mode & 022) {
		ADVISE(finding, DOCTOR_WRONG,
			"others may write to it, so strewd refuses it: chmod go-w, or choose "
			"another --socket");
	}
	if (!facts->has_socket || finding->grade != DOCTOR_OK) {
		return;
	}
	SAY(finding, "the directory is uid %u's, mode %04o; the socket is uid %u's, mode %04o",
		(unsigned)directory->st_uid, (unsigned)directory->st_mode & 07777,
		(unsigned)node->st_uid, (unsigned)node->st_mode & 07777);
	if (!S_ISSOCK(node->st_mode)) {
		ADVISE(finding, DOCTOR_WRONG, "what is at the path is no socket: remove it");
	} else if (facts->euid != 0 && node->st_uid != facts->euid) {
		ADVISE(finding, DOCTOR_WRONG,
			"a broker serves its own user and root alone: run engine, trainer and "
			"broker as one user");
	} else if (node->st_mode & 077) {
		ADVISE(finding, DOCTOR_NOTE, "it is meant to be 0600: chmod 600 it");
	}
}

static void judge_namespaces(const struct doctor_facts *facts, struct doctor_finding *finding)
{
	static const char *const names[DOCTOR_NAMESPACES] = {"user", "pid", "ipc"};
	unsigned differ = 0, unknown = 0;
	size_t n = 0;

	if (!answered(facts)) {
		SAY(finding, "no broker to compare with");
		return;
	}
	for (int i = 0; i < DOCTOR_NAMESPACES; i++) {
		bool known = facts->own_ns[i] && facts->broker_ns[i];
		bool same = facts->own_ns[i] == facts->broker_ns[i];

		unknown += !known;
		differ |= known && !same ? 1u << i : 0;
		n += (size_t)snprintf(finding->text + n, sizeof(finding->text) - n, "%s%s %s",
			n ? ", " : "", names[i],
			!known ? "not seen"
			: same ? "shared with the broker"
			       : "NOT the broker's");
	}
	if (differ & 1u << DOCTOR_PID) {
		ADVISE(finding, on_cuda(facts) ? DOCTOR_WRONG : DOCTOR_NOTE,
			"the CUDA driver confuses processes of two PID namespaces: start engine "
			"and broker in one (containers: --pid=host, Kubernetes: "
			"shareProcessNamespace)");
	} else if (differ & 1u << DOCTOR_USER) {
		ADVISE(finding, DOCTOR_NOTE,
			"a uid in one is another in the other, and a broker serves its own alone: "
			"start both in one user namespace");
	} else if (differ & 1u << DOCTOR_IPC) {
		ADVISE(finding, DOCTOR_NOTE,
			"some drivers want one IPC namespace for memory handles: share it if "
			"mapping fails (containers: --ipc=host)");
	} else if (unknown && on_cuda(facts)) {
		ADVISE(finding, DOCTOR_NOTE,
			"the broker's process is not seen from here: run strew doctor where the "
			"engine runs, as its user");
	}
}

static void judge_driver(const struct doctor_facts *facts, struct doctor_finding *finding)
{
	static const char none[] = "no NVIDIA driver: ";
	const struct gpu_probe *gpu = &facts->gpu;
	bool needed = facts->wanted == GPU_CUDA || on_cuda(facts);

	if (gpu->driver.code == 0) {
		SAY(finding, "CUDA %d.%d%s%s", gpu->version / 1000, gpu->version % 1000 / 10,
			facts->kernel_driver[0] ? ", kernel module " : "", facts->kernel_driver);
		return;
	}
	SAY(finding, "no driver (%s); the host backend is what remains",
		strncmp(gpu->driver.text, none, strlen(none)) ? gpu->driver.text
							      : gpu->driver.text + strlen(none));
	if (facts->kernel_driver[0]) {
		ADVISE(finding, DOCTOR_WRONG,
			"the kernel has the driver (%s), this process does not get it: a container "
			"wants --gpus all and NVIDIA_DRIVER_CAPABILITIES with compute, and "
			"CUDA_VISIBLE_DEVICES must name a GPU that is there",
			facts->kernel_driver);
	} else {
		ADVISE(finding, needed ? DOCTOR_WRONG : DOCTOR_NOTE, "%s",
			needed ? "install the NVIDIA driver, or start strewd with --backend host"
			       : "nothing, if there is to be no GPU; else install the driver");
	}
}

static void judge_devices(const struct doctor_facts *facts, struct doctor_finding *finding)
{
	const struct gpu_probe *gpu = &facts->gpu;
	int missing = 0, from = 0, to = 0;
	bool mig = false;

	if (!has_gpu(facts)) {
		bool needed = facts->wanted == GPU_CUDA || on_cuda(facts);

		SAY(finding, "no GPU");
		if (gpu->driver.code == 0) {
			ADVISE(finding, needed ? DOCTOR_WRONG : DOCTOR_NOTE,
				"the driver is here and finds none: look at CUDA_VISIBLE_DEVICES "
				"and nvidia-smi");
		}
		return;
	}
	for (int i = 0; i < gpu->nprobed; i++) {
		mig = mig || gpu->devices[i].mig;
		for (int j = 0; j < gpu->nprobed; j++) {
			if (i != j && !(gpu->devices[i].peers & 1u << j)) {
				from = missing++ ? from : i;
				to = missing == 1 ? j : to;
			}
		}
	}
	if (missing) {
		SAY(finding,
			"%d GPUs (%s …); %d of %d ways between them lack peer access, the "
			"first from %d to %d",
			gpu->ndevices, gpu->devices[0].name, missing,
			gpu->nprobed * (gpu->nprobed - 1), from, to);
		ADVISE(finding, DOCTOR_NOTE,
			"bytes between these two go through pinned host memory, which is slower: "
			"keep trainer and workers of one node on GPUs that reach each other "
			"(nvidia-smi topo -p2p r); in a virtual machine ACS or the IOMMU may be in "
			"the way");
	} else {
		SAY(finding, "%d GPU%s (%s%s)%s", gpu->ndevices, gpu->ndevices == 1 ? "" : "s",
			gpu->devices[0].name, gpu->ndevices == 1 ? "" : " …",
			gpu->ndevices == 1 ? "" : ", each within reach of each other");
	}
	if (mig) {
		ADVISE(finding, DOCTOR_WRONG,
			"a MIG slice has no IPC between processes: use whole GPUs, or --backend "
			"host");
	}
}

static void judge_allocator(const struct doctor_facts *facts, struct doctor_finding *finding)
{
	bool expandable = strstr(facts->allocator, "expandable_segments:True") != NULL;
	bool descriptors = true;

	for (int i = 0; i < facts->gpu.nprobed; i++) {
		descriptors = descriptors && facts->gpu.devices[i].posix_fds;
	}
	if (answered(facts) && facts->raw + facts->pull + facts->loader) {
		SAY(finding,
			"of the parameters of the workers here %llu are written raw, %llu by the "
			"pull "
			"route, %llu by a loader",
			(unsigned long long)facts->raw, (unsigned long long)facts->pull,
			(unsigned long long)facts->loader);
		if (facts->pull && on_cuda(facts)) {
			ADVISE(finding, DOCTOR_NOTE,
				"pulled memory cannot be exported (a sleep-mode allocator, "
				"cudaMallocAsync): it works, with one copy and one twin in memory "
				"more; PyTorch's default allocator needs neither");
		}
		return;
	}
	if (!has_gpu(facts)) {
		SAY(finding,
			"host memory: memfds are mapped, other memory is pulled by its worker");
		return;
	}
	SAY(finding, "the environment here says %s%s: %s", facts->allocator[0] ? "" : "nothing",
		facts->allocator,
		expandable ? "expandable segments, exported as one descriptor a chunk"
			   : "PyTorch's default, exported by IPC handles");
	if (expandable && !descriptors) {
		ADVISE(finding, DOCTOR_NOTE,
			"a GPU here cannot export chunks as descriptors, so such memory takes the "
			"pull route: leave expandable_segments out for raw writes");
	}
}

static const char *nccl_text(char *buf, size_t size, uint32_t version)
{
	snprintf(buf, size, "%u.%u.%u", version / 10000, version / 100 % 100, version % 100);
	return buf;
}

static void judge_nccl(const struct doctor_facts *facts, struct doctor_finding *finding)
{
	char found[32], theirs[32];

	if (!facts->nccl_found) {
		SAY(finding, "not found: %.200s", facts->nccl_error.text);
		if (facts->nccl) {
			SAY(finding, "not found from here; the broker has %s",
				nccl_text(theirs, sizeof(theirs), facts->nccl));
		} else if (has_gpu(facts) || on_cuda(facts)) {
			ADVISE(finding, DOCTOR_NOTE,
				"several nodes with GPUs need it: install libnccl2, or name "
				"PyTorch's in STREW_NCCL "
				"(…/site-packages/nvidia/nccl/lib/libnccl.so.2)");
		} else {
			SAY(finding, "not found, and not needed without GPUs: buckets travel by "
				     "TCP");
		}
		return;
	}
	SAY(finding, "%s%s%s", nccl_text(found, sizeof(found), facts->nccl_found),
		facts->nccl_named[0] ? " of STREW_NCCL=" : "", facts->nccl_named);
	if (facts->nccl && facts->nccl != facts->nccl_found) {
		ADVISE(finding, DOCTOR_NOTE,
			"the broker here has %s: every broker of an epoch must have the same; set "
			"STREW_NCCL where strewd is started",
			nccl_text(theirs, sizeof(theirs), facts->nccl));
	}
}

static void judge_uring(const struct doctor_facts *facts, struct doctor_finding *finding)
{
	if (facts->uring == 0) {
		SAY(finding, "available");
		return;
	}
	SAY(finding, "not available: %s; epoll and plain reads take its place",
		strerrordesc_np(-facts->uring));
	ADVISE(finding, DOCTOR_NOTE, "%s",
		facts->uring == -ENOSYS
			? "a newer kernel has it; checkpoints are read slower without"
			: "containers' default seccomp profiles forbid it, and "
			  "kernel.io_uring_disabled may: allow it for faster reading of "
			  "checkpoints");
}

static void limit_text(char *buf, size_t size, rlim_t limit)
{
	if (limit == RLIM_INFINITY) {
		snprintf(buf, size, "unlimited");
	} else {
		snprintf(buf, size, "%llu", (unsigned long long)limit);
	}
}

static void judge_descriptors(const struct doctor_facts *facts, struct doctor_finding *finding)
{
	char soft[32], hard[32];

	limit_text(soft, sizeof(soft), facts->descriptors.rlim_cur);
	limit_text(hard, sizeof(hard), facts->descriptors.rlim_max);
	SAY(finding, "%s open files at most, now %s (%s)", hard, soft,
		facts->broker_limits ? "the broker" : "this process; a broker raises it itself");
	if (facts->descriptors.rlim_max < DESCRIPTORS_NEEDED) {
		ADVISE(finding, DOCTOR_WRONG,
			"too few for a node of workers: ulimit -Hn %u, LimitNOFILE= of the "
			"service, or --ulimit nofile of the container",
			DESCRIPTORS_WANTED);
	} else if (strstr(facts->allocator, "expandable_segments:True") &&
		   facts->descriptors.rlim_max < DESCRIPTORS_WANTED) {
		ADVISE(finding, DOCTOR_NOTE,
			"expandable segments take a descriptor a chunk: raise it to %u",
			DESCRIPTORS_WANTED);
	}
}

static void judge_memlock(const struct doctor_facts *facts, struct doctor_finding *finding)
{
	char bytes[32];

	if (facts->memlock.rlim_cur == RLIM_INFINITY) {
		SAY(finding, "unlimited");
		return;
	}
	SAY(finding, "%s may be locked",
		format_bytes(bytes, sizeof(bytes), facts->memlock.rlim_cur));
	if (facts->euid != 0 && facts->uring == 0 && facts->memlock.rlim_cur < MEMLOCK_WANTED) {
		ADVISE(finding, DOCTOR_NOTE,
			"strew push reads without registered buffers, which is slower: ulimit -l "
			"unlimited, or LimitMEMLOCK=infinity");
	}
}

void doctor_judge(const struct doctor_facts *facts, struct doctor_finding ret[DOCTOR_FINDINGS])
{
	static const struct {
		const char *about;
		void (*judge)(const struct doctor_facts *facts, struct doctor_finding *finding);
	} things[DOCTOR_FINDINGS] = {
		{"socket", judge_socket},
		{"permissions", judge_permissions},
		{"namespaces", judge_namespaces},
		{"driver", judge_driver},
		{"devices", judge_devices},
		{"allocator", judge_allocator},
		{"nccl", judge_nccl},
		{"io_uring", judge_uring},
		{"descriptors", judge_descriptors},
		{"memlock", judge_memlock},
	};

	for (size_t i = 0; i < DOCTOR_FINDINGS; i++) {
		memset(&ret[i], 0, sizeof(ret[i]));
		ret[i].about = things[i].about;
		things[i].judge(facts, &ret[i]);
	}
}
