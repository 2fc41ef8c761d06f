#include "base/clock.h"
#include "base/util.h"
#include "check.h"
#include "gpu/cast.h"
#include "plan/cast.h"
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

struct extra extra;
unsigned check_count, check_failed;
bool check_small;

int extra_load(void)
{
	void *library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);

	if (!library) {
		return -ENODEV;
	}
#define EXTRA_RESOLVE(name, symbol, parameters)                                                    \
	do {                                                                                       \
		void *found = dlsym(library, #symbol);                                             \
		if (!found) {                                                                      \
			return -ENODEV;                                                            \
		}                                                                                  \
		memcpy(&extra.name, &found, sizeof(found));                                        \
	} while (0);
	EXTRA_CALLS(EXTRA_RESOLVE)
#undef EXTRA_RESOLVE
	return 0;
}

void check(bool good, const char *format, ...)
{
	va_list ap;

	check_count++;
	check_failed += !good;
	printf("%s ", good ? "ok  " : "FAIL");
	va_start(ap, format);
	vprintf(format, ap);
	va_end(ap);
	putchar('\n');
	fflush(stdout);
}

void must(int rc, const char *what, const struct error *err)
{
	if (rc) {
		printf("FAIL %s: %s (%d)\n", what, err ? err->text : "", rc);
		printf("gpu_check: broken off checks=%u failed=%u\n", check_count,
			check_failed + 1);
		exit(1);
	}
}

void drain(struct gpu_device *device, struct gpu_stream *stream)
{
	uint64_t deadline = deadline_in_ms(20000);
	struct gpu_event *event;
	struct error err = {0};
	int rc;

	must(gpu_event_create(device, &event, &err), "an event", &err);
	must(gpu_event_record(event, stream, &err), "recording it", &err);
	while ((rc = gpu_event_query(event, &err)) == 0 && !deadline_passed(deadline)) {
		struct timespec pause = {.tv_nsec = 20000};

		nanosleep(&pause, NULL);
	}
	must(rc == 1 ? 0 : -ETIMEDOUT, "waiting for a stream", &err);
	gpu_event_destroy(event);
}

/* splitmix64 */
static uint64_t next(uint64_t *state)
{
	uint64_t z = (*state += 0x9e3779b97f4a7c15u);

	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
	z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
	return z ^ (z >> 31);
}

void make_pattern(uint64_t seed, void *buf, size_t len_bytes)
{
	uint64_t *words = buf;

	for (size_t i = 0; i < len_bytes / sizeof(*words); i++) {
		words[i] = next(&seed);
	}
}

static bool make_strides(const struct copy *copy, uint64_t run, uint64_t unit, uint64_t *state,
	uint64_t limit, uint64_t *stride)
{
	unsigned order[STREW_MAX_DIMS];
	uint64_t step = run;
	uint64_t span = run;

	for (unsigned k = 0; k < copy->ndim; k++) {
		unsigned other = (unsigned)(next(state) % (k + 1));

		order[k] = order[other];
		order[other] = k;
	}
	for (unsigned k = 0; k < copy->ndim; k++) {
		step += next(state) % 3 * unit;
		stride[order[k]] = step;
		span += (copy->extent[order[k]] - 1) * step;
		step *= copy->extent[order[k]];
	}
	return span <= limit;
}

