/*
 * What makes strewd_hasty of strewd: it waits less for others (broker/waits.h), so that a test sees
 * what happens behind a deadline. Communicators that are well are made well within it, and an abort
 * has LIMIT_ABORT_MS before the watchdog comes.
 *
 * And its name server is a file: what $HASTY_NAMES names holds the address of "lead.test", or
 * "hang", and then nobody has an answer until it holds something else.
 */
#include "broker/hasty.h"
#include "broker/waits.h"
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int __real_getaddrinfo(const char *host, const char *port, const struct addrinfo *hints,
	struct addrinfo **ret_found);
int __wrap_getaddrinfo(const char *host, const char *port, const struct addrinfo *hints,
	struct addrinfo **ret_found);

const struct waits waits = {.epoch_ms = HASTY_EPOCH_MS,
	.hung_ms = 7000,
	.blame_min_ms = HASTY_BLAME_MIN_MS,
	.blame_max_ms = HASTY_BLAME_MAX_MS,
	.lookup_ms = 1000,
	.stop_ms = 6000};

int __wrap_getaddrinfo(const char *host, const char *port, const struct addrinfo *hints,
	struct addrinfo **ret_found)
{
	const char *path = getenv("HASTY_NAMES");
	char answer[64] = "";

	if (!path || strcmp(host, "lead.test") != 0) {
		return __real_getaddrinfo(host, port, hints, ret_found);
	}
	fputs("hasty: lead.test is asked for\n", stderr);
	do {
		FILE *file = fopen(path, "re");

		usleep(10000);
		if (file && !fgets(answer, sizeof(answer), file)) {
			answer[0] = '\0';
		}
		if (file) {
			fclose(file);
		}
		answer[strcspn(answer, "\n")] = '\0';
	} while (strcmp(answer, "hang") == 0);
	return answer[0] ? __real_getaddrinfo(answer, port, hints, ret_found) : EAI_NONAME;
}
