/*
 * The end of the process, by a deadline: what is closed in order waits for the mover, whose calls
 * of the driver and of NCCL may never return, and then nobody would start the next broker.
 */
#ifndef BROKER_ENDING_H
#define BROKER_ENDING_H

#include <stdint.h>

/* From now on. If the process is still there after so long it says so and ends, with code 1: all
 * that it had mapped is quiet then. */
void ending_within(uint32_t limit_ms);

#endif
