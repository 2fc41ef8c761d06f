/*
 * An arena: strings that live exactly as long as the layout or manifest that
 * names things with them. It only grows; nothing in it is freed alone.
 */
#ifndef PLAN_ARENA_H
#define PLAN_ARENA_H

struct arena;

/* NULL without memory. The caller destroys it. */
struct arena *arena_create(void);
void arena_destroy(struct arena *arena);

/* A copy of `text` that lives as long as the arena, or NULL without memory. */
const char *arena_string(struct arena *arena, const char *text);

#endif
