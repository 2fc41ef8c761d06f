#include "support/test_main.h"
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

int test_fds_at_start;
static uint64_t state;

int test_count_fds(void)
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

__attribute__((constructor)) static void remember_fds(void)
{
	test_fds_at_start = test_count_fds();
}

int test_finish(int failures, int fds_before)
{
	int fds = test_count_fds();

	if (fds != fds_before) {
		fprintf(stderr, "%d descriptors open at the start, %d at the end\n", fds_before,
			fds);
		return failures + 1;
	}
	return failures;
}

uint64_t test_seed(void)
{
	const char *text = getenv("STREW_SEED");
	uint64_t seed;

	if (text) {
		seed = strtoull(text, NULL, 0);
	} else {
		struct timespec now;

		clock_gettime(CLOCK_REALTIME, &now);
		seed = (uint64_t)now.tv_sec * 1000003u + (uint64_t)now.tv_nsec;
	}
	fprintf(stderr, "STREW_SEED=%llu\n", (unsigned long long)seed);
	state = seed;
	return seed;
}

/* splitmix64 */
uint64_t test_random(void)
{
	uint64_t z;

	if (!state) {
		test_seed();
	}
	z = (state += 0x9e3779b97f4a7c15u);
	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
	z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
	return z ^ (z >> 31);
}

uint64_t test_random_below(uint64_t limit)
{
	return test_random() % limit;
}

void test_random_fill(void *buf, size_t len_bytes)
{
	unsigned char *p = buf;

	while (len_bytes) {
		uint64_t word = test_random();
		size_t n = len_bytes < sizeof(word) ? len_bytes : sizeof(word);

		memcpy(p, &word, n);
		p += n;
		len_bytes -= n;
	}
}
