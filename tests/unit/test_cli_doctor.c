/*
 * What strew doctor concludes, on machines that the tests do not have: from one where all is well,
 * one thing is changed at a time; what is said of that changes as the table says, and of all
 * others nothing.
 */
#include "base/util.h"
#include "cli/doctor.h"
#include "support/test_main.h"
#include <errno.h>
#include <string.h>

static struct doctor_facts well(void)
{
	struct doctor_facts facts;

	memset(&facts, 0, sizeof(facts));
	facts.euid = 1000;
	string_copy(facts.path, sizeof(facts.path), "/run/user/1000/strew/broker.sock");
	facts.has_directory = facts.has_socket = true;
	facts.directory.st_uid = facts.node.st_uid = 1000;
	facts.directory.st_mode = S_IFDIR | 0700;
	facts.node.st_mode = S_IFSOCK | 0600;
	facts.pid = 17;
	string_copy(facts.welcome.backend, sizeof(facts.welcome.backend), "cuda");
	string_copy(facts.welcome.library, sizeof(facts.welcome.library), STREW_VERSION);
	facts.brokers = 2;
	facts.nccl = facts.nccl_found = 22809;
	facts.raw = 300;
	for (int i = 0; i < DOCTOR_NAMESPACES; i++) {
		facts.own_ns[i] = facts.broker_ns[i] = 4026531836u + (unsigned)i;
	}
	facts.gpu.version = 13000;
	facts.gpu.ndevices = facts.gpu.nprobed = 4;
	for (unsigned i = 0; i < 4; i++) {
		string_copy(facts.gpu.devices[i].name, sizeof(facts.gpu.devices[i].name),
			"NVIDIA H100 80GB HBM3");
		facts.gpu.devices[i].peers = 0xfu & ~(1u << i);
		facts.gpu.devices[i].posix_fds = true;
	}
	string_copy(facts.kernel_driver, sizeof(facts.kernel_driver), "580.159.04");
	facts.descriptors = (struct rlimit){1u << 20, 1u << 20};
	facts.memlock = (struct rlimit){RLIM_INFINITY, RLIM_INFINITY};
	facts.broker_limits = true;
	return facts;
}

static void host(struct doctor_facts *facts)
{
	string_copy(facts->welcome.backend, sizeof(facts->welcome.backend), "host");
}

static void no_gpu(struct doctor_facts *facts)
{
	memset(&facts->gpu, 0, sizeof(facts->gpu));
	error_set(&facts->gpu.driver, -ENODEV, "no NVIDIA driver: libcuda.so.1: no such file");
	facts->kernel_driver[0] = '\0';
}

static void dead_broker(struct doctor_facts *facts)
{
	error_set(&facts->socket, -ECONNREFUSED, "no broker serves it");
}

static void no_broker(struct doctor_facts *facts)
{
	facts->has_socket = false;
	error_set(&facts->socket, -ENOENT, "no broker serves it");
}

static void other_user(struct doctor_facts *facts)
{
	facts->node.st_uid = 1001;
}

static void root_asks(struct doctor_facts *facts)
{
	facts->euid = 0;
	facts->directory.st_uid = facts->node.st_uid = 0;
}

static void wide_directory(struct doctor_facts *facts)
{
	facts->directory.st_mode = S_IFDIR | 0770;
}

static void readable_directory(struct doctor_facts *facts)
{
	facts->directory.st_mode = S_IFDIR | 0755;
}

static void foreign_directory(struct doctor_facts *facts)
{
	facts->directory.st_uid = 1001;
}

static void a_file(struct doctor_facts *facts)
{
	facts->node.st_mode = S_IFREG | 0600;
}

static void wide_socket(struct doctor_facts *facts)
{
	facts->node.st_mode = S_IFSOCK | 0666;
}

static void old_broker(struct doctor_facts *facts)
{
	string_copy(facts->welcome.library, sizeof(facts->welcome.library), "0.0.1");
}

static void other_pid_namespace(struct doctor_facts *facts)
{
	facts->broker_ns[DOCTOR_PID]++;
	facts->broker_ns[DOCTOR_USER] = facts->broker_ns[DOCTOR_IPC] = 0;
}

static void host_other_pid_namespace(struct doctor_facts *facts)
{
	host(facts);
	other_pid_namespace(facts);
}

static void other_user_namespace(struct doctor_facts *facts)
{
	facts->broker_ns[DOCTOR_USER]++;
}

static void other_ipc_namespace(struct doctor_facts *facts)
{
	facts->broker_ns[DOCTOR_IPC]++;
}

static void unseen(struct doctor_facts *facts)
{
	facts->broker_ns[DOCTOR_USER] = facts->broker_ns[DOCTOR_IPC] = 0;
}

