/*
 * What every public function does around its work: keep the sentence of a failure for
 * strew_error(). The library is silent otherwise.
 */
#ifndef AGENT_PUBLIC_H
#define AGENT_PUBLIC_H

#include "base/error.h"

/*
 * Returns rc; if it is negative, keeps the sentence of *err for the calling thread, or the
 * errno's own text where there is none.
 */
int public_return(int rc, const struct error *err);

/* -EINVAL: a required argument is NULL. */
int public_missing(struct error *err);

#endif
