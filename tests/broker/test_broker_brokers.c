/*
 * Two real brokers, one of which is killed and started again, and the answers of strewd to
 * wrong options, sockets and addresses.
 */
#include "base/util.h"
#include "broker/peers.h"
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

static const struct rows whole[] = {{"w", STREW_F32, 64, 512, 0, 64}};
static const struct rows upper[] = {{"w", STREW_F32, 64, 512, 0, 32}};
static const struct rows lower[] = {{"w", STREW_F32, 64, 512, 32, 32}};

static void start_worker(
	struct worker *worker, const struct broker *broker, uint32_t replica, uint32_t part)
{
	const struct rows *rows = part == 1 ? upper : part == 2 ? lower : whole;
	struct strew_agent_options options = {.model = "m",
		.replica = replica,
		.part = part,
		.apply = part ? STREW_APPLY_DIRECT : STREW_APPLY_STAGED};

	assert_int_equal(worker_start(worker, broker, options, rows, 1), 0);
}

static void start_trainer(struct trainer *trainer, const struct broker *broker)
{
	struct strew_trainer_options options = {.model = "m"};

	assert_int_equal(trainer_start(trainer, broker, options, whole, 1), 0);
}

static void test_the_joiner_is_killed_and_comes_back(void **state)
{
	struct broker lead = {0}, joiner = {0};
	struct worker at_lead, at_joiner;
	struct strew_report report;
	struct trainer trainer;
	char address[32];

	(void)state;
	free_address(address);
	broker_start(&lead, (const char *[]){"--listen", address, NULL});
	start_worker(&at_lead, &lead, 0, 0);
	start_trainer(&trainer, &lead);
	for (uint64_t round = 0; round < 3; round++) {
		broker_start(&joiner, (const char *[]){"--join", address, NULL});
		broker_wait_brokers(&lead, 2);
		start_worker(&at_joiner, &joiner, 1, 0);
		trainer_commits(&trainer, 10 * round + 1);
		worker_holds(&at_lead, 10 * round + 1);
		worker_holds(&at_joiner, 10 * round + 1);
		if (round == 2) {
			worker_stop(&at_joiner);
			assert_int_equal(broker_stop(&joiner, SIGTERM), 0);
		} else {
			/* The worker sees the end as it closes. */
			assert_int_equal(broker_stop(&joiner, SIGKILL), 256 + SIGKILL);
			worker_stop(&at_joiner);
		}
		trainer_write(&trainer, 10 * round + 2);
		assert_int_equal(strew_trainer_publish(
					 trainer.trainer, 10 * round + 2, NULL, 0, PATIENCE_MS),
			0);
		assert_int_equal(
			strew_trainer_wait_report(trainer.trainer, PATIENCE_MS, &report), 0);
		/* Between the kill and its notice the update may have begun with both. */
		if (report.outcome != STREW_OUTCOME_COMMITTED) {
			assert_int_equal(report.outcome, STREW_OUTCOME_ABORTED);
			assert_non_null(strstr(report.text, "was lost"));
			trainer_commits(&trainer, 10 * round + 2);
		}
		strew_report_finish(&report);
		worker_holds(&at_lead, 10 * round + 2);
		broker_wait_brokers(&lead, 1);
	}
	trainer_stop(&trainer);
	worker_stop(&at_lead);
	broker_finish(&lead);
	broker_finish(&joiner);
}

static void test_the_lead_is_started_again(void **state)
{
	struct broker lead = {0}, joiner = {0};
	struct worker at_joiner;
	struct trainer trainer;
	char address[32];

	(void)state;
	free_address(address);
	broker_start(&lead, (const char *[]){"--listen", address, NULL});
	broker_start(&joiner, (const char *[]){"--join", address, NULL});
	start_worker(&at_joiner, &joiner, 0, 0);
	for (uint64_t round = 1; round < 4; round++) {
		start_trainer(&trainer, &lead);
		broker_wait_brokers(&lead, 2);
		trainer_commits(&trainer, round);
		worker_holds(&at_joiner, round);
		if (round == 2) {
			assert_int_equal(broker_stop(&lead, SIGKILL), 256 + SIGKILL);
			trainer_stop(&trainer);
		} else {
			trainer_stop(&trainer);
			assert_int_equal(broker_stop(&lead, SIGTERM), 0);
		}
		assert_int_equal(broker_group_state(&joiner, "m"), STREW_GROUP_CURRENT);
		broker_start(&lead, (const char *[]){"--listen", address, NULL});
	}
	worker_stop(&at_joiner);
	broker_finish(&joiner);
	broker_finish(&lead);
}

/* Three nodes at once, parts of one replica on two of them, joining at the worst of times. */
static void test_joining_in_the_middle(void **state)
{
	struct broker lead = {0}, joiners[3] = {{0}, {0}, {0}};
	struct worker at_lead, parts[2], late;
	struct trainer trainer;
	char address[32];
	uint64_t version = 0;
	int ready[3];

	(void)state;
	free_address(address);
	broker_start(&lead, (const char *[]){"--listen", address, NULL});
	start_trainer(&trainer, &lead);
	start_worker(&at_lead, &lead, 0, 0);
	for (unsigned i = 0; i < 3; i++) {
		broker_launch(&joiners[i], (const char *[]){"--join", address, NULL}, &ready[i]);
		trainer_commits(&trainer, ++version);
		sleep_ms(30 * i);
		trainer_commits(&trainer, ++version);
	}
	broker_wait_brokers(&lead, 4);
	for (unsigned i = 0; i < 3; i++) {
		close(ready[i]);
	}
	start_worker(&parts[0], &joiners[0], 1, 1);
	start_worker(&parts[1], &joiners[1], 1, 2);
	start_worker(&late, &joiners[2], 2, 0);
	for (unsigned i = 0; i < 5; i++) {
		trainer_commits(&trainer, ++version);
		worker_holds(&at_lead, version);
		worker_holds(&parts[0], version);
		worker_holds(&parts[1], version);
		worker_holds(&late, version);
	}
	worker_stop(&late);
	worker_stop(&parts[0]);
	worker_stop(&parts[1]);
	worker_stop(&at_lead);
	trainer_stop(&trainer);
	for (unsigned i = 0; i < 3; i++) {
		broker_finish(&joiners[i]);
	}
	broker_finish(&lead);
}

