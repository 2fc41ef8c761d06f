#include "bench/load.h"
#include "base/clock.h"
#include "bench/driver.h"
#include "bench/memory.h"
#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define SIDE 4096	   /* of the matrices */
#define VECTOR (64u << 20) /* floats: 256 MiB each of two */
#define AHEAD 32	   /* steps that are enqueued at a time */
#define HOST_PRODUCTS 200000

/* cuBLAS's own numbers (cublas_api.h and library_types.h of CUDA 12 and 13). */
#define CUBLAS_OP_N 0
#define CUDA_R_16BF 14
#define CUBLAS_COMPUTE_32F 68
#define CUBLAS_GEMM_DEFAULT (-1)

const char *const load_names[LOAD_KINDS] = {"products", "memory"};

struct cublas {
	int (*create)(void **handle);
	int (*destroy)(void *handle);
	int (*set_stream)(void *handle, struct cuda_stream *stream);
	int (*gemm)(void *handle, int transa, int transb, int m, int n, int k, const void *alpha,
		const void *a, int a_type, int lda, const void *b, int b_type, int ldb,
		const void *beta, void *c, int c_type, int ldc, int compute, int algorithm);
	int (*saxpy)(void *handle, int n, const float *alpha, const float *x, int incx, float *y,
		int incy);
};

struct load {
	const struct load_part *part;
	struct memory *memory;
	struct cublas cublas;
	void *handle;
	struct gpu_stream *stream;
	struct cuda_event *events[AHEAD + 1];
	unsigned char *a, *b, *c, *x, *y;
	struct samples steps;
};

static void *open_cublas(const char *name)
{
	static const char *const names[] = {"libcublas.so.13", "libcublas.so.12", "libcublas.so"};
	void *library = name ? dlopen(name, RTLD_NOW | RTLD_LOCAL) : NULL;

	for (size_t i = 0; !name && !library && i < ARRAY_LEN(names); i++) {
		library = dlopen(names[i], RTLD_NOW | RTLD_LOCAL);
	}
	if (!library) {
		bench_fail(EXIT_RUNTIME, "the load needs cuBLAS (see --cublas): %s", dlerror());
	}
	return library;
}

static void load_cublas(struct load *load)
{
	struct cublas *cublas = &load->cublas;
	void *library = open_cublas(load->part->cublas);
	const struct {
		const char *name;
		void *entry; /* a function pointer, filled in as dlsym(3) says */
	} table[] = {
		{"cublasCreate_v2", &cublas->create},
		{"cublasDestroy_v2", &cublas->destroy},
		{"cublasSetStream_v2", &cublas->set_stream},
		{"cublasGemmEx", &cublas->gemm},
		{"cublasSaxpy_v2", &cublas->saxpy},
	};

	for (size_t i = 0; i < ARRAY_LEN(table); i++) {
		void *symbol = dlsym(library, table[i].name);

		if (!symbol) {
			bench_fail(EXIT_RUNTIME, "cuBLAS has no %s", table[i].name);
		}
		memcpy(table[i].entry, &symbol, sizeof(symbol));
	}
}

static void blas_must(int result, const char *call)
{
	if (result) {
		bench_fail(EXIT_RUNTIME, "%s failed with %d", call, result);
	}
}

static void prepare(struct load *load)
{
	struct error err = {0};
	size_t matrix = (size_t)SIDE * SIDE * 2;

	load->memory = memory_create(load->part->kind, load->part->device, false);
	if (load->part->kind == GPU_HOST) {
		return;
	}
	load_cublas(load);
	load->a = memory_take(load->memory, matrix);
	load->b = memory_take(load->memory, matrix);
	load->c = memory_take(load->memory, matrix);
	load->x = memory_take(load->memory, VECTOR * 4ull);
	load->y = memory_take(load->memory, VECTOR * 4ull);
	memory_poison(load->memory, 0x11); /* small numbers, in both types */
	bench_must(gpu_stream_create(memory_device(load->memory), &load->stream, &err), "a stream",
		&err);
	for (int i = 0; i <= AHEAD; i++) {
		bench_must(CUDA(&err, cuEventCreate, &load->events[i], 0), "an event", &err);
	}
	blas_must(load->cublas.create(&load->handle), "cublasCreate");
	blas_must(load->cublas.set_stream(load->handle, gpu_stream_native(load->stream)),
		"cublasSetStream");
}

