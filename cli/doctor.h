/*
 * strew doctor: what was seen of this machine, and what follows from it. doctor_look() sees,
 * doctor_judge() is pure, so that the tests can show it machines that they do not have.
 */
#ifndef CLI_DOCTOR_H
#define CLI_DOCTOR_H

#include "gpu/probe.h"
#include "ipc/messages.h"
#include <sys/resource.h>
#include <sys/stat.h>

enum doctor_namespace { DOCTOR_USER, DOCTOR_PID, DOCTOR_IPC, DOCTOR_NAMESPACES };

struct doctor_facts {
	enum gpu_kind wanted; /* GPU_AUTO: either backend will do */
	uid_t euid;
	/* the socket */
	char path[108];
	struct error socket; /* code 0: a broker has answered */
	bool has_directory, has_socket;
	struct stat directory, node; /* of the socket */
	/* the broker, if it has answered */
	int pid; /* in this process's PID namespace, 0: not seen from it */
	struct msg_welcome welcome;
	uint32_t brokers, nccl;
	uint64_t raw, pull, loader; /* parameters of all workers here */
	/* namespaces, by inode; 0: not known */
	uint64_t own_ns[DOCTOR_NAMESPACES], broker_ns[DOCTOR_NAMESPACES];
	/* GPUs */
	struct gpu_probe gpu;
	char kernel_driver[64]; /* "580.159.04", of the kernel's module; "": there is none */
	char allocator[128];	/* $PYTORCH_ALLOC_CONF or $PYTORCH_CUDA_ALLOC_CONF */
	struct error nccl_error;
	uint32_t nccl_found; /* version */
	char nccl_named[96]; /* $STREW_NCCL */
	/* the kernel */
	int uring; /* 0, or negative errno */
	struct rlimit descriptors, memlock;
	bool broker_limits; /* descriptors are the broker's; else this process's */
};

enum doctor_grade {
	DOCTOR_OK,
	DOCTOR_NOTE,  /* works; could be better, or could surprise */
	DOCTOR_WRONG, /* does not work, or will not */
};

struct doctor_finding {
	enum doctor_grade grade;
	const char *about;
	char text[512];
	char advice[512]; /* "": there is none to give */
};

#define DOCTOR_FINDINGS 10

/* Looks at everything, in some ms; makes no GPU context. -ENAMETOOLONG: no such socket can be. */
int doctor_look(const char *socket, enum gpu_kind wanted, struct doctor_facts *ret_facts,
	struct error *err);

/* One finding about each thing, in a fixed order. */
void doctor_judge(const struct doctor_facts *facts, struct doctor_finding ret[DOCTOR_FINDINGS]);

#endif
