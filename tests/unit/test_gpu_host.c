/* The host backend and the export of host memory: imports across a fork, seals, counts, copies. */
#include "base/util.h"
#include "gpu/export.h"
#include "gpu/gpu.h"
#include "gpu/memfd.h"
#include "support/test_main.h"
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

static const uint8_t host_uuid[GPU_UUID_BYTES];

struct fixture {
	struct gpu *gpu;
	struct gpu_device *device;
	struct gpu_stream *stream;
};

static int setup(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));

	assert_int_equal(gpu_open(GPU_HOST, &f->gpu, NULL), 0);
	assert_int_equal(gpu_device(f->gpu, host_uuid, &f->device, NULL), 0);
	assert_int_equal(gpu_stream_create(f->device, &f->stream, NULL), 0);
	*state = f;
	return 0;
}

static int teardown(void **state)
{
	struct fixture *f = *state;

	gpu_stream_destroy(f->stream);
	gpu_close(f->gpu);
	free(f);
	return 0;
}

static void export_one(void *ptr, size_t len_bytes, struct handle *ret_handle)
{
	struct export_set *set;

	assert_int_equal(export_set_create(&set), 0);
	assert_int_equal(export_add(set, ptr, len_bytes, NULL), 0);
	assert_int_equal(export_settle(set, NULL), 0);
	assert_int_equal(export_count(set), 1);
	assert_int_equal(export_handle(set, 0, ret_handle, NULL), 0);
	export_set_destroy(set);
}

static void test_devices(void **state)
{
	struct fixture *f = *state;
	uint8_t uuid[GPU_UUID_BYTES] = {0xab, 0xcd};
	uint64_t free_bytes, total_bytes;
	struct gpu_device *device;
	struct gpu_event *event;
	struct error err;
	char text[64];

	assert_int_equal(gpu_info(f->gpu)->kind, GPU_HOST);
	assert_string_equal(gpu_uuid_format(text, sizeof(text), uuid),
		"GPU-abcd0000-0000-0000-0000-000000000000");
	assert_int_equal(gpu_device(f->gpu, uuid, &device, &err), -ENODEV);
	assert_int_equal(gpu_find(f->gpu, "1", uuid, &err), -ENODEV);
	assert_int_equal(gpu_find(f->gpu, NULL, uuid, &err), 0);
	assert_string_equal(gpu_uuid_format(text, sizeof(text), uuid), "host");
	assert_int_equal(gpu_device_free(f->device, &free_bytes, &total_bytes), 0);
	assert_int_equal(free_bytes + total_bytes, 0);
	assert_null(gpu_stream_native(f->stream));
	assert_int_equal(gpu_event_create(f->device, &event, NULL), 0);
	assert_int_equal(gpu_event_query(event, NULL), 1);
	assert_int_equal(gpu_event_record(event, f->stream, NULL), 0);
	assert_int_equal(gpu_stream_wait(f->stream, event, NULL), 0);
	assert_int_equal(gpu_event_query(event, NULL), 1);
	gpu_event_destroy(event);
	gpu_event_destroy(NULL);
	gpu_memory_release(NULL);
}

static void test_host_memory(void **state)
{
	void *blocks[40];
	uint64_t base, size;
	int fd;

	(void)state;
	assert_int_equal(host_memory_alloc(0, &blocks[0]), -EINVAL);
	for (unsigned i = 0; i < ARRAY_LEN(blocks); i++) {
		assert_int_equal(host_memory_alloc(1 + i * 5000, &blocks[i]), 0);
	}
	for (unsigned i = 0; i < ARRAY_LEN(blocks); i++) {
		char *inside = (char *)blocks[i] + i * 5000;

		assert_int_equal(host_memory_find(inside, &fd, &base, &size), 0);
		assert_int_equal(base, (uintptr_t)blocks[i]);
		assert_int_equal(fcntl(fd, F_GETFD), FD_CLOEXEC);
		assert_int_equal(*inside, 0);
	}
	for (unsigned i = 0; i < ARRAY_LEN(blocks); i += 2) {
		host_memory_free(blocks[i]);
		assert_int_equal(host_memory_find(blocks[i], &fd, &base, &size), -ENOENT);
	}
	for (unsigned i = 1; i < ARRAY_LEN(blocks); i += 2) {
		host_memory_free(blocks[i]);
	}
	host_memory_free(NULL);
	/* More than the machine has: pages come with the first touch. */
	assert_int_equal(host_memory_alloc(64ull << 30, &blocks[0]), 0);
	((char *)blocks[0])[40ull << 30] = 1;
	host_memory_free(blocks[0]);
}

