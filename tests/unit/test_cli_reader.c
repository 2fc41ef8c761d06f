/*
 * The reader of whole files, on a real file system and on one in memory: every length around
 * what matters, in a destination that is poisoned, and the kernel's answers made worse on the way
 * (--wrap): short reads, refusals, errors, files that change.
 */
#include "base/util.h"
#include "cli/reader_internal.h"
#include "support/test_main.h"
#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define FILES_MAX 8
#define POISON 0xa5

/* How the kernel is made worse; all zero: not. */
static struct {
	unsigned short_bytes; /* direct requests are cut to at most this many */
	unsigned short_by;    /* and these fewer are said to have come */
	bool refuse_direct;   /* -EINVAL for O_DIRECT */
	int error;	      /* of a request, after `good` that go well */
	int good;
	int times; /* so often; 0: from then on */
	bool no_register, no_populate;
	bool slow_plain;	 /* to take O_DIRECT away takes 20 ms */
	void (*meanwhile)(void); /* called once, at the first request */
} worse;

static unsigned calls;

static void meanwhile(void)
{
	if (worse.meanwhile) {
		worse.meanwhile();
		worse.meanwhile = NULL;
	}
}

static bool goes_wrong(int *ret_error)
{
	*ret_error = worse.error;
	if (!worse.error || worse.good-- > 0) {
		return false;
	}
	if (worse.times && --worse.times == 0) {
		worse.error = 0;
	}
	return true;
}

int __real_io_uring_submit_and_wait(struct io_uring *ring, unsigned wait_nr);
int __wrap_io_uring_submit_and_wait(struct io_uring *ring, unsigned wait_nr);
int __wrap_io_uring_submit_and_wait(struct io_uring *ring, unsigned wait_nr)
{
	unsigned mask = ring->sq.ring_entries - 1;
	struct io_uring_cqe *cqe;
	int error;
	unsigned head, seen = *ring->cq.ktail;
	int rc;

	calls++;
	meanwhile();
	for (unsigned i = ring->sq.sqe_head; i != ring->sq.sqe_tail; i++) {
		struct io_uring_sqe *sqe = &ring->sq.sqes[i & mask];

		if (worse.short_bytes && sqe->len > worse.short_bytes) {
			sqe->len = worse.short_bytes;
		}
		if (worse.refuse_direct && (fcntl(sqe->fd, F_GETFL) & O_DIRECT)) {
			sqe->fd = -1; /* answered by -EBADF, see below */
		}
	}
	rc = __real_io_uring_submit_and_wait(ring, wait_nr);
	io_uring_for_each_cqe(ring, head, cqe)
	{
		if ((int)(head - seen) < 0) {
			continue; /* looked at before */
		}
		if (cqe->res == -EBADF) {
			cqe->res = -EINVAL;
		} else if (goes_wrong(&error)) {
			cqe->res = error;
		} else if (worse.short_by && cqe->res > (int)worse.short_by) {
			cqe->res -= (int)worse.short_by;
			worse.short_by = 0; /* once is enough: it ends O_DIRECT */
		}
	}
	return rc;
}

int __real_io_uring_register_buffers_update_tag(struct io_uring *ring, unsigned off,
	const struct iovec *iovecs, const __u64 *tags, unsigned nr);
int __wrap_io_uring_register_buffers_update_tag(struct io_uring *ring, unsigned off,
	const struct iovec *iovecs, const __u64 *tags, unsigned nr);
int __wrap_io_uring_register_buffers_update_tag(struct io_uring *ring, unsigned off,
	const struct iovec *iovecs, const __u64 *tags, unsigned nr)
{
	return worse.no_register
		       ? -ENOMEM
		       : __real_io_uring_register_buffers_update_tag(ring, off, iovecs, tags, nr);
}

ssize_t __real_pread(int fd, void *buf, size_t len_bytes, off_t offset);
ssize_t __wrap_pread(int fd, void *buf, size_t len_bytes, off_t offset);
ssize_t __wrap_pread(int fd, void *buf, size_t len_bytes, off_t offset)
{
	static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
	ssize_t n;
	bool wrong;
	int error;

	pthread_mutex_lock(&lock);
	calls++;
	meanwhile();
	wrong = goes_wrong(&error);
	pthread_mutex_unlock(&lock);
	if (wrong) {
		errno = -error;
		return -1;
	}
	if (worse.refuse_direct && (fcntl(fd, F_GETFL) & O_DIRECT)) {
		errno = EINVAL;
		return -1;
	}
	if (worse.short_bytes && len_bytes > worse.short_bytes) {
		len_bytes = worse.short_bytes;
	}
	n = __real_pread(fd, buf, len_bytes, offset);
	return n > (ssize_t)worse.short_by ? n - (ssize_t)worse.short_by : n;
}

