#include "base/util.h"
#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

void fd_close(int *fd)
{
	int saved = errno;

	if (*fd >= 0) {
		close(*fd);
		*fd = -1;
	}
	errno = saved;
}

int array_grow(void **array, size_t *cap, size_t need, size_t size)
{
	size_t want = *cap ? *cap : 16;
	size_t bytes;
	void *grown;

	if (need <= *cap) {
		return 0;
	}
	while (want < need) {
		if (mul_overflows(want, 2, &want)) {
			return -ENOMEM;
		}
	}
	if (mul_overflows(want, size, &bytes)) {
		return -ENOMEM;
	}
	grown = realloc(*array, bytes);
	if (!grown) {
		return -ENOMEM;
	}
	*array = grown;
	*cap = want;
	return 0;
}

size_t upper_bound(const void *items, size_t n, size_t size, size_t key_at, uint64_t key)
{
	size_t low = 0;
	size_t high = n;

	while (low < high) {
		size_t middle = low + (high - low) / 2;
		uint64_t at;

		memcpy(&at, (const char *)items + middle * size + key_at, sizeof(at));
		if (at <= key) {
			low = middle + 1;
		} else {
			high = middle;
		}
	}
	return low;
}

bool string_copy(char *dst, size_t dst_bytes, const char *src)
{
	int n = snprintf(dst, dst_bytes, "%s", src);

	return n >= 0 && (size_t)n < dst_bytes;
}

int random_bytes(void *buf, size_t len_bytes)
{
	size_t done = 0;

	while (done < len_bytes) {
		ssize_t n = getrandom((char *)buf + done, len_bytes - done, 0);

		if (n < 0) {
			if (errno == EINTR) {
				continue;
			}
			return -errno;
		}
		done += (size_t)n;
	}
	return 0;
}

const char *format_bytes(char *buf, size_t buf_bytes, uint64_t bytes)
{
	static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB"};
	double value = (double)bytes;
	size_t unit = 0;

	while (value >= 1024 && unit + 1 < ARRAY_LEN(units)) {
		value /= 1024;
		unit++;
	}
	snprintf(buf, buf_bytes, unit ? "%.1f %s" : "%.0f %s", value, units[unit]);
	return buf;
}

int parse_u64(const char *text, uint64_t min, uint64_t max, uint64_t *ret_value)
{
	unsigned long long value;
	char *end;

	if (!isdigit((unsigned char)text[0])) {
		return -EINVAL;
	}
	errno = 0;
	value = strtoull(text, &end, 10);
	if (errno) {
		return -ERANGE;
	}
	if (*end) {
		return -EINVAL;
	}
	if (value < min || value > max) {
		return -ERANGE;
	}
	*ret_value = value;
	return 0;
}

int parse_bytes(const char *text, uint64_t *ret_bytes)
{
	static const char suffixes[] = "KMGT";
	unsigned long long value;
	uint64_t factor = 1;
	const char *suffix;
	char *end;

	if (!isdigit((unsigned char)text[0])) {
		return -EINVAL;
	}
	errno = 0;
	value = strtoull(text, &end, 10);
	if (errno) {
		return -ERANGE;
	}
	if (*end) {
		suffix = strchr(suffixes, toupper((unsigned char)*end));
		if (!suffix || !*suffix) {
			return -EINVAL;
		}
		factor <<= 10 * (uint64_t)(suffix - suffixes + 1);
		end++;
		if (strcmp(end, "") != 0 && strcmp(end, "iB") != 0) {
			return -EINVAL;
		}
	}
	return mul_overflows((uint64_t)value, factor, ret_bytes) ? -ERANGE : 0;
}