static void test_import_counts(void **state)
{
	struct fixture *f = *state;
	struct gpu_memory *first, *second, *third;
	int fds = test_count_fds();
	struct handle handle;
	void *ptr;

	assert_int_equal(host_memory_alloc(10000, &ptr), 0);
	export_one((char *)ptr + 100, 500, &handle);
	assert_int_equal(handle.kind, HANDLE_MEMFD);
	assert_int_equal(handle.size_bytes, 12288);
	assert_int_equal(gpu_import(f->device, &handle, true, &first, NULL), 0);
	assert_int_equal(gpu_import(f->device, &handle, true, &second, NULL), 0);
	assert_int_equal(gpu_import(f->device, &handle, false, &third, NULL), 0);
	assert_ptr_equal(first, second);
	assert_ptr_not_equal(first, third);
	handle_finish(&handle);
	assert_int_equal(gpu_memory_bytes(first), 12288);
	assert_memory_equal(gpu_memory_uuid(first), host_uuid, GPU_UUID_BYTES);
	gpu_memory_release(first);
	strcpy((char *)(uintptr_t)gpu_memory_address(second) + 100, "strewn");
	assert_string_equal((char *)ptr + 100, "strewn");
	assert_string_equal((char *)(uintptr_t)gpu_memory_address(third) + 100, "strewn");
	gpu_memory_release(second);
	gpu_memory_release(third);
	host_memory_free(ptr);
	assert_int_equal(test_count_fds(), fds);
}

/* A handle around a memfd of 8,192 bytes with those seals; -1 for a plain file. */
static void odd_handle(int seals, struct handle *ret_handle)
{
	struct handle handle = {.kind = HANDLE_MEMFD, .size_bytes = 8192, .nchunks = 1};

	handle.fds = malloc(sizeof(*handle.fds));
	handle.chunk_bytes = calloc(1, sizeof(*handle.chunk_bytes));
	if (seals < 0) {
		handle.fds[0] = open("/dev/zero", O_RDWR | O_CLOEXEC);
	} else {
		handle.fds[0] = memfd_create("odd", MFD_CLOEXEC | MFD_ALLOW_SEALING);
		assert_int_equal(ftruncate(handle.fds[0], 8192), 0);
		assert_int_equal(fcntl(handle.fds[0], F_ADD_SEALS, seals), 0);
	}
	*ret_handle = handle;
}

static void test_refusals(void **state)
{
	struct fixture *f = *state;
	struct gpu_memory *memory;
	struct handle handle;
	struct error err = {0};

	odd_handle(-1, &handle);
	assert_int_equal(gpu_import(f->device, &handle, true, &memory, &err), -EINVAL);
	handle_finish(&handle);

	odd_handle(F_SEAL_GROW, &handle);
	assert_int_equal(gpu_import(f->device, &handle, true, &memory, &err), -EINVAL);
	assert_non_null(strstr(err.text, "sealed"));
	handle_finish(&handle);

	odd_handle(F_SEAL_SHRINK, &handle);
	handle.size_bytes = 8193;
	assert_int_equal(gpu_import(f->device, &handle, true, &memory, &err), -EINVAL);
	assert_non_null(strstr(err.text, "8193"));
	handle.size_bytes = 0;
	assert_int_equal(gpu_import(f->device, &handle, true, &memory, &err), -EINVAL);
	handle.size_bytes = UINT64_MAX;
	handle.base = 1;
	assert_int_equal(gpu_import(f->device, &handle, true, &memory, &err), -EINVAL);
	handle.base = 0;
	handle.size_bytes = 8192;
	handle.kind = HANDLE_PULL;
	assert_int_equal(gpu_import(f->device, &handle, true, &memory, &err), -EINVAL);
	handle.kind = HANDLE_CUDA_IPC;
	assert_int_equal(gpu_import(f->device, &handle, true, &memory, &err), -ENOTSUP);
	handle.kind = HANDLE_CUDA_VMM;
	assert_int_equal(gpu_import(f->device, &handle, true, &memory, &err), -EINVAL);
	handle.kind = 77;
	assert_int_equal(gpu_import(f->device, &handle, true, &memory, &err), -EINVAL);
	handle_finish(&handle);
	handle_finish(&handle);
	assert_int_equal(gpu_alloc(f->device, 1ull << 60, &memory, &err), -ENOMEM);
	assert_int_equal(gpu_alloc(f->device, 0, &memory, &err), -EINVAL);
}

