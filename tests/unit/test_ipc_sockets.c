/* Session pages, the Unix socket's path and permissions, and TCP addresses. */
#include "base/clock.h"
#include "base/util.h"
#include "ipc/page.h"
#include "ipc/socket.h"
#include "support/test_main.h"
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGE_BYTES (PAGE_WORDS * sizeof(uint64_t))
#define SEALS (F_SEAL_SHRINK | F_SEAL_GROW | 0x0010 | F_SEAL_SEAL)

static void says(const struct error *err, const char *sentence)
{
	if (!strstr(err->text, sentence)) {
		fail_msg("'%s' lacks '%s'", err->text, sentence);
	}
}

static void test_page(void **state)
{
	struct page own, other;
	struct error err = {0};

	(void)state;
	assert_int_equal(page_create(&own, &err), 0);
	assert_int_equal(page_map(own.fd, &other, &err), 0);
	assert_int_equal(other.fd, -1);
	for (unsigned i = 0; i < PAGE_WORDS; i++) {
		assert_int_equal(page_load(&other, i), 0);
	}
	page_store(&own, WORD_READY, 3);
	page_store(&own, PAGE_WORDS - 1, UINT64_MAX);
	assert_int_equal(page_load(&other, WORD_READY), 3);
	assert_int_equal(page_load(&other, PAGE_WORDS - 1), UINT64_MAX);
	page_finish(&own);
	/* The mapping outlives the writer. */
	assert_int_equal(page_load(&other, WORD_READY), 3);
	page_finish(&other);
	page_finish(&other); /* twice is fine */
}

/* Whatever the reader does with the descriptor, it cannot write, shrink or unseal. */
static void test_page_of_another(void **state)
{
	struct page own, other;
	struct error err = {0};
	char path[64];
	int again;

	(void)state;
	assert_int_equal(page_create(&own, &err), 0);
	assert_int_equal(page_map(own.fd, &other, &err), 0);
	assert_int_equal(
		mprotect((void *)(uintptr_t)other.words, PAGE_BYTES, PROT_READ | PROT_WRITE), -1);
	assert_ptr_equal(
		mmap(NULL, PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, own.fd, 0), MAP_FAILED);
	snprintf(path, sizeof(path), "/proc/self/fd/%d", own.fd);
	again = open(path, O_RDWR | O_CLOEXEC);
	assert_true(again >= 0);
	assert_ptr_equal(mmap(NULL, PAGE_BYTES, PROT_WRITE, MAP_SHARED, again, 0), MAP_FAILED);
	assert_int_equal(pwrite(again, "x", 1, 0), -1);
	assert_int_equal(ftruncate(again, 0), -1);
	assert_int_equal(ftruncate(again, 2 * PAGE_BYTES), -1);
	assert_int_equal(fcntl(again, F_ADD_SEALS, F_SEAL_WRITE), -1);
	assert_int_equal(page_load(&other, 0), 0);
	fd_close(&again);
	page_finish(&other);
	page_finish(&own);
}

static void refuse_page(int fd, const char *sentence)
{
	struct page page = {NULL, -7};
	struct error err = {0};

	assert_int_equal(page_map(fd, &page, &err), -EINVAL);
	says(&err, sentence);
	assert_null(page.words);
	assert_int_equal(page.fd, -7);
	fd_close(&fd);
}

static int memfd(size_t len, int seals)
{
	int fd = memfd_create("strew-test", MFD_CLOEXEC | MFD_ALLOW_SEALING);

	assert_int_equal(ftruncate(fd, (off_t)len), 0);
	assert_int_equal(fcntl(fd, F_ADD_SEALS, seals), 0);
	return fd;
}

