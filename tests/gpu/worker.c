/* The worker's side: memory of every kind, exported as libstrew does it. */
#include "base/util.h"
#include "check.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

struct worker {
	struct cuda_ctx *ctx;
	struct cuda_stream *stream;
	enum memory_kind kind;
	void *memory;
	uint64_t offset, seed;
	struct export_set *set;
	struct export_page *page;
};

static int allocate_vmm(bool shared, void **ret_memory)
{
	struct cuda_alloc_prop prop = {
		.type = CUDA_ALLOCATION_PINNED,
		.handle_types = shared ? CUDA_HANDLE_POSIX_FD : 0,
		.location = {.type = CUDA_LOCATION_DEVICE},
	};
	struct cuda_access access = {
		.location = {.type = CUDA_LOCATION_DEVICE}, .flags = CUDA_ACCESS_READ_WRITE};
	struct error err = {0};
	cuda_ptr address;
	int rc;

	/* One more chunk's addresses stay empty behind the memory. */
	rc = CUDA(&err, cuMemAddressReserve, &address, CHECK_BYTES + CHECK_CHUNK, 0, 0, 0);
	for (uint64_t at = 0; at < CHECK_BYTES && rc == 0; at += CHECK_CHUNK) {
		unsigned long long chunk;

		rc = cuda_outcome(
			&err, "cuMemCreate", extra.cuMemCreate(&chunk, CHECK_CHUNK, &prop, 0));
		if (rc == 0) {
			rc = CUDA(&err, cuMemMap, address + at, CHECK_CHUNK, 0, chunk, 0);
			CUDA(NULL, cuMemRelease, chunk);
		}
	}
	if (rc == 0) {
		rc = CUDA(&err, cuMemSetAccess, address, CHECK_BYTES, &access, 1);
	}
	if (rc) {
		printf("worker: %s\n", err.text);
	}
	*ret_memory = (void *)(uintptr_t)address;
	return rc;
}

static int allocate(struct worker *worker)
{
	struct error err = {0};
	cuda_ptr address = 0;
	int rc;

	switch (worker->kind) {
	case MEMORY_PLAIN:
		rc = CUDA(&err, cuMemAlloc, &address, CHECK_BYTES);
		break;
	case MEMORY_MANAGED:
		rc = (int)extra.cuMemAllocManaged(&address, CHECK_BYTES, 1);
		break;
	case MEMORY_PINNED:
		return (int)cuda_driver.cuMemHostAlloc(&worker->memory, CHECK_BYTES, 0);
	case MEMORY_HOST:
		return host_memory_alloc(CHECK_BYTES, &worker->memory);
	default:
		return allocate_vmm(worker->kind == MEMORY_VMM, &worker->memory);
	}
	worker->memory = (void *)(uintptr_t)address;
	return rc;
}

static void release(struct worker *worker)
{
	cuda_ptr address = (cuda_ptr)(uintptr_t)worker->memory;

	export_set_destroy(worker->set);
	worker->set = NULL;
	if (worker->memory && worker->kind == MEMORY_HOST) {
		host_memory_free(worker->memory);
	} else if (worker->memory && worker->kind == MEMORY_PINNED) {
		cuda_driver.cuMemFreeHost(worker->memory);
	} else if (worker->memory &&
		   (worker->kind == MEMORY_PLAIN || worker->kind == MEMORY_MANAGED)) {
		CUDA(NULL, cuMemFree, address);
	} else if (worker->memory) {
		CUDA(NULL, cuMemUnmap, address, CHECK_BYTES);
		CUDA(NULL, cuMemAddressFree, address, CHECK_BYTES + CHECK_CHUNK);
	}
	worker->memory = NULL;
}

/* Exports without a current context, as an agent's thread may be. */
static int export_memory(struct worker *worker, struct reply *reply, struct error *err)
{
	char *declared = (char *)worker->memory + worker->offset;
	uint64_t half = (CHECK_BYTES - worker->offset) / 2;
	uint32_t index = 0;
	int rc;

	CUDA(NULL, cuCtxSetCurrent, NULL);
	rc = export_set_create(&worker->set);
	/* Two parameters side by side: one allocation all the same. */
	rc = rc ? rc : export_add(worker->set, declared + half, half, err);
	rc = rc ? rc : export_add(worker->set, declared, half + 1, err);
	rc = rc ? rc : export_settle(worker->set, err);
	rc = rc ? rc : export_locate(worker->set, declared, &index, &reply->offset, err);
	rc = rc ? rc : export_verify(worker->set, err);
	rc = rc ? rc : export_handle(worker->set, index, &reply->handle, err);
	if (rc == 0 && export_count(worker->set) != 1) {
		rc = error_set(err, -EINVAL, "%zu allocations", export_count(worker->set));
	}
	if (rc == 0 && export_add(worker->set, declared, 1, NULL) != -EINVAL) {
		rc = error_set(err, -EINVAL, "a settled set takes more");
	}
	CUDA(NULL, cuCtxSetCurrent, worker->ctx);
	return rc;
}

