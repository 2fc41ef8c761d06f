/* How long strewd_hasty waits. */
#ifndef TESTS_BROKER_HASTY_H
#define TESTS_BROKER_HASTY_H

#define HASTY_EPOCH_MS 3000
#define HASTY_BLAME_MIN_MS 1000
#define HASTY_BLAME_MAX_MS 20000

#endif
