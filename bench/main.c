/* strew-bench: which subcommand. */
#include "base/output.h"
#include "bench/bench.h"
#include <string.h>

static const char help[] =
	"Usage: strew-bench SUBCOMMAND [options]\n"
	"\n"
	"Measures strew, whole moves of bytes beside a raw way of moving as many in the same run.\n"
	"\n"
	"  update     whole updates through the real programs, beside plain copies or NCCL\n"
	"  copy       bare copies between processes: every path, way and length, beside plain\n"
	"             copies within one process\n"
	"  push       a checkpoint from disk by strew push, beside plain reads\n"
	"  idle       an engine's speed beside strew, idle and updating, beside its speed alone\n"
	"  register   the cost of joining, by pieces and workers; beside nothing\n"
	"  shapes     the tensors of a model and what each tensor-parallel rank makes of them\n"
	"\n"
	"  --help, --version; strew-bench SUBCOMMAND --help says more\n"
	"\n"
	"Exit codes: 0 in order, 1 failure (wrong bytes too), 2 usage, 3 no usable device.\n";

static int run(int argc, char **argv)
{
	const struct {
		const char *name;
		char *full; /* argv[0], which getopt's messages begin with */
		int (*run)(int argc, char **argv);
	} commands[] = {
		{"update", (char[]){"strew-bench update"}, cmd_update},
		{"copy", (char[]){"strew-bench copy"}, cmd_copy},
		{"push", (char[]){"strew-bench push"}, cmd_push},
		{"idle", (char[]){"strew-bench idle"}, cmd_idle},
		{"register", (char[]){"strew-bench register"}, cmd_register},
		{"shapes", (char[]){"strew-bench shapes"}, cmd_shapes},
	};

	if (argc < 2) {
		fputs("strew-bench: a subcommand is wanted; see strew-bench --help\n", stderr);
		return EXIT_USAGE;
	}
	if (strcmp(argv[1], "--help") == 0) {
		fputs(help, stdout);
		return EXIT_OK;
	}
	if (strcmp(argv[1], "--version") == 0) {
		puts("strew-bench " STREW_VERSION);
		return EXIT_OK;
	}
	for (size_t i = 0; i < ARRAY_LEN(commands); i++) {
		if (strcmp(argv[1], commands[i].name) == 0) {
			argv[1] = commands[i].full;
			return commands[i].run(argc - 1, argv + 1);
		}
	}
	fprintf(stderr, "strew-bench: %s: no such subcommand; see strew-bench --help\n", argv[1]);
	return EXIT_USAGE;
}

int main(int argc, char **argv)
{
	return output_end("strew-bench", run(argc, argv));
}