static void test_pages_refused(void **state)
{
	int fds[2];

	(void)state;
	refuse_page(eventfd(0, EFD_CLOEXEC), "no memfd");
	refuse_page(open("/proc/self/exe", O_RDONLY | O_CLOEXEC), "no memfd");
	refuse_page(open("/dev/zero", O_RDWR | O_CLOEXEC), "no memfd");
	refuse_page(open("/", O_RDONLY | O_CLOEXEC), "no memfd");
	assert_int_equal(pipe2(fds, O_CLOEXEC), 0);
	refuse_page(fds[0], "no memfd");
	fd_close(&fds[1]);
	refuse_page(-1, "no memfd");
	refuse_page(memfd(PAGE_BYTES, 0), "lacks seals");
	for (int bit = 1; bit <= 0x10; bit <<= 1) {
		if (bit & SEALS) {
			refuse_page(memfd(PAGE_BYTES, SEALS & ~bit), "lacks seals");
		}
	}
	refuse_page(memfd(0, SEALS), "has not 4096 bytes");
	refuse_page(memfd(PAGE_BYTES - 1, SEALS), "has not 4096 bytes");
	refuse_page(memfd(PAGE_BYTES + 1, SEALS), "has not 4096 bytes");
	refuse_page(memfd(1 << 20, SEALS), "has not 4096 bytes");
}

static void test_path(void **state)
{
	char path[108] = "untouched", wanted[108], *longest = calloc(1, 120);
	struct error err = {0};

	(void)state;
	setenv("STREW_SOCKET", "/env/sock", 1);
	setenv("XDG_RUNTIME_DIR", "/run/user/7", 1);
	assert_int_equal(socket_path("/option/sock", path, &err), 0);
	assert_string_equal(path, "/option/sock");
	assert_int_equal(socket_path("", path, &err), -EINVAL);
	assert_non_null(strstr(err.text, "path is empty"));
	assert_int_equal(socket_path(NULL, path, &err), 0);
	assert_string_equal(path, "/env/sock");
	setenv("STREW_SOCKET", "", 1);
	assert_int_equal(socket_path(NULL, path, &err), -EINVAL);
	assert_non_null(strstr(err.text, "$STREW_SOCKET is empty"));
	assert_int_equal(socket_path("/option/sock", path, &err), 0);
	unsetenv("STREW_SOCKET");
	assert_int_equal(socket_path(NULL, path, &err), 0);
	assert_string_equal(path, "/run/user/7/strew/broker.sock");
	unsetenv("XDG_RUNTIME_DIR");
	assert_int_equal(socket_path(NULL, path, &err), 0);
	snprintf(wanted, sizeof(wanted), "/tmp/strew-%u/broker.sock", (unsigned)geteuid());
	assert_string_equal(path, wanted);

	memset(longest, 'x', 107);
	longest[0] = '/';
	assert_int_equal(socket_path(longest, path, &err), 0);
	assert_string_equal(path, longest);
	longest[107] = 'y';
	assert_int_equal(socket_path(longest, path, &err), -ENAMETOOLONG);
	says(&err, "it has 108 bytes, a socket's name holds 107");
	longest[107] = '\0';
	assert_string_equal(path, longest); /* untouched */
	setenv("XDG_RUNTIME_DIR", longest, 1);
	assert_int_equal(socket_path(NULL, path, &err), -ENAMETOOLONG);
	says(&err, "it has 125 bytes");
	unsetenv("XDG_RUNTIME_DIR");
	free(longest);
}

/* A directory of the test's own and a socket's path in a directory "d" below it. */
struct place {
	char top[32], directory[40], path[64];
};

static void place_make(struct place *place)
{
	strcpy(place->top, "/tmp/strew-sock-XXXXXX");
	assert_non_null(mkdtemp(place->top));
	snprintf(place->directory, sizeof(place->directory), "%s/d", place->top);
	snprintf(place->path, sizeof(place->path), "%s/s", place->directory);
}

static void place_remove(struct place *place)
{
	char lock[80];

	snprintf(lock, sizeof(lock), "%s.lock", place->path);
	assert_int_equal(access(lock, F_OK), -1); /* none is left behind */
	unlink(place->path);
	rmdir(place->directory);
	assert_int_equal(rmdir(place->top), 0);
}

