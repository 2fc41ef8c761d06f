/* Options of the subcommands, and what all say about the machine. */
#include "base/clock.h"
#include "base/output.h"
#include "bench/bench.h"
#include "bench/driver.h"
#include "wire/nccl.h"
#include <getopt.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define OPTIONS_MAX 32

__attribute__((noreturn, format(printf, 2, 3))) static void refuse(
	const char *program, const char *format, ...)
{
	va_list args;

	fprintf(stderr, "%s: ", program);
	va_start(args, format);
	vfprintf(stderr, format, args);
	va_end(args);
	fprintf(stderr, "; see %s --help\n", program);
	exit(EXIT_USAGE);
}

static void take_own(const char *program, const struct bench_option *option, const char *value)
{
	int rc = 0;

	if (option->flag) {
		*option->flag = true;
	} else if (option->text) {
		*option->text = value;
	} else if (option->number) {
		rc = parse_u64(value, 1, UINT64_MAX, option->number);
	} else {
		rc = parse_bytes(value, option->bytes);
		rc = rc == 0 && *option->bytes == 0 ? -1 : rc;
	}
	if (rc) {
		refuse(program, "--%s %s: %s is wanted", option->name, value,
			option->bytes ? "a length like 64M" : "a whole number from 1 on");
	}
}

static void take_common(const char *program, int which, const char *value, const char *help,
	struct bench_options *options)
{
	static const char *const kinds[] = {"auto", "host", "cuda"};

	switch (which) {
	case 'b':
		for (size_t i = 0; i < ARRAY_LEN(kinds); i++) {
			if (strcmp(value, kinds[i]) == 0) {
				options->backend = (enum gpu_kind)i;
				return;
			}
		}
		refuse(program, "--backend %s: auto, cuda or host is wanted", value);
	case 'd':
		options->device = value;
		return;
	case 'n':
		if (parse_u64(value, 5, 1000, &options->samples)) {
			refuse(program, "--samples %s: 5 to 1000 is wanted", value);
		}
		return;
	case 's':
		if (parse_u64(value, 1, UINT64_MAX, &options->seed)) {
			refuse(program, "--seed %s: a whole number from 1 on is wanted", value);
		}
		return;
	case 'j':
		options->json = true;
		return;
	case 'h':
		fputs(help, stdout);
		exit(output_end(program, EXIT_OK));
	default:
		fprintf(stderr, "see %s --help\n", program);
		exit(EXIT_USAGE);
	}
}

void bench_parse(int argc, char **argv, const char *help, struct bench_options *options,
	const struct bench_option *own)
{
	struct option all[OPTIONS_MAX] = {{"backend", required_argument, NULL, 'b'},
		{"device", required_argument, NULL, 'd'}, {"samples", required_argument, NULL, 'n'},
		{"seed", required_argument, NULL, 's'}, {"json", no_argument, NULL, 'j'},
		{"help", no_argument, NULL, 'h'}};
	size_t n = 6;
	int which;

	*options = (struct bench_options){.samples = 7};
	for (size_t i = 0; own && own[i].name && n + 1 < OPTIONS_MAX; i++) {
		all[n++] = (struct option){own[i].name,
			own[i].flag ? no_argument : required_argument, NULL, 256 + (int)i};
	}
	while ((which = getopt_long(argc, argv, "", all, NULL)) != -1) {
		if (which >= 256) {
			take_own(argv[0], &own[which - 256], optarg);
		} else {
			take_common(argv[0], which, optarg, help, options);
		}
	}
	if (optind < argc) {
		refuse(argv[0], "%s: no such argument", argv[optind]);
	}
	if (!options->seed) {
		random_bytes(&options->seed, sizeof(options->seed));
		options->seed = options->seed >> 16 | 1;
	}
}

struct machine {
	enum gpu_kind kind;
	char device[128], driver[64], nccl[32];
	uint64_t free_bytes, total_bytes;
};