/* Is it memory that this process may touch itself? */
static bool by_host(const struct worker *worker)
{
	return worker->kind == MEMORY_HOST || worker->kind == MEMORY_PINNED ||
	       worker->kind == MEMORY_MANAGED;
}

static int make(struct worker *worker, const struct request *request, struct reply *reply)
{
	struct error err = {0};
	void *pattern;
	int rc;

	worker->kind = request->kind;
	worker->seed = request->seed;
	worker->offset = request->offset;
	rc = allocate(worker);
	if (rc) {
		snprintf(reply->text, sizeof(reply->text), "allocating: %d", rc);
		return rc > 0 ? -EIO : rc;
	}
	pattern = malloc(CHECK_BYTES);
	make_pattern(request->seed, pattern, CHECK_BYTES);
	if (by_host(worker)) {
		memcpy(worker->memory, pattern, CHECK_BYTES);
	} else {
		CUDA(&err, cuMemcpyHtoD, (cuda_ptr)(uintptr_t)worker->memory, pattern, CHECK_BYTES);
	}
	free(pattern);
	rc = export_memory(worker, reply, &err);
	/* As a trainer does it; memory that was exported itself has no twin to fill. */
	rc = rc ? rc : export_twins_fill(worker->set, worker->stream, &err);
	while (rc == 0 && cuda_driver.cuStreamQuery(worker->stream) == CUDA_NOT_READY) {
		usleep(100);
	}
	memcpy(reply->text, err.text, sizeof(reply->text));
	return rc;
}

/* As a worker does it: the whole of what was declared, if it has a twin. */
static int apply_twin(struct worker *worker, struct error *err)
{
	const char *declared = (const char *)worker->memory + worker->offset;
	struct copy copy = {.run_bytes = (CHECK_BYTES - worker->offset) / 2 * 2};
	struct copies copies = {.v = &copy, .n = 1, .nranges = 1};
	int rc = export_locate(worker->set, declared, &copy.src_space, &copy.src, err);

	if (rc || !export_pulls(worker->set, copy.src_space)) {
		return rc;
	}
	return export_twins_apply(worker->set, &copies, err);
}

/* Bit by bit: the memory is what its pattern and the slot's make under ranges 0 and 2. */
static int verify(struct worker *worker, struct reply *reply)
{
	char *slot = malloc(CHECK_BYTES), *want = malloc(CHECK_BYTES), *got = malloc(CHECK_BYTES);
	struct copies copies;
	struct error err = {0};
	int rc = 0;

	make_pattern(worker->seed + 1, slot, CHECK_BYTES);
	make_pattern(worker->seed, want, CHECK_BYTES);
	make_copies(worker->seed, CHECK_BYTES - worker->offset, &copies);
	run_reference(&copies, 0, slot, want + worker->offset);
	run_reference(&copies, 1, slot, want + worker->offset);
	run_reference(&copies, 2, slot, want + worker->offset);
	rc = apply_twin(worker, &err);
	if (by_host(worker)) {
		memcpy(got, worker->memory, CHECK_BYTES);
	} else if (rc == 0) {
		rc = cuda_outcome(&err, "cuMemcpyDtoH",
			extra.cuMemcpyDtoH(got, (cuda_ptr)(uintptr_t)worker->memory, CHECK_BYTES));
	}
	for (size_t i = 0; i < CHECK_BYTES && rc == 0; i++) {
		if (got[i] != want[i]) {
			rc = error_set(&err, -EIO, "byte %zu differs", i);
		}
	}
	memcpy(reply->text, err.text, sizeof(reply->text));
	free(copies.v);
	free(copies.first);
	free(slot);
	free(want);
	free(got);
	return rc;
}

/* The same kind of memory again, perhaps at the same address: it must not pass for the old. */
static int remake(struct worker *worker)
{
	struct export_set *set = worker->set;
	int rc;

	worker->set = NULL;
	release(worker);
	rc = allocate(worker);
	worker->set = set;
	return rc ? rc : export_verify(set, NULL);
}

