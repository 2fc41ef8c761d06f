/*
 * Explores every order of events, breadth first, so that the first violation found is one of
 * the shortest. A state is seen once: 64 bits of its hash are kept, and how it was reached.
 */
#include "tests/explore/explore.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <xxhash.h>

struct config config;

struct reached {
	uint32_t parent;
	struct act act;
};

struct explorer {
	uint64_t *seen; /* open addressing; 0 is none */
	size_t nseen, room;
	struct reached *reached;
	struct world *now, *next;
	uint32_t *now_ids, *next_ids;
	size_t nnow, nnext, now_room, next_room;
};

static void *grown(void *old, size_t n, size_t size)
{
	void *ptr = realloc(old, n * size);

	if (!ptr) {
		fprintf(stderr, "explore: out of memory\n");
		exit(1);
	}
	return ptr;
}

static void grow_seen(struct explorer *explorer)
{
	size_t room = explorer->room ? explorer->room * 2 : 1 << 16;
	uint64_t *seen = calloc(room, sizeof(*seen));

	if (!seen) {
		fprintf(stderr, "explore: out of memory\n");
		exit(1);
	}
	for (size_t i = 0; i < explorer->room; i++) {
		size_t at = explorer->seen[i] & (room - 1);

		while (explorer->seen[i] && seen[at]) {
			at = (at + 1) & (room - 1);
		}
		if (explorer->seen[i]) {
			seen[at] = explorer->seen[i];
		}
	}
	free(explorer->seen);
	explorer->seen = seen;
	explorer->room = room;
	explorer->reached = grown(explorer->reached, room / 2 + 1, sizeof(*explorer->reached));
}

/* False if it was seen before. */
static bool see(struct explorer *explorer, const struct world *world)
{
	uint64_t hash = XXH3_64bits(world, sizeof(*world));
	size_t at;

	hash += hash == 0;
	if (explorer->nseen >= explorer->room / 2) {
		grow_seen(explorer);
	}
	at = hash & (explorer->room - 1);
	while (explorer->seen[at]) {
		if (explorer->seen[at] == hash) {
			return false;
		}
		at = (at + 1) & (explorer->room - 1);
	}
	explorer->seen[at] = hash;
	return true;
}

static void keep(
	struct explorer *explorer, const struct world *world, uint32_t parent, struct act act)
{
	if (explorer->nnext == explorer->next_room) {
		explorer->next_room = explorer->next_room ? explorer->next_room * 2 : 1024;
		explorer->next =
			grown(explorer->next, explorer->next_room, sizeof(*explorer->next));
		explorer->next_ids =
			grown(explorer->next_ids, explorer->next_room, sizeof(uint32_t));
	}
	explorer->next[explorer->nnext] = *world;
	explorer->next_ids[explorer->nnext++] = (uint32_t)explorer->nseen;
	explorer->reached[explorer->nseen++] = (struct reached){parent, act};
}

static void swap_levels(struct explorer *explorer)
{
	struct world *worlds = explorer->now;
	uint32_t *ids = explorer->now_ids;
	size_t room = explorer->now_room;

	explorer->now = explorer->next;
	explorer->now_ids = explorer->next_ids;
	explorer->nnow = explorer->nnext;
	explorer->now_room = explorer->next_room;
	explorer->next = worlds;
	explorer->next_ids = ids;
	explorer->next_room = room;
	explorer->nnext = 0;
}

/* The acts from the start to there, and then `last`; told while they are done again. */
static void tell_trace(const struct explorer *explorer, uint32_t id, const struct act *last)
{
	struct act acts[1024];
	struct world world;
	char text[160], state[400];
	unsigned n = 0;

	if (last) {
		acts[n++] = *last;
	}
	for (; id != 0 && n < 1024; id = explorer->reached[id].parent) {
		acts[n++] = explorer->reached[id].act;
	}
	world_init(&world);
	live_load(&world);
	world_say(&world, state, sizeof(state));
	printf("    0. all stand%40s %s\n", "", state);
	for (unsigned i = 1; n > 0; i++) {
		act_say(acts[--n], &world, text, sizeof(text));
		world_act(&world, acts[n], false);
		world_say(&world, state, sizeof(state));
		printf("  %3u. %-50s %s\n", i, text, state);
	}
}

static double seconds(void)
{
	struct timespec at;

	clock_gettime(CLOCK_MONOTONIC, &at);
	return (double)at.tv_sec + (double)at.tv_nsec / 1e9;
}

static bool is_end(const struct act *acts, unsigned n)
{
	for (unsigned i = 0; i < n; i++) {
		if (acts[i].kind < ACT_WORKER_DIES && acts[i].kind != ACT_PUBLISH) {
			return false;
		}
	}
	return true;
}