static void look_at_gpu(struct gpu *gpu, const char *name, struct machine *machine)
{
	uint8_t uuid[GPU_UUID_BYTES];
	struct gpu_device *device;
	char text[64], uuid_text[64];
	struct error err = {0};
	int ordinal, version = gpu_info(gpu)->driver_version;

	bench_must(gpu_find(gpu, name, uuid, &err), "the device", &err);
	bench_must(gpu_device(gpu, uuid, &device, &err), "the device", &err);
	gpu_device_free(device, &machine->free_bytes, &machine->total_bytes);
	for (int i = 0; i < gpu_info(gpu)->ndevices; i++) {
		struct cuda_uuid one;

		if (CUDA(NULL, cuDeviceGet, &ordinal, i) == 0 &&
			CUDA(NULL, cuDeviceGetUuid, &one, ordinal) == 0 &&
			memcmp(one.bytes, uuid, sizeof(uuid)) == 0 &&
			CUDA(NULL, cuDeviceGetName, text, sizeof(text), ordinal) == 0) {
			snprintf(machine->device, sizeof(machine->device), "%s, %s", text,
				gpu_uuid_format(uuid_text, sizeof(uuid_text), uuid));
		}
	}
	snprintf(machine->driver, sizeof(machine->driver), "CUDA %d.%d", version / 1000,
		version % 1000 / 10);
	if (nccl_open(NULL) == 0) {
		nccl_version_format(machine->nccl, sizeof(machine->nccl), nccl_version());
	}
}

static int look(int fd, void *arg)
{
	const struct bench_options *options = arg;
	struct machine machine = {0};
	struct letter letter = {0};
	struct error err = {0};
	struct gpu *gpu;

	letter.rc = gpu_open(options->backend, &gpu, &err);
	if (letter.rc == 0) {
		machine.kind = gpu_info(gpu)->kind;
		if (machine.kind == GPU_CUDA) {
			look_at_gpu(gpu, options->device, &machine);
		}
		gpu_close(gpu);
	}
	string_copy(letter.text, sizeof(letter.text), err.text);
	memcpy(letter.bytes, &machine, sizeof(machine));
	letter.len_bytes = sizeof(machine);
	return letter_write(fd, &letter) ? 1 : 0;
}

/* The driver's own version, where the kernel module tells it. */
static void driver_version(struct report *report, const char *cuda)
{
	FILE *file = fopen("/sys/module/nvidia/version", "re");
	char text[64] = "";

	if (file) {
		if (!fgets(text, sizeof(text), file)) {
			text[0] = '\0';
		}
		text[strcspn(text, "\n")] = '\0';
		fclose(file);
	}
	report_text(report, "driver", "%s%s%s", text, text[0] ? ", " : "", cuda);
}

const char *bench_gpu(const char *device)
{
	return device ? device : "0";
}

bool bench_same_gpu(const char *a, const char *b)
{
	a = bench_gpu(a);
	b = bench_gpu(b);
	if ((*a == 'G') != (*b == 'G')) {
		bench_fail(EXIT_USAGE,
			"GPUs %s and %s: whether they are one cannot be told; name all by their "
			"numbers or all by their UUIDs",
			a, b);
	}
	return strcmp(a, b) == 0;
}

bool bench_one_of(const char *text, const char *a, const char *b, const char *c)
{
	return strcmp(text, a) == 0 || strcmp(text, b) == 0 || (c && strcmp(text, c) == 0);
}

enum gpu_kind bench_machine(const struct bench_options *options, struct report *report)
{
	struct letter letter;
	struct machine machine;
	struct child child;
	struct bench_options copy = *options;
	char bytes[32];

	child_start(&child, "the look at the machine", look, &copy);
	child_receive(&child, &letter, 60);
	memcpy(&machine, letter.bytes, sizeof(machine));
	child_stop(&child);
	if (machine.kind != GPU_CUDA && options->device) {
		bench_fail(EXIT_USAGE, "--device %s: the host backend has no GPU", options->device);
	}
	if (machine.kind == GPU_CUDA) {
		report_text(report, "device", "%s", machine.device);
		report_text(report, "device memory", "%s free",
			format_bytes(bytes, sizeof(bytes), machine.free_bytes));
		driver_version(report, machine.driver);
		report_text(report, "nccl", "%s", machine.nccl[0] ? machine.nccl : "none");
	} else {
		report_text(
			report, "device", "host memory, %ld cores", sysconf(_SC_NPROCESSORS_ONLN));
	}
	report_text(report, "seed", "%llu", (unsigned long long)options->seed);
	return machine.kind;
}

const char *bench_program(char *buf, size_t buf_bytes, const char *name)
{
	ssize_t n = readlink("/proc/self/exe", buf, buf_bytes - 1);
	char *slash;

	if (n < 0) {
		bench_fail(EXIT_RUNTIME, "/proc/self/exe cannot be read");
	}
	buf[n] = '\0';
	slash = strrchr(buf, '/');
	snprintf(slash + 1, buf_bytes - (size_t)(slash + 1 - buf), "%s", name);
	if (access(buf, X_OK) < 0) {
		bench_fail(EXIT_RUNTIME, "%s is missing: it is built beside strew-bench", buf);
	}
	return buf;
}