static int write_page(struct worker *worker, const struct request *request, struct reply *reply)
{
	bool default_stream = request->word == 0;
	size_t half = check_small ? 16u << 20 : 1u << 30;
	struct error err = {0};
	cuda_ptr big;
	int rc;

	rc = CUDA(&err, cuMemAlloc, &big, 2 * half);
	for (int i = 0; i < 40 && rc == 0; i++) {
		rc = CUDA(&err, cuMemcpyAsync, big, big + half, half,
			default_stream ? NULL : worker->stream);
	}
	CUDA(NULL, cuCtxSetCurrent, NULL);
	if (rc == 0) {
		rc = export_page_write(worker->page, worker->set,
			default_stream ? NULL : worker->stream, request->word, request->value,
			&err);
	}
	CUDA(NULL, cuCtxSetCurrent, worker->ctx);
	memcpy(reply->text, err.text, sizeof(reply->text));
	return rc;
}

static void send_reply(int socket, struct reply *reply)
{
	union {
		struct cmsghdr head;
		char room[CMSG_SPACE(16 * sizeof(int))];
	} control = {0};
	struct iovec iov = {.iov_base = reply, .iov_len = sizeof(*reply)};
	struct msghdr message = {.msg_iov = &iov, .msg_iovlen = 1};
	struct handle handle = reply->handle;

	reply->nfds = MIN(handle.nchunks, 16);
	if (reply->nfds) {
		message.msg_control = &control;
		message.msg_controllen = CMSG_SPACE(reply->nfds * sizeof(int));
		control.head.cmsg_level = SOL_SOCKET;
		control.head.cmsg_type = SCM_RIGHTS;
		control.head.cmsg_len = CMSG_LEN(reply->nfds * sizeof(int));
		memcpy(CMSG_DATA(&control.head), handle.fds, reply->nfds * sizeof(int));
		memcpy(reply->chunk_bytes, handle.chunk_bytes, reply->nfds * sizeof(uint64_t));
	}
	if (sendmsg(socket, &message, MSG_NOSIGNAL) < 0) {
		perror("worker: sendmsg");
	}
	handle_finish(&handle);
}

int worker_ask(int socket, const struct request *request, struct reply *ret_reply)
{
	union {
		struct cmsghdr head;
		char room[CMSG_SPACE(16 * sizeof(int))];
	} control;
	struct iovec iov = {.iov_base = ret_reply, .iov_len = sizeof(*ret_reply)};
	struct msghdr message = {.msg_iov = &iov,
		.msg_iovlen = 1,
		.msg_control = &control,
		.msg_controllen = sizeof(control)};
	struct cmsghdr *head;

	if (send(socket, request, sizeof(*request), MSG_NOSIGNAL) != sizeof(*request) ||
		recvmsg(socket, &message, MSG_CMSG_CLOEXEC) != sizeof(*ret_reply)) {
		return -EPIPE;
	}
	head = CMSG_FIRSTHDR(&message);
	ret_reply->handle.fds = calloc(16, sizeof(int));
	ret_reply->handle.chunk_bytes = calloc(16, sizeof(uint64_t));
	ret_reply->handle.nchunks = ret_reply->nfds;
	if (head && ret_reply->nfds) {
		memcpy(ret_reply->handle.fds, CMSG_DATA(head), ret_reply->nfds * sizeof(int));
		memcpy(ret_reply->handle.chunk_bytes, ret_reply->chunk_bytes,
			ret_reply->nfds * sizeof(uint64_t));
	}
	return 0;
}

void worker_main(int socket, uint64_t *page_words, size_t page_bytes)
{
	struct worker worker = {0};
	struct request request;
	struct error err = {0};
	int device = 0;

	if (cuda_driver_load(false, &err) || extra_load() || CUDA(&err, cuInit, 0) ||
		CUDA(&err, cuDeviceGet, &device, 0) ||
		CUDA(&err, cuDevicePrimaryCtxRetain, &worker.ctx, device) ||
		CUDA(&err, cuCtxSetCurrent, worker.ctx) ||
		CUDA(&err, cuStreamCreateWithPriority, &worker.stream, CUDA_STREAM_NON_BLOCKING,
			0)) {
		_exit(1);
	}
	export_page_create(page_words, page_bytes, &worker.page);
	while (recv(socket, &request, sizeof(request), 0) == sizeof(request)) {
		struct reply reply = {0};

		switch (request.type) {
		case REQUEST_MAKE:
			reply.code = make(&worker, &request, &reply);
			break;
		case REQUEST_CHECK:
			reply.code = verify(&worker, &reply);
			break;
		case REQUEST_REMAKE:
			reply.code = remake(&worker);
			break;
		case REQUEST_FREE:
			release(&worker);
			break;
		case REQUEST_PAGE:
			reply.code = write_page(&worker, &request, &reply);
			break;
		}
		send_reply(socket, &reply);
	}
	export_page_destroy(worker.page);
	_exit(0);
}
