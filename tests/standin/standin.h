/*
 * A stand-in for the CUDA driver, so that the cuda backend's own code runs where there is no GPU.
 * Test code, never shipped. libcuda.so.1 keeps device memory in memfds, whose addresses no CPU code
 * may touch (as on a real machine), and works off each stream in a thread of its own; it checks
 * every address that a copy or a kernel uses. libnccl.so.2 beside it (nccl.c) broadcasts that
 * memory between processes, and libcublas.so.13 (cublas.c) is what a load of strew-bench asks for.
 * Put their folder (BUILD/standin) into LD_LIBRARY_PATH. tests/gpu/gpu_check.c and
 * tests/wire/nccl_check.c run against them and against real ones.
 *
 *   STANDIN_DEVICES=N      how many GPUs there are (1, at most 8)
 *   STANDIN_MEMORY=BYTES   of each GPU, counted in each process by itself (8 GiB)
 *   STANDIN_PEERS=0-1,2-3  of which GPUs each reaches the other's memory (all; 0: none does)
 *   STANDIN_NCCL=NUMBER    the version that libnccl tells (22809)
 *   STANDIN_NCCL_MEMORY=BYTES   of a GPU, that each communicator takes (0)
 *   STANDIN_DIR=FOLDER     FOLDER/faults is the plan of what goes wrong in this process, and
 *                          FOLDER/PID.cuda, PID.nccl and PID.cublas hold its counts
 *
 * A plan is words "CALL:N=WHAT", N the number of the call from when the plan was first seen, "N+"
 * that one and all later ones, CALL without the version that the symbol may have, or the name of a
 * kernel, or host_copy, a cuMemcpyAsync from or to host memory (slow, lost and stall alone):
 *
 *   fail:CODE    the call fails with that result
 *   hang         it does not return, until the plan is another one
 *   late:MS      it is done as ever, after so many milliseconds
 *   sticky:CODE  it fails, and so does every later one in that context
 *   stall        it returns, and what it has enqueued never ends, until the plan is another one
 *   async:CODE   it returns; what it has enqueued fails, as if by "sticky" (of NCCL: its
 *                communicator fails)
 *   lost         it returns; the copy or kernel that it has enqueued does nothing
 *   slow:MS      it returns; what it has enqueued begins so much later than its turn comes
 *   flip         ncclBroadcast: every other rank receives a bit that was not sent
 *
 * The file may be made and replaced at any time (by rename).
 *
 * The counts are records of 64 bytes: a name (56 bytes, NUL at its end) and a number (64 bits).
 * They are always up to date, and stay when the process has ended, however it did:
 *
 *   calls.CALL   how often it was called
 *   open.KIND    what was made and not unmade: contexts (retained), streams, events, modules,
 *                memory, host, registered, imports (of legacy IPC, each open), chunks, mappings,
 *                reserved, fds; the bytes of GPUs that memory and chunks have taken; of NCCL: ids,
 *                comms, and broadcasts that have not ended
 *   interface.NAME   how many communicators were begun with NCCL_SOCKET_IFNAME=NAME ("any": unset)
 *   steps.GPU    of a load, by the GPU that they ran on
 */
#ifndef STANDIN_STANDIN_H
#define STANDIN_STANDIN_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define STANDIN_EXPORT __attribute__((visibility("default")))

struct standin_cell {
	char name[56];
	atomic_ullong value;
};

/* The count of that name, made at its first use. Never NULL. */
struct standin_cell *standin_cell(const char *name);

/* COUNT(streams, 1): one more is open. */
#define COUNT(kind, n)                                                                             \
	do {                                                                                       \
		static struct standin_cell *_Atomic count_;                                        \
		if (!atomic_load(&count_)) {                                                       \
			atomic_store(&count_, standin_cell("open." #kind));                        \
		}                                                                                  \
		atomic_fetch_add(&atomic_load(&count_)->value, (unsigned long long)(n));           \
	} while (0)

enum fault_kind {
	FAULT_NONE,
	FAULT_FAIL,
	FAULT_HANG,
	FAULT_LATE,
	FAULT_STICKY,
	FAULT_STALL,
	FAULT_ASYNC,
	FAULT_SLOW,
	FAULT_LOST,
	FAULT_FLIP,
};

struct fault {
	enum fault_kind kind;
	unsigned argument; /* code, milliseconds */
	unsigned plan;	   /* number of the plan that says so */
};

/*
 * A call begins: it is counted, and the plan asked. Hangs and delays happen in here; the others are
 * the caller's to do. `cell` is the call's own, NULL at first.
 */
struct fault standin_enter(const char *call, struct standin_cell *_Atomic *cell);
/* Is the plan still the one of that number? Reads a new one. */
bool standin_planned(unsigned plan);
void standin_nap(unsigned us);

/*
 * For libnccl, which finds them in libcuda. On the stream, when its turn has come: calls it with
 * the GPU's number, or with -1 if nothing runs there any more. What it returns ends the context
 * unless 0.
 */
typedef unsigned standin_call(int device, void *data);
STANDIN_EXPORT unsigned standin_stream_call(void *stream, standin_call *call, void *data);
/* In there: between the GPU's memory at `address` and the CPU's. A CUDA result. */
STANDIN_EXPORT unsigned standin_bytes(
	int device, uint64_t address, void *bytes, size_t len_bytes, bool to_device);
/* For it too: takes so much of the memory of the current context's GPU, until the process ends. */
STANDIN_EXPORT unsigned standin_take(size_t len_bytes);

#endif
