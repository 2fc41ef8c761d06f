/* Long options of the example programs: a table in, values out, a sentence for what is wrong. */
#ifndef EXAMPLES_OPTIONS_H
#define EXAMPLES_OPTIONS_H

#include <stdbool.h>
#include <stdint.h>

/* One of the three pointers says where the value goes and what kind it is. */
struct option_spec {
	const char *name;
	const char **text;
	uint64_t *number;
	bool *flag;
};

/* Ends the program: exit 2 with a line on stderr, or, for --help, 0 with `usage` on stdout. */
void options_parse(int argc, char **argv, const struct option_spec *specs, const char *usage);

/* Ends the program with exit 2 and that sentence. */
__attribute__((noreturn)) void options_refuse(const char *sentence);

#endif
