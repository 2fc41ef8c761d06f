/*
 * The public functions that live in other rooms' archives. A linker takes an object out of an
 * archive only when something refers to it, so this refers to them.
 */
#include <strew/strew.h>

__attribute__((used)) static const void *const exports[] = {
	(const void *)strew_dtype_size,
	(const void *)strew_dtype_name,
};
