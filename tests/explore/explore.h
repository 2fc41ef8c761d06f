/* Breadth-first exploration of the worlds of `config`. */
#ifndef EXPLORE_EXPLORE_H
#define EXPLORE_EXPLORE_H

#include "tests/explore/world.h"

struct exploration {
	const char *wrong; /* the violation, NULL: none */
	size_t states, transitions, ends;
	unsigned depth;
	bool cut; /* there is more than was allowed */
	bool loud;
	double seconds;
};

/* Ends at the first violation, which is told on stdout if `loud`, or after so many states. */
void explore(size_t most_states, bool loud, struct exploration *ret);

/* A random walk that is done twice, with and without packing. NULL: both are the same. */
const char *explore_walk(unsigned steps, unsigned seed);

#endif
