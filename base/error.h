/*
 * An error as a sentence: what was wrong, named, for a person. Functions that
 * decide that something is an error fill one and return its negative errno;
 * the others pass both on. Wire codes are strew's own numbers (docs/protocol.md).
 */
#ifndef BASE_ERROR_H
#define BASE_ERROR_H

#include "base/limits.h"
#include <stdarg.h>

struct error {
	int code; /* negative errno, 0: none */
	char text[LIMIT_TEXT_BYTES];
};

/* Fills *err (which may be NULL) and returns code, so that callers may return it at once. */
__attribute__((format(printf, 3, 4))) int error_set(
	struct error *err, int code, const char *format, ...);

/* Puts "prefix: " before the sentence. Returns err->code. */
__attribute__((format(printf, 2, 3))) int error_prefix(struct error *err, const char *format, ...);

void error_clear(struct error *err);

/* Wire codes. The numbers never change; new ones are added at the end. */
enum wire_code {
	WIRE_OK = 0,
	WIRE_INVALID = 1,	/* EINVAL: a value is wrong */
	WIRE_RANGE = 2,		/* ERANGE: outside its tensor, parameter or allocation */
	WIRE_UNSUPPORTED = 3,	/* ENOTSUP: a feature that is not there yet */
	WIRE_PROTOCOL = 4,	/* EPROTO: the peer broke the protocol; it is dropped */
	WIRE_EXISTS = 5,	/* EEXIST: the place is taken */
	WIRE_NOT_FOUND = 6,	/* ENOENT */
	WIRE_BUSY = 7,		/* EBUSY */
	WIRE_TIMEOUT = 8,	/* ETIMEDOUT */
	WIRE_STALE_VERSION = 9, /* ESTALE: version not above the committed one */
	WIRE_DIRTY = 10,	/* EUCLEAN */
	WIRE_LIMIT = 11,	/* E2BIG: a limit of base/limits.h */
	WIRE_MEMORY = 12,	/* ENOMEM */
	WIRE_DEVICE = 13,	/* EIO: a driver or NCCL call failed */
	WIRE_DENIED = 14,	/* EPERM */
	WIRE_CANCELED = 15,	/* ECANCELED */
	WIRE_GONE = 16,		/* ECONNRESET */
};

enum wire_code error_to_wire(int code); /* negative errno to wire code */
int error_from_wire(unsigned code);	/* wire code to negative errno; -EPROTO if unknown */

#endif