int __real_fcntl(int fd, int command, int flags);
int __wrap_fcntl(int fd, int command, int flags);
int __wrap_fcntl(int fd, int command, int flags)
{
	if (worse.slow_plain && command == F_SETFL && !(flags & O_DIRECT)) {
		usleep(20000);
	}
	return __real_fcntl(fd, command, flags);
}

int __real_madvise(void *at, size_t len_bytes, int advice);
int __wrap_madvise(void *at, size_t len_bytes, int advice);
int __wrap_madvise(void *at, size_t len_bytes, int advice)
{
	if (worse.no_populate && advice == 23) {
		errno = EINVAL;
		return -1;
	}
	return __real_madvise(at, len_bytes, advice);
}

struct scene {
	struct reader_file files[FILES_MAX];
	unsigned char *truth[FILES_MAX];
	char paths[FILES_MAX][64];
	size_t n;
	unsigned char *memory;
	uint64_t memory_bytes;
	uint64_t told; /* by progress */
};

/* Directories to read from: a real file system where the tests run, and one in memory. */
static const char *const places[] = {".", "/dev/shm"};

static void add_file(struct scene *scene, const char *place, uint64_t bytes)
{
	struct reader_file *file = &scene->files[scene->n];
	char *path = scene->paths[scene->n];
	unsigned char *truth = malloc(bytes + 1);

	snprintf(path, sizeof(scene->paths[0]), "%s/strew-reader-XXXXXX", place);
	file->fd = mkostemp(path, O_CLOEXEC);
	assert_true(file->fd >= 0);
	test_random_fill(truth, bytes);
	assert_int_equal(write(file->fd, truth, bytes), bytes);
	file->path = path;
	file->bytes = bytes;
	scene->truth[scene->n++] = truth;
	scene->memory_bytes += align_up(bytes, READER_ALIGN);
}