/* A copy or a cast within `limit` bytes on either side. */
static void make_copy(uint64_t *state, uint64_t limit, struct copy *copy)
{
	static const enum strew_dtype dtypes[] = {STREW_F32, STREW_F16, STREW_BF16};

	do {
		uint64_t unit = 1ull << next(state) % 6, from = unit, skew = 0;

		memset(copy, 0, sizeof(*copy));
		if (next(state) % 2) {
			uint64_t i = next(state) % 3;

			copy_set_cast(copy, dtypes[i], dtypes[(i + 1 + next(state) % 2) % 3]);
			from = unit * strew_dtype_size(copy->from);
			unit *= strew_dtype_size(copy->to);
			skew = next(state) % 8 == 0; /* aligned to no element */
		}
		copy->ndim = (uint32_t)(next(state) % (STREW_MAX_DIMS + 1));
		copy->run_bytes = unit * (1 + next(state) % (copy->ndim > 2 ? 40 : 2500));
		for (unsigned k = 0; k < copy->ndim; k++) {
			copy->extent[k] = 2 + next(state) % (copy->ndim > 2 ? 4 : 60);
		}
		copy->src = from * (next(state) % 8) + skew;
		copy->dst = unit * (next(state) % 8) + skew;
		if (make_strides(copy, copy_source_run(copy), from, state, limit - 1024,
			    copy->src_stride) &&
			make_strides(copy, copy->run_bytes, unit, state, limit - 1024,
				copy->dst_stride)) {
			return;
		}
	} while (true);
}

void make_copies(uint64_t seed, uint64_t memory_bytes, struct copies *ret_copies)
{
	uint64_t region = memory_bytes / CHECK_COPIES & ~255ull;
	struct copies copies = {.n = 2 * CHECK_COPIES + 1, .nranges = 3};

	copies.v = calloc(copies.n, sizeof(*copies.v));
	copies.first = calloc(copies.nranges + 1, sizeof(*copies.first));
	must(copies.v && copies.first ? 0 : -ENOMEM, "copies", NULL);
	for (size_t i = 0; i < 2 * CHECK_COPIES; i++) {
		struct copy *copy = &copies.v[i];

		/* Targets are apart from each other, sources may be shared. */
		make_copy(&seed, region, copy);
		copy->dst += i % CHECK_COPIES * region;
		copy->src += next(&seed) % CHECK_COPIES * region;
		copy->src_space = i < CHECK_COPIES ? 0 : 1;
		copy->dst_space = i < CHECK_COPIES ? 1 : 0;
	}
	copies.v[2 * CHECK_COPIES].dst_space = 1;
	copies.v[2 * CHECK_COPIES].src = 4096;
	copies.v[2 * CHECK_COPIES].dst = 512;
	copies.v[2 * CHECK_COPIES].run_bytes = 5u << 20;
	copies.first[1] = CHECK_COPIES;
	copies.first[2] = 2 * CHECK_COPIES;
	copies.first[3] = copies.n;
	copies.cap = copies.n;
	*ret_copies = copies;
}

static void reference(const struct copy *copy, unsigned dim, char *dst, const char *src)
{
	if (dim == copy->ndim && copy->from) {
		size_t from = strew_dtype_size(copy->from), to = strew_dtype_size(copy->to);

		for (uint64_t i = 0; i < copy->run_bytes / to; i++) {
			uint32_t bits = 0;

			memcpy(&bits, src + i * from, from);
			bits = cast_narrow(cast_widen(bits, copy->from), copy->to);
			memcpy(dst + i * to, &bits, to);
		}
		return;
	}
	if (dim == copy->ndim) {
		memcpy(dst, src, copy->run_bytes);
		return;
	}
	for (uint64_t i = 0; i < copy->extent[dim]; i++) {
		reference(copy, dim + 1, dst + i * copy->dst_stride[dim],
			src + i * copy->src_stride[dim]);
	}
}

void run_reference(const struct copies *copies, size_t range, char *slot, char *memory)
{
	for (size_t i = copies->first[range]; i < copies->first[range + 1]; i++) {
		const struct copy *copy = &copies->v[i];

		reference(copy, 0, (copy->dst_space ? memory : slot) + copy->dst,
			(copy->src_space ? memory : slot) + copy->src);
	}
}

int count_fds(void)
{
	DIR *dir = opendir("/proc/self/fd");
	int n = 0;

	while (dir && readdir(dir)) {
		n++;
	}
	if (dir) {
		closedir(dir);
	}
	return n;
}
