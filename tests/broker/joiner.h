/*
 * A broker that is played at the control port of a real lead: it joins, takes its place in an
 * epoch, answers by hand, and declares trainer ranks that need no process.
 */
#ifndef BROKER_JOINER_H
#define BROKER_JOINER_H

#include "broker/peers.h"

struct joiner {
	struct raw raw;
	struct msg_join join;
	struct msg_epoch epoch; /* its brokers are here: */
	uint64_t brokers[LIMIT_BROKERS];
	size_t nbrokers;
	uint64_t *hashes; /* of the buckets, said with moved and prepared; borrowed */
	size_t nhashes;
};

struct msg_join joiner_join(void); /* a good one; another broker_id every time */
void joiner_send(struct joiner *joiner, const char *address, const struct msg_join *join);
void joiner_joins(struct joiner *joiner, const char *address, const struct msg_join *join);
/* The next message that is no part of a manifest and no manifest. */
void joiner_hears(struct joiner *joiner, struct message *ret_message);
void joiner_ends(struct joiner *joiner); /* the lead drops it, whatever it has said before */
void joiner_expect(struct joiner *joiner, enum message_type type, struct message *ret_message);
void joiner_epoch(struct joiner *joiner); /* takes the next one */
void joiner_data(
	struct raw *data, const char *address, const struct msg_epoch *epoch, uint8_t token_xor);
/* What the carrier says first: epoch, sequence 0, length 0. */
void joiner_warms(const struct joiner *joiner, struct raw *data);
void joiner_ready(struct joiner *joiner, uint64_t epoch);
/* All of it, up to where the lead's epoch can stand. */
void joiner_stands(struct joiner *joiner, struct raw *data, const char *address);
void joiner_answer(struct joiner *joiner, enum message_type type, uint64_t epoch, uint64_t update,
	struct group_outcome *groups, size_t ngroups);
/* The decision on that update. */
void joiner_takes(struct joiner *joiner, enum message_type type, uint64_t update);

/* The share of that rank, as parts and declare; the message may be spoilt by `spoil`. */
void joiner_declare(struct joiner *joiner, uint64_t serial, uint32_t rank, uint32_t ranks,
	const struct rows *rows, size_t nrows, void (*spoil)(struct message *message));
/* An error with that serial and code whose sentence holds the word. */
void joiner_refused(struct joiner *joiner, uint64_t serial, int code, const char *word);

/* Joiners come and go until the lead has made as many communicators as one broker may. */
void lead_starts_anew(const struct broker *lead, const char *address);

#endif
