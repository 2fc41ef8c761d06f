#include "broker/ending.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/thread.h"
#include <string.h>
#include <unistd.h>

static uint32_t limit_ms;

static void *ending_main(void *data)
{
	struct timespec until = clock_timespec(deadline_in_ms(limit_ms));

	(void)data;
	while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL)) {
	}
	log_error("not stopped after %.1f s: a call of the driver or of NCCL does not return, and "
		  "this process ends without it",
		limit_ms / 1e3);
	_exit(1);
}

void ending_within(uint32_t within_ms)
{
	pthread_t thread;
	int rc;

	limit_ms = within_ms;
	rc = thread_start(ending_main, NULL, &thread);
	if (rc) {
		log_warn("this end has no deadline: %s", strerror(-rc));
		return;
	}
	pthread_detach(thread);
}
