/*
 * The broker that an agent under test is connected to, played in the agent's own thread: whenever
 * the agent waits and nothing has come, the broker has its turn. It says what the input tells it
 * to, well or badly; when the input is used up it answers as a good one would.
 */
#ifndef FUZZ_BROKER_SIDE_H
#define FUZZ_BROKER_SIDE_H

#include "fuzz/fuzz.h"

#define SIDE_MEMORY 8192

/* Sets the world back. The input is borrowed until stop; returns memory to be declared. */
unsigned char *broker_side_start(struct input *input);
/* The next connection finds a broker. Whoever was connected before has lost it. */
void broker_side_offer(void);
/* Behind the agent's close. Claims that no descriptor and no mapping is left. */
void broker_side_stop(void);

/* Claims that rc is a success or has a sentence, and that the call, which began at the virtual
 * time `start_ns`, took no longer than it may. */
void broker_side_returned(int rc, uint64_t start_ns, uint64_t timeout_ms);

#endif
