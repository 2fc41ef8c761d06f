/*
 * Host memory that is the driver's too: pinned, managed, or from strew_host_alloc() and registered.
 * What a stream has yet to write there comes before it is read, and before the word that says so.
 */
#include "base/util.h"
#include "gpu/cuda_driver.h"
#include "gpu/export.h"
#include "strew/types.h"
#include "support/test_main.h"
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define BYTES (1u << 20)
#define OLD 'o'
#define NEW 'n'

static char folder[] = "/tmp/strew-test-XXXXXX";
static struct cuda_ctx *ctx;
static struct cuda_stream *stream;
static cuda_ptr source; /* holds NEW; a copy from it begins late */
static uint64_t *page;

static int start(void **state)
{
	char path[64], *new = malloc(BYTES);
	FILE *plan;

	(void)state;
	assert_non_null(mkdtemp(folder));
	setenv("STANDIN_DIR", folder, 1);
	snprintf(path, sizeof(path), "%s/faults", folder);
	plan = fopen(path, "w");
	fputs("cuMemcpyAsync:1+=slow:200\n", plan);
	fclose(plan);
	assert_int_equal(cuda_driver_load(false, NULL), 0);
	assert_int_equal(cuda_driver.cuInit(0), CUDA_OK);
	assert_int_equal(cuda_driver.cuDevicePrimaryCtxRetain(&ctx, 0), CUDA_OK);
	assert_int_equal(cuda_driver.cuCtxSetCurrent(ctx), CUDA_OK);
	assert_int_equal(cuda_driver.cuMemAlloc(&source, BYTES), CUDA_OK);
	memset(new, NEW, BYTES);
	assert_int_equal(cuda_driver.cuMemcpyHtoD(source, new, BYTES), CUDA_OK);
	free(new);
	assert_int_equal(
		cuda_driver.cuStreamCreateWithPriority(&stream, CUDA_STREAM_NON_BLOCKING, 0),
		CUDA_OK);
	page = aligned_alloc(4096, 4096);
	return page ? 0 : -1;
}

static int finish(void **state)
{
	char command[64];

	(void)state;
	free(page);
	snprintf(command, sizeof(command), "rm -r %s", folder);
	return system(command);
}

/* The memory is OLD, and the stream is about to write NEW there. */
static void check(void *memory)
{
	struct export_page *words;
	struct export_set *set;
	struct handle handle;
	struct error err = {0};
	uint64_t offset;
	uint32_t allocation;
	char last;

	memset(memory, OLD, BYTES);
	page[0] = 0;
	assert_int_equal(export_page_create(page, 4096, &words), 0);
	assert_int_equal(export_set_create(&set), 0);
	assert_int_equal(export_add(set, memory, BYTES, &err), 0);
	assert_int_equal(export_settle(set, &err), 0);
	assert_int_equal(export_locate(set, memory, &allocation, &offset, &err), 0);
	assert_int_equal(export_handle(set, allocation, &handle, &err), 0);
	assert_int_equal(
		cuda_driver.cuMemcpyAsync((cuda_ptr)(uintptr_t)memory, source, BYTES, stream),
		CUDA_OK);
	/* As ready() does, and as publish() does. */
	assert_int_equal(export_page_write(words, set, stream, 0, 1, &err), 0);
	assert_int_equal(__atomic_load_n(&page[0], __ATOMIC_ACQUIRE), 0);
	assert_int_equal(export_twins_fill(set, stream, &err), 0);
	if (export_pulls(set, allocation)) {
		assert_int_equal(pread(handle.fds[0], &last, 1, (off_t)(offset + BYTES - 1)), 1);
		assert_int_equal(last, NEW);
		assert_int_equal(__atomic_load_n(&page[0], __ATOMIC_ACQUIRE), 1);
	}
	while (cuda_driver.cuStreamQuery(stream) != CUDA_OK) {
		usleep(1000);
	}
	assert_int_equal(__atomic_load_n(&page[0], __ATOMIC_ACQUIRE), 1);
	handle_finish(&handle);
	export_page_destroy(words);
	export_set_destroy(set);
}

static void test_managed(void **state)
{
	unsigned (*allocate)(cuda_ptr *, size_t, unsigned);
	void *symbol = dlsym(dlopen("libcuda.so.1", RTLD_NOW | RTLD_NOLOAD), "cuMemAllocManaged");
	cuda_ptr address;

	(void)state;
	assert_non_null(symbol);
	memcpy(&allocate, &symbol, sizeof(allocate));
	assert_int_equal(allocate(&address, BYTES, 1), CUDA_OK);
	check((void *)(uintptr_t)address);
	assert_int_equal(cuda_driver.cuMemFree(address), CUDA_OK);
}

static void test_pinned(void **state)
{
	void *memory;

	(void)state;
	assert_int_equal(
		cuda_driver.cuMemHostAlloc(&memory, BYTES, CUDA_REGISTER_PORTABLE), CUDA_OK);
	check(memory);
	assert_int_equal(cuda_driver.cuMemFreeHost(memory), CUDA_OK);
}

static void test_registered(void **state)
{
	void *memory;

	(void)state;
	assert_int_equal(strew_host_alloc(BYTES, &memory), 0);
	assert_int_equal(cuda_driver.cuMemHostRegister(
				 memory, BYTES, CUDA_REGISTER_PORTABLE | CUDA_REGISTER_DEVICEMAP),
		CUDA_OK);
	check(memory);
	assert_int_equal(cuda_driver.cuMemHostUnregister(memory), CUDA_OK);
	strew_host_free(memory);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_managed),
		cmocka_unit_test(test_pinned),
		cmocka_unit_test(test_registered),
	};

	return cmocka_run_group_tests(tests, start, finish);
}
