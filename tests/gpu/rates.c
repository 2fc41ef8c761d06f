/*
 * What the executor reaches within one GPU, beside a plain copy of the same bytes in the
 * same run: medians of five, interleaved, timed by events on the stream after one warm-up.
 */
#include "base/util.h"
#include "check.h"
#include "plan/cast.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MEMORY_BYTES (1ull << 30)
#define REPEATS 5

struct pattern {
	const char *name;
	struct copy copy;
	size_t pieces; /* copies of `copy`, side by side: src and dst advance by these */
	uint64_t src_step, dst_step;
	bool host_source;
};

static const struct pattern patterns[] = {
	{.name = "contiguous, 1 GiB in 16",
		.copy = {.run_bytes = 64u << 20},
		.pieces = 16,
		.src_step = 64u << 20,
		.dst_step = 64u << 20},
	{.name = "contiguous, 512 MiB in 65,536",
		.copy = {.run_bytes = 8192},
		.pieces = 65536,
		.src_step = 16384,
		.dst_step = 8192},
	{.name = "14 KiB of 28 KiB rows to dense",
		.copy = {.run_bytes = 14336,
			.ndim = 1,
			.extent = {37449},
			.src_stride = {28672},
			.dst_stride = {14336}},
		.pieces = 1},
	{.name = "1 KiB of 2 KiB rows to dense",
		.copy = {.run_bytes = 1024,
			.ndim = 1,
			.extent = {524288},
			.src_stride = {2048},
			.dst_stride = {1024}},
		.pieces = 1},
	{.name = "768 of 1,536 byte rows to dense",
		.copy = {.run_bytes = 768,
			.ndim = 1,
			.extent = {699050},
			.src_stride = {1536},
			.dst_stride = {768}},
		.pieces = 1},
	{.name = "768 byte rows, dense to 1,536",
		.copy = {.run_bytes = 768,
			.ndim = 1,
			.extent = {699050},
			.src_stride = {768},
			.dst_stride = {1536}},
		.pieces = 1},
	{.name = "768 byte rows in 3 dimensions",
		.copy = {.run_bytes = 768,
			.ndim = 3,
			.extent = {5461, 64, 2},
			.src_stride = {196608, 1536, 768},
			.dst_stride = {98304, 768, 49152}},
		.pieces = 1},
	{.name = "transpose of 2 byte elements",
		.copy = {.run_bytes = 2,
			.ndim = 2,
			.extent = {8192, 8192},
			.src_stride = {2, 16384},
			.dst_stride = {16384, 2}},
		.pieces = 1},
	{.name = "f32 to bf16, contiguous",
		.copy = {.run_bytes = 512u << 20, .from = STREW_F32, .to = STREW_BF16},
		.pieces = 1},
	{.name = "f32 to f16, contiguous",
		.copy = {.run_bytes = 512u << 20, .from = STREW_F32, .to = STREW_F16},
		.pieces = 1},
	{.name = "bf16 to f32, contiguous",
		.copy = {.run_bytes = 1u << 30, .from = STREW_BF16, .to = STREW_F32},
		.pieces = 1},
	{.name = "f16 to bf16, contiguous",
		.copy = {.run_bytes = 1u << 30, .from = STREW_F16, .to = STREW_BF16},
		.pieces = 1},
	{.name = "f32 to bf16, 1.5 KiB of 3 KiB rows",
		.copy = {.run_bytes = 768,
			.ndim = 1,
			.extent = {349525},
			.from = STREW_F32,
			.to = STREW_BF16,
			.src_stride = {3072},
			.dst_stride = {768}},
		.pieces = 1},
	{.name = "pinned host memory, 1 KiB rows",
		.copy = {.run_bytes = 1024,
			.ndim = 1,
			.extent = {65536},
			.src_stride = {1024},
			.dst_stride = {2048}},
		.pieces = 1,
		.host_source = true},
};

struct bench {
	struct gpu_device *device;
	struct gpu_stream *stream;
	struct gpu_memory *src, *dst;
	void *host;
	struct cuda_event *start, *end;
};

static struct gpu_copies *compile(
	struct bench *bench, const struct pattern *pattern, uint64_t *ret_bytes)
{
	size_t first[2] = {0, pattern->pieces};
	struct copies copies = {.n = pattern->pieces, .first = first, .nranges = 1};
	uint64_t bases[] = {0, gpu_memory_address(bench->dst), (uintptr_t)bench->host};
	struct gpu_copies *compiled;
	struct error err = {0};

	copies.v = calloc(pattern->pieces, sizeof(*copies.v));
	/* A plain copy of the mean of what is read and written moves as much. */
	*ret_bytes =
		(copy_source_run(&pattern->copy) + pattern->copy.run_bytes) / 2 * pattern->pieces;
	for (unsigned k = 0; k < pattern->copy.ndim; k++) {
		*ret_bytes *= pattern->copy.extent[k];
	}
	for (size_t i = 0; i < pattern->pieces; i++) {
		copies.v[i] = pattern->copy;
		copies.v[i].src += i * pattern->src_step;
		copies.v[i].dst += i * pattern->dst_step;
		copies.v[i].src_space = pattern->host_source ? 2 : 0;
		copies.v[i].dst_space = 1;
	}
	must(gpu_copies_create(bench->device, &copies, bases, 3, &compiled, &err), "copies", &err);
	free(copies.v);
	return compiled;
}

