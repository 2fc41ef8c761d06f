/* One strewd, or a lead and one that has joined it, for a bench; their sockets lie in a folder of
 * the bench's own, which goes with them. */
#ifndef BENCH_BROKERS_H
#define BENCH_BROKERS_H

#include "bench/bench.h"

struct brokers {
	char folder[64];
	char lead_socket[96], node_socket[96]; /* node: the lead's where there is one broker */
	struct child lead, node;
};

struct brokers_options {
	enum gpu_kind kind;
	bool two;
	const char *lead_device, *node_device; /* NULL: the first that is needed */
	uint64_t slot_bytes, slots;	       /* 0: the default */
	bool pinned_shadows;
};

void brokers_prepare(struct brokers *ret_brokers, bool two); /* names alone */
void brokers_start(struct brokers *brokers, const struct brokers_options *options);
void brokers_stop(struct brokers *brokers); /* fine to repeat */

/* Runs strew, argv[0] replaced by where it is; its output, and the seconds that it took. Ends the
 * program if it fails. */
double brokers_ask(const struct brokers *brokers, char **argv, unsigned timeout_s, char *ret_text,
	size_t text_bytes);

/* How many plans the lead has made so far. */
uint64_t brokers_plans(const struct brokers *brokers);

#endif
