#include "base/log.h"
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

static const char *log_name = "strew";
static enum log_level log_threshold = LOG_LEVEL_INFO;
static int log_journal;

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

void log_line(enum log_level level, const char *format, ...)
{
	int saved = errno;
	char line[1024];
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
	n += vsnprintf(line + n, sizeof(line) - (size_t)n, format, ap);
	va_end(ap);
	if ((size_t)n > sizeof(line) - 2) {
		n = sizeof(line) - 2;
	}
	line[n++] = '\n';
	/* One write a line, so that lines of several threads do not mix. */
	if (write(STDERR_FILENO, line, (size_t)n) < 0) {
		/* There is nobody left to tell. */
	}
	errno = saved;
}