static void test_export_set(void **state)
{
	struct export_set *set;
	struct error err = {0};
	char on_stack[16];
	uint64_t offset;
	uint32_t index;
	void *a, *b;

	(void)state;
	assert_int_equal(host_memory_alloc(4096, &a), 0);
	assert_int_equal(host_memory_alloc(4096, &b), 0);
	assert_int_equal(export_set_create(&set), 0);
	assert_int_equal(export_add(set, (char *)a + 16, 4080, &err), 0);
	assert_int_equal(export_add(set, a, 1, &err), 0);
	assert_int_equal(export_add(set, b, 0, &err), 0);
	assert_int_equal(export_add(set, (char *)b + 16, 4081, &err), -EFAULT);
	assert_int_equal(export_add(set, (void *)16, 16, &err), -EFAULT);
	assert_int_equal(export_add(set, NULL, 16, &err), -EFAULT);
	assert_int_equal(export_locate(set, a, &index, &offset, &err), -EINVAL);
	assert_int_equal(export_settle(set, &err), 0);
	assert_int_equal(export_add(set, a, 1, &err), -EINVAL);
	assert_int_equal(export_count(set), 2);
	assert_int_equal(export_locate(set, (char *)a + 77, &index, &offset, &err), 0);
	assert_int_equal(offset, 77);
	assert_int_equal(export_locate(set, on_stack, &index, &offset, &err), -EFAULT);
	assert_int_equal(export_verify(set, &err), 0);
	host_memory_free(b);
	assert_int_equal(export_verify(set, &err), -ESTALE);
	assert_int_equal(host_memory_alloc(4096, &b), 0);
	assert_int_equal(export_verify(set, &err), -ESTALE);
	export_set_destroy(set);
	export_set_destroy(NULL);
	host_memory_free(a);
	host_memory_free(b);
}

static void test_page(void **state)
{
	uint64_t words[8] = {0};
	struct export_page *page;
	struct export_set *set;

	(void)state;
	assert_int_equal(export_set_create(&set), 0);
	assert_int_equal(export_page_create((char *)words + 1, 8, &page), -EINVAL);
	assert_int_equal(export_page_create(words, sizeof(words), &page), 0);
	assert_int_equal(export_page_write(page, set, NULL, 7, 42, NULL), 0);
	assert_int_equal(export_page_write(page, NULL, NULL, 1, 43, NULL), 0);
	assert_int_equal(export_page_write(page, set, NULL, 8, 42, NULL), -EINVAL);
	assert_int_equal(words[7], 42);
	assert_int_equal(words[1], 43);
	export_page_destroy(page);
	export_page_destroy(NULL);
	export_set_destroy(set);
}

/* A child writes through its own import of the parent's memory. */
static void test_two_processes(void **state)
{
	struct fixture *f = *state;
	struct handle handle;
	char *ptr;
	int status;
	pid_t child;

	assert_int_equal(host_memory_alloc(1 << 20, (void **)&ptr), 0);
	export_one(ptr, 1, &handle);
	child = fork();
	if (child == 0) {
		struct gpu_memory *memory, *own;
		int rc = gpu_import(f->device, &handle, true, &memory, NULL);

		if (rc == 0) {
			rc = gpu_alloc(f->device, 4096, &own, NULL);
		}
		if (rc == 0) {
			memset((void *)(uintptr_t)gpu_memory_address(own), 'x', 4096);
			rc = gpu_copy(f->device, gpu_memory_address(memory) + 5000,
				gpu_memory_address(own), 4096, f->stream, NULL);
		}
		_exit(rc ? 1 : 0);
	}
	assert_int_equal(waitpid(child, &status, 0), child);
	assert_int_equal(status, 0);
	assert_int_equal(ptr[4999], 0);
	assert_int_equal(ptr[5000], 'x');
	assert_int_equal(ptr[5000 + 4095], 'x');
	assert_int_equal(ptr[5000 + 4096], 0);
	handle_finish(&handle);
	host_memory_free(ptr);
}

