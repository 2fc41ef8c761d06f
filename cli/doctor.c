/* strew doctor: is this machine as strew needs it, and if not, what is to be done? */
#include "cli/doctor.h"
#include "cli/ask.h"
#include "cli/cli.h"
#include <getopt.h>
#include <stdio.h>
#include <string.h>

static const char help[] =
	"Usage: strew doctor [--socket PATH] [--backend auto|cuda|host]\n"
	"\n"
	"Looks at what updates depend on, and says one line about each: the broker and its\n"
	"socket, permissions, namespaces, driver, GPUs and their reach, how memory is exported,\n"
	"NCCL, io_uring, limits. A second line says what to do about what is not right (WRONG), "
	"or\n"
	"may surprise (note). Start it as the engine is: same user, container, environment.\n"
	"\n"
	"  --socket PATH  the broker's socket (default: $STREW_SOCKET, else\n"
	"                 $XDG_RUNTIME_DIR/strew/broker.sock, else /tmp/strew-UID/broker.sock)\n"
	"  --backend KIND auto (default): without a GPU the host backend will do; cuda: it won't\n"
	"  --help\n"
	"\n"
	"Ends with 0 if nothing is WRONG, else with 1. Changes nothing and uses no GPU memory.\n"
	"\n"
	"Example: docker exec engine strew doctor --backend cuda\n";

static int diagnose(const char *socket, enum gpu_kind wanted)
{
	static const char *const grades[] = {"ok", "note", "WRONG"};
	struct doctor_finding findings[DOCTOR_FINDINGS];
	struct doctor_facts facts;
	struct error err = {0};
	int code = EXIT_OK;

	if (doctor_look(socket, wanted, &facts, &err)) {
		fprintf(stderr, "strew doctor: %s\n", err.text);
		return EXIT_USAGE;
	}
	doctor_judge(&facts, findings);
	for (size_t i = 0; i < DOCTOR_FINDINGS; i++) {
		printf("%-5s  %-12s %s\n", grades[findings[i].grade], findings[i].about,
			findings[i].text);
		if (findings[i].advice[0]) {
			printf("%19s do: %s\n", "", findings[i].advice);
		}
		if (findings[i].grade == DOCTOR_WRONG) {
			code = EXIT_RUNTIME;
		}
	}
	return code;
}

int cmd_doctor(int argc, char **argv)
{
	static const struct option options[] = {{"socket", required_argument, NULL, 's'},
		{"backend", required_argument, NULL, 'b'}, {"help", no_argument, NULL, 'h'},
		{NULL, 0, NULL, 0}};
	static const char *const kinds[] = {"auto", "host", "cuda"}; /* by enum gpu_kind */
	const char *socket = NULL;
	unsigned kind = GPU_AUTO;
	int option;

	while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) {
		switch (option) {
		case 's':
			socket = optarg;
			break;
		case 'b':
			for (kind = 0; kind <= GPU_CUDA && strcmp(kinds[kind], optarg) != 0;) {
				kind++;
			}
			if (kind > GPU_CUDA) {
				fprintf(stderr, "strew doctor: --backend %s: auto, cuda or host\n",
					optarg);
				return EXIT_USAGE;
			}
			break;
		case 'h':
			fputs(help, stdout);
			return EXIT_OK;
		default:
			return EXIT_USAGE;
		}
	}
	if (has_argument(argc, argv)) {
		return EXIT_USAGE;
	}
	return diagnose(socket, (enum gpu_kind)kind);
}