static void add_memory(struct scene *scene)
{
	uint64_t at = 0;
	int fd = memfd_create("reader", MFD_CLOEXEC);

	scene->memory_bytes = MAX(scene->memory_bytes, READER_ALIGN);
	assert_int_equal(ftruncate(fd, (off_t)scene->memory_bytes), 0);
	scene->memory = mmap(NULL, scene->memory_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	assert_true(scene->memory != MAP_FAILED);
	close(fd);
	memset(scene->memory, worse.no_populate ? 0 : POISON, scene->memory_bytes);
	for (size_t i = 0; i < scene->n; i++) {
		scene->files[i].to = scene->memory + at;
		at += align_up(scene->files[i].bytes, READER_ALIGN);
	}
}

static void finish(struct scene *scene)
{
	for (size_t i = 0; i < scene->n; i++) {
		close(scene->files[i].fd);
		unlink(scene->paths[i]);
		free(scene->truth[i]);
	}
	munmap(scene->memory, scene->memory_bytes);
	memset(scene, 0, sizeof(*scene));
	memset(&worse, 0, sizeof(worse));
}

static void told(void *arg, uint64_t done)
{
	struct scene *scene = arg;

	if (done <= scene->told) {
		abort();
	}
	scene->told = done;
}

static int read_all(
	struct scene *scene, bool no_uring, struct reader_result *result, struct error *err)
{
	struct reader_options options = {.memory = scene->memory,
		.memory_bytes = scene->memory_bytes,
		.no_uring = no_uring,
		.progress = told,
		.arg = scene};
	struct reader *reader;

	calls = 0;
	assert_int_equal(reader_start(&options, scene->files, scene->n, &reader, err), 0);
	return reader_finish(reader, result, err);
}

static void check_bytes(struct scene *scene)
{
	uint64_t all = 0;

	for (size_t i = 0; i < scene->n; i++) {
		assert_memory_equal(scene->files[i].to, scene->truth[i], scene->files[i].bytes);
		all += scene->files[i].bytes;
	}
	assert_int_equal(scene->told, all);
}

/* Reads files of these lengths from a place; the bytes must be right. */
static void read_lengths(const char *place, const uint64_t *lengths, size_t n, bool no_uring,
	struct reader_result *result)
{
	struct scene scene = {0};
	struct error err = {0};

	for (size_t i = 0; i < n; i++) {
		add_file(&scene, place, lengths[i]);
	}
	add_memory(&scene);
	assert_int_equal(read_all(&scene, no_uring, result, &err), 0);
	check_bytes(&scene);
	finish(&scene);
}

static const uint64_t some_lengths[] = {3 * READER_BLOCK_BYTES + 4097, 5, READER_BLOCK_BYTES};

static void reads_every_length(void **state)
{
	static const uint64_t around[] = {1, 511, 512, 513, 4095, 4096, 4097, 65536 + 13,
		READER_BLOCK_BYTES - 1, READER_BLOCK_BYTES, READER_BLOCK_BYTES + 1,
		READER_BLOCK_BYTES + 4096, READER_PREAD_BYTES + 7,
		READER_WINDOW_BYTES + READER_BLOCK_BYTES + 333};
	struct reader_result result;

	(void)state;
	for (size_t place = 0; place < ARRAY_LEN(places); place++) {
		for (int no_uring = 0; no_uring < 2; no_uring++) {
			for (size_t i = 0; i < ARRAY_LEN(around); i++) {
				uint64_t lengths[] = {around[i], 0, test_random_below(300000) + 1,
					around[ARRAY_LEN(around) - 2 - i % 4]};

				read_lengths(places[place], lengths, ARRAY_LEN(lengths), no_uring,
					&result);
			}
		}
	}
}

static void says_how(void **state)
{
	struct reader_result result;

	(void)state;
	read_lengths(places[0], some_lengths, 3, false, &result);
	if (result.direct_bytes) {
		assert_string_equal(result.how, "direct");
		assert_int_equal(result.direct_bytes, result.bytes);
		read_lengths(places[0], some_lengths, 3, true, &result);
		assert_string_equal(result.how, "direct: no io_uring, as was asked");
		worse.no_register = true;
		read_lengths(places[0], some_lengths, 3, false, &result);
		assert_non_null(
			strstr(result.how, "direct: the buffers are not registered: Canno"));
	} else {
		print_message("no O_DIRECT here: %s\n", result.how);
	}
	read_lengths(places[1], some_lengths, 3, false, &result);
	assert_int_equal(result.direct_bytes, 0);
	assert_non_null(strstr(result.how, "buffered: "));
	assert_non_null(strstr(result.how, "its file system is in memory"));
}

/* Many windows: more than can be registered at a time. */
static void reads_many_windows(void **state)
{
	static const uint64_t lengths[] = {
		2 * READER_WINDOW_BYTES + 12345, 4 * READER_WINDOW_BYTES + 1, 777777};
	struct reader_result result;

	(void)state;
	read_lengths(places[0], lengths, ARRAY_LEN(lengths), false, &result);
}

static void pages_of_older_kernels(void **state)
{
	struct reader_result result;

	(void)state;
	worse.no_populate = true;
	read_lengths(places[0], some_lengths, 3, false, &result);
}

static void short_reads(void **state)
{
	struct reader_result result;

	(void)state;
	for (int no_uring = 0; no_uring < 2; no_uring++) {
		worse.short_bytes = 12288;
		read_lengths(places[0], some_lengths, 3, no_uring, &result);
		assert_true(calls > 10);
		worse.short_bytes = 65536; /* and at an odd place: O_DIRECT cannot go on there */
		worse.short_by = 17;
		read_lengths(places[0], some_lengths, 3, no_uring, &result);
		if (result.direct_bytes) {
			assert_non_null(strstr(result.how, "partly direct: "));
		}
	}
}

/* Other threads go on meanwhile, and must not take the file for plain too early. */
static void short_reads_of_many_threads(void **state)
{
	static const uint64_t lengths[] = {8 * READER_PREAD_BYTES + 4097};
	struct reader_result result;

	(void)state;
	worse.short_bytes = 65536;
	worse.short_by = 17;
	worse.slow_plain = true;
	read_lengths(places[0], lengths, ARRAY_LEN(lengths), true, &result);
	if (result.direct_bytes) {
		assert_non_null(strstr(result.how, "partly direct: "));
	}
}

static void direct_is_refused_at_the_read(void **state)
{
	struct reader_result result;

	(void)state;
	for (int no_uring = 0; no_uring < 2; no_uring++) {
		worse.refuse_direct = true;
		read_lengths(places[0], some_lengths, 3, no_uring, &result);
		assert_int_equal(result.direct_bytes, 0);
		assert_memory_equal(result.how, "buffered: ", 10);
	}
}

static struct scene *changing;

/* These run in the reader's thread, where cmocka's assertions may not be used. */
static void shrink(void)
{
	if (truncate(changing->paths[0], 1000) < 0) {
		abort();
	}
}

static void rewrite(void)
{
	int fd = open(changing->paths[1], O_WRONLY | O_CLOEXEC);

	if (pwrite(fd, "x", 1, 0) != 1 || futimens(fd, (struct timespec[2]){{1, 0}, {1, 0}}) < 0) {
		abort();
	}
	close(fd);
}

/* Reads some files of which something goes wrong: the code and the sentence. */
static void fails(bool no_uring, void (*change)(void), int code, const char *says, size_t file)
{
	struct reader_result result;
	struct scene scene = {0};
	struct error err = {0};

	for (size_t i = 0; i < 3; i++) {
		add_file(&scene, places[0], some_lengths[i]);
	}
	add_memory(&scene);
	changing = &scene;
	worse.meanwhile = change;
	assert_int_equal(read_all(&scene, no_uring, &result, &err), code);
	assert_non_null(strstr(err.text, says));
	if (file < scene.n) {
		assert_non_null(strstr(err.text, scene.paths[file]));
	}
	finish(&scene);
}

static void failures(void **state)
{
	(void)state;
	for (int no_uring = 0; no_uring < 2; no_uring++) {
		fails(no_uring, shrink, -EINVAL, "became shorter while it was read", 0);
		fails(no_uring, rewrite, -EINVAL, "was written to while it was read", 1);
		worse.error = -EIO;
		fails(no_uring, NULL, -EIO, "reading failed: Input/output error", SIZE_MAX);
		worse.error = -EIO;
		worse.good = 3;
		fails(no_uring, NULL, -EIO, "reading failed: Input/output error", SIZE_MAX);
	}
}

/* EINTR and EAGAIN are asked again: nothing is lost. */
static void interrupted(void **state)
{
	struct scene scene = {0};
	struct reader_result result;
	struct error err = {0};

	(void)state;
	for (int no_uring = 0; no_uring < 2; no_uring++) {
		add_file(&scene, places[0], some_lengths[0]);
		add_memory(&scene);
		worse.error = no_uring ? -EINTR : -EAGAIN;
		worse.good = 1;
		worse.times = 3;
		assert_int_equal(read_all(&scene, no_uring, &result, &err), 0);
		check_bytes(&scene);
		finish(&scene);
	}
}

static void canceled(void **state)
{
	struct scene scene = {0};
	struct reader_options options;
	struct reader_result result;
	struct error err = {0};
	struct reader *reader;

	(void)state;
	add_file(&scene, places[0], 64 << 20);
	add_memory(&scene);
	options =
		(struct reader_options){.memory = scene.memory, .memory_bytes = scene.memory_bytes};
	assert_int_equal(reader_start(&options, scene.files, 1, &reader, &err), 0);
	reader_cancel(reader);
	assert_int_equal(reader_finish(reader, &result, &err), -ECANCELED);
	assert_int_equal(reader_finish(NULL, &result, &err), 0);
	finish(&scene);
}

static void forbid_uring(void)
{
	struct sock_filter filter[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_io_uring_setup, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog program = {ARRAY_LEN(filter), filter};

	assert_int_equal(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
	assert_int_equal(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program), 0);
}

static void where_uring_is_forbidden(void **state)
{
	struct reader_result result;
	struct io_uring ring;
	int status = 0;
	pid_t pid;

	(void)state;
	pid = fork();
	assert_true(pid >= 0);
	if (pid == 0) {
		forbid_uring();
		if (io_uring_queue_init(1, &ring, 0) != -EPERM) {
			_exit(2);
		}
		read_lengths(places[0], some_lengths, 3, false, &result);
		if (result.direct_bytes &&
			strcmp(result.how, "direct: io_uring cannot be had: Operation not "
					   "permitted") != 0) {
			_exit(3);
		}
		_exit(0);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(reads_every_length),
		cmocka_unit_test(says_how),
		cmocka_unit_test(reads_many_windows),
		cmocka_unit_test(pages_of_older_kernels),
		cmocka_unit_test(short_reads),
		cmocka_unit_test(short_reads_of_many_threads),
		cmocka_unit_test(direct_is_refused_at_the_read),
		cmocka_unit_test(failures),
		cmocka_unit_test(interrupted),
		cmocka_unit_test(canceled),
		cmocka_unit_test(where_uring_is_forbidden),
	};

	return TEST_RUN(tests);
}
