#include "plan/arena.h"
#include "base/util.h"
#include <stdlib.h>
#include <string.h>

#define CHUNK_BYTES (64u << 10)

struct chunk {
	struct chunk *next;
	size_t used, size;
	char bytes[];
};

struct arena {
	struct chunk *chunks; /* the newest first */
};

struct arena *arena_create(void)
{
	return calloc(1, sizeof(struct arena));
}

void arena_destroy(struct arena *arena)
{
	struct chunk *chunk, *next;

	if (!arena) {
		return;
	}
	for (chunk = arena->chunks; chunk; chunk = next) {
		next = chunk->next;
		free(chunk);
	}
	free(arena);
}

const char *arena_string(struct arena *arena, const char *text)
{
	size_t len = strlen(text) + 1;
	struct chunk *chunk = arena->chunks;
	char *copy;

	if (!chunk || chunk->size - chunk->used < len) {
		size_t size = MAX(len, (size_t)CHUNK_BYTES);

		chunk = malloc(sizeof(*chunk) + size);
		if (!chunk) {
			return NULL;
		}
		chunk->next = arena->chunks;
		chunk->used = 0;
		chunk->size = size;
		arena->chunks = chunk;
	}
	copy = chunk->bytes + chunk->used;
	memcpy(copy, text, len);
	chunk->used += len;
	return copy;
}
