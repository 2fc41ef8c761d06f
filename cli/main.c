/* strew: which subcommand, and the help that leads to each. */
#include "base/output.h"
#include "cli/cli.h"
#include <getopt.h>
#include <stdio.h>
#include <string.h>

static const char help[] =
	"Usage: strew run [options] -- COMMAND…\n"
	"       strew status [options]\n"
	"       strew events [options]\n"
	"       strew explain NAME [options]\n"
	"       strew verify FILE|DIRECTORY [options]\n"
	"       strew doctor [options]\n"
	"       strew push PATH --model NAME --version N [options]\n"
	"\n"
	"Puts freshly trained weights into running inference workers.\n"
	"\n"
	"  run      start this node's broker, run a command beside it, end with the command\n"
	"  status   what the broker has: models, groups, versions, trainers, brokers\n"
	"  events   how the last updates ended, and how long each stage took\n"
	"  explain  the way of a tensor: who holds it, who takes which part of it, and how\n"
	"  verify   do the workers' bytes equal a checkpoint's?\n"
	"  doctor   what of this machine is not as strew needs it, and what to do\n"
	"  push     put a checkpoint into the workers that run now\n"
	"\n"
	"  --help, --version; strew SUBCOMMAND --help says more\n"
	"\n"
	"Exit codes: 0 in order, 1 failure, 2 usage, 3 no usable device, 4 the broker is not\n"
	"reachable; `strew run` ends with its command's.\n"
	"\n"
	"Example:\n"
	"  strew run -- ./my_engine &                  the engine finds $STREW_SOCKET\n"
	"  strew push checkpoints/step-2 --model llama --version 2 --socket PATH\n";

bool has_argument(int argc, char *const *argv)
{
	if (optind < argc) {
		fprintf(stderr, "%s: %s: no argument is wanted; see %s --help\n", argv[0],
			argv[optind], argv[0]);
	}
	return optind < argc;
}

static int run(int argc, char **argv)
{
	const struct {
		const char *name;
		char *full; /* argv[0], which getopt's messages begin with */
		int (*run)(int argc, char **argv);
	} commands[] = {
		{"run", (char[]){"strew run"}, cmd_run},
		{"status", (char[]){"strew status"}, cmd_status},
		{"events", (char[]){"strew events"}, cmd_events},
		{"explain", (char[]){"strew explain"}, cmd_explain},
		{"verify", (char[]){"strew verify"}, cmd_verify},
		{"doctor", (char[]){"strew doctor"}, cmd_doctor},
		{"push", (char[]){"strew push"}, cmd_push},
	};

	if (argc < 2) {
		fputs("strew: a subcommand is wanted; see strew --help\n", stderr);
		return EXIT_USAGE;
	}
	if (strcmp(argv[1], "--help") == 0) {
		fputs(help, stdout);
		return EXIT_OK;
	}
	if (strcmp(argv[1], "--version") == 0) {
		puts("strew " STREW_VERSION);
		return EXIT_OK;
	}
	for (size_t i = 0; i < sizeof(commands) / sizeof(commands[0]); i++) {
		if (strcmp(argv[1], commands[i].name) == 0) {
			argv[1] = commands[i].full;
			return commands[i].run(argc - 1, argv + 1);
		}
	}
	fprintf(stderr, "strew: %s: no such subcommand; see strew --help\n", argv[1]);
	return EXIT_USAGE;
}

int main(int argc, char **argv)
{
	return output_end("strew", run(argc, argv));
}
