/* One broker for all cases of a program: the fixtures of its cmocka group. */
#ifndef BROKER_ONE_H
#define BROKER_ONE_H

#include "broker/play.h"

extern struct broker one_broker;

/* Setup and teardown of the group. */
int one_start(void **state);
int one_finish(void **state);
/* Teardown of a case: it still serves, and nothing is left of the case. */
int one_check(void **state);

#endif
