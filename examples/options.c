#include "examples/options.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void options_refuse(const char *sentence)
{
	fprintf(stderr, "%s (--help explains)\n", sentence);
	exit(2);
}

static void parse_number(const char *name, const char *text, uint64_t *ret_number)
{
	char *end;

	errno = 0;
	*ret_number = strtoull(text, &end, 10);
	if (errno || *end || end == text || *text == '-') {
		fprintf(stderr, "--%s %s: not a whole number (--help explains)\n", name, text);
		exit(2);
	}
}

void options_parse(int argc, char **argv, const struct option_spec *specs, const char *usage)
{
	for (int i = 1; i < argc; i++) {
		const char *name = strncmp(argv[i], "--", 2) == 0 ? argv[i] + 2 : "";
		const struct option_spec *spec = specs;

		if (strcmp(name, "help") == 0) {
			fputs(usage, stdout);
			exit(0);
		}
		while (spec->name && strcmp(spec->name, name) != 0) {
			spec++;
		}
		if (!spec->name || (!spec->flag && i + 1 == argc)) {
			fprintf(stderr, "%s: %s (--help explains)\n", argv[i],
				spec->name ? "needs a value" : "no such option");
			exit(2);
		}
		if (spec->flag) {
			*spec->flag = true;
		} else if (spec->text) {
			*spec->text = argv[++i];
		} else {
			parse_number(name, argv[i + 1], spec->number);
			i++;
		}
	}
}