static void hidden_driver(struct doctor_facts *facts)
{
	error_set(&facts->gpu.driver, -EIO, "cuInit: CUDA_ERROR_NO_DEVICE 100 (none)");
	facts->gpu.ndevices = facts->gpu.nprobed = 0;
}

static void no_device(struct doctor_facts *facts)
{
	facts->gpu.ndevices = facts->gpu.nprobed = 0;
}

static void one_device(struct doctor_facts *facts)
{
	facts->gpu.ndevices = facts->gpu.nprobed = 1;
	facts->gpu.devices[0].peers = 0;
}

static void cut_off(struct doctor_facts *facts)
{
	facts->gpu.devices[2].peers &= ~2u;
	facts->gpu.devices[3].peers &= ~1u;
}

static void slice(struct doctor_facts *facts)
{
	facts->gpu.devices[1].mig = true;
}

static void pulls(struct doctor_facts *facts)
{
	facts->pull = 12;
}

static void expandable(struct doctor_facts *facts)
{
	facts->raw = 0;
	string_copy(facts->allocator, sizeof(facts->allocator),
		"max_split_size_mb:512,expandable_segments:True");
}

static void expandable_without_descriptors(struct doctor_facts *facts)
{
	expandable(facts);
	facts->gpu.devices[3].posix_fds = false;
}

static void expandable_with_few(struct doctor_facts *facts)
{
	string_copy(facts->allocator, sizeof(facts->allocator), "expandable_segments:True");
	facts->descriptors = (struct rlimit){20000, 20000};
}

static void few_descriptors(struct doctor_facts *facts)
{
	facts->descriptors = (struct rlimit){1024, 1024};
}

static void few_soft_descriptors(struct doctor_facts *facts)
{
	facts->descriptors = (struct rlimit){1024, 1u << 20};
	facts->broker_limits = false;
}

static void no_nccl(struct doctor_facts *facts)
{
	facts->nccl = facts->nccl_found = 0;
	error_set(&facts->nccl_error, -ENOENT, "libnccl.so.2: no such file");
}

static void nccl_of_the_broker(struct doctor_facts *facts)
{
	no_nccl(facts);
	facts->nccl = 22809;
}

static void other_nccl(struct doctor_facts *facts)
{
	facts->nccl_found = 22703;
}

static void no_uring(struct doctor_facts *facts)
{
	facts->uring = -EPERM;
}

static void little_memlock(struct doctor_facts *facts)
{
	facts->memlock = (struct rlimit){8u << 20, 8u << 20};
}

#define O DOCTOR_OK
#define N DOCTOR_NOTE
#define W DOCTOR_WRONG

static const struct {
	void (*change)(struct doctor_facts *facts);
	enum gpu_kind wanted;
	const char *about;
	enum doctor_grade grade;
	const char *says, *advises; /* NULL: nothing */
	bool alone;		    /* nothing else changes */
} cases[] = {
	{no_broker, GPU_AUTO, "socket", W, "no broker serves", "strew run", false},
	{dead_broker, GPU_AUTO, "socket", W, "no broker serves", "start it again", false},
	{no_broker, GPU_AUTO, "namespaces", O, "no broker", NULL, false},
	{host, GPU_CUDA, "socket", W, "backend host", "--backend cuda", true},
	{host, GPU_HOST, "socket", O, "backend host", NULL, true},
	{old_broker, GPU_AUTO, "socket", N, "strew 0.0.1", "start the broker again", true},
	{other_user, GPU_AUTO, "permissions", W, "the socket is uid 1001's", "as one user", true},
	{root_asks, GPU_AUTO, "permissions", O, "uid 0's", NULL, true},
	{wide_directory, GPU_AUTO, "permissions", W, "mode 0770", "chmod go-w", true},
	{readable_directory, GPU_AUTO, "permissions", O, "mode 0755", NULL, true},
	{foreign_directory, GPU_AUTO, "permissions", W, "uid 1001's", "another user", true},
	{a_file, GPU_AUTO, "permissions", W, "mode 0600", "no socket", true},
	{wide_socket, GPU_AUTO, "permissions", N, "mode 0666", "chmod 600", true},
	{other_pid_namespace, GPU_AUTO, "namespaces", W, "pid NOT the broker's", "--pid=host",
		true},
	{host_other_pid_namespace, GPU_AUTO, "namespaces", N, "user not seen", "--pid=host", false},
	{other_user_namespace, GPU_AUTO, "namespaces", N, "user NOT", "user namespace", true},
	{other_ipc_namespace, GPU_AUTO, "namespaces", N, "ipc NOT", "--ipc=host", true},
	{unseen, GPU_AUTO, "namespaces", N, "pid shared with the broker", "is not seen", true},
	{no_gpu, GPU_AUTO, "driver", W, "the host backend is what remains", "--backend host",
		false},
	{hidden_driver, GPU_AUTO, "driver", W, "cuInit: CUDA_ERROR_NO_DEVICE", "--gpus all", false},
	{no_device, GPU_AUTO, "devices", W, "no GPU", "CUDA_VISIBLE_DEVICES", true},
	{one_device, GPU_AUTO, "devices", O, "1 GPU (NVIDIA H100 80GB HBM3)", NULL, true},
	{cut_off, GPU_AUTO, "devices", N,
		"2 of 12 ways between them lack peer access, the first from 2 to 1",
		"through pinned host memory", true},
	{slice, GPU_AUTO, "devices", W, "4 GPUs", "MIG", true},
	{pulls, GPU_AUTO, "allocator", N, "300 are written raw, 12 by the pull route",
		"cannot be exported", true},
	{expandable, GPU_AUTO, "allocator", O, "one descriptor a chunk", NULL, true},
	{expandable_without_descriptors, GPU_AUTO, "allocator", N, "expandable segments",
		"pull route", true},
	{expandable_with_few, GPU_AUTO, "descriptors", N, "20000", "65536", true},
	{few_descriptors, GPU_AUTO, "descriptors", W, "1024 open files at most", "LimitNOFILE",
		true},
	{few_soft_descriptors, GPU_AUTO, "descriptors", O, "1048576 open files", NULL, true},
	{no_nccl, GPU_AUTO, "nccl", N, "libnccl.so.2: no such file", "STREW_NCCL", true},
	{nccl_of_the_broker, GPU_AUTO, "nccl", O, "the broker has 2.28.9", NULL, true},
	{other_nccl, GPU_AUTO, "nccl", N, "2.27.3", "the broker here has 2.28.9", true},
	{no_uring, GPU_AUTO, "io_uring", N, "Operation not permitted", "seccomp", true},
	{little_memlock, GPU_AUTO, "memlock", N, "8.0 MiB", "ulimit -l", true},
};

