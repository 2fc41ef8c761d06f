/* Faults that mutate.c can put into the machines, and where each is sought. */
#ifndef EXPLORE_MUTATE_H
#define EXPLORE_MUTATE_H

struct mutation {
	const char *name;
	const char *topology;
	unsigned publish; /* the kind */
	unsigned pull;	  /* set of members of each group */
	unsigned faults;
	unsigned updates; /* 0: one, or as many as the kind needs */
};

extern const struct mutation mutations[]; /* to a NULL */

/* Of mutations that are a word less to a process: seam.c leaves it out. */
#define MUTATION_PUT_UNANSWERED "put-unanswered"

#endif