static void step(struct load *load, enum load_kind kind)
{
	const float alpha = 1e-3f, beta = 0;

	if (kind == LOAD_PRODUCTS) {
		blas_must(load->cublas.gemm(load->handle, CUBLAS_OP_N, CUBLAS_OP_N, SIDE, SIDE,
				  SIDE, &alpha, load->a, CUDA_R_16BF, SIDE, load->b, CUDA_R_16BF,
				  SIDE, &beta, load->c, CUDA_R_16BF, SIDE, CUBLAS_COMPUTE_32F,
				  CUBLAS_GEMM_DEFAULT),
			"cublasGemmEx");
	} else {
		blas_must(load->cublas.saxpy(load->handle, VECTOR, &alpha, (const float *)load->x,
				  1, (float *)load->y, 1),
			"cublasSaxpy");
	}
}

/* AHEAD steps with an event between any two. */
static void batch_gpu(struct load *load, enum load_kind kind)
{
	struct cuda_stream *stream = gpu_stream_native(load->stream);
	struct error err = {0};
	float ms;

	bench_must(CUDA(&err, cuEventRecord, load->events[0], stream), "an event", &err);
	for (int i = 1; i <= AHEAD; i++) {
		step(load, kind);
		bench_must(CUDA(&err, cuEventRecord, load->events[i], stream), "an event", &err);
	}
	bench_must(CUDA(&err, cuStreamSynchronize, stream), "the load", &err);
	for (int i = 1; i <= AHEAD; i++) {
		bench_must(BENCH_CUDA(&err, cuEventElapsedTime, &ms, load->events[i - 1],
				   load->events[i]),
			"a time", &err);
		samples_add(&load->steps, (double)ms * 1e-3);
	}
}

static void batch_host(struct load *load, enum load_kind kind)
{
	static volatile float values[1 << 16]; /* volatile: nothing of this is to be left out */
	uint64_t start = clock_ns();
	float sum = 0;

	for (unsigned i = 0; i < HOST_PRODUCTS; i++) {
		sum += values[kind == LOAD_MEMORY ? i * 4099u % ARRAY_LEN(values) : i % 64] * 1.5f;
	}
	values[0] = sum;
	samples_add(&load->steps, (double)(clock_ns() - start) * 1e-9);
}

static void run(struct load *load, const struct load_run *run, struct load_result *ret_result)
{
	uint64_t start, end;

	for (int warm = 1; warm >= 0; warm--) {
		samples_finish(&load->steps);
		start = clock_ns();
		end = start + (uint64_t)(run->seconds * 1e9 / (warm ? 10 : 1));
		do {
			if (load->part->kind == GPU_CUDA) {
				batch_gpu(load, run->kind);
			} else {
				batch_host(load, run->kind);
			}
		} while (clock_ns() < end);
		end = clock_ns();
	}
	ret_result->steps_per_s = (double)load->steps.n / ((double)(end - start) * 1e-9);
	ret_result->start_ns = start;
	ret_result->end_ns = end;
	ret_result->p50_s = samples_median(&load->steps);
	ret_result->p99_s = samples_at(&load->steps, 0.99);
}

static void answer(void *data, struct letter *letter)
{
	struct load_result result;
	struct load_run wanted;

	memcpy(&wanted, letter->bytes, sizeof(wanted));
	run(data, &wanted, &result);
	letter_put(letter, &result, sizeof(result));
}

static void finish(struct load *load)
{
	samples_finish(&load->steps);
	if (load->handle) {
		gpu_device_enter(memory_device(load->memory), NULL);
		load->cublas.destroy(load->handle);
		for (int i = 0; i <= AHEAD; i++) {
			CUDA(NULL, cuEventDestroy, load->events[i]);
		}
	}
	gpu_stream_destroy(load->stream);
	memory_destroy(load->memory);
}

int part_load(int fd, void *arg)
{
	struct load load = {.part = arg};

	prepare(&load);
	letter_serve(fd, answer, &load);
	finish(&load);
	return EXIT_OK;
}