static mode_t mode_of(const char *path)
{
	struct stat st;

	assert_int_equal(lstat(path, &st), 0);
	return st.st_mode & 07777;
}

static void test_listen_unix(void **state)
{
	int listener, client, served = -7;
	struct place place;
	struct error err = {0};
	struct peer peer;
	mode_t mask = umask(0);

	(void)state;
	place_make(&place);
	assert_int_equal(socket_connect_unix(place.path, 0, &client, &err), -ENOENT);
	says(&err, "no broker serves /tmp/strew-sock-");
	says(&err, "start one (strewd --socket ");
	assert_int_equal(socket_listen_unix(place.path, &listener, &err), 0);
	assert_int_equal(mode_of(place.directory), 0700);
	assert_int_equal(mode_of(place.path), 0600);
	assert_int_equal(fcntl(listener, F_GETFD), FD_CLOEXEC);
	assert_true(fcntl(listener, F_GETFL) & O_NONBLOCK);
	assert_int_equal(socket_accept(listener, &served), -EAGAIN);
	assert_int_equal(served, -7);

	assert_int_equal(socket_connect_unix(place.path, 0, &client, &err), 0);
	assert_int_equal(socket_accept(listener, &served), 0);
	assert_int_equal(fcntl(served, F_GETFD), FD_CLOEXEC);
	assert_true(fcntl(served, F_GETFL) & O_NONBLOCK);
	assert_int_equal(fcntl(client, F_GETFD), FD_CLOEXEC);
	assert_true(fcntl(client, F_GETFL) & O_NONBLOCK);
	for (int i = 0; i < 2; i++) {
		memset(&peer, 0, sizeof(peer));
		assert_int_equal(socket_peer(i ? client : served, &peer), 0);
		assert_int_equal(peer.pid, getpid());
		assert_int_equal(peer.uid, getuid());
		assert_int_equal(peer.gid, getgid());
	}
	assert_true(socket_pid_namespace() != 0);
	umask(mask);
	fd_close(&client);
	fd_close(&served);
	fd_close(&listener);
	place_remove(&place);
}

static void test_live_and_dead(void **state)
{
	struct place place;
	struct error err = {0};
	int listener, other = -7;
	struct stat live, now;

	(void)state;
	place_make(&place);
	assert_int_equal(socket_listen_unix(place.path, &listener, &err), 0);
	assert_int_equal(stat(place.path, &live), 0);
	assert_int_equal(socket_listen_unix(place.path, &other, &err), -EADDRINUSE);
	says(&err, "a broker serves /tmp/strew-sock-");
	assert_int_equal(other, -7);
	assert_int_equal(stat(place.path, &now), 0);
	assert_int_equal(now.st_ino, live.st_ino); /* still served */
	fd_close(&listener);
	assert_int_equal(socket_connect_unix(place.path, 0, &other, &err), -ECONNREFUSED);
	says(&err, "no broker serves");
	assert_int_equal(socket_listen_unix(place.path, &listener, &err), 0);
	assert_int_equal(socket_connect_unix(place.path, 0, &other, &err), 0);
	fd_close(&other);
	fd_close(&listener);
	place_remove(&place);
}

/* What is left of a killed broker may hold its listener for long: its process is what counts. */
static void test_dead_with_an_open_listener(void **state)
{
	struct place place;
	struct error err = {0};
	int gone[2], listener, client;
	uint64_t start;
	pid_t broker;

	(void)state;
	place_make(&place);
	assert_int_equal(pipe2(gone, O_CLOEXEC), 0);
	broker = fork();
	assert_true(broker >= 0);
	if (broker == 0) {
		char byte;

		if (socket_listen_unix(place.path, &listener, &err)) {
			_exit(1);
		}
		if (fork() == 0) {
			close(gone[1]);
			(void)!read(gone[0], &byte, 1);
		}
		_exit(0);
	}
	assert_int_equal(waitpid(broker, NULL, 0), broker);
	/* Somebody listens, and never will accept. */
	assert_int_equal(socket_connect_unix(place.path, 0, &client, &err), 0);
	start = clock_ns();
	if (socket_listen_unix(place.path, &listener, &err)) {
		fail_msg("%s", err.text);
	}
	assert_in_range(clock_ns() - start, 0, 400000000);
	fd_close(&client);
	fd_close(&listener);
	fd_close(&gone[0]);
	fd_close(&gone[1]);
	place_remove(&place);
}

