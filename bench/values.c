#include "bench/values.h"
#include "base/util.h"
#include "bench/child.h"
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/param.h>
#include <unistd.h>

#define TASK_BYTES (4u << 20)
#define THREADS_MAX 32

/* The finaliser of splitmix64 (Steele, Lea and Flood 2014) over a counter. */
static uint64_t word_at(uint64_t seed, uint32_t tensor, uint64_t word)
{
	uint64_t x = seed + (uint64_t)tensor * 0xd1342543de82ef95ull +
		     (word + 1) * 0x9e3779b97f4a7c15ull;

	x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
	x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
	return x ^ (x >> 31);
}

void values_make(uint64_t seed, uint32_t tensor, uint64_t at, void *dst, size_t len_bytes)
{
	unsigned char *to = dst;
	uint64_t word = at / 8;
	size_t skip = at % 8, done = 0;

	while (done < len_bytes) {
		uint64_t value = word_at(seed, tensor, word++);
		size_t n = MIN(8 - skip, len_bytes - done);

		memcpy(to + done, (unsigned char *)&value + skip, n);
		done += n;
		skip = 0;
	}
}

/* A stretch of a tensor to write, or of rows of a piece to compare. */
struct task {
	uint32_t index;	       /* of the tensor or piece */
	uint64_t first, count; /* bytes, or rows */
};

struct crowd {
	struct memory *memory;
	const struct shapes *shapes;
	unsigned char *const *data;
	uint64_t seed;
	bool compare;
	struct task *tasks;
	size_t ntasks, cap_tasks;
	atomic_size_t next;
	atomic_uint_fast64_t bytes, wrong;
};

static uint64_t row_bytes(const struct shapes *shapes, const struct shape_piece *piece)
{
	return piece->extent[1] * strew_dtype_size(shapes->tensors[piece->tensor].dtype);
}

static void add_task(struct crowd *crowd, struct task task)
{
	if (array_grow(
		    (void **)&crowd->tasks, &crowd->cap_tasks, crowd->ntasks + 1, sizeof(task))) {
		bench_fail(1, "out of memory");
	}
	crowd->tasks[crowd->ntasks++] = task;
}

static void fill_one(struct crowd *crowd, const struct task *task, unsigned char *buffer)
{
	values_make(crowd->seed, task->index, task->first, buffer, task->count);
	memory_write(crowd->memory, crowd->data[task->index] + task->first, buffer, task->count);
}

static void compare_one(
	struct crowd *crowd, const struct task *task, unsigned char *buffer, unsigned char *row)
{
	const struct shape_piece *piece = &crowd->shapes->pieces[task->index];
	const struct shape_tensor *tensor = &crowd->shapes->tensors[piece->tensor];
	uint64_t element = strew_dtype_size(tensor->dtype);
	uint64_t cols = tensor->ndim == 2 ? tensor->shape[1] : 1;
	uint64_t bytes = row_bytes(crowd->shapes, piece), wrong = 0;

	/* Rows lie one after the other in the parameter: shapes.c makes no others. */
	memory_read(crowd->memory, buffer,
		crowd->data[piece->parameter] +
			(piece->offset + task->first * piece->row_stride) * element,
		task->count * bytes);
	for (uint64_t r = 0; r < task->count; r++) {
		uint64_t at = ((piece->start[0] + task->first + r) * cols + piece->start[1]);

		values_make(crowd->seed, piece->tensor, at * element, row, bytes);
		if (memcmp(row, buffer + r * bytes, bytes) == 0) {
			continue;
		}
		for (uint64_t i = 0; i < bytes; i++) {
			wrong += row[i] != buffer[r * bytes + i];
		}
	}
	atomic_fetch_add(&crowd->wrong, wrong);
	atomic_fetch_add(&crowd->bytes, task->count * bytes);
}

static void *work(void *arg)
{
	struct crowd *crowd = arg;
	unsigned char *buffer = memory_buffer(crowd->memory, TASK_BYTES);
	unsigned char *row = bench_need(malloc(TASK_BYTES));
	size_t i;

	while ((i = atomic_fetch_add(&crowd->next, 1)) < crowd->ntasks) {
		if (crowd->compare) {
			compare_one(crowd, &crowd->tasks[i], buffer, row);
		} else {
			fill_one(crowd, &crowd->tasks[i], buffer);
		}
	}
	memory_buffer_free(crowd->memory, buffer);
	free(row);
	return NULL;
}

static void run(struct crowd *crowd)
{
	long cores = sysconf(_SC_NPROCESSORS_ONLN);
	size_t n = (size_t)MIN(MAX(cores, 1), THREADS_MAX);
	pthread_t threads[THREADS_MAX];

	n = MIN(n, crowd->ntasks);
	for (size_t i = 0; i < n; i++) {
		if (pthread_create(&threads[i], NULL, work, crowd)) {
			bench_fail(1, "a thread cannot be made");
		}
	}
	for (size_t i = 0; i < n; i++) {
		pthread_join(threads[i], NULL);
	}
	free(crowd->tasks);
}

void values_fill(struct memory *memory, const struct shapes *shapes, unsigned char *const *data,
	uint64_t seed)
{
	struct crowd crowd = {.memory = memory, .shapes = shapes, .data = data, .seed = seed};

	for (size_t i = 0; i < shapes->ntensors; i++) {
		uint64_t bytes = shape_bytes(&shapes->tensors[i]);

		for (uint64_t at = 0; at < bytes; at += TASK_BYTES) {
			add_task(&crowd,
				(struct task){(uint32_t)i, at, MIN(bytes - at, TASK_BYTES)});
		}
	}
	run(&crowd);
}

uint64_t values_compare(struct memory *memory, const struct shapes *shapes,
	unsigned char *const *data, uint64_t seed, uint64_t *ret_bytes)
{
	struct crowd crowd = {
		.memory = memory, .shapes = shapes, .data = data, .seed = seed, .compare = true};

	for (size_t i = 0; i < shapes->npieces; i++) {
		const struct shape_piece *piece = &shapes->pieces[i];
		uint64_t rows = MAX(TASK_BYTES / row_bytes(shapes, piece), 1);

		for (uint64_t at = 0; at < piece->extent[0]; at += rows) {
			add_task(&crowd,
				(struct task){(uint32_t)i, at, MIN(piece->extent[0] - at, rows)});
		}
	}
	run(&crowd);
	*ret_bytes = atomic_load(&crowd.bytes);
	return atomic_load(&crowd.wrong);
}
