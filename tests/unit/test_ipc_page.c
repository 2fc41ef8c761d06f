/* Pages: the writer's words, which the reader sees and can neither write nor cut off. */
#include "ipc/page.h"
#include "support/test_main.h"
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGE_BYTES (PAGE_WORDS * sizeof(uint64_t))

static void test_words(void **state)
{
	struct page ours, theirs;
	struct error err;

	(void)state;
	assert_int_equal(page_create(&ours, &err), 0);
	assert_true(fcntl(ours.fd, F_GETFD) & FD_CLOEXEC);
	assert_int_equal(page_map(ours.fd, &theirs, &err), 0);
	assert_int_equal(theirs.fd, -1);
	for (unsigned i = 0; i < PAGE_WORDS; i++) {
		assert_int_equal(page_load(&theirs, i), 0);
	}
	page_store(&ours, WORD_READY, 1);
	page_store(&ours, PAGE_WORDS - 1, UINT64_MAX);
	assert_int_equal(page_load(&theirs, WORD_READY), 1);
	assert_true(page_load(&theirs, PAGE_WORDS - 1) == UINT64_MAX);
	page_finish(&ours);
	/* The reader's mapping outlives the writer's. */
	assert_int_equal(page_load(&theirs, WORD_READY), 1);
	page_finish(&theirs);
	assert_null(theirs.words);
	page_finish(&theirs);
}

/* What a hostile reader of the descriptor may try. */
static void test_reader_cannot_harm(void **state)
{
	struct page ours;
	struct error err;
	uint64_t word = 7;
	void *mapped;

	(void)state;
	assert_int_equal(page_create(&ours, &err), 0);
	assert_true(mmap(NULL, PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, ours.fd, 0) ==
		    MAP_FAILED);
	assert_int_equal(errno, EPERM);
	mapped = mmap(NULL, PAGE_BYTES, PROT_READ, MAP_SHARED, ours.fd, 0);
	assert_true(mapped != MAP_FAILED);
	assert_int_equal(mprotect(mapped, PAGE_BYTES, PROT_READ | PROT_WRITE), -1);
	munmap(mapped, PAGE_BYTES);
	assert_int_equal(pwrite(ours.fd, &word, sizeof(word), 0), -1);
	assert_int_equal(ftruncate(ours.fd, 0), -1);
	assert_int_equal(ftruncate(ours.fd, 2 * PAGE_BYTES), -1);
	assert_int_equal(
		fallocate(ours.fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, PAGE_BYTES), -1);
	assert_int_equal(fcntl(ours.fd, F_ADD_SEALS, F_SEAL_WRITE), -1);
	/* The writer still writes. */
	page_store(&ours, 3, 9);
	assert_int_equal(page_load(&ours, 3), 9);
	page_finish(&ours);
}

static int sealed_memfd(off_t bytes, int seals)
{
	int fd = memfd_create("test", MFD_CLOEXEC | MFD_ALLOW_SEALING);

	assert_true(fd >= 0);
	assert_int_equal(ftruncate(fd, bytes), 0);
	assert_int_equal(fcntl(fd, F_ADD_SEALS, seals), 0);
	return fd;
}

static void refuse(int fd, const char *text)
{
	struct page page;
	struct error err;

	memset(&page, 0xa5, sizeof(page));
	assert_int_equal(page_map(fd, &page, &err), -EINVAL);
	if (!strstr(err.text, text)) {
		fail_msg("\"%s\" does not say \"%s\"", err.text, text);
	}
	assert_int_equal(page.fd, (int)0xa5a5a5a5);
	close(fd);
}