/* A broker that does not accept at the moment is no dead one, and clients wait until a deadline. */
static void test_full_backlog(void **state)
{
	int listener, clients[300], other, n = 0, rc;
	struct place place;
	struct error err = {0};
	uint64_t start;

	(void)state;
	place_make(&place);
	assert_int_equal(socket_listen_unix(place.path, &listener, &err), 0);
	while ((rc = socket_connect_unix(place.path, 0, &clients[n], &err)) == 0) {
		assert_true(++n < 300);
	}
	assert_int_equal(rc, -EAGAIN);
	start = clock_ns();
	assert_int_equal(
		socket_connect_unix(place.path, deadline_in_ms(50), &other, &err), -EAGAIN);
	assert_in_range(clock_ns() - start, 49000000, 1000000000);
	assert_int_equal(socket_listen_unix(place.path, &other, &err), -EADDRINUSE);
	says(&err, "a broker serves");
	while (n) {
		fd_close(&clients[--n]);
	}
	fd_close(&listener);
	place_remove(&place);
}

/* Only the descriptors of one end up listening, however many start at once over a dead socket. */
static void test_start_at_once(void **state)
{
	enum { STARTERS = 6 };
	struct place place;
	struct error err = {0};
	int listener;

	(void)state;
	place_make(&place);
	for (unsigned turn = 0; turn < 40; turn++) {
		int go[2], hold[2], won = 0, tally[2];

		assert_int_equal(socket_listen_unix(place.path, &listener, &err), 0);
		fd_close(&listener); /* dead from here */
		assert_int_equal(pipe2(go, O_CLOEXEC) | pipe2(hold, O_CLOEXEC), 0);
		assert_int_equal(pipe2(tally, O_CLOEXEC), 0);
		for (unsigned i = 0; i < STARTERS; i++) {
			if (fork() == 0) {
				char rc, byte;

				close(go[1]);
				close(hold[1]);
				(void)!read(go[0], &byte, 1);
				rc = (char)-socket_listen_unix(place.path, &listener, NULL);
				(void)!write(tally[1], &rc, 1);
				(void)!read(hold[0], &byte, 1); /* serves until all have tried */
				_exit(0);
			}
		}
		fd_close(&go[1]);
		for (unsigned i = 0; i < STARTERS; i++) {
			char rc;

			assert_int_equal(read(tally[0], &rc, 1), 1);
			assert_true(rc == 0 || rc == EADDRINUSE);
			won += rc == 0;
		}
		fd_close(&hold[1]);
		for (unsigned i = 0; i < STARTERS; i++) {
			assert_true(wait(NULL) > 0);
		}
		assert_int_equal(won, 1);
		fd_close(&go[0]);
		fd_close(&hold[0]);
		fd_close(&tally[0]);
		fd_close(&tally[1]);
	}
	place_remove(&place);
}

static void refuse_listen(const char *path, int code, const char *sentence)
{
	int before = test_count_fds(), listener = -7;
	struct error err = {0};

	assert_int_equal(socket_listen_unix(path, &listener, &err), code);
	says(&err, sentence);
	assert_int_equal(listener, -7);
	assert_int_equal(test_count_fds(), before);
}

