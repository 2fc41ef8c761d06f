/* A log that nobody reads: it stops nobody, and says afterwards what is missing. */
#include "base/log.h"
#include "support/test_main.h"
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

static int ends[2], saved;

static int set_up(void **state)
{
	(void)state;
	log_init("test", LOG_LEVEL_INFO);
	saved = dup(STDERR_FILENO);
	return saved < 0 || pipe(ends) || dup2(ends[1], STDERR_FILENO) < 0;
}

static int tear_down(void **state)
{
	(void)state;
	dup2(saved, STDERR_FILENO);
	close(saved);
	close(ends[0]);
	close(ends[1]);
	return 0;
}

static void fill(void)
{
	char bytes[4096] = {0};

	assert_int_equal(fcntl(ends[1], F_SETFL, O_NONBLOCK), 0);
	while (write(ends[1], bytes, sizeof(bytes)) > 0) {
	}
	assert_int_equal(errno, EAGAIN);
	/* As a shell or a supervisor leaves it. */
	assert_int_equal(fcntl(ends[1], F_SETFL, 0), 0);
}

static void drain(void)
{
	char bytes[4096];

	assert_int_equal(fcntl(ends[0], F_SETFL, O_NONBLOCK), 0);
	while (read(ends[0], bytes, sizeof(bytes)) > 0) {
	}
}

static void expect_line(const char *word, const char *other, int has_other)
{
	char line[2048];
	ssize_t n = read(ends[0], line, sizeof(line) - 1);

	assert_true(n > 1);
	line[n] = '\0';
	assert_int_equal(line[n - 1], '\n');
	assert_ptr_equal(strchr(line, '\n'), line + n - 1);
	assert_non_null(strstr(line, word));
	assert_int_equal(strstr(line, other) != NULL, has_other);
}

static void test_nobody_reads(void **state)
{
	char longest[3000];

	(void)state;
	memset(longest, 'x', sizeof(longest) - 1);
	longest[sizeof(longest) - 1] = '\0';
	fill();
	alarm(10); /* a log that blocks would do so for ever */
	errno = 77;
	for (int i = 0; i < 100; i++) {
		log_warn("line %d", i);
	}
	alarm(0);
	assert_int_equal(errno, 77);
	drain();
	/* The longest line still has room for what is missing. */
	log_warn("%s", longest);
	expect_line("xxxx", "[100 lines before this one were dropped", 1);
	log_warn("%s", longest);
	expect_line("xxxx", "dropped", 0);
	log_info("the next");
	expect_line("the next", "dropped", 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_nobody_reads, set_up, tear_down),
	};

	return test_finish(cmocka_run_group_tests(tests, NULL, NULL), test_fds_at_start);
}
