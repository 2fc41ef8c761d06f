/*
 * What a program does last: has all that it printed reached standard output? A full disk is only
 * noticed when the buffer is written out, so the exit code can't be known before.
 */
#ifndef BASE_OUTPUT_H
#define BASE_OUTPUT_H

/*
 * Writes out what is left in stdout's buffer. If that or an earlier write failed, says so on
 * stderr. Returns the program's exit code: 1 where that would be 0 and output is lost.
 */
int output_end(const char *program, int exit_code);

#endif