static void test_places_refused(void **state)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	struct place place;
	char longest[160] = "/tmp/", lock[80];
	int fd;

	(void)state;
	place_make(&place);
	memset(longest + 5, 'x', 103);
	refuse_listen(longest, -ENAMETOOLONG, "it has 108 bytes, a socket's name holds 107");
	refuse_listen("/tmp/strew-no-such/deeper/s", -ENOENT, "/tmp/strew-no-such/deeper");
	refuse_listen("/tmp/s", -EPERM, "/tmp must belong to this user, and nobody else may write");
	refuse_listen("/proc/self/exe/s", -ENOTDIR, "/proc/self/exe");
	assert_int_equal(mkdir(place.directory, 0700), 0);
	for (mode_t bit = 020; bit; bit = bit == 020 ? 02 : 0) {
		assert_int_equal(chmod(place.directory, 0700 | bit), 0);
		refuse_listen(place.path, -EPERM, "chmod 700");
	}
	assert_int_equal(chmod(place.directory, 0700), 0);
	if (geteuid() == 0) {
		assert_int_equal(chown(place.directory, 12345, 12345), 0);
		refuse_listen(place.path, -EPERM, "must belong to this user");
		assert_int_equal(chown(place.directory, 0, 0), 0);
	} else {
		print_message("not root: a directory of another owner is not tried\n");
	}

	fd = open(place.path, O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
	assert_int_equal(write(fd, "mine", 4), 4);
	fd_close(&fd);
	refuse_listen(place.path, -EEXIST, "exists and is no socket");
	assert_int_equal(access(place.path, F_OK), 0);
	assert_int_equal(unlink(place.path), 0);
	assert_int_equal(symlink("/etc/passwd", place.path), 0);
	refuse_listen(place.path, -EEXIST, "exists and is no socket");
	assert_int_equal(unlink(place.path), 0);
	assert_int_equal(mkdir(place.path, 0700), 0);
	refuse_listen(place.path, -EEXIST, "exists and is no socket");
	assert_int_equal(rmdir(place.path), 0);
	/* A living socket of another type is nobody's to remove. */
	fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	strcpy(address.sun_path, place.path);
	assert_int_equal(bind(fd, (struct sockaddr *)&address, sizeof(address)), 0);
	refuse_listen(place.path, -EEXIST, "a socket of another type");
	fd_close(&fd);
	assert_int_equal(unlink(place.path), 0);
	/* Nor is a lock followed elsewhere. */
	snprintf(lock, sizeof(lock), "%s.lock", place.path);
	assert_int_equal(symlink("/tmp/strew-elsewhere", lock), 0);
	refuse_listen(place.path, -ELOOP, lock);
	assert_int_equal(access("/tmp/strew-elsewhere", F_OK), -1);
	assert_int_equal(unlink(lock), 0);
	place_remove(&place);
}

static void test_connect_too_long(void **state)
{
	char longest[160] = "/tmp/";
	struct error err = {0};
	int fd = -7;

	(void)state;
	memset(longest + 5, 'x', 103);
	assert_int_equal(socket_connect_unix(longest, 0, &fd, &err), -ENAMETOOLONG);
	says(&err, "a socket's name holds 107");
	assert_int_equal(fd, -7);
}

static void test_tcp(void **state)
{
	static const char *const addresses[] = {
		"0", "127.0.0.1:0", "127.9.8.7:0", "localhost:0", "[127.0.0.1]:0", "[::1]:0"};

	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(addresses); i++) {
		char host[32], address[64], *colon;
		struct pollfd pollfd = {.events = POLLOUT};
		int listener, served, rc;
		struct error err = {0};
		uint16_t port = 0;

		rc = socket_listen_tcp(addresses[i], false, &listener, &port, &err);
		if (rc == -EADDRNOTAVAIL || rc == -EAFNOSUPPORT) {
			print_message("%s\n", err.text); /* no IPv6 here */
			continue;
		}
		assert_int_equal(rc, 0);
		assert_true(port > 0);
		string_copy(host, sizeof(host), addresses[i]);
		colon = strrchr(host, ':');
		snprintf(address, sizeof(address), "%.*s%s%u", colon ? (int)(colon - host) : 0,
			host, colon ? ":" : "", port);
		assert_int_equal(socket_connect_tcp(address, false, &pollfd.fd, &err), 0);
		assert_int_equal(poll(&pollfd, 1, 5000), 1);
		assert_int_equal(socket_connected(pollfd.fd, address, &err), 0);
		assert_int_equal(socket_accept(listener, &served), 0);
		assert_int_equal(fcntl(served, F_GETFD), FD_CLOEXEC);
		assert_true(fcntl(pollfd.fd, F_GETFL) & O_NONBLOCK);
		fd_close(&served);
		if (i == 0) { /* the port is taken: it is waited for (LIMIT_PORT_FREE_MS) */
			rc = socket_listen_tcp(address, false, &served, &port, &err);
			assert_int_equal(rc, -EADDRINUSE);
			says(&err, address);
		}
		fd_close(&listener);
		fd_close(&pollfd.fd);
		/* Nobody listens there any more. */
		rc = socket_connect_tcp(address, false, &pollfd.fd, &err);
		if (rc == 0) {
			assert_int_equal(poll(&pollfd, 1, 5000), 1);
			rc = socket_connected(pollfd.fd, address, &err);
			fd_close(&pollfd.fd);
		}
		assert_int_equal(rc, -ECONNREFUSED);
		says(&err, "cannot connect to");
		says(&err, address);
		says(&err, "Connection refused");
	}
}

