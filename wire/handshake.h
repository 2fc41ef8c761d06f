/* Who may join the lead: pure rules on what brokers say of themselves. */
#ifndef WIRE_HANDSHAKE_H
#define WIRE_HANDSHAKE_H

#include "base/error.h"
#include "ipc/messages.h"

/*
 * May `join` become a broker beside members[0..nmembers)? members[0] is the lead. -EPROTO: another
 * protocol; -EINVAL: another backend or NCCL version, or a GPU that a broker with an equal
 * host id has; -EEXIST: the same broker; -E2BIG: LIMIT_BROKERS.
 */
int admit_check(const struct msg_join *join, const struct msg_join *members, size_t nmembers,
	struct error *err);

/* FNV-1a of $NCCL_HOSTID, else of the kernel's boot id: what NCCL takes for one machine. */
uint64_t host_id_compute(void);

#endif
