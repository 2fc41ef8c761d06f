/* Naming and publishing subsets of what a trainer of peers.h has declared, by bits of its rows. */
#ifndef BROKER_SUBSET_H
#define BROKER_SUBSET_H

#include "broker/peers.h"

/* The names of those rows whose bits are set. */
size_t names_of(const struct rows *rows, size_t n, unsigned bits, const char **ret_names);
uint32_t name_subset(struct trainer *trainer, unsigned bits);
/* The version's values in the subset's rows; what is not published is no version's. */
void write_subset(struct trainer *trainer, uint64_t number, unsigned bits);
/* The same, published; the report must have that outcome and word. */
void publish_subset(struct trainer *trainer, uint32_t subset, unsigned bits, uint64_t base,
	uint64_t number, enum strew_outcome outcome, const char *word,
	struct strew_report *ret_report);

#endif
