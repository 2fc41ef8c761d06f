/* Small things that every room needs: array length, alignment, checked sizes, owned fds. */
#ifndef BASE_UTIL_H
#define BASE_UTIL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define ARRAY_LEN(a) (sizeof(a) / sizeof((a)[0]))
#define MIN(a, b) ((a) < (b) ? (a) : (b))
#define MAX(a, b) ((a) > (b) ? (a) : (b))

static inline uint64_t align_up(uint64_t value, uint64_t align)
{
	return (value + align - 1) / align * align;
}

/* True on overflow; *ret_value is written in either case (see __builtin_add_overflow). */
#define add_overflows(a, b, ret_value) __builtin_add_overflow((a), (b), (ret_value))
#define mul_overflows(a, b, ret_value) __builtin_mul_overflow((a), (b), (ret_value))

/* Closes *fd if it is open and sets it to -1. Preserves errno. */
void fd_close(int *fd);

/* Moves the descriptor out of *fd. */
static inline int fd_take(int *fd)
{
	int taken = *fd;

	*fd = -1;
	return taken;
}

/*
 * Makes room for `need` elements of `size` bytes in *array (capacity *cap),
 * doubling. Returns 0 or -ENOMEM; the array is untouched on failure.
 */
int array_grow(void **array, size_t *cap, size_t need, size_t size);

/*
 * Index of the first of n items whose key is above `key`, n if none is. The items are `size` bytes
 * each, and sorted by their key, a uint64_t that lies key_at bytes into each.
 */
size_t upper_bound(const void *items, size_t n, size_t size, size_t key_at, uint64_t key);

/* Copies a NUL-terminated string; false (and a truncated copy) if it did not fit. */
bool string_copy(char *dst, size_t dst_bytes, const char *src);

/* Fills buf with random bytes from the kernel. Returns 0 or -errno. */
int random_bytes(void *buf, size_t len_bytes);

/* "14.2 GiB" into buf, which is returned. */
const char *format_bytes(char *buf, size_t buf_bytes, uint64_t bytes);

/* "256M", "64KiB", "1073741824" to bytes. Returns 0, or -EINVAL or -ERANGE. */
int parse_bytes(const char *text, uint64_t *ret_bytes);

/* A whole decimal number in [min, max]. Returns 0, or -EINVAL or -ERANGE. */
int parse_u64(const char *text, uint64_t min, uint64_t max, uint64_t *ret_value);

#endif
