/* Threads beside the one that a process began with. */
#ifndef BASE_THREAD_H
#define BASE_THREAD_H

#include <pthread.h>

/*
 * Starts one that no signal interrupts: they are the first thread's, or the host program's, affair.
 * Negative errno, and no thread.
 */
int thread_start(void *(*run)(void *), void *data, pthread_t *ret_thread);

#endif