static void test_wrong_descriptors(void **state)
{
	const int all = F_SEAL_SHRINK | F_SEAL_GROW | 0x10 | F_SEAL_SEAL;
	char path[] = "/tmp/strew-page-XXXXXX";
	int file = mkstemp(path), pipes[2];

	(void)state;
	unlink(path);
	assert_int_equal(ftruncate(file, PAGE_BYTES), 0);
	refuse(file, "");
	assert_int_equal(pipe2(pipes, O_CLOEXEC), 0);
	close(pipes[1]);
	refuse(pipes[0], "no memfd");
	refuse(open("/dev/null", O_RDONLY | O_CLOEXEC), "no memfd");
	refuse(sealed_memfd(PAGE_BYTES, F_SEAL_GROW), "lacks seals");
	for (int seal = 1; seal <= 0x10; seal *= 2) {
		if (all & seal) {
			refuse(sealed_memfd(PAGE_BYTES, all & ~seal), "lacks seals");
		}
	}
	refuse(sealed_memfd(PAGE_BYTES - 1, all), "has not 4096 bytes");
	refuse(sealed_memfd(PAGE_BYTES + 1, all), "has not 4096 bytes");
	refuse(sealed_memfd(0, all), "has not 4096 bytes");
}

/* Another process sees a store without a system call. */
static void test_between_processes(void **state)
{
	struct page ours;
	struct error err;
	int status;
	pid_t pid;

	(void)state;
	assert_int_equal(page_create(&ours, &err), 0);
	pid = fork();
	assert_true(pid >= 0);
	if (pid == 0) {
		struct page theirs;

		if (page_map(ours.fd, &theirs, NULL)) {
			_exit(1);
		}
		for (unsigned i = 0; page_load(&theirs, WORD_PUBLISH) != 5; i++) {
			usleep(100);
			if (i > 50000) {
				_exit(2);
			}
		}
		_exit(0);
	}
	usleep(1000);
	page_store(&ours, WORD_PUBLISH, 5);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
	page_finish(&ours);
}

#define TOLD 200000u
#define MARK 0x5354524557000000u

/* Each pair that a reader gets is one that was told, and no older than the last one. */
static void test_group_is_not_torn(void **state)
{
	struct page ours, theirs;
	struct error err;
	uint64_t seen = 0, reads = 0;
	pid_t writer;
	int status;

	(void)state;
	assert_int_equal(page_create(&ours, &err), 0);
	assert_int_equal(page_map(ours.fd, &theirs, &err), 0);
	writer = fork();
	assert_true(writer >= 0);
	if (writer == 0) {
		for (uint64_t i = 1; i <= TOLD; i++) {
			page_tell_group(&ours, i, MARK - i);
		}
		_exit(0);
	}
	while (seen < TOLD) {
		uint64_t group, version;

		if (page_read_group(&theirs, &group, &version)) {
			continue; /* the writer was put to sleep in the middle */
		}
		assert_true(group >= seen && group <= TOLD);
		assert_true(group == 0 ? version == 0 : version == MARK - group);
		reads += group != seen;
		seen = group;
	}
	assert_true(reads > 0);
	assert_int_equal(waitpid(writer, &status, 0), writer);
	assert_int_equal(status, 0);
	page_finish(&theirs);
	page_finish(&ours);
}

/* A reader does not wait for a writer that died in the middle. */
static void test_group_of_a_dead_writer(void **state)
{
	struct page ours, theirs;
	struct error err;
	uint64_t group = 77, version = 78;

	(void)state;
	assert_int_equal(page_create(&ours, &err), 0);
	assert_int_equal(page_map(ours.fd, &theirs, &err), 0);
	page_tell_group(&ours, 2, 9);
	page_store(&ours, WORD_GROUP_SEQUENCE, 3);
	assert_int_equal(page_read_group(&theirs, &group, &version), -EAGAIN);
	assert_true(group == 77 && version == 78);
	page_store(&ours, WORD_GROUP_SEQUENCE, 4);
	assert_int_equal(page_read_group(&theirs, &group, &version), 0);
	assert_true(group == 2 && version == 9);
	page_finish(&theirs);
	page_finish(&ours);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_words),
		cmocka_unit_test(test_reader_cannot_harm),
		cmocka_unit_test(test_wrong_descriptors),
		cmocka_unit_test(test_between_processes),
		cmocka_unit_test(test_group_is_not_torn),
		cmocka_unit_test(test_group_of_a_dead_writer),
	};

	return TEST_RUN(tests);
}
