/*
 * NCCL, opened at run time: the entry points in use, and a communicator whose
 * every step has a deadline. Nothing here blocks in NCCL: communicators are
 * non-blocking and polled, and an abort runs in a disposable thread.
 * Used by the mover's thread alone.
 */
#ifndef WIRE_NCCL_H
#define WIRE_NCCL_H

#include "base/error.h"
#include "gpu/gpu.h"
#include "ipc/messages.h"

/* Opens libnccl.so.2 ($STREW_NCCL names another; one that is loaded already is taken first). */
int nccl_open(struct error *err);
/* ncclGetVersion(), e.g. 22809; 0 if it is not open. Thread-safe after nccl_open(). */
unsigned nccl_version(void);
/* "2.28.9" into buf, which is returned; "none" for 0. */
const char *nccl_version_format(char *buf, size_t buf_bytes, unsigned version);
/* A new id; its listener lives in this process until all ranks have joined. */
int nccl_unique_id(uint8_t ret_id[UNIQUE_ID_BYTES], struct error *err);

#endif
