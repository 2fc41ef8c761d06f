/*
 * What the stand-in does for GPUs that do not reach each other: of three the first two do. Each
 * check has a process of its own, as what is refused too late costs it its contexts.
 */
#include "base/util.h"
#include "gpu/gpu.h"
#include "tests/gpu/extra_calls.h"
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define BYTES (1u << 20)
#define PEER_UNSUPPORTED 217u

#define MUST(condition)                                                                            \
	do {                                                                                       \
		if (!(condition)) {                                                                \
			printf("line %d: %s\n", __LINE__, #condition);                             \
			exit(1);                                                                   \
		}                                                                                  \
	} while (0)

static struct cuda_ctx *ctx[3];
static cuda_ptr memory[3];
static unsigned (*synchronize)(void);

static void open_all(void)
{
	void *library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL), *symbol;

	MUST(library && (symbol = dlsym(library, "cuCtxSynchronize")));
	memcpy(&synchronize, &symbol, sizeof(symbol));
	MUST(cuda_driver_load(false, NULL) == 0);
	MUST(cuda_driver.cuInit(0) == CUDA_OK);
	for (int i = 0; i < 3; i++) {
		MUST(cuda_driver.cuDevicePrimaryCtxRetain(&ctx[i], i) == CUDA_OK);
		MUST(cuda_driver.cuCtxSetCurrent(ctx[i]) == CUDA_OK);
		MUST(cuda_driver.cuMemAlloc(&memory[i], BYTES) == CUDA_OK);
	}
	MUST(cuda_driver.cuCtxSetCurrent(ctx[0]) == CUDA_OK);
}

static void what_is_said(void)
{
	for (int from = 0; from < 3; from++) {
		for (int to = 0; to < 3; to++) {
			int can = -1;

			MUST(cuda_driver.cuDeviceCanAccessPeer(&can, from, to) == CUDA_OK);
			MUST(can == (from + to == 1));
		}
	}
	MUST(cuda_driver.cuCtxEnablePeerAccess(ctx[1], 0) == CUDA_OK);
	MUST(cuda_driver.cuCtxEnablePeerAccess(ctx[2], 0) == PEER_UNSUPPORTED);
}

/* The result of a copy that device 0 makes into the memory of another. */
static unsigned copy_to(int device)
{
	unsigned result = cuda_driver.cuMemcpyAsync(memory[device], memory[0], BYTES, NULL);

	return result == CUDA_OK ? synchronize() : result;
}

static void a_copy_to_a_peer(void)
{
	MUST(cuda_driver.cuCtxEnablePeerAccess(ctx[1], 0) == CUDA_OK);
	MUST(copy_to(1) == CUDA_OK);
}

static void a_copy_to_a_stranger(void)
{
	cuda_driver.cuCtxEnablePeerAccess(ctx[2], 0);
	MUST(copy_to(2) == CUDA_ILLEGAL_ADDRESS);
	MUST(copy_to(0) == CUDA_ILLEGAL_ADDRESS); /* nothing works any more */
}

/* The broker's own devices, and a kernel that reads what lies on another one. */
static unsigned hash_of(const char *number)
{
	size_t first[2] = {0, 1};
	struct gpu_device *here, *there;
	struct gpu_memory *far;
	struct gpu_stream *stream;
	struct gpu_hashes *hashes;
	struct gpu_span span = {.len_bytes = BYTES};
	uint8_t uuid[GPU_UUID_BYTES];
	struct gpu *gpu;

	MUST(gpu_open(GPU_CUDA, &gpu, NULL) == 0);
	MUST(gpu_find(gpu, number, uuid, NULL) == 0);
	MUST(gpu_device(gpu, uuid, &there, NULL) == 0);
	MUST(gpu_find(gpu, "0", uuid, NULL) == 0);
	MUST(gpu_device(gpu, uuid, &here, NULL) == 0);
	MUST(gpu_device_reaches(here, gpu_device_uuid(there)) == (*number == '1'));
	MUST(gpu_alloc(there, BYTES, &far, NULL) == 0);
	MUST(gpu_stream_create(here, &stream, NULL) == 0);
	span.address = gpu_memory_address(far);
	MUST(gpu_hashes_create(here, &span, first, 1, 1, &hashes, NULL) == 0);
	MUST(gpu_hashes_run(hashes, 0, 0, stream, NULL) == 0);
	return synchronize();
}

