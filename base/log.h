/*
 * The broker's and the programs' log: one event a line on stderr, with a
 * systemd priority when the journal listens ($JOURNAL_STREAM), else with time
 * and level. Preserves errno, and never blocks: where nobody reads, lines are dropped, and the next
 * that gets out says how many. libstrew itself never logs.
 */
#ifndef BASE_LOG_H
#define BASE_LOG_H

enum log_level { LOG_LEVEL_ERROR = 3, LOG_LEVEL_WARN = 4, LOG_LEVEL_INFO = 6, LOG_LEVEL_DEBUG = 7 };

/* `name` is borrowed for the life of the process. */
void log_init(const char *name, enum log_level level);

__attribute__((format(printf, 2, 3))) void log_line(enum log_level level, const char *format, ...);

#define log_error(...) log_line(LOG_LEVEL_ERROR, __VA_ARGS__)
#define log_warn(...) log_line(LOG_LEVEL_WARN, __VA_ARGS__)
#define log_info(...) log_line(LOG_LEVEL_INFO, __VA_ARGS__)
#define log_debug(...) log_line(LOG_LEVEL_DEBUG, __VA_ARGS__)

#endif
