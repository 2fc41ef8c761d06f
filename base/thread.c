#include "base/thread.h"
#include <signal.h>
#include <stddef.h>

int thread_start(void *(*run)(void *), void *data, pthread_t *ret_thread)
{
	sigset_t all, before;
	int rc;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	rc = -pthread_create(ret_thread, NULL, run, data);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	return rc;
}