/* Runs strewd on a socket of its own; code, and a word on stderr. */
static void ends_with(int code, const char *word, const char *const *args)
{
	char out[RUN_TEXT_BYTES], err[RUN_TEXT_BYTES];
	int rc = strewd_run(args, out, err);

	if (rc != code || !strstr(err, word)) {
		print_error("%d and \"%s\" were expected; %d: %s\n", code, word, rc, err);
	}
	assert_int_equal(rc, code);
	assert_non_null(strstr(err, word));
	assert_string_equal(out, "");
}

static void test_options(void **state)
{
	static const char *const wrong[][4] = {{"--nonsense", NULL}, {"--slot", "1", NULL},
		{"--slot", "64Q", NULL}, {"--slots", "1", NULL}, {"--slots", "17", NULL},
		{"--backend", "gpu", NULL}, {"--ready-fd", "2", NULL}, {"--ready-fd", "999", NULL},
		{"--join-timeout", "-1", NULL}, {"argument", NULL}, {"--socket", NULL}};
	static const char *const helps[][2] = {{"--help", NULL}, {"--version", NULL}};
	char out[RUN_TEXT_BYTES], err[RUN_TEXT_BYTES];

	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(wrong); i++) {
		ends_with(2, wrong[i][0], wrong[i]);
	}
	ends_with(2, "exclude",
		(const char *[]){"--listen", "127.0.0.1:1", "--join", "127.0.0.1:2", NULL});
	for (size_t i = 0; i < ARRAY_LEN(helps); i++) {
		assert_int_equal(strewd_run(helps[i], out, err), 0);
		assert_non_null(strstr(out, "strewd"));
		assert_string_equal(err, "");
	}
}

static void test_sockets_and_addresses(void **state)
{
	struct sockaddr_un dead = {.sun_family = AF_UNIX};
	struct broker broker = {0};
	char address[32];
	const char *const host[] = {"--backend", "host", "--socket", NULL};
	int fd;

	(void)state;
	broker_start(&broker, NULL);
	/* Live, and still served afterwards. */
	ends_with(1, "serves", (const char *[]){host[0], host[1], host[2], broker.socket, NULL});
	broker_check(&broker);
	assert_int_equal(broker_stop(&broker, SIGTERM), 0);
	assert_int_equal(access(broker.socket, F_OK), -1);
	/* A dead one: left by a killed broker. */
	broker_start(&broker, NULL);
	assert_int_equal(broker_stop(&broker, SIGKILL), 256 + SIGKILL);
	assert_int_equal(access(broker.socket, F_OK), 0);
	broker_start(&broker, NULL);
	broker_check(&broker);
	assert_int_equal(broker_stop(&broker, SIGTERM), 0);
	/* And one that somebody else had bound. */
	string_copy(dead.sun_path, sizeof(dead.sun_path), broker.socket);
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	assert_int_equal(bind(fd, (struct sockaddr *)&dead, sizeof(dead)), 0);
	close(fd);
	broker_start(&broker, NULL);
	assert_int_equal(broker_stop(&broker, SIGTERM), 0);
	/* A file is not replaced, a directory for all not served. */
	fd = open(broker.socket, O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
	assert_true(fd >= 0);
	close(fd);
	ends_with(
		1, broker.socket, (const char *[]){host[0], host[1], host[2], broker.socket, NULL});
	assert_int_equal(unlink(broker.socket), 0);
	assert_int_equal(chmod(broker.dir, 0777), 0);
	ends_with(1, broker.dir, (const char *[]){host[0], host[1], host[2], broker.socket, NULL});
	assert_int_equal(chmod(broker.dir, 0700), 0);
	/* Only what is ours and near. */
	ends_with(1, "0.0.0.0",
		(const char *[]){
			host[0], host[1], host[2], broker.socket, "--listen", "0.0.0.0:0", NULL});
	ends_with(1, "192.0.2.1",
		(const char *[]){host[0], host[1], host[2], broker.socket, "--listen",
			"192.0.2.1:7700", NULL});
	free_address(address);
	ends_with(4, address,
		(const char *[]){host[0], host[1], host[2], broker.socket, "--join", address,
			"--join-timeout", "1", NULL});
	ends_with(
		3, "cuda", (const char *[]){"--backend", "cuda", "--socket", broker.socket, NULL});
	/* Nothing of all this is left. */
	assert_int_equal(access(broker.socket, F_OK), -1);
	broker_finish(&broker);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_the_joiner_is_killed_and_comes_back),
		cmocka_unit_test(test_the_lead_is_started_again),
		cmocka_unit_test(test_joining_in_the_middle),
		cmocka_unit_test(test_options),
		cmocka_unit_test(test_sockets_and_addresses),
	};

	return TEST_RUN(tests);
}