/* All that may follow one state. NULL: no violation. */
static const char *expand(struct explorer *explorer, size_t i, struct exploration *ret)
{
	struct act acts[ACTS];
	unsigned n = world_acts(&explorer->now[i], acts);
	const char *wrong;

	ret->transitions += n;
	if (is_end(acts, n)) {
		ret->ends++;
		live_load(&explorer->now[i]);
		wrong = world_check_end(&explorer->now[i]);
		if (wrong) {
			if (ret->loud) {
				printf("VIOLATION: %s\n", wrong);
				tell_trace(explorer, explorer->now_ids[i], NULL);
			}
			return wrong;
		}
	}
	for (unsigned k = 0; k < n; k++) {
		struct world next = explorer->now[i];

		wrong = world_act(&next, acts[k], false);
		if (!wrong && !see(explorer, &next)) {
			continue;
		}
		wrong = wrong ? wrong : world_check(&next);
		if (wrong) {
			if (ret->loud) {
				printf("VIOLATION: %s\n", wrong);
				tell_trace(explorer, explorer->now_ids[i], &acts[k]);
			}
			return wrong;
		}
		keep(explorer, &next, explorer->now_ids[i], acts[k]);
	}
	return NULL;
}

void explore(size_t most_states, bool loud, struct exploration *ret)
{
	struct explorer explorer = {0};
	double start = seconds();
	struct world world;

	memset(ret, 0, sizeof(*ret));
	ret->loud = loud;
	world_init(&world);
	see(&explorer, &world);
	keep(&explorer, &world, 0, (struct act){0});
	while (explorer.nnext && !ret->wrong) {
		swap_levels(&explorer);
		ret->depth++;
		for (size_t i = 0; i < explorer.nnow && !ret->wrong; i++) {
			ret->wrong = expand(&explorer, i, ret);
			if (explorer.nseen > most_states) {
				ret->cut = true;
				explorer.nnow = explorer.nnext = 0;
			}
		}
	}
	ret->states = explorer.nseen;
	ret->seconds = seconds() - start;
	free(explorer.seen);
	free(explorer.reached);
	free(explorer.now);
	free(explorer.next);
	free(explorer.now_ids);
	free(explorer.next_ids);
}

/* Which byte of the world is not as it was, and in which act. */
static void tell_difference(const struct world *packed, const struct world *kept, struct act act)
{
	const unsigned char *a = (const unsigned char *)packed, *b = (const unsigned char *)kept;
	char text[160];
	size_t i = 0;

	while (i < sizeof(*packed) && a[i] == b[i]) {
		i++;
	}
	act_say(act, kept, text, sizeof(text));
	printf("byte %zu of the world is %u if it was packed before, else %u, after: %s\n", i, a[i],
		b[i], text);
}

const char *explore_walk(unsigned steps, unsigned seed)
{
	struct world *worlds = grown(NULL, steps + 1, sizeof(*worlds));
	struct act *taken = grown(NULL, steps, sizeof(*taken));
	struct act acts[ACTS];
	const char *wrong = NULL;
	struct world kept;
	unsigned done = 0;

	srandom(seed);
	world_init(&worlds[0]);
	for (; done < steps; done++) {
		unsigned n = world_acts(&worlds[done], acts);

		if (n == 0) {
			break;
		}
		taken[done] = acts[(unsigned long)random() % n];
		worlds[done + 1] = worlds[done];
		world_act(&worlds[done + 1], taken[done], false);
	}
	kept = worlds[0];
	live_load(&kept);
	for (unsigned i = 0; i < done && !wrong; i++) {
		world_act(&kept, taken[i], true);
		if (memcmp(&kept, &worlds[i + 1], sizeof(kept)) != 0) {
			tell_difference(&worlds[i + 1], &kept, taken[i]);
			wrong = "a world that was packed and unpacked goes another way";
		}
	}
	free(worlds);
	free(taken);
	return wrong;
}

void world_init(struct world *ret_world)
{
	struct act acts[ACTS];

	memset(ret_world, 0, sizeof(*ret_world));
	for (unsigned n = 0; n < config.nodes; n++) {
		ret_world->node[n].alive = ret_world->node[n].epoch_ranks = 1;
	}
	for (unsigned g = 0; g < config.ngroups; g++) {
		for (unsigned m = 0; m < config.members[g]; m++) {
			ret_world->worker[g][m].stage = W_NEW;
			ret_world->worker[g][m].running = 1;
		}
	}
	while (world_acts(ret_world, acts) > 0) {
		world_act(ret_world, acts[0], false);
	}
	ret_world->updates = (uint8_t)config.updates;
	ret_world->faults = (uint8_t)config.faults;
}
