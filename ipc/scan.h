/*
 * A look over msgpack bytes before msgpack-c allocates for them: a six-byte frame
 * may otherwise claim sixteen million elements. Checks counts, depth and sizes
 * against the bytes that are really there.
 */
#ifndef IPC_SCAN_H
#define IPC_SCAN_H

#include "base/error.h"
#include <stddef.h>
#include <stdint.h>

/*
 * Length of the first value in [bytes, bytes + len), to *ret_len. -EPROTO: truncated, nested
 * deeper than LIMIT_MSGPACK_DEPTH, more than LIMIT_MSGPACK_VALUES values, or of a type that strew
 * does not use (ext, float, negative numbers).
 */
int scan_value(const uint8_t *bytes, size_t len, size_t *ret_len, struct error *err);

#endif