static void test_tcp_refused(void **state)
{
	static const struct {
		const char *address;
		int code;
		const char *sentence;
	} bad[] = {
		{"", -EINVAL, "HOST:PORT is wanted"},
		{":", -EINVAL, "HOST:PORT is wanted"},
		{"localhost", -EINVAL, "localhost is no address: HOST:PORT is wanted"},
		{"localhost:", -EINVAL, "localhost: is no address"},
		{"localhost:http", -EINVAL, "HOST:PORT is wanted"},
		{"127.0.0.1:65536", -EINVAL, "127.0.0.1:65536 is no address"},
		{"127.0.0.1:-1", -EINVAL, "HOST:PORT is wanted"},
		{"127.0.0.1:+1", -EINVAL, "HOST:PORT is wanted"},
		{"127.0.0.1: 1", -EINVAL, "HOST:PORT is wanted"},
		{"127.0.0.1:99999999999999999999", -EINVAL, "HOST:PORT is wanted"},
		{"[::1]", -EINVAL, "HOST:PORT is wanted"},
		{":80", -EINVAL, ":80 is no address: the host is missing"},
		{"[]:80", -EINVAL, "[]:80 is no address: the host is missing"},
		{"0.0.0.0:0", -EPERM, "0.0.0.0:0: only loopback addresses are served without"},
		{"192.0.2.1:80", -EPERM, "192.0.2.1:80: only loopback addresses"},
		{"[::]:0", -EPERM, "[::]:0: only loopback addresses"},
		{"[2001:db8::1]:80", -EPERM, "only loopback addresses"},
		{"[::ffff:192.0.2.1]:80", -EPERM, "only loopback addresses"},
		{"127.0.0.1.:x:80", -ENOENT, "127.0.0.1.:x:80: "},
	};

	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
		struct error err = {0};
		uint16_t port = 7;
		int fd = -7;

		assert_int_equal(
			socket_listen_tcp(bad[i].address, false, &fd, &port, &err), bad[i].code);
		says(&err, bad[i].sentence);
		assert_int_equal(socket_connect_tcp(bad[i].address, false, &fd, &err), bad[i].code);
		says(&err, bad[i].sentence);
		assert_int_equal(fd, -7);
		assert_int_equal(port, 7);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_page),
		cmocka_unit_test(test_page_of_another),
		cmocka_unit_test(test_pages_refused),
		cmocka_unit_test(test_path),
		cmocka_unit_test(test_listen_unix),
		cmocka_unit_test(test_live_and_dead),
		cmocka_unit_test(test_dead_with_an_open_listener),
		cmocka_unit_test(test_full_backlog),
		cmocka_unit_test(test_start_at_once),
		cmocka_unit_test(test_places_refused),
		cmocka_unit_test(test_connect_too_long),
		cmocka_unit_test(test_tcp),
		cmocka_unit_test(test_tcp_refused),
	};

	return TEST_RUN(tests);
}
