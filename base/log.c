#include "base/log.h"
#include "base/util.h"
#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

static const char *log_name = "strew";
static enum log_level log_threshold = LOG_LEVEL_INFO;
static int log_journal;
static pthread_mutex_t log_lock = PTHREAD_MUTEX_INITIALIZER;
static unsigned log_dropped; /* lines, since the last one that got out */

#define LINE_BYTES 1024
#define TAIL_BYTES 64 /* of it, for what is said of lines that were dropped */
_Static_assert(LINE_BYTES <= PIPE_BUF, "a pipe that can be written to must take a whole line");

void log_init(const char *name, enum log_level level)
{
	log_name = name;
	log_threshold = level;
	log_journal = getenv("JOURNAL_STREAM") != NULL;
}

static const char *level_name(enum log_level level)
{
	switch (level) {
	case LOG_LEVEL_ERROR:
		return "error";
	case LOG_LEVEL_WARN:
		return "warning";
	case LOG_LEVEL_INFO:
		return "info";
	case LOG_LEVEL_DEBUG:
		return "debug";
	}
	return "?";
}

/* Who does not read must not stop the threads that move weights: his line is dropped, and counted.
 */
static void put(char line[LINE_BYTES], size_t n)
{
	struct pollfd out = {.fd = STDERR_FILENO, .events = POLLOUT};

	/* Between the look and the write nobody else of this process takes the room. */
	pthread_mutex_lock(&log_lock);
	if (poll(&out, 1, 0) != 1) {
		log_dropped++;
		pthread_mutex_unlock(&log_lock);
		return;
	}
	if (log_dropped) {
		n += (size_t)snprintf(line + n, TAIL_BYTES - 1,
			" [%u lines before this one were dropped: nobody read]", log_dropped);
		log_dropped = 0;
	}
	line[n++] = '\n';
	/* One write a line, so that lines of several threads do not mix. */
	if (write(STDERR_FILENO, line, n) < 0) {
		/* There is nobody left to tell. */
	}
	pthread_mutex_unlock(&log_lock);
}

void log_line(enum log_level level, const char *format, ...)
{
	int saved = errno;
	char line[LINE_BYTES];
	struct timespec now;
	struct tm tm;
	va_list ap;
	int n;

	if (level > log_threshold) {
		return;
	}
	if (log_journal) {
		n = snprintf(line, sizeof(line), "<%d>%s: ", (int)level, log_name);
	} else {
		clock_gettime(CLOCK_REALTIME, &now);
		localtime_r(&now.tv_sec, &tm);
		n = snprintf(line, sizeof(line), "%02d:%02d:%02d.%03ld %s[%d] %s: ", tm.tm_hour,
			tm.tm_min, tm.tm_sec, now.tv_nsec / 1000000, log_name, (int)getpid(),
			level_name(level));
	}
	va_start(ap, format);
	n += vsnprintf(line + n, sizeof(line) - TAIL_BYTES - (size_t)n, format, ap);
	va_end(ap);
	put(line, MIN((size_t)n, sizeof(line) - TAIL_BYTES - 1));
	errno = saved;
}