/* Two ranges: slot → memory with rows turned into columns, memory → slot in one piece. */
static void test_copies(void **state)
{
	struct fixture *f = *state;
	struct copy v[] = {
		{.src = 64,
			.dst = 8,
			.src_space = 0,
			.dst_space = 1,
			.run_bytes = 3,
			.ndim = 2,
			.extent = {5, 7},
			.src_stride = {3, 15},
			.dst_stride = {21, 3}},
		{.src = 0, .dst = 1000, .src_space = 1, .dst_space = 0, .run_bytes = 500},
	};
	size_t first[] = {0, 1, 1, 2};
	struct copies copies = {.v = v, .n = 2, .cap = 2, .first = first, .nranges = 3};
	uint64_t bases[2] = {0};
	struct gpu_memory *slot, *memory;
	struct gpu_copies *compiled;
	uint8_t *from, *to;
	struct error err;

	assert_int_equal(gpu_alloc(f->device, 4096, &slot, NULL), 0);
	assert_int_equal(gpu_alloc(f->device, 4096, &memory, NULL), 0);
	from = (uint8_t *)(uintptr_t)gpu_memory_address(slot);
	to = (uint8_t *)(uintptr_t)gpu_memory_address(memory);
	bases[1] = gpu_memory_address(memory);
	test_random_fill(from, 4096);
	assert_int_equal(gpu_copies_create(f->device, &copies, bases, 1, &compiled, &err), -EINVAL);
	assert_int_equal(gpu_copies_create(f->device, &copies, bases, 2, &compiled, &err), 0);
	memset(v, 0xff, sizeof(v)); /* nothing is kept of the arguments */
	for (size_t range = 0; range < 3; range++) {
		assert_int_equal(
			gpu_copies_run(compiled, range, gpu_memory_address(slot), f->stream, &err),
			0);
	}
	assert_int_equal(gpu_copies_run(compiled, 3, 0, f->stream, &err), -EINVAL);
	assert_int_equal(gpu_copies_run(compiled, 0, 8, f->stream, &err), -EINVAL);
	for (unsigned i = 0; i < 5; i++) {
		for (unsigned j = 0; j < 7; j++) {
			assert_memory_equal(to + 8 + i * 21 + j * 3, from + 64 + i * 3 + j * 15, 3);
		}
	}
	assert_memory_equal(from + 1000, to, 500);
	gpu_copies_destroy(compiled);
	gpu_copies_destroy(NULL);
	gpu_memory_release(slot);
	gpu_memory_release(memory);
}

/* Ranges that overlap share a place, others have one each, and only what is named is copied. */
static void test_twins(void **state)
{
	enum { N = 10000 };
	struct export_set *set;
	struct handle handle;
	struct error err = {0};
	unsigned char *a = malloc(N), *b = malloc(N), *kept = malloc(N), *twin;
	uint64_t offset[3];
	uint32_t index[3];
	struct copy copy = {.run_bytes = 3, .ndim = 1, .extent = {50}, .src_stride = {7}};
	struct copies copies = {.v = &copy, .n = 1, .nranges = 1};
	void *ptr;

	(void)state;
	test_random_fill(a, N);
	test_random_fill(b, N);
	assert_int_equal(export_set_create(&set), 0);
	assert_int_equal(export_add(set, a + 100, 500, &err), 0);
	assert_int_equal(export_add(set, b, N, &err), 0);
	assert_int_equal(export_add(set, a + 300, 700, &err), 0);
	assert_int_equal(export_settle(set, &err), 0);
	assert_int_equal(export_count(set), 1);
	assert_true(export_pulls(set, 0) && !export_pulls(set, 1));
	assert_int_equal(export_locate(set, a + 100, &index[0], &offset[0], &err), 0);
	assert_int_equal(export_locate(set, a + 999, &index[1], &offset[1], &err), 0);
	assert_int_equal(export_locate(set, b, &index[2], &offset[2], &err), 0);
	assert_int_equal(offset[1] - offset[0], 899);
	assert_int_equal(export_locate(set, a + 1000, &index[1], &offset[1], &err), -EFAULT);
	assert_int_equal(export_handle(set, 0, &handle, &err), 0);
	assert_true(handle.pull);
	assert_int_equal(memfd_map(handle.fds[0], handle.size_bytes, true, &ptr, &err), 0);
	twin = ptr;
	assert_int_equal(export_twins_fill(set, NULL, &err), 0);
	assert_memory_equal(twin + offset[0], a + 100, 900);
	assert_memory_equal(twin + offset[2], b, N);
	test_random_fill(twin, handle.size_bytes);
	memcpy(kept, b, N);
	copy.src = offset[2] + 11;
	for (unsigned i = 0; i < 50; i++) {
		memcpy(kept + 11 + 7 * i, twin + copy.src + 7 * i, 3);
	}
	assert_int_equal(export_twins_apply(set, &copies, &err), 0);
	assert_memory_equal(b, kept, N);
	munmap(ptr, handle.size_bytes);
	handle_finish(&handle);
	export_set_destroy(set);
	free(a);
	free(b);
	free(kept);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_twins),
		cmocka_unit_test_setup_teardown(test_devices, setup, teardown),
		cmocka_unit_test(test_host_memory),
		cmocka_unit_test_setup_teardown(test_import_counts, setup, teardown),
		cmocka_unit_test_setup_teardown(test_refusals, setup, teardown),
		cmocka_unit_test(test_export_set),
		cmocka_unit_test(test_page),
		cmocka_unit_test_setup_teardown(test_two_processes, setup, teardown),
		cmocka_unit_test_setup_teardown(test_copies, setup, teardown),
	};

	return TEST_RUN(tests);
}
