/* Processes that connect without end: a round of the loop takes some of them. */
#include "broker/server.h"
#include "support/test_main.h"
#include <errno.h>
#include <fcntl.h>
#include <string.h>

#define ENDLESS (10 * ACCEPTS_A_ROUND)

static struct server server;
static unsigned accepted;

int __wrap_socket_accept(int listener, int *ret_fd);

/* Somebody is always there, and is nobody to be served: it is closed at once. */
int __wrap_socket_accept(int listener, int *ret_fd)
{
	(void)listener;
	if (accepted == ENDLESS) {
		return -EAGAIN;
	}
	accepted++;
	*ret_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
	return *ret_fd < 0 ? -errno : 0;
}

static void test_processes(void **state)
{
	(void)state;
	memset(&server, 0, sizeof(server));
	accepted = 0;
	for (unsigned round = 1; round <= ENDLESS / ACCEPTS_A_ROUND; round++) {
		clients_accept(&server, 0);
		assert_int_equal(accepted, round * ACCEPTS_A_ROUND);
	}
	clients_accept(&server, 0);
	assert_int_equal(accepted, ENDLESS);
	assert_true(server.accept_at == 0); /* nothing was wrong */
	assert_int_equal(server.nclients, 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_processes),
	};

	return TEST_RUN(tests);
}