static void a_kernel_on_a_peers_memory(void)
{
	MUST(hash_of("1") == CUDA_OK);
}

static void a_kernel_on_a_strangers_memory(void)
{
	MUST(hash_of("2") == CUDA_ILLEGAL_ADDRESS);
}

/* A chunk on device 2, mapped and opened to one device after another. */
static void chunks_of_a_stranger(void)
{
	struct cuda_alloc_prop prop = {.type = CUDA_ALLOCATION_PINNED,
		.location = {.type = CUDA_LOCATION_DEVICE, .id = 2}};
	struct cuda_access access = {.location = {.type = CUDA_LOCATION_DEVICE, .id = 2},
		.flags = CUDA_ACCESS_READ_WRITE};
	unsigned (*create)(
		unsigned long long *, size_t, const struct cuda_alloc_prop *, unsigned long long);
	void *symbol = dlsym(dlopen("libcuda.so.1", RTLD_NOW), "cuMemCreate");
	unsigned long long chunk;
	cuda_ptr address;

	MUST(symbol);
	memcpy(&create, &symbol, sizeof(symbol));
	MUST(create(&chunk, 2 * BYTES, &prop, 0) == CUDA_OK);
	MUST(cuda_driver.cuMemAddressReserve(&address, 2 * BYTES, 0, 0, 0) == CUDA_OK);
	MUST(cuda_driver.cuMemMap(address, 2 * BYTES, 0, chunk, 0) == CUDA_OK);
	MUST(cuda_driver.cuMemSetAccess(address, 2 * BYTES, &access, 1) == CUDA_OK);
	access.location.id = 0;
	MUST(cuda_driver.cuMemSetAccess(address, 2 * BYTES, &access, 1) != CUDA_OK);
}

/* Another process's memory on device 2, for devices 2 and 0. */
static void handles_of_a_stranger(void)
{
	struct cuda_ipc_handle handle;
	cuda_ptr address;
	int ends[2], status;
	pid_t child;

	MUST(pipe(ends) == 0);
	child = fork();
	if (child == 0) {
		open_all();
		MUST(read(ends[0], &handle, sizeof(handle)) == sizeof(handle));
		MUST(cuda_driver.cuIpcOpenMemHandle(&address, handle, CUDA_IPC_LAZY_PEER) ==
			PEER_UNSUPPORTED);
		MUST(cuda_driver.cuCtxSetCurrent(ctx[2]) == CUDA_OK);
		MUST(cuda_driver.cuIpcOpenMemHandle(&address, handle, CUDA_IPC_LAZY_PEER) ==
			CUDA_OK);
		_exit(0);
	}
	open_all();
	MUST(cuda_driver.cuIpcGetMemHandle(&handle, memory[2]) == CUDA_OK);
	MUST(write(ends[1], &handle, sizeof(handle)) == sizeof(handle));
	MUST(waitpid(child, &status, 0) == child && status == 0);
}

int main(void)
{
	static const struct {
		const char *name;
		void (*run)(void);
		bool opens; /* by itself */
	} checks[] = {
		{"what is said", what_is_said, false},
		{"a copy to a peer", a_copy_to_a_peer, false},
		{"a copy to a stranger", a_copy_to_a_stranger, false},
		{"a kernel on a peer's memory", a_kernel_on_a_peers_memory, false},
		{"a kernel on a stranger's memory", a_kernel_on_a_strangers_memory, false},
		{"chunks of a stranger", chunks_of_a_stranger, false},
		{"handles of a stranger", handles_of_a_stranger, true},
	};
	int failed = 0;

	for (size_t i = 0; i < ARRAY_LEN(checks); i++) {
		int status = 1;
		pid_t child = fork();

		if (child == 0) {
			if (!checks[i].opens) {
				open_all();
			}
			checks[i].run();
			_exit(0); /* nothing is freed */
		}
		waitpid(child, &status, 0);
		printf("%s %s\n", status ? "FAIL" : "ok  ", checks[i].name);
		fflush(stdout);
		failed += status != 0;
	}
	return failed ? 1 : 0;
}