static void all_is_well(void **state)
{
	struct doctor_finding findings[DOCTOR_FINDINGS];
	struct doctor_facts facts = well();

	(void)state;
	doctor_judge(&facts, findings);
	for (size_t i = 0; i < DOCTOR_FINDINGS; i++) {
		assert_int_equal(findings[i].grade, DOCTOR_OK);
		assert_string_equal(findings[i].advice, "");
		assert_true(findings[i].text[0]);
	}
}

/* On a laptop with no GPU a broker on the host backend is all that is wanted. */
static void well_on_the_host_backend(void **state)
{
	struct doctor_finding findings[DOCTOR_FINDINGS];
	struct doctor_facts facts = well();

	(void)state;
	host(&facts);
	no_gpu(&facts);
	no_nccl(&facts);
	doctor_judge(&facts, findings);
	for (size_t i = 0; i < DOCTOR_FINDINGS; i++) {
		assert_int_equal(findings[i].grade,
			strcmp(findings[i].about, "driver") ? DOCTOR_OK : DOCTOR_NOTE);
	}
	facts.wanted = GPU_CUDA;
	doctor_judge(&facts, findings);
	assert_int_equal(findings[0].grade, DOCTOR_WRONG);
	assert_int_equal(findings[3].grade, DOCTOR_WRONG);
}

static void one_thing_changed(void **state)
{
	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
		struct doctor_finding before[DOCTOR_FINDINGS], after[DOCTOR_FINDINGS];
		struct doctor_facts facts = well();
		bool met = false;

		doctor_judge(&facts, before);
		cases[i].change(&facts);
		facts.wanted = cases[i].wanted;
		doctor_judge(&facts, after);
		for (size_t j = 0; j < DOCTOR_FINDINGS; j++) {
			const struct doctor_finding *finding = &after[j];

			if (strcmp(finding->about, cases[i].about) != 0) {
				if (cases[i].alone) {
					assert_int_equal(finding->grade, before[j].grade);
					assert_string_equal(finding->advice, before[j].advice);
				}
				continue;
			}
			met = true;
			if (finding->grade != cases[i].grade ||
				!strstr(finding->text, cases[i].says) ||
				!(cases[i].advises ? strstr(finding->advice, cases[i].advises)
					: !finding->advice[0] ? ""
							      : NULL)) {
				fail_msg("case %zu: grade %d, \"%s\", advice \"%s\"", i,
					(int)finding->grade, finding->text, finding->advice);
			}
		}
		assert_true(met);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(all_is_well),
		cmocka_unit_test(well_on_the_host_backend),
		cmocka_unit_test(one_thing_changed),
	};

	return TEST_RUN(tests);
}
