#include "base/output.h"
#include <errno.h>
#include <stdio.h>
#include <string.h>

int output_end(const char *program, int exit_code)
{
	const char *why = "a write failed"; /* earlier: its errno is long gone */

	if (fflush(stdout)) {
		why = strerror(errno);
	} else if (!ferror(stdout)) {
		return exit_code;
	}
	fprintf(stderr, "%s: the output is lost, at least in part: %s\n", program, why);
	return exit_code ? exit_code : 1;
}
