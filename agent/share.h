/*
 * What a registration and a declaration have in common: a set of exported
 * allocations and a blob that speaks of them, sent between an opening message
 * and a seal, all under one serial, so that an error about any of them answers
 * the request.
 */
#ifndef AGENT_SHARE_H
#define AGENT_SHARE_H

#include "agent/session.h"
#include "gpu/export.h"
#include "ipc/blob.h"
#include "plan/tensor.h"

/* All of the first ndim are 0: the public structs' way to say "the default". */
bool dims_zero(int ndim, const uint64_t *dims);

/*
 * Bytes that a box of `tensor` (checked here) with these strides in elements reaches over, from
 * its first element. Strides that are all 0 become dense. `what` ("parameter") opens the sentence.
 */
int share_span(const char *what, const struct tensor *tensor, const uint64_t *extent,
	uint64_t *stride, uint64_t *ret_span_bytes, struct error *err);

/*
 * Notes the memory of something named; of nothing at all (span 0) no allocation is noted and
 * the pointer may be anything. share_locate() then gives its place, 0 and 0 for nothing at all.
 */
int share_add(struct export_set *set, const char *what, const char *name, const void *data,
	uint64_t span_bytes, struct error *err);
int share_locate(const struct export_set *set, const char *what, const char *name, const void *data,
	uint64_t span_bytes, uint32_t *ret_allocation, uint64_t *ret_offset, struct error *err);

/*
 * Begins the request and sends everything; `opening` is MSG_REGISTER or MSG_TRAINER, filled in
 * but for its serial. A failure leaves half a registration behind, so it ends the connection.
 */
int share_send(struct agent_session *session, const struct export_set *set, struct message *opening,
	const struct blob *blob, enum part_of of, uint64_t deadline, struct agent_request *request,
	struct error *err);

#endif
