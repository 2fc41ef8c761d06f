#include "ipc/page.h"
#include "base/util.h"
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#ifndef F_SEAL_FUTURE_WRITE
#define F_SEAL_FUTURE_WRITE 0x0010 /* Linux 5.1 */
#endif

#define PAGE_BYTES (PAGE_WORDS * sizeof(uint64_t))
#define READ_TRIES 1000 /* some 10 us; a write takes less than one */
#define PAGE_SEALS (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_FUTURE_WRITE | F_SEAL_SEAL)

int page_create(struct page *ret_page, struct error *err)
{
	struct page page = {.fd = memfd_create("strew-page", MFD_CLOEXEC | MFD_ALLOW_SEALING)};
	void *words;
	int rc;

	if (page.fd < 0) {
		return error_set(err, -errno, "memfd_create: %s", strerror(errno));
	}
	if (ftruncate(page.fd, PAGE_BYTES) < 0) {
		goto fail;
	}
	words = mmap(NULL, PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, page.fd, 0);
	if (words == MAP_FAILED) {
		goto fail;
	}
	page.words = words;
	if (fcntl(page.fd, F_ADD_SEALS, PAGE_SEALS) < 0) {
		goto fail;
	}
	*ret_page = page;
	return 0;
fail:
	rc = -errno;
	page_finish(&page);
	return error_set(err, rc, "cannot make a sealed page: %s", strerror(-rc));
}

int page_map(int fd, struct page *ret_page, struct error *err)
{
	int seals = fcntl(fd, F_GET_SEALS);
	struct stat st;
	void *words;

	if (seals < 0) {
		return error_set(err, -EINVAL, "the page's descriptor is no memfd");
	}
	if ((seals & PAGE_SEALS) != PAGE_SEALS) {
		return error_set(err, -EINVAL, "the page lacks seals (0x%x of 0x%x)", seals,
			(unsigned)PAGE_SEALS);
	}
	if (fstat(fd, &st) < 0 || st.st_size != (off_t)PAGE_BYTES) {
		return error_set(err, -EINVAL, "the page has not %zu bytes", PAGE_BYTES);
	}
	words = mmap(NULL, PAGE_BYTES, PROT_READ, MAP_SHARED, fd, 0);
	if (words == MAP_FAILED) {
		return error_set(err, -errno, "cannot map the page: %s", strerror(errno));
	}
	ret_page->words = words;
	ret_page->fd = -1;
	return 0;
}

void page_finish(struct page *page)
{
	if (page->words) {
		munmap((void *)(uintptr_t)page->words, PAGE_BYTES);
		page->words = NULL;
	}
	fd_close(&page->fd);
}

uint64_t page_load(const struct page *page, unsigned word)
{
	return __atomic_load_n(&page->words[word], __ATOMIC_ACQUIRE);
}

void page_store(struct page *page, unsigned word, uint64_t value)
{
	__atomic_store_n(&page->words[word], value, __ATOMIC_RELEASE);
}

/* A sequence lock with one writer. The fences keep the two words between the two sequences. */
void page_tell_group(struct page *page, uint64_t state, uint64_t version)
{
	uint64_t sequence = page->words[WORD_GROUP_SEQUENCE];

	__atomic_store_n(&page->words[WORD_GROUP_SEQUENCE], sequence + 1, __ATOMIC_RELAXED);
	__atomic_thread_fence(__ATOMIC_RELEASE);
	__atomic_store_n(&page->words[WORD_GROUP_STATE], state, __ATOMIC_RELAXED);
	__atomic_store_n(&page->words[WORD_GROUP_VERSION], version, __ATOMIC_RELAXED);
	__atomic_store_n(&page->words[WORD_GROUP_SEQUENCE], sequence + 2, __ATOMIC_RELEASE);
}

int page_read_group(const struct page *page, uint64_t *ret_state, uint64_t *ret_version)
{
	for (int i = 0; i < READ_TRIES; i++) {
		uint64_t before = page_load(page, WORD_GROUP_SEQUENCE), state, version;

		state = __atomic_load_n(&page->words[WORD_GROUP_STATE], __ATOMIC_RELAXED);
		version = __atomic_load_n(&page->words[WORD_GROUP_VERSION], __ATOMIC_RELAXED);
		__atomic_thread_fence(__ATOMIC_ACQUIRE);
		if (!(before & 1) && before == __atomic_load_n(&page->words[WORD_GROUP_SEQUENCE],
						       __ATOMIC_RELAXED)) {
			*ret_state = state;
			*ret_version = version;
			return 0;
		}
	}
	return -EAGAIN;
}
