/*
 * Messages made from the input: a type, some fields of it changed by ipc/'s own tables, in bytes
 * as they travel. What the caller does not fill in is zero. Fields may get values that their
 * reader refuses: encoding does not look at ranges.
 */
#ifndef FUZZ_SAYS_H
#define FUZZ_SAYS_H

#include "fuzz/fuzz.h"
#include "ipc/messages.h"

/* Numbers that mean something now (epochs, serials, hashes): fields are often given one of them. */
#define SAYS_KNOWN 16
extern uint64_t says_known[SAYS_KNOWN];

/* Changes up to three fields, as the input says. Lists are malloc'd, for says_finish(). */
void says_change(struct input *input, struct message *message);
/* One number: a small one, one that is known, one beside it, an edge, or any. */
uint64_t says_number(struct input *input);
/* The whole frame, malloc'd; NULL where it does not fit one. fds are only counted. */
uint8_t *says_encode(const struct message *message, size_t *ret_len);
/* Bytes and the fds that belong to them, in one go; what the socket does not take is lost. */
void says_send(int fd, const uint8_t *bytes, size_t n, const int *fds, unsigned nfds);
/* Frees lists; fds stay. Blobs are borrowed. */
void says_finish(struct message *message);

/* The types of the messages that have a table, by number from 0. */
unsigned says_types(void);
enum message_type says_type(unsigned number);

#endif
