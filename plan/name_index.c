#include "plan/name_index.h"
#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#define FIRST_ENTRIES 64u

struct entry {
	const char *name; /* NULL: free */
	uint32_t hash, number;
};

struct name_index {
	struct entry *entries;
	size_t n, size; /* size is a power of two, and less than three quarters of it are taken */
};

struct name_index *name_index_create(void)
{
	struct name_index *index = malloc(sizeof(*index));

	if (!index) {
		return NULL;
	}
	index->n = 0;
	index->size = FIRST_ENTRIES;
	index->entries = calloc(index->size, sizeof(*index->entries));
	if (!index->entries) {
		free(index);
		return NULL;
	}
	return index;
}

void name_index_destroy(struct name_index *index)
{
	if (index) {
		free(index->entries);
		free(index);
	}
}

static uint32_t hash_name(const char *name)
{
	return (uint32_t)XXH3_64bits(name, strlen(name));
}

int64_t name_index_find(const struct name_index *index, const char *name)
{
	uint32_t hash = hash_name(name);
	size_t i;

	if (!index) {
		return -1;
	}
	for (i = hash & (index->size - 1); index->entries[i].name;
		i = (i + 1) & (index->size - 1)) {
		const struct entry *entry = &index->entries[i];

		if (entry->hash == hash && !strcmp(entry->name, name)) {
			return entry->number;
		}
	}
	return -1;
}

static void place(struct entry *entries, size_t size, struct entry entry)
{
	size_t i = entry.hash & (size - 1);

	while (entries[i].name) {
		i = (i + 1) & (size - 1);
	}
	entries[i] = entry;
}

static int grow(struct name_index *index)
{
	size_t size = index->size * 2;
	struct entry *entries = calloc(size, sizeof(*entries));

	if (!entries) {
		return -ENOMEM;
	}
	for (size_t i = 0; i < index->size; i++) {
		if (index->entries[i].name) {
			place(entries, size, index->entries[i]);
		}
	}
	free(index->entries);
	index->entries = entries;
	index->size = size;
	return 0;
}

int name_index_add(struct name_index *index, const char *name, uint32_t number)
{
	struct entry entry = {.name = name, .hash = hash_name(name), .number = number};

	if ((index->n + 1) * 4 > index->size * 3) {
		int r = grow(index);

		if (r < 0) {
			return r;
		}
	}
	place(index->entries, index->size, entry);
	index->n++;
	return 0;
}
