#include "fuzz/fuzz.h"
#include "base/limits.h"
#include "base/util.h"
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#define FDS_LOOKED_AT 96

uint8_t input_byte(struct input *input)
{
	if (input->left == 0) {
		return 0;
	}
	input->left--;
	return *input->at++;
}

uint32_t input_below(struct input *input, uint32_t limit)
{
	return input_byte(input) % limit;
}

static uint64_t little_endian(struct input *input, unsigned n)
{
	uint64_t value = 0;

	for (unsigned i = 0; i < n; i++) {
		value |= (uint64_t)input_byte(input) << 8 * i;
	}
	return value;
}

uint16_t input_u16(struct input *input)
{
	return (uint16_t)little_endian(input, 2);
}

uint64_t input_u64(struct input *input)
{
	return little_endian(input, 8);
}

const uint8_t *input_bytes(struct input *input, size_t max, size_t *ret_n)
{
	size_t n = max > UINT8_MAX ? input_u16(input) : input_byte(input);
	const uint8_t *bytes = input->at;

	n = MIN(n, MIN(max, input->left));
	input->at += n;
	input->left -= n;
	*ret_n = n;
	return bytes;
}

uint64_t input_edge(uint8_t which)
{
	static const uint64_t edges[] = {0, 1, 0x7f, 0x80, 0xff, 0x100, 0x1000, 0x7fff, 0xffff,
		0x10000, 0x20000, LIMIT_TENSORS, LIMIT_PIECES, LIMIT_PIECES + 1, LIMIT_PARTS_BYTES,
		LIMIT_UPDATE_MAX_MS, LIMIT_UPDATE_MAX_MS + 1, INT32_MAX, 1ull << 31, UINT32_MAX,
		1ull << 32, 1ull << 33, 1ull << 40, INT64_MAX - 1, INT64_MAX, 1ull << 63,
		UINT64_MAX - 4096, UINT64_MAX - 255, UINT64_MAX - 1, UINT64_MAX};

	return edges[which % ARRAY_LEN(edges)];
}

void fuzz_claim(bool holds, const char *what, const char *file, int line)
{
	if (!holds) {
		fprintf(stderr, "%s:%d: it does not hold: %s\n", file, line, what);
		abort();
	}
}

unsigned fuzz_open_fds(void)
{
	unsigned n = 0;

	for (int fd = 0; fd < FDS_LOOKED_AT; fd++) {
		n += fcntl(fd, F_GETFD) >= 0;
	}
	return n;
}

static long mappings;

long fuzz_mappings(void)
{
	return mappings;
}

/* The linker gives all of strew's own calls to these. */
void *__real_mmap(void *at, size_t len, int protection, int flags, int fd, off_t offset);
int __real_munmap(void *at, size_t len);
void *__wrap_mmap(void *at, size_t len, int protection, int flags, int fd, off_t offset);
int __wrap_munmap(void *at, size_t len);

void *__wrap_mmap(void *at, size_t len, int protection, int flags, int fd, off_t offset)
{
	void *mapped = __real_mmap(at, len, protection, flags, fd, offset);

	mappings += mapped != MAP_FAILED;
	return mapped;
}

int __wrap_munmap(void *at, size_t len)
{
	int rc = __real_munmap(at, len);

	mappings -= rc == 0;
	return rc;
}