static double seconds(struct bench *bench, struct gpu_copies *compiled, bool host, uint64_t bytes)
{
	struct cuda_stream *stream = gpu_stream_native(bench->stream);
	cuda_ptr src = host ? (uintptr_t)bench->host : gpu_memory_address(bench->src);
	struct error err = {0};
	float ms = 0;

	must(CUDA(&err, cuEventRecord, bench->start, stream), "an event", &err);
	if (compiled) {
		must(gpu_copies_run(
			     compiled, 0, gpu_memory_address(bench->src), bench->stream, &err),
			"running copies", &err);
	} else if (host) {
		must(CUDA(&err, cuMemcpyAsync, gpu_memory_address(bench->dst), src, bytes, stream),
			"a plain copy", &err);
	} else {
		must(cuda_outcome(&err, "cuMemcpyDtoDAsync",
			     extra.cuMemcpyDtoDAsync(
				     gpu_memory_address(bench->dst), src, bytes, stream)),
			"a plain copy", &err);
	}
	must(CUDA(&err, cuEventRecord, bench->end, stream), "an event", &err);
	drain(bench->device, bench->stream);
	must(cuda_outcome(&err, "cuEventElapsedTime",
		     extra.cuEventElapsedTime(&ms, bench->start, bench->end)),
		"a time", &err);
	return ms / 1e3;
}

static int by_value(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

static void measure(struct bench *bench, const struct pattern *pattern)
{
	double ours[REPEATS], plain[REPEATS];
	uint64_t bytes;
	struct gpu_copies *compiled = compile(bench, pattern, &bytes);

	seconds(bench, compiled, pattern->host_source, bytes);
	seconds(bench, NULL, pattern->host_source, bytes);
	for (int i = 0; i < REPEATS; i++) {
		ours[i] = seconds(bench, compiled, pattern->host_source, bytes);
		plain[i] = seconds(bench, NULL, pattern->host_source, bytes);
	}
	qsort(ours, REPEATS, sizeof(*ours), by_value);
	qsort(plain, REPEATS, sizeof(*plain), by_value);
	printf("rate %-32s %7.1f MB %8.1f GB/s (%.1f to %.1f), plain %8.1f GB/s, ratio %.3f\n",
		pattern->name, (double)bytes / 1e6, (double)bytes / ours[REPEATS / 2] / 1e9,
		(double)bytes / ours[REPEATS - 1] / 1e9, (double)bytes / ours[0] / 1e9,
		(double)bytes / plain[REPEATS / 2] / 1e9, plain[REPEATS / 2] / ours[REPEATS / 2]);
	fflush(stdout);
	gpu_copies_destroy(compiled);
}

/* Reading alone, beside a plain copy of as many bytes, which are read and written. */
static void measure_hash(struct bench *bench)
{
	struct gpu_span span = {.len_bytes = MEMORY_BYTES, .in_slot = true};
	struct cuda_stream *stream = gpu_stream_native(bench->stream);
	double times[REPEATS], plain;
	size_t first[2] = {0, 1};
	struct gpu_hashes *hashes;
	struct error err = {0};
	float ms = 0;

	must(gpu_hashes_create(bench->device, &span, first, 1, 1, &hashes, &err), "hashes", &err);
	for (int i = -1; i < REPEATS; i++) {
		must(CUDA(&err, cuEventRecord, bench->start, stream), "an event", &err);
		must(gpu_hashes_run(hashes, 0, gpu_memory_address(bench->src), bench->stream, &err),
			"hashing", &err);
		must(CUDA(&err, cuEventRecord, bench->end, stream), "an event", &err);
		drain(bench->device, bench->stream);
		must(cuda_outcome(&err, "cuEventElapsedTime",
			     extra.cuEventElapsedTime(&ms, bench->start, bench->end)),
			"a time", &err);
		times[MAX(i, 0)] = ms / 1e3;
	}
	qsort(times, REPEATS, sizeof(*times), by_value);
	plain = seconds(bench, NULL, false, MEMORY_BYTES);
	printf("rate %-32s %7.1f MB %8.1f GB/s (%.1f to %.1f), plain copy %.1f GB/s\n",
		"hash, contiguous", MEMORY_BYTES / 1e6, MEMORY_BYTES / times[REPEATS / 2] / 1e9,
		MEMORY_BYTES / times[REPEATS - 1] / 1e9, MEMORY_BYTES / times[0] / 1e9,
		MEMORY_BYTES / plain / 1e9);
	gpu_hashes_destroy(hashes);
}

void rates(struct gpu_device *device, const char *kernel)
{
	struct bench bench = {.device = device};
	struct error err = {0};

	printf("rates within one GPU, payload, median of %d; kernel: %s\n", REPEATS, kernel);
	must(gpu_stream_create(device, &bench.stream, &err), "a stream", &err);
	must(gpu_alloc(device, MEMORY_BYTES + (1u << 20), &bench.src, &err), "1 GiB", &err);
	must(gpu_alloc(device, 2 * MEMORY_BYTES, &bench.dst, &err), "2 GiB", &err);
	must((int)cuda_driver.cuMemHostAlloc(&bench.host, 64u << 20, 0), "pinned memory", NULL);
	must(CUDA(&err, cuEventCreate, &bench.start, 0), "an event", &err);
	must(CUDA(&err, cuEventCreate, &bench.end, 0), "an event", &err);
	for (size_t i = 0; i < ARRAY_LEN(patterns); i++) {
		measure(&bench, &patterns[i]);
	}
	measure_hash(&bench);
	CUDA(NULL, cuEventDestroy, bench.start);
	CUDA(NULL, cuEventDestroy, bench.end);
	cuda_driver.cuMemFreeHost(bench.host);
	gpu_memory_release(bench.src);
	gpu_memory_release(bench.dst);
	gpu_stream_destroy(bench.stream);
}
