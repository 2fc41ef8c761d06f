/*
 * A lead that is played for one real broker that has joined it. The broker joins again by
 * itself whenever the connection ends.
 */
#ifndef BROKER_LEADER_H
#define BROKER_LEADER_H

#include "broker/peers.h"

#define LEADER_ID 4711u

extern char leader_address[32];
extern uint64_t leader_joiner; /* broker_id of the broker, from its last join */

void leader_start(struct broker *broker); /* its first join is taken, and ended */
void leader_finish(struct broker *broker);
/* Nobody is at its address, which a real lead may take; and it is there again. */
void leader_leaves(void);
void leader_returns(void);

/* The next connection that begins with that type; others were given up by the broker. */
void leader_accept(struct raw *raw, enum message_type type, struct message *ret_message);
void leader_join(struct raw *link); /* waits for the broker to join (again) */
void leader_epoch(struct raw *link, uint64_t number, uint32_t rank, uint32_t ranks);
void leader_epoch_of(
	struct raw *link, uint64_t number, uint32_t rank, uint64_t *brokers, uint32_t ranks);
void leader_data(struct raw *data, uint64_t number);
/* What the TCP carrier says first: epoch, sequence 0, length 0. */
void leader_warm(struct raw *data, uint64_t number);
/* The code of the next epoch_ready of that epoch; those of other epochs are passed over. */
uint32_t leader_ready(struct raw *link, uint64_t number);
/* All of it, with the broker as rank 1; and the same from its join on. */
void leader_makes_epoch(struct raw *link, struct raw *data, uint64_t number);
void leader_stands(struct raw *link, struct raw *data, uint64_t number);

/* A sealed manifest of one rank, whose broker is `root`; its hash. */
uint64_t leader_manifest(struct raw *link, const struct manifest *manifest, uint64_t root);
/* The same of those rows, by a rank at the lead. */
uint64_t leader_rows(struct raw *link, const struct rows *rows);
/* These rows' values of that version, as the only bucket of an update. */
void leader_bucket(struct raw *data, uint64_t epoch, uint64_t sequence, const struct rows *rows,
	uint64_t version);
/* Of that model, whose rank is at the broker of number `root`. */
void leader_begin(struct raw *link, uint64_t epoch, uint64_t update, uint64_t hash, uint32_t root);
void leader_decides(struct raw *link, enum message_type type, uint64_t epoch, uint64_t update);
/* The answer to a step: its code; of its only group the outcome. */
uint32_t leader_groups(
	struct raw *link, enum message_type type, uint64_t update, enum strew_outcome outcome);

#endif
